//! Format 2 against a model, without faults: operations that overlap in time and on
//! the device, on pages of the map that are far apart, with hardly any memory, and
//! with the volume opened anew in between.
//!
//! `SWIFTNBD_SEED=17 cargo test --test log_model` runs one seed,
//! `SWIFTNBD_MODEL_SEEDS=1000` so many.

#[path = "support/attachments.rs"]
mod attachments;
mod support;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use support::model::{SECTOR, Tag, sector, tags};
use swiftnbd::image::log::format::keys::{Cost, Passphrase};
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Limits, Log, Pace, Who};
use swiftnbd::image::{ExtentKind, Image};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::dir::DirStore;
use swiftnbd::store::memory::MemoryService;

/// Sectors of a window: a part of the device that is used.
const WINDOW: usize = 256;
/// Bytes that a page of the map covers.
const PAGE: u64 = 32 << 20;
/// Rounds of operations that run at the same time.
const ROUNDS: usize = 60;
/// The cheapest key derivation.
const COST: Cost = Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: {value}")))
}

#[test]
fn it_reads_as_the_model_does() {
    let seeds = match number("SWIFTNBD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SWIFTNBD_MODEL_SEEDS").unwrap_or(32),
    };
    for seed in seeds {
        println!("SWIFTNBD_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(run(seed));
    }
}

/// What a seed decides. Each combination of the first four comes up in 32 seeds.
#[derive(Debug, Clone, Copy)]
struct Plan {
    geometry: Geometry,
    encrypted: bool,
    on_disk: bool,
    limits: Limits,
}

impl Plan {
    fn new(seed: u64, rng: &mut fastrand::Rng) -> Plan {
        let bit = |at: u64| seed >> at & 1 == 1;
        let (block_size, odd) = if bit(0) { (512, 3 * 512) } else { (4096, 0) };
        let compression = [Compression::None, Compression::Lz4][usize::from(bit(1))];
        let cache = [0, 64 << 10, 1 << 20][rng.usize(0..3)];
        let mut limits = Limits::new(cache, 1 << 20, 1 << 20, None);
        limits.pace = Pace {
            segment: 4096 * rng.u64(2..40),
            small: 4096 * rng.u64(1..4),
            small_segments: rng.usize(3..8),
            root_segments: rng.u32(1..12),
            root_bytes: (4096 * rng.u64(2..24), 1 << 20),
        };
        let geometry = Geometry {
            size: 12 * PAGE + 8 * 4096 + odd,
            block_size,
            compression,
        };
        Plan {
            geometry,
            encrypted: bit(2),
            on_disk: bit(3),
            limits,
        }
    }

    /// Where windows begin: at the device's ends, and across the edges of pages.
    fn windows(&self) -> Vec<u64> {
        let length = WINDOW as u64 * SECTOR;
        let mut windows = vec![0, (self.geometry.size - length) / 4096 * 4096];
        windows.extend((1..12).step_by(2).map(|page| page * PAGE - length / 2));
        windows
    }
}

/// One operation, on sectors of a window.
#[derive(Debug, Clone)]
enum Operation {
    Write(Vec<Tag>),
    Zeroes,
    Discard,
    Read,
}

/// For each sector of each window, what it may hold.
type Model = Vec<Vec<BTreeSet<Tag>>>;

struct World {
    plan: Plan,
    store: Arc<dyn ObjectStore>,
    windows: Vec<u64>,
    model: Model,
    next_tag: Tag,
}

async fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let plan = Plan::new(seed, &mut rng);
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = match plan.on_disk {
        true => Arc::new(DirStore::new(directory.path(), "volume", 64 << 20).unwrap()),
        false => Arc::new(MemoryService::new().store("volume")),
    };
    store.create().await.unwrap();
    let passphrase = passphrase();
    let key = plan.encrypted.then_some((&passphrase, COST));
    log::create(&store, plan.geometry, key, &who(), false)
        .await
        .unwrap();
    let windows = plan.windows();
    let mut world = World {
        plan,
        store,
        model: vec![vec![BTreeSet::from([0]); WINDOW]; windows.len()],
        windows,
        next_tag: 1,
    };
    let mut image = world.open().await;
    for round in 0..ROUNDS {
        world.round(&image, &mut rng).await;
        match rng.u8(0..20) {
            0..4 => image.flush().await.unwrap(),
            4 => {
                image.close().await.unwrap();
                drop(image);
                image = world.open().await;
            }
            5 => {
                // As after a kill: all that was flushed is there.
                image.flush().await.unwrap();
                drop(image);
                image = world.open().await;
            }
            _ => continue,
        }
        if round % 4 == 0 {
            world.check_all(&image).await;
        }
    }
    world.check_all(&image).await;
    image.close().await.unwrap();
    drop(image);
    let image = world.open().await;
    world.check_all(&image).await;
    world.check_extents(&image).await;
    image.close().await.unwrap();
}

impl World {
    async fn open(&self) -> Arc<Log> {
        let passphrase = passphrase();
        let passphrase = self.plan.encrypted.then_some(&passphrase);
        let (attaching, live) = (Arc::clone(&self.store), Arc::clone(&self.store));
        let opened = Log::open(attaching, live, passphrase, self.plan.limits, who()).await;
        Arc::new(opened.unwrap())
    }

    /// Some operations at the same time, which may overlap; what they touched is read
    /// afterwards.
    async fn round(&mut self, image: &Arc<Log>, rng: &mut fastrand::Rng) {
        let window = rng.usize(0..self.windows.len());
        let mut operations = Vec::new();
        for _ in 0..rng.usize(1..10) {
            let window = match rng.u8(0..3) {
                0 => rng.usize(0..self.windows.len()),
                _ => window,
            };
            operations.push((window, self.sectors(rng), self.operation(rng)));
        }
        let mut after = self.model.clone();
        let mut during = self.model.clone();
        for (window, sectors, operation) in &mut operations {
            if let Operation::Write(tags) = operation {
                tags.extend(sectors.clone().map(|at| self.next_tag + at as u64));
                self.next_tag += WINDOW as u64;
            }
            let new = |at: usize| match &operation {
                Operation::Write(tags) => Some(tags[at - sectors.start]),
                Operation::Zeroes | Operation::Discard => Some(0),
                Operation::Read => None,
            };
            for at in sectors.clone() {
                during[*window][at].extend(new(at));
                after[*window][at].extend(new(at));
            }
        }
        // What is surely overwritten is not what it was.
        for (window, sectors, operation) in &operations {
            if matches!(operation, Operation::Write(_) | Operation::Zeroes) {
                for at in sectors.clone() {
                    for old in &self.model[*window][at] {
                        if !written(&operations, *window, at, *old) {
                            after[*window][at].remove(old);
                        }
                    }
                }
            }
        }
        self.model = after;
        let during = Arc::new(during);
        let mut tasks = tokio::task::JoinSet::new();
        for (window, sectors, operation) in operations.clone() {
            let (image, during, base) =
                (Arc::clone(image), Arc::clone(&during), self.windows[window]);
            tasks.spawn(async move {
                let offset = base + sectors.start as u64 * SECTOR;
                let length = sectors.len() as u64 * SECTOR;
                match operation {
                    Operation::Write(tags) => {
                        let data: Vec<u8> = tags.iter().flat_map(|tag| sector(*tag)).collect();
                        image.write(offset, Bytes::from(data)).await.unwrap();
                    }
                    Operation::Zeroes => image.write_zeroes(offset, length).await.unwrap(),
                    Operation::Discard => image.discard(offset, length).await.unwrap(),
                    Operation::Read => {
                        let seen = read(&image, offset, length).await;
                        for (at, tag) in sectors.zip(seen) {
                            let may = &during[window][at];
                            assert!(may.contains(&tag), "during: window {window} sector {at} reads {tag}, not one of {may:?}");
                        }
                    }
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        for (window, sectors, _) in operations {
            self.check(image, window, sectors).await;
        }
    }

    fn operation(&self, rng: &mut fastrand::Rng) -> Operation {
        match rng.u8(0..10) {
            0..4 => Operation::Write(Vec::new()),
            4 => Operation::Zeroes,
            5 => Operation::Discard,
            _ => Operation::Read,
        }
    }

    /// Whole logical blocks of a window.
    fn sectors(&self, rng: &mut fastrand::Rng) -> std::ops::Range<usize> {
        let unit = self.plan.geometry.block_size as usize / SECTOR as usize;
        let units = WINDOW / unit;
        let first = rng.usize(0..units);
        let most = match rng.u8(0..4) {
            0 => units - first,
            _ => (units - first).min(8),
        };
        first * unit..(first + rng.usize(1..=most)) * unit
    }

    /// What is read must be what the model says, and is known from here on.
    async fn check(&mut self, image: &Log, window: usize, sectors: std::ops::Range<usize>) {
        let offset = self.windows[window] + sectors.start as u64 * SECTOR;
        let seen = read(image, offset, sectors.len() as u64 * SECTOR).await;
        for (at, tag) in sectors.zip(seen) {
            let may = &mut self.model[window][at];
            assert!(
                may.contains(&tag),
                "window {window} sector {at} reads {tag}, not one of {may:?}; {:?}",
                self.plan
            );
            *may = BTreeSet::from([tag]);
        }
    }

    async fn check_all(&mut self, image: &Log) {
        for window in 0..self.windows.len() {
            self.check(image, window, 0..WINDOW).await;
        }
    }

    /// What is called a hole reads as zeros.
    async fn check_extents(&self, image: &Log) {
        let (mut at, mut holes) = (0, 0);
        while at < image.size() {
            let extents = image.extents(at, image.size() - at, 7).await.unwrap();
            assert!(!extents.is_empty() && extents.len() <= 7);
            for extent in extents {
                assert!(extent.length > 0);
                let end = at + extent.length;
                assert!(end <= image.size());
                if extent.kind == ExtentKind::Hole {
                    holes += extent.length;
                    for (base, window) in self.windows.iter().zip(&self.model) {
                        for (sector, may) in window.iter().enumerate() {
                            let offset = base + sector as u64 * SECTOR;
                            let zero = may.contains(&0);
                            assert!(
                                zero || offset < at || offset >= end,
                                "a hole with data at {offset}"
                            );
                        }
                    }
                }
                at = end;
            }
        }
        assert!(holes >= 11 * PAGE, "only {holes} bytes are holes");
    }
}

/// Whether one of these operations gave the sector this tag.
fn written(
    operations: &[(usize, std::ops::Range<usize>, Operation)],
    window: usize,
    at: usize,
    tag: Tag,
) -> bool {
    operations.iter().any(|(other, sectors, operation)| {
        *other == window
            && sectors.contains(&at)
            && match operation {
                Operation::Write(tags) => tags[at - sectors.start] == tag,
                Operation::Zeroes | Operation::Discard => tag == 0,
                Operation::Read => false,
            }
    })
}

async fn read(image: &Log, offset: u64, length: u64) -> Vec<Tag> {
    let pieces = image.read(offset, length as u32).await.unwrap();
    let data = pieces.concat();
    assert_eq!(data.len() as u64, length);
    tags(&data)
}

fn passphrase() -> Passphrase {
    Passphrase::from_bytes("a passphrase").unwrap()
}

fn who() -> Who {
    attachments::who("model")
}

/// Far more pages than the map may keep, each with much in it: they are dropped and
/// loaded again all the time, by the writer too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_does_not_fit_is_loaded_again() {
    const PAGES: u64 = 16;
    const ENTRIES: u64 = 2048;
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryService::new().store("volume"));
    store.create().await.unwrap();
    let geometry = Geometry {
        size: PAGES * PAGE,
        block_size: 4096,
        compression: Compression::Lz4,
    };
    log::create(&store, geometry, None, &who(), false)
        .await
        .unwrap();
    let limits = Limits::new(1 << 20, Limits::least_dirty(), Limits::least_map(), None);
    let open = || Log::open(Arc::clone(&store), Arc::clone(&store), None, limits, who());
    let image = open().await.unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    // Every other block, so that none is the neighbour of another.
    let mut blocks: Vec<u64> = (0..PAGES * ENTRIES)
        .map(|at| at / ENTRIES * (PAGE / 4096) + at % ENTRIES * 2)
        .collect();
    rng.shuffle(&mut blocks);
    let block = |tag: Tag| Bytes::from(sector(tag).repeat(8));
    let mut newest = HashMap::new();
    for (tag, at) in (1..).zip(blocks.iter().chain(&blocks[..4000])) {
        image.write(at * 4096, block(tag)).await.unwrap();
        newest.insert(*at, tag);
        if tag % 16 == 0 {
            let at = blocks[rng.usize(0..blocks.len())];
            let seen = read(&image, at * 4096, 4096).await[0];
            let tag = newest.get(&at).copied().unwrap_or(0);
            assert_eq!(seen, tag, "block {at}");
        }
    }
    image.flush().await.unwrap();
    let stats = image.stats();
    assert!(
        stats.cached_bytes <= (1 << 20) + Limits::least_map(),
        "{stats:?}"
    );
    image.close().await.unwrap();
    let image = open().await.unwrap();
    for page in 0..PAGES {
        for at in 0..ENTRIES {
            let at = page * (PAGE / 4096) + at * 2;
            let seen = read(&image, at * 4096, 8192).await;
            assert_eq!((seen[0], seen[8]), (newest[&at], 0), "block {at}");
        }
    }
    image.close().await.unwrap();
}
