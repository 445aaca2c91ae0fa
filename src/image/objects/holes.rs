//! Which parts of the volume are holes.
//!
//! Whoever copies a volume leaves its holes out, so a hole that holds data is
//! lost data. A hole is therefore only what a read would find to be zeros because
//! nothing is stored: an object that is not dirty, and that is known to be absent
//! because a GET of it (the newest version, in a container that is there) found
//! nothing, or because this attachment deleted it. That a listing lacks an object
//! proves nothing: a container server that was down leaves out what was stored
//! meanwhile. But it says where asking is worth it: what was listed is data, what
//! was not is asked for, and a proof is remembered until the object is written.
//!
//! A proof is one request that carries no data, so a map of the holes costs a
//! fraction of reading them, and reading them afterwards costs nothing. Whatever
//! is dirty counts as data.

use std::sync::Arc;

use futures_util::future::join_all;

use super::layout::Piece;
use super::presence::Known;
use super::{Shared, reader};
use crate::image::{Extent, ExtentKind, ImageError};

/// Objects that are asked for at the same time, however many calls there are; at
/// most half of those that may be fetched, so that reads go on meanwhile.
pub const AT_ONCE: usize = 16;

/// Objects that are asked for in one call; then it returns what it has.
const MOST_ASKED: usize = 1024;

/// The extents of a range; see [`Image::extents`](crate::image::Image::extents).
pub async fn extents(
    shared: &Arc<Shared>,
    offset: u64,
    length: u64,
    most: usize,
) -> Result<Vec<Extent>, ImageError> {
    let mut found = Vec::new();
    let mut pieces = shared.layout.pieces(offset, length).peekable();
    let mut asked = 0;
    while pieces.peek().is_some() && asked < MOST_ASKED {
        let mut batch: Vec<(Piece, Option<ExtentKind>)> = Vec::new();
        let mut unknown = 0;
        while unknown < AT_ONCE
            && batch.len() < 16 * AT_ONCE
            && let Some(piece) = pieces.next()
        {
            let kind = kind(shared, piece.index).await?;
            unknown += usize::from(kind.is_none());
            batch.push((piece, kind));
        }
        let kinds = batch.iter().map(|(piece, kind)| async move {
            match kind {
                Some(kind) => Ok(*kind),
                None => ask(shared, piece.index).await,
            }
        });
        for ((piece, _), kind) in batch.iter().zip(join_all(kinds).await) {
            Extent::append(&mut found, piece.length() as u64, kind?);
            if found.len() > most {
                found.truncate(most);
                return Ok(found);
            }
        }
        asked += unknown;
        tokio::task::coop::consume_budget().await;
    }
    Ok(found)
}

/// What is known of an object without a request to it.
async fn kind(shared: &Shared, index: u64) -> Result<Option<ExtentKind>, ImageError> {
    match known(shared, index) {
        Known::Present => return Ok(Some(ExtentKind::Data)),
        Known::Absent => return Ok(Some(ExtentKind::Hole)),
        Known::Unlisted => return Ok(None),
        Known::Nothing => {}
    }
    shared.presence.look_up(&*shared.store, index).await?;
    Ok(match known(shared, index) {
        Known::Present => Some(ExtentKind::Data),
        Known::Absent => Some(ExtentKind::Hole),
        Known::Unlisted | Known::Nothing => None,
    })
}

fn known(shared: &Shared, index: u64) -> Known {
    // The state is held, so that no upload lands between the two looks.
    let state = shared.state();
    match state.dirty.slot(index) {
        Some(_) => Known::Present,
        None => shared.presence.get(index),
    }
}

/// Finds out what an object that was not listed is.
async fn ask(shared: &Arc<Shared>, index: u64) -> Result<ExtentKind, ImageError> {
    let place = shared.asking.acquire().await;
    let _place = place.map_err(|_| ImageError::Closed)?;
    loop {
        match known(shared, index) {
            Known::Present => return Ok(ExtentKind::Data),
            Known::Absent => return Ok(ExtentKind::Hole),
            Known::Unlisted | Known::Nothing => {}
        }
        match reader::look(shared, index).await {
            Ok(Some((state, body))) => {
                let absent = body.is_empty() && state.dirty.slot(index).is_none();
                return Ok(match absent {
                    true => ExtentKind::Hole,
                    false => ExtentKind::Data,
                });
            }
            Ok(None) => {}
            // There is something; reading it is what fails.
            Err(ImageError::Damaged(_)) => return Ok(ExtentKind::Data),
            Err(error) => return Err(error),
        }
    }
}
