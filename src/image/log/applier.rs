//! From durable segments to the map, and from the map to roots.
//!
//! Knows: in which order the map is edited, when a root is written, what may be
//! deleted after it. Does not know: how segments came to be durable.
//!
//! One task does it, one segment after the other, so the map is always the state
//! after some segment and a root can be taken between any two.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | a root is stored, a page that it names is not | every page and table is durable before the root is sent; every segment is, before it is applied |
//! | an object is deleted, and the newest durable root needs it | it is deleted only after a root that does not need it is durable |
//! | a reader looks a place up, then its segment is deleted | the reader looks it up again ([`super`]) |
//! | a later attachment goes on from our last root while we delete | before each deletion we look for its claim; the root it goes on from is our newest, since it stopped the next |

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, sleep};

use super::collector;
use super::decide::{self, Created};
use super::engine::Engine;
use super::error::LogError;
use super::format::root::{Location, Root, hash};
use super::format::segment::Header;
use super::format::tables::MapBuilder;
use super::format::{BLOCK, Hash, JOURNAL_ENDED, JournalId, MAX_OBJECT, names};
use super::map::Written;
use crate::store::{ObjectStore, StoreError};

/// A map object is closed when it has this many bytes.
const MAP_OBJECT: u64 = 8 << 20;
/// Roots whose number is a multiple of this stay while their epoch is the newest.
/// Part of the format: it is how the newest one is found.
pub const MULTIPLE: u32 = 256;
/// Between two attempts at something that must succeed.
const PAUSE: Duration = Duration::from_secs(1);
/// Names in one deletion.
const DELETE_TOGETHER: usize = 1000;

/// What the applier has to do.
#[derive(Debug)]
pub enum Item {
    /// A segment is durable, and every one before it.
    Segment {
        /// What it says.
        header: Arc<Header>,
        /// The hash of its header's box.
        hash: Hash,
        /// Bytes of its object.
        stored: u64,
    },
    /// Write a root, if anything changed since the last.
    Root(oneshot::Sender<()>),
    /// Write a root that names another key.
    Rekey(u32, oneshot::Sender<()>),
    /// Give up these blocks (first, count): reading them fails from now on.
    GiveUp(Vec<(u64, u64)>, oneshot::Sender<()>),
}

/// What the deleter has to do.
#[derive(Debug)]
pub enum Dead {
    /// Delete these objects.
    Names(Vec<String>),
    /// Tell when everything before is deleted.
    Done(oneshot::Sender<()>),
}

/// What was last written as a root.
#[derive(Debug, Clone)]
pub struct Last {
    /// The root.
    pub root: Root,
    /// The hash of its object.
    pub hash: Hash,
}

/// The applier's own state.
#[derive(Debug)]
struct Applier {
    engine: Arc<Engine>,
    last: Last,
    /// The last segment that the map shows, and its hash.
    seq: u64,
    header: Hash,
    /// Up to where the map has the journal.
    journal: u64,
    bytes: u64,
    segments: u32,
    to_delete: mpsc::UnboundedSender<Dead>,
}

/// Applies and checkpoints until the queue ends.
pub async fn run(
    engine: Arc<Engine>,
    mut items: mpsc::UnboundedReceiver<Item>,
    last: Last,
    to_delete: mpsc::UnboundedSender<Dead>,
) {
    let mut applier = Applier {
        seq: last.root.seq,
        header: last.root.header,
        journal: last.root.journal.map_or(0, |(_, position)| position),
        bytes: 0,
        segments: 0,
        engine,
        last,
        to_delete,
    };
    while let Some(item) = items.recv().await {
        if applier.engine.check().is_err() {
            return;
        }
        match item {
            Item::Segment {
                header,
                hash,
                stored,
            } => applier.segment(&header, hash, stored).await,
            Item::Root(done) => {
                let journal = applier.journal();
                if applier.seq != applier.last.root.seq
                    || applier.engine.map.changed_cost() > 0
                    || journal != applier.last.root.journal
                {
                    applier.root().await;
                }
                let _ = done.send(());
            }
            Item::GiveUp(ranges, done) => {
                applier.give_up(&ranges).await;
                let _ = done.send(());
            }
            Item::Rekey(key, done) => {
                applier.last.root.key = key;
                applier.root().await;
                let _ = done.send(());
            }
        }
    }
}

impl Applier {
    async fn segment(&mut self, header: &Arc<Header>, hash: Hash, stored: u64) {
        let engine = Arc::clone(&self.engine);
        let this = &*self;
        let spill = || -> BoxFuture<'_, Result<(), LogError>> {
            Box::pin(async {
                this.spill().await;
                Ok(())
            })
        };
        let store = &*engine.store;
        while let Err(error) = engine.map.apply(store, header, stored, &spill).await {
            tracing::error!(
                "segment {} cannot be entered in the map, it is tried again: {error}",
                header.seq
            );
            sleep(PAUSE).await;
        }
        collector::remember(&engine, header, stored);
        let free = engine.pending().applied(header.seq);
        engine.refund(free);
        (self.seq, self.header) = (header.seq, hash);
        self.journal = self.journal.max(header.journal);
        self.bytes += stored;
        self.segments += 1;
        engine
            .progress
            .send_modify(|progress| progress.applied = header.seq);
        // In this order: the collector looks at the result.
        collector::watch_space(&engine);
        engine.collect.notify_one();
        if self.wants_root() {
            self.root().await;
        } else if engine.map.changed_cost() > self.most_changed() {
            self.spill().await;
        }
    }

    async fn give_up(&mut self, ranges: &[(u64, u64)]) {
        let engine = Arc::clone(&self.engine);
        let all = engine.geometry.size.div_ceil(BLOCK);
        for &(start, blocks) in ranges {
            while let Err(error) = engine.map.lose(&*engine.store, start, blocks, all).await {
                tracing::error!(
                    "blocks {start} to {} cannot be given up, it is tried again: {error}",
                    start + blocks
                );
                sleep(PAUSE).await;
            }
        }
        while let Err(error) = engine.map.recount(&*engine.store).await {
            tracing::error!("the map cannot be counted, it is tried again: {error}");
            sleep(PAUSE).await;
        }
        self.root().await;
    }

    /// What a root says of the journal now: that it has ended, once everything is stored
    /// that it ever had.
    fn journal(&self) -> Option<(JournalId, u64)> {
        let journal = self.engine.journal.as_ref()?;
        let position = match self.engine.given_back.load(Ordering::Acquire) {
            true => JOURNAL_ENDED,
            false => self.journal,
        };
        Some((journal.id(), position))
    }

    fn wants_root(&self) -> bool {
        let pace = self.engine.pace;
        let (live, dead) = self
            .engine
            .map
            .space(|space| (space.live_bytes(), space.dead_bytes()));
        let after = (live / 8).clamp(pace.root_bytes.0, pace.root_bytes.1);
        self.bytes >= after || self.segments >= pace.root_segments || dead >= after
    }

    fn most_changed(&self) -> u64 {
        self.engine.map.memory_limit() / 2
    }

    /// Writes changed pages, so that they can be dropped.
    async fn spill(&self) {
        let engine = Arc::clone(&self.engine);
        let pages = encode_pages(&engine);
        self.put_all(&pages.objects).await;
        engine.map.written(pages.written, &pages.sizes);
    }

    /// Writes a root, and has deleted what it does not need.
    async fn root(&mut self) {
        let engine = Arc::clone(&self.engine);
        // Decoded they take up to eight times as much.
        let most = (engine.map.memory_limit() / 16).min(MAP_OBJECT);
        let scattered = engine.map.scattered(most);
        if let Err(error) = engine.map.touch(&*engine.store, &scattered).await {
            tracing::warn!("pages of the map are not moved together: {error}");
        }
        let n = self.last.root.n + 1;
        let previous = Some((self.last.root.epoch, self.last.root.n, self.last.hash));
        let mut checkpoint = Checkpoint::prepare(
            &engine,
            n,
            previous,
            (self.seq, self.header),
            self.last.root.key,
            self.journal(),
        );
        if checkpoint
            .objects
            .iter()
            .any(|(_, body)| body.len() as u64 > MAX_OBJECT)
        {
            tracing::error!(
                "there are too many segments for a checkpoint: none is written, and the next \
                 attachment has more to read; detach and attach to have them merged"
            );
            return;
        }
        self.put_all(&checkpoint.objects).await;
        if engine.check().is_err() {
            return;
        }
        checkpoint.commit(&engine);
        self.put_all(std::slice::from_ref(&checkpoint.object)).await;
        if engine.check().is_err() {
            return;
        }
        // The tables lie in an object of their own, which only their root needs.
        let old_tables = engine.map.map_name(self.last.root.tables.k);
        self.last = Last {
            hash: hash(&checkpoint.object.1),
            root: checkpoint.root,
        };
        (self.bytes, self.segments) = (0, 0);
        engine.progress.send_modify(|progress| progress.root = n);
        let mut dead = engine.map.take_dead(self.last.root.tables.k);
        dead.push(old_tables);
        dead.extend(old_roots(engine.epoch, n));
        if !dead.is_empty() {
            let _ = self.to_delete.send(Dead::Names(dead));
        }
        collector::watch_space(&engine);
        engine.collect.notify_one();
    }

    /// Creates objects, all at once, until they are durable or we are fenced.
    async fn put_all(&self, objects: &[(String, Bytes)]) {
        let engine = &self.engine;
        let puts = objects.iter().map(|(name, body)| async move {
            loop {
                match decide::create(&*engine.store, name, body).await {
                    Ok(Created::Ours) => return,
                    Ok(Created::Taken(other)) => return engine.fenced(&engine.taken(name, &other)),
                    Err(error) => {
                        tracing::warn!("{name} could not be stored, it is tried again: {error}")
                    }
                }
                if engine.check().is_err() {
                    return;
                }
                sleep(PAUSE).await;
            }
        });
        futures_util::future::join_all(puts).await;
    }
}

/// Roots of this epoch that need not stay now that `n` is durable.
fn old_roots(epoch: u32, n: u32) -> Vec<String> {
    if !n.is_multiple_of(MULTIPLE) || n < 2 * MULTIPLE {
        return Vec::new();
    }
    (n - 2 * MULTIPLE + 1..n - MULTIPLE)
        .map(|old| names::root(epoch, old))
        .collect()
}

/// Changed pages, encoded.
struct Pages {
    objects: Vec<(String, Bytes)>,
    sizes: Vec<(u64, u64)>,
    written: Written,
}

fn encode_pages(engine: &Engine) -> Pages {
    let mut pages = Pages {
        objects: Vec::new(),
        sizes: Vec::new(),
        written: Written::default(),
    };
    let mut builder: Option<MapBuilder> = None;
    let mut close = |builder: MapBuilder, k: u64| {
        pages.sizes.push((k, builder.len() as u64));
        pages.objects.push(builder.finish());
    };
    let mut k = 0;
    for (number, page) in engine.map.changed() {
        if page.is_empty() {
            pages.written.0.push((number, page, None));
            continue;
        }
        let open = builder.get_or_insert_with(|| {
            k = engine.map.next_map();
            new_map(engine, k)
        });
        let location = open.page(number, page.entries());
        pages.written.0.push((number, page, Some(location)));
        if open.len() as u64 >= MAP_OBJECT
            && let Some(full) = builder.take()
        {
            close(full, k);
        }
    }
    if let Some(rest) = builder {
        close(rest, k);
    }
    pages
}

fn new_map(engine: &Engine, k: u64) -> MapBuilder {
    MapBuilder::new(
        engine.home.volume,
        &engine.home.cipher,
        engine.epoch,
        engine.attach,
        k,
    )
}

/// A root and everything that it names, not stored yet.
pub struct Checkpoint {
    /// Map objects, to be durable before the root is sent.
    pub objects: Vec<(String, Bytes)>,
    sizes: Vec<(u64, u64)>,
    written: Written,
    /// The root.
    pub root: Root,
    /// Its name and bytes.
    pub object: (String, Bytes),
}

impl Checkpoint {
    /// The map as it is now, after segment `at`, as root `n`.
    pub fn prepare(
        engine: &Engine,
        n: u32,
        previous: Option<(u32, u32, Hash)>,
        at: (u64, Hash),
        key: u32,
        journal: Option<(JournalId, u64)>,
    ) -> Checkpoint {
        let mut pages = encode_pages(engine);
        let tables = engine.map.tables(&pages.written, &pages.sizes);
        let k = engine.map.next_map();
        let mut builder = new_map(engine, k);
        let location: Location = builder.tables(&tables);
        pages.objects.push(builder.finish());
        let root = Root {
            epoch: engine.epoch,
            attach: engine.attach,
            n,
            geometry: engine.geometry,
            seq: at.0,
            header: at.1,
            next_k: engine.map.next_k(),
            previous,
            tables: location,
            key,
            journal,
        };
        let name = names::root(engine.epoch, n);
        let body = root.encode(engine.home.volume, &engine.home.cipher, &name);
        Checkpoint {
            objects: pages.objects,
            sizes: pages.sizes,
            written: pages.written,
            root,
            object: (name, body),
        }
    }

    /// The map objects are durable: their pages need not be kept in memory.
    pub fn commit(&mut self, engine: &Engine) {
        engine
            .map
            .written(std::mem::take(&mut self.written), &self.sizes);
    }
}

/// Deletes what no durable root needs, until the queue ends.
pub async fn delete(engine: Arc<Engine>, mut names: mpsc::UnboundedReceiver<Dead>) {
    while let Some(dead) = names.recv().await {
        let dead = match dead {
            Dead::Names(names) => names,
            Dead::Done(done) => {
                let _ = done.send(());
                continue;
            }
        };
        for some in dead.chunks(DELETE_TOGETHER) {
            while let Err(error) = delete_some(&engine, some).await {
                tracing::warn!(
                    "objects that are no longer needed could not be deleted, it is tried again: {error}"
                );
                sleep(PAUSE).await;
            }
            if engine.check().is_err() {
                return;
            }
        }
    }
}

async fn delete_some(engine: &Engine, names: &[String]) -> Result<(), StoreError> {
    if !engine.look().await? {
        return Ok(());
    }
    engine.store.delete_many(names).await?;
    engine
        .counters
        .deleted
        .fetch_add(names.len() as u64, Ordering::Relaxed);
    Ok(())
}

/// Creates objects, one after the other; a failure ends it.
pub async fn put_once(
    store: &dyn ObjectStore,
    objects: &[(String, Bytes)],
) -> Result<(), LogError> {
    for (name, body) in objects {
        if let Created::Taken(_) = decide::create(store, name, body).await? {
            return Err(LogError::Fenced(format!(
                "{name} was written by somebody else"
            )));
        }
    }
    Ok(())
}

/// Writes changed pages if they take too much memory; a failure ends it.
pub async fn spill_once(store: &dyn ObjectStore, engine: &Engine) -> Result<(), LogError> {
    if engine.map.changed_cost() > engine.map.memory_limit() / 2 {
        let pages = encode_pages(engine);
        put_once(store, &pages.objects).await?;
        engine.map.written(pages.written, &pages.sizes);
    }
    Ok(())
}
