//! One operation at a time, its result shared by all who asked before it began.
//!
//! Knows: order. Does not know: what the operation is.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

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
        let mut ended = self.ended.lock().await;
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
}
