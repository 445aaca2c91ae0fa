//! Roots: checkpoints of the map.
//!
//! A root is a prelude, which carries the key's number, and one box. Its payload:
//!
//! | field | bytes | what |
//! |---|---|---|
//! | features | 8 | 0; a reader that meets a bit it does not know refuses the volume |
//! | page | 4 | blocks of a page: [`PAGE_BLOCKS`] |
//! | epoch, n | 4, 4 | as in the name |
//! | attach id | 16 | the attachment that wrote it |
//! | size | 8 | of the volume, in bytes: a multiple of the logical block, at most [`MAX_SIZE`] |
//! | block | 4 | the logical block in bytes: 512 or 4096 |
//! | compression | 1 | what writers use: 0 none, 1 lz4. Readers go by each frame |
//! | seq | 8 | the last segment that the map includes, 0 if there is none |
//! | header | 16 | the hash of that segment's header box; zeros |
//! | next k | 8 | the number of the next map object |
//! | previous | 1 | 1 if a root was before this one, 0 in a volume's first |
//! | its epoch, n | 4, 4 | of the root before; zeros |
//! | its hash | 16 | of that root's object; zeros |
//! | tables | 8, 4, 4 | where they lie: `k` of the map object, offset of the box there, its length |
//! | journal | 16, 8 | its id, and the position up to which the map has every write of it, or [`JOURNAL_ENDED`](super::JOURNAL_ENDED); zeros: there is none |
//! | parent | 2 | bytes of the name of a parent that follow: 0 |
//! | snapshots | 4 | how many follow: 0 |
//!
//! Where this version knows only one value (features, page, parent, snapshots), another is *unknown*, and so are a block and a compression that are not
//! in the table.

use bytes::{BufMut, Bytes};
use sha2::{Digest, Sha256};

use super::names::Name;
use super::seal::{self, Cipher, Kind, PRELUDE, Prelude};
use super::wire::{Reader, ensure};
use super::{AttachId, Damage, Hash, JournalId, MAX_OBJECT, MAX_SIZE, PAGE_BLOCKS, VolumeId};

/// How a volume's blocks are counted, and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the volume: a multiple of `block_size`, 1 of them at least and
    /// [`MAX_SIZE`] at most.
    pub size: u64,
    /// The logical block in bytes: 512 or 4096.
    pub block_size: u32,
    /// How frames are written.
    pub compression: Compression,
}

impl Geometry {
    /// Whether a volume can be like this.
    pub fn is_possible(&self) -> bool {
        matches!(self.block_size, 512 | 4096)
            && self.size.is_multiple_of(self.block_size.into())
            && (1..=MAX_SIZE).contains(&self.size)
    }
}

/// How frames are written. Where it does not pay, they are stored as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None = 0,
    /// LZ4, block format.
    Lz4 = 1,
}

/// Where a box lies in the map objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The number of the map object.
    pub k: u64,
    /// Where the box begins in it, in bytes.
    pub offset: u32,
    /// How long the box is, in bytes.
    pub length: u32,
}

impl Location {
    /// Whether something can be there.
    pub(super) fn is_possible(&self) -> bool {
        let end = u64::from(self.offset) + u64::from(self.length);
        (1..1 << 48).contains(&self.k)
            && self.offset as usize >= PRELUDE
            && self.length > 0
            && end <= MAX_OBJECT
    }
}

/// A checkpoint of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The epoch that wrote it.
    pub epoch: u32,
    /// The attachment that wrote it.
    pub attach: AttachId,
    /// Its number in the epoch; 0 is the pin.
    pub n: u32,
    /// What the volume is like.
    pub geometry: Geometry,
    /// The last segment that the map includes; 0: none.
    pub seq: u64,
    /// The hash of that segment's header box; zeros if there is none.
    pub header: Hash,
    /// The number of the next map object.
    pub next_k: u64,
    /// The root before this one: epoch, number, [`hash`] of its object.
    pub previous: Option<(u32, u32, Hash)>,
    /// Where the tables are.
    pub tables: Location,
    /// The number of the key object; 0: the volume is not encrypted.
    pub key: u32,
    /// The journal that may have writes which no segment has, and up to which position
    /// the map has them.
    pub journal: Option<(JournalId, u64)>,
}

impl Root {
    /// The object.
    pub fn encode(&self, volume: VolumeId, cipher: &Cipher, name: &str) -> Bytes {
        let (sealed, key) = (cipher.is_sealed(), self.key);
        let prelude = Prelude {
            kind: Kind::Root,
            sealed,
            key,
            volume,
        };
        let mut out = Vec::with_capacity(256);
        out.put_u64_le(0);
        out.put_u32_le(PAGE_BLOCKS as u32);
        out.put_u32_le(self.epoch);
        out.put_u32_le(self.n);
        out.put_slice(&self.attach.0);
        out.put_u64_le(self.geometry.size);
        out.put_u32_le(self.geometry.block_size);
        out.put_u8(self.geometry.compression as u8);
        out.put_u64_le(self.seq);
        out.put_slice(&self.header);
        out.put_u64_le(self.next_k);
        out.put_u8(self.previous.is_some().into());
        let (epoch, n, hash) = self.previous.unwrap_or_default();
        out.put_u32_le(epoch);
        out.put_u32_le(n);
        out.put_slice(&hash);
        out.put_u64_le(self.tables.k);
        out.put_u32_le(self.tables.offset);
        out.put_u32_le(self.tables.length);
        let (journal, position) = self.journal.unwrap_or_default();
        out.put_slice(&journal.0);
        out.put_u64_le(position);
        out.put_bytes(0, 2 + 4);
        seal::make_only(cipher, &prelude, name, &out)
    }

    /// The object of this name, and whose it is.
    pub fn decode(
        name: &str,
        body: &Bytes,
        volume: Option<VolumeId>,
        cipher: &Cipher,
    ) -> Result<(VolumeId, Root), Damage> {
        let prelude = prelude(body)?.expect(Kind::Root, volume)?;
        let payload = seal::open_only(cipher, &prelude, name, body)?;
        let root = parse(&payload, prelude.key)?;
        ensure(
            Name::parse(name) == Some(Name::Root(root.epoch, root.n)),
            "another number than its name says",
        )?;
        root.check()?;
        Ok((prelude.volume, root))
    }

    fn check(&self) -> Result<(), Damage> {
        ensure(self.geometry.is_possible(), "the volume's size")?;
        let none = self.header == Hash::default();
        ensure(
            self.seq < 1 << 48 && (self.seq > 0 || none),
            "its last segment",
        )?;
        let earlier = |(epoch, n, _)| (epoch, n) < (self.epoch, self.n);
        ensure(
            self.previous.is_none_or(earlier),
            "the root before it is not before it",
        )?;
        let tables = self.tables.is_possible() && self.tables.k < self.next_k;
        ensure(tables && self.next_k <= 1 << 48, "the place of its tables")
    }
}

/// What a root tells before there is a cipher: whether it is sealed, and the number
/// of the key. Nothing proves it until the root is decoded.
pub fn prelude(body: &Bytes) -> Result<Prelude, Damage> {
    let prelude = Prelude::decode(body)?.expect(Kind::Root, None)?;
    ensure(
        prelude.sealed == (prelude.key != 0),
        "a key's number and no seal, or a seal and none",
    )?;
    Ok(prelude)
}

/// The first 16 bytes of the SHA-256.
pub fn hash(bytes: &[u8]) -> Hash {
    let mut first = Hash::default();
    first.copy_from_slice(&Sha256::digest(bytes)[..16]);
    first
}

fn parse(payload: &[u8], key: u32) -> Result<Root, Damage> {
    let mut bytes = Reader::new(payload, "root");
    known(bytes.u64()? == 0, "features of the root")?;
    known(
        u64::from(bytes.u32()?) == PAGE_BLOCKS,
        "pages of another size",
    )?;
    let (epoch, n, attach) = (bytes.u32()?, bytes.u32()?, AttachId(bytes.array()?));
    let (size, block_size) = (bytes.u64()?, bytes.u32()?);
    known(matches!(block_size, 512 | 4096), "blocks of another size")?;
    let compression = match bytes.u8()? {
        0 => Compression::None,
        1 => Compression::Lz4,
        other => return Err(Damage::Unknown(format!("compression {other}"))),
    };
    let geometry = Geometry {
        size,
        block_size,
        compression,
    };
    let (seq, header, next_k) = (bytes.u64()?, bytes.array()?, bytes.u64()?);
    let flag = bytes.u8()?;
    let before = (bytes.u32()?, bytes.u32()?, bytes.array()?);
    let previous = match flag {
        0 => None,
        1 => Some(before),
        _ => return Err(Damage::Malformed("whether a root was before it")),
    };
    let tables = Location {
        k: bytes.u64()?,
        offset: bytes.u32()?,
        length: bytes.u32()?,
    };
    let journal = match (JournalId(bytes.array()?), bytes.u64()?) {
        (JournalId(id), position) if id == [0; 16] => {
            ensure(position == 0, "a position in no journal")?;
            None
        }
        named => Some(named),
    };
    known(bytes.u16()? == 0, "a parent")?;
    known(bytes.u32()? == 0, "snapshots")?;
    bytes.end()?;
    Ok(Root {
        epoch,
        attach,
        n,
        geometry,
        seq,
        header,
        next_k,
        previous,
        tables,
        key,
        journal,
    })
}

fn known(holds: bool, what: &str) -> Result<(), Damage> {
    match holds {
        true => Ok(()),
        false => Err(Damage::Unknown(what.to_owned())),
    }
}
