//! The guardian: a small process that outlives a daemon which dies.
//!
//! When a daemon dies, the kernel fails new requests, but those that were in
//! flight hang until somebody sends DISCONNECT. The guardian does: it reads a pipe
//! whose other end only the daemon has, and acts when that closes without a
//! farewell. A crash is then EIO within moments instead of a hang.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::SigSet;

use super::netlink::Nbd;
use super::sysfs;
use crate::config::NbdDevice;
use crate::error::{Error, Result};

/// The hidden verb that a guardian is started with.
pub const VERB: &str = "__guardian";

/// The longest line that a daemon writes.
const MAX_LINE: u64 = 4096;

/// A daemon's end of the pipe.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    pipe: ChildStdin,
}

impl Guardian {
    /// Starts a guardian. It does nothing before it is told a device.
    pub fn start() -> Result<Guardian> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::failed(format!("cannot start the guardian process: {error}"))
        };
        let mut child = Command::new("/proc/self/exe")
            .arg(VERB)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(&error))?;
        let pipe = child
            .stdin
            .take()
            .ok_or_else(|| failed(&"it has no pipe"))?;
        Ok(Guardian { child, pipe })
    }

    /// From now on it disconnects `device`, should this process die, provided that
    /// the device still belongs to `backend`.
    pub fn guard(&mut self, device: NbdDevice, backend: &str) -> Result<()> {
        let line = format!("{} {backend}\n", device.index());
        let written = self.pipe.write_all(line.as_bytes());
        written.map_err(|error| Error::failed(format!("the guardian process died: {error}")))
    }

    /// The device is disconnected: nothing is left to guard.
    pub fn dismiss(mut self) {
        let _ = self.pipe.write_all(b"done\n");
        drop(self.pipe);
        let _ = self.child.wait();
    }
}

/// The guardian's process.
pub fn run() -> Result<()> {
    // Whatever stops the daemon (a terminal, a service manager) must not stop its
    // guardian first.
    let _ = SigSet::all().thread_block();
    let daemon = std::os::unix::process::parent_id();
    let mut lines = BufReader::new(std::io::stdin());
    let mut guarded = None;
    loop {
        let mut line = String::new();
        let read = (&mut lines).take(MAX_LINE).read_line(&mut line);
        match (read, line.trim_end().split_once(' ')) {
            (Ok(1..), Some((index, backend))) => {
                let device = index.parse().ok().and_then(NbdDevice::new);
                guarded = device.map(|device| (device, backend.to_owned()));
            }
            (Ok(1..), None) => return Ok(()),
            (Ok(0) | Err(_), _) => break,
        }
    }
    match guarded {
        Some((device, backend)) => disconnect(device, &backend, daemon),
        None => Ok(()),
    }
}

/// Disconnects the device if it is still the one that the dead daemon connected.
fn disconnect(device: NbdDevice, backend: &str, daemon: u32) -> Result<()> {
    let same = sysfs::connected_by(device).is_some_and(|pid| pid == daemon)
        && sysfs::backend(device).is_none_or(|found| found == backend);
    if !same {
        return Ok(());
    }
    let nbd = Nbd::open().map_err(|error| Error::failed(error.to_string()))?;
    nbd.disconnect(device.index())
        .map_err(|error| Error::failed(error.to_string()))
}
