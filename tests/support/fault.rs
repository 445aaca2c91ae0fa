//! A store that wraps another and fails as a Swift cluster does, by a seed.
//!
//! A request is a task of its own, as a request in a network is: it arrives at
//! one of two proxies, gets a timestamp from that proxy's clock, is applied if no
//! newer timestamp was (else 202), and is answered. Each of these may take long
//! or not happen. The caller may give up or die meanwhile; the request goes on.
//! This is where answers get lost, old writes land late, and clocks disagree.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::store::{ErrorKind, Listed, Metadata, ObjectStore, StoreError};
use tokio::time::{Instant, sleep, timeout};

/// How long a request may be on its way, whoever still waits for it.
pub const LIFETIME: Duration = Duration::from_secs(30);
/// The furthest that one proxy's clock is ahead of another's.
pub const SKEW: Duration = Duration::from_secs(5);
/// When a caller gives up waiting for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often things go wrong, in requests of a thousand each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Refused before anything happened.
    pub refused: u32,
    /// Answered 503 with no effect.
    pub unavailable: u32,
    /// Answered 503, and applied all the same, at some time within the lifetime.
    pub late: u32,
    /// Applied, now or at some time within the lifetime, and never answered.
    pub unanswered: u32,
    /// Damaged on the way: refused when stored, noticed when read.
    pub corrupt: u32,
    /// Slow by seconds.
    pub slow: u32,
    /// Answered 202 for no reason that shows, not stored.
    pub superseded: u32,
}

impl Faults {
    /// A cluster on a bad day; `level` 0 is a good one.
    pub fn level(level: u32) -> Faults {
        let often = [0, 10, 60, 150][level as usize % 4];
        Faults {
            refused: often,
            unavailable: often,
            late: often / 2,
            unanswered: often / 2,
            corrupt: often / 3,
            slow: often,
            superseded: often / 4,
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct FaultStore {
    world: Arc<World>,
}

#[derive(Debug)]
struct World {
    inner: Arc<dyn ObjectStore>,
    rng: Mutex<fastrand::Rng>,
    faults: Mutex<Faults>,
    /// The timestamp of the newest write of each name, in microseconds.
    newest: Mutex<HashMap<String, u64>>,
    started: Instant,
    skews: [Duration; 2],
    /// Everything is refused: the cluster is down.
    down: AtomicBool,
}

/// What a write does, decided before it starts.
#[derive(Debug, Clone, Copy)]
struct Fate {
    arrives: Option<Duration>,
    applied_after: Option<Duration>,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Truth,
    Refused,
    Unavailable,
    Corrupt,
    Superseded,
    None,
}

impl FaultStore {
    /// Wraps `inner`, which never fails by itself. Within a tokio runtime.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Faults, seed: u64) -> FaultStore {
        let mut rng = fastrand::Rng::with_seed(seed);
        let skews = [Duration::ZERO, SKEW.mul_f64(rng.f64() * 0.99)];
        FaultStore {
            world: Arc::new(World {
                inner,
                rng: Mutex::new(rng),
                faults: Mutex::new(faults),
                newest: Mutex::default(),
                started: Instant::now(),
                skews,
                down: AtomicBool::new(false),
            }),
        }
    }

    /// From now on it fails this often.
    pub fn set_faults(&self, faults: Faults) {
        *self.world.faults.lock().unwrap() = faults;
    }

    /// Takes the cluster down or up again.
    pub fn set_down(&self, down: bool) {
        self.world.down.store(down, Ordering::SeqCst);
    }

    fn fate(&self) -> Fate {
        let world = &self.world;
        let mut rng = world.rng.lock().unwrap();
        let faults = *world.faults.lock().unwrap();
        let millis = |rng: &mut fastrand::Rng, most: u64| Duration::from_millis(rng.u64(0..most));
        let lifetime = LIFETIME.as_millis() as u64;
        let quick = (Some(millis(&mut rng, 20)), Some(millis(&mut rng, 20)));
        let mut dice = rng.u32(0..1000);
        let mut hit = |often: u32| {
            let hit = dice < often;
            dice = if hit {
                u32::MAX
            } else {
                dice.saturating_sub(often)
            };
            hit
        };
        let fate = |(arrives, applied_after), answer| Fate {
            arrives,
            applied_after,
            answer,
        };
        if world.down.load(Ordering::SeqCst) || hit(faults.refused) {
            return fate((None, None), Answer::Refused);
        }
        if hit(faults.unavailable) {
            return fate((quick.0, None), Answer::Unavailable);
        }
        if hit(faults.late) {
            return fate(
                (quick.0, Some(millis(&mut rng, lifetime))),
                Answer::Unavailable,
            );
        }
        if hit(faults.unanswered) {
            let applied = rng.bool().then(|| millis(&mut rng, 20));
            return fate((Some(millis(&mut rng, lifetime)), applied), Answer::None);
        }
        if hit(faults.corrupt) {
            return fate((quick.0, None), Answer::Corrupt);
        }
        if hit(faults.superseded) {
            return fate((quick.0, None), Answer::Superseded);
        }
        if hit(faults.slow) {
            return fate((Some(millis(&mut rng, lifetime)), quick.1), Answer::Truth);
        }
        fate(quick, Answer::Truth)
    }

    async fn write(
        &self,
        operation: &'static str,
        name: &str,
        body: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let fate = self.fate();
        let proxy = self.world.rng.lock().unwrap().usize(0..2);
        let task = {
            let (world, name) = (Arc::clone(&self.world), name.to_owned());
            tokio::spawn(async move { world.perform(fate, proxy, &name, body).await })
        };
        let fail = |kind, detail: &str, lingers| {
            let mut error = StoreError::new(kind, operation, name, detail);
            error.lingers = lingers;
            Err(error)
        };
        match fate.answer {
            Answer::Refused => {
                sleep(Duration::from_millis(1)).await;
                return fail(ErrorKind::Unreachable, "connection refused", Duration::ZERO);
            }
            Answer::None => {
                sleep(PATIENCE).await;
                return fail(ErrorKind::Unavailable, "no answer", LIFETIME);
            }
            Answer::Unavailable => {
                sleep(Duration::from_millis(50)).await;
                return fail(ErrorKind::Unavailable, "503", SKEW);
            }
            _ => {}
        }
        match (timeout(PATIENCE, task).await, fate.answer) {
            (Err(_), _) => fail(ErrorKind::Unavailable, "no answer", LIFETIME),
            (_, Answer::Corrupt) => fail(ErrorKind::Corrupt, "422", Duration::ZERO),
            (_, Answer::Superseded) | (Ok(Ok(false)), _) => {
                fail(ErrorKind::Superseded, "202", Duration::ZERO)
            }
            (Ok(Ok(true)), _) => Ok(()),
            (Ok(Err(error)), _) => panic!("the request's task failed: {error}"),
        }
    }

    async fn read_fault(&self, operation: &'static str, name: &str) -> Result<(), StoreError> {
        let fate = self.fate();
        if let Some(arrives) = fate.arrives {
            sleep(arrives.min(PATIENCE)).await;
        }
        let kind = match fate.answer {
            Answer::Refused => ErrorKind::Unreachable,
            Answer::Unavailable | Answer::None => ErrorKind::Unavailable,
            Answer::Corrupt => ErrorKind::Corrupt,
            Answer::Superseded | Answer::Truth => return Ok(()),
        };
        Err(StoreError::new(kind, operation, name, "injected"))
    }
}

impl World {
    /// Carries a request through. Whether it was applied.
    async fn perform(&self, fate: Fate, proxy: usize, name: &str, body: Option<Bytes>) -> bool {
        let Some(arrives) = fate.arrives else {
            return false;
        };
        sleep(arrives).await;
        let timestamp = (self.started.elapsed() + self.skews[proxy]).as_micros() as u64;
        let Some(applied_after) = fate.applied_after else {
            return false;
        };
        sleep(applied_after).await;
        {
            let mut newest = self.newest.lock().unwrap();
            let newest = newest.entry(name.to_owned()).or_default();
            if *newest >= timestamp {
                return false;
            }
            *newest = timestamp;
        }
        // The wrapped store is memory: it applies this before anything else runs.
        let applied = match body {
            Some(body) => self.inner.put(name, body).await,
            None => self.inner.delete(name).await,
        };
        applied.expect("the wrapped store does not fail");
        true
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.read_fault("GET", name).await?;
        let body = self.world.inner.get(name).await;
        let delay = self.world.rng.lock().unwrap().u64(0..20);
        sleep(Duration::from_millis(delay)).await;
        body
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.read_fault("GET", name).await?;
        self.world.inner.get_range(name, offset, length).await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.write("PUT", name, Some(body)).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        if self.world.inner.get(name).await.is_ok() {
            self.read_fault("PUT", name).await?;
            return Ok(false);
        }
        self.write("PUT", name, Some(body)).await?;
        Ok(true)
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.write("DELETE", name, None).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.read_fault("LIST", after).await?;
        let mut names = self.world.inner.list(after, before, limit).await?;
        // A stale listing: some names are missing.
        let mut rng = self.world.rng.lock().unwrap();
        if names.len() < limit && self.world.faults.lock().unwrap().late > 0 {
            names.retain(|_| rng.u8(0..8) > 0);
        }
        Ok(names)
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.world.inner.metadata().await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        self.world.inner.set_metadata(changes).await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.world.inner.create().await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.world.inner.remove().await
    }

    async fn settle(&self) {}

    fn linger(&self) -> Duration {
        LIFETIME
    }
}
