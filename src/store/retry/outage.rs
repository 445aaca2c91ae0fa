//! What the log says while a store fails: a line when it begins, one now and
//! then, and one when it is over, however many requests wait.
//!
//! Knows: the requests that failed at least once and go on. Does not know: how
//! they are repeated.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{ErrorKind, StoreError};

const LOG_EVERY: Duration = Duration::from_secs(30);

/// The outage that all requests of a store share.
#[derive(Debug, Default)]
pub(super) struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Requests that failed and wait to succeed.
    waiting: usize,
    began: Option<Instant>,
    failures: u64,
    given_up: u64,
    /// A line about this outage was written.
    announced: bool,
    logged: Option<Instant>,
    /// The kind that needs somebody's help and was last written about.
    alarm: Option<ErrorKind>,
}

/// One request's part in it.
#[derive(Debug)]
pub(super) struct Trouble<'a> {
    outage: &'a Outage,
    failed: bool,
    succeeded: bool,
}

impl Outage {
    /// A request that has not failed yet.
    pub(super) fn watch(&self) -> Trouble<'_> {
        Trouble {
            outage: self,
            failed: false,
            succeeded: false,
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Trouble<'_> {
    /// An attempt failed, and another will follow.
    pub(super) fn failed(&mut self, error: &StoreError) {
        let first = !self.failed;
        self.failed = true;
        self.outage.with(|state| state.failed(error, first));
    }

    /// The request succeeded, or got an answer that is one.
    pub(super) fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Trouble<'_> {
    fn drop(&mut self) {
        if self.failed {
            self.outage.with(|state| state.ended(self.succeeded));
        }
    }
}

impl State {
    fn failed(&mut self, error: &StoreError, first: bool) {
        let now = Instant::now();
        self.waiting += usize::from(first);
        let began = *self.began.get_or_insert(now);
        self.failures += 1;
        let alarm = error.is_permanent() && self.alarm != Some(error.kind);
        let due = self.logged.is_none_or(|logged| now - logged >= LOG_EVERY);
        if !(alarm || due) {
            return;
        }
        let again = self.announced;
        self.announced = true;
        self.logged = Some(now);
        let (waiting, since) = (Count(self.waiting as u64), (now - began).as_secs());
        match advice(error) {
            Some(advice) => {
                self.alarm = Some(error.kind);
                tracing::warn!("{error}: {waiting} waiting for {since} s and will go on; {advice}");
            }
            None if again => {
                tracing::warn!("{error}: {waiting} waiting, no success for {since} s");
            }
            None => tracing::warn!("{error}: trying again"),
        }
    }

    fn ended(&mut self, succeeded: bool) {
        self.waiting -= 1;
        self.given_up += u64::from(!succeeded);
        if self.waiting > 0 {
            return;
        }
        let seconds = self.began.map_or(0, |began| began.elapsed().as_secs());
        let (failures, given_up) = (self.failures, Count(self.given_up));
        if self.announced && self.given_up == 0 {
            tracing::info!(
                "the store answers again after {seconds} s: {failures} attempts had failed, all was done in the end and nothing was lost"
            );
        } else if self.announced {
            tracing::warn!("after {seconds} s and {failures} failed attempts: {given_up} given up");
        }
        *self = State {
            logged: self.logged,
            ..State::default()
        };
    }
}

/// What somebody must do before this goes away.
fn advice(error: &StoreError) -> Option<String> {
    let usual = match error.kind {
        ErrorKind::Denied => {
            "if the credentials are wrong, correct them in the configuration and send this process SIGHUP"
        }
        ErrorKind::NoContainer => {
            "if the container was deleted, its volume is lost: detach with --force"
        }
        ErrorKind::Quota => "raise the quota, or delete what is not needed",
        ErrorKind::Invalid => {
            "this is not how Swift answers: check the address, and any proxy on the way"
        }
        ErrorKind::NotFound
        | ErrorKind::Superseded
        | ErrorKind::Corrupt
        | ErrorKind::Unavailable
        | ErrorKind::Unreachable => return None,
    };
    Some(match &error.hint {
        Some(hint) => {
            format!("{hint}; after a change of the configuration, send this process SIGHUP")
        }
        None => usual.to_owned(),
    })
}

/// `1 request`, `2 requests`.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 request"),
            count => write!(f, "{count} requests"),
        }
    }
}
