//! The parts of one object that were written and not yet uploaded.
//!
//! Ranges do not overlap; the newest write wins. Data is copied in, so that a
//! small write never keeps a large request's buffer alive, and what is written
//! twice is overwritten in place.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// What one extent costs beside its data, in bytes of memory: the map's node
/// and the allocation's own overhead, rounded up.
pub const OVERHEAD: usize = 128;

/// Written ranges of one object.
#[derive(Debug, Default)]
pub struct Extents {
    /// First byte → content; never empty, never overlapping.
    map: BTreeMap<u32, Content>,
    /// Memory that the content takes, [`OVERHEAD`] included.
    cost: usize,
    /// Bytes that were written.
    written: u32,
}

#[derive(Debug)]
enum Content {
    Data(Vec<u8>),
    Zeros(u32),
}

/// A stretch of a range as the extents see it.
#[derive(Debug, PartialEq, Eq)]
pub enum Stretch<'a> {
    /// Written with this data.
    Data(&'a [u8]),
    /// So many bytes written with zeros.
    Zeros(u32),
    /// Not written; the object's stored content shows through.
    Hole(Range<u32>),
}

impl Content {
    fn len(&self) -> u32 {
        match self {
            Content::Data(data) => data.len() as u32,
            Content::Zeros(length) => *length,
        }
    }

    fn cost(&self) -> usize {
        match self {
            Content::Data(data) => data.capacity() + OVERHEAD,
            Content::Zeros(_) => OVERHEAD,
        }
    }

    /// The part of it from `from` (counted from its own start) to its end.
    fn tail(&self, from: u32) -> Content {
        match self {
            Content::Data(data) => Content::Data(data[from as usize..].to_vec()),
            Content::Zeros(length) => Content::Zeros(length - from),
        }
    }

    fn truncate(&mut self, length: u32) {
        match self {
            Content::Data(data) => {
                data.truncate(length as usize);
                data.shrink_to_fit();
            }
            Content::Zeros(old) => *old = length,
        }
    }
}

impl Extents {
    /// One extent that covers a whole object; an empty `body` stands for an
    /// object of `size` zeros.
    pub fn whole(body: &Bytes, size: u32) -> Extents {
        let mut extents = Extents::default();
        if body.is_empty() {
            extents.write_zeros(0..size);
        } else {
            extents.write(0, body);
        }
        extents
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Memory that it takes, in bytes.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// Writes `data` at `start`. `data` is not empty.
    pub fn write(&mut self, start: u32, data: &[u8]) {
        if let Some((at, Content::Data(old))) = self.map.range_mut(..=start).next_back() {
            let from = (start - at) as usize;
            if let Some(target) = old.get_mut(from..from + data.len()) {
                target.copy_from_slice(data);
                return;
            }
        }
        self.clear(start..start + data.len() as u32);
        self.insert(start, Content::Data(data.to_vec()));
    }

    /// Writes zeros over the range, which is not empty.
    pub fn write_zeros(&mut self, range: Range<u32>) {
        self.clear(range.clone());
        self.insert(range.start, Content::Zeros(range.end - range.start));
    }

    /// Writes everything in `newer` over this.
    pub fn overlay(&mut self, newer: &Extents) {
        for (start, content) in &newer.map {
            match content {
                Content::Data(data) => self.write(*start, data),
                Content::Zeros(length) => self.write_zeros(*start..start + length),
            }
        }
    }

    /// Whether all `size` bytes of the object were written.
    pub fn is_whole(&self, size: u32) -> bool {
        self.written == size
    }

    /// Whether every byte of the range was written.
    pub fn covers(&self, range: Range<u32>) -> bool {
        self.stretches(range)
            .all(|stretch| !matches!(stretch, Stretch::Hole(_)))
    }

    /// Whether all `size` bytes of the object were written with zeros.
    pub fn is_zeros(&self, size: u32) -> bool {
        matches!(self.map.get(&0), Some(Content::Zeros(length)) if *length == size)
    }

    /// The range, cut into what was written and what was not, in order.
    pub fn stretches(&self, range: Range<u32>) -> impl Iterator<Item = Stretch<'_>> {
        let before = self
            .map
            .range(..=range.start)
            .next_back()
            .map(|(at, _)| *at);
        let mut entries = self
            .map
            .range(before.unwrap_or(range.start)..range.end)
            .peekable();
        let mut at = range.start;
        std::iter::from_fn(move || {
            while entries
                .peek()
                .is_some_and(|(start, content)| **start + content.len() <= at)
            {
                entries.next();
            }
            if at >= range.end {
                return None;
            }
            let Some((start, content)) = entries.peek() else {
                return Some(Stretch::Hole(
                    std::mem::replace(&mut at, range.end)..range.end,
                ));
            };
            if **start > at {
                return Some(Stretch::Hole(std::mem::replace(&mut at, **start)..**start));
            }
            let (from, to) = (at - **start, content.len().min(range.end - **start));
            at = **start + to;
            Some(match content {
                Content::Data(data) => Stretch::Data(&data[from as usize..to as usize]),
                Content::Zeros(_) => Stretch::Zeros(to - from),
            })
        })
    }

    /// The object's whole content: this over `base`, the stored content, where
    /// empty stands for zeros. Returns empty for an object of nothing but zeros.
    pub fn merge(&self, base: &Bytes, size: u32) -> Bytes {
        if self.is_zeros(size) {
            return Bytes::new();
        }
        let mut body = Vec::with_capacity(size as usize);
        for stretch in self.stretches(0..size) {
            match stretch {
                Stretch::Data(data) => body.extend_from_slice(data),
                Stretch::Zeros(length) => body.resize(body.len() + length as usize, 0),
                Stretch::Hole(range) if base.is_empty() => body.resize(range.end as usize, 0),
                Stretch::Hole(range) => {
                    body.extend_from_slice(&base[range.start as usize..range.end as usize]);
                }
            }
        }
        if is_zero(&body) {
            Bytes::new()
        } else {
            body.into()
        }
    }

    fn insert(&mut self, start: u32, content: Content) {
        self.cost += content.cost();
        self.written += content.len();
        let replaced = self.map.insert(start, content);
        debug_assert!(replaced.is_none(), "extents overlap");
    }

    fn remove(&mut self, start: u32) -> Option<Content> {
        let content = self.map.remove(&start)?;
        self.cost -= content.cost();
        self.written -= content.len();
        Some(content)
    }

    /// Forgets what was written in the range.
    fn clear(&mut self, range: Range<u32>) {
        let first = match self.map.range(..range.start).next_back() {
            Some((start, content)) if start + content.len() > range.start => *start,
            _ => range.start,
        };
        let touched: Vec<u32> = self
            .map
            .range(first..range.end)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            let Some(mut content) = self.remove(start) else {
                continue;
            };
            let end = start + content.len();
            if end > range.end {
                self.insert(range.end, content.tail(range.end - start));
            }
            if start < range.start {
                content.truncate(range.start - start);
                self.insert(start, content);
            }
        }
    }
}

/// Whether every byte is zero.
pub fn is_zero(data: &[u8]) -> bool {
    // Blocks of a fixed size let the compiler use wide registers.
    let (blocks, rest) = data.as_chunks::<64>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |or, byte| or | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u32 = 96;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u32, Vec<u8>),
        Zeros(Range<u32>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = (0..SIZE, 1..=SIZE).prop_map(|(start, len)| start..(start + len).min(SIZE));
        (range, any::<Option<u8>>()).prop_map(|(range, byte)| match byte {
            Some(byte) => Op::Write(range.start, vec![byte; range.len()]),
            None => Op::Zeros(range),
        })
    }

    fn apply(extents: &mut Extents, model: &mut [Option<u8>], op: &Op) {
        match op {
            Op::Write(start, data) => {
                extents.write(*start, data);
                for (at, byte) in data.iter().enumerate() {
                    model[*start as usize + at] = Some(*byte);
                }
            }
            Op::Zeros(range) => {
                extents.write_zeros(range.clone());
                model[range.start as usize..range.end as usize].fill(Some(0));
            }
        }
    }

    fn check(extents: &Extents, model: &[Option<u8>]) -> Result<(), TestCaseError> {
        let mut seen = Vec::new();
        for stretch in extents.stretches(0..SIZE) {
            match stretch {
                Stretch::Data(data) => seen.extend(data.iter().map(|byte| Some(*byte))),
                Stretch::Zeros(length) => seen.extend((0..length).map(|_| Some(0))),
                Stretch::Hole(range) => seen.extend(range.map(|_| None)),
            }
        }
        prop_assert_eq!(&seen, model);
        let cost: usize = extents.map.values().map(Content::cost).sum();
        prop_assert_eq!(extents.cost(), cost);
        let written: u32 = extents.map.values().map(Content::len).sum();
        prop_assert_eq!(written as usize, model.iter().flatten().count());
        prop_assert_eq!(written, extents.written);
        Ok(())
    }

    proptest! {
        #[test]
        fn newest_write_wins(ops in prop::collection::vec(op(), 0..40), base: [u8; SIZE as usize]) {
            let (mut extents, mut model) = (Extents::default(), vec![None; SIZE as usize]);
            for op in &ops {
                apply(&mut extents, &mut model, op);
                check(&extents, &model)?;
            }
            for start in [0, 5, 50] {
                let range = start..start + 40;
                let written = model[start as usize..start as usize + 40].iter().all(Option::is_some);
                prop_assert_eq!(extents.covers(range), written);
            }
            let merged = extents.merge(&Bytes::copy_from_slice(&base), SIZE);
            let wanted: Vec<u8> = model.iter().zip(base).map(|(new, old)| new.unwrap_or(old)).collect();
            let merged = if merged.is_empty() { vec![0; SIZE as usize] } else { merged.to_vec() };
            prop_assert_eq!(merged, wanted);
        }

        #[test]
        fn overlay_is_writing_again(
            old in prop::collection::vec(op(), 0..12), new in prop::collection::vec(op(), 0..12),
        ) {
            let (mut older, mut model) = (Extents::default(), vec![None; SIZE as usize]);
            old.iter().for_each(|op| apply(&mut older, &mut model, op));
            let mut newer = Extents::default();
            let mut only_new = vec![None; SIZE as usize];
            new.iter().for_each(|op| apply(&mut newer, &mut only_new, op));
            older.overlay(&newer);
            for (all, new) in model.iter_mut().zip(only_new) {
                *all = new.or(*all);
            }
            check(&older, &model)?;
        }
    }

    #[test]
    fn zeros_are_found_whatever_the_length() {
        for length in [0, 1, 63, 64, 65, 4096] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for at in [0, length / 2, length.saturating_sub(1)] {
                if let Some(byte) = data.get_mut(at) {
                    *byte = 1;
                    assert!(!is_zero(&data));
                    data[at] = 0;
                }
            }
        }
    }
}
