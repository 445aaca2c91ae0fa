//! Reading parts of objects that must be there.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::error::LogError;
use super::format::seal::Cipher;
use super::format::{Damage, VolumeId};
use crate::store::{ErrorKind, ObjectStore, StoreError};

/// How often an object that must be there is asked for: a replica may be behind, or
/// damaged where another is whole.
const ATTEMPTS: u32 = 4;
/// Between the attempts; each pause is twice the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// Whose objects they are, and how their boxes open.
#[derive(Debug, Clone)]
pub struct Home {
    /// The volume's id.
    pub volume: VolumeId,
    /// Opens and seals its boxes.
    pub cipher: Cipher,
}

/// A part of an object, decoded. Asks again for what is damaged or absent; the last
/// attempt is for the whole object's newest version.
pub async fn read_box<T>(
    store: &dyn ObjectStore,
    name: &str,
    offset: u64,
    length: u64,
    decode: impl Fn(Bytes) -> Result<T, Damage>,
) -> Result<T, LogError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let read = match attempt == ATTEMPTS {
            false => store.get_range(name, offset, length).await,
            true => store
                .get(name)
                .await
                .map(|body| part(&body, offset, length)),
        };
        let error = match read {
            Ok(boxed) => match decode(boxed) {
                Ok(value) => return Ok(value),
                Err(damage @ (Damage::Unknown(_) | Damage::Foreign)) => {
                    return Err(LogError::damaged(name, damage));
                }
                Err(damage) => LogError::damaged(name, damage),
            },
            Err(error) => unusable(name, error)?,
        };
        if attempt == ATTEMPTS {
            return Err(error);
        }
        sleep(PAUSE * (1 << attempt)).await;
    }
}

/// What a failure says about the object, if anything.
fn unusable(name: &str, error: StoreError) -> Result<LogError, LogError> {
    match error.kind {
        ErrorKind::NotFound => Ok(LogError::Missing {
            object: name.to_owned(),
        }),
        ErrorKind::Corrupt => Ok(LogError::damaged(name, Damage::Checksum)),
        _ => Err(error.into()),
    }
}

/// A whole object, decoded.
pub async fn read_object<T>(
    store: &dyn ObjectStore,
    name: &str,
    decode: impl Fn(Bytes) -> Result<T, Damage>,
) -> Result<T, LogError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let error = match store.get(name).await {
            Ok(body) => match decode(body) {
                Ok(value) => return Ok(value),
                Err(damage) => LogError::damaged(name, damage),
            },
            Err(error) => unusable(name, error)?,
        };
        if attempt == ATTEMPTS {
            return Err(error);
        }
        sleep(PAUSE * (1 << attempt)).await;
    }
}

fn part(body: &Bytes, offset: u64, length: u64) -> Bytes {
    let end = (offset + length).min(body.len() as u64);
    body.slice(offset.min(end) as usize..end as usize)
}
