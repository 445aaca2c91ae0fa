//! The names whose earlier writes may still take effect.
//!
//! Knows: names, until when each must be left alone, and by whom: a write of the
//! very same thing may go ahead. Does not know: how writes are repeated.
//!
//! It guards against this: PUT(A) is not answered; PUT(A) again, 201; PUT(B),
//! 201; then the first PUT(A), which sat somewhere, lands with the newest
//! timestamp, and B is lost.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// More names than this are not told apart: then every name waits.
const MAX_NAMES: usize = 65_536;

/// What a write leaves at its name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Left<'a> {
    Body(&'a Bytes),
    /// The same, and nobody waits for it at the end.
    Unawaited(&'a Bytes),
    Nothing,
    /// No other write is taken for the same.
    Something,
}

impl Left<'_> {
    /// The same for the same thing, and hardly ever for another: 64 bits.
    fn print(self) -> Option<u64> {
        let hash = BuildHasherDefault::<DefaultHasher>::default();
        match self {
            Left::Body(body) | Left::Unawaited(body) => Some(hash.hash_one(body)),
            Left::Nothing => Some(0),
            Left::Something => None,
        }
    }

    fn is_awaited(self) -> bool {
        !matches!(self, Left::Unawaited(_))
    }
}

#[derive(Debug, Default)]
pub(super) struct Quarantine {
    state: Mutex<State>,
    /// Told whenever a write ends.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    names: HashMap<String, Lingering>,
    /// What did not fit above: for all names.
    everyone: Option<Instant>,
    /// Those that are awaited.
    under_way: usize,
    /// Look for names that are done when there are this many.
    prune_at: usize,
}

/// The writes of a name that may still take effect.
#[derive(Debug, Clone, Copy)]
struct Lingering {
    until: Instant,
    /// Of what all of them leave; `None` if that is not one thing.
    print: Option<u64>,
    /// Some of them are awaited.
    awaited: bool,
}

impl Quarantine {
    /// A write of this name begins. If what is returned is dropped without an
    /// answer, the write's fate is unknown for `linger`.
    pub(super) fn begin<'a>(
        &'a self,
        name: &'a str,
        left: Left<'a>,
        linger: Duration,
    ) -> UnderWay<'a> {
        self.lock().under_way += usize::from(left.is_awaited());
        UnderWay {
            quarantine: self,
            name,
            left,
            linger,
        }
    }

    /// Returns when no earlier write of this name can take effect any more, or none
    /// that would leave anything else than this one.
    pub(super) async fn passed(&self, name: &str, left: Left<'_>) {
        while let Some(until) = self.until(name) {
            if self
                .only(name)
                .is_some_and(|print| left.print() == Some(print))
            {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// For how long earlier writes of this name may still take effect.
    pub(super) fn left(&self, name: &str) -> Duration {
        self.until(name).map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// Returns when no earlier write of any name can take effect any more, of those that
    /// are awaited.
    pub(super) async fn settled(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let (under_way, last) = {
                let state = self.lock();
                (state.under_way, state.last())
            };
            match last.filter(|last| *last > Instant::now()) {
                _ if under_way > 0 => ended.await,
                Some(last) => sleep_until(last).await,
                None => return,
            }
        }
    }

    fn until(&self, name: &str) -> Option<Instant> {
        let state = self.lock();
        let until = state.names.get(name).map(|name| name.until);
        let until = until.max(state.everyone);
        until.filter(|until| *until > Instant::now())
    }

    /// What the earlier writes of this name leave, if that is one thing and known.
    fn only(&self, name: &str) -> Option<u64> {
        let state = self.lock();
        match state.everyone.filter(|until| *until > Instant::now()) {
            Some(_) => None,
            None => state.names.get(name)?.print,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn last(&self) -> Option<Instant> {
        let awaited = self.names.values().filter(|name| name.awaited);
        awaited.map(|name| name.until).max().max(self.everyone)
    }

    fn add(&mut self, name: &str, new: Lingering) {
        let until = new.until;
        let now = Instant::now();
        if self.names.len() >= self.prune_at {
            self.names.retain(|_, name| name.until > now);
            self.prune_at = (2 * self.names.len()).clamp(64, MAX_NAMES);
        }
        if self.names.len() >= MAX_NAMES && !self.names.contains_key(name) {
            self.everyone = self.everyone.max(Some(until));
            return;
        }
        let known = self.names.entry(name.to_owned()).or_insert(new);
        if known.until <= now {
            *known = new;
        }
        known.until = until.max(known.until);
        known.print = known.print.filter(|known| Some(*known) == new.print);
        known.awaited |= new.awaited;
    }
}

/// A write that has no answer yet.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    quarantine: &'a Quarantine,
    name: &'a str,
    left: Left<'a>,
    /// For how long it may take effect if it ends now.
    linger: Duration,
}

impl UnderWay<'_> {
    /// It was answered, and may still take effect for this long.
    pub(super) fn answered(mut self, lingers: Duration) {
        self.linger = lingers;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let lingers = !self.linger.is_zero();
        // A hash of the body, which takes its time: only where it is needed.
        let print = if lingers { self.left.print() } else { None };
        let awaited = self.left.is_awaited();
        let mut state = self.quarantine.lock();
        state.under_way -= usize::from(awaited);
        if lingers {
            let new = Lingering {
                until: Instant::now() + self.linger,
                print,
                awaited,
            };
            state.add(self.name, new);
        }
        drop(state);
        self.quarantine.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_pruned() {
        let quarantine = Quarantine::default();
        for number in 0..MAX_NAMES + 10 {
            drop(quarantine.begin(&number.to_string(), Left::Nothing, LIFE));
        }
        assert_eq!(quarantine.lock().names.len(), MAX_NAMES);
        assert_eq!(quarantine.left("never written"), LIFE);
        let began = Instant::now();
        quarantine.passed("0", Left::Nothing).await;
        assert_eq!(began.elapsed(), LIFE, "what names are not told apart waits");
        drop(quarantine.begin("new", Left::Nothing, LIFE));
        assert_eq!(quarantine.lock().names.len(), 1);
        assert_eq!(quarantine.left("other"), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_what_is_awaited() {
        let (quarantine, body) = (Quarantine::default(), Bytes::from("a"));
        let began = Instant::now();
        let under_way = quarantine.begin("n", Left::Unawaited(&body), LIFE);
        quarantine.settled().await;
        drop(under_way);
        quarantine.settled().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(quarantine.left("n"), LIFE, "but it may take effect");
        drop(quarantine.begin("n", Left::Body(&body), LIFE));
        drop(quarantine.begin("n", Left::Unawaited(&body), LIFE));
        quarantine.settled().await;
        assert_eq!(began.elapsed(), LIFE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_thing_goes_ahead_and_no_other() {
        let (a, b) = (Bytes::from("a"), Bytes::from("b"));
        let all = [Left::Body(&a), Left::Body(&b), Left::Nothing];
        for (first, earlier) in all.into_iter().enumerate() {
            for (second, later) in all.into_iter().enumerate() {
                let quarantine = Quarantine::default();
                let began = Instant::now();
                drop(quarantine.begin("n", earlier, LIFE));
                quarantine.passed("n", later).await;
                let waited = if first == second {
                    Duration::ZERO
                } else {
                    LIFE
                };
                assert_eq!(began.elapsed(), waited, "{earlier:?} {later:?}");
            }
        }
        // Two different ones may land: then even the same waits, but not for ever.
        let quarantine = Quarantine::default();
        drop(quarantine.begin("n", Left::Body(&a), LIFE));
        drop(quarantine.begin("n", Left::Body(&b), LIFE / 2));
        let began = Instant::now();
        quarantine.passed("n", Left::Body(&a)).await;
        assert_eq!(began.elapsed(), LIFE);
        drop(quarantine.begin("n", Left::Body(&b), LIFE));
        quarantine.passed("n", Left::Body(&b)).await;
        assert_eq!(began.elapsed(), LIFE);
        // Of the container's metadata nothing is known.
        drop(quarantine.begin("", Left::Something, LIFE));
        quarantine.passed("", Left::Something).await;
        assert_eq!(began.elapsed(), 2 * LIFE);
    }

    #[tokio::test(start_paused = true)]
    async fn settled_waits_for_writes_under_way_and_for_those_that_linger() {
        let quarantine = std::sync::Arc::new(Quarantine::default());
        let began = Instant::now();
        let other = quarantine.clone();
        tokio::spawn(async move {
            let write = other.begin("a", Left::Nothing, LIFE);
            tokio::time::sleep(Duration::from_secs(7)).await;
            write.answered(Duration::from_secs(5));
        });
        tokio::task::yield_now().await;
        quarantine.settled().await;
        assert_eq!(began.elapsed().as_secs(), 12);
    }
}
