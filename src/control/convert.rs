//! `convert`: makes a new volume of format 2 of one of format 1.
//!
//! The order: the old volume is locked; the new one is made, and its container says that
//! it is unfinished, so that nobody uses it; it is locked; everything is copied; it is
//! read again from the beginning, and must be the same as the old one; it is closed and
//! unlocked; only then it is said to be complete. Whoever is interrupted runs it again:
//! nothing is taken on trust then, and what is the same is not written again. The old
//! volume stays as it is.

use std::sync::Arc;

use super::setup::{self, Plan, Vacant};
use super::signals::Signals;
use super::transfer::Pace;
use super::transfer::claim::{Claim, Place, Verb};
use super::transfer::copy::{self, Content, Copy};
use super::transfer::progress::Progress;
use super::{daemon, explain, passphrase};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::log::Log;
use crate::image::log::format::root::Geometry;
use crate::image::meta::{self, Format, MetaError};
use crate::image::objects::layout::Layout;
use crate::stack;
use crate::store::{ErrorKind, ObjectStore};

/// Logical block size of the new volume, in bytes: what is on the old one may rely on
/// it.
const BLOCK_SIZE: u32 = 512;

/// Carries it out.
pub fn run(config: &Config, args: &cli::Convert) -> Result<()> {
    let old = config.volume(&args.name)?;
    let mut new = config.volume(&args.new)?;
    if (&old.container, &old.backend) == (&new.container, &new.backend) {
        let text = format!("volumes {} and {} are one container", old.name, new.name);
        return Err(Error::usage(text).hint("the new volume needs a container of its own"));
    }
    if new.read_only {
        let text = format!("volume {}: it is read-only in the configuration", new.name);
        return Err(Error::usage(text));
    }
    passphrase::choose(&mut new, &args.passphrase)?;
    if args.encrypt {
        passphrase::settle_new(&mut new)?;
    }
    let runtime = daemon::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let place = Place::enter(&old)?;
        let claim = place.claim(Verb::Convert, "", false).await?;
        let converted = match claim.format() {
            Format::Objects(layout) => {
                convert(&old, &claim, layout, &mut new, args, &mut signals).await
            }
            Format::Log { .. } => Err(Error::usage(format!(
                "volume {}: it is of format 2 already",
                old.name
            ))),
        };
        let released = claim.release(&mut signals).await;
        converted.and(released)
    })
}

async fn convert(
    old: &Volume,
    from: &Claim,
    layout: Layout,
    new: &mut Volume,
    args: &cli::Convert,
    signals: &mut Signals,
) -> Result<()> {
    from.await_quiet(signals).await?;
    let place = Place::enter(new)?;
    make(&place, old, new, layout, args).await?;
    passphrase::ask_if_needed(new, place.container()).await?;
    let claim = place.claim(Verb::Make, &old.container, false).await?;
    let store = Arc::clone(&claim.container().impatient);
    let log = match claim.open(new).await {
        Ok(log) => Arc::new(log),
        Err(error) => return claim.release(signals).await.and(Err(error)),
    };
    let image = stack::objects(old, &from.store(), layout);
    let content = Content {
        volume: old.clone(),
        image: Arc::new(image),
    };
    let copied = match log.size() == layout.size() {
        true => copy(&content, new, &log, args, signals).await,
        false => Err(other_size(new, log.size(), layout.size())),
    };
    let copied = match copied {
        Ok(()) => from.check().await.and(claim.check().await),
        error => error,
    };
    // If it cannot be closed it stays ours.
    copy::close(new, &log, signals).await?;
    claim.release(signals).await?;
    copied.map_err(|error| {
        error.context(format!(
            "volume {} is not complete, and cannot be used",
            new.name
        ))
    })?;
    let finished = meta::finish(&*store).await;
    finished.map_err(|error| explain::store(new, &error))
}

/// Copies everything, and then compares everything.
async fn copy(
    old: &Content,
    new: &Volume,
    log: &Arc<Log>,
    args: &cli::Convert,
    signals: &mut Signals,
) -> Result<()> {
    let copy = Arc::new(Copy {
        pace: Pace::new(args.limit),
        progress: Progress::bytes(2 * log.size(), args.quiet),
    });
    let to = Content {
        volume: new.clone(),
        image: Arc::clone(log) as Arc<dyn Image>,
    };
    let origin = Arc::new(old.clone());
    let done = async {
        copy.into_volume(origin.clone(), &to, signals).await?;
        let flushed = log.flush().await;
        flushed.map_err(|error| explain::image(new, &error))?;
        match copy.into_volume(origin, &to, signals).await? {
            0 => Ok(()),
            bytes => {
                let text = format!(
                    "volume {}: {bytes} bytes were not what had been written; they are now",
                    new.name
                );
                Err(Error::failed(text).hint("the same command again compares everything anew"))
            }
        }
    }
    .await;
    copy.progress.end();
    done
}

/// Makes the new volume, unless an earlier attempt has. A look may reach a replica that
/// is behind, so only several of them say that there is nothing yet.
async fn make(
    place: &Place,
    old: &Volume,
    new: &Volume,
    layout: Layout,
    args: &cli::Convert,
) -> Result<()> {
    let store = place.impatient();
    let failed = |error| explain::store(new, &error);
    let geometry = Geometry {
        size: layout.size(),
        block_size: BLOCK_SIZE,
        compression: setup::compression(args.compression),
    };
    let plan = Plan::Log(geometry);
    for _ in 0..meta::LOOKS {
        match meta::read_unfinished(store).await {
            Ok(there)
                if there.converting.as_deref() == Some(old.container.as_str())
                    && there.format == plan.format() =>
            {
                return Ok(());
            }
            // The looks below say what it is.
            Ok(_) => break,
            Err(_) => {}
        }
    }
    let passphrase = setup::new_passphrase(new, args.encrypt)?;
    setup::make_container(store, new, async || look(store, new).await).await?;
    let impatient = &place.container().impatient;
    setup::begin(impatient, new, &plan, passphrase.as_ref(), false).await?;
    let described = meta::describe_unfinished(store, &plan.format(), &old.container).await;
    described.map_err(failed)
}

/// Refuses a container in which there is something. One look.
async fn look(store: &dyn ObjectStore, new: &Volume) -> Result<Vacant> {
    match meta::read_unfinished(store).await {
        Ok(there) => Err(is_there(new, there.converting.as_deref())),
        Err(MetaError::Store(error)) if error.kind == ErrorKind::NoContainer => Ok(Vacant::Absent),
        Err(MetaError::NotAVolume) if setup::data(store, new).await?.is_none() => Ok(Vacant::There),
        Err(MetaError::NotAVolume) => Err(is_there(new, None)),
        Err(error) => Err(explain::meta(new, &error)),
    }
}

/// The new volume is not what its metadata says.
fn other_size(new: &Volume, size: u64, wanted: u64) -> Error {
    let name = &new.name;
    let text = format!("volume {name}: it has {size} bytes, and not the {wanted} of the old one");
    Error::failed(text).hint(format!(
        "`swiftnbd delete {name}` deletes what is there; then the same command makes it anew"
    ))
}

fn is_there(new: &Volume, converting: Option<&str>) -> Error {
    let name = &new.name;
    let what = match converting {
        Some(source) => format!("the unfinished conversion of container {source}"),
        None => "a volume already".to_owned(),
    };
    Error::failed(format!("volume {name}: the container is {what}")).hint(format!(
        "choose another name for the new volume, or delete what is there: `swiftnbd delete {name}`"
    ))
}
