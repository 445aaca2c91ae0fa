//! Block ranges that one request at a time may change: reading around the edges of a
//! small write must not undo another write.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Ranges that are held. A few dozen at most: requests in flight are bounded.
#[derive(Debug, Default)]
pub struct Ranges {
    held: Mutex<Vec<Range<u64>>>,
    released: Notify,
}

/// A range that is held until this is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    ranges: &'a Ranges,
    range: Range<u64>,
}

impl Ranges {
    /// Waits until nothing that overlaps is held, then holds the range.
    pub async fn hold(&self, range: Range<u64>) -> Held<'_> {
        loop {
            let released = self.released.notified();
            let mut released = std::pin::pin!(released);
            released.as_mut().enable();
            {
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                if held
                    .iter()
                    .all(|other| other.end <= range.start || range.end <= other.start)
                {
                    held.push(range.clone());
                    return Held {
                        ranges: self,
                        range,
                    };
                }
            }
            released.await;
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self
            .ranges
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(at);
        }
        self.ranges.released.notify_waiters();
    }
}
