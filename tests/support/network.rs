//! Hosts with a network of their own, as far as this machine can tell: a network
//! namespace in which the lab's addresses are relayed to the lab, until that is cut.
#![allow(dead_code, reason = "no test program uses all of it")]
#![allow(
    clippy::disallowed_methods,
    reason = "other processes do not follow a paused clock"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// See the module's documentation. Its thread lives as long as the program.
#[derive(Debug)]
pub struct Network {
    /// The namespace's path.
    path: String,
    line: Arc<Line>,
}

#[derive(Debug, Default)]
struct Line {
    cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Network {
    /// One in which these addresses (`127.0.0.1:PORT`) are relayed. Needs root.
    pub fn new(addresses: &[String]) -> Network {
        let line = Arc::new(Line::default());
        let (ready, made) = mpsc::channel();
        let inside = addresses.to_vec();
        // A namespace is a thread's, and its sockets stay in it.
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, as root");
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            let listeners: Vec<TcpListener> = inside
                .iter()
                .map(|address| TcpListener::bind(address).unwrap())
                .collect();
            let thread = nix::unistd::gettid();
            let path = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
            ready.send((path, listeners)).unwrap();
            loop {
                thread::park();
            }
        });
        let (path, listeners) = made.recv().unwrap();
        for (listener, address) in listeners.into_iter().zip(addresses.to_vec()) {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                for inside in listener.incoming().flatten() {
                    line.relay(inside, &address);
                }
            });
        }
        Network { path, line }
    }

    /// A command that runs in it, on a machine of another name, as far as files tell.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path));
        command.args(["unshare", "--mount", "--uts", "bash", "-c"]);
        command.arg("hostname \"$1\" && mount -t tmpfs tmpfs /run && shift && exec \"$@\"");
        command.args(["bash", host, program]);
        command
    }

    /// Cuts it off, or lets it in again.
    pub fn set_cut(&self, cut: bool) {
        self.line.cut.store(cut, Ordering::SeqCst);
        if cut {
            for stream in self.line.open.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Line {
    fn relay(self: &Arc<Line>, inside: TcpStream, address: &str) {
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        let Ok(outside) = TcpStream::connect(address) else {
            return;
        };
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        {
            let mut open = self.open.lock().unwrap();
            open.extend([clone(&inside), clone(&outside)]);
        }
        let ways = [(clone(&inside), clone(&outside)), (outside, inside)];
        for (mut from, mut to) in ways {
            thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            });
        }
    }
}
