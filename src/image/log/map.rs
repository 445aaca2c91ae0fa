//! The map: device blocks → places in segments.
//!
//! Knows: pages, which of them changed, where the unchanged ones are stored; what
//! each edit does to the [space](super::space). Does not know: when a root is
//! written, what a frame holds.
//!
//! | a page is | it lies in | it may be dropped |
//! |---|---|---|
//! | empty | nowhere | |
//! | stored | a map object, and perhaps the cache | yes |
//! | changed | `changed` | once it was written to a new map object |
//!
//! Only one task edits (the [applier](super::applier)); any number look up. The
//! cache's key is the place where a page is stored, whose content never changes: so
//! a page that is loaded while it is edited cannot come back as it was.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::edits::{Edit, edits};
use super::error::LogError;
use super::format::entry::{Entry, LOST};
use super::format::root::Location;
use super::format::segment::Header;
use super::format::tables::{Era, MapRow, PageRow, Tables, era_of_map, era_of_segment};
use super::format::{BLOCK, Damage, PAGE_BLOCKS, names, page};
use super::page::Page;
use super::place::Home;
use super::space::Space;
use crate::store::ObjectStore;

/// Writes changed pages, so that they can be dropped.
pub type Spill<'a> = &'a (dyn Fn() -> BoxFuture<'a, Result<(), LogError>> + Send + Sync);

/// Pages that are fetched together while a segment is applied.
const PAGES_TOGETHER: usize = 16;

/// The whole map.
#[derive(Debug)]
pub struct Map {
    home: Home,
    inner: Mutex<Inner>,
    cache: PageCache,
    memory: u64,
}

/// Without a random seed: what is dropped is the same in each run of a test.
type PageCache = Cache<Location, Arc<Page>, Weigh, BuildHasherDefault<DefaultHasher>>;

#[derive(Debug, Clone)]
struct Weigh;

impl Weighter<Location, Arc<Page>> for Weigh {
    fn weight(&self, _: &Location, page: &Arc<Page>) -> u64 {
        page.cost() as u64
    }
}

#[derive(Debug)]
struct Inner {
    /// Where the pages that are not empty are stored. One that changed since is in
    /// `changed`, too.
    directory: HashMap<u64, Location>,
    changed: BTreeMap<u64, Arc<Page>>,
    /// Memory of `changed`, in bytes.
    changed_cost: u64,
    space: Space,
    eras: Vec<Era>,
    maps: BTreeMap<u64, MapObject>,
    next_k: u64,
    /// Pages that a segment was to edit and that were damaged.
    ruined: Vec<(u64, LogError)>,
}

/// A map object that was written and not deleted.
#[derive(Debug, Default, Clone, Copy)]
struct MapObject {
    stored: u64,
    live: u64,
}

/// What lies in a range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Nothing: it reads as zeros.
    Hole {
        /// The first block.
        start: u64,
        /// How many.
        blocks: u64,
    },
    /// A part of a frame.
    There {
        /// The first block.
        start: u64,
        /// Where; its `start` counts from its page's.
        entry: Entry,
    },
}

/// Pages that were written to map objects, and where.
#[derive(Debug, Default)]
pub struct Written(pub Vec<(u64, Arc<Page>, Option<Location>)>);

/// A cache whose shards each hold some of the largest pages: a shard never keeps what
/// is heavier than itself.
fn page_cache(bytes: u64) -> PageCache {
    let shards = (bytes >> 20).clamp(1, 16);
    let options = quick_cache::OptionsBuilder::new()
        .shards(shards as usize)
        .estimated_items_capacity((bytes / 4096) as usize + 32 * shards as usize)
        .weight_capacity(bytes)
        .build()
        .unwrap_or_else(|error| unreachable!("cache options are all set: {error}"));
    let (hashing, lifecycle) = (Default::default(), Default::default());
    Cache::with_options(options, Weigh, hashing, lifecycle)
}

impl Map {
    /// The map that these tables describe, of this volume; its pages take at most
    /// `memory` bytes together, half of it for those that changed.
    pub fn new(home: Home, tables: Tables, next_k: u64, memory: u64) -> Map {
        let mut maps: BTreeMap<u64, MapObject> = BTreeMap::new();
        for row in &tables.maps {
            maps.entry(row.k).or_default().stored = row.stored;
        }
        for row in &tables.pages {
            maps.entry(row.location.k).or_default().live += u64::from(row.location.length);
        }
        let directory = tables.pages.iter().map(|row| (row.page, row.location));
        let inner = Inner {
            directory: directory.collect(),
            changed: BTreeMap::new(),
            changed_cost: 0,
            space: Space::from_rows(&tables.segments),
            eras: tables.eras,
            maps,
            next_k,
            ruined: Vec::new(),
        };
        Map {
            home,
            inner: Mutex::new(inner),
            memory,
            cache: page_cache(memory / 2),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies in the blocks from `start` on, if no page has to be fetched for it;
    /// else the page that is missing, and where it is stored.
    pub fn peek(
        &self,
        start: u64,
        blocks: u64,
        found: &mut Vec<Below>,
    ) -> Result<(), (u64, Location)> {
        let (mut at, end) = (start, start + blocks);
        while at < end {
            let (number, base) = (at / PAGE_BLOCKS, at - at % PAGE_BLOCKS);
            let until = (base + PAGE_BLOCKS).min(end);
            match self.resident(number) {
                Resident::Empty => push_hole(found, at, until),
                Resident::Here(page) => look(&page, base, at, until, found),
                Resident::Stored(location) => match self.cache.get(&location) {
                    Some(page) => look(&page, base, at, until, found),
                    None => return Err((number, location)),
                },
            }
            at = until;
        }
        Ok(())
    }

    /// What lies in the blocks from `start` on; fetches what it must.
    pub async fn lookup(
        &self,
        store: &dyn ObjectStore,
        start: u64,
        blocks: u64,
    ) -> Result<Vec<Below>, LogError> {
        let mut found = Vec::new();
        let (mut at, end) = (start, start + blocks);
        while at < end {
            let (number, base) = (at / PAGE_BLOCKS, at - at % PAGE_BLOCKS);
            let until = (base + PAGE_BLOCKS).min(end);
            let page = self.page(store, number).await?;
            look(&page, base, at, until, &mut found);
            at = until;
        }
        Ok(found)
    }

    fn resident(&self, number: u64) -> Resident {
        let inner = self.lock();
        if let Some(page) = inner.changed.get(&number) {
            return Resident::Here(Arc::clone(page));
        }
        match inner.directory.get(&number) {
            Some(location) => Resident::Stored(*location),
            None => Resident::Empty,
        }
    }

    /// A page as it is now.
    pub async fn page(&self, store: &dyn ObjectStore, number: u64) -> Result<Arc<Page>, LogError> {
        match self.resident(number) {
            Resident::Empty => Ok(Arc::default()),
            Resident::Here(page) => Ok(page),
            Resident::Stored(location) => match self.fetch(store, number, location).await {
                Ok(page) => Ok(page),
                // Moved meanwhile, and the old object deleted?
                Err(error) => match self.resident(number) {
                    Resident::Stored(now) if now == location => Err(error),
                    _ => Box::pin(self.page(store, number)).await,
                },
            },
        }
    }

    async fn fetch(
        &self,
        store: &dyn ObjectStore,
        number: u64,
        location: Location,
    ) -> Result<Arc<Page>, LogError> {
        let load = async {
            let name = self.map_name(location.k);
            let load = |boxed| {
                let entries = page::decode(
                    &boxed,
                    &self.home.cipher,
                    self.home.volume,
                    &name,
                    location.offset,
                    number,
                )?;
                Ok(Page::from_entries(entries))
            };
            let (offset, length) = (u64::from(location.offset), u64::from(location.length));
            let page = super::place::read_box(store, &name, offset, length, load).await?;
            Ok(Arc::new(page))
        };
        self.cache.get_or_insert_async(&location, load).await
    }

    /// Applies a segment. `seq` numbers only go up; after a failure the same one is
    /// applied again, which does no harm to what was done already.
    ///
    /// `spill` is called whenever changed pages take too much memory: it has them
    /// written. What it writes may be the state in the midst of the segment; no root
    /// may name it before this has returned.
    pub async fn apply(
        &self,
        store: &dyn ObjectStore,
        header: &Header,
        stored: u64,
        spill: Spill<'_>,
    ) -> Result<(), LogError> {
        let blocks: u64 = header.frames.iter().map(|frame| frame.blocks).sum();
        {
            let mut inner = self.lock();
            if !inner.space.knows(header.seq) {
                inner.space.add(header.seq, stored, blocks as u32);
            }
        }
        let edits = {
            let inner = self.lock();
            edits(header, |number| {
                inner.directory.contains_key(&number) || inner.changed.contains_key(&number)
            })
        };
        let edits: Vec<(u64, Vec<Edit>)> = edits.into_iter().collect();
        for some in edits.chunks(PAGES_TOGETHER) {
            let pages = some.iter().map(|(number, _)| self.page(store, *number));
            let pages = futures_util::future::join_all(pages).await;
            for ((number, edits), page) in some.iter().zip(pages) {
                self.edit_all(*number, page, edits, header.seq)?;
            }
            if self.changed_cost() > self.memory / 2 {
                spill().await?;
            }
        }
        Ok(())
    }

    /// Edits a page as a segment says.
    fn edit_all(
        &self,
        number: u64,
        page: Result<Arc<Page>, LogError>,
        edits: &[Edit],
        seq: u64,
    ) -> Result<(), LogError> {
        let page = match page {
            Ok(page) => page,
            // Nothing can bring it back: what it alone knew is lost, and the rest
            // of the device goes on.
            Err(error @ LogError::Damaged { .. }) if !is_unknown(&error) => {
                tracing::error!(
                    "{} MiB of the device from {} on are lost, except what is written \
                         from now on: page {number} of the map: {error}",
                    (PAGE_BLOCKS * BLOCK) >> 20,
                    number * PAGE_BLOCKS * BLOCK
                );
                self.lock().ruined.push((number, error));
                let mut lost = Page::default();
                lost.lose(0, PAGE_BLOCKS, |_| {});
                Arc::new(lost)
            }
            Err(error) => return Err(error),
        };
        self.edit(number, page, |page, space| {
            for edit in edits {
                edit.apply(page, space, seq);
            }
        });
        Ok(())
    }

    fn edit(&self, number: u64, page: Arc<Page>, change: impl FnOnce(&mut Page, &mut Space)) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let old = inner.changed.remove(&number);
        inner.changed_cost -= old.as_ref().map_or(0, |page| page.cost() as u64);
        let mut page = old.unwrap_or(page);
        change(Arc::make_mut(&mut page), &mut inner.space);
        if page.is_empty() {
            if !inner.directory.contains_key(&number) {
                return;
            }
            // Not what it takes to have been full.
            page = Arc::default();
        }
        inner.changed_cost += page.cost() as u64;
        inner.changed.insert(number, page);
    }

    /// The pages that were damaged when a segment was to edit them, and how: all of
    /// such a page is lost but what was written since.
    pub fn take_ruined(&self) -> Vec<(u64, LogError)> {
        std::mem::take(&mut self.lock().ruined)
    }

    /// Marks blocks as lost: reading them fails from now on. The device has `all`
    /// blocks.
    pub async fn lose(
        &self,
        store: &dyn ObjectStore,
        start: u64,
        blocks: u64,
        all: u64,
    ) -> Result<(), LogError> {
        let (mut at, end) = (start, start + blocks);
        while at < end {
            let (number, base) = (at / PAGE_BLOCKS, at - at % PAGE_BLOCKS);
            let until = (base + PAGE_BLOCKS).min(end);
            let page = match self.page(store, number).await {
                Ok(page) => page,
                // It is the page that is lost, and so is all of it.
                Err(LogError::Damaged { .. } | LogError::Missing { .. })
                    if at == base && until == (base + PAGE_BLOCKS).min(all) =>
                {
                    Arc::default()
                }
                Err(error) => return Err(error),
            };
            self.edit(number, page, |page, space| {
                page.lose(at - base, until - base, |old| {
                    space.release(old.seq(), old.blocks())
                });
            });
            at = until;
        }
        Ok(())
    }

    /// Counts anew how much of each segment is live.
    pub async fn recount(&self, store: &dyn ObjectStore) -> Result<(), LogError> {
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for number in self.numbers() {
            for entry in self.page(store, number).await?.entries() {
                *live.entry(entry.seq()).or_default() += entry.blocks();
            }
        }
        self.space(|space| space.recount(&live));
        Ok(())
    }

    /// Memory of changed pages, in bytes.
    pub fn changed_cost(&self) -> u64 {
        self.lock().changed_cost
    }

    /// Memory that pages may take, in bytes.
    pub fn memory_limit(&self) -> u64 {
        self.memory
    }

    /// Memory of pages, in bytes.
    pub fn memory(&self) -> u64 {
        self.changed_cost() + self.cache.weight()
    }

    /// The changed pages.
    pub fn changed(&self) -> Vec<(u64, Arc<Page>)> {
        let inner = self.lock();
        inner
            .changed
            .iter()
            .map(|(number, page)| (*number, Arc::clone(page)))
            .collect()
    }

    /// The changed pages were written there, in objects of these sizes.
    pub fn written(&self, written: Written, objects: &[(u64, u64)]) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        for &(k, stored) in objects {
            inner.maps.entry(k).or_default().stored = stored;
        }
        for (number, page, location) in written.0 {
            let old = match location {
                Some(location) => {
                    inner.maps.entry(location.k).or_default().live += u64::from(location.length);
                    self.cache.insert(location, Arc::clone(&page));
                    inner.directory.insert(number, location)
                }
                None => inner.directory.remove(&number),
            };
            if let Some(old) = old
                && let Some(object) = inner.maps.get_mut(&old.k)
            {
                object.live -= u64::from(old.length);
            }
            if let Some(page) = inner.changed.remove(&number) {
                inner.changed_cost -= page.cost() as u64;
            }
        }
    }

    /// A number for a new map object.
    pub fn next_map(&self) -> u64 {
        let mut inner = self.lock();
        inner.next_k += 1;
        inner.next_k - 1
    }

    /// The next map object's number.
    pub fn next_k(&self) -> u64 {
        self.lock().next_k
    }

    /// The tables of a root, once these pages are written to objects of these sizes;
    /// no other page is changed.
    pub fn tables(&self, written: &Written, objects: &[(u64, u64)]) -> Tables {
        let mut inner = self.lock();
        let inner = &mut *inner;
        prune(inner);
        let mut directory: BTreeMap<u64, Location> = inner
            .directory
            .iter()
            .map(|(&page, &location)| (page, location))
            .collect();
        for (page, _, location) in &written.0 {
            match location {
                Some(location) => directory.insert(*page, *location),
                None => directory.remove(page),
            };
        }
        let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
        let stored = |k: u64| {
            let new = objects.iter().find(|(object, _)| *object == k);
            let old = || inner.maps.get(&k).map_or(0, |object| object.stored);
            new.map_or_else(old, |(_, stored)| *stored)
        };
        for location in directory.values() {
            maps.entry(location.k).or_insert_with(|| stored(location.k));
        }
        Tables {
            eras: inner.eras.clone(),
            segments: inner.space.rows(),
            maps: maps
                .into_iter()
                .map(|(k, stored)| MapRow { k, stored })
                .collect(),
            pages: directory
                .into_iter()
                .map(|(page, location)| PageRow { page, location })
                .collect(),
        }
    }

    /// A new epoch's names begin with these numbers.
    pub fn begin_era(&self, era: Era) {
        self.lock().eras.push(era);
    }

    /// Forgets what neither the map nor the tables in map object `tables` need, and
    /// tells the names. A root that does not need them must be durable before they
    /// are deleted.
    pub fn take_dead(&self, tables: u64) -> Vec<String> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let dead = inner.space.take_dead();
        let mut names: Vec<String> = dead
            .iter()
            .filter_map(|seq| inner.segment_name(*seq))
            .collect();
        let maps: Vec<u64> = inner
            .maps
            .iter()
            .filter(|(k, object)| object.live == 0 && **k != tables)
            .map(|(k, _)| *k)
            .collect();
        for k in maps {
            inner.maps.remove(&k);
            names.extend(inner.map_name(k));
        }
        names
    }

    /// Pages in map objects of which little is still needed, so that writing them
    /// again frees the objects: where less than half of all is needed, the emptiest
    /// objects, at most `most` bytes of pages.
    pub fn scattered(&self, most: u64) -> Vec<u64> {
        let inner = self.lock();
        let (stored, live) = inner.maps.values().fold((0, 0), |(stored, live), object| {
            (stored + object.stored, live + object.live)
        });
        if stored < 2 * live + (1 << 20) {
            return Vec::new();
        }
        let mut objects: Vec<(u64, u64)> = inner
            .maps
            .iter()
            .filter(|(_, object)| object.live * 2 < object.stored && object.live > 0)
            .map(|(k, object)| (object.live, *k))
            .collect();
        objects.sort_unstable();
        let mut sum = 0;
        let chosen: std::collections::HashSet<u64> = objects
            .into_iter()
            .take_while(|(live, _)| {
                sum += live;
                sum <= most
            })
            .map(|(_, k)| k)
            .collect();
        let mut pages: Vec<u64> = inner
            .directory
            .iter()
            .filter(|(_, location)| chosen.contains(&location.k))
            .map(|(page, _)| *page)
            .collect();
        pages.sort_unstable();
        pages
    }

    /// Makes pages count as changed, so that they are written again.
    pub async fn touch(&self, store: &dyn ObjectStore, numbers: &[u64]) -> Result<(), LogError> {
        for &number in numbers {
            let page = self.page(store, number).await?;
            self.edit(number, page, |_, _| {});
        }
        Ok(())
    }

    /// Numbers of all pages that are not empty, ascending.
    pub fn numbers(&self) -> Vec<u64> {
        let inner = self.lock();
        let mut all: Vec<u64> = inner
            .directory
            .keys()
            .chain(inner.changed.keys())
            .copied()
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Does something with the segments' accounts.
    pub fn space<T>(&self, with: impl FnOnce(&mut Space) -> T) -> T {
        with(&mut self.lock().space)
    }

    /// The object of a segment.
    pub fn segment_name(&self, seq: u64) -> Option<String> {
        self.lock().segment_name(seq)
    }

    /// The object of a map object.
    pub fn map_name(&self, k: u64) -> String {
        self.lock()
            .map_name(k)
            .unwrap_or_else(|| format!("map object {k} of no era"))
    }

    /// Numbers of the map objects, and bytes stored in them.
    pub fn objects(&self) -> (Vec<u64>, u64) {
        let inner = self.lock();
        let stored = inner.maps.values().map(|object| object.stored).sum();
        (inner.maps.keys().copied().collect(), stored)
    }
}

enum Resident {
    Empty,
    Here(Arc<Page>),
    Stored(Location),
}

impl Inner {
    fn segment_name(&self, seq: u64) -> Option<String> {
        let era = era_of_segment(&self.eras, seq)?;
        Some(names::segment(era.epoch, era.attach, seq))
    }

    fn map_name(&self, k: u64) -> Option<String> {
        let era = era_of_map(&self.eras, k)?;
        Some(names::map(era.epoch, era.attach, k))
    }
}

/// Drops the eras, all but the last, from which nothing is left.
fn prune(inner: &mut Inner) {
    let (space, maps) = (&inner.space, &inner.maps);
    let ends: Vec<(u64, u64)> = inner
        .eras
        .iter()
        .skip(1)
        .map(|era| (era.first_seq, era.first_k))
        .collect();
    let mut at = 0;
    inner.eras.retain(|era| {
        let end = ends.get(at).copied();
        at += 1;
        match end {
            None => true,
            Some((seq, k)) => {
                space.any_in(era.first_seq..seq) || maps.range(era.first_k..k).next().is_some()
            }
        }
    });
}

fn look(page: &Page, base: u64, from: u64, to: u64, found: &mut Vec<Below>) {
    let mut at = from;
    for entry in page.within(from - base, to - base) {
        push_hole(found, at, base + entry.start());
        at = base + entry.end();
        found.push(Below::There {
            start: base + entry.start(),
            entry,
        });
    }
    push_hole(found, at, to);
}

fn push_hole(found: &mut Vec<Below>, from: u64, to: u64) {
    if from >= to {
        return;
    }
    match found.last_mut() {
        Some(Below::Hole { start, blocks }) if *start + *blocks == from => *blocks += to - from,
        _ => found.push(Below::Hole {
            start: from,
            blocks: to - from,
        }),
    }
}

/// The device's bytes of some blocks.
pub fn bytes(start: u64, blocks: u64) -> (u64, u64) {
    (start * BLOCK, blocks * BLOCK)
}

/// Whether a newer program may know better.
fn is_unknown(error: &LogError) -> bool {
    let damage = match error {
        LogError::Damaged { damage, .. } => damage,
        _ => return false,
    };
    matches!(damage, Damage::Unknown(_) | Damage::Foreign)
}

/// Whether an entry points at nothing that can be read.
pub fn is_lost(entry: Entry) -> bool {
    entry.seq() == LOST
}
