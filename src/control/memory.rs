//! What keeps the daemon alive, and the kernel from waiting for itself, when memory is
//! short: the kernel frees memory by writing dirty pages, and it writes those of our
//! device through us.
//!
//! Knows: what Linux offers for that. Does not know: what the memory is used for; it is
//! bounded by the volume's limits.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | we need memory to store what the kernel writes, and the kernel, to find some, writes to our device and waits for us | `PR_SET_IO_FLUSHER`: our allocations do not wait for writes, nor do ours count as dirtying pages |
//! | a page of ours was dropped or swapped out, and has to come back through our own device | the pages that we have touched are locked |
//! | the machine runs out of memory, and the kernel chooses us to die | it is told to choose anybody else |
//! | the driver sends a burst of writes into our socket; it takes their memory from the kernel's last reserve, without waiting for more to become free; there is none, the send fails (ENOBUFS), and the device with it | the socket takes no more at a time than a part of that reserve: then the driver waits, and memory is freed meanwhile |
//! | requests wait for room among the dirty data, and hold their own data meanwhile | what is in flight is bounded by `dirty`, too |
//!
//! Swap on a device of ours stays unsafe: the network below us needs memory, too.

use std::fs;
use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};

/// `PR_SET_IO_FLUSHER` of linux/prctl.h, since Linux 5.6.
const PR_SET_IO_FLUSHER: nix::libc::c_int = 57;
/// The least likely to be killed; oom_score_adj, in proc(5).
const NEVER: &str = "-1000";

/// A device's part of the reserve, and how much the kernel charges for a byte that is
/// sent: it doubles what was asked for.
const PART: u64 = 4;
const CHARGED: u64 = 2;
/// The least with which it works without a wait for each page.
const LEAST: u64 = 64 << 10;

/// How many bytes the kernel's end of a socket may hold, of at most `most`.
pub fn send_buffer(most: usize) -> usize {
    let reserve = fs::read_to_string("/proc/sys/vm/min_free_kbytes");
    let reserve = reserve
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    reserve.map_or(most, |kib| part(kib, most))
}

fn part(reserve_kib: u64, most: usize) -> usize {
    let part = reserve_kib.saturating_mul(1024) / PART / CHARGED;
    usize::try_from(part.max(LEAST)).unwrap_or(most).min(most)
}

/// Prepares this process. To be called while it has one thread: threads and processes
/// that it starts later inherit two of the three. What cannot be had is only logged: a
/// container may not allow it, and the device works without, as long as there is memory.
pub fn prepare() {
    let steps = [
        ("be marked as one that memory is freed through", flush_io()),
        ("lock its memory", lock()),
        (
            "be spared when memory runs out",
            fs::write("/proc/self/oom_score_adj", NEVER),
        ),
    ];
    for (what, done) in steps {
        if let Err(error) = done {
            tracing::warn!(
                "this process cannot {what} ({error}): should memory run short, the machine may \
                 wait for it and it for the machine"
            );
        }
    }
}

fn flush_io() -> io::Result<()> {
    // SAFETY: the arguments are numbers; the kernel sets a flag of this thread, which only
    // changes how its memory is allocated.
    let done = unsafe { nix::libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Locks what is touched from now on, and was until now; what is only reserved, as most
/// of a thread's stack is, takes no memory.
fn lock() -> io::Result<()> {
    let on_fault = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    mlockall(flags).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_has_a_small_buffer() {
        assert_eq!(part(2048, 4 << 20), 256 << 10);
        assert_eq!(part(67584, 4 << 20), 4 << 20);
        assert_eq!(part(0, 4 << 20), 64 << 10);
        assert_eq!(part(u64::MAX, 4 << 20), 4 << 20);
    }
}
