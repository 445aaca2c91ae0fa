//! What was written and the map does not show yet.
//!
//! Knows: the open segment, and those that are sealed and on their way, oldest
//! first. Does not know: how they get to the store, the map.
//!
//! A read looks here first, newest to oldest, then at the map. A segment leaves only
//! after the map shows it, so nothing that was answered is ever between the two.
//! What the collector copies is never here: it must not hide what was written.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::format::segment::Header;
use super::runs::{Found, Runs};

/// See the module's documentation.
#[derive(Debug)]
pub struct Pending {
    /// Not sealed yet.
    pub open: Runs,
    /// When the first write into it came.
    pub opened: Option<Instant>,
    /// It and what was sealed before have every write of the journal up to there.
    pub journal: u64,
    /// The number of the next segment.
    pub next_seq: u64,
    /// The last segment of what was written; the collector's may have higher numbers.
    last_written: u64,
    layers: VecDeque<Layer>,
}

/// A sealed segment on its way.
#[derive(Debug)]
struct Layer {
    seq: u64,
    cost: u64,
    since: Instant,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// Not encoded yet.
    Raw(Arc<Runs>),
    Encoded(Arc<Encoded>),
}

/// A segment's object before the store has it.
#[derive(Debug)]
pub struct Encoded {
    /// Its name.
    pub name: String,
    /// All of its bytes.
    pub body: Bytes,
    /// What its header says.
    pub header: Header,
}

/// Where some blocks are.
#[derive(Debug, Clone)]
pub enum Above {
    /// Here.
    Data(Bytes),
    /// They read as zeros.
    Zeros,
    /// In a frame of a segment that is on its way.
    Frame {
        /// The segment.
        encoded: Arc<Encoded>,
        /// Which of its frames.
        index: usize,
        /// Which block of the frame is the first.
        skip: u64,
    },
    /// Nothing was written: what the map says.
    Nothing,
}

/// Some blocks, and where they are.
#[derive(Debug, Clone)]
pub struct Part {
    /// The first block.
    pub start: u64,
    /// How many.
    pub blocks: u64,
    /// Where.
    pub above: Above,
}

impl Pending {
    /// Nothing is pending; the next segment has this number, and there is this position
    /// in the journal.
    pub fn new(next_seq: u64, journal: u64) -> Pending {
        Pending {
            open: Runs::default(),
            opened: None,
            journal,
            next_seq,
            last_written: next_seq - 1,
            layers: VecDeque::new(),
        }
    }

    /// Nothing at all is pending.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.layers.is_empty()
    }

    /// Closes the open segment, if anything is in it: its number and content.
    pub fn seal(&mut self, now: Instant) -> Option<(u64, Arc<Runs>)> {
        if self.open.is_empty() {
            return None;
        }
        let runs = Arc::new(std::mem::take(&mut self.open));
        let seq = self.take_seq();
        self.last_written = seq;
        let since = self.opened.take().unwrap_or(now);
        let content = Content::Raw(Arc::clone(&runs));
        self.layers.push_back(Layer {
            seq,
            cost: runs.cost(),
            since,
            content,
        });
        Some((seq, runs))
    }

    /// A number for a segment that the collector makes.
    pub fn take_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// The last segment of what was written.
    pub fn last_written(&self) -> u64 {
        self.last_written
    }

    /// A sealed segment was encoded: its object holds what the runs did.
    pub fn encoded(&mut self, seq: u64, encoded: Arc<Encoded>) {
        if let Some(layer) = self.layers.iter_mut().find(|layer| layer.seq == seq) {
            layer.content = Content::Encoded(encoded);
        }
    }

    /// The map shows everything up to this number. Returns the memory that is free
    /// again, in bytes.
    pub fn applied(&mut self, seq: u64) -> u64 {
        let mut cost = 0;
        while self.layers.front().is_some_and(|layer| layer.seq <= seq) {
            cost += self.layers.pop_front().map_or(0, |layer| layer.cost);
        }
        cost
    }

    /// Bytes that are held here and lie in no segment up to `durable`, and since when.
    pub fn held(&self, durable: u64) -> (u64, Option<Instant>) {
        let dirty = || self.layers.iter().filter(|layer| layer.seq > durable);
        let sealed: u64 = dirty().map(|layer| layer.cost).sum();
        let oldest = dirty().next().map(|layer| layer.since);
        (sealed + self.open.cost(), oldest.or(self.opened))
    }

    /// Where the blocks are, in order and without gaps.
    pub fn find(&self, range: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        self.open.each(range, |start, blocks, found| {
            parts.push(Part {
                start,
                blocks,
                above: found.into(),
            });
        });
        for layer in self.layers.iter().rev() {
            if parts
                .iter()
                .all(|part| !matches!(part.above, Above::Nothing))
            {
                break;
            }
            let mut finer = Vec::with_capacity(parts.len());
            for part in parts {
                match part.above {
                    Above::Nothing => layer.find(part.start..part.start + part.blocks, &mut finer),
                    _ => finer.push(part),
                }
            }
            parts = finer;
        }
        parts
    }
}

impl From<Found> for Above {
    fn from(found: Found) -> Above {
        match found {
            Found::Nothing => Above::Nothing,
            Found::Zeros => Above::Zeros,
            Found::Data(data) => Above::Data(data),
        }
    }
}

impl Layer {
    fn find(&self, range: Range<u64>, parts: &mut Vec<Part>) {
        match &self.content {
            Content::Raw(runs) => runs.each(range, |start, blocks, found| {
                parts.push(Part {
                    start,
                    blocks,
                    above: found.into(),
                });
            }),
            Content::Encoded(encoded) => encoded.find(range, parts),
        }
    }
}

impl Encoded {
    /// Frames and holes ascend, each for itself, and do not overlap each other.
    fn find(self: &Arc<Encoded>, range: Range<u64>, parts: &mut Vec<Part>) {
        let Header { frames, holes, .. } = &self.header;
        let mut frame = frames.partition_point(|frame| frame.start + frame.blocks <= range.start);
        let mut hole = holes.partition_point(|hole| hole.start + hole.blocks <= range.start);
        let mut at = range.start;
        while at < range.end {
            let next_frame = frames.get(frame).map_or(u64::MAX, |frame| frame.start);
            let next_hole = holes.get(hole).map_or(u64::MAX, |hole| hole.start);
            let next = next_frame.min(next_hole);
            if next > at {
                let end = next.min(range.end);
                parts.push(Part {
                    start: at,
                    blocks: end - at,
                    above: Above::Nothing,
                });
                at = end;
                continue;
            }
            let (end, above) = if next_frame <= next_hole {
                let found = &frames[frame];
                let above = Above::Frame {
                    encoded: Arc::clone(self),
                    index: frame,
                    skip: at - found.start,
                };
                frame += 1;
                (found.start + found.blocks, above)
            } else {
                let found = &holes[hole];
                hole += 1;
                (found.start + found.blocks, Above::Zeros)
            };
            let end = end.min(range.end);
            parts.push(Part {
                start: at,
                blocks: end - at,
                above,
            });
            at = end;
        }
    }
}
