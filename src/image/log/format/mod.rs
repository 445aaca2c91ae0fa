//! Format 2 as it lies in the container: every object, byte by byte.
//!
//! Knows: names, bytes, checksums, ciphers. Does not know: when an object is
//! written, read or deleted (the [engine](super) does), the store.
//!
//! All numbers are little-endian. A *block* is [`BLOCK`] bytes of the device, whatever
//! the logical block size. No object is ever overwritten, except the renewals, which
//! decide nothing; none is empty.
//!
//! # Names
//! `e`, `n`: 8 hexadecimal digits; `seq`, `k`: 12; `a`, an attach id: 32 ([`names`]).
//!
//! | name | what it is |
//! |---|---|
//! | `epoch/<e>` | a claim: who attached as number `e` ([`claim`]) |
//! | `lease/<e>` | the owner of `e` is alive ([`claim`]) |
//! | `released/<e>` | the owner of `e` ended in good order ([`claim`]) |
//! | `root/<e>/<n>` | checkpoint `n` of epoch `e`; 0 is its pin ([`root`]) |
//! | `seg/<e>.<a>/<seq>` | a segment: data, and the edits of the map ([`segment`]) |
//! | `map/<e>.<a>/<k>` | pages of the map and the tables that find them ([`page`], [`tables`]) |
//! | `key/<n>` | the data key, wrapped by a passphrase's ([`keys`]) |
//!
//! A journal is a file of the machine that attached the volume ([`journal`]).
//!
//! At a `root/` or `seg/` name a *stop* may lie instead: it proves that nothing was
//! there, and keeps it so ([`claim`]).
//!
//! `seq` counts segments through all epochs: an epoch goes on with the number after
//! the last segment that it took over. So within what can be reached from one root,
//! `seq` alone identifies a segment; the [eras](tables) tell its name. `k` does the same
//! for map objects. Both begin at 1.
//!
//! # Prelude
//! Every object begins with these 32 bytes, in clear:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `swiftnbd` |
//! | 8 | 1 | kind: 1 claim, 2 stop, 3 root, 4 segment, 5 map object, 6 key, 7 release, 8 renewal, 9 a journal's file, 10 a write in it |
//! | 9 | 1 | version: 2 |
//! | 10 | 2 | flags: bit 0: sealed. Others: 0 |
//! | 12 | 4 | in a root: the number of the key object, 0 if there is none; else 0 |
//! | 16 | 16 | the volume's id, random, made at setup |
//!
//! # Boxes
//! Whatever matters lies in boxes. In a volume that is not encrypted, and always in
//! claims, renewals, stops, releases, keys and the head of a journal, a box is
//! `payload, CRC-32C (4) of (place, payload)`; else (flag *sealed*)
//! `nonce (24), XChaCha20-Poly1305 ciphertext of payload, tag (16)` with the place as
//! associated data ([`seal`]). The *place* is
//! `prelude (32), length of the name (2), name, role (1), offset of the box in its
//! object (8), address (8)`. So a box is refused at any other place: in another volume,
//! object or position, or for another part of the device. Roles: 1 the only box of its
//! object, 2 segment header, 3 frame (address: the device block of its first block),
//! 4 page (address: the page's number), 5 tables.
//!
//! # What a reader does about damage
//! | what | then |
//! |---|---|
//! | another version, kind, flag, feature or encoding than this text knows | refused as *unknown*: a newer program may know it; nothing is changed |
//! | another volume's id | refused as *foreign*, except below the newest pin, where `setup --force` leaves them |
//! | too short, magic, CRC, tag, lengths that do not add up | *damaged*: asked for again (another replica), then the request fails and names the object; attaching fails |
//! | a frame | only what reads that frame fails |
//! | a page | only what touches that part of the device fails |
//! | a root, its tables, a claim, a key | attaching fails; an older root is not taken instead: it would be an older state |
//! | absent | [the engine](super) decides: a 404 is no proof |
//!
//! `swiftnbd check` finds all of it, and says which ranges of the device it touches.
//!
//! # Room that is left
//! A root has fields for a parent (clones) and snapshots. In this version they are zero,
//! and a program that does not know a feature bit of the root refuses the volume.

pub mod claim;
pub mod entry;
pub mod frame;
pub mod journal;
pub mod keys;
pub mod names;
pub mod page;
pub mod root;
pub mod seal;
pub mod segment;
pub mod tables;
mod wire;

use std::fmt;
use std::str::FromStr;

pub(super) use seal::random;

/// Bytes in a block, the unit of the map.
pub const BLOCK: u64 = 4096;
/// The most blocks in a frame.
pub const FRAME_BLOCKS: u64 = 16;
/// Blocks of the device that one page of the map covers: 32 MiB.
pub const PAGE_BLOCKS: u64 = 8192;
/// The largest volume, in bytes: 16 TiB. Its directory takes some 12 MiB of memory.
pub const MAX_SIZE: u64 = 1 << 44;
/// The largest object of any kind, in bytes.
pub const MAX_OBJECT: u64 = 64 << 20;

/// The random name of a volume, made at setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub [u8; 16]);

/// The random name of one attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachId(pub [u8; 16]);

/// The random name of a journal, made with its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct JournalId(pub [u8; 16]);

/// A position beyond every journal's: what the journal has, the segments have, because
/// it failed, and everything was stored before it was answered from then on.
pub const JOURNAL_ENDED: u64 = u64::MAX;

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// As in names: 32 hexadecimal digits.
impl fmt::Display for AttachId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for AttachId {
    type Err = ();

    fn from_str(text: &str) -> Result<AttachId, ()> {
        let digits = names::digits(text, 32).ok_or(())?;
        Ok(AttachId(digits.to_be_bytes()))
    }
}

/// The first 16 bytes of a SHA-256.
pub type Hash = [u8; 16];

/// Why an object, or a part of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends too early, or its lengths do not add up.
    #[error("it is cut off or its lengths do not add up ({0})")]
    Truncated(&'static str),
    /// It does not begin as an object of swiftnbd does.
    #[error("it is not an object of swiftnbd")]
    Magic,
    /// Another kind of object than its name says.
    #[error("it is an object of kind {found}, not {wanted}")]
    Kind {
        /// The kind it has.
        found: u8,
        /// The kind that was asked for.
        wanted: u8,
    },
    /// Written by a later version of swiftnbd.
    #[error("it is of a kind that this version of swiftnbd does not know ({0})")]
    Unknown(String),
    /// It belongs to another volume.
    #[error("it belongs to another volume")]
    Foreign,
    /// Its checksum does not match its content and place.
    #[error("its checksum is wrong")]
    Checksum,
    /// It was not sealed with this volume's key for this place.
    #[error("its seal is broken: it was changed, moved, or sealed with another key")]
    Seal,
    /// A value that no writer writes.
    #[error("it makes no sense: {0}")]
    Malformed(&'static str),
}
