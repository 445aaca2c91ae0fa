//! The messages of the transmission phase as bytes. Pure: no I/O, no state.
//!
//! All numbers are big-endian ("Conventions" in the document). The messages of
//! the handshake are in [`option`] and [`context`], those of structured replies
//! in [`chunk`].

pub mod chunk;
pub mod context;
pub mod option;

use std::fmt;

use crate::device::{Device, Shape};

/// Length of a request's header in bytes ("Request message", compact form).
pub const REQUEST_LEN: usize = 28;

/// First four bytes of a request: `NBD_REQUEST_MAGIC` ("Request message").
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// Length of a simple reply's header in bytes ("Simple reply message").
pub const REPLY_LEN: usize = 16;

/// First four bytes of a simple reply: `NBD_SIMPLE_REPLY_MAGIC` ("Simple reply
/// message").
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Bits of a request's flags field ("Command flags").
pub mod command_flag {
    /// `NBD_CMD_FLAG_FUA`: answer only when what was written is durable.
    pub const FUA: u16 = 1 << 0;
    /// `NBD_CMD_FLAG_NO_HOLE`: WRITE_ZEROES must not punch a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `NBD_CMD_FLAG_DF`: do not fragment; needs structured replies.
    pub const DF: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_REQ_ONE`: one extent; needs BLOCK_STATUS.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `NBD_CMD_FLAG_FAST_ZERO`: fail rather than write zeros slowly.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// `NBD_CMD_FLAG_PAYLOAD_LEN`: needs extended headers.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Bits that tell a client what an export can do ("Transmission flags").
pub mod transmission_flag {
    /// `NBD_FLAG_HAS_FLAGS`: always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// `NBD_FLAG_READ_ONLY`: writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_FLAG_SEND_FLUSH`: FLUSH may be sent.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_FLAG_SEND_FUA`: requests may carry FUA.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `NBD_FLAG_SEND_TRIM`: TRIM may be sent.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_FLAG_SEND_WRITE_ZEROES`: WRITE_ZEROES may be sent.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_FLAG_SEND_DF`: READ may carry DF; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// `NBD_FLAG_CAN_MULTI_CONN`: what one connection has flushed is durable
    /// whichever connection wrote it, and all of them see the same.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// What a request asks for ("Request types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// `NBD_CMD_READ` (0).
    Read,
    /// `NBD_CMD_WRITE` (1), the only one that a payload follows.
    Write,
    /// `NBD_CMD_DISC` (2): the client leaves; it has no reply.
    Disconnect,
    /// `NBD_CMD_FLUSH` (3).
    Flush,
    /// `NBD_CMD_TRIM` (4).
    Trim,
    /// `NBD_CMD_WRITE_ZEROES` (6).
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS` (7); only where a context was chosen.
    BlockStatus,
    /// Any other, those that were never negotiated among them.
    Unknown(u16),
}

impl Command {
    /// The command of this number.
    pub fn from_code(code: u16) -> Command {
        match code {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Read => f.write_str("READ"),
            Command::Write => f.write_str("WRITE"),
            Command::Disconnect => f.write_str("DISC"),
            Command::Flush => f.write_str("FLUSH"),
            Command::Trim => f.write_str("TRIM"),
            Command::WriteZeroes => f.write_str("WRITE_ZEROES"),
            Command::BlockStatus => f.write_str("BLOCK_STATUS"),
            Command::Unknown(code) => write!(f, "command {code}"),
        }
    }
}

/// A request's header ("Request message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// What is asked for.
    pub command: Command,
    /// The client's name for the request; the reply repeats it.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes.
    pub length: u32,
}

impl Request {
    /// Whether the answer has to wait until the data is durable.
    pub fn fua(&self) -> bool {
        self.flags & command_flag::FUA != 0
    }
}

/// The bytes are not where a request begins: the stream cannot be followed any
/// further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a request, found the magic number {0:#010x}")]
pub struct BadMagic(pub u32);

/// Decodes a request's header ("Request message").
pub fn decode_request(bytes: &[u8; REQUEST_LEN]) -> Result<Request, BadMagic> {
    let magic = u32::from_be_bytes(field(bytes, 0));
    if magic != REQUEST_MAGIC {
        return Err(BadMagic(magic));
    }
    Ok(Request {
        flags: u16::from_be_bytes(field(bytes, 4)),
        command: Command::from_code(u16::from_be_bytes(field(bytes, 6))),
        cookie: u64::from_be_bytes(field(bytes, 8)),
        offset: u64::from_be_bytes(field(bytes, 16)),
        length: u32::from_be_bytes(field(bytes, 24)),
    })
}

/// The `N` bytes at `at` of a message of fixed length; callers pass constants
/// that lie within it.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

/// Why a request failed, in the numbers of "Error values". They are NBD's and
/// the same on every system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// `NBD_EPERM`: not permitted; a write to a read-only export.
    NotPermitted = 1,
    /// `NBD_EIO`: the device failed.
    Io = 5,
    /// `NBD_ENOMEM`: no memory; the document asks not to send it.
    NoMemory = 12,
    /// `NBD_EINVAL`: an invalid request.
    Invalid = 22,
    /// `NBD_ENOSPC`: a write beyond the end.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`: too much for one reply.
    Overflow = 75,
    /// `NBD_ENOTSUP`: not supported.
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`: the server is being shut down.
    Shutdown = 108,
}

/// Encodes a simple reply's header; `None` is success, after which a READ's
/// data follows ("Simple reply message").
pub fn encode_reply(cookie: u64, error: Option<Errno>) -> [u8; REPLY_LEN] {
    let mut bytes = [0; REPLY_LEN];
    bytes[0..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// What a client may send to this device ("Transmission flags"). The kernel is
/// given the same bits as its server flags.
pub fn transmission_flags(device: &Device) -> u16 {
    basic_flags(&device.shape())
}

/// The same for a client of the handshake. Every connection to an export reaches
/// the same image, so a flush covers all of them.
pub fn export_flags(shape: &Shape, structured: bool) -> u16 {
    use transmission_flag::*;
    let df = if structured { SEND_DF } else { 0 };
    basic_flags(shape) | CAN_MULTI_CONN | df
}

fn basic_flags(shape: &Shape) -> u16 {
    use transmission_flag::*;
    let always = HAS_FLAGS | SEND_FLUSH;
    if shape.read_only {
        always | READ_ONLY
    } else {
        always | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_of_the_kernel() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, // magic
            0x00, 0x01, // FUA
            0x00, 0x01, // WRITE
            1, 2, 3, 4, 5, 6, 7, 8, // cookie
            0, 0, 0, 1, 0, 0, 0x10, 0, // offset
            0, 2, 0, 0, // length
        ];
        let request = decode_request(&bytes).unwrap();
        assert_eq!(
            request,
            Request {
                flags: command_flag::FUA,
                command: Command::Write,
                cookie: 0x0102_0304_0506_0708,
                offset: 0x1_0000_1000,
                length: 0x2_0000,
            }
        );
        assert!(request.fua());
    }

    #[test]
    fn the_magic_is_checked() {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        assert_eq!(decode_request(&bytes), Err(BadMagic(REPLY_MAGIC)));
    }

    #[test]
    fn a_reply_repeats_the_cookie() {
        assert_eq!(
            encode_reply(0xff00_0000_0000_0001, Some(Errno::Shutdown)),
            [
                0x67, 0x44, 0x66, 0x98, 0, 0, 0, 108, 0xff, 0, 0, 0, 0, 0, 0, 1
            ]
        );
        assert_eq!(encode_reply(0, None)[4..8], [0; 4]);
    }

    proptest! {
        #[test]
        fn any_header_decodes_or_is_refused(bytes: [u8; REQUEST_LEN], magic: bool) {
            let mut bytes = bytes;
            if magic {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            let decoded = decode_request(&bytes);
            prop_assert_eq!(decoded.is_ok(), bytes[..4] == REQUEST_MAGIC.to_be_bytes());
            if let Ok(request) = decoded {
                prop_assert_eq!(request.cookie.to_be_bytes(), field::<8>(&bytes, 8));
                prop_assert_eq!(request.length.to_be_bytes(), field::<4>(&bytes, 24));
            }
        }
    }
}
