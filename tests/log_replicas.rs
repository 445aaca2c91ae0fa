//! Format 2 on a real Swift with three replicas, while single servers stop, freeze and
//! come back without what was written meanwhile, and through proxies whose clocks
//! differ: after every crash the volume is a prefix of what was written, no shorter
//! than the last answered flush.
//!
//! Needs `scripts/lab run --replicas 3 --skew 3 -- cargo test --test log_replicas`, or
//! `scripts/test replicas`; without that Swift it fails. `SWIFTNBD_SEED=5` chooses
//! another course of events, `SWIFTNBD_LIVES=40` a longer one.

#[path = "support/attachments.rs"]
mod attachments;
#[path = "support/plain_swift.rs"]
mod plain_swift;
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use plain_swift::Swift;
use support::model::{SECTOR, sector, tags};
use support::prefix::{Prefix, Tag};
use swiftnbd::credentials::Credentials;
use swiftnbd::image::Image;
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Limits, Log, Who};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::retry::{Permanent, Policy, Retry};
use swiftnbd::store::swift::SwiftStore;
use tokio::time::sleep;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 96;
const PROXIES: [&str; 3] = [
    "SWIFTNBD_LAB_AUTH",
    "SWIFTNBD_LAB_AUTH_AHEAD",
    "SWIFTNBD_LAB_AUTH_BEHIND",
];

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number")),
        Err(_) => otherwise,
    }
}

/// The servers of the lab.
struct Lab {
    /// One that is stopped or frozen, and how it goes on.
    ailing: Option<(String, &'static str)>,
}

impl Lab {
    fn command(verb: &str, server: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab");
        let status = Command::new(script).args([verb, server]).status().unwrap();
        assert!(status.success(), "scripts/lab {verb} {server}: {status}");
    }

    /// One object server stops or freezes; the one that ailed before comes back as it
    /// was, without what it missed.
    fn another(&mut self, rng: &mut fastrand::Rng) {
        self.all_well();
        let server = format!("object{}", rng.u8(1..=3));
        let (verb, mended) =
            [("stop", "restart"), ("freeze", "thaw")][usize::from(rng.u8(0..4) == 0)];
        Lab::command(verb, &server);
        self.ailing = Some((server, mended));
    }

    fn all_well(&mut self) {
        if let Some((server, verb)) = self.ailing.take() {
            Lab::command(verb, &server);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.all_well();
    }
}

fn store(proxy: &str, container: &str) -> Retry {
    let swift = Swift::at(proxy);
    let credentials = Credentials::v1(swift.auth_url.clone(), swift.user.clone(), &*swift.key);
    let store = SwiftStore::new(credentials, container, 64 << 20).unwrap();
    let policy = Policy {
        give_up_after: Some(Duration::from_secs(120)),
        permanent: Permanent::Fail,
    };
    Retry::new(Arc::new(store), policy, fastrand::Rng::new())
}

fn who() -> Who {
    attachments::who("replicas")
}

async fn open(proxy: &str, container: &str) -> Log {
    let attaching = store(proxy, container);
    let live = attaching.with_policy(Policy::live(None));
    let mut limits = Limits::new(64 << 10, 8 << 20, 1 << 20, None);
    limits.pace.segment = 10 * BLOCK;
    limits.pace.small = 2 * BLOCK;
    limits.pace.small_segments = 4;
    limits.pace.root_segments = 5;
    limits.pace.root_bytes = (12 * BLOCK, 1 << 20);
    let (attaching, live): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>) =
        (Arc::new(attaching), Arc::new(live));
    let mut attempt = 0;
    loop {
        match Log::open(
            Arc::clone(&attaching),
            Arc::clone(&live),
            None,
            limits,
            who(),
        )
        .await
        {
            Ok(log) => return log,
            Err(error) => {
                attempt += 1;
                eprintln!("attach: {error}");
                assert!(attempt < 10, "it cannot be opened: {error}");
                sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

async fn read_all(log: &Log) -> Vec<Tag> {
    let pieces = log.read(0, (BLOCKS * BLOCK) as u32).await.unwrap();
    tags(&pieces.concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_come_and_go_and_the_volume_stays_a_prefix() {
    let seed = number("SWIFTNBD_SEED", 1);
    let lives = number("SWIFTNBD_LIVES", 3);
    println!("seed {seed}, {lives} lives");
    let mut rng = fastrand::Rng::with_seed(seed);
    let container = Swift::fresh_name("log-replicas");
    Swift::lab().create(&container);
    let geometry = Geometry {
        size: BLOCKS * BLOCK,
        block_size: 4096,
        compression: Compression::Lz4,
    };
    let first: Arc<dyn ObjectStore> = Arc::new(store(PROXIES[0], &container));
    log::create(&first, geometry, None, &who(), false)
        .await
        .unwrap();
    let per_block = (BLOCK / SECTOR) as usize;
    let mut model = Prefix::new(BLOCKS as usize * per_block);
    let mut lab = Lab { ailing: None };
    let mut next: Tag = 1;
    let mut flushes = 0;
    for life in 0..lives {
        lab.another(&mut rng);
        let log = open(PROXIES[rng.usize(0..3)], &container).await;
        model.crashed(&read_all(&log).await);
        for _ in 0..rng.usize(10..40) {
            let block = rng.u64(0..BLOCKS);
            let blocks = rng.u64(1..=(BLOCKS - block).min(12));
            let first = block as usize * per_block;
            let sectors = first..first + blocks as usize * per_block;
            match rng.u8(0..10) {
                0..6 => {
                    let new: Vec<Tag> = (next..).take(sectors.len()).collect();
                    next += new.len() as u64;
                    let data: BytesMut = new.iter().flat_map(|tag| sector(*tag)).collect();
                    let operation = model.begin(sectors.zip(new));
                    log.write(block * BLOCK, data.freeze()).await.unwrap();
                    model.answer(operation);
                }
                6 => {
                    let operation = model.begin(sectors.map(|at| (at, 0)));
                    log.write_zeroes(block * BLOCK, blocks * BLOCK)
                        .await
                        .unwrap();
                    model.answer(operation);
                }
                7 => {
                    let pieces = log
                        .read(block * BLOCK, (blocks * BLOCK) as u32)
                        .await
                        .unwrap();
                    model.observe(first, &tags(&pieces.concat()));
                }
                8 => {
                    let covered = model.cover();
                    log.flush().await.unwrap();
                    model.durable(&covered);
                    flushes += 1;
                }
                _ => lab.another(&mut rng),
            }
        }
        println!("life {life}: epoch {}, {:?}", log.epoch(), log.stats().log);
        // Its requests that are under way go on or not, as a killed process's would.
        drop(log);
    }
    lab.all_well();
    let log = open(PROXIES[0], &container).await;
    model.crashed(&read_all(&log).await);
    log.close().await.unwrap();
    println!("{flushes} flushes");
    assert!(flushes > 0);
}
