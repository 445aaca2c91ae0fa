//! Format 2: a log of immutable segments, and a map of the device.
//!
//! Knows: blocks, segments, the map, epochs, leases. Does not know: NBD, devices, HTTP,
//! the lock in a container's metadata.
//!
//! # The parts
//! | module | what it does |
//! |---|---|
//! | [`format`] | every object, byte by byte |
//! | `create` | a volume is made |
//! | `open` | a volume is taken over, and its journal written again |
//! | `device` | requests, in bytes; from here on everything is in blocks |
//! | [`runs`], [`pending`] | what was written and is not in the map yet |
//! | [`writer`] | from there to durable segments, in order |
//! | [`journal`] | what was answered, on a disk of this machine until segments have it |
//! | [`applier`] | from durable segments to the map, and to roots; deletion |
//! | [`page`], [`map`], [`space`] | which block lies where, how much of a segment lives |
//! | `read` | where the pieces of a read come from |
//! | [`reader`] | frames: cache, merged requests, read-ahead |
//! | [`collector`] | copies what lives out of what is mostly dead |
//! | [`lease`] | who may answer, and until when |
//! | [`recovery`], [`decide`] | taking a volume over |
//! | [`sweep`] | deletes what earlier epochs left behind |
//! | [`check`] | reads everything and says what is damaged |
//!
//! # A write
//! It is copied into the open segment and, once the journal has it, if there is one,
//! answered. When that is full, a few seconds
//! old, or a FLUSH comes, it is sealed: encoded, stored, and published once every
//! segment before it is durable; only then does the map show it. Until then reads find
//! it in [`pending`]. Each rule, and the sequence of events that it closes, is in the
//! documentation of its module.
//!
//! # One writer
//! Names carry the epoch and the attach id, so an older writer that is still alive
//! writes objects that nobody reads; the next segment or root that it creates meets
//! the stop that its successor left there, and it gives up for good. Its [`lease`] has
//! made it stop to answer flushes before.

pub mod applier;
pub mod check;
pub mod collector;
mod create;
pub mod decide;
mod device;
mod edits;
pub mod engine;
pub mod error;
pub mod format;
pub mod journal;
pub mod lease;
pub mod map;
mod open;
pub mod page;
pub mod pending;
pub mod place;
mod ranges;
mod read;
pub mod reader;
pub mod recovery;
pub mod runs;
pub mod space;
pub mod sweep;
pub mod writer;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, sleep, timeout};

use self::applier::{Dead, Item};
use self::collector::Recent;
pub use self::create::{Seen, create, look, try_out};
use self::create::{create_key, release};
use self::device::cover;
use self::engine::{Counters, Engine, Progress, Tasks};
pub use self::error::LogError;
use self::format::keys::{Cost, DataKey, Passphrase};
use self::format::root::Geometry;
use self::format::{AttachId, BLOCK, VolumeId, names};
use self::journal::{Journal, Journaling};
use self::lease::{BootClock, Clock, Lease, Terms};
use self::map::Map;
use self::pending::Pending;
use self::place::Home;
use self::ranges::Ranges;
use self::read::{Failure, Places, compact, references};
use self::reader::{FrameError, Frames, ReadAhead};
use super::ImageError;
use crate::store::ObjectStore;

/// The largest segment, in bytes of memory while it is open; about the size of its
/// object.
const SEGMENT: u64 = 8 << 20;
/// Between two attempts to read what must be there.
const PAUSE: Duration = Duration::from_millis(200);
/// Below this, in bytes, a step of a write would not fit into `dirty`.
const LEAST_DIRTY: u64 = 1 << 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long closing waits for deletions.
const DELETE_WITHIN: Duration = Duration::from_secs(30);
/// The most holes that one answer about a range looks through, in blocks.
const LOOK: u64 = 1 << 18;

/// What a volume may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clean data in memory, in bytes.
    pub cache: u64,
    /// Answered and not yet durable, in bytes.
    pub dirty: u64,
    /// Pages of the map, in bytes.
    pub map: u64,
    /// What a new journal can hold, in bytes.
    pub journal: u64,
    /// How long a read waits for an object that must be there; `None`: for ever.
    pub patience: Option<Duration>,
    /// How it goes about its work.
    pub pace: Pace,
}

/// When a volume seals, collects and writes roots.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// A segment is sealed when it takes this much memory, in bytes: at most a sixth
    /// of `dirty`.
    pub segment: u64,
    /// A segment of fewer bytes is small: flushes made it, not the flow of data.
    pub small: u64,
    /// Small segments are merged when there are so many.
    pub small_segments: usize,
    /// A root is written after this many segments, whatever their size: each is a
    /// request at recovery.
    pub root_segments: u32,
    /// A root is written after so many bytes of segments, at least and at most;
    /// between them, an eighth of what is live.
    pub root_bytes: (u64, u64),
}

impl Pace {
    /// For so much dirty data.
    pub fn of(dirty: u64) -> Pace {
        let segment = (dirty / 6).min(SEGMENT);
        Pace {
            segment,
            small: segment / 8,
            small_segments: 192,
            root_segments: 512,
            root_bytes: (segment, 32 * segment),
        }
    }

    /// Garbage is left alone below so many bytes: a segment or two.
    pub fn leave(&self) -> u64 {
        self.segment + self.segment / 2
    }
}

impl Limits {
    /// With the pace that suits them.
    pub fn new(cache: u64, dirty: u64, map: u64, patience: Option<Duration>) -> Limits {
        let pace = Pace::of(dirty);
        Limits {
            cache,
            dirty,
            map,
            journal: journal::ring_for(dirty),
            patience,
            pace,
        }
    }

    /// The least that `dirty` may be, in bytes.
    pub const fn least_dirty() -> u64 {
        8 << 20
    }

    /// The least that `map` may be, in bytes.
    pub const fn least_map() -> u64 {
        1 << 20
    }
}

impl VolumeId {
    /// A new one.
    pub fn random() -> VolumeId {
        VolumeId(format::random())
    }
}

impl AttachId {
    /// A new one.
    pub fn random() -> AttachId {
        AttachId(format::random())
    }
}

/// Who attaches.
#[derive(Debug, Clone)]
pub struct Who {
    /// A new random name.
    pub attach: AttachId,
    /// The host, for people.
    pub host: String,
    /// Now, for people.
    pub unix_seconds: u64,
    /// How long its lease is.
    pub terms: Terms,
    /// What its lease is measured by.
    pub clock: Arc<dyn Clock>,
    /// Attachments of this machine that are dead for certain: their leases need not be
    /// waited for.
    pub dead: Vec<AttachId>,
    /// What it does about journals.
    pub journaling: Journaling,
}

impl Who {
    /// A new attachment of this host, with a lease of the usual length.
    pub fn new(host: impl Into<String>, unix_seconds: u64) -> Who {
        Who {
            attach: AttachId::random(),
            host: host.into(),
            unix_seconds,
            terms: Terms::default(),
            clock: Arc::new(BootClock),
            dead: Vec::new(),
            journaling: Journaling::default(),
        }
    }
}

/// A volume of format 2, attached.
pub struct Log {
    engine: Arc<Engine>,
    ranges: Ranges,
    data_key: Option<DataKey>,
    goes_on_from: Option<AttachId>,
    key: Mutex<u32>,
    closed: AtomicBool,
    to_delete: mpsc::UnboundedSender<Dead>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log {{ epoch: {} }}", self.engine.epoch)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.engine.tasks.abort();
    }
}

/// The receiving ends of an engine's queues.
struct Queues {
    jobs: mpsc::UnboundedReceiver<writer::Job>,
    items: mpsc::UnboundedReceiver<Item>,
}

#[allow(
    clippy::too_many_arguments,
    reason = "it has one caller for each of two cases"
)]
fn engine(
    home: Home,
    geometry: Geometry,
    epoch: u32,
    attach: AttachId,
    store: Arc<dyn ObjectStore>,
    map: Arc<Map>,
    lease: Arc<Lease>,
    limits: Limits,
    last_seq: u64,
    journal: Option<Arc<Journal>>,
) -> (Arc<Engine>, Queues) {
    let (to_seal, jobs) = mpsc::unbounded_channel();
    let (to_apply, items) = mpsc::unbounded_channel();
    let names = Arc::clone(&map) as Arc<dyn reader::Names>;
    let frames = Frames::new(
        Arc::clone(&store),
        home.volume,
        home.cipher.clone(),
        names,
        limits.cache,
    );
    let dirty = limits.dirty.max(LEAST_DIRTY);
    let engine = Engine {
        home,
        geometry,
        epoch,
        attach,
        store,
        map,
        lease,
        frames,
        ahead: ReadAhead::new(limits.cache / 2),
        pending: Mutex::new(Pending::new(
            last_seq + 1,
            journal.as_ref().map_or(0, |journal| journal.tail()),
        )),
        journal,
        budget: Semaphore::new(dirty as usize),
        budget_bytes: dirty,
        pace: limits.pace,
        patience: limits.patience,
        step: (dirty / 8).min(writer::STEP) as usize,
        progress: watch::Sender::new(Progress {
            durable: last_seq,
            applied: last_seq,
            ..Progress::default()
        }),
        fence: watch::Sender::new(None),
        crowded: watch::Sender::new(false),
        to_seal,
        to_apply,
        collect: tokio::sync::Notify::new(),
        closing: AtomicBool::new(false),
        given_back: AtomicBool::new(false),
        recent: Recent::default(),
        counters: Counters::default(),
        tasks: Tasks::default(),
    };
    (Arc::new(engine), Queues { jobs, items })
}

impl reader::Names for Map {
    fn name(&self, seq: u64) -> Option<String> {
        self.segment_name(seq)
    }
}

impl Log {
    /// Its geometry.
    pub fn geometry(&self) -> Geometry {
        self.engine.geometry
    }

    /// The number of this attachment.
    pub fn epoch(&self) -> u32 {
        self.engine.epoch
    }

    /// The attachment that it goes on from: what that one left is what this one found.
    /// `None`: what its journal had was given up.
    pub fn goes_on_from(&self) -> Option<AttachId> {
        self.goes_on_from
    }

    /// Whether it is encrypted.
    pub fn encrypted(&self) -> bool {
        self.data_key.is_some()
    }

    /// Wraps the data key by another passphrase; no data is written again. The old
    /// passphrase opens nothing afterwards.
    pub async fn change_passphrase(&self, new: &Passphrase, cost: Cost) -> Result<(), LogError> {
        let engine = &self.engine;
        let Some(data_key) = &self.data_key else {
            return Err(LogError::NotEncrypted);
        };
        let old = *self
            .key
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = create_key(
            &*engine.store,
            data_key,
            new,
            engine.home.volume,
            old + 1,
            cost,
        )
        .await?;
        engine.ask(|done| Item::Rekey(key, done)).await;
        if let Some(why) = &*engine.fence.borrow() {
            return Err(LogError::Fenced(why.clone()));
        }
        *self
            .key
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = key;
        let _ = self
            .to_delete
            .send(Dead::Names((1..key).map(names::key).collect()));
        Ok(())
    }

    /// Gives up parts of the device (offset and length in bytes) that a
    /// [check](check::check) found damaged: reading them fails at once from now on,
    /// writing them makes them good again. Only whole pages of the map can be given up
    /// where the map itself is damaged.
    pub async fn give_up(&self, ranges: &[(u64, u64)]) -> Result<(), ImageError> {
        self.check()?;
        let blocks = ranges.iter().map(|&(offset, length)| {
            let (first, end) = cover(offset, length);
            (first, end - first)
        });
        let blocks = blocks.filter(|(_, count)| *count > 0).collect();
        self.engine.ask(|done| Item::GiveUp(blocks, done)).await;
        self.engine.check()
    }

    /// Leaves a root behind, and the word that this is the end.
    async fn end(&self) -> Result<(), ImageError> {
        let engine = &*self.engine;
        if let Some(journal) = &engine.journal {
            self.check()?;
            // What comes nevertheless is answered when it is stored.
            journal.end("the volume is given back");
            writer::flush(engine).await?;
            engine.given_back.store(true, Ordering::Release);
        }
        self.wind_up().await?;
        self.stop().await;
        release(&*engine.store, engine).await?;
        if let Some(journal) = &engine.journal {
            journal.remove().await;
        }
        Ok(())
    }

    /// Leaves a root behind that is the end of the log. May be dropped half-way.
    async fn wind_up(&self) -> Result<(), ImageError> {
        let engine = &*self.engine;
        self.check()?;
        writer::flush(engine).await?;
        // What the collector began is finished: the root is to be the end of the log.
        let last = engine.pending().next_seq - 1;
        let mut progress = engine.progress.subscribe();
        tokio::select! {
            biased;
            _ = progress.wait_for(|progress| progress.applied >= last) => {}
            () = engine.until_fenced() => {}
        }
        engine.ask(Item::Root).await;
        engine.check()?;
        self.deleted().await;
        // Whoever came after us decides what the volume is: then this is no good end.
        engine.look().await?;
        engine.check()
    }

    /// Stops all background work, and waits until no request of ours can take effect.
    async fn stop(&self) {
        let engine = &*self.engine;
        engine.tasks.abort();
        engine.frames.close().await;
        engine.store.settle().await;
    }

    fn check(&self) -> Result<(), ImageError> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(ImageError::Closed),
            false => self.engine.check(),
        }
    }

    /// Waits until what no root needs is deleted; what takes too long is left to the
    /// next attachment.
    async fn deleted(&self) {
        let (done, wait) = oneshot::channel();
        if self.to_delete.send(Dead::Done(done)).is_ok() {
            let _ = timeout(DELETE_WITHIN, wait).await;
        }
    }

    /// Whole blocks, decoded, in pieces.
    async fn read_blocks(&self, start: u64, blocks: u64) -> Result<Vec<Bytes>, ImageError> {
        let begun = Instant::now();
        let mut pause = PAUSE;
        loop {
            self.check()?;
            let missing = match self.try_read(start, blocks).await {
                Ok(pieces) => {
                    let got: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
                    if got != blocks * BLOCK {
                        return Err(ImageError::Damaged(format!(
                            "{got} bytes are stored where the map has {}",
                            blocks * BLOCK
                        )));
                    }
                    return Ok(pieces);
                }
                Err(Failure::Missing(object)) => object,
                Err(Failure::Final(error)) => return Err(error),
            };
            // The collector moved it, or the store does not find what it has.
            if self
                .engine
                .patience
                .is_some_and(|patience| begun.elapsed() + pause > patience)
            {
                return Err(LogError::Missing { object: missing }.into());
            }
            if pause > PAUSE {
                tracing::warn!(
                    "{missing} is not there, although the volume needs it; waiting for it"
                );
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_read(&self, start: u64, blocks: u64) -> Result<Vec<Bytes>, Failure> {
        let engine = &*self.engine;
        let mut places = Places::default();
        let parts = {
            let pending = engine.pending();
            match pending.is_empty() {
                true => None,
                false => Some(pending.find(start..start + blocks)),
            }
        };
        match parts {
            None => places.below(engine, start, blocks).await?,
            Some(parts) => {
                for part in parts {
                    places.above(engine, part).await?;
                }
            }
        }
        places.fetch(engine).await
    }

    /// Reads around the edges of a write that is not made of whole blocks, and
    /// writes whole ones. The caller holds the range.
    async fn write_edges(&self, offset: u64, data: &[u8]) -> Result<(), ImageError> {
        let (first, end) = cover(offset, data.len() as u64);
        let mut whole = BytesMut::zeroed(((end - first) * BLOCK) as usize);
        let head = offset - first * BLOCK;
        let tail = end * BLOCK - offset - data.len() as u64;
        if head > 0 {
            let old = self.read_blocks(first, 1).await?.concat();
            whole[..BLOCK as usize].copy_from_slice(&old);
        }
        if tail > 0 && (head == 0 || end - first > 1) {
            let old = self.read_blocks(end - 1, 1).await?.concat();
            let at = whole.len() - BLOCK as usize;
            whole[at..].copy_from_slice(&old);
        }
        whole[head as usize..head as usize + data.len()].copy_from_slice(data);
        writer::write(&self.engine, first, &whole).await
    }

    /// Fetches ahead of a sequential reader.
    fn read_ahead(&self, offset: u64, length: u64) {
        let engine = &self.engine;
        let Some(range) = engine.ahead.on_read(offset, length) else {
            return;
        };
        let end = range.end.min(engine.geometry.size).div_ceil(BLOCK);
        let start = range.start / BLOCK;
        if start >= end {
            return;
        }
        let mut found = Vec::new();
        match engine.map.peek(start, end - start, &mut found) {
            Ok(()) => engine.frames.prefetch(&references(&found)),
            Err(_) => {
                let engine2 = Arc::clone(engine);
                engine.tasks.spawn(async move {
                    let engine = engine2;
                    if let Ok(found) = engine.map.lookup(&*engine.store, start, end - start).await {
                        engine.frames.prefetch(&references(&found));
                    }
                });
            }
        }
    }
}

impl From<FrameError> for LogError {
    fn from(error: FrameError) -> LogError {
        match error {
            FrameError::Missing { name, .. } => LogError::Missing { object: name },
            FrameError::Store(error) => LogError::Store(error),
            FrameError::Damaged { name, damage, .. } => LogError::damaged(name, damage),
        }
    }
}
