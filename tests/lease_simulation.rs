//! The lease alone, over a store that fails: one seed is one schedule of hosts that claim
//! a volume, hold it, stand still, die, and whose clocks are wrong, in virtual time.
//!
//! What must hold: an answer that came while a lease lasts came before anybody with a
//! later claim began to decide. And somebody gets the volume in the end.
//!
//! `SWIFTNBD_SEED=17 cargo test --test lease_simulation` replays one seed,
//! `SWIFTNBD_SEEDS=50000` runs so many.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use support::fault::{FaultStore, Faults, LIFETIME};
use swiftnbd::image::log::format::claim::Release;
use swiftnbd::image::log::format::{AttachId, VolumeId, names};
use swiftnbd::image::log::lease::{self, Clock, Lease, Standing, Terms};
use swiftnbd::image::log::{LogError, Who, decide, recovery};
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::retry::{Policy, Retry};
use swiftnbd::store::{ErrorKind, ObjectStore};
use tokio::time::{Instant, sleep, timeout};

const VOLUME: VolumeId = VolumeId([7; 16]);

#[test]
fn one_at_a_time_for_every_seed() {
    let seeds = match number("SWIFTNBD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SWIFTNBD_SEEDS").unwrap_or(3000),
    };
    let (mut failed, mut held) = (Vec::new(), 0);
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(holders) => held += holders,
            Err(_) => {
                eprintln!("SEED {seed} FAILED");
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    println!("{} seeds, {held} holders", seeds.count());
    assert!(held > 0, "nobody ever had the volume");
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}")))
}

fn run(seed: u64) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let world = World::new(seed).await;
        let ended = timeout(Duration::from_secs(24 * 3600), world.race()).await;
        ended.expect("nobody gets it: a day of virtual time has passed")
    })
}

/// A host's clock: too fast or too slow by up to eight parts of a hundred; what it misses
/// while the host, a virtual machine, stands still is taken off it.
#[derive(Debug)]
struct HostClock {
    started: Instant,
    rate: f64,
    missed: Mutex<Duration>,
}

impl HostClock {
    fn new(rng: &mut fastrand::Rng) -> HostClock {
        HostClock {
            started: Instant::now(),
            rate: 0.92 + 0.16 * rng.f64(),
            missed: Mutex::default(),
        }
    }
}

impl Clock for HostClock {
    fn now(&self) -> Duration {
        let ran = self.started.elapsed() - *self.missed.lock().unwrap();
        Duration::from_secs(100) + ran.mul_f64(self.rate)
    }
}

/// Who began to decide when.
type Decided = Arc<Mutex<Vec<(u32, Instant)>>>;

struct World {
    store: FaultStore,
    /// If it does not, hosts' clocks have to count the time in which they stand still.
    tells_time: bool,
    rng: fastrand::Rng,
    decided: Decided,
}

impl World {
    async fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let memory = MemoryService::new().store("volume");
        memory.create().await.unwrap();
        let memory: Arc<dyn ObjectStore> = Arc::new(memory);
        let mut faults = Faults::replicas(rng.u32(0..4));
        // What the lease assumes: what was stored is found.
        faults.false_absence = 0;
        let store = FaultStore::new(memory, faults, rng.u64(..));
        let tells_time = rng.bool();
        World {
            store: match tells_time {
                true => store,
                false => store.without_clock(),
            },
            tells_time,
            rng,
            decided: Decided::default(),
        }
    }

    /// Some hosts at once, some one after the other; how many had it.
    async fn race(mut self) -> usize {
        let mut hosts = tokio::task::JoinSet::new();
        for _ in 0..self.rng.usize(2..7) {
            let host = Host {
                process: self.store.another(),
                over: Vec::new(),
                decided: Arc::clone(&self.decided),
                tells_time: self.tells_time,
                rng: self.rng.fork(),
            };
            let after = Duration::from_millis(self.rng.u64(0..200_000));
            hosts.spawn(async move {
                sleep(after).await;
                host.live().await;
            });
        }
        while let Some(ended) = hosts.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.store.set_faults(Faults::default());
        sleep(2 * LIFETIME).await;
        let mut last = Host {
            process: self.store.another(),
            over: Vec::new(),
            decided: Arc::clone(&self.decided),
            tells_time: self.tells_time,
            rng: self.rng.fork(),
        };
        // Whoever was there before is dead.
        let store = last.store(fastrand::Rng::with_seed(1));
        let mut tries = 0;
        while let Err(error) = last.attach(&store).await {
            // What one server alone has is found now and not then, until it is healed.
            tries += 1;
            assert!(tries < 20, "nobody is there, and it cannot be had: {error}");
            sleep(LIFETIME).await;
        }
        self.decided.lock().unwrap().len()
    }
}

/// One process after another on a host.
struct Host {
    process: FaultStore,
    /// Its attachments so far: they are over.
    over: Vec<AttachId>,
    decided: Decided,
    tells_time: bool,
    rng: fastrand::Rng,
}

impl Host {
    fn store(&self, rng: fastrand::Rng) -> Arc<dyn ObjectStore> {
        let once = Arc::new(self.process.clone());
        Arc::new(Retry::new(once, Policy::attach(), rng))
    }

    async fn live(mut self) {
        if self.rng.u8(0..4) == 0 {
            self.process.crash_at(self.rng.u64(1..200));
        }
        let process = self.process.clone();
        tokio::select! {
            biased;
            () = self.try_to_hold() => {}
            () = process.crashed() => {}
        }
        process.crash();
    }

    async fn try_to_hold(&mut self) {
        let rng = self.rng.fork();
        let store = self.store(rng);
        for _ in 0..self.rng.usize(1..6) {
            if let Ok((clock, lease)) = self.attach(&store).await {
                self.hold(&store, &clock, &lease).await;
            }
            sleep(Duration::from_millis(self.rng.u64(0..30_000))).await;
        }
    }

    /// As [`Log::open`](swiftnbd::image::log::Log::open) does it.
    async fn attach(
        &mut self,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<(Arc<HostClock>, Arc<Lease>), LogError> {
        let mut rng = self.rng.fork();
        let seen = lease::standing(&**store).await?;
        // Some do not care whether the holder lives.
        if rng.u8(0..3) > 0
            && let Standing::Claimed { claim, .. } = &seen
            && lease::is_renewed(&**store, &seen).await?
        {
            return Err(LogError::Superseded(claim.clone()));
        }
        let clock = Arc::new(HostClock::new(&mut rng));
        let who = Who {
            attach: AttachId(std::array::from_fn(|_| fastrand::Rng::u8(&mut rng, ..))),
            terms: Terms::new(rng.u32(3..60)),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            dead: self.over.clone(),
            ..Who::new("host", 0)
        };
        self.over.push(who.attach);
        let highest = recovery::highest_epoch(&**store).await?;
        let mut pinned = highest;
        while pinned > 0
            && recovery::read(&**store, &names::root(pinned, 0))
                .await?
                .is_none()
        {
            pinned -= 1;
        }
        let below = recovery::claims(&**store, pinned.max(1)..highest + 1).await?;
        let lease = Lease::claim(Arc::clone(store), VOLUME, highest, below, &who, 0).await?;
        let lease = Arc::new(lease);
        let deciding = async {
            lease.wait_out(&who).await?;
            let epoch = lease.epoch();
            self.decided.lock().unwrap().push((epoch, Instant::now()));
            let pin = Bytes::from(format!("pin of {epoch}"));
            decide::create_and_look(&**store, &names::root(epoch, 0), &pin).await?;
            Ok(())
        };
        // Some die in the middle, and their host tries again.
        let dies_after = match rng.u8(0..4) {
            0 => Duration::from_millis(rng.u64(0..10_000)),
            _ => Duration::MAX,
        };
        tokio::select! {
            biased;
            () = sleep(dies_after) => Err(LogError::Fenced("it died".to_owned())),
            decided = deciding => decided.map(|()| (clock, Arc::clone(&lease))),
            lost = lease.keep() => Err(lost),
        }
    }

    /// Stores something now and then, as a flush does, and stands still now and then.
    async fn hold(&mut self, store: &Arc<dyn ObjectStore>, clock: &HostClock, lease: &Arc<Lease>) {
        let (epoch, keeper) = (lease.epoch(), Arc::clone(lease));
        let mut keeper = tokio::spawn(async move { keeper.keep().await });
        for number in 0..self.rng.u32(1..60) {
            let name = format!("seg/{epoch}/{number}");
            let stored = store.put(&name, Bytes::from_static(b"data")).await;
            let answered = Instant::now();
            if self.rng.u8(0..8) == 0 {
                // Nothing runs meanwhile, and the clock stands still or goes on.
                keeper.abort();
                let _ = (&mut keeper).await;
                let pause = Duration::from_millis(self.rng.u64(0..200_000));
                sleep(pause).await;
                if self.rng.bool() && self.tells_time {
                    *clock.missed.lock().unwrap() += pause;
                }
                let kept = Arc::clone(lease);
                keeper = tokio::spawn(async move { kept.keep().await });
            }
            if stored.is_ok() {
                let may_say_so = lease.lasts(store.time()) || lease.look().await.is_ok();
                let passed = self.decided_after(epoch);
                assert!(
                    !may_say_so || passed.is_none_or(|then| answered < then),
                    "epoch {epoch} says that something is durable that came {:?} after another \
                     began to decide",
                    answered.duration_since(passed.unwrap())
                );
            }
            if keeper.is_finished() {
                return;
            }
            sleep(Duration::from_millis(self.rng.u64(0..10_000))).await;
        }
        keeper.abort();
        if self.rng.bool() {
            let (attach, name) = (self.over[self.over.len() - 1], names::released(epoch));
            let release = Release { epoch, attach }.encode(VOLUME, &name);
            let _ = decide::create(&**store, &name, &release).await;
        }
    }

    /// When the first one with a later claim began to decide.
    fn decided_after(&self, epoch: u32) -> Option<Instant> {
        let decided = self.decided.lock().unwrap();
        let later = decided.iter().filter(|(other, _)| *other > epoch);
        later.map(|(_, when)| *when).min()
    }
}

#[test]
fn a_store_that_gives_up_is_no_loss() {
    // What `keep` relies on.
    assert!(
        !swiftnbd::store::StoreError::new(ErrorKind::Unavailable, "GET", "x", "").is_permanent()
    );
}
