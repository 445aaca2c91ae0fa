//! What a user sees when something fails: a message, its cause, a hint and
//! the exit status of the process.
//!
//! Knows: the command line's exit statuses. Does not know: how a failure came
//! about; the rooms below have error types of their own, and the control plane
//! translates them into this one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit status of the process; part of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Exit {
    /// The command failed for a reason that no other status names.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The volume or the device is in use, or locked.
    InUse = 3,
    /// The container, volume or device does not exist.
    NotFound = 4,
    /// Swift or the kernel refused access.
    Denied = 5,
    /// Swift could not be reached.
    Unreachable = 6,
}

/// A failure as it is shown to a person.
///
/// `Display` prints `message: cause`, then, where there is something to do, an
/// empty line and `hint: …`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The exit status that it leads to.
    pub exit: Exit,
    /// What failed, on which object or device, and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The result of whatever a user asked for.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure with this exit status and message, and no hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Error {
        Error {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// A failure with exit status 1.
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(Exit::Failed, message)
    }

    /// A mistake in the command line or the configuration: exit status 2.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Exit::Usage, message)
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done in front of the message.
    pub fn context(mut self, doing: impl fmt::Display) -> Error {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
