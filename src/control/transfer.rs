//! What `upload`, `download`, `convert` and `delete` share: much work on many objects,
//! some of it at a time, until it is done or somebody wants it to end. What goes through
//! a volume of format 2, and not by its objects, is in [`copy`].
//!
//! Knows: tasks, signals, the pace. Does not know: what is done with an object.

pub mod claim;
pub mod copy;
pub mod image;
pub mod progress;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::signals::Signals;
use crate::error::{Error, Result};

/// Objects under way at a time: more bring nothing over one connection to Swift.
const MOST_AT_ONCE: u64 = 16;
/// Bytes of objects in memory at a time. One object may be larger.
const MOST_BYTES: u64 = 64 << 20;

/// How many objects of this size, in bytes, may be under way at a time.
pub fn width(object_size: u32) -> usize {
    (MOST_BYTES / u64::from(object_size)).clamp(1, MOST_AT_ONCE) as usize
}

/// Keeps a transfer below a number of bytes a second.
#[derive(Debug)]
pub struct Pace {
    rate: Option<u64>,
    /// When all that was sent or fetched so far is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// At most `rate` bytes a second on the average; `None`: as fast as it goes.
    pub fn new(rate: Option<u64>) -> Pace {
        Pace {
            rate,
            paid: Mutex::new(Instant::now()),
        }
    }

    /// So much was sent or fetched.
    pub fn spent(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let time = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(Instant::now()) + time;
    }

    /// Returns when more may be sent or fetched.
    async fn ready(&self) {
        let paid = *self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        sleep_until(paid).await;
    }
}

/// Works on all items, `width` at a time, in the order in which they come. At the
/// first failure or signal nothing new is begun, and what was begun is finished; a
/// second signal drops that, too.
pub async fn in_parallel<I, F>(
    mut items: impl Iterator<Item = Result<I>>,
    width: usize,
    pace: &Pace,
    signals: &mut Signals,
    work: impl Fn(I) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut result = Ok(());
    let mut more = true;
    loop {
        let begin = result.is_ok() && more && running.len() < width;
        if !begin && running.is_empty() {
            return result;
        }
        let ended = tokio::select! {
            biased;
            () = signals.recv() => match result {
                Ok(()) => Err(interrupted()),
                Err(error) => return Err(error),
            },
            Some(ended) = running.join_next() => match ended {
                Ok(ended) => ended,
                Err(error) => Err(Error::failed(format!("a part of the work broke: {error}"))),
            },
            () = pace.ready(), if begin => match items.next() {
                Some(Ok(item)) => {
                    running.spawn(work(item));
                    Ok(())
                }
                Some(Err(error)) => Err(error),
                None => {
                    more = false;
                    Ok(())
                }
            },
        };
        // The first failure is what a person is told.
        result = result.and(ended);
    }
}

/// The error of a command that a signal ended.
pub fn interrupted() -> Error {
    Error::failed("interrupted").hint("the same command goes on from where it was")
}

/// Runs work with files that may take its time.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::failed(format!("a part of the work broke: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_on_the_average() {
        let pace = Arc::new(Pace::new(Some(100)));
        let mut signals = Signals::listen().unwrap();
        let begun = Instant::now();
        let work = |_: u64| {
            let pace = Arc::clone(&pace);
            async move {
                pace.spent(50);
                Ok(())
            }
        };
        in_parallel((0..11).map(Ok), 3, &pace, &mut signals, work)
            .await
            .unwrap();
        let took = begun.elapsed();
        // The last ones are begun when those before them are paid for.
        assert!(
            took >= Duration::from_secs(4) && took <= Duration::from_secs(6),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_begins_nothing_new_and_finishes_what_was_begun() {
        let (begun, finished) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut signals = Signals::listen().unwrap();
        let work = |number: u64| {
            let (begun, finished) = (Arc::clone(&begun), Arc::clone(&finished));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(number)).await;
                finished.fetch_add(1, Ordering::SeqCst);
                match number {
                    2 | 4 => Err(Error::failed(format!("number {number}"))),
                    _ => Ok(()),
                }
            }
        };
        let pace = Pace::new(None);
        let error = in_parallel((1..100).map(Ok), 3, &pace, &mut signals, work).await;
        assert_eq!(error.unwrap_err().message, "number 2");
        let count = begun.load(Ordering::SeqCst);
        assert_eq!((count, finished.load(Ordering::SeqCst)), (4, 4));
    }

    #[test]
    fn memory_is_bounded_whatever_the_object_size() {
        assert_eq!(width(65536), 16);
        assert_eq!(width(8 << 20), 8);
        assert_eq!(width(256 << 20), 1);
        assert_eq!(width(1), 16);
    }
}
