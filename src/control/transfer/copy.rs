//! Copies a volume's bytes from somewhere, or to a file, part by part, through its
//! image: for a volume of format 2, whose objects say nothing by themselves.
//!
//! Nothing is taken on trust from an earlier attempt: what is there is read, and only
//! what is not the same is written. Zeros are not copied: they become holes.
//!
//! Knows: byte ranges, holes. Does not know: objects, locks, what a volume is copied
//! for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::image::{Source, Target};
use super::progress::Progress;
use super::{Pace, blocking, in_parallel, interrupted, width};
use crate::config::Volume;
use crate::control::signals::Signals;
use crate::control::{explain, open};
use crate::error::{Error, Result};
use crate::image::log::Log;
use crate::image::objects::is_zero;
use crate::image::{ExtentKind, Image, ImageError};

/// Bytes that are compared and copied at a time.
const PART: u32 = 1 << 20;
/// Bytes of which some are different are written together.
const GRAIN: usize = 4096;
/// Extents that are asked for at a time.
const EXTENTS: usize = 64;

/// What is copied.
#[async_trait]
pub trait Origin: Send + Sync + 'static {
    /// What is in this range; nothing where it is zeros, and behind the end.
    async fn part(&self, offset: u64, length: u32) -> Result<Option<Vec<u8>>>;
}

#[async_trait]
impl Origin for Arc<Source> {
    async fn part(&self, offset: u64, length: u32) -> Result<Option<Vec<u8>>> {
        let source = Arc::clone(self);
        blocking(move || {
            if !source.has_data(offset, length.into()) {
                return Ok(None);
            }
            let bytes = source.read(offset, length as usize)?;
            Ok((!is_zero(&bytes)).then_some(bytes))
        })
        .await
    }
}

/// A volume's bytes.
#[derive(Debug, Clone)]
pub struct Content {
    /// Which volume, for messages.
    pub volume: Volume,
    /// Its image.
    pub image: Arc<dyn Image>,
}

#[async_trait]
impl Origin for Content {
    async fn part(&self, offset: u64, length: u32) -> Result<Option<Vec<u8>>> {
        let part = self.read(offset, length).await;
        part.map_err(|error| explain::image(&self.volume, &error))
    }
}

impl Content {
    /// What is in this range; nothing where it is zeros.
    async fn read(
        &self,
        offset: u64,
        length: u32,
    ) -> std::result::Result<Option<Vec<u8>>, ImageError> {
        let size = self.image.size();
        let (mut at, end) = (offset, size.min(offset + u64::from(length)));
        let mut bytes: Option<Vec<u8>> = None;
        while at < end {
            let extents = self.image.extents(at, end - at, EXTENTS).await;
            for extent in extents? {
                if extent.kind == ExtentKind::Data {
                    let pieces = self.image.read(at, extent.length as u32).await;
                    let all = bytes.get_or_insert_with(|| vec![0; length as usize]);
                    let mut to = (at - offset) as usize;
                    for piece in pieces? {
                        all[to..to + piece.len()].copy_from_slice(&piece);
                        to += piece.len();
                    }
                }
                at += extent.length;
            }
        }
        Ok(bytes.filter(|bytes| !is_zero(bytes)))
    }
}

/// A copy that is under way.
pub struct Copy {
    /// How fast.
    pub pace: Pace,
    /// Who is told.
    pub progress: Progress,
}

impl Copy {
    /// Makes a volume what `origin` is: how many bytes had to be changed. They are
    /// durable after a flush.
    pub async fn into_volume(
        self: &Arc<Self>,
        origin: Arc<dyn Origin>,
        to: &Content,
        signals: &mut Signals,
    ) -> Result<u64> {
        let changed = Arc::new(AtomicU64::new(0));
        let work = |(offset, length)| {
            let (copy, origin, to) = (Arc::clone(self), Arc::clone(&origin), to.clone());
            let changed = Arc::clone(&changed);
            async move {
                let wanted = origin.part(offset, length).await?;
                let there = match to.read(offset, length).await {
                    Ok(there) => Some(there),
                    // Whatever it was, it is written over.
                    Err(ImageError::Damaged(why)) => {
                        tracing::info!(volume = to.volume.name, "written anew: {why}");
                        None
                    }
                    Err(error) => return Err(explain::image(&to.volume, &error)),
                };
                let written = to.change(offset, length, wanted, there).await?;
                copy.pace.spent(written);
                changed.fetch_add(written, Ordering::Relaxed);
                copy.progress.add(length.into());
                Ok(())
            }
        };
        let parts = parts(to.image.size()).map(Ok);
        in_parallel(parts, width(PART), &self.pace, signals, work).await?;
        Ok(changed.load(Ordering::Relaxed))
    }

    /// Makes a file what a volume is.
    pub async fn into_file(
        self: &Arc<Self>,
        from: &Content,
        to: Arc<Target>,
        signals: &mut Signals,
    ) -> Result<()> {
        let work = |(offset, length): (u64, u32)| {
            let (copy, from, to) = (Arc::clone(self), from.clone(), Arc::clone(&to));
            async move {
                let bytes = from.part(offset, length).await?;
                copy.pace.spent(bytes.as_ref().map_or(0, Vec::len) as u64);
                blocking(move || match bytes {
                    Some(bytes) => to.write(offset, &bytes),
                    None => to.clear(offset, length.into()),
                })
                .await?;
                copy.progress.add(length.into());
                Ok(())
            }
        };
        let parts = parts(from.image.size()).map(Ok);
        in_parallel(parts, width(PART), &self.pace, signals, work).await
    }
}

impl Content {
    /// Writes what is not the same: how much that was. Where it is not known what is
    /// there, that is all.
    async fn change(
        &self,
        offset: u64,
        length: u32,
        wanted: Option<Vec<u8>>,
        there: Option<Option<Vec<u8>>>,
    ) -> Result<u64> {
        let mut changed = 0;
        let to = length as usize;
        let runs = match &there {
            Some(there) => differences(wanted.as_deref(), there.as_deref(), to),
            None => vec![Run {
                from: 0,
                to,
                zeros: wanted.is_none(),
            }],
        };
        let wanted = wanted.map(Bytes::from);
        for run in runs {
            let at = offset + run.from as u64;
            let done = match &wanted {
                Some(wanted) if !run.zeros => {
                    self.image.write(at, wanted.slice(run.from..run.to)).await
                }
                _ => {
                    let length = (run.to - run.from) as u64;
                    self.image.write_zeroes(at, length).await
                }
            };
            done.map_err(|error| explain::image(&self.volume, &error))?;
            changed += (run.to - run.from) as u64;
        }
        Ok(changed)
    }
}

/// Ends the use of a volume of format 2: everything is durable. A signal ends the wait;
/// then it stays locked, and the same command goes on.
pub async fn close(volume: &Volume, log: &Log, signals: &mut Signals) -> Result<()> {
    let locked = |error: Error| error.context(format!("volume {} stays locked", volume.name));
    tokio::select! {
        closed = open::close(volume, log) => closed.map_err(locked),
        () = signals.recv() => Err(locked(interrupted())),
    }
}

/// The parts of a volume of this size: offset and length.
fn parts(size: u64) -> impl Iterator<Item = (u64, u32)> {
    let part = u64::from(PART);
    (0..size.div_ceil(part)).map(move |number| {
        let offset = number * part;
        (offset, part.min(size - offset) as u32)
    })
}

/// Neighbouring bytes of which some have to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    from: usize,
    to: usize,
    /// They are to be zeros.
    zeros: bool,
}

/// Where two texts of this length differ; nothing stands for zeros.
fn differences(wanted: Option<&[u8]>, there: Option<&[u8]>, length: usize) -> Vec<Run> {
    const ZEROS: [u8; GRAIN] = [0; GRAIN];
    fn grain(text: Option<&[u8]>, from: usize, to: usize) -> &[u8] {
        text.map_or(&ZEROS[..to - from], |text| &text[from..to])
    }
    let mut runs: Vec<Run> = Vec::new();
    for from in (0..length).step_by(GRAIN) {
        let to = length.min(from + GRAIN);
        let (wanted, there) = (grain(wanted, from, to), grain(there, from, to));
        if wanted == there {
            continue;
        }
        let zeros = is_zero(wanted);
        match runs.last_mut() {
            Some(last) if last.to == from && last.zeros == zeros => last.to = to,
            _ => runs.push(Run { from, to, zeros }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Random grains of zeros, ones and twos.
    fn text() -> impl Strategy<Value = Option<Vec<u8>>> {
        let grains = proptest::collection::vec(0_u8..3, 5);
        let text = grains.prop_map(|grains| {
            let bytes = grains.into_iter().flat_map(|byte| [byte; GRAIN]);
            bytes.take(5 * GRAIN - 512).collect()
        });
        proptest::option::of(text)
    }

    proptest! {
        #[test]
        fn what_differs_is_changed_and_nothing_else(wanted in text(), there in text()) {
            let length = 5 * GRAIN - 512;
            let whole = |text: &Option<Vec<u8>>| text.clone().unwrap_or(vec![0; length]);
            let (target, mut now) = (whole(&wanted), whole(&there));
            for run in differences(wanted.as_deref(), there.as_deref(), length) {
                for from in (run.from..run.to).step_by(GRAIN) {
                    let grain = from..run.to.min(from + GRAIN);
                    prop_assert_ne!(&now[grain.clone()], &target[grain.clone()]);
                    prop_assert_eq!(is_zero(&target[grain]), run.zeros);
                }
                now[run.from..run.to].copy_from_slice(&target[run.from..run.to]);
            }
            prop_assert_eq!(now, target);
        }
    }

    #[test]
    fn parts_cover_a_volume_of_any_size() {
        for size in [
            512,
            u64::from(PART),
            u64::from(PART) + 512,
            7 * u64::from(PART) - 512,
        ] {
            let mut at = 0;
            for (offset, length) in parts(size) {
                assert!(offset == at && (1..=PART).contains(&length));
                at += u64::from(length);
            }
            assert_eq!(at, size);
        }
    }
}
