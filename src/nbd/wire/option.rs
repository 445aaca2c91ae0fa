//! The messages of the fixed newstyle handshake as bytes: greeting, options,
//! option replies. Pure: no I/O, no state.

use super::field;

/// First eight bytes of the server: `NBDMAGIC` ("Newstyle negotiation").
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;

/// `IHAVEOPT`: second half of the greeting, and the start of every option
/// ("Newstyle negotiation").
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// Start of every option reply ("Fixed newstyle negotiation").
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// `NBD_FLAG_FIXED_NEWSTYLE`, and as a client flag `NBD_FLAG_C_FIXED_NEWSTYLE`
/// ("Handshake flags", "Client flags").
pub const FIXED_NEWSTYLE: u16 = 1 << 0;

/// `NBD_FLAG_NO_ZEROES`, and as a client flag `NBD_FLAG_C_NO_ZEROES`: the 124
/// zeros after EXPORT_NAME's answer are left out ("Handshake flags").
pub const NO_ZEROES: u16 = 1 << 1;

/// Length of an option's header in bytes: magic, option, length of its data.
pub const OPTION_LEN: usize = 16;

/// Longest string that the document allows, in bytes ("Conventions").
pub const MAX_STRING: usize = 4096;

/// Numbers of the options ("Option types").
pub mod opt {
    /// `NBD_OPT_EXPORT_NAME`: choose an export and go; cannot be refused but
    /// by closing the connection.
    pub const EXPORT_NAME: u32 = 1;
    /// `NBD_OPT_ABORT`: the client leaves.
    pub const ABORT: u32 = 2;
    /// `NBD_OPT_LIST`: which exports are there.
    pub const LIST: u32 = 3;
    /// `NBD_OPT_STARTTLS`: go on over TLS.
    pub const STARTTLS: u32 = 5;
    /// `NBD_OPT_INFO`: what GO would say, without going.
    pub const INFO: u32 = 6;
    /// `NBD_OPT_GO`: choose an export, with an answer.
    pub const GO: u32 = 7;
    /// `NBD_OPT_STRUCTURED_REPLY`: replies may come in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// `NBD_OPT_LIST_META_CONTEXT`: which metadata contexts are there.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// `NBD_OPT_SET_META_CONTEXT`: choose those that BLOCK_STATUS answers in.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of option replies ("Option reply types").
pub mod rep {
    /// `NBD_REP_ACK`: done.
    pub const ACK: u32 = 1;
    /// `NBD_REP_SERVER`: one export of a list.
    pub const SERVER: u32 = 2;
    /// `NBD_REP_INFO`: one piece of information about an export.
    pub const INFO: u32 = 3;
    /// `NBD_REP_META_CONTEXT`: one metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// `NBD_REP_ERR_UNSUP`: the option is not known here.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// `NBD_REP_ERR_POLICY`: known, and not allowed.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// `NBD_REP_ERR_INVALID`: the option's data is malformed.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// `NBD_REP_ERR_TLS_REQD`: not without TLS.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// `NBD_REP_ERR_UNKNOWN`: there is no such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// `NBD_REP_ERR_TOO_BIG`: the option is too large to process.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Kinds of information about an export (`NBD_REP_INFO`).
pub mod info {
    /// `NBD_INFO_EXPORT`: size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// `NBD_INFO_NAME`: the export's canonical name.
    pub const NAME: u16 = 1;
    /// `NBD_INFO_DESCRIPTION`: a text for people.
    pub const DESCRIPTION: u16 = 2;
    /// `NBD_INFO_BLOCK_SIZE`: smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The server's first message ("Newstyle negotiation").
pub fn encode_greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[0..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..18].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// An option's header ("Newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// A number of [`opt`], or any other.
    pub option: u32,
    /// Length of the data that follows, in bytes.
    pub length: u32,
}

/// The bytes are not where an option begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an option, found the magic number {0:#018x}")]
pub struct BadOptionMagic(pub u64);

/// Decodes an option's header.
pub fn decode_option(bytes: &[u8; OPTION_LEN]) -> Result<OptionHeader, BadOptionMagic> {
    let magic = u64::from_be_bytes(field(bytes, 0));
    if magic != OPTION_MAGIC {
        return Err(BadOptionMagic(magic));
    }
    Ok(OptionHeader {
        option: u32::from_be_bytes(field(bytes, 8)),
        length: u32::from_be_bytes(field(bytes, 12)),
    })
}

/// The data of INFO and GO (`NBD_OPT_INFO`, `NBD_OPT_GO`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoData<'a> {
    /// The export's name; empty for the default export.
    pub name: &'a str,
    /// The information asked for: numbers of [`info`], or any other.
    pub wanted: Vec<u16>,
}

/// Why an option's data was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// The lengths within the data contradict its length.
    #[error("the lengths in the option do not add up")]
    Length,
    /// A name is not UTF-8 or contains NUL.
    #[error("the name is not valid UTF-8 without NUL")]
    Name,
    /// A name is longer than [`MAX_STRING`].
    #[error("the name is too long")]
    NameTooLong,
}

/// Decodes the data of INFO and GO. Allocates at most as much as `data` has.
pub fn decode_go(data: &[u8]) -> Result<GoData<'_>, BadOption> {
    let (length, rest) = data.split_first_chunk().ok_or(BadOption::Length)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (name, rest) = rest.split_at_checked(length).ok_or(BadOption::Length)?;
    let (count, rest) = rest.split_first_chunk().ok_or(BadOption::Length)?;
    let count = u16::from_be_bytes(*count) as usize;
    let (wanted, []) = rest.as_chunks::<2>() else {
        return Err(BadOption::Length);
    };
    if wanted.len() != count {
        return Err(BadOption::Length);
    }
    Ok(GoData {
        name: decode_name(name)?,
        wanted: wanted.iter().copied().map(u16::from_be_bytes).collect(),
    })
}

/// Decodes an export's name ("Conventions").
pub fn decode_name(bytes: &[u8]) -> Result<&str, BadOption> {
    if bytes.len() > MAX_STRING {
        return Err(BadOption::NameTooLong);
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(BadOption::Name),
    }
}

/// Appends an option reply to `out` ("Fixed newstyle negotiation"). `data` is
/// ours and short.
pub fn encode_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// The data of `NBD_REP_SERVER`: an export's name and its description.
pub fn encode_server(name: &str, description: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(description.as_bytes());
    data
}

/// The data of `NBD_REP_INFO` of kind `NBD_INFO_EXPORT`.
pub fn encode_info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend_from_slice(&encode_export(size, flags));
    data
}

/// An export's size and transmission flags: the answer to EXPORT_NAME
/// ("Newstyle negotiation") and the core of `NBD_INFO_EXPORT`.
pub fn encode_export(size: u64, flags: u16) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[0..8].copy_from_slice(&size.to_be_bytes());
    bytes[8..10].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// The data of `NBD_REP_INFO` of kind `NBD_INFO_BLOCK_SIZE`, in bytes.
pub fn encode_info_block_size(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [minimum, preferred, maximum] {
        data.extend_from_slice(&size.to_be_bytes());
    }
    data
}

/// The data of `NBD_REP_INFO` of a kind that is a text.
pub fn encode_info_text(kind: u16, text: &str) -> Vec<u8> {
    let mut data = kind.to_be_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn go(name: &[u8], wanted: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
        data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
        data
    }

    #[test]
    fn the_greeting_is_newstyle() {
        assert_eq!(&encode_greeting(), b"NBDMAGICIHAVEOPT\0\x03");
    }

    #[test]
    fn lengths_must_add_up() {
        let good = go(b"vol", &[info::NAME, info::BLOCK_SIZE]);
        assert_eq!(decode_go(&good).unwrap().wanted, [1, 3]);
        for length in 0..good.len() {
            assert_eq!(decode_go(&good[..length]), Err(BadOption::Length));
        }
        let mut long = good.clone();
        long.extend([0, 0]);
        assert_eq!(decode_go(&long), Err(BadOption::Length));
        assert_eq!(decode_go(&[0xff; 64]), Err(BadOption::Length));
    }

    #[test]
    fn names_are_text_of_bounded_length() {
        assert_eq!(decode_go(&go(b"", &[])).unwrap().name, "");
        assert_eq!(decode_go(&go(b"a\0b", &[])), Err(BadOption::Name));
        assert_eq!(decode_go(&go(b"\xff", &[])), Err(BadOption::Name));
        let long = [b'a'; MAX_STRING + 1];
        assert!(decode_go(&go(&long[1..], &[])).is_ok());
        assert_eq!(decode_go(&go(&long, &[])), Err(BadOption::NameTooLong));
    }

    proptest! {
        #[test]
        fn go_data_round_trips(name in "[^\0]{0,64}", wanted: Vec<u16>) {
            let data = go(name.as_bytes(), &wanted);
            let decoded = decode_go(&data).unwrap();
            prop_assert_eq!(decoded.name, name);
            prop_assert_eq!(decoded.wanted, wanted);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(header: [u8; OPTION_LEN], data: Vec<u8>) {
            let _ = decode_option(&header);
            let _ = decode_go(&data);
        }
    }
}
