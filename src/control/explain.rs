//! Failures of the rooms below, as a user sees them.

use crate::config::{Backend, Volume};
use crate::error::{Error, Exit};
use crate::image::ImageError;
use crate::image::objects::meta::MetaError;
use crate::store::{ErrorKind, StoreError};

/// A volume by its name, and its container if that has another one.
fn who(volume: &Volume) -> String {
    match volume.container == volume.name {
        true => format!("volume {}", volume.name),
        false => format!("volume {} (container {})", volume.name, volume.container),
    }
}

/// Where a volume is kept, for a hint.
fn place(volume: &Volume) -> String {
    match &volume.backend {
        Backend::Dir(root) => root.display().to_string(),
        Backend::Swift(credentials) => credentials.auth.url().to_owned(),
    }
}

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
            format!("check the network, and the address {}", place(volume)),
        ),
        ErrorKind::Unavailable => (
            Exit::Unreachable,
            format!(
                "{} does not work at present; try again later",
                place(volume)
            ),
        ),
        // What can be put right is in the configuration.
        ErrorKind::Invalid if error.hint.is_some() => (Exit::Usage, String::new()),
        ErrorKind::Superseded | ErrorKind::Corrupt | ErrorKind::Invalid => {
            (Exit::Failed, String::new())
        }
    };
    let hint = error.hint.as_deref().map_or(hint, str::to_owned);
    let error = Error::new(exit, format!("{}: {error}", who(volume)));
    if hint.is_empty() {
        error
    } else {
        error.hint(hint)
    }
}

/// A problem with a volume's metadata or its lock.
pub fn meta(volume: &Volume, error: &MetaError) -> Error {
    let name = &volume.name;
    let message = format!("{}: {error}", who(volume));
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
        MetaError::Deleting => Error::new(Exit::InUse, message)
            .hint(format!("`swiftnbd delete {name}` deletes the rest of it")),
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
        ImageError::Damaged(_) | ImageError::Superseded(_) | ImageError::Closed => {
            Error::failed(format!("volume {}: {error}", volume.name))
        }
    }
}
