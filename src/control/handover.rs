//! A device goes on in another program: `restart`, and what an upgrade is.
//!
//! The daemon replaces itself (execve), so everything that goes by its process stays as it
//! is: the service manager's main process, the kernel's socket and the netlink socket's
//! owner, the machine's lock on the volume, the name in the container's lock. What goes
//! over, as descriptors and as a line of JSON in a pipe, is [`State`].
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | the new program does not start here: another machine's, damaged, the configuration has become wrong, the password was changed | it is tried first, as a child that looks at all of it and touches nothing; the old one serves meanwhile, and goes on if that fails |
//! | Swift is away | everything is made durable before anything stops; if that takes too long, the old one goes on |
//! | a request is half read from the kernel's socket | the transmission phase stops between two requests, with every one answered |
//! | the old program's last requests take effect after the new one has begun | they have ended, and what they wrote has names that are the old attachment's |
//! | another machine takes the volume in the pause | its lease is one like any other: it lasts longer than the pause, and if it does not, the new program finds the claim, and the device fails |
//! | the new program fails although it was tried | the old one, which it has as a descriptor, is started in its place |
//! | so does that one, or the process is killed in the pause | an end like that of any crash: the guardian disconnects the device, or with a journal it waits for another daemon |
//! | the netlink socket that connected the device is closed, and the newest kernels end the device with it | it is passed on |
//! | SIGTERM comes in the pause | it is blocked, and waits for the new program |
//! | Swift goes away in the pause | the new program waits for it, as a device does |
//!
//! Knows: processes and descriptors. Does not know: what the new program does with them
//! ([`daemon`](super::daemon)).

use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::attach::{Report, await_ready};
use super::guardian::Guardian;
use super::registry::{Entry, Response};
use crate::cli::{Global, Resume};
use crate::credentials::Passphrase;
use crate::error::{Error, Result};

/// The hidden verb that the new program is started with.
pub const VERB: &str = "__resume";

/// The version of [`State`].
const VERSION: u32 = 1;
/// The longest state, in bytes: it has to fit into a pipe that nobody reads yet.
const MAX_STATE: u64 = 32 << 10;
/// How long the new program may take to look at everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long whoever asked may take to read the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

/// What a daemon was told at its start, and tells the next one.
#[derive(Debug, Clone)]
pub struct Told {
    /// The directory that relative paths begin at.
    pub directory: PathBuf,
    /// The options of every verb.
    pub global: Global,
    /// Whether it was started with `--foreground`.
    pub foreground: bool,
    /// Its passphrase, if it was typed or came through a descriptor, or the file that the
    /// command line named.
    pub passphrase: Option<Passphrase>,
}

/// A device that goes on in another program.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// See [`Told`].
    pub directory: PathBuf,
    /// See [`Told`].
    pub foreground: bool,
    passphrase: Option<Secret>,
    passphrase_file: Option<PathBuf>,
    /// What the registry says of it.
    pub entry: Entry,
    /// The name of the place where the volume is kept.
    pub place: String,
    /// What `/sys/block/nbdN/backend` says.
    pub backend: String,
    /// Somebody wants the device to be detached as soon as nobody holds it.
    pub leaving: bool,
    /// When the old program stopped to serve, in milliseconds of the machine's boot
    /// clock.
    pub stopped: u64,
    /// What passes by descriptor; none in a trial.
    passed: Option<Passed>,
    /// Why the program before this one could not go on.
    pub failed: Option<Error>,
}

/// Bytes that no log shows, and that are overwritten when they are let go.
#[derive(Serialize, Deserialize)]
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Descriptors, by their numbers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Passed {
    /// Our end of the kernel's socket.
    pub kernel: RawFd,
    /// The file of the machine's lock.
    pub lock: RawFd,
    /// The control socket.
    pub listener: RawFd,
    /// The pipe to the old guardian.
    pub guardian: RawFd,
    /// Its process.
    pub guardian_pid: u32,
    /// The connection of whoever asked for it.
    pub client: RawFd,
    /// The netlink socket that has connected the device, if it could be found.
    pub netlink: Option<RawFd>,
    /// The old program, if it was not tried again yet.
    pub former: Option<RawFd>,
}

impl State {
    /// The state of a device that still serves.
    pub fn new(told: &Told, entry: Entry, place: String, backend: String) -> State {
        let (passphrase, passphrase_file) = match &told.passphrase {
            Some(Passphrase::Here(bytes)) => (Some(Secret(bytes.to_vec())), None),
            Some(Passphrase::File(path)) => (None, Some(path.clone())),
            None => (None, None),
        };
        State {
            version: VERSION,
            directory: told.directory.clone(),
            foreground: told.foreground,
            passphrase,
            passphrase_file,
            entry,
            place,
            backend,
            leaving: false,
            stopped: 0,
            passed: None,
            failed: None,
        }
    }

    /// What was passed on; nothing in a trial.
    pub fn passed(&self) -> Option<Passed> {
        self.passed
    }

    /// Refuses a volume of another size (bytes) or block size (bytes) than the device.
    pub fn check(&self, is: (u64, u32)) -> Result<()> {
        let entry = &self.entry;
        if is == (entry.size, entry.block_size) {
            return Ok(());
        }
        Err(Error::failed(format!(
            "volume {}: it has {} bytes in blocks of {} now, and {} has {} in blocks of {}",
            entry.volume, is.0, is.1, entry.device, entry.size, entry.block_size
        )))
    }

    /// The old program, once.
    pub fn take_former(&mut self) -> Option<RawFd> {
        self.passed.as_mut()?.former.take()
    }

    /// What it says of the volume's passphrase.
    pub fn passphrase(&self) -> Option<Passphrase> {
        if let Some(bytes) = &self.passphrase {
            let bytes = Zeroizing::new(bytes.0.clone());
            return Some(super::passphrase::here(bytes));
        }
        self.passphrase_file.clone().map(Passphrase::File)
    }

    /// Reads what [`State::write`] wrote.
    pub fn read(from: impl Read) -> Result<State> {
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_STATE as usize));
        let read = from.take(MAX_STATE).read_to_end(&mut text);
        let failed = |why: &dyn std::fmt::Display| {
            Error::failed(format!(
                "what the program before left behind cannot be read: {why}"
            ))
        };
        read.map_err(|error| failed(&error))?;
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let any: Any = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        if any.version != VERSION {
            return Err(failed(&format!(
                "it is of version {}, and this program ({}) knows version {VERSION}",
                any.version,
                env!("CARGO_PKG_VERSION")
            ))
            .hint("detach the device and attach it again"));
        }
        serde_json::from_slice(&text).map_err(|error| failed(&error))
    }

    fn write(&self, to: impl Write) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::failed(format!("cannot hand the device over: {error}"))
        };
        let mut to = to;
        let text = Zeroizing::new(serde_json::to_vec(self).map_err(|error| failed(&error))?);
        if text.len() as u64 > MAX_STATE {
            return Err(failed(&"there is too much to tell"));
        }
        to.write_all(&text).map_err(|error| failed(&error))
    }
}

/// Has the new program look whether it could go on with the device. Takes a while.
pub fn attempt(program: &Path, global: &Global, state: &State) -> Result<()> {
    let mut child = Command::new(program)
        .args(words(&state.entry.volume, None, global))
        .current_dir(&state.directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::failed(format!("cannot start {}: {error}", program.display())))?;
    if let Some(stdin) = child.stdin.take() {
        // One that has ended says why below.
        let _ = state.write(stdin);
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (done, waited) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if let Err(mpsc::RecvTimeoutError::Timeout) = waited.recv_timeout(PATIENCE) {
            // Not waited for yet, so the number is still its own.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let ready = await_ready(&mut child, |how| {
        Error::failed(format!(
            "{} does not start, or did not say within {} s that it could: it ended with {how}",
            program.display(),
            PATIENCE.as_secs()
        ))
    });
    drop(done);
    let _ = watch.join();
    let _ = child.kill();
    let _ = child.wait();
    ready.map(drop)
}

/// What a session leaves behind when its device goes on in another program.
#[derive(Debug)]
pub struct Handed {
    /// The device.
    pub state: State,
    /// The program.
    pub program: PathBuf,
    /// Our end of the kernel's socket, between two requests.
    pub kernel: OwnedFd,
    /// The control socket.
    pub listener: OwnedFd,
    /// The connection of whoever asked for it.
    pub client: OwnedFd,
    /// The netlink socket that has connected the device.
    pub netlink: Option<OwnedFd>,
}

/// A process that is about to become another program.
#[derive(Debug)]
pub struct Leaving {
    state: State,
    program: PathBuf,
    /// Open until the other program has them.
    _passed: Vec<OwnedFd>,
}

impl Leaving {
    /// Collects what is passed on.
    pub fn new(handed: Handed, lock: File, guardian: Guardian) -> Leaving {
        let (guardian, guardian_pid) = guardian.hand_over();
        let former = this_program();
        let lock = OwnedFd::from(lock);
        let mut state = handed.state;
        state.passed = Some(Passed {
            kernel: handed.kernel.as_raw_fd(),
            lock: lock.as_raw_fd(),
            listener: handed.listener.as_raw_fd(),
            guardian: guardian.as_raw_fd(),
            guardian_pid,
            client: handed.client.as_raw_fd(),
            netlink: handed.netlink.as_ref().map(AsRawFd::as_raw_fd),
            former: former.as_ref().map(AsRawFd::as_raw_fd),
        });
        let passed = [
            handed.kernel,
            lock,
            handed.listener,
            guardian,
            handed.client,
        ];
        Leaving {
            state,
            program: handed.program,
            _passed: passed
                .into_iter()
                .chain(handed.netlink)
                .chain(former)
                .collect(),
        }
    }

    /// Becomes the new program, or else the old one anew. Returns only if neither can be.
    pub fn go(mut self, global: &Global) -> Error {
        let error = become_program(&self.program, global, &self.state);
        tracing::error!("{}", error.message);
        self.state.failed = Some(error.clone());
        match self.state.take_former() {
            Some(former) => become_program(&path_of(former), global, &self.state),
            None => error,
        }
    }
}

/// The old program, to be started again if the new one fails.
fn this_program() -> Option<OwnedFd> {
    let path = c"/proc/self/exe";
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// Becomes the new program; returns only if that cannot be. What is passed on stays open
/// then.
pub fn become_program(program: &Path, global: &Global, state: &State) -> Error {
    let Some(passed) = state.passed else {
        return Error::failed("there is nothing to hand over");
    };
    let pipe = io::pipe().map_err(|error| Error::failed(format!("cannot make a pipe: {error}")));
    let (reader, writer) = match pipe {
        Ok(pipe) => pipe,
        Err(error) => return error,
    };
    if let Err(error) = state.write(writer) {
        return error;
    }
    let Passed {
        kernel,
        lock,
        listener,
        guardian,
        client,
        netlink,
        former,
        ..
    } = passed;
    let numbers = [kernel, lock, listener, guardian, client, reader.as_raw_fd()];
    for number in numbers.into_iter().chain(netlink).chain(former) {
        if let Err(error) = keep_open(number) {
            return Error::failed(format!("cannot pass descriptor {number} on: {error}"));
        }
    }
    // Until the new program listens for them.
    let _ = SigSet::all().thread_block();
    let text = |word: OsString| CString::new(word.into_vec()).unwrap_or_default();
    let mut arguments = vec![c"swiftnbd".to_owned()];
    let words = words(&state.entry.volume, Some(reader.as_raw_fd()), global);
    arguments.extend(words.into_iter().map(text));
    let error = match nix::unistd::execv(&text(program.into()), &arguments) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = SigSet::all().thread_unblock();
    Error::failed(format!("cannot start {}: {error}", program.display()))
}

/// The signals that waited for the new program come from now on.
pub fn unblock_signals() {
    let _ = SigSet::all().thread_unblock();
}

/// The path by which a descriptor's file can be started.
pub fn path_of(number: RawFd) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

/// Has a descriptor survive the next program's start.
fn keep_open(number: RawFd) -> nix::Result<()> {
    set_flags(number, FdFlag::empty())
}

fn set_flags(number: RawFd, flags: FdFlag) -> nix::Result<()> {
    // SAFETY: the number is only named in a system call, which refuses one that is not
    // open; nothing is closed here.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl(file.as_fd(), FcntlArg::F_SETFD(flags)).map(drop)
}

/// A descriptor that the program before has passed on; once for each number.
pub fn adopt(number: RawFd) -> Result<OwnedFd> {
    let open = number > 2 && set_flags(number, FdFlag::FD_CLOEXEC).is_ok();
    if !open {
        return Err(Error::failed(format!(
            "descriptor {number} was not passed on"
        )));
    }
    // SAFETY: it is open, it was passed to us, and nobody else in this process takes the
    // same number from a state.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor that was passed on, once more.
pub fn again(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: as in `set_flags`; it stays open as long as the state is needed.
    let passed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    passed.try_clone_to_owned()
}

/// Answers whoever asked for all this. One that has gone is not worth a word.
pub fn answer(state: &State, response: &Response) {
    let Some(stream) = state.passed.and_then(|passed| again(passed.client).ok()) else {
        return;
    };
    let mut stream = UnixStream::from(stream);
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_write_timeout(Some(CLIENT_PATIENCE));
    if let Ok(mut line) = serde_json::to_vec(response) {
        line.push(b'\n');
        let _ = stream.write_all(&line);
    }
}

/// The state that this process was started with, and whether it is only a trial.
pub fn begin(args: &Resume) -> Result<(State, bool)> {
    match args.state {
        Some(number) => Ok((State::read(File::from(adopt(number)?))?, false)),
        None => Ok((State::read(io::stdin().lock())?, true)),
    }
}

/// A trial's outcome, for the process that waits for it.
pub fn report(result: &Result<()>) {
    let report = match result {
        Ok(()) => Report::Ready(env!("CARGO_PKG_VERSION").to_owned()),
        Err(error) => Report::Failed(error.clone()),
    };
    if let Ok(line) = serde_json::to_string(&report) {
        println!("{line}");
    }
}

/// Milliseconds of the machine's boot clock.
pub fn boot_clock() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| {
        now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000
    })
}

/// What the new program is told on its command line.
fn words(volume: &str, state: Option<RawFd>, global: &Global) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![VERB.into(), volume.into()];
    if let Some(number) = state {
        words.extend(["--state".into(), number.to_string().into()]);
    }
    words.extend(global.words());
    words
}

/// The program that a command was started from.
pub fn installed() -> Result<PathBuf> {
    let path = fs::read_link("/proc/self/exe");
    let path = path.map_err(|error| Error::failed(format!("/proc/self/exe: {error}")))?;
    match path.exists() {
        true => Ok(path),
        false => Err(
            Error::failed(format!("{}: it was replaced just now", path.display()))
                .hint("run the same command again"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let entry = Entry {
            device: "/dev/nbd0".into(),
            volume: "vol".into(),
            container: "vol".into(),
            size: 1 << 20,
            block_size: 4096,
            read_only: false,
            pid: 1,
            since: 2,
            client: "host:1@2".into(),
            format: 2,
            connected_by: 7,
            attachments: Vec::new(),
            reattach_seconds: 0,
            orphaned: None,
        };
        let global = Global {
            config: None,
            secrets: None,
            store: None,
            verbose: 0,
            log_file: None,
            syslog: false,
        };
        let told = Told {
            directory: "/".into(),
            global,
            foreground: false,
            passphrase: Some(crate::control::passphrase::here(Zeroizing::new(
                b"hunter2".to_vec(),
            ))),
        };
        State::new(&told, entry, "place".into(), "swiftnbd:vol".into())
    }

    #[test]
    fn what_was_written_is_read() {
        let mut text = Vec::new();
        state().write(&mut text).unwrap();
        let read = State::read(&text[..]).unwrap();
        assert_eq!(read.entry, state().entry);
        let Some(Passphrase::Here(bytes)) = read.passphrase() else {
            panic!("{read:?}")
        };
        assert_eq!(bytes.as_slice(), b"hunter2");
        for end in 0..text.len() {
            assert!(State::read(&text[..end]).is_err());
        }
    }

    #[test]
    fn another_version_is_refused_whatever_else_it_says() {
        let text = br#"{"version":2,"entry":7}"#;
        let error = State::read(&text[..]).unwrap_err();
        assert!(error.message.contains("version 2"), "{}", error.message);
    }

    #[test]
    fn no_passphrase_is_shown() {
        let shown = format!("{:?}", state());
        assert!(!shown.contains("104, 117"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn another_size_is_refused() {
        assert!(state().check((1 << 20, 4096)).is_ok());
        assert!(state().check((2 << 20, 4096)).is_err());
        assert!(state().check((1 << 20, 512)).is_err());
    }
}
