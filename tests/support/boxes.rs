//! Plain boxes by the words of the format, not by its code: they have any payload.

#![allow(dead_code, reason = "each test uses a part of it")]

use bytes::Bytes;
use swiftnbd::image::log::format::VolumeId;
use swiftnbd::image::log::format::seal::{Kind, Prelude};

/// Roles, as they lie in a place.
pub const ONLY: u8 = 1;
pub const HEADER: u8 = 2;
pub const FRAME: u8 = 3;
pub const PAGE: u8 = 4;
pub const TABLES: u8 = 5;

/// The beginning of a plain object.
pub fn plain_prelude(kind: Kind, volume: VolumeId) -> [u8; 32] {
    let prelude = Prelude {
        kind,
        sealed: false,
        key: 0,
        volume,
    };
    prelude.encode()
}

/// A box with this payload at this place.
pub fn plain_box(
    prelude: &[u8],
    name: &str,
    (role, offset, address): (u8, u64, u64),
    payload: &[u8],
) -> Bytes {
    let mut place = prelude.to_vec();
    place.extend((name.len() as u16).to_le_bytes());
    place.extend(name.as_bytes());
    place.push(role);
    place.extend(offset.to_le_bytes());
    place.extend(address.to_le_bytes());
    place.extend(payload);
    let crc = crc32c::crc32c(&place);
    Bytes::from([payload, &crc.to_le_bytes()].concat())
}

/// An object whose only box has this payload.
pub fn plain_object(kind: Kind, volume: VolumeId, name: &str, payload: &[u8]) -> Bytes {
    let prelude = plain_prelude(kind, volume);
    let boxed = plain_box(&prelude, name, (ONLY, 32, 0), payload);
    Bytes::from([&prelude[..], &boxed].concat())
}

/// A segment's beginning whose header has this payload.
pub fn plain_segment(volume: VolumeId, name: &str, payload: &[u8]) -> Bytes {
    let prelude = plain_prelude(Kind::Segment, volume);
    let boxed = plain_box(&prelude, name, (HEADER, 36, 0), payload);
    let length = (boxed.len() as u32).to_le_bytes();
    Bytes::from([&prelude[..], &length, &boxed].concat())
}
