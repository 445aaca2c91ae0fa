//! The passphrase of an encrypted volume: from a file, from a descriptor, from a
//! credential of systemd's, or from a person at a terminal. Never from an argument or a
//! variable: others can see those.
//!
//! Knows: files and who may read them, terminals, where systemd puts credentials. Does
//! not know: what a passphrase opens ([`open`](super::open) and the engine do).

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::explain;
use crate::cli;
use crate::config::Volume;
use crate::credentials;
use crate::error::{Error, Exit, Result};
use crate::image::log;
use crate::image::log::format::keys::Passphrase;
use crate::image::meta::{self, Format};
use crate::stack::Container;

/// The longest passphrase that is read, in bytes: with a line's end, and one more, by
/// which it is too long.
const MAX_BYTES: usize = Passphrase::MAX + 2;
/// Permission bit: everybody may read.
const READ_BY_OTHERS: u32 = 0o004;
/// What the names of credentials begin with; the volume's name follows.
const CREDENTIAL: &str = "swiftnbd.";

/// What to do where there is no passphrase and nobody to ask.
const HINT: &str = "write its passphrase into a file that only its owner can read, and name that \
                    with --passphrase-file, or with passphrase_file in the configuration";

/// Takes over what the command line says of the volume's passphrase. A descriptor is
/// read to its end.
pub fn choose(volume: &mut Volume, from: &cli::PassphraseFrom) -> Result<()> {
    let chosen = chosen(from.passphrase_file.as_deref(), from.passphrase_fd)?;
    if chosen.is_some() {
        volume.passphrase = chosen;
    }
    Ok(())
}

/// The same for the passphrase that a volume is to have.
pub fn chosen(file: Option<&Path>, fd: Option<u16>) -> Result<Option<credentials::Passphrase>> {
    match (file, fd) {
        (Some(path), _) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            Ok(Some(credentials::Passphrase::File(path)))
        }
        (None, Some(fd)) => Ok(Some(here(read_fd(fd)?))),
        (None, None) => Ok(None),
    }
}

/// A passphrase that is in memory.
pub fn here(bytes: Zeroizing<Vec<u8>>) -> credentials::Passphrase {
    credentials::Passphrase::Here(Arc::new(bytes))
}

/// Reads what `attach` hands on.
pub fn from_stdin() -> Result<credentials::Passphrase> {
    let read = read_all(io::stdin().lock());
    read.map(here)
        .map_err(|error| Error::failed(format!("the passphrase did not come: {error}")))
}

/// The passphrase's bytes, from wherever the volume says it is, or from its credential.
/// `None`: nothing says anything.
pub fn bytes(volume: &Volume) -> Result<Option<Zeroizing<Vec<u8>>>> {
    match &volume.passphrase {
        Some(credentials::Passphrase::File(path)) => read_file(path).map(Some),
        Some(credentials::Passphrase::Here(bytes)) => Ok(Some(bytes.as_ref().clone())),
        None => match credential(&volume.name) {
            // It is in a directory that is its service's alone.
            Some(path) => read_file(&path).map(Some),
            None => Ok(None),
        },
    }
}

/// The same as a passphrase.
pub fn of(volume: &Volume) -> Result<Option<Passphrase>> {
    bytes(volume)?
        .map(|bytes| checked(volume, &bytes))
        .transpose()
}

/// Makes sure that there is one for a volume that is to be encrypted: a person at a
/// terminal is asked, if nothing else tells it.
pub fn settle_new(volume: &mut Volume) -> Result<()> {
    let bytes = match bytes(volume)? {
        Some(bytes) => bytes,
        None => ask_for_new(volume)?,
    };
    checked(volume, &bytes)?;
    // What is used is what was looked at, even if the file changes.
    volume.passphrase = Some(here(bytes));
    Ok(())
}

/// Asks a person at a terminal for a passphrase that a volume is to have, twice.
pub fn ask_for_new(volume: &Volume) -> Result<Zeroizing<Vec<u8>>> {
    let name = &volume.name;
    let first = ask(&format!("New passphrase of volume {name}: "), volume)?;
    let second = ask("The same again: ", volume)?;
    match first == second {
        true => Ok(first),
        false => Err(Error::failed(format!(
            "volume {name}: the two passphrases are not the same"
        ))),
    }
}

/// Asks a person for the passphrase of a volume, if it is encrypted, nothing else tells
/// it, and there is a terminal.
pub async fn ask_if_needed(volume: &mut Volume, container: &Container) -> Result<()> {
    if volume.passphrase.is_some() || credential(&volume.name).is_some() {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Ok(());
    }
    // What is wrong with it is said by whoever opens it.
    let there = meta::read_unfinished(&*container.impatient).await;
    if !matches!(there.map(|there| there.format), Ok(Format::Log { .. })) {
        return Ok(());
    }
    let seen = log::look(&*container.impatient).await;
    let seen = seen.map_err(|error| explain::log(volume, &error))?;
    if seen.encrypted {
        let text = format!("Passphrase of volume {}: ", volume.name);
        volume.passphrase = Some(here(ask(&text, volume)?));
    }
    Ok(())
}

/// These bytes as a passphrase.
pub fn checked(volume: &Volume, bytes: &[u8]) -> Result<Passphrase> {
    Passphrase::from_bytes(bytes)
        // The reason does not quote it.
        .map_err(|error| Error::usage(format!("volume {}: {error}", volume.name)))
}

fn ask(text: &str, volume: &Volume) -> Result<Zeroizing<Vec<u8>>> {
    let name = &volume.name;
    if !io::stdin().is_terminal() {
        let text = format!("volume {name}: there is no passphrase, and nobody to ask");
        return Err(Error::usage(text).hint(HINT));
    }
    let answer = rpassword::prompt_password(text);
    let answer = answer.map_err(|error| {
        Error::failed(format!("volume {name}: no passphrase was given: {error}"))
    })?;
    Ok(Zeroizing::new(answer.into_bytes()))
}

/// The credential that the service manager has for the volume.
fn credential(name: &str) -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
    let path = directory.join(format!("{CREDENTIAL}{name}"));
    path.exists().then_some(path)
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let shown = path.display();
    let cannot = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::Failed,
        };
        Error::new(exit, format!("cannot read the passphrase {shown}: {error}"))
    };
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.mode();
    if mode & READ_BY_OTHERS != 0 {
        let text = format!("{shown} is readable by everyone and holds a passphrase");
        return Err(Error::usage(text).hint(format!("chmod 600 {shown}")));
    }
    read_all(file).map_err(cannot)
}

fn read_fd(fd: u16) -> Result<Zeroizing<Vec<u8>>> {
    // By its path, for the descriptor itself is not ours to close.
    let read = match fd {
        0 => read_all(io::stdin().lock()),
        _ => File::open(format!("/proc/self/fd/{fd}")).and_then(read_all),
    };
    read.map_err(|error| {
        let text = format!("cannot read the passphrase from descriptor {fd}: {error}");
        Error::usage(text).hint("for example: --passphrase-fd 3 3</root/passphrase")
    })
}

/// All of it, in memory that is overwritten when it is let go: it is never moved while
/// it grows.
fn read_all(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    from.take(MAX_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
