//! What was agreed with a client, and what it may take.

use std::time::Duration;

use super::in_flight::{Limits, Pool};

/// What a client may use in the transmission phase, as the handshake found out.
/// The kernel agrees on nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Structured replies.
    pub structured: bool,
    /// BLOCK_STATUS in the context `base:allocation`. Needs `structured`.
    pub block_status: bool,
}

/// The terms of one connection.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// How much may be in flight.
    pub limits: Limits,
    /// What the client may use.
    pub agreed: Agreed,
    /// Memory that is shared with other connections, if it is.
    pub pool: Option<Pool>,
    /// How long a client may keep the server waiting for the rest of a request, or
    /// with replies that it does not take. `None`: for ever, as the kernel may.
    pub patience: Option<Duration>,
}

impl From<Limits> for Terms {
    fn from(limits: Limits) -> Terms {
        Terms {
            limits,
            ..Terms::default()
        }
    }
}
