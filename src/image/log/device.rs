//! The volume as an image: requests in bytes.
//!
//! Knows: which blocks a request covers, and which it covers in part. Does not know:
//! where their content lies.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use super::format::BLOCK;
use super::map::Below;
use super::pending::Above;
use super::{LOOK, Log, writer};
use crate::image::{Extent, ExtentKind, Image, ImageError, JournalStats, LogStats, Stats};

#[async_trait]
impl Image for Log {
    fn size(&self) -> u64 {
        self.engine.geometry.size
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, ImageError> {
        self.check()?;
        let length = u64::from(length);
        let (first, end) = cover(offset, length);
        self.read_ahead(offset, length);
        let pieces = self.read_blocks(first, end - first).await?;
        let head = offset - first * BLOCK;
        match head == 0 && length == (end - first) * BLOCK {
            true => Ok(pieces),
            false => Ok(trim(pieces, head, length)),
        }
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ImageError> {
        self.check()?;
        let (first, end) = cover(offset, data.len() as u64);
        let _held = match self.engine.geometry.block_size < BLOCK as u32 {
            true => Some(self.ranges.hold(first..end).await),
            false => None,
        };
        match offset.is_multiple_of(BLOCK) && (data.len() as u64).is_multiple_of(BLOCK) {
            true => writer::write(&self.engine, first, &data).await,
            false => self.write_edges(offset, &data).await,
        }
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.check()?;
        let (first, end) = cover(offset, length);
        let _held = match self.engine.geometry.block_size < BLOCK as u32 {
            true => Some(self.ranges.hold(first..end).await),
            false => None,
        };
        let whole = within(offset, length, self.size());
        if whole.is_empty() {
            return self.write_edges(offset, &vec![0; length as usize]).await;
        }
        let head = whole.start * BLOCK - offset;
        if head > 0 {
            self.write_edges(offset, &vec![0; head as usize]).await?;
        }
        let last = (whole.end * BLOCK).min(self.size());
        if last < offset + length {
            let tail = offset + length - last;
            self.write_edges(last, &vec![0; tail as usize]).await?;
        }
        writer::write_zeroes(&self.engine, whole).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.check()?;
        let whole = within(offset, length, self.size());
        if whole.is_empty() {
            return Ok(());
        }
        let _held = match self.engine.geometry.block_size < BLOCK as u32 {
            true => Some(self.ranges.hold(whole.clone()).await),
            false => None,
        };
        writer::write_zeroes(&self.engine, whole).await
    }

    async fn flush(&self) -> Result<(), ImageError> {
        self.check()?;
        writer::flush_anywhere(&self.engine).await
    }

    async fn flush_to_store(&self) -> Result<(), ImageError> {
        self.check()?;
        writer::flush(&self.engine).await
    }

    async fn close(&self) -> Result<(), ImageError> {
        let engine = &*self.engine;
        engine.closing.store(true, Ordering::Release);
        let ended = self.end().await;
        match &ended {
            Ok(()) => self.closed.store(true, Ordering::Release),
            // Nothing can be saved any more.
            Err(ImageError::Superseded(_)) => {
                engine.tasks.abort();
                engine.frames.close().await;
            }
            Err(_) => engine.closing.store(false, Ordering::Release),
        }
        ended
    }

    async fn hand_over(&self, patience: Duration) -> Result<bool, ImageError> {
        let closing = &self.engine.closing;
        closing.store(true, Ordering::Release);
        let wound_up = timeout(patience, self.wind_up()).await;
        if !matches!(wound_up, Ok(Ok(()))) {
            closing.store(false, Ordering::Release);
            return wound_up.map_or(Ok(false), |error| error.map(|()| false));
        }
        self.closed.store(true, Ordering::Release);
        self.stop().await;
        Ok(true)
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Extent>, ImageError> {
        self.check()?;
        let (first, end) = cover(offset, length);
        let end = end.min(first + LOOK);
        let parts = self.engine.pending().find(first..end);
        let mut list = Vec::new();
        for part in parts {
            match part.above {
                Above::Data(_) | Above::Frame { .. } => {
                    Extent::append(&mut list, part.blocks * BLOCK, ExtentKind::Data)
                }
                Above::Zeros => Extent::append(&mut list, part.blocks * BLOCK, ExtentKind::Hole),
                Above::Nothing => {
                    let found = self
                        .engine
                        .map
                        .lookup(&*self.engine.store, part.start, part.blocks)
                        .await?;
                    for below in found {
                        match below {
                            Below::Hole { blocks, .. } => {
                                Extent::append(&mut list, blocks * BLOCK, ExtentKind::Hole)
                            }
                            Below::There { entry, .. } => {
                                Extent::append(&mut list, entry.blocks() * BLOCK, ExtentKind::Data)
                            }
                        }
                    }
                }
            }
            if list.len() > most {
                break;
            }
        }
        list.truncate(most);
        Ok(clip(list, offset - first * BLOCK, length))
    }

    fn stats(&self) -> Stats {
        let engine = &*self.engine;
        let durable = engine.progress.borrow().durable;
        let (held, since) = engine.pending().held(durable);
        let (live, stored, segments) = engine
            .map
            .space(|space| (space.live_bytes(), space.stored_bytes(), space.segments()));
        let (maps, map_bytes) = engine.map.objects();
        let log = LogStats {
            epoch: engine.epoch,
            root: engine.progress.borrow().root,
            encrypted: self.data_key.is_some(),
            live_bytes: live,
            stored_bytes: stored + map_bytes,
            segments: segments as u64,
            map_objects: maps.len() as u64,
            seconds_behind: since.map_or(0, |since| since.elapsed().as_secs()),
            journal: engine.journal.as_ref().map(|journal| {
                let (bytes, used_bytes) = journal.usage();
                JournalStats {
                    bytes,
                    used_bytes,
                    relied_on: journal.is_relied_on(),
                }
            }),
            collected_bytes: engine.counters.collected.load(Ordering::Relaxed),
            deleted_objects: engine.counters.deleted.load(Ordering::Relaxed),
        };
        let (cache_hits, cache_misses) = engine.frames.lookups();
        Stats {
            dirty_bytes: held,
            cached_bytes: engine.frames.cached_bytes() + engine.map.memory(),
            cache_hits,
            cache_misses,
            lease_seconds: Some(engine.lease.left().as_secs()),
            log: Some(log),
        }
    }
}

/// Cuts `head` bytes off the front of the first extent and all beyond `length`.
fn clip(list: Vec<Extent>, mut head: u64, mut length: u64) -> Vec<Extent> {
    let mut clipped = Vec::with_capacity(list.len());
    for extent in list {
        let cut = head.min(extent.length);
        head -= cut;
        let rest = (extent.length - cut).min(length);
        length -= rest;
        Extent::append(&mut clipped, rest, extent.kind);
    }
    clipped
}

/// The blocks that cover some bytes: the first, and the one after the last.
pub(super) fn cover(offset: u64, length: u64) -> (u64, u64) {
    (offset / BLOCK, (offset + length).div_ceil(BLOCK))
}

/// The whole blocks within some bytes. The device's last block counts as whole if
/// the bytes reach the device's end.
fn within(offset: u64, length: u64, size: u64) -> Range<u64> {
    let end = match offset + length == size {
        true => size.div_ceil(BLOCK),
        false => (offset + length) / BLOCK,
    };
    let start = offset.div_ceil(BLOCK);
    start..end.max(start)
}

/// Cuts `head` bytes off the front and all beyond `length`.
fn trim(pieces: Vec<Bytes>, mut head: u64, mut length: u64) -> Vec<Bytes> {
    let mut trimmed = Vec::with_capacity(pieces.len());
    for mut piece in pieces {
        let cut = head.min(piece.len() as u64);
        head -= cut;
        let _ = piece.split_to(cut as usize);
        piece.truncate(length.min(piece.len() as u64) as usize);
        length -= piece.len() as u64;
        if !piece.is_empty() {
            trimmed.push(piece);
        }
    }
    trimmed
}
