//! An error in the program itself: what others wait for will not be done, so the process
//! ends, and nobody waits for ever.

#[path = "support/attachments.rs"]
mod attachments;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::image::Image;
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Limits, Log};
use swiftnbd::image::objects::layout::Layout;
use swiftnbd::image::objects::{self, Objects};
use swiftnbd::store::memory::{MemoryService, MemoryStore};
use swiftnbd::store::{Listed, Metadata, ObjectStore, StoreError};

/// Works, until it panics at each PUT.
#[derive(Debug)]
struct Faulty {
    inner: MemoryStore,
    panics: AtomicBool,
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.inner.get(name).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.inner.get_range(name, offset, length).await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "as the test wants it");
        self.inner.put(name, body).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "as the test wants it");
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

/// Runs a test of this file in a process of its own: the signal that ended it.
fn signal_of(test: &str) -> Option<i32> {
    let this = std::env::current_exe().unwrap();
    let child = Command::new(this)
        .args(["--ignored", "--exact", test])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    child.signal()
}

#[test]
fn a_panic_in_the_background_ends_the_process() {
    for test in ["a_writer_of_format_1", "a_writer_of_format_2"] {
        assert_eq!(signal_of(test), Some(6), "{test}");
    }
}

async fn write_and_flush(image: &dyn Image, store: &Faulty) {
    let data = Bytes::from(vec![7; 4096]);
    image.write(0, data.clone()).await.unwrap();
    image.flush().await.unwrap();
    store.panics.store(true, Ordering::SeqCst);
    image.write(0, data).await.unwrap();
    image.flush().await.unwrap();
}

fn faulty() -> Arc<Faulty> {
    Arc::new(Faulty {
        inner: MemoryService::new().store("volume"),
        panics: AtomicBool::new(false),
    })
}

#[tokio::test]
#[ignore = "ends its process: for a_panic_in_the_background_ends_the_process"]
async fn a_writer_of_format_1() {
    let store = faulty();
    store.create().await.unwrap();
    let layout = Layout {
        objects: 16,
        object_size: 65536,
    };
    let limits = objects::Limits {
        cache: 1 << 20,
        dirty: 1 << 20,
    };
    write_and_flush(&Objects::start(store.clone(), layout, limits), &store).await;
}

#[tokio::test]
#[ignore = "ends its process: for a_panic_in_the_background_ends_the_process"]
async fn a_writer_of_format_2() {
    let store = faulty();
    store.create().await.unwrap();
    let dynamic: Arc<dyn ObjectStore> = store.clone();
    let geometry = Geometry {
        size: 4 << 20,
        block_size: 4096,
        compression: Compression::None,
    };
    let who = || attachments::who("host");
    log::create(&dynamic, geometry, None, &who(), true)
        .await
        .unwrap();
    let limits = Limits::new(1 << 20, 8 << 20, 1 << 20, None);
    let opened = Log::open(dynamic.clone(), dynamic, None, limits, who()).await;
    write_and_flush(&opened.unwrap(), &store).await;
}
