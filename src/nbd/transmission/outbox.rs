//! Replies that are ready and not yet written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::in_flight::Share;
use crate::nbd::wire::REPLY_LEN;
use crate::nbd::wire::chunk::READ_CHUNK_LEN;

/// Pieces in one vectored write: 64 replies to 4 KiB reads. The kernel takes up
/// to 1024, but a socket's buffer is full long before.
const SLICES: usize = 128;

/// One reply: the header that it begins with, and what follows it: a READ's data,
/// with further headers between it if it is structured.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) header: Header,
    pub(super) data: Vec<Bytes>,
    /// What the request holds in flight, given back when this is written.
    pub(super) share: Share,
}

/// A header without an allocation of its own.
#[derive(Debug)]
pub(super) enum Header {
    /// Of a simple reply.
    Simple([u8; REPLY_LEN]),
    /// Of the first chunk of a READ's data.
    Chunk([u8; READ_CHUNK_LEN]),
    /// It is in the data.
    None,
}

impl Header {
    fn bytes(&self) -> &[u8] {
        match self {
            Header::Simple(bytes) => bytes,
            Header::Chunk(bytes) => bytes,
            Header::None => &[],
        }
    }
}

impl Reply {
    fn piece(&self, index: usize) -> Option<&[u8]> {
        match index {
            0 => Some(self.header.bytes()),
            _ => self.data.get(index - 1).map(|piece| &piece[..]),
        }
    }
}

/// A queue of replies and the place in the first one up to which it is written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    replies: VecDeque<Reply>,
    piece: usize,
    offset: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, reply: Reply) {
        self.replies.push_back(reply);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Writes once; the caller then calls [`Outbox::advance`].
    pub(super) fn poll_write<S: AsyncWrite>(
        &self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.fill(&mut slices);
        match ready!(stream.poll_write_vectored(cx, &slices[..count]))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(Ok(written)),
        }
    }

    /// The bytes to write next, as far as they fit; returns how many slices. No
    /// reply is empty, so there are some.
    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let (mut piece, mut offset) = (self.piece, self.offset);
        for reply in &self.replies {
            while let Some(bytes) = reply.piece(piece) {
                if bytes.len() > offset {
                    let Some(slice) = slices.get_mut(count) else {
                        return count;
                    };
                    *slice = IoSlice::new(&bytes[offset..]);
                    count += 1;
                }
                piece += 1;
                offset = 0;
            }
            piece = 0;
        }
        count
    }

    /// Takes `written` bytes off the front and gives the share of each reply
    /// that is complete to `release`.
    pub(super) fn advance(&mut self, mut written: usize, mut release: impl FnMut(Share)) {
        while let Some(front) = self.replies.front() {
            let Some(piece) = front.piece(self.piece) else {
                release(front.share);
                self.replies.pop_front();
                self.piece = 0;
                continue;
            };
            let left = piece.len() - self.offset;
            if written < left {
                self.offset += written;
                return;
            }
            written -= left;
            self.piece += 1;
            self.offset = 0;
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, mut release: impl FnMut(Share)) {
        for reply in self.replies.drain(..) {
            release(reply.share);
        }
        self.piece = 0;
        self.offset = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the stream cuts the writes, every byte leaves once, in
        /// order, and every reply's share comes back.
        #[test]
        fn every_byte_leaves_once(
            replies in prop::collection::vec(prop::collection::vec(0..40usize, 0..6), 0..60),
            steps in prop::collection::vec(1..200usize, 1..20),
        ) {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for (number, lengths) in replies.iter().enumerate() {
                let header = match number % 3 {
                    0 if lengths.iter().any(|length| *length > 0) => Header::None,
                    0 | 1 => Header::Simple([number as u8; REPLY_LEN]),
                    _ => Header::Chunk([number as u8; READ_CHUNK_LEN]),
                };
                let data: Vec<_> = lengths.iter().map(|&n| Bytes::from(vec![n as u8; n])).collect();
                expected.extend_from_slice(header.bytes());
                data.iter().for_each(|piece| expected.extend_from_slice(piece));
                outbox.push(Reply { header, data, share: Share::default() });
            }
            let mut written = Vec::new();
            let mut released = 0;
            for step in steps.iter().cycle() {
                if outbox.is_empty() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = outbox.fill(&mut slices);
                let ready: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                prop_assert!(!ready.is_empty());
                let taken = ready.len().min(*step);
                written.extend_from_slice(&ready[..taken]);
                outbox.advance(taken, |_| released += 1);
            }
            prop_assert_eq!(written, expected);
            prop_assert_eq!(released, replies.len());
        }
    }
}
