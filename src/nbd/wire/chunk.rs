//! The chunks of structured replies as bytes ("Structured reply chunk message").
//! Pure: no I/O, no state.

use bytes::{BufMut, Bytes, BytesMut};

use super::Errno;
use crate::image::{Extent, ExtentKind};

/// Length of a chunk's header in bytes.
pub const CHUNK_LEN: usize = 20;

/// Length of a chunk's header with the offset that READ's chunks begin with.
pub const READ_CHUNK_LEN: usize = CHUNK_LEN + 8;

/// First four bytes of a chunk: `NBD_STRUCTURED_REPLY_MAGIC`.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The longest text of an error, in bytes; the document allows 4096.
const MAX_TEXT: usize = 1024;

/// `NBD_REPLY_FLAG_DONE`: the last chunk of a reply.
const DONE: u16 = 1 << 0;

/// Kinds of chunks ("Structured reply types").
pub mod kind {
    /// `NBD_REPLY_TYPE_OFFSET_DATA`: a part of a READ's data.
    pub const OFFSET_DATA: u16 = 1;
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`: a part of it that is zeros.
    pub const OFFSET_HOLE: u16 = 2;
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`: a context's extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// `NBD_REPLY_TYPE_ERROR`: the request failed.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Bits of an extent in `base:allocation` ("Metadata contexts").
mod state {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

fn chunk(cookie: u64, kind: u16, last: bool, length: u32) -> [u8; CHUNK_LEN] {
    let mut bytes = [0; CHUNK_LEN];
    bytes[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&(if last { DONE } else { 0 }).to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The head of a chunk of a READ's data, `length` bytes of which follow.
pub fn encode_data(cookie: u64, last: bool, offset: u64, length: u32) -> [u8; READ_CHUNK_LEN] {
    let mut bytes = [0; READ_CHUNK_LEN];
    let head = chunk(cookie, kind::OFFSET_DATA, last, length + 8);
    bytes[..CHUNK_LEN].copy_from_slice(&head);
    bytes[CHUNK_LEN..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// A chunk of a READ's data that is `length` zeros.
pub fn encode_hole(cookie: u64, last: bool, offset: u64, length: u32) -> [u8; READ_CHUNK_LEN + 4] {
    let mut bytes = [0; READ_CHUNK_LEN + 4];
    let head = chunk(cookie, kind::OFFSET_HOLE, last, 12);
    bytes[..CHUNK_LEN].copy_from_slice(&head);
    bytes[CHUNK_LEN..READ_CHUNK_LEN].copy_from_slice(&offset.to_be_bytes());
    bytes[READ_CHUNK_LEN..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The answer to a request that failed, with a text for people.
pub fn encode_error(cookie: u64, error: Errno, text: &str) -> Bytes {
    let text = (0..=MAX_TEXT)
        .rev()
        .find_map(|end| text.get(..end.min(text.len())));
    let text = text.unwrap_or_default();
    let length = 6 + text.len() as u32;
    let mut bytes = BytesMut::with_capacity(CHUNK_LEN + length as usize);
    bytes.put_slice(&chunk(cookie, kind::ERROR, true, length));
    bytes.put_u32(error as u32);
    bytes.put_u16(text.len() as u16);
    bytes.put_slice(text.as_bytes());
    bytes.freeze()
}

/// The answer to BLOCK_STATUS: extents in the context of this number. A few
/// thousand of them at most; a longer one than the field can tell is cut.
pub fn encode_status(cookie: u64, context: u32, extents: &[Extent]) -> Bytes {
    let length = 4 + 8 * extents.len() as u32;
    let mut bytes = BytesMut::with_capacity(CHUNK_LEN + length as usize);
    bytes.put_slice(&chunk(cookie, kind::BLOCK_STATUS, true, length));
    bytes.put_u32(context);
    for extent in extents {
        bytes.put_u32(u32::try_from(extent.length).unwrap_or(u32::MAX));
        bytes.put_u32(match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Hole => state::HOLE | state::ZERO,
        });
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_tell_where_they_are() {
        let data = encode_data(0x0102_0304_0506_0708, false, 0x1000, 512);
        let expected = [
            0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 2, 8, 0, 0, 0, 0, 0,
            0, 0x10, 0,
        ];
        assert_eq!(data, expected);
        let hole = encode_hole(1, true, 0x1000, 0x2000);
        assert_eq!(hole[4..8], [0, 1, 0, 2]);
        assert_eq!(hole[16..20], [0, 0, 0, 12]);
        assert_eq!(hole[28..], [0, 0, 0x20, 0]);
    }

    #[test]
    fn a_text_is_cut_where_a_character_ends() {
        let text = "é".repeat(1000);
        let error = encode_error(1, Errno::Io, &format!("x{text}"));
        assert_eq!(error[6..8], [0x80, 1]);
        assert_eq!(error[20..26], [0, 0, 0, 5, 3, 255]);
        assert_eq!(error.len(), 26 + 1023);
        assert!(std::str::from_utf8(&error[26..]).is_ok());
    }

    #[test]
    fn extents_have_their_flags() {
        let extents = [(512, ExtentKind::Data), (4096, ExtentKind::Hole)];
        let extents = extents.map(|(length, kind)| Extent { length, kind });
        let status = encode_status(9, 1, &extents);
        assert_eq!(status[16..20], [0, 0, 0, 20]);
        assert_eq!(
            status[20..],
            [
                0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 3
            ]
        );
    }
}
