//! The NBD protocol, server side, over any stream of bytes.
//!
//! Knows: requests, replies, cookies, trim, FUA, and NBD's errnos; nobody else
//! in this crate knows an errno. Does not know: who the client is (the kernel
//! or a program), how the stream came about, how a device keeps its bytes.
//!
//! - [`wire`]: the bytes of every message, pure: no I/O.
//! - [`handshake`]: which export a client gets (`serve` only; with the kernel
//!   there is none, netlink has said everything).
//! - [`transmission`]: requests and replies, pipelined, until the client
//!   leaves or the caller says stop.
//!
//! "The document" is `doc/proto.md` of the NetworkBlockDevice project, the
//! protocol's definition; section names in the comments are its own.

pub mod handshake;
pub mod transmission;
pub mod wire;

pub use handshake::{
    Chosen, Export, Exports, HandshakeError, Outcome, Tls, Unavailable, Upgrade, negotiate,
};
pub use transmission::{Agreed, Ended, Limits, Pool, Terms, TransmissionError, serve};
pub use wire::transmission_flags;
