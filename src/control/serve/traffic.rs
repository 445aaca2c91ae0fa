//! What goes through the server: a line in the log every five minutes, as the
//! original wrote it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

use super::volumes::Volumes;
use crate::config::format_size;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(300);

/// Bytes and clients since the start.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    /// Clients that are here.
    clients: AtomicU64,
}

/// Writes the lines, for ever.
pub(super) async fn report(traffic: Arc<Traffic>, volumes: Arc<Volumes>) {
    loop {
        sleep(EVERY).await;
        let figure = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (cached, dirty) = volumes.memory();
        tracing::info!(
            clients = figure(&traffic.clients),
            received = figure(&traffic.received),
            sent = figure(&traffic.sent),
            cached = format_size(cached),
            dirty = format_size(dirty),
            "statistics, in bytes"
        );
    }
}

/// A client's stream; what goes through it is counted.
#[derive(Debug)]
pub(super) struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    /// Counts the client as well, for as long as this lives.
    pub(super) fn new(stream: S, traffic: Arc<Traffic>) -> Counted<S> {
        traffic.clients.fetch_add(1, Ordering::Relaxed);
        Counted { stream, traffic }
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.traffic.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let length = buffer.filled().len() - before;
        let received = &self.traffic.received;
        received.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        let sent = &self.traffic.sent;
        sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
