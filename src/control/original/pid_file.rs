//! The file with the server's process id, which also keeps a second one away.
//!
//! It is locked for as long as the server lives, so a file that is left behind is
//! told from one that counts. The original does not lock its own: there the process
//! must be alive and look like a server. The default place is a directory that
//! everybody may write to: what others have put there is not followed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::compat::SERVER;
use crate::error::{Error, Exit, Result};

/// How often the file is looked for again, if it goes while it is locked.
const ATTEMPTS: u32 = 10;

/// Removed when it is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _file: Flock<File>,
}

impl PidFile {
    /// Writes this process's id, or says who is there already.
    pub fn take(path: &Path) -> Result<PidFile> {
        let failed = |error: io::Error| {
            let text = format!("cannot write the pid file {}: {error}", path.display());
            Error::failed(text).hint("--pid-file FILE takes another one")
        };
        let path = std::path::absolute(path).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            let file = open(&path).map_err(failed)?;
            let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                return Err(taken(&path, "a server"));
            };
            // Between our opening and locking it, its owner may have removed it.
            let (ours, there) = (file.metadata().map_err(failed)?, fs::metadata(&path));
            if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                continue;
            }
            let mut text = String::new();
            let _ = (&mut *file).take(64).read_to_string(&mut text);
            if let Some(pid) = text.trim().parse().ok().filter(|pid| is_server(*pid)) {
                return Err(taken(&path, &format!("the server with process id {pid}")));
            }
            if !text.is_empty() {
                tracing::info!(path = %path.display(), "nobody has this pid file any more");
            }
            replace(&mut file).map_err(failed)?;
            return Ok(PidFile { path, _file: file });
        }
        Err(taken(&path, "somebody who comes and goes"))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn taken(path: &Path, by: &str) -> Error {
    let text = format!("the pid file {} belongs to {by}", path.display());
    Error::new(Exit::InUse, text).hint("a second server needs a --pid-file of its own")
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = options.mode(0o644).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    let ours = found.is_file() && found.nlink() == 1;
    match ours && found.uid() == nix::unistd::geteuid().as_raw() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a file of this user's")),
    }
}

fn replace(file: &mut File) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

/// Whether this process lives and is a server of the original's: one of ours would
/// hold the lock.
fn is_server(pid: u32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = SERVER.as_bytes();
    let is_ours = fs::read_link(format!("/proc/{pid}/exe")).ok() == std::env::current_exe().ok();
    !is_ours && words.windows(name.len()).any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn one_server_has_it_and_what_is_left_behind_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let ours = std::process::id().to_string();
        let first = PidFile::take(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), ours);
        let error = PidFile::take(&path).unwrap_err();
        assert_eq!(error.exit, Exit::InUse);
        drop(first);
        assert!(!path.exists());
        // Of a dead process, of one that is no server, of nobody.
        for text in ["4194305", "1", "", "rubbish", "-1"] {
            fs::write(&path, text).unwrap();
            drop(PidFile::take(&path).unwrap());
        }
        // The original's, which lives.
        let mut server = Command::new("sleep");
        let mut server = server
            .arg0("/usr/bin/swiftnbd-server")
            .arg("60")
            .spawn()
            .unwrap();
        // A process that has just begun has no words yet.
        let words = format!("/proc/{}/cmdline", server.id());
        while fs::read(&words).unwrap().is_empty() {
            std::thread::yield_now();
        }
        fs::write(&path, server.id().to_string()).unwrap();
        let seen = PidFile::take(&path);
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(seen.unwrap_err().message.contains(&server.id().to_string()));
        assert!(path.exists());
    }

    #[test]
    fn what_others_have_put_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (
            directory.path().join("pid"),
            directory.path().join("victim"),
        );
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        PidFile::take(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        PidFile::take(&path).unwrap_err();
        PidFile::take(directory.path()).unwrap_err();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}
