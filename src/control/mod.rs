//! The control plane: what the commands do.
//!
//! Knows: netlink, processes, `/sys`, `/run/swiftnbd`, signals. Does not know:
//! how a volume keeps its bytes, or how requests are answered.
//!
//! - [`attach`] starts a [`daemon`] and waits until the device is ready.
//! - [`daemon`] owns one device for as long as it is attached.
//! - [`guardian`] is a second process that disconnects the device if the first
//!   one dies.
//! - [`detach`], [`status`]: ask the daemon through its socket in the
//!   [`registry`].
//! - [`restart`]: it goes on in another program; [`handover`] is the old one's part,
//!   [`resume`] the new one's.
//! - [`memory`]: it cannot be made to wait by the kernel that writes to it; [`metrics`]:
//!   what it tells Prometheus.
//! - [`lease`]: the right to use a volume, and [`standing`]: who has it; [`reload`]: its
//!   credentials, read again; [`session`]: an attached device's life.
//! - [`original`]: the original's programs, by all of these.
//! - [`serve`] serves volumes over NBD, on a TCP address or a socket file.
//! - [`setup`], and [`volumes`]: list, lock, unlock: they touch containers only. So do
//!   [`delete`], [`rekey`], [`check`], and [`upload`], [`download`] and [`convert`] with
//!   what they share, [`transfer`].
//! - [`open`] opens a volume of format 2, with its [`passphrase`].
//! - [`boot`] and [`service`]: what the units need.

pub mod attach;
pub mod attachment;
pub mod boot;
pub mod check;
pub mod convert;
pub mod daemon;
pub mod delete;
pub mod detach;
pub mod download;
pub mod explain;
pub mod guardian;
pub mod handover;
pub mod lease;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod open;
pub mod original;
pub mod passphrase;
pub mod registry;
pub mod rekey;
pub mod reload;
pub mod restart;
pub mod resume;
pub mod serve;
pub mod service;
pub mod session;
pub mod setup;
pub mod signals;
pub mod standing;
pub mod status;
pub mod sysfs;
pub mod transfer;
pub mod upload;
pub mod volumes;

use std::future::Future;

use self::logging::Process;
use crate::cli::{Cli, Command, Target};
use crate::config::{Config, Volume};
use crate::error::{Error, Exit, Result};
use crate::manual;
use crate::stack::{self, Container};

/// Carries out a command line.
pub fn run(cli: &Cli) -> Result<()> {
    let process = match &cli.command {
        Command::Daemon(_) => Process::Daemon,
        Command::Serve(_) | Command::Boot | Command::Stop(_) => Process::Foreground,
        Command::Attach(args) if args.foreground => Process::Foreground,
        _ => Process::Command,
    };
    if let Command::Daemon(args) = &cli.command {
        return daemon::run_in_background(&cli.global, args);
    }
    if let Command::Resume(args) = &cli.command {
        return resume::run(&cli.global, args);
    }
    logging::start(&cli.global, process)?;
    if let Command::Detach(args) = &cli.command {
        return detach::run(args);
    }
    if let Command::Status(args) = &cli.command {
        return status::run(args);
    }
    if let Command::Restart(args) = &cli.command {
        return restart::run(args);
    }
    if let Command::Stop(args) = &cli.command {
        return boot::stop(&args.name);
    }
    if let Command::Manual(args) = &cli.command {
        return manual::write(&args.directory);
    }
    let config = Config::load(&cli.global.sources())?;
    for note in config.notes() {
        tracing::warn!("{note}");
    }
    match &cli.command {
        Command::Setup(args) => setup::run(&config, args),
        Command::List(args) => volumes::list(&config, args),
        Command::Lock(args) => volumes::lock(&config, args),
        Command::Unlock(args) => volumes::unlock(&config, args),
        Command::Download(args) => download::run(&config, args),
        Command::Upload(args) => upload::run(&config, args),
        Command::Convert(args) => convert::run(&config, args),
        Command::Check(args) => check::run(&config, args),
        Command::Passphrase(args) => rekey::run(&config, args),
        Command::Delete(args) => delete::run(&config, args),
        Command::Attach(args) if args.foreground => {
            daemon::run_in_foreground(&cli.global, &config, args)
        }
        Command::Attach(args) => attach::run(&cli.global, &config, args),
        Command::Serve(args) => serve::run(&config, args),
        Command::Boot => boot::start(&config),
        Command::Detach(_)
        | Command::Status(_)
        | Command::Daemon(_)
        | Command::Restart(_)
        | Command::Resume(_)
        | Command::Stop(_)
        | Command::Manual(_) => Ok(()),
    }
}

/// Runs a command's requests to a store.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(work),
        // No memory or no descriptors: nothing can be done, and nothing was begun.
        Err(error) => {
            eprintln!("swiftnbd: cannot start: {error}");
            std::process::exit(i32::from(Exit::Failed as u8));
        }
    }
}

/// Opens a volume's container. Nothing is sent yet.
fn container(volume: &Volume) -> Result<Container> {
    stack::container(volume).map_err(|error| explain::store(volume, &error))
}

/// Refuses what only root can do, before anything is touched.
fn require_root(doing: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Exit::Denied, format!("{doing} needs root")).hint("run it with sudo"))
}

/// The entry of a target that is attached here.
fn find(target: &Target) -> Result<registry::Entry> {
    let found = match target {
        Target::Device(device) => registry::entry(*device),
        Target::Name(name) => registry::entries()
            .into_iter()
            .find(|entry| entry.volume == *name),
    };
    found.ok_or_else(|| {
        let what = match target {
            Target::Device(device) => format!("{device} is not attached by swiftnbd"),
            Target::Name(name) => format!("volume {name} is not attached on this machine"),
        };
        Error::new(Exit::NotFound, what).hint("`swiftnbd status` shows what is attached")
    })
}
