//! Where the pieces of a read come from.
//!
//! Knows: in which order to look: what is pending, then the map, then frames in
//! memory and in the store. Does not know: what to do when an object is missing.

use bytes::Bytes;

use super::engine::Engine;
use super::format::{self, BLOCK};
use super::map::{self, Below};
use super::pending::{self, Above};
use super::reader::{FrameError, FrameRef};
use super::{ImageError, LogError};

/// Frames of one read that are fetched together: some 32 MiB at most.
const TOGETHER: usize = 512;

/// Why a read did not succeed.
pub(super) enum Failure {
    /// An object is not there: the map may have changed meanwhile.
    Missing(String),
    Final(ImageError),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        match error {
            LogError::Missing { object } => Failure::Missing(object),
            other => Failure::Final(other.into()),
        }
    }
}

pub(super) fn references(found: &[Below]) -> Vec<FrameRef> {
    let there = found.iter().filter_map(|below| match below {
        Below::There { start, entry } if !map::is_lost(*entry) => Some(reference(*start, *entry)),
        _ => None,
    });
    there.collect()
}

fn reference(start: u64, entry: format::entry::Entry) -> FrameRef {
    FrameRef {
        seq: entry.seq(),
        offset: entry.offset(),
        stored: entry.stored(),
        // A place that no writer writes is refused by the frame.
        address: start.saturating_sub(entry.skip()),
    }
}

/// Where the pieces of a read come from.
#[derive(Default)]
pub(super) struct Places {
    pieces: Vec<Piece>,
}

enum Piece {
    Here(Bytes),
    Zeros(u64),
    Frame {
        frame: FrameRef,
        skip: u64,
        blocks: u64,
    },
}

impl Places {
    pub(super) async fn above(
        &mut self,
        engine: &Engine,
        part: pending::Part,
    ) -> Result<(), Failure> {
        let pending::Part {
            start,
            blocks,
            above,
        } = part;
        match above {
            Above::Data(data) => self.pieces.push(Piece::Here(data)),
            Above::Zeros => self.pieces.push(Piece::Zeros(blocks)),
            Above::Frame {
                encoded,
                index,
                skip,
            } => {
                let info = &encoded.header.frames[index];
                let frame = FrameRef {
                    seq: encoded.header.seq,
                    offset: info.offset,
                    stored: info.stored,
                    address: info.start,
                };
                let content = match engine.frames.cached(&frame) {
                    Some(content) => content,
                    None => decode(engine, &encoded, &frame)?,
                };
                self.pieces.push(Piece::Here(slice(&content, skip, blocks)));
            }
            Above::Nothing => self.below(engine, start, blocks).await?,
        }
        Ok(())
    }

    pub(super) async fn below(
        &mut self,
        engine: &Engine,
        start: u64,
        blocks: u64,
    ) -> Result<(), Failure> {
        let mut found = Vec::new();
        if engine.map.peek(start, blocks, &mut found).is_err() {
            found = engine.map.lookup(&*engine.store, start, blocks).await?;
        }
        for below in found {
            self.pieces.push(match below {
                Below::Hole { blocks, .. } => Piece::Zeros(blocks),
                Below::There { start, entry } if map::is_lost(entry) => {
                    let (offset, length) = map::bytes(start, entry.blocks());
                    let lost = format!("{length} bytes at {offset} of the device were lost; writing them makes them good again");
                    return Err(Failure::Final(ImageError::Damaged(lost)));
                }
                Below::There { start, entry } => Piece::Frame {
                    frame: reference(start, entry),
                    skip: entry.skip(),
                    blocks: entry.blocks(),
                },
            });
        }
        Ok(())
    }

    /// Fetches what is not in memory.
    pub(super) async fn fetch(self, engine: &Engine) -> Result<Vec<Bytes>, Failure> {
        let mut pieces = Vec::with_capacity(self.pieces.len());
        let mut missing = Vec::new();
        let mut wanted = Vec::new();
        for piece in self.pieces {
            match piece {
                Piece::Here(data) => pieces.push(data),
                Piece::Zeros(blocks) => push_zeros(&mut pieces, blocks * BLOCK),
                Piece::Frame {
                    frame,
                    skip,
                    blocks,
                } => match engine.frames.cached(&frame) {
                    Some(content) => pieces.push(slice(&content, skip, blocks)),
                    None => {
                        missing.push((pieces.len(), skip, blocks));
                        wanted.push(frame);
                        pieces.push(Bytes::new());
                    }
                },
            }
        }
        let mut missing = missing.into_iter();
        for some in wanted.chunks(TOGETHER) {
            let contents = engine.frames.get(some).await.map_err(|error| match error {
                FrameError::Missing { name, .. } => Failure::Missing(name),
                other => Failure::Final(LogError::from(other).into()),
            })?;
            // In this order: a zip takes from its first half before it knows of the other.
            for (content, (at, skip, blocks)) in contents.into_iter().zip(missing.by_ref()) {
                pieces[at] = compact(&content, slice(&content, skip, blocks));
            }
        }
        Ok(pieces)
    }
}

/// The part, in memory of its own if it is less than half of the whole: until it is
/// sent it would keep all of it.
pub(super) fn compact(whole: &Bytes, part: Bytes) -> Bytes {
    match part.len() * 2 < whole.len() {
        true => Bytes::copy_from_slice(&part),
        false => part,
    }
}

fn decode(engine: &Engine, encoded: &pending::Encoded, frame: &FrameRef) -> Result<Bytes, Failure> {
    let range = frame.offset as usize..(frame.offset + frame.stored) as usize;
    let boxed = encoded.body.slice(range);
    let home = &engine.home;
    let content = format::frame::open(
        &home.cipher,
        home.volume,
        &encoded.name,
        frame.offset,
        frame.address,
        &boxed,
    );
    content.map_err(|damage| LogError::damaged(&encoded.name, damage).into())
}

/// Some blocks of a frame's content; fewer if it has fewer, which a check of the
/// entry against the frame notices.
fn slice(content: &Bytes, skip: u64, blocks: u64) -> Bytes {
    let length = content.len() as u64;
    let end = ((skip + blocks) * BLOCK).min(length);
    content.slice((skip * BLOCK).min(end) as usize..end as usize)
}

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

fn push_zeros(pieces: &mut Vec<Bytes>, mut bytes: u64) {
    while bytes > 0 {
        let some = bytes.min(ZEROS.len() as u64);
        pieces.push(Bytes::from_static(&ZEROS[..some as usize]));
        bytes -= some;
    }
}
