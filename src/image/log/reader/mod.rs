//! Frames from the store: the cold side of reads, and the cache before it.
//!
//! Knows: frames by segment and offset, how many requests and bytes may be under
//! way, which frames are read ahead. Does not know: the map, the device's ranges
//! (its caller turns those into [`FrameRef`]s), what is dirty.
//!
//! # How it works
//! - [`plan`]: frames that lie close together in a segment become one GET.
//! - [`flights`]: a frame is fetched once, however many ask for it at the same time.
//! - [`fetch`]: one GET as a task of its own, so that a reader who goes away takes
//!   it from nobody else; its frames are opened, cached and handed over one by one.
//! - [`cache`]: opened frames, weighed in bytes.
//! - [`readahead`]: tells sequential readers by the ranges that they read.
//!
//! # Nothing stale, nothing foreign
//! Segments are immutable and a segment's number is never reused, so a cached frame
//! cannot become outdated. The key is all of the [`FrameRef`], the device block
//! included, against which a frame is opened: a map that names a frame for another
//! part of the device never hits the cache, and the opening then refuses it.
//!
//! # Memory
//! The cache up to its limit. The bodies of GETs under way: up to an eighth of the
//! limit for what readers wait for, up to three eighths for what is read ahead, but
//! 1 MiB for each at least ([`Lane`](fetch::Lane)). What a reader was given is the
//! reader's; a frame may be 64 KiB where he needs 4, so whoever asks for many frames
//! at once should do so in parts.

mod cache;
mod fetch;
mod flights;
mod plan;
mod readahead;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::cache::FrameCache;
use self::fetch::{Batch, Lane};
use self::flights::{Flight, Flights};
pub use self::readahead::ReadAhead;
use super::format::seal::Cipher;
use super::format::{BLOCK, Damage, FRAME_BLOCKS, VolumeId};
use crate::store::{ErrorKind, ObjectStore, StoreError};

/// No frame's box is longer: all of its blocks as they are, and what encoding and
/// sealing add.
const MAX_STORED: u64 = FRAME_BLOCKS * BLOCK + 256;

/// One frame somewhere in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRef {
    /// The segment's number: within an attachment it means one segment for ever.
    pub seq: u64,
    /// Where the frame's box begins in the segment's object, in bytes.
    pub offset: u32,
    /// How long the box is, in bytes.
    pub stored: u32,
    /// The device block of the frame's first block.
    pub address: u64,
}

impl FrameRef {
    /// The byte after its box.
    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.stored)
    }

    /// Whether a segment can hold such a frame at all.
    fn is_sane(&self) -> bool {
        (1..=MAX_STORED).contains(&u64::from(self.stored))
    }
}

/// Tells where segments lie.
pub trait Names: Send + Sync {
    /// The name of the segment's object; `None` if there is no such segment (any
    /// more).
    fn name(&self, seq: u64) -> Option<String>;
}

/// Why a frame cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FrameError {
    /// The store says that there is no such object, or [`Names`] knows none. The map
    /// may have moved on.
    #[error("{name}: it is not there")]
    Missing {
        /// The segment's number.
        seq: u64,
        /// Its object, or what to call it where no object is known.
        name: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store has is not what was written, as often as it was asked.
    #[error("{name}: the frame at byte {offset}: {damage}")]
    Damaged {
        /// The segment's number.
        seq: u64,
        /// The segment's object.
        name: String,
        /// Where the frame begins in it, in bytes.
        offset: u32,
        /// What is wrong.
        damage: Damage,
    },
}

impl FrameError {
    /// The segment whose frame it is, if the store answered at all.
    pub fn seq(&self) -> Option<u64> {
        match self {
            FrameError::Missing { seq, .. } | FrameError::Damaged { seq, .. } => Some(*seq),
            FrameError::Store(_) => None,
        }
    }

    /// Nothing is fetched any more.
    fn closed(seq: u64) -> FrameError {
        let segment = format!("segment {seq}");
        let detail = "the volume is closed";
        StoreError::new(ErrorKind::Unavailable, "GET", segment, detail).into()
    }
}

/// Opened frames of one attachment. A clone is the same.
#[derive(Clone)]
pub struct Frames {
    shared: Arc<Shared>,
    /// Apart from what tasks hold: they end with the last of these.
    tasks: Arc<Mutex<Option<JoinSet<()>>>>,
}

/// What readers and fetches share.
struct Shared {
    store: Arc<dyn ObjectStore>,
    volume: VolumeId,
    cipher: Cipher,
    names: Arc<dyn Names>,
    cache: FrameCache,
    flights: Flights,
    /// For frames that somebody waits for.
    wanted: Lane,
    /// For frames that somebody may want.
    ahead: Lane,
    /// Whole objects are fetched one at a time: they are in no lane's bound.
    whole: Semaphore,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("cached_bytes", &self.cached_bytes())
            .field("under_way", &self.shared.flights.len())
            .finish_non_exhaustive()
    }
}

impl Frames {
    /// Reads frames of this volume from `store`, and keeps up to `cache_bytes` of
    /// them, opened.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        volume: VolumeId,
        cipher: Cipher,
        names: Arc<dyn Names>,
        cache_bytes: u64,
    ) -> Frames {
        let shared = Shared {
            store,
            volume,
            cipher,
            names,
            cache: FrameCache::new(cache_bytes),
            flights: Flights::default(),
            wanted: Lane::new(fetch::WANTED_GETS, cache_bytes / 8),
            ahead: Lane::new(fetch::AHEAD_GETS, readahead::window(cache_bytes / 2)),
            whole: Semaphore::new(1),
        };
        Frames {
            shared: Arc::new(shared),
            tasks: Arc::new(Mutex::new(Some(JoinSet::new()))),
        }
    }

    /// The frame's content, a multiple of 4096 bytes, if it is in the cache. Waits
    /// for nothing and allocates nothing.
    pub fn cached(&self, frame: &FrameRef) -> Option<Bytes> {
        self.shared.cache.get(frame)
    }

    /// The frames' content, each a multiple of 4096 bytes, in the order asked for.
    /// Within a tokio runtime. A failure is not kept: asking again tries again.
    pub async fn get(&self, wanted: &[FrameRef]) -> Result<Vec<Bytes>, FrameError> {
        let mut content: Vec<Option<Bytes>> = Vec::with_capacity(wanted.len());
        content.extend(wanted.iter().map(|frame| self.cached(frame)));
        if content.iter().all(Option::is_some) {
            return Ok(content.into_iter().flatten().collect());
        }
        if let Some(frame) = wanted.iter().find(|frame| !frame.is_sane()) {
            let damage = Damage::Malformed("no frame is that long");
            return Err(self.shared.damaged(frame, damage));
        }
        let mut waits: Vec<(usize, Arc<Flight>)> = Vec::new();
        let mut absent = Vec::new();
        for (at, frame) in wanted.iter().enumerate() {
            if content[at].is_some() {
                continue;
            }
            let (flight, new) = self.shared.flights.join(frame);
            if new {
                // What landed between the look into the cache and this one.
                match self.shared.cache.get(frame) {
                    Some(found) => self.shared.flights.land(frame, &Ok(found)),
                    None => absent.push(*frame),
                }
            }
            waits.push((at, flight));
        }
        self.launch(&absent, Errand::Wanted);
        for (at, flight) in waits {
            content[at] = Some(flight.landed().await?);
        }
        Ok(content.into_iter().flatten().collect())
    }

    /// Has frames fetched in the background, for a later [`Frames::cached`] or
    /// [`Frames::get`]. What is cached or under way is left out, and so is what is
    /// beyond the bound for reading ahead. Within a tokio runtime.
    pub fn prefetch(&self, wanted: &[FrameRef]) {
        let shared = &self.shared;
        let mut absent = Vec::new();
        for frame in wanted {
            if !frame.is_sane() || shared.cache.contains(frame) {
                continue;
            }
            if !shared.ahead.reserve(frame.stored) {
                break;
            }
            match shared.flights.join(frame) {
                (_, true) => absent.push(*frame),
                (_, false) => shared.ahead.release(frame.stored),
            }
        }
        self.launch(&absent, Errand::Ahead);
    }

    /// Puts content that was just written into the cache. It must lie in an allocation
    /// of its own: a part of a larger one would keep all of it in memory.
    pub fn insert(&self, frame: &FrameRef, content: Bytes) {
        self.shared.cache.insert(frame, content);
    }

    /// Bytes that the cache holds.
    pub fn cached_bytes(&self) -> u64 {
        self.shared.cache.bytes()
    }

    /// How often a frame was looked for in the cache and found, and how often not.
    pub fn lookups(&self) -> (u64, u64) {
        self.shared.cache.lookups()
    }

    /// Ends all work in the background; who still waits for a frame is told that the
    /// volume is closed.
    pub async fn close(&self) {
        let tasks = self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }

    /// Starts the GETs for frames whose flights are ours.
    fn launch(&self, frames: &[FrameRef], errand: Errand) {
        let lane = self.shared.lane(errand);
        for get in plan::gets(frames, lane.largest()) {
            // From here on its frames are told, whatever happens to the task.
            let batch = Batch::new(Arc::clone(&self.shared), get, errand);
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(tasks) = tasks.as_mut() else {
                continue;
            };
            while tasks.try_join_next().is_some() {}
            tasks.spawn(fetch::run(batch));
        }
    }
}

/// What a GET is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errand {
    Wanted,
    Ahead,
}

impl Shared {
    fn lane(&self, errand: Errand) -> &Lane {
        match errand {
            Errand::Wanted => &self.wanted,
            Errand::Ahead => &self.ahead,
        }
    }

    /// What to call a segment's object.
    fn called(&self, seq: u64) -> String {
        self.names
            .name(seq)
            .unwrap_or_else(|| format!("segment {seq}"))
    }

    fn damaged(&self, frame: &FrameRef, damage: Damage) -> FrameError {
        let (seq, offset) = (frame.seq, frame.offset);
        let name = self.called(seq);
        FrameError::Damaged {
            seq,
            name,
            offset,
            damage,
        }
    }
}
