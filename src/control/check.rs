//! `check`: reads all of a volume of format 2 and says what is damaged.
//!
//! Knows: how findings are shown, and what is done about them. Does not know: what is
//! looked at, which is the engine's. The volume is locked meanwhile: a running one
//! deletes what it has collected.
//!
//! `--repair` does two things. Where the metadata does not say any more what the volume
//! is, the volume itself is asked, before the check. What cannot be read, in two looks
//! some time apart, is given up after it: from then on reading it fails at once,
//! everything else goes on, and what is written there anew is sound.

use std::io::Write;

use super::signals::Signals;
use super::transfer::claim::{Claim, Place, Verb};
use super::transfer::copy;
use super::transfer::interrupted;
use super::transfer::progress::Progress;
use super::{daemon, explain, open, passphrase, setup};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Exit, Result};
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
    let (report, repaired) = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let place = Place::enter(&volume)?;
        passphrase::ask_if_needed(&mut volume, place.container()).await?;
        let mended = match args.repair {
            true => mend_metadata(&volume, &place, &mut signals).await?,
            false => None,
        };
        let claim = place.claim(Verb::Check, "", false).await?;
        let mut repaired: Vec<String> = mended.into_iter().collect();
        let mut checked = match claim.format() {
            Format::Log { .. } => look(&volume, &claim, args, &mut signals).await,
            Format::Objects(_) => Err(Error::usage(format!(
                "volume {}: it is of format 1, of which nothing but its objects can be checked",
                volume.name
            ))
            .hint("`swiftnbd download` reads and verifies every object")),
        };
        let mut gone = checked.as_ref().map_or(Vec::new(), lost);
        if args.repair && !gone.is_empty() {
            checked = look_again(&volume, &claim, args, &mut signals).await;
            gone = both(&gone, &checked.as_ref().map_or(Vec::new(), lost));
        }
        if args.repair && !gone.is_empty() {
            // If it cannot be closed it stays ours.
            match give_up(&volume, &claim, &gone, &mut signals).await? {
                Ok(done) => repaired.push(done),
                Err(error) => checked = Err(error),
            }
        }
        let released = claim.release(&mut signals).await;
        let report = checked?;
        released.map(|()| (report, repaired))
    })?;
    print(&volume, &report, &repaired, args)?;
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
    let progress = Progress::segments(args.quiet);
    let passphrase = passphrase::of(volume)?;
    let store = claim.store();
    let work = check::check(&*store, passphrase.as_ref(), |done, total| {
        progress.reach(done, total)
    });
    let report = tokio::select! {
        report = work => report.map_err(|error| explain::log(volume, &error)),
        () = signals.recv() => Err(interrupted()),
    };
    progress.end();
    report
}

/// Looks a second time, some time after the first: a server that is away, or behind,
/// hides objects for a while, and what is given up does not come back.
async fn look_again(
    volume: &Volume,
    claim: &Claim,
    args: &cli::Check,
    signals: &mut Signals,
) -> Result<Report> {
    let pause = claim.store().linger();
    tracing::warn!(
        volume = volume.name,
        "something cannot be read; before it is given up everything is looked at again, after {} s",
        pause.as_secs()
    );
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = signals.recv() => return Err(interrupted()),
    }
    look(volume, claim, args, signals).await
}

/// What is in both, each as [`lost`] makes it.
fn both(first: &[(u64, u64)], second: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut common = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(&(a, long)), Some(&(b, wide))) = (first.get(i), second.get(j)) {
        let (from, to) = (a.max(b), (a + long).min(b + wide));
        if from < to {
            common.push((from, to - from));
        }
        match a + long < b + wide {
            true => i += 1,
            false => j += 1,
        }
    }
    common
}

/// What of the device cannot be read: offsets and lengths in bytes, ascending, apart
/// from each other.
fn lost(report: &Report) -> Vec<(u64, u64)> {
    let ranges = report.findings.iter().flat_map(|finding| &finding.ranges);
    let mut ranges: Vec<(u64, u64)> = ranges.copied().collect();
    ranges.sort_unstable();
    let mut lost: Vec<(u64, u64)> = Vec::new();
    for (offset, length) in ranges {
        match lost.last_mut() {
            Some((from, there)) if offset <= *from + *there => {
                *there = (*there).max(offset + length - *from);
            }
            _ => lost.push((offset, length)),
        }
    }
    lost
}

/// Gives up what is lost: what was done, in words. Fails if the volume cannot be given
/// back after that.
async fn give_up(
    volume: &Volume,
    claim: &Claim,
    lost: &[(u64, u64)],
    signals: &mut Signals,
) -> Result<Result<String>> {
    let log = match claim.open(volume).await {
        Ok(log) => log,
        Err(error) => return Ok(Err(error)),
    };
    let given_up = log.give_up(lost).await;
    copy::close(volume, &log, signals).await?;
    let bytes: u64 = lost.iter().map(|(_, length)| length).sum();
    let given_up = given_up.map_err(|error| explain::image(volume, &error));
    Ok(given_up.map(|()| {
        format!("{bytes} bytes are given up: reading them fails until they are written anew")
    }))
}

/// Has the metadata of a volume say again what it is, if it does not: what was done, in
/// words. A volume that somebody has locked is left alone.
async fn mend_metadata(
    volume: &Volume,
    place: &Place,
    signals: &mut Signals,
) -> Result<Option<String>> {
    let store = place.impatient();
    // A look may reach a replica that is behind.
    for _ in 0..meta::LOOKS {
        match meta::read(store).await {
            Err(MetaError::Damaged { .. } | MetaError::NotAVolume)
                if setup::data(store, volume).await? != Some(1) => {}
            _ => return Ok(None),
        }
    }
    let client = meta::client(store).await;
    let client = client.map_err(|error| explain::store(volume, &error))?;
    place.may_claim(client.as_ref()).await?;
    let log = match place.open(volume).await {
        Ok(log) => log,
        // The metadata is right: there is nothing.
        Err(error) if error.exit == Exit::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let described = meta::describe(store, &open::format(&log)).await;
    copy::close(volume, &log, signals).await?;
    described.map_err(|error| explain::store(volume, &error))?;
    Ok(Some("the container's metadata is written anew".to_owned()))
}

fn print(volume: &Volume, report: &Report, repaired: &[String], args: &cli::Check) -> Result<()> {
    let text = match args.json {
        true => json(volume, report, repaired)?,
        false => words(volume, report, repaired),
    };
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|error| Error::failed(format!("cannot print: {error}")))
}

fn words(volume: &Volume, report: &Report, repaired: &[String]) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (object, problem) = (finding.object.escape_debug(), &finding.problem);
        text += &format!("{object}: {problem}\n");
        for (offset, length) in &finding.ranges {
            text += &format!("  {length} bytes of the device from {offset} on\n");
        }
    }
    if report.lost_bytes > 0 {
        let lost = report.lost_bytes;
        text += &format!("given up before: {lost} bytes of the device\n");
    }
    for done in repaired {
        text += &format!("repaired: {done}\n");
    }
    let what = match report.findings.len() {
        0 => "nothing is damaged".to_owned(),
        count => format!("findings: {count}"),
    };
    text += &format!(
        "volume {}: {} segments with {} frames, {} pages of the map, {} objects that nothing \
         needs: {what}\n",
        volume.name, report.segments, report.frames, report.pages, report.orphans
    );
    text
}

fn json(volume: &Volume, report: &Report, repaired: &[String]) -> Result<String> {
    let range =
        |(offset, length): &(u64, u64)| serde_json::json!({ "offset": offset, "length": length });
    let finding = |finding: &Finding| {
        serde_json::json!({
            "object": finding.object,
            "problem": finding.problem,
            "ranges": finding.ranges.iter().map(range).collect::<Vec<_>>(),
        })
    };
    let all = serde_json::json!({
        "volume": volume.name,
        "segments": report.segments,
        "frames": report.frames,
        "pages": report.pages,
        "live_bytes": report.live_bytes,
        "stored_bytes": report.stored_bytes,
        "orphans": report.orphans,
        "lost_bytes": report.lost_bytes,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "repaired": repaired,
    });
    let text = serde_json::to_string_pretty(&all);
    text.map(|text| text + "\n")
        .map_err(|error| Error::failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_look_found_is_not_lost() {
        let first = [(0, 8192), (20480, 4096), (40960, 8192)];
        assert_eq!(both(&first, &[]), []);
        assert_eq!(both(&first, &first), first);
        assert_eq!(
            both(&first, &[(4096, 4096), (8192, 8192), (16384, 40960)]),
            [(4096, 4096), (20480, 4096), (40960, 8192)]
        );
    }

    #[test]
    fn what_is_lost_is_told_once() {
        let finding = |ranges: &[(u64, u64)]| Finding {
            object: "seg/x".to_owned(),
            problem: "its checksum is wrong".to_owned(),
            ranges: ranges.to_vec(),
        };
        let report = Report {
            findings: vec![
                finding(&[(8192, 4096), (40960, 4096)]),
                finding(&[]),
                finding(&[(0, 4096), (4096, 8192), (20480, 4096)]),
            ],
            ..Report::default()
        };
        assert_eq!(lost(&report), [(0, 12288), (20480, 4096), (40960, 4096)]);
    }
}
