//! Which segments there are, and how much of each is still needed.
//!
//! Knows: segment numbers, bytes stored, blocks live. Does not know: where a block
//! lies (the [map](super::map) tells), the store.

use std::collections::{BTreeMap, BTreeSet};

use super::format::BLOCK;
use super::format::tables::SegmentRow;

/// The segments that the map's present state needs, or that wait to be deleted.
#[derive(Debug, Default)]
pub struct Space {
    rows: BTreeMap<u64, Row>,
    live: u64,
    stored: u64,
    dead: u64,
    needed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    stored: u64,
    blocks: u32,
    live: u32,
}

impl Space {
    /// From a root's table.
    pub fn from_rows(rows: &[SegmentRow]) -> Space {
        let mut space = Space::default();
        for row in rows {
            space.add(row.seq, row.stored, row.blocks);
            space.enliven(row.seq, u64::from(row.live));
        }
        space
    }

    /// For a root's table: what is live.
    pub fn rows(&self) -> Vec<SegmentRow> {
        let live = self.rows.iter().filter(|(_, row)| row.live > 0);
        let rows = live.map(|(&seq, row)| SegmentRow {
            seq,
            stored: row.stored,
            blocks: row.blocks,
            live: row.live,
        });
        rows.collect()
    }

    /// A segment is there; none of it is live yet.
    pub fn add(&mut self, seq: u64, stored: u64, blocks: u32) {
        self.rows.insert(
            seq,
            Row {
                stored,
                blocks,
                live: 0,
            },
        );
        self.stored += stored;
        self.dead += stored;
    }

    /// So many blocks more of it are needed.
    pub fn enliven(&mut self, seq: u64, blocks: u64) {
        if let Some(row) = self.rows.get_mut(&seq) {
            if row.live == 0 && blocks > 0 {
                self.dead -= row.stored;
            }
            self.needed -= row.needed();
            row.live += blocks as u32;
            self.live += blocks;
            self.needed += row.needed();
        }
    }

    /// So many blocks of it are no longer needed.
    pub fn release(&mut self, seq: u64, blocks: u64) {
        if let Some(row) = self.rows.get_mut(&seq) {
            // What a damaged table says of it may be less than the map has.
            let blocks = blocks.min(row.live.into());
            if blocks == 0 {
                return;
            }
            self.needed -= row.needed();
            row.live -= blocks as u32;
            self.needed += row.needed();
            self.live -= blocks;
            if row.live == 0 {
                self.dead += row.stored;
            }
        }
    }

    /// Takes these counts of live blocks for the true ones; none are live of what is
    /// not in them.
    pub fn recount(&mut self, live: &BTreeMap<u64, u64>) {
        let rows: Vec<(u64, u64)> = self
            .rows
            .iter()
            .map(|(&seq, row)| (seq, u64::from(row.live)))
            .collect();
        for (seq, before) in rows {
            self.release(seq, before);
            self.enliven(seq, live.get(&seq).copied().unwrap_or(0));
        }
    }

    /// Forgets the segments that nothing needs, and tells them. A root that does not
    /// name them must be durable before they are deleted.
    pub fn take_dead(&mut self) -> Vec<u64> {
        if self.dead == 0 && self.rows.values().all(|row| row.live > 0) {
            return Vec::new();
        }
        let dead: Vec<u64> = self
            .rows
            .iter()
            .filter(|(_, row)| row.live == 0)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in &dead {
            if let Some(row) = self.rows.remove(seq) {
                self.stored -= row.stored;
                self.dead -= row.stored;
            }
        }
        dead
    }

    /// Whether this segment is among them.
    pub fn knows(&self, seq: u64) -> bool {
        self.rows.contains_key(&seq)
    }

    /// Whether any of these numbers is among them.
    pub fn any_in(&self, numbers: std::ops::Range<u64>) -> bool {
        numbers.start < numbers.end && self.rows.range(numbers).next().is_some()
    }

    /// Bytes that the live blocks have on the device.
    pub fn live_bytes(&self) -> u64 {
        self.live * BLOCK
    }

    /// Bytes of the segments' objects.
    pub fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// Bytes of those that nothing needs.
    pub fn dead_bytes(&self) -> u64 {
        self.dead
    }

    /// An estimate of the stored bytes that live blocks take.
    pub fn needed_bytes(&self) -> u64 {
        self.needed
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.rows.len()
    }

    /// The segments with the least share of live blocks, none above three quarters,
    /// within `most` bytes of live data, but one at least. Not beyond `last`, the
    /// newest applied; none of `not`.
    pub fn sparse(&self, most: u64, last: u64, not: &BTreeSet<u64>) -> Vec<u64> {
        let rows = self.rows.range(..=last).filter(|(seq, row)| {
            row.live > 0
                && u64::from(row.live) * 4 < u64::from(row.blocks) * 3
                && !not.contains(seq)
        });
        let share = |row: &Row| u64::from(row.live) * 1000 / u64::from(row.blocks.max(1));
        let mut rows: Vec<(u64, u64, u64)> = rows
            .map(|(&seq, row)| (share(row), seq, row.live_bytes()))
            .collect();
        rows.sort_unstable();
        let first = rows.first().map(|(_, seq, _)| *seq);
        let chosen = within(most, rows.into_iter().map(|(_, seq, bytes)| (seq, bytes)));
        match chosen.is_empty() {
            true => first.into_iter().collect(),
            false => chosen,
        }
    }

    /// Segments of fewer than `small` bytes that are not full of live data either,
    /// oldest first, within `most` bytes of it; none if there are fewer than `enough`.
    /// Not beyond `last`, the newest applied; none of `not`.
    pub fn small(
        &self,
        (small, enough): (u64, usize),
        most: u64,
        last: u64,
        not: &BTreeSet<u64>,
    ) -> Vec<u64> {
        let rows = || {
            self.rows.range(..=last).filter(|(seq, row)| {
                row.live > 0
                    && row.stored < small
                    && row.live_bytes() <= most / 2
                    && !not.contains(seq)
            })
        };
        if rows().count() < enough.max(2) {
            return Vec::new();
        }
        within(most, rows().map(|(&seq, row)| (seq, row.live_bytes())))
    }
}

/// Of these in their order, whatever still fits into `most` bytes.
fn within(most: u64, rows: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
    let mut sum = 0;
    let fitting = rows.filter(|(_, bytes)| {
        let fits = sum + bytes <= most;
        sum += if fits { *bytes } else { 0 };
        fits
    });
    fitting.map(|(seq, _)| seq).collect()
}

impl Row {
    /// Bytes that its live blocks have on the device.
    fn live_bytes(&self) -> u64 {
        u64::from(self.live) * BLOCK
    }

    fn needed(&self) -> u64 {
        self.stored * u64::from(self.live) / u64::from(self.blocks.max(1))
    }
}
