//! What is attached on this machine: `/run/swiftnbd`, one file and one control
//! socket a device, one lock file a volume. Only root can read or write it.
//!
//! A control socket takes one request a connection, a line of JSON, and answers
//! with one line. It is closed when the daemon ends, so whoever asked for a
//! detach can wait for that.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::sysfs;
use crate::config::{Backend, NbdDevice, Volume, parse_device};
use crate::error::{Error, Exit, Result};
use crate::image::Stats;
use crate::image::log::format::AttachId;
use crate::metrics::{RequestCount, TrafficCounts};

/// Where the registry is. Tests and containers give each machine its own by
/// mounting something here.
const DIRECTORY: &str = "/run/swiftnbd";

/// The longest line on a control socket, in bytes.
pub const MAX_LINE: u64 = 64 << 10;

/// An attached device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path.
    pub device: String,
    /// The volume's name.
    pub volume: String,
    /// The container that the volume is kept in.
    pub container: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The daemon's process id.
    pub pid: u32,
    /// When it was attached, in Unix seconds.
    pub since: u64,
    /// What the container's lock says while it is attached.
    pub client: String,
    /// The volume's format, 1 or 2.
    pub format: u8,
    /// The process id that the kernel shows: of the daemon that connected the device.
    #[serde(default)]
    pub connected_by: u32,
    /// The attachments that the device had, in hexadecimal digits: what it was answered
    /// is in the volume as one of these left it, and in its journal.
    #[serde(default)]
    pub attachments: Vec<String>,
    /// For how many seconds the kernel waits for another daemon, should this one die; 0:
    /// not at all.
    #[serde(default)]
    pub reattach_seconds: u64,
    /// When the unit of a dead daemon first found it dead, in Unix seconds.
    #[serde(default)]
    pub orphaned: Option<u64>,
}

/// A request on a control socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Figures, please.
    Status,
    /// Go on as another program.
    Restart {
        /// Its path.
        program: PathBuf,
    },
    /// Make all durable, disconnect, unlock, end. The caller holds the device.
    Detach {
        /// Give up what cannot be saved.
        force: bool,
        /// Give up waiting after so many seconds.
        timeout: Option<u64>,
    },
}

/// The answer to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Figures>),
    /// The device is detached; notes for the user.
    Detached {
        /// What was lost or left behind, a sentence each.
        notes: Vec<String>,
    },
    /// It could not be done; the device goes on working.
    Failed(Error),
    /// The device goes on in another program.
    Restarted {
        /// Which version it is.
        version: String,
        /// How long nothing was answered, in milliseconds.
        pause: u64,
    },
}

/// All the figures of an attached device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The volume's.
    #[serde(flatten)]
    pub stats: Stats,
    /// What the kernel asked for.
    #[serde(default)]
    pub traffic: TrafficCounts,
    /// What the store was asked for.
    #[serde(default)]
    pub requests: Vec<RequestCount>,
}

/// The lock of a volume on this machine, held by its daemon. It closes the moment
/// in which two processes of one machine could both find a container unlocked.
///
/// Its file says who has it, and which attachments of this machine there were since it
/// started: whoever gets the lock knows that they are dead.
#[derive(Debug)]
pub struct VolumeLock {
    file: Flock<File>,
    path: PathBuf,
    holder: String,
    attachments: Mutex<Vec<AttachId>>,
}

/// So many attachments are remembered: of those before the last, each is one that died
/// before its claim could be read.
const ATTACHMENTS: usize = 16;
/// The longest lock file, in bytes.
const MAX_LOCK: u64 = 4096;

impl VolumeLock {
    /// Attachments of this machine that are dead for certain.
    pub fn dead(&self) -> Vec<AttachId> {
        let attachments = self.attachments.lock();
        attachments.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The open file that has the lock, once more.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Remembers an attachment of ours, which may be claimed from now on.
    pub fn remember(&self, attach: AttachId) -> Result<()> {
        let mut attachments = self
            .attachments
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        attachments.insert(0, attach);
        attachments.truncate(ATTACHMENTS);
        self.write(&attachments)
    }

    fn write(&self, attachments: &[AttachId]) -> Result<()> {
        let mut text = format!("{}\nboot {}\n", self.holder, boot_id());
        for attach in attachments {
            text += &format!("attach {attach}\n");
        }
        let written = self.file.write_all_at(text.as_bytes(), 0);
        let written = written.and_then(|()| self.file.set_len(text.len() as u64));
        written.map_err(|error| refused(&format!("cannot write {}", self.path.display()), &error))
    }
}

/// The attachments in a lock file, if it was written since this machine started.
fn attachments(text: &str, boot: &str) -> Vec<AttachId> {
    let mut lines = text.lines().skip(1);
    if boot.is_empty() || lines.next() != Some(&format!("boot {boot}")) {
        return Vec::new();
    }
    let ids = lines.filter_map(|line| line.strip_prefix("attach ")?.parse().ok());
    ids.take(ATTACHMENTS).collect()
}

/// A name for the time since this machine was started; empty if it has none.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or(String::new(), |id| id.trim().to_owned())
}

/// The registry's directory, made if need be.
pub fn directory() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let path = if nix::unistd::geteuid().is_root() {
        PathBuf::from(DIRECTORY)
    } else if let Some(own) = variable("XDG_RUNTIME_DIR").or_else(|| variable("XDG_STATE_HOME")) {
        // `serve` and the transfers need no root; a user's volumes are the user's
        // business.
        PathBuf::from(own).join("swiftnbd")
    } else if let Some(home) = variable("HOME") {
        // Where nobody has logged in: cron, a service.
        PathBuf::from(home).join(".local/state/swiftnbd")
    } else {
        PathBuf::from(DIRECTORY)
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(|error| refused(&format!("cannot make {}", path.display()), &error))?;
    Ok(path)
}

fn refused(doing: &str, error: &io::Error) -> Error {
    let exit = match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::Denied,
        _ => Exit::Failed,
    };
    let error = Error::new(exit, format!("{doing}: {error}"));
    match exit {
        Exit::Denied => error.hint("run it as root, or set XDG_RUNTIME_DIR"),
        _ => error,
    }
}

/// The time, in Unix seconds.
pub fn unix_now() -> u64 {
    since_epoch().as_secs()
}

/// The time since 1970.
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Takes a volume for this process.
pub fn lock_volume(volume: &Volume) -> Result<VolumeLock> {
    let path = directory()?.join(format!("{}.lock", identity(volume)));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| refused(&format!("cannot open {}", path.display()), &error))?;
    let mut text = String::new();
    let _ = (&mut file).take(256).read_to_string(&mut text);
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err(_) => return Err(in_use(volume, text.lines().next().unwrap_or_default())),
    };
    locked(lock, path)
}

/// The lock of the program before, which this process has as an open file.
pub fn adopt_lock(volume: &Volume, file: File) -> Result<VolumeLock> {
    let path = directory()?.join(format!("{}.lock", identity(volume)));
    // It is this open file's already.
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => locked(lock, path),
        Err(_) => Err(in_use(volume, "another process")),
    }
}

fn locked(lock: Flock<File>, path: PathBuf) -> Result<VolumeLock> {
    // Only now nobody else writes it.
    let mut bytes = vec![0; MAX_LOCK as usize];
    let length = lock.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..length]);
    let holder = crate::image::meta::Holder::new(&host_name(), std::process::id(), unix_now());
    let lock = VolumeLock {
        file: lock,
        path,
        holder: holder.to_string(),
        attachments: Mutex::new(attachments(&text, &boot_id())),
    };
    lock.write(&lock.dead())?;
    Ok(lock)
}

/// Where a transfer of the volume on this machine is remembered, so that it can be
/// taken up again. For whoever holds [`lock_volume`].
pub fn transfer_path(volume: &Volume) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{}.transfer", identity(volume))))
}

/// Whoever has a volume's lock: its file says `holder`, and the registry may know
/// on which device.
fn in_use(volume: &Volume, holder: &str) -> Error {
    let of_holder = |entry: &Entry| holder.contains(&format!(":{} ", entry.pid));
    let (device, hint) = match entries().into_iter().find(of_holder) {
        Some(Entry { device, .. }) => (
            format!(" as {device}"),
            format!("`swiftnbd detach {device}` detaches and unlocks it"),
        ),
        None => (
            String::new(),
            "`swiftnbd status` shows what is attached".to_owned(),
        ),
    };
    let name = &volume.name;
    let text = format!("volume {name}: it is in use on this machine{device} by {holder}");
    Error::new(Exit::InUse, text).hint(hint)
}

/// This machine's name, as locks show it.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    // Client is `host:pid@time`, at most 256 bytes, and Swift takes what a header
    // may hold.
    let clean = name
        .unwrap_or_default()
        .replace(|c: char| !c.is_ascii_graphic() || c == '@', "-");
    if clean.is_empty() {
        "unknown".to_owned()
    } else {
        clean.chars().take(64).collect()
    }
}

/// A name for the container that a volume is kept in, the same for every volume
/// that is kept in it. Holds no secret.
pub fn identity(volume: &Volume) -> String {
    let place = match &volume.backend {
        Backend::Dir(root) => {
            format!(
                "dir {}",
                root.canonicalize().unwrap_or(root.clone()).display()
            )
        }
        Backend::Swift(credentials) => format!("swift {}", credentials.account()),
    };
    let digest = Md5::digest(format!("{place}\n{}", volume.container));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Entry {
    /// Whether the device is still the one that was connected for it.
    pub fn is_connected(&self) -> bool {
        let backend = backend_of(&self.volume);
        self.nbd_device()
            .is_some_and(|device| sysfs::is_connected(device, self.connected_by, &backend))
    }

    /// Whether its daemon is dead and the kernel waits for another one.
    pub fn is_orphaned(&self) -> bool {
        let alive = |device| Client::connect(device).is_ok();
        self.reattach_seconds > 0 && self.is_connected() && !self.nbd_device().is_some_and(alive)
    }

    /// The device's number, if the entry is whole.
    pub fn nbd_device(&self) -> Option<NbdDevice> {
        parse_device(&self.device).ok()
    }

    /// Writes the entry, whole or not at all.
    pub fn write(&self, device: NbdDevice) -> Result<()> {
        let path = entry_path(device)?;
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::failed(e.to_string()))?;
        let new = path.with_extension("new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| refused(&format!("cannot write {}", path.display()), &error))
    }
}

fn entry_path(device: NbdDevice) -> Result<PathBuf> {
    Ok(directory()?.join(format!("nbd{}.json", device.index())))
}

/// The path of a device's control socket.
pub fn socket_path(device: NbdDevice) -> Result<PathBuf> {
    Ok(directory()?.join(format!("nbd{}.sock", device.index())))
}

/// Removes a device's entry and socket.
pub fn remove(device: NbdDevice) {
    for path in [entry_path(device), socket_path(device)]
        .into_iter()
        .flatten()
    {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove");
        }
    }
}

/// What the kernel shows as the backend of a volume's device.
pub fn backend_of(volume: &str) -> String {
    format!("swiftnbd:{volume}")
}

/// The device of this volume whose daemon is dead, if the kernel waits for another one.
pub fn orphan(volume: &str) -> Option<Entry> {
    let mut entries = entries().into_iter();
    entries.find(|entry| entry.volume == volume && entry.is_orphaned())
}

/// Everything that is registered, in the order of the devices' numbers.
pub fn entries() -> Vec<Entry> {
    let files = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut entries: Vec<Entry> = files
        .filter(|file| {
            file.path()
                .extension()
                .is_some_and(|extension| extension == "json")
        })
        .filter_map(|file| read(&file.path()))
        .collect();
    entries.sort_by_key(|entry| entry.nbd_device().map(NbdDevice::index));
    entries
}

/// The entry of a device.
pub fn entry(device: NbdDevice) -> Option<Entry> {
    read(&entry_path(device).ok()?)
}

fn read(path: &Path) -> Option<Entry> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(MAX_LINE)
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str(&text).ok()
}

/// Removes what attachments of this volume have left whose daemons died. Whoever calls it
/// has the volume on this machine, so that nobody else can be attaching it.
pub fn forget_dead(volume: &str) {
    let entries = entries().into_iter();
    for dead in entries.filter(|entry| entry.volume == volume && !entry.is_connected()) {
        if let Some(device) = dead.nbd_device() {
            remove(device);
        }
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: std::os::unix::net::UnixStream,
}

impl Client {
    /// Connects to the daemon of a device. Fails if it is dead.
    pub fn connect(device: NbdDevice) -> io::Result<Client> {
        let path = socket_path(device).map_err(|error| io::Error::other(error.message))?;
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        Ok(Client { stream })
    }

    /// Sends a request and waits for the answer, if `patience` is given no longer
    /// than that.
    pub fn ask(&mut self, request: &Request, patience: Option<Duration>) -> io::Result<Response> {
        self.stream.set_read_timeout(patience)?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.stream.write_all(line.as_bytes())?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while (answer.len() as u64) < MAX_LINE && self.stream.read(&mut byte)? == 1 {
            if byte == *b"\n" {
                return Ok(serde_json::from_slice(&answer)?);
            }
            answer.push(byte[0]);
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the daemon ended without an answer",
        ))
    }

    /// Waits until the daemon has ended.
    pub fn wait_for_end(mut self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        let mut rest = [0; 64];
        while self.stream.read(&mut rest)? > 0 {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_of_another_boot_may_be_alive() {
        let id = AttachId::random();
        let text = format!("host:7 since then\nboot b1\nattach {id}\nattach x\nattach {id}\n");
        assert_eq!(attachments(&text, "b1"), [id, id]);
        assert_eq!(attachments(&text, "b2"), []);
        assert_eq!(attachments(&text, ""), []);
        for end in 0..text.len() {
            let _ = attachments(&text[..end], "b1");
        }
        assert_eq!(attachments("host:7 since then", "b1"), []);
    }
}
