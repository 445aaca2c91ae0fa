//! The bounds on what one connection may hold in memory.

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

/// What is in flight, against what may be.
#[derive(Debug)]
pub(super) struct InFlight {
    limits: Limits,
    requests: usize,
    bytes: u64,
}

impl InFlight {
    pub(super) fn new(limits: Limits) -> InFlight {
        InFlight {
            limits,
            requests: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Takes a place for a request with `bytes` of data, if there is room. A
    /// request larger than the limit goes when no other has data in flight.
    pub(super) fn admit(&mut self, bytes: u64) -> bool {
        let room = self.limits.bytes.saturating_sub(self.bytes);
        let fits = bytes <= room || self.bytes == 0;
        if !fits || self.requests >= self.limits.requests.max(1) {
            return false;
        }
        self.requests += 1;
        self.bytes += bytes;
        true
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.requests -= 1;
        self.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold() {
        let mut in_flight = InFlight::new(Limits {
            requests: 3,
            bytes: 100,
        });
        assert!(in_flight.admit(60));
        assert!(!in_flight.admit(41));
        assert!(in_flight.admit(40));
        assert!(in_flight.admit(0));
        assert!(!in_flight.admit(0));
        in_flight.release(60);
        assert!(in_flight.admit(60));
    }

    #[test]
    fn a_large_request_goes_alone() {
        let mut in_flight = InFlight::new(Limits {
            requests: 3,
            bytes: 100,
        });
        assert!(in_flight.admit(1));
        assert!(!in_flight.admit(1000));
        in_flight.release(1);
        assert!(in_flight.admit(1000));
        assert!(!in_flight.admit(1));
        assert!(in_flight.admit(0));
        in_flight.release(1000);
        assert!(!in_flight.is_empty());
        in_flight.release(0);
        assert!(in_flight.is_empty());
    }
}
