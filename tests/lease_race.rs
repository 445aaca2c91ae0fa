//! Sixteen processes on hosts with four networks race for one volume on a real Swift,
//! again and again: whoever had it ends well, is killed, frozen, or cut off, and comes
//! back. Never do two answer for it, and somebody always has it in the end.
//!
//! Needs root and `scripts/lab run [--replicas 3 --skew 3] -- cargo test --test
//! lease_race`, or `scripts/test`; without that Swift it fails. With three replicas one
//! of the object servers stops now and then, and hosts use proxies whose clocks differ.
//! `SWIFTNBD_ROUNDS=200` races so often, `SWIFTNBD_SEED=5` in another way.
#![allow(
    clippy::disallowed_methods,
    reason = "other processes do not follow a paused clock"
)]

#[path = "support/nbd_client.rs"]
mod nbd_client;
#[path = "support/network.rs"]
mod network;
#[path = "support/plain_swift.rs"]
mod plain_swift;
#[path = "support/waiting.rs"]
mod waiting;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_client::Client;
use network::Network;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plain_swift::Swift;

const CONTENDERS: usize = 16;
const NETWORKS: usize = 4;
/// Several leases, and starting sixteen processes again and again on a busy machine.
const SOMEBODY_WITHIN: Duration = Duration::from_secs(180);
const LEASE: &str = "3s";
const SERVERS: [&str; 3] = ["object1", "object2", "object3"];

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}: {value}")),
        Err(_) => otherwise,
    }
}

fn lab(verb: &str, server: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab");
    let status = Command::new(script).args([verb, server]).status().unwrap();
    assert!(status.success(), "scripts/lab {verb} {server}: {status}");
}

/// A server of the volume, which may have it or not.
struct Server {
    child: Child,
    socket: PathBuf,
    host: String,
    network: usize,
}

impl Server {
    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// A connection, if it has the volume.
    fn client(&self) -> Option<Client> {
        std::os::unix::net::UnixStream::connect(&self.socket).ok()?;
        Client::go(&self.socket, "vol").ok()
    }

    fn has_ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().unwrap()?;
        Some(status.code().unwrap_or(-1))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The hosts, and what is known of the volume.
struct Race {
    files: tempfile::TempDir,
    networks: Vec<Network>,
    configs: Vec<PathBuf>,
    started: usize,
    rng: fastrand::Rng,
    /// The last number that was answered as durable.
    durable: u64,
    /// The last number that was written at all.
    written: u64,
}

impl Race {
    fn new(container: &str, rng: fastrand::Rng) -> Race {
        let proxies: Vec<Swift> = ["", "_AHEAD", "_BEHIND"]
            .iter()
            .map(|which| format!("SWIFTNBD_LAB_AUTH{which}"))
            .filter(|name| std::env::var(name).is_ok())
            .map(|name| Swift::at(&name))
            .collect();
        let files = tempfile::tempdir().unwrap();
        let configs = proxies.iter().enumerate().map(|(number, swift)| {
            let path = files.path().join(format!("{number}.toml"));
            let text = format!(
                "[swift]\nauth_url = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\n\n\
                 [volumes.vol]\ncontainer = \"{container}\"\nlease = \"{LEASE}\"\n",
                swift.auth_url, swift.user, swift.key
            );
            std::fs::write(&path, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, mode).unwrap();
            path
        });
        let configs = configs.collect();
        let addresses: Vec<String> = proxies.iter().map(|it| it.address.clone()).collect();
        let networks = (0..NETWORKS).map(|_| Network::new(&addresses)).collect();
        Race {
            files,
            networks,
            configs,
            started: 0,
            rng,
            durable: 0,
            written: 0,
        }
    }

    fn setup(&self) {
        let status = Command::new(env!("CARGO_BIN_EXE_swiftnbd"))
            .args(["setup", "vol", "--size", "1M", "--config"])
            .arg(&self.configs[0])
            .status();
        assert!(status.unwrap().success());
    }

    fn start(&mut self, network: usize) -> Server {
        self.started += 1;
        let host = format!("host-{}", self.started);
        let path = |suffix: &str| self.files.path().join(format!("{host}.{suffix}"));
        let (socket, log) = (path("sock"), path("log"));
        let config = &self.configs[self.rng.usize(0..self.configs.len())];
        let out = std::fs::File::create(path("out")).unwrap();
        let child = self.networks[network]
            .command(&host, env!("CARGO_BIN_EXE_swiftnbd"))
            .args(["serve", "vol", "-v", "--config"])
            .arg(config)
            .arg("--unix")
            .arg(&socket)
            .arg("--log-file")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Server {
            child,
            socket,
            host,
            network,
        }
    }

    /// Sixteen at once, until one of them has the volume; the others withdraw, or are
    /// started again.
    fn race(&mut self) -> Server {
        let begun = Instant::now();
        let mut servers: Vec<Server> = (0..CONTENDERS).map(|i| self.start(i % NETWORKS)).collect();
        loop {
            let mut next = Vec::new();
            let mut holders = Vec::new();
            for mut server in servers {
                match server.has_ended() {
                    Some(status) => {
                        // Refused; or Swift is out of its reach.
                        let as_it_should = matches!(status, 3 | 6);
                        assert!(as_it_should, "{}: {}", server.host, self.said(&server));
                    }
                    None if server.client().is_some() => holders.push(server),
                    None => next.push(server),
                }
            }
            // One that was passed by may not know it yet.
            if !holders.is_empty() {
                let counts = holders
                    .iter()
                    .map(|server| self.count(server))
                    .collect::<Vec<_>>();
                if let Some(last) = counts.iter().rposition(|counted| *counted) {
                    // Whoever answered before has lost it since.
                    for earlier in (0..last).filter(|at| counts[*at]) {
                        assert!(!self.count(&holders[earlier]), "two answer for the volume");
                    }
                    println!("{} after {:?}", holders[last].host, begun.elapsed());
                    return holders.swap_remove(last);
                }
            }
            next.extend(holders);
            assert!(
                begun.elapsed() < SOMEBODY_WITHIN,
                "nobody has it after {:?}",
                begun.elapsed()
            );
            while next.len() < CONTENDERS / 2 {
                let network = self.rng.usize(0..NETWORKS);
                next.push(self.start(network));
            }
            std::thread::sleep(Duration::from_millis(200));
            servers = next;
        }
    }

    /// Reads the number in the volume and writes the next one; whether that was answered
    /// as durable. What was answered before must be there.
    fn count(&mut self, server: &Server) -> bool {
        let Some(mut client) = server.client() else {
            return false;
        };
        let Ok(found) = client.read(0, 4096) else {
            return false;
        };
        let found = u64::from_le_bytes(found[..8].try_into().unwrap());
        let next = self.written + 1;
        let mut block = vec![0; 4096];
        block[..8].copy_from_slice(&next.to_le_bytes());
        self.written = next;
        if client.write(0, &block).is_err() || client.flush().is_err() {
            return false;
        }
        assert!(
            (self.durable..next).contains(&found),
            "{}: the volume holds {found}, and {} was answered as durable",
            server.host,
            self.durable
        );
        self.durable = next;
        true
    }

    fn said(&self, server: &Server) -> String {
        let path = self.files.path().join(format!("{}.out", server.host));
        std::fs::read_to_string(path).unwrap()
    }
}

#[test]
fn one_of_sixteen_has_it() {
    let (seed, rounds) = (number("SWIFTNBD_SEED", 1), number("SWIFTNBD_ROUNDS", 10));
    println!("seed {seed}, {rounds} rounds");
    let mut rng = fastrand::Rng::with_seed(seed);
    let container = Swift::fresh_name("race");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab");
    let servers = Command::new(script).arg("status").output().unwrap().stdout;
    let replicas = String::from_utf8_lossy(&servers).contains(SERVERS[2]);
    let mut race = Race::new(&container, rng.fork());
    race.setup();
    let mut ailing: Option<&str> = None;
    for round in 0..rounds {
        if let Some(server) = ailing.take() {
            lab("restart", server);
        }
        if replicas && rng.bool() {
            let server = SERVERS[rng.usize(0..3)];
            lab("stop", server);
            ailing = Some(server);
        }
        let mut holder = race.race();
        let how = ["ends well", "is killed", "is frozen", "is cut off"][round as usize % 4];
        println!(
            "round {round}: {} {how}, {ailing:?} is stopped",
            holder.host
        );
        match round % 4 {
            0 => {
                holder.signal(Signal::SIGTERM);
                waiting::wait_until("the holder to end", || holder.has_ended() == Some(0));
            }
            1 => drop(holder),
            both => {
                if both == 2 {
                    holder.signal(Signal::SIGSTOP);
                } else {
                    race.networks[holder.network].set_cut(true);
                }
                let next = race.race();
                holder.signal(Signal::SIGCONT);
                race.networks[holder.network].set_cut(false);
                // It finds out, and answers for nothing meanwhile.
                waiting::wait_until("the old holder to find out", || {
                    assert!(!race.count(&holder), "two answer for the volume");
                    let log = race.files.path().join(format!("{}.log", holder.host));
                    let log = std::fs::read_to_string(log).unwrap();
                    log.contains("the volume is no longer ours")
                });
                assert!(race.count(&next), "{}", race.said(&next));
            }
        }
    }
    if let Some(server) = ailing {
        lab("restart", server);
    }
    println!(
        "{} processes, {} answered as durable",
        race.started, race.durable
    );
    assert!(race.durable >= rounds);
}
