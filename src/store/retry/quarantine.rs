//! The names whose earlier writes may still take effect.
//!
//! Knows: names, and until when each must be left alone. Does not know: what
//! was written.
//!
//! It guards against this: PUT(A) is not answered; PUT(A) again, 201; PUT(B),
//! 201; then the first PUT(A), which sat somewhere, lands with the newest
//! timestamp, and B is lost.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// More names than this are not told apart: then every name waits.
const MAX_NAMES: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Quarantine {
    state: Mutex<State>,
    /// Told whenever a write ends.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    until: HashMap<String, Instant>,
    /// What did not fit above: for all names.
    everyone: Option<Instant>,
    under_way: usize,
    /// Look for names that are done when there are this many.
    prune_at: usize,
}

impl Quarantine {
    /// A write of this name begins. If what is returned is dropped without an
    /// answer, the write's fate is unknown for `linger`.
    pub(super) fn begin<'a>(&'a self, name: &'a str, linger: Duration) -> UnderWay<'a> {
        self.lock().under_way += 1;
        UnderWay {
            quarantine: self,
            name,
            linger,
        }
    }

    /// Returns when no earlier write of this name can take effect any more.
    pub(super) async fn passed(&self, name: &str) {
        while let Some(until) = self.until(name) {
            sleep_until(until).await;
        }
    }

    /// For how long earlier writes of this name may still take effect.
    pub(super) fn left(&self, name: &str) -> Duration {
        self.until(name).map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// Returns when no earlier write of any name can take effect any more.
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
        let until = state.until.get(name).copied().max(state.everyone);
        until.filter(|until| *until > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn last(&self) -> Option<Instant> {
        self.until.values().copied().max().max(self.everyone)
    }

    fn add(&mut self, name: &str, until: Instant) {
        let now = Instant::now();
        if self.until.len() >= self.prune_at {
            self.until.retain(|_, until| *until > now);
            self.prune_at = (2 * self.until.len()).clamp(64, MAX_NAMES);
        }
        if self.until.len() >= MAX_NAMES && !self.until.contains_key(name) {
            self.everyone = self.everyone.max(Some(until));
            return;
        }
        let known = self.until.entry(name.to_owned()).or_insert(until);
        *known = until.max(*known);
    }
}

/// A write that has no answer yet.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    quarantine: &'a Quarantine,
    name: &'a str,
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
        let mut state = self.quarantine.lock();
        state.under_way -= 1;
        if !self.linger.is_zero() {
            state.add(self.name, Instant::now() + self.linger);
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
            drop(quarantine.begin(&number.to_string(), LIFE));
        }
        assert_eq!(quarantine.lock().until.len(), MAX_NAMES);
        assert_eq!(quarantine.left("never written"), LIFE);
        quarantine.passed("never written").await;
        drop(quarantine.begin("new", LIFE));
        assert_eq!(quarantine.lock().until.len(), 1);
        assert_eq!(quarantine.left("other"), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn settled_waits_for_writes_under_way_and_for_those_that_linger() {
        let quarantine = std::sync::Arc::new(Quarantine::default());
        let began = Instant::now();
        let other = quarantine.clone();
        tokio::spawn(async move {
            let write = other.begin("a", LIFE);
            tokio::time::sleep(Duration::from_secs(7)).await;
            write.answered(Duration::from_secs(5));
        });
        tokio::task::yield_now().await;
        quarantine.settled().await;
        assert_eq!(began.elapsed().as_secs(), 12);
    }
}
