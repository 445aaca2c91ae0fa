//! One operation at a time, its result shared by all who asked before it began. Where
//! nobody may be held up by one that takes long, on a connection that is dead, a few run
//! beside each other.
//!
//! Knows: order. Does not know: what the operation is.

use std::array;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::select_all;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Duration, sleep};

/// Whoever has waited so long in one lane waits in the next one, too.
const LONG: Duration = Duration::from_secs(3);

/// How many rounds may run beside each other. Where everything is slow each of them makes
/// it slower, however many wait.
const LANES: usize = 3;

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
        let wanted = self.next();
        let ended = self.ended.lock().await;
        self.round(wanted, ended, run).await
    }

    /// The first round that will have begun after this call.
    fn next(&self) -> u64 {
        self.begun.load(Ordering::SeqCst) + 1
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

/// Rounds of one operation in lanes: whoever would have to wait for long in one of them
/// waits in the next one, too, and so do all others, for one round together.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: [Rounds<T>; LANES],
}

impl<T: Clone> Lanes<T> {
    pub(super) fn new() -> Lanes<T> {
        Lanes {
            lanes: array::from_fn(|_| Rounds::new()),
        }
    }

    /// The result of a round that began after this call, as `Rounds::after_now`, of the
    /// lane in which there is one first.
    pub(super) async fn after_now<F>(&self, run: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T>,
    {
        let waits = self.lanes.iter().zip(0..).map(|(lane, before)| {
            let wanted = lane.next();
            Box::pin(async move {
                if before > 0 {
                    sleep(before * LONG).await;
                }
                (lane, wanted, lane.ended.lock().await)
            })
        });
        let ((lane, wanted, ended), _, others) = select_all(waits).await;
        // Nobody who runs a round stands in another lane's queue.
        drop(others);
        lane.round(wanted, ended, run).await
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

    /// Asks, in a round that is counted and takes so long.
    async fn ask(lanes: Arc<Lanes<()>>, count: Arc<AtomicU64>, takes: Duration) {
        lanes
            .after_now(|| async {
                count.fetch_add(1, Ordering::SeqCst);
                sleep(takes).await;
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_nobody_up() {
        let (lanes, count) = (Arc::new(Lanes::new()), Arc::new(AtomicU64::new(0)));
        let ask = |takes| ask(lanes.clone(), count.clone(), takes);
        let hanging = tokio::spawn(ask(100 * LONG));
        tokio::task::yield_now().await;
        let began = tokio::time::Instant::now();
        ask(Duration::ZERO).await;
        assert_eq!(began.elapsed(), LONG);
        // A second one that hangs, in the second lane.
        let second = tokio::spawn(ask(100 * LONG));
        sleep(LONG + Duration::from_secs(1)).await;
        let began = tokio::time::Instant::now();
        ask(Duration::ZERO).await;
        assert_eq!(began.elapsed(), 2 * LONG);
        assert!(!hanging.is_finished() && !second.is_finished());
    }

    /// A crowd does not make what is slow slower.
    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_long_share_a_round_too() {
        let (lanes, count) = (Arc::new(Lanes::new()), Arc::new(AtomicU64::new(0)));
        let ask = || tokio::spawn(ask(lanes.clone(), count.clone(), 2 * LONG));
        let began = tokio::time::Instant::now();
        let first = ask();
        tokio::task::yield_now().await;
        let crowd: Vec<_> = (0..100).map(|_| ask()).collect();
        first.await.unwrap();
        for task in crowd {
            task.await.unwrap();
        }
        let rounds = count.load(Ordering::SeqCst);
        assert!(rounds <= LANES as u64 + 1, "{rounds} rounds");
        assert!(began.elapsed() <= 4 * LONG, "{:?}", began.elapsed());
    }
}
