//! Commands on containers: list, lock, unlock.

use std::io::Write;

use super::registry::{self, since_epoch, unix_now};
use super::{block_on, container, explain, open, standing};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Exit, Result};
use crate::image::log::{LogError, lease};
use crate::image::meta::{self, Format, Holder, MetaError};
use crate::store::ObjectStore;

/// `list`: the configured volumes, as the original printed them.
pub fn list(config: &Config, args: &cli::List) -> Result<()> {
    let names: Vec<String> = config.names().map(str::to_owned).collect();
    if names.is_empty() && !args.json {
        eprintln!("swiftnbd: no volume is configured");
    }
    let mut out = std::io::stdout().lock();
    let mut shown = Vec::new();
    let mut failure = None;
    for name in names {
        let found = config.volume(&name).and_then(|volume| describe(&volume));
        match found {
            Ok(there) if args.json => shown.push(json(&name, &there)),
            Ok(there) => {
                let lock = match &there.client {
                    Some(client) => format!("locked by {client}"),
                    None => "unlocked".to_owned(),
                };
                let (version, size) = (there.format.number(), there.format.size());
                let objects = match there.format {
                    Format::Objects(layout) => format!(" objects={}", layout.objects),
                    Format::Log { .. } => String::new(),
                };
                let line = format!("{name}{objects} size={size} (version={version}, {lock})");
                writeln!(out, "{line}").map_err(|error| Error::failed(error.to_string()))?;
            }
            Err(error) => {
                eprintln!("swiftnbd: {}", error.message);
                failure.get_or_insert(error.exit);
            }
        }
    }
    if args.json {
        let text =
            serde_json::to_string_pretty(&shown).map_err(|e| Error::failed(e.to_string()))?;
        writeln!(out, "{text}").map_err(|error| Error::failed(error.to_string()))?;
    }
    match failure {
        Some(exit) => Err(Error::new(exit, "some volumes could not be listed")),
        None => Ok(()),
    }
}

fn describe(volume: &Volume) -> Result<meta::Volume> {
    let store = container(volume)?.impatient;
    block_on(async { meta::read(&*store).await }).map_err(|error| explain::meta(volume, &error))
}

fn json(name: &str, volume: &meta::Volume) -> serde_json::Value {
    let layout = match volume.format {
        Format::Objects(layout) => Some(layout),
        Format::Log { .. } => None,
    };
    let holder = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.0.clone());
    serde_json::json!({
        "name": name,
        "version": volume.format.number(),
        "objects": layout.map(|layout| layout.objects),
        "object_size": layout.map(|layout| layout.object_size),
        "block_size": volume.format.block_size(),
        "size": volume.format.size(),
        "locked": volume.client.is_some(),
        "client": holder(&volume.client),
        "last": holder(&volume.last),
    })
}

/// `lock`: keeps everybody from attaching the volume.
pub fn lock(config: &Config, args: &cli::Name) -> Result<()> {
    let volume = config.volume(&args.name)?;
    let store = container(&volume)?.impatient;
    let holder = Holder::tool("ctl", since_epoch());
    block_on(async {
        let explained = |error| explain::meta(&volume, &error);
        let there = meta::read(&*store).await.map_err(explained)?;
        if let Format::Log { .. } = there.format {
            let client = there.client.as_ref();
            standing::may_claim(&*store, &volume, client, None, false).await?;
            let shown = meta::show(&*store, &holder, &there).await;
            return shown.map_err(|error| explain::store(&volume, &error));
        }
        let locked = meta::lock(&*store, &holder).await;
        locked.map(drop).map_err(explained)
    })
}

/// The lock that is held by whoever uses the volume on this machine, and by us
/// meanwhile. A user who may not even look there does not run the daemon either.
pub(super) fn keep_from_this_machine(volume: &Volume) -> Result<Option<registry::VolumeLock>> {
    match registry::lock_volume(volume) {
        Err(error) if error.exit == Exit::Denied => Ok(None),
        lock => Ok(Some(lock?)),
    }
}

/// `unlock`: takes a lock away that its holder did not release.
pub fn unlock(config: &Config, args: &cli::Name) -> Result<()> {
    let volume = config.volume(&args.name)?;
    let machine = keep_from_this_machine(&volume)?;
    let store = container(&volume)?.impatient;
    block_on(async {
        let evicted = evict(&*store, &volume, machine.as_ref()).await?;
        match meta::unlock(&*store, unix_now()).await {
            Ok(holder) => tracing::info!(volume = volume.name, %holder, "unlocked"),
            Err(MetaError::NotLocked) if evicted => {}
            Err(error) => return Err(explain::meta(&volume, &error)),
        }
        Ok(())
    })
}

/// Takes a volume from whoever has its lease; whether somebody had it.
async fn evict(
    store: &dyn ObjectStore,
    volume: &Volume,
    machine: Option<&registry::VolumeLock>,
) -> Result<bool> {
    let who = open::who(volume);
    let evicted = match meta::read(store).await {
        Ok(_) | Err(MetaError::Damaged { .. }) => lease::evict(store, &who).await,
        _ => return Ok(false),
    };
    match evicted {
        Ok(Some(claim)) if machine.is_some_and(|lock| lock.dead().contains(&claim.attach)) => {
            Ok(true)
        }
        Ok(Some(claim)) => {
            let host = standing::host_of(&claim).escape_debug();
            tracing::warn!(
                volume = volume.name,
                "unlocked; should {host} still use it, what it has not stored is lost, and its \
                 device fails"
            );
            Ok(true)
        }
        Ok(None) | Err(LogError::NotAVolume) => Ok(false),
        Err(error) => Err(explain::log(volume, &error)),
    }
}
