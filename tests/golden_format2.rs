//! Containers of format 2 as they were when it was released, read by every later
//! version. `tests/golden/format2` has them; see its README.
//!
//! They are never changed. A version that writes something new gets one of its own,
//! made by `cargo test --test golden_format2 -- --ignored make`.

#[path = "support/volume2.rs"]
mod volume2;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use swiftnbd::image::Image;
use swiftnbd::image::log::format::keys::Passphrase;
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Log};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::dir::DirStore;
use swiftnbd::store::memory::MemoryService;
use volume2::{BLOCK, SIZE, Volume, limits, noise, text, who};

const MAX_OBJECT: u64 = 64 << 20;
/// Of the encrypted one, the second that it had.
const PASSPHRASE: &str = "golden\n";

fn directory(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/format2").join(name)
}

/// A golden container.
struct Golden {
    objects: Vec<(String, Bytes)>,
    sha256: String,
    geometry: Geometry,
    passphrase: Option<Passphrase>,
}

impl Golden {
    fn plain() -> Golden {
        let (block_size, compression) = (4096, Compression::Lz4);
        let geometry = Geometry {
            size: SIZE as u64,
            block_size,
            compression,
        };
        Golden::read("plain", geometry, None)
    }

    fn encrypted() -> Golden {
        let (block_size, compression) = (512, Compression::None);
        let geometry = Geometry {
            size: SIZE as u64,
            block_size,
            compression,
        };
        Golden::read("encrypted", geometry, Some(volume2::passphrase(PASSPHRASE)))
    }

    fn read(name: &str, geometry: Geometry, passphrase: Option<Passphrase>) -> Golden {
        let root = directory(name);
        let mut objects = Vec::new();
        collect(&root.join("objects"), String::new(), &mut objects);
        assert!(objects.len() > 10, "{} objects", objects.len());
        let sum = std::fs::read_to_string(root.join("image.sha256")).unwrap();
        let sha256 = sum.split(' ').next().unwrap().to_owned();
        Golden {
            objects,
            sha256,
            geometry,
            passphrase,
        }
    }

    async fn load(&self, store: &dyn ObjectStore) {
        store.create().await.unwrap();
        for (name, body) in &self.objects {
            store.put(name, body.clone()).await.unwrap();
        }
    }

    async fn open(&self, store: &Arc<dyn ObjectStore>) -> Log {
        let (attaching, live) = (Arc::clone(store), Arc::clone(store));
        let opened = Log::open(attaching, live, self.passphrase.as_ref(), limits(), who());
        opened.await.unwrap()
    }

    /// All that a container of this format promises, in this store.
    async fn check(&self, store: Arc<dyn ObjectStore>) {
        self.load(&*store).await;
        let seen = log::look(&*store).await.unwrap();
        assert_eq!(seen.encrypted, self.passphrase.is_some());
        let report = log::check::check(&*store, self.passphrase.as_ref(), |_, _| {});
        let report = report.await.unwrap();
        assert_eq!(report.findings.len(), 0, "{:?}", report.findings);
        assert!(report.frames >= 5, "{} frames", report.frames);

        let image = self.open(&store).await;
        assert_eq!(image.geometry(), self.geometry);
        let mut model = all(&image).await;
        assert_eq!(hex(&model), self.sha256);
        // It goes on to be written, and is read again by whoever comes next.
        let mut write = async |at: usize, data: Vec<u8>| {
            model[at..at + data.len()].copy_from_slice(&data);
            image.write(at as u64, data.into()).await.unwrap();
        };
        write(2 * BLOCK, noise(50, 3 * BLOCK)).await;
        write(SIZE - BLOCK, text(51, BLOCK)).await;
        image.close().await.unwrap();
        let image = self.open(&store).await;
        assert!(all(&image).await == model);
        image.close().await.unwrap();
    }
}

/// The files below a directory as objects.
fn collect(directory: &Path, prefix: String, objects: &mut Vec<(String, Bytes)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => collect(&path, format!("{name}/"), objects),
            false => objects.push((name, std::fs::read(&path).unwrap().into())),
        }
    }
}

async fn all(image: &Log) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    for at in (0..SIZE).step_by(1 << 20) {
        bytes.extend(image.read(at as u64, 1 << 20).await.unwrap().concat());
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn plain_in_memory() {
    let store = MemoryService::new().store("golden");
    Golden::plain().check(Arc::new(store)).await;
}

#[tokio::test]
async fn plain_in_a_directory() {
    let files = tempfile::tempdir().unwrap();
    let store = DirStore::new(files.path(), "golden", MAX_OBJECT).unwrap();
    Golden::plain().check(Arc::new(store)).await;
}

#[tokio::test]
async fn encrypted_in_memory() {
    let store = MemoryService::new().store("golden");
    Golden::encrypted().check(Arc::new(store)).await;
}

#[tokio::test]
async fn encrypted_in_a_directory() {
    let files = tempfile::tempdir().unwrap();
    let store = DirStore::new(files.path(), "golden", MAX_OBJECT).unwrap();
    Golden::encrypted().check(Arc::new(store)).await;
}

/// Makes them, where none are.
#[tokio::test]
#[ignore = "makes what the other tests read"]
async fn make() {
    // The plain one's last writer died: there are segments after its root, and stops.
    let mut volume = Volume::create(None, Compression::Lz4, 4096).await;
    collected(&mut volume).await;
    volume2::use_it(&mut volume).await;
    save(&volume, "plain");
    // The encrypted one was detached; its passphrase was changed, at the usual cost.
    let mut volume = Volume::create(Some("first"), Compression::None, 512).await;
    volume.attach().await;
    let log = volume.log.as_ref().unwrap();
    let second = volume2::passphrase(PASSPHRASE);
    log.change_passphrase(&second, Default::default())
        .await
        .unwrap();
    volume.detach().await;
    volume.passphrase = Some(second);
    collected(&mut volume).await;
    volume2::use_it(&mut volume).await;
    volume.attach().await;
    // Not whole blocks.
    volume.write(7 * 512, text(9, 3 * 512)).await;
    volume.write(33 << 20, noise(10, 512)).await;
    volume.detach().await;
    save(&volume, "encrypted");
}

/// Some small segments, merged into one.
async fn collected(volume: &mut Volume) {
    let usual = volume.limits;
    volume.limits.pace.small_segments = 4;
    volume.attach().await;
    for i in 0..6 {
        volume
            .write((300 + 2 * i) * BLOCK, text(i as u64, BLOCK))
            .await;
        volume
            .write((301 + 2 * i) * BLOCK, noise(i as u64, BLOCK))
            .await;
        volume.flush().await;
    }
    let log = volume.log.as_ref().unwrap();
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        if log.stats().log.unwrap().collected_bytes > 0 {
            break;
        }
    }
    assert!(log.stats().log.unwrap().collected_bytes > 0);
    volume.detach().await;
    volume.limits = usual;
}

fn save(volume: &Volume, name: &str) {
    let root = directory(name);
    assert!(
        !root.exists(),
        "{} is there and is never changed",
        root.display()
    );
    for name in volume.names() {
        let path = root.join("objects").join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, volume.object(&name)).unwrap();
    }
    let sum = format!("{}  image\n", hex(&volume.model));
    std::fs::write(root.join("image.sha256"), sum).unwrap();
}
