//! Tells sequential readers by the ranges that they read, and how far to read ahead
//! of them. Does no reading itself.
//!
//! A *run* is a range that was read in adjacent reads lately, in whatever order: the
//! kernel sends several requests at once, and they need not come in order. A run that
//! grew forward often enough becomes a *stream*, ahead of which is read. A read that
//! does not fit a stream starts a run, so a few of them neither break the stream nor
//! move it; the stream swallows the run when the gap between them is filled. A run
//! that becomes a stream within what another stream has asked for is that stream,
//! which left something out.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The furthest that is read ahead, in bytes, all streams together.
const MOST: u64 = 32 << 20;
/// How far a stream is read ahead of at first, in bytes.
const FIRST: u64 = 512 << 10;
/// The most that is asked for at once, in bytes: a GET of the largest size.
const PIECE: u64 = 8 << 20;
/// Streams that are followed at the same time.
const STREAMS: usize = 8;
/// Runs that are remembered: readers at random make many that lead nowhere.
const RUNS: usize = 64;
/// Reads that make a run a stream.
const READS: u32 = 3;

/// How far is read ahead, in bytes, if a cache keeps `room` bytes of what came last:
/// what is read ahead must still be there when it is read.
pub(super) fn window(room: u64) -> u64 {
    match room / 4 * 3 {
        // Not worth it.
        window if window < FIRST => 0,
        window => window.min(MOST),
    }
}

/// Recent readers of a volume.
#[derive(Debug)]
pub struct ReadAhead {
    /// How far is read ahead of all streams together; 0: never.
    most: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A ring: the next run takes the place of the one that did not grow for longest.
    runs: Vec<Run>,
    next: usize,
    streams: Vec<Stream>,
    /// Bytes that all streams have read.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    /// By how many reads it grew, forward.
    reads: u32,
}

impl Run {
    /// No run; no read touches it.
    const NONE: Run = Run {
        start: u64::MAX,
        end: 0,
        reads: 0,
    };
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Where it began.
    start: u64,
    /// All up to here was read.
    end: u64,
    /// All up to here was asked for.
    asked: u64,
    /// How far to read ahead; grows as the stream goes on.
    window: u64,
    /// The clock when it was last read.
    used: u64,
}

impl ReadAhead {
    /// For a cache that keeps `room` bytes of what came last. With too little of it
    /// nothing is read ahead.
    pub fn new(room: u64) -> ReadAhead {
        let (most, state) = (window(room), Mutex::default());
        ReadAhead { most, state }
    }

    /// Notes a read. Returns the range to fetch now, ahead of it, if there is one:
    /// it was not returned before for this stream, and may go beyond the volume's end.
    pub fn on_read(&self, offset: u64, length: u64) -> Option<Range<u64>> {
        if self.most == 0 || length == 0 {
            return None;
        }
        let end = offset.saturating_add(length);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match state.advance(offset, end) {
            Some(at) => at,
            None => {
                let run = state.grow(offset, end)?;
                state.promote(run)
            }
        };
        state.clock = state.clock.saturating_add(length);
        state.streams[at].used = state.clock;
        state.swallow(at);
        let most = self.most / state.active(self.most);
        state.streams[at].ask(most)
    }
}

impl State {
    /// Moves the stream that this read continues.
    fn advance(&mut self, offset: u64, end: u64) -> Option<usize> {
        let goes_on = |stream: &Stream| offset <= stream.end && stream.end < end;
        let at = self.streams.iter().position(goes_on)?;
        self.streams[at].end = end;
        Some(at)
    }

    /// Adds the read to the run that it continues, or begins one. Returns a run that
    /// is long enough to be a stream, and forgets it.
    fn grow(&mut self, offset: u64, end: u64) -> Option<Run> {
        let touches = |run: &Run| offset <= run.end && run.start <= end;
        let run = match self.runs.iter().position(touches) {
            None => Run {
                start: offset,
                end,
                reads: 1,
            },
            Some(at) => {
                let old = std::mem::replace(&mut self.runs[at], Run::NONE);
                let mut run = Run {
                    start: old.start.min(offset),
                    end: old.end.max(end),
                    reads: old.reads + u32::from(end > old.end),
                };
                // It may have filled the gap before another.
                if let Some(next) = self.runs.iter_mut().find(|next| next.start == run.end) {
                    run.end = next.end;
                    run.reads += next.reads;
                    *next = Run::NONE;
                }
                run
            }
        };
        if run.reads >= READS {
            return Some(run);
        }
        if self.runs.len() < RUNS {
            self.runs.push(run);
        } else {
            self.runs[self.next] = run;
            self.next = (self.next + 1) % RUNS;
        }
        None
    }

    /// Makes a run a stream: one of those there are, if it goes on within what that
    /// one asked for, or a new one in place of the one that was not read for longest.
    fn promote(&mut self, run: Run) -> usize {
        let within = |stream: &Stream| (stream.end..=stream.asked).contains(&run.start);
        if let Some(at) = self.streams.iter().position(within) {
            self.streams[at].end = run.end;
            return at;
        }
        let stream = Stream {
            start: run.start,
            end: run.end,
            asked: run.end,
            window: FIRST,
            used: self.clock,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let oldest = (0..STREAMS).min_by_key(|at| self.streams[*at].used);
        let at = oldest.unwrap_or(0);
        self.streams[at] = stream;
        at
    }

    /// Adds the runs that a stream has reached.
    fn swallow(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let goes_on = |run: &&mut Run, end| run.start <= end && end < run.end;
        while let Some(run) = self.runs.iter_mut().find(|run| goes_on(run, stream.end)) {
            stream.end = run.end;
            *run = Run::NONE;
        }
    }

    /// How many streams are still read, one at least: one of which nothing was read
    /// while others read several windows has ended.
    fn active(&self, window: u64) -> u64 {
        let since = self.clock.saturating_sub(4 * window);
        let active = self.streams.iter().filter(|stream| stream.used >= since);
        active.count().max(1) as u64
    }
}

impl Stream {
    /// The next range to ask for, if it is time. The window doubles with each, and is
    /// never longer than what was read: a long read at random, which the kernel sends
    /// in pieces, looks like a short stream.
    fn ask(&mut self, most: u64) -> Option<Range<u64>> {
        self.window = self.window.min(most);
        let from = self.asked.max(self.end);
        let to = self.end.saturating_add(self.window);
        // In large pieces, not a sliver at each read.
        let piece = (self.window / 2).min(PIECE);
        if to.saturating_sub(from) < piece {
            return None;
        }
        let longest = (self.end - self.start).max(FIRST);
        self.window = self.window.saturating_mul(2).min(longest).min(most);
        self.asked = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const READ: u64 = 128 * KIB;

    fn read_ahead() -> ReadAhead {
        ReadAhead::new(64 * MIB)
    }

    /// What was asked for during these reads, as one range each time.
    fn asked(ahead: &ReadAhead, reads: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
        let reads = reads.into_iter();
        reads
            .filter_map(|at| ahead.on_read(at * READ, READ))
            .collect()
    }

    /// The ranges follow each other, but for what was read before it was asked for.
    /// Returns the range of all.
    fn joined(asked: &[Range<u64>]) -> Range<u64> {
        for pair in asked.windows(2) {
            let gap = pair[1].start.checked_sub(pair[0].end);
            assert!(gap.is_some_and(|gap| gap <= 8 * READ), "{pair:?}");
        }
        asked[0].start..asked[asked.len() - 1].end
    }

    #[test]
    fn a_stream_is_read_ahead_of_from_its_third_read_on() {
        let ahead = read_ahead();
        assert!(asked(&ahead, 0..2).is_empty());
        let third = ahead.on_read(2 * READ, READ);
        assert_eq!(third, Some(3 * READ..3 * READ + FIRST));
    }

    #[test]
    fn the_window_grows_up_to_its_limit_and_is_asked_for_in_large_pieces() {
        let ahead = read_ahead();
        let reads = GIB_OF_READS;
        let asked = asked(&ahead, 0..reads);
        let all = joined(&asked);
        assert_eq!(all.start, 3 * READ);
        assert!(all.end <= reads * READ + MOST && all.end >= reads * READ + MOST - PIECE);
        let late = asked.iter().filter(|ask| ask.start > 128 * MIB);
        assert!(late.clone().count() > 50 && late.clone().all(|ask| ask.end - ask.start >= PIECE));
    }

    const GIB_OF_READS: u64 = 8192;

    #[test]
    fn it_is_never_further_ahead_than_half_the_room_allows_nor_than_was_read() {
        let ahead = ReadAhead::new(4 * MIB);
        for at in 0..4096 {
            if let Some(ask) = ahead.on_read(at * READ, READ) {
                let end = (at + 1) * READ;
                assert!(ask.end - end <= 3 * MIB, "{ask:?} at {end}");
                assert!(ask.end - end <= end.max(FIRST), "{ask:?} at {end}");
            }
        }
    }

    #[test]
    fn with_little_room_nothing_is_read_ahead() {
        for room in [0, 1, 4096, 512 * KIB] {
            assert!(asked(&ReadAhead::new(room), 0..1000).is_empty());
        }
    }

    #[test]
    fn a_few_reads_out_of_order_do_not_break_a_stream() {
        for (name, order) in [
            ("pairs swapped", [1, 0, 3, 2, 5, 4, 7, 6]),
            ("the first comes last", [1, 2, 3, 4, 5, 6, 7, 0]),
            ("backwards", [7, 6, 5, 4, 3, 2, 1, 0]),
            ("anyhow", [3, 0, 1, 7, 2, 6, 4, 5]),
        ] {
            let ahead = read_ahead();
            let reads = (0..1024).flat_map(|group| order.map(|at| group * 8 + at));
            let all = joined(&asked(&ahead, reads));
            assert!(all.start <= 16 * READ, "{name}: it begins at {}", all.start);
            assert!(
                all.end >= GIB_OF_READS * READ + MOST - PIECE,
                "{name}: {all:?}"
            );
        }
    }

    #[test]
    fn what_a_stream_leaves_out_does_not_end_it() {
        let ahead = read_ahead();
        let reads = (0..4096).filter(|at| at % 16 != 5);
        let all = joined(&asked(&ahead, reads));
        assert!(all.end >= 4096 * READ, "{all:?}");
    }

    #[test]
    fn eight_streams_go_on_beside_readers_at_random_and_share_the_window() {
        let ahead = read_ahead();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut ends = [0; STREAMS];
        for at in 0..4096 {
            for stream in 0..STREAMS as u64 {
                let offset = (stream << 34) + at * READ;
                if let Some(ask) = ahead.on_read(offset, READ) {
                    assert!(ask.start >= offset && ask.end - offset <= MOST + READ);
                    ends[stream as usize] = ask.end - (stream << 34);
                }
                for _ in 0..4 {
                    let random = (1 << 40) + rng.u64(0..1 << 28) * 4096;
                    assert_eq!(ahead.on_read(random, 4096), None);
                }
            }
        }
        let share = MOST / STREAMS as u64;
        for end in ends {
            let beyond = end - 4096 * READ;
            assert!(
                beyond <= share && beyond >= share / 4,
                "{beyond} bytes ahead"
            );
        }
        // Seven end; the eighth has the whole window then.
        let last = asked(&ahead, 4096..GIB_OF_READS).pop().unwrap();
        assert!(
            last.end >= GIB_OF_READS * READ + MOST - 2 * PIECE,
            "{last:?}"
        );
    }

    #[test]
    fn reads_that_are_no_stream_trigger_nothing() {
        let mut rng = fastrand::Rng::with_seed(1);
        let random: Vec<u64> = (0..100_000).map(|_| rng.u64(0..1 << 20)).collect();
        let patterns: [(&str, Vec<u64>); 4] = [
            ("at random", random),
            ("backwards", (0..1000).rev().collect()),
            ("every other", (0..1000).map(|at| at * 2).collect()),
            ("the same again", vec![17; 1000]),
        ];
        for (name, reads) in patterns {
            assert_eq!(asked(&read_ahead(), reads), [], "{name}");
        }
    }

    #[test]
    fn one_read_at_random_that_comes_in_pieces_costs_little() {
        let ahead = read_ahead();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut ahead_bytes = 0;
        for _ in 0..1000 {
            let start = rng.u64(0..1 << 20) * 16;
            let asked = asked(&ahead, start..start + 8);
            let beyond =
                |ask: &Range<u64>| ask.end.saturating_sub(((start + 8) * READ).max(ask.start));
            ahead_bytes += asked.iter().map(beyond).sum::<u64>();
        }
        assert!(
            ahead_bytes <= 1000 * 8 * READ,
            "{ahead_bytes} bytes for nothing"
        );
    }

    proptest! {
        #[test]
        fn any_reads_are_survived(reads in prop::collection::vec(any::<(u64, u64)>(), 0..500), room: u64) {
            let ahead = ReadAhead::new(room);
            for (offset, length) in reads {
                if let Some(ask) = ahead.on_read(offset, length) {
                    prop_assert!(!ask.is_empty());
                }
            }
        }

        #[test]
        fn nothing_is_asked_for_twice_in_one_stream(
            lengths in prop::collection::vec(1u64..2 * MIB, 1..400),
        ) {
            let ahead = read_ahead();
            let (mut at, mut asked) = (0, 0);
            for length in lengths {
                if let Some(ask) = ahead.on_read(at, length) {
                    prop_assert!(ask.start >= asked && ask.start >= at + length);
                    prop_assert!(ask.end - (at + length) <= MOST);
                    asked = ask.end;
                }
                at += length;
            }
        }
    }
}
