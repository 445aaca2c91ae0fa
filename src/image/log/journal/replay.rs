//! What a journal has that Swift has not.
//!
//! Knows: where its entries begin and end, and whether that end can be right. Does not
//! know: what they are written to.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Disk, Problem, Shelf};
use crate::image::log::format::journal::{ALIGN, CLEAR, Clear, Edit, HEAD, Head, Owner};
use crate::image::log::format::{Damage, VolumeId};

/// What is read at once, in bytes.
const WINDOW: u64 = 2 << 20;

/// A journal's file, and what it says that it is.
#[derive(Debug, Clone)]
pub struct Found {
    /// The file.
    pub disk: Arc<dyn Disk>,
    /// Its head; `Err`: it is not one of this volume's.
    pub head: Result<Head, Problem>,
}

/// Looks at the file that is on a shelf, for the journal of this volume.
pub async fn look(shelf: &dyn Shelf, volume: VolumeId) -> Result<Option<Found>, Problem> {
    let unreadable = |error: std::io::Error| Problem::Unreadable(error.to_string());
    let Some(disk) = shelf.open().await.map_err(unreadable)? else {
        return Ok(None);
    };
    let length = disk.length();
    let first = disk.read(0, length.min(HEAD) as usize).await;
    let head = match Head::decode(&first.map_err(unreadable)?) {
        Ok(head) if head.volume != volume => Err(Problem::Foreign),
        Ok(head) if length != HEAD + head.ring => Err(Problem::CutOff),
        Ok(head) => Ok(head),
        Err(Damage::Foreign) => Err(Problem::Foreign),
        Err(_) => Err(Problem::NoJournal),
    };
    Ok(Some(Found { disk, head }))
}

impl Found {
    /// Whether nothing was ever appended.
    pub async fn is_new(&self) -> bool {
        let first = self.disk.read(HEAD, CLEAR).await;
        first.is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    }
}

/// Entries, one after the other.
#[derive(Debug)]
pub struct Entries {
    disk: Arc<dyn Disk>,
    owner: Owner,
    ring: u64,
    position: u64,
    /// Where it began: entries go once around at most.
    first: u64,
    epoch: u32,
    /// Bytes that were read already, and the position of the first.
    window: (u64, Bytes),
}

impl Entries {
    /// From a position on.
    pub fn new(disk: Arc<dyn Disk>, owner: Owner, ring: u64, position: u64) -> Entries {
        Entries {
            disk,
            owner,
            ring,
            position,
            first: position,
            epoch: 0,
            window: (position, Bytes::new()),
        }
    }

    /// The position after the last entry that was returned.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next one.
    ///
    /// # Errors
    /// [`Problem::Damaged`]: it was durable, and is not to be read.
    pub async fn next(&mut self) -> Result<Option<Edit>, Problem> {
        let position = self.position;
        let end = self.first + self.ring;
        if position + CLEAR as u64 > end {
            return Ok(None);
        }
        let first = self.bytes(position, CLEAR as u64).await?;
        let clear = Clear::decode(&self.owner, position, &first);
        let Some(clear) =
            clear.filter(|clear| clear.epoch >= self.epoch && position + clear.length() <= end)
        else {
            return self.at_the_end().await;
        };
        let entry = self.bytes(position, clear.length()).await?;
        let Ok(edit) = clear.open(&self.owner, &entry) else {
            return self.at_the_end().await;
        };
        self.epoch = clear.epoch;
        self.position += clear.length();
        Ok(Some(edit))
    }

    /// No entry is here: whether that can be.
    async fn at_the_end(&mut self) -> Result<Option<Edit>, Problem> {
        let here = self.position;
        let mut at = here + ALIGN;
        let last = here + self.ring - CLEAR as u64;
        while at <= last {
            let length = (last + CLEAR as u64 - at).min(WINDOW);
            let bytes = self.bytes(at, length).await?;
            let steps = (length - CLEAR as u64) / ALIGN + 1;
            for step in 0..steps {
                let (place, from) = (at + step * ALIGN, (step * ALIGN) as usize);
                let clear = Clear::decode(&self.owner, place, &bytes[from..]);
                if clear.is_some_and(|clear| clear.synced > here) {
                    return Err(Problem::Damaged(here));
                }
            }
            at += steps * ALIGN;
        }
        Ok(None)
    }

    /// Bytes of the ring.
    async fn bytes(&mut self, position: u64, length: u64) -> Result<Bytes, Problem> {
        let (start, window) = &self.window;
        let there = *start <= position && position + length <= start + window.len() as u64;
        if !there {
            let length = length.max(WINDOW).min(self.ring);
            let mut bytes = BytesMut::with_capacity(length as usize);
            while (bytes.len() as u64) < length {
                let at = (position + bytes.len() as u64) % self.ring;
                let part = (length - bytes.len() as u64).min(self.ring - at);
                let read = self.disk.read(HEAD + at, part as usize).await;
                let read = read.map_err(|error| Problem::Unreadable(error.to_string()))?;
                bytes.extend_from_slice(&read);
            }
            self.window = (position, bytes.freeze());
        }
        let (start, window) = &self.window;
        let from = (position - start) as usize;
        Ok(window.slice(from..from + length as usize))
    }
}
