//! What may go wrong, and what of it a request meets.

use std::time::Duration;

use super::LIFETIME;

/// How often things go wrong, in requests of a thousand each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Refused before anything happened.
    pub refused: u32,
    /// Answered 503 with no effect.
    pub unavailable: u32,
    /// Answered 503, and applied all the same, at some time within the lifetime.
    pub late: u32,
    /// Applied, now or at some time within the lifetime, and never answered.
    pub unanswered: u32,
    /// Damaged on the way: refused when stored, noticed when read.
    pub corrupt: u32,
    /// Slow by seconds.
    pub slow: u32,
    /// Answered 202 for no reason that shows, not stored.
    pub superseded: u32,
    /// Ended before its body did: refused.
    pub truncated: u32,
    /// Applied at once, and answered 503.
    pub failed_after: u32,
    /// Of the writes that are applied without being answered so: they reach one
    /// replica alone, and are met by some requests and not by others until they are
    /// healed or the name is written again.
    pub weak: u32,
    /// Of the writes that are applied: some replica has them later. A plain read may
    /// find what was there before, other requests may be answered 503.
    pub lagging: u32,
    /// Of the whole reads of an object that is there: answered 404.
    pub false_absence: u32,
    /// Of the reads of a part: one bit is wrong, and nothing shows it.
    pub rotten: u32,
    /// Of the listings and reads of the container's metadata: old or incomplete.
    /// Unless zero, changes of the metadata fail as other writes do.
    pub stale: u32,
}

impl Faults {
    /// A cluster on a bad day; `level` 0 is a good one. For objects that are
    /// overwritten in place: all replicas agree.
    pub fn level(level: u32) -> Faults {
        let often = [0, 10, 60, 150][level as usize % 4];
        Faults {
            refused: often,
            unavailable: often,
            late: often / 2,
            unanswered: often / 2,
            corrupt: often / 3,
            slow: often,
            superseded: often / 4,
            ..Faults::default()
        }
    }

    /// The same with replicas that disagree, for objects that are never overwritten.
    pub fn replicas(level: u32) -> Faults {
        let often = [0, 10, 60, 150][level as usize % 4];
        Faults {
            truncated: often / 3,
            failed_after: often / 3,
            weak: 3 * often,
            lagging: 2 * often,
            false_absence: often / 2,
            rotten: often / 5,
            stale: 3 * often,
            ..Faults::level(level)
        }
    }
}

/// What a request does, decided before it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fate {
    pub(super) arrives: Option<Duration>,
    pub(super) applied_after: Option<Duration>,
    pub(super) answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Answer {
    Truth,
    Refused,
    Unavailable,
    Corrupt,
    Truncated,
    Superseded,
    None,
}

impl Fate {
    /// `refused`: nothing gets through at present.
    pub(super) fn draw(faults: &Faults, refused: bool, rng: &mut fastrand::Rng) -> Fate {
        let lifetime = LIFETIME.as_millis() as u64;
        let quick = (Some(millis(rng, 20)), Some(millis(rng, 20)));
        let mut dice = rng.u32(0..1000);
        let mut hit = |often: u32| {
            let hit = dice < often;
            dice = if hit {
                u32::MAX
            } else {
                dice.saturating_sub(often)
            };
            hit
        };
        let (times, answer) = if refused || hit(faults.refused) {
            ((None, None), Answer::Refused)
        } else if hit(faults.unavailable) {
            ((quick.0, None), Answer::Unavailable)
        } else if hit(faults.late) {
            let late = millis(rng, lifetime);
            ((quick.0, Some(late)), Answer::Unavailable)
        } else if hit(faults.unanswered) {
            let applied = rng.bool().then(|| millis(rng, 20));
            ((Some(millis(rng, lifetime)), applied), Answer::None)
        } else if hit(faults.corrupt) {
            ((quick.0, None), Answer::Corrupt)
        } else if hit(faults.superseded) {
            ((quick.0, None), Answer::Superseded)
        } else if hit(faults.slow) {
            ((Some(millis(rng, lifetime)), quick.1), Answer::Truth)
        } else if hit(faults.truncated) {
            ((quick.0, None), Answer::Truncated)
        } else if hit(faults.failed_after) {
            (quick, Answer::Unavailable)
        } else {
            (quick, Answer::Truth)
        };
        Fate {
            arrives: times.0,
            applied_after: times.1,
            answer,
        }
    }
}

fn millis(rng: &mut fastrand::Rng, most: u64) -> Duration {
    Duration::from_millis(rng.u64(0..most))
}
