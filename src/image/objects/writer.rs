//! Writes, FLUSH, and the upload of what is dirty.
//!
//! One task decides what to upload, and owns the uploads. Writers and flushes
//! only change the table and wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dirty::{Content, Dirty};
use super::extents;
use super::layout::Piece;
use super::{Shared, State, reader};
use crate::image::ImageError;
use crate::image::vital::vital;

/// How long dirty data may wait before it is uploaded without being asked for.
pub const WRITE_BACK_AFTER: Duration = Duration::from_secs(3);

/// How long an object whose upload failed waits for its next one.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Writes `data` at `offset`, waiting for room in the dirty table.
pub async fn write(shared: &Shared, offset: u64, data: &Bytes) -> Result<(), ImageError> {
    let mut at = 0;
    for piece in shared.layout.pieces(offset, data.len() as u64) {
        let part = &data[at..at + piece.length()];
        at += piece.length();
        put(shared, &piece, Content::Data(part)).await?;
    }
    Ok(())
}

/// Makes the range read as zeros: whole objects as one mark each.
pub async fn write_zeroes(shared: &Shared, offset: u64, length: u64) -> Result<(), ImageError> {
    for piece in shared.layout.pieces(offset, length) {
        put(shared, &piece, Content::Zeros).await?;
        tokio::task::coop::consume_budget().await;
    }
    Ok(())
}

/// Deletes the objects that lie wholly within the range and may exist. A part of
/// an object is left as it is: zeroing it would cost a fetch and a store and
/// free nothing.
pub async fn discard(shared: &Shared, offset: u64, length: u64) -> Result<(), ImageError> {
    for piece in shared.layout.pieces(offset, length) {
        if piece.is_whole(&shared.layout) && may_hold_data(shared, piece.index).await {
            put(shared, &piece, Content::Zeros).await?;
        }
        tokio::task::coop::consume_budget().await;
    }
    Ok(())
}

async fn may_hold_data(shared: &Shared, index: u64) -> bool {
    if shared.state().dirty.slot(index).is_some() {
        return true;
    }
    if let Some(body) = shared.cache.peek(&index) {
        return !body.is_empty();
    }
    match shared.presence.may_exist(&*shared.store, index).await {
        Ok(may_exist) => may_exist,
        Err(error) => {
            // A discard is advice: not following it is no failure.
            tracing::debug!(%error, "cannot list, so a discard is not followed");
            false
        }
    }
}

/// Enters one piece into the dirty table. Fails only if there is no room and
/// uploads fail.
async fn put(shared: &Shared, piece: &Piece, content: Content<'_>) -> Result<(), ImageError> {
    let length = match content {
        Content::Data(data) => data.len(),
        Content::Zeros => 0,
    };
    let growth = Dirty::growth(length);
    let mut failures_before = None;
    loop {
        let progress = shared.progress.notified();
        tokio::pin!(progress);
        progress.as_mut().enable();
        {
            let mut state = shared.state();
            if state.dirty.bytes() + growth <= shared.dirty_limit {
                let before = state.dirty.bytes();
                state.dirty.write(piece, content, Instant::now());
                let calls = needs_the_writer(shared, &state, before);
                drop(state);
                if calls {
                    shared.work.notify_one();
                }
                return Ok(());
            }
            let (failures, error) = &state.failures;
            match (*failures_before.get_or_insert(*failures), error) {
                (before, Some(error)) if before < *failures => return Err(error.clone()),
                _ => {}
            }
        }
        shared.work.notify_one();
        progress.await;
        shared.check_open()?;
    }
}

/// Whether a write gave the writer a reason to act now: it was the first dirty
/// one (somebody must watch its age), something is written whole, or half of
/// the memory is used.
fn needs_the_writer(shared: &Shared, state: &State, before: usize) -> bool {
    before == 0 || state.dirty.any_whole().is_some() || is_half_full(shared, state)
}

fn is_half_full(shared: &Shared, state: &State) -> bool {
    state.dirty.bytes() > shared.dirty_limit / 2
}

/// Returns when everything that was answered before the call is durable. An
/// upload that fails meanwhile fails the flush; what it held stays dirty, so the
/// next flush waits for it again.
pub async fn flush(shared: &Shared) -> Result<(), ImageError> {
    let (barrier, failures_before) = {
        let mut state = shared.state();
        let barrier = state.dirty.barrier();
        state.wanted = state.wanted.max(barrier);
        (barrier, state.failures.0)
    };
    loop {
        let progress = shared.progress.notified();
        tokio::pin!(progress);
        progress.as_mut().enable();
        {
            let state = shared.state();
            if state.dirty.is_durable(barrier) {
                return Ok(());
            }
            if let (failures, Some(error)) = &state.failures
                && *failures > failures_before
            {
                return Err(error.clone());
            }
        }
        shared.work.notify_one();
        progress.await;
    }
}

/// The writer's task: starts uploads as they become due, until it is aborted.
pub async fn run(shared: Arc<Shared>) {
    let mut uploads = JoinSet::new();
    loop {
        match next_upload(&shared, uploads.len()) {
            Next::Upload { index, needs_base } => {
                uploads.spawn(vital(upload(Arc::clone(&shared), index, needs_base)));
            }
            Next::Wait(until) => {
                tokio::select! {
                    () = shared.work.notified() => {}
                    () = tokio::time::sleep_until(until) => {}
                    Some(_) = uploads.join_next() => {}
                }
            }
        }
    }
}

enum Next {
    Upload { index: u64, needs_base: bool },
    Wait(Instant),
}

fn next_upload(shared: &Shared, under_way: usize) -> Next {
    let now = Instant::now();
    let idle = now + Duration::from_secs(3600);
    let mut state = shared.state();
    let Some((oldest, sequence, dirty_since)) = state.dirty.oldest() else {
        return Next::Wait(idle);
    };
    if under_way >= shared.uploads {
        return Next::Wait(idle);
    }
    let age_limit = dirty_since + WRITE_BACK_AFTER;
    let due = sequence < state.wanted || is_half_full(shared, &state) || now >= age_limit;
    let index = match (due, state.dirty.any_whole()) {
        (true, _) => oldest,
        (false, Some(whole)) => whole,
        (false, None) => return Next::Wait(age_limit),
    };
    let needs_base = state.dirty.claim(index);
    Next::Upload { index, needs_base }
}

/// Uploads one claimed object. After a failure it rests, so that what cannot be
/// stored does not keep the processor and the log busy.
async fn upload(shared: Arc<Shared>, index: u64, needs_base: bool) {
    let Err(error) = try_upload(&shared, index, needs_base).await else {
        shared.progress.notify_waiters();
        return;
    };
    {
        let mut state = shared.state();
        state.dirty.failed(index);
        state.failures = (state.failures.0 + 1, Some(error.clone()));
    }
    shared.progress.notify_waiters();
    let name = shared.layout.name(index);
    tracing::error!(object = name, %error, "not stored; it stays in memory and is tried again");
    tokio::time::sleep(AFTER_FAILURE).await;
    shared.state().dirty.rested(index);
}

async fn try_upload(shared: &Arc<Shared>, index: u64, needs_base: bool) -> Result<(), ImageError> {
    let base = if needs_base {
        reader::base(shared, index).await?
    } else {
        Bytes::new()
    };
    let body = shared.state().dirty.launch(index, &base);
    drop(base);
    debug_assert!(
        body.is_empty() || !extents::is_zero(&body),
        "zeros are not stored"
    );
    let name = shared.layout.name(index);
    if body.is_empty() {
        shared.store.delete(&name).await?;
    } else {
        shared.store.put(&name, body.clone()).await?;
    }
    let mut state = shared.state();
    state.fetches.outdate(index);
    // After that: a fetch that is old now must not say otherwise.
    shared.presence.set(index, !body.is_empty());
    shared.cache.insert(index, body);
    state.dirty.landed(index);
    Ok(())
}
