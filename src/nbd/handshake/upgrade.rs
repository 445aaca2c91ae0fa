//! From a plain stream to TLS in the middle of a handshake.
//!
//! Knows: when a client may ask for it, and what is forgotten then. Does not
//! know: TLS.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{Client, within};
use super::{Exports, Handshake, HandshakeError, Next, Outcome, Security};
use crate::nbd::wire::option::{OptionHeader, opt, rep};

/// A negotiation that goes on once there is TLS. What the client said before is
/// forgotten, but for its flags and what is left of our patience.
#[derive(Debug)]
pub struct Upgrade {
    patience: Duration,
    options: usize,
    no_zeroes: bool,
}

impl Upgrade {
    /// Waits for the client's part in making TLS, no longer than for the rest of
    /// what it has to say.
    pub async fn wait<T>(
        &mut self,
        io: impl Future<Output = io::Result<T>>,
    ) -> Result<T, HandshakeError> {
        within(&mut self.patience, io).await
    }

    /// Goes on over TLS. Never ends with [`Outcome::StartTls`].
    pub async fn resume<S>(
        self,
        stream: &mut S,
        exports: &dyn Exports,
    ) -> Result<Outcome, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut handshake = Handshake {
            client: Client::new(stream, self.patience),
            exports,
            security: Security::Tls,
            no_zeroes: self.no_zeroes,
            options: self.options,
            structured: false,
            context: None,
        };
        handshake.haggle().await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Handshake<'_, S> {
    /// An option before the TLS that is required: nothing but that is answered.
    pub(super) async fn insecure_option(
        &mut self,
        header: OptionHeader,
    ) -> Result<Next, HandshakeError> {
        match header.option {
            opt::ABORT => self.abort(header).await,
            opt::EXPORT_NAME => Err(HandshakeError::Insecure),
            opt::STARTTLS if header.length > 0 => {
                let text = "STARTTLS has no data";
                self.refuse(header, rep::ERR_INVALID, text).await?;
                Ok(Next::Option)
            }
            opt::STARTTLS => {
                self.client.reply(header.option, rep::ACK, &[]).await?;
                Ok(Next::End(Outcome::StartTls(Upgrade {
                    patience: self.client.patience(),
                    options: self.options,
                    no_zeroes: self.no_zeroes,
                })))
            }
            _ => {
                let text = "this server needs TLS";
                self.refuse(header, rep::ERR_TLS_REQD, text).await?;
                Ok(Next::Option)
            }
        }
    }
}
