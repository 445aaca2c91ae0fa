//! Blocks that were written and are not in a segment's object yet.
//!
//! Knows: block ranges, which write is the newest. Does not know: segments.
//!
//! Data is copied in, in pieces of one frame at most, so that a small remainder
//! never keeps a large request's buffer alive.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::format::{BLOCK, FRAME_BLOCKS};

/// What one run costs beside its data, in bytes: its node, its allocation, its
/// frame's record and box.
pub const OVERHEAD: u64 = 192;

/// Runs of blocks that do not overlap.
#[derive(Debug, Default)]
pub struct Runs {
    map: BTreeMap<u64, Run>,
    /// Blocks that have data.
    blocks: u64,
}

#[derive(Debug, Clone)]
struct Run {
    blocks: u64,
    /// `None`: zeros. Data never crosses a multiple of [`FRAME_BLOCKS`].
    data: Option<Bytes>,
}

impl Run {
    fn part(&self, from: u64, to: u64) -> Run {
        let data = self.data.as_ref().map(|data| {
            Bytes::copy_from_slice(&data[(from * BLOCK) as usize..(to * BLOCK) as usize])
        });
        Run {
            blocks: to - from,
            data,
        }
    }
}

/// The next frame of a segment: contiguous blocks with data.
#[derive(Debug)]
pub struct Piece {
    /// Its first block.
    pub start: u64,
    /// Its data, in order; together 1 to [`FRAME_BLOCKS`] blocks.
    pub data: Vec<Bytes>,
}

impl Runs {
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Memory that they take, in bytes.
    pub fn cost(&self) -> u64 {
        self.blocks * BLOCK + self.map.len() as u64 * OVERHEAD
    }

    /// Bytes of data.
    pub fn data_bytes(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// Writes whole blocks from `start` on.
    pub fn write(&mut self, mut start: u64, mut data: &[u8]) {
        debug_assert!((data.len() as u64).is_multiple_of(BLOCK));
        self.clear(start..start + data.len() as u64 / BLOCK);
        while !data.is_empty() {
            let room = FRAME_BLOCKS - start % FRAME_BLOCKS;
            let blocks = room.min(data.len() as u64 / BLOCK);
            let (piece, rest) = data.split_at((blocks * BLOCK) as usize);
            let content = match is_zero(piece) {
                true => None,
                false => Some(Bytes::copy_from_slice(piece)),
            };
            self.insert(
                start,
                Run {
                    blocks,
                    data: content,
                },
            );
            start += blocks;
            data = rest;
        }
    }

    /// Writes zeros over the blocks.
    pub fn write_zeroes(&mut self, range: Range<u64>) {
        self.clear(range.clone());
        self.insert(
            range.start,
            Run {
                blocks: range.end - range.start,
                data: None,
            },
        );
    }

    fn insert(&mut self, start: u64, run: Run) {
        if run.data.is_some() {
            self.blocks += run.blocks;
        }
        self.map.insert(start, run);
    }

    fn clear(&mut self, range: Range<u64>) {
        let first = match self.map.range(..range.start).next_back() {
            Some((at, run)) if at + run.blocks > range.start => *at,
            _ => range.start,
        };
        let overlapping: Vec<u64> = self
            .map
            .range(first..range.end)
            .map(|(at, _)| *at)
            .collect();
        for at in overlapping {
            let Some(run) = self.map.remove(&at) else {
                continue;
            };
            if run.data.is_some() {
                self.blocks -= run.blocks;
            }
            let end = at + run.blocks;
            if at < range.start {
                self.insert(at, run.part(0, range.start - at));
            }
            if end > range.end {
                self.insert(range.end, run.part(range.end - at, run.blocks));
            }
        }
    }

    /// Calls `with` for every stretch of the range, in order: where it begins, how
    /// many blocks, and what was written: nothing, zeros, or data.
    pub fn each(&self, range: Range<u64>, mut with: impl FnMut(u64, u64, Found)) {
        let mut at = range.start;
        let first = match self.map.range(..=range.start).next_back() {
            Some((start, _)) => *start,
            None => range.start,
        };
        for (&start, run) in self.map.range(first..range.end) {
            let end = (start + run.blocks).min(range.end);
            if end <= at {
                continue;
            }
            if start > at {
                with(at, start - at, Found::Nothing);
                at = start;
            }
            let found = match &run.data {
                None => Found::Zeros,
                Some(data) => {
                    let bytes = ((at - start) * BLOCK) as usize..((end - start) * BLOCK) as usize;
                    Found::Data(data.slice(bytes))
                }
            };
            with(at, end - at, found);
            at = end;
        }
        if at < range.end {
            with(at, range.end - at, Found::Nothing);
        }
    }

    /// The data as the frames of a segment, and the zeros as its holes.
    pub fn split(&self) -> (Vec<Piece>, Vec<Range<u64>>) {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut holes: Vec<Range<u64>> = Vec::new();
        let mut end = u64::MAX;
        for (&start, run) in &self.map {
            match (&run.data, pieces.last_mut(), holes.last_mut()) {
                (Some(data), Some(piece), _)
                    if end == start && !start.is_multiple_of(FRAME_BLOCKS) =>
                {
                    piece.data.push(data.clone());
                }
                (Some(data), ..) => pieces.push(Piece {
                    start,
                    data: vec![data.clone()],
                }),
                (None, _, Some(hole)) if hole.end == start => hole.end += run.blocks,
                (None, ..) => holes.push(start..start + run.blocks),
            }
            end = match run.data {
                Some(_) => start + run.blocks,
                None => u64::MAX,
            };
        }
        (pieces, holes)
    }
}

/// What was written to some blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: what lies below shows through.
    Nothing,
    /// Zeros.
    Zeros,
    /// This.
    Data(Bytes),
}

/// Whether all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    // Most data that is not zero shows it at once.
    data.first() == Some(&0) && data.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_write_of_each_block_is_found() {
        const BLOCKS: u64 = 80;
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut runs = Runs::default();
            let mut list: Vec<Option<u8>> = vec![None; BLOCKS as usize];
            for tag in 1..60u8 {
                let start = rng.u64(0..BLOCKS);
                let blocks = rng.u64(1..=(BLOCKS - start).min(40));
                let range = start as usize..(start + blocks) as usize;
                if rng.u8(0..4) == 0 {
                    runs.write_zeroes(start..start + blocks);
                    list[range].fill(Some(0));
                } else {
                    runs.write(start, &vec![tag; (blocks * BLOCK) as usize]);
                    list[range].fill(Some(tag));
                }
                let mut seen = Vec::new();
                let from = rng.u64(0..BLOCKS);
                runs.each(from..BLOCKS, |at, count, found| {
                    assert_eq!(at, from + seen.len() as u64);
                    let value = match found {
                        Found::Nothing => None,
                        Found::Zeros => Some(0),
                        Found::Data(data) => {
                            assert_eq!(data.len() as u64, count * BLOCK);
                            Some(data[0])
                        }
                    };
                    seen.extend(vec![value; count as usize]);
                });
                assert_eq!(seen, list[from as usize..], "seed {seed}");
            }
            let data = list
                .iter()
                .filter(|tag| tag.is_some_and(|tag| tag > 0))
                .count();
            assert_eq!(runs.data_bytes(), data as u64 * BLOCK);
            let (pieces, holes) = runs.split();
            let mut again = vec![None; BLOCKS as usize];
            for piece in pieces {
                let bytes: Vec<u8> = piece.data.concat();
                let blocks = bytes.len() as u64 / BLOCK;
                assert!(piece.start % FRAME_BLOCKS + blocks <= FRAME_BLOCKS);
                for i in 0..blocks {
                    again[(piece.start + i) as usize] = Some(bytes[(i * BLOCK) as usize]);
                }
            }
            for hole in holes {
                again[hole.start as usize..hole.end as usize].fill(Some(0));
            }
            assert_eq!(again, list, "seed {seed}");
        }
    }
}
