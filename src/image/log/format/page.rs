//! Pages of the map: where the blocks of 32 MiB of the device lie.
//!
//! A page is one box of a map object. Its payload is the number of entries (a varint),
//! then each [entry](super::entry), ascending by its first block:
//!
//! | field | bytes | what |
//! |---|---|---|
//! | head | 1 | bits 0 to 3: blocks - 1; 4: a difference of `seq` follows; 5: an offset follows; 6: a length follows; 7: 0 |
//! | gap | varint | twice the blocks between the entry before (or the page's start) and this one; 1 more if a skip follows |
//! | skip | 0 or 1 | which block of the frame is the entry's first; else 0 |
//! | `seq` | varint | the difference to the entry before (to 0 in the first), zigzag: twice it if it is not negative, else twice its amount less 1; else the same |
//! | offset | varint | where the frame's box begins in the segment; else where that of the entry before ends (first entry: 0) |
//! | length | varint | bytes of the frame's box; else as in the entry before (first entry: 0) |
//!
//! So the pages of what was written in a row take 2 bytes an entry. Blocks that no
//! entry covers read as zeros. `seq` 0 ([`LOST`]): the blocks are lost, reading
//! them fails.

use bytes::{BufMut, Bytes};

use super::entry::{Entry, LOST};
use super::seal::{Cipher, Kind, Place, Prelude, Role};
use super::wire::{Put, Reader, ensure, unzigzag, zigzag};
use super::{Damage, FRAME_BLOCKS, PAGE_BLOCKS, VolumeId};

const SEQ: u8 = 1 << 4;
const OFFSET: u8 = 1 << 5;
const LENGTH: u8 = 1 << 6;
const BLOCKS: u8 = 0x0f;

/// What the fields of an entry are told against.
#[derive(Debug, Default)]
struct Before {
    end: u64,
    seq: u64,
    /// Where the next box begins.
    offset: u32,
    stored: u32,
}

impl Before {
    fn after(entry: Entry) -> Before {
        let offset = entry.offset().wrapping_add(entry.stored());
        Before {
            end: entry.end(),
            seq: entry.seq(),
            offset,
            stored: entry.stored(),
        }
    }
}

/// Appends the payload of a page with these entries, which ascend.
pub(super) fn encode(entries: &[Entry], out: &mut Vec<u8>) {
    out.put_varint(entries.len() as u64);
    let mut before = Before::default();
    for &entry in entries {
        assert!(entry.start() >= before.end, "a page's entries ascend");
        let flag = |differs: bool, bit: u8| if differs { bit } else { 0 };
        let head = (entry.blocks() - 1) as u8
            | flag(entry.seq() != before.seq, SEQ)
            | flag(entry.offset() != before.offset, OFFSET)
            | flag(entry.stored() != before.stored, LENGTH);
        out.put_u8(head);
        let gap = entry.start() - before.end;
        out.put_varint(gap << 1 | u64::from(entry.skip() > 0));
        if entry.skip() > 0 {
            out.put_u8(entry.skip() as u8);
        }
        if head & SEQ != 0 {
            out.put_varint(zigzag(before.seq, entry.seq()));
        }
        if head & OFFSET != 0 {
            out.put_varint(entry.offset().into());
        }
        if head & LENGTH != 0 {
            out.put_varint(entry.stored().into());
        }
        before = Before::after(entry);
    }
}

/// The entries of page `page`: a box that begins at `offset` of the map object `name`.
pub fn decode(
    boxed: &Bytes,
    cipher: &Cipher,
    volume: VolumeId,
    name: &str,
    offset: u32,
    page: u64,
) -> Result<Vec<Entry>, Damage> {
    let prelude = Prelude {
        kind: Kind::Map,
        sealed: cipher.is_sealed(),
        key: 0,
        volume,
    };
    let offset = offset.into();
    let place = Place {
        prelude: &prelude,
        name,
        role: Role::Page,
        offset,
        address: page,
    };
    let payload = cipher.open(&place, boxed)?;
    let mut bytes = Reader::new(&payload, "page");
    let count = bytes.varint()?;
    ensure(count <= PAGE_BLOCKS, "more entries than blocks")?;
    let count = bytes.count(count, 2)?;
    let mut entries = Vec::with_capacity(count);
    let mut before = Before::default();
    for _ in 0..count {
        let entry = entry(&mut bytes, &before)?;
        entries.push(entry);
        before = Before::after(entry);
    }
    bytes.end()?;
    Ok(entries)
}

fn entry(bytes: &mut Reader<'_>, before: &Before) -> Result<Entry, Damage> {
    let head = bytes.u8()?;
    ensure(
        head & !(BLOCKS | SEQ | OFFSET | LENGTH) == 0,
        "an entry's head",
    )?;
    let gap = bytes.varint()?;
    let start = (gap >> 1).saturating_add(before.end);
    let skip = if gap & 1 != 0 { bytes.u8()?.into() } else { 0 };
    ensure(
        start < PAGE_BLOCKS && skip < FRAME_BLOCKS,
        "an entry's place",
    )?;
    let mut field = |flag: u8, otherwise: u64| match head & flag {
        0 => Ok(otherwise),
        _ => bytes.varint(),
    };
    let seq = match head & SEQ {
        0 => before.seq,
        _ => unzigzag(before.seq, field(SEQ, 0)?),
    };
    let offset = field(OFFSET, before.offset.into())?;
    let stored = field(LENGTH, before.stored.into())?;
    let number =
        |value: u64| u32::try_from(value).map_err(|_| Damage::Malformed("an entry's frame"));
    let (offset, stored) = (number(offset)?, number(stored)?);
    ensure(seq == LOST || stored > 0, "an entry's frame")?;
    let blocks = u64::from(head & BLOCKS) + 1;
    Entry::new(start, blocks, seq, offset, stored, skip)
        .ok_or(Damage::Malformed("an entry's limits"))
}
