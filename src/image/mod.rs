//! A volume's content as one range of bytes.
//!
//! Knows: byte ranges, dirty data, the volume formats. Does not know: NBD,
//! errnos, HTTP, devices. Each format is a module: [`objects`] is format 1, [`log`]
//! format 2. Which of them a container holds, and who has locked it, is in its
//! metadata: [`meta`].

pub mod log;
pub mod meta;
pub mod objects;
mod vital;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::StoreError;

/// A volume's bytes.
///
/// Offsets and lengths are in bytes and lie within [`Image::size`]; the caller
/// has checked them. Every method may be called from many tasks at once; what
/// overlaps in time has no order, what was answered before a call began is
/// seen by it.
#[async_trait]
pub trait Image: Send + Sync + fmt::Debug {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// Reads `length` bytes, as pieces in order whose lengths add up to it.
    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, ImageError>;

    /// Writes; answered means seen by every later read, not durable.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ImageError>;

    /// Makes the range read as zeros.
    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ImageError>;

    /// Says that the range's content is no longer needed. It may read as what
    /// it was or as zeros afterwards.
    async fn discard(&self, offset: u64, length: u64) -> Result<(), ImageError>;

    /// Makes everything durable that was answered before the call.
    async fn flush(&self) -> Result<(), ImageError>;

    /// Makes everything durable in the store that was answered before the call, where a
    /// flush is content with less.
    async fn flush_to_store(&self) -> Result<(), ImageError> {
        self.flush().await
    }

    /// Flushes, then waits until no request of ours can take effect any more
    /// and stops all background work. Nothing may be called afterwards.
    async fn close(&self) -> Result<(), ImageError>;

    /// The same, but the volume stays ours, for another [`Image`] that goes on with
    /// it. False: not all was durable within `patience`, and this one works on, as it
    /// does after an error.
    async fn hand_over(&self, patience: Duration) -> Result<bool, ImageError>;

    /// What a range holds, from its start on: at least one extent and at most
    /// `most` (at least 1), none empty, together no longer than the range and
    /// possibly shorter. Where it is not known, or known only to be dirty, it is
    /// data; a format that knows no holes says data of everything.
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Extent>, ImageError> {
        let _ = (offset, most);
        let kind = ExtentKind::Data;
        Ok(vec![Extent { length, kind }])
    }

    /// Figures for `status`.
    fn stats(&self) -> Stats;
}

/// A stretch of a volume of which the same is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length in bytes.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// What a stretch of a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// It may hold anything.
    Data,
    /// It is certain that it reads as zeros and that nothing is stored for it. A
    /// copy may leave it out: what only seems to be absent is [`Self::Data`].
    Hole,
}

impl Extent {
    /// Appends a stretch to a list in which neighbours differ.
    pub fn append(list: &mut Vec<Extent>, length: u64, kind: ExtentKind) {
        match list.last_mut() {
            Some(last) if last.kind == kind => last.length += length,
            _ if length > 0 => list.push(Extent { length, kind }),
            _ => {}
        }
    }
}

/// Figures of a running volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Bytes answered and not yet durable.
    pub dirty_bytes: u64,
    /// Bytes of clean data held in memory.
    pub cached_bytes: u64,
    /// How often data was looked for in memory and found, since the attach.
    #[serde(default)]
    pub cache_hits: u64,
    /// How often it was not.
    #[serde(default)]
    pub cache_misses: u64,
    /// How long the lease still lasts if it is not renewed, in seconds, if there is one.
    #[serde(default)]
    pub lease_seconds: Option<u64>,
    /// What only a volume of format 2 has.
    #[serde(default)]
    pub log: Option<LogStats>,
}

/// Figures of a running volume of format 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LogStats {
    /// The number of this attachment.
    pub epoch: u32,
    /// The number of its newest durable checkpoint.
    pub root: u32,
    /// Whether the volume is encrypted.
    pub encrypted: bool,
    /// Bytes of the device that hold data.
    pub live_bytes: u64,
    /// Bytes of the objects that hold it, and of the map.
    pub stored_bytes: u64,
    /// How many segments there are.
    pub segments: u64,
    /// How many objects the map takes.
    pub map_objects: u64,
    /// Age of the oldest write that is not durable yet, in seconds.
    pub seconds_behind: u64,
    /// Bytes that the collector copied since the attach.
    pub collected_bytes: u64,
    /// Objects that were deleted since the attach.
    pub deleted_objects: u64,
    /// Its journal, if it has one.
    #[serde(default)]
    pub journal: Option<JournalStats>,
}

/// Figures of a journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JournalStats {
    /// Bytes that it can hold.
    pub bytes: u64,
    /// Bytes of it that Swift does not have yet, or has not been asked about.
    pub used_bytes: u64,
    /// Whether flushes are answered from it; false once its disk has failed.
    pub relied_on: bool,
}

/// A request to an image that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The store failed, for longer than the volume's `io_timeout`.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store returned is not what a volume of this format holds.
    #[error("{0}")]
    Damaged(String),
    /// Somebody else attached the volume: it is no longer ours.
    #[error("{0}")]
    Superseded(String),
    /// The image was closed.
    #[error("the volume is closed")]
    Closed,
}
