//! A store whose next answers are scripted; what no step is left for works.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::store::memory::{MemoryService, MemoryStore};
use swiftnbd::store::{Age, ErrorKind, Listed, Metadata, ObjectStore, StoreError};
use tokio::time::{Instant, sleep};

/// How long this store's writes linger when nothing else is said.
pub const LINGER: Duration = Duration::from_secs(30);

/// What becomes of the next request.
pub enum Step {
    /// It fails and leaves nothing behind.
    Fail(ErrorKind),
    /// It fails like this.
    FailAs(StoreError),
    /// There is no answer, and nothing happens.
    Hang,
    /// It fails as unanswered, and takes effect this much later.
    LandLate(Duration),
    /// There is no answer; it takes effect this much later.
    HangAndLand(Duration),
}

#[derive(Debug)]
pub struct FakeStore {
    inner: MemoryStore,
    steps: Mutex<VecDeque<Step>>,
    /// When each object was last stored, but by [`Step`]s.
    stored: Mutex<HashMap<String, Instant>>,
    made: Instant,
    /// When each request began, and what it was.
    pub log: Mutex<Vec<(Instant, String)>>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Step")
    }
}

pub fn failure(kind: ErrorKind) -> StoreError {
    StoreError::new(kind, "TEST", "box", "scripted")
}

impl FakeStore {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> FakeStore {
        let service = MemoryService::new();
        // With the container, without an object.
        service.set_object("box", "x", None);
        FakeStore {
            inner: service.store("box"),
            steps: Mutex::new(steps.into_iter().collect()),
            stored: Mutex::default(),
            made: Instant::now(),
            log: Mutex::default(),
        }
    }

    pub fn then(&self, step: Step) {
        self.steps.lock().unwrap().push_back(step);
    }

    pub fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    pub fn object(&self, name: &str) -> Option<Bytes> {
        self.inner.service().object("box", name)
    }

    /// Whether the request works now; otherwise how it ends.
    async fn step(
        &self,
        what: &str,
        late: Option<(&str, Option<Bytes>)>,
    ) -> Result<(), StoreError> {
        self.log
            .lock()
            .unwrap()
            .push((Instant::now(), what.to_owned()));
        let step = self.steps.lock().unwrap().pop_front();
        let land = |after| {
            let (name, body) = late.clone().expect("only writes land late");
            let (service, name) = (self.inner.service().clone(), name.to_owned());
            tokio::spawn(async move {
                sleep(after).await;
                service.set_object("box", &name, body);
            });
        };
        match step {
            None => Ok(()),
            Some(Step::Fail(kind)) => Err(failure(kind)),
            Some(Step::FailAs(error)) => Err(error),
            Some(Step::Hang) => std::future::pending().await,
            Some(Step::HangAndLand(after)) => {
                land(after);
                std::future::pending().await
            }
            Some(Step::LandLate(after)) => {
                land(after);
                Err(StoreError {
                    lingers: LINGER,
                    ..failure(ErrorKind::Unavailable)
                })
            }
        }
    }
}

#[async_trait]
impl ObjectStore for FakeStore {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.step("get", None).await?;
        self.inner.get(name).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.step("get_range", None).await?;
        self.inner.get_range(name, offset, length).await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.step("put", Some((name, Some(body.clone())))).await?;
        let (now, name_of) = (Instant::now(), name.to_owned());
        self.stored.lock().unwrap().insert(name_of, now);
        self.inner.put(name, body).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        self.step("put_new", Some((name, Some(body.clone()))))
            .await?;
        self.inner.put_new(name, body).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.step("delete", Some((name, None))).await?;
        self.inner.delete(name).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.step("list", None).await?;
        self.inner.list(after, before, limit).await
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.step("metadata", None).await?;
        self.inner.metadata().await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        self.step("set_metadata", None).await?;
        self.inner.set_metadata(changes).await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.step("create", None).await?;
        self.inner.create().await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.step("remove", None).await?;
        self.inner.remove().await
    }

    async fn settle(&self) {}

    fn linger(&self) -> Duration {
        LINGER
    }

    async fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        let stored = self.stored.lock().unwrap().get(name).copied();
        Ok(stored.map(|stored| Age {
            seconds: stored.elapsed().as_secs().try_into().unwrap(),
            stored: stored - self.made,
        }))
    }
}
