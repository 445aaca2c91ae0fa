//! Segments: data, and the edits of the map that come with it.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 32 | prelude |
//! | 32 | 4 | length of the header's box, in clear; at most [`MAX_HEADER`] less what is before it |
//! | 36 | so many | the header's box |
//! | | | the frames' boxes ([`frame`](super::frame)), one after the other, in the header's order, to the object's end |
//!
//! The header's payload:
//!
//! | field | bytes | what |
//! |---|---|---|
//! | flags | 1 | bit 0: its frames were collected, not written. Another: *unknown* |
//! | epoch, attach id, seq | 4, 16, 8 | as in the name |
//! | previous | 16 | the hash of the header box of segment `seq - 1`; zeros if there is none |
//! | durable | 8 | every segment up to this one was durable when this one was made |
//! | journal | 8 | the position in the journal that the root names, up to which this segment and those before it have every write; [`JOURNAL_ENDED`](super::JOURNAL_ENDED): they have all that it can hold; 0 where nothing is said |
//! | counts | 4, 4, 4 | of frames, sources, holes |
//! | frames | 12 each | start (8), blocks (1), length of the box (3) |
//! | sources | 12 each | blocks (1), skip (1), offset (4), seq (6) |
//! | holes | 16 each | start (8), blocks (8) |
//!
//! Starts are blocks of the device. Frames ascend, do not overlap, and none crosses
//! the edge of a page; so do holes, which may be of any length and touch no frame.
//! The records are of fixed size, so the header's length is known before the frames
//! are made, and the object is written from its beginning to its end.
//!
//! In a written segment, frames point the map at themselves and holes clear it. In a
//! collected one there are no holes, and every frame has sources: the segments and
//! frames (`seq`, offset of the box, first block in it) that its blocks, in order, were
//! copied from, as many blocks together as it has. The map takes a part only where it
//! still points at that source.

mod builder;

use bytes::{BufMut, Bytes};

pub use self::builder::{Builder, Built, Plan};

use super::frame;
use super::names::Name;
use super::root::hash;
use super::seal::{Cipher, Kind, PRELUDE, Place, Prelude, Role};
use super::wire::{Put, Reader, ensure};
use super::{
    AttachId, BLOCK, Damage, FRAME_BLOCKS, Hash, MAX_OBJECT, MAX_SIZE, PAGE_BLOCKS, VolumeId,
};

/// What a reader asks for first, in bytes: most headers are shorter.
pub const HEADER_GUESS: u64 = 32 << 10;
/// The most bytes from a segment's beginning to its header's end.
pub const MAX_HEADER: u64 = 1 << 20;

/// Where the header's box begins.
const HEADER_AT: usize = PRELUDE + 4;
/// Bytes of the header's payload before its records.
const FIXED: usize = 1 + 4 + 16 + 8 + 16 + 8 + 8 + 12;
const FRAME: usize = 12;
const SOURCE: usize = 12;
const HOLE: usize = 16;
const COLLECTED: u8 = 1;

/// Some blocks of a frame that were copied, and where from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// How many.
    pub blocks: u8,
    /// Which block of the frame there was the first.
    pub skip: u8,
    /// Where that frame's box begins in its segment, in bytes.
    pub offset: u32,
    /// The segment.
    pub seq: u64,
}

/// A frame, as the header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    /// Its first block on the device.
    pub start: u64,
    /// How many blocks: 1 to [`FRAME_BLOCKS`].
    pub blocks: u64,
    /// Where its box begins in the object, in bytes.
    pub offset: u32,
    /// How long its box is, in bytes.
    pub stored: u32,
    /// Where its blocks were copied from, in order; empty if they were written.
    pub sources: Vec<Source>,
}

/// Blocks that read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The first.
    pub start: u64,
    /// How many.
    pub blocks: u64,
}

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The epoch that wrote it.
    pub epoch: u32,
    /// The attachment that wrote it.
    pub attach: AttachId,
    /// Its number.
    pub seq: u64,
    /// The hash of the header box of the segment before.
    pub previous: Hash,
    /// Every segment up to this one was durable when this one was made.
    pub durable: u64,
    /// This segment and those before it have every write of the journal up to there; 0:
    /// nothing is said.
    pub journal: u64,
    /// Whether its frames were collected, not written.
    pub collected: bool,
    /// Ascending.
    pub frames: Vec<FrameInfo>,
    /// Ascending.
    pub holes: Vec<Hole>,
}

impl Header {
    /// Bytes from the object's beginning to its header's end, from its first bytes.
    pub fn needed(first_bytes: &Bytes) -> Result<u64, Damage> {
        let mut bytes = Reader::new(first_bytes, "segment");
        bytes.bytes(PRELUDE)?;
        Prelude::decode(first_bytes)?;
        let end = HEADER_AT as u64 + u64::from(bytes.u32()?);
        match end <= MAX_HEADER {
            true => Ok(end),
            false => Err(Damage::Truncated("segment header")),
        }
    }

    /// The header, and the hash of its box, from an object's first bytes, of which
    /// there are [`Header::needed`] at least.
    pub fn decode(
        name: &str,
        volume: VolumeId,
        cipher: &Cipher,
        first_bytes: &Bytes,
    ) -> Result<(Header, Hash), Damage> {
        let prelude = Prelude::decode(first_bytes)?.expect(Kind::Segment, Some(volume))?;
        let end = Header::needed(first_bytes)? as usize;
        if first_bytes.len() < end {
            return Err(Damage::Truncated("segment header"));
        }
        let boxed = first_bytes.slice(HEADER_AT..end);
        let offset = HEADER_AT as u64;
        let place = Place {
            prelude: &prelude,
            name,
            role: Role::Header,
            offset,
            address: 0,
        };
        let header = parse(&cipher.open(&place, &boxed)?, end)?;
        let Header {
            epoch, attach, seq, ..
        } = header;
        let named = Name::parse(name) == Some(Name::Segment { epoch, attach, seq });
        ensure(named, "another segment than its name says")?;
        header.check(cipher.overhead())?;
        Ok((header, hash(&boxed)))
    }

    /// Bytes of the whole object; its header alone ends at `None`.
    pub fn object_length(&self) -> Option<u64> {
        let last = self.frames.last()?;
        Some(u64::from(last.offset) + u64::from(last.stored))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let sources = || self.frames.iter().flat_map(|frame| &frame.sources);
        out.put_u8(if self.collected { COLLECTED } else { 0 });
        out.put_u32_le(self.epoch);
        out.put_slice(&self.attach.0);
        out.put_u64_le(self.seq);
        out.put_slice(&self.previous);
        out.put_u64_le(self.durable);
        out.put_u64_le(self.journal);
        out.put_u32_le(self.frames.len() as u32);
        out.put_u32_le(sources().count() as u32);
        out.put_u32_le(self.holes.len() as u32);
        for frame in &self.frames {
            out.put_u64_le(frame.start);
            out.put_u8(frame.blocks as u8);
            out.put_u24(frame.stored);
        }
        for source in sources() {
            out.put_u8(source.blocks);
            out.put_u8(source.skip);
            out.put_u32_le(source.offset);
            out.put_u48(source.seq);
        }
        for hole in &self.holes {
            out.put_u64_le(hole.start);
            out.put_u64_le(hole.blocks);
        }
    }

    /// What no writer breaks. `overhead`: of a box.
    fn check(&self, overhead: usize) -> Result<(), Damage> {
        ensure(
            self.seq < 1 << 48 && self.durable < self.seq,
            "a segment's number",
        )?;
        let least = overhead + frame::HEAD + 1;
        for frame in &self.frames {
            let blocks = (1..=FRAME_BLOCKS).contains(&frame.blocks);
            ensure(blocks && frame.stored as usize >= least, "a frame's length")?;
            let in_page = frame.start % PAGE_BLOCKS + frame.blocks <= PAGE_BLOCKS;
            ensure(in_page, "a frame in two pages")?;
            self.check_sources(frame)?;
        }
        ensure(
            self.holes.is_empty() || !self.collected,
            "holes that were collected",
        )?;
        let end = self.object_length().unwrap_or(0);
        ensure(end <= MAX_OBJECT, "a segment that is too long")?;
        let frames = self.frames.iter().map(|frame| (frame.start, frame.blocks));
        let holes = self.holes.iter().map(|hole| (hole.start, hole.blocks));
        ascending(merge(frames, holes))
    }

    fn check_sources(&self, frame: &FrameInfo) -> Result<(), Damage> {
        let right = |source: &Source| {
            (1..=FRAME_BLOCKS).contains(&(u64::from(source.blocks) + u64::from(source.skip)))
                && source.blocks > 0
                && source.offset as usize >= HEADER_AT
                && (1..self.seq).contains(&source.seq)
        };
        ensure(frame.sources.iter().all(right), "the source of a frame")?;
        let blocks: u64 = frame
            .sources
            .iter()
            .map(|source| u64::from(source.blocks))
            .sum();
        let wanted = if self.collected { frame.blocks } else { 0 };
        ensure(blocks == wanted, "the sources of a frame")
    }
}

type Stretch = (u64, u64);

/// Two lists of (start, blocks), each ascending, as one.
fn merge(
    a: impl Iterator<Item = Stretch>,
    b: impl Iterator<Item = Stretch>,
) -> impl Iterator<Item = Stretch> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(first), Some(second)) if second.0 < first.0 => b.next(),
        (None, _) => b.next(),
        _ => a.next(),
    })
}

/// None is empty, begins before the one before it ends, or ends beyond the largest
/// volume.
fn ascending(stretches: impl Iterator<Item = Stretch>) -> Result<(), Damage> {
    let mut end = 0;
    for (start, blocks) in stretches {
        ensure(start >= end && blocks > 0, "blocks that are not in order")?;
        end = start.saturating_add(blocks);
        ensure(end <= MAX_SIZE / BLOCK, "blocks beyond the largest volume")?;
    }
    Ok(())
}

/// A header's payload. `at`: where the first frame begins.
fn parse(payload: &[u8], at: usize) -> Result<Header, Damage> {
    let mut bytes = Reader::new(payload, "segment header");
    let flags = bytes.u8()?;
    if flags & !COLLECTED != 0 {
        return Err(Damage::Unknown(format!("a segment's flags {flags:#x}")));
    }
    let (epoch, attach, seq) = (bytes.u32()?, AttachId(bytes.array()?), bytes.u64()?);
    let (previous, durable, journal) = (bytes.array()?, bytes.u64()?, bytes.u64()?);
    let counts = [bytes.u32()?, bytes.u32()?, bytes.u32()?];
    let lengths = [FRAME, SOURCE, HOLE];
    let [frames, sources, holes] = [0, 1, 2].map(|i| counts[i] as usize * lengths[i]);
    let mut frames = Reader::new(bytes.bytes(frames)?, "frames");
    let mut sources = Reader::new(bytes.bytes(sources)?, "sources");
    let mut holes = Reader::new(bytes.bytes(holes)?, "holes");
    bytes.end()?;
    let collected = flags & COLLECTED != 0;
    let mut header = Header {
        epoch,
        attach,
        seq,
        previous,
        durable,
        journal,
        collected,
        frames: Vec::with_capacity(counts[0] as usize),
        holes: Vec::with_capacity(counts[2] as usize),
    };
    let mut offset = at as u32;
    for _ in 0..counts[0] {
        let (start, blocks, stored) = (frames.u64()?, u64::from(frames.u8()?), frames.u24()?);
        let from = if collected {
            take_sources(&mut sources, blocks)?
        } else {
            Vec::new()
        };
        header.frames.push(FrameInfo {
            start,
            blocks,
            offset,
            stored,
            sources: from,
        });
        // What adds up to more than an object cannot be is refused later.
        offset = offset.saturating_add(stored);
    }
    sources.end()?;
    for _ in 0..counts[2] {
        header.holes.push(Hole {
            start: holes.u64()?,
            blocks: holes.u64()?,
        });
    }
    Ok(header)
}

/// The sources of a frame of so many blocks.
fn take_sources(bytes: &mut Reader<'_>, blocks: u64) -> Result<Vec<Source>, Damage> {
    let mut sources = Vec::new();
    let mut sum = 0;
    while sum < blocks {
        let (blocks, skip) = (bytes.u8()?, bytes.u8()?);
        let (offset, seq) = (bytes.u32()?, bytes.u48()?);
        sources.push(Source {
            blocks,
            skip,
            offset,
            seq,
        });
        ensure(blocks > 0, "an empty source")?;
        sum += u64::from(blocks);
    }
    Ok(sources)
}
