//! Repeats what failed, until it succeeds or a time limit ends it.
//!
//! Knows: which failures pass by themselves, how long to pause, and which
//! earlier writes may still take effect. Does not know: what kind of store it
//! wraps, volumes.
//!
//! # Which failures
//! | kind | [`Permanent::Fail`] | [`Permanent::Wait`] |
//! |---|---|---|
//! | `NotFound` of a `get` | returned | returned |
//! | `Corrupt` of a read | 3 more attempts | 3 more attempts |
//! | `NoContainer`, `Denied`, `Quota`, `Invalid` | returned | repeated |
//! | everything else | repeated | repeated |
//!
//! Names, bodies and limits that no store takes are refused before anything is
//! sent, so that they never wait.
//!
//! # Which order
//! A write of unknown fate puts its name in quarantine: the next call that
//! writes that name waits until the earlier one can no longer take effect, unless
//! it writes the same: the attempts within one call need not wait, nor a call that
//! stores the same bytes again. A call that is dropped, or ended by its time limit,
//! leaves a write of unknown fate too. The metadata counts as one name of its own.
//!
//! # Creating
//! A `put_new` that failed may have taken effect, and is repeated all the same:
//! the repeat then finds its own object and answers false. Callers tell their own
//! object from another's by its content.

mod outage;
mod quarantine;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use self::outage::Outage;
use self::quarantine::{Left, Quarantine};
use super::{Age, ErrorKind, Listed, Metadata, ObjectStore, StoreError, check};
use crate::metrics::RequestCount;

/// The longest first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause; each is random between nothing and a bound that doubles
/// from the first to this.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// A store may ask for a longer pause than this; it does not get it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// How often a damaged body is asked for again: another replica may be whole.
const CORRUPT_RETRIES: u32 = 3;
/// The quarantine's name for the metadata: no object has it.
const METADATA: &str = "";

/// What happens on failures that do not pass by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permanent {
    /// They are returned at once.
    Fail,
    /// They are repeated like all others: somebody may mend the cause.
    Wait,
}

/// How long a call goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A whole call, its pauses and an attempt under way included, takes no
    /// longer than this. `None`: for ever.
    pub give_up_after: Option<Duration>,
    /// What happens on failures that do not pass by themselves.
    pub permanent: Permanent,
}

impl Policy {
    /// For a live device: everything waits, for as long as `io_timeout` says.
    pub fn live(io_timeout: Option<Duration>) -> Policy {
        Policy {
            give_up_after: io_timeout,
            permanent: Permanent::Wait,
        }
    }

    /// For tools that send or fetch a lot: an outage of some minutes is waited out,
    /// a refusal ends it.
    pub fn transfer() -> Policy {
        Policy {
            give_up_after: Some(Duration::from_secs(300)),
            permanent: Permanent::Fail,
        }
    }

    /// While attaching, for short commands and for the lease: an answer within 13 s.
    /// Swift gives each of its servers 10 s (`node_timeout`) before it does without it.
    pub fn attach() -> Policy {
        Policy {
            give_up_after: Some(Duration::from_secs(13)),
            permanent: Permanent::Fail,
        }
    }
}

/// A store that repeats the requests of another one.
#[derive(Debug, Clone)]
pub struct Retry {
    inner: Arc<dyn ObjectStore>,
    policy: Policy,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    quarantine: Quarantine,
    outage: Outage,
    rng: Mutex<Rng>,
    /// How often somebody said that trying again is worth it.
    hurried: watch::Sender<u64>,
}

type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What a call is, as far as repeating it goes.
#[derive(Debug, Clone, Copy)]
enum Call<'a> {
    Get(&'a str),
    Read(&'static str),
    Write(&'a str, Left<'a>),
    DeleteMany(&'a [String]),
}

impl<'a> Call<'a> {
    /// The names that it may change, and what it leaves there.
    fn written(self) -> impl Iterator<Item = (&'a str, Left<'a>)> {
        let (one, many) = match self {
            Call::Write(name, left) => (Some((name, left)), &[][..]),
            Call::DeleteMany(names) => (None, names),
            Call::Get(_) | Call::Read(_) => (None, &[][..]),
        };
        let many = many.iter().map(|name| (name.as_str(), Left::Nothing));
        one.into_iter().chain(many)
    }

    fn is_write(self) -> bool {
        matches!(self, Call::Write(..) | Call::DeleteMany(_))
    }

    /// A failure of which the inner store said nothing.
    fn error(self, detail: impl Into<String>) -> StoreError {
        let (operation, target) = match self {
            Call::Get(name) => ("GET", name),
            Call::Read(what) => (what, "of the container"),
            Call::Write(METADATA, _) => ("POST", "the container"),
            Call::Write(name, _) => ("write", name),
            Call::DeleteMany(names) => ("DELETE", names.first().map_or("", |name| name)),
        };
        StoreError::new(ErrorKind::Unavailable, operation, target, detail)
    }
}

impl Retry {
    /// Repeats the requests of `inner` by this policy. `rng` decides the
    /// pauses: the same seed and failures give the same pauses.
    pub fn new(inner: Arc<dyn ObjectStore>, policy: Policy, rng: Rng) -> Retry {
        Retry {
            inner,
            policy,
            shared: Arc::new(Shared {
                quarantine: Quarantine::default(),
                outage: Outage::default(),
                rng: Mutex::new(rng),
                hurried: watch::Sender::new(0),
            }),
        }
    }

    /// The same store by another policy: both know which names are in
    /// quarantine.
    pub fn with_policy(&self, policy: Policy) -> Retry {
        Retry {
            policy,
            ..self.clone()
        }
    }

    /// The same over another store, which leads to the same place.
    pub fn with_inner(&self, inner: Arc<dyn ObjectStore>) -> Retry {
        Retry {
            inner,
            ..self.clone()
        }
    }

    /// Whatever waits tries again at once: the cause may be mended. It holds for
    /// an attempt that is under way too, should it fail.
    pub fn hurry(&self) {
        self.shared.hurried.send_modify(|count| *count += 1);
    }

    async fn call<'a, T>(
        &'a self,
        call: Call<'a>,
        attempt: impl Fn() -> Attempt<'a, T> + Send + Sync,
    ) -> Result<T, StoreError> {
        let deadline = self
            .policy
            .give_up_after
            .map(|limit| Instant::now() + limit);
        if call.is_write() {
            let passed = before(deadline, self.passed(call)).await;
            // An attempt that is cut short for want of time would only put its name
            // into quarantine again, and so on for ever. The next call has more.
            let limit = self.policy.give_up_after.unwrap_or_default();
            let enough = deadline.is_none_or(|deadline| Instant::now() + limit / 2 <= deadline);
            if passed.is_none() || !enough {
                return Err(self.given_up(call, self.blocked(call)));
            }
        }
        let mut trouble = self.shared.outage.watch();
        let mut failures = Failures::default();
        loop {
            let hurried = *self.shared.hurried.borrow();
            let error = match before(deadline, self.once(call, attempt())).await {
                Some(Ok(value)) => {
                    trouble.succeeded();
                    return Ok(value);
                }
                Some(Err(error))
                    if matches!((call, error.kind), (Call::Get(_), ErrorKind::NotFound)) =>
                {
                    trouble.succeeded();
                    return Err(error);
                }
                Some(Err(error)) => error,
                None => return Err(self.given_up(call, failures.cut_short(call))),
            };
            if !failures.may_pass(call, &error, self.policy.permanent) {
                if error.kind == ErrorKind::Corrupt {
                    tracing::error!("{error}: the same after {CORRUPT_RETRIES} more attempts");
                }
                return Err(self.with_lingering(call, error));
            }
            let Some(pause) = self.pause(&error, failures.count, deadline) else {
                return Err(self.given_up(call, error));
            };
            trouble.failed(&error);
            failures.add(error);
            let mut hurry = self.shared.hurried.subscribe();
            tokio::select! {
                () = sleep(pause) => {}
                _ = hurry.wait_for(|count| *count != hurried) => {}
            }
        }
    }

    /// Returns when no earlier write of the call's names can take effect any more,
    /// or none that would make a difference.
    async fn passed(&self, call: Call<'_>) {
        for (name, left) in call.written() {
            self.shared.quarantine.passed(name, left).await;
        }
    }

    /// One attempt. Dropped midway, a write leaves its names in quarantine.
    async fn once<T>(&self, call: Call<'_>, attempt: Attempt<'_, T>) -> Result<T, StoreError> {
        let linger = self.inner.linger();
        let begin = |(name, left)| self.shared.quarantine.begin(name, left, linger);
        let under_way: Vec<_> = call.written().map(begin).collect();
        let result = attempt.await;
        let lingers = result.as_ref().err().map(|error| error.lingers);
        for write in under_way {
            write.answered(lingers.unwrap_or_default());
        }
        result
    }

    /// How long to pause before the next attempt; `None` if there is no time
    /// for one.
    fn pause(
        &self,
        error: &StoreError,
        failures: u32,
        deadline: Option<Instant>,
    ) -> Option<Duration> {
        let bound = FIRST_PAUSE
            .saturating_mul(1 << failures.min(16))
            .min(LAST_PAUSE);
        let chosen = {
            let mut rng = self
                .shared
                .rng
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Duration::from_millis(rng.u64(0..=bound.as_millis() as u64))
        };
        let asked = error.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
        let Some(deadline) = deadline else {
            return Some(chosen.max(asked));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left < FIRST_PAUSE.max(asked) {
            return None;
        }
        // Half of what is left at most, so that the rest is for an attempt.
        Some(chosen.min(left / 2).max(asked))
    }

    /// The error with what its call leaves behind.
    fn with_lingering(&self, call: Call<'_>, mut error: StoreError) -> StoreError {
        error.lingers = error.lingers.max(self.left(call));
        error
    }

    /// The error of a call that its time limit ended.
    fn given_up(&self, call: Call<'_>, error: StoreError) -> StoreError {
        let limit = self.policy.give_up_after.unwrap_or_default();
        let detail = format!(
            "{} (given up: the limit is {} s)",
            error.detail,
            limit.as_secs_f32()
        );
        self.with_lingering(call, StoreError { detail, ..error })
    }

    /// For how long earlier writes of the call's names may still take effect.
    fn left(&self, call: Call<'_>) -> Duration {
        let quarantine = &self.shared.quarantine;
        let left = call.written().map(|(name, _)| quarantine.left(name));
        left.max().unwrap_or_default()
    }

    fn blocked(&self, call: Call<'_>) -> StoreError {
        let left = self.left(call).as_secs_f32();
        call.error(format!(
            "an earlier write may still take effect for {left:.0} s"
        ))
    }
}

/// The result of `work`, or `None` if the deadline comes first.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

/// How a call failed so far.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    corrupt: u32,
    last: Option<StoreError>,
}

impl Failures {
    fn add(&mut self, error: StoreError) {
        self.count = self.count.saturating_add(1);
        self.corrupt += u32::from(error.kind == ErrorKind::Corrupt);
        self.last = Some(error);
    }

    /// Whether another attempt makes sense after this failure.
    fn may_pass(&self, call: Call<'_>, error: &StoreError, permanent: Permanent) -> bool {
        match error.kind {
            ErrorKind::Corrupt if !call.is_write() => self.corrupt < CORRUPT_RETRIES,
            _ if error.is_permanent() => permanent == Permanent::Wait,
            _ => true,
        }
    }

    /// The error of a call that ended during an attempt.
    fn cut_short(self, call: Call<'_>) -> StoreError {
        self.last.unwrap_or_else(|| call.error("no answer"))
    }
}

#[async_trait]
impl ObjectStore for Retry {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        check::name("GET", "", name)?;
        self.call(Call::Get(name), || self.inner.get(name)).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        check::range("", name, offset, length, u64::MAX)?;
        self.call(Call::Get(name), || {
            self.inner.get_range(name, offset, length)
        })
        .await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        check::put("", name, &body)?;
        let call = Call::Write(name, Left::Body(&body));
        self.call(call, || self.inner.put(name, body.clone())).await
    }

    async fn put_unawaited(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        check::put("", name, &body)?;
        let call = Call::Write(name, Left::Unawaited(&body));
        self.call(call, || self.inner.put(name, body.clone())).await
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        check::put("", name, &body)?;
        let call = Call::Write(name, Left::Body(&body));
        self.call(call, || self.inner.put_new(name, body.clone()))
            .await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        check::name("DELETE", "", name)?;
        let call = Call::Write(name, Left::Nothing);
        self.call(call, || self.inner.delete(name)).await
    }

    async fn delete_many(&self, names: &[String]) -> Result<(), StoreError> {
        check::names("", names)?;
        self.call(Call::DeleteMany(names), || self.inner.delete_many(names))
            .await
    }

    async fn md5(&self, name: &str) -> Result<[u8; 16], StoreError> {
        check::name("HEAD", "", name)?;
        self.call(Call::Get(name), || self.inner.md5(name)).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        check::limit("", limit)?;
        self.call(Call::Read("listing"), || {
            self.inner.list(after, before, limit)
        })
        .await
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.call(Call::Read("metadata"), || self.inner.metadata())
            .await
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        check::metadata("", changes)?;
        let call = Call::Write(METADATA, Left::Something);
        self.call(call, || self.inner.set_metadata(changes)).await
    }

    async fn create(&self) -> Result<bool, StoreError> {
        self.call(Call::Read("creation"), || self.inner.create())
            .await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.call(Call::Read("removal"), || self.inner.remove())
            .await
    }

    async fn settle(&self) {
        self.shared.quarantine.settled().await;
        self.inner.settle().await;
    }

    fn linger(&self) -> Duration {
        self.inner.linger()
    }

    fn unsettled(&self, name: &str) -> Duration {
        self.shared.quarantine.left(name)
    }

    fn requests(&self) -> Vec<RequestCount> {
        self.inner.requests()
    }

    fn time(&self) -> Option<Duration> {
        self.inner.time()
    }

    async fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        check::name("HEAD", "", name)?;
        self.call(Call::Get(name), || self.inner.age(name)).await
    }
}
