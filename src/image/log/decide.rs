//! Creating names that decide: a claim, a pin, a stop, a root, a segment.
//!
//! Swift has no compare-and-swap. `put_new` stores only where nothing is, but two
//! that race may both be told that they stored; the newer one stays. What was created
//! once and is read afterwards decides.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | our PUT is stored, its answer lost, the repeat is told "exists" | what is there is read; our own bytes are stored again without the condition until it is certain that a quorum has them |
//! | an older writer, still alive, stores a segment or a root that nobody expects any more | the recovery left a *stop* at that very name: the writer is told "exists", reads the stop and gives up for good |
//! | a 404 for an object that a stale replica does not know yet | a name is only taken for absent once our own stop was stored at it |

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::error::LogError;
use super::format::claim::{self, Stop};
use super::format::seal::Kind;
use super::format::{AttachId, VolumeId};
use crate::store::{ErrorKind, ObjectStore, StoreError};

/// How often a name that exists and cannot be read is tried again.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);

/// What came of an attempt to create a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// What is there is ours, and durable.
    Ours,
    /// Something else was there.
    Taken(Bytes),
}

/// Creates the object, unless another is there.
pub async fn create(
    store: &dyn ObjectStore,
    name: &str,
    body: &Bytes,
) -> Result<Created, StoreError> {
    let mut attempt = 0;
    loop {
        if store.put_new(name, body.clone()).await? {
            return Ok(Created::Ours);
        }
        match store.get(name).await {
            Ok(there) if there == *body => {
                store.put(name, body.clone()).await?;
                return Ok(Created::Ours);
            }
            Ok(there) => return Ok(Created::Taken(there)),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        attempt += 1;
        if attempt == ATTEMPTS {
            let detail = "it exists, but no server that can be reached has it";
            return Err(StoreError::new(ErrorKind::Unavailable, "GET", name, detail));
        }
        sleep(PAUSE * attempt).await;
    }
}

/// Creates the object and reads it back: the newest that is there decides.
pub async fn create_and_look(
    store: &dyn ObjectStore,
    name: &str,
    body: &Bytes,
) -> Result<Created, StoreError> {
    if let Created::Taken(other) = create(store, name, body).await? {
        return Ok(Created::Taken(other));
    }
    let mut attempt = 0;
    loop {
        match store.get(name).await {
            Ok(there) if there == *body => return Ok(Created::Ours),
            Ok(there) => return Ok(Created::Taken(there)),
            Err(error) if error.kind == ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
        attempt += 1;
        sleep(PAUSE * attempt).await;
    }
}

/// Makes it true for everybody that nothing is at this name, or tells what is there.
pub async fn stop(
    store: &dyn ObjectStore,
    volume: VolumeId,
    by: (u32, AttachId),
    name: &str,
) -> Result<Option<Bytes>, LogError> {
    let stop = Stop {
        epoch: by.0,
        attach: by.1,
    };
    let body = stop.encode(volume, name);
    match create_and_look(store, name, &body).await? {
        Created::Ours => Ok(None),
        Created::Taken(other) => match is_stop(name, &other)? {
            true => {
                // Somebody's stop that was seen may still be on one server only.
                store.put(name, other).await?;
                Ok(None)
            }
            false => {
                // It may lie on one server only, and what is decided by it must last.
                store.put(name, other.clone()).await?;
                Ok(Some(other))
            }
        },
    }
}

/// Whether this body is a stop, whole and of this name: another object that was changed
/// to look like one would make what is there absent.
pub fn is_stop(name: &str, body: &Bytes) -> Result<bool, LogError> {
    let damaged = |damage| LogError::damaged(name, damage);
    if claim::kind(body).map_err(damaged)?.kind != Kind::Stop {
        return Ok(false);
    }
    Stop::decode(name, body).map_err(damaged)?;
    Ok(true)
}
