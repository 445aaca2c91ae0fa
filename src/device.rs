//! A volume as a block device: what is advertised and which requests are
//! allowed.
//!
//! Knows: bounds, alignment, read-only. Does not know: NBD's wire format and
//! errnos (above), how a range is kept (below).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::image::{Extent, ExtentKind, Image, ImageError, Stats};
use crate::metrics::{Operation, Traffic, TrafficCounts};

/// The largest READ or WRITE that is served, in bytes: the kernel's and the
/// NBD protocol's usual maximum.
pub const MAX_REQUEST: u32 = 32 << 20;

/// A volume that is served as a block device.
#[derive(Debug, Clone)]
pub struct Device {
    image: Arc<dyn Image>,
    size: u64,
    block_size: u32,
    read_only: bool,
    traffic: Arc<Traffic>,
}

/// What a client may know of a device before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Size in bytes, a multiple of the block size.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Shape {
    /// The shape of a volume of `size` bytes, rounded down to whole blocks, as the
    /// kernel does.
    pub fn new(size: u64, block_size: u32, read_only: bool) -> Shape {
        Shape {
            size: size / u64::from(block_size) * u64::from(block_size),
            block_size,
            read_only,
        }
    }
}

/// A request that a device does not carry out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// The range does not lie within the device.
    #[error("range {offset}+{length} lies outside the device of {size} bytes")]
    OutOfRange {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        length: u64,
        /// Size of the device in bytes.
        size: u64,
    },
    /// The range is not a multiple of the logical block size, or is longer than
    /// [`MAX_REQUEST`].
    #[error("request of {length} bytes at {offset} is misaligned or too long")]
    Malformed {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        length: u64,
    },
    /// A write to a read-only device.
    #[error("the device is read-only")]
    ReadOnly,
    /// The volume failed.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Counts what `work` did with so many bytes, and how long it took.
async fn timed<T, E>(
    operation: &Operation,
    bytes: u64,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let begun = Instant::now();
    let done = work.await;
    operation.done(bytes, begun.elapsed(), done.is_err());
    done
}

impl Device {
    /// A device over `image`. `block_size` is the logical block size in bytes, a
    /// power of two from 512 to 4096. A size that is not a multiple of it is
    /// rounded down, as the kernel does.
    pub fn new(image: Arc<dyn Image>, block_size: u32, read_only: bool) -> Device {
        let shape = Shape::new(image.size(), block_size, read_only);
        Device {
            image,
            size: shape.size,
            block_size,
            read_only,
            traffic: Arc::default(),
        }
    }

    /// What it was asked for since it is there; not what it refused for its range or
    /// because it is read-only.
    pub fn traffic(&self) -> TrafficCounts {
        self.traffic.counts()
    }

    /// Size in bytes, a multiple of the block size.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Logical block size in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Size, block size and whether writes are refused.
    pub fn shape(&self) -> Shape {
        Shape::new(self.size, self.block_size, self.read_only)
    }

    /// Figures for `status`.
    pub fn stats(&self) -> Stats {
        self.image.stats()
    }

    /// Reads, as pieces in order whose lengths add up to `length`.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, DeviceError> {
        self.check_transfer(offset, u64::from(length))?;
        let reading = self.image.read(offset, length);
        Ok(timed(&self.traffic.read, length.into(), reading).await?)
    }

    /// Writes; with `fua`, everything answered so far and this write are durable
    /// when it returns.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.check_writable()?;
        let length = data.len() as u64;
        self.check_transfer(offset, length)?;
        let writing = async {
            self.image.write(offset, data).await?;
            self.flush_if(fua).await
        };
        timed(&self.traffic.write, length, writing).await
    }

    /// Makes the range read as zeros.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> Result<(), DeviceError> {
        self.check_writable()?;
        self.check(offset, length)?;
        let zeroing = async {
            self.image.write_zeroes(offset, length).await?;
            self.flush_if(fua).await
        };
        timed(&self.traffic.write_zeroes, length, zeroing).await
    }

    /// Says that the range's content is no longer needed.
    pub async fn discard(&self, offset: u64, length: u64, fua: bool) -> Result<(), DeviceError> {
        self.check_writable()?;
        self.check(offset, length)?;
        let trimming = async {
            self.image.discard(offset, length).await?;
            self.flush_if(fua).await
        };
        timed(&self.traffic.trim, length, trimming).await
    }

    /// What a range holds, from its start on: one extent to `most`, in whole
    /// blocks, together no longer than the range and possibly shorter.
    pub async fn extents(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.check(offset, length)?;
        let found = self.image.extents(offset, length, most).await?;
        Ok(whole_blocks(&found, self.block_size.into()))
    }

    /// Makes everything durable that was answered before the call.
    pub async fn flush(&self) -> Result<(), DeviceError> {
        if self.read_only {
            return Ok(());
        }
        Ok(timed(&self.traffic.flush, 0, self.image.flush()).await?)
    }

    /// Makes everything durable in the store, where a flush is content with less.
    pub async fn flush_to_store(&self) -> Result<(), DeviceError> {
        match self.read_only {
            true => Ok(()),
            false => Ok(self.image.flush_to_store().await?),
        }
    }

    /// Makes everything durable, waits until no request of ours can take effect
    /// any more, and stops. Nothing may be called afterwards.
    pub async fn close(&self) -> Result<(), DeviceError> {
        Ok(self.image.close().await?)
    }

    /// Makes everything durable and stops, for another device that goes on with the
    /// volume. False: not within `patience`, and this one works on, as it does after an
    /// error.
    pub async fn hand_over(&self, patience: Duration) -> Result<bool, DeviceError> {
        Ok(self.image.hand_over(patience).await?)
    }

    async fn flush_if(&self, fua: bool) -> Result<(), DeviceError> {
        if fua {
            Ok(self.image.flush().await?)
        } else {
            Ok(())
        }
    }

    /// Checks a WRITE before its payload is read: nothing may be allocated for
    /// one that is refused.
    pub fn check_write(&self, offset: u64, length: u32) -> Result<(), DeviceError> {
        self.check_writable()?;
        self.check_transfer(offset, u64::from(length))
    }

    fn check_writable(&self) -> Result<(), DeviceError> {
        if self.read_only {
            Err(DeviceError::ReadOnly)
        } else {
            Ok(())
        }
    }

    fn check_transfer(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        if length > u64::from(MAX_REQUEST) {
            return Err(DeviceError::Malformed { offset, length });
        }
        self.check(offset, length)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let block = u64::from(self.block_size);
        if length == 0 || !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(DeviceError::Malformed { offset, length });
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(DeviceError::OutOfRange {
                offset,
                length,
                size: self.size,
            }),
        }
    }
}

/// Moves the ends of extents to those of blocks: a block that is partly data is
/// data. What is left over at the end is left out, unless there is nothing else.
fn whole_blocks(extents: &[Extent], block: u64) -> Vec<Extent> {
    let mut whole = Vec::with_capacity(extents.len());
    let (mut at, mut done) = (0, 0);
    for extent in extents {
        at += extent.length;
        let end = match extent.kind {
            ExtentKind::Data => at.next_multiple_of(block),
            ExtentKind::Hole => at / block * block,
        };
        if end > done {
            Extent::append(&mut whole, end - done, extent.kind);
            done = end;
        }
    }
    if whole.is_empty() {
        Extent::append(&mut whole, block, ExtentKind::Data);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_partly_data_is_data() {
        use ExtentKind::{Data, Hole};
        let cut = |list: &[(u64, ExtentKind)]| {
            let list: Vec<_> = list
                .iter()
                .map(|&(length, kind)| Extent { length, kind })
                .collect();
            let whole = whole_blocks(&list, 512);
            whole.iter().map(|e| (e.length, e.kind)).collect::<Vec<_>>()
        };
        assert_eq!(
            cut(&[(512, Hole), (1024, Data)]),
            [(512, Hole), (1024, Data)]
        );
        // Both neighbours lose the block in which they meet.
        assert_eq!(
            cut(&[(600, Hole), (10, Data), (2000, Hole)]),
            [(512, Hole), (512, Data), (1536, Hole)]
        );
        // A hole within one block is none.
        assert_eq!(
            cut(&[(700, Data), (100, Hole), (224, Data)]),
            [(1024, Data)]
        );
        assert_eq!(cut(&[(100, Hole)]), [(512, Data)]);
        assert_eq!(cut(&[(100, Data)]), [(512, Data)]);
    }
}
