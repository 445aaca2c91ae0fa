//! Files that survive a crash whole, and notice when they did not.
//!
//! Knows: fsync, rename, the trailer of an object's file. Does not know: names
//! of objects and what they mean.
//!
//! An object's file is its body, then 24 bytes: the magic `SWNBDOBJ`, the
//! version (u32), the CRC32C (u32) of body, name, version and length, and the
//! body's length (u64); all little-endian. The name is in it so that a file
//! under a wrong name is noticed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};

const MAGIC: &[u8; 8] = b"SWNBDOBJ";
const VERSION: u32 = 1;
pub(super) const TRAILER: usize = 24;

/// What is wrong with an object's file.
#[derive(Debug)]
pub(super) struct Damage(pub(super) String);

/// Why an object's file gave no body.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Damaged(Damage),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

/// What follows this body in its file.
pub(super) fn trailer(name: &str, body: &[u8]) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    trailer[..8].copy_from_slice(MAGIC);
    trailer[8..12].copy_from_slice(&VERSION.to_le_bytes());
    trailer[16..].copy_from_slice(&(body.len() as u64).to_le_bytes());
    let mut crc = crc32c::crc32c(body);
    for part in [name.as_bytes(), &trailer[8..12], &trailer[16..]] {
        crc = crc32c::crc32c_append(crc, part);
    }
    trailer[12..16].copy_from_slice(&crc.to_le_bytes());
    trailer
}

/// The body in this file, if it is whole and at most `max` bytes.
pub(super) fn read(path: &Path, name: &str, max: u64) -> Result<Bytes, ReadError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > max.saturating_add(TRAILER as u64) {
        return Err(damaged(format!("{length} bytes are more than expected")));
    }
    // One more than there should be, so that growth is noticed.
    let mut content = Vec::with_capacity(length as usize + 1);
    file.take(length + 1).read_to_end(&mut content)?;
    check(content, name)
}

/// Bytes of the body in this file: `length` from `offset` on, fewer where it ends
/// before. The trailer must be there and fit the file; the checksum, which is that
/// of the whole, is not looked at.
pub(super) fn read_range(path: &Path, offset: u64, length: u64) -> Result<Bytes, ReadError> {
    let file = File::open(path)?;
    let whole = file.metadata()?.len();
    let Some(body) = whole.checked_sub(TRAILER as u64) else {
        return Err(damaged(format!("{whole} bytes are too few")));
    };
    let mut found = [0; TRAILER];
    file.read_exact_at(&mut found, body)?;
    check_head(&found)?;
    if found[16..] != body.to_le_bytes() {
        return Err(damaged("its length does not match".to_owned()));
    }
    let length = length.min(body.saturating_sub(offset));
    let mut part = vec![0; length as usize];
    file.read_exact_at(&mut part, offset)?;
    Ok(Bytes::from(part))
}

/// Whether this begins as a trailer does.
fn check_head(trailer: &[u8; TRAILER]) -> Result<(), ReadError> {
    if trailer[..8] != *MAGIC {
        return Err(damaged("its end is missing or damaged".to_owned()));
    }
    if trailer[8..12] != VERSION.to_le_bytes() {
        return Err(damaged("it has a version that is not known".to_owned()));
    }
    Ok(())
}

fn check(content: Vec<u8>, name: &str) -> Result<Bytes, ReadError> {
    let Some((body, found)) = content.split_last_chunk::<TRAILER>() else {
        return Err(damaged(format!("{} bytes are too few", content.len())));
    };
    check_head(found)?;
    if *found != trailer(name, body) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let length = body.len();
    let mut body = Bytes::from(content);
    body.truncate(length);
    Ok(body)
}

fn damaged(detail: String) -> ReadError {
    ReadError::Damaged(Damage(detail))
}

/// A whole file of at most `max` bytes.
pub(super) fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max {
        return Err(io::Error::other(format!("longer than {max} bytes")));
    }
    Ok(content)
}

/// Makes `target` consist of `parts`. When this returns it is durable; a crash
/// leaves the old file or the new one.
pub(super) fn replace(tmp: &Path, target: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let (path, file) = temporary(tmp)?;
    let written = fill(&file, parts).and_then(|()| std::fs::rename(&path, target));
    if written.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    written?;
    sync_parent(target)
}

/// Makes `target` of `parts` unless there is such a file: then it answers false.
/// When this returns, the file that is there is durable under its name; a crash
/// leaves none, or the whole one.
pub(super) fn create(tmp: &Path, target: &Path, parts: &[&[u8]]) -> io::Result<bool> {
    let (path, file) = temporary(tmp)?;
    let linked = fill(&file, parts).and_then(|()| std::fs::hard_link(&path, target));
    let _ = std::fs::remove_file(&path);
    let made = match linked {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    sync_parent(target)?;
    Ok(made)
}

fn fill(mut file: &File, parts: &[&[u8]]) -> io::Result<()> {
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()
}

/// A new file in `tmp`, locked for as long as it is open.
fn temporary(tmp: &Path) -> io::Result<(PathBuf, Flock<File>)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = tmp.join(format!("{}-{number}", process::id()));
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match created {
            // Left by an earlier process with our number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => {
                let locked = Flock::lock(created?, FlockArg::LockExclusive);
                return Ok((path, locked.map_err(|(_, errno)| io::Error::from(errno))?));
            }
        }
    }
}

/// Removes the files in `tmp` whose writers are dead. One whose writer has not
/// locked it yet may be removed too: its rename fails, and it is written again.
pub(super) fn clean(tmp: &Path) {
    let Ok(entries) = std::fs::read_dir(tmp) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The file that is locked, made when it is missing; its directory is not.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Makes this directory if it is missing, durably either way: whoever made it
/// may not have synced it yet.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Makes this directory and those above it where they are missing.
pub(super) fn make_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent()
        && parent != Path::new("")
    {
        make_directories(parent)?;
    }
    make_directory(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in this directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(name: &str, body: &[u8]) -> Vec<u8> {
        [body, &trailer(name, body)].concat()
    }

    #[test]
    fn every_damage_is_noticed() {
        let whole = file("a", b"some bytes");
        assert_eq!(check(whole.clone(), "a").unwrap(), "some bytes");
        assert!(check(whole.clone(), "b").is_err());
        for length in 0..whole.len() {
            assert!(check(whole[..length].to_vec(), "a").is_err(), "{length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check(damaged, "a").is_err(), "bit {bit}");
        }
        // Two files one after the other: the second's trailer is right.
        assert!(check([&whole[..], &whole].concat(), "a").is_err());
    }

    #[test]
    fn leftovers_are_removed_and_files_under_way_are_not() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("left"), b"over").unwrap();
        let (path, _file) = temporary(tmp.path()).unwrap();
        clean(tmp.path());
        let left: Vec<_> = std::fs::read_dir(tmp.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].path(), path);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_check_panic(
            content in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            prop_assert!(check(content, "a").is_err());
        }
    }
}
