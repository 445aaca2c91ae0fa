//! The cluster: what its replicas have, what becomes of a request, all by a seed.
//!
//! The wrapped store holds the newest version of each name. Beside it stands, for a
//! name whose replicas differ, what was there before, and until when:
//!
//! | | a plain read | the newest version, and "is it there" |
//! |---|---|---|
//! | *lagging*: a write that was answered with success; a replica missed it | either, or 503 | the new one, or 503 |
//! | *weak*: a write that was not; it reached one replica alone | either, or 503 | either, or 503 |
//!
//! So a write that was answered with success is never overlooked by those who ask
//! for the newest version, and one that was not may come and go until it is healed
//! or the name is written again.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use swiftnbd::store::{ErrorKind, Listed, Metadata, ObjectStore, StoreError};
use tokio::time::{Instant, sleep};

use super::SKEW;
use super::counts::Counts;
use super::fate::{Answer, Fate, Faults};

/// The longest until a replica has caught up with a write that was a success.
const LAG: Duration = Duration::from_secs(120);
/// The longest until a write that reached one replica alone has reached the others.
const HEALING: Duration = Duration::from_secs(1800);
/// How old a listing or metadata can be.
const STALENESS: Duration = Duration::from_secs(1800);

/// A change that a request asks for.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Put(Bytes),
    PutNew(Bytes),
    Delete,
    Metadata(Metadata),
}

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Done {
    /// It is stored, or was overtaken on its way, which Swift does not tell.
    Stored,
    /// It was to be new and is there.
    Exists,
    /// Something newer was there when it came.
    Superseded,
    /// Too few replicas could say whether it is there.
    Unclear,
    /// It did not arrive, or was not applied.
    Nothing,
}

#[derive(Debug)]
pub(super) struct World {
    inner: Arc<dyn ObjectStore>,
    rng: Mutex<fastrand::Rng>,
    faults: Mutex<Faults>,
    names: Mutex<HashMap<String, Name>>,
    history: Mutex<History>,
    started: Instant,
    skews: [Duration; 2],
    /// No answer tells the time.
    timeless: AtomicBool,
    /// Everything is refused: the cluster is down.
    down: AtomicBool,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Name {
    /// The timestamp of the newest write, in microseconds.
    newest: u64,
    uneven: Option<Uneven>,
}

/// Replicas that differ.
#[derive(Debug, Clone)]
struct Uneven {
    before: Option<Bytes>,
    until: Instant,
    weak: bool,
}

/// Everything that the container's servers may still show.
#[derive(Debug, Default)]
struct History {
    /// When a name got an object of this size, or lost it.
    names: Vec<(Instant, String, Option<u64>)>,
    metadata: Vec<(Instant, Metadata)>,
}

impl World {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, faults: Faults, seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let skews = [Duration::ZERO, SKEW.mul_f64(rng.f64() * 0.99)];
        World {
            inner,
            rng: Mutex::new(rng),
            faults: Mutex::new(faults),
            names: Mutex::default(),
            history: Mutex::default(),
            started: Instant::now(),
            skews,
            timeless: AtomicBool::new(false),
            down: AtomicBool::new(false),
            counts: Mutex::default(),
        }
    }

    pub(super) fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts.lock().unwrap());
    }

    // Nothing is drawn for a fault that never happens: so a seed's schedule stays
    // what it was before that kind of fault was known.

    pub(super) fn hit(&self, often: impl FnOnce(&Faults) -> u32) -> bool {
        let often = often(&self.faults.lock().unwrap());
        often > 0 && self.rng.lock().unwrap().u32(0..1000) < often
    }

    pub(super) fn coin(&self) -> bool {
        self.rng.lock().unwrap().bool()
    }

    pub(super) fn below(&self, end: usize) -> usize {
        self.rng.lock().unwrap().usize(0..end)
    }

    fn up_to(&self, most: Duration) -> Duration {
        let most = most.as_millis() as u64;
        Duration::from_millis(self.rng.lock().unwrap().u64(0..most))
    }

    /// The way back of an answer.
    pub(super) async fn pause(&self) {
        let delay = self.rng.lock().unwrap().u64(0..20);
        sleep(Duration::from_millis(delay)).await;
    }

    /// Whether changes of the metadata fail at all.
    pub(super) fn metadata_fails(&self) -> bool {
        self.faults.lock().unwrap().stale > 0
    }

    pub(super) fn hide_time(&self) {
        self.timeless.store(true, Ordering::SeqCst);
    }

    /// The time by the clock of some proxy, in seconds; 0: it is not told.
    pub(super) fn date(&self) -> u64 {
        if self.timeless.load(Ordering::SeqCst) {
            return 0;
        }
        let proxy = self.rng.lock().unwrap().usize(0..2);
        1 + (self.started.elapsed() + self.skews[proxy]).as_secs()
    }

    /// With the proxy that the request comes to.
    pub(super) fn fate_of_write(&self, cut: bool) -> (Fate, usize) {
        let fate = self.fate(cut);
        (fate, self.rng.lock().unwrap().usize(0..2))
    }

    pub(super) fn fate(&self, cut: bool) -> Fate {
        let mut rng = self.rng.lock().unwrap();
        let faults = *self.faults.lock().unwrap();
        Fate::draw(&faults, cut || self.down.load(Ordering::SeqCst), &mut rng)
    }

    /// Carries a write through.
    pub(super) async fn perform(&self, fate: Fate, proxy: usize, name: &str, write: Write) -> Done {
        let Some(arrives) = fate.arrives else {
            return Done::Nothing;
        };
        sleep(arrives).await;
        // Later than that of a name that was never written.
        let timestamp = 1 + (self.started.elapsed() + self.skews[proxy]).as_micros() as u64;
        if let Write::PutNew(_) = write {
            match self.newest(name).await {
                Ok(None) => {}
                Ok(Some(_)) => return Done::Exists,
                Err(_) => return Done::Unclear,
            }
        }
        let superseded = self.newest_timestamp(name) >= timestamp;
        let Some(applied_after) = fate.applied_after else {
            return Done::Nothing;
        };
        sleep(applied_after).await;
        if let Write::Metadata(_) = write {
            self.change(write, name).await;
            return Done::Stored;
        }
        if superseded {
            return Done::Superseded;
        }
        let success = fate.answer == Answer::Truth;
        if self.newest_timestamp(name) < timestamp {
            self.apply(success, timestamp, name, write).await;
        } else if success {
            self.overtaken(name, write);
        }
        Done::Stored
    }

    fn newest_timestamp(&self, name: &str) -> u64 {
        let names = self.names.lock().unwrap();
        names.get(name).map_or(0, |name| name.newest)
    }

    /// A write was answered with success, and has an older timestamp than another one
    /// that reached one replica alone: it is on the others.
    fn overtaken(&self, name: &str, write: Write) {
        let mut names = self.names.lock().unwrap();
        let uneven = names.get_mut(name).and_then(|name| name.uneven.as_mut());
        if let Some(uneven) = uneven.filter(|uneven| uneven.weak) {
            match write {
                Write::Put(body) | Write::PutNew(body) => uneven.before = Some(body),
                Write::Delete => uneven.before = None,
                Write::Metadata(_) => {}
            }
        }
    }

    /// `success`: whether that is what the caller will hear.
    async fn apply(&self, success: bool, timestamp: u64, name: &str, write: Write) {
        let weak = !success && self.hit(|faults| faults.weak);
        let uneven = match weak || self.hit(|faults| faults.lagging) {
            true => Some(Uneven {
                before: self.inner.get(name).await.ok(),
                until: Instant::now() + self.up_to(if weak { HEALING } else { LAG }),
                weak,
            }),
            false => None,
        };
        let newest = timestamp;
        {
            let mut names = self.names.lock().unwrap();
            names.insert(name.to_owned(), Name { newest, uneven });
        }
        self.change(write, name).await;
    }

    /// The wrapped store is memory: it does this before anything else runs.
    pub(super) async fn change(&self, write: Write, name: &str) {
        let now = Instant::now();
        let size = match write {
            Write::Put(body) | Write::PutNew(body) => {
                let size = body.len() as u64;
                self.inner.put(name, body).await.map(|()| Some(size))
            }
            Write::Delete => self.inner.delete(name).await.map(|()| None),
            Write::Metadata(changes) => {
                let changed = self.inner.set_metadata(&changes).await;
                changed.expect("the wrapped store does not fail");
                let all = self.inner.metadata().await.unwrap();
                self.history.lock().unwrap().metadata.push((now, all));
                return;
            }
        };
        let size = size.expect("the wrapped store does not fail");
        let change = (now, name.to_owned(), size);
        self.history.lock().unwrap().names.push(change);
    }

    /// What a plain read finds: any replica will do.
    pub(super) async fn plain(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let truth = self.truth(name).await?;
        match self.uneven(name) {
            None => Ok(truth),
            Some(uneven) => match self.below(4) {
                0 | 1 => Ok(uneven.before),
                2 => Err(unclear(name)),
                _ => Ok(truth),
            },
        }
    }

    /// What those find who ask all replicas.
    pub(super) async fn newest(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let truth = self.truth(name).await?;
        match self.uneven(name) {
            None => Ok(truth),
            Some(uneven) => match self.below(4) {
                0 => Err(unclear(name)),
                1 | 2 if uneven.weak => Ok(uneven.before),
                _ => Ok(truth),
            },
        }
    }

    async fn truth(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        match self.inner.get(name).await {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn uneven(&self, name: &str) -> Option<Uneven> {
        let names = self.names.lock().unwrap();
        let uneven = names.get(name)?.uneven.clone()?;
        (Instant::now() < uneven.until).then_some(uneven)
    }

    pub(super) async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut names = self.inner.list(after, before, limit).await?;
        if self.hit(|faults| faults.stale) {
            return Ok(match self.below(4) {
                // A replica that was never told of anything.
                0 => Vec::new(),
                _ => self.listed_then(after, before, limit),
            });
        }
        // A stale listing: some names are missing.
        let mut rng = self.rng.lock().unwrap();
        if names.len() < limit && self.faults.lock().unwrap().late > 0 {
            names.retain(|_| rng.u8(0..8) > 0);
        }
        Ok(names)
    }

    /// A listing as it was at some time.
    fn listed_then(&self, after: &str, before: &str, limit: usize) -> Vec<Listed> {
        let then = self.then();
        let mut sizes = BTreeMap::new();
        for (when, name, size) in &self.history.lock().unwrap().names {
            match size {
                _ if *when > then => break,
                Some(size) => sizes.insert(name.clone(), *size),
                None => sizes.remove(name),
            };
        }
        sizes
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
            .take_while(|(name, _)| before.is_empty() || name.as_str() < before)
            .take(limit)
            .map(|(name, size)| Listed {
                name: name.clone(),
                size: *size,
            })
            .collect()
    }

    pub(super) async fn metadata(&self) -> Result<Metadata, StoreError> {
        let metadata = self.inner.metadata().await?;
        if !self.hit(|faults| faults.stale) {
            return Ok(metadata);
        }
        if self.below(4) == 0 {
            return Ok(Metadata::new());
        }
        let then = self.then();
        let history = self.history.lock().unwrap();
        let mut known = history.metadata.iter().rev();
        let old = known.find(|(when, _)| *when <= then);
        Ok(old.map(|(_, old)| old.clone()).unwrap_or_default())
    }

    /// Some time not too long ago.
    fn then(&self) -> Instant {
        let age = self.up_to(STALENESS.min(self.started.elapsed()) + Duration::from_millis(1));
        (Instant::now() - age).max(self.started)
    }
}

fn unclear(name: &str) -> StoreError {
    StoreError::new(
        ErrorKind::Unavailable,
        "GET",
        name,
        "503: not enough replicas",
    )
}
