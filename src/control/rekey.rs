//! `passphrase`: another passphrase for an encrypted volume. No data is written again.
//!
//! The order: the new passphrase is read; the volume is locked and opened with the old
//! one; the key is wrapped anew; closed; unlocked. If that is cut off, one of the two
//! passphrases opens the volume, and the same command goes on: where the old one is not
//! right any more and the new one is, it was done already.

use std::io::IsTerminal;
use std::sync::Arc;

use super::signals::Signals;
use super::transfer::claim::{Claim, Place, Verb};
use super::transfer::copy;
use super::{daemon, explain, passphrase};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Exit, Result};
use crate::image::log::Log;
use crate::image::log::format::keys::Cost;
use crate::image::meta::Format;

/// Carries it out.
pub fn run(config: &Config, args: &cli::Passphrase) -> Result<()> {
    let mut volume = config.volume(&args.name)?;
    passphrase::choose(&mut volume, &args.passphrase)?;
    let mut new = volume.clone();
    new.passphrase =
        passphrase::chosen(args.new_passphrase_file.as_deref(), args.new_passphrase_fd)?;
    if new.passphrase.is_none() && !std::io::stdin().is_terminal() {
        let text = format!("volume {}: there is no new passphrase", volume.name);
        return Err(Error::usage(text).hint("name the file that holds it: --new-passphrase-file"));
    }
    if new.passphrase.is_some() {
        passphrase::settle_new(&mut new)?;
    }
    let runtime = daemon::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let place = Place::enter(&volume)?;
        passphrase::ask_if_needed(&mut volume, place.container()).await?;
        if new.passphrase.is_none() {
            new.passphrase = Some(passphrase::here(passphrase::ask_for_new(&volume)?));
        }
        let claim = place.claim(Verb::Passphrase, "", false).await?;
        let changed = match claim.format() {
            Format::Log { .. } => match change(&volume, &new, &claim, &mut signals).await {
                Ok(changed) => changed,
                // It could not be closed: it stays ours.
                Err(error) => return Err(error),
            },
            Format::Objects(_) => Err(Error::usage(format!(
                "volume {}: it is of format 1, which knows no encryption",
                volume.name
            ))
            .hint("`swiftnbd convert --encrypt` makes an encrypted volume of it")),
        };
        let released = claim.release(&mut signals).await;
        changed.and(released)
    })
}

/// Changes it. Fails if the volume cannot be given back; what came of the change is the
/// result.
async fn change(
    volume: &Volume,
    new: &Volume,
    claim: &Claim,
    signals: &mut Signals,
) -> Result<Result<()>> {
    let (log, done_before) = match open_with_either(volume, new, claim).await {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    let changed = match (done_before, passphrase::of(new)?) {
        (false, Some(passphrase)) => {
            let changed = log.change_passphrase(&passphrase, Cost::default()).await;
            changed.map_err(|error| explain::log(volume, &error))
        }
        _ => Ok(()),
    };
    copy::close(volume, &log, signals).await?;
    Ok(changed)
}

/// The volume, and whether it has the new passphrase already: only an attempt of ours
/// that was killed can have left it so.
async fn open_with_either(
    volume: &Volume,
    new: &Volume,
    claim: &Claim,
) -> Result<(Arc<Log>, bool)> {
    let with = async |volume: &Volume| claim.open(volume).await;
    match with(volume).await {
        Ok(log) => Ok((Arc::new(log), false)),
        Err(error) if claim.resumed() && error.exit == Exit::Denied => match with(new).await {
            Ok(log) => Ok((Arc::new(log), true)),
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}
