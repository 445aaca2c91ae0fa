//! `restart`: has daemons go on as the program that this command is. Nothing that uses a
//! device notices more than a pause.

use super::handover::installed;
use super::registry::{self, Client, Entry, Request, Response};
use super::{find, require_root};
use crate::cli::{self, Restarted};
use crate::error::{Error, Exit, Result};

/// Restarts one device, or all, one after the other.
pub fn run(args: &cli::Restart) -> Result<()> {
    require_root("restart")?;
    let program = installed()?;
    let entries = match &args.target {
        Restarted::One(target) => vec![find(target)?],
        Restarted::All => registry::entries(),
    };
    if entries.is_empty() {
        println!("nothing is attached");
    }
    let mut failures = Vec::new();
    for entry in entries {
        let request = Request::Restart {
            program: program.clone(),
        };
        match restart(&entry, &request) {
            Ok((version, pause)) => println!(
                "{}: restarted as version {version}, after a pause of {}.{:03} s",
                entry.device,
                pause / 1000,
                pause % 1000
            ),
            Err(error) => failures.push(error),
        }
    }
    // Each is told, the last one as the command's own error.
    let last = failures.pop();
    for error in failures {
        eprintln!("swiftnbd: {error}");
    }
    last.map_or(Ok(()), Err)
}

/// The version and the pause in milliseconds.
fn restart(entry: &Entry, request: &Request) -> Result<(String, u64)> {
    let device = &entry.device;
    let Some(number) = entry.nbd_device() else {
        return Err(Error::failed(format!("{device:?} is no device")));
    };
    let mut client = Client::connect(number).map_err(|error| {
        Error::failed(format!(
            "{device}: the daemon of volume {} is dead: {error}",
            entry.volume
        ))
        .hint(format!("`swiftnbd detach {device}` releases the device"))
    })?;
    match client.ask(request, None) {
        Ok(Response::Restarted { version, pause }) => Ok((version, pause)),
        Ok(Response::Failed(error)) => Err(Error {
            message: format!("{device} was not restarted and works on: {}", error.message),
            ..error
        }),
        Ok(_) => Err(Error::failed("the daemon answered nonsense")),
        Err(error) => Err(Error::new(
            Exit::Failed,
            format!("{device}: the daemon did not answer: {error}"),
        )
        .hint("its log may say more; one from before version 1 cannot be restarted")),
    }
}
