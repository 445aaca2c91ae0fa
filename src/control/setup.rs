//! `setup`: makes a container a volume.
//!
//! The order in format 2: what is there is looked at; the container; an epoch with an
//! empty map in it; the metadata. Before that comes, the container is no volume, and
//! whoever was interrupted runs it again. Two that set up the same volume at a time end
//! with the map of the later one; both find out if the metadata is the other's.

use std::sync::Arc;

use super::{block_on, container, explain, open, passphrase, standing};
use crate::cli;
use crate::config::{Config, Volume, format_size};
use crate::error::{Error, Exit, Result};
use crate::image::log;
use crate::image::log::format::MAX_SIZE;
use crate::image::log::format::keys::{Cost, Passphrase};
use crate::image::log::format::root::{Compression, Geometry};
use crate::image::meta::{self, Format, MetaError};
use crate::image::objects::layout::{
    DEFAULT_OBJECT_SIZE, Layout, MAX_OBJECT_SIZE, MAX_OBJECTS, PREFIX,
};
use crate::store::{ErrorKind, ObjectStore};

/// What the names of a log's data begin with.
const SEGMENTS: &str = "seg/";
/// Logical block size of a volume of format 2, in bytes, unless something else is
/// asked for.
const DEFAULT_BLOCK_SIZE: u32 = 4096;

/// What a volume is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Of format 1.
    Objects(Layout),
    /// Of format 2.
    Log(Geometry),
}

impl Plan {
    /// What the metadata says of it.
    pub(super) fn format(&self) -> Format {
        match *self {
            Plan::Objects(layout) => Format::Objects(layout),
            Plan::Log(geometry) => Format::Log {
                size: geometry.size,
                block_size: geometry.block_size,
            },
        }
    }
}

/// Carries it out.
pub fn run(config: &Config, args: &cli::Setup) -> Result<()> {
    let mut volume = config.volume(&args.name)?;
    let plan = plan(args)?;
    passphrase::choose(&mut volume, &args.passphrase)?;
    if args.make.encrypt {
        passphrase::settle_new(&mut volume)?;
    }
    let passphrase = new_passphrase(&volume, args.make.encrypt)?;
    let store = container(&volume)?.impatient;
    block_on(async {
        let look = async || look(&*store, &volume, &plan, args.force).await;
        make_container(&*store, &volume, look).await?;
        let failed = |error| explain::store(&volume, &error);
        begin(&store, &volume, &plan, passphrase.as_ref(), args.force).await?;
        meta::write(&*store, &plan.format()).await.map_err(failed)?;
        // What a user relies on from here on is what a reader will find.
        let written = meta::read(&*store).await;
        let written = written.map_err(|error| explain::meta(&volume, &error))?;
        if written.format != plan.format() {
            return Err(Error::failed(format!(
                "volume {}: the container shows other metadata than was written; is somebody \
                 else setting it up?",
                volume.name
            )));
        }
        Ok(())
    })?;
    tracing::info!(
        volume = volume.name,
        size = plan.format().size(),
        format = plan.format().number(),
        "set up"
    );
    Ok(())
}

/// What a look at a container that holds no volume has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vacant {
    /// The container is there.
    There,
    /// There is no container.
    Absent,
}

/// Makes the container of a volume, unless a look at it says that it must not become
/// one. A look may reach a replica that is behind, so only several of them say that
/// there is no volume yet.
pub(super) async fn make_container(
    store: &dyn ObjectStore,
    volume: &Volume,
    look: impl AsyncFn() -> Result<Vacant>,
) -> Result<()> {
    let several = async || {
        let mut vacant = Vacant::There;
        for _ in 0..meta::LOOKS {
            if look().await? == Vacant::Absent {
                vacant = Vacant::Absent;
            }
        }
        Ok(vacant)
    };
    let before = several().await?;
    let made = store.create().await;
    let made = made.map_err(|error| explain::store(volume, &error))?;
    // It was there, although a look did not show it.
    if before == Vacant::Absent && !made && several().await? == Vacant::Absent {
        return Err(half_seen(volume));
    }
    Ok(())
}

/// A container that is there, and is not found.
pub(super) fn half_seen(volume: &Volume) -> Error {
    let text = format!(
        "volume {}: its container is there, but some of Swift's servers do not know it",
        volume.name
    );
    Error::new(Exit::Unreachable, text).hint("try again in a minute; nothing was changed")
}

/// Puts an empty volume into the container, as far as its format needs one. One that has
/// been used goes only where it is to be replaced, whatever the looks have shown.
pub(super) async fn begin(
    store: &Arc<dyn ObjectStore>,
    volume: &Volume,
    plan: &Plan,
    passphrase: Option<&Passphrase>,
    replace: bool,
) -> Result<()> {
    match plan {
        Plan::Objects(_) => Ok(()),
        Plan::Log(geometry) => {
            let passphrase = passphrase.map(|passphrase| (passphrase, Cost::default()));
            let created =
                log::create(store, *geometry, passphrase, &open::who(volume), replace).await;
            created.map_err(|error| explain::log(volume, &error))
        }
    }
}

/// The passphrase of a volume that is made, if it is to be encrypted; it is settled
/// then.
pub(super) fn new_passphrase(volume: &Volume, encrypt: bool) -> Result<Option<Passphrase>> {
    if encrypt {
        return passphrase::of(volume);
    }
    match volume.passphrase {
        None => Ok(None),
        Some(_) => {
            let text = format!(
                "volume {}: there is a passphrase for it, but it is not to be encrypted",
                volume.name
            );
            Err(Error::usage(text).hint("add --encrypt, or leave the passphrase out"))
        }
    }
}

fn plan(args: &cli::Setup) -> Result<Plan> {
    if format(&args.make, args.object_size)? == 1 {
        return objects(args).map(Plan::Objects);
    }
    let block_size = args.make.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
    let size = match (args.objects, args.size) {
        (Some(objects), _) => objects.saturating_mul(DEFAULT_OBJECT_SIZE.into()),
        (None, size) => size.unwrap_or(0),
    };
    log(&args.make, size, block_size).map(Plan::Log)
}

/// The format that was asked for, if everything else that was asked for goes with it.
pub(super) fn format(make: &cli::Make, object_size: Option<u64>) -> Result<u8> {
    let implied = if object_size.is_some() { 1 } else { 2 };
    let format = make.format.unwrap_or(implied);
    if format == 2 {
        return match object_size {
            None => Ok(2),
            Some(_) => Err(Error::usage("--object-size is for volumes of format 1")
                .hint("leave it out, or use --format 1")),
        };
    }
    let only_in_2 = if make.encrypt {
        "encryption needs"
    } else if make.compression.is_some() {
        "compression needs"
    } else if make.block_size.is_some_and(|size| size != 512) {
        "blocks of 4096 bytes need"
    } else {
        return Ok(1);
    };
    Err(Error::usage(format!("{only_in_2} format 2"))
        .hint("leave --format 1 and --object-size out: format 2 is the default"))
}

/// A volume of format 2 of this size, if there can be one.
pub(super) fn log(make: &cli::Make, size: u64, block_size: u32) -> Result<Geometry> {
    if size > MAX_SIZE {
        let (asked, most) = (format_size(size), format_size(MAX_SIZE));
        let text = format!("size {asked} is more than a volume of format 2 can have");
        return Err(Error::usage(text).hint(format!("it has at most {most}")));
    }
    if size == 0 || !size.is_multiple_of(block_size.into()) {
        let block = u64::from(block_size);
        let next = size.div_ceil(block).max(1).saturating_mul(block);
        let text = format!("size {size} is not a multiple of the block size {block_size}");
        return Err(Error::usage(text).hint(format!("the next one is {next}")));
    }
    Ok(Geometry {
        size,
        block_size,
        compression: compression(make.compression),
    })
}

/// How data is compressed, if that was said.
pub(super) fn compression(asked: Option<cli::Compression>) -> Compression {
    match asked {
        Some(cli::Compression::None) => Compression::None,
        Some(cli::Compression::Lz4) | None => Compression::Lz4,
    }
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

/// The geometry in format 1 that was asked for.
fn objects(args: &cli::Setup) -> Result<Layout> {
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
/// that is in use or of another format in any case. One look.
async fn look(
    store: &dyn ObjectStore,
    volume: &Volume,
    plan: &Plan,
    force: bool,
) -> Result<Vacant> {
    let name = &volume.name;
    let found = meta::read(store).await;
    if let Err(error @ (MetaError::Deleting | MetaError::Unfinished(_))) = &found {
        return Err(explain::meta(volume, error));
    }
    if !matches!(&found, Err(MetaError::Store(_))) {
        let client = meta::client(store).await;
        let client = client.map_err(|error| explain::store(volume, &error))?;
        match (client, &found) {
            (client, Ok(there)) if there.format.number() == 2 => {
                standing::may_claim(store, volume, client.as_ref(), None, false).await?;
            }
            (Some(client), _) => return Err(explain::meta(volume, &MetaError::Locked(client))),
            (None, _) => {}
        }
    }
    // The metadata of the volume that is there is gone or damaged.
    let mut lost = false;
    let (occupied, format) = match found {
        Ok(there) => {
            let size = format_size(there.format.size());
            let text = format!("volume {name}: the container is a volume of {size} already");
            (text, there.format.number())
        }
        // Its objects would not be this volume's content, nor go away.
        Err(error @ MetaError::UnknownVersion(_)) => return Err(explain::meta(volume, &error)),
        Err(MetaError::Store(error)) if error.kind == ErrorKind::NoContainer => {
            return Ok(Vacant::Absent);
        }
        Err(MetaError::Store(error)) => return Err(explain::store(volume, &error)),
        Err(MetaError::NotAVolume) => match data(store, volume).await? {
            None => return Ok(Vacant::There),
            Some(format) => {
                lost = true;
                let text = "the container holds the objects of a volume already";
                (format!("volume {name}: {text}"), format)
            }
        },
        Err(error) if !force => return Err(explain::meta(volume, &error)),
        Err(error @ MetaError::Damaged { format, .. }) => {
            lost = true;
            (format!("volume {name}: {error}"), format)
        }
        Err(error) => return Err(explain::meta(volume, &error)),
    };
    let name = &volume.name;
    let advice = match (format, plan.format().number()) {
        (2, _) if lost => format!(
            "`swiftnbd check {name} --repair` writes its metadata anew; --force with --format 2 \
             empties it: all that is there is lost"
        ),
        (1, 2) if lost => "--force with --format 1 writes the metadata anew; the objects that are \
                           there stay, and are the volume's content"
            .to_owned(),
        (there, planned) if planned != there => format!(
            "--force does not change the format; `swiftnbd delete {name}` deletes what is there"
        ),
        (_, 1) => "--force writes the metadata anew; the objects that are there stay, and are the \
                   volume's content"
            .to_owned(),
        _ => "--force empties it: all that is there is lost".to_owned(),
    };
    if format != plan.format().number() {
        let text = format!("{occupied}, of format {format}");
        return Err(Error::failed(text).hint(advice));
    }
    match force {
        true => Ok(Vacant::There),
        false => Err(Error::failed(occupied).hint(advice)),
    }
}

/// The format of the data in a container that does not say that it is a volume, if a
/// listing shows any. What an interrupted setup leaves behind is none.
pub(super) async fn data(store: &dyn ObjectStore, volume: &Volume) -> Result<Option<u8>> {
    for (prefix, format) in [(PREFIX, 1), (SEGMENTS, 2)] {
        // The name after all that begin so.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let listed = store.list(prefix, &end, 1).await;
        let listed = listed.map_err(|error| explain::store(volume, &error))?;
        if !listed.is_empty() {
            return Ok(Some(format));
        }
    }
    Ok(None)
}
