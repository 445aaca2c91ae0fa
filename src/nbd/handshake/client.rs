//! Talking to a client that may be slow, silent or hostile.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{HandshakeError, MAX_DATA, MAX_SKIPPED, oversized};
use crate::nbd::wire::option::{OptionHeader, encode_option_reply};

/// The stream, with what is left of our patience.
pub(super) struct Client<'a, S> {
    stream: &'a mut S,
    patience: Duration,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + Send> Client<'a, S> {
    pub(super) fn new(stream: &'a mut S, patience: Duration) -> Client<'a, S> {
        Client { stream, patience }
    }

    /// What is left of it.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Reads a message of fixed length; `None` if the stream ends before it.
    pub(super) async fn read<const N: usize>(&mut self) -> Result<Option<[u8; N]>, HandshakeError> {
        let mut bytes = [0; N];
        let first = within(&mut self.patience, self.stream.read(&mut bytes)).await?;
        if first == 0 {
            return Ok(None);
        }
        let rest = self.stream.read_exact(&mut bytes[first..]);
        within(&mut self.patience, rest).await?;
        Ok(Some(bytes))
    }

    /// Reads an option's data, at most [`MAX_DATA`].
    pub(super) async fn read_data(&mut self, length: u32) -> Result<Vec<u8>, HandshakeError> {
        let mut data = vec![0; length.min(MAX_DATA) as usize];
        within(&mut self.patience, self.stream.read_exact(&mut data)).await?;
        Ok(data)
    }

    pub(super) async fn skip(&mut self, header: OptionHeader) -> Result<(), HandshakeError> {
        if header.length > MAX_SKIPPED {
            return Err(oversized(header));
        }
        let mut left = header.length as usize;
        let mut piece = [0; 1 << 10];
        while left > 0 {
            let length = left.min(piece.len());
            let read = self.stream.read_exact(&mut piece[..length]);
            left -= within(&mut self.patience, read).await?;
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let stream = &mut *self.stream;
        let write = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        within(&mut self.patience, write).await
    }

    pub(super) async fn reply(
        &mut self,
        option: u32,
        kind: u32,
        data: &[u8],
    ) -> Result<(), HandshakeError> {
        let mut reply = Vec::with_capacity(20 + data.len());
        encode_option_reply(&mut reply, option, kind, data);
        self.write(&reply).await
    }
}

/// Waits for the client, and takes that off our patience.
pub(super) async fn within<T>(
    patience: &mut Duration,
    io: impl Future<Output = io::Result<T>>,
) -> Result<T, HandshakeError> {
    let start = Instant::now();
    let result = timeout(*patience, io).await;
    *patience = patience.saturating_sub(start.elapsed());
    result
        .map_err(|_| HandshakeError::Timeout)?
        .map_err(HandshakeError::Io)
}
