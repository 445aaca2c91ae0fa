//! Segments in a store that counts its GETs, holds them back and damages them.
#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::image::log::format::root::Compression;
use swiftnbd::image::log::format::seal::Cipher;
use swiftnbd::image::log::format::segment::{Builder, Plan};
use swiftnbd::image::log::format::{AttachId, VolumeId};
use swiftnbd::image::log::reader::{FrameRef, Frames, Names};
use swiftnbd::store::memory::{MemoryService, MemoryStore};
use swiftnbd::store::{ErrorKind, Listed, Metadata, ObjectStore, StoreError};
use tokio::sync::Semaphore;

pub const BLOCK: usize = 4096;
pub const VOLUME: VolumeId = VolumeId([7; 16]);
const ATTACH: AttachId = AttachId([9; 16]);

/// A GET: object, offset, length; the whole object: no length.
pub type Got = (String, u64, Option<u64>);

/// See the module's documentation.
#[derive(Debug)]
pub struct Shelf {
    inner: MemoryStore,
    pub cipher: Cipher,
    pub compression: Compression,
    names: Mutex<HashMap<u64, String>>,
    got: Mutex<Vec<Got>>,
    /// GETs may be answered: one a permit.
    answers: Semaphore,
    /// The byte of an object that is wrong, and how often.
    damage: Mutex<Vec<(String, u64, usize)>>,
    failures: Mutex<Vec<StoreError>>,
    under_way: AtomicUsize,
    bytes_under_way: AtomicU64,
    /// The most GETs, and the most bytes of them, that were under way at once.
    pub most: AtomicUsize,
    pub most_bytes: AtomicU64,
}

const MANY: usize = Semaphore::MAX_PERMITS / 2;

impl Shelf {
    /// Empty; GETs are answered at once.
    pub fn new(cipher: Cipher, compression: Compression) -> Arc<Shelf> {
        let service = MemoryService::new();
        service.set_object("box", "x", None);
        Arc::new(Shelf {
            inner: service.store("box"),
            cipher,
            compression,
            names: Mutex::default(),
            got: Mutex::default(),
            answers: Semaphore::new(MANY),
            damage: Mutex::default(),
            failures: Mutex::default(),
            under_way: AtomicUsize::new(0),
            bytes_under_way: AtomicU64::new(0),
            most: AtomicUsize::new(0),
            most_bytes: AtomicU64::new(0),
        })
    }

    pub fn plain() -> Arc<Shelf> {
        Shelf::new(Cipher::Plain, Compression::None)
    }

    pub fn frames(self: &Arc<Self>, cache_bytes: u64) -> Frames {
        let store = Arc::clone(self) as Arc<dyn ObjectStore>;
        let names = Arc::clone(self) as Arc<dyn Names>;
        Frames::new(store, VOLUME, self.cipher.clone(), names, cache_bytes)
    }

    /// Stores a segment with frames of so many blocks each, one after the other from
    /// this block of the device on.
    pub fn store(&self, seq: u64, start: u64, blocks: &[u64]) -> Vec<FrameRef> {
        let plan = Plan {
            frames: blocks.len(),
            ..Plan::default()
        };
        let bytes = blocks.iter().sum::<u64>() as usize * BLOCK;
        let (cipher, compression) = (&self.cipher, self.compression);
        let id = (1, ATTACH, seq);
        let mut builder = Builder::new(VOLUME, cipher, compression, id, [0; 16], 0, plan, bytes);
        let mut at = start;
        for blocks in blocks {
            builder.frame(at, &[content(at, *blocks)], &[]);
            at += blocks;
        }
        let built = builder.finish();
        self.inner
            .service()
            .set_object("box", &built.name, Some(built.body));
        self.names.lock().unwrap().insert(seq, built.name);
        let frames = built.header.frames.iter().map(|frame| FrameRef {
            seq,
            offset: frame.offset,
            stored: frame.stored,
            address: frame.start,
        });
        frames.collect()
    }

    /// The segment's object.
    pub fn object(&self, seq: u64) -> String {
        self.names.lock().unwrap()[&seq].clone()
    }

    /// From now on no name is known for the segment.
    pub fn forget(&self, seq: u64) {
        self.names.lock().unwrap().remove(&seq);
    }

    /// Puts this into the segment's place, or takes it away.
    pub fn set(&self, seq: u64, body: Option<Bytes>) {
        let name = self.object(seq);
        self.inner.service().set_object("box", &name, body);
    }

    pub fn body(&self, seq: u64) -> Bytes {
        let name = self.object(seq);
        self.inner.service().object("box", &name).expect("stored")
    }

    /// In the next `times` GETs that bring this byte of the segment it is wrong.
    pub fn damage(&self, seq: u64, byte: u64, times: usize) {
        let name = self.object(seq);
        self.damage.lock().unwrap().push((name, byte, times));
    }

    /// The next GET fails.
    pub fn fail(&self, kind: ErrorKind) {
        let error = StoreError::new(kind, "GET", "box", "scripted");
        self.failures.lock().unwrap().push(error);
    }

    /// From now on GETs wait for [`Shelf::release`].
    pub fn hold(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets the next GETs, or those that wait, be answered.
    pub fn release(&self, gets: usize) {
        self.answers.add_permits(gets);
    }

    pub fn release_all(&self) {
        self.release(MANY);
    }

    /// The GETs so far; the count begins again.
    pub fn got(&self) -> Vec<Got> {
        std::mem::take(&mut self.got.lock().unwrap())
    }

    /// Waits until so many GETs were sent.
    pub async fn until_got(&self, count: usize) {
        until(|| self.got.lock().unwrap().len() >= count).await;
    }

    async fn answer(
        &self,
        name: &str,
        from: u64,
        length: Option<u64>,
    ) -> Result<Bytes, StoreError> {
        self.got
            .lock()
            .unwrap()
            .push((name.to_owned(), from, length));
        let bytes = length.unwrap_or(0);
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        let now_bytes = self.bytes_under_way.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.most_bytes.fetch_max(now_bytes, Ordering::SeqCst);
        let under_way = UnderWay(self, bytes);
        self.answers.acquire().await.expect("never closed").forget();
        drop(under_way);
        let failure = self.failures.lock().unwrap().pop();
        if let Some(error) = failure {
            return Err(error);
        }
        let body = match length {
            Some(length) => self.inner.get_range(name, from, length).await?,
            None => self.inner.get(name).await?,
        };
        // As over a network: every body is an allocation of its own.
        let mut body = body.to_vec();
        for (damaged, byte, times) in self.damage.lock().unwrap().iter_mut() {
            let at = byte.checked_sub(from).map(|at| at as usize);
            if damaged == name && *times > 0 && at.is_some_and(|at| at < body.len()) {
                body[at.unwrap()] ^= 1;
                *times -= 1;
            }
        }
        Ok(body.into())
    }
}

struct UnderWay<'a>(&'a Shelf, u64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        self.0.bytes_under_way.fetch_sub(self.1, Ordering::SeqCst);
    }
}

/// What lies in the device's blocks: half of it compresses.
pub fn content(start: u64, blocks: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(blocks as usize * BLOCK);
    for block in start..start + blocks {
        let mut rng = fastrand::Rng::with_seed(block);
        let mut data = [0; BLOCK];
        rng.fill(&mut data[..BLOCK / 2]);
        bytes.extend_from_slice(&data);
    }
    bytes.into()
}

/// Waits, without a clock, until this is so.
pub async fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if so() {
            return;
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    panic!("it never came to be");
}

impl Names for Shelf {
    fn name(&self, seq: u64) -> Option<String> {
        self.names.lock().unwrap().get(&seq).cloned()
    }
}

#[async_trait]
impl ObjectStore for Shelf {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.answer(name, 0, None).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.answer(name, offset, Some(length)).await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.inner.put(name, body).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        self.inner.put_new(name, body).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(after, before, limit).await
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.inner.metadata().await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        self.inner.set_metadata(changes).await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.inner.create().await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.inner.remove().await
    }

    async fn settle(&self) {}

    fn linger(&self) -> Duration {
        Duration::ZERO
    }
}
