//! Format 1, the original's: the device is a row of objects of equal size,
//! `disk.part/%08d`, each overwritten in place; a missing one reads as zeros.
//!
//! Knows: objects, dirty data, the read cache. Does not know: the container's
//! metadata, HTTP, files, retries (all below), NBD (above).
//!
//! # How it works
//! - [`layout`]: which objects hold which bytes.
//! - [`extents`]: the written parts of one object.
//! - [`dirty`]: the table of all that is not durable, and its order.
//! - [`reader`]: reads; one GET an object however many ask, cache, read-ahead.
//! - [`writer`]: writes, the upload of dirty objects, FLUSH, backpressure.
//! - [`presence`]: which objects exist, as far as it is known without asking.
//! - [`holes`]: which parts are certain to read as zeros.
//! - [`lease`]: no write is sent when another may have the volume.
//!
//! A write copies its data into the dirty table and is answered. Objects are
//! uploaded whole: at once when all of an object was written, else after
//! [`writer::WRITE_BACK_AFTER`], when half of the dirty limit is used, or when a
//! FLUSH asks. Where only a part was written, the rest is fetched first. One
//! request a name at a time: Swift orders two of them by its own clock, not by
//! ours. An object of nothing but zeros is deleted instead.
//!
//! # Memory
//! Dirty data up to its limit (an upload's body, and a failed upload that goes
//! back, may add an object for each upload under way: at most a quarter of the
//! limit); the cache up to its limit; bodies being fetched, at most half of the
//! cache's limit or two objects. Nothing else grows with the load.

mod dirty;
mod extents;
mod holes;
pub mod layout;
pub mod lease;
mod presence;
mod reader;
mod writer;

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use self::dirty::Dirty;
pub use self::extents::is_zero;
use self::layout::Layout;
use self::presence::Presence;
use self::reader::{Fetches, Streams};
use super::vital::vital;
use super::{Extent, Image, ImageError, Stats};
use crate::store::ObjectStore;

/// What a user sets for a running volume.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clean data kept in memory, in bytes.
    pub cache: u64,
    /// Data answered and not yet durable, in bytes. At least four objects:
    /// [`Limits::least_dirty`].
    pub dirty: u64,
}

impl Limits {
    /// The smallest dirty limit with which a volume of this layout works.
    pub fn least_dirty(layout: &Layout) -> u64 {
        4 * u64::from(layout.object_size) + (64 << 10)
    }
}

/// Most uploads under way.
const MAX_UPLOADS: u64 = 16;
/// Most fetches under way.
const MAX_FETCHES: u64 = 32;

/// A running volume of format 1.
#[derive(Debug)]
pub struct Objects {
    shared: Arc<Shared>,
    writer: tokio::task::JoinHandle<()>,
}

type BodyCache = Cache<u64, Bytes, Weigher, BuildHasherDefault<DefaultHasher>>;

/// What reads, writes and the background work share.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn ObjectStore>,
    layout: Layout,
    /// Dirty memory beyond which writes wait, in bytes.
    dirty_limit: usize,
    state: Mutex<State>,
    /// Stored content of objects that are clean, or of those below a dirty part;
    /// empty stands for an object that does not exist.
    cache: BodyCache,
    presence: Presence,
    /// A write, a flush or a landing gave the writer something to look at.
    work: Notify,
    /// An upload ended, well or badly.
    progress: Notify,
    uploads: usize,
    fetches: Arc<Semaphore>,
    /// Places for fetches that only ask whether there is an object.
    asking: Semaphore,
    /// Most bytes that read-ahead asks for beyond what was read.
    read_ahead: u64,
    closed: AtomicBool,
}

#[derive(Debug)]
struct State {
    dirty: Dirty,
    fetches: Fetches,
    streams: Streams,
    /// The newest barrier that a FLUSH waits for.
    wanted: dirty::Sequence,
    /// How many uploads failed, and why the last one did.
    failures: (u64, Option<ImageError>),
}

#[derive(Debug, Clone)]
struct Weigher;

impl quick_cache::Weighter<u64, Bytes> for Weigher {
    fn weight(&self, _: &u64, body: &Bytes) -> u64 {
        // The entry itself and its share of the tables take about 100 bytes.
        body.len() as u64 + 100
    }
}

impl Objects {
    /// Serves the volume of this layout. Must be called within a tokio runtime.
    /// `limits.dirty` below [`Limits::least_dirty`] is raised to it.
    pub fn start(store: Arc<dyn ObjectStore>, layout: Layout, limits: Limits) -> Objects {
        let object = u64::from(layout.object_size);
        let dirty_limit = limits.dirty.max(Limits::least_dirty(&layout));
        let uploads = (dirty_limit / 4 / object).clamp(1, MAX_UPLOADS);
        let fetches = (limits.cache / 2 / object).clamp(2, MAX_FETCHES);
        let shared = Arc::new(Shared {
            store,
            layout,
            dirty_limit: dirty_limit as usize,
            state: Mutex::new(State {
                dirty: Dirty::new(layout),
                fetches: Fetches::default(),
                streams: Streams::default(),
                wanted: 0,
                failures: (0, None),
            }),
            cache: body_cache(limits.cache, object),
            presence: Presence::new(layout),
            work: Notify::new(),
            progress: Notify::new(),
            uploads: uploads as usize,
            fetches: Arc::new(Semaphore::new(fetches as usize)),
            asking: Semaphore::new((fetches as usize / 2).clamp(1, holes::AT_ONCE)),
            read_ahead: (limits.cache / 4).min(16 << 20),
            closed: AtomicBool::new(false),
        });
        let writer = tokio::spawn(vital(writer::run(Arc::clone(&shared))));
        Objects { shared, writer }
    }

    /// The volume's geometry.
    pub fn layout(&self) -> Layout {
        self.shared.layout
    }
}

/// A cache whose shards each hold at least some objects: a shard never keeps
/// what is heavier than itself.
fn body_cache(bytes: u64, object: u64) -> BodyCache {
    let shards = (bytes / (16 * object)).clamp(1, 16) as usize;
    let items = (bytes / object).clamp(16, 1 << 20) as usize;
    let options = quick_cache::OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity(items)
        .weight_capacity(bytes)
        .build()
        .unwrap_or_else(|error| unreachable!("cache options are all set: {error}"));
    Cache::with_options(
        options,
        Weigher,
        BuildHasherDefault::default(),
        DefaultLifecycle::default(),
    )
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is let go, unless code here
        // panics; what then stands in the table is still what was answered.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self) -> Result<(), ImageError> {
        if self.closed.load(Ordering::Acquire) {
            Err(ImageError::Closed)
        } else {
            Ok(())
        }
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // Uploads belong to the writer's task and end with it.
        self.writer.abort();
    }
}

impl Objects {
    /// Nothing is dirty: waits until no request of ours can take effect, and stops.
    async fn stop(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.store.settle().await;
        self.writer.abort();
    }
}

#[async_trait]
impl Image for Objects {
    fn size(&self) -> u64 {
        self.shared.layout.size()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, ImageError> {
        self.shared.check_open()?;
        reader::read(&self.shared, offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ImageError> {
        self.shared.check_open()?;
        writer::write(&self.shared, offset, &data).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.shared.check_open()?;
        writer::write_zeroes(&self.shared, offset, length).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.shared.check_open()?;
        writer::discard(&self.shared, offset, length).await
    }

    async fn flush(&self) -> Result<(), ImageError> {
        self.shared.check_open()?;
        writer::flush(&self.shared).await
    }

    async fn close(&self) -> Result<(), ImageError> {
        writer::flush(&self.shared).await?;
        self.stop().await;
        Ok(())
    }

    async fn hand_over(&self, patience: Duration) -> Result<bool, ImageError> {
        match timeout(patience, writer::flush(&self.shared)).await {
            Err(_) => return Ok(false),
            Ok(flushed) => flushed?,
        }
        self.stop().await;
        Ok(true)
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Extent>, ImageError> {
        self.shared.check_open()?;
        holes::extents(&self.shared, offset, length, most).await
    }

    fn stats(&self) -> Stats {
        let dirty_bytes = self.shared.state().dirty.bytes() as u64;
        Stats {
            dirty_bytes,
            cached_bytes: self.shared.cache.weight(),
            cache_hits: self.shared.cache.hits(),
            cache_misses: self.shared.cache.misses(),
            lease_seconds: None,
            log: None,
        }
    }
}
