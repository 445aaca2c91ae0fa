//! A journal as a file.
//!
//! Knows: files, directories, how to make one that is whole after a power cut. Does not
//! know: what is in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, posix_fallocate, renameat2};
use tokio::task::spawn_blocking;

use super::{Disk, Shelf};

/// The file of one volume's journal.
#[derive(Debug, Clone)]
pub struct FileShelf {
    path: PathBuf,
}

/// It, open; nobody else has it open.
#[derive(Debug)]
struct FileDisk {
    file: Arc<Flock<File>>,
    length: u64,
}

impl FileShelf {
    /// At this path; its directory is made when it is needed.
    pub fn new(path: impl Into<PathBuf>) -> FileShelf {
        FileShelf { path: path.into() }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = self.path.clone();
        blocking(move || work(&path)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

fn lock(file: File) -> io::Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| io::Error::other("another process uses it"))
}

/// Makes a directory's entries durable.
fn sync_directory(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// The path with something after it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[async_trait]
impl Shelf for FileShelf {
    async fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        let opened = self.run(|path| {
            // A pipe or a device in its place is not waited for.
            let flags = nix::libc::O_NONBLOCK;
            let options = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open(path);
            let file = match options {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            let (file, length) = (Arc::new(lock(file)?), metadata.len());
            Ok(Some(FileDisk { file, length }))
        });
        Ok(opened.await?.map(|disk| Arc::new(disk) as Arc<dyn Disk>))
    }

    async fn create(&self, length: u64, head: Bytes) -> io::Result<Arc<dyn Disk>> {
        let made = self.run(move |path| {
            if let Some(parent) = path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(parent)?;
            }
            let new = beside(path, ".new");
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            let allocated = i64::try_from(length).map_err(io::Error::other);
            let written = allocated.and_then(|length| {
                posix_fallocate(&file, 0, length)?;
                file.write_all_at(&head, 0)?;
                file.sync_all()
            });
            let made = written.and_then(|()| {
                let file = Arc::new(lock(file)?);
                // What is there is not ours to remove.
                let keep = RenameFlags::RENAME_NOREPLACE;
                renameat2(AT_FDCWD, &new, AT_FDCWD, path, keep)?;
                sync_directory(path)?;
                Ok(FileDisk { file, length })
            });
            if made.is_err() {
                let _ = fs::remove_file(&new);
            }
            made
        });
        Ok(Arc::new(made.await?))
    }

    async fn set_aside(&self) -> io::Result<String> {
        self.run(|path| {
            let mut n = 1;
            let kept = loop {
                let kept = beside(path, &format!(".kept-{n}"));
                if !kept.try_exists()? {
                    break kept;
                }
                n += 1;
            };
            fs::rename(path, &kept)?;
            sync_directory(path)?;
            Ok(kept.display().to_string())
        })
        .await
    }

    async fn remove(&self) -> io::Result<()> {
        self.run(|path| match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

#[async_trait]
impl Disk for FileDisk {
    fn length(&self) -> u64 {
        self.length
    }

    async fn read(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            Ok(bytes.into())
        })
        .await
    }

    async fn write(&self, mut at: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || {
            for piece in pieces {
                file.write_all_at(&piece, at)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
        .await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || file.sync_data()).await
    }
}
