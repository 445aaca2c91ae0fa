//! Image files: where they have holes, and how to keep them.
//!
//! Knows: files, block devices, holes. Does not know: volumes, objects.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::unistd::{Whence, lseek};

use crate::control::registry::since_epoch;
use crate::error::{Error, Exit, Result};
use crate::image::objects::is_zero;

/// Zeros of this size and place become a hole: no file system has smaller ones.
const BLOCK: usize = 4096;

fn failed(path: &Path, doing: &str, error: &io::Error) -> Error {
    let exit = match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        io::ErrorKind::PermissionDenied => Exit::Denied,
        io::ErrorKind::ResourceBusy => Exit::InUse,
        _ => Exit::Failed,
    };
    let text = Error::new(exit, format!("cannot {doing} {}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::ResourceBusy => text.hint("unmount it first: its content would change"),
        io::ErrorKind::StorageFull => text.hint("free some space; the same command goes on then"),
        _ => text,
    }
}

/// The next data at or after `from`; `None` if there is none before the end. Where
/// nobody knows about holes, all is data.
fn next_data(file: &File, from: u64) -> Option<u64> {
    let Ok(offset) = i64::try_from(from) else {
        return None;
    };
    match lseek(file, offset, Whence::SeekData) {
        Ok(at) => Some(at as u64),
        Err(Errno::ENXIO) => None,
        Err(_) => Some(from),
    }
}

/// An image that is read.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    size: u64,
    /// As it was when it was opened.
    looks: String,
    /// What tells its content from another.
    identity: String,
}

impl Source {
    /// Opens a file, or a block device that nothing else has claimed.
    pub fn open(path: &Path) -> Result<Source> {
        let cannot = |error: io::Error| failed(path, "read", &error);
        let kind = fs::metadata(path).map_err(cannot)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::usage(format!(
                "{} is neither a file nor a block device",
                path.display()
            )));
        }
        // On a device it means: not while it is mounted.
        let exclusive = if kind.is_block_device() {
            libc::O_EXCL
        } else {
            0
        };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(exclusive);
        let mut file = options.open(path).map_err(cannot)?;
        let size = file.seek(SeekFrom::End(0)).map_err(cannot)?;
        let looks = looks(&file, path).map_err(cannot)?;
        // What is written to a device changes nothing of its node: an earlier run
        // of ours may have seen another content.
        let identity = match kind.is_block_device() {
            true => format!("{looks} {} {:?}", std::process::id(), since_epoch()),
            false => looks.clone(),
        };
        Ok(Source {
            file,
            path: path.to_owned(),
            size,
            looks,
            identity,
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file's identity, size and time of change: the same text is the same
    /// content, as far as the file system tells.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Fails if it was changed since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = looks(&self.file, &self.path).map_err(|e| failed(&self.path, "read", &e))?;
        if now == self.looks {
            return Ok(());
        }
        let text = format!("{} was changed while it was read", self.path.display());
        Err(Error::failed(text).hint("stop whoever writes to it, and run the same command again"))
    }

    /// The numbers of those parts of `size` bytes, counted from the start, that are
    /// not wholly a hole, ascending.
    pub fn parts_with_data(&self, size: u64) -> impl Iterator<Item = u64> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            if from >= self.size {
                return None;
            }
            let part = next_data(&self.file, from).filter(|at| *at < self.size)? / size;
            from = (part + 1).saturating_mul(size);
            Some(part)
        })
    }

    /// Whether this range is not wholly a hole.
    pub fn has_data(&self, offset: u64, length: u64) -> bool {
        let end = self.size.min(offset.saturating_add(length));
        offset < end && next_data(&self.file, offset).is_some_and(|at| at < end)
    }

    /// So many bytes from there; zeros behind the end.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let there = self.size.saturating_sub(offset).min(length as u64) as usize;
        self.file
            .read_exact_at(&mut bytes[..there], offset)
            .map_err(|error| failed(&self.path, "read", &error))?;
        Ok(bytes)
    }
}

fn looks(file: &File, path: &Path) -> io::Result<String> {
    let (found, absolute) = (file.metadata()?, path.canonicalize()?);
    Ok(format!(
        "{} {}:{} {} {}.{:09} {}.{:09}",
        absolute.display(),
        found.dev(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

/// An image that is not complete: a file beside the one that it will be.
#[derive(Debug)]
pub struct Target {
    file: Flock<File>,
    path: PathBuf,
    image: PathBuf,
    /// There was something in it before.
    used: bool,
}

impl Target {
    /// Opens what an earlier attempt left behind, or something new, of this size.
    pub fn open(image: &Path, size: u64) -> Result<Target> {
        match fs::metadata(image) {
            Ok(found) if !found.is_file() => {
                let text = format!("{} is there and is not a file", image.display());
                return Err(Error::usage(text));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(image, "write", &error)),
        }
        // A link stays one: what it points to is replaced.
        let image = image.canonicalize().unwrap_or_else(|_| image.to_owned());
        let Some(name) = image.file_name() else {
            let text = format!("{} is not the name of a file", image.display());
            return Err(Error::usage(text));
        };
        let mut part = OsString::from(name);
        part.push(".swiftnbd-part");
        let path = image.with_file_name(part);
        let cannot = |error: io::Error| failed(&path, "write", &error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // A disk holds what not everybody may read.
        let file = options
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(cannot)?;
        let taken = || {
            let text = format!("another download writes {}", path.display());
            Error::new(Exit::InUse, text)
        };
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| taken())?;
        // Between our opening and locking it, another one may have completed it.
        let (ours, there) = (file.metadata().map_err(cannot)?, fs::metadata(&path));
        if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Err(taken());
        }
        let used = file.metadata().map_err(cannot)?.len() > 0;
        file.set_len(size).map_err(cannot)?;
        Ok(Target {
            file,
            path,
            image,
            used,
        })
    }

    /// Whether there is something in this range, from an earlier attempt.
    pub fn has_data(&self, offset: u64, length: u64) -> bool {
        self.used && next_data(&self.file, offset).is_some_and(|at| at < offset + length)
    }

    /// The MD5 of a range.
    pub fn md5(&self, offset: u64, length: usize) -> Result<[u8; 16]> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| failed(&self.path, "read", &error))?;
        Ok(Md5::digest(&bytes).into())
    }

    /// Makes a range a hole.
    pub fn clear(&self, offset: u64, length: u64) -> Result<()> {
        if !self.has_data(offset, length) {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let cannot = |error: io::Error| failed(&self.path, "write", &error);
        match fallocate(&*self.file, flags, offset as i64, length as i64) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let zeros = vec![0; length as usize];
                self.file.write_all_at(&zeros, offset).map_err(cannot)
            }
            Err(errno) => Err(cannot(errno.into())),
        }
    }

    /// Writes what is not zero of these bytes; the range is cleared before.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.clear(offset, bytes.len() as u64)?;
        let blocks = bytes.chunks(BLOCK).enumerate();
        let mut run: Option<(usize, usize)> = None;
        let put = |run: Option<(usize, usize)>| match run {
            Some((from, to)) => self
                .file
                .write_all_at(&bytes[from..to], offset + from as u64)
                .map_err(|error| failed(&self.path, "write", &error)),
            None => Ok(()),
        };
        for (number, block) in blocks {
            let from = number * BLOCK;
            if is_zero(block) {
                put(run.take())?;
            } else {
                let start = run.map_or(from, |(start, _)| start);
                run = Some((start, from + block.len()));
            }
        }
        put(run)
    }

    /// Takes over owner and mode of an image that is there.
    fn look_like_the_old_one(&self) -> io::Result<()> {
        let Ok(old) = fs::metadata(&self.image) else {
            return Ok(());
        };
        // Only root may give a file away; then it stays ours.
        let _ = std::os::unix::fs::fchown(&*self.file, Some(old.uid()), Some(old.gid()));
        self.file.set_permissions(old.permissions())
    }

    /// Makes it durable, and only then the image.
    pub fn finish(self) -> Result<()> {
        let directory = match self.image.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.look_like_the_old_one()
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.path, &self.image))
            .and_then(|()| File::open(directory)?.sync_all())
            .map_err(|error| failed(&self.image, "write", &error))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(pattern: &[u8]) -> Vec<u8> {
        pattern.iter().flat_map(|byte| [*byte; BLOCK]).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_over_anything_is_what_is_there(
            before in proptest::collection::vec(0_u8..3, 8),
            after in proptest::collection::vec(0_u8..3, 8),
            cut in 1_usize..BLOCK,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let image = directory.path().join("image");
            let (before, mut after) = (blocks(&before), blocks(&after));
            after.truncate(after.len() - cut);
            let target = Target::open(&image, before.len() as u64).unwrap();
            target.write(0, &before).unwrap();
            drop(target);
            prop_assert!(!image.exists());
            let target = Target::open(&image, after.len() as u64).unwrap();
            target.write(0, &after).unwrap();
            prop_assert_eq!(
                target.md5(0, after.len()).unwrap(),
                <[u8; 16]>::from(Md5::digest(&after))
            );
            target.finish().unwrap();
            prop_assert!(fs::read(&image).unwrap() == after);
            let source = Source::open(&image).unwrap();
            let parts: Vec<u64> = source.parts_with_data(BLOCK as u64).collect();
            for (number, block) in after.chunks(BLOCK).enumerate() {
                // Not every file system keeps every hole, but none loses data.
                prop_assert!(is_zero(block) || parts.contains(&(number as u64)));
            }
        }
    }

    #[test]
    fn an_image_is_not_written_by_two() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let _first = Target::open(&image, 4096).unwrap();
        assert_eq!(Target::open(&image, 4096).unwrap_err().exit, Exit::InUse);
        let error = Target::open(directory.path(), 4096).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
    }
}
