//! `attach`, the part that the user waits for: it starts the daemon as a process
//! of its own and passes on what that says, until the device is ready.
//!
//! The daemon is this program started anew: it shares no memory, no threads and
//! no descriptors with the caller but one pipe, its stdout, on which it reports, and
//! another, its stdin, if a passphrase was typed or came through a descriptor.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::registry::{self, Entry};
use super::{block_on, container, passphrase, require_root, sysfs};
use crate::cli::{Attach, Global, PASSPHRASE_ON_STDIN};
use crate::config::{Config, NbdDevice, Volume};
use crate::credentials::Passphrase;
use crate::error::{Error, Exit, Result};

/// The hidden verb that a daemon is started with.
pub const DAEMON_VERB: &str = "__daemon";

/// The longest report, in bytes.
const MAX_REPORT: u64 = 64 << 10;

/// What a daemon says before it is on its own, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Something takes time; a sentence.
    Notice(String),
    /// The device is ready.
    Ready(String),
    /// It is not, and will not be.
    Failed(Error),
}

/// Attaches in the background and prints the device.
pub fn run(global: &Global, config: &Config, args: &Attach) -> Result<()> {
    require_root("attach")?;
    let mut volume = config.volume(&args.name)?;
    sysfs::ensure_driver()?;
    choose_device(&volume, args)?;
    passphrase::choose(&mut volume, &args.passphrase)?;
    let container = container(&volume)?;
    block_on(passphrase::ask_if_needed(&mut volume, &container))?;
    let handed_on = match &volume.passphrase {
        Some(Passphrase::Here(bytes)) => Some(bytes),
        Some(Passphrase::File(_)) | None => None,
    };
    let mut daemon = Command::new("/proc/self/exe")
        .arg0("swiftnbd")
        .args(arguments(global, args))
        .args(handed_on.map(|_| format!("--{PASSPHRASE_ON_STDIN}")))
        .stdin(match handed_on {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::failed(format!("cannot start the daemon: {error}")))?;
    if let (Some(bytes), Some(mut stdin)) = (handed_on, daemon.stdin.take()) {
        // One that has ended says why below.
        let _ = stdin.write_all(bytes);
    }
    let device = await_ready(&mut daemon, |how| {
        Error::failed(format!(
            "volume {}: the daemon died before the device was ready ({how})",
            args.name
        ))
        .hint("its log may say more: syslog, or the file of --log-file")
    })?;
    println!("{device}");
    Ok(())
}

/// Passes on what a process says on its stdout, until it is ready: what it says
/// then. `died` is the error if it ends without a word.
pub fn await_ready(daemon: &mut Child, died: impl Fn(String) -> Error) -> Result<String> {
    let Some(reports) = daemon.stdout.take() else {
        return Err(Error::failed("a process was started without a pipe"));
    };
    let mut reports = BufReader::new(reports);
    loop {
        let mut line = String::new();
        let read = (&mut reports).take(MAX_REPORT).read_line(&mut line);
        let report = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        match report {
            Some(Report::Notice(notice)) => eprintln!("swiftnbd: {notice}"),
            Some(Report::Ready(what)) => return Ok(what),
            Some(Report::Failed(error)) => return Err(error),
            None => {
                return Err(died(match daemon.wait() {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                }));
            }
        }
    }
}

/// The device that was asked for, on the command line or in the configuration.
fn wanted_device(volume: &Volume, args: &Attach) -> Option<NbdDevice> {
    args.device.or(volume.device)
}

/// Which device a volume is to be attached to.
#[derive(Debug)]
pub enum Chosen {
    /// The one that was asked for.
    This(NbdDevice),
    /// Any that is free.
    Any,
    /// The one that a daemon of this volume has left when it died, and that waits for
    /// another one.
    Orphan(Box<Entry>),
}

/// Decides it, and refuses one that cannot be had.
pub fn choose_device(volume: &Volume, args: &Attach) -> Result<Chosen> {
    let wanted = wanted_device(volume, args);
    match (registry::orphan(&volume.name), wanted) {
        (Some(orphan), wanted) => match wanted.is_none_or(|one| one.to_string() == orphan.device) {
            true => Ok(Chosen::Orphan(Box::new(orphan))),
            false => {
                let (name, device) = (&volume.name, &orphan.device);
                let text = format!(
                    "volume {name}: its last daemon died, and {device} waits for another one"
                );
                Err(Error::new(Exit::InUse, text).hint(format!(
                    "attach it there; or `swiftnbd detach {device}` fails that device"
                )))
            }
        },
        (None, Some(device)) => check_free(device).map(|()| Chosen::This(device)),
        (None, None) => Ok(Chosen::Any),
    }
}

/// Refuses a device that is not there or in use.
fn check_free(device: NbdDevice) -> Result<()> {
    if !sysfs::exists(device) {
        return Err(
            Error::new(Exit::NotFound, format!("{device} does not exist")).hint(
                "`modprobe nbd nbds_max=N` makes N devices; without DEVICE, a free one is taken",
            ),
        );
    }
    match sysfs::connected_by(device) {
        None => Ok(()),
        Some(pid) => {
            let backend = sysfs::backend(device);
            let what = backend.map_or(String::new(), |backend| format!(" for {backend}"));
            Err(Error::new(
                Exit::InUse,
                format!("{device} is in use: process {pid} has connected it{what}"),
            )
            .hint("without DEVICE, a free one is taken"))
        }
    }
}

fn arguments(global: &Global, args: &Attach) -> Vec<std::ffi::OsString> {
    let mut words: Vec<std::ffi::OsString> = vec![DAEMON_VERB.into(), args.name.clone().into()];
    if let Some(device) = args.device {
        words.push(device.path().into());
    }
    for (option, given) in [
        ("--read-only", args.read_only),
        ("--takeover", args.takeover),
    ] {
        if given {
            words.push(option.into());
        }
    }
    if let Some(path) = &args.passphrase.passphrase_file {
        // The daemon works in another directory.
        let whole = std::path::absolute(path);
        let path = whole.unwrap_or_else(|_| path.clone());
        words.extend(["--passphrase-file".into(), path.into()]);
    }
    words.extend(global.words());
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    /// The daemon reads it in another directory than the one where it was named.
    #[test]
    fn a_passphrase_file_is_handed_on_whole() {
        let words = ["swiftnbd", "attach", "vol", "--passphrase-file", "its/key"];
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Attach(args) = &cli.command else {
            panic!("{:?}", cli.command)
        };
        let handed_on = arguments(&cli.global, args);
        let path = std::env::current_dir().unwrap().join("its/key");
        assert!(handed_on.contains(&path.into_os_string()), "{handed_on:?}");
    }
}
