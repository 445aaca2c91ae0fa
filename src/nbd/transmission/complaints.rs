//! Failed requests in the log: each once, and not a thousand a second.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::request::Failure;

/// Failures written out in one [`WINDOW`]; the others are counted.
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Writes failures to the log, or counts them. The count is written with the
/// next failure, or when the connection ends.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    since: Option<Instant>,
    logged: u32,
    unlogged: u64,
}

impl Complaints {
    pub(super) fn log(&mut self, failure: &Failure) {
        if !self.admit(Instant::now()) {
            return;
        }
        let request = &failure.request;
        warn!(
            "{} of {} bytes at {} failed: {}",
            request.command, request.length, request.offset, failure.error
        );
    }

    fn admit(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= WINDOW) {
            self.report();
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged == MOST {
            self.unlogged += 1;
            return false;
        }
        self.logged += 1;
        true
    }

    fn report(&mut self) {
        if self.unlogged > 0 {
            warn!("{} more requests failed", self.unlogged);
            self.unlogged = 0;
        }
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        self.report();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        let admitted = (0..100).filter(|_| complaints.admit(start)).count();
        assert_eq!((admitted, complaints.unlogged), (10, 90));
        assert!(complaints.admit(start + WINDOW));
        assert_eq!(complaints.unlogged, 0);
    }
}
