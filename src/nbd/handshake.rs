//! The handshake: which export a client gets, and what it may do with it.
//!
//! Fixed newstyle, with structured replies, the metadata context
//! `base:allocation`, and TLS where the caller has it. A client has ten seconds
//! and 64 options to choose; opening an export takes as long as it takes and is
//! not counted. Nothing is read beyond the last option, so the transmission phase,
//! or TLS, begins on the stream as it is.
//!
//! TLS itself is the caller's: STARTTLS ends the negotiation with an [`Upgrade`],
//! which goes on over the stream that the caller has made. Where TLS is there, it
//! is required: before it, a client learns nothing but that.

mod client;
mod context;
mod exports;
mod upgrade;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use self::client::Client;
pub use self::exports::{Chosen, Export, Exports, HandshakeError, Outcome, Tls, Unavailable};
pub use self::upgrade::Upgrade;
use super::transmission::Agreed;
use super::wire::export_flags;
use super::wire::option::*;
use crate::device::{Device, MAX_REQUEST, Shape};

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

/// Lets a client choose an export.
pub async fn negotiate<S>(
    stream: &mut S,
    exports: &dyn Exports,
    tls: Tls,
) -> Result<Outcome, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut handshake = Handshake {
        client: Client::new(stream, PATIENCE),
        exports,
        security: match tls {
            Tls::None => Security::Plain,
            Tls::Required => Security::Awaited,
        },
        no_zeroes: false,
        options: 0,
        structured: false,
        context: None,
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

fn malformed(error: BadOption) -> Refusal {
    let kind = match error {
        BadOption::NameTooLong => rep::ERR_TOO_BIG,
        BadOption::Length | BadOption::Name => rep::ERR_INVALID,
    };
    (kind, error.to_string())
}

/// How the client's stream is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    /// Not, and it need not be.
    Plain,
    /// Not yet, and it must be.
    Awaited,
    /// By TLS.
    Tls,
}

/// Where the negotiation goes after an option.
enum Next {
    Option,
    End(Outcome),
}

struct Handshake<'a, S> {
    client: Client<'a, S>,
    exports: &'a dyn Exports,
    security: Security,
    no_zeroes: bool,
    /// Options that came so far.
    options: usize,
    /// Structured replies were agreed on.
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    context: Option<String>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Handshake<'_, S> {
    async fn run(&mut self) -> Result<Outcome, HandshakeError> {
        self.client.write(&encode_greeting()).await?;
        let Some(flags) = self.client.read().await? else {
            return Ok(Outcome::Left);
        };
        let flags = u32::from_be_bytes(flags);
        // A client without FIXED_NEWSTYLE is served as one that has it.
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
        self.haggle().await
    }

    async fn haggle(&mut self) -> Result<Outcome, HandshakeError> {
        while self.options < MAX_OPTIONS {
            self.options += 1;
            let Some(header) = self.client.read().await? else {
                return Ok(Outcome::Left);
            };
            let header = decode_option(&header)?;
            let next = match self.security {
                Security::Awaited => self.insecure_option(header).await?,
                Security::Plain | Security::Tls => self.option(header).await?,
            };
            if let Next::End(outcome) = next {
                return Ok(outcome);
            }
        }
        Err(HandshakeError::TooManyOptions)
    }

    async fn option(&mut self, header: OptionHeader) -> Result<Next, HandshakeError> {
        match header.option {
            opt::EXPORT_NAME => return self.export_name(header).await,
            opt::ABORT => return self.abort(header).await,
            opt::GO => return self.go(header).await,
            opt::INFO => self.info(header).await?,
            opt::LIST => self.list(header).await?,
            opt::STRUCTURED_REPLY => self.structured_reply(header).await?,
            opt::LIST_META_CONTEXT => self.list_contexts(header).await?,
            opt::SET_META_CONTEXT => self.set_contexts(header).await?,
            opt::STARTTLS if self.security == Security::Tls => {
                let text = "the connection is encrypted already";
                self.refuse(header, rep::ERR_INVALID, text).await?;
            }
            opt::STARTTLS => {
                let text = "this server has no certificate";
                self.refuse(header, rep::ERR_UNSUP, text).await?;
            }
            _ => {
                let text = "this server does not know the option";
                self.refuse(header, rep::ERR_UNSUP, text).await?;
            }
        }
        Ok(Next::Option)
    }

    /// Skips an option's data and says why it is not followed.
    async fn refuse(
        &mut self,
        header: OptionHeader,
        kind: u32,
        text: &str,
    ) -> Result<(), HandshakeError> {
        self.client.skip(header).await?;
        let option = header.option;
        self.client.reply(option, kind, text.as_bytes()).await
    }

    /// An option's data; `None` if it is too long, and has been refused.
    async fn data(&mut self, header: OptionHeader) -> Result<Option<Vec<u8>>, HandshakeError> {
        if header.length > MAX_DATA {
            let text = "the option is too long";
            self.refuse(header, rep::ERR_TOO_BIG, text).await?;
            return Ok(None);
        }
        self.client.read_data(header.length).await.map(Some)
    }

    /// EXPORT_NAME has no error reply: what cannot be served ends here.
    async fn export_name(&mut self, header: OptionHeader) -> Result<Next, HandshakeError> {
        if header.length > MAX_DATA {
            return Err(oversized(header));
        }
        let data = self.client.read_data(header.length).await?;
        let opened = match decode_name(&data) {
            Ok(name) => self.open(name).await,
            Err(error) => Err(malformed(error)),
        };
        let (export, device) = opened.map_err(|(_, reason)| HandshakeError::Refused {
            name: String::from_utf8_lossy(&data).into_owned(),
            reason,
        })?;
        let mut answer = [0; 10 + ZEROES];
        let flags = export_flags(&device.shape(), self.structured);
        answer[..10].copy_from_slice(&encode_export(device.size(), flags));
        let length = if self.no_zeroes { 10 } else { answer.len() };
        self.client.write(&answer[..length]).await?;
        Ok(self.chosen(export, device))
    }

    fn chosen(&self, export: Export, device: Device) -> Next {
        let agreed = Agreed {
            structured: self.structured,
            // What was chosen for another export does not count.
            block_status: self.context.as_ref() == Some(&export.name),
        };
        Next::End(Outcome::Chosen(Chosen {
            name: export.name,
            device,
            agreed,
        }))
    }

    async fn abort(&mut self, header: OptionHeader) -> Result<Next, HandshakeError> {
        self.client.skip(header).await?;
        // "The server SHOULD gracefully handle the client … closing the
        // connection without waiting for a reply."
        let _ = self.client.reply(header.option, rep::ACK, &[]).await;
        Ok(Next::End(Outcome::Left))
    }

    async fn list(&mut self, header: OptionHeader) -> Result<(), HandshakeError> {
        if header.length > 0 {
            let text = "LIST has no data";
            return self.refuse(header, rep::ERR_INVALID, text).await;
        }
        let mut replies = Vec::new();
        for export in self.exports.list() {
            let data = encode_server(&export.name, &export.description);
            encode_option_reply(&mut replies, opt::LIST, rep::SERVER, &data);
        }
        encode_option_reply(&mut replies, opt::LIST, rep::ACK, &[]);
        self.client.write(&replies).await
    }

    async fn structured_reply(&mut self, header: OptionHeader) -> Result<(), HandshakeError> {
        if header.length > 0 {
            let text = "STRUCTURED_REPLY has no data";
            return self.refuse(header, rep::ERR_INVALID, text).await;
        }
        self.structured = true;
        self.client.reply(header.option, rep::ACK, &[]).await
    }

    /// What GO would say, without opening anything.
    async fn info(&mut self, header: OptionHeader) -> Result<(), HandshakeError> {
        let Some(data) = self.data(header).await? else {
            return Ok(());
        };
        let found = match decode_go(&data) {
            Ok(go) => self.inspect(go.name).await.map(|found| (found, go.wanted)),
            Err(error) => Err(malformed(error)),
        };
        match found {
            Ok(((export, shape), wanted)) => {
                let replies = describe(opt::INFO, &export, &shape, self.structured, &wanted);
                self.client.write(&replies).await
            }
            Err((kind, text)) => self.client.reply(opt::INFO, kind, text.as_bytes()).await,
        }
    }

    /// An error leaves the client where it was.
    async fn go(&mut self, header: OptionHeader) -> Result<Next, HandshakeError> {
        let Some(data) = self.data(header).await? else {
            return Ok(Next::Option);
        };
        let opened = match decode_go(&data) {
            Ok(go) => self.open(go.name).await.map(|opened| (opened, go.wanted)),
            Err(error) => Err(malformed(error)),
        };
        match opened {
            Ok(((export, device), wanted)) => {
                let shape = device.shape();
                let replies = describe(opt::GO, &export, &shape, self.structured, &wanted);
                self.client.write(&replies).await?;
                Ok(self.chosen(export, device))
            }
            Err((kind, text)) => {
                self.client.reply(opt::GO, kind, text.as_bytes()).await?;
                Ok(Next::Option)
            }
        }
    }

    /// The export that a client means by `name`; the empty name means the only
    /// one, if there is only one.
    fn find(&self, name: &str) -> Result<Export, Refusal> {
        let mut exports = self.exports.list();
        let found = match (name, exports.len()) {
            ("", 1) => Some(0),
            ("", _) => {
                let text = "there are several exports and none of them is the default";
                return Err((rep::ERR_UNKNOWN, text.to_owned()));
            }
            _ => exports.iter().position(|export| export.name == name),
        };
        match found {
            Some(found) => Ok(exports.swap_remove(found)),
            None => Err(unknown()),
        }
    }

    async fn inspect(&self, name: &str) -> Result<(Export, Shape), Refusal> {
        let export = self.find(name)?;
        match self.exports.inspect(&export.name).await {
            Ok(Some(shape)) => Ok((export, shape)),
            Ok(None) => Err(unknown()),
            Err(Unavailable(text)) => Err((rep::ERR_POLICY, text)),
        }
    }

    async fn open(&self, name: &str) -> Result<(Export, Device), Refusal> {
        let export = self.find(name)?;
        match self.exports.open(&export.name).await {
            Ok(Some(device)) => Ok((export, device)),
            Ok(None) => Err(unknown()),
            Err(Unavailable(text)) => Err((rep::ERR_POLICY, text)),
        }
    }
}

/// The replies to a successful INFO or GO. Size and block sizes are told
/// unasked: a client that ignores them loses nothing.
fn describe(
    option: u32,
    export: &Export,
    shape: &Shape,
    structured: bool,
    wanted: &[u16],
) -> Vec<u8> {
    let mut replies = Vec::new();
    let mut tell = |data: Vec<u8>| encode_option_reply(&mut replies, option, rep::INFO, &data);
    tell(encode_info_export(
        shape.size,
        export_flags(shape, structured),
    ));
    tell(encode_info_block_size(
        shape.block_size,
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
