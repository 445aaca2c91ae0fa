//! The journal: answered writes on a disk of this machine, until Swift has them.
//!
//! Knows: positions, what is written, synced and free again; when the journal may no
//! longer be relied on. Does not know: segments, the store, files ([`file`]).
//!
//! Every write is appended when it enters the open segment, in the same order, and
//! answered when the disk has taken it: it survives this process. FLUSH waits until the
//! disk has synced it: it survives the machine's power, too. An entry's place is free
//! again when every segment up to the one that has it is durable. Its bytes are in
//! [`format::journal`](super::format::journal).
//!
//! After a crash, opening the volume finds what Swift has, and in its last segment the
//! position up to which it has the journal; what the journal has beyond, it writes again
//! ([`replay`]), and goes on in the same journal from there.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | a write is answered, its segment is not durable, the process dies | its entry had been taken by the disk's file before it was answered, and is found there |
//! | the machine loses power after FLUSH | its entries were synced before it was answered |
//! | Swift has a segment whose entries the power cut took from the disk | what is written from then on goes beyond the segment's position; nothing before that is read again |
//! | what was read after one crash is lost in the next: the process dies, the power is cut after its successor has served what was not synced | what is found is synced before anything is served |
//! | an entry in the middle was not synced, later ones were written out | reading ends at it: they are no prefix. What is written next over their beginning is of a later epoch, and behind it no earlier one counts |
//! | entries of an earlier round of the ring, or of another journal | they have another position, or another id |
//! | an entry that was synced cannot be read, or is damaged | a later one says that it was synced: opening fails rather than to go on without it. (What only the last sync covered looks like a power cut.) |
//! | the disk fails, or a sync does | nothing is believed of this journal any more: from then on a write is answered when Swift has it, and its segment says that the journal has ended |
//! | another host takes the volume over, the journal's host comes back | the root of the newest pinned epoch names no journal, or another one: the file is kept, and reported |
//! | the volume is given back | the last root says that the journal has ended, and only then the file is removed |
//! | the journal's file is not there | opening fails, unless it is told to give up what is in it |
//! | the journal is full | writes wait until segments are durable |
//! | an older process of this machine goes on writing into the file | it was dead before: whoever opens the volume holds this machine's lock |

pub mod file;
pub mod replay;
pub mod take;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, TryAcquireError, watch};

use super::LogError;
use super::format::journal::{self, ALIGN, Content, HEAD, Head, MAX_RING, Owner};
use super::format::{JOURNAL_ENDED, JournalId};

/// Where a journal lies: bytes that can be read and written at any place.
#[async_trait]
pub trait Disk: Send + Sync + fmt::Debug {
    /// Its length in bytes.
    fn length(&self) -> u64;

    /// These bytes.
    async fn read(&self, at: u64, length: usize) -> io::Result<Bytes>;

    /// Writes them one after the other. Once it is answered they survive the process.
    async fn write(&self, at: u64, pieces: Vec<Bytes>) -> io::Result<()>;

    /// What was written before survives a power cut.
    async fn sync(&self) -> io::Result<()>;
}

/// Where this machine keeps the journal of a volume: at most one at a time.
#[async_trait]
pub trait Shelf: Send + Sync + fmt::Debug {
    /// The one that is there.
    async fn open(&self) -> io::Result<Option<Arc<dyn Disk>>>;

    /// Makes a new one, of so many bytes, all of which it has from now on, and with these
    /// at its beginning. It is there as a whole or not at all, after a power cut, too. Fails
    /// if there is one.
    async fn create(&self, length: u64, head: Bytes) -> io::Result<Arc<dyn Disk>>;

    /// Keeps the one that is there under another name. Returns that, for people.
    async fn set_aside(&self) -> io::Result<String>;

    /// Removes the one that is there.
    async fn remove(&self) -> io::Result<()>;

    /// Its name, for people.
    fn name(&self) -> String;
}

/// What an attachment does about journals.
#[derive(Debug, Clone, Default)]
pub struct Journaling {
    /// Where this machine keeps the volume's journal.
    pub shelf: Option<Arc<dyn Shelf>>,
    /// FLUSH is answered when the journal has what was written.
    pub wanted: bool,
    /// What a journal has that is not here, or not to be read, is given up.
    pub give_up: bool,
}

/// Why a volume's journal keeps it from being opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is none.
    #[error("it is not there")]
    Missing,
    /// It is no journal, or damaged beyond telling.
    #[error("it is no journal of swiftnbd")]
    NoJournal,
    /// It is another volume's.
    #[error("it is the journal of another volume")]
    Foreign,
    /// It is this volume's, and not the one that has what Swift has not.
    #[error("it is another journal of this volume")]
    Other,
    /// An entry is damaged that was durable.
    #[error("what it has from position {0} on is damaged")]
    Damaged(u64),
    /// It is shorter or longer than it says.
    #[error("it is cut off, or longer than it says")]
    CutOff,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// How far the journal got. Positions.
#[derive(Debug, Clone, Default)]
struct State {
    /// Everything before was taken by the disk.
    written: u64,
    /// Everything before survives a power cut.
    synced: u64,
    /// Why nothing more is written; the journal is not to be relied on.
    ended: Option<String>,
}

/// Entries that the disk has not taken yet.
#[derive(Debug, Default)]
struct Queue {
    pieces: Vec<Bytes>,
    /// Where the next entry goes.
    head: u64,
}

/// A part of the ring that nothing else gets.
#[derive(Debug)]
pub(super) struct Room<'a>(Option<SemaphorePermit<'a>>);

/// The journal of an open volume.
#[derive(Debug)]
pub struct Journal {
    owner: Owner,
    epoch: u32,
    disk: Arc<dyn Disk>,
    shelf: Arc<dyn Shelf>,
    ring: u64,
    queue: Mutex<Queue>,
    /// Entries came, or a sync is wanted.
    wake: Notify,
    /// Bytes of the ring that are free.
    room: Semaphore,
    /// Every entry before was made free.
    tail: AtomicU64,
    /// Everything before is to be synced.
    wanted: AtomicU64,
    state: watch::Sender<State>,
}

/// Bytes of a ring for so many bytes of dirty data, which it must hold with every
/// entry's own, and what is on its way besides.
pub(super) fn ring_for(dirty: u64) -> u64 {
    dirty
        .saturating_mul(2)
        .saturating_add(8 << 20)
        .min(MAX_RING)
}

/// Bytes of a disk's ring.
fn ring_of(disk: &dyn Disk) -> u64 {
    disk.length().saturating_sub(HEAD)
}

/// Makes a journal's file.
async fn create(shelf: &dyn Shelf, owner: &Owner, ring: u64) -> io::Result<Arc<dyn Disk>> {
    let head = Head {
        volume: owner.volume,
        id: owner.id,
        ring: ring / ALIGN * ALIGN,
    };
    shelf.create(HEAD + head.ring, head.encode()).await
}

impl Journal {
    /// One that has entries from `tail` to `head`, which some segment will have.
    fn new(
        owner: Owner,
        epoch: u32,
        disk: Arc<dyn Disk>,
        shelf: Arc<dyn Shelf>,
        (tail, head): (u64, u64),
    ) -> Journal {
        let ring = ring_of(&*disk);
        Journal {
            owner,
            epoch,
            disk,
            shelf,
            ring,
            queue: Mutex::new(Queue {
                pieces: Vec::new(),
                head,
            }),
            wake: Notify::new(),
            room: Semaphore::new(ring.saturating_sub(head - tail) as usize),
            tail: AtomicU64::new(tail),
            wanted: AtomicU64::new(0),
            state: watch::Sender::new(State {
                written: head,
                // What the program before left may be in memory only.
                synced: tail,
                ended: None,
            }),
        }
    }

    /// The error of opening it.
    pub(super) fn refused(&self, problem: Problem) -> LogError {
        LogError::Journal {
            id: Some(self.owner.id),
            place: self.shelf.name(),
            problem,
        }
    }

    /// Every entry before was made free.
    pub(super) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// Its name.
    pub fn id(&self) -> JournalId {
        self.owner.id
    }

    /// Bytes of the ring, and how many of them are in use.
    pub fn usage(&self) -> (u64, u64) {
        let used = self.queue().head - self.tail.load(Ordering::Relaxed);
        (self.ring, used)
    }

    /// Whether what it takes may be answered.
    pub fn is_relied_on(&self) -> bool {
        self.state.borrow().ended.is_none()
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for an entry with this. `None`: not right now; [`Journal::room`] waits.
    pub(super) fn try_room(&self, content: Content<'_>) -> Option<Room<'_>> {
        let length = content.entry_length(&self.owner.cipher);
        match self.room.try_acquire_many(length as u32) {
            Ok(room) => Some(Room(Some(room))),
            // Nothing is appended any more.
            Err(TryAcquireError::Closed) => Some(Room(None)),
            Err(TryAcquireError::NoPermits) => None,
        }
    }

    /// Waits for room for an entry with this.
    pub(super) async fn room(&self, content: Content<'_>) -> Room<'_> {
        let length = content.entry_length(&self.owner.cipher);
        Room(self.room.acquire_many(length as u32).await.ok())
    }

    /// Appends an entry in its room: the position after it. `None`: the journal has
    /// ended. In the order in which the caller calls it.
    pub(super) fn append(&self, room: Room<'_>, start: u64, content: Content<'_>) -> Option<u64> {
        room.0?.forget();
        let synced = {
            let state = self.state.borrow();
            if state.ended.is_some() {
                return None;
            }
            state.synced
        };
        let mut queue = self.queue();
        let id = (queue.head, synced, self.epoch);
        let entry = journal::encode(&self.owner, id, start, content);
        queue.head += entry.len() as u64;
        queue.pieces.push(entry);
        let head = queue.head;
        drop(queue);
        self.wake.notify_one();
        Some(head)
    }

    /// The position up to which a segment that is sealed now has everything, if it has
    /// everything up to `position`.
    pub(super) fn sealed_at(&self, position: u64) -> u64 {
        match self.is_relied_on() {
            true => position,
            false => JOURNAL_ENDED,
        }
    }

    /// Waits until the disk has taken everything before `position`. False: the journal
    /// has ended.
    pub(super) async fn written(&self, position: u64) -> bool {
        self.until(|state| state.written >= position).await
    }

    /// Waits until everything before `position` survives a power cut. False: the journal
    /// has ended.
    pub(super) async fn synced(&self, position: u64) -> bool {
        self.wanted.fetch_max(position, Ordering::AcqRel);
        self.wake.notify_one();
        self.until(|state| state.synced >= position).await
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state.subscribe();
        let seen = state
            .wait_for(|state| state.ended.is_some() || reached(state))
            .await;
        seen.is_ok_and(|state| state.ended.is_none())
    }

    /// Every segment up to one that has everything up to `position` is durable.
    pub(super) fn trim(&self, position: u64) {
        if position == JOURNAL_ENDED {
            return;
        }
        let tail = self.tail.fetch_max(position, Ordering::AcqRel);
        let free = position.saturating_sub(tail);
        self.room.add_permits(free as usize);
    }

    /// Nothing is appended any more, and what was is not relied on. False: it had ended
    /// before.
    pub(super) fn end(&self, why: &str) -> bool {
        self.room.close();
        self.state.send_if_modified(|state| {
            let first = state.ended.is_none();
            if first {
                state.ended = Some(why.to_owned());
            }
            first
        })
    }

    fn failed(&self, doing: &str, error: &io::Error) {
        let place = self.shelf.name();
        if self.end(&format!("{place}: cannot {doing}: {error}")) {
            tracing::error!(
                "the journal {place} cannot be {doing}: {error}; from now on each write is \
                 answered when the store has it, which is slow; nothing is lost. When the disk \
                 is mended, `swiftnbd restart` begins a new one"
            );
        }
    }

    /// Syncs what an earlier attachment left. False: it cannot be relied on.
    pub(super) async fn sync_what_was_found(&self) -> bool {
        match self.disk.sync().await {
            Ok(()) => {
                self.state.send_modify(|state| state.synced = state.written);
                true
            }
            Err(error) => {
                self.failed("synced", &error);
                false
            }
        }
    }

    /// The file is not needed any more.
    pub(super) async fn remove(&self) {
        if let Err(error) = self.shelf.remove().await {
            tracing::warn!("{} cannot be removed: {error}", self.shelf.name());
        }
    }

    /// Writes and syncs what comes, until it ends.
    pub(super) async fn run(self: Arc<Self>) {
        let writer = async {
            loop {
                let (at, pieces) = {
                    let mut queue = self.queue();
                    let pieces = std::mem::take(&mut queue.pieces);
                    let bytes: usize = pieces.iter().map(Bytes::len).sum();
                    (queue.head - bytes as u64, pieces)
                };
                if pieces.is_empty() {
                    self.wake.notified().await;
                    // The syncer may be waiting for the same.
                    self.state.send_modify(|_| ());
                    continue;
                }
                let bytes: usize = pieces.iter().map(Bytes::len).sum();
                if let Err(error) = write_ring(&*self.disk, self.ring, at, pieces).await {
                    return self.failed("written", &error);
                }
                let written = at + bytes as u64;
                self.state.send_modify(|state| state.written = written);
            }
        };
        let syncer = async {
            let mut state = self.state.subscribe();
            loop {
                let due = |state: &State| {
                    let wanted = self.wanted.load(Ordering::Acquire);
                    wanted > state.synced && state.written >= wanted
                };
                let written = match state.wait_for(due).await {
                    Ok(state) => state.written,
                    Err(_) => return,
                };
                if let Err(error) = self.disk.sync().await {
                    return self.failed("synced", &error);
                }
                self.state.send_modify(|state| state.synced = written);
            }
        };
        let ended = async {
            let mut state = self.state.subscribe();
            let _ = state.wait_for(|state| state.ended.is_some()).await;
        };
        tokio::select! {
            () = writer => {}
            () = syncer => {}
            () = ended => {}
        }
    }
}

/// Writes pieces to a ring from a position on.
async fn write_ring(
    disk: &dyn Disk,
    ring: u64,
    position: u64,
    mut pieces: Vec<Bytes>,
) -> io::Result<()> {
    let mut at = position % ring;
    while !pieces.is_empty() {
        let mut room = ring - at;
        let mut now = Vec::with_capacity(pieces.len());
        let mut later = Vec::new();
        for mut piece in pieces {
            let part = piece.split_to((piece.len() as u64).min(room) as usize);
            room -= part.len() as u64;
            now.push(part);
            if !piece.is_empty() {
                later.push(piece);
            }
        }
        disk.write(HEAD + at, now).await?;
        (at, pieces) = (0, later);
    }
    Ok(())
}
