//! Opened frames in memory, weighed in bytes.
//!
//! Frames come and go with time: half of the cache is for what was used more than
//! once, the other half a queue. What is read ahead waits in the queue, and must not
//! be pushed out of it before it was read: [`window`](super::readahead::window) is less
//! than that half.

use std::hash::{BuildHasherDefault, DefaultHasher};

use bytes::Bytes;
use quick_cache::OptionsBuilder;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::FrameRef;

/// What an entry takes beside its content: key, handle, the allocation's own words,
/// and its place in tables that are up to half empty.
const ENTRY: u64 = 200;
/// The least that a shard holds. In smaller ones some would overflow while others
/// stay empty.
const SHARD: u64 = 16 << 20;
/// The most shards: more readers than this do not meet.
const MAX_SHARDS: u64 = 16;
/// The part of the cache for what was used more than once. Keys that were evicted are
/// not remembered: one that came back would go to this part whatever it holds, and in
/// the end there would be no queue.
const HOT: f64 = 0.5;

pub(super) struct FrameCache(Cache<FrameRef, Bytes, Weigher, Hashing>);

/// Without a random seed: what is evicted is the same in each run of a test.
type Hashing = BuildHasherDefault<DefaultHasher>;

#[derive(Debug, Clone)]
struct Weigher;

impl quick_cache::Weighter<FrameRef, Bytes> for Weigher {
    fn weight(&self, _: &FrameRef, content: &Bytes) -> u64 {
        content.len() as u64 + ENTRY
    }
}

impl FrameCache {
    /// How often something was looked for and found, and how often not.
    pub(super) fn lookups(&self) -> (u64, u64) {
        (self.0.hits(), self.0.misses())
    }

    /// A cache of this many bytes. What is heavier than half of a shard is never
    /// kept, so one of less than 132 KiB keeps no whole frame.
    pub(super) fn new(bytes: u64) -> FrameCache {
        let shards = (bytes / SHARD).clamp(1, MAX_SHARDS);
        // Only a first guess: between frames of 64 KiB and frames of 4.
        let items = (bytes / (16 << 10)).clamp(32 * shards, 1 << 20);
        let options = OptionsBuilder::new()
            .shards(shards as usize)
            .estimated_items_capacity(items as usize)
            .weight_capacity(bytes)
            .hot_allocation(HOT)
            .ghost_allocation(0.0)
            .build()
            .unwrap_or_else(|error| unreachable!("cache options are all set: {error}"));
        let (hashing, lifecycle) = (Hashing::default(), DefaultLifecycle::default());
        FrameCache(Cache::with_options(options, Weigher, hashing, lifecycle))
    }

    pub(super) fn get(&self, frame: &FrameRef) -> Option<Bytes> {
        self.0.get(frame)
    }

    /// Whether it is there; asking does not count as using it.
    pub(super) fn contains(&self, frame: &FrameRef) -> bool {
        self.0.contains_key(frame)
    }

    /// Keeps content that lies in an allocation of its own.
    pub(super) fn insert(&self, frame: &FrameRef, content: Bytes) {
        // The first copy of a handle allocates its counter: now, not in a reader.
        drop(content.clone());
        self.0.insert(*frame, content);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.weight()
    }
}
