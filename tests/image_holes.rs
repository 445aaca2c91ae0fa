//! Holes of a volume of format 1: what is said to be one reads as zeros, however
//! much a listing lacks, and the rest is found to be one with few requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::image::objects::layout::Layout;
use swiftnbd::image::objects::{Limits, Objects};
use swiftnbd::image::{Extent, ExtentKind, Image};
use swiftnbd::store::memory::{MemoryService, MemoryStore};
use swiftnbd::store::{Listed, Metadata, ObjectStore, StoreError};

const OBJECT: u64 = 4096;
const OBJECTS: u64 = 512;
const LAYOUT: Layout = Layout {
    objects: OBJECTS,
    object_size: OBJECT as u32,
};

/// A store whose listings lack every `lacks`-th name, and that counts requests.
#[derive(Debug)]
struct Forgetful {
    inner: MemoryStore,
    lacks: usize,
    gets: AtomicUsize,
    lists: AtomicUsize,
}

impl Forgetful {
    fn new(lacks: usize) -> (MemoryService, Arc<Forgetful>) {
        let service = MemoryService::new();
        service.set_object("c", "other", None);
        let store = Forgetful {
            inner: service.store("c"),
            lacks,
            gets: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
        };
        (service, Arc::new(store))
    }

    fn requests(&self) -> (usize, usize) {
        let take = |count: &AtomicUsize| count.swap(0, Ordering::SeqCst);
        (take(&self.gets), take(&self.lists))
    }
}

#[async_trait]
impl ObjectStore for Forgetful {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        // So that other things happen meanwhile.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let found = self.inner.get(name).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        found
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.inner.get_range(name, offset, length).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        self.inner.put_new(name, body).await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.inner.put(name, body).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.inner.delete(name).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        let found = self.inner.list(after, before, limit).await?.into_iter();
        let kept = found.enumerate();
        let kept = kept.filter(|(at, _)| !at.is_multiple_of(self.lacks));
        Ok(kept.map(|(_, listed)| listed).collect())
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

fn open(store: &Arc<Forgetful>) -> Arc<Objects> {
    let limits = Limits {
        cache: 64 * OBJECT,
        dirty: 64 * OBJECT,
    };
    Arc::new(Objects::start(store.clone(), LAYOUT, limits))
}

/// The extents of the whole volume, asked for piece by piece.
async fn map(image: &Objects, most: usize) -> Vec<Extent> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < LAYOUT.size() {
        let found = image.extents(at, LAYOUT.size() - at, most).await.unwrap();
        assert!((1..=most).contains(&found.len()), "{found:?}");
        for extent in found {
            assert!(extent.length > 0);
            at += extent.length;
            Extent::append(&mut all, extent.length, extent.kind);
        }
    }
    assert_eq!(at, LAYOUT.size());
    all
}

fn extents(list: &[(u64, ExtentKind)]) -> Vec<Extent> {
    let extent = |&(objects, kind)| Extent {
        length: objects * OBJECT,
        kind,
    };
    list.iter().map(extent).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_listing_lacks_is_asked_for_once() {
    use ExtentKind::{Data, Hole};
    // Nothing is ever listed.
    let (service, store) = Forgetful::new(1);
    for index in [5, 6, 100] {
        let body = Bytes::from(vec![7; OBJECT as usize]);
        service.set_object("c", &LAYOUT.name(index), Some(body));
    }
    let wanted = extents(&[(5, Hole), (2, Data), (93, Hole), (1, Data), (411, Hole)]);
    let image = open(&store);
    assert_eq!(map(&image, 1000).await, wanted);
    assert_eq!(store.requests(), (OBJECTS as usize, 1));
    for most in [1, 2, 1000] {
        assert_eq!(map(&image, most).await, wanted);
    }
    assert_eq!(store.requests(), (0, 0));
    // What was written is data, and a hole again once it was zeroed.
    image
        .write(OBJECT, Bytes::from_static(&[1; 512]))
        .await
        .unwrap();
    let found = map(&image, 1000).await;
    assert_eq!(found[..3], extents(&[(1, Hole), (1, Data), (3, Hole)]));
    image.flush().await.unwrap();
    assert_eq!(map(&image, 1000).await, found);
    image.write_zeroes(OBJECT, OBJECT).await.unwrap();
    image.flush().await.unwrap();
    assert_eq!(map(&image, 1000).await, wanted);
    assert_eq!(store.requests().1, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_is_not_asked_for() {
    use ExtentKind::{Data, Hole};
    let (service, store) = Forgetful::new(usize::MAX);
    for index in 0..=400 {
        let body = Bytes::from(vec![7; OBJECT as usize]);
        service.set_object("c", &LAYOUT.name(index), Some(body));
    }
    let image = open(&store);
    // The first name is the one that the listing lacks.
    assert_eq!(map(&image, 9).await, extents(&[(401, Data), (111, Hole)]));
    assert_eq!(store.requests(), (112, 1));
    // One extent ends where something else begins.
    let one = image.extents(398 * OBJECT, 20 * OBJECT, 1).await.unwrap();
    assert_eq!(one, extents(&[(3, Data)]));
    // A part of a hole.
    let part = image.extents(401 * OBJECT + 512, 1024, 1).await.unwrap();
    assert_eq!(part[0].length, 1024);
    assert_eq!(part[0].kind, Hole);
}

/// Writers and a client that asks for holes, at the same time.
#[tokio::test(start_paused = true)]
async fn a_hole_never_holds_data() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (service, store) = Forgetful::new(rng.usize(1..4));
        for _ in 0..rng.usize(0..40) {
            let body = Bytes::from(vec![rng.u8(1..); OBJECT as usize]);
            service.set_object("c", &LAYOUT.name(rng.u64(..OBJECTS)), Some(body));
        }
        let image = open(&store);
        let mut tasks = Vec::new();
        // Each writes into objects of its own, and knows what they hold.
        for task in 0..4 {
            let (image, rng) = (image.clone(), rng.fork());
            tasks.push(tokio::spawn(write_and_ask(image, rng, task)));
        }
        for task in tasks {
            task.await.unwrap();
        }
        image.flush().await.unwrap();
        let mut at = 0;
        let mut holes = 0;
        for extent in map(&image, 1000).await {
            for index in at / OBJECT..(at + extent.length) / OBJECT {
                let stored = service.object("c", &LAYOUT.name(index));
                let kind = match stored {
                    Some(_) => ExtentKind::Data,
                    None => ExtentKind::Hole,
                };
                assert_eq!(extent.kind, kind, "seed {seed}, object {index}");
                holes += usize::from(stored.is_none());
            }
            at += extent.length;
        }
        assert!(holes > 0 && holes < OBJECTS as usize, "seed {seed}");
    }
}

async fn write_and_ask(image: Arc<Objects>, mut rng: fastrand::Rng, task: u64) {
    for _ in 0..30 {
        let index = rng.u64(..8) * 4 + task;
        let offset = index * OBJECT + 512 * rng.u64(..8);
        let written = rng.bool();
        if written {
            let data = Bytes::from(vec![rng.u8(1..); 512]);
            image.write(offset, data).await.unwrap();
        } else {
            image.write_zeroes(index * OBJECT, OBJECT).await.unwrap();
        }
        if rng.bool() {
            tokio::time::sleep(Duration::from_millis(rng.u64(..12))).await;
        }
        match rng.u8(..3) {
            0 => image.flush().await.unwrap(),
            1 => drop(image.read(offset, 512).await.unwrap()),
            _ => {}
        }
        let found = image.extents(index * OBJECT, OBJECT, 1).await.unwrap()[0];
        if written {
            assert_eq!(found.kind, ExtentKind::Data, "object {index} was written");
        }
    }
}
