//! The lease: the right of one attachment to answer for the volume, with a time limit.
//!
//! Knows: claims, renewals, releases, and two clocks, this machine's and the store's.
//! Does not know: segments, roots, devices.
//!
//! # The protocol
//! A lease is so many seconds long; its length *L* is in the claim.
//!
//! - The holder *renews* three times within it: it stores its renewal (`lease/<e>`), has
//!   that answered, then looks for a claim of the next epoch, and of the one after that,
//!   whose claimant may have seen what is hidden from us. If there is none the lease
//!   lasts until *L* after the moment before these requests were sent, by a clock that
//!   counts suspended time, too. If there is one the volume is lost, for good. The next
//!   renewal does not wait for the answers to this one.
//! - A FLUSH is answered only after every segment up to its own is durable, and then
//!   either the lease still lasts, by this machine's clock and by the store's; or a look
//!   that began after the last of these answers found no later claim.
//! - Whoever wants the volume looks how the highest epoch stands. Its owner said lately
//!   that it is alive: refused. That is a courtesy and no more: nothing below relies on
//!   it, nor on renewals.
//! - Else it claims the next epoch, reads its claim back, and from that moment waits for
//!   the longest lease of all epochs from the newest pinned one on, and a margin. Only
//!   then it looks again whether it is the highest, and begins to decide what the volume
//!   holds.
//! - The wait is skipped where nobody can be waited for: the highest epoch (of those that
//!   were claimed to be held) has a pin and was released by its owner, or all from the
//!   pinned one on were processes of this machine that are dead for certain (their attach
//!   ids are in a file that we have locked).
//! - Of several that claim at once the highest goes on, each other one sees the next
//!   claim and withdraws; it stores nothing further, a release least of all.
//!
//! # Why there are never two
//! Let the holder's last look that found no claim be sent at `t`: it answers nothing for
//! sure beyond `t + L`, or after a later look. The claim was not durable at `t`, else the
//! look had found it, for an answered PUT and an answered read have a replica in common.
//! The winner read its claim back later than that, so its wait ends after `t + L`. What
//! the holder answered a FLUSH for was durable by then, and is found. What it stores
//! later meets the winner's stops, or has names that nobody reads.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | the holder stands still between its last 201 and the answer to FLUSH, for longer than its lease | what is answered was durable, and looked after, before the winner began to decide |
//! | the holder's machine is suspended | the clock counts that |
//! | a virtual machine is paused, and none of its clocks moved | the store's clock did: the answers that come after the pause carry a later time, and a lease is only believed within both |
//! | clocks of two machines run differently | the margin: two seconds and a tenth of the lease |
//! | proxies' clocks differ | the store's time must lie in the lease less [`SKEW`]; beyond it the holder looks again |
//! | the first of two candidates dies while it waits, the second finds an unpinned epoch | it waits for the longest of all leases from the pinned one on |
//! | a candidate dies while it waits, and is started again on its machine | its epoch has no pin, so nothing is skipped |
//! | a claim below ours cannot be found, and so not how long its lease is | it is taken to be as long as ours, or as usual |
//! | the next claim's sender died, it lies on one server only, and somebody who saw it claims the one after it | the holder and whoever opens the volume look one epoch further; should two in a row come and go, the holder may answer flushes that had nothing to store for a while longer: what it stores meets the winner's stops |
//! | an answer to a renewal is lost, or does not come | until that one is settled, all others have the same bytes, and so need not wait for it |
//! | the look is answered 404 by servers that do not know the claim | assumed not to happen, see below |
//!
//! # What it assumes
//! An answered PUT and an answered read of the same name meet in at least one replica.
//! Swift can be driven out of this: two of three primary servers lost for good, or PUTs
//! that went to handoffs while their primaries could not be reached. Then two attachments
//! may both believe in their lease; what is read stays one history (stops and pins), and
//! what the other was answered after that is lost.
//! A virtual machine that is restored from an image of its memory is outside of it, too.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::error::LogError;
use super::format::claim::{Claim, JOURNAL, Release, Renewal};
use super::format::{AttachId, VolumeId, names};
use super::place::read_object;
use super::{Who, recovery};
use crate::image::vital::vital;
use crate::store::{Age, ErrorKind, ObjectStore, StoreError};

/// The most by which the clocks of a store's proxies may differ.
const SKEW: Duration = crate::store::swift::CLOCK_SKEW;

/// So many renewals may wait for their answers at a time: those of the shortest lease for
/// as long as a request is waited for.
const AT_ONCE: usize = 16;

/// A clock of this machine that counts the time in which it was suspended.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The time since some moment.
    fn now(&self) -> Duration;
}

/// Linux's `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let clock = nix::time::ClockId::CLOCK_BOOTTIME;
        match nix::time::clock_gettime(clock) {
            Ok(now) => now.into(),
            // It is there since Linux 2.6.39; a lease without it never lasts.
            Err(_) => Duration::MAX,
        }
    }
}

/// How long a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    seconds: u32,
}

impl Terms {
    /// In seconds.
    pub const DEFAULT: u32 = 30;
    /// Below this, requests and their repetition take a good part of it.
    pub const LEAST: u32 = 3;
    /// Whoever takes a volume over waits that long.
    pub const MOST: u32 = 3600;

    /// A lease of so many seconds, within the bounds.
    pub fn new(seconds: u32) -> Terms {
        Terms {
            seconds: seconds.clamp(Terms::LEAST, Terms::MOST),
        }
    }

    /// Its length in seconds.
    pub fn seconds(self) -> u32 {
        self.seconds
    }

    /// Its length.
    pub fn length(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// Between two renewals.
    pub fn between(self) -> Duration {
        self.length() / 3
    }
}

impl Default for Terms {
    fn default() -> Terms {
        Terms::new(Terms::DEFAULT)
    }
}

/// How long to wait for a lease of so many seconds to end, from a moment at which it
/// cannot be renewed any more.
pub fn wait_for(seconds: u32) -> Duration {
    let length = Duration::from_secs(seconds.into());
    match seconds {
        0 => Duration::ZERO,
        _ => length + length / 10 + Duration::from_secs(2),
    }
}

/// How the highest epoch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nobody holds the volume.
    Free,
    /// Somebody may hold it.
    Claimed {
        /// Who.
        claim: Box<Claim>,
        /// Its last renewal; 0: none was seen.
        renewals: u64,
        /// How long ago that was, or the claim; `None` where the store has no clock.
        age: Option<Age>,
    },
}

impl Standing {
    /// The claim has a journal: it does not end for other hosts.
    pub fn has_journal(&self) -> bool {
        matches!(self, Standing::Claimed { claim, .. } if claim.flags & JOURNAL != 0)
    }

    /// Its owner said lately that it is alive.
    pub fn is_fresh(&self) -> bool {
        match self {
            Standing::Free => false,
            Standing::Claimed { claim, age, .. } => {
                let length = i64::from(claim.lease.unwrap_or(0));
                age.is_some_and(|age| (-1..length).contains(&age.seconds))
            }
        }
    }
}

/// Looks how the highest epoch stands. Changes nothing.
pub async fn standing(store: &dyn ObjectStore) -> Result<Standing, LogError> {
    let highest = recovery::highest_epoch(store).await?;
    if highest == 0 {
        return Ok(Standing::Free);
    }
    let claim = read_claim(store, highest).await?;
    if claim.lease == Some(0) || released(store, &claim).await? {
        return Ok(Standing::Free);
    }
    let name = names::lease(highest);
    let renewals = match recovery::read(store, &name).await? {
        Some(body) => match Renewal::decode(&name, &body) {
            Ok((_, renewal)) if renewal.attach == claim.attach => renewal.count,
            // It decides nothing, and the next one replaces it.
            _ => 0,
        },
        None => 0,
    };
    let newest = match renewals {
        0 => names::epoch(highest),
        _ => name,
    };
    let age = match store.age(&newest).await {
        Ok(age) => age,
        Err(error) if error.kind == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Standing::Claimed {
        claim: Box::new(claim),
        renewals,
        age,
    })
}

/// Watches whether the owner renews, for as long as it would have done so twice; or once,
/// by a proxy whose clock is behind that of the last one. False: nothing changed.
pub async fn is_renewed(store: &dyn ObjectStore, seen: &Standing) -> Result<bool, LogError> {
    let Standing::Claimed {
        claim,
        renewals,
        age,
    } = seen
    else {
        return Ok(false);
    };
    let Some(seconds) = claim.lease else {
        return Ok(false);
    };
    let length = Duration::from_secs(seconds.into());
    let watch = (length * 2 / 3).max(length / 3 + SKEW + Duration::from_secs(1));
    for _ in 0..4 {
        sleep(watch / 4).await;
        match standing(store).await? {
            Standing::Free => return Ok(false),
            Standing::Claimed {
                claim: now,
                renewals: newer,
                age: later,
            } => {
                // The same may be stored again.
                let stored = |age: Option<Age>| age.map(|age| age.stored);
                let again = stored(later) > stored(*age);
                if now.attach != claim.attach || newer > *renewals || again {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Takes the volume from whoever has it, at a person's word: its owner learns of it with
/// its next request, or the next renewal. Nobody has it then, and whoever opens it next
/// waits for the lease to run out. Returns the owner's claim; `None` if nobody had it.
pub async fn evict(store: &dyn ObjectStore, who: &Who) -> Result<Option<Claim>, LogError> {
    let Standing::Claimed { claim, .. } = standing(store).await? else {
        return Ok(None);
    };
    let name = names::epoch(claim.epoch);
    let (volume, _) = read_object(store, &name, |body| Claim::decode(&name, &body)).await?;
    recovery::claim(store, volume, claim.epoch, who, 0, 0).await?;
    Ok(Some(*claim))
}

async fn read_claim(store: &dyn ObjectStore, epoch: u32) -> Result<Claim, LogError> {
    let name = names::epoch(epoch);
    let (_, claim) = read_object(store, &name, |body| Claim::decode(&name, &body)).await?;
    Ok(claim)
}

/// Whether the claim's owner said that it has ended.
pub async fn released(store: &dyn ObjectStore, claim: &Claim) -> Result<bool, LogError> {
    let name = names::released(claim.epoch);
    Ok(match recovery::read(store, &name).await? {
        Some(body) => match Release::decode(&name, &body) {
            Ok((_, release)) => release.attach == claim.attach,
            Err(damage) => return Err(LogError::damaged(name, damage)),
        },
        None => false,
    })
}

/// How long whoever claims above these (the newest pinned epoch's claim, then every
/// later one) has to wait before it may decide what the volume holds. `dead`: attachments
/// of this machine that are dead for certain. `ours`: the length of our own lease, in
/// seconds.
async fn wait_above(
    store: &dyn ObjectStore,
    claims: &[Option<Claim>],
    dead: &[AttachId],
    ours: u32,
) -> Result<Duration, LogError> {
    // One without a lease to wait for only ended those before it: nobody has it.
    let held: Vec<_> = claims
        .iter()
        .filter(|claim| claim.as_ref().is_none_or(|claim| claim.lease != Some(0)))
        .collect();
    if let [Some(only)] = &held[..]
        && released(store, only).await?
    {
        return Ok(Duration::ZERO);
    }
    let is_dead = |claim: &Claim| dead.contains(&claim.attach);
    if held.iter().all(|claim| claim.as_ref().is_some_and(is_dead)) {
        return Ok(Duration::ZERO);
    }
    let lease = |claim: &Option<Claim>| match claim {
        Some(claim) => claim.lease.unwrap_or(0),
        // It cannot be found right now.
        None => ours.max(Terms::DEFAULT),
    };
    Ok(wait_for(claims.iter().map(lease).max().unwrap_or(0)))
}

/// One attachment's lease.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn ObjectStore>,
    volume: VolumeId,
    epoch: u32,
    attach: AttachId,
    terms: Terms,
    clock: Arc<dyn Clock>,
    lasts: Mutex<Lasts>,
    /// The count in the last renewal that was sent.
    said: AtomicU64,
    /// Renewals that are not answered yet.
    under_way: AtomicUsize,
    /// The claims from the newest pinned epoch to ours.
    below: Vec<Option<Claim>>,
}

/// A renewal that is not answered yet.
struct UnderWay<'a> {
    count: &'a AtomicUsize,
    /// There was no other when it began.
    alone: bool,
}

impl UnderWay<'_> {
    fn begin(count: &AtomicUsize) -> UnderWay<'_> {
        let alone = count.fetch_add(1, Ordering::Relaxed) == 0;
        UnderWay { count, alone }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a lease until it is dropped.
#[derive(Debug)]
pub struct Keeper {
    lost: oneshot::Receiver<LogError>,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Returns when the lease is lost, once: the later claim.
    pub async fn lost(&mut self) -> LogError {
        match (&mut self.lost).await {
            Ok(lost) => lost,
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Until when it lasts.
#[derive(Debug, Clone, Copy, Default)]
struct Lasts {
    /// By this machine's clock.
    until: Duration,
    /// By the store's clock, if it has one: since 1970.
    store_until: Option<Duration>,
}

impl Lease {
    /// The lease of an epoch that was just claimed; it does not last yet. Its requests
    /// go through `store`, which gives up soon.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        volume: VolumeId,
        owner: (u32, AttachId),
        terms: Terms,
        clock: Arc<dyn Clock>,
    ) -> Lease {
        Lease {
            store,
            volume,
            epoch: owner.0,
            attach: owner.1,
            terms,
            clock,
            lasts: Mutex::default(),
            said: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            below: Vec::new(),
        }
    }

    /// Claims the next epoch after `highest`; `below` has the claims from the newest
    /// pinned epoch to that one; `flags` are the claim's. From now on the lease is to be [kept](Lease::keeper).
    ///
    /// # Errors
    /// [`LogError::Superseded`]: somebody else is first.
    pub async fn claim(
        store: Arc<dyn ObjectStore>,
        volume: VolumeId,
        highest: u32,
        mut below: Vec<Option<Claim>>,
        who: &Who,
        flags: u64,
    ) -> Result<Lease, LogError> {
        let seconds = who.terms.seconds();
        let epoch = recovery::claim(&*store, volume, highest, who, seconds, flags).await?;
        below.extend(recovery::claims(&*store, highest + 1..epoch).await?);
        let (owner, clock) = ((epoch, who.attach), Arc::clone(&who.clock));
        Ok(Lease {
            below,
            ..Lease::new(store, volume, owner, who.terms, clock)
        })
    }

    /// Waits until nobody else can have a lease, and has our own begin. Returns for how
    /// long there was somebody to wait for.
    ///
    /// # Errors
    /// [`LogError::Superseded`]: somebody else has claimed the volume since.
    pub async fn wait_out(&self, who: &Who) -> Result<Duration, LogError> {
        let wait = wait_above(&*self.store, &self.below, &who.dead, who.terms.seconds()).await?;
        if !wait.is_zero() {
            let seconds = wait.as_secs();
            tracing::info!("waiting {seconds} s for the lease of the last holder to run out");
            sleep(wait).await;
        }
        recovery::is_ours(&*self.store, self.epoch, who).await?;
        self.look().await?;
        Ok(wait)
    }

    /// Whether a claim that counted before ours was of this host, who has lost the volume.
    pub fn is_above(&self, host: &str) -> bool {
        let mut below = self.below.iter().flatten();
        below.any(|claim| claim.host == host)
    }

    /// The epoch whose lease it is.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether it lasts, by both clocks. `store_now` is the time in the store's latest
    /// answer, if it tells.
    pub fn lasts(&self, store_now: Option<Duration>) -> bool {
        let lasts = *self.lasts.lock().unwrap_or_else(PoisonError::into_inner);
        let here = self.clock.now() < lasts.until;
        let there = match (store_now, lasts.store_until) {
            (Some(now), Some(until)) => now + SKEW <= until,
            (Some(_), None) => false,
            (None, _) => true,
        };
        here && there
    }

    /// How much of it is left, by this machine's clock.
    pub fn left(&self) -> Duration {
        let lasts = *self.lasts.lock().unwrap_or_else(PoisonError::into_inner);
        lasts.until.saturating_sub(self.clock.now())
    }

    /// Says that this epoch has ended, and that no request of ours can take effect any
    /// more.
    pub async fn release(&self) -> Result<(), LogError> {
        let name = names::released(self.epoch);
        let release = Release {
            epoch: self.epoch,
            attach: self.attach,
        };
        let body = release.encode(self.volume, &name);
        super::decide::create(&*self.store, &name, &body).await?;
        Ok(())
    }

    /// Looks for a later claim, and lets the lease last from before that.
    ///
    /// # Errors
    /// [`LogError::Superseded`]: there is one.
    pub async fn look(&self) -> Result<(), LogError> {
        self.look_through(&*self.store, self.clock.now()).await
    }

    /// The same through a store that may be more patient.
    pub async fn look_patiently(&self, store: &dyn ObjectStore) -> Result<(), LogError> {
        self.look_through(store, self.clock.now()).await
    }

    async fn look_through(
        &self,
        store: &dyn ObjectStore,
        before: Duration,
    ) -> Result<(), LogError> {
        // What a patient store repeats may have been sent long ago.
        let store_before = store.time();
        let look = async |epoch| {
            let name = names::epoch(epoch);
            match store.get(&name).await {
                Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error.into()),
                Ok(body) => Err(match Claim::decode(&name, &body) {
                    Ok((_, claim)) => LogError::Superseded(Box::new(claim)),
                    Err(_) => LogError::Fenced(format!("{name} exists")),
                }),
            }
        };
        let (next, beyond) = tokio::join!(look(self.epoch + 1), look(self.epoch + 2));
        // That there is one counts, whatever became of the other question.
        match (next, beyond) {
            (Err(LogError::Store(error)), beyond) => return beyond.and(Err(error.into())),
            (next, beyond) => next.and(beyond)?,
        }
        let mut lasts = self.lasts.lock().unwrap_or_else(PoisonError::into_inner);
        lasts.until = lasts.until.max(before.saturating_add(self.terms.length()));
        // Before the first answer there is nothing to count from.
        let store_until = store_before.map(|then| then + self.terms.length());
        lasts.store_until = lasts.store_until.max(store_until);
        Ok(())
    }

    /// Says that we are alive, and looks. Returns when it began as well, by our clock.
    async fn renew(&self) -> (Duration, Result<(), LogError>) {
        let before = self.clock.now();
        (before, self.renew_from(before).await)
    }

    async fn renew_from(&self, before: Duration) -> Result<(), LogError> {
        let name = names::lease(self.epoch);
        // While an earlier one may still take effect, this one says the same: another one
        // would have to wait, and the lease could run out meanwhile.
        let said = self.said.load(Ordering::Relaxed);
        let under_way = UnderWay::begin(&self.under_way);
        let count = match under_way.alone && self.store.unsettled(&name).is_zero() {
            true => said + 1,
            false => said.max(1),
        };
        self.said.store(count, Ordering::Relaxed);
        let renewal = Renewal {
            epoch: self.epoch,
            attach: self.attach,
            count,
        };
        let body = renewal.encode(self.volume, &name);
        // Whoever ends need not wait for it: the release, or the next claim, hides it.
        match self.store.put_unawaited(&name, body).await {
            // A later one is there already, by another proxy's clock.
            Err(error) if error.kind == ErrorKind::Superseded => {}
            other => other?,
        }
        self.look_through(&*self.store, before).await
    }

    /// Keeps it in a task of its own, for as long as the keeper is there. Within a tokio
    /// runtime.
    pub fn keeper(self: &Arc<Lease>) -> Keeper {
        let (tell, lost) = oneshot::channel();
        let lease = Arc::clone(self);
        let task = tokio::spawn(vital(async move {
            let _ = tell.send(lease.keep().await);
        }));
        Keeper { lost, task }
    }

    /// Renews until a later claim is seen, and returns it. The next renewal does not wait
    /// for the one before it, which may be on a connection that is dead.
    pub async fn keep(&self) -> LogError {
        let mut failed_since = None;
        let mut last_renewed = Duration::ZERO;
        let mut under_way = FuturesUnordered::new();
        loop {
            under_way.push(self.renew());
            let mut next = Instant::now() + self.terms.between();
            loop {
                let full = under_way.len() >= AT_ONCE;
                tokio::select! {
                    biased;
                    Some((began, renewed)) = under_way.next() => match renewed {
                        Ok(()) => {
                            last_renewed = last_renewed.max(began);
                            if let Some(since) = failed_since.take() {
                                let seconds = self.clock.now().saturating_sub(since).as_secs();
                                tracing::warn!("the lease is renewed again, after {seconds} s");
                            }
                        }
                        // One after it was answered.
                        Err(LogError::Store(_)) if began < last_renewed => {}
                        Err(LogError::Store(error)) => {
                            self.cannot_renew(&error, &mut failed_since);
                            next = next.min(Instant::now() + self.terms.between() / 4);
                        }
                        Err(lost) => return lost,
                    },
                    () = sleep_until(next), if !full => break,
                }
            }
        }
    }

    fn cannot_renew(&self, error: &StoreError, since: &mut Option<Duration>) {
        if since.is_none() {
            tracing::warn!(
                "the lease cannot be renewed; it lasts for {} s more, then no flush is answered \
                 until it is: {error}",
                self.left().as_secs()
            );
            *since = Some(self.clock.now());
        }
    }
}
