//! Copies what is still live out of segments of which little is, so that they can
//! be deleted.
//!
//! Knows: which segments are worth it, and how to find what lives in one. Does not
//! know: when anything is deleted (the [applier](super::applier) does).
//!
//! It works by the volume's ratio of stored to live bytes, emptiest segments first;
//! and it merges small segments, which many flushes make. One batch at a time, of at
//! most a segment's live bytes.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | a block is copied, and written before the copy is applied | a copy says where each block came from, and is applied (and replayed in recovery) only where the map still points there |
//! | a copy hides a write that is still on its way | copies are seen only through the map, never before it |
//! | a segment is damaged | what it holds stays where it is; the segment is left alone and named once |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::time::{Duration, sleep};

use super::applier::Item;
use super::engine::Engine;
use super::error::LogError;
use super::format::segment::{HEADER_GUESS, Header, Source};
use super::format::{BLOCK, Damage, FRAME_BLOCKS};
use super::map::Below;
use super::place::read_box;
use super::reader::FrameRef;
use super::writer::{Copied, Job};

/// Collecting begins at this many stored bytes in a hundred needed ones.
const BEGIN: u64 = 135;
/// Writers wait at this many stored bytes in a hundred needed ones.
const CROWDED: u64 = 170;
/// Headers of small segments that are remembered, to be merged without a request.
const REMEMBERED: usize = 4096;
/// Those of fewer bytes.
const REMEMBER_BELOW: u64 = 64 << 10;
/// Those of no more frames and holes: some kilobytes each.
const REMEMBER_PARTS: usize = 16;
/// After a failure of the store.
const PAUSE: Duration = Duration::from_secs(5);

/// Headers of small segments that came lately.
#[derive(Debug, Default)]
pub struct Recent(Mutex<BTreeMap<u64, Arc<Header>>>);

impl Recent {
    fn get(&self, seq: u64) -> Option<Arc<Header>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&seq)
            .cloned()
    }
}

/// Remembers a small segment's header.
pub fn remember(engine: &Engine, header: &Arc<Header>, stored: u64) {
    let small = header.frames.len() + header.holes.len() <= REMEMBER_PARTS;
    if stored < REMEMBER_BELOW && small {
        let mut recent = engine
            .recent
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        recent.insert(header.seq, Arc::clone(header));
        while recent.len() > REMEMBERED {
            recent.pop_first();
        }
    }
}

/// Has writers wait where too much is stored, or go on where it is not.
pub fn watch_space(engine: &Engine) {
    let crowded = engine.map.space(|space| {
        let (stored, needed) = (space.stored_bytes(), space.needed_bytes());
        stored > needed / 100 * CROWDED + 2 * engine.pace.leave()
    });
    if crowded != *engine.crowded.borrow() {
        engine.crowded.send_replace(crowded);
    }
}

/// Collects whenever it is worth it, until the engine ends.
pub async fn run(engine: Arc<Engine>) {
    let mut bad = BTreeSet::new();
    loop {
        engine.collect.notified().await;
        while let Some(victims) = victims(&engine, &bad) {
            if engine.check().is_err() {
                return;
            }
            match collect(&engine, &victims).await {
                Ok(true) => {}
                // What it was chosen for is not there: never again the same.
                Ok(false) => bad.extend(victims),
                Err((_, LogError::Store(error))) => {
                    tracing::warn!("what is live cannot be collected, it is tried again: {error}");
                    // Writers do not wait for what may not succeed; only a volume with an
                    // `io_timeout` gets here.
                    engine.crowded.send_replace(false);
                    sleep(PAUSE).await;
                }
                Err((seq, _)) if !engine.map.space(|space| space.knows(seq)) => {}
                Err((seq, error)) => {
                    tracing::error!("segment {seq} cannot be collected and is left alone: {error}");
                    bad.insert(seq);
                }
            }
        }
        if *engine.crowded.borrow() {
            // A root frees what is dead. If it is still too much then, whoever waits
            // for us would wait for nothing.
            if engine.map.space(|space| space.dead_bytes()) > 0 {
                engine.ask(Item::Root).await;
            }
            if victims(&engine, &bad).is_none() {
                engine.crowded.send_replace(false);
            }
        }
    }
}

/// The next batch, if anything is worth it.
fn victims(engine: &Engine, bad: &BTreeSet<u64>) -> Option<Vec<u64>> {
    if engine.closing.load(Ordering::Acquire) {
        return None;
    }
    let applied = engine.progress.borrow().applied;
    let pace = engine.pace;
    let chosen = engine.map.space(|space| {
        let (stored, needed) = (
            space.stored_bytes() - space.dead_bytes(),
            space.needed_bytes(),
        );
        if stored > needed / 100 * BEGIN + pace.leave() {
            let sparse = space.sparse(pace.segment, applied, bad);
            if !sparse.is_empty() {
                return sparse;
            }
        }
        let enough = (pace.small, pace.small_segments);
        space.small(enough, pace.segment, applied, bad)
    });
    (!chosen.is_empty()).then_some(chosen)
}

/// A run of live blocks.
#[derive(Debug, Clone, Copy)]
struct Live {
    start: u64,
    blocks: u64,
    frame: FrameRef,
    skip: u64,
}

/// Copies what lives in these segments into a new one, and waits until the map
/// shows it. False if nothing lives there.
async fn collect(engine: &Engine, victims: &[u64]) -> Result<bool, (u64, LogError)> {
    let mut live = Vec::new();
    for &seq in victims {
        let found = live_in(engine, seq).await.map_err(|error| (seq, error))?;
        live.extend(found);
    }
    live.sort_unstable_by_key(|live| live.start);
    let mut frames = Vec::new();
    for some in live.chunks(512) {
        let wanted: Vec<FrameRef> = some.iter().map(|live| live.frame).collect();
        let contents = engine.frames.get(&wanted).await;
        let contents = contents.map_err(|error| (wanted_seq(&error, &wanted), error.into()))?;
        for (live, content) in some.iter().zip(contents) {
            if (content.len() as u64) < (live.skip + live.blocks) * BLOCK {
                let damage = Damage::Malformed("a frame shorter than the map says");
                let object = format!("segment {}", live.frame.seq);
                return Err((live.frame.seq, LogError::damaged(object, damage)));
            }
            append(&mut frames, *live, &content);
        }
    }
    if frames.is_empty() {
        return Ok(false);
    }
    let bytes: u64 = live.iter().map(|live| live.blocks * BLOCK).sum();
    Engine::count(&engine.counters.collected, bytes);
    let seq = {
        let mut pending = engine.pending();
        if engine.closing.load(Ordering::Acquire) {
            return Ok(true);
        }
        let seq = pending.take_seq();
        let _ = engine.to_seal.send(Job::Collected { seq, frames });
        seq
    };
    let mut progress = engine.progress.subscribe();
    tokio::select! {
        biased;
        _ = progress.wait_for(|progress| progress.applied >= seq) => {}
        () = engine.until_fenced() => {}
    }
    Ok(true)
}

fn wanted_seq(error: &super::reader::FrameError, wanted: &[FrameRef]) -> u64 {
    error
        .seq()
        .unwrap_or_else(|| wanted.first().map_or(0, |frame| frame.seq))
}

/// What the map still needs of a segment.
async fn live_in(engine: &Engine, seq: u64) -> Result<Vec<Live>, LogError> {
    let header = match engine.recent.get(seq) {
        Some(header) => header,
        None => Arc::new(header(engine, seq).await?),
    };
    let mut live = Vec::new();
    for frame in &header.frames {
        let below = engine
            .map
            .lookup(&*engine.store, frame.start, frame.blocks)
            .await?;
        for place in below {
            let Below::There { start, entry } = place else {
                continue;
            };
            if entry.seq() == seq && entry.offset() == frame.offset {
                if entry.stored() != frame.stored || start != frame.start + entry.skip() {
                    let damage = Damage::Malformed("the map does not fit its frames");
                    return Err(LogError::damaged(format!("segment {seq}"), damage));
                }
                let frame = FrameRef {
                    seq,
                    offset: frame.offset,
                    stored: frame.stored,
                    address: frame.start,
                };
                live.push(Live {
                    start,
                    blocks: entry.blocks(),
                    frame,
                    skip: entry.skip(),
                });
            }
        }
    }
    Ok(live)
}

/// A segment's header, from the store.
pub async fn header(engine: &Engine, seq: u64) -> Result<Header, LogError> {
    let Some(name) = engine.map.segment_name(seq) else {
        return Err(LogError::Missing {
            object: format!("segment {seq}"),
        });
    };
    let (header, _) = fetch_header(engine, &name).await?;
    Ok(header)
}

async fn fetch_header(
    engine: &Engine,
    name: &str,
) -> Result<(Header, super::format::Hash), LogError> {
    let home = &engine.home;
    let store = &*engine.store;
    let needed = read_box(store, name, 0, HEADER_GUESS, |first| {
        let needed = Header::needed(&first)?;
        match needed <= first.len() as u64 {
            true => Header::decode(name, home.volume, &home.cipher, &first).map(Ok),
            false => Ok(Err(needed)),
        }
    })
    .await?;
    match needed {
        Ok(header) => Ok(header),
        Err(needed) => {
            read_box(store, name, 0, needed, |first| {
                Header::decode(name, home.volume, &home.cipher, &first)
            })
            .await
        }
    }
}

/// Adds live blocks to the frames, which they follow on the device.
fn append(frames: &mut Vec<Copied>, live: Live, content: &Bytes) {
    let bytes = (live.skip * BLOCK) as usize..((live.skip + live.blocks) * BLOCK) as usize;
    let mut data = content.slice(bytes);
    let (mut start, mut skip, mut left) = (live.start, live.skip, live.blocks);
    while left > 0 {
        let blocks = left.min(FRAME_BLOCKS - start % FRAME_BLOCKS);
        let piece = data.split_to((blocks * BLOCK) as usize);
        let piece = super::compact(content, piece);
        let source = Source {
            blocks: blocks as u8,
            skip: skip as u8,
            offset: live.frame.offset,
            seq: live.frame.seq,
        };
        match frames.last_mut() {
            Some(last) if !start.is_multiple_of(FRAME_BLOCKS) && last.end() == start => {
                last.data.push(piece);
                last.sources.push(source);
            }
            _ => frames.push(Copied {
                start,
                data: vec![piece],
                sources: vec![source],
            }),
        }
        start += blocks;
        skip += blocks;
        left -= blocks;
    }
}

impl Copied {
    fn end(&self) -> u64 {
        self.start
            + self
                .sources
                .iter()
                .map(|source| u64::from(source.blocks))
                .sum::<u64>()
    }
}
