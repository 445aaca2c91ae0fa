//! The handshake: which export a client gets, and what it may do with it.
//!
//! Fixed newstyle, without TLS and without structured replies. A client has
//! ten seconds and 64 options to choose; opening an export takes as long
//! as it takes and is not counted. Nothing is read beyond the last option, so
//! the transmission phase begins on the stream as it is.

mod client;

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use self::client::Client;
use super::wire::option::*;
use super::wire::transmission_flags;
use crate::device::{Device, MAX_REQUEST};

/// How long the server waits for a client altogether.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options that a client may send.
const MAX_OPTIONS: usize = 64;

/// Data of an option that is looked at, in bytes: the longest name and two
/// thousand kinds of information. The only allocation that a client sizes.
const MAX_DATA: u32 = 8 << 10;

/// Data of an option that is skipped, in bytes. More closes the connection.
const MAX_SKIPPED: u32 = 1 << 20;

/// What a client should prefer to ask for at a time, in bytes.
const PREFERRED_BLOCK_SIZE: u32 = 64 << 10;

/// Reserved zeros after the answer to EXPORT_NAME.
const ZEROES: usize = 124;

/// One export in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
}

/// Why an export is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Only to say what it is like (INFO).
    Inspect,
    /// To be served (GO, EXPORT_NAME).
    Serve,
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

    /// The device of the export of this name, never empty. `None` if there is
    /// no such export.
    async fn open(&self, name: &str, purpose: Purpose) -> Result<Option<Device>, Unavailable>;
}

/// Devices that are open already.
#[async_trait]
impl Exports for Vec<(Export, Device)> {
    fn list(&self) -> Vec<Export> {
        self.iter().map(|(export, _)| export.clone()).collect()
    }

    async fn open(&self, name: &str, _: Purpose) -> Result<Option<Device>, Unavailable> {
        let found = self.iter().find(|(export, _)| export.name == name);
        Ok(found.map(|(_, device)| device.clone()))
    }
}

/// What a client has chosen.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The export's name, in full even if the client chose the default.
    pub name: String,
    /// Its device.
    pub device: Device,
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
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Lets a client choose an export. `None`: it left without choosing.
pub async fn negotiate<S>(
    stream: &mut S,
    exports: &dyn Exports,
) -> Result<Option<Chosen>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut handshake = Handshake {
        client: Client::new(stream, PATIENCE),
        exports,
        no_zeroes: false,
    };
    handshake.run().await
}

fn oversized(header: OptionHeader) -> HandshakeError {
    HandshakeError::Oversized {
        option: header.option,
        length: header.length,
    }
}

/// Why an export is not had: the kind of the error reply, and its text.
type Refusal = (u32, String);

fn unknown() -> Refusal {
    (rep::ERR_UNKNOWN, "there is no such export".to_owned())
}

struct Handshake<'a, S> {
    client: Client<'a, S>,
    exports: &'a dyn Exports,
    no_zeroes: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Handshake<'_, S> {
    async fn run(&mut self) -> Result<Option<Chosen>, HandshakeError> {
        self.client.write(&encode_greeting()).await?;
        let Some(flags) = self.client.read().await? else {
            return Ok(None);
        };
        let flags = u32::from_be_bytes(flags);
        // A client without FIXED_NEWSTYLE is served as one that has it.
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
        for _ in 0..MAX_OPTIONS {
            let Some(header) = self.client.read().await? else {
                return Ok(None);
            };
            let header = decode_option(&header)?;
            match header.option {
                opt::EXPORT_NAME => return self.export_name(header).await.map(Some),
                opt::ABORT => return self.abort(header).await,
                opt::LIST => self.list(header).await?,
                opt::INFO => {
                    self.go(header, Purpose::Inspect).await?;
                }
                opt::GO => {
                    if let Some(chosen) = self.go(header, Purpose::Serve).await? {
                        return Ok(Some(chosen));
                    }
                }
                // STARTTLS and STRUCTURED_REPLY among them.
                other => {
                    self.client.skip(header).await?;
                    let text = b"this server does not know the option";
                    self.client.reply(other, rep::ERR_UNSUP, text).await?;
                }
            }
        }
        Err(HandshakeError::TooManyOptions)
    }

    /// EXPORT_NAME has no error reply: what cannot be served ends here.
    async fn export_name(&mut self, header: OptionHeader) -> Result<Chosen, HandshakeError> {
        if header.length > MAX_DATA {
            return Err(oversized(header));
        }
        let data = self.client.read_data(header.length).await?;
        let opened = match decode_name(&data) {
            Ok(name) => self.open(name, Purpose::Serve).await,
            Err(error) => Err((rep::ERR_INVALID, error.to_string())),
        };
        let (export, device) = opened.map_err(|(_, reason)| HandshakeError::Refused {
            name: String::from_utf8_lossy(&data).into_owned(),
            reason,
        })?;
        let mut answer = [0; 10 + ZEROES];
        answer[..10].copy_from_slice(&encode_export(device.size(), transmission_flags(&device)));
        let length = if self.no_zeroes { 10 } else { answer.len() };
        self.client.write(&answer[..length]).await?;
        Ok(Chosen {
            name: export.name,
            device,
        })
    }

    async fn abort(&mut self, header: OptionHeader) -> Result<Option<Chosen>, HandshakeError> {
        self.client.skip(header).await?;
        // "The server SHOULD gracefully handle the client … closing the
        // connection without waiting for a reply."
        let _ = self.client.reply(header.option, rep::ACK, &[]).await;
        Ok(None)
    }

    async fn list(&mut self, header: OptionHeader) -> Result<(), HandshakeError> {
        if header.length > 0 {
            self.client.skip(header).await?;
            let text = b"LIST has no data";
            return self.client.reply(opt::LIST, rep::ERR_INVALID, text).await;
        }
        let mut replies = Vec::new();
        for export in self.exports.list() {
            let data = encode_server(&export.name, &export.description);
            encode_option_reply(&mut replies, opt::LIST, rep::SERVER, &data);
        }
        encode_option_reply(&mut replies, opt::LIST, rep::ACK, &[]);
        self.client.write(&replies).await
    }

    /// INFO and GO: the same answers. `None` after an error, which leaves the
    /// client where it was.
    async fn go(
        &mut self,
        header: OptionHeader,
        purpose: Purpose,
    ) -> Result<Option<Chosen>, HandshakeError> {
        let option = header.option;
        if header.length > MAX_DATA {
            self.client.skip(header).await?;
            let text = b"the option is too long";
            self.client.reply(option, rep::ERR_TOO_BIG, text).await?;
            return Ok(None);
        }
        let data = self.client.read_data(header.length).await?;
        let (opened, wanted) = match decode_go(&data) {
            Ok(go) => (self.open(go.name, purpose).await, go.wanted),
            Err(error) => {
                let kind = match error {
                    BadOption::NameTooLong => rep::ERR_TOO_BIG,
                    BadOption::Length | BadOption::Name => rep::ERR_INVALID,
                };
                (Err((kind, error.to_string())), Vec::new())
            }
        };
        match opened {
            Ok((export, device)) => {
                let replies = describe(option, &export, &device, &wanted);
                self.client.write(&replies).await?;
                Ok(Some(Chosen {
                    name: export.name,
                    device,
                }))
            }
            Err((kind, text)) => {
                self.client.reply(option, kind, text.as_bytes()).await?;
                Ok(None)
            }
        }
    }

    /// The export that a client means by `name`; the empty name means the only
    /// one, if there is only one.
    async fn open(&self, name: &str, purpose: Purpose) -> Result<(Export, Device), Refusal> {
        let mut exports = self.exports.list();
        let found = match (name, exports.len()) {
            ("", 1) => Some(0),
            ("", _) => None,
            _ => exports.iter().position(|export| export.name == name),
        };
        let Some(found) = found else {
            return Err(unknown());
        };
        let export = exports.swap_remove(found);
        match self.exports.open(&export.name, purpose).await {
            Ok(Some(device)) => Ok((export, device)),
            Ok(None) => Err(unknown()),
            Err(Unavailable(text)) => Err((rep::ERR_POLICY, text)),
        }
    }
}

/// The replies to a successful INFO or GO. Size and block sizes are told
/// unasked: a client that ignores them loses nothing.
fn describe(option: u32, export: &Export, device: &Device, wanted: &[u16]) -> Vec<u8> {
    let mut replies = Vec::new();
    let mut tell = |data: Vec<u8>| encode_option_reply(&mut replies, option, rep::INFO, &data);
    tell(encode_info_export(
        device.size(),
        transmission_flags(device),
    ));
    tell(encode_info_block_size(
        device.block_size(),
        PREFERRED_BLOCK_SIZE,
        MAX_REQUEST,
    ));
    if wanted.contains(&info::NAME) {
        tell(encode_info_text(info::NAME, &export.name));
    }
    if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
        tell(encode_info_text(info::DESCRIPTION, &export.description));
    }
    encode_option_reply(&mut replies, option, rep::ACK, &[]);
    replies
}
