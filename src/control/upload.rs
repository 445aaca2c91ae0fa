//! `upload`: makes a volume of an image.
//!
//! Nothing is taken on trust from an earlier attempt: an object is left alone if
//! Swift says, asked for its newest version, that its MD5 is that of the image's
//! part; everything else is stored anew. So an attempt that was interrupted, or
//! another image since, can leave no mixture, and what is there already is not sent
//! again. Each object is checked as it goes: Swift compares its MD5 with what came,
//! and we its answer with what we sent.
//!
//! All this is of format 1. A volume of format 2 is opened, read where it holds data,
//! and written where that is not the image's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::setup::{self, Plan, Vacant};
use super::signals::Signals;
use super::transfer::claim::{Claim, Place, Verb};
use super::transfer::copy::{self, Content, Copy};
use super::transfer::image::Source;
use super::transfer::progress::Progress;
use super::transfer::{Pace, blocking, in_parallel, width};
use super::{daemon, explain, passphrase};
use crate::cli;
use crate::config::{Config, Volume, format_size};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::log::format::names::Name;
use crate::image::meta::{self, Format, MetaError};
use crate::image::objects::is_zero;
use crate::image::objects::layout::{Layout, PREFIX};
use crate::store::{ErrorKind, ObjectStore};

/// Names in one listing, below every Swift's limit.
const PAGE: usize = 10_000;
/// Names in one deletion: some seconds of work, so that progress is seen.
const TOGETHER: u64 = 1000;
/// Deletions at a time; each is much work on Swift's side.
const DELETIONS: usize = 2;
/// Making a volume puts fewer objects than this into its container, however often it is
/// interrupted.
const MOST_BEGUN: usize = 1000;

/// Logical block size of a volume that is made, in bytes: partition tables and file
/// systems in images may need the smaller one.
const BLOCK_SIZE: u32 = 512;

/// Carries it out.
pub fn run(config: &Config, args: &cli::Upload) -> Result<()> {
    let mut volume = config.volume(&args.name)?;
    if volume.read_only {
        let text = format!(
            "volume {}: it is read-only in the configuration",
            volume.name
        );
        return Err(Error::usage(text));
    }
    let source = Source::open(&args.image)?;
    if source.size() == 0 {
        let text = format!("{} is empty", args.image.display());
        return Err(Error::usage(text));
    }
    passphrase::choose(&mut volume, &args.passphrase)?;
    if args.make.encrypt {
        passphrase::settle_new(&mut volume)?;
    }
    let runtime = daemon::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let claim = claim(&mut volume, &source, args).await?;
        let sent = match claim.format() {
            Format::Objects(layout) => {
                let progress = Progress::bytes(layout.size(), args.quiet);
                let pace = Pace::new(args.limit);
                let upload = Upload::new(volume.clone(), source, layout, &claim, pace, progress);
                let sent = upload.send(&claim, &mut signals).await;
                upload.progress.end();
                sent.map_err(|error| partly(&volume, error))
            }
            Format::Log { .. } => match write(&volume, source, &claim, args, &mut signals).await {
                Ok(sent) => sent,
                // It could not be closed: it stays ours.
                Err(error) => return Err(error),
            },
        };
        let released = claim.release(&mut signals).await;
        sent.and(released)
    })
}

fn partly(volume: &Volume, error: Error) -> Error {
    error.context(format!("volume {} holds a part of the image", volume.name))
}

/// Makes a volume of format 2 the image. Fails if the volume cannot be given back; what
/// came of the upload is the result.
async fn write(
    volume: &Volume,
    source: Source,
    claim: &Claim,
    args: &cli::Upload,
    signals: &mut Signals,
) -> Result<Result<()>> {
    let log = match claim.open(volume).await {
        Ok(log) => Arc::new(log),
        Err(error) => return Ok(Err(error)),
    };
    // The volume itself knows better than its metadata.
    if let Err(error) = check_size(volume, log.size(), &source) {
        copy::close(volume, &log, signals).await?;
        return Ok(Err(error));
    }
    let copy = Arc::new(Copy {
        pace: Pace::new(args.limit),
        progress: Progress::bytes(log.size(), args.quiet),
    });
    let content = Content {
        volume: volume.clone(),
        image: Arc::clone(&log) as Arc<dyn Image>,
    };
    let source = Arc::new(source);
    let origin = Arc::new(Arc::clone(&source));
    let sent = async {
        copy.into_volume(origin, &content, signals).await?;
        source.check_unchanged()?;
        claim.check().await
    }
    .await;
    copy.progress.end();
    copy::close(volume, &log, signals).await?;
    Ok(sent.map_err(|error| partly(volume, error)))
}

/// Locks the volume, which is made if there is none.
async fn claim(volume: &mut Volume, source: &Source, args: &cli::Upload) -> Result<Claim> {
    let place = Place::enter(volume)?;
    let store = place.impatient();
    let mut fresh = false;
    let mut there = look(store, volume).await?;
    if let Found::Nothing(_) = there {
        let plan = plan(source, args)?;
        let passphrase = setup::new_passphrase(volume, args.make.encrypt)?;
        let failed = |error| explain::store(volume, &error);
        fresh = store.create().await.map_err(failed)?;
        if !fresh {
            // Somebody else may be making it, too, and be ahead of us.
            let before = there;
            there = look(store, volume).await?;
            if let (Found::Nothing(Vacant::Absent), Found::Nothing(Vacant::Absent)) =
                (before, there)
            {
                return Err(setup::half_seen(volume));
            }
        }
        if let Found::Nothing(_) = there {
            let impatient = &place.container().impatient;
            setup::begin(impatient, volume, &plan, passphrase.as_ref(), false).await?;
            let described = meta::describe(store, &plan.format()).await;
            described.map_err(failed)?;
        }
    }
    if let Found::Volume(format) = there {
        check_fits(volume, &format, source, args)?;
        passphrase::ask_if_needed(volume, place.container()).await?;
    }
    place.claim(Verb::Upload, source.identity(), fresh).await
}

/// The volume that is made for an image.
fn plan(source: &Source, args: &cli::Upload) -> Result<Plan> {
    if setup::format(&args.make, args.object_size)? == 1 {
        let object_size = setup::object_size(args.object_size)?;
        let objects = source.size().div_ceil(object_size);
        return setup::whole_layout(objects, object_size).map(Plan::Objects);
    }
    let block_size = args.make.block_size.unwrap_or(BLOCK_SIZE);
    let size = source.size().next_multiple_of(block_size.into());
    setup::log(&args.make, size, block_size).map(Plan::Log)
}

/// What is there before an upload.
#[derive(Debug, Clone, Copy)]
enum Found {
    Volume(Format),
    Nothing(Vacant),
}

/// The volume that is there. A look may reach a replica that is behind, so only several
/// of them say that there is none.
async fn look(store: &dyn ObjectStore, volume: &Volume) -> Result<Found> {
    let mut vacant = Vacant::There;
    for _ in 0..meta::LOOKS {
        match meta::read(store).await {
            Ok(there) => return Ok(Found::Volume(there.format)),
            Err(MetaError::Store(error)) if error.kind == ErrorKind::NoContainer => {
                vacant = Vacant::Absent;
            }
            // As we leave it if we are killed between making it and describing it.
            Err(MetaError::NotAVolume) if is_begun(store, volume).await? => {}
            Err(error) => return Err(explain::meta(volume, &error)),
        }
    }
    Ok(Found::Nothing(vacant))
}

/// Whether nothing is in the container but what making a volume puts there.
async fn is_begun(store: &dyn ObjectStore, volume: &Volume) -> Result<bool> {
    let listed = store.list("", "", MOST_BEGUN).await;
    let listed = listed.map_err(|error| explain::store(volume, &error))?;
    let ours = |name: &str| Name::parse(name).is_some();
    Ok(listed.len() < MOST_BEGUN
        && listed.iter().all(|listed| ours(&listed.name))
        && setup::data(store, volume).await?.is_none())
}

/// Refuses a volume that is there and not as it was asked for, and an image that is too
/// large for it.
fn check_fits(volume: &Volume, there: &Format, source: &Source, args: &cli::Upload) -> Result<()> {
    let name = &volume.name;
    let other = |what: String, option: &str| {
        let text = format!("volume {name}: it is there already, {what}");
        let hint = format!("leave {option} out, or delete the volume first");
        Err(Error::usage(text).hint(hint))
    };
    if let Some(asked) = args.object_size {
        match there {
            Format::Objects(layout) if asked == u64::from(layout.object_size) => {}
            Format::Objects(layout) => {
                let there = format_size(layout.object_size.into());
                return other(format!("with objects of {there}"), "--object-size");
            }
            Format::Log { .. } => return other("of format 2".to_owned(), "--object-size"),
        }
    }
    if args
        .make
        .format
        .is_some_and(|asked| asked != there.number())
    {
        return other(format!("of format {}", there.number()), "--format");
    }
    if args
        .make
        .block_size
        .is_some_and(|asked| asked != there.block_size())
    {
        let text = format!("with blocks of {}", there.block_size());
        return other(text, "--block-size");
    }
    if args.make.encrypt && there.number() == 1 {
        return other(
            "of format 1, which knows no encryption".to_owned(),
            "--encrypt",
        );
    }
    check_size(volume, there.size(), source)
}

/// Refuses an image that is larger than the volume.
fn check_size(volume: &Volume, size: u64, source: &Source) -> Result<()> {
    if source.size() <= size {
        return Ok(());
    }
    let text = format!(
        "volume {}: the image of {} bytes does not fit into its {size} bytes",
        volume.name,
        source.size(),
    );
    Err(Error::failed(text).hint("delete the volume, or set up a larger one"))
}

/// One image on its way into one volume.
struct Upload {
    shared: Arc<Shared>,
    progress: Progress,
    /// The transfer adds nothing to a container in which there was nothing.
    fresh: bool,
}

/// What all the tasks need.
struct Shared {
    volume: Volume,
    store: Arc<dyn ObjectStore>,
    layout: Layout,
    source: Source,
    pace: Pace,
    progress: Progress,
    /// Which objects a listing showed: a hint for where it pays to ask.
    listed: Bits,
    /// Which objects hold data of the image.
    kept: Bits,
    /// Every object may be there, whatever a listing shows.
    ask_always: bool,
}

impl Upload {
    fn new(
        volume: Volume,
        source: Source,
        layout: Layout,
        claim: &Claim,
        pace: Pace,
        progress: Progress,
    ) -> Upload {
        let shared = Shared {
            volume,
            store: claim.store(),
            layout,
            source,
            pace,
            progress: progress.clone(),
            listed: Bits::new(layout.objects),
            kept: Bits::new(layout.objects),
            ask_always: claim.resumed(),
        };
        Upload {
            shared: Arc::new(shared),
            progress,
            fresh: claim.fresh(),
        }
    }

    /// All of it. Everything is durable when it returns.
    async fn send(&self, claim: &Claim, signals: &mut Signals) -> Result<()> {
        claim.await_quiet(signals).await?;
        let shared = &self.shared;
        if !shared.ask_always && !self.fresh {
            shared.look(signals).await?;
        }
        let object_size = shared.layout.object_size;
        let parts = shared.source.parts_with_data(object_size.into()).map(Ok);
        let work = |index| {
            let shared = Arc::clone(shared);
            async move { shared.store(index).await }
        };
        in_parallel(parts, width(object_size), &shared.pace, signals, work).await?;
        if !self.fresh {
            self.delete_the_rest(signals).await?;
        }
        shared.source.check_unchanged()?;
        claim.check().await?;
        self.progress.complete();
        Ok(())
    }

    /// Deletes all objects that must read as zeros. Their absence from a listing
    /// proves nothing, so it is every one.
    async fn delete_the_rest(&self, signals: &mut Signals) -> Result<()> {
        let shared = &self.shared;
        let objects = shared.layout.objects;
        let batches = (0..objects.div_ceil(TOGETHER)).map(|batch| {
            let from = batch * TOGETHER;
            let to = objects.min(from + TOGETHER);
            Ok((from..to)
                .filter(|index| !shared.kept.get(*index))
                .collect::<Vec<u64>>())
        });
        let work = |indices: Vec<u64>| {
            let shared = Arc::clone(shared);
            async move { shared.delete(indices).await }
        };
        in_parallel(batches, DELETIONS, &shared.pace, signals, work).await
    }
}

impl Shared {
    /// Reads the listing.
    async fn look(&self, signals: &mut Signals) -> Result<()> {
        let end = format!("{PREFIX}:");
        let mut after = PREFIX.to_owned();
        loop {
            let page = tokio::select! {
                page = self.store.list(&after, &end, PAGE) => page,
                () = signals.recv() => return Err(super::transfer::interrupted()),
            };
            let page = page.map_err(|error| explain::store(&self.volume, &error))?;
            for listed in &page {
                if let Some(index) = self.layout.index(&listed.name) {
                    self.listed.set(index);
                }
            }
            match page.last() {
                Some(last) => after.clone_from(&last.name),
                None => return Ok(()),
            }
        }
    }

    /// Makes one object what the image has there, if that is not zeros.
    async fn store(self: Arc<Self>, index: u64) -> Result<()> {
        let size = self.layout.object_size;
        let this = Arc::clone(&self);
        let body = blocking(move || {
            let body = this.source.read(index * u64::from(size), size as usize)?;
            Ok((!is_zero(&body)).then_some(body))
        });
        let Some(body) = body.await? else {
            return Ok(());
        };
        self.kept.set(index);
        let name = self.layout.name(index);
        let failed = |error| explain::store(&self.volume, &error);
        let ask = self.ask_always || self.listed.get(index);
        let body = bytes::Bytes::from(body);
        if !(ask && self.holds(&name, body.clone()).await?) {
            self.pace.spent(body.len() as u64);
            self.store.put(&name, body).await.map_err(failed)?;
        }
        self.progress.add(size.into());
        Ok(())
    }

    /// Whether the object is this already.
    async fn holds(&self, name: &str, body: bytes::Bytes) -> Result<bool> {
        use md5::{Digest, Md5};
        let there = match self.store.md5(name).await {
            Ok(md5) => md5,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(explain::store(&self.volume, &error)),
        };
        let ours = blocking(move || Ok(Md5::digest(&body))).await?;
        Ok(there == <[u8; 16]>::from(ours))
    }

    async fn delete(&self, indices: Vec<u64>) -> Result<()> {
        let names: Vec<String> = indices.iter().map(|i| self.layout.name(*i)).collect();
        let deleted = self.store.delete_many(&names).await;
        deleted.map_err(|error| explain::store(&self.volume, &error))?;
        let size = u64::from(self.layout.object_size);
        self.progress.add(size * indices.len() as u64);
        Ok(())
    }
}

/// A bit for each object: 12 MiB for the largest volume.
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(objects: u64) -> Bits {
        let words = 0..objects.div_ceil(64);
        Bits(words.map(|_| AtomicU64::new(0)).collect())
    }

    fn set(&self, index: u64) {
        self.0[(index / 64) as usize].fetch_or(1 << (index % 64), Ordering::Relaxed);
    }

    fn get(&self, index: u64) -> bool {
        self.0[(index / 64) as usize].load(Ordering::Relaxed) & (1 << (index % 64)) != 0
    }
}
