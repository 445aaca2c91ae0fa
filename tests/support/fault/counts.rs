//! How many requests of which kind came, for tests that bound work by counts.

use std::ops::Sub;

/// What was asked of the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub get: u64,
    pub get_range: u64,
    pub put: u64,
    pub put_new: u64,
    pub delete: u64,
    pub list: u64,
    pub metadata: u64,
    pub set_metadata: u64,
    /// Bytes in the bodies of `put` and `put_new`, failed ones included.
    pub bytes_written: u64,
    /// Bytes that `get` and `get_range` returned.
    pub bytes_read: u64,
}

impl Counts {
    /// All requests.
    pub fn requests(&self) -> u64 {
        let reads = self.get + self.get_range + self.list + self.metadata;
        reads + self.put + self.put_new + self.delete + self.set_metadata
    }
}

impl Sub for Counts {
    type Output = Counts;

    /// What came since.
    fn sub(self, before: Counts) -> Counts {
        Counts {
            get: self.get - before.get,
            get_range: self.get_range - before.get_range,
            put: self.put - before.put,
            put_new: self.put_new - before.put_new,
            delete: self.delete - before.delete,
            list: self.list - before.list,
            metadata: self.metadata - before.metadata,
            set_metadata: self.set_metadata - before.set_metadata,
            bytes_written: self.bytes_written - before.bytes_written,
            bytes_read: self.bytes_read - before.bytes_read,
        }
    }
}
