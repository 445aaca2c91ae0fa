//! What a volume may read as: for each sector, the values that it had, from the
//! last one known durable to the newest.

use std::collections::BTreeSet;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// What a sector holds: 0 for zeros, else a number that no other write used.
pub type Tag = u64;

/// One value of a sector, in the order of the operations.
#[derive(Debug, Clone)]
struct Entry {
    /// The operation that made it.
    operation: u64,
    /// What the sector may hold: more than one after an operation that failed, or
    /// after a discard.
    tags: BTreeSet<Tag>,
}

/// A volume's possible contents.
#[derive(Debug)]
pub struct Model {
    /// For each sector: values since the last one known durable.
    history: Vec<Vec<Entry>>,
    /// For each sector: how many of `history` are answered (the rest, one at most,
    /// is under way).
    answered: Vec<usize>,
    next: u64,
}

/// What a FLUSH covers: for each sector, its newest answered operation.
#[derive(Debug)]
pub struct Covered(Vec<u64>);

/// The bytes of a sector with this tag.
pub fn sector(tag: Tag) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&tag.to_le_bytes());
    }
    bytes
}

/// The tags of whole sectors; panics at one that is torn.
pub fn tags(data: &[u8]) -> Vec<Tag> {
    assert!(
        (data.len() as u64).is_multiple_of(SECTOR),
        "{} bytes were read",
        data.len()
    );
    let read = data.chunks(SECTOR as usize).map(|bytes| {
        let tag = Tag::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(
            bytes == sector(tag),
            "a torn sector, it begins with {:x?}",
            &bytes[..16]
        );
        tag
    });
    read.collect()
}

impl Model {
    /// A volume of zeros.
    pub fn new(sectors: usize) -> Model {
        let zero = Entry {
            operation: 0,
            tags: BTreeSet::from([0]),
        };
        Model {
            history: vec![vec![zero]; sectors],
            answered: vec![1; sectors],
            next: 1,
        }
    }

    /// Number of sectors.
    pub fn sectors(&self) -> usize {
        self.history.len()
    }

    /// A write of these tags from `first` begins.
    pub fn begin(&mut self, first: usize, new: &[Tag]) {
        let operation = self.number();
        for (history, tag) in self.history[first..].iter_mut().zip(new) {
            history.push(Entry {
                operation,
                tags: BTreeSet::from([*tag]),
            });
        }
    }

    /// What began there ended; if badly, the old value may have stayed.
    pub fn end(&mut self, first: usize, count: usize, well: bool) {
        for at in first..first + count {
            if !well {
                let old = self.history[at][self.answered[at] - 1].tags.clone();
                self.history[at][self.answered[at]].tags.extend(old);
            }
            self.answered[at] += 1;
        }
    }

    /// A discard begins: each sector keeps its value or becomes zeros.
    pub fn begin_discard(&mut self, first: usize, count: usize) {
        let operation = self.number();
        for history in &mut self.history[first..first + count] {
            let mut tags = history[history.len() - 1].tags.clone();
            tags.insert(0);
            history.push(Entry { operation, tags });
        }
    }

    /// A read returned these tags: they must be what they may be, and are known
    /// from here on.
    pub fn observe(&mut self, first: usize, seen: &[Tag]) {
        for (at, tag) in (first..).zip(seen) {
            let newest = &mut self.history[at][self.answered[at] - 1];
            assert!(
                newest.tags.contains(tag),
                "sector {at} reads {tag}, not one of {:?}",
                newest.tags
            );
            newest.tags = BTreeSet::from([*tag]);
        }
    }

    /// What a FLUSH that is sent now must make durable.
    pub fn cover(&self) -> Covered {
        let newest = self.history.iter().zip(&self.answered);
        Covered(
            newest
                .map(|(history, answered)| history[answered - 1].operation)
                .collect(),
        )
    }

    /// That FLUSH succeeded.
    pub fn durable(&mut self, covered: &Covered) {
        for ((history, answered), operation) in self
            .history
            .iter_mut()
            .zip(&mut self.answered)
            .zip(&covered.0)
        {
            let older = history
                .iter()
                .take_while(|entry| entry.operation < *operation)
                .count();
            history.drain(..older);
            *answered -= older;
        }
    }

    /// After a crash the volume reads as `seen`. Each sector must be no older than
    /// what is durable. With `snapshots`, in which nothing ran at the same time,
    /// each object of `per_object` sectors must be as it was at one moment.
    pub fn crashed(&mut self, seen: &[Tag], snapshots: bool, per_object: usize) {
        for (at, tag) in seen.iter().enumerate() {
            assert!(
                self.history[at]
                    .iter()
                    .any(|entry| entry.tags.contains(tag)),
                "after the crash sector {at} reads {tag}, not one of {:?}",
                self.history[at]
            );
        }
        if snapshots {
            for object in (0..seen.len()).step_by(per_object) {
                let end = (object + per_object).min(seen.len());
                assert!(
                    self.is_snapshot(object, &seen[object..end]),
                    "sectors {object} to {end} are a mixture: {:?} of {:?}",
                    &seen[object..end],
                    &self.history[object..end]
                );
            }
        }
        for (at, tag) in seen.iter().enumerate() {
            self.history[at] = vec![Entry {
                operation: self.next,
                tags: BTreeSet::from([*tag]),
            }];
            self.answered[at] = 1;
        }
        self.next += 1;
    }

    fn is_snapshot(&self, first: usize, seen: &[Tag]) -> bool {
        let histories = &self.history[first..first + seen.len()];
        let moments: BTreeSet<u64> = histories
            .iter()
            .flatten()
            .map(|entry| entry.operation)
            .collect();
        moments.into_iter().any(|moment| {
            histories.iter().zip(seen).all(|(history, tag)| {
                let then = history.iter().rev().find(|entry| entry.operation <= moment);
                then.unwrap_or(&history[0]).tags.contains(tag)
            })
        })
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
