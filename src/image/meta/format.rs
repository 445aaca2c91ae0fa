//! What kind of volume a container says it holds, and how large it is.
//!
//! Format 2 has no Objects and no Object-Size: that is why the original's tools take
//! such a container for none of theirs, instead of writing into it. What its metadata
//! says of it is for people and tools; the volume itself knows better.

use super::{BLOCK_SIZE, MetaError, OBJECT_SIZE, OBJECTS, SIZE, VERSION, text};
use crate::image::objects::layout::{Layout, MAX_OBJECT_SIZE, MAX_OBJECTS};
use crate::store::Metadata;

/// Logical block size of a volume in format 1, in bytes.
const OBJECTS_BLOCK_SIZE: u32 = 512;

/// A format, and the geometry in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Format 1: a row of objects.
    Objects(Layout),
    /// Format 2: a log.
    Log {
        /// Size of the device in bytes.
        size: u64,
        /// Logical block size in bytes: 512 or 4096.
        block_size: u32,
    },
}

impl Format {
    /// Its number: what Version says.
    pub fn number(&self) -> u8 {
        match self {
            Format::Objects(_) => 1,
            Format::Log { .. } => 2,
        }
    }

    /// Size of the device in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Format::Objects(layout) => layout.size(),
            Format::Log { size, .. } => *size,
        }
    }

    /// Logical block size in bytes.
    pub fn block_size(&self) -> u32 {
        match self {
            Format::Objects(_) => OBJECTS_BLOCK_SIZE,
            Format::Log { block_size, .. } => *block_size,
        }
    }

    /// Reads it from a container's metadata.
    pub(super) fn parse(metadata: &Metadata) -> Result<Format, MetaError> {
        let is_there = |key: &&str| text(metadata, key).is_some();
        // Where nothing says which format it is, the keys of one of them do.
        let format = match text(metadata, VERSION) {
            Some("2") => 2,
            None if [SIZE, BLOCK_SIZE].iter().any(is_there) => 2,
            _ => 1,
        };
        let number = |key: &str, name: &'static str, most: u64| {
            let value = text(metadata, key);
            match value.and_then(|value| value.parse::<u64>().ok()) {
                Some(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(MetaError::Damaged {
                    format,
                    key: name,
                    value: value.map(str::to_owned),
                }),
            }
        };
        match text(metadata, VERSION) {
            Some("1") => Ok(Format::Objects(Layout {
                objects: number(OBJECTS, "Objects", MAX_OBJECTS)?,
                object_size: number(OBJECT_SIZE, "Object-Size", MAX_OBJECT_SIZE.into())? as u32,
            })),
            Some("2") => {
                let size = number(SIZE, "Size", u64::MAX)?;
                match number(BLOCK_SIZE, "Block-Size", 4096)? {
                    block_size @ (512 | 4096) if size.is_multiple_of(block_size) => {
                        let block_size = block_size as u32;
                        Ok(Format::Log { size, block_size })
                    }
                    _ => Err(MetaError::Damaged {
                        format,
                        key: "Block-Size",
                        value: text(metadata, BLOCK_SIZE).map(str::to_owned),
                    }),
                }
            }
            Some(other) => Err(MetaError::UnknownVersion(other.to_owned())),
            None => {
                let keys = [OBJECTS, OBJECT_SIZE, SIZE, BLOCK_SIZE];
                match keys.iter().any(is_there) {
                    false => Err(MetaError::NotAVolume),
                    true => Err(MetaError::Damaged {
                        format,
                        key: "Version",
                        value: None,
                    }),
                }
            }
        }
    }

    /// The metadata that says so, and nothing of the other format.
    pub(super) fn describe(&self) -> Metadata {
        let mut all = Metadata::from([(VERSION.to_owned(), self.number().to_string())]);
        let mut set = |key: &str, value: Option<u64>| {
            let value = value.map_or(String::new(), |value| value.to_string());
            all.insert(key.to_owned(), value);
        };
        let (layout, log) = match *self {
            Format::Objects(layout) => (Some(layout), None),
            Format::Log { size, block_size } => (None, Some((size, block_size))),
        };
        set(OBJECTS, layout.map(|layout| layout.objects));
        set(OBJECT_SIZE, layout.map(|layout| layout.object_size.into()));
        set(SIZE, log.map(|(size, _)| size));
        set(BLOCK_SIZE, log.map(|(_, block_size)| block_size.into()));
        all
    }
}
