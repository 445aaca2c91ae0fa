//! Why a volume of format 2 cannot be made, opened or used.

use super::format::claim::Claim;
use super::format::{Damage, JournalId};
use super::journal::Problem;
use crate::image::ImageError;
use crate::store::StoreError;

/// See the module's documentation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The container cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not what was written.
    #[error("{object}: {damage}")]
    Damaged {
        /// The object's name.
        object: String,
        /// What is wrong with it.
        damage: Damage,
    },
    /// An object that must be there is not.
    #[error("{object}: it is not there, although the volume needs it")]
    Missing {
        /// The object's name.
        object: String,
    },
    /// No volume of format 2 was ever made in the container.
    #[error("there is no volume of format 2 in it: no epoch has a pinned root")]
    NotAVolume,
    /// The volume is encrypted, and no passphrase was given.
    #[error("it is encrypted, and there is no passphrase for it")]
    PassphraseNeeded,
    /// A passphrase was given for a volume that is not encrypted.
    #[error("it is not encrypted, but a passphrase is configured for it")]
    NotEncrypted,
    /// There is a volume of format 2 in the container that has been used.
    #[error("there is a volume of format 2 in it that has been attached before")]
    Occupied,
    /// The passphrase is not the volume's.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// Somebody else attached the volume after us.
    #[error("it was attached by {}, as number {}", .0.host.escape_debug(), .0.epoch)]
    Superseded(Box<Claim>),
    /// Somebody else attached the volume after us; who is not known.
    #[error("somebody else attached it: {0}")]
    Fenced(String),
    /// Its journal, which has what its objects have not, is not to be had.
    #[error("its journal{} at {place}: {problem}", .id.map_or(String::new(), |id| format!(" {id}")))]
    Journal {
        /// The journal that it needs; `None`: it needs none, and wants to make one.
        id: Option<JournalId>,
        /// Where it should be.
        place: String,
        /// What is wrong.
        problem: Problem,
    },
    /// The geometry is beyond the limits.
    #[error("{0}")]
    Geometry(String),
}

impl LogError {
    /// With the object that is damaged.
    pub fn damaged(object: impl Into<String>, damage: Damage) -> LogError {
        let object = object.into();
        LogError::Damaged { object, damage }
    }
}

impl From<LogError> for ImageError {
    fn from(error: LogError) -> ImageError {
        match error {
            LogError::Store(error) => ImageError::Store(error),
            error @ (LogError::Superseded(_) | LogError::Fenced(_)) => {
                ImageError::Superseded(error.to_string())
            }
            other => ImageError::Damaged(other.to_string()),
        }
    }
}
