//! Commands on containers: setup, list, lock, unlock.

use std::io::Write;

use super::registry::{self, since_epoch, unix_now};
use super::{block_on, container, explain};
use crate::cli;
use crate::config::{Config, Volume, format_size};
use crate::error::{Error, Exit, Result};
use crate::image::objects::layout::{
    DEFAULT_OBJECT_SIZE, Layout, MAX_OBJECT_SIZE, MAX_OBJECTS, PREFIX,
};
use crate::image::objects::meta::{self, Holder, MetaError};
use crate::store::{ErrorKind, ObjectStore};

/// `setup`: makes a container a volume.
pub fn setup(config: &Config, args: &cli::Setup) -> Result<()> {
    let volume = config.volume(&args.name)?;
    let layout = layout(args)?;
    let store = container(&volume)?.impatient;
    block_on(async {
        check_vacant(&*store, &volume, args.force).await?;
        store
            .create()
            .await
            .map_err(|error| explain::store(&volume, &error))?;
        meta::write(&*store, &layout)
            .await
            .map_err(|error| explain::store(&volume, &error))?;
        // What a user relies on from here on is what a reader will find.
        let written = meta::read(&*store)
            .await
            .map_err(|error| explain::meta(&volume, &error))?;
        if written.layout != layout {
            return Err(Error::failed(format!(
                "volume {}: the container shows other metadata than was written; is somebody \
                 else setting it up?",
                volume.name
            )));
        }
        Ok(())
    })?;
    tracing::info!(volume = volume.name, size = layout.size(), "set up");
    Ok(())
}

/// The object size that was asked for, if it can be one.
pub(super) fn object_size(asked: Option<u64>) -> Result<u64> {
    let object_size = asked.unwrap_or(u64::from(DEFAULT_OBJECT_SIZE));
    if object_size == 0 || !object_size.is_multiple_of(512) {
        return Err(Error::usage(format!(
            "object size {object_size} is not a multiple of 512"
        )));
    }
    if object_size > u64::from(MAX_OBJECT_SIZE) {
        let (asked, most) = (
            format_size(object_size),
            format_size(MAX_OBJECT_SIZE.into()),
        );
        return Err(
            Error::usage(format!("object size {asked} is more than {most}"))
                .hint("whole objects are held in memory; sizes from 64 KiB to 4 MiB work well"),
        );
    }
    Ok(object_size)
}

/// The geometry that was asked for.
fn layout(args: &cli::Setup) -> Result<Layout> {
    let object_size = object_size(args.object_size)?;
    let objects = match (args.objects, args.size) {
        (Some(objects), _) => objects,
        (None, Some(size)) if size > 0 && size.is_multiple_of(object_size) => size / object_size,
        (None, size) => {
            let size = size.unwrap_or(0);
            let next = size
                .div_ceil(object_size)
                .max(1)
                .saturating_mul(object_size);
            return Err(Error::usage(format!(
                "size {size} is not a multiple of the object size {object_size}"
            ))
            .hint(format!("the next one is {next}")));
        }
    };
    whole_layout(objects, object_size)
}

/// A volume of so many objects, if there can be one.
pub(super) fn whole_layout(objects: u64, object_size: u64) -> Result<Layout> {
    if objects == 0 || objects > MAX_OBJECTS {
        return Err(Error::usage(format!(
            "a volume of format 1 has 1 to {MAX_OBJECTS} objects, not {objects}"
        ))
        .hint("choose a larger --object-size"));
    }
    Ok(Layout {
        objects,
        object_size: object_size as u32,
    })
}

/// Refuses to set up over a volume that is there, unless forced, and over one
/// that is in use in any case.
async fn check_vacant(store: &dyn ObjectStore, volume: &Volume, force: bool) -> Result<()> {
    let name = &volume.name;
    let found = meta::read(store).await;
    if let Err(error @ MetaError::Deleting) = &found {
        return Err(explain::meta(volume, error));
    }
    if !matches!(&found, Err(MetaError::Store(_))) {
        let client = meta::client(store).await;
        if let Some(client) = client.map_err(|error| explain::store(volume, &error))? {
            return Err(explain::meta(volume, &MetaError::Locked(client)));
        }
    }
    let occupied = match found {
        Ok(there) => {
            let size = format_size(there.layout.size());
            format!("volume {name}: the container is a volume of {size} already")
        }
        // Its objects would not be this volume's content, nor go away.
        Err(error @ MetaError::UnknownVersion(_)) => return Err(explain::meta(volume, &error)),
        Err(MetaError::Store(error)) if error.kind == ErrorKind::NoContainer => return Ok(()),
        Err(MetaError::Store(error)) => return Err(explain::store(volume, &error)),
        Err(MetaError::NotAVolume) => {
            let end = format!("{PREFIX}:");
            let data = store.list(PREFIX, &end, 1).await;
            if data
                .map_err(|error| explain::store(volume, &error))?
                .is_empty()
            {
                return Ok(());
            }
            format!("volume {name}: the container holds the objects of a volume already")
        }
        Err(error) => format!("volume {name}: {error}"),
    };
    if force {
        return Ok(());
    }
    Err(Error::failed(occupied).hint(
        "--force writes the metadata anew; the objects that are there stay, and are the \
         volume's content",
    ))
}

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
                let (objects, size) = (there.layout.objects, there.layout.size());
                let line = format!("{name} objects={objects} size={size} (version=1, {lock})");
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
    let holder = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.0.clone());
    serde_json::json!({
        "name": name,
        "version": 1,
        "objects": volume.layout.objects,
        "object_size": volume.layout.object_size,
        "size": volume.layout.size(),
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
    block_on(async { meta::lock(&*store, &holder).await })
        .map_err(|error| explain::meta(&volume, &error))?;
    Ok(())
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
    let _machine = keep_from_this_machine(&volume)?;
    let store = container(&volume)?.impatient;
    let holder = block_on(async { meta::unlock(&*store, unix_now()).await })
        .map_err(|error| explain::meta(&volume, &error))?;
    tracing::info!(volume = volume.name, %holder, "unlocked");
    Ok(())
}
