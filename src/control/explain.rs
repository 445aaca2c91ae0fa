//! Failures of the rooms below, as a user sees them.

use crate::config::{Backend, Volume};
use crate::device::DeviceError;
use crate::error::{Error, Exit};
use crate::image::ImageError;
use crate::image::log::LogError;
use crate::image::meta::MetaError;
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
        MetaError::Damaged { format: 2, .. } => Error::failed(message).hint(format!(
            "the volume itself knows its size: `swiftnbd check {name} --repair` writes the \
             metadata anew"
        )),
        MetaError::Damaged { .. } => Error::failed(message).hint(format!(
            "if you know its size: `swiftnbd setup --force {name} OBJECTS \
             --object-size SIZE` writes the metadata anew and leaves the data alone"
        )),
        MetaError::Unfinished(_) => Error::new(Exit::InUse, message).hint(format!(
            "the same `swiftnbd convert` again completes it; `swiftnbd delete {name}` gives it up"
        )),
        MetaError::Deleting => Error::new(Exit::InUse, message)
            .hint(format!("`swiftnbd delete {name}` deletes the rest of it")),
        MetaError::Locked(_) => Error::new(Exit::InUse, message).hint(format!(
            "if that holder is dead, and only then: `swiftnbd unlock {name}`"
        )),
        MetaError::NotLocked => Error::failed(message),
    }
}

/// A volume of format 2 that cannot be opened.
pub fn log(volume: &Volume, error: &LogError) -> Error {
    let name = &volume.name;
    let message = format!("{}: {error}", who(volume));
    match error {
        LogError::Store(error) if error.kind == ErrorKind::Denied && volume.read_only => {
            store(volume, error).hint(
                "a volume of format 2 is claimed by writing to its container, also by who only \
                 reads it: this user has to be allowed to write there",
            )
        }
        LogError::Store(error) => store(volume, error),
        LogError::NotAVolume => {
            let what = "the metadata says that a volume is here, but its objects are not found";
            Error::new(Exit::NotFound, format!("{}: {what}", who(volume)))
                .hint("are all of Swift's servers up?")
        }
        LogError::Occupied => Error::new(Exit::InUse, message).hint(format!(
            "`swiftnbd check --repair {name}` writes lost metadata anew; if the volume is to go: \
             `swiftnbd delete {name}`"
        )),
        LogError::WrongPassphrase => Error::new(Exit::Denied, message)
            .hint("no data was changed; look where the passphrase came from"),
        LogError::PassphraseNeeded => Error::new(Exit::Denied, message).hint(
            "name the file of its passphrase with --passphrase-file, or with passphrase_file in \
             the configuration",
        ),
        LogError::NotEncrypted => Error::new(Exit::Denied, message).hint(
            "if it was encrypted before, somebody has replaced it; else leave the passphrase out",
        ),
        LogError::Superseded(_) | LogError::Fenced(_) => Error::new(Exit::InUse, message)
            .hint("somebody else uses the volume at the same time: `swiftnbd list` may show who"),
        LogError::Damaged { .. } | LogError::Missing { .. } => Error::failed(message).hint(
            format!("`swiftnbd check {name}` tells what is damaged besides"),
        ),
        LogError::Journal { id: None, .. } => Error::failed(message).hint(
            "it is nothing of this volume's and is not touched: move it away, or choose another \
             place with journal in the configuration",
        ),
        LogError::Journal { .. } => Error::failed(message).hint(format!(
            "it may have writes that were answered and that the store does not have; if it is lost \
             for good, and they with it: `swiftnbd attach --takeover {name}`"
        )),
        LogError::Geometry(_) => Error::new(Exit::Usage, message),
    }
}

/// Why a device cannot be made durable, or be closed: [`Exit::InUse`] if somebody else
/// has attached the volume. It is theirs then, their lock included, and no other attempt
/// can succeed.
pub fn device(error: &DeviceError) -> Error {
    match error {
        DeviceError::Image(ImageError::Superseded(_)) => Error::new(Exit::InUse, error.to_string()),
        error => Error::failed(error.to_string()),
    }
}

/// The end of a device, or of an export, whose volume somebody else has attached.
pub fn taken_over(what: &str, why: &Error, dirty: u64) -> Error {
    let lost = match dirty {
        0 => String::new(),
        dirty => format!("; {dirty} bytes that were not stored before are lost"),
    };
    let why = &why.message;
    Error::new(
        Exit::InUse,
        format!("{what}: {why}; the volume is theirs now{lost}"),
    )
}

/// A failure of a running volume.
pub fn image(volume: &Volume, error: &ImageError) -> Error {
    match error {
        ImageError::Store(error) => store(volume, error),
        ImageError::Superseded(_) => {
            Error::new(Exit::InUse, format!("volume {}: {error}", volume.name))
        }
        ImageError::Damaged(_) | ImageError::Closed => {
            Error::failed(format!("volume {}: {error}", volume.name))
        }
    }
}
