//! Volumes of format 2 in memory, for tests that look into their objects.

#![allow(dead_code, reason = "each test uses a part of it")]

#[path = "attachments.rs"]
mod attachments;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swiftnbd::image::Image;
use swiftnbd::image::log::format::keys::{Cost, Passphrase};
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Limits, Log, LogError, Who};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::memory::MemoryService;

pub const BLOCK: usize = 4096;
/// Two pages of the map.
pub const SIZE: usize = 40 << 20;
/// Not safe, but quick.
pub const CHEAP: Cost = Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};
const CONTAINER: &str = "volume";

pub fn passphrase(text: &str) -> Passphrase {
    Passphrase::from_bytes(text).unwrap()
}

pub fn who() -> Who {
    attachments::who("host.example")
}

pub fn limits() -> Limits {
    // What must be there is waited for a second.
    let patience = Some(Duration::from_secs(1));
    Limits::new(
        1 << 20,
        Limits::least_dirty(),
        Limits::least_map(),
        patience,
    )
}

/// A container, what its volume must hold, and what opens it.
pub struct Volume {
    pub service: MemoryService,
    pub passphrase: Option<Passphrase>,
    pub model: Arc<Vec<u8>>,
    pub log: Option<Log>,
    pub limits: Limits,
}

impl Volume {
    /// A new one, not attached.
    pub async fn create(text: Option<&str>, compression: Compression, block_size: u32) -> Volume {
        let service = MemoryService::new();
        let passphrase = text.map(passphrase);
        let store: Arc<dyn ObjectStore> = Arc::new(service.store(CONTAINER));
        store.create().await.unwrap();
        let geometry = Geometry {
            size: SIZE as u64,
            block_size,
            compression,
        };
        let with = passphrase.as_ref().map(|passphrase| (passphrase, CHEAP));
        log::create(&store, geometry, with, &who(), false)
            .await
            .unwrap();
        Volume {
            service,
            passphrase,
            model: Arc::new(vec![0; SIZE]),
            log: None,
            limits: limits(),
        }
    }

    /// The same objects, and everything else; not attached.
    pub fn copy(&self) -> Volume {
        Volume {
            service: self.service.snapshot(),
            passphrase: self.passphrase.clone(),
            model: self.model.clone(),
            log: None,
            limits: limits(),
        }
    }

    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.service.store(CONTAINER))
    }

    pub async fn try_attach(&mut self) -> Result<&Log, LogError> {
        let (store, passphrase) = (self.store(), self.passphrase.clone());
        let limits = self.limits;
        let opened = Log::open(
            Arc::clone(&store),
            store,
            passphrase.as_ref(),
            limits,
            who(),
        );
        Ok(self.log.insert(opened.await?))
    }

    pub async fn attach(&mut self) {
        self.try_attach().await.unwrap();
    }

    pub async fn detach(&mut self) {
        self.log.take().unwrap().close().await.unwrap();
    }

    /// As when the process dies.
    pub fn crash(&mut self) {
        self.log = None;
    }

    pub async fn write(&mut self, at: usize, data: impl Into<Bytes>) {
        let data = data.into();
        let model = Arc::make_mut(&mut self.model);
        model[at..at + data.len()].copy_from_slice(&data);
        self.attached().write(at as u64, data).await.unwrap();
    }

    pub async fn zero(&mut self, at: usize, length: usize) {
        Arc::make_mut(&mut self.model)[at..at + length].fill(0);
        let zeroed = self.attached().write_zeroes(at as u64, length as u64);
        zeroed.await.unwrap();
    }

    pub async fn flush(&self) {
        self.attached().flush().await.unwrap();
    }

    fn attached(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    /// Reads what was used, in blocks where a larger piece fails. What cannot be read
    /// is in the errors that come back; what can must be right.
    pub async fn read(&self) -> Vec<String> {
        let piece = 1 << 20;
        let mut errors = Vec::new();
        for at in [0, 1, 31, 34, 39].map(|mib| mib * piece) {
            if self.read_part(at, piece).await.is_ok() {
                continue;
            }
            for at in (at..at + piece).step_by(BLOCK) {
                errors.extend(self.read_part(at, BLOCK).await.err());
            }
        }
        errors
    }

    async fn read_part(&self, at: usize, length: usize) -> Result<(), String> {
        let found = self.attached().read(at as u64, length as u32).await;
        let found = found.map_err(|error| error.to_string())?.concat();
        assert!(
            found == self.model[at..at + length],
            "{length} bytes at {at} are wrong"
        );
        Ok(())
    }

    pub fn names(&self) -> Vec<String> {
        self.service.names(CONTAINER)
    }

    pub fn object(&self, name: &str) -> Bytes {
        self.service.object(CONTAINER, name).unwrap()
    }

    pub fn set(&self, name: &str, body: Option<Bytes>) {
        self.service.set_object(CONTAINER, name, body);
    }

    /// What `check` says: an error, or its findings as lines.
    pub async fn check(&self) -> Result<Vec<String>, LogError> {
        let store = self.store();
        let report = log::check::check(&*store, self.passphrase.as_ref(), |_, _| {}).await?;
        let line =
            |finding: log::check::Finding| format!("{}: {}", finding.object, finding.problem);
        Ok(report.findings.into_iter().map(line).collect())
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Bytes that do.
pub fn text(seed: u64, length: usize) -> Vec<u8> {
    let line = format!("What is stored under {seed} for a while, and then read. ");
    let mut bytes = line.into_bytes().repeat(length / 40 + 1);
    bytes.truncate(length);
    bytes
}

/// Some use of a volume: attached twice, both kinds of data in both pages, zeros, and
/// segments that the last root does not include.
pub async fn use_it(volume: &mut Volume) {
    volume.attach().await;
    volume.write(0, text(1, 24 * BLOCK)).await;
    volume.write(100 * BLOCK, noise(2, 5 * BLOCK)).await;
    volume.flush().await;
    volume.write(SIZE - 8 * BLOCK, noise(3, 8 * BLOCK)).await;
    volume.zero(4 * BLOCK, 2 * BLOCK).await;
    volume.detach().await;
    volume.attach().await;
    volume.write(3 * BLOCK, text(4, BLOCK)).await;
    volume.write(34 << 20, text(5, 16 * BLOCK)).await;
    volume.detach().await;
    volume.attach().await;
    volume.write(101 * BLOCK, noise(6, BLOCK)).await;
    volume.flush().await;
    volume.write(34 << 20, noise(7, 3 * BLOCK)).await;
    volume.flush().await;
    volume.crash();
}
