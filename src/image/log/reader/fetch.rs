//! One GET: the request, its frames opened and handed over, and what is damaged
//! asked for again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::warn;

use super::flights::Landed;
use super::plan::{self, Get, MAX_GET};
use super::{Errand, FrameError, FrameRef, MAX_STORED, Shared};
use crate::image::log::format::{Damage, frame};
use crate::store::ErrorKind;

/// Most GETs under way for frames that somebody waits for.
pub(super) const WANTED_GETS: usize = 64;
/// Most GETs under way for frames that are read ahead.
pub(super) const AHEAD_GETS: usize = 32;
/// The least room for bodies in a lane, in bytes, however small the cache is.
const LEAST_ROOM: u64 = 1 << 20;
/// The unit in which room is counted, in bytes.
const UNIT: u64 = 1 << 10;

/// How often damaged frames are asked for again: another replica may be whole. The
/// last time the whole object is, in its newest version: then Swift compares it with
/// its checksum too, and puts away a replica that is damaged.
const REPEATS: u32 = 3;
/// The pause before the first repeat; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(50);

/// Opening this many bytes, compressed or sealed, takes well under a millisecond:
/// after them others have their turn.
const TURN: usize = 256 << 10;

/// Bounds of the GETs under way for one purpose.
#[derive(Debug)]
pub(super) struct Lane {
    places: Semaphore,
    /// In [`UNIT`]s.
    room: Semaphore,
    /// The same in bytes.
    size: u64,
    /// Bytes of frames that were promised and are not there yet.
    reserved: AtomicU64,
}

impl Lane {
    /// At most this many GETs, and at most `bytes` of bodies (but 1 MiB at least).
    pub(super) fn new(gets: usize, bytes: u64) -> Lane {
        let size = bytes.clamp(LEAST_ROOM, 64 << 20);
        Lane {
            places: Semaphore::new(gets),
            room: Semaphore::new((size / UNIT) as usize),
            size,
            reserved: AtomicU64::new(0),
        }
    }

    /// The longest GET: at least two have room.
    pub(super) fn largest(&self) -> u64 {
        (self.size / 2).min(MAX_GET)
    }

    /// Promises to fetch so many bytes, if that stays within twice the lane's size:
    /// what read-ahead asks for at once is less, what encoding adds included.
    pub(super) fn reserve(&self, bytes: u32) -> bool {
        let fits = |reserved: u64| {
            let after = reserved + u64::from(bytes);
            (after <= 2 * self.size).then_some(after)
        };
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.reserved.fetch_update(set, fetch, fits).is_ok()
    }

    /// That promise was kept, or will not be.
    pub(super) fn release(&self, bytes: u32) {
        self.reserved.fetch_sub(u64::from(bytes), Ordering::Relaxed);
    }

    /// Waits until a GET of this length may begin. It counts until both are dropped.
    async fn enter(&self, length: u64) -> [SemaphorePermit<'_>; 2] {
        let units = length.div_ceil(UNIT).min(self.size / UNIT);
        let place = acquire(&self.places, 1).await;
        [place, acquire(&self.room, units as u32).await]
    }
}

async fn acquire(semaphore: &Semaphore, permits: u32) -> SemaphorePermit<'_> {
    let permits = semaphore.acquire_many(permits).await;
    permits.unwrap_or_else(|closed| unreachable!("nobody closes it: {closed}"))
}

/// A GET whose frames wait to be told. Those that were not when it is dropped are
/// told that the volume is closed.
pub(super) struct Batch {
    shared: Arc<Shared>,
    errand: Errand,
    get: Get,
    /// Those of its frames that have not landed.
    left: HashSet<FrameRef>,
}

impl Batch {
    pub(super) fn new(shared: Arc<Shared>, get: Get, errand: Errand) -> Batch {
        let left = get.frames.iter().copied().collect();
        Batch {
            shared,
            errand,
            get,
            left,
        }
    }

    fn land(&mut self, frame: &FrameRef, landed: &Landed) {
        if let Ok(content) = landed {
            self.shared.cache.insert(frame, content.clone());
        }
        self.left.remove(frame);
        self.shared.flights.land(frame, landed);
    }

    fn land_all(&mut self, error: FrameError) {
        let landed = Err(error);
        for frame in std::mem::take(&mut self.left) {
            self.shared.flights.land(&frame, &landed);
        }
    }

    /// Fetches these of its frames. Returns those that are damaged.
    async fn fetch(&mut self, name: &str, get: &Get) -> Result<Damaged, FrameError> {
        let store = Arc::clone(&self.shared.store);
        let body = store.get_range(name, get.from, get.length()).await;
        Ok(self.open(name, &get.frames, body?, get.from).await)
    }

    /// Fetches the whole object for these of its frames.
    async fn fetch_whole(
        &mut self,
        name: &str,
        frames: &[FrameRef],
    ) -> Result<Damaged, FrameError> {
        let shared = Arc::clone(&self.shared);
        let _turn = acquire(&shared.whole, 1).await;
        let body = shared.store.get(name).await?;
        Ok(self.open(name, frames, body, 0).await)
    }

    /// Opens frames in a body that begins at byte `from` of its object, and hands
    /// over those that are whole.
    async fn open(&mut self, name: &str, frames: &[FrameRef], body: Bytes, from: u64) -> Damaged {
        let mut damaged = Vec::new();
        let mut opened = 0;
        for frame in frames {
            match open(&self.shared, name, frame, &body, from) {
                Ok(content) => {
                    opened += content.len();
                    self.land(frame, &Ok(content));
                }
                Err(damage) => damaged.push((*frame, damage)),
            }
            if opened >= TURN {
                opened = 0;
                yield_now().await;
            }
        }
        damaged
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.land_all(FrameError::closed(self.get.seq()));
        if self.errand == Errand::Ahead {
            let lane = self.shared.lane(self.errand);
            self.get
                .frames
                .iter()
                .for_each(|frame| lane.release(frame.stored));
        }
    }
}

type Damaged = Vec<(FrameRef, Damage)>;

/// Fetches a batch; all of its frames are told what became of them.
pub(super) async fn run(mut batch: Batch) {
    let seq = batch.get.seq();
    let Some(name) = batch.shared.names.name(seq) else {
        let name = format!("segment {seq}");
        return batch.land_all(FrameError::Missing { seq, name });
    };
    match fetch(&mut batch, &name).await {
        Ok(damaged) => {
            for (frame, damage) in damaged {
                let (name, offset) = (name.clone(), frame.offset);
                batch.land(
                    &frame,
                    &Err(FrameError::Damaged {
                        seq,
                        name,
                        offset,
                        damage,
                    }),
                );
            }
        }
        Err(FrameError::Store(error)) if error.kind == ErrorKind::NotFound => {
            batch.land_all(FrameError::Missing { seq, name });
        }
        Err(error) => batch.land_all(error),
    }
}

/// Fetches, and asks again for what is damaged. What remains so is returned.
async fn fetch(batch: &mut Batch, name: &str) -> Result<Damaged, FrameError> {
    let shared = Arc::clone(&batch.shared);
    let lane = shared.lane(batch.errand);
    let _room = lane.enter(batch.get.length()).await;
    let get = batch.get.clone();
    let mut damaged = batch.fetch(name, &get).await?;
    for repeat in 1..=REPEATS {
        let Some((first, damage)) = damaged.first() else {
            break;
        };
        let (frames, offset) = (damaged.len(), first.offset);
        warn!(
            "{name}: {frames} frames are damaged, the first at byte {offset}: {damage}; it is read again"
        );
        sleep(PAUSE * (1 << (repeat - 1))).await;
        let left: Vec<FrameRef> = damaged.drain(..).map(|(frame, _)| frame).collect();
        if repeat == REPEATS {
            damaged = batch.fetch_whole(name, &left).await?;
            continue;
        }
        for get in plan::gets(&left, lane.largest()) {
            damaged.append(&mut batch.fetch(name, &get).await?);
        }
    }
    Ok(damaged)
}

/// Opens a frame, into an allocation that holds little else.
fn open(
    shared: &Shared,
    name: &str,
    frame: &FrameRef,
    body: &Bytes,
    from: u64,
) -> Result<Bytes, Damage> {
    let start = usize::try_from(u64::from(frame.offset) - from).unwrap_or(usize::MAX);
    let end = start.saturating_add(frame.stored as usize);
    if end > body.len() {
        return Err(Damage::Truncated("the object ends before the frame does"));
    }
    let boxed = body.slice(start..end);
    let (cipher, volume) = (&shared.cipher, shared.volume);
    let content = frame::open(cipher, volume, name, frame.offset, frame.address, &boxed)?;
    Ok(alone(content, body))
}

/// What was stored as it is may be a slice of the body, of which it would keep all in
/// memory.
fn alone(content: Bytes, body: &Bytes) -> Bytes {
    let within = body.as_ptr_range().contains(&content.as_ptr());
    match within && body.len() as u64 > MAX_STORED {
        true => Bytes::copy_from_slice(&content),
        false => content,
    }
}
