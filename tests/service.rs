//! What a service manager hears of a server: that it is ready, that its runtime
//! runs, and that it ends; and that SIGHUP does not end it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// So long may one message take to come, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server over a directory, and the manager's end of its messages.
struct Server {
    child: Child,
    manager: UnixDatagram,
}

fn swiftnbd(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swiftnbd"));
    command
        .env_clear()
        .env("XDG_RUNTIME_DIR", directory)
        .arg(format!("--store=dir:{}", directory.display()));
    command
}

impl Server {
    fn start(directory: &Path) -> Server {
        let made = swiftnbd(directory)
            .args(["setup", "vol", "16"])
            .status()
            .expect("runs");
        assert!(made.success());
        let path = directory.join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let child = swiftnbd(directory)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000")
            .args(["serve", "vol", "--unix"])
            .arg(directory.join("nbd"))
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        Server { child, manager }
    }

    fn hears(&self) -> String {
        let mut message = [0; 4096];
        let length = self.manager.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    /// Reads messages until one has this line.
    fn hears_in_time(&self, line: &str) {
        for _ in 0..1000 {
            if self.hears().lines().any(|heard| heard == line) {
                return;
            }
        }
        panic!("1000 messages without {line}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_tells_its_service_manager() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Server::start(directory.path());
    server.hears_in_time("READY=1");
    server.hears_in_time("WATCHDOG=1");

    server.signal(Signal::SIGHUP);
    // Those that were on their way are not more than a socket holds.
    for _ in 0..20 {
        server.hears_in_time("WATCHDOG=1");
    }

    server.signal(Signal::SIGTERM);
    server.hears_in_time("STOPPING=1");
    assert!(server.child.wait().expect("it ends").success());
}
