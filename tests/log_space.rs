//! Format 2 in the long run: what it stores stays in proportion to what lives,
//! however it is written, and what lives is never deleted.

#[path = "support/attachments.rs"]
mod attachments;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use swiftnbd::image::Image;
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Limits, Log, Who, check};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::memory::MemoryService;

const BLOCK: u64 = 4096;

/// A volume, what its blocks hold, and the most that it took.
struct Volume {
    service: MemoryService,
    store: Arc<dyn ObjectStore>,
    limits: Limits,
    /// For each block, the number in all of its words; 0: it was never written.
    blocks: Vec<u64>,
    next: u64,
    most_objects: usize,
    /// The most that was stored, as a multiple of what lived.
    most_stored: f64,
}

fn who() -> Who {
    attachments::who("space")
}

impl Volume {
    async fn new(size: u64, dirty: u64) -> (Volume, Log) {
        let service = MemoryService::new();
        let store: Arc<dyn ObjectStore> = Arc::new(service.store("volume"));
        store.create().await.unwrap();
        let geometry = Geometry {
            size,
            block_size: BLOCK as u32,
            compression: Compression::None,
        };
        log::create(&store, geometry, None, &who(), false)
            .await
            .unwrap();
        let volume = Volume {
            service,
            store,
            limits: Limits::new(1 << 20, dirty, Limits::least_map(), None),
            blocks: vec![0; (size / BLOCK) as usize],
            next: 1,
            most_objects: 0,
            most_stored: 0.0,
        };
        let image = volume.open().await;
        (volume, image)
    }

    async fn open(&self) -> Log {
        let (attaching, live) = (Arc::clone(&self.store), Arc::clone(&self.store));
        let opened = Log::open(attaching, live, None, self.limits, who()).await;
        opened.unwrap()
    }

    async fn write(&mut self, image: &Log, first: u64, blocks: u64) {
        let mut data = Vec::with_capacity((blocks * BLOCK) as usize);
        for at in first..first + blocks {
            self.blocks[at as usize] = self.next;
            for _ in 0..BLOCK / 8 {
                data.extend_from_slice(&self.next.to_le_bytes());
            }
            self.next += 1;
        }
        image.write(first * BLOCK, Bytes::from(data)).await.unwrap();
    }

    /// Looks into the container, not at what the volume says of itself.
    fn look(&mut self) {
        let names = self.service.names("volume");
        let stored: usize = names
            .iter()
            .filter_map(|name| self.service.object("volume", name))
            .map(|body| body.len())
            .sum();
        let live = self.blocks.iter().filter(|number| **number > 0).count() as u64 * BLOCK;
        self.most_objects = self.most_objects.max(names.len());
        self.most_stored = self.most_stored.max(stored as f64 / live as f64);
    }

    /// How many objects there are of each kind.
    fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::<String, usize>::new();
        for name in self.service.names("volume") {
            let kind = name.split('/').next().unwrap_or_default();
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        kinds
    }

    async fn read_all(&self, image: &Log) {
        const STEP: u64 = 256;
        for first in (0..self.blocks.len() as u64).step_by(STEP as usize) {
            let blocks = STEP.min(self.blocks.len() as u64 - first);
            let pieces = image.read(first * BLOCK, (blocks * BLOCK) as u32).await;
            let data = pieces.unwrap().concat();
            for (at, block) in (first..).zip(data.chunks(BLOCK as usize)) {
                let number = self.blocks[at as usize].to_le_bytes();
                assert!(block.chunks(8).all(|word| word == number), "block {at}");
            }
        }
    }

    /// Nothing that lives is missing, says the container alone.
    async fn check(&self) {
        let report = check::check(&*self.store, None, |_, _| {}).await.unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rounds_of_overwriting_a_whole_volume() {
    const SIZE: u64 = 64 << 20;
    // Segments of 1.3 MiB: a twentieth of it and less, as 8 MiB are of any real one.
    let (mut volume, mut image) = Volume::new(SIZE, Limits::least_dirty()).await;
    let blocks = SIZE / BLOCK;
    let mut rng = fastrand::Rng::with_seed(11);
    for at in (0..blocks).step_by(64) {
        volume.write(&image, at, 64).await;
    }
    image.flush().await.unwrap();
    for round in 0..10 {
        // In order, or in pieces of any size in any order.
        let piece = [64, 16, 1, 7, 32][round % 5];
        let mut starts: Vec<u64> = (0..blocks).step_by(piece as usize).collect();
        if round % 2 == 1 || piece < 16 {
            rng.shuffle(&mut starts);
        }
        let every = starts.len() / 16;
        for (count, first) in starts.into_iter().enumerate() {
            volume.write(&image, first, piece.min(blocks - first)).await;
            if count % every == 0 {
                image.flush().await.unwrap();
                volume.look();
            }
        }
        image.flush().await.unwrap();
        volume.look();
        volume.read_all(&image).await;
        println!(
            "after round {round}: at most {} objects, {:.2} times the live bytes; now {:?}",
            volume.most_objects,
            volume.most_stored,
            volume.kinds()
        );
        if round % 3 == 2 {
            image.close().await.unwrap();
            volume.check().await;
            drop(image);
            image = volume.open().await;
        }
    }
    println!("{:?}", image.stats());
    assert!(
        volume.most_stored < 2.0,
        "{} times the live bytes",
        volume.most_stored
    );
    assert!(volume.most_objects < 500, "{} objects", volume.most_objects);
    volume.read_all(&image).await;
    image.close().await.unwrap();
    volume.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_flushes_of_a_single_block() {
    const SIZE: u64 = 32 << 20;
    let (mut volume, image) = Volume::new(SIZE, Limits::least_dirty()).await;
    let blocks = SIZE / BLOCK;
    let mut rng = fastrand::Rng::with_seed(12);
    for at in (0..blocks).step_by(64) {
        volume.write(&image, at, 64).await;
    }
    for count in 0..20_000 {
        let at = rng.u64(0..blocks);
        volume.write(&image, at, 1).await;
        image.flush().await.unwrap();
        if count % 50 == 0 {
            volume.look();
        }
        if count % 5000 == 4999 {
            volume.read_all(&image).await;
            println!(
                "after {count}: at most {} objects, {:.2} times the live bytes",
                volume.most_objects, volume.most_stored
            );
        }
    }
    println!("{:?}", image.stats());
    assert!(
        volume.most_stored < 2.0,
        "{} times the live bytes",
        volume.most_stored
    );
    // Without merging there would be more than 20,000. How far deletion lags behind a
    // store that answers at once depends on the machine.
    assert!(
        volume.most_objects < 4000,
        "{} objects",
        volume.most_objects
    );
    image.close().await.unwrap();
    volume.check().await;
    drop(image);
    let image = volume.open().await;
    volume.read_all(&image).await;
    image.close().await.unwrap();
    let kinds = volume.kinds();
    println!("in the end {kinds:?}");
    // Each of the attachments leaves its last root's, until the next has swept.
    assert!(kinds["map"] <= 12, "{kinds:?}");
}
