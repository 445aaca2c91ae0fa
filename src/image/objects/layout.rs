//! Which objects hold which bytes of the device. Pure arithmetic.

use std::ops::Range;

/// The most objects a volume of format 1 may have: names have eight digits, and
/// only those sort in the order of their numbers.
pub const MAX_OBJECTS: u64 = 100_000_000;

/// The largest object size, in bytes. Whole objects are held in memory.
pub const MAX_OBJECT_SIZE: u32 = 256 << 20;
const _: () = assert!(MAX_OBJECT_SIZE as u64 <= crate::store::MAX_BODY);

/// The original's default object size, in bytes.
pub const DEFAULT_OBJECT_SIZE: u32 = 64 << 10;

/// What the names of all data objects begin with.
pub const PREFIX: &str = "disk.part/";

/// The geometry of a volume: `objects` objects of `object_size` bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Number of objects, 1 to [`MAX_OBJECTS`].
    pub objects: u64,
    /// Bytes in each object, 1 to [`MAX_OBJECT_SIZE`].
    pub object_size: u32,
}

/// The part of a range that lies in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Number of the object.
    pub index: u64,
    /// Bytes of the object.
    pub within: Range<u32>,
}

impl Piece {
    /// Length in bytes.
    pub fn length(&self) -> usize {
        self.within.len()
    }

    /// Whether it is the whole object.
    pub fn is_whole(&self, layout: &Layout) -> bool {
        self.within == (0..layout.object_size)
    }
}

impl Layout {
    /// Size of the device in bytes.
    pub fn size(&self) -> u64 {
        self.objects * u64::from(self.object_size)
    }

    /// Name of the object with this number.
    pub fn name(&self, index: u64) -> String {
        format!("{PREFIX}{index:08}")
    }

    /// Number of the object with this name, if it is one of this volume's.
    pub fn index(&self, name: &str) -> Option<u64> {
        index(name).filter(|index| *index < self.objects)
    }

    /// Cuts a range of the device into the parts of objects that hold it, in
    /// order. The range lies within the device.
    pub fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let size = u64::from(self.object_size);
        let end = offset + length;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (index, start) = (at / size, at % size);
            let stop = size.min(start + (end - at));
            at += stop - start;
            Some(Piece {
                index,
                within: start as u32..stop as u32,
            })
        })
    }
}

/// Number of the object with this name, if it is one of some volume's.
pub fn index(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_the_originals() {
        let layout = Layout {
            objects: 16384,
            object_size: 65536,
        };
        assert_eq!(layout.size(), 1 << 30);
        assert_eq!(layout.name(0), "disk.part/00000000");
        assert_eq!(layout.name(16383), "disk.part/00016383");
        assert_eq!(layout.index("disk.part/00016383"), Some(16383));
        for stranger in [
            "disk.part/00016384",
            "disk.part/0001638",
            "disk.part/+0001638",
            "disk.part/000016383",
            "other/00000001",
        ] {
            assert_eq!(layout.index(stranger), None, "{stranger}");
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once_and_in_order(
            object_size in 1u32..5000, objects in 1u64..50, a in 0u64..1 << 20, b in 0u64..1 << 20,
        ) {
            let layout = Layout { objects, object_size };
            let (from, to) = (a.min(b) % layout.size(), a.max(b) % (layout.size() + 1));
            let (from, to) = (from.min(to), from.max(to));
            let mut at = from;
            for piece in layout.pieces(from, to - from) {
                prop_assert!(!piece.within.is_empty() && piece.within.end <= object_size);
                prop_assert!(piece.index < objects);
                let start = piece.index * u64::from(object_size) + u64::from(piece.within.start);
                prop_assert_eq!(start, at);
                at += piece.length() as u64;
            }
            prop_assert_eq!(at, to);
        }
    }
}
