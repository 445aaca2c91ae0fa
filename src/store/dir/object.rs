//! The files of objects: read, stored, deleted.
//!
//! Knows: where an object's file is, and the directories above it. Does not know: how
//! a file survives a crash (`files`), the container's metadata.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nix::errno::Errno;

use super::files::{self, Damage, ReadError};
use super::{DIRECTORY, Inner, MAX_KNOWN, OBJECT};
use crate::store::{Age, ErrorKind, StoreError};

impl Inner {
    pub(super) fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        let path = self.path("GET", name)?;
        files::read(&path, name, self.max_object).map_err(|error| self.not_read(name, &path, error))
    }

    pub(super) fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        let path = self.path("GET", name)?;
        files::read_range(&path, offset, length).map_err(|error| self.not_read(name, &path, error))
    }

    /// Its age by the file system's clock.
    pub(super) fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        let path = self.path("HEAD", name)?;
        let stored = fs::metadata(&path).and_then(|found| found.modified());
        let stored = stored.map_err(|error| self.not_read(name, &path, ReadError::Io(error)))?;
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let age = match SystemTime::now().duration_since(stored) {
            Ok(age) => seconds(age),
            Err(ahead) => -seconds(ahead.duration()) - 1,
        };
        Ok(Some(Age {
            seconds: age,
            stored: stored.duration_since(UNIX_EPOCH).unwrap_or_default(),
        }))
    }

    fn not_read(&self, name: &str, path: &Path, error: ReadError) -> StoreError {
        let damaged = |detail: String| self.error(ErrorKind::Corrupt, "GET", name, detail);
        match error {
            ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.exists("GET", name) {
                    Ok(()) => self.error(
                        ErrorKind::NotFound,
                        "GET",
                        name,
                        "the object does not exist",
                    ),
                    Err(error) => error,
                }
            }
            // One bad sector must not stop everything else by waiting for it.
            ReadError::Io(error) if error.raw_os_error() == Some(Errno::EIO as i32) => {
                damaged(format!("{}: {error}", path.display()))
            }
            ReadError::Io(error) => self.failed("GET", name, path, error),
            ReadError::Damaged(Damage(detail)) => damaged(format!("{}: {detail}", path.display())),
        }
    }

    pub(super) fn put(&self, name: &str, body: &[u8]) -> Result<(), StoreError> {
        self.store(name, body, files::replace)
    }

    pub(super) fn put_new(&self, name: &str, body: &[u8]) -> Result<bool, StoreError> {
        self.store(name, body, files::create)
    }

    /// Has `place` make the object's file, given `tmp`, its path and its content.
    fn store<T>(
        &self,
        name: &str,
        body: &[u8],
        place: impl FnOnce(&Path, &Path, &[&[u8]]) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let path = self.path("PUT", name)?;
        let tmp = self.container.join("tmp");
        self.cleaned.call_once(|| files::clean(&tmp));
        let stored = self
            .make_parents(&path)
            .and_then(|()| place(&tmp, &path, &[body, &files::trailer(name, body)]));
        stored.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                self.known().clear();
                if let Err(error) = self.exists("PUT", name) {
                    return error;
                }
            }
            self.failed("PUT", name, &path, error)
        })
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path("DELETE", name)?;
        let removed = fs::remove_file(&path);
        let parent = path.parent().unwrap_or(&self.container);
        let absent = match removed {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.exists("DELETE", name)?;
                true
            }
            Err(error) => return Err(self.failed("DELETE", name, &path, error)),
        };
        // Also when it was absent: an earlier attempt may have failed here.
        match files::sync_directory(parent) {
            Err(error) if absent && error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|error| self.failed("DELETE", name, parent, error)),
        }
    }

    /// The directories that this object's file is in, made and durable.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let objects = self.container.join("objects");
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        if parent == objects || self.known().contains(parent) {
            return Ok(());
        }
        self.make_parents(parent)?;
        files::make_directory(parent)?;
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(parent.to_owned());
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this object's file is.
    fn path(&self, operation: &'static str, name: &str) -> Result<PathBuf, StoreError> {
        let mut path = self.container.join("objects");
        let mut parts = name.split('/').peekable();
        while let Some(part) = parts.next() {
            let suffix = match parts.peek() {
                Some(_) => DIRECTORY,
                None => OBJECT,
            };
            let file = format!("{part}{suffix}");
            if file.len() > 255 {
                let detail = "a part of the name is longer than 251 bytes, the most in a directory";
                return Err(self.error(ErrorKind::Invalid, operation, name, detail));
            }
            path.push(file);
        }
        Ok(path)
    }
}
