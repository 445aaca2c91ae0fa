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

use super::attach::{Report, check_free, wanted_device};
use super::attachment::{Attachment, Transmission};
use super::guardian::Guardian;
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
