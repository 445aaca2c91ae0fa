//! A container as a local directory, durable.
//!
//! Knows: files, directories, fsync, flock. Does not know: volumes, HTTP.
//!
//! ```text
//! PATH/CONTAINER/metadata.json    makes it a container; written last
//! PATH/CONTAINER/lock             flock: who changes the metadata
//! PATH/CONTAINER/objects/A.dir/B.obj   the object A/B
//! PATH/CONTAINER/tmp/             files under way, each locked by its writer
//! ```
//! The suffixes keep the objects `a` and `a/b` apart, which a file system would
//! not. An object is written to `tmp`, synced, renamed to its place (linked, if it
//! must not replace another), and the directory synced; a crash leaves the old one
//! or the new one, and at most a file in `tmp` that nobody reads and the next writer
//! removes. Its file is the body and a trailer with a checksum (see `files`).
//!
//! A directory that is not there (not mounted) is never made except by
//! `create`, and never reads as a container without objects.

mod files;
mod listing;
mod object;

use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Age, ErrorKind, Listed, Metadata, ObjectStore, StoreError, check};

const DIRECTORY: &str = ".dir";
const OBJECT: &str = ".obj";
/// Writes of names that share a lock wait for each other.
const LOCKS: usize = 128;
/// Directories whose own durability is remembered; more are synced again.
const MAX_KNOWN: usize = 10_000;
const MAX_METADATA_BYTES: u64 = 1 << 20;

/// One container below a local directory.
#[derive(Debug, Clone)]
pub struct DirStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    name: String,
    /// `root/name`.
    container: PathBuf,
    max_object: u64,
    /// By the hash of an object's name. A write holds its lock until its file
    /// is in place, even when nobody waits for it any more: the next write of
    /// that name comes after it.
    locks: Vec<Arc<tokio::sync::Mutex<()>>>,
    /// Directories below `objects` that are known to survive a crash.
    known: Mutex<HashSet<PathBuf>>,
    cleaned: Once,
}

impl DirStore {
    /// The container of this name below `root`. Nothing is touched yet. Objects
    /// of more than `max_object` bytes are neither stored nor read.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name cannot be a directory's.
    pub fn new(
        root: impl Into<PathBuf>,
        container: &str,
        max_object: u64,
    ) -> Result<DirStore, StoreError> {
        check::container(container)?;
        let root = root.into();
        Ok(DirStore {
            inner: Arc::new(Inner {
                container: root.join(container),
                root,
                name: container.to_owned(),
                max_object,
                locks: (0..LOCKS).map(|_| Arc::default()).collect(),
                known: Mutex::default(),
                cleaned: Once::new(),
            }),
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|_| {
            let detail = "the runtime ends";
            Err(self
                .inner
                .error(ErrorKind::Unavailable, operation, "", detail))
        })
    }

    /// Runs a write of this name after every earlier one.
    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        name: &str,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
        let lock = &self.inner.locks[hash as usize % LOCKS];
        let held = lock.clone().lock_owned().await;
        self.blocking(operation, move |inner| {
            let _held = held;
            work(inner)
        })
        .await
    }

    /// Refuses a body that is none, or too long.
    fn check_put(&self, name: &str, body: &[u8]) -> Result<(), StoreError> {
        let (container, most) = (&self.inner.name, self.inner.max_object);
        check::put(container, name, body)?;
        if body.len() as u64 <= most {
            return Ok(());
        }
        let detail = format!("{} bytes are more than {most}", body.len());
        Err(self.inner.error(ErrorKind::Invalid, "PUT", name, detail))
    }
}

impl Inner {
    fn list(&self, after: &str, before: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.exists("list", "")?;
        let objects = self.container.join("objects");
        listing::page(&objects, after, before, limit)
            .map_err(|error| self.failed("list", "", &objects, error))
    }

    fn metadata(&self) -> Result<Metadata, StoreError> {
        let path = self.container.join("metadata.json");
        let json = files::read_bounded(&path, MAX_METADATA_BYTES).map_err(|error| {
            match self.exists("HEAD", "") {
                Ok(()) => self.failed("HEAD", "", &path, error),
                Err(error) => error,
            }
        })?;
        serde_json::from_slice(&json).map_err(|error| {
            let detail = format!("{}: {error}", path.display());
            self.error(ErrorKind::Corrupt, "HEAD", "", detail)
        })
    }

    fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        self.exists("POST", "")?;
        let _locked = self.lock()?;
        let mut metadata = self.metadata()?;
        for (key, value) in changes {
            match value.as_str() {
                "" => metadata.remove(key),
                _ => metadata.insert(key.clone(), value.clone()),
            };
        }
        self.write_metadata("POST", &metadata)
    }

    fn create(&self) -> Result<bool, StoreError> {
        let fail = |path: &Path, error| self.failed("create", "", path, error);
        files::make_directories(&self.root).map_err(|error| fail(&self.root, error))?;
        for path in [
            self.container.clone(),
            self.container.join("objects"),
            self.container.join("tmp"),
        ] {
            files::make_directory(&path).map_err(|error| fail(&path, error))?;
        }
        let _locked = self.lock()?;
        match self.exists("create", "") {
            Ok(()) => Ok(false),
            Err(_) => {
                self.write_metadata("create", &Metadata::new())?;
                Ok(true)
            }
        }
    }

    /// Without its metadata it is no container; what a crash leaves behind then is
    /// used again by `create`, and holds no object.
    fn remove(&self) -> Result<(), StoreError> {
        match self.exists("DELETE", "") {
            Err(error) if error.kind == ErrorKind::NoContainer => return Ok(()),
            there => there?,
        }
        let _locked = self.lock()?;
        if !self.list("", "", 1)?.is_empty() {
            return Err(check::not_empty(&self.name, "the container is not empty"));
        }
        fs::remove_file(self.container.join("metadata.json"))
            .and_then(|()| files::sync_directory(&self.container))
            .and_then(|()| fs::remove_dir_all(&self.container))
            .map_err(|error| self.failed("DELETE", "", &self.container, error))
    }

    fn write_metadata(
        &self,
        operation: &'static str,
        metadata: &Metadata,
    ) -> Result<(), StoreError> {
        let path = self.container.join("metadata.json");
        serde_json::to_vec_pretty(metadata)
            .map_err(io::Error::from)
            .and_then(|json| files::replace(&self.container.join("tmp"), &path, &[&json]))
            .map_err(|error| self.failed(operation, "", &path, error))
    }

    fn lock(&self) -> Result<Flock<fs::File>, StoreError> {
        let path = self.container.join("lock");
        files::open_lock(&path)
            .and_then(|file| {
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
            })
            .map_err(|error| self.failed("lock", "", &path, error))
    }

    /// Whether the container is there.
    fn exists(&self, operation: &'static str, name: &str) -> Result<(), StoreError> {
        match fs::metadata(self.container.join("metadata.json")) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let detail = format!("there is no container in {}", self.container.display());
                Err(self.error(ErrorKind::NoContainer, operation, name, detail))
            }
            Err(error) => Err(self.failed(operation, name, &self.container, error)),
        }
    }

    fn failed(
        &self,
        operation: &'static str,
        name: &str,
        path: &Path,
        error: io::Error,
    ) -> StoreError {
        let kind = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => ErrorKind::Quota,
            Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => ErrorKind::Denied,
            Some(Errno::ENAMETOOLONG | Errno::EFBIG | Errno::EINVAL | Errno::EILSEQ) => {
                ErrorKind::Invalid
            }
            _ => ErrorKind::Unavailable,
        };
        let detail = format!("{}: {error}", path.display());
        self.error(kind, operation, name, detail)
    }

    fn error(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        name: &str,
        detail: impl Into<String>,
    ) -> StoreError {
        StoreError::new(kind, operation, check::target(&self.name, name), detail)
    }
}

#[async_trait]
impl ObjectStore for DirStore {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        check::name("GET", &self.inner.name, name)?;
        let name = name.to_owned();
        self.blocking("GET", move |inner| inner.get(&name)).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let most = self.inner.max_object;
        check::range(&self.inner.name, name, offset, length, most)?;
        let name = name.to_owned();
        self.blocking("GET", move |inner| inner.get_range(&name, offset, length))
            .await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.check_put(name, &body)?;
        let owned = name.to_owned();
        self.write("PUT", name, move |inner| inner.put(&owned, &body))
            .await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        self.check_put(name, &body)?;
        let owned = name.to_owned();
        self.write("PUT", name, move |inner| inner.put_new(&owned, &body))
            .await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        check::name("DELETE", &self.inner.name, name)?;
        let owned = name.to_owned();
        self.write("DELETE", name, move |inner| inner.delete(&owned))
            .await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        check::limit(&self.inner.name, limit)?;
        let (after, before) = (after.to_owned(), before.to_owned());
        self.blocking("list", move |inner| inner.list(&after, &before, limit))
            .await
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.blocking("HEAD", Inner::metadata).await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        check::metadata(&self.inner.name, changes)?;
        let changes = changes.clone();
        self.blocking("POST", move |inner| inner.set_metadata(&changes))
            .await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.blocking("create", Inner::create).await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.blocking("DELETE", Inner::remove).await
    }

    /// Waits for writes whose callers no longer do.
    async fn settle(&self) {
        for lock in &self.inner.locks {
            drop(lock.lock().await);
        }
    }

    async fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        check::name("HEAD", &self.inner.name, name)?;
        let name = name.to_owned();
        self.blocking("HEAD", move |inner| inner.age(&name)).await
    }

    /// A write that the kernel has not done dies with the process.
    fn linger(&self) -> Duration {
        Duration::ZERO
    }
}
