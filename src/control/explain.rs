//! Failures of the rooms below, as a user sees them.

use crate::config::Volume;
use crate::error::{Error, Exit};
use crate::image::ImageError;
use crate::image::objects::meta::MetaError;
use crate::store::{ErrorKind, StoreError};

/// A store's failure, met while working on `volume`.
pub fn store(volume: &Volume, error: &StoreError) -> Error {
    let name = &volume.name;
    let (exit, hint) = match error.kind {
        ErrorKind::NoContainer => (
            Exit::NotFound,
            format!("make the volume with `swiftnbd setup {name} --size SIZE`, or check its name"),
        ),
        ErrorKind::NotFound => (Exit::NotFound, String::new()),
        ErrorKind::Denied => (
            Exit::Denied,
            "check the user name, the password and what this user may do in the account".into(),
        ),
        ErrorKind::Quota => (
            Exit::Failed,
            "free some space, or have the quota raised".into(),
        ),
        ErrorKind::Unreachable => (
            Exit::Unreachable,
            "check the address in the configuration and the network".into(),
        ),
        ErrorKind::Unavailable => (
            Exit::Unreachable,
            "the store does not work at present; try again later".into(),
        ),
        ErrorKind::Superseded | ErrorKind::Corrupt | ErrorKind::Invalid => {
            (Exit::Failed, String::new())
        }
    };
    let error = Error::new(exit, format!("volume {name}: {error}"));
    if hint.is_empty() {
        error
    } else {
        error.hint(hint)
    }
}

/// A problem with a volume's metadata or its lock.
pub fn meta(volume: &Volume, error: &MetaError) -> Error {
    let name = &volume.name;
    let message = format!("volume {name}: {error}");
    match error {
        MetaError::Store(error) => store(volume, error),
        MetaError::NotAVolume => Error::new(Exit::NotFound, message).hint(format!(
            "`swiftnbd setup {name} --size SIZE` makes the container a volume"
        )),
        MetaError::UnknownVersion(_) => {
            Error::failed(message).hint("a newer version of swiftnbd may know it")
        }
        MetaError::Damaged { .. } => Error::failed(message).hint(format!(
            "if you know its size: `swiftnbd setup --force {name} OBJECTS --object-size SIZE` \
             writes the metadata anew and leaves the data alone"
        )),
        MetaError::Locked(_) => Error::new(Exit::InUse, message).hint(format!(
            "if that holder is dead, and only then: `swiftnbd unlock {name}`"
        )),
        MetaError::NotLocked => Error::failed(message),
    }
}

/// A failure of a running volume.
pub fn image(volume: &Volume, error: &ImageError) -> Error {
    match error {
        ImageError::Store(error) => store(volume, error),
        ImageError::Damaged(_) | ImageError::Closed => {
            Error::failed(format!("volume {}: {error}", volume.name))
        }
    }
}
