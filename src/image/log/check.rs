//! Reads everything that a volume needs, and says what is damaged.
//!
//! Knows: how to reach every object from the newest root. Does not know: how to mend
//! one; [`Log::give_up`](super::Log::give_up) marks what is lost, so that reading it
//! fails at once, and the rest goes on.
//!
//! Nothing is changed. Nobody may write to the volume meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::error::LogError;
use super::format::keys::Passphrase;
use super::format::names::{self, Name};
use super::format::segment::Header;
use super::format::{BLOCK, Damage, MAX_OBJECT, PAGE_BLOCKS, frame};
use super::map::{Below, Map, is_lost};
use super::place::{Home, read_box, read_object};
use super::recovery;
use crate::store::ObjectStore;

/// Segments that are read at the same time; each takes some 8 MiB.
const PARALLEL: usize = 4;
/// Memory for pages, in bytes.
const MEMORY: u64 = 64 << 20;
/// Names in one listing.
const TOGETHER: usize = 10_000;
/// No more ranges than this are told of one object: more than a segment has frames, and
/// a page blocks.
const MOST_RANGES: usize = 1 << 16;

/// What a check found.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Report {
    /// Segments that were read.
    pub segments: u64,
    /// Frames that were verified.
    pub frames: u64,
    /// Pages of the map that were read.
    pub pages: u64,
    /// Bytes of the device that hold data.
    pub live_bytes: u64,
    /// Bytes of the segments.
    pub stored_bytes: u64,
    /// Objects that nothing needs; the next attachment deletes them.
    pub orphans: u64,
    /// Blocks that an earlier repair gave up, in bytes.
    pub lost_bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What of the device cannot be read for it: offsets and lengths in bytes,
    /// ascending; none if the device does not need the damaged
    /// part.
    pub ranges: Vec<(u64, u64)>,
}

impl Report {
    fn add(&mut self, object: String, problem: impl ToString, ranges: Vec<(u64, u64)>) {
        let problem = problem.to_string();
        self.findings.push(Finding {
            object,
            problem,
            ranges,
        });
    }
}

/// What is known while it is checked.
struct Checker<'a> {
    store: &'a dyn ObjectStore,
    home: Home,
    map: Arc<Map>,
    size: u64,
    report: Report,
}

/// Checks a volume. `progress` hears how many of how many segments are done.
///
/// # Errors
/// Where not even the newest root can be used; whatever else is wrong is in the
/// report.
pub async fn check(
    store: &dyn ObjectStore,
    passphrase: Option<&Passphrase>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, LogError> {
    let found = recovery::find(store, passphrase).await?;
    let size = found.root.geometry.size;
    let mut report = Report::default();
    claims(store, found.highest, &mut report).await?;
    lost(store, &found, &mut report).await?;
    let root = &found.root;
    let tables = match recovery::read_tables(store, &found.home, root).await {
        Ok(tables) => tables,
        Err(LogError::Damaged { object, damage }) => {
            report.add(object, damage, vec![(0, size)]);
            return Ok(report);
        }
        Err(LogError::Missing { object }) => {
            report.add(object, "it is not there", vec![(0, size)]);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let map = Arc::new(Map::new(found.home.clone(), tables, root.next_k, MEMORY));
    let mut checker = Checker {
        store,
        home: found.home.clone(),
        map,
        size,
        report,
    };
    checker.later(&found).await?;
    let counts = checker.pages().await?;
    checker.segments(counts, &mut progress).await?;
    checker.orphans(&found).await?;
    Ok(checker.report)
}

/// The claims: who attached when. A gap would let numbers be used again.
async fn claims(
    store: &dyn ObjectStore,
    highest: u32,
    report: &mut Report,
) -> Result<(), LogError> {
    let claims = stream::iter(1..=highest).map(|epoch| async move {
        let name = names::epoch(epoch);
        let read = read_object(store, &name, |body| {
            super::format::claim::Claim::decode(&name, &body).map(drop)
        })
        .await;
        (name, read)
    });
    let mut claims = std::pin::pin!(claims.buffered(16));
    while let Some((name, read)) = claims.next().await {
        match read {
            Ok(()) => {}
            Err(LogError::Damaged { damage, .. }) => report.add(name, damage, Vec::new()),
            Err(LogError::Missing { .. }) => report.add(name, "it is not there", Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The claim and the pins that later objects tell of: without them the volume is seen
/// as it was before.
async fn lost(
    store: &dyn ObjectStore,
    found: &recovery::Found,
    report: &mut Report,
) -> Result<(), LogError> {
    let all = vec![(0, found.root.geometry.size)];
    if let Err(LogError::Damaged {
        object,
        damage: damage @ Damage::Foreign,
    }) = recovery::read_claims(store, found).await
    {
        report.add(object, damage, Vec::new());
    }
    let next = found.highest + 1;
    let pin = recovery::read(store, &names::root(next, 0)).await?;
    if pin.is_some() || recovery::was_pinned(store, next).await? {
        report.add(names::epoch(next), "it is not there", all.clone());
    }
    for epoch in found.root.epoch + 1..next {
        let pin = names::root(epoch, 0);
        if recovery::read(store, &pin).await?.is_none()
            && recovery::was_pinned(store, epoch).await?
        {
            report.add(pin, "it is not there", all.clone());
        }
    }
    Ok(())
}

impl Checker<'_> {
    /// Segments after the root: attaching would replay them.
    async fn later(&mut self, found: &recovery::Found) -> Result<(), LogError> {
        let (root, mut previous) = (&found.root, found.root.header);
        for seq in root.seq + 1.. {
            let name = names::segment(root.epoch, root.attach, seq);
            let header = match recovery::probe(self.store, &self.home, &name).await {
                Ok(Some((header, hash))) if header.previous == previous => {
                    previous = hash;
                    header
                }
                Ok(Some(_)) => {
                    self.report
                        .add(name, "it does not follow the segment before it", Vec::new());
                    break;
                }
                Ok(None) => break,
                Err(LogError::Damaged { object, damage }) => {
                    self.report.add(object, damage, Vec::new());
                    break;
                }
                Err(error) => return Err(error),
            };
            let stored = header.object_length().unwrap_or(256);
            match self
                .map
                .apply(self.store, &header, stored, &|| Box::pin(async { Ok(()) }))
                .await
            {
                Ok(()) | Err(LogError::Damaged { .. } | LogError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// All pages: how many blocks they need of each segment.
    async fn pages(&mut self) -> Result<BTreeMap<u64, u64>, LogError> {
        for (number, error) in self.map.take_ruined() {
            if let LogError::Damaged { object, damage } = error {
                let ranges = vec![self.range(number * PAGE_BLOCKS, PAGE_BLOCKS)];
                let problem = format!("page {number} of the map: {damage}");
                self.report.add(object, problem, ranges);
            }
        }
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for number in self.map.numbers() {
            let page = match self.map.page(self.store, number).await {
                Ok(page) => page,
                Err(LogError::Damaged { object, damage }) => {
                    let ranges = vec![self.range(number * PAGE_BLOCKS, PAGE_BLOCKS)];
                    self.report.add(
                        object,
                        format!("page {number} of the map: {damage}"),
                        ranges,
                    );
                    continue;
                }
                Err(LogError::Missing { object }) => {
                    let ranges = vec![self.range(number * PAGE_BLOCKS, PAGE_BLOCKS)];
                    self.report.add(
                        object,
                        format!("page {number} of the map: it is not there"),
                        ranges,
                    );
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.report.pages += 1;
            for entry in page.entries() {
                match is_lost(*entry) {
                    true => self.report.lost_bytes += entry.blocks() * BLOCK,
                    false => *counts.entry(entry.seq()).or_default() += entry.blocks(),
                }
            }
        }
        Ok(counts)
    }

    /// All segments that the pages need.
    async fn segments(
        &mut self,
        counts: BTreeMap<u64, u64>,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<(), LogError> {
        let total = counts.len() as u64;
        let (store, home, map) = (self.store, self.home.clone(), Arc::clone(&self.map));
        let checks = stream::iter(counts).map(|(seq, needed)| {
            let (home, map) = (&home, &map);
            async move { (seq, segment(store, home, map, seq, needed).await) }
        });
        let mut checks = std::pin::pin!(checks.buffered(PARALLEL));
        let mut unusable = BTreeMap::new();
        while let Some((seq, checked)) = checks.next().await {
            let checked = checked?;
            self.report.segments += 1;
            self.report.frames += checked.frames;
            self.report.stored_bytes += checked.stored;
            self.report.live_bytes += checked.live * BLOCK;
            for (problem, ranges) in checked.bad_frames {
                let ranges = ranges
                    .into_iter()
                    .map(|(start, blocks)| self.range(start, blocks))
                    .collect();
                self.report.add(checked.name.clone(), problem, ranges);
            }
            if let Some(problem) = checked.unusable {
                unusable.insert(seq, (checked.name, problem));
            }
            progress(self.report.segments, total);
        }
        self.unusable(unusable).await
    }

    /// Segments of which nothing can be used: what the pages need of them is gone.
    async fn unusable(
        &mut self,
        segments: BTreeMap<u64, (String, String)>,
    ) -> Result<(), LogError> {
        if segments.is_empty() {
            return Ok(());
        }
        let mut ranges: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for number in self.map.numbers() {
            let Ok(page) = self.map.page(self.store, number).await else {
                continue;
            };
            for entry in page.entries() {
                if segments.contains_key(&entry.seq()) {
                    let range = self.range(number * PAGE_BLOCKS + entry.start(), entry.blocks());
                    push(ranges.entry(entry.seq()).or_default(), range);
                }
            }
        }
        for (seq, (name, problem)) in segments {
            let ranges = ranges.remove(&seq).unwrap_or_default();
            self.report.add(name, problem, ranges);
        }
        Ok(())
    }

    /// What lies in the container and nothing needs. A listing may be incomplete.
    async fn orphans(&mut self, found: &recovery::Found) -> Result<(), LogError> {
        let root = &found.root;
        let mut maps: BTreeSet<String> = self
            .map
            .objects()
            .0
            .into_iter()
            .map(|k| self.map.map_name(k))
            .collect();
        maps.insert(names::map(root.epoch, root.attach, root.tables.k));
        let mut after = String::new();
        loop {
            let listed = self.store.list(&after, "", TOGETHER).await?;
            let full = listed.len() == TOGETHER;
            after = listed
                .last()
                .map_or(String::new(), |last| last.name.clone());
            for object in listed {
                let orphan = match Name::parse(&object.name) {
                    Some(Name::Segment { seq, .. }) => {
                        object.size > super::sweep::STOP
                            && !(self.map.segment_name(seq).as_deref() == Some(&object.name)
                                && self.map.space(|space| space.knows(seq)))
                    }
                    Some(Name::Map { .. }) => !maps.contains(&object.name),
                    _ => false,
                };
                self.report.orphans += u64::from(orphan);
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Bytes of the device.
    fn range(&self, start: u64, blocks: u64) -> (u64, u64) {
        let offset = start * BLOCK;
        (
            offset,
            (blocks * BLOCK).min(self.size.saturating_sub(offset)),
        )
    }
}

/// What came of one segment.
struct Checked {
    name: String,
    frames: u64,
    stored: u64,
    live: u64,
    /// What is wrong with a frame, and which blocks need it.
    bad_frames: Vec<(String, Vec<(u64, u64)>)>,
    /// Why nothing of it can be used.
    unusable: Option<String>,
}

async fn segment(
    store: &dyn ObjectStore,
    home: &Home,
    map: &Map,
    seq: u64,
    needed: u64,
) -> Result<Checked, LogError> {
    let name = map
        .segment_name(seq)
        .unwrap_or_else(|| format!("segment {seq} of no era"));
    let mut checked = Checked {
        name,
        frames: 0,
        stored: 0,
        live: 0,
        bad_frames: Vec::new(),
        unusable: None,
    };
    let name = checked.name.clone();
    let decode = |body: Bytes| {
        let (header, _) = Header::decode(&name, home.volume, &home.cipher, &body)?;
        Ok((header, body))
    };
    let mut read = read_object(store, &name, decode).await;
    if let Err(LogError::Damaged { .. }) = read {
        // The whole does not match its checksum; most of its frames may.
        read = read_box(store, &name, 0, MAX_OBJECT, decode).await;
    }
    let (header, body) = match read {
        Ok(read) => read,
        Err(LogError::Damaged { damage, .. }) => {
            checked.unusable = Some(damage.to_string());
            return Ok(checked);
        }
        Err(LogError::Missing { .. }) => {
            checked.unusable = Some("it is not there, although the volume needs it".to_owned());
            return Ok(checked);
        }
        Err(error) => return Err(error),
    };
    checked.stored = body.len() as u64;
    for info in &header.frames {
        checked.frames += 1;
        let mut live = Vec::new();
        // A page that cannot be read was told of already.
        let below = match map.lookup(store, info.start, info.blocks).await {
            Ok(below) => below,
            Err(LogError::Damaged { .. } | LogError::Missing { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        for below in below {
            if let Below::There { start, entry } = below
                && entry.seq() == seq
                && entry.offset() == info.offset
            {
                let fits = entry.stored() == info.stored
                    && start.checked_sub(entry.skip()) == Some(info.start);
                if !fits {
                    checked.bad_frames.push((
                        "the map does not fit its frames".to_owned(),
                        vec![(start, entry.blocks())],
                    ));
                }
                checked.live += entry.blocks();
                push(&mut live, (start, entry.blocks()));
            }
        }
        let open = |boxed: Bytes| {
            frame::open(
                &home.cipher,
                home.volume,
                &name,
                info.offset,
                info.start,
                &boxed,
            )
        };
        let end = (info.offset as usize + info.stored as usize).min(body.len());
        let boxed = body.slice((info.offset as usize).min(end)..end);
        if matches!(open(boxed), Ok(content) if content.len() as u64 == info.blocks * BLOCK) {
            continue;
        }
        // Another replica may be whole.
        let again = read_box(
            store,
            &name,
            u64::from(info.offset),
            u64::from(info.stored),
            open,
        )
        .await;
        match again {
            Ok(_) => {}
            Err(LogError::Damaged { damage, .. }) => {
                checked
                    .bad_frames
                    .push((format!("the frame at byte {}: {damage}", info.offset), live));
            }
            Err(LogError::Missing { .. }) => {
                checked.bad_frames.push((
                    format!("the frame at byte {}: it is not there", info.offset),
                    live,
                ));
            }
            Err(error) => return Err(error),
        }
    }
    if checked.live != needed {
        checked.unusable = Some(format!(
            "the map needs {needed} blocks of it, it has {} of them",
            checked.live
        ));
    }
    Ok(checked)
}

/// Adds a range, joined with the last if it follows it.
fn push(ranges: &mut Vec<(u64, u64)>, range: (u64, u64)) {
    if let Some(last) = ranges.last_mut()
        && last.0 + last.1 == range.0
    {
        last.1 += range.1;
    } else if ranges.len() < MOST_RANGES {
        ranges.push(range);
    }
}
