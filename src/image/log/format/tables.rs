//! The tables of the map, and the objects that pages and tables lie in.
//!
//! A map object is a prelude and boxes, one after the other, to its end: pages
//! ([`page`](super::page)) and tables. A root tells where its tables are, and they
//! tell everything else. Their payload is four lists, each a count and as many rows, all
//! varints but the attach ids. A *step* is the difference to the row before, to 0 in the
//! first row.
//!
//! | list | a row |
//! |---|---|
//! | eras | step of epoch; attach id (16 bytes); step of its first `seq`; step of its first `k` |
//! | segments | step of `seq`; bytes of the object; blocks in its frames; blocks of them that are live |
//! | map objects | step of `k`; bytes of the object |
//! | pages | step of the page's number; step of `k`, zigzag; offset of the box; its length |
//!
//! Every step of an epoch, a `seq` of a segment, a `k` of a map object, a page is 1 at
//! least, but a first page may be 0; only those of an era's first `seq` and `k` may be 0
//! elsewhere. Segments, map objects and pages are those that the map needs; each lies in
//! an era.

use bytes::{BufMut, Bytes};

use super::entry::Entry;
use super::names;
use super::page;
use super::root::Location;
use super::seal::{Cipher, Kind, Maker, Place, Prelude, Role};
use super::wire::{Put, Reader, ensure, unzigzag, zigzag};
use super::{AttachId, BLOCK, Damage, MAX_OBJECT, MAX_SIZE, PAGE_BLOCKS, VolumeId};

/// Whose names the segments and map objects have from some number on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era {
    /// The epoch.
    pub epoch: u32,
    /// Its attachment.
    pub attach: AttachId,
    /// Its first segment. The next era's first ends it.
    pub first_seq: u64,
    /// Its first map object. The next era's first ends it.
    pub first_k: u64,
}

/// A segment that something of is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRow {
    /// Its number.
    pub seq: u64,
    /// Bytes of its object.
    pub stored: u64,
    /// Blocks in its frames.
    pub blocks: u32,
    /// Blocks of them that the map points at.
    pub live: u32,
}

/// A map object that a page lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRow {
    /// Its number.
    pub k: u64,
    /// Bytes of the object.
    pub stored: u64,
}

/// A page that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRow {
    /// Its number.
    pub page: u64,
    /// Where it lies.
    pub location: Location,
}

/// All that finds the rest. Each list ascends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// Ascending by epoch; the first numbers never decrease.
    pub eras: Vec<Era>,
    /// By number.
    pub segments: Vec<SegmentRow>,
    /// By number.
    pub maps: Vec<MapRow>,
    /// By number.
    pub pages: Vec<PageRow>,
}

/// The era that a segment is of.
pub fn era_of_segment(eras: &[Era], seq: u64) -> Option<&Era> {
    let after = eras.partition_point(|era| era.first_seq <= seq);
    eras[..after].last()
}

/// The era that a map object is of.
pub fn era_of_map(eras: &[Era], k: u64) -> Option<&Era> {
    let after = eras.partition_point(|era| era.first_k <= k);
    eras[..after].last()
}

impl Tables {
    fn encode(&self, out: &mut Vec<u8>) {
        let step = |out: &mut Vec<u8>, before: &mut u64, value: u64| {
            assert!(value >= *before, "tables ascend");
            out.put_varint(value - *before);
            *before = value;
        };
        out.put_varint(self.eras.len() as u64);
        let (mut epoch, mut seq, mut k) = (0, 0, 0);
        for era in &self.eras {
            step(out, &mut epoch, era.epoch.into());
            out.put_slice(&era.attach.0);
            step(out, &mut seq, era.first_seq);
            step(out, &mut k, era.first_k);
        }
        out.put_varint(self.segments.len() as u64);
        let mut seq = 0;
        for row in &self.segments {
            step(out, &mut seq, row.seq);
            out.put_varint(row.stored);
            out.put_varint(row.blocks.into());
            out.put_varint(row.live.into());
        }
        out.put_varint(self.maps.len() as u64);
        let mut k = 0;
        for row in &self.maps {
            step(out, &mut k, row.k);
            out.put_varint(row.stored);
        }
        out.put_varint(self.pages.len() as u64);
        let (mut page, mut k) = (0, 0);
        for row in &self.pages {
            step(out, &mut page, row.page);
            out.put_varint(zigzag(k, row.location.k));
            out.put_varint(row.location.offset.into());
            out.put_varint(row.location.length.into());
            k = row.location.k;
        }
    }

    /// The tables: a box that begins at `offset` of the map object `name`.
    pub fn decode(
        boxed: &Bytes,
        cipher: &Cipher,
        volume: VolumeId,
        name: &str,
        offset: u32,
    ) -> Result<Tables, Damage> {
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
            role: Role::Tables,
            offset,
            address: 0,
        };
        let payload = cipher.open(&place, boxed)?;
        let mut bytes = Reader::new(&payload, "tables");
        let eras = eras(&mut bytes)?;
        let segments = segments(&mut bytes, &eras)?;
        let maps = maps(&mut bytes, &eras)?;
        let pages = pages(&mut bytes, &eras)?;
        bytes.end()?;
        Ok(Tables {
            eras,
            segments,
            maps,
            pages,
        })
    }
}

/// The next value of a column: `least` more than the one before, or more.
fn step(bytes: &mut Reader<'_>, before: &mut u64, least: u64) -> Result<u64, Damage> {
    let step = bytes.varint()?;
    ensure(step >= least, "tables that do not ascend")?;
    *before = before.saturating_add(step);
    ensure(*before < 1 << 48, "a number in the tables")?;
    Ok(*before)
}

/// A list of rows that take `least` bytes or more each.
fn list<'a, T>(
    bytes: &mut Reader<'a>,
    least: usize,
    mut row: impl FnMut(&mut Reader<'a>) -> Result<T, Damage>,
) -> Result<Vec<T>, Damage> {
    let count = bytes.varint()?;
    let count = bytes.count(count, least)?;
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        rows.push(row(bytes)?);
    }
    Ok(rows)
}

fn eras(bytes: &mut Reader<'_>) -> Result<Vec<Era>, Damage> {
    let (mut before, mut seq, mut k) = (0, 0, 0);
    list(bytes, 19, |bytes| {
        let epoch = step(bytes, &mut before, 1)?;
        let epoch = u32::try_from(epoch).map_err(|_| Damage::Malformed("an era's epoch"))?;
        let attach = AttachId(bytes.array()?);
        let first_seq = step(bytes, &mut seq, 0)?;
        let first_k = step(bytes, &mut k, 0)?;
        Ok(Era {
            epoch,
            attach,
            first_seq,
            first_k,
        })
    })
}

fn segments(bytes: &mut Reader<'_>, eras: &[Era]) -> Result<Vec<SegmentRow>, Damage> {
    let mut before = 0;
    list(bytes, 4, |bytes| {
        let seq = step(bytes, &mut before, 1)?;
        let (stored, blocks, live) = (bytes.varint()?, bytes.varint32()?, bytes.varint32()?);
        ensure(
            stored <= MAX_OBJECT && live <= blocks,
            "a segment in the tables",
        )?;
        ensure(era_of_segment(eras, seq).is_some(), "a segment of no era")?;
        Ok(SegmentRow {
            seq,
            stored,
            blocks,
            live,
        })
    })
}

fn maps(bytes: &mut Reader<'_>, eras: &[Era]) -> Result<Vec<MapRow>, Damage> {
    let mut before = 0;
    list(bytes, 2, |bytes| {
        let (k, stored) = (step(bytes, &mut before, 1)?, bytes.varint()?);
        ensure(stored <= MAX_OBJECT, "a map object in the tables")?;
        ensure(era_of_map(eras, k).is_some(), "a map object of no era")?;
        Ok(MapRow { k, stored })
    })
}

fn pages(bytes: &mut Reader<'_>, eras: &[Era]) -> Result<Vec<PageRow>, Damage> {
    let (mut before, mut k, mut least) = (0, 0, 0);
    list(bytes, 4, |bytes| {
        let page = step(bytes, &mut before, least)?;
        least = 1;
        k = unzigzag(k, bytes.varint()?);
        let (offset, length) = (bytes.varint32()?, bytes.varint32()?);
        let location = Location { k, offset, length };
        let possible = location.is_possible() && page < MAX_SIZE.div_ceil(PAGE_BLOCKS * BLOCK);
        ensure(possible, "a page in the tables")?;
        ensure(era_of_map(eras, k).is_some(), "a page of no era")?;
        Ok(PageRow { page, location })
    })
}

/// Makes a map object.
pub struct MapBuilder {
    name: String,
    k: u64,
    maker: Maker,
}

impl MapBuilder {
    /// Map object `k` of this epoch and attachment.
    pub fn new(
        volume: VolumeId,
        cipher: &Cipher,
        epoch: u32,
        attach: AttachId,
        k: u64,
    ) -> MapBuilder {
        let name = names::map(epoch, attach, k);
        let prelude = Prelude {
            kind: Kind::Map,
            sealed: cipher.is_sealed(),
            key: 0,
            volume,
        };
        let maker = Maker::new(&prelude, &name, cipher, 0);
        MapBuilder { name, k, maker }
    }

    /// Appends a page; its entries ascend.
    pub fn page(&mut self, page: u64, entries: &[Entry]) -> Location {
        let boxed = self
            .maker
            .add(Role::Page, page, |out| page::encode(entries, out));
        self.location(boxed)
    }

    /// Appends tables; all of their lists ascend.
    pub fn tables(&mut self, tables: &Tables) -> Location {
        let boxed = self.maker.add(Role::Tables, 0, |out| tables.encode(out));
        self.location(boxed)
    }

    fn location(&self, boxed: std::ops::Range<usize>) -> Location {
        let (offset, length) = (boxed.start as u32, boxed.len() as u32);
        Location {
            k: self.k,
            offset,
            length,
        }
    }

    /// Bytes so far.
    #[expect(
        clippy::len_without_is_empty,
        reason = "it is never empty: it has its prelude"
    )]
    pub fn len(&self) -> usize {
        self.maker.len()
    }

    /// Its name and bytes.
    pub fn finish(self) -> (String, Bytes) {
        (self.name, self.maker.finish())
    }
}
