//! `detach`: takes the device for itself, so that nobody can mount it any more,
//! has its daemon write it out, make everything durable and disconnect, and
//! returns when the daemon has ended and the container is unlocked.
//!
//! Whatever waits for the device is the daemon's to do: a process that waits for a
//! block device cannot be interrupted, and the daemon can end the wait.

use std::io;
use std::time::Duration;

use super::lease::way_back;
use super::netlink::Nbd;
use super::registry::{self, Client, Entry, Request, Response};
use super::sysfs::{self, NotReleased};
use super::{find, require_root};
use crate::cli;
use crate::config::NbdDevice;
use crate::error::{Error, Exit, Result};

/// How often, and how long apart, a device is asked for that a prober (udev) may
/// have open for a moment.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Detaches a device.
pub fn run(args: &cli::Detach) -> Result<()> {
    require_root("detach")?;
    let entry = find(&args.target)?;
    let Some(device) = entry.nbd_device() else {
        return Err(Error::failed(format!("{:?} is no device", entry.device)));
    };
    let mut client = match Client::connect(device) {
        Ok(client) => client,
        Err(error) => return clean_up_after_death(device, &entry, &error),
    };
    // Held open until the daemon has ended: in between, nobody can mount it.
    let _released = match take(device) {
        Ok(released) => Some(released),
        Err(error) if args.force => {
            eprintln!(
                "swiftnbd: {}; what it has not written is lost",
                error.message
            );
            None
        }
        Err(error) => return Err(error),
    };
    let timeout = args.timeout.map(|timeout| timeout.as_secs());
    let request = Request::Detach {
        force: args.force,
        timeout,
    };
    let answer = client.ask(&request, None);
    let notes = match answer {
        Ok(Response::Detached { notes }) => notes,
        Ok(Response::Failed(error)) => return Err(error),
        Ok(Response::Status(_) | Response::Restarted { .. }) => {
            return Err(Error::failed("the daemon answered nonsense"));
        }
        Err(error) => {
            return Err(
                Error::failed(format!("{device}: the daemon did not answer: {error}"))
                    .hint("its log may say more"),
            );
        }
    };
    client
        .wait_for_end()
        .map_err(|error| Error::failed(format!("{device}: {error}")))?;
    match notes.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(notes.join("\n"))),
    }
}

fn take(device: NbdDevice) -> Result<sysfs::Released> {
    let mut tries = 0;
    loop {
        match sysfs::release(device) {
            Ok(released) => return Ok(released),
            Err(NotReleased::Held(who)) => {
                tries += 1;
                let lasting = who.contains("mounted on") || tries >= TRIES;
                if lasting {
                    return Err(Error::new(Exit::InUse, who)
                        .hint("unmount it first; it goes on working until then"));
                }
                nap(BETWEEN_TRIES);
            }
            Err(NotReleased::Failed(error)) => {
                return Err(Error::failed(format!("cannot open {device}: {error}")));
            }
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a command waits for the kernel; no runtime here"
)]
fn nap(time: Duration) {
    std::thread::sleep(time);
}

/// The daemon is dead: disconnects what is left of the device, and says how
/// things stand.
fn clean_up_after_death(device: NbdDevice, entry: &Entry, error: &io::Error) -> Result<()> {
    if sysfs::connected_by(device) == Some(entry.connected_by) {
        let nbd = Nbd::open().map_err(|error| Error::failed(error.to_string()))?;
        nbd.disconnect(device.index())
            .map_err(|error| Error::failed(error.to_string()))?;
    }
    registry::remove(device);
    let volume = &entry.volume;
    let lost = match entry.reattach_seconds {
        0 => "what was not flushed is lost",
        _ => "what the journal has is stored when the volume is attached",
    };
    Err(Error::failed(format!(
        "{device}: the daemon of volume {volume} (process {}) is dead: {error}. The device is \
         released; {lost}, and its container is still locked by {}",
        entry.pid, entry.client
    ))
    .hint(way_back(volume, entry.format)))
}
