//! Frames: 1 to 16 blocks of the device, stored together.
//!
//! A frame is one box of a segment. Its payload:
//!
//! | field | bytes | what |
//! |---|---|---|
//! | encoding | 1 | 0: as it is; 1: LZ4, block format. Another: *unknown* |
//! | blocks | 1 | 1 to 16 |
//! | data | the rest | what becomes exactly so many blocks |
//!
//! It is compressed where that saves a sixteenth of it at least; what saves less costs
//! readers more than it is worth.

use bytes::{BufMut, Bytes};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use super::root::Compression;
use super::seal::{Cipher, Kind, Place, Prelude, Role};
use super::wire::{Reader, ensure};
use super::{BLOCK, Damage, FRAME_BLOCKS, VolumeId};

/// Bytes of a payload before its data.
pub(super) const HEAD: usize = 2;
const RAW: u8 = 0;
const LZ4: u8 = 1;
/// The most bytes in a frame.
const MAX: usize = (FRAME_BLOCKS * BLOCK) as usize;

/// What compresses frames, one after the other, in memory of its own.
pub(super) struct Encoder {
    /// `None`: all are stored as they are.
    lz4: Option<Lz4>,
}

struct Lz4 {
    table: CompressTable,
    /// A frame in one piece.
    whole: Vec<u8>,
    packed: Vec<u8>,
}

impl Encoder {
    pub fn new(compression: Compression) -> Encoder {
        let lz4 = || Lz4 {
            table: CompressTable::large(),
            whole: Vec::new(),
            packed: vec![0; get_maximum_output_size(MAX)],
        };
        Encoder {
            lz4: (compression == Compression::Lz4).then(lz4),
        }
    }

    /// Appends the payload of a frame with these pieces, of `blocks` together.
    pub fn encode(&mut self, pieces: &[Bytes], blocks: u64, out: &mut Vec<u8>) {
        if let Some(packed) = self.lz4.as_mut().and_then(|lz4| lz4.pack(pieces)) {
            out.put_u8(LZ4);
            out.put_u8(blocks as u8);
            out.put_slice(packed);
            return;
        }
        out.put_u8(RAW);
        out.put_u8(blocks as u8);
        for piece in pieces {
            out.put_slice(piece);
        }
    }
}

impl Lz4 {
    /// The pieces compressed, if it pays.
    fn pack(&mut self, pieces: &[Bytes]) -> Option<&[u8]> {
        let whole = match pieces {
            [piece] => &piece[..],
            _ => {
                self.whole.clear();
                pieces.iter().for_each(|piece| self.whole.put_slice(piece));
                &self.whole
            }
        };
        let length = compress_into_with_table(whole, &mut self.packed, &mut self.table).ok()?;
        (length <= whole.len() - whole.len() / 16).then(|| &self.packed[..length])
    }
}

/// The blocks of a frame: a box that begins at `offset` of the segment `name`, whose
/// first block is the device's block `address`.
pub fn open(
    cipher: &Cipher,
    volume: VolumeId,
    name: &str,
    offset: u32,
    address: u64,
    boxed: &Bytes,
) -> Result<Bytes, Damage> {
    let prelude = Prelude {
        kind: Kind::Segment,
        sealed: cipher.is_sealed(),
        key: 0,
        volume,
    };
    let offset = offset.into();
    let place = Place {
        prelude: &prelude,
        name,
        role: Role::Frame,
        offset,
        address,
    };
    let payload = cipher.open(&place, boxed)?;
    let mut bytes = Reader::new(&payload, "frame");
    let (encoding, blocks) = (bytes.u8()?, u64::from(bytes.u8()?));
    ensure((1..=FRAME_BLOCKS).contains(&blocks), "a frame's blocks")?;
    let length = (blocks * BLOCK) as usize;
    match encoding {
        RAW => {
            ensure(payload.len() == HEAD + length, "a frame's length")?;
            Ok(payload.slice(HEAD..))
        }
        LZ4 => {
            let mut data = vec![0; length];
            let found = decompress_into(&payload[HEAD..], &mut data);
            ensure(
                found.ok() == Some(length),
                "a frame that does not decompress",
            )?;
            Ok(data.into())
        }
        other => Err(Damage::Unknown(format!("a frame's encoding {other}"))),
    }
}
