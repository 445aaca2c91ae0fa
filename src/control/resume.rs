//! The program that goes on with a device: what [`handover`](super::handover) has passed
//! on becomes an attachment again. Until it serves, everything leads back to the program
//! before.
//!
//! Knows: the order in which a volume is opened again, and what of it may fail. Does not
//! know: how the device was attached ([`daemon`](super::daemon)).

use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use super::attachment::{Attachment, Transmission};
use super::daemon::{Reporter, metrics_of, runtime, to_the_end, when_dead};
use super::guardian::Guardian;
use super::handover::{self, Passed, State, Told};
use super::lease::Lease;
use super::logging::{self, Process};
use super::netlink::Nbd;
use super::registry::{self, Entry, Response};
use super::session::Session;
use super::signals::Signals;
use super::{block_on, container, memory, open, require_root, service};
use crate::cli::{Global, Resume};
use crate::config::{Config, Volume};
use crate::device::Device;
use crate::error::{Error, Exit, Result};

/// Between two attempts to open the volume of a device that is there.
const BETWEEN_TRIES: Duration = Duration::from_secs(2);

/// Goes on with the device of the program before, or only looks whether it could.
pub fn run(global: &Global, args: &Resume) -> Result<()> {
    let (state, trial) = handover::begin(args)?;
    if trial {
        let result = try_out(global, args, &state);
        handover::report(&result);
        return result;
    }
    let mut inherited = Some(Inherited::of(&state)?);
    let process = match state.foreground {
        true => Process::Foreground,
        false => Process::Daemon,
    };
    let logging = logging::start(global, process);
    let went_on = logging.and_then(|()| go_on(global, args, &state, &mut inherited));
    match (went_on, inherited) {
        // It did not even begin to serve.
        (Err(error), Some(inherited)) => {
            let device = &state.entry.device;
            tracing::error!("cannot go on with {device}: {}", error.message);
            Err(inherited.give_up(global, state, error))
        }
        (served, _) => served,
    }
}

/// What the program before passed on, kept until this one serves.
struct Inherited {
    _kept: Vec<OwnedFd>,
}

impl Inherited {
    fn of(state: &State) -> Result<Inherited> {
        let passed = state.passed();
        let passed = passed.ok_or_else(|| Error::usage("this verb is not for people"))?;
        let numbers = [
            passed.kernel,
            passed.lock,
            passed.listener,
            passed.guardian,
            passed.client,
        ];
        let kept = numbers
            .into_iter()
            .chain(passed.netlink)
            .chain(passed.former);
        let kept = kept.map(handover::adopt).collect::<Result<_>>()?;
        Ok(Inherited { _kept: kept })
    }

    /// The program before takes over again, if it has not tried that yet. Else the
    /// guardian disconnects the device when this process has ended.
    fn give_up(self, global: &Global, mut state: State, error: Error) -> Error {
        let former = state.take_former();
        match former {
            Some(former) => {
                state.failed = Some(error);
                handover::become_program(&handover::path_of(former), global, &state)
            }
            None => {
                handover::answer(&state, &Response::Failed(error.clone()));
                if let Some(number) = state.entry.nbd_device() {
                    registry::remove(number);
                }
                error
            }
        }
    }
}

/// The volume as the configuration has it now, which has to be where it was.
fn volume_of(global: &Global, args: &Resume, state: &State) -> Result<Volume> {
    let directory = &state.directory;
    std::env::set_current_dir(directory).map_err(|error| {
        Error::failed(format!("the directory {}: {error}", directory.display()))
    })?;
    let config = Config::load(&global.sources())?;
    let mut volume = config.volume(&args.name)?;
    volume.read_only = state.entry.read_only;
    if let Some(passphrase) = state.passphrase() {
        volume.passphrase = Some(passphrase);
    }
    if registry::identity(&volume) != state.place {
        let text = format!("volume {}: it is kept elsewhere now", volume.name);
        return Err(Error::usage(text).hint("detach it and attach it again"));
    }
    Ok(volume)
}

/// A trial: all that can fail and touches nothing.
fn try_out(global: &Global, args: &Resume, state: &State) -> Result<()> {
    require_root("attach")?;
    let volume = volume_of(global, args, state)?;
    let container = container(&volume)?;
    let is = block_on(open::could(&volume, &container))?;
    state.check(is)
}

fn go_on(
    global: &Global,
    args: &Resume,
    state: &State,
    inherited: &mut Option<Inherited>,
) -> Result<()> {
    let passed = state.passed();
    let passed = passed.ok_or_else(|| Error::usage("this verb is not for people"))?;
    let number = state.entry.nbd_device();
    let number = number.ok_or_else(|| Error::failed("the state names no device"))?;
    let configured = || {
        let volume = volume_of(global, args, state)?;
        if !state.foreground {
            std::env::set_current_dir("/").map_err(|error| Error::failed(error.to_string()))?;
        }
        Ok(volume)
    };
    let volume = configured()?;
    memory::prepare();
    // The old guardian guards the device until this one does; and if nothing comes of
    // it, this one must not disconnect what the program before goes on with.
    let mut guardian = Some(Guardian::start()?);
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        service::begin();
        let signals = Signals::listen()?;
        handover::unblock_signals();
        let (volume, lease, device) = reopen(volume, configured, state, passed).await?;
        let failed = |error: std::io::Error| Error::failed(format!("cannot go on: {error}"));
        let kernel = handover::again(passed.kernel).map_err(failed)?;
        let listener = handover::again(passed.listener).map_err(failed)?;
        let old_guardian = handover::again(passed.guardian).map_err(failed)?;
        let connected = passed.netlink.map(handover::again).transpose();
        let connected = connected.map_err(failed)?;
        let kernel = UnixStream::from_std(StdUnixStream::from(kernel)).map_err(failed)?;
        let listener = StdUnixListener::from(listener);
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let nbd = Arc::new(Nbd::open().map_err(|error| Error::failed(error.to_string()))?);
        let entry = Entry {
            pid: std::process::id(),
            format: lease.format(),
            // The process is the one that connected it.
            connected_by: match state.entry.connected_by {
                0 => std::process::id(),
                pid => pid,
            },
            attachments: vec![lease.attach().to_string()],
            reattach_seconds: match device.stats().log.and_then(|log| log.journal) {
                Some(journal) if journal.relied_on => state.entry.reattach_seconds,
                _ => 0,
            },
            ..state.entry.clone()
        };
        entry.write(number)?;
        let guards = guardian.take();
        let mut guardian = guards.ok_or_else(|| Error::failed("there is no guardian"))?;
        let when = when_dead(entry.reattach_seconds);
        guardian.guard(number, entry.connected_by, &state.backend, when)?;
        // From here on nothing leads back, and nothing fails.
        let attachment = Attachment {
            number,
            device: device.clone(),
            nbd,
            transmission: Transmission::start(kernel, device, &volume),
            backend: state.backend.clone(),
            connected,
            entry,
        };
        let pause = handover::boot_clock().saturating_sub(state.stopped);
        let told = Told {
            directory: state.directory.clone(),
            global: global.clone(),
            foreground: state.foreground,
            passphrase: state.passphrase(),
        };
        let place = state.place.clone();
        let mut session = Session::start(&attachment, listener, signals, &lease, told, place);
        match metrics_of(&volume).await {
            Ok(listener) => listener.into_iter().for_each(|l| session.measure(l)),
            // No reason to end a device that works.
            Err(error) => tracing::error!("{}", error.message),
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        tracing::info!(device = %number, volume = volume.name, version, pause, "went on");
        service::ready(&format!("volume {} is attached to {number}", volume.name));
        Guardian::adopt(old_guardian, passed.guardian_pid).dismiss();
        handover::answer(
            state,
            &match &state.failed {
                None => Response::Restarted { version, pause },
                Some(error) => Response::Failed(error.clone()),
            },
        );
        drop(inherited.take());
        if state.leaving {
            session.leave();
        }
        to_the_end(session, attachment, lease, guardian).await
    });
    if let Some(guardian) = guardian {
        guardian.dismiss();
    }
    outcome?.carry_out(runtime, global)
}

/// Opens the volume again. A store that cannot be reached is waited for: the device was
/// there before. So is everything that can be mended, the configuration as well, if no
/// other program can go on.
async fn reopen(
    mut volume: Volume,
    configured: impl Fn() -> Result<Volume>,
    state: &State,
    passed: Passed,
) -> Result<(Volume, Lease, Device)> {
    let mut entry = state.entry.clone();
    loop {
        let opened = async {
            let lock = handover::again(passed.lock)
                .map_err(|error| Error::failed(format!("cannot lock the volume: {error}")))?;
            let lease = Lease::resume(&volume, lock.into(), &state.entry.client).await?;
            if let Some(number) = entry.nbd_device() {
                // If we die before we serve, what we leave is the device's, too.
                entry.attachments.push(lease.attach().to_string());
                entry.write(number)?;
            }
            let notice = |text: &str| Reporter::Terminal.notice(text);
            let device = lease.open(notice, pending()).await?;
            state.check((device.size(), device.block_size()))?;
            Ok::<_, Error>((lease, device))
        };
        let error = match opened.await {
            Ok((lease, device)) => return Ok((volume, lease, device)),
            Err(error) => error,
        };
        // With nothing to go back to, everything that may be mended is waited for.
        let last_resort = passed.former.is_none() && error.exit != Exit::InUse;
        if error.exit != Exit::Unreachable && !last_resort {
            return Err(error);
        }
        tracing::error!("{} waits: {}", state.entry.device, error.message);
        service::status(&format!("waits: {}", error.message));
        sleep(BETWEEN_TRIES).await;
        if last_resort {
            match configured() {
                Ok(changed) => volume = changed,
                Err(error) => tracing::error!("{}", error.message),
            }
        }
    }
}
