//! The objects' names.
//!
//! | name | field: lower-case hexadecimal digits |
//! |---|---|
//! | `epoch/<e>` | `e`: 8 |
//! | `lease/<e>` | |
//! | `released/<e>` | |
//! | `root/<e>/<n>` | `n`: 8 |
//! | `seg/<e>.<a>/<seq>` | `a`: 32, the attach id's bytes in order; `seq`: 12 |
//! | `map/<e>.<a>/<k>` | `k`: 12 |
//! | `key/<n>` | `n`: 8 |
//!
//! All of a field's digits are always there, so names sort as their numbers do.
//! Anything else in the container is not ours and is left alone.

use super::AttachId;

/// The claim of an epoch.
pub fn epoch(e: u32) -> String {
    format!("epoch/{e:08x}")
}

/// The renewals of an epoch.
pub fn lease(e: u32) -> String {
    format!("lease/{e:08x}")
}

/// The good end of an epoch.
pub fn released(e: u32) -> String {
    format!("released/{e:08x}")
}

/// Checkpoint `n` of an epoch.
pub fn root(e: u32, n: u32) -> String {
    format!("root/{e:08x}/{n:08x}")
}

/// A segment.
pub fn segment(e: u32, a: AttachId, seq: u64) -> String {
    format!("seg/{e:08x}.{a}/{seq:012x}")
}

/// A map object.
pub fn map(e: u32, a: AttachId, k: u64) -> String {
    format!("map/{e:08x}.{a}/{k:012x}")
}

/// A wrapped data key.
pub fn key(n: u32) -> String {
    format!("key/{n:08x}")
}

/// A name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Name {
    /// The claim of an epoch.
    Epoch(u32),
    /// The renewals of an epoch.
    Lease(u32),
    /// The good end of an epoch.
    Released(u32),
    /// A checkpoint: epoch and number.
    Root(u32, u32),
    /// A segment.
    Segment {
        /// Its epoch.
        epoch: u32,
        /// The attachment that wrote it.
        attach: AttachId,
        /// Its number.
        seq: u64,
    },
    /// A map object.
    Map {
        /// Its epoch.
        epoch: u32,
        /// The attachment that wrote it.
        attach: AttachId,
        /// Its number.
        k: u64,
    },
    /// A wrapped data key.
    Key(u32),
}

impl Name {
    /// Takes a name apart; `None` if it is not one of format 2, to the digit.
    pub fn parse(name: &str) -> Option<Name> {
        let (kind, rest) = name.split_once('/')?;
        match kind {
            "epoch" => Some(Name::Epoch(hex32(rest)?)),
            "lease" => Some(Name::Lease(hex32(rest)?)),
            "released" => Some(Name::Released(hex32(rest)?)),
            "key" => Some(Name::Key(hex32(rest)?)),
            "root" => {
                let (e, n) = rest.split_once('/')?;
                Some(Name::Root(hex32(e)?, hex32(n)?))
            }
            "seg" => {
                let (epoch, attach, seq) = owned(rest)?;
                Some(Name::Segment { epoch, attach, seq })
            }
            "map" => {
                let (epoch, attach, k) = owned(rest)?;
                Some(Name::Map { epoch, attach, k })
            }
            _ => None,
        }
    }
}

/// `<e>.<a>/<number>`
fn owned(text: &str) -> Option<(u32, AttachId, u64)> {
    let (owner, number) = text.split_once('/')?;
    let (e, a) = owner.split_once('.')?;
    let attach = a.parse().ok()?;
    Some((hex32(e)?, attach, digits(number, 12)? as u64))
}

fn hex32(text: &str) -> Option<u32> {
    Some(digits(text, 8)? as u32)
}

pub(super) fn digits(text: &str, count: usize) -> Option<u128> {
    let strict = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match strict && text.len() == count {
        true => u128::from_str_radix(text, 16).ok(),
        false => None,
    }
}
