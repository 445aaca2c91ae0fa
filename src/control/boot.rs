//! What the units in `udev/` run besides `attach`: the start of every volume that
//! is attached at boot, and the stop of one.
//!
//! Knows: the names of units, systemctl, umount. Does not know: how a volume is
//! attached or detached.

use std::process::Command;
use std::time::Duration;

use super::registry::{self, Client, Entry};
use super::{detach, require_root, sysfs};
use crate::cli::{self, Target};
use crate::config::Config;
use crate::error::{Error, Exit, Result};

/// The template of the units that attach a volume each.
const TEMPLATE: &str = "swiftnbd@.service";

/// Between two attempts to unmount what services that end use as well.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Starts the unit of each volume that is attached at boot, and waits for none of
/// them. What keeps one from being attached is in its own unit's log.
pub fn start(config: &Config) -> Result<()> {
    let mut failed = Vec::new();
    for name in config.names_at_boot() {
        tracing::info!(volume = name, "to be attached");
        // One at a time: a name that cannot be started does not stop the others.
        if let Err(error) = start_unit(name) {
            tracing::error!(volume = name, "{}", error.message);
            failed.push(name);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "the units of these volumes could not be started: {}",
            failed.join(", ")
        ))),
    }
}

fn start_unit(name: &str) -> Result<()> {
    let unit = output(
        Command::new("systemd-escape")
            .arg(format!("--template={TEMPLATE}"))
            .args(["--", name]),
    )?;
    output(Command::new("systemctl").args(["start", "--no-block", "--", &unit])).map(drop)
}

/// Detaches a volume whose unit stops, or has stopped: only if it is the unit's own
/// daemon (`MAINPID`, from systemd) that has it. One that is not attached any more
/// is no failure: its end is why the unit stops. What a dead daemon has left is
/// cleared away, and said.
pub fn stop(name: &str) -> Result<()> {
    require_root("stopping a volume")?;
    let attached = registry::entries()
        .into_iter()
        .find(|entry| entry.volume == name);
    let Some(entry) = attached else {
        return Ok(());
    };
    let units = std::env::var("MAINPID").ok();
    let units = units.is_some_and(|pid| pid == entry.pid.to_string());
    let alive = entry
        .nbd_device()
        .is_some_and(|device| Client::connect(device).is_ok());
    if alive && !units {
        return Ok(());
    }
    if !alive && goes_on(&entry) {
        return Ok(());
    }
    if alive && the_machine_stops() {
        unmount(&entry);
    }
    detach::run(&cli::Detach {
        target: Target::Name(name.to_owned()),
        force: false,
        timeout: None,
    })
}

/// Whether another daemon goes on with the device of a dead one. systemd tells of its
/// death in `SERVICE_RESULT` and `EXIT_STATUS`; it starts the unit again by itself only
/// where Swift could not be reached.
fn goes_on(entry: &Entry) -> bool {
    let said = |name| std::env::var(name).unwrap_or_default();
    let crashed = !["", "success"].contains(&said("SERVICE_RESULT").as_str());
    let Some(device) = entry.nbd_device() else {
        return false;
    };
    if !crashed || !entry.is_orphaned() || the_machine_stops() {
        return false;
    }
    let since = entry.orphaned.unwrap_or_else(registry::unix_now);
    if registry::unix_now() >= since.saturating_add(entry.reattach_seconds) {
        return false;
    }
    let remembered = Entry {
        orphaned: Some(since),
        ..entry.clone()
    };
    let unreachable = said("EXIT_STATUS") == (Exit::Unreachable as u8).to_string();
    let started = remembered.write(device).and_then(|()| {
        // Not at once again and again.
        nap();
        match unreachable {
            true => Ok(()),
            false => start_unit(&entry.volume),
        }
    });
    match started {
        Ok(()) => {
            tracing::warn!(%device, volume = entry.volume, "the daemon died; another one goes on");
            true
        }
        Err(error) => {
            tracing::error!(%device, "no other daemon can be started: {}", error.message);
            false
        }
    }
}

/// Whether the whole machine is being stopped, and not this volume alone.
fn the_machine_stops() -> bool {
    // Its status is not 0 in this state.
    let state = Command::new("systemctl").arg("is-system-running").output();
    state.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
}

/// Unmounts the device. The mounts that systemd knows as the network's are gone by
/// now. It would unmount one that was made without `_netdev` only after the network,
/// too late for its last writes. Services may still use it, and end as this one
/// does: the unit's time limit ends the wait.
fn unmount(entry: &Entry) {
    let Some(device) = entry.nbd_device() else {
        return;
    };
    let mut said = None;
    while let Some(point) = sysfs::mount_point(device) {
        tracing::info!(%device, "unmounting {point}");
        // A unit's command has a mount namespace of its own, with full privileges too.
        let mut umount = Command::new("nsenter");
        umount.args(["--mount=/proc/1/ns/mnt", "umount", "--", &point]);
        let done = output(&mut umount);
        if let Err(error) = done {
            if said.as_ref() != Some(&error.message) {
                tracing::warn!(%device, "{}", error.message);
                said = Some(error.message);
            }
            nap();
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a command waits for others; no runtime here"
)]
fn nap() {
    std::thread::sleep(BETWEEN_TRIES);
}

/// What a program prints, without the line's end; fails with what it complains of.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Error::failed(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::failed(match why.is_empty() {
        true => format!("{program}: {}", output.status),
        false => why,
    }))
}
