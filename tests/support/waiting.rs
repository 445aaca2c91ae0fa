//! Waiting for another process, bounded.
#![allow(
    clippy::disallowed_methods,
    reason = "other processes do not follow a paused clock"
)]
#![allow(dead_code, reason = "no test program uses all of it")]

use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine: the longest is the pause
/// after an unclean end, which is as long as a request to Swift can live.
pub const PATIENCE: Duration = Duration::from_secs(150);

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Waits until it holds; panics when that takes too long.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Lets time pass in which something must not happen.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
