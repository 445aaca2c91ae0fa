//! Format 1 over a store that fails: one seed is one schedule of operations,
//! faults and crashes, in virtual time. After every crash, and all the while, the
//! promises are checked against a model.
//!
//! `SWIFTNBD_SEED=17 cargo test --test simulation` replays one seed,
//! `SWIFTNBD_SEEDS=5000` runs so many. Seeds that failed once are in
//! `simulation_seeds.txt` and always run.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use support::fault::{FaultStore, Faults, LIFETIME};
use support::model::{Model, SECTOR, Tag, sector, tags};
use swiftnbd::image::objects::layout::Layout;
use swiftnbd::image::objects::{Limits, Objects};
use swiftnbd::image::{Image, ImageError};
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::retry::{Permanent, Policy, Retry};
use swiftnbd::store::{ErrorKind, ObjectStore};
use tokio::time::{sleep, timeout};

/// Operations in one life of a volume, between two crashes.
const OPERATIONS: usize = 40;

#[test]
fn promises_hold_for_every_seed() {
    let seeds: Vec<u64> = match number("SWIFTNBD_SEED") {
        Some(seed) => vec![seed],
        None => {
            let known = include_str!("simulation_seeds.txt").lines();
            let known = known.filter_map(|line| line.split_whitespace().next()?.parse().ok());
            known
                .chain(0..number("SWIFTNBD_SEEDS").unwrap_or(600))
                .collect()
        }
    };
    assert!(!seeds.is_empty(), "no seed to run");
    let failed: Vec<u64> = seeds
        .iter()
        .copied()
        .filter(|seed| {
            let failed = catch_unwind(AssertUnwindSafe(|| run(*seed))).is_err();
            if failed {
                eprintln!(
                    "SEED {seed} FAILED; replay: SWIFTNBD_SEED={seed} cargo test --test simulation"
                );
            }
            failed
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} seeds failed: {failed:?}",
        failed.len(),
        seeds.len()
    );
    println!("{} seeds", seeds.len());
}

fn number(name: &str) -> Option<u64> {
    Some(
        std::env::var(name)
            .ok()?
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number")),
    )
}

fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let seeded = async { timeout(Duration::from_secs(48 * 3600), Simulation::run(seed)).await };
    runtime
        .unwrap()
        .block_on(seeded)
        .expect("it hangs: two days of virtual time have passed");
}

/// What a seed decides.
#[derive(Debug, Clone, Copy)]
struct Plan {
    layout: Layout,
    limits: Limits,
    workers: usize,
    faults: Faults,
    give_up_after: Option<Duration>,
    lives: usize,
    /// The store answers without any delay and never fails: what waits for it all
    /// goes on in the same instant, in an order that delays would hide.
    instant: bool,
}

impl Plan {
    fn new(rng: &mut fastrand::Rng) -> Plan {
        let layout = Layout {
            objects: rng.u64(2..9),
            object_size: [1024, 1536, 4096, 8192][rng.usize(0..4)],
        };
        let object = u64::from(layout.object_size);
        // A healthy request takes up to 60 ms here; no sensible limit is below that.
        let give_up = Duration::from_millis(rng.u64(100..60_000));
        let mut faults = Faults::level(rng.u32(0..4));
        let give_up_after = rng.bool().then_some(give_up);
        if give_up_after.is_none() {
            // Then nothing at all may fail; damage that stays would.
            faults.corrupt = 0;
        }
        Plan {
            layout,
            limits: Limits {
                cache: object * rng.u64(1..12),
                dirty: Limits::least_dirty(&layout) + object * rng.u64(0..4),
            },
            workers: rng.usize(1..5),
            faults,
            give_up_after,
            lives: rng.usize(1..4),
            instant: rng.u8(0..6) == 0,
        }
    }

    fn sectors(&self) -> usize {
        (self.layout.size() / SECTOR) as usize
    }
}

/// One seed's world.
struct Simulation {
    plan: Plan,
    memory: Arc<dyn ObjectStore>,
    store: FaultStore,
    model: Mutex<Model>,
    next_tag: Mutex<Tag>,
}

impl Simulation {
    async fn run(seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::new(&mut rng);
        if number("SWIFTNBD_SEED").is_some() {
            eprintln!("{plan:?}");
        }
        let memory = MemoryService::new().store("volume");
        memory.create().await.unwrap();
        let memory: Arc<dyn ObjectStore> = Arc::new(memory);
        let simulation = Arc::new(Simulation {
            plan,
            store: FaultStore::new(Arc::clone(&memory), plan.faults, rng.u64(..)),
            memory,
            model: Mutex::new(Model::new(plan.sectors())),
            next_tag: Mutex::new(1),
        });
        for _ in 0..plan.lives {
            simulation.live(&mut rng).await;
            simulation.check_after_crash(&mut rng).await;
        }
        simulation.end_well(&mut rng).await;
    }

    fn open(&self, rng: &mut fastrand::Rng) -> Arc<Objects> {
        let policy = Policy {
            give_up_after: self.plan.give_up_after,
            permanent: Permanent::Wait,
        };
        let store: Arc<dyn ObjectStore> = match self.plan.instant {
            true => Arc::clone(&self.memory),
            false => Arc::new(self.store.clone()),
        };
        let retry = Retry::new(store, policy, rng.fork());
        Arc::new(Objects::start(
            Arc::new(retry),
            self.plan.layout,
            self.plan.limits,
        ))
    }

    /// Workers operate on sectors of their own; at some moment all of it dies.
    async fn live(self: &Arc<Self>, rng: &mut fastrand::Rng) {
        let image = self.open(rng);
        let cell = rng.usize(1..9);
        let workers: Vec<_> = (0..self.plan.workers)
            .map(|worker| {
                let (this, image) = (Arc::clone(self), Arc::clone(&image));
                let rng = rng.fork();
                tokio::spawn(async move { this.work(image, worker, cell, rng).await })
            })
            .collect();
        let all = async {
            for worker in workers.iter().collect::<Vec<_>>() {
                while !worker.is_finished() {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        };
        // Some die in the middle, some with all work done and some of it dirty.
        let life = Duration::from_millis(rng.u64(1..120_000));
        let _ = timeout(life, all).await;
        for worker in workers {
            worker.abort();
            if let Err(error) = worker.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        drop(image);
    }

    async fn work(&self, image: Arc<Objects>, worker: usize, cell: usize, mut rng: fastrand::Rng) {
        for _ in 0..OPERATIONS / self.plan.workers {
            let (first, count) = self.range(worker, cell, &mut rng);
            let offset = first as u64 * SECTOR;
            let length = count as u64 * SECTOR;
            let result = match rng.u32(0..100) {
                0..40 => self.write(&image, first, count, &mut rng).await,
                40..65 => self.read(&image, first, count).await,
                65..75 => {
                    self.model.lock().unwrap().begin(first, &vec![0; count]);
                    let result = image.write_zeroes(offset, length).await;
                    self.model.lock().unwrap().end(first, count, result.is_ok());
                    result
                }
                75..83 => {
                    self.model.lock().unwrap().begin_discard(first, count);
                    let result = image.discard(offset, length).await;
                    self.model.lock().unwrap().end(first, count, result.is_ok());
                    result
                }
                83..95 => self.flush(&image).await,
                _ => {
                    sleep(Duration::from_millis(rng.u64(0..8000))).await;
                    Ok(())
                }
            };
            if let Err(error) = result {
                assert!(
                    self.plan.give_up_after.is_some(),
                    "an error although the volume waits for ever: {error}"
                );
            }
        }
    }

    /// Sectors that only this worker touches: cells are dealt out in turn, so
    /// that neighbours in one object have different owners.
    fn range(&self, worker: usize, cell: usize, rng: &mut fastrand::Rng) -> (usize, usize) {
        let sectors = self.plan.sectors();
        let (from, to) = if self.plan.workers == 1 {
            (0, sectors)
        } else {
            let cells = sectors.div_ceil(cell);
            let mine = (cells + self.plan.workers - 1 - worker) / self.plan.workers;
            if mine == 0 {
                return (0, 0);
            }
            let start = (rng.usize(0..mine) * self.plan.workers + worker) * cell;
            (start, (start + cell).min(sectors))
        };
        let first = rng.usize(from..to);
        (first, rng.usize(1..=to - first))
    }

    async fn write(
        &self,
        image: &Objects,
        first: usize,
        count: usize,
        rng: &mut fastrand::Rng,
    ) -> Result<(), ImageError> {
        let new: Vec<Tag> = {
            let mut next = self.next_tag.lock().unwrap();
            *next += count as u64;
            (0..count as u64).map(|at| *next - at).collect()
        };
        let data: BytesMut = new.iter().flat_map(|tag| sector(*tag)).collect();
        self.model.lock().unwrap().begin(first, &new);
        let result = image.write(first as u64 * SECTOR, data.freeze()).await;
        self.model.lock().unwrap().end(first, count, result.is_ok());
        result?;
        if rng.u8(0..5) == 0 {
            self.flush(image).await
        } else {
            Ok(())
        }
    }

    async fn read(&self, image: &Objects, first: usize, count: usize) -> Result<(), ImageError> {
        let length = (count as u64 * SECTOR) as u32;
        let pieces = image.read(first as u64 * SECTOR, length).await?;
        let data: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(data.len(), length as usize);
        self.model.lock().unwrap().observe(first, &tags(&data));
        Ok(())
    }

    async fn flush(&self, image: &Objects) -> Result<(), ImageError> {
        let covered = self.model.lock().unwrap().cover();
        image.flush().await?;
        self.model.lock().unwrap().durable(&covered);
        Ok(())
    }

    /// What a new attachment reads after the pause, twice.
    async fn check_after_crash(&self, rng: &mut fastrand::Rng) {
        sleep(LIFETIME).await;
        let (once, twice) = (self.read_all(rng).await, self.read_all(rng).await);
        assert!(once == twice, "opened twice, it reads differently");
        let snapshots = self.plan.workers == 1;
        let per_object = u64::from(self.plan.layout.object_size) / SECTOR;
        self.model
            .lock()
            .unwrap()
            .crashed(&once, snapshots, per_object as usize);
    }

    async fn read_all(&self, rng: &mut fastrand::Rng) -> Vec<Tag> {
        let image = self.open(rng);
        for _ in 0..1000 {
            match image.read(0, self.plan.layout.size() as u32).await {
                Ok(pieces) => {
                    let data: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
                    return tags(&data);
                }
                Err(_) => assert!(self.plan.give_up_after.is_some()),
            }
        }
        panic!("it cannot be read")
    }

    /// The store is well again: everything that was answered must get there, a
    /// flush that failed before included.
    async fn end_well(self: &Arc<Self>, rng: &mut fastrand::Rng) {
        let image = self.open(rng);
        let mut first = rng.fork();
        self.work(Arc::clone(&image), 0, 1, first.fork()).await;
        self.store.set_down(rng.bool());
        let _ = self.flush_with_patience(&image).await;
        self.store.set_down(false);
        self.store.set_faults(Faults::default());
        let mut tries = 0;
        while self.flush(&image).await.is_err() {
            // Names whose requests are of unknown fate are left alone for a lifetime.
            tries += 1;
            assert!(tries < 100, "the store is well and a flush still fails");
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(image.stats().dirty_bytes, 0, "dirty after a flush");
        image.close().await.expect("closes");
        let seen = self.read_all(rng).await;
        self.model.lock().unwrap().observe(0, &seen);
        self.check_store().await;
    }

    /// A flush that may hang while the store is down: it must not succeed then.
    async fn flush_with_patience(&self, image: &Objects) -> Result<(), ImageError> {
        match timeout(Duration::from_secs(100), self.flush(image)).await {
            Ok(result) => result,
            Err(_) => Ok(()),
        }
    }

    /// The container is as the original reads it: names, sizes, no zero objects.
    async fn check_store(&self) {
        let listed = self.store.list("", "\u{7f}", 10_000).await.unwrap();
        for entry in listed {
            let number = entry
                .name
                .strip_prefix("disk.part/")
                .expect("only data objects");
            assert!(number.len() == 8 && number.parse::<u64>().unwrap() < self.plan.layout.objects);
            let body = self.store.get(&entry.name).await.unwrap();
            assert_eq!(body.len(), self.plan.layout.object_size as usize);
            assert!(
                body.iter().any(|byte| *byte != 0),
                "{} is nothing but zeros",
                entry.name
            );
        }
        let missing = self.store.get("disk.part/99999999").await.unwrap_err();
        assert_eq!(missing.kind, ErrorKind::NotFound);
    }
}
