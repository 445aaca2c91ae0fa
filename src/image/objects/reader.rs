//! Reads: from dirty data, from the cache, from the store, and ahead.
//!
//! A read lays what is dirty over the object's stored content. Stored content is
//! fetched once however many ask for it at the same time. A fetch that began
//! before an upload of the same object ended may carry the old content: an
//! upload that ends makes such fetches outdated (they are not cached and nobody
//! joins them any more), and a reader that waited for one looks again.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Shared as SharedFuture, join_all};

use super::dirty::ByIndex;
use super::extents::Stretch;
use super::layout::Piece;
use super::{Shared, State};
use crate::image::ImageError;
use crate::store::ErrorKind;

/// Buckets in which objects count their uploads. Two objects in one bucket make
/// a reader look again without need, no more.
const BUCKETS: usize = 1024;

/// Sequential readers that are recognized at the same time.
const STREAMS: usize = 8;

/// Where zeros that are read come from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

type Fetch = SharedFuture<Pin<Box<dyn Future<Output = Result<Bytes, ImageError>> + Send>>>;

/// Fetches under way.
pub struct Fetches {
    running: ByIndex<(u64, Fetch)>,
    /// Number of the next fetch.
    next: u64,
    /// How many uploads ended in each bucket.
    uploads: Box<[u64; BUCKETS]>,
}

impl Default for Fetches {
    fn default() -> Fetches {
        Fetches {
            running: ByIndex::default(),
            next: 0,
            uploads: Box::new([0; BUCKETS]),
        }
    }
}

impl std::fmt::Debug for Fetches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetches")
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl Fetches {
    /// The stored content of the object changed: what is being fetched is old.
    pub fn outdate(&mut self, index: u64) {
        self.running.remove(&index);
        self.uploads[index as usize % BUCKETS] += 1;
    }

    fn uploads(&self, index: u64) -> u64 {
        self.uploads[index as usize % BUCKETS]
    }
}

/// Reads a range of the device, as pieces in order.
pub async fn read(
    shared: &Arc<Shared>,
    offset: u64,
    length: u32,
) -> Result<Vec<Bytes>, ImageError> {
    read_ahead(shared, offset, length);
    let mut out = Vec::with_capacity(2);
    let mut pieces = shared.layout.pieces(offset, u64::from(length));
    while let Some(piece) = pieces.next() {
        if !read_now(shared, &piece, &mut out) {
            // From here on at least one fetch is needed: have them run together.
            let rest = std::iter::once(piece).chain(pieces);
            let parts = join_all(rest.map(|piece| read_piece(shared, piece))).await;
            for part in parts {
                out.append(&mut part?);
            }
            return Ok(out);
        }
    }
    Ok(out)
}

/// The stored content of an object, for an upload that needs it. Empty stands
/// for an object that does not exist.
pub async fn base(shared: &Arc<Shared>, index: u64) -> Result<Bytes, ImageError> {
    // Nobody else uploads this object meanwhile, so it cannot become outdated.
    if let Some(body) = shared.cache.get(&index) {
        return Ok(body);
    }
    let fetch = fetch(shared, &mut shared.state(), index);
    fetch.await
}

/// Serves a piece from memory, if that has all of it.
fn read_now(shared: &Shared, piece: &Piece, out: &mut Vec<Bytes>) -> bool {
    let state = shared.state();
    if let Some(slot) = state.dirty.slot(piece.index)
        && slot.covers(piece.within.clone())
    {
        compose(&state, piece, &Bytes::new(), out);
        return true;
    }
    match shared.cache.get(&piece.index) {
        Some(body) => {
            compose(&state, piece, &body, out);
            true
        }
        None => false,
    }
}

async fn read_piece(shared: &Arc<Shared>, piece: Piece) -> Result<Vec<Bytes>, ImageError> {
    let mut out = Vec::with_capacity(1);
    loop {
        if read_now(shared, &piece, &mut out) {
            return Ok(out);
        }
        if let Some((state, body)) = look(shared, piece.index).await? {
            compose(&state, &piece, &body, &mut out);
            return Ok(out);
        }
    }
}

/// Fetches an object's stored content. Returns it with the state in which it is
/// the newest; nothing if it was uploaded meanwhile.
pub async fn look(
    shared: &Arc<Shared>,
    index: u64,
) -> Result<Option<(MutexGuard<'_, State>, Bytes)>, ImageError> {
    let (uploads, fetch) = {
        let mut state = shared.state();
        (
            state.fetches.uploads(index),
            fetch(shared, &mut state, index),
        )
    };
    let body = fetch.await?;
    let state = shared.state();
    if state.fetches.uploads(index) == uploads {
        return Ok(Some((state, body)));
    }
    Ok(None)
}

/// Lays what is dirty over the stored content `base` (empty: zeros) and appends
/// the piece's bytes to `out`.
fn compose(state: &State, piece: &Piece, base: &Bytes, out: &mut Vec<Bytes>) {
    let Some(slot) = state.dirty.slot(piece.index) else {
        stored(base, piece.within.clone(), out);
        return;
    };
    let base = slot.flight().unwrap_or(base);
    let mut at = piece.within.start;
    for stretch in slot.pending.stretches(piece.within.clone()) {
        match stretch {
            Stretch::Data(data) => {
                out.push(Bytes::copy_from_slice(data));
                at += data.len() as u32;
            }
            Stretch::Zeros(length) => {
                zeros(length, out);
                at += length;
            }
            Stretch::Hole(range) => {
                at = range.end;
                stored(base, range, out);
            }
        }
    }
    debug_assert_eq!(at, piece.within.end);
}

fn stored(body: &Bytes, range: Range<u32>, out: &mut Vec<Bytes>) {
    if body.is_empty() {
        return zeros(range.end - range.start, out);
    }
    out.push(part(body, range.start as usize..range.end as usize));
}

/// Bytes of an object. Few of them are copied: a slice keeps the whole object in
/// memory, of which whoever reads slowly counts his part only.
fn part(body: &Bytes, part: Range<usize>) -> Bytes {
    match part.len() * 4 < body.len() {
        true => Bytes::copy_from_slice(&body[part]),
        false => body.slice(part),
    }
}

fn zeros(length: u32, out: &mut Vec<Bytes>) {
    let mut left = length as usize;
    while left > 0 {
        let now = left.min(ZEROS.len());
        out.push(Bytes::from_static(&ZEROS[..now]));
        left -= now;
    }
}

/// Joins the object's fetch, or starts one.
fn fetch(shared: &Arc<Shared>, state: &mut State, index: u64) -> Fetch {
    if let Some((_, fetch)) = state.fetches.running.get(&index) {
        return fetch.clone();
    }
    let number = state.fetches.next;
    state.fetches.next += 1;
    // A task of its own: it ends well even if whoever asked goes away.
    let task = tokio::spawn(run_fetch(Arc::clone(shared), index, number));
    let fetch = task
        .map(|ended| ended.unwrap_or(Err(ImageError::Closed)))
        .boxed()
        .shared();
    state.fetches.running.insert(index, (number, fetch.clone()));
    fetch
}

async fn run_fetch(shared: Arc<Shared>, index: u64, number: u64) -> Result<Bytes, ImageError> {
    let result = get(&shared, index).await;
    let mut state = shared.state();
    // Another number, or none: an upload ended meanwhile and this is outdated.
    if state
        .fetches
        .running
        .get(&index)
        .is_some_and(|(current, _)| *current == number)
    {
        state.fetches.running.remove(&index);
        if let Ok(body) = &result {
            shared.presence.set(index, !body.is_empty());
            shared.cache.insert(index, body.clone());
        }
    }
    result
}

async fn get(shared: &Shared, index: u64) -> Result<Bytes, ImageError> {
    let _permit = shared
        .fetches
        .acquire()
        .await
        .map_err(|_| ImageError::Closed)?;
    let name = shared.layout.name(index);
    match shared.store.get(&name).await {
        Ok(body) if body.len() == shared.layout.object_size as usize => Ok(body),
        Ok(body) => Err(ImageError::Damaged(format!(
            "object {name} holds {} bytes instead of {}",
            body.len(),
            shared.layout.object_size
        ))),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(Bytes::new()),
        Err(error) => Err(error.into()),
    }
}

/// Recent readers, to tell the sequential ones.
#[derive(Debug, Default)]
pub struct Streams {
    recent: VecDeque<Stream>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Where the next read of a sequential reader begins.
    next: u64,
    /// Up to where objects were asked for.
    asked: u64,
    /// How far ahead to ask, in bytes; grows while the reader goes on.
    window: u64,
}

impl Streams {
    /// Notes a read, and returns the range to ask for ahead of it.
    fn note(&mut self, offset: u64, end: u64, most: u64) -> Range<u64> {
        let Some(at) = self.recent.iter().position(|stream| stream.next == offset) else {
            if self.recent.len() == STREAMS {
                self.recent.pop_back();
            }
            self.recent.push_front(Stream {
                next: end,
                asked: end,
                window: 0,
            });
            return end..end;
        };
        let Some(mut stream) = self.recent.remove(at) else {
            return end..end;
        };
        stream.window = (stream.window * 2)
            .max(end - offset)
            .max(128 << 10)
            .min(most);
        let from = stream.asked.max(end);
        let to = end + stream.window;
        // Ask in strides, not for a sliver at each small read.
        let ask = if from + stream.window / 2 <= to {
            from..to
        } else {
            from..from
        };
        (stream.next, stream.asked) = (end, ask.end);
        self.recent.push_front(stream);
        ask
    }
}

/// Starts fetching what a sequential reader will want next.
fn read_ahead(shared: &Arc<Shared>, offset: u64, length: u32) {
    let end = offset + u64::from(length);
    let mut state = shared.state();
    let ask = state.streams.note(offset, end, shared.read_ahead);
    let ask = ask.start..ask.end.min(shared.layout.size());
    if ask.is_empty() {
        return;
    }
    for piece in shared.layout.pieces(ask.start, ask.end - ask.start) {
        let index = piece.index;
        let in_memory = state
            .dirty
            .slot(index)
            .is_some_and(|slot| slot.covers(piece.within))
            || shared.cache.contains_key(&index);
        if !in_memory {
            drop(fetch(shared, &mut state, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_part_keeps_no_object_in_memory() {
        let body = Bytes::from(vec![7; 64 << 10]);
        let small = part(&body, 512..1024);
        let large = part(&body, 0..16 << 10);
        assert_eq!((&small[..], large.len()), (&[7; 512][..], 16 << 10));
        drop(large);
        assert!(body.is_unique());
        let large = part(&body, 0..16 << 10);
        assert!(!body.is_unique());
        drop((large, small));
    }

    #[test]
    fn only_sequential_readers_are_served_ahead() {
        let mut streams = Streams::default();
        let most = 1 << 20;
        for offset in [0, 4 << 20, 1 << 20, 9 << 20, 40960] {
            let end = offset + 4096;
            assert_eq!(
                streams.note(offset, end, most),
                end..end,
                "random at {offset}"
            );
        }
        let mut asked = 0;
        let mut offset = 44 << 10;
        assert_eq!(offset, 40960 + 4096);
        for _ in 0..2000 {
            let end = offset + 4096;
            let range = streams.note(offset, end, most);
            if !range.is_empty() {
                assert!(
                    asked == 0 || range.start == asked,
                    "asked twice or left a gap"
                );
                assert!(range.end - end <= most, "further ahead than allowed");
                asked = range.end;
            }
            assert!(asked >= end, "the reader overtook");
            offset = end;
        }
        assert!(asked - offset >= most / 2);
    }

    #[test]
    fn readers_that_interleave_are_told_apart() {
        let mut streams = Streams::default();
        for step in 0..100u64 {
            for reader in 0..STREAMS as u64 {
                let offset = (reader << 30) + step * 65536;
                let range = streams.note(offset, offset + 65536, 1 << 20);
                assert!(range.is_empty() == (range.start == range.end));
                if step == 1 {
                    assert!(!range.is_empty(), "the second read in a row is sequential");
                }
            }
        }
    }
}
