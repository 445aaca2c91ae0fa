//! What a server offers, and what becomes of a client's wishes.

use std::io;

use async_trait::async_trait;

use super::{MAX_OPTIONS, Upgrade};
use crate::device::{Device, Shape};
use crate::nbd::transmission::Agreed;
use crate::nbd::wire::option::BadOptionMagic;

/// One export in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
}

/// An export that exists and cannot be had now: it is leased to somebody else,
/// or its store is out of reach. The text is shown to the client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// What a server has to offer. A volume may be opened at its first client.
#[async_trait]
pub trait Exports: Send + Sync {
    /// Every export, in the order in which they are listed.
    fn list(&self) -> Vec<Export>;

    /// What the export of this name, never empty, is like, without opening it.
    /// `None` if there is no such export.
    async fn inspect(&self, name: &str) -> Result<Option<Shape>, Unavailable>;

    /// The device of the export of this name, never empty, to be served. `None`
    /// if there is no such export.
    async fn open(&self, name: &str) -> Result<Option<Device>, Unavailable>;
}

/// Devices that are open already.
#[async_trait]
impl Exports for Vec<(Export, Device)> {
    fn list(&self) -> Vec<Export> {
        self.iter().map(|(export, _)| export.clone()).collect()
    }

    async fn inspect(&self, name: &str) -> Result<Option<Shape>, Unavailable> {
        Ok(self.open(name).await?.map(|device| device.shape()))
    }

    async fn open(&self, name: &str) -> Result<Option<Device>, Unavailable> {
        let found = self.iter().find(|(export, _)| export.name == name);
        Ok(found.map(|(_, device)| device.clone()))
    }
}

/// Whether the caller has TLS to offer. If so, it is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// There is none.
    None,
    /// There is, and nothing is told without it.
    Required,
}

/// What a client has chosen.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The export's name, in full even if the client chose the default.
    pub name: String,
    /// Its device.
    pub device: Device,
    /// What the transmission phase may use.
    pub agreed: Agreed,
}

/// How a handshake came to its end, or to TLS.
#[derive(Debug)]
pub enum Outcome {
    /// The client has an export.
    Chosen(Chosen),
    /// The client waits for TLS.
    StartTls(Upgrade),
    /// The client left without choosing.
    Left,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client said too little for too long.
    #[error("the client did not choose an export in time")]
    Timeout,
    /// The client set flags that were not offered.
    #[error("the client sent unknown flags: {0:#010x}")]
    ClientFlags(u32),
    /// The client does not speak NBD.
    #[error(transparent)]
    BadMagic(#[from] BadOptionMagic),
    /// An option too long to be skipped, or an EXPORT_NAME too long to be read.
    #[error("option {option} has {length} bytes of data")]
    Oversized {
        /// The option's number.
        option: u32,
        /// The length of its data in bytes.
        length: u32,
    },
    /// More options than any client needs.
    #[error("the client sent more than {MAX_OPTIONS} options")]
    TooManyOptions,
    /// An EXPORT_NAME that cannot be served; it has no error reply.
    #[error("export {name:?}: {reason}")]
    Refused {
        /// The name that the client asked for.
        name: String,
        /// Why it does not get it.
        reason: String,
    },
    /// The client wanted an export before TLS, by the option that has no error
    /// reply.
    #[error("the client does not use TLS")]
    Insecure,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}
