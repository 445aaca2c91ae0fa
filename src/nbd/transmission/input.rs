//! What was read from the client and not taken yet.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::nbd::wire::REQUEST_LEN;

/// Size of the read buffer in bytes: two thousand headers, or fifteen writes of
/// 4 KiB, in one system call. What a large payload has in it is copied once
/// more, the rest goes straight to its own buffer, so larger is not better.
const BUFFER_LEN: usize = 64 << 10;

/// A read buffer; bytes are taken from its front.
#[derive(Debug)]
pub(super) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new() -> Input {
        Input {
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a request's header, if all of it is there.
    pub(super) fn header(&mut self) -> Option<&[u8; REQUEST_LEN]> {
        let (header, _) = self.buffer[self.start..self.end].split_first_chunk()?;
        self.start += REQUEST_LEN;
        Some(header)
    }

    /// Takes up to `most` bytes.
    pub(super) fn take(&mut self, most: usize) -> &[u8] {
        let length = most.min(self.len());
        self.start += length;
        &self.buffer[self.start - length..self.start]
    }

    /// Reads once, up to `most` bytes; 0 is the end of the stream. Called when
    /// less than a header is left, so there is room, and moving it is cheap.
    pub(super) fn poll_fill<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = &mut self.buffer[self.end..];
        let length = room.len().min(most);
        debug_assert!(length > 0, "a read of nothing looks like the end");
        let mut read = ReadBuf::new(&mut room[..length]);
        std::task::ready!(stream.poll_read(cx, &mut read))?;
        let length = read.filled().len();
        self.end += length;
        Poll::Ready(Ok(length))
    }
}

/// Reads once, straight into a payload of `length` bytes that is not complete;
/// 0 is the end of the stream.
pub(super) fn poll_payload<S: AsyncRead + Unpin>(
    mut stream: Pin<&mut S>,
    payload: &mut BytesMut,
    length: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let left = length - payload.len();
    let mut room = payload.limit(left);
    // Holds nothing between polls, so it can be made anew for each.
    pin!(stream.read_buf(&mut room)).poll(cx)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(input: &mut Input, mut bytes: &[u8], most: usize) -> usize {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match input.poll_fill(Pin::new(&mut bytes), most, &mut cx) {
            Poll::Ready(Ok(length)) => length,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_header_may_come_in_pieces() {
        let mut input = Input::new();
        assert_eq!(fill(&mut input, &[1; 20], usize::MAX), 20);
        assert_eq!(input.header(), None);
        assert_eq!(fill(&mut input, &[2; 100], 10), 10);
        let mut header = [1; REQUEST_LEN];
        header[20..].fill(2);
        assert_eq!(input.header(), Some(&header));
        assert_eq!(input.take(100), [2, 2]);
        assert!(input.is_empty());
    }

    #[test]
    fn one_read_fills_the_buffer_and_no_more() {
        let mut input = Input::new();
        let bytes = vec![7; 2 * BUFFER_LEN];
        assert_eq!(fill(&mut input, &bytes, usize::MAX), BUFFER_LEN);
        assert_eq!(input.take(BUFFER_LEN - 3).len(), BUFFER_LEN - 3);
        assert_eq!(fill(&mut input, &bytes, usize::MAX), BUFFER_LEN - 3);
    }

    #[test]
    fn a_payload_gets_its_length_and_no_more() {
        let mut stream: &[u8] = &[5; 100];
        let mut payload = BytesMut::with_capacity(64);
        payload.extend_from_slice(&[4; 60]);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let read = poll_payload(Pin::new(&mut stream), &mut payload, 64, &mut cx);
        assert!(matches!(read, Poll::Ready(Ok(4))));
        assert_eq!(payload[58..], [4, 4, 5, 5, 5, 5]);
        assert_eq!(stream.len(), 96);
    }
}
