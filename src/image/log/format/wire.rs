//! Numbers as they lie in objects, read without trust.
//!
//! Knows: little-endian numbers, varints, the end of the bytes. Does not know: what
//! they mean. A varint is LEB128: seven bits a byte, the lowest first, the top bit
//! set in all but the last byte; the shortest form only.

use bytes::{Buf, BufMut};

use super::Damage;

/// Reads from the front of some bytes.
pub(super) struct Reader<'a> {
    left: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Of these bytes, which are `what` in an error.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Reader<'a> {
        Reader { left: bytes, what }
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (first, rest) = self.left.split_first_chunk().ok_or(self.short())?;
        self.left = rest;
        Ok(*first)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Damage> {
        let (first, rest) = self.left.split_at_checked(length).ok_or(self.short())?;
        self.left = rest;
        Ok(first)
    }

    pub fn u8(&mut self) -> Result<u8, Damage> {
        self.left.try_get_u8().map_err(|_| self.short())
    }

    pub fn u16(&mut self) -> Result<u16, Damage> {
        self.left.try_get_u16_le().map_err(|_| self.short())
    }

    pub fn u24(&mut self) -> Result<u32, Damage> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    pub fn u32(&mut self) -> Result<u32, Damage> {
        self.left.try_get_u32_le().map_err(|_| self.short())
    }

    pub fn u48(&mut self) -> Result<u64, Damage> {
        let [a, b, c, d, e, f] = self.array()?;
        Ok(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    pub fn u64(&mut self) -> Result<u64, Damage> {
        self.left.try_get_u64_le().map_err(|_| self.short())
    }

    pub fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0;
        for at in 0..10 {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 || at > 0 && byte == 0 {
                break;
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damage::Malformed("a number that is too long"))
    }

    /// A varint of 32 bits.
    pub fn varint32(&mut self) -> Result<u32, Damage> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| Damage::Malformed("a number that is too large"))
    }

    /// How many items follow, of which each takes `least` bytes or more: so what is
    /// allocated for them is bounded by the bytes that are here.
    pub fn count(&self, count: u64, least: usize) -> Result<usize, Damage> {
        let most = self.left.len() / least;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.short()),
        }
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Damage> {
        match self.left {
            [] => Ok(()),
            _ => Err(self.short()),
        }
    }

    fn short(&self) -> Damage {
        Damage::Truncated(self.what)
    }
}

/// What [`Reader`] reads and [`BufMut`] does not have.
pub(super) trait Put: BufMut {
    fn put_u24(&mut self, value: u32) {
        self.put_uint_le(u64::from(value), 3);
    }

    fn put_u48(&mut self, value: u64) {
        self.put_uint_le(value, 6);
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8(value as u8);
    }
}

impl Put for Vec<u8> {}

/// A difference as a number that is small where the difference is.
pub(super) fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    (difference << 1 ^ difference >> 63) as u64
}

/// What [`zigzag`] of `from` and it gave.
pub(super) fn unzigzag(from: u64, value: u64) -> u64 {
    from.wrapping_add(value >> 1 ^ (value & 1).wrapping_neg())
}

/// An error unless it holds.
pub(super) fn ensure(holds: bool, what: &'static str) -> Result<(), Damage> {
    match holds {
        true => Ok(()),
        false => Err(Damage::Malformed(what)),
    }
}
