//! Format 2 over a store that fails: one seed is one schedule of operations, faults,
//! crashes and takeovers, in virtual time. After every crash the volume must be a
//! prefix of what was written, no shorter than the last answered flush, and the same
//! when it is opened again.
//!
//! `SWIFTNBD_SEED=17 cargo test --test log_simulation` replays one seed,
//! `SWIFTNBD_LOG_SEEDS=50000` runs so many, `SWIFTNBD_SOAK_SECONDS=3600` goes on for
//! so long. Seeds that failed once are in `log_simulation_seeds.txt` and always run.

mod support;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use support::disk::Machine;
use support::fault::{FaultStore, Faults, LIFETIME};
use support::model::{SECTOR, sector, tags};
use support::prefix::{Prefix, Tag};
use swiftnbd::image::log::format::claim::Claim;
use swiftnbd::image::log::format::keys::{Cost, Passphrase};
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::format::{AttachId, names};
use swiftnbd::image::log::journal::Journaling;
use swiftnbd::image::log::lease::{Clock, Terms};
use swiftnbd::image::log::{self, Limits, Log, LogError, Pace, Who};
use swiftnbd::image::{Image, ImageError};
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::retry::{Permanent, Policy, Retry};
use swiftnbd::store::{ErrorKind, ObjectStore};
use tokio::time::{Instant, sleep, timeout};

/// Operations in one life of a volume, between two crashes.
const OPERATIONS: usize = 60;
/// The cheapest key derivation.
const COST: Cost = Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

#[test]
fn promises_hold_for_every_seed() {
    let known = known(include_str!("log_simulation_seeds.txt"));
    for_every_seed(known, number("SWIFTNBD_LOG_SEEDS").unwrap_or(2000), false);
}

/// The same with a journal on a disk that loses what was not synced when the power is
/// cut, and that breaks in some seeds. What was answered survives every process, what was
/// flushed every power cut, unless another host took the volume over.
#[test]
fn promises_hold_with_a_journal() {
    let known = known(include_str!("log_journal_seeds.txt"));
    for_every_seed(
        known,
        number("SWIFTNBD_LOG_SEEDS").unwrap_or(2000) / 2,
        true,
    );
}

fn known(list: &str) -> Vec<u64> {
    let lines = list.lines();
    lines
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

fn for_every_seed(known: Vec<u64>, seeds: u64, journal: bool) {
    let soak = number("SWIFTNBD_SOAK_SECONDS").map(Duration::from_secs);
    // Outside a runtime: the true time.
    let begun = Instant::now();
    let seeds: Box<dyn Iterator<Item = u64>> = match (number("SWIFTNBD_SEED"), soak) {
        (Some(seed), _) => Box::new([seed].into_iter()),
        (None, Some(soak)) => {
            let first = fastrand::u64(1 << 32..1 << 62);
            Box::new((first..).take_while(move |_| begun.elapsed() < soak))
        }
        (None, None) => Box::new(known.into_iter().chain(0..seeds)),
    };
    let (mut count, mut failed) = (0, Vec::new());
    for seed in seeds {
        count += 1;
        if catch_unwind(AssertUnwindSafe(|| run(seed, journal))).is_err() {
            eprintln!(
                "SEED {seed} FAILED; replay: SWIFTNBD_SEED={seed} cargo test --test log_simulation"
            );
            failed.push(seed);
        }
    }
    assert!(count > 0, "no seed to run");
    assert!(
        failed.is_empty(),
        "{} of {count} seeds failed: {failed:?}",
        failed.len()
    );
    println!("{count} seeds in {} s", begun.elapsed().as_secs());
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number")),
    )
}

fn run(seed: u64, journal: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let seeded = async {
        timeout(
            Duration::from_secs(48 * 3600),
            Simulation::run(seed, journal),
        )
        .await
    };
    let ended = runtime.unwrap().block_on(seeded);
    ended.expect("it hangs: two days of virtual time have passed");
}

/// What a seed decides.
#[derive(Debug, Clone, Copy)]
struct Plan {
    geometry: Geometry,
    encrypted: bool,
    limits: Limits,
    workers: usize,
    faults: Faults,
    give_up_after: Option<Duration>,
    lives: usize,
    /// Others attach while somebody has the volume.
    rivals: bool,
    /// It has a journal, on a disk of which one of so many writes fails; 0: none.
    journal: Option<u64>,
    /// Another machine takes it over without the journal: what was found at the beginning
    /// is stored then.
    moves: bool,
}

impl Plan {
    fn new(rng: &mut fastrand::Rng, journal: bool) -> Plan {
        let block_size = [512, 4096][rng.usize(0..2)];
        let blocks = rng.u64(4..120);
        let geometry = Geometry {
            size: blocks * 4096
                - if block_size == 512 {
                    rng.u64(0..8) * 512
                } else {
                    0
                },
            block_size,
            compression: [Compression::None, Compression::Lz4][rng.usize(0..2)],
        };
        let give_up_after =
            (rng.u8(0..3) == 0).then(|| Duration::from_millis(rng.u64(100..60_000)));
        let mut faults = Faults::replicas(rng.u32(0..4));
        if give_up_after.is_none() {
            // Then nothing at all may fail; damage that stays would.
            faults.corrupt = 0;
            faults.rotten = faults.rotten.min(2);
        }
        let rivals = rng.u8(0..3) == 0;
        if rivals {
            // What the lease assumes: what was stored is found.
            faults.false_absence = 0;
        }
        let mut limits = Limits::new(rng.u64(0..64) * 4096, 1 << 20, 1 << 20, give_up_after);
        limits.pace = Pace {
            segment: 4096 * rng.u64(2..24),
            small: 4096 * rng.u64(1..4),
            small_segments: rng.usize(3..8),
            root_segments: rng.u32(1..12),
            root_bytes: (4096 * rng.u64(2..24), 1 << 20),
        };
        // Whatever else the seed decides stays what it is.
        let mut own = rng.clone();
        // An entry may have a step's data, of 128 KiB.
        limits.journal = own.u64(300 << 10..2 << 20);
        let breaks = [0, 0, 0, own.u64(20..1000)][own.usize(0..4)];
        Plan {
            journal: journal.then_some(breaks),
            moves: own.bool(),
            geometry,
            encrypted: rng.u8(0..4) == 0,
            limits,
            workers: rng.usize(1..5),
            faults,
            give_up_after,
            lives: rng.usize(1..5),
            rivals: rivals && !journal,
        }
    }

    fn sectors(&self) -> usize {
        (self.geometry.size / SECTOR) as usize
    }

    /// Sectors in a logical block.
    fn unit(&self) -> usize {
        self.geometry.block_size as usize / SECTOR as usize
    }
}

/// One seed's world.
struct Simulation {
    plan: Plan,
    store: FaultStore,
    /// What the store holds, without its faults.
    truth: Arc<dyn ObjectStore>,
    /// Somebody else is about to attach.
    contested: AtomicBool,
    /// All who tried to attach.
    attached: Mutex<HashMap<AttachId, FaultStore>>,
    model: Mutex<Prefix>,
    next_tag: Mutex<Tag>,
    /// Two, of which one has the volume at a time.
    machines: [Arc<Machine>; 2],
    /// Which one that is, or tries.
    host: AtomicUsize,
    /// It takes the volume over from the other one.
    takes_over: AtomicBool,
}

/// An open volume and the process that has it.
struct Life {
    image: Log,
    process: FaultStore,
    /// What the one before left is known.
    checked: AtomicBool,
}

impl Simulation {
    async fn run(seed: u64, journal: bool) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::new(&mut rng, journal);
        if number("SWIFTNBD_SEED").is_some() {
            eprintln!("{plan:?}");
        }
        let memory = MemoryService::new().store("volume");
        memory.create().await.unwrap();
        let memory: Arc<dyn ObjectStore> = Arc::new(memory);
        let passphrase = passphrase();
        let key = plan.encrypted.then_some((&passphrase, COST));
        log::create(&memory, plan.geometry, key, &who(&mut rng), false)
            .await
            .unwrap();
        let simulation = Arc::new(Simulation {
            plan,
            truth: Arc::clone(&memory),
            contested: AtomicBool::new(false),
            attached: Mutex::default(),
            store: FaultStore::new(memory, plan.faults, rng.u64(..)),
            model: Mutex::new(Prefix::new(plan.sectors())),
            next_tag: Mutex::new(1),
            machines: [0, 1].map(|host| Machine::new(seed ^ host, plan.journal.unwrap_or(0))),
            host: AtomicUsize::new(0),
            takes_over: AtomicBool::new(false),
        });
        let mut zombie = None;
        for _ in 0..plan.lives {
            if zombie.is_some() {
                simulation.move_to_the_other_host();
            }
            let life = Arc::new(simulation.open(&mut rng).await);
            simulation.check_content(&life).await;
            simulation.haunt(zombie.take(), &mut rng).await;
            if plan.rivals && rng.bool() {
                let taken = simulation.be_taken_over(&life, &mut rng).await;
                simulation.check_content(&taken).await;
                simulation.haunt(Some(life), &mut rng).await;
                taken.process.crash();
                continue;
            }
            simulation.live(&life, &mut rng).await;
            if rng.u8(0..3) == 0 && (plan.moves || plan.journal.is_none()) {
                // Partitioned, not dead: it goes on when another has the volume.
                zombie = Some(life);
            } else {
                simulation.crash(&life, &mut rng);
            }
            if zombie.is_some() && plan.journal.is_some() {
                continue;
            }
            if rng.bool() {
                // Opened and lost again before anything is written.
                let again = simulation.open(&mut rng).await;
                simulation.check_content(&again).await;
                again.process.crash();
            }
        }
        simulation.end_well(zombie, &mut rng).await;
    }

    /// Attaches, as often as it takes: some attempts die on the way.
    async fn open(&self, rng: &mut fastrand::Rng) -> Life {
        for attempt in 0.. {
            assert!(attempt < 300, "it cannot be opened");
            if attempt == 40 {
                self.store.set_faults(Faults::default());
            }
            let process = self.store.another();
            if rng.u8(0..3) == 0 {
                process.crash_at(rng.u64(1..100));
            }
            let opened = tokio::select! {
                biased;
                opened = self.open_once(&process, rng.fork()) => opened,
                () = process.crashed() => continue,
            };
            match opened {
                Ok(image) => {
                    self.store.set_faults(self.plan.faults);
                    self.takes_over.store(false, Ordering::SeqCst);
                    let checked = AtomicBool::new(false);
                    return Life {
                        image,
                        process,
                        checked,
                    };
                }
                Err(LogError::Store(error)) if !error.is_permanent() => {}
                // What is not found, or comes damaged every time, may come tomorrow;
                // and our own stop may land late, on what we created since.
                Err(
                    LogError::Missing { .. }
                    | LogError::Damaged { .. }
                    | LogError::Fenced(_)
                    // A claim of one that died on the way may land late, too.
                    | LogError::Superseded(_)
                    | LogError::NotAVolume
                    // An older root was served, which names an older journal.
                    | LogError::Journal { .. },
                ) if attempt < 60 => {}
                Err(error) => panic!("it cannot be opened: {error}"),
            }
            process.crash();
            sleep(Duration::from_secs(rng.u64(1..20))).await;
        }
        unreachable!()
    }

    async fn open_once(
        &self,
        process: &FaultStore,
        mut rng: fastrand::Rng,
    ) -> Result<Log, LogError> {
        let mut who = who(&mut rng);
        if self.plan.journal.is_some() {
            let machine = &self.machines[self.host.load(Ordering::SeqCst)];
            who.journaling = Journaling {
                shelf: Some(machine.shelf(process)),
                wanted: rng.u8(0..5) > 0,
                give_up: self.takes_over.load(Ordering::SeqCst),
            };
        }
        let known = (who.attach, process.clone());
        self.attached.lock().unwrap().extend([known]);
        let policy = Policy {
            give_up_after: Some(Duration::from_secs(120)),
            permanent: Permanent::Fail,
        };
        let retry = Retry::new(Arc::new(process.clone()), policy, rng);
        let live = retry.with_policy(Policy::live(self.plan.give_up_after));
        let passphrase = passphrase();
        let passphrase = self.plan.encrypted.then_some(&passphrase);
        Log::open(
            Arc::new(retry),
            Arc::new(live),
            passphrase,
            self.plan.limits,
            who,
        )
        .await
    }

    /// The process dies, or the whole machine.
    fn crash(&self, life: &Life, rng: &mut fastrand::Rng) {
        life.process.crash();
        if self.plan.journal.is_none() {
            return;
        }
        let journal = life.image.stats().log.unwrap().journal;
        let checked = life.checked.load(Ordering::SeqCst);
        if rng.bool() {
            self.machines[self.host.load(Ordering::SeqCst)].cut_power();
        } else if checked && journal.is_some_and(|journal| journal.relied_on) {
            // What was answered survives the process.
            let mut model = self.model.lock().unwrap();
            let covered = model.cover();
            model.durable(&covered);
        }
    }

    /// From now on the other machine has the volume, without this one's journal.
    fn move_to_the_other_host(&self) {
        if self.plan.journal.is_some() {
            self.host.fetch_xor(1, Ordering::SeqCst);
            self.takes_over.store(true, Ordering::SeqCst);
            self.model.lock().unwrap().give_up();
        }
    }

    /// After a crash: a prefix.
    async fn check_content(&self, life: &Life) {
        let check = async {
            let Some(seen) = self.read_all(&life.image).await else {
                return life.process.crash();
            };
            self.model.lock().unwrap().crashed(&seen);
            life.checked.store(true, Ordering::SeqCst);
            self.store_what_was_found(life).await;
        };
        tokio::select! {
            biased;
            () = check => {}
            // It dies before it says anything.
            () = life.process.crashed() => {}
        }
    }

    /// What the journal had is stored, if the journal may be given up later.
    async fn store_what_was_found(&self, life: &Life) {
        if self.plan.journal.is_none() || !self.plan.moves {
            return;
        }
        while let Err(error) = life.image.flush_to_store().await {
            if self.is_lost(&life.image).await {
                return;
            }
            let patient = self.plan.give_up_after.is_none();
            assert!(!patient, "it cannot be flushed: {error}");
        }
    }

    /// Somebody takes the volume over from one who is alive and at work: until the last
    /// moment, what that one was answered as durable is there afterwards.
    async fn be_taken_over(self: &Arc<Self>, life: &Arc<Life>, rng: &mut fastrand::Rng) -> Life {
        let (mut work, mut patience) = (rng.fork(), rng.fork());
        let working = async {
            loop {
                self.live(life, &mut work).await;
                sleep(Duration::from_millis(work.u64(1..2000))).await;
            }
        };
        let taking = async {
            sleep(Duration::from_millis(patience.u64(1..60_000))).await;
            self.contested.store(true, Ordering::SeqCst);
            let taken = self.open(rng).await;
            self.contested.store(false, Ordering::SeqCst);
            taken
        };
        tokio::select! {
            biased;
            taken = taking => taken,
            () = working => unreachable!(),
        }
    }

    /// Whether the volume is lost for the one who opened it: to somebody who takes it
    /// over, or to a claim that landed late: its sender died.
    async fn is_lost(&self, image: &Log) -> bool {
        let name = names::epoch(image.epoch() + 1);
        let Ok(body) = self.truth.get(&name).await else {
            return false;
        };
        if self.contested.load(Ordering::SeqCst) {
            return true;
        }
        let (_, claim) = Claim::decode(&name, &body).unwrap();
        let sender = self.attached.lock().unwrap().get(&claim.attach).cloned();
        let died = async { sender.expect("somebody attached").crashed().await };
        timeout(Duration::ZERO, died).await.is_ok()
    }

    /// Its content; `None`: it is lost.
    async fn read_all(&self, image: &Log) -> Option<Vec<Tag>> {
        let mut seen = Vec::with_capacity(self.plan.sectors());
        let size = self.plan.geometry.size;
        for offset in (0..size).step_by(4096) {
            let length = (size - offset).min(4096) as u32;
            let mut tries = 0;
            seen.extend(loop {
                match image.read(offset, length).await {
                    Ok(pieces) => break tags(&pieces.concat()),
                    Err(ImageError::Superseded(_)) if self.is_lost(image).await => return None,
                    Err(error) => {
                        tries += 1;
                        let patient = self.plan.give_up_after.is_none();
                        assert!(!patient && tries < 1000, "it cannot be read: {error}");
                    }
                }
            });
        }
        Some(seen)
    }

    /// An older writer goes on, with tags that nobody may ever read.
    async fn haunt(&self, zombie: Option<Arc<Life>>, rng: &mut fastrand::Rng) {
        let Some(zombie) = zombie else { return };
        let work = async {
            for _ in 0..rng.usize(1..20) {
                let tag = 1 << 60 | rng.u64(..1 << 40);
                let sectors = self.plan.sectors() / self.plan.unit() * self.plan.unit();
                let data: BytesMut = (0..sectors).flat_map(|_| sector(tag)).collect();
                let written = zombie.image.write(0, data.freeze()).await;
                let flushed = zombie.image.flush().await;
                // What the lease assumes must hold for it to promise anything.
                assert!(
                    !self.plan.rivals || written.is_err() || flushed.is_err(),
                    "a flush is answered after somebody else has the volume"
                );
            }
        };
        tokio::select! {
            biased;
            _ = timeout(Duration::from_secs(600), work) => {}
            () = zombie.process.crashed() => {}
        }
        zombie.process.crash();
    }

    /// Workers operate on sectors of their own; at some moment it ends.
    async fn live(self: &Arc<Self>, life: &Arc<Life>, rng: &mut fastrand::Rng) {
        let cell = self.plan.unit() * rng.usize(1..9);
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..self.plan.workers {
            let (this, life, rng) = (Arc::clone(self), Arc::clone(life), rng.fork());
            workers.spawn(async move { this.work(&life.image, worker, cell, rng).await });
        }
        let all = async {
            while let Some(ended) = workers.join_next().await {
                if let Err(error) = ended {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        };
        // Some end in the middle, some with all work done and some of it dirty.
        let span = Duration::from_millis(rng.u64(1..120_000));
        tokio::select! {
            biased;
            _ = timeout(span, all) => {}
            () = life.process.crashed() => {}
        }
        workers.abort_all();
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    async fn work(&self, image: &Log, worker: usize, cell: usize, mut rng: fastrand::Rng) {
        for _ in 0..OPERATIONS / self.plan.workers {
            let (first, count) = self.range(worker, cell, &mut rng);
            if count == 0 {
                return;
            }
            let (offset, length) = (first as u64 * SECTOR, count as u64 * SECTOR);
            let result = match rng.u32(0..100) {
                0..40 => self.write(image, first, count, &mut rng).await,
                40..65 => self.read(image, first, count).await,
                65..75 => {
                    let operation = self.begin((first..first + count).map(|at| (at, 0)));
                    self.answer(operation, image.write_zeroes(offset, length).await)
                }
                75..83 => {
                    let whole = self.whole_blocks(first, count);
                    let operation = self.begin(whole.map(|at| (at, 0)));
                    self.answer(operation, image.discard(offset, length).await)
                }
                83..95 => self.flush(image).await,
                _ => {
                    sleep(Duration::from_millis(rng.u64(0..8000))).await;
                    Ok(())
                }
            };
            if let Err(error) = result {
                if matches!(error, ImageError::Superseded(_)) && self.is_lost(image).await {
                    return;
                }
                let expected = self.plan.give_up_after.is_some();
                assert!(
                    expected,
                    "an error although the volume waits for ever: {error}"
                );
            }
        }
    }

    fn begin(&self, changes: impl Iterator<Item = (usize, Tag)>) -> usize {
        self.model.lock().unwrap().begin(changes)
    }

    fn answer(&self, operation: usize, result: Result<(), ImageError>) -> Result<(), ImageError> {
        if result.is_ok() {
            self.model.lock().unwrap().answer(operation);
        }
        result
    }

    /// What a discard frees: blocks of 4 KiB that lie within it.
    fn whole_blocks(&self, first: usize, count: usize) -> std::ops::Range<usize> {
        let end = match first + count == self.plan.sectors() {
            true => first + count,
            false => (first + count) / 8 * 8,
        };
        let start = first.div_ceil(8) * 8;
        start..end.max(start)
    }

    /// Sectors that only this worker touches: cells are dealt out in turn, so that
    /// neighbours have different owners.
    fn range(&self, worker: usize, cell: usize, rng: &mut fastrand::Rng) -> (usize, usize) {
        let (unit, sectors) = (self.plan.unit(), self.plan.sectors());
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
        let units = (to - from) / unit;
        let first = rng.usize(0..units);
        (from + first * unit, rng.usize(1..=units - first) * unit)
    }

    async fn write(
        &self,
        image: &Log,
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
        let operation = self.begin((first..).zip(new));
        self.answer(
            operation,
            image.write(first as u64 * SECTOR, data.freeze()).await,
        )?;
        match rng.u8(0..5) {
            0 => self.flush(image).await,
            _ => Ok(()),
        }
    }

    async fn read(&self, image: &Log, first: usize, count: usize) -> Result<(), ImageError> {
        let length = (count as u64 * SECTOR) as u32;
        let pieces: Vec<Bytes> = image.read(first as u64 * SECTOR, length).await?;
        let data = pieces.concat();
        assert_eq!(data.len(), length as usize);
        self.model.lock().unwrap().observe(first, &tags(&data));
        Ok(())
    }

    async fn flush(&self, image: &Log) -> Result<(), ImageError> {
        let covered = self.model.lock().unwrap().cover();
        image.flush().await?;
        self.model.lock().unwrap().durable(&covered);
        Ok(())
    }

    /// The store is well again: everything that was answered must get there, a flush
    /// that failed before included.
    async fn end_well(self: &Arc<Self>, mut zombie: Option<Arc<Life>>, rng: &mut fastrand::Rng) {
        let life = loop {
            self.store.set_faults(self.plan.faults);
            if zombie.is_some() {
                self.move_to_the_other_host();
            }
            let life = self.open(rng).await;
            self.check_content(&life).await;
            life.process.crash_at(u64::MAX / 2);
            if timeout(Duration::ZERO, life.process.crashed())
                .await
                .is_ok()
            {
                continue;
            }
            self.haunt(zombie.take(), rng).await;
            self.work(&life.image, 0, self.plan.unit(), rng.fork())
                .await;
            self.store.set_faults(Faults::default());
            // What dead senders have on their way lands, or never does.
            sleep(2 * LIFETIME).await;
            let mut tries = 0;
            while life.image.flush_to_store().await.is_err() && !self.is_lost(&life.image).await {
                tries += 1;
                assert!(tries < 200, "the store is well and a flush still fails");
                sleep(Duration::from_secs(1)).await;
            }
            match self.is_lost(&life.image).await {
                true => life.process.crash(),
                false => break life,
            }
        };
        assert_eq!(
            life.image.stats().log.unwrap().seconds_behind,
            0,
            "behind after a flush"
        );
        let before = self
            .read_all(&life.image)
            .await
            .expect("nobody else is there");
        let mut closed = life.image.close().await;
        for _ in 0..100 {
            if closed.is_ok() {
                break;
            }
            sleep(LIFETIME).await;
            closed = life.image.close().await;
        }
        closed.expect("closes");
        drop(life);
        let process = self.store.another();
        let image = self
            .open_once(&process, rng.fork())
            .await
            .expect("opens when all is well");
        assert_eq!(
            self.read_all(&image).await.as_ref(),
            Some(&before),
            "closed and opened, it reads differently"
        );
        self.model.lock().unwrap().crashed(&before);
    }
}

fn passphrase() -> Passphrase {
    Passphrase::from_bytes("correct horse").unwrap()
}

/// Of the seed: names decide in which order things are found.
fn who(rng: &mut fastrand::Rng) -> Who {
    Who {
        attach: AttachId(std::array::from_fn(|_| rng.u8(..))),
        terms: Terms::new(rng.u32(3..60)),
        clock: Arc::new(Wrong::new(rng)),
        ..Who::new("simulation", 0)
    }
}

/// A machine's clock: it runs by up to three parts of a hundred too fast or too slow, and
/// sometimes the machine is a virtual one that stands still for a while, and its clock
/// with it.
#[derive(Debug)]
struct Wrong {
    started: Instant,
    rate: f64,
    /// From when on, and for how long.
    pause: (Duration, Duration),
}

impl Wrong {
    fn new(rng: &mut fastrand::Rng) -> Wrong {
        let pause = match rng.u8(0..3) {
            0 => Duration::from_millis(rng.u64(1..200_000)),
            _ => Duration::ZERO,
        };
        Wrong {
            started: Instant::now(),
            rate: 0.97 + 0.06 * rng.f64(),
            pause: (Duration::from_millis(rng.u64(0..120_000)), pause),
        }
    }
}

impl Clock for Wrong {
    fn now(&self) -> Duration {
        let (from, length) = self.pause;
        let true_time = self.started.elapsed();
        let missed = true_time.saturating_sub(from).min(length);
        Duration::from_secs(1000) + (true_time - missed).mul_f64(self.rate)
    }
}

#[test]
fn errors_of_the_store_say_whether_they_pass() {
    // What `open` relies on.
    let error = swiftnbd::store::StoreError::new(ErrorKind::Unavailable, "GET", "x", "503");
    assert!(!error.is_permanent());
}
