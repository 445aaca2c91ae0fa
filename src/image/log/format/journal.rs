//! The journal: a file of this machine's that holds answered writes until segments do.
//!
//! The file is a ring. Its first [`HEAD`] bytes are its head, padded with zeros; entry
//! after entry lies in the rest, each at its *position*: a number of bytes that only
//! grows, and that is taken modulo the ring's length. An entry may go on at the ring's
//! beginning.
//!
//! | the head: a prelude and one box, never sealed | bytes | what |
//! |---|---|---|
//! | id | 16 | the journal's |
//! | ring | 8 | bytes of the ring: a multiple of [`ALIGN`] |
//!
//! | an entry, at | bytes | what |
//! |---|---|---|
//! | 0 | 32 | prelude |
//! | 32 | 16 | the journal's id |
//! | 48 | 8 | its position |
//! | 56 | 8 | synced: every entry before that position was durable when this one was made |
//! | 64 | 4 | the epoch that made it |
//! | 68 | 4 | length of the box |
//! | 72 | 4 | CRC32C of the 72 bytes before |
//! | 76 | so many | the box, sealed if the volume is |
//! | | | zeros, up to a multiple of [`ALIGN`] |
//!
//! The box's name is `journal/<id>/<epoch>/<position>`, its payload:
//!
//! | field | bytes | what |
//! |---|---|---|
//! | kind | 1 | 1: a write, 2: zeros |
//! | start, blocks | 8, 8 | blocks of the device |
//! | data | of a write: as many blocks | |
//!
//! The entries of a journal go from a position that the volume itself knows to the first
//! place where no entry of that position is, or one of an earlier epoch than the one
//! before it. If a later entry was made when that place was durable, the file is damaged;
//! else it is where a power cut or a crash ended it.

use bytes::{BufMut, Bytes};

use super::seal::{self, Cipher, Kind, Maker, PRELUDE, Place, Prelude, Role};
use super::wire::{Reader, ensure};
use super::{BLOCK, Damage, JournalId, MAX_SIZE, VolumeId};

/// Bytes of the file before the ring.
pub const HEAD: u64 = 4096;
/// Entries are of a multiple of this many bytes, and so are rings.
pub const ALIGN: u64 = 64;
/// Bytes of an entry before its box.
pub const CLEAR: usize = PRELUDE + 16 + 8 + 8 + 4 + 4 + 4;
/// The smallest ring, in bytes.
pub const MIN_RING: u64 = 64 << 10;
/// The largest ring, in bytes.
pub const MAX_RING: u64 = 1 << 36;
/// The most bytes that one entry writes.
pub const MAX_DATA: u64 = 1 << 20;
/// Where the box of the file's head says that it is.
const HEAD_NAME: &str = "journal";
/// Bytes of a payload before its data.
const FIXED: usize = 1 + 8 + 8;
const WRITE: u8 = 1;
const ZEROES: u8 = 2;

/// What a journal's file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose it is.
    pub volume: VolumeId,
    /// Its name.
    pub id: JournalId,
    /// Bytes of the ring.
    pub ring: u64,
}

impl Head {
    /// The first [`HEAD`] bytes of the file.
    pub fn encode(&self) -> Bytes {
        let prelude = prelude(Kind::Journal, false, self.volume);
        let mut payload = Vec::with_capacity(24);
        payload.put_slice(&self.id.0);
        payload.put_u64_le(self.ring);
        let mut head = seal::make_only(&Cipher::Plain, &prelude, HEAD_NAME, &payload).to_vec();
        head.resize(HEAD as usize, 0);
        head.into()
    }

    /// From the first [`HEAD`] bytes of a file.
    pub fn decode(first_bytes: &Bytes) -> Result<Head, Damage> {
        let prelude = Prelude::decode(first_bytes)?.expect(Kind::Journal, None)?;
        let length = PRELUDE + 24 + Cipher::Plain.overhead();
        if first_bytes.len() < length {
            return Err(Damage::Truncated("a journal's head"));
        }
        let object = first_bytes.slice(..length);
        let payload = seal::open_only(&Cipher::Plain, &prelude, HEAD_NAME, &object)?;
        let mut bytes = Reader::new(&payload, "a journal's head");
        let (id, ring) = (JournalId(bytes.array()?), bytes.u64()?);
        bytes.end()?;
        ensure(
            (MIN_RING..=MAX_RING).contains(&ring) && ring.is_multiple_of(ALIGN),
            "the length of a journal",
        )?;
        let volume = prelude.volume;
        Ok(Head { volume, id, ring })
    }
}

/// What an entry does to the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Blocks are written from `start` on: at most [`MAX_DATA`] bytes.
    Write {
        /// The first block.
        start: u64,
        /// Whole blocks.
        data: Bytes,
    },
    /// Blocks read as zeros.
    Zeroes {
        /// The first block.
        start: u64,
        /// How many.
        blocks: u64,
    },
}

/// The clear part of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clear {
    /// Where it is.
    pub position: u64,
    /// Every entry before that position was durable when it was made.
    pub synced: u64,
    /// The epoch that made it.
    pub epoch: u32,
    /// Bytes of its box.
    pub boxed: u32,
}

/// Whose entries they are.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The volume.
    pub volume: VolumeId,
    /// The journal.
    pub id: JournalId,
    /// Opens its boxes.
    pub cipher: Cipher,
}

/// Bytes of an entry that writes so much data.
fn entry_length(cipher: &Cipher, data: u64) -> u64 {
    (CLEAR as u64 + FIXED as u64 + data + cipher.overhead() as u64).next_multiple_of(ALIGN)
}

impl Clear {
    /// From the first [`CLEAR`] bytes at a position. `None`: no entry of it is there.
    pub fn decode(owner: &Owner, position: u64, first_bytes: &[u8]) -> Option<Clear> {
        let bytes = first_bytes.get(..CLEAR)?;
        let (checked, crc) = bytes.split_at(CLEAR - 4);
        let right = prelude(Kind::JournalEntry, owner.cipher.is_sealed(), owner.volume).encode();
        if checked[..PRELUDE] != right || crc32c::crc32c(checked).to_le_bytes() != crc {
            return None;
        }
        let mut bytes = Reader::new(&checked[PRELUDE..], "a journal's entry");
        let id = JournalId(bytes.array().ok()?);
        let clear = Clear {
            position: bytes.u64().ok()?,
            synced: bytes.u64().ok()?,
            epoch: bytes.u32().ok()?,
            boxed: bytes.u32().ok()?,
        };
        let most = entry_length(&owner.cipher, MAX_DATA) - CLEAR as u64;
        let whole = u64::from(clear.boxed) <= most;
        (id == owner.id && clear.position == position && whole).then_some(clear)
    }

    /// Bytes of the whole entry.
    pub fn length(&self) -> u64 {
        (CLEAR as u64 + u64::from(self.boxed)).next_multiple_of(ALIGN)
    }

    /// What the entry does; `entry` has all of its bytes.
    pub fn open(&self, owner: &Owner, entry: &Bytes) -> Result<Edit, Damage> {
        let end = CLEAR + self.boxed as usize;
        if entry.len() < end {
            return Err(Damage::Truncated("a journal's entry"));
        }
        let prelude = prelude(Kind::JournalEntry, owner.cipher.is_sealed(), owner.volume);
        let name = name(owner.id, self.epoch, self.position);
        let place = Place {
            prelude: &prelude,
            name: &name,
            role: Role::Only,
            offset: CLEAR as u64,
            address: 0,
        };
        let payload = owner.cipher.open(&place, &entry.slice(CLEAR..end))?;
        let mut bytes = Reader::new(&payload, "a journal's entry");
        let (kind, start, blocks) = (bytes.u8()?, bytes.u64()?, bytes.u64()?);
        let last = start.checked_add(blocks);
        ensure(
            blocks > 0 && last.is_some_and(|last| last <= MAX_SIZE / BLOCK),
            "blocks of a journal's entry",
        )?;
        match kind {
            WRITE => {
                let data = payload.slice(FIXED..);
                let all = blocks.checked_mul(BLOCK) == Some(data.len() as u64);
                ensure(all, "the data of a journal's entry")?;
                Ok(Edit::Write { start, data })
            }
            ZEROES => {
                bytes.end()?;
                Ok(Edit::Zeroes { start, blocks })
            }
            other => Err(Damage::Unknown(format!(
                "a journal's entry of kind {other}"
            ))),
        }
    }
}

/// What an entry writes.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Whole blocks, at most [`MAX_DATA`] bytes.
    Data(&'a [u8]),
    /// So many blocks of zeros.
    Zeroes(u64),
}

impl Content<'_> {
    /// Bytes of an entry with it.
    pub fn entry_length(&self, cipher: &Cipher) -> u64 {
        let data = match self {
            Content::Data(data) => data.len(),
            Content::Zeroes(_) => 0,
        };
        entry_length(cipher, data as u64)
    }
}

/// An entry that writes this from block `start` on.
pub fn encode(
    owner: &Owner,
    (position, synced, epoch): (u64, u64, u32),
    start: u64,
    content: Content<'_>,
) -> Bytes {
    let (kind, blocks, data) = match content {
        Content::Data(data) => (WRITE, data.len() as u64 / BLOCK, data),
        Content::Zeroes(blocks) => (ZEROES, blocks, &[][..]),
    };
    let prelude = prelude(Kind::JournalEntry, owner.cipher.is_sealed(), owner.volume);
    let name = name(owner.id, epoch, position);
    let length = entry_length(&owner.cipher, data.len() as u64);
    let mut maker = Maker::new(&prelude, &name, &owner.cipher, length as usize - PRELUDE);
    let boxed = FIXED + data.len() + owner.cipher.overhead();
    let mut clear = Vec::with_capacity(CLEAR);
    clear.put_slice(&prelude.encode());
    clear.put_slice(&owner.id.0);
    clear.put_u64_le(position);
    clear.put_u64_le(synced);
    clear.put_u32_le(epoch);
    clear.put_u32_le(boxed as u32);
    clear.put_u32_le(crc32c::crc32c(&clear));
    maker.clear(&clear[PRELUDE..]);
    maker.add(Role::Only, 0, |out| {
        out.put_u8(kind);
        out.put_u64_le(start);
        out.put_u64_le(blocks);
        out.put_slice(data);
    });
    maker.clear(&vec![0; length as usize - maker.len()]);
    maker.finish()
}

fn prelude(kind: Kind, sealed: bool, volume: VolumeId) -> Prelude {
    Prelude {
        kind,
        sealed,
        key: 0,
        volume,
    }
}

fn name(id: JournalId, epoch: u32, position: u64) -> String {
    format!("journal/{id}/{epoch}/{position}")
}
