//! The way to Swift: this machine's loopback, or a line of a set rate and round trip
//! between two network namespaces.
//!
//! The line is a pair of tun devices. The kernel's token bucket (tbf) on each bounds
//! the rate; a thread a direction carries the packets from one to the other and keeps
//! each for half the round trip, since many kernels, this one perhaps, come without
//! netem. TCP between the two is the kernel's own, with the congestion control that
//! this machine uses. Swift, and this process, live in
//! the namespace at one end; what is measured runs in the one at the other end. Both
//! are anonymous: they are gone when this process is, however it ends.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{Failure, median};

/// Bytes a second in each direction, IP headers included.
const RATE: u64 = 40_000_000;
/// For which a packet is kept, each way.
const DELAY: Duration = Duration::from_millis(5);
/// How often a thread of the line looks at what is there.
const TICK: Duration = Duration::from_micros(200);
/// The most packets on their way in one direction; more are dropped.
const MAX_PACKETS: usize = 4096;
/// Of the end where Swift is, and of the other.
const NEAR: &str = "10.77.0.1";
const FAR: &str = "10.77.0.2";

pub struct Link {
    pub name: &'static str,
    pub title: String,
    /// Swift's address, as seen from the end where the measured program is.
    pub host: &'static str,
    /// Where the measured program runs.
    namespace: Option<File>,
}

impl Link {
    pub fn loopback() -> Link {
        Link {
            name: "loopback",
            title: "On loopback".to_owned(),
            host: "127.0.0.1",
            namespace: None,
        }
    }

    /// Makes the line. Needs a network namespace of our own, for `scripts/bench` has
    /// Swift listen on all of its addresses, and the right to make another.
    pub fn shaped() -> Result<Link, Failure> {
        let near = Tun::open("near")?;
        near.start(NEAR)?;
        let (far, namespace) = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let far = Tun::open("far")?;
            far.start(FAR)?;
            Ok::<_, Failure>((far, File::open("/proc/thread-self/ns/net")?))
        })
        .join()
        .map_err(|_| "the thread that makes the far end panicked")??;
        let (near, far) = (Arc::new(near.file), Arc::new(far.file));
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            std::thread::spawn(move || carry(&from, &to));
        }
        Ok(Link {
            name: "shaped",
            title: format!(
                "Over a line of {} MB/s and {} ms round trip ({})",
                RATE / 1_000_000,
                DELAY.as_millis() * 2,
                std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?.trim()
            ),
            host: NEAR,
            namespace: Some(namespace),
        })
    }

    /// Runs it at the far end of the line, and whatever processes and threads it starts.
    pub fn run<T, F>(&self, job: impl FnOnce() -> F + Send) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
        T: Send,
    {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    if let Some(namespace) = &self.namespace {
                        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    }
                    tokio::runtime::Runtime::new()?.block_on(job())
                })
                .join()
                .map_err(|_| format!("a measurement {} panicked", self.title))?
        })
    }

    /// Milliseconds that a connection to Swift takes: the round trip.
    pub fn round_trip(&self, port: u16) -> Result<f64, Failure> {
        self.run(|| async {
            let mut times = Vec::new();
            for _ in 0..21 {
                let start = Instant::now();
                tokio::net::TcpStream::connect((self.host, port)).await?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(median(&times))
        })
    }
}

/// One end of the line.
struct Tun {
    name: &'static str,
    file: File,
}

/// What TUNSETIFF takes: `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

impl Tun {
    /// Makes the device, in the namespace of this thread.
    fn open(name: &'static str) -> Result<Tun, Failure> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| format!("/dev/net/tun: {error}"))?;
        let mut request = Request {
            name: [0; 16],
            flags: (nix::libc::IFF_TUN | nix::libc::IFF_NO_PI) as u16,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the kernel reads and writes one `struct ifreq`, which `Request` is,
        // and which lives until it returns.
        unsafe { tun_set_iff(file.as_raw_fd(), &raw mut request as u64) }
            .map_err(|error| format!("a tun device: {error}"))?;
        Ok(Tun { name, file })
    }

    /// Gives it its address and rate, in the namespace of this thread.
    fn start(&self, address: &str) -> Result<(), Failure> {
        let (name, rate) = (self.name, RATE * 8);
        command(&format!("ip address add {address}/24 dev {name}"))?;
        command(&format!("ip link set {name} mtu 1500 txqueuelen 2000 up"))?;
        command(&format!(
            "tc qdisc add dev {name} root tbf rate {rate}bit burst 64kb limit 2mb"
        ))?;
        Ok(())
    }
}

fn command(line: &str) -> Result<(), Failure> {
    let mut words = line.split_whitespace();
    let done = Command::new(words.next().unwrap_or_default())
        .args(words)
        .status()?;
    if done.success() {
        Ok(())
    } else {
        Err(format!("`{line}`: {done}").into())
    }
}

/// One direction of the line, until the process ends.
fn carry(mut from: &File, mut to: &File) {
    let mut underway: VecDeque<(Instant, Box<[u8]>)> = VecDeque::new();
    let mut packet = vec![0; 1 << 16];
    loop {
        loop {
            match from.read(&mut packet) {
                Ok(_) if underway.len() >= MAX_PACKETS => {}
                Ok(length) => {
                    underway.push_back((Instant::now() + DELAY, packet[..length].into()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the line broke: {error}"),
            }
        }
        let now = Instant::now();
        while underway.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, packet)) = underway.pop_front() {
                // As on any line, what does not get through is lost.
                let _ = to.write(&packet);
            }
        }
        if underway.is_empty() {
            let mut waits = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut waits, PollTimeout::NONE);
        } else {
            std::thread::sleep(TICK);
        }
    }
}
