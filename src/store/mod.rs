//! Objects by name: the one interface between the volume formats and whatever
//! keeps their bytes.
//!
//! Knows: object names, object bodies, a container's metadata, and which kinds
//! of failure there are. Does not know: byte ranges of a device, dirty data,
//! volume formats. HTTP is known to [`swift`] alone, files to [`dir`] alone.
//!
//! A store does one attempt; [`retry`] wraps another store and repeats.

mod check;
pub mod dir;
pub mod memory;
pub mod retry;
pub mod swift;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use md5::{Digest, Md5};

use crate::metrics::RequestCount;

/// The most names that [`ObjectStore::delete_many`] takes; Swift's own limit.
pub const MAX_TOGETHER: usize = 10_000;

/// The most bytes that a volume's store takes or gives as one body, whatever its
/// format: so much may an answer make us allocate. Format 1's largest objects are
/// as large; those of format 2 stay under 64 MiB.
pub const MAX_BODY: u64 = 256 << 20;

/// A container's own metadata: names in lower case without Swift's
/// `X-Container-Meta-` prefix (`swiftnbd-version`), values as they are.
pub type Metadata = BTreeMap<String, String>;

/// One name in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object's name.
    pub name: String,
    /// Its size in bytes, as the listing has it.
    pub size: u64,
}

/// One container and the objects in it.
///
/// Names are UTF-8, 1 to 1024 bytes, without NUL and with no empty, `.` or `..`
/// part between slashes; anything else is [`ErrorKind::Invalid`], in every
/// store. Every method may be called from many tasks at once, except that a
/// caller never has two writes (`put`, `put_new`, `delete`) of one name under way,
/// unless they store the same.
///
/// A write whose future is dropped may take effect or not, for as long as
/// [`linger`](ObjectStore::linger) says.
#[async_trait]
pub trait ObjectStore: Send + Sync + fmt::Debug {
    /// The object's whole body, the newest version that can be reached, its
    /// length and checksum verified. [`ErrorKind::NotFound`] if there is none.
    async fn get(&self, name: &str) -> Result<Bytes, StoreError>;

    /// The bytes from `offset` on, `length` of them, of an object that is never
    /// overwritten: any replica will do. Fewer only where the object ends before,
    /// none at its end or behind it. `length` is at least 1 and at most what the
    /// store takes as a body. Their number is checked, what is in them is not: the
    /// object's checksum is that of its whole body. [`ErrorKind::NotFound`] if
    /// there is none, or if those replicas that answered do not have it yet.
    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError>;

    /// Stores the object, replacing what was there. `Ok` means durable. The
    /// body is never empty: an object is written or deleted, and an empty body
    /// is how some servers show a broken one.
    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError>;

    /// Stores the object as [`put`](ObjectStore::put) does, but
    /// [`settle`](ObjectStore::settle) does not wait for it: nobody reads it any more
    /// once its writer has ended.
    async fn put_unawaited(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.put(name, body).await
    }

    /// Stores the object as [`put`](ObjectStore::put) does, but only if there is no
    /// object of that name. True: this body is stored, and durable. False: nothing
    /// was stored, an object is there already, perhaps not durably.
    ///
    /// True is no proof of having been the only one: in Swift two that race can
    /// both be told so, and the later one's body is what stays. False is no proof
    /// that somebody else did it: it may have been this very caller, by an earlier
    /// request whose answer was lost.
    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError>;

    /// Deletes the object. An object that is absent already is a success.
    async fn delete(&self, name: &str) -> Result<(), StoreError>;

    /// Deletes these objects (at most [`MAX_TOGETHER`]), together where the store
    /// can. `Ok` means that none of them is there any more; after a failure some may
    /// be gone, and it can be repeated.
    async fn delete_many(&self, names: &[String]) -> Result<(), StoreError> {
        check::names("", names)?;
        for name in names {
            self.delete(name).await?;
        }
        Ok(())
    }

    /// The MD5 of the object's newest version, without its body where the store
    /// can tell. [`ErrorKind::NotFound`] if there is no object.
    async fn md5(&self, name: &str) -> Result<[u8; 16], StoreError> {
        let body = self.get(name).await?;
        Ok(Md5::digest(&body).into())
    }

    /// Names after `after` and before `before` (both excluded, in byte order;
    /// an empty one sets no bound), ascending, at most `limit` (1 to 10,000).
    /// A hint only: a listing may be stale.
    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError>;

    /// The container's metadata. [`ErrorKind::NoContainer`] if it is not there.
    async fn metadata(&self) -> Result<Metadata, StoreError>;

    /// Sets these metadata keys and leaves the others alone; an empty value
    /// removes its key. Keys are of `a-z`, `0-9` and `-`, at most 128 bytes;
    /// values at most 256 bytes, without control characters or outer spaces.
    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError>;

    /// Makes the container; one that exists already is a success.
    /// True if it was this request that made it; false is no proof of anything.
    async fn create(&self) -> Result<bool, StoreError>;

    /// Removes the container. One that is not there is a success, one that still
    /// holds objects [`ErrorKind::Invalid`].
    async fn remove(&self) -> Result<(), StoreError>;

    /// Returns when no earlier request of this store can take effect any more, but for
    /// those that nobody awaits.
    async fn settle(&self);

    /// How long after its sender died a request may still take effect. Zero
    /// where it cannot outlive its sender.
    fn linger(&self) -> Duration;

    /// For how long earlier writes of this name may still take effect; a different one has
    /// to wait. Zero, too, where nobody takes note of that.
    fn unsettled(&self, name: &str) -> Duration {
        let _ = name;
        Duration::ZERO
    }

    /// How often it was asked for what since this process began, attempts that failed
    /// included; nothing if it does not count.
    fn requests(&self) -> Vec<RequestCount> {
        Vec::new()
    }

    /// The latest time that the store's own clocks showed in any answer so far, since
    /// 1970, to the second. `None`: none came yet, or it has no clock of its own. The
    /// clocks of its servers may differ by up to [`swift::CLOCK_SKEW`].
    fn time(&self) -> Option<Duration> {
        None
    }

    /// When the object was last stored, by the store's own clocks; `None` where it has
    /// none. [`ErrorKind::NotFound`] if there is no object. A hint only.
    async fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        let _ = name;
        Ok(None)
    }
}

/// When an object was last stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// So many seconds ago; negative where two of the store's clocks disagree. (Swift
    /// rounds the two times that this comes from differently: -1 is just now.)
    pub seconds: i64,
    /// The time itself, since 1970, to the precision that the store has: another one
    /// each time that the object is stored, if only a second later.
    pub stored: Duration,
}

/// What a caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object does not exist.
    NotFound,
    /// The container does not exist.
    NoContainer,
    /// The credentials are wrong, or may not do this.
    Denied,
    /// The quota is used up, or the store is full for this account.
    Quota,
    /// The store already holds a newer version; ours was not stored.
    Superseded,
    /// What was sent or received does not match its length or checksum.
    Corrupt,
    /// The store is there and cannot serve now: overload, rate limit, failed
    /// nodes, an answer that did not come in time.
    Unavailable,
    /// No connection could be made.
    Unreachable,
    /// The store refused the request as such, or answered nonsense.
    Invalid,
}

/// A request to a store that failed.
///
/// Carries no secret: neither tokens nor passwords nor URLs with user parts.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {target}: {detail}")]
pub struct StoreError {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// The operation in the store's words: `PUT`, `GET`, `write`.
    pub operation: &'static str,
    /// `container/object`, or the container, or the URL of the authentication.
    pub target: String,
    /// What happened, for a person.
    pub detail: String,
    /// What to do about it, where that is not the same for every failure of the
    /// kind; a sentence without its full stop.
    pub hint: Option<Box<str>>,
    /// The store asked not to be called before this has passed.
    pub retry_after: Option<Duration>,
    /// The request may still take effect for this long after the failure was
    /// noticed (its fate is unknown); zero where it certainly will not.
    pub lingers: Duration,
}

impl StoreError {
    /// A failure that leaves nothing behind.
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        target: impl Into<String>,
        detail: impl Into<String>,
    ) -> StoreError {
        StoreError {
            kind,
            operation,
            target: target.into(),
            detail: detail.into(),
            hint: None,
            retry_after: None,
            lingers: Duration::ZERO,
        }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> StoreError {
        self.hint = Some(hint.into().into_boxed_str());
        self
    }

    /// Whether trying again without somebody's help is pointless.
    pub fn is_permanent(&self) -> bool {
        match self.kind {
            ErrorKind::NotFound
            | ErrorKind::NoContainer
            | ErrorKind::Denied
            | ErrorKind::Quota
            | ErrorKind::Invalid => true,
            ErrorKind::Superseded
            | ErrorKind::Corrupt
            | ErrorKind::Unavailable
            | ErrorKind::Unreachable => false,
        }
    }
}
