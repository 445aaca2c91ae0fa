//! What the tasks of an open volume share: its parts, how far it got, and whether it
//! is still ours.
//!
//! Knows: the parts. Does not know: what each of them does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Duration;

use super::Pace;
use super::applier::Item;
use super::error::LogError;
use super::format::AttachId;
use super::format::root::Geometry;
use super::journal::Journal;
use super::lease::Lease;
use super::map::Map;
use super::pending::Pending;
use super::place::Home;
use super::reader::{Frames, ReadAhead};
use super::writer::Job;
use crate::image::ImageError;
use crate::image::vital::vital;
use crate::store::{ObjectStore, StoreError};

/// An open volume.
#[derive(Debug)]
pub struct Engine {
    /// Whose objects they are.
    pub home: Home,
    /// The volume's geometry.
    pub geometry: Geometry,
    /// The number of this attachment.
    pub epoch: u32,
    /// Its random name.
    pub attach: AttachId,
    /// The store of a live device: it waits.
    pub store: Arc<dyn ObjectStore>,
    /// The map: what is durable and applied.
    pub map: Arc<Map>,
    /// The right to answer.
    pub lease: Arc<Lease>,
    /// What holds answered writes until segments do, if anything.
    pub journal: Option<Arc<Journal>>,
    /// Frames in memory, and those that come.
    pub frames: Frames,
    /// Which reads are sequential.
    pub ahead: ReadAhead,
    /// What was written and the map does not show yet.
    pub pending: Mutex<Pending>,
    /// Memory for it, in bytes.
    pub budget: Semaphore,
    /// How much of it there is in all.
    pub budget_bytes: u64,
    /// When it seals, collects and writes roots.
    pub pace: Pace,
    /// How long a request waits for the store; `None`: for ever.
    pub patience: Option<Duration>,
    /// The most bytes that one step of a write adds: whole blocks.
    pub step: usize,
    /// How far it got.
    pub progress: watch::Sender<Progress>,
    /// Why nothing may be done any more, once that is so.
    pub fence: watch::Sender<Option<String>>,
    /// Too much is stored for what is live: writers wait for the collector.
    pub crowded: watch::Sender<bool>,
    /// Sealed segments, in order.
    pub to_seal: mpsc::UnboundedSender<Job>,
    /// What the applier has to do, in order.
    pub to_apply: mpsc::UnboundedSender<Item>,
    /// Wakes the collector.
    pub collect: tokio::sync::Notify,
    /// It is being closed: nothing more is collected.
    pub closing: AtomicBool,
    /// Its journal has nothing any more that the store has not, and gets nothing.
    pub given_back: AtomicBool,
    /// Headers of small segments that came lately.
    pub recent: super::collector::Recent,
    /// Figures.
    pub counters: Counters,
    /// All tasks; they end with it.
    pub tasks: Tasks,
}

/// How far the log got.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Every segment up to this one is durable.
    pub durable: u64,
    /// The map shows every segment up to this one.
    pub applied: u64,
    /// How many attempts to store a segment were given up so far; each is repeated.
    pub failures: u64,
    /// The last of these failures.
    pub error: Option<StoreError>,
    /// The newest durable root.
    pub root: u32,
}

/// Work done since the volume was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of live data that the collector copied.
    pub collected: AtomicU64,
    /// Objects that were deleted.
    pub deleted: AtomicU64,
}

/// Background tasks, ended when this is dropped.
#[derive(Debug, Default)]
pub struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// Starts one. If it panics, the process ends: others wait for what it should do.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while set.try_join_next().is_some() {}
        set.spawn(vital(task));
    }

    /// Ends all of them.
    pub fn abort(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}

impl Engine {
    /// What is pending.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the volume may still be used.
    pub fn check(&self) -> Result<(), ImageError> {
        match &*self.fence.borrow() {
            None => Ok(()),
            Some(why) => Err(ImageError::Superseded(why.clone())),
        }
    }

    /// The volume is no longer ours: nothing is written, answered or read from now on.
    pub fn fenced(&self, why: &LogError) {
        self.fence.send_if_modified(|fence| {
            let first = fence.is_none();
            if first {
                tracing::error!(
                    "the volume is no longer ours, and every request fails from now on: {why}"
                );
                *fence = Some(why.to_string());
            }
            first
        });
    }

    /// Returns once the volume is no longer ours.
    pub async fn until_fenced(&self) {
        let _ = self.fence.subscribe().wait_for(Option::is_some).await;
    }

    /// The error of an object that should have been ours to create.
    pub fn taken(&self, name: &str, body: &bytes::Bytes) -> LogError {
        match super::decide::is_stop(name, body) {
            Ok(true) => LogError::Fenced(format!(
                "epoch {} was ended by a later attachment, which left a stop at {name}",
                self.epoch
            )),
            _ => LogError::Fenced(format!("{name} was written by somebody else")),
        }
    }

    /// Looks whether somebody attached after us, and gives up if so.
    pub async fn look(&self) -> Result<bool, StoreError> {
        match self.lease.look_patiently(&*self.store).await {
            Ok(()) => Ok(true),
            Err(LogError::Store(error)) => Err(error),
            Err(lost) => {
                self.fenced(&lost);
                Ok(false)
            }
        }
    }

    /// Everything up to some flush is durable: whether that may be said.
    pub async fn confirm(&self) -> Result<(), ImageError> {
        self.check()?;
        if !self.lease.lasts(self.store.time()) {
            self.look().await?;
        }
        self.check()
    }

    /// Gives memory of pending writes back.
    pub fn refund(&self, bytes: u64) {
        self.budget.add_permits(bytes as usize);
    }

    /// Seals the open segment, if anything is in it. Returns the number of the last
    /// segment of what was written.
    pub fn seal(&self) -> u64 {
        let mut pending = self.pending();
        if let Some((seq, runs)) = pending.seal(tokio::time::Instant::now()) {
            let at = |journal: &Arc<Journal>| journal.sealed_at(pending.journal);
            let journal = self.journal.as_ref().map_or(0, at);
            // Sent under the lock: the numbers go up in the queue, too.
            let _ = self.to_seal.send(Job::Written { seq, runs, journal });
        }
        pending.last_written()
    }

    /// Has the applier do something when everything before is applied.
    pub async fn ask(&self, item: impl FnOnce(oneshot::Sender<()>) -> Item) {
        let (done, wait) = oneshot::channel();
        let _ = self.to_apply.send(item(done));
        tokio::select! {
            biased;
            _ = wait => {}
            () = self.until_fenced() => {}
        }
    }

    /// A figure, counted.
    pub fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
