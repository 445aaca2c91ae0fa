//! Replies, simple or in chunks.
//!
//! With structured replies, a READ's data comes in chunks and what is zeros in it
//! is not sent, errors have a text, and everything else is answered as simply as
//! before, which the document allows.

use bytes::Bytes;

use super::in_flight::Share;
use super::outbox::{Header, Reply};
use super::terms::Agreed;
use crate::image::Extent;
use crate::nbd::wire::chunk::{encode_data, encode_error, encode_hole, encode_status};
use crate::nbd::wire::context::ALLOCATION_ID;
use crate::nbd::wire::{Errno, Request, command_flag, encode_reply};

/// Pieces of data below this size are sent even if they are zeros.
const LEAST_HOLE: usize = 4096;

/// What a request that succeeded is answered with.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing but that.
    Done,
    /// A READ's data, in pieces, which are as many bytes as were asked for.
    Data(Vec<Bytes>),
    /// A BLOCK_STATUS's extents.
    Status(Vec<Extent>),
}

/// The reply to a request that succeeded.
pub(super) fn success(request: &Request, agreed: Agreed, share: Share, outcome: Outcome) -> Reply {
    let simple = Header::Simple(encode_reply(request.cookie, None));
    let (header, data) = match outcome {
        Outcome::Done => (simple, Vec::new()),
        Outcome::Data(pieces) if agreed.structured => chunks(request, pieces),
        Outcome::Data(pieces) => (simple, pieces),
        Outcome::Status(extents) => {
            let status = encode_status(request.cookie, ALLOCATION_ID, &extents);
            (Header::None, vec![status])
        }
    };
    Reply {
        header,
        data,
        share,
    }
}

/// The reply to a request that failed.
pub(super) fn failure(
    request: &Request,
    agreed: Agreed,
    share: Share,
    errno: Errno,
    text: &str,
) -> Reply {
    let (header, data) = match agreed.structured {
        true => (
            Header::None,
            vec![encode_error(request.cookie, errno, text)],
        ),
        false => (
            Header::Simple(encode_reply(request.cookie, Some(errno))),
            Vec::new(),
        ),
    };
    Reply {
        header,
        data,
        share,
    }
}

/// A READ's data in chunks: neighbours that are both zeros, or both not, share
/// one. With DF there is one only.
fn chunks(request: &Request, mut pieces: Vec<Bytes>) -> (Header, Vec<Bytes>) {
    let zeros = |piece: &Bytes| piece.len() >= LEAST_HOLE && is_zero(piece);
    let df = request.flags & command_flag::DF != 0;
    let sent_whole = match df {
        true => !pieces.iter().all(|piece| piece.is_empty() || zeros(piece)),
        false => !pieces.iter().any(zeros),
    };
    if sent_whole {
        let header = encode_data(request.cookie, true, request.offset, request.length);
        return (Header::Chunk(header), pieces);
    }
    pieces.retain(|piece| !piece.is_empty());
    let holes: Vec<bool> = pieces.iter().map(zeros).collect();
    let mut out = Vec::with_capacity(pieces.len() + 2);
    let mut at = 0;
    let mut offset = request.offset;
    while at < pieces.len() {
        let alike = holes[at..].iter().take_while(|hole| **hole == holes[at]);
        let end = at + alike.count();
        let length = pieces[at..end].iter().map(Bytes::len).sum::<usize>() as u32;
        let last = end == pieces.len();
        if holes[at] {
            let hole = encode_hole(request.cookie, last, offset, length);
            out.push(Bytes::copy_from_slice(&hole));
        } else {
            let head = encode_data(request.cookie, last, offset, length);
            out.push(Bytes::copy_from_slice(&head));
            out.extend_from_slice(&pieces[at..end]);
        }
        offset += u64::from(length);
        at = end;
    }
    (Header::None, out)
}

/// Whether all of it is zeros. Most data shows at its first byte that it is not;
/// the rest is one comparison of the bytes with themselves, shifted by one.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((0, rest)) => *rest == bytes[..rest.len()],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::wire::Command;

    fn read(flags: u16, length: u32) -> Request {
        Request {
            flags,
            command: Command::Read,
            cookie: 7,
            offset: 8192,
            length,
        }
    }

    /// The chunks of a reply: where each begins, its length, whether it is a hole.
    fn parse(header: Header, data: Vec<Bytes>) -> Vec<(u64, usize, bool)> {
        let mut bytes = match header {
            Header::Chunk(head) => head.to_vec(),
            Header::Simple(_) => panic!("a simple reply to READ"),
            Header::None => Vec::new(),
        };
        data.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let mut rest = &bytes[..];
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let number = |at: usize, size: usize| {
                rest[at..at + size]
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            };
            let (flags, kind, length) = (number(4, 2), number(6, 2), number(16, 4) as usize);
            let hole = kind == 2;
            let size = if hole {
                number(28, 4) as usize
            } else {
                length - 8
            };
            chunks.push((number(20, 8), size, hole));
            assert_eq!(flags == 1, rest.len() == 20 + length, "DONE is on the last");
            rest = &rest[20 + length..];
        }
        chunks
    }

    #[test]
    fn zeros_are_not_sent() {
        let piece = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
        let pieces = vec![
            piece(0, 4096),
            piece(0, 4096),
            Bytes::new(),
            piece(1, 512),
            piece(0, 512),
            piece(0, 8192),
        ];
        let (header, data) = chunks(&read(0, 17408), pieces.clone());
        let found = parse(header, data);
        assert_eq!(
            found,
            [
                (8192, 8192, true),
                (16384, 1024, false),
                (17408, 8192, true)
            ]
        );
        let (header, data) = chunks(&read(command_flag::DF, 17408), pieces.clone());
        assert_eq!(parse(header, data), [(8192, 17408, false)]);
        let (header, data) = chunks(&read(command_flag::DF, 8192), pieces[..2].to_vec());
        assert_eq!(parse(header, data), [(8192, 8192, true)]);
        let (header, data) = chunks(&read(0, 512), pieces[3..4].to_vec());
        assert_eq!(parse(header, data), [(8192, 512, false)]);
    }

    #[test]
    fn one_byte_makes_it_data() {
        for at in [0, 1, 2047, 4095] {
            let mut bytes = vec![0; 4096];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
        assert!(!is_zero(&[]));
        assert!(is_zero(&[0]));
    }
}
