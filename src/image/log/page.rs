//! One page of the map in memory: which blocks lie where.
//!
//! Knows: entries and how they replace each other. Does not know: where the page
//! itself is kept, what a segment holds.

use super::format::entry::{Entry, LOST};

/// Entries by their start, not overlapping. Blocks in no entry are holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    entries: Vec<Entry>,
}

/// What moves: these blocks of the page, if they still lie there.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// Where the blocks lie when it has happened.
    pub to: Entry,
    /// Where they were copied from: the segment, its frame, the block within it.
    pub from: (u64, u32, u64),
}

impl Page {
    /// A page of these entries, which ascend and do not overlap.
    pub fn from_entries(entries: Vec<Entry>) -> Page {
        debug_assert!(entries.windows(2).all(|two| two[0].end() <= two[1].start()));
        Page { entries }
    }

    /// Its entries, ascending.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether all of it is holes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Memory that it takes, in bytes.
    pub fn cost(&self) -> usize {
        size_of::<Page>() + 64 + self.entries.capacity() * size_of::<Entry>()
    }

    /// The parts of entries within `from..to`, ascending.
    pub fn within(&self, from: u64, to: u64) -> impl Iterator<Item = Entry> + '_ {
        let first = self.entries.partition_point(|entry| entry.end() <= from);
        let overlapping = self.entries[first..]
            .iter()
            .take_while(move |entry| entry.start() < to);
        overlapping.map(move |entry| entry.part(entry.start().max(from), entry.end().min(to)))
    }

    /// Points the entry's blocks at its place; `gone` hears what lay there before.
    pub fn set(&mut self, entry: Entry, gone: impl FnMut(Entry)) {
        self.splice(entry.start(), entry.end(), Some(entry), gone);
    }

    /// Makes holes of the blocks; `gone` hears what lay there before.
    pub fn clear(&mut self, from: u64, to: u64, gone: impl FnMut(Entry)) {
        self.splice(from, to, None, gone);
    }

    /// Moves what still lies at its source; `moved` hears of each old and new entry.
    pub fn shift(&mut self, step: Move, mut moved: impl FnMut(Entry, Entry)) {
        let (seq, offset, skip) = step.from;
        let still: Vec<Entry> = self
            .within(step.to.start(), step.to.end())
            .filter(|entry| {
                let there = skip + entry.start() - step.to.start();
                entry.seq() == seq && entry.offset() == offset && entry.skip() == there
            })
            .collect();
        for old in still {
            let new = step.to.part(old.start(), old.end());
            self.splice(old.start(), old.end(), Some(new), |_| {});
            moved(old, new);
        }
    }

    /// Marks the blocks as lost.
    pub fn lose(&mut self, from: u64, to: u64, mut gone: impl FnMut(Entry)) {
        let mut at = from;
        while at < to {
            let blocks = (to - at).min(super::format::FRAME_BLOCKS);
            let lost = Entry::new(at, blocks, LOST, 0, 0, 0);
            self.splice(at, at + blocks, lost, &mut gone);
            at += blocks;
        }
    }

    fn splice(&mut self, from: u64, to: u64, new: Option<Entry>, mut gone: impl FnMut(Entry)) {
        let first = self.entries.partition_point(|entry| entry.end() <= from);
        let count = self.entries[first..].partition_point(|entry| entry.start() < to);
        let last = first + count;
        let (mut left, mut right) = (None, None);
        for entry in &self.entries[first..last] {
            if entry.start() < from {
                left = Some(entry.part(entry.start(), from));
            }
            if entry.end() > to {
                right = Some(entry.part(to, entry.end()));
            }
            gone(entry.part(entry.start().max(from), entry.end().min(to)));
        }
        // Neighbours that lie side by side in one frame become one entry.
        let (mut begin, mut end) = (first, last);
        let mut neighbours = [None; 2];
        if new.is_some() && left.is_none() && begin > 0 {
            begin -= 1;
            neighbours[0] = Some(self.entries[begin]);
        }
        if new.is_some() && right.is_none() && end < self.entries.len() {
            neighbours[1] = Some(self.entries[end]);
            end += 1;
        }
        let mut list = [None; 5];
        let mut length: usize = 0;
        let all = [neighbours[0], left, new, right, neighbours[1]];
        for entry in all.into_iter().flatten() {
            let last = length.checked_sub(1).and_then(|at| list[at]);
            match last.and_then(|last| joined(last, entry)) {
                Some(both) => list[length - 1] = Some(both),
                None => {
                    list[length] = Some(entry);
                    length += 1;
                }
            }
        }
        self.entries.splice(begin..end, list.into_iter().flatten());
    }
}

/// The two as one entry, if they follow each other on the device and in one frame.
fn joined(left: Entry, right: Entry) -> Option<Entry> {
    let follows = left.end() == right.start()
        && left.seq() == right.seq()
        && left.seq() != LOST
        && left.offset() == right.offset()
        && left.skip() + left.blocks() == right.skip();
    follows.then(|| {
        let blocks = left.blocks() + right.blocks();
        let (seq, offset, stored) = (left.seq(), left.offset(), left.stored());
        Entry::new(left.start(), blocks, seq, offset, stored, left.skip())
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as one place a block.
    fn flat(page: &Page, blocks: u64) -> Vec<Option<(u64, u32, u64)>> {
        let mut list = vec![None; blocks as usize];
        for entry in page.entries() {
            for at in entry.start()..entry.end() {
                let skip = entry.skip() + at - entry.start();
                assert!(list[at as usize].is_none(), "entries overlap");
                list[at as usize] = Some((entry.seq(), entry.offset(), skip));
            }
        }
        list
    }

    #[test]
    fn every_edit_does_to_a_page_what_it_does_to_a_list_of_blocks() {
        const BLOCKS: u64 = 64;
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut page = Page::default();
            let mut list = vec![None; BLOCKS as usize];
            for seq in 1..100u64 {
                let blocks = rng.u64(1..=16);
                let start = rng.u64(0..=BLOCKS - blocks);
                let range = start as usize..(start + blocks) as usize;
                let before = flat(&page, BLOCKS);
                let mut gone = 0;
                match rng.u8(0..4) {
                    0 => {
                        page.clear(start, start + blocks, |old| gone += old.blocks());
                        list[range.clone()].fill(None);
                    }
                    1 if list[start as usize].is_some() => {
                        let from = list[start as usize].unwrap();
                        let Some(to) = Entry::new(start, blocks, seq, 7, 9, 0) else {
                            continue;
                        };
                        page.shift(Move { to, from }, |old, new| {
                            assert_eq!(old.blocks(), new.blocks());
                            gone += old.blocks();
                        });
                        let mut expected = 0;
                        for (i, at) in range.clone().enumerate() {
                            if list[at] == Some((from.0, from.1, from.2 + i as u64)) {
                                list[at] = Some((seq, 7, i as u64));
                                expected += 1;
                            }
                        }
                        assert_eq!(gone, expected);
                        assert_eq!(flat(&page, BLOCKS), list);
                        continue;
                    }
                    _ => {
                        let skip = rng.u64(0..=16 - blocks);
                        let entry = Entry::new(start, blocks, seq, 5, 100, skip).unwrap();
                        page.set(entry, |old| gone += old.blocks());
                        for (i, at) in range.clone().enumerate() {
                            list[at] = Some((seq, 5, skip + i as u64));
                        }
                    }
                }
                assert_eq!(flat(&page, BLOCKS), list, "seed {seed}");
                let there = before[range].iter().flatten().count() as u64;
                assert_eq!(gone, there, "seed {seed}: what was replaced is told");
            }
        }
    }

    #[test]
    fn parts_of_one_frame_that_meet_again_are_one_entry() {
        let mut page = Page::default();
        for at in [3, 1, 0, 2] {
            page.set(Entry::new(at, 1, 9, 36, 5000, at).unwrap(), |_| {});
        }
        assert_eq!(page.entries(), [Entry::new(0, 4, 9, 36, 5000, 0).unwrap()]);
    }
}
