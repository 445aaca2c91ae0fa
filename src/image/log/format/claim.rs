//! Claims, renewals, releases and stops: who attached, and what is no longer possible.
//!
//! All four are a prelude and one box, never sealed: whoever attaches reads them
//! before there is a passphrase. The payloads:
//!
//! | claim, at `epoch/<e>` | bytes | what |
//! |---|---|---|
//! | epoch | 4 | `e` |
//! | attach id | 16 | the attachment's |
//! | time | 8 | when it was made, by its host: seconds since 1970 |
//! | flags | 8 | bit 0: it has a journal, and never ends for other hosts; bit 1: it has a lease. Others: 0; a reader that meets one refuses the volume as unknown |
//! | lease | 4, with bit 1 only | how long its lease is, in seconds; 0: nobody holds it, it was made to end the one before. Without bit 1 it is never renewed, and only a person knows when it has ended |
//! | length | 1 | of the host's name |
//! | host | so many | UTF-8, for people |
//!
//! | renewal, at `lease/<e>`, the one object that is overwritten | bytes | what |
//! |---|---|---|
//! | epoch | 4 | `e` |
//! | attach id | 16 | the attachment's that owns `e` |
//! | count | 8 | rises with the renewals, not with each of them |
//!
//! | stop, at a `root/` or `seg/` name | bytes | what |
//! |---|---|---|
//! | epoch | 4 | of the attachment that stopped, not of the name |
//! | attach id | 16 | the same attachment's |
//!
//! | release, at `released/<e>` | bytes | what |
//! |---|---|---|
//! | epoch | 4 | `e` |
//! | attach id | 16 | the attachment's that owned `e` |

use bytes::{BufMut, Bytes};

use super::names::Name;
use super::seal::{self, Cipher, Kind, Prelude};
use super::wire::{Reader, ensure};
use super::{AttachId, Damage, VolumeId};

/// The flag of a claim with a journal.
pub const JOURNAL: u64 = 1;
/// The flag of a claim with a lease.
const LEASE: u64 = 2;
/// The longest name of a host, in bytes.
pub const MAX_HOST: usize = 255;

/// Who attached as an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The epoch.
    pub epoch: u32,
    /// The attachment.
    pub attach: AttachId,
    /// Where; what is beyond [`MAX_HOST`] bytes is not kept.
    pub host: String,
    /// When, by that host's clock.
    pub unix_seconds: u64,
    /// [`JOURNAL`] or 0.
    pub flags: u64,
    /// The length of its lease in seconds; 0: nobody holds it. `None`: it has none.
    pub lease: Option<u32>,
}

/// The word of an epoch's owner that it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The epoch.
    pub epoch: u32,
    /// The attachment that owns it.
    pub attach: AttachId,
    /// Rises with the renewals, not with each of them.
    pub count: u64,
}

/// Proof that nothing was at its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The epoch of who made it.
    pub epoch: u32,
    /// The attachment of who made it.
    pub attach: AttachId,
}

/// An epoch's good end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// The epoch.
    pub epoch: u32,
    /// The attachment that owned it.
    pub attach: AttachId,
}

impl Claim {
    /// The object.
    pub fn encode(&self, volume: VolumeId, name: &str) -> Bytes {
        let mut length = self.host.len().min(MAX_HOST);
        while !self.host.is_char_boundary(length) {
            length -= 1;
        }
        let host = &self.host[..length];
        let mut payload = owner(self.epoch, self.attach);
        payload.put_u64_le(self.unix_seconds);
        match self.lease {
            None => payload.put_u64_le(self.flags),
            Some(seconds) => {
                payload.put_u64_le(self.flags | LEASE);
                payload.put_u32_le(seconds);
            }
        }
        payload.put_u8(host.len() as u8);
        payload.put_slice(host.as_bytes());
        encode(Kind::Claim, volume, name, &payload)
    }

    /// The object of this name, and whose it is.
    pub fn decode(name: &str, body: &Bytes) -> Result<(VolumeId, Claim), Damage> {
        let (volume, payload) = decode(Kind::Claim, name, body)?;
        let mut bytes = Reader::new(&payload, "claim");
        let (epoch, attach) = (bytes.u32()?, AttachId(bytes.array()?));
        let (unix_seconds, flags) = (bytes.u64()?, bytes.u64()?);
        if flags & !(JOURNAL | LEASE) != 0 {
            return Err(Damage::Unknown(format!("a claim's flags {flags:#x}")));
        }
        let lease = match flags & LEASE {
            0 => None,
            _ => Some(bytes.u32()?),
        };
        let length = bytes.u8()?;
        let host = std::str::from_utf8(bytes.bytes(length.into())?);
        bytes.end()?;
        let host = host.map_err(|_| Damage::Malformed("a host's name that is no text"))?;
        let host = host.to_owned();
        ensure(Name::parse(name) == Some(Name::Epoch(epoch)), EPOCH)?;
        Ok((
            volume,
            Claim {
                epoch,
                attach,
                host,
                unix_seconds,
                flags: flags & JOURNAL,
                lease,
            },
        ))
    }
}

impl Renewal {
    /// The object.
    pub fn encode(&self, volume: VolumeId, name: &str) -> Bytes {
        let mut payload = owner(self.epoch, self.attach);
        payload.put_u64_le(self.count);
        encode(Kind::Renewal, volume, name, &payload)
    }

    /// The object of this name, and whose it is.
    pub fn decode(name: &str, body: &Bytes) -> Result<(VolumeId, Renewal), Damage> {
        let (volume, payload) = decode(Kind::Renewal, name, body)?;
        let mut bytes = Reader::new(&payload, "renewal");
        let (epoch, attach) = (bytes.u32()?, AttachId(bytes.array()?));
        let count = bytes.u64()?;
        bytes.end()?;
        ensure(Name::parse(name) == Some(Name::Lease(epoch)), EPOCH)?;
        let renewal = Renewal {
            epoch,
            attach,
            count,
        };
        Ok((volume, renewal))
    }
}

impl Stop {
    /// The object.
    pub fn encode(&self, volume: VolumeId, name: &str) -> Bytes {
        encode(Kind::Stop, volume, name, &owner(self.epoch, self.attach))
    }

    /// The object of this name, and whose it is.
    pub fn decode(name: &str, body: &Bytes) -> Result<(VolumeId, Stop), Damage> {
        let (volume, payload) = decode(Kind::Stop, name, body)?;
        let (epoch, attach) = only_owner(&payload)?;
        Ok((volume, Stop { epoch, attach }))
    }
}

impl Release {
    /// The object.
    pub fn encode(&self, volume: VolumeId, name: &str) -> Bytes {
        encode(Kind::Release, volume, name, &owner(self.epoch, self.attach))
    }

    /// The object of this name, and whose it is.
    pub fn decode(name: &str, body: &Bytes) -> Result<(VolumeId, Release), Damage> {
        let (volume, payload) = decode(Kind::Release, name, body)?;
        let (epoch, attach) = only_owner(&payload)?;
        ensure(Name::parse(name) == Some(Name::Released(epoch)), EPOCH)?;
        Ok((volume, Release { epoch, attach }))
    }
}

/// What an object says that it is: to tell a stop from what else may be at its name.
/// Only what then decodes it proves it.
pub fn kind(body: &Bytes) -> Result<Prelude, Damage> {
    Prelude::decode(body)
}

const EPOCH: &str = "another epoch than its name says";

fn encode(kind: Kind, volume: VolumeId, name: &str, payload: &[u8]) -> Bytes {
    let prelude = Prelude {
        kind,
        sealed: false,
        key: 0,
        volume,
    };
    seal::make_only(&Cipher::Plain, &prelude, name, payload)
}

fn decode(kind: Kind, name: &str, body: &Bytes) -> Result<(VolumeId, Bytes), Damage> {
    let prelude = Prelude::decode(body)?.expect(kind, None)?;
    let payload = seal::open_only(&Cipher::Plain, &prelude, name, body)?;
    Ok((prelude.volume, payload))
}

fn owner(epoch: u32, attach: AttachId) -> Vec<u8> {
    let mut payload = Vec::with_capacity(64);
    payload.put_u32_le(epoch);
    payload.put_slice(&attach.0);
    payload
}

fn only_owner(payload: &[u8]) -> Result<(u32, AttachId), Damage> {
    let mut bytes = Reader::new(payload, "owner");
    let owner = (bytes.u32()?, AttachId(bytes.array()?));
    bytes.end()?;
    Ok(owner)
}
