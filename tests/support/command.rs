//! The real binary, run as a user runs it: in an environment of its own, with a
//! configuration file of its own, over one volume called `vol`.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use swiftnbd::store::dir::DirStore;
use swiftnbd::store::{ErrorKind, Metadata, ObjectStore};
use tempfile::TempDir;

use super::nbd_client::Client;
use super::plain_swift::Swift;
use super::tamper::Tamper;
use super::waiting::wait_until;

/// The volume's name on the command line; its container has another one.
pub const VOLUME: &str = "vol";

/// A wrong password, which must not be seen anywhere.
pub const WRONG_PASSWORD: &str = "sesame-marker";

/// Some hint, or none.
pub const ANY: &str = "any";

/// Does it with both kinds of store.
#[allow(unused_macros, reason = "no test program uses all of it")]
macro_rules! everywhere {
    ($($(#[$doc:meta])* fn $name:ident($sandbox:ident: &Sandbox) $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$doc])*
            fn check($sandbox: &Sandbox) $body

            #[test]
            fn in_a_directory() {
                check(&Sandbox::dir());
            }

            #[test]
            fn in_swift() {
                check(&Sandbox::swift());
            }
        }
    )*};
}
#[allow(unused_imports, reason = "no test program uses all of it")]
pub(crate) use everywhere;

/// What keeps the volume's container.
pub enum Place {
    Dir(PathBuf),
    Swift(Swift),
}

/// A container, perhaps not there yet, and a configuration that names it.
/// Removed at the end.
pub struct Sandbox {
    pub files: TempDir,
    pub place: Place,
    pub container: String,
    auth_url: String,
    password: String,
}

/// All that a container holds: its metadata and its objects.
pub type Snapshot = Option<(BTreeMap<String, String>, BTreeMap<String, Vec<u8>>)>;

impl Sandbox {
    /// In a local directory.
    pub fn dir() -> Sandbox {
        let files = tempfile::tempdir().unwrap();
        let place = Place::Dir(files.path().join("store"));
        Sandbox::new(files, place, String::new(), "")
    }

    /// In the real Swift.
    pub fn swift() -> Sandbox {
        let swift = Swift::lab();
        let (auth_url, key) = (swift.auth_url.clone(), swift.key.clone());
        let files = tempfile::tempdir().unwrap();
        Sandbox::new(files, Place::Swift(swift), auth_url, &key)
    }

    /// In the real Swift, reached through a proxy that can spoil everything.
    pub fn tampered() -> (Sandbox, Tamper) {
        let mut sandbox = Sandbox::swift();
        let tamper = Tamper::start(&sandbox.lab().address);
        sandbox.auth_url = tamper.auth_url();
        sandbox.configure("");
        (sandbox, tamper)
    }

    fn new(files: TempDir, place: Place, auth_url: String, password: &str) -> Sandbox {
        let sandbox = Sandbox {
            files,
            place,
            container: Swift::fresh_name("box"),
            auth_url,
            password: password.to_owned(),
        };
        sandbox.configure("");
        sandbox
    }

    pub fn lab(&self) -> &Swift {
        match &self.place {
            Place::Swift(swift) => swift,
            Place::Dir(_) => panic!("this volume is in a directory"),
        }
    }

    /// Uses other credentials or another address.
    pub fn log_in_as(&mut self, auth_url: Option<&str>, password: &str) {
        if let Some(auth_url) = auth_url {
            self.auth_url = auth_url.to_owned();
        }
        self.password = password.to_owned();
        self.configure("");
    }

    /// Writes the configuration, with these lines about the volume besides.
    pub fn configure(&self, lines: &str) {
        let volume = format!(
            "[volumes.{VOLUME}]\ncontainer = \"{}\"\n{lines}\n",
            self.container
        );
        let text = match &self.place {
            Place::Dir(path) => format!("{volume}store = \"dir:{}\"\n", path.display()),
            Place::Swift(swift) => format!(
                "[swift]\nauth_url = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\n\n{volume}",
                self.auth_url, swift.user, self.password
            ),
        };
        write_private(&self.config(), &text);
    }

    pub fn config(&self) -> PathBuf {
        self.files.path().join("swiftnbd.toml")
    }

    /// Runs a command with this configuration, and checks that nothing of what it
    /// says is a secret.
    pub fn run(&self, args: &[&str]) -> Outcome {
        let outcome = self.run_once(args);
        // Once more with all that it can say, in a log file: only where nothing
        // is changed by doing it twice.
        if outcome.status != 0 && outcome.status != 2 {
            let log = self.files.path().join("command.log");
            let mut all = args.to_vec();
            all.extend(["-vv", "--log-file", log.to_str().unwrap()]);
            let again = self.run_once(&all);
            assert_eq!(again.status, outcome.status, "{again:?}");
            self.assert_no_secret(&std::fs::read_to_string(&log).unwrap());
        }
        outcome
    }

    /// Runs a command with this configuration.
    pub fn run_once(&self, args: &[&str]) -> Outcome {
        let config = self.config();
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        let outcome = run(&all);
        self.assert_no_secret(&outcome.stdout);
        self.assert_no_secret(&outcome.stderr);
        outcome
    }

    /// Sets up the volume.
    pub fn set_up(&self, objects: u64, object_size: u64) {
        let (objects, size) = (objects.to_string(), object_size.to_string());
        self.run(&["setup", VOLUME, &objects, "--object-size", &size])
            .is_silent();
    }

    /// Makes the container without anything in it, past swiftnbd.
    pub fn create(&self) {
        match &self.place {
            Place::Swift(swift) => swift.create(&self.container),
            Place::Dir(_) => assert!(wait(self.dir_store().create())),
        }
    }

    /// Sets metadata past swiftnbd, names as `Swiftnbd-Version`.
    pub fn set_metadata(&self, metadata: &[(&str, &str)]) {
        match &self.place {
            Place::Swift(swift) => swift.set_metadata(&self.container, metadata),
            Place::Dir(_) => {
                let set =
                    |(key, value): &(&str, &str)| (key.to_ascii_lowercase(), (*value).to_owned());
                let changes: Metadata = metadata.iter().map(set).collect();
                wait(async { self.dir_store().set_metadata(&changes).await });
            }
        }
    }

    /// Stores an object past swiftnbd.
    pub fn put(&self, object: &str, body: &[u8]) {
        match &self.place {
            Place::Swift(swift) => swift.put(&self.container, object, body),
            Place::Dir(_) => {
                let body = body.to_vec().into();
                wait(async { self.dir_store().put(object, body).await });
            }
        }
    }

    /// The object's body, read past swiftnbd.
    pub fn get(&self, object: &str) -> Option<Vec<u8>> {
        let (_, objects) = self.snapshot()?;
        objects.get(object).cloned()
    }

    /// One key of the container's metadata, `swiftnbd-client`; empty if absent.
    pub fn metadata(&self, key: &str) -> String {
        let metadata = match &self.place {
            Place::Swift(swift) => swift.metadata(&self.container).unwrap(),
            Place::Dir(_) => wait(self.dir_store().metadata()),
        };
        metadata.get(key).cloned().unwrap_or_default()
    }

    /// All that the container holds, read past swiftnbd; `None` if there is none.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.everything();
        if let Some((_, objects)) = &mut snapshot {
            // A holder renews its lease whenever it is time.
            objects.retain(|name, _| !name.starts_with("lease/"));
        }
        snapshot
    }

    fn everything(&self) -> Snapshot {
        match &self.place {
            Place::Swift(swift) => {
                let metadata = swift.metadata(&self.container)?;
                Some((metadata, swift.objects(&self.container)))
            }
            Place::Dir(path) => {
                if !path.join(&self.container).exists() {
                    return None;
                }
                let store = self.dir_store();
                let objects = wait(store.list("", "", 10_000)).into_iter();
                // One that goes between the listing and this was not there.
                let body = |name: String| {
                    let body = wait(async {
                        match store.get(&name).await {
                            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
                            other => other.map(Some),
                        }
                    });
                    body.map(|body| (name, body.to_vec()))
                };
                let objects = objects.filter_map(|listed| body(listed.name)).collect();
                Some((wait(store.metadata()), objects))
            }
        }
    }

    fn dir_store(&self) -> DirStore {
        match &self.place {
            Place::Dir(path) => DirStore::new(path, &self.container, 64 << 20).unwrap(),
            Place::Swift(_) => panic!("this volume is in Swift"),
        }
    }

    /// Nothing of the password, nor of any token.
    pub fn assert_no_secret(&self, text: &str) {
        let mut secrets = vec![WRONG_PASSWORD, "AUTH_tk"];
        if !self.password.is_empty() {
            secrets.push(&self.password);
        }
        for secret in secrets {
            assert!(!text.contains(secret), "{secret:?} is in:\n{text}");
        }
    }

    /// Serves the volume, once a client can connect.
    pub fn serve(&self) -> Server<'_> {
        let server = self.start_serving();
        server.await_ready();
        server
    }

    /// Begins to serve the volume.
    pub fn start_serving(&self) -> Server<'_> {
        self.start_serving_these(&[VOLUME])
    }

    /// Begins to serve these volumes; none means all, leased on demand.
    pub fn start_serving_these(&self, names: &[&str]) -> Server<'_> {
        let socket = self.files.path().join("nbd.sock");
        let log = self.files.path().join("serve.log");
        let config = self.config();
        let mut args = vec!["serve"];
        args.extend(names);
        args.extend(["--unix", socket.to_str().unwrap()]);
        args.extend(["--config", config.to_str().unwrap()]);
        args.extend(["-vv", "--log-file", log.to_str().unwrap()]);
        let mut command = command(&args);
        let stderr = self.files.path().join("serve.stderr");
        let out = std::fs::File::create(&stderr).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Server {
            sandbox: self,
            child,
            socket,
            log,
            stderr,
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Place::Swift(swift) = &self.place {
            swift.remove(&self.container);
        }
    }
}

/// Writes a file that nobody else can read.
pub fn write_private(path: &Path, text: &str) {
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

/// Runs work of the store in a directory.
fn wait<T, E: std::fmt::Debug>(work: impl Future<Output = Result<T, E>>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
        .unwrap()
}

/// The binary with these arguments, and nothing of our environment.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swiftnbd"));
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Outcome {
    finish(&mut command(args))
}

/// Runs a command to its end, which must come.
pub fn finish(command: &mut Command) -> Outcome {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = collect(child.stdout.take().unwrap());
    let err = collect(child.stderr.take().unwrap());
    let status = await_end(&mut child);
    Outcome {
        status: status
            .code()
            .unwrap_or_else(|| -status.signal().unwrap_or(0)),
        stdout: out.join().unwrap(),
        stderr: err.join().unwrap(),
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

fn await_end(child: &mut Child) -> ExitStatus {
    let mut status = None;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("a process to end", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
    }));
    if let Err(panic) = ended {
        let _ = child.kill();
        let _ = child.wait();
        std::panic::resume_unwind(panic);
    }
    status.unwrap()
}

/// What a user sees of a command.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The exit status; a signal's number, negative, if one ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// It did what was asked and had nothing to say.
    pub fn is_silent(&self) {
        assert_eq!((self.status, &*self.stdout, &*self.stderr), (0, "", ""));
    }

    /// It failed with this status: nothing on stdout; on stderr what failed, in
    /// one line, with these words in it; then, if `hint` is not empty, an empty
    /// line and a hint with these words.
    pub fn failed(&self, status: i32, words: &[&str], hint: &str) -> &Outcome {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let (message, advice) = match self.stderr.split_once("\n\n") {
            Some((message, advice)) => (message, advice),
            None => (self.stderr.as_str(), ""),
        };
        assert!(message.contains("swiftnbd: "), "{self:?}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        match hint {
            "" => assert!(advice.is_empty(), "{self:?}"),
            ANY => assert!(
                advice.is_empty() || advice.starts_with("hint: "),
                "{self:?}"
            ),
            _ => {
                let advice = advice.strip_prefix("hint: ");
                let advice = advice.unwrap_or_else(|| panic!("no hint: {self:?}"));
                assert!(advice.contains(hint), "{hint:?} is not in: {advice}");
            }
        }
        self
    }
}

/// `swiftnbd serve`; killed when it is dropped.
pub struct Server<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
    stderr: PathBuf,
}

impl Server<'_> {
    /// Waits until clients can connect.
    pub fn await_ready(&self) {
        let pid = self.child.id();
        wait_until("the server", || {
            let ended = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
                stat.rsplit_once(") ")
                    .is_none_or(|(_, rest)| rest.starts_with('Z'))
            });
            assert!(!ended, "the server ended: {}", self.said());
            self.is_listening()
        });
    }

    pub fn is_listening(&self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }

    /// A client of the volume.
    pub fn client(&self) -> Client {
        Client::go(&self.socket, VOLUME).expect("the export is there")
    }

    /// Its log, all of it.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log has a line with all of these words.
    pub fn await_log(&self, words: &[&str]) {
        wait_until(&format!("{words:?} in the log"), || {
            self.log()
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// What it said besides its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap() + &self.log()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its command line, as everybody on the machine can see it.
    pub fn command_line(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.child.id())).unwrap();
        String::from_utf8(bytes).unwrap().replace('\0', " ")
    }

    /// Waits for its end: the exit status, negative for a signal.
    pub fn end(&mut self) -> i32 {
        let status = await_end(&mut self.child);
        self.check_secrets();
        status
            .code()
            .unwrap_or_else(|| -status.signal().unwrap_or(0))
    }

    /// Ends it by SIGTERM: all is durable, the volume is unlocked, the socket
    /// file is gone, and no secret was seen.
    pub fn stop(mut self) {
        let command_line = self.command_line();
        assert!(command_line.contains(VOLUME), "{command_line}");
        self.sandbox.assert_no_secret(&command_line);
        self.signal(Signal::SIGTERM);
        assert_eq!(self.end(), 0, "{}", self.said());
        assert!(!self.socket.exists(), "the socket file stays");
        assert_eq!(self.sandbox.metadata("swiftnbd-client"), "");
    }

    fn check_secrets(&self) {
        let log = self.said();
        assert!(!log.contains("panicked"), "{log}");
        self.sandbox.assert_no_secret(&log);
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let shown: Vec<_> = log
                .lines()
                .filter(|line| !line.contains("TRACE") && !line.contains("DEBUG"))
                .collect();
            eprintln!("the server's log:\n{}", shown.join("\n"));
        }
    }
}

/// Makes the file readable by everybody.
pub fn publish(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
}
