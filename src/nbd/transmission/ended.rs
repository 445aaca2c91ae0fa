//! How a transmission phase ends.

use std::io;

use crate::nbd::wire::BadMagic;

/// How a transmission phase ended. Everything received was answered, or cannot
/// be because the client does not listen any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client sent DISC.
    Disconnected,
    /// The stream ended between two requests: the kernel shut its socket down.
    Eof,
    /// The caller asked to stop. The stream stands at a request's boundary,
    /// nothing read ahead: whoever gets it next can serve on.
    Stopped,
}

/// Why a transmission phase could not go on. Requests that were in flight have
/// been completed all the same.
#[derive(Debug, thiserror::Error)]
pub enum TransmissionError {
    /// The client does not speak NBD, or the stream lost its place.
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
    /// A WRITE that is too long even to be skipped.
    #[error("WRITE of {length} bytes at {offset}: longer than any client may send")]
    Oversized {
        /// First byte of the range.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// The stream ended within a request.
    #[error("the client left in the middle of a request")]
    Truncated,
    /// The client kept the server waiting in the middle of a request.
    #[error("the client does not go on with a request that it began")]
    Stalled,
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
}
