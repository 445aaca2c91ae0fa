//! `check`: reads all of a volume of format 2 and says what is damaged.
//!
//! Knows: how findings are shown. Does not know: what is looked at, which is the
//! engine's. The volume is locked meanwhile: a running one deletes what it has
//! collected. Where the metadata does not say any more what the volume is, `--repair`
//! asks the volume itself first.

use std::io::Write;

use super::signals::Signals;
use super::transfer::claim::{Claim, Place, Verb};
use super::transfer::copy;
use super::transfer::interrupted;
use super::transfer::progress::Progress;
use super::{daemon, explain, open, passphrase, setup};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Result};
use crate::image::log::check::{self, Finding, Report};
use crate::image::meta::{self, Format, MetaError};

/// Carries it out.
pub fn run(config: &Config, args: &cli::Check) -> Result<()> {
    let mut volume = config.volume(&args.name)?;
    if args.repair && volume.read_only {
        let text = format!(
            "volume {}: it is read-only in the configuration",
            volume.name
        );
        return Err(Error::usage(text));
    }
    passphrase::choose(&mut volume, &args.passphrase)?;
    let runtime = daemon::runtime()?;
    let (report, mended) = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let place = Place::enter(&volume)?;
        passphrase::ask_if_needed(&mut volume, place.container()).await?;
        let mended = match args.repair {
            true => mend_metadata(&volume, &place, &mut signals).await?,
            false => None,
        };
        let claim = place.claim(Verb::Check, "", false).await?;
        let checked = match claim.format() {
            Format::Log { .. } => look(&volume, &claim, args, &mut signals).await,
            Format::Objects(_) => Err(Error::usage(format!(
                "volume {}: it is of format 1, of which nothing but its objects can be checked",
                volume.name
            ))
            .hint("`swiftnbd download` reads and verifies every object")),
        };
        let released = claim.release(&mut signals).await;
        let report = checked?;
        released.map(|()| (report, mended))
    })?;
    print(&volume, &report, mended, args)?;
    match report.findings.len() {
        0 => Ok(()),
        count => Err(outcome(&volume, count, args.repair)),
    }
}

/// What the command ends with where something was found.
fn outcome(volume: &Volume, count: usize, repair: bool) -> Error {
    let what = match count {
        1 => "one thing is not as it should be".to_owned(),
        _ => format!("{count} things are not as they should be"),
    };
    let text = format!("volume {}: {what}", volume.name);
    let error = Error::failed(text);
    match repair {
        true => error,
        false => error.hint("--repair mends what can be mended; what is lost stays lost"),
    }
}

async fn look(
    volume: &Volume,
    claim: &Claim,
    args: &cli::Check,
    signals: &mut Signals,
) -> Result<Report> {
    let progress = Progress::bytes(0, args.quiet);
    let passphrase = passphrase::of(volume)?;
    let store = claim.store();
    let repair = args.repair.then(open::who);
    let work = check::check(&store, passphrase.as_ref(), repair, |done, total| {
        progress.reach(done, total)
    });
    let report = tokio::select! {
        report = work => report.map_err(|error| explain::log(volume, &error)),
        () = signals.recv() => Err(interrupted()),
    };
    progress.end();
    report
}

/// Has the metadata of a volume say again what it is, if it does not: what was done, in
/// words. A volume that somebody has locked is left alone.
async fn mend_metadata(
    volume: &Volume,
    place: &Place,
    signals: &mut Signals,
) -> Result<Option<String>> {
    let store = place.impatient();
    match meta::read(store).await {
        Err(MetaError::Damaged { .. } | MetaError::NotAVolume)
            if setup::data(store, volume).await? != Some(1) => {}
        _ => return Ok(None),
    }
    let client = meta::client(store).await;
    if let Some(client) = client.map_err(|error| explain::store(volume, &error))? {
        return Err(explain::meta(volume, &MetaError::Locked(client)));
    }
    let container = place.container();
    let log = open::log(volume, container, &container.diligent).await?;
    let described = meta::describe(store, &open::format(&log)).await;
    copy::close(volume, &log, signals).await?;
    described.map_err(|error| explain::store(volume, &error))?;
    Ok(Some("the container's metadata is written anew".to_owned()))
}

fn print(
    volume: &Volume,
    report: &Report,
    mended: Option<String>,
    args: &cli::Check,
) -> Result<()> {
    let repaired: Vec<&String> = mended.iter().chain(&report.repaired).collect();
    let text = match args.json {
        true => json(volume, report, &repaired)?,
        false => words(volume, report, &repaired),
    };
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|error| Error::failed(format!("cannot print: {error}")))
}

fn words(volume: &Volume, report: &Report, repaired: &[&String]) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let Finding { object, what, .. } = finding;
        text += &format!("{}: {what}\n", object.escape_debug());
        for (offset, length) in &finding.ranges {
            text += &format!("  {length} bytes of the device from {offset} on\n");
        }
    }
    for done in repaired {
        text += &format!("repaired: {done}\n");
    }
    let what = match report.findings.len() {
        0 => "nothing is damaged".to_owned(),
        count => format!("findings: {count}"),
    };
    let Report {
        objects,
        segments,
        frames,
        pages,
        ..
    } = report;
    text += &format!(
        "volume {}: {objects} objects, {segments} segments with {frames} frames, {pages} pages of \
         the map: {what}\n",
        volume.name
    );
    text
}

fn json(volume: &Volume, report: &Report, repaired: &[&String]) -> Result<String> {
    let range =
        |(offset, length): &(u64, u64)| serde_json::json!({ "offset": offset, "length": length });
    let finding = |finding: &Finding| {
        serde_json::json!({
            "object": finding.object,
            "what": finding.what,
            "ranges": finding.ranges.iter().map(range).collect::<Vec<_>>(),
        })
    };
    let all = serde_json::json!({
        "volume": volume.name,
        "objects": report.objects,
        "segments": report.segments,
        "frames": report.frames,
        "blocks": report.blocks,
        "pages": report.pages,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "repaired": repaired,
    });
    let text = serde_json::to_string_pretty(&all);
    text.map(|text| text + "\n")
        .map_err(|error| Error::failed(error.to_string()))
}
