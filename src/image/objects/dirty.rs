//! What was answered and is not yet durable: a table of objects, the order in
//! which they became dirty, and what that costs in memory. No I/O, no waiting.
//!
//! | an object's slot      | waiting? | flight | pending | it is               |
//! |-----------------------|----------|--------|---------|---------------------|
//! | absent                | no       | –      | –       | clean               |
//! | pending               | yes      | none   | data    | dirty               |
//! | claimed               | no       | none   | data    | its base is fetched |
//! | in flight             | no       | body   | none    | being uploaded      |
//! | in flight and pending | no       | body   | data    | dirty again         |
//! | failed                | no       | none   | data    | resting, claimed    |
//!
//! Every write gets a number. A slot's pending data and its flight each carry
//! the number of the oldest write in them; `outstanding` holds both. A FLUSH is
//! done when nothing older than itself is outstanding. A claim or a flight that
//! fails goes back to pending under its old number, so no FLUSH can forget it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ops::Range;

use bytes::Bytes;
use tokio::time::Instant;

use super::extents::{Extents, OVERHEAD};
use super::layout::{Layout, Piece};

/// A map by object number. Its hash has no random seed, so a simulation's order
/// of events depends on its own seed alone.
pub type ByIndex<T> = HashMap<u64, T, BuildHasherDefault<DefaultHasher>>;

/// The number of a write, in the order in which they were answered.
pub type Sequence = u64;

/// Memory that a dirty object takes beside its extents, in bytes, rounded up.
const SLOT_COST: usize = 2 * OVERHEAD;

/// Something to write into one object.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// This data.
    Data(&'a [u8]),
    /// Zeros.
    Zeros,
}

/// One dirty object.
#[derive(Debug)]
pub struct Slot {
    /// Written and not in the flight.
    pub pending: Extents,
    /// Number of the oldest write in `pending`.
    pending_since: Sequence,
    /// When `pending` became dirty.
    dirty_since: Instant,
    /// An upload has been started for it: one request a name at a time.
    claimed: bool,
    /// What is being uploaded: the object's whole content, empty for zeros.
    flight: Option<Flight>,
}

#[derive(Debug)]
struct Flight {
    body: Bytes,
    since: Sequence,
    cost: usize,
}

/// All dirty objects of a volume.
#[derive(Debug)]
pub struct Dirty {
    layout: Layout,
    slots: ByIndex<Slot>,
    /// Pending and unclaimed, oldest first.
    waiting: BTreeSet<(Sequence, u64)>,
    /// Of those, the objects that were written whole.
    whole: BTreeSet<u64>,
    /// Every pending and every flight, oldest first.
    outstanding: BTreeSet<(Sequence, u64)>,
    next: Sequence,
    /// Memory taken, in bytes.
    bytes: usize,
}

impl Slot {
    fn cost(&self) -> usize {
        let pending = if self.pending.is_empty() {
            0
        } else {
            self.pending.cost() + SLOT_COST
        };
        pending + self.flight.as_ref().map_or(0, |flight| flight.cost)
    }

    /// The body that is being uploaded; empty for zeros.
    pub fn flight(&self) -> Option<&Bytes> {
        self.flight.as_ref().map(|flight| &flight.body)
    }
}

impl Dirty {
    /// Nothing is dirty.
    pub fn new(layout: Layout) -> Dirty {
        Dirty {
            layout,
            slots: ByIndex::default(),
            waiting: BTreeSet::new(),
            whole: BTreeSet::new(),
            outstanding: BTreeSet::new(),
            next: 1,
            bytes: 0,
        }
    }

    /// Memory taken by what is not durable, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most that writing these bytes can add to [`Dirty::bytes`].
    pub fn growth(length: usize) -> usize {
        // A write into the middle of an extent splits it in two.
        length + 2 * OVERHEAD + SLOT_COST
    }

    /// The number that the next write will get: what a FLUSH has to wait for is
    /// everything below it.
    pub fn barrier(&self) -> Sequence {
        self.next
    }

    /// Whether everything below `barrier` is durable.
    pub fn is_durable(&self, barrier: Sequence) -> bool {
        self.outstanding
            .first()
            .is_none_or(|(oldest, _)| *oldest >= barrier)
    }

    /// The dirty state of an object, if it is dirty.
    pub fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(&index)
    }

    /// Writes into one object.
    pub fn write(&mut self, piece: &Piece, content: Content<'_>, now: Instant) {
        let (index, size) = (piece.index, self.layout.object_size);
        let sequence = self.next;
        self.next += 1;
        let slot = self.slots.entry(index).or_insert_with(|| Slot::clean(now));
        let before = slot.cost();
        if slot.pending.is_empty() {
            (slot.pending_since, slot.dirty_since) = (sequence, now);
            self.outstanding.insert((sequence, index));
            if !slot.claimed {
                self.waiting.insert((sequence, index));
            }
        }
        match content {
            Content::Data(data) => slot.pending.write(piece.within.start, data),
            Content::Zeros => slot.pending.write_zeros(piece.within.clone()),
        }
        if !slot.claimed && slot.pending.is_whole(size) {
            self.whole.insert(index);
        }
        self.bytes = self.bytes + slot.cost() - before;
    }

    /// The oldest object that could be uploaded, with the number of its oldest
    /// write and the time since when it is dirty.
    pub fn oldest(&self) -> Option<(u64, Sequence, Instant)> {
        let (sequence, index) = *self.waiting.first()?;
        let slot = self.slots.get(&index)?;
        Some((index, sequence, slot.dirty_since))
    }

    /// An object that was written whole and could be uploaded.
    pub fn any_whole(&self) -> Option<u64> {
        self.whole.first().copied()
    }

    /// Claims an object for one upload. Returns whether its stored content is
    /// needed, because not all of it was written.
    pub fn claim(&mut self, index: u64) -> bool {
        let size = self.layout.object_size;
        let Some(slot) = self.slots.get_mut(&index) else {
            return false;
        };
        debug_assert!(!slot.claimed && !slot.pending.is_empty(), "claimed twice");
        slot.claimed = true;
        self.waiting.remove(&(slot.pending_since, index));
        self.whole.remove(&index);
        !slot.pending.is_whole(size)
    }

    /// Turns a claimed object's pending data into the body to upload: what was
    /// written over `base`. Empty stands for zeros, in both.
    pub fn launch(&mut self, index: u64, base: &Bytes) -> Bytes {
        let size = self.layout.object_size;
        let Some(slot) = self.slots.get_mut(&index) else {
            return Bytes::new();
        };
        debug_assert!(
            slot.claimed && slot.flight.is_none(),
            "launched without a claim"
        );
        let pending = std::mem::take(&mut slot.pending);
        let body = pending.merge(base, size);
        let cost = pending.cost() + SLOT_COST;
        slot.flight = Some(Flight {
            body: body.clone(),
            since: slot.pending_since,
            cost,
        });
        body
    }

    /// A flight landed: its content is durable.
    pub fn landed(&mut self, index: u64) {
        let Some(slot) = self.slots.get_mut(&index) else {
            return;
        };
        if let Some(flight) = slot.flight.take() {
            self.bytes -= flight.cost;
            self.outstanding.remove(&(flight.since, index));
        }
        self.unclaim(index);
    }

    /// A claim or a flight failed: all of it is pending again, under its old
    /// number. It stays claimed until [`Dirty::rested`].
    pub fn failed(&mut self, index: u64) {
        let size = self.layout.object_size;
        let Some(slot) = self.slots.get_mut(&index) else {
            return;
        };
        let before = slot.cost();
        if let Some(flight) = slot.flight.take() {
            let mut all = Extents::whole(&flight.body, size);
            all.overlay(&slot.pending);
            if !slot.pending.is_empty() {
                self.outstanding.remove(&(slot.pending_since, index));
            }
            (slot.pending, slot.pending_since) = (all, flight.since);
        }
        self.bytes = self.bytes + slot.cost() - before;
    }

    /// What failed may be claimed again.
    pub fn rested(&mut self, index: u64) {
        self.unclaim(index);
    }

    fn unclaim(&mut self, index: u64) {
        let size = self.layout.object_size;
        let Some(slot) = self.slots.get_mut(&index) else {
            return;
        };
        slot.claimed = false;
        if slot.pending.is_empty() {
            self.slots.remove(&index);
            return;
        }
        self.waiting.insert((slot.pending_since, index));
        if slot.pending.is_whole(size) {
            self.whole.insert(index);
        }
    }

    /// Checks what must hold between any two calls.
    #[cfg(test)]
    pub fn check(&self) {
        let mut outstanding = BTreeSet::new();
        let mut waiting = BTreeSet::new();
        for (index, slot) in &self.slots {
            assert!(
                !slot.pending.is_empty() || slot.claimed,
                "an idle clean slot"
            );
            assert!(
                slot.flight.is_none() || slot.claimed,
                "a flight nobody claimed"
            );
            if let Some(flight) = &slot.flight {
                assert!(flight.since < slot.pending_since || slot.pending.is_empty());
                outstanding.insert((flight.since, *index));
            }
            if !slot.pending.is_empty() {
                outstanding.insert((slot.pending_since, *index));
                if !slot.claimed {
                    waiting.insert((slot.pending_since, *index));
                }
            }
        }
        assert_eq!(outstanding, self.outstanding);
        assert_eq!(waiting, self.waiting);
        assert_eq!(
            self.bytes,
            self.slots.values().map(Slot::cost).sum::<usize>()
        );
        for index in &self.whole {
            assert!(!self.slots[index].claimed);
        }
    }
}

impl Slot {
    fn clean(now: Instant) -> Slot {
        Slot {
            pending: Extents::default(),
            pending_since: 0,
            dirty_since: now,
            claimed: false,
            flight: None,
        }
    }

    /// Whether the range can be read from here alone.
    pub fn covers(&self, range: Range<u32>) -> bool {
        self.flight.is_some() || self.pending.covers(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u32 = 16;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Range<u32>, Option<u8>),
        Claim,
        Launch(usize),
        Land(usize),
        Fail(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..SIZE, 1..=SIZE).prop_map(|(at, len)| at..(at + len).min(SIZE));
        prop_oneof![
            4 => (0..4u64, range, any::<Option<u8>>()).prop_map(|(i, r, b)| Step::Write(i, r, b)),
            2 => Just(Step::Claim),
            2 => (0..8usize).prop_map(Step::Launch),
            1 => (0..8usize).prop_map(Step::Land),
            1 => (0..8usize).prop_map(Step::Fail),
        ]
    }

    /// The store as it would be, and the content that reads must see.
    struct World {
        dirty: Dirty,
        stored: Vec<[u8; SIZE as usize]>,
        seen: Vec<[u8; SIZE as usize]>,
        /// For each object, every content it had, with the number of the write
        /// that made it.
        history: Vec<Vec<(Sequence, [u8; SIZE as usize])>>,
        claimed: Vec<u64>,
        flying: Vec<(u64, Bytes)>,
    }

    impl World {
        fn take(&mut self, step: &Step, now: Instant) {
            match step {
                Step::Write(index, range, byte) => {
                    let sequence = self.dirty.barrier();
                    let piece = Piece {
                        index: *index,
                        within: range.clone(),
                    };
                    let data = vec![byte.unwrap_or(0); range.len()];
                    let content = byte.map_or(Content::Zeros, |_| Content::Data(&data));
                    let before = self.dirty.bytes();
                    self.dirty.write(&piece, content, now);
                    assert!(self.dirty.bytes() <= before + Dirty::growth(range.len()));
                    let seen = &mut self.seen[*index as usize];
                    seen[range.start as usize..range.end as usize].fill(byte.unwrap_or(0));
                    self.history[*index as usize].push((sequence, *seen));
                }
                Step::Claim => {
                    if let Some((index, ..)) = self.dirty.oldest() {
                        self.dirty.claim(index);
                        self.claimed.push(index);
                    }
                }
                Step::Launch(nth) if !self.claimed.is_empty() => {
                    let index = self.claimed.remove(nth % self.claimed.len());
                    let base = Bytes::copy_from_slice(&self.stored[index as usize]);
                    let body = self.dirty.launch(index, &base);
                    self.flying.push((index, body));
                }
                Step::Land(nth) if !self.flying.is_empty() => {
                    let (index, body) = self.flying.remove(nth % self.flying.len());
                    let stored = &mut self.stored[index as usize];
                    stored.fill(0);
                    stored[..body.len()].copy_from_slice(&body);
                    self.dirty.landed(index);
                }
                Step::Fail(nth) if !self.flying.is_empty() => {
                    let (index, _) = self.flying.remove(nth % self.flying.len());
                    self.dirty.failed(index);
                    self.dirty.check();
                    self.dirty.rested(index);
                }
                _ => {}
            }
        }

        fn check(&self) {
            self.dirty.check();
            for (index, wanted) in self.seen.iter().enumerate() {
                let stored = Bytes::copy_from_slice(&self.stored[index]);
                let base = match self.dirty.slot(index as u64).and_then(Slot::flight) {
                    Some(body) if body.is_empty() => Bytes::from_static(&[0; SIZE as usize]),
                    Some(body) => body.clone(),
                    None => stored,
                };
                let empty = Extents::default();
                let pending = self
                    .dirty
                    .slot(index as u64)
                    .map_or(&empty, |slot| &slot.pending);
                let merged = pending.merge(&base, SIZE);
                let merged = if merged.is_empty() {
                    vec![0; SIZE as usize]
                } else {
                    merged.to_vec()
                };
                assert_eq!(merged, wanted, "object {index}");
            }
        }

        /// Whatever the table calls durable is in the store.
        fn check_durable(&self) {
            for (index, history) in self.history.iter().enumerate() {
                for (sequence, _) in history {
                    if self.dirty.is_durable(sequence + 1) {
                        let newer = history.iter().filter(|(number, _)| number >= sequence);
                        assert!(
                            newer
                                .clone()
                                .any(|(_, content)| *content == self.stored[index]),
                            "object {index}: write {sequence} is called durable and is not"
                        );
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_durable_early(
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time().start_paused(true).build().unwrap();
            let now = runtime.block_on(async { Instant::now() });
            let zeros = [0; SIZE as usize];
            let mut world = World {
                dirty: Dirty::new(Layout { objects: 4, object_size: SIZE }),
                stored: vec![zeros; 4],
                seen: vec![zeros; 4],
                history: vec![vec![]; 4],
                claimed: vec![],
                flying: vec![],
            };
            for step in &steps {
                world.take(step, now);
                world.check();
                world.check_durable();
            }
            for _ in 0..200 {
                for step in [Step::Claim, Step::Launch(0), Step::Land(0)] {
                    world.take(&step, now);
                }
            }
            world.check();
            prop_assert_eq!(world.dirty.bytes(), 0);
            prop_assert!(world.dirty.is_durable(Sequence::MAX));
            prop_assert_eq!(&world.stored, &world.seen);
        }
    }
}
