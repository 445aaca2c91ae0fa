//! The commands and options of the original, versions 0.9.3 and 0.11, each tried as
//! a user would: by its name, with a secrets file, over a real Swift.
//!
//! Needs `scripts/lab run -- cargo test --test original`, or `scripts/test`; without
//! a Swift it fails. The servers listen on the original's ports, 10809 and 10811,
//! which must be free.

#[path = "support/command.rs"]
mod command;
#[path = "support/nbd_client.rs"]
mod nbd_client;
#[path = "support/plain_swift.rs"]
mod plain_swift;
#[path = "support/tamper.rs"]
mod tamper;
#[path = "support/waiting.rs"]
mod waiting;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command::{Outcome, Sandbox, finish, write_private};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use waiting::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_swiftnbd");

/// A machine of a user of the original's: the programs by their names, a secrets
/// file, and a directory for what is temporary.
struct Machine {
    sandbox: Sandbox,
    /// Containers made besides the sandbox's own.
    more: Vec<String>,
}

impl Machine {
    /// `authurl` in the secrets file, as 0.9.3 had it, or not, as 0.11.
    fn new(authurl: bool) -> Machine {
        let machine = Machine {
            sandbox: Sandbox::swift(),
            more: Vec::new(),
        };
        for program in ["setup", "server", "ctl"] {
            let link = machine.path(&format!("swiftnbd-{program}"));
            std::os::unix::fs::symlink(BINARY, link).unwrap();
        }
        machine.write_secrets(authurl, "");
        machine
    }

    fn write_secrets(&self, authurl: bool, more: &str) {
        let lab = self.sandbox.lab();
        let authurl = match authurl {
            true => format!("authurl = {}\n", lab.auth_url),
            false => String::new(),
        };
        let text = format!(
            "[{}]\nusername = {}\npassword = {}\n{authurl}{more}",
            self.container(),
            lab.user,
            lab.key
        );
        write_private(&self.path("secrets.conf"), &text);
    }

    fn container(&self) -> &str {
        &self.sandbox.container
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.files.path().join(name)
    }

    /// Runs a line: a program and its arguments. `C` is the container, `S` the
    /// secrets file, `U` the address of the authentication, `D` a directory.
    fn run(&self, line: &str) -> Outcome {
        let outcome = finish(&mut self.command(line));
        self.sandbox.assert_no_secret(&outcome.stdout);
        self.sandbox.assert_no_secret(&outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        outcome
    }

    fn command(&self, line: &str) -> Command {
        let directory = self.sandbox.files.path().to_str().unwrap();
        let mut words = line.split(' ').map(|word| match word {
            "C" => self.container().to_owned(),
            "S" => format!("{directory}/secrets.conf"),
            "U" => self.sandbox.lab().auth_url.clone(),
            word => word.replace("D/", &format!("{directory}/")),
        });
        let mut command = Command::new(self.path(&words.next().unwrap()));
        command
            .args(words)
            .env_clear()
            .env("TMPDIR", directory)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// It did what was asked and had nothing to say.
    fn works(&self, line: &str) {
        let outcome = self.run(line);
        let seen = (outcome.status, &*outcome.stdout, &*outcome.stderr);
        assert_eq!(seen, (0, "", ""), "{line}");
    }

    /// It failed with this status and this word, and its own name.
    fn fails(&self, line: &str, status: i32, word: &str) {
        let outcome = self.run(line);
        assert_eq!(
            (outcome.status, &*outcome.stdout),
            (status, ""),
            "{line}: {outcome:?}"
        );
        assert!(
            outcome.stderr.contains(word),
            "{line}: {word:?}: {outcome:?}"
        );
        let program = line.split(' ').next().unwrap();
        let says = outcome.stderr.contains(&format!("{program}: ")) || status == 2;
        assert!(says, "{line}: {outcome:?}");
    }

    fn metadata(&self, key: &str) -> String {
        self.sandbox.metadata(key)
    }

    fn is_there(&self) -> bool {
        self.sandbox.lab().metadata(self.container()).is_some()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A server that a failed test has left behind.
        let directory = self.sandbox.files.path();
        for file in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Some(id) = pid(&file.path()).filter(|id| *id > 1) else {
                continue;
            };
            let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(directory.to_str().unwrap()) {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
        }
        for container in &self.more {
            self.sandbox.lab().remove(container);
        }
    }
}

/// `swiftnbd-setup`, and `swiftnbd-ctl setup` of 0.11.
#[test]
fn setup() {
    for (authurl, tool, options) in [
        (true, "swiftnbd-setup", "--secrets S"),
        (false, "swiftnbd-setup", "--secrets S -a U"),
        (false, "swiftnbd-ctl setup", "--secrets S --auth-url U"),
    ] {
        let machine = Machine::new(authurl);
        // CONTAINER OBJECTS: 64 KiB each.
        machine.works(&format!("{tool} C 16 {options}"));
        assert_eq!(machine.metadata("swiftnbd-version"), "1");
        assert_eq!(machine.metadata("swiftnbd-objects"), "16");
        assert_eq!(machine.metadata("swiftnbd-object-size"), "65536");
        // It is one already.
        machine.fails(&format!("{tool} C 32 {options}"), 1, "already");
        assert_eq!(machine.metadata("swiftnbd-objects"), "16");
        // --force, -f, --object-size.
        machine.works(&format!("{tool} C 32 --force {options}"));
        assert_eq!(machine.metadata("swiftnbd-objects"), "32");
        machine.works(&format!("{tool} -f --object-size 131072 C 8 {options}"));
        assert_eq!(machine.metadata("swiftnbd-objects"), "8");
        assert_eq!(machine.metadata("swiftnbd-object-size"), "131072");
        // Not of the secrets file; no number; nothing.
        machine.fails(&format!("{tool} other 16 {options}"), 1, "other");
        machine.fails(&format!("{tool} C many {options}"), 2, "many");
        machine.fails(&format!("{tool} C {options}"), 2, "OBJECTS");
    }
}

/// The options that every program has.
#[test]
fn common_options() {
    let machine = Machine::new(true);
    machine.works("swiftnbd-setup C 16 --secrets S");
    for program in ["swiftnbd-setup", "swiftnbd-server", "swiftnbd-ctl"] {
        let outcome = machine.run(&format!("{program} --version"));
        let version = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((outcome.status, outcome.stdout), (0, version));
        let help = machine.run(&format!("{program} --help"));
        assert_eq!(help.status, 0);
        for option in [
            "--secrets",
            "-a, --auth-url",
            "-v, --verbose",
            "-k, --keystone-auth",
            "--keystone-separator",
            "--keystone-service",
            "--keystone-endpoint",
            "--keystone-region",
            "oldstyle",
        ] {
            assert!(help.stdout.contains(option), "{program}: {option}");
        }
        machine.fails(
            &format!("{program} --no-such-option"),
            2,
            "--no-such-option",
        );
    }
    // Before the verb, as the original had them, or after.
    let line = format!(
        "{} objects=16 size=1048576 (version=1, unlocked)\n",
        machine.container()
    );
    for options in [
        "--secrets S list",
        "list --secrets S",
        "--secrets S -v list",
    ] {
        let outcome = machine.run(&format!("swiftnbd-ctl {options}"));
        assert_eq!(
            (outcome.status, outcome.stdout),
            (0, line.clone()),
            "{options}"
        );
    }
    machine.fails("swiftnbd-ctl --secrets /nowhere/s list", 1, "/nowhere/s");
    // A wrong address is said, not hidden: an authurl of the file wins over -a.
    machine.write_secrets(false, "");
    machine.fails("swiftnbd-ctl lock C --secrets S", 1, "auth");
    machine.fails(
        "swiftnbd-ctl -a http://127.0.0.1:1/auth/v1.0 lock C --secrets S",
        1,
        "127.0.0.1:1",
    );
    machine.works("swiftnbd-ctl lock C --secrets S --auth-url U");
    machine.write_secrets(true, "");
    machine.works("swiftnbd-ctl -a http://127.0.0.1:1/auth/v1.0 unlock C --secrets S");
}

/// `swiftnbd-ctl`: list, lock, unlock, download, delete.
#[test]
fn ctl() {
    let machine = Machine::new(true);
    let container = machine.container().to_owned();
    machine.fails("swiftnbd-ctl --secrets S", 2, "Usage");
    machine.works("swiftnbd-setup --secrets S C 16 --object-size 4096");
    machine.sandbox.put("disk.part/00000003", &[3; 4096]);
    machine.sandbox.put("disk.part/00000015", &[15; 4096]);

    let listed = |line: &str, lock: &str| {
        let outcome = machine.run(line);
        assert_eq!((outcome.status, &*outcome.stderr), (0, ""), "{outcome:?}");
        let wanted = format!("{container} objects=16 size=65536 (version=1, {lock}");
        assert!(outcome.stdout.starts_with(&wanted), "{outcome:?}");
        assert!(outcome.stdout.ends_with(")\n"), "{outcome:?}");
    };
    for line in ["list", "list -s", "list --simple-output"] {
        listed(&format!("swiftnbd-ctl --secrets S {line}"), "unlocked)\n");
    }
    // lock (0.11), unlock.
    machine.fails("swiftnbd-ctl unlock C --secrets S", 1, "not locked");
    machine.works("swiftnbd-ctl lock C --secrets S");
    let client = machine.metadata("swiftnbd-client");
    assert!(client.starts_with("ctl@"), "{client}");
    listed("swiftnbd-ctl list -s --secrets S", "locked by ctl");
    machine.fails("swiftnbd-ctl lock C --secrets S", 1, "locked by ctl");
    // What is locked is neither downloaded nor deleted.
    machine.fails(
        "swiftnbd-ctl download C D/image --secrets S",
        1,
        "locked by ctl",
    );
    machine.fails("swiftnbd-ctl delete C --secrets S", 1, "locked by ctl");
    machine.works("swiftnbd-ctl unlock C --secrets S");
    assert_eq!(machine.metadata("swiftnbd-last"), client);

    // download, -q, --quiet; the lock meanwhile is seen in Last.
    let mut image = vec![0; 65536];
    image[3 * 4096..4 * 4096].fill(3);
    image[15 * 4096..].fill(15);
    machine.sandbox.set_metadata(&[("Swiftnbd-Unlocked", "")]);
    for quiet in ["", " -q", " --quiet"] {
        machine.works(&format!(
            "swiftnbd-ctl download C D/image --secrets S{quiet}"
        ));
        assert!(std::fs::read(machine.path("image")).unwrap() == image);
        std::fs::remove_file(machine.path("image")).unwrap();
    }
    let last = machine.metadata("swiftnbd-last");
    assert!(last.starts_with("ctl-download@"), "{last}");
    machine.fails("swiftnbd-ctl download C --secrets S", 2, "IMAGE");

    // delete: nobody is asked.
    machine.works("swiftnbd-ctl delete C --secrets S");
    assert!(!machine.is_there());
    machine.fails("swiftnbd-ctl delete C --secrets S", 1, &container);
    machine.fails("swiftnbd-ctl list --secrets S", 1, &container);
}

/// A client as `nbd-client -N EXPORT` is one: the export's size, and its first
/// block.
struct Client {
    stream: TcpStream,
    size: u64,
}

impl Client {
    fn connect(address: &str, export: &str) -> Option<Client> {
        let mut stream = TcpStream::connect(address).ok()?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).ok()?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME.
        let mut request = vec![0, 0, 0, 3];
        request.extend_from_slice(b"IHAVEOPT\0\0\0\x01");
        request.extend_from_slice(&(export.len() as u32).to_be_bytes());
        request.extend_from_slice(export.as_bytes());
        stream.write_all(&request).ok()?;
        let mut answer = [0; 10];
        // A server hangs up where there is no such export.
        stream.read_exact(&mut answer).ok()?;
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Some(Client { stream, size })
    }

    fn read(&mut self) -> Vec<u8> {
        let mut request = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0];
        request.extend_from_slice(&7_u64.to_be_bytes());
        request.extend_from_slice(&0_u64.to_be_bytes());
        request.extend_from_slice(&512_u32.to_be_bytes());
        self.stream.write_all(&request).unwrap();
        let mut reply = vec![0; 16 + 512];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0; 4], "an error");
        reply.split_off(16)
    }
}

fn pid(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Ends a server by SIGTERM and waits until it has gone, its pid file too.
fn end(machine: &Machine, path: &Path) {
    let id = pid(path).unwrap();
    let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap();
    let words = String::from_utf8(words).unwrap();
    assert!(words.starts_with("swiftnbd-server\0"), "{words:?}");
    machine.sandbox.assert_no_secret(&words);
    kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
    wait_until("the server to end", || !path.exists());
    wait_until("the container to be unlocked", || {
        machine.metadata("swiftnbd-client").is_empty()
    });
}

/// `swiftnbd-server`: in the background, one container or all, and its options.
/// One test, for the ports are the original's.
#[test]
fn server() {
    let mut machine = Machine::new(true);
    let container = machine.container().to_owned();
    let default_pid_file = machine.path("swiftnbd.pid");

    // What fails is said by the process that was started, with status 1.
    machine.fails("swiftnbd-server C --secrets S", 1, &container);
    assert!(!default_pid_file.exists());
    machine.works("swiftnbd-setup C 16 --secrets S");
    machine.sandbox.put("disk.part/00000000", &[9; 65536]);
    machine.fails("swiftnbd-server other --secrets S", 1, "other");
    machine.fails("swiftnbd-server C --secrets S -c none", 2, "none");
    machine.fails(
        "swiftnbd-server C --secrets S -b no.such.host.invalid",
        1,
        "no.such.host",
    );
    machine.works("swiftnbd-ctl lock C --secrets S");
    machine.fails("swiftnbd-server C --secrets S", 1, "locked by ctl");
    machine.works("swiftnbd-ctl unlock C --secrets S");
    machine.sandbox.set_metadata(&[("Swiftnbd-Unlocked", "")]);
    assert!(!default_pid_file.exists());

    // 0.9.3: one container, port 10811, the empty export name. When the command
    // returns, clients can connect; the caller's pipe is closed.
    machine.works("swiftnbd-server C --secrets S --log-file D/server.log -v");
    let mut client = Client::connect("127.0.0.1:10811", "").expect("the default export");
    assert_eq!(client.size, 1 << 20);
    assert_eq!(client.read(), [9; 512]);
    assert!(!machine.metadata("swiftnbd-client").is_empty());
    assert!(pid(&default_pid_file).is_some());
    assert!(std::fs::metadata(machine.path("server.log")).unwrap().len() > 0);
    // A second one: the pid file is there.
    machine.fails("swiftnbd-server C --secrets S -p 10899", 1, "swiftnbd.pid");
    // A pid file of its own, but the port is taken.
    machine.fails(
        "swiftnbd-server -p 10811 --secrets S --pid-file D/second",
        1,
        "10811",
    );
    assert!(!machine.path("second").exists());
    drop(client);
    end(&machine, &default_pid_file);
    assert!(Client::connect("127.0.0.1:10811", "").is_none());

    // A pid file that a crash left behind is no obstacle.
    std::fs::write(&default_pid_file, "4194305\n").unwrap();
    machine.works(
        "swiftnbd-server --bind-address localhost --bind-port 10812 --cache-limit 8 \
         --pid-file D/other.pid --syslog --secrets S C",
    );
    let client = Client::connect("127.0.0.1:10812", &container).expect("the export by its name");
    drop(client);
    end(&machine, &machine.path("other.pid"));
    machine.works("swiftnbd-server -b 127.0.0.1 -p 10812 -c 8 -l D/server.log --secrets S C");
    end(&machine, &default_pid_file);

    // 0.11: all of the secrets file, by name, on port 10809.
    let second = format!("{container}-second");
    machine.more.push(second.clone());
    let lab = machine.sandbox.lab();
    let more = format!(
        "[{second}]\nusername = {}\npassword = {}\nread-only = yes\n",
        lab.user, lab.key
    );
    machine.write_secrets(false, &more);
    machine.works(&format!("swiftnbd-setup {second} 2 --secrets S -a U"));
    machine.works("swiftnbd-server --secrets S -a U");
    let first = Client::connect("127.0.0.1:10809", &container).expect("the first export");
    let other = Client::connect("127.0.0.1:10809", &second).expect("the second export");
    assert_eq!((first.size, other.size), (1 << 20, 2 << 16));
    assert!(Client::connect("127.0.0.1:10809", "third").is_none());
    drop((first, other));
    end(&machine, &default_pid_file);

    // -f: in the foreground, until a signal.
    for option in ["-f", "--foreground", "-vf"] {
        let mut server = machine
            .command(&format!("swiftnbd-server {option} --secrets S -a U C"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the server to listen", || {
            assert!(server.try_wait().unwrap().is_none(), "the server ended");
            Client::connect("127.0.0.1:10811", &container).is_some()
        });
        kill(Pid::from_raw(server.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(server.wait().unwrap().code(), Some(0), "{option}");
    }
    assert_eq!(machine.metadata("swiftnbd-client"), "");
}
