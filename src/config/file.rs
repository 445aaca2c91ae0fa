//! Reads one configuration file whole, and who may read it.
//!
//! Knows: files and their permissions. Does not know: what is in them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::settings::line_at;
use crate::error::{Error, Exit, Result};

/// Larger files are refused: a configuration is written by hand.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Permission bit: everybody may read.
const READ_BY_OTHERS: u32 = 0o004;

/// The content of a file.
pub(super) struct Text {
    pub body: String,
    /// Whether everybody may read the file. Asked of the open descriptor, so
    /// it holds for the very file that was read.
    pub world_readable: bool,
}

/// Reads the file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Text>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(cannot_read(path, &error)),
    };
    let mode = file
        .metadata()
        .map_err(|error| cannot_read(path, &error))?
        .mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot_read(path, &error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::usage(format!(
            "{}: larger than 1 MiB; this is no configuration file",
            path.display()
        )));
    }
    let body = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = line_at(error.as_bytes(), at);
        Error::usage(format!("{}, line {line}: not UTF-8 text", path.display()))
    })?;
    Ok(Some(Text {
        body,
        world_readable: mode & READ_BY_OTHERS != 0,
    }))
}

/// A file with secrets that everybody may read.
pub(super) fn world_readable(path: &Path) -> Error {
    let path = path.display();
    Error::usage(format!(
        "{path} is readable by everyone and holds a password"
    ))
    .hint(format!("chmod 600 {path}"))
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Error::new(Exit::Denied, format!("cannot read {path}: {error}"))
                .hint("it holds passwords: run the command as its owner, mostly root (sudo)")
        }
        _ => Error::failed(format!("cannot read {path}: {error}")),
    }
}
