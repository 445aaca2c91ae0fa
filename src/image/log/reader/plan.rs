//! Which GETs bring a set of frames.

use super::FrameRef;

/// The largest GET, in bytes: a segment. Swift is no faster with more.
pub(super) const MAX_GET: u64 = 8 << 20;
/// The most frames in one GET. They may be of one block each, and much smaller than
/// what they are opened.
const MAX_FRAMES: usize = 2048;
/// Bytes between two frames that are fetched along with them, to save a request: at
/// 40 MB/s they take less than a millisecond, and Swift takes more than two for a
/// request.
const MAX_GAP: u64 = 32 << 10;

/// A range of one segment's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Get {
    /// Its frames, in the order in which they lie there.
    pub(super) frames: Vec<FrameRef>,
    /// Where it begins in the object.
    pub(super) from: u64,
    /// Where it ends.
    pub(super) to: u64,
}

impl Get {
    pub(super) fn seq(&self) -> u64 {
        self.frames[0].seq
    }

    pub(super) fn length(&self) -> u64 {
        self.to - self.from
    }

    fn of(frame: FrameRef) -> Get {
        Get {
            frames: vec![frame],
            from: u64::from(frame.offset),
            to: frame.end(),
        }
    }

    /// Whether the frame, which begins at or after all of these, may come along.
    fn takes(&self, frame: &FrameRef, largest: u64) -> bool {
        self.seq() == frame.seq
            && u64::from(frame.offset) <= self.to + MAX_GAP
            && frame.end().max(self.to) - self.from <= largest
            && self.frames.len() < MAX_FRAMES
    }
}

/// The GETs for these frames, none longer than `largest` unless one frame is. They
/// begin in the order in which their first frames were asked for.
pub(super) fn gets(frames: &[FrameRef], largest: u64) -> Vec<Get> {
    let mut order: Vec<(usize, FrameRef)> = frames.iter().copied().enumerate().collect();
    order.sort_unstable_by_key(|(at, frame)| (frame.seq, frame.offset, frame.stored, *at));
    let mut gets: Vec<(usize, Get)> = Vec::new();
    for (at, frame) in order {
        match gets.last_mut() {
            Some((first, get)) if get.takes(&frame, largest) => {
                *first = at.min(*first);
                get.to = get.to.max(frame.end());
                get.frames.push(frame);
            }
            _ => gets.push((at, Get::of(frame))),
        }
    }
    gets.sort_unstable_by_key(|(first, _)| *first);
    gets.into_iter().map(|(_, get)| get).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(seq: u64, offset: u32, stored: u32) -> FrameRef {
        let address = u64::from(offset);
        FrameRef {
            seq,
            offset,
            stored,
            address,
        }
    }

    fn ranges(frames: &[FrameRef], largest: u64) -> Vec<(u64, u64, u64)> {
        let gets = gets(frames, largest);
        gets.iter()
            .map(|get| (get.seq(), get.from, get.to))
            .collect()
    }

    #[test]
    fn neighbours_become_one_get() {
        let row = [frame(1, 200, 100), frame(1, 100, 100), frame(1, 300, 50)];
        assert_eq!(ranges(&row, MAX_GET), [(1, 100, 350)]);
    }

    #[test]
    fn a_gap_is_fetched_along_only_where_it_is_small() {
        let gap = MAX_GAP as u32;
        let near = [frame(1, 0, 10), frame(1, 10 + gap, 10)];
        assert_eq!(ranges(&near, MAX_GET).len(), 1);
        let far = [frame(1, 0, 10), frame(1, 11 + gap, 10)];
        assert_eq!(ranges(&far, MAX_GET).len(), 2);
    }

    #[test]
    fn segments_are_apart_and_what_was_asked_first_comes_first() {
        let row = [
            frame(9, 0, 10),
            frame(1, 0, 10),
            frame(9, 10, 10),
            frame(1, 10, 10),
        ];
        assert_eq!(ranges(&row, MAX_GET), [(9, 0, 20), (1, 0, 20)]);
    }

    #[test]
    fn no_get_is_too_large() {
        let row: Vec<FrameRef> = (0..300).map(|at| frame(1, at * 65_536, 65_536)).collect();
        let lengths: Vec<u64> = gets(&row, MAX_GET).iter().map(Get::length).collect();
        assert_eq!(lengths, [MAX_GET, MAX_GET, 44 * 65_536]);
        let small: Vec<FrameRef> = (0..5000).map(|at| frame(1, at * 16, 16)).collect();
        let counts: Vec<usize> = gets(&small, MAX_GET)
            .iter()
            .map(|get| get.frames.len())
            .collect();
        assert_eq!(counts, [2048, 2048, 904]);
    }

    proptest! {
        #[test]
        fn every_frame_is_in_one_get(
            frames in prop::collection::vec((1u64..4, 0u32..=u32::MAX, 1u32..70_000), 0..200),
            largest in 1u64..MAX_GET,
        ) {
            let frames: Vec<FrameRef> = frames
                .into_iter()
                .map(|(seq, offset, stored)| frame(seq, offset, stored))
                .collect();
            let gets = gets(&frames, largest);
            let mut seen: Vec<FrameRef> = Vec::new();
            for get in &gets {
                prop_assert!(get.length() <= largest || get.frames.len() == 1);
                for frame in &get.frames {
                    prop_assert_eq!(frame.seq, get.seq());
                    prop_assert!(get.from <= u64::from(frame.offset) && frame.end() <= get.to);
                }
                seen.extend(&get.frames);
            }
            let sorted = |mut frames: Vec<FrameRef>| {
                frames.sort_by_key(|frame| (frame.seq, frame.offset, frame.stored));
                frames
            };
            prop_assert_eq!(sorted(seen), sorted(frames));
        }
    }
}
