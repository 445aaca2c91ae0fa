//! One operation at a time, its result shared by all who asked before it began. Whoever
//! may not be held up by one that takes long, on a connection that is dead, does it beside.
//!
//! Knows: order. Does not know: what the operation is.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Duration, timeout};

/// Whoever has waited so long for the rounds of others runs one that is only its own.
const LONG: Duration = Duration::from_secs(3);

/// Rounds of one operation, numbered from 1. However many tasks ask, one round
/// runs at a time, and none waits for more than two.
#[derive(Debug)]
pub(super) struct Rounds<T> {
    begun: AtomicU64,
    /// The last round that ended, and its result.
    ended: Mutex<(u64, Option<T>)>,
}

impl<T: Clone> Rounds<T> {
    pub(super) fn new() -> Rounds<T> {
        Rounds {
            begun: AtomicU64::new(0),
            ended: Mutex::new((0, None)),
        }
    }

    /// The result of a round that began after this call: what it found cannot
    /// be older than the caller's question. `run` may be dropped midway when
    /// its caller is; another caller then begins a new round.
    pub(super) async fn after_now<F>(&self, run: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T>,
    {
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        let ended = self.ended.lock().await;
        self.round(wanted, ended, run).await
    }

    /// The same, but whoever would have to wait for long does it by itself, beside the
    /// others.
    pub(super) async fn soon<F>(&self, run: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T>,
    {
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        match timeout(LONG, self.ended.lock()).await {
            Ok(ended) => self.round(wanted, ended, run).await,
            Err(_) => run().await,
        }
    }

    async fn round<F>(
        &self,
        wanted: u64,
        mut ended: MutexGuard<'_, (u64, Option<T>)>,
        run: impl FnOnce() -> F,
    ) -> T
    where
        F: Future<Output = T>,
    {
        if let (number, Some(result)) = &*ended
            && *number >= wanted
        {
            return result.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let result = run().await;
        *ended = (number, Some(result.clone()));
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_during_a_round_share_the_next_one() {
        let rounds = Arc::new(Rounds::new());
        let count = Arc::new(AtomicU64::new(0));
        let ask = || {
            let (rounds, count) = (rounds.clone(), count.clone());
            tokio::spawn(async move {
                rounds
                    .after_now(|| async {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        count.fetch_add(1, Ordering::SeqCst) + 1
                    })
                    .await
            })
        };
        let first = ask();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let later: Vec<_> = (0..16).map(|_| ask()).collect();
        assert_eq!(first.await.unwrap(), 1);
        for task in later {
            assert_eq!(task.await.unwrap(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_nobody_up() {
        let rounds = Arc::new(Rounds::new());
        let hanging = rounds.clone();
        let hanging = tokio::spawn(async move {
            let slow = || async { tokio::time::sleep(10 * LONG).await };
            hanging.soon(slow).await;
        });
        tokio::task::yield_now().await;
        let began = tokio::time::Instant::now();
        rounds.soon(|| async {}).await;
        assert_eq!(began.elapsed(), LONG);
        assert!(!hanging.is_finished());
        rounds.after_now(|| async {}).await;
        assert_eq!(began.elapsed(), 10 * LONG, "this one may take its time");
    }
}
