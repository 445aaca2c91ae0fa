//! What a segment does to the map, page by page.
//!
//! Knows: a segment's header, and what each part of it changes. Does not know: where
//! pages are kept.

use std::collections::BTreeMap;

use super::format::PAGE_BLOCKS;
use super::format::entry::Entry;
use super::format::segment::Header;
use super::page::{Move, Page};
use super::space::Space;

/// What a segment does to one page.
#[derive(Debug)]
pub(super) enum Edit {
    /// Blocks lie there from now on.
    Set(Entry),
    /// Blocks from, to: nothing is there.
    Clear(u64, u64),
    /// What lay in one place lies in another.
    Shift(Move),
}

impl Edit {
    /// Does it to the page of segment `seq`, and keeps account of the space.
    pub(super) fn apply(&self, page: &mut Page, space: &mut Space, seq: u64) {
        match *self {
            Edit::Set(entry) => {
                page.set(entry, |old| space.release(old.seq(), old.blocks()));
                space.enliven(seq, entry.blocks());
            }
            Edit::Clear(from, to) => {
                page.clear(from, to, |old| space.release(old.seq(), old.blocks()))
            }
            Edit::Shift(step) => page.shift(step, |old, new| {
                space.release(old.seq(), old.blocks());
                space.enliven(new.seq(), new.blocks());
            }),
        }
    }
}

/// A segment's edits by page. Frames never cross a page: they do not cross a
/// multiple of their greatest length.
/// Holes touch only pages that are there: a discard of the whole device stays small.
pub(super) fn edits(header: &Header, is_there: impl Fn(u64) -> bool) -> BTreeMap<u64, Vec<Edit>> {
    let mut all: BTreeMap<u64, Vec<Edit>> = BTreeMap::new();
    for hole in &header.holes {
        let (mut at, end) = (hole.start, hole.start + hole.blocks);
        while at < end {
            let (number, base) = (at / PAGE_BLOCKS, at - at % PAGE_BLOCKS);
            let until = (base + PAGE_BLOCKS).min(end);
            if is_there(number) {
                let clear = Edit::Clear(at - base, until - base);
                all.entry(number).or_default().push(clear);
            }
            at = until;
        }
    }
    for frame in &header.frames {
        let (number, start) = (frame.start / PAGE_BLOCKS, frame.start % PAGE_BLOCKS);
        let edits = all.entry(number).or_default();
        let place = |from: u64, blocks: u64| {
            Entry::new(
                start + from,
                blocks,
                header.seq,
                frame.offset,
                frame.stored,
                from,
            )
        };
        if frame.sources.is_empty() {
            edits.extend(place(0, frame.blocks).map(Edit::Set));
        }
        let mut at = 0;
        for source in &frame.sources {
            let blocks = u64::from(source.blocks);
            let from = (source.seq, source.offset, u64::from(source.skip));
            edits.extend(place(at, blocks).map(|to| Edit::Shift(Move { to, from })));
            at += blocks;
        }
    }
    all
}
