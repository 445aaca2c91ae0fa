//! Whether a volume may be claimed: who has it, and whether that one lives.
//!
//! Knows: what a person should be told of a holder. Does not know: how a claim is made
//! and what it is worth, which is [the lease's](crate::image::log::lease). What is
//! found here is a courtesy: no promise relies on it.

use super::registry::{VolumeLock, host_name};
use super::{explain, open};
use crate::config::Volume;
use crate::error::{Error, Exit, Result};
use crate::image::log;
use crate::image::log::format::claim::Claim;
use crate::image::log::journal::replay;
use crate::image::log::lease::{self, Standing, wait_for};
use crate::image::meta::{Holder, MetaError};
use crate::image::objects::lease::released_ago;
use crate::store::ObjectStore;

/// Refuses a volume that somebody has. `client` is what its container's lock says;
/// `machine` the lock of this machine, which tells who is dead for certain; with
/// `takeover` only a person's own lock is respected. Returns what is worth telling
/// about the holder before, if it did not give the volume back.
pub async fn may_claim(
    store: &dyn ObjectStore,
    volume: &Volume,
    client: Option<&Holder>,
    machine: Option<&VolumeLock>,
    takeover: bool,
) -> Result<Option<String>> {
    if let Some(client) = client
        && !client.is_daemon()
    {
        return Err(explain::meta(volume, &MetaError::Locked(client.clone())));
    }
    let failed = |error| explain::log(volume, &error);
    let standing = lease::standing(store).await.map_err(failed)?;
    let Standing::Claimed { claim, age, .. } = &standing else {
        return Ok(None);
    };
    if machine.is_some_and(|machine| machine.dead().contains(&claim.attach)) {
        return Ok(None);
    }
    let host = host_of(claim).escape_debug();
    let name = &volume.name;
    if takeover {
        return Ok(Some(format!(
            "volume {name}: it is taken from {host}; what that one did not store yet is lost{}",
            waiting(claim)
        )));
    }
    let journal_is_elsewhere = standing.has_journal() && !journal_is_here(store, volume).await?;
    if journal_is_elsewhere || claim.lease.is_none() {
        return Err(held(
            volume,
            claim,
            client,
            "may hold writes in its journal",
        ));
    }
    let lately = match age {
        Some(age) => format!("was heard of {} s ago", age.seconds.max(0)),
        None => "is alive".to_owned(),
    };
    // A machine that has just started again may find what it was itself before.
    let fresh = standing.is_fresh() && host_of(claim) != host_name();
    if fresh || lease::is_renewed(store, &standing).await.map_err(failed)? {
        return Err(held(volume, claim, client, &lately));
    }
    Ok(Some(format!(
        "volume {name}: {host} did not give it back, and is not heard of any more{}",
        waiting(claim)
    )))
}

/// Refuses a volume of format 1 whose holder has released `claim` and not taken away the
/// lock: just now, or he goes on in another program. Later he is taken for dead; what is
/// worth telling is returned.
pub async fn left(
    store: &dyn ObjectStore,
    volume: &Volume,
    (client, claim): (&Holder, &Claim),
    machine: Option<&VolumeLock>,
    takeover: bool,
) -> Result<String> {
    let (name, host) = (&volume.name, host_of(claim).escape_debug());
    let news = format!("volume {name}: {host} gave it back, and did not unlock it");
    if takeover || machine.is_some_and(|machine| machine.dead().contains(&claim.attach)) {
        return Ok(news);
    }
    let failed = |error| explain::log(volume, &error);
    let length = i64::from(claim.lease.unwrap_or(lease::Terms::DEFAULT));
    match released_ago(store, claim).await.map_err(failed)? {
        Some(age) if age.seconds >= length => Ok(news),
        Some(age) => {
            let ago = age.seconds.max(0);
            let text = format!(
                "volume {name}: it is locked by {client}; {host} gave it back {ago} s ago, and is \
                 about to unlock it, or restarts"
            );
            let left = length - ago;
            let hint = format!("should {host} be dead, it is free in {left} s");
            Err(Error::new(Exit::InUse, text).hint(hint))
        }
        None => Err(explain::meta(volume, &MetaError::Locked(client.clone()))),
    }
}

/// The machine that a claim names. In format 1 it names the process, too.
pub fn host_of(claim: &Claim) -> &str {
    claim.host.split(':').next().unwrap_or_default()
}

/// Whether a journal of this volume is on this machine; only who opens the volume can tell
/// whether it is the one that is needed.
async fn journal_is_here(store: &dyn ObjectStore, volume: &Volume) -> Result<bool> {
    let seen = log::look(store).await;
    let seen = seen.map_err(|error| explain::log(volume, &error))?;
    let found = replay::look(&open::journal(volume), seen.volume).await;
    Ok(found.is_ok_and(|found| found.is_some_and(|found| found.head.is_ok())))
}

fn waiting(claim: &Claim) -> String {
    match wait_for(claim.lease.unwrap_or(0)).as_secs() {
        0 => String::new(),
        seconds => format!("; waiting up to {seconds} s for its lease to run out"),
    }
}

/// The refusal of a volume that somebody has.
fn held(volume: &Volume, claim: &Claim, client: Option<&Holder>, how: &str) -> Error {
    let name = &volume.name;
    let host = host_of(claim).escape_debug();
    let holder = match client {
        Some(client) => format!("locked by {client}"),
        None => "in use".to_owned(),
    };
    let (text, hint) = match (claim.lease, claim.flags) {
        (None, 0) => (
            format!("volume {name}: it is {holder}; {host} claimed it, without a time limit"),
            format!("if that holder is dead, and only then: `swiftnbd unlock {name}`"),
        ),
        (_, flags) if flags != 0 => (
            format!("volume {name}: it is {holder}; {host} {how}"),
            format!(
                "attach it there; if {host} is lost for good: `swiftnbd attach --takeover {name}`, \
                 and what its journal holds is lost"
            ),
        ),
        _ => (
            format!("volume {name}: it is {holder}; {host} {how}"),
            format!(
                "detach it there; should {host} be dead, it is free {} s after it was last \
                 heard of; `swiftnbd attach --takeover {name}` does not care",
                claim.lease.unwrap_or(0)
            ),
        ),
    };
    Error::new(Exit::InUse, text).hint(hint)
}
