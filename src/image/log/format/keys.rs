//! Passphrases, and the data key that they wrap.
//!
//! An encrypted volume has one random data key for its whole life. What its boxes are
//! sealed with is HKDF-SHA-256 of it: salt the volume's id, info `swiftnbd 2 boxes`, 32
//! bytes. The data key lies in `key/<n>`, wrapped by a key that is made of a passphrase,
//! so that another passphrase changes no other object: a new key object, then a root
//! that names it.
//!
//! A key object is a prelude and one box, not sealed, so that damage is told from a
//! wrong passphrase. Its payload:
//!
//! | field | bytes | what |
//! |---|---|---|
//! | method | 1 | 1: Argon2id version 19, XChaCha20-Poly1305. Another: *unknown* |
//! | memory | 4 | of Argon2, in KiB |
//! | passes | 4 | of Argon2 |
//! | lanes | 4 | of Argon2 |
//! | salt | 16 | random, of Argon2 |
//! | nonce | 24 | random, of the wrapping |
//! | wrapped | 48 | the data key's 32 bytes, encrypted, and the tag |
//!
//! The wrapping's associated data is the prelude, the object's name, and the payload
//! before the nonce. A cost beyond [`Cost::MAX`] is refused before any memory is taken for
//! it.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use bytes::{BufMut, Bytes};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::names;
use super::seal::{self, Cipher, Kind, Prelude, SealKey};
use super::wire::Reader;
use super::{Damage, VolumeId};

const ARGON2ID: u8 = 1;
const INFO: &[u8] = b"swiftnbd 2 boxes";
const KEY: usize = 32;
const TAG: usize = 16;

/// What a person, or a file, knows.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// The most bytes, after the newline at its end.
    pub const MAX: usize = 4096;

    /// From the bytes of a file: one newline at the end is not part of it; anything
    /// else is, whatever it is.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Passphrase, PassphraseError> {
        let mut bytes = Zeroizing::new(bytes.into());
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        match bytes.len() {
            0 => Err(PassphraseError::Empty),
            1..=Passphrase::MAX => Ok(Passphrase(bytes)),
            _ => Err(PassphraseError::TooLong),
        }
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Why some bytes are no passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// Nothing, or a newline alone.
    #[error("the passphrase is empty")]
    Empty,
    /// Beyond [`Passphrase::MAX`].
    #[error("the passphrase is longer than {} bytes", Passphrase::MAX)]
    TooLong,
}

/// What making a key of a passphrase costs; kept in the key object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB: 8 for each lane at least.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// Some tenths of a second, and 64 MiB for as long.
    fn default() -> Cost {
        Cost {
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 1,
        }
    }
}

impl Cost {
    /// The most of each: 1 GiB.
    pub const MAX: Cost = Cost {
        memory_kib: 1 << 20,
        passes: 32,
        lanes: 16,
    };

    fn params(self) -> Option<Params> {
        let most = Cost::MAX;
        let within = self.memory_kib <= most.memory_kib
            && self.passes <= most.passes
            && self.lanes <= most.lanes;
        let params =
            within.then(|| Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY)));
        params?.ok()
    }
}

/// The key of a volume's data.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; KEY]>);

impl DataKey {
    /// A new one.
    pub fn random() -> DataKey {
        DataKey(Zeroizing::new(seal::random()))
    }

    /// What seals the volume's boxes.
    pub fn cipher(&self, volume: VolumeId) -> Cipher {
        let mut key = Zeroizing::new([0; KEY]);
        Hkdf::<Sha256>::new(Some(&volume.0), &*self.0)
            .expand(INFO, &mut *key)
            .expect("32 bytes are one step of the derivation");
        Cipher::Sealed(SealKey::new(&key))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// Why a key object does not give the data key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is whole, and another passphrase's.
    #[error("the passphrase is wrong")]
    Wrong,
    /// It cannot be used.
    #[error(transparent)]
    Damage(#[from] Damage),
}

/// The key object `key/<n>` of this passphrase. Takes the time and memory that `cost`
/// says.
///
/// # Panics
/// Where the cost is beyond [`Cost::MAX`], or less than Argon2 allows.
pub fn wrap(
    data: &DataKey,
    passphrase: &Passphrase,
    volume: VolumeId,
    n: u32,
    cost: Cost,
) -> Bytes {
    let params = cost.params().expect("a cost within the limits");
    let (salt, nonce) = (seal::random::<16>(), seal::random::<24>());
    let name = names::key(n);
    let mut payload = Vec::with_capacity(128);
    payload.put_u8(ARGON2ID);
    payload.put_u32_le(cost.memory_kib);
    payload.put_u32_le(cost.passes);
    payload.put_u32_le(cost.lanes);
    payload.put_slice(&salt);
    let place = place(volume, &name, &payload);
    payload.put_slice(&nonce);
    let mut wrapped = data.0.clone();
    let tag = wrapping_key(passphrase, &salt, params)
        .encrypt_inout_detached(&XNonce::from(nonce), &place, wrapped.as_mut_slice().into())
        .expect("32 bytes are within the cipher's limit");
    payload.put_slice(&*wrapped);
    payload.put_slice(&tag);
    seal::make_only(&Cipher::Plain, &prelude(volume), &name, &payload)
}

/// The data key in a key object. Takes the time and memory that the object says, within
/// [`Cost::MAX`].
pub fn unwrap(
    name: &str,
    volume: VolumeId,
    body: &Bytes,
    passphrase: &Passphrase,
) -> Result<DataKey, KeyError> {
    let found = Prelude::decode(body)?.expect(Kind::Key, Some(volume))?;
    let payload = seal::open_only(&Cipher::Plain, &found, name, body)?;
    let mut bytes = Reader::new(&payload, "key");
    let method = bytes.u8()?;
    if method != ARGON2ID {
        return Err(Damage::Unknown(format!("a key's method {method}")).into());
    }
    let (memory_kib, passes, lanes) = (bytes.u32()?, bytes.u32()?, bytes.u32()?);
    let cost = Cost {
        memory_kib,
        passes,
        lanes,
    };
    let salt = bytes.array::<16>()?;
    let (nonce, wrapped, tag) = (bytes.array()?, bytes.array()?, bytes.array::<TAG>()?);
    bytes.end()?;
    let params = cost
        .params()
        .ok_or(Damage::Malformed("a key's cost is beyond the limits"))?;
    let place = place(volume, name, &payload[..1 + 12 + 16]);
    let mut data = Zeroizing::new(wrapped);
    let (nonce, tag) = (XNonce::from(nonce), Tag::from(tag));
    wrapping_key(passphrase, &salt, params)
        .decrypt_inout_detached(&nonce, &place, data.as_mut_slice().into(), &tag)
        .map_err(|_| KeyError::Wrong)?;
    Ok(DataKey(data))
}

fn prelude(volume: VolumeId) -> Prelude {
    Prelude {
        kind: Kind::Key,
        sealed: false,
        key: 0,
        volume,
    }
}

/// The wrapping's associated data.
fn place(volume: VolumeId, name: &str, payload: &[u8]) -> Vec<u8> {
    [&prelude(volume).encode()[..], name.as_bytes(), payload].concat()
}

fn wrapping_key(passphrase: &Passphrase, salt: &[u8; 16], params: Params) -> XChaCha20Poly1305 {
    let mut key = Zeroizing::new([0; KEY]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(&passphrase.0, salt, &mut *key)
        .expect("lengths are within Argon2's limits");
    XChaCha20Poly1305::new((&*key).into())
}
