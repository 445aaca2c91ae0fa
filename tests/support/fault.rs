//! A store that wraps another and fails as a Swift cluster does, by a seed.
//!
//! A request is a task of its own, as a request in a network is: it arrives at
//! one of two proxies, gets a timestamp from that proxy's clock, is applied unless
//! something newer was (else 202, or 201 and discarded if it was overtaken on its
//! way), and is answered. Each of these may take long or not happen. The caller may
//! give up or die meanwhile; the request goes on. This is where answers get lost,
//! old writes land late, replicas differ, and clocks disagree ([`world`]).
//!
//! A [`FaultStore`] is the cluster as one process sees it. Its clones are the same
//! process; [`FaultStore::another`] is another one, on the same cluster.

mod counts;
mod fate;
mod world;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::store::{ErrorKind, Listed, Metadata, ObjectStore, StoreError};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub use self::counts::Counts;
use self::fate::Answer;
pub use self::fate::Faults;
use self::world::{Done, World, Write};

/// How long a request may be on its way, whoever still waits for it.
pub const LIFETIME: Duration = Duration::from_secs(30);
/// The furthest that one proxy's clock is ahead of another's.
pub const SKEW: Duration = Duration::from_secs(5);
/// When a caller gives up waiting for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct FaultStore {
    world: Arc<World>,
    process: Arc<Process>,
}

/// Who sends requests.
#[derive(Debug, Default)]
struct Process {
    dead: watch::Sender<bool>,
    /// The network between it and the cluster is down.
    cut: AtomicBool,
    requests: AtomicU64,
    /// The number of the request at which it dies; 0: none.
    dies_at: AtomicU64,
    /// The latest time in any answer, in seconds since the cluster was started.
    time: AtomicU64,
}

impl FaultStore {
    /// Wraps `inner`, which never fails by itself. Within a tokio runtime.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Faults, seed: u64) -> FaultStore {
        FaultStore {
            world: Arc::new(World::new(inner, faults, seed)),
            process: Arc::default(),
        }
    }

    /// Its answers tell no time, as those of a directory.
    pub fn without_clock(self) -> FaultStore {
        self.world.hide_time();
        self
    }

    /// From now on it fails this often.
    pub fn set_faults(&self, faults: Faults) {
        self.world.set_faults(faults);
    }

    /// Takes the cluster down or up again.
    pub fn set_down(&self, down: bool) {
        self.world.set_down(down);
    }

    /// Cuts this process off from the cluster, or lets it in again. Requests that
    /// were sent before go on.
    pub fn set_cut(&self, cut: bool) {
        self.process.cut.store(cut, Ordering::SeqCst);
    }

    /// Another process on the same cluster.
    pub fn another(&self) -> FaultStore {
        FaultStore {
            world: Arc::clone(&self.world),
            process: Arc::default(),
        }
    }

    /// The process dies: none of its calls returns any more, and nothing more is
    /// sent. What was sent goes on, and may land later.
    pub fn crash(&self) {
        self.process.dead.send_replace(true);
    }

    /// This process dies, and another one is on the same cluster.
    pub fn reborn(&self) -> FaultStore {
        self.crash();
        self.another()
    }

    /// It dies at its `request`-th request from now on (1: the next one), before that
    /// is sent or just after, as the seed decides.
    pub fn crash_at(&self, request: u64) {
        let begun = self.process.requests.load(Ordering::SeqCst);
        self.process
            .dies_at
            .store(begun + request, Ordering::SeqCst);
    }

    /// Returns when it is dead.
    pub async fn crashed(&self) {
        let mut dead = self.process.dead.subscribe();
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// The requests of all processes so far.
    pub fn counts(&self) -> Counts {
        self.world.counts()
    }

    /// The result of a request, for as long as its process lives.
    async fn request<T>(&self, work: impl Future<Output = T>) -> T {
        let process = &self.process;
        let number = process.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let mut work = pin!(work);
        if number == process.dies_at.load(Ordering::SeqCst) {
            if self.world.coin() {
                let _ = futures_util::poll!(&mut work);
            }
            self.crash();
        }
        tokio::select! {
            biased;
            () = self.crashed() => std::future::pending().await,
            done = work => {
                process.time.fetch_max(self.world.date(), Ordering::SeqCst);
                done
            }
        }
    }

    async fn write(
        &self,
        operation: &'static str,
        name: &str,
        write: Write,
    ) -> Result<bool, StoreError> {
        let (fate, proxy) = self.world.fate_of_write(self.is_cut());
        let task = {
            let (world, name) = (Arc::clone(&self.world), name.to_owned());
            tokio::spawn(async move { world.perform(fate, proxy, &name, write).await })
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
        let done = match timeout(PATIENCE, task).await {
            Ok(done) => done.expect("the request's task ends well"),
            Err(_) => return fail(ErrorKind::Unavailable, "no answer", LIFETIME),
        };
        match (done, fate.answer) {
            (_, Answer::Corrupt) => fail(ErrorKind::Corrupt, "422", Duration::ZERO),
            (_, Answer::Truncated) => fail(ErrorKind::Unavailable, "499", Duration::ZERO),
            (Done::Exists, _) => Ok(false),
            (Done::Unclear, _) => fail(ErrorKind::Unavailable, "503", SKEW),
            (_, Answer::Superseded) | (Done::Superseded | Done::Nothing, _) => {
                fail(ErrorKind::Superseded, "202", Duration::ZERO)
            }
            (Done::Stored, _) => Ok(true),
        }
    }

    async fn read_fault(&self, operation: &'static str, name: &str) -> Result<(), StoreError> {
        let fate = self.world.fate(self.is_cut());
        if let Some(arrives) = fate.arrives {
            sleep(arrives.min(PATIENCE)).await;
        }
        let kind = match fate.answer {
            Answer::Refused => ErrorKind::Unreachable,
            Answer::Unavailable | Answer::None | Answer::Truncated => ErrorKind::Unavailable,
            Answer::Corrupt => ErrorKind::Corrupt,
            Answer::Superseded | Answer::Truth => return Ok(()),
        };
        Err(StoreError::new(kind, operation, name, "injected"))
    }

    fn is_cut(&self) -> bool {
        self.process.cut.load(Ordering::SeqCst)
    }

    async fn get_once(&self, name: &str) -> Result<Bytes, StoreError> {
        self.world.count(|counts| counts.get += 1);
        self.read_fault("GET", name).await?;
        let body = self.world.newest(name).await;
        self.world.pause().await;
        if matches!(body, Ok(Some(_))) && self.world.hit(|faults| faults.false_absence) {
            return Err(absent(name));
        }
        let body = body?.ok_or_else(|| absent(name))?;
        self.world
            .count(|counts| counts.bytes_read += body.len() as u64);
        Ok(body)
    }

    async fn get_range_once(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        assert!(length > 0 && offset.checked_add(length).is_some(), "{name}");
        self.world.count(|counts| counts.get_range += 1);
        self.read_fault("GET", name).await?;
        let body = self.world.plain(name).await;
        self.world.pause().await;
        let body = body?.ok_or_else(|| absent(name))?;
        let within = |at: u64| at.min(body.len() as u64) as usize;
        let mut part = body.slice(within(offset)..within(offset + length));
        self.world
            .count(|counts| counts.bytes_read += part.len() as u64);
        if !part.is_empty() && self.world.hit(|faults| faults.rotten) {
            let mut wrong = part.to_vec();
            let at = self.world.below(wrong.len());
            wrong[at] ^= 1;
            part = Bytes::from(wrong);
        }
        Ok(part)
    }
}

fn absent(name: &str) -> StoreError {
    StoreError::new(
        ErrorKind::NotFound,
        "GET",
        name,
        "the object does not exist",
    )
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.request(self.get_once(name)).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.request(self.get_range_once(name, offset, length))
            .await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        let length = body.len() as u64;
        self.request(async {
            self.world.count(|counts| {
                counts.put += 1;
                counts.bytes_written += length;
            });
            self.write("PUT", name, Write::Put(body)).await.map(drop)
        })
        .await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        let length = body.len() as u64;
        self.request(async {
            self.world.count(|counts| {
                counts.put_new += 1;
                counts.bytes_written += length;
            });
            self.write("PUT", name, Write::PutNew(body)).await
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.request(async {
            self.world.count(|counts| counts.delete += 1);
            self.write("DELETE", name, Write::Delete).await.map(drop)
        })
        .await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.request(async {
            self.world.count(|counts| counts.list += 1);
            self.read_fault("LIST", after).await?;
            self.world.list(after, before, limit).await
        })
        .await
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.request(async {
            self.world.count(|counts| counts.metadata += 1);
            self.world.metadata().await
        })
        .await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        self.request(async {
            self.world.count(|counts| counts.set_metadata += 1);
            let write = Write::Metadata(changes.clone());
            match self.world.metadata_fails() {
                true => self.write("POST", "", write).await.map(drop),
                false => {
                    self.world.change(write, "").await;
                    Ok(())
                }
            }
        })
        .await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.request(self.world.inner().create()).await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.request(self.world.inner().remove()).await
    }

    async fn settle(&self) {}

    fn time(&self) -> Option<Duration> {
        match self.process.time.load(Ordering::SeqCst) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }

    fn linger(&self) -> Duration {
        LIFETIME
    }
}
