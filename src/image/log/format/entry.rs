//! Where a few blocks of the device lie: the unit of the map, 16 bytes of memory.

use super::{FRAME_BLOCKS, PAGE_BLOCKS};

/// Blocks `start` to `start + blocks` of a page lie in one frame of one segment,
/// from its block `skip` on.
///
/// Limits: `seq` below 2^48, `start` below [`PAGE_BLOCKS`], `blocks` 1 to
/// [`FRAME_BLOCKS`], `skip + blocks` at most [`FRAME_BLOCKS`], `stored` below 2^24.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// `start` below, `seq` above: entries of one page sort by [`Entry::start`].
    seq_start: u64,
    offset: u32,
    /// Bits 0 to 23 `stored`, 24 to 27 `skip`, 28 to 31 `blocks - 1`.
    rest: u32,
}

/// The `seq` of blocks that are lost: reading them fails. `check --repair` writes it
/// for what nothing can bring back; no segment has it.
pub const LOST: u64 = 0;

impl Entry {
    /// An entry; `None` beyond the limits.
    pub fn new(
        start: u64,
        blocks: u64,
        seq: u64,
        offset: u32,
        stored: u32,
        skip: u64,
    ) -> Option<Entry> {
        let fits = blocks >= 1
            && start + blocks <= PAGE_BLOCKS
            && skip + blocks <= FRAME_BLOCKS
            && seq < 1 << 48
            && stored < 1 << 24;
        fits.then_some(Entry {
            seq_start: seq << 16 | start,
            offset,
            rest: stored | (skip as u32) << 24 | (blocks as u32 - 1) << 28,
        })
    }

    /// Its first block, counted from the page's start.
    pub fn start(self) -> u64 {
        self.seq_start & 0xffff
    }

    /// The block after its last, counted from the page's start.
    pub fn end(self) -> u64 {
        self.start() + self.blocks()
    }

    /// How many blocks it covers.
    pub fn blocks(self) -> u64 {
        u64::from(self.rest >> 28) + 1
    }

    /// The segment's number, or [`LOST`].
    pub fn seq(self) -> u64 {
        self.seq_start >> 16
    }

    /// Where the frame's box begins in the segment's object, in bytes.
    pub fn offset(self) -> u32 {
        self.offset
    }

    /// How long the frame's box is, in bytes.
    pub fn stored(self) -> u32 {
        self.rest & 0xff_ffff
    }

    /// Which block of the frame is the entry's first.
    pub fn skip(self) -> u64 {
        u64::from(self.rest >> 24 & 0xf)
    }

    /// The part of it from `from` to `to`, page blocks within it.
    pub fn part(self, from: u64, to: u64) -> Entry {
        debug_assert!(self.start() <= from && from < to && to <= self.end());
        let skip = self.skip() + from - self.start();
        Entry {
            seq_start: self.seq() << 16 | from,
            offset: self.offset,
            rest: self.stored() | (skip as u32) << 24 | ((to - from) as u32 - 1) << 28,
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, end, seq) = (self.start(), self.end(), self.seq());
        let (offset, stored, skip) = (self.offset, self.stored(), self.skip());
        write!(f, "{start}..{end} = {seq}@{offset}+{stored}[{skip}..]")
    }
}
