//! From sealed segments to durable ones.
//!
//! Knows: in which order segments are encoded, stored and published. Does not know:
//! what the map does with them.
//!
//! Segments are encoded one after the other, since each names the hash of the one
//! before; stored several at a time, in any order; *published* in order: a segment
//! counts as durable only when every one before it is. FLUSH waits for that.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | segment 8 is stored, 7 is not, the host dies | 8 was never published; recovery ends at the gap |
//! | a store gives up on a segment (`io_timeout`) | the flushes that wait are told; the segment is stored again, for ever, and no later flush passes it |
//! | another attachment took the volume over, and what it did not find is durable now | only who has the lease says so ([`super::lease`]) |
//! | an older writer goes on after a later attachment | its next segment meets the stop that the later one left ([`super::decide`]): fenced |
//! | many small segments are on their way when the host dies | no more than [`WINDOW`] lie beyond the last durable one, so recovery knows how far to look |

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Duration, sleep};

use super::applier::Item;
use super::decide::{self, Created};
use super::engine::Engine;
use super::format::journal::{Content, Edit};
use super::format::segment::{Builder, Built, Plan, Source};
use super::format::{BLOCK, FRAME_BLOCKS, Hash};
use super::pending::{Encoded, Pending};
use super::reader::FrameRef;
use super::runs::{OVERHEAD, Runs};
use crate::image::ImageError;

/// Segments that may be on their way beyond the last durable one. Part of the
/// format: recovery looks this far past a gap.
pub const WINDOW: u64 = 32;
/// Segments that are stored at the same time.
const UPLOADS: usize = 8;
/// Between two attempts to store a segment that the store gave up.
const PAUSE: Duration = Duration::from_millis(500);
/// What is written waits this long at most before it is sealed, asked or not.
const MAX_AGE: Duration = Duration::from_secs(3);
/// Encoding lets other tasks run after so many bytes.
const BREATH: u64 = 128 << 10;
/// A segment of no more data than this stays in the cache: the collector will
/// want it soon.
const KEEP: u64 = 64 << 10;
/// The most bytes that one step of a write adds.
pub const STEP: u64 = 1 << 20;

/// A segment to be made.
#[derive(Debug)]
pub enum Job {
    /// Of what was written.
    Written {
        /// Its number.
        seq: u64,
        /// Its content.
        runs: Arc<Runs>,
        /// It and those before have every write of the journal up to there.
        journal: u64,
    },
    /// Of what the collector copied.
    Collected {
        /// Its number.
        seq: u64,
        /// Its frames, ascending.
        frames: Vec<Copied>,
    },
}

/// A frame that the collector copied together.
#[derive(Debug)]
pub struct Copied {
    /// Its first block.
    pub start: u64,
    /// Its data, in order.
    pub data: Vec<Bytes>,
    /// Where each part was.
    pub sources: Vec<Source>,
}

/// Encodes a written segment.
pub async fn encode_written(
    engine: &Engine,
    (seq, journal): (u64, u64),
    previous: Hash,
    durable: u64,
    runs: &Runs,
) -> Built {
    let (pieces, holes) = runs.split();
    let plan = Plan {
        frames: pieces.len(),
        sources: 0,
        holes: holes.len(),
    };
    let mut builder = builder(engine, seq, previous, durable, plan, runs.data_bytes());
    builder.journal(journal);
    let mut since = 0;
    for piece in &pieces {
        builder.frame(piece.start, &piece.data, &[]);
        since += piece.data.iter().map(|data| data.len() as u64).sum::<u64>();
        if since >= BREATH {
            since = 0;
            tokio::task::yield_now().await;
        }
    }
    for hole in holes {
        builder.hole(hole.start, hole.end - hole.start);
    }
    builder.finish()
}

/// Encodes a collected segment.
pub async fn encode_collected(
    engine: &Engine,
    seq: u64,
    previous: Hash,
    durable: u64,
    frames: &[Copied],
) -> Built {
    let sources = frames.iter().map(|frame| frame.sources.len()).sum();
    let data = frames.iter().flat_map(|frame| &frame.data);
    let bytes = data.map(|data| data.len() as u64).sum();
    let plan = Plan {
        frames: frames.len(),
        sources,
        holes: 0,
    };
    let mut builder = builder(engine, seq, previous, durable, plan, bytes);
    for frame in frames {
        builder.frame(frame.start, &frame.data, &frame.sources);
        tokio::task::yield_now().await;
    }
    builder.finish()
}

fn builder(
    engine: &Engine,
    seq: u64,
    previous: Hash,
    durable: u64,
    plan: Plan,
    bytes: u64,
) -> Builder {
    let id = (engine.epoch, engine.attach, seq);
    let (volume, compression) = (engine.home.volume, engine.geometry.compression);
    Builder::new(
        volume,
        &engine.home.cipher,
        compression,
        id,
        previous,
        durable,
        plan,
        bytes as usize,
    )
}

/// Which segments are stored, so that they can be published in order.
#[derive(Debug, Default)]
struct Stored(Mutex<BTreeMap<u64, Arc<Built>>>);

/// Encodes and stores segments until the queue ends. `previous` is the hash of the
/// last segment before.
pub async fn run(engine: Arc<Engine>, mut jobs: mpsc::UnboundedReceiver<Job>, mut previous: Hash) {
    let uploads = Arc::new(Semaphore::new(UPLOADS));
    let stored = Arc::new(Stored::default());
    let mut progress = engine.progress.subscribe();
    while let Some(job) = jobs.recv().await {
        let seq = match &job {
            Job::Written { seq, .. } | Job::Collected { seq, .. } => *seq,
        };
        let durable = match progress
            .wait_for(|progress| seq <= progress.durable + WINDOW)
            .await
        {
            Ok(progress) => progress.durable,
            Err(_) => return,
        };
        let Ok(permit) = Arc::clone(&uploads).acquire_owned().await else {
            return;
        };
        if engine.check().is_err() {
            return;
        }
        let built = match &job {
            Job::Written { seq, runs, journal } => {
                encode_written(&engine, (*seq, *journal), previous, durable, runs).await
            }
            Job::Collected { seq, frames } => {
                encode_collected(&engine, *seq, previous, durable, frames).await
            }
        };
        previous = built.hash;
        let built = Arc::new(built);
        if let Job::Written { seq, runs, .. } = job {
            if runs.data_bytes() <= KEEP {
                keep(&engine, &built, &runs);
            }
            let (name, body) = (built.name.clone(), built.body.clone());
            let header = built.header.clone();
            engine
                .pending()
                .encoded(seq, Arc::new(Encoded { name, body, header }));
        }
        let (engine2, stored) = (Arc::clone(&engine), Arc::clone(&stored));
        engine
            .tasks
            .spawn(async move { upload(&engine2, &stored, built, permit).await });
    }
}

/// Puts a small segment's frames into the cache.
fn keep(engine: &Engine, built: &Built, runs: &Runs) {
    let (pieces, _) = runs.split();
    for (frame, piece) in built.header.frames.iter().zip(pieces) {
        let reference = FrameRef {
            seq: built.header.seq,
            offset: frame.offset,
            stored: frame.stored,
            address: frame.start,
        };
        engine
            .frames
            .insert(&reference, Bytes::from(piece.data.concat()));
    }
}

async fn upload(engine: &Engine, stored: &Stored, built: Arc<Built>, permit: OwnedSemaphorePermit) {
    loop {
        if engine.check().is_err() {
            return;
        }
        match decide::create(&*engine.store, &built.name, &built.body).await {
            Ok(Created::Ours) => break,
            Ok(Created::Taken(other)) => return engine.fenced(&engine.taken(&built.name, &other)),
            Err(error) => {
                tracing::warn!("a segment could not be stored, it is tried again: {error}");
                // Without a limit nobody is told: that something exists and cannot be
                // found passes, too.
                if engine.patience.is_some() {
                    engine.progress.send_modify(|progress| {
                        progress.failures += 1;
                        progress.error = Some(error);
                    });
                }
                sleep(PAUSE).await;
            }
        }
    }
    drop(permit);
    publish(engine, stored, built);
}

/// Publishes what is durable without a gap.
fn publish(engine: &Engine, stored: &Stored, built: Arc<Built>) {
    let mut stored = stored.0.lock().unwrap_or_else(PoisonError::into_inner);
    stored.insert(built.header.seq, built);
    engine.progress.send_if_modified(|progress| {
        let before = progress.durable;
        while let Some(next) = stored.remove(&(progress.durable + 1)) {
            progress.durable += 1;
            if let Some(journal) = &engine.journal {
                journal.trim(next.header.journal);
            }
            let length = next.body.len() as u64;
            let header = Arc::new(next.header.clone());
            let _ = engine.to_apply.send(Item::Segment {
                header,
                hash: next.hash,
                stored: length,
            });
        }
        progress.durable > before
    });
}

/// Writes whole blocks; waits for memory.
pub async fn write(engine: &Engine, mut start: u64, data: &[u8]) -> Result<(), ImageError> {
    for step in data.chunks(engine.step) {
        let blocks = step.len() as u64 / BLOCK;
        let runs = blocks / FRAME_BLOCKS + 4;
        let cost = step.len() as u64 + runs * OVERHEAD;
        add(engine, cost, start, Content::Data(step)).await?;
        start += blocks;
    }
    kept(engine).await
}

/// Writes zeros over blocks.
pub async fn write_zeroes(engine: &Engine, range: Range<u64>) -> Result<(), ImageError> {
    // What is cut off at its edges is copied, a frame each at most.
    let cost = 4 * OVERHEAD + 2 * FRAME_BLOCKS * BLOCK;
    let content = Content::Zeroes(range.end - range.start);
    add(engine, cost, range.start, content).await?;
    kept(engine).await
}

/// Writes what a journal has that no segment has, without appending it again: `position`
/// is where it ends in the journal.
pub async fn write_again(engine: &Engine, edit: Edit, position: u64) -> Result<(), ImageError> {
    let (cost, change): (u64, Change) = match edit {
        Edit::Write { start, data } => {
            let runs = data.len() as u64 / BLOCK / FRAME_BLOCKS + 4;
            let cost = data.len() as u64 + runs * OVERHEAD;
            (cost, Box::new(move |open| open.write(start, &data)))
        }
        Edit::Zeroes { start, blocks } => {
            let cost = 4 * OVERHEAD + 2 * FRAME_BLOCKS * BLOCK;
            (
                cost,
                Box::new(move |open| open.write_zeroes(start..start + blocks)),
            )
        }
    };
    change_open(engine, cost, |pending| {
        change(&mut pending.open);
        pending.journal = position;
    })
    .await
}

/// What happens to the open segment.
type Change = Box<dyn FnOnce(&mut Runs) + Send>;

/// Changes the open segment, which takes at most `cost` bytes more, and appends that to
/// the journal.
async fn add(
    engine: &Engine,
    cost: u64,
    start: u64,
    content: Content<'_>,
) -> Result<(), ImageError> {
    engine.check()?;
    let journal = engine.journal.as_deref();
    let mut room = None;
    if let Some(journal) = journal {
        room = journal.try_room(content);
        if room.is_none() {
            // What it is full of is on its way, or is from now on.
            engine.seal();
            or_failure(engine, async { room = Some(journal.room(content).await) }).await?;
        }
    }
    change_open(engine, cost, |pending| {
        match content {
            Content::Data(data) => pending.open.write(start, data),
            Content::Zeroes(blocks) => pending.open.write_zeroes(start..start + blocks),
        }
        // Under the lock, so in the same order.
        let position = journal
            .zip(room)
            .and_then(|(journal, room)| journal.append(room, start, content));
        pending.journal = position.unwrap_or(pending.journal);
    })
    .await
}

/// Waits until everything that was written before outlives this process, if it may be
/// answered only then.
async fn kept(engine: &Engine) -> Result<(), ImageError> {
    let Some(journal) = &engine.journal else {
        return Ok(());
    };
    let position = engine.pending().journal;
    match journal.written(position).await {
        true => Ok(()),
        false => flush(engine).await,
    }
}

/// Changes the open segment, which takes at most `cost` bytes more.
async fn change_open(
    engine: &Engine,
    cost: u64,
    change: impl FnOnce(&mut Pending),
) -> Result<(), ImageError> {
    engine.check()?;
    if *engine.crowded.borrow() {
        or_failure(engine, async {
            let mut crowded = engine.crowded.subscribe();
            let _ = crowded.wait_for(|crowded| !crowded).await;
        })
        .await?;
    }
    or_failure(engine, async {
        if let Ok(permit) = engine.budget.acquire_many(cost as u32).await {
            permit.forget();
        }
    })
    .await?;
    let full = {
        let mut pending = engine.pending();
        let before = pending.open.cost();
        change(&mut pending);
        pending.opened.get_or_insert_with(tokio::time::Instant::now);
        let after = pending.open.cost();
        engine.refund((before + cost).saturating_sub(after));
        after >= engine.pace.segment
    };
    if full {
        engine.seal();
    }
    Ok(())
}

/// Waits, but not past the store's giving up on a segment, nor past a fence.
async fn or_failure(engine: &Engine, wait: impl Future<Output = ()>) -> Result<(), ImageError> {
    let mut progress = engine.progress.subscribe();
    let failures = progress.borrow().failures;
    tokio::select! {
        biased;
        () = wait => engine.check(),
        () = engine.until_fenced() => engine.check(),
        error = failed_since(&mut progress, failures) => Err(error),
    }
}

async fn failed_since(
    progress: &mut tokio::sync::watch::Receiver<super::engine::Progress>,
    failures: u64,
) -> ImageError {
    match progress
        .wait_for(|progress| progress.failures > failures)
        .await
    {
        Ok(progress) => match &progress.error {
            Some(error) => ImageError::Store(error.clone()),
            None => ImageError::Closed,
        },
        Err(_) => ImageError::Closed,
    }
}

/// Waits until everything that was answered before survives a power cut: in the journal,
/// if there is one that can be relied on.
pub async fn flush_anywhere(engine: &Engine) -> Result<(), ImageError> {
    if let Some(journal) = &engine.journal {
        engine.check()?;
        let position = engine.pending().journal;
        if journal.synced(position).await {
            return engine.confirm().await;
        }
    }
    flush(engine).await
}

/// Waits until everything that was answered before is durable in the store.
pub async fn flush(engine: &Engine) -> Result<(), ImageError> {
    engine.check()?;
    let last = engine.seal();
    if engine.progress.borrow().durable < last {
        or_failure(engine, async {
            let mut progress = engine.progress.subscribe();
            let _ = progress.wait_for(|progress| progress.durable >= last).await;
        })
        .await?;
    }
    engine.confirm().await
}

/// Seals what has been open for long, until the engine ends.
pub async fn age(engine: Arc<Engine>) {
    loop {
        sleep(MAX_AGE / 3).await;
        let opened = engine.pending().opened;
        if opened.is_some_and(|since| since.elapsed() >= MAX_AGE) {
            engine.seal();
        }
    }
}
