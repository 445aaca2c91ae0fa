//! The daemon: owns one device from CONNECT to DISCONNECT.
//!
//! The order at the start: everything that can be refused without a trace; what helps
//! when memory is short; the guardian (while there is one thread); the lease; the volume;
//! the transmission phase on our end of a socketpair; CONNECT with the other end; the
//! device is opened once, so that the scan for partitions is over; registry; report.
//!
//! The order at the end, whoever asked for it: the device is held exclusively; its
//! buffers are written out; FLUSH; DISCONNECT; the transmission phase ends;
//! the volume closes (nothing of ours can take effect any more); the container is
//! unlocked; the answer to whoever asked; the end of the process. Until DISCONNECT
//! any failure leaves the device working.

use std::future::pending;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::attach::{Report, check_free, wanted_device};
use super::guardian::Guardian;
use super::handover::{self, Leaving, Passed, State, Told};
use super::lease::Lease;
use super::logging::{self, Process};
use super::netlink::{Connect, Nbd, NetlinkError};
use super::registry::{self, Entry, Response, unix_now};
use super::session::{Ended, Session};
use super::signals::Signals;
use super::{block_on, container, memory, metrics, open, passphrase, require_root, service, sysfs};
use crate::cli::{Attach, Global, Resume};
use crate::config::{Config, NbdDevice, Volume};
use crate::device::Device;
use crate::error::{Error, Exit, Result};
use crate::nbd::transmission::{self, Limits, TransmissionError};
use crate::nbd::wire::transmission_flags;

/// Socket buffers, in bytes, where there is memory: the kernel's driver does not cope well
/// with partial sends, and large requests go through in one piece.
const SOCKET_BUFFER: usize = 4 << 20;

/// How long the kernel may take to show a connected device.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Between two attempts to open the volume of a device that is there.
const BETWEEN_TRIES: Duration = Duration::from_secs(2);

/// Threads that answer requests. The work is copying and checksums; more would
/// compete with whoever uses the device.
const MOST_THREADS: usize = 8;

/// Where the news of an attachment go until it is ready.
#[derive(Debug)]
pub enum Reporter {
    /// To the process that the user waits for, on our stdout.
    Pipe,
    /// To the terminal.
    Terminal,
}

impl Reporter {
    fn notice(&self, text: &str) {
        tracing::info!("{text}");
        service::status(text);
        if matches!(self, Reporter::Pipe) {
            let _ = self.send(&Report::Notice(text.to_owned()));
        }
    }

    /// Fails if whoever waited has gone.
    fn ready(&self, device: NbdDevice) -> std::io::Result<()> {
        match self {
            Reporter::Terminal => writeln!(std::io::stdout(), "{device}"),
            Reporter::Pipe => self.send(&Report::Ready(device.to_string())),
        }
    }

    fn send(&self, report: &Report) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        out.flush()
    }
}

/// The background process of `attach`.
pub fn run_in_background(global: &Global, args: &Attach) -> Result<()> {
    leave_the_caller();
    let mut reported = false;
    let result = (|| {
        logging::start(global, Process::Daemon)?;
        let config = Config::load(&global.sources())?;
        // The caller's directory was needed for relative paths only.
        let directory = current_directory()?;
        std::env::set_current_dir("/").map_err(|error| Error::failed(error.to_string()))?;
        let reporting = (&Reporter::Pipe, &mut reported);
        attach_and_serve(global, &config, args, directory, reporting)
    })();
    if let Err(error) = &result {
        tracing::error!("{}", error.message);
        if !reported {
            let _ = Reporter::Pipe.send(&Report::Failed(error.clone()));
        }
    }
    result
}

/// `attach --foreground`.
pub fn run_in_foreground(global: &Global, config: &Config, args: &Attach) -> Result<()> {
    let reporting = (&Reporter::Terminal, &mut false);
    attach_and_serve(global, config, args, current_directory()?, reporting)
}

fn current_directory() -> Result<PathBuf> {
    std::env::current_dir()
        .map_err(|error| Error::failed(format!("the current directory is gone: {error}")))
}

/// Becomes a session of its own and closes every descriptor of the caller's but
/// stdin, stdout and stderr, which `attach` has set.
pub(super) fn leave_the_caller() {
    let _ = nix::unistd::setsid();
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // Nothing of ours is open yet; the directory's own descriptor is closed
        // already, which is the one error that comes here.
        let _ = nix::unistd::close(number);
    }
}

/// `directory` is where the command was given.
fn attach_and_serve(
    global: &Global,
    config: &Config,
    args: &Attach,
    directory: PathBuf,
    (reporter, reported): (&Reporter, &mut bool),
) -> Result<()> {
    require_root("attach")?;
    let mut volume = config.volume(&args.name)?;
    volume.read_only |= args.read_only;
    match args.passphrase_on_stdin {
        true => volume.passphrase = Some(passphrase::from_stdin()?),
        false => passphrase::choose(&mut volume, &args.passphrase)?,
    }
    if matches!(reporter, Reporter::Terminal) {
        let container = container(&volume)?;
        block_on(passphrase::ask_if_needed(&mut volume, &container))?;
    }
    sysfs::ensure_driver()?;
    let wanted = match wanted_device(&volume, args) {
        Some(device) => Wanted::This(device),
        None => Wanted::AnyBut(config.devices().collect()),
    };
    if let Wanted::This(device) = wanted {
        check_free(device)?;
    }
    memory::prepare();
    let guardian = Guardian::start()?;
    let runtime = runtime()?;
    let told = Told {
        directory,
        global: global.clone(),
        foreground: matches!(reporter, Reporter::Terminal),
        passphrase: volume.passphrase.clone(),
    };
    let outcome = runtime.block_on(attach(
        (&volume, args.takeover),
        &wanted,
        guardian,
        (reporter, reported),
        told,
    ));
    outcome?.carry_out(runtime, global)
}

/// The runtime that a volume runs on.
pub fn runtime() -> Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.clamp(2, MOST_THREADS))
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("cannot start: {error}")))
}

/// Goes on with the device of the program before, or only looks whether it could.
pub fn resume(global: &Global, args: &Resume) -> Result<()> {
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
            ..state.entry.clone()
        };
        entry.write(number)?;
        let guards = guardian.take();
        let mut guardian = guards.ok_or_else(|| Error::failed("there is no guardian"))?;
        guardian.guard(number, &state.backend)?;
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
    loop {
        let opened = async {
            let lock = handover::again(passed.lock)
                .map_err(|error| Error::failed(format!("cannot lock the volume: {error}")))?;
            let lease = Lease::resume(&volume, lock.into(), &state.entry.client).await?;
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

/// Listens where the configuration has the figures read, if anywhere.
async fn metrics_of(volume: &Volume) -> Result<Option<metrics::Listener>> {
    match &volume.metrics {
        Some(at) => metrics::Listener::bind(at).await.map(Some),
        None => Ok(None),
    }
}

/// Which device a volume is to be attached to.
#[derive(Debug)]
enum Wanted {
    /// The one that was chosen for it.
    This(NbdDevice),
    /// A free one, and none that was chosen for a volume, if there are others.
    AnyBut(Vec<NbdDevice>),
}

async fn attach(
    (volume, takeover): (&Volume, bool),
    wanted: &Wanted,
    mut guardian: Guardian,
    (reporter, reported): (&Reporter, &mut bool),
    told: Told,
) -> Result<Outcome> {
    service::begin();
    let mut signals = Signals::listen()?;
    let metrics = metrics_of(volume).await?;
    let lease = Lease::take(volume, takeover).await?;
    let started = async {
        let device = lease
            .open(|text| reporter.notice(text), signals.recv())
            .await?;
        connect(volume, &lease, device, wanted, &mut guardian).await
    };
    let attachment = match started.await {
        Ok(attachment) => attachment,
        Err(error) => {
            guardian.dismiss();
            give_back(&lease).await;
            return Err(error);
        }
    };
    let number = attachment.number;
    let place = registry::identity(volume);
    let registered = Session::listen(number)
        .and_then(|listener| attachment.entry.write(number).map(|()| listener));
    let mut session = match registered {
        Ok(listener) => Session::start(&attachment, listener, signals, &lease, told, place),
        Err(error) => {
            disconnect(&attachment.nbd, number).await;
            guardian.dismiss();
            give_back(&lease).await;
            registry::remove(number);
            return Err(error);
        }
    };
    if let Some(listener) = metrics {
        session.measure(listener);
    }
    tracing::info!(device = %number, volume = volume.name, "attached");
    if reporter.ready(number).is_err() {
        tracing::warn!(device = %number, "whoever asked for it has gone: detaching");
        session.leave();
    }
    service::ready(&format!("volume {} is attached to {number}", volume.name));
    *reported = true;
    if matches!(reporter, Reporter::Pipe) {
        close_stdout();
    }
    to_the_end(session, attachment, lease, guardian).await
}

/// Serves until the device is disconnected, or goes on in another program.
async fn to_the_end(
    session: Session,
    attachment: Attachment,
    lease: Lease,
    guardian: Guardian,
) -> Result<Outcome> {
    let number = attachment.number;
    match session.run(attachment, &lease).await {
        Ended::Over(result) => {
            service::ending();
            guardian.dismiss();
            registry::remove(number);
            result.map(|()| Outcome::Over)
        }
        Ended::HandedOver(handed) => {
            service::status("going on in another program");
            let lock = lease.lock_file();
            let lock = lock.map_err(|error| Error::failed(format!("cannot hand over: {error}")))?;
            let leaving = Leaving::new(*handed, lock, guardian);
            Ok(Outcome::HandOver(Box::new(leaving)))
        }
    }
}

/// How an attachment ends, as far as its process is concerned.
enum Outcome {
    /// The process ends.
    Over,
    /// It becomes another program.
    HandOver(Box<Leaving>),
}

impl Outcome {
    /// Carries it out; `runtime` has nothing to do any more.
    fn carry_out(self, runtime: Runtime, global: &Global) -> Result<()> {
        // Whatever still runs (a fetch nobody waits for) must not delay the end.
        runtime.shutdown_timeout(Duration::from_millis(100));
        match self {
            Outcome::Over => Ok(()),
            Outcome::HandOver(leaving) => Err(leaving.go(global)),
        }
    }
}

async fn give_back(lease: &Lease) {
    if let Err(error) = lease.release().await {
        tracing::error!("cannot unlock: {}", error.message);
    }
}

/// The caller's pipe is not kept open: `$(swiftnbd attach …)` must return.
pub(super) fn close_stdout() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

/// A connected device.
#[derive(Debug)]
pub struct Attachment {
    /// The device.
    pub number: NbdDevice,
    /// What it serves.
    pub device: Device,
    /// The connection to the driver, which the device needs.
    pub nbd: Arc<Nbd>,
    /// The transmission phase; ends when the kernel lets go of the socket.
    pub transmission: Transmission,
    /// What `/sys/block/nbdN/backend` says.
    pub backend: String,
    /// The netlink socket that has connected it, if it could be found.
    pub connected: Option<OwnedFd>,
    /// What the registry says of it.
    pub entry: Entry,
}

/// A transmission phase under way.
#[derive(Debug)]
pub struct Transmission {
    /// Ends when the kernel lets go of the socket, or when it was stopped.
    pub task: JoinHandle<(
        UnixStream,
        std::result::Result<transmission::Ended, TransmissionError>,
    )>,
    stop: Option<oneshot::Sender<()>>,
    limits: Limits,
    volume: String,
}

impl Transmission {
    /// Answers the kernel's requests. Within a tokio runtime.
    pub fn start(stream: UnixStream, device: Device, volume: &Volume) -> Transmission {
        let mut limits = Limits::default();
        limits.bytes = limits.bytes.min(volume.dirty);
        Transmission::begin(stream, device, limits, volume.name.clone())
    }

    /// Goes on after it was stopped.
    pub fn go_on(self, stream: UnixStream, device: Device) -> Transmission {
        Transmission::begin(stream, device, self.limits, self.volume)
    }

    fn begin(
        mut stream: UnixStream,
        device: Device,
        limits: Limits,
        volume: String,
    ) -> Transmission {
        let (stop, stopped) = oneshot::channel();
        let span = tracing::info_span!("volume", name = volume);
        let serving = async move {
            let until = async {
                if stopped.await.is_err() {
                    pending::<()>().await;
                }
            };
            let ended = transmission::serve(&mut stream, device, limits, until).await;
            (stream, ended)
        };
        Transmission {
            task: tokio::spawn(serving.instrument(span)),
            stop: Some(stop),
            limits,
            volume,
        }
    }

    /// Has it end at the next boundary between two requests.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

async fn connect(
    volume: &Volume,
    lease: &Lease,
    device: Device,
    wanted: &Wanted,
    guardian: &mut Guardian,
) -> Result<Attachment> {
    let nbd = Arc::new(Nbd::open().map_err(|error| Error::failed(error.to_string()))?);
    let (ours, kernels) = socket_pair()?;
    let transmission = Transmission::start(ours, device.clone(), volume);
    let backend = format!("swiftnbd:{}", volume.name);
    let number = connect_any(&nbd, &device, &backend, kernels, wanted, guardian)?;
    let connected = nbd.socket();
    let ready = wait_until_ready(number, device.size()).await;
    if let Err(error) = ready {
        disconnect(&nbd, number).await;
        return Err(error);
    }
    let entry = Entry {
        device: number.to_string(),
        volume: volume.name.clone(),
        container: volume.container.clone(),
        size: device.size(),
        block_size: device.block_size(),
        read_only: device.read_only(),
        pid: std::process::id(),
        since: unix_now(),
        client: lease.client(),
        format: lease.format(),
    };
    Ok(Attachment {
        number,
        device,
        nbd,
        transmission,
        backend,
        connected,
        entry,
    })
}

fn socket_pair() -> Result<(UnixStream, StdUnixStream)> {
    let failed = |error: std::io::Error| Error::failed(format!("cannot make a socket: {error}"));
    let (ours, kernels) = StdUnixStream::pair().map_err(failed)?;
    // As root the system's limit does not hold; if it does, it is only slower. (What
    // counts between two ends of a pair is the sender's.)
    let _ = setsockopt(&ours.as_fd(), sockopt::SndBufForce, &SOCKET_BUFFER);
    let kernels_part = memory::send_buffer(SOCKET_BUFFER);
    let _ = setsockopt(&kernels.as_fd(), sockopt::SndBufForce, &kernels_part);
    ours.set_nonblocking(true).map_err(failed)?;
    Ok((UnixStream::from_std(ours).map_err(failed)?, kernels))
}

/// Connects the device that was asked for, or one that is free. The guardian knows
/// it before the kernel does.
fn connect_any(
    nbd: &Nbd,
    device: &Device,
    backend: &str,
    kernels: StdUnixStream,
    wanted: &Wanted,
    guardian: &mut Guardian,
) -> Result<NbdDevice> {
    let mut candidates = match wanted {
        Wanted::This(device) => vec![*device],
        Wanted::AnyBut(_) => sysfs::free_devices(),
    };
    if let Wanted::AnyBut(chosen) = wanted {
        candidates.retain(|device| !chosen.contains(device));
    }
    let mut connect = Connect {
        index: None,
        size: device.size(),
        block_size: device.block_size(),
        server_flags: transmission_flags(device),
        backend,
    };
    for candidate in candidates {
        guardian.guard(candidate, backend)?;
        connect.index = Some(candidate.index());
        match nbd.connect(&connect, kernels.as_fd()) {
            Ok(_) => return Ok(candidate),
            // Somebody else was faster: the next one, if any will do.
            Err(NetlinkError::Refused(nix::errno::Errno::EBUSY))
                if matches!(wanted, Wanted::AnyBut(_)) => {}
            Err(error) => return Err(refused(candidate, &error)),
        }
    }
    connect.index = None;
    let made = nbd.connect(&connect, kernels.as_fd());
    let made = made.map_err(|error| {
        Error::new(Exit::InUse, format!("no nbd device is free: {error}"))
            .hint("`swiftnbd status` shows what is attached; `modprobe nbd nbds_max=N` makes more")
    })?;
    let number = NbdDevice::new(made)
        .ok_or_else(|| Error::failed(format!("the kernel made a device of number {made}")))?;
    guardian.guard(number, backend)?;
    Ok(number)
}

fn refused(device: NbdDevice, error: &NetlinkError) -> Error {
    let exit = match error {
        NetlinkError::Refused(nix::errno::Errno::EBUSY) => Exit::InUse,
        NetlinkError::Refused(nix::errno::Errno::EPERM) => Exit::Denied,
        _ => Exit::Failed,
    };
    Error::new(exit, format!("cannot connect {device}: {error}"))
}

/// Waits for the node and the size, and opens the device once: the kernel's scan
/// for partitions runs at the first open, under a lock that stalls all others.
async fn wait_until_ready(number: NbdDevice, size: u64) -> Result<()> {
    sysfs::allow_large_requests(number);
    let deadline = Instant::now() + READY_WITHIN;
    while sysfs::size(number) != size || sysfs::check_node(number).is_err() {
        if Instant::now() > deadline {
            let why = match sysfs::check_node(number) {
                Err(error) => error.to_string(),
                Ok(()) => format!("its size is {} bytes, not {size}", sysfs::size(number)),
            };
            return Err(Error::failed(format!(
                "{number} did not become ready: {why}"
            )));
        }
        sleep(Duration::from_millis(10)).await;
    }
    let opened = spawn_blocking(move || std::fs::File::open(number.path()).map(drop)).await;
    match opened {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::failed(format!("cannot open {number}: {error}"))),
        Err(error) => Err(Error::failed(format!("cannot open {number}: {error}"))),
    }
}

/// Has the kernel let go of the device.
pub async fn disconnect(nbd: &Arc<Nbd>, number: NbdDevice) {
    let nbd = Arc::clone(nbd);
    // The kernel waits for its own threads here.
    let done = spawn_blocking(move || nbd.disconnect(number.index())).await;
    if let Ok(Err(error)) = done {
        tracing::warn!(device = %number, %error, "cannot disconnect");
    }
}
