//! The guardian: a small process that outlives a daemon which dies.
//!
//! When a daemon dies, the kernel fails new requests, but those that were in
//! flight hang until somebody sends DISCONNECT. The guardian does: it reads a pipe
//! whose other end only the daemon has, and acts when that closes without a
//! farewell. A crash is then EIO within moments instead of a hang.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::netlink::Nbd;
use super::sysfs;
use crate::config::NbdDevice;
use crate::error::{Error, Result};

/// The hidden verb that a guardian is started with.
pub const VERB: &str = "__guardian";

/// What a daemon writes when there is nothing left to guard.
const FAREWELL: &str = "done";

/// The longest line that a daemon writes.
const MAX_LINE: u64 = 4096;

/// A daemon's end of the pipe.
#[derive(Debug)]
pub struct Guardian {
    process: Pid,
    pipe: File,
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
        let pipe = child.stdin.take();
        let pipe = pipe.ok_or_else(|| failed(&"it has no pipe"))?;
        Ok(Guardian::adopt(OwnedFd::from(pipe), child.id()))
    }

    /// One that the program before has started: the pipe, and its process.
    pub fn adopt(pipe: OwnedFd, process: u32) -> Guardian {
        Guardian {
            process: Pid::from_raw(process as i32),
            pipe: File::from(pipe),
        }
    }

    /// The pipe, and its process.
    pub fn hand_over(self) -> (OwnedFd, u32) {
        (self.pipe.into(), self.process.as_raw() as u32)
    }

    /// From now on it disconnects `device`, should this process die, provided that
    /// the device still belongs to `backend`.
    pub fn guard(&mut self, device: NbdDevice, backend: &str) -> Result<()> {
        let daemon = std::process::id();
        let line = format!("{} {daemon} {backend}\n", device.index());
        let written = self.pipe.write_all(line.as_bytes());
        written.map_err(|error| Error::failed(format!("the guardian process died: {error}")))
    }

    /// The device is disconnected: nothing is left to guard.
    pub fn dismiss(mut self) {
        let _ = writeln!(self.pipe, "{FAREWELL}");
        drop(self.pipe);
        let _ = waitpid(self.process, None);
    }
}

/// The guardian's process.
pub fn run() -> Result<()> {
    // Whatever stops the daemon (a terminal, a service manager) must not stop its
    // guardian first.
    let _ = SigSet::all().thread_block();
    let mut lines = BufReader::new(std::io::stdin());
    let mut guarded = None;
    loop {
        let mut line = String::new();
        let read = (&mut lines).take(MAX_LINE).read_line(&mut line);
        match read {
            Ok(1..) if line.trim_end() == FAREWELL => return Ok(()),
            Ok(1..) => guarded = guarded_by(&line),
            Ok(0) | Err(_) => break,
        }
    }
    match guarded {
        Some((device, daemon, backend)) => disconnect(device, &backend, daemon),
        None => Ok(()),
    }
}

/// What a daemon says: the device, its own process, the backend. (Asking who the
/// parent is would be too late when that has died already.)
fn guarded_by(line: &str) -> Option<(NbdDevice, u32, String)> {
    let mut words = line.trim_end().splitn(3, ' ');
    let device = NbdDevice::new(words.next()?.parse().ok()?)?;
    let daemon = words.next()?.parse().ok()?;
    Some((device, daemon, words.next()?.to_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_device_process_and_backend() {
        let (device, daemon, backend) = guarded_by("3 4711 swiftnbd:a volume\n").unwrap();
        assert_eq!((device.index(), daemon), (3, 4711));
        assert_eq!(backend, "swiftnbd:a volume");
        for line in [
            "",
            "3",
            "3 4711",
            "3 x swiftnbd:vol",
            "-1 4711 swiftnbd:vol",
        ] {
            assert!(guarded_by(line).is_none(), "{line}");
        }
    }
}
