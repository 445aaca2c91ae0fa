//! The guardian: a small process that outlives a daemon which dies.
//!
//! When a daemon dies, the kernel fails new requests, but those that were in
//! flight hang until somebody sends DISCONNECT. The guardian does: it reads a pipe
//! whose other end only the daemon has, and acts when that closes without a
//! farewell. A crash is then EIO within moments instead of a hang. Where another daemon
//! may take the device over, it waits for that as long as the kernel does.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::netlink::Nbd;
use super::registry::Client;
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
    /// the device still belongs to `backend` and is the one that the process
    /// `connected_by` has connected.
    pub fn guard(
        &mut self,
        device: NbdDevice,
        connected_by: u32,
        backend: &str,
        when: When,
    ) -> Result<()> {
        let wait = match when {
            When::AtOnce => "0".to_owned(),
            When::After(seconds) => seconds.to_string(),
            When::Never => NEVER.to_owned(),
        };
        let line = format!("{} {connected_by} {wait} {backend}\n", device.index());
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
        Some(guarded) => guarded.disconnect(),
        None => Ok(()),
    }
}

/// When a dead daemon's device is disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as it is dead.
    AtOnce,
    /// If no other daemon has it after so many seconds.
    After(u64),
    /// Somebody else sees to that.
    Never,
}

/// [`When::Never`] in a line.
const NEVER: &str = "-";

/// Between two looks whether another daemon has the device.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// A device that is guarded.
#[derive(Debug, PartialEq, Eq)]
struct Guarded {
    device: NbdDevice,
    connected_by: u32,
    when: When,
    backend: String,
}

/// What a daemon says: the device, the process that connected it, how long to wait, the
/// backend.
fn guarded_by(line: &str) -> Option<Guarded> {
    let mut words = line.trim_end().splitn(4, ' ');
    let device = NbdDevice::new(words.next()?.parse().ok()?)?;
    let connected_by = words.next()?.parse().ok()?;
    let when = match words.next()? {
        NEVER => When::Never,
        "0" => When::AtOnce,
        seconds => When::After(seconds.parse().ok()?),
    };
    let backend = words.next()?.to_owned();
    Some(Guarded {
        device,
        connected_by,
        when,
        backend,
    })
}

impl Guarded {
    /// Whether the device is still the one that the dead daemon had.
    fn is_there(&self) -> bool {
        sysfs::is_connected(self.device, self.connected_by, &self.backend)
    }

    /// Disconnects the device if nobody else has it, when it is time.
    fn disconnect(&self) -> Result<()> {
        let looks = match self.when {
            When::Never => return Ok(()),
            When::AtOnce => 0,
            // The kernel gives up first.
            When::After(seconds) => seconds + 1,
        };
        for _ in 0..looks {
            nap(BETWEEN_LOOKS);
            if !self.is_there() || Client::connect(self.device).is_ok() {
                return Ok(());
            }
        }
        if !self.is_there() {
            return Ok(());
        }
        disconnect(self.device)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "this process does nothing else; no runtime here"
)]
fn nap(time: Duration) {
    std::thread::sleep(time);
}

fn disconnect(device: NbdDevice) -> Result<()> {
    let nbd = Nbd::open().map_err(|error| Error::failed(error.to_string()))?;
    nbd.disconnect(device.index())
        .map_err(|error| Error::failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_device_process_and_backend() {
        for (wait, when) in [
            ("0", When::AtOnce),
            ("-", When::Never),
            ("7", When::After(7)),
        ] {
            let line = format!("3 4711 {wait} swiftnbd:a volume\n");
            let guarded = guarded_by(&line).unwrap();
            assert_eq!((guarded.device.index(), guarded.connected_by), (3, 4711));
            assert_eq!(
                (guarded.when, &*guarded.backend),
                (when, "swiftnbd:a volume")
            );
        }
        for line in [
            "",
            "3",
            "3 4711",
            "3 x 0 swiftnbd:vol",
            "3 4711 x swiftnbd:vol",
            "-1 4711 0 swiftnbd:vol",
        ] {
            assert!(guarded_by(line).is_none(), "{line}");
        }
    }
}
