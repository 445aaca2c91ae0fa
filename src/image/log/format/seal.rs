//! Preludes, and the boxes that everything else lies in.
//!
//! Knows: what proves that some bytes are what was written at this place. Does not
//! know: what is in a box.
//!
//! The prelude, the place and the two kinds of box are specified in [the
//! format](super). In a sealed box the nonce is 16 random bytes, drawn for each object
//! when it is made, and the box's offset in the object (8): so no two boxes of one
//! object share a nonce, and none is kept anywhere. The key is derived from the
//! volume's data key ([`keys`](super::keys)).
//!
//! | what a reader meets | then |
//! |---|---|
//! | a plain object in an encrypted volume, or the other way | refused: [`Damage::Seal`]. Nobody without the key can make a segment, a map object or a root of an encrypted volume; claims, keys and stops are plain ([the format](super)) |
//! | a box that was moved, or changed in any bit, the prelude's included | refused: [`Damage::Checksum`] or [`Damage::Seal`] |
//! | an object's clear number (a root's key, a header's length) that was changed | the box does not open |

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};

use super::wire::Reader;
use super::{Damage, VolumeId};

/// Bytes of a prelude.
pub const PRELUDE: usize = 32;
const MAGIC: &[u8; 8] = b"swiftnbd";
const VERSION: u8 = 2;
const SEALED: u16 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;
const CRC: usize = 4;
/// The part of a nonce that is the object's own.
const SALT: usize = 16;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who attached.
    Claim = 1,
    /// Proof that nothing was at its name.
    Stop = 2,
    /// A checkpoint.
    Root = 3,
    /// Data and edits.
    Segment = 4,
    /// Pages and tables of the map.
    Map = 5,
    /// A wrapped data key.
    Key = 6,
    /// The good end of an epoch.
    Release = 7,
    /// The word of an epoch's owner that it is alive.
    Renewal = 8,
    /// A journal's file.
    Journal = 9,
    /// A write in a journal.
    JournalEntry = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        let all = [
            Claim,
            Stop,
            Root,
            Segment,
            Map,
            Key,
            Release,
            Renewal,
            Journal,
            JournalEntry,
        ];
        all.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// What every object begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prelude {
    /// What it is.
    pub kind: Kind,
    /// Whether its boxes are sealed.
    pub sealed: bool,
    /// In a root: the number of the key object, 0 if there is none. Else 0.
    pub key: u32,
    /// Whose it is.
    pub volume: VolumeId,
}

impl Prelude {
    /// As it lies in the object.
    pub fn encode(&self) -> [u8; PRELUDE] {
        let mut bytes = [0; PRELUDE];
        let mut out = &mut bytes[..];
        out.put_slice(MAGIC);
        out.put_u8(self.kind as u8);
        out.put_u8(VERSION);
        out.put_u16_le(if self.sealed { SEALED } else { 0 });
        out.put_u32_le(self.key);
        out.put_slice(&self.volume.0);
        bytes
    }

    /// From the beginning of an object.
    pub fn decode(object: &[u8]) -> Result<Prelude, Damage> {
        let mut bytes = Reader::new(object, "prelude");
        if bytes.array()? != *MAGIC {
            return Err(Damage::Magic);
        }
        let (kind, version) = (bytes.u8()?, bytes.u8()?);
        if version != VERSION {
            return Err(Damage::Unknown(format!("version {version}")));
        }
        let Some(kind) = Kind::from_byte(kind) else {
            return Err(Damage::Unknown(format!("kind {kind}")));
        };
        let flags = bytes.u16()?;
        if flags & !SEALED != 0 {
            return Err(Damage::Unknown(format!("flags {flags:#x}")));
        }
        let (key, volume) = (bytes.u32()?, VolumeId(bytes.array()?));
        if kind != Kind::Root && key != 0 {
            return Err(Damage::Malformed("a key's number where none belongs"));
        }
        let sealed = flags & SEALED != 0;
        Ok(Prelude {
            kind,
            sealed,
            key,
            volume,
        })
    }

    /// The prelude if it is of this kind and, unless `None`, of this volume.
    pub fn expect(self, kind: Kind, volume: Option<VolumeId>) -> Result<Prelude, Damage> {
        if volume.is_some_and(|volume| volume != self.volume) {
            return Err(Damage::Foreign);
        }
        if self.kind != kind {
            let (found, wanted) = (self.kind as u8, kind as u8);
            return Err(Damage::Kind { found, wanted });
        }
        Ok(self)
    }
}

/// What a box is in its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The only box.
    Only = 1,
    /// A segment's header.
    Header = 2,
    /// A frame. Its address: the device block of its first block.
    Frame = 3,
    /// A page of the map. Its address: its number.
    Page = 4,
    /// The tables of the map.
    Tables = 5,
}

/// Where a box belongs; nowhere else does it open.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The beginning of its object.
    pub prelude: &'a Prelude,
    /// The name of its object.
    pub name: &'a str,
    /// What it is there.
    pub role: Role,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// What it is about: see [`Role`]; else 0.
    pub address: u64,
}

/// The bytes of a place that an object's boxes have in common.
fn common(prelude: &Prelude, name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PRELUDE + 2 + name.len() + 17);
    bytes.put_slice(&prelude.encode());
    bytes.put_u16_le(name.len() as u16);
    bytes.put_slice(name.as_bytes());
    bytes
}

/// Completes the bytes of a place.
fn complete(common: &mut Vec<u8>, role: Role, offset: u64, address: u64) {
    common.put_u8(role as u8);
    common.put_u64_le(offset);
    common.put_u64_le(address);
}

/// The key that seals a volume's boxes.
#[derive(Clone)]
pub struct SealKey(Arc<XChaCha20Poly1305>);

impl SealKey {
    /// From its bytes. It is wiped when the last clone is dropped.
    pub fn new(bytes: &[u8; 32]) -> SealKey {
        SealKey(Arc::new(XChaCha20Poly1305::new(bytes.into())))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// How a volume's boxes are made and opened.
#[derive(Debug, Clone)]
pub enum Cipher {
    /// With a checksum.
    Plain,
    /// Encrypted and authenticated.
    Sealed(SealKey),
}

impl Cipher {
    /// Bytes that a box is longer than its payload.
    pub fn overhead(&self) -> usize {
        let (before, after) = self.margins();
        before + after
    }

    /// Whether it seals.
    pub fn is_sealed(&self) -> bool {
        matches!(self, Cipher::Sealed(_))
    }

    /// Bytes of a box before its payload, and after it.
    fn margins(&self) -> (usize, usize) {
        match self {
            Cipher::Plain => (0, CRC),
            Cipher::Sealed(_) => (NONCE, TAG),
        }
    }

    /// Makes a box of bytes that have their payload and room for the margins.
    fn close(&self, place: &[u8], salt: &[u8; SALT], offset: u64, boxed: &mut [u8]) {
        let (before, after) = self.margins();
        let (nonce, rest) = boxed.split_at_mut(before);
        let (payload, proof) = rest.split_at_mut(rest.len() - after);
        match self {
            Cipher::Plain => {
                let crc = crc32c::crc32c_append(crc32c::crc32c(place), payload);
                proof.copy_from_slice(&crc.to_le_bytes());
            }
            Cipher::Sealed(SealKey(key)) => {
                nonce[..SALT].copy_from_slice(salt);
                nonce[SALT..].copy_from_slice(&offset.to_le_bytes());
                let nonce: [u8; NONCE] = (&*nonce).try_into().expect("its length is a constant");
                let tag = key
                    .encrypt_inout_detached(&XNonce::from(nonce), place, payload.into())
                    .expect("an object is shorter than the cipher's limit");
                proof.copy_from_slice(&tag);
            }
        }
    }

    /// A box's payload: of a plain one a part of `boxed`, without a copy.
    pub fn open(&self, place: &Place<'_>, boxed: &Bytes) -> Result<Bytes, Damage> {
        if place.prelude.sealed != self.is_sealed() {
            return Err(Damage::Seal);
        }
        let (before, after) = self.margins();
        let Some(length) = boxed.len().checked_sub(before + after) else {
            return Err(Damage::Truncated("box"));
        };
        let mut at = common(place.prelude, place.name);
        complete(&mut at, place.role, place.offset, place.address);
        let payload = before..before + length;
        let proof = &boxed[payload.end..];
        match self {
            Cipher::Plain => {
                let crc = crc32c::crc32c_append(crc32c::crc32c(&at), &boxed[payload.clone()]);
                match proof == crc.to_le_bytes() {
                    true => Ok(boxed.slice(payload)),
                    false => Err(Damage::Checksum),
                }
            }
            Cipher::Sealed(SealKey(key)) => {
                let nonce: [u8; NONCE] = boxed[..before].try_into().map_err(|_| Damage::Seal)?;
                let tag: [u8; TAG] = proof.try_into().map_err(|_| Damage::Seal)?;
                let mut clear = boxed[payload].to_vec();
                let (nonce, tag) = (XNonce::from(nonce), Tag::from(tag));
                key.decrypt_inout_detached(&nonce, &at, clear.as_mut_slice().into(), &tag)
                    .map_err(|_| Damage::Seal)?;
                Ok(clear.into())
            }
        }
    }
}

/// Opens the only box of an object.
pub(super) fn open_only(
    cipher: &Cipher,
    prelude: &Prelude,
    name: &str,
    object: &Bytes,
) -> Result<Bytes, Damage> {
    let offset = PRELUDE as u64;
    let place = Place {
        prelude,
        name,
        role: Role::Only,
        offset,
        address: 0,
    };
    cipher.open(&place, &object.slice(PRELUDE..))
}

/// Makes an object whose only box has this payload.
pub(super) fn make_only(cipher: &Cipher, prelude: &Prelude, name: &str, payload: &[u8]) -> Bytes {
    let mut object = Maker::new(prelude, name, cipher, payload.len() + cipher.overhead());
    object.add(Role::Only, 0, |out| out.extend_from_slice(payload));
    object.finish()
}

/// An object while it is made: each payload is written once, where it stays.
pub(super) struct Maker {
    cipher: Cipher,
    salt: [u8; SALT],
    /// The bytes of a place: what all have in common, then the last box's.
    place: Vec<u8>,
    common: usize,
    body: Vec<u8>,
}

impl Maker {
    /// An object that has its prelude; room for `capacity` bytes of boxes.
    pub fn new(prelude: &Prelude, name: &str, cipher: &Cipher, capacity: usize) -> Maker {
        debug_assert_eq!(prelude.sealed, cipher.is_sealed());
        let place = common(prelude, name);
        let mut body = Vec::with_capacity(PRELUDE + capacity);
        body.put_slice(&prelude.encode());
        let salt = match cipher {
            Cipher::Plain => [0; SALT],
            Cipher::Sealed(_) => random(),
        };
        Maker {
            cipher: cipher.clone(),
            salt,
            common: place.len(),
            place,
            body,
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Bytes that each box takes beside its payload.
    pub fn overhead(&self) -> usize {
        self.cipher.overhead()
    }

    /// Bytes in clear.
    pub fn clear(&mut self, bytes: &[u8]) {
        self.body.extend_from_slice(bytes);
    }

    /// A box with what `fill` appends. Returns where it lies.
    pub fn add(
        &mut self,
        role: Role,
        address: u64,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Range<usize> {
        let start = self.body.len();
        let (before, after) = self.cipher.margins();
        self.body.resize(start + before, 0);
        fill(&mut self.body);
        self.body.resize(self.body.len() + after, 0);
        let boxed = start..self.body.len();
        self.close(role, address, boxed.clone());
        boxed
    }

    /// Room for a box of so many bytes of payload; [`Maker::fill`] makes it.
    pub fn reserve(&mut self, payload: usize) -> Range<usize> {
        let start = self.body.len();
        self.body
            .resize(start + payload + self.cipher.overhead(), 0);
        start..self.body.len()
    }

    /// Makes a reserved box, once.
    pub fn fill(&mut self, boxed: Range<usize>, role: Role, address: u64, payload: &[u8]) {
        let (before, after) = self.cipher.margins();
        self.body[boxed.start + before..boxed.end - after].copy_from_slice(payload);
        self.close(role, address, boxed);
    }

    fn close(&mut self, role: Role, address: u64, boxed: Range<usize>) {
        let offset = boxed.start as u64;
        self.place.truncate(self.common);
        complete(&mut self.place, role, offset, address);
        self.cipher
            .close(&self.place, &self.salt, offset, &mut self.body[boxed]);
    }

    /// These bytes of it.
    pub fn part(&self, range: Range<usize>) -> &[u8] {
        &self.body[range]
    }

    /// The object.
    pub fn finish(self) -> Bytes {
        self.body.into()
    }
}

/// Random bytes from the kernel.
pub(in crate::image::log) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}
