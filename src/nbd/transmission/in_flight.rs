//! The bounds on what one connection may hold in memory, and all of them
//! together.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much may be in flight on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests; the kernel sends at most 128 on a socket.
    pub requests: usize,
    /// Bytes of payloads and read data. One request alone may exceed it.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests: 128,
            bytes: 64 << 20,
        }
    }
}

/// Memory that connections share. Each has besides a share of its own, so that
/// those who use up the common part stop nobody's ordinary requests. A clone is
/// the same memory; whoever waits for it gets it in the order of asking.
#[derive(Debug, Clone)]
pub struct Pool {
    common: Arc<Semaphore>,
    size: u32,
    own: u64,
}

impl Pool {
    /// `common` bytes for all, and `own` for each connection.
    pub fn new(common: u32, own: u64) -> Pool {
        Pool {
            common: Arc::new(Semaphore::new(common as usize)),
            size: common,
            own,
        }
    }
}

/// What a request holds; given back with [`InFlight::release`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    bytes: u64,
    /// Of the pool's common part; nothing if it is the connection's own.
    common: u32,
}

type Permit = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// What is in flight, against what may be.
pub(super) struct InFlight {
    limits: Limits,
    requests: usize,
    bytes: u64,
    /// Of `bytes`, what is not of the pool's common part.
    own: u64,
    pool: Option<Pool>,
    /// All that is held of the common part.
    held: Option<OwnedSemaphorePermit>,
    /// The wait for more of it, for the one request that is being admitted.
    waiting: Option<Permit>,
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight")
            .field("requests", &self.requests)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl InFlight {
    pub(super) fn new(limits: Limits, pool: Option<Pool>) -> InFlight {
        InFlight {
            limits,
            requests: 0,
            bytes: 0,
            own: 0,
            pool,
            held: None,
            waiting: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Takes a place for a request with `bytes` of data, once there is room. A
    /// request larger than the connection's limit goes when no other has data in
    /// flight. Pending: something will be released here, or the pool wakes us.
    pub(super) fn poll_admit(&mut self, bytes: u64, cx: &mut Context<'_>) -> Poll<Share> {
        let room = self.limits.bytes.saturating_sub(self.bytes);
        let fits = bytes <= room || self.bytes == 0;
        if !fits || self.requests >= self.limits.requests.max(1) {
            return Poll::Pending;
        }
        let own = self.pool.as_ref().map_or(u64::MAX, |pool| pool.own);
        let common = if bytes <= own.saturating_sub(self.own) {
            self.waiting = None;
            self.own += bytes;
            0
        } else {
            ready!(self.poll_common(bytes, cx))
        };
        self.requests += 1;
        self.bytes += bytes;
        Poll::Ready(Share { bytes, common })
    }

    fn poll_common(&mut self, bytes: u64, cx: &mut Context<'_>) -> Poll<u32> {
        let Some(pool) = &self.pool else {
            return Poll::Ready(0);
        };
        // More than there is means all of it.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(pool.size);
        let waiting = self.waiting.get_or_insert_with(|| {
            let common = Arc::clone(&pool.common);
            Box::pin(async move { common.acquire_many_owned(bytes).await.ok() })
        });
        let permit = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        match (&mut self.held, permit) {
            (Some(held), Some(permit)) => held.merge(permit),
            (held, permit) => *held = permit,
        }
        Poll::Ready(bytes)
    }

    /// Nobody waits to be admitted any more.
    pub(super) fn give_up(&mut self) {
        self.waiting = None;
    }

    pub(super) fn release(&mut self, share: Share) {
        self.requests -= 1;
        self.bytes -= share.bytes;
        if share.common == 0 {
            self.own -= share.bytes;
        } else if let Some(held) = &mut self.held {
            drop(held.split(share.common as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn admit(in_flight: &mut InFlight, bytes: u64) -> Option<Share> {
        let mut cx = Context::from_waker(Waker::noop());
        match in_flight.poll_admit(bytes, &mut cx) {
            Poll::Ready(share) => Some(share),
            Poll::Pending => None,
        }
    }

    fn limits(requests: usize, bytes: u64) -> Limits {
        Limits { requests, bytes }
    }

    #[test]
    fn both_bounds_hold() {
        let mut in_flight = InFlight::new(limits(3, 100), None);
        let share = admit(&mut in_flight, 60).unwrap();
        assert_eq!(admit(&mut in_flight, 41), None);
        assert!(admit(&mut in_flight, 40).is_some());
        assert!(admit(&mut in_flight, 0).is_some());
        assert_eq!(admit(&mut in_flight, 0), None);
        in_flight.release(share);
        assert!(admit(&mut in_flight, 60).is_some());
    }

    #[test]
    fn a_large_request_goes_alone() {
        let mut in_flight = InFlight::new(limits(3, 100), None);
        let small = admit(&mut in_flight, 1).unwrap();
        assert_eq!(admit(&mut in_flight, 1000), None);
        in_flight.release(small);
        let large = admit(&mut in_flight, 1000).unwrap();
        assert_eq!(admit(&mut in_flight, 1), None);
        let empty = admit(&mut in_flight, 0).unwrap();
        in_flight.release(large);
        assert!(!in_flight.is_empty());
        in_flight.release(empty);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn the_common_part_is_shared_and_the_own_is_not() {
        let pool = Pool::new(100, 10);
        let mut greedy = InFlight::new(limits(100, 1000), Some(pool.clone()));
        let mut modest = InFlight::new(limits(100, 1000), Some(pool.clone()));
        let own = admit(&mut greedy, 10).unwrap();
        let most = admit(&mut greedy, 90).unwrap();
        assert_eq!(admit(&mut greedy, 11), None);
        // What waits has its place, and takes nothing of the others' own.
        assert_eq!(admit(&mut modest, 20), None);
        let share = admit(&mut modest, 10).unwrap();
        modest.release(share);
        // Its own part is free again, and it waits no longer.
        greedy.release(own);
        let small = admit(&mut greedy, 1).unwrap();
        greedy.release(most);
        greedy.release(small);
        // More than there is goes alone.
        let all = admit(&mut modest, 500).unwrap();
        assert_eq!(admit(&mut greedy, 20), None);
        modest.release(all);
        assert!(admit(&mut greedy, 20).is_some());
        // A connection that ends gives back what it held.
        drop(greedy);
        assert_eq!(pool.common.available_permits(), 100);
    }
}
