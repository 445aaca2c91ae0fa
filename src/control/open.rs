//! A volume of format 2 is opened: by whom, with which passphrase, within which limits.
//!
//! Knows: what a user may have set wrong. Does not know: what the volume is opened for.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::registry::{VolumeLock, host_name, identity, unix_now};
use super::{explain, passphrase, sysfs};
use crate::config::{Flush, Volume, format_size};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::log::format::AttachId;
use crate::image::log::journal::file::FileShelf;
use crate::image::log::journal::{Journaling, Shelf};
use crate::image::log::lease::Terms;
use crate::image::log::{self, Limits, Log, Who};
use crate::image::meta::{self, Format};
use crate::stack::{self, Container};
use crate::store::ObjectStore;

/// Who we are to a log, from now on.
pub fn who(volume: &Volume) -> Who {
    attachment(volume, Flush::Swift, false)
}

/// The same; `flush` is what flushes wait for.
fn attachment(volume: &Volume, flush: Flush, give_up: bool) -> Who {
    let shelf: Arc<dyn Shelf> = Arc::new(journal(volume));
    Who {
        journaling: Journaling {
            shelf: Some(shelf),
            wanted: flush == Flush::Local && !volume.read_only,
            give_up,
        },
        terms: Terms::new(u32::try_from(volume.lease.as_secs()).unwrap_or(Terms::MOST)),
        ..Who::new(host_name(), unix_now())
    }
}

/// Where the volume's journal is on this machine.
pub fn journal(volume: &Volume) -> FileShelf {
    FileShelf::new(journal_path(volume))
}

fn journal_path(volume: &Volume) -> PathBuf {
    if let Some(path) = &volume.journal {
        return path.clone();
    }
    // Its name for people, and what tells it from another account's.
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = volume.name.chars().map(safe).take(100).collect();
    let file = format!("{name}-{}.journal", &identity(volume)[..8]);
    journals().join(file)
}

/// Where journals are that the configuration does not place.
fn journals() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if !nix::unistd::geteuid().is_root() {
        if let Some(own) = variable("XDG_STATE_HOME") {
            return PathBuf::from(own).join("swiftnbd");
        }
        if let Some(home) = variable("HOME") {
            return PathBuf::from(home).join(".local/state/swiftnbd");
        }
    }
    PathBuf::from(JOURNALS)
}

/// The journal's disk must not be a device of ours: it would wait for itself.
fn check_journal(volume: &Volume) -> Result<()> {
    let path = journal_path(volume);
    let there = path.ancestors().find_map(|path| path.metadata().ok());
    match there {
        Some(place) if nix::sys::stat::major(place.dev()) == sysfs::NBD_MAJOR => {
            let text = format!(
                "volume {}: its journal {} is on a network block device",
                volume.name,
                path.display()
            );
            let hint = "it has to be on a disk of this machine: name one with journal in the \
                        configuration";
            Err(Error::usage(text).hint(hint))
        }
        _ => Ok(()),
    }
}

/// Where a system keeps what must outlive a restart.
const JOURNALS: &str = "/var/lib/swiftnbd";

/// How long a command waits for an object that must be there and is not found, at each
/// read. A device waits for as long as its `io_timeout` says.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens the volume for a command; `machine` is its lock on this machine.
pub async fn log(volume: &Volume, machine: &VolumeLock, container: &Container) -> Result<Log> {
    open(
        volume,
        machine,
        container,
        &container.diligent,
        Some(PATIENCE),
        who(volume),
    )
    .await
}

/// The same for a device, as this attachment; `give_up`: what a journal has that is not
/// to be had.
pub async fn live(
    volume: &Volume,
    machine: &VolumeLock,
    container: &Container,
    attach: AttachId,
    give_up: bool,
) -> Result<Log> {
    let patience = volume.io_timeout;
    if volume.flush == Flush::Local {
        check_journal(volume)?;
    }
    let who = Who {
        attach,
        ..attachment(volume, volume.flush, give_up)
    };
    open(
        volume,
        machine,
        container,
        &container.patient,
        patience,
        who,
    )
    .await
}

async fn open(
    volume: &Volume,
    machine: &VolumeLock,
    container: &Container,
    live: &Arc<dyn ObjectStore>,
    patience: Option<Duration>,
    who: Who,
) -> Result<Log> {
    check_limits(volume)?;
    let passphrase = passphrase::of(volume)?;
    let passphrase = passphrase.as_ref();
    let who = Who {
        dead: machine.dead(),
        ..who
    };
    machine.remember(who.attach)?;
    let opened = stack::log(volume, container, live, patience, passphrase, who).await;
    opened.map_err(|error| explain::log(volume, &error))
}

/// Whether a device could go on with the volume: its size and block size in bytes. Changes
/// nothing.
pub async fn could(volume: &Volume, container: &Container) -> Result<(u64, u32)> {
    let store = &*container.impatient;
    let there = meta::read(store).await;
    let there = there.map_err(|error| explain::meta(volume, &error))?;
    match &there.format {
        Format::Objects(layout) => {
            super::lease::check_limits(volume, layout)?;
            super::lease::check_flush(volume)?;
            Ok((there.format.size(), there.format.block_size()))
        }
        Format::Log { .. } => {
            check_limits(volume)?;
            let passphrase = passphrase::of(volume)?;
            let found = log::try_out(store, passphrase.as_ref()).await;
            let is = found.map_err(|error| explain::log(volume, &error))?;
            Ok((is.size, is.block_size))
        }
    }
}

/// Has the container's metadata say what the volume is, if it says something else. It
/// is a hint for people and tools: a failure is no reason not to use the volume.
pub async fn describe(volume: &Volume, container: &Container, log: &Log, said: &Format) {
    let is = format(log);
    if is == *said {
        return;
    }
    tracing::warn!(
        volume = volume.name,
        "the container's metadata says {} bytes in blocks of {}, but the volume has {} in blocks \
         of {}",
        said.size(),
        said.block_size(),
        is.size(),
        is.block_size()
    );
    if let Err(error) = meta::describe(&*container.impatient, &is).await {
        tracing::warn!(volume = volume.name, %error, "cannot correct the metadata");
    }
}

/// What the metadata should say.
pub fn format(log: &Log) -> Format {
    let geometry = log.geometry();
    Format::Log {
        size: geometry.size,
        block_size: geometry.block_size,
    }
}

/// Closes it: everything is durable.
pub async fn close(volume: &Volume, log: &Log) -> Result<()> {
    let closed = log.close().await;
    closed.map_err(|error| explain::image(volume, &error))
}

/// Refuses memory with which it could not work.
fn check_limits(volume: &Volume) -> Result<()> {
    let name = &volume.name;
    let least = [
        ("dirty", volume.dirty, Limits::least_dirty()),
        ("map", volume.map, Limits::least_map()),
    ];
    for (key, set, least) in least {
        if set < least {
            let set = format_size(set);
            let text = format!("volume {name}: {key} = \"{set}\" is too little for format 2");
            let hint = format!("it must be at least {}", format_size(least));
            return Err(Error::usage(text).hint(hint));
        }
    }
    Ok(())
}
