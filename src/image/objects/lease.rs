//! The lease of a volume of format 1: that of format 2, as far as it goes.
//!
//! Knows: which claims count, what a lease allows. Does not know: the original's lock.
//!
//! Claims, renewals and releases are the objects of [format 2](crate::image::log::lease),
//! in the same container; the name in a claim is what the original's lock shows of its
//! owner. But objects are overwritten in place here, and no stop keeps a late writer from
//! it. So time has to:
//!
//! - No write is begun unless the lease lasts at that moment; one that is under way when
//!   the lease ends is given up.
//! - Whoever wants the volume waits for the lease of every claim since the last one that
//!   was released; then, unless none was found, for as long as a request may live that
//!   nobody waits for any more; and, if some owner may still run, for no less than
//!   [`HALF_SENT`] in all. Only then it reads anything.
//! - A claim is released after all of its owner's writes to the device's objects have
//!   ended; then the lock is taken away.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | the holder is frozen or cut off, another takes the volume over, the first one goes on | its lease has ended; the first thing that it may do is to look, and it finds the claim |
//! | it was frozen when a write was half sent, and sends the rest when it goes on: what has reached the buffers of a connection asks nobody | Swift does not wait for the rest for as long as the next owner has waited |
//! | its last write sits in a proxy while the next owner begins | that one has waited as long as a request can live |
//! | its last write sits in its own kernel, whose network is cut | the kernel gives up a connection on which nothing was acknowledged for longer than a request may live |
//! | its network lets so little through that its kernel neither gets a write delivered nor may give it up, for longer than that | nothing |
//! | a daemon dies and is started again on the same machine | its lease is not waited for, its requests are |
//! | a candidate dies while it waits | its claim was not released, so the one before it counts as well |
//! | two claim at once | the higher one goes on; the lower one sees it and withdraws |
//! | a daemon dies between its lock and its claim | nothing: it looks like one of the original's, and a person has to take it away |
//! | a daemon dies between its release and the end of its lock, or while it is restarted | the lock is of whom released last: it counts no more than a lease after that, and then as one whose requests are waited for |
//! | somebody else has the volume when a restarted daemon goes on | it finds his claim, or his lock, and fails |
//! | something on the way to Swift has a whole request and passes it on when it has lived longer than that | nothing: see [`REQUEST_LIFETIME`](crate::store::swift::REQUEST_LIFETIME) |
//! | the process stands still between the look at the clock and the system call that sends | nothing: a process that is stopped there for longer than all of this, and then goes on, writes over what the next owner wrote. The time between the two is some microseconds |

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Objects;
use crate::image::log::format::claim::Claim;
use crate::image::log::format::{VolumeId, names};
use crate::image::log::lease::{self, Keeper, Lease};
use crate::image::log::{LogError, Who, recovery};
use crate::image::vital::vital;
use crate::image::{Extent, Image, ImageError, Stats};
use crate::metrics::RequestCount;
use crate::store::{Age, ErrorKind, Listed, Metadata, ObjectStore, StoreError};

/// What the objects of the lease say of their volume: in format 1 it has no name.
const VOLUME: VolumeId = VolumeId(*b"swiftnbd format1");
/// How long a word to the next program may take.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);
/// For so long Swift waits for the rest of a body whose sender has stopped (its
/// `client_timeout`, 60 s), and a margin.
pub const HALF_SENT: Duration = Duration::from_secs(65);
/// Claims that are looked at.
const MOST: u32 = 64;

/// The claims since the last one that was released.
#[derive(Debug)]
pub struct Before {
    highest: u32,
    /// Ascending; `None`: it cannot be found right now.
    claims: Vec<Option<Claim>>,
    /// That one.
    released: Option<Claim>,
}

impl Before {
    /// Looks for them.
    pub async fn find(store: &dyn ObjectStore) -> Result<Before, LogError> {
        let highest = recovery::highest_epoch(store).await?;
        let mut claims = Vec::new();
        let mut last = None;
        for epoch in (1..=highest).rev().take(MOST as usize) {
            let claim = recovery::claims(store, epoch..epoch + 1).await?.pop();
            let claim = claim.flatten();
            if let Some(claim) = &claim
                && lease::released(store, claim).await?
            {
                last = Some(claim.clone());
                break;
            }
            claims.push(claim);
        }
        claims.reverse();
        Ok(Before {
            highest,
            claims,
            released: last,
        })
    }

    /// Whether one of them is of whom the lock shows.
    pub fn is_of(&self, client: &str) -> bool {
        let mut claims = self.claims.iter().flatten();
        claims.any(|claim| claim.host == client)
    }

    /// The claim that was released last, if it is of whom the lock shows: he has died
    /// before he could take it away, or is about to, or goes on in another program.
    pub fn released_by(&self, client: &str) -> Option<&Claim> {
        let released = self.released.as_ref();
        released.filter(|claim| claim.host == client)
    }

    /// A claim since then that is not of whom the lock shows.
    pub fn of_another_than(&self, client: &str) -> Option<&Claim> {
        let mut claims = self.claims.iter().flatten();
        claims.find(|claim| claim.host != client)
    }

    /// Whether somebody did not end in good order.
    pub fn is_unclean(&self) -> bool {
        !self.claims.is_empty()
    }

    /// Claims the volume. From now on the lease is to be kept.
    pub async fn claim(self, store: Arc<dyn ObjectStore>, who: &Who) -> Result<Lease, LogError> {
        Lease::claim(store, VOLUME, self.highest, self.claims, who, 0).await
    }
}

/// How long ago this claim was released; `None` where the store has no clock.
pub async fn released_ago(store: &dyn ObjectStore, claim: &Claim) -> Result<Option<Age>, LogError> {
    Ok(store.age(&names::released(claim.epoch)).await?)
}

/// Waits, after the claim, until nothing of an earlier holder can take effect any more.
/// `unclean`: one did not end in good order. `notice` is told of a wait for requests.
///
/// # Errors
/// [`LogError::Superseded`]: somebody else has claimed the volume since.
pub async fn wait_out(
    lease: &Lease,
    who: &Who,
    unclean: bool,
    linger: Duration,
    notice: impl Fn(Duration),
) -> Result<(), LogError> {
    let waited = lease.wait_out(who).await?;
    // Somebody may have come between our look and our claim.
    let unclean = unclean || !waited.is_zero();
    if !unclean || linger.is_zero() {
        return Ok(());
    }
    // Nobody was waited for where all are dead: what they had half sent has ended with
    // them.
    let half_sent = match waited.is_zero() {
        true => Duration::ZERO,
        false => HALF_SENT.saturating_sub(waited),
    };
    let rest = linger.max(half_sent);
    notice(rest);
    sleep(rest).await;
    Ok(())
}

/// A lease, and whether it is lost.
#[derive(Debug)]
struct Tenure {
    lease: Arc<Lease>,
    lost: watch::Sender<Option<String>>,
}

impl Tenure {
    fn lose(&self, why: &LogError) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                tracing::error!(
                    "the volume is no longer ours, and every request fails from now on: {why}"
                );
                *lost = Some(why.to_string());
            }
            first
        });
    }

    /// Returns when the lease lasts, or a look through this store says that it does.
    async fn lasts(&self, store: &dyn ObjectStore) -> Result<(), StoreError> {
        if self.lost.borrow().is_some() {
            return pending().await;
        }
        if self.lease.lasts(store.time()) {
            return Ok(());
        }
        match self.lease.look_patiently(store).await {
            Ok(()) => Ok(()),
            Err(LogError::Store(error)) => Err(error),
            Err(lost) => {
                self.lose(&lost);
                pending().await
            }
        }
    }
}

/// A store that sends no write unless the lease lasts.
#[derive(Debug)]
pub struct Gate {
    inner: Arc<dyn ObjectStore>,
    tenure: Arc<Tenure>,
}

impl Gate {
    /// Sends a write while the lease lasts.
    async fn send<T>(
        &self,
        name: &str,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let lease = &self.tenure.lease;
        let mut write = pin!(write);
        self.tenure.lasts(&*self.inner).await?;
        let ended = || {
            let text = "the lease ended while it was on its way";
            let mut error = StoreError::new(ErrorKind::Unavailable, "write", name, text);
            error.lingers = self.inner.linger();
            error
        };
        // What a connection has of it already, it sends.
        let mut while_it_lasts = pin!(poll_fn(|context| match lease.left().is_zero() {
            true => Poll::Ready(Err(ended())),
            false => write.as_mut().poll(context),
        }));
        loop {
            tokio::select! {
                biased;
                done = &mut while_it_lasts => return done,
                // Renewed meanwhile, or not.
                () = sleep(lease.left() + Duration::from_millis(1)) => {}
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Gate {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.inner.get(name).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.inner.get_range(name, offset, length).await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.send(name, self.inner.put(name, body)).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        self.send(name, self.inner.put_new(name, body)).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.send(name, self.inner.delete(name)).await
    }

    async fn delete_many(&self, names: &[String]) -> Result<(), StoreError> {
        let name = names.first().map_or("", String::as_str);
        self.send(name, self.inner.delete_many(names)).await
    }

    async fn md5(&self, name: &str) -> Result<[u8; 16], StoreError> {
        self.inner.md5(name).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(after, before, limit).await
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.inner.metadata().await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        self.inner.set_metadata(changes).await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.inner.create().await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.inner.remove().await
    }

    async fn settle(&self) {
        self.inner.settle().await;
    }

    fn unsettled(&self, name: &str) -> Duration {
        self.inner.unsettled(name)
    }

    fn linger(&self) -> Duration {
        self.inner.linger()
    }

    fn time(&self) -> Option<Duration> {
        self.inner.time()
    }

    async fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        self.inner.age(name).await
    }

    fn requests(&self) -> Vec<RequestCount> {
        self.inner.requests()
    }
}

/// A volume of format 1 with a lease.
#[derive(Debug)]
pub struct Leased {
    objects: Objects,
    tenure: Arc<Tenure>,
    keeper: JoinHandle<()>,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Leased {
    /// Starts the volume under this lease, which lasts and is `kept`. `start`
    /// makes the volume on a store that `gate` makes of the one below. Within a tokio
    /// runtime.
    pub fn start(
        lease: Arc<Lease>,
        mut kept: Keeper,
        once: Arc<dyn ObjectStore>,
        start: impl FnOnce(Gate) -> Objects,
    ) -> Leased {
        let lost = watch::Sender::new(None);
        let tenure = Arc::new(Tenure { lease, lost });
        let gate = Gate {
            inner: once,
            tenure: Arc::clone(&tenure),
        };
        let held = Arc::clone(&tenure);
        let keeper = tokio::spawn(vital(async move { held.lose(&kept.lost().await) }));
        Leased {
            objects: start(gate),
            tenure,
            keeper,
        }
    }

    /// Does it, but not when the volume is lost.
    async fn ours<T>(
        &self,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        let mut lost = self.tenure.lost.subscribe();
        tokio::select! {
            biased;
            lost = lost.wait_for(Option::is_some) => {
                let why = lost.ok().and_then(|lost| lost.clone());
                Err(ImageError::Superseded(why.unwrap_or_default()))
            }
            done = work => done,
        }
    }
}

#[async_trait]
impl Image for Leased {
    fn size(&self) -> u64 {
        self.objects.size()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, ImageError> {
        self.ours(self.objects.read(offset, length)).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ImageError> {
        self.ours(self.objects.write(offset, data)).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.ours(self.objects.write_zeroes(offset, length)).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.ours(self.objects.discard(offset, length)).await
    }

    async fn flush(&self) -> Result<(), ImageError> {
        self.ours(async {
            self.objects.flush().await?;
            // What had nothing to store has not asked.
            Ok(self.tenure.lasts(&*self.objects.shared.store).await?)
        })
        .await
    }

    async fn close(&self) -> Result<(), ImageError> {
        self.ours(async {
            self.objects.close().await?;
            self.keeper.abort();
            match self.tenure.lease.release().await {
                Ok(()) => Ok(()),
                Err(LogError::Store(error)) => Err(error.into()),
                Err(lost) => Err(ImageError::Superseded(lost.to_string())),
            }
        })
        .await
    }

    async fn hand_over(&self, patience: Duration) -> Result<bool, ImageError> {
        let handed = self.ours(self.objects.hand_over(patience)).await?;
        if handed {
            self.keeper.abort();
            // The lock in the metadata stays, and keeps others out for a while. If this
            // cannot be said, the one that goes on finds that we are dead.
            let _ = timeout(RELEASE_WITHIN, self.tenure.lease.release()).await;
        }
        Ok(handed)
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Extent>, ImageError> {
        self.ours(self.objects.extents(offset, length, most)).await
    }

    fn stats(&self) -> Stats {
        Stats {
            lease_seconds: Some(self.tenure.lease.left().as_secs()),
            ..self.objects.stats()
        }
    }
}
