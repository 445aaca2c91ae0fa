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

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::attach::{Chosen, Report, choose_device};
use super::attachment::{Attachment, Transmission};
use super::guardian::{Guardian, When};
use super::handover::{Leaving, Told};
use super::lease::Lease;
use super::logging::{self, Process};
use super::netlink::{Connect, Nbd, NetlinkError};
use super::registry::{self, Entry, unix_now};
use super::session::{Ended, Session};
use super::signals::Signals;
use super::{block_on, container, memory, metrics, passphrase, require_root, service, sysfs};
use crate::cli::{Attach, Global};
use crate::config::{Config, NbdDevice, Volume};
use crate::device::Device;
use crate::error::{Error, Exit, Result};
use crate::nbd::wire::transmission_flags;

/// Socket buffers, in bytes, where there is memory: the kernel's driver does not cope well
/// with partial sends, and large requests go through in one piece.
const SOCKET_BUFFER: usize = 4 << 20;

/// How long the kernel may take to show a connected device.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often a device is taken over whose old connection the kernel still has, and how
/// long after that it is known.
const ADOPTIONS: u32 = 40;
const ADOPTED_WITHIN: Duration = Duration::from_millis(250);

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
    pub(super) fn notice(&self, text: &str) {
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
    let wanted = match choose_device(&volume, args)? {
        Chosen::This(device) => Wanted::This(device),
        Chosen::Any => Wanted::AnyBut(config.devices().collect()),
        Chosen::Orphan(entry) => Wanted::Orphan(entry),
    };
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

/// Listens where the configuration has the figures read, if anywhere.
pub(super) async fn metrics_of(volume: &Volume) -> Result<Option<metrics::Listener>> {
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
    /// See [`Chosen::Orphan`].
    Orphan(Box<Entry>),
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
        if let Wanted::Orphan(entry) = wanted {
            // If we die in between, what we leave is the device's, too.
            let mut entry = entry.clone();
            entry.attachments.push(lease.attach().to_string());
            let number = entry.nbd_device().ok_or_else(no_device)?;
            entry.write(number)?;
        }
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
    registry::forget_dead(&volume.name);
    let registered = Session::listen(number).and_then(|listener| {
        let entry = &attachment.entry;
        entry.write(number)?;
        let when = when_dead(entry.reattach_seconds);
        guardian.guard(number, entry.connected_by, &attachment.backend, when)?;
        Ok(listener)
    });
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
pub(super) async fn to_the_end(
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
pub(super) enum Outcome {
    /// The process ends.
    Over,
    /// It becomes another program.
    HandOver(Box<Leaving>),
}

impl Outcome {
    /// Carries it out; `runtime` has nothing to do any more.
    pub(super) fn carry_out(self, runtime: Runtime, global: &Global) -> Result<()> {
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

async fn connect(
    volume: &Volume,
    lease: &Lease,
    device: Device,
    wanted: &Wanted,
    guardian: &mut Guardian,
) -> Result<Attachment> {
    let nbd = Arc::new(Nbd::open().map_err(|error| Error::failed(error.to_string()))?);
    let backend = registry::backend_of(&volume.name);
    let reattach_seconds = match device.stats().log.and_then(|log| log.journal) {
        Some(journal) if journal.relied_on => volume.reattach_timeout.as_secs(),
        _ => 0,
    };
    let (number, transmission, connected_by) = if let Wanted::Orphan(orphan) = wanted {
        let adopted = adopt(
            &nbd,
            volume,
            lease,
            &device,
            orphan,
            reattach_seconds,
            guardian,
        );
        let (number, transmission) = adopted.await?;
        (number, transmission, orphan.connected_by)
    } else {
        let (ours, kernels) = socket_pair()?;
        let transmission = Transmission::start(ours, device.clone(), volume);
        let connect = Connect {
            index: None,
            size: device.size(),
            block_size: device.block_size(),
            server_flags: transmission_flags(&device),
            dead_connection: reattach_seconds,
            backend: &backend,
        };
        let number = connect_any(&nbd, connect, kernels, wanted, guardian)?;
        let ready = wait_until_ready(number, device.size()).await;
        if let Err(error) = ready {
            disconnect(&nbd, number).await;
            return Err(error);
        }
        (number, transmission, std::process::id())
    };
    let connected = nbd.socket();
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
        connected_by,
        attachments: vec![lease.attach().to_string()],
        reattach_seconds,
        orphaned: None,
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
    mut connect: Connect<'_>,
    kernels: StdUnixStream,
    wanted: &Wanted,
    guardian: &mut Guardian,
) -> Result<NbdDevice> {
    let (us, backend) = (std::process::id(), connect.backend);
    // Until the registry knows of it.
    let when = When::AtOnce;
    let mut candidates = match wanted {
        Wanted::This(device) => vec![*device],
        _ => sysfs::free_devices(),
    };
    if let Wanted::AnyBut(chosen) = wanted {
        candidates.retain(|device| !chosen.contains(device));
    }
    for candidate in candidates {
        guardian.guard(candidate, us, backend, when)?;
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
    guardian.guard(number, us, backend, when)?;
    Ok(number)
}

/// When the guardian disconnects the device of a daemon that is dead. A service manager
/// starts another daemon, or sees to it itself: the guardian dies with the service.
pub(super) fn when_dead(reattach_seconds: u64) -> When {
    match reattach_seconds {
        0 => When::AtOnce,
        _ if service::is_there() => When::Never,
        seconds => When::After(seconds),
    }
}

fn no_device() -> Error {
    Error::failed("the registry names no device")
}

/// Gives the kernel our socket for the device that a dead daemon has left: what that one
/// had answered is all in the volume as it is now.
async fn adopt(
    nbd: &Arc<Nbd>,
    volume: &Volume,
    lease: &Lease,
    device: &Device,
    orphan: &Entry,
    reattach_seconds: u64,
    guardian: &mut Guardian,
) -> Result<(NbdDevice, Transmission)> {
    let number = orphan.nbd_device().ok_or_else(no_device)?;
    let goes_on = lease.goes_on_from(&orphan.attachments);
    let same = (device.size(), device.block_size()) == (orphan.size, orphan.block_size)
        && device.read_only() == orphan.read_only;
    if !goes_on || !same {
        // A file system must not go on with what is not what it wrote.
        disconnect(nbd, number).await;
        registry::remove(number);
        let text = format!(
            "volume {}: it is not as its dead daemon left it (somebody else had it since, or its \
             journal was given up), so {number}, which waited for another one, was failed",
            volume.name
        );
        return Err(Error::new(Exit::InUse, text)
            .hint("unmount what was on it; then the volume can be attached again"));
    }
    let backend = registry::backend_of(&volume.name);
    guardian.guard(
        number,
        orphan.connected_by,
        &backend,
        when_dead(reattach_seconds),
    )?;
    for _ in 0..ADOPTIONS {
        let (ours, kernels) = socket_pair()?;
        let transmission = Transmission::start(ours, device.clone(), volume);
        let given = nbd.reconnect(number.index(), &backend, reattach_seconds, kernels.as_fd());
        given.map_err(|error| Error::failed(format!("cannot take {number} over: {error}")))?;
        drop(kernels);
        sleep(ADOPTED_WITHIN).await;
        // One that the kernel did not take is at its end at once.
        if !transmission.task.is_finished() {
            tracing::info!(device = %number, "taken over from the daemon that died");
            return Ok((number, transmission));
        }
    }
    Err(Error::failed(format!(
        "cannot take {number} over: the kernel still has its old connection"
    )))
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
