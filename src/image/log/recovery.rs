//! Finding a volume in its container, and taking it over.
//!
//! Knows: the order in which names are probed, stopped and created. Does not know:
//! anything of an open volume.
//!
//! 1. The highest epoch, the newest pin below it, that epoch's newest root. Nothing
//!    is changed: a wrong passphrase or an unknown version ends it here.
//! 2. The claim of the next epoch, and the wait for the leases before it
//!    ([`lease`](super::lease)).
//! 3. Absences are made true, in this order: the pin of every unpinned epoch above
//!    the newest pin, that epoch's next root, the first absent segment after it.
//! 4. What was found and is not known to be durable is written again, under the new
//!    epoch's names.
//! 5. The pin of the new epoch. Only now is anything served.
//!
//! | sequence of events | what closes it |
//! |---|---|
//! | a 404 from a server that was down while the object was stored | no absence counts before our own stop was stored at the name; its condition meets a server that has the object, and then the object is read |
//! | the last writer lives: it stores another segment or root while we look | its name has our stop, or we see it; what it stores later has names that nobody reads |
//! | the last segment lies on one server only; it is served to us, then that server dies | it is not known to be durable, so it was written again before the pin |
//! | we die before the pin | our epoch is unpinned, so the next one begins where we began and finds the same: our stops only keep absent what was absent |
//! | a pin is lost, on all servers | a later root or a release of its epoch tells that it was there: attaching fails rather than to go back before it. An epoch that left neither looks as if it had ended before its pin |
//! | two take the volume over at once | the claims have different numbers; the higher one stops the lower one's pin, or goes on from it, and then the lower one meets a stop with its next segment |
//! | a segment of another volume or attachment under this one's name | its header does not open there, or does not name the hash of the one before |
//! | a segment in the middle cannot be found, a later one says that it is durable | it was stored, so the servers that have it are out of reach: attaching fails rather than to go back before it |

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::time::{Duration, sleep};

use super::Who;
use super::applier::{Checkpoint, Last, MULTIPLE, put_once, spill_once};
use super::decide::{self, Created};
use super::engine::Engine;
use super::error::LogError;
use super::format::claim::Claim;
use super::format::keys::{self, DataKey, KeyError, Passphrase};
use super::format::root::{self, Root, hash};
use super::format::seal::{Cipher, Prelude};
use super::format::segment::{Builder, Built, HEADER_GUESS, Header, Plan};
use super::format::tables::{Era, Tables};
use super::format::{
    AttachId, BLOCK, Damage, Hash, JOURNAL_ENDED, JournalId, VolumeId, frame, names,
};
use super::map::Map;
use super::place::{Home, read_box, read_object};
use super::writer::WINDOW;
use crate::store::{ErrorKind, ObjectStore, StoreError};

/// Headers that are fetched at the same time.
const PARALLEL: usize = 16;
/// How often a durable segment that cannot be found is looked for.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(400);
/// The highest number of an epoch or a root.
const LAST: u32 = u32::MAX - 1;

/// A root, and what it takes to use it.
#[derive(Debug)]
pub struct Found {
    /// The highest epoch that was claimed.
    pub highest: u32,
    /// Opens the volume's boxes.
    pub home: Home,
    /// The key that the passphrase opened.
    pub data_key: Option<DataKey>,
    /// The newest root of the newest pinned epoch.
    pub root: Root,
    /// The hash of its object.
    pub hash: Hash,
}

/// The object, or `None` where there seems to be none.
pub async fn read(store: &dyn ObjectStore, name: &str) -> Result<Option<Bytes>, StoreError> {
    match store.get(name).await {
        Ok(body) => Ok(Some(body)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The object, unless it is a stop.
async fn read_unless_stop(store: &dyn ObjectStore, name: &str) -> Result<Option<Bytes>, LogError> {
    match read(store, name).await? {
        Some(body) if !decide::is_stop(name, &body)? => Ok(Some(body)),
        _ => Ok(None),
    }
}

/// The last number from `first` (which is there) for which `there` says yes, if it
/// says no of everything beyond it: by doubling steps, then by halving.
async fn last_of<F>(first: u32, step: u32, mut there: impl FnMut(u32) -> F) -> Result<u32, LogError>
where
    F: Future<Output = Result<bool, LogError>>,
{
    let (mut low, mut stride) = (first, step);
    let mut high = loop {
        let next = low.saturating_add(stride).min(LAST);
        if next == low || !there(next).await? {
            break next;
        }
        low = next;
        stride = stride.saturating_mul(2);
    };
    while high - low > step {
        let middle = low + (high - low) / step / 2 * step;
        match there(middle).await? {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(low)
}

/// The highest epoch that seems to be claimed; 0 if none is. A claim whose sender died
/// may lie on one server only, and come and go: one that cannot be found is looked past.
pub async fn highest_epoch(store: &dyn ObjectStore) -> Result<u32, LogError> {
    let there = |epoch| async move {
        Ok::<_, LogError>(read(store, &names::epoch(epoch)).await?.is_some())
    };
    let mut from = 0;
    loop {
        let highest = last_of(from, 1, there).await?;
        let beyond = highest.saturating_add(2).min(LAST);
        if beyond <= highest || !there(beyond).await? {
            return Ok(highest);
        }
        from = beyond;
    }
}

/// The newest pin that seems to be there, at or below this epoch.
async fn newest_pin(store: &dyn ObjectStore, highest: u32) -> Result<Option<u32>, LogError> {
    for epoch in (1..=highest).rev() {
        if read_unless_stop(store, &names::root(epoch, 0))
            .await?
            .is_some()
        {
            return Ok(Some(epoch));
        }
    }
    Ok(None)
}

/// The highest epoch and the newest pin that seem to be there. That there is none at
/// all is only believed after some attempts.
async fn highest_and_pin(store: &dyn ObjectStore) -> Result<(u32, u32), LogError> {
    for attempt in 1..=ATTEMPTS {
        let highest = highest_epoch(store).await?;
        if let Some(pin) = newest_pin(store, highest).await? {
            return Ok((highest, pin));
        }
        sleep(PAUSE / 4 * attempt).await;
    }
    Err(LogError::NotAVolume)
}

/// The newest root of an epoch that seems to be there, from `from` on.
async fn newest_root(store: &dyn ObjectStore, epoch: u32, from: u32) -> Result<u32, LogError> {
    let there = |n| async move {
        Ok(read_unless_stop(store, &names::root(epoch, n))
            .await?
            .is_some())
    };
    let multiple = last_of(from - from % MULTIPLE, MULTIPLE, there).await?;
    last_of(multiple.max(from), 1, there).await
}

/// Finds the volume as it seems to be. Changes nothing.
pub async fn find(
    store: &dyn ObjectStore,
    passphrase: Option<&Passphrase>,
) -> Result<Found, LogError> {
    let (highest, pin) = highest_and_pin(store).await?;
    let n = newest_root(store, pin, 0).await?;
    open_root(store, highest, (pin, n), passphrase).await
}

/// Refuses the volume if a claim from the newest pin on is damaged, a newer program's,
/// or, at the pin, not of who pinned. One that cannot be found right now is met when
/// the next one is made.
pub async fn read_claims(
    store: &dyn ObjectStore,
    found: &Found,
) -> Result<Vec<Option<Claim>>, LogError> {
    let pinned = found.root.epoch;
    let claims = claims(store, pinned..found.highest + 1).await?;
    match &claims[..] {
        [Some(claim), ..] if claim.attach != found.root.attach => {
            let (name, root) = (names::epoch(pinned), names::root(pinned, found.root.n));
            let one_of = format!("{name} or {root}");
            Err(LogError::damaged(one_of, Damage::Foreign))
        }
        _ => Ok(claims),
    }
}

/// The claims of these epochs; `None` for one that cannot be found right now.
pub async fn claims(
    store: &dyn ObjectStore,
    epochs: Range<u32>,
) -> Result<Vec<Option<Claim>>, LogError> {
    let mut claims = Vec::new();
    for epoch in epochs {
        let name = names::epoch(epoch);
        match read_object(store, &name, |body| Claim::decode(&name, &body)).await {
            Ok((_, claim)) => claims.push(Some(claim)),
            Err(LogError::Missing { .. }) => claims.push(None),
            Err(error) => return Err(error),
        }
    }
    Ok(claims)
}

/// What tells in clear about the volume: whether it is encrypted, who claimed it last.
pub async fn look(store: &dyn ObjectStore) -> Result<(Prelude, Claim), LogError> {
    let (highest, pin) = highest_and_pin(store).await?;
    let name = names::root(pin, 0);
    let prelude = read_object(store, &name, |body| root::prelude(&body)).await?;
    let name = names::epoch(highest);
    let (_, claim) = read_object(store, &name, |body| Claim::decode(&name, &body)).await?;
    Ok((prelude, claim))
}

async fn open_root(
    store: &dyn ObjectStore,
    highest: u32,
    at: (u32, u32),
    passphrase: Option<&Passphrase>,
) -> Result<Found, LogError> {
    let name = names::root(at.0, at.1);
    let (prelude, body) =
        read_object(store, &name, |body| Ok((root::prelude(&body)?, body))).await?;
    let unlocked = unlock(store, &prelude, passphrase).await;
    let (cipher, data_key) = unlocked.map_err(|error| match error {
        // Two that do not belong together: either may be the stranger.
        LogError::Damaged {
            object,
            damage: Damage::Foreign,
        } => LogError::damaged(format!("{object} or {name}"), Damage::Foreign),
        other => other,
    })?;
    let (volume, root) = Root::decode(&name, &body, None, &cipher)
        .map_err(|damage| LogError::damaged(&name, damage))?;
    Ok(Found {
        highest,
        home: Home { volume, cipher },
        data_key,
        root,
        hash: hash(&body),
    })
}

/// What opens the volume's boxes.
async fn unlock(
    store: &dyn ObjectStore,
    prelude: &Prelude,
    passphrase: Option<&Passphrase>,
) -> Result<(Cipher, Option<DataKey>), LogError> {
    let passphrase = match (prelude.sealed, passphrase) {
        (false, None) => return Ok((Cipher::Plain, None)),
        (false, Some(_)) => return Err(LogError::NotEncrypted),
        (true, None) => return Err(LogError::PassphraseNeeded),
        (true, Some(passphrase)) => passphrase,
    };
    let name = names::key(prelude.key);
    let body = read_object(store, &name, Ok).await?;
    match keys::unwrap(&name, prelude.volume, &body, passphrase) {
        Ok(key) => Ok((key.cipher(prelude.volume), Some(key))),
        Err(KeyError::Wrong) => Err(LogError::WrongPassphrase),
        Err(KeyError::Damage(damage)) => Err(LogError::damaged(name, damage)),
    }
}

/// Claims the first epoch above `highest` that nobody claimed, with a lease of so many
/// seconds, and these flags.
///
/// # Errors
/// [`LogError::Superseded`]: somebody claims at the same time, and is first.
pub async fn claim(
    store: &dyn ObjectStore,
    volume: VolumeId,
    highest: u32,
    who: &Who,
    lease: u32,
    flags: u64,
) -> Result<u32, LogError> {
    for epoch in highest + 1..LAST {
        let claim = Claim {
            epoch,
            attach: who.attach,
            host: who.host.clone(),
            unix_seconds: who.unix_seconds,
            flags,
            lease: Some(lease),
        };
        let name = names::epoch(epoch);
        if read(store, &names::root(epoch, 0)).await?.is_some() {
            // Somebody was quicker; or the claim was lost, and the number must not be
            // used again.
            read_object(store, &name, Ok).await?;
            continue;
        }
        match decide::create_and_look(store, &name, &claim.encode(volume, &name)).await? {
            Created::Ours => return Ok(epoch),
            Created::Taken(other) => {
                let next = read(store, &names::epoch(epoch + 1)).await?;
                let pin = read(store, &names::root(epoch, 0)).await?;
                if next.is_none() && pin.is_none() {
                    let (_, claim) = Claim::decode(&name, &other)
                        .map_err(|damage| LogError::damaged(&name, damage))?;
                    return Err(LogError::Superseded(Box::new(claim)));
                }
            }
        }
    }
    Err(LogError::Fenced("all epochs are used up".to_owned()))
}

/// Whether the claim is still ours: of two that made it at once, the later one stays.
pub async fn is_ours(store: &dyn ObjectStore, epoch: u32, who: &Who) -> Result<(), LogError> {
    let name = names::epoch(epoch);
    let (_, claim) = read_object(store, &name, |body| Claim::decode(&name, &body)).await?;
    match claim.attach == who.attach {
        true => Ok(()),
        false => Err(LogError::Superseded(Box::new(claim))),
    }
}

/// Keeps whoever has an older volume in the container from writing another root: it
/// is replaced.
pub async fn stop_older(
    store: &dyn ObjectStore,
    volume: VolumeId,
    by: (u32, AttachId),
) -> Result<(), LogError> {
    for epoch in (1..by.0).rev() {
        if decide::stop(store, volume, by, &names::root(epoch, 0))
            .await?
            .is_none()
        {
            continue;
        }
        let mut n = 0;
        loop {
            n = newest_root(store, epoch, n).await?;
            let next = names::root(epoch, n + 1);
            if decide::stop(store, volume, by, &next).await?.is_none() {
                return Ok(());
            }
            n += 1;
        }
    }
    Ok(())
}

/// Makes true what [`find`] only saw: finds the newest pin and root again, so that
/// nobody can add another.
pub async fn settle(
    store: &dyn ObjectStore,
    found: Found,
    by: (u32, AttachId),
    passphrase: Option<&Passphrase>,
) -> Result<Found, LogError> {
    let volume = found.home.volume;
    let (mut pin, mut n) = (found.root.epoch, found.root.n);
    for epoch in found.root.epoch + 1..by.0 {
        let name = names::root(epoch, 0);
        if decide::stop(store, volume, by, &name).await?.is_some() {
            (pin, n) = (epoch, 0);
        } else if was_pinned(store, epoch).await? {
            return Err(LogError::Missing { object: name });
        }
    }
    loop {
        n = newest_root(store, pin, n).await?;
        if decide::stop(store, volume, by, &names::root(pin, n + 1))
            .await?
            .is_none()
        {
            break;
        }
        n += 1;
    }
    match (pin, n) == (found.root.epoch, found.root.n) {
        true => Ok(found),
        false => open_root(store, found.highest, (pin, n), passphrase).await,
    }
}

/// Whether something is there of an epoch that is only written after its pin: then the
/// pin was lost, and what came before it is an older state.
pub async fn was_pinned(store: &dyn ObjectStore, epoch: u32) -> Result<bool, LogError> {
    let released = read(store, &names::released(epoch)).await?;
    Ok(released.is_some()
        || read_unless_stop(store, &names::root(epoch, 1))
            .await?
            .is_some())
}

/// The tables of a root.
pub async fn read_tables(
    store: &dyn ObjectStore,
    home: &Home,
    root: &Root,
) -> Result<Tables, LogError> {
    let name = names::map(root.epoch, root.attach, root.tables.k);
    let (offset, length) = (root.tables.offset, root.tables.length);
    let decode = |boxed: Bytes| Tables::decode(&boxed, &home.cipher, home.volume, &name, offset);
    read_box(store, &name, u64::from(offset), u64::from(length), decode).await
}

/// A segment after the root.
#[derive(Debug)]
pub struct Later {
    /// Its object's name.
    pub name: String,
    /// What it says.
    pub header: Header,
    /// The hash of its header's box.
    pub hash: Hash,
}

/// A segment's header, or `None` where nothing or a stop seems to be.
pub async fn probe(
    store: &dyn ObjectStore,
    home: &Home,
    name: &str,
) -> Result<Option<(Header, Hash)>, LogError> {
    let first = match store.get_range(name, 0, HEADER_GUESS).await {
        Ok(first) => first,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if let Ok(true) = decide::is_stop(name, &first) {
        return Ok(None);
    }
    let decode = |first: Bytes| Header::decode(name, home.volume, &home.cipher, &first);
    let needed = Header::needed(&first).unwrap_or(HEADER_GUESS);
    if needed <= first.len() as u64
        && let Ok(header) = decode(first)
    {
        return Ok(Some(header));
    }
    read_box(store, name, 0, needed.max(HEADER_GUESS), decode)
        .await
        .map(Some)
}

/// All segments after the root, up to the first that is absent for certain.
pub async fn segments_after(
    store: &dyn ObjectStore,
    found: &Found,
    by: (u32, AttachId),
) -> Result<Vec<Later>, LogError> {
    let (root, home) = (&found.root, &found.home);
    let name = |seq| names::segment(root.epoch, root.attach, seq);
    let mut all: Vec<Later> = Vec::new();
    let mut attempts = 0;
    loop {
        let next = root.seq + 1 + all.len() as u64;
        {
            let headers = stream::iter(next..).map(|seq| async move {
                let name = name(seq);
                probe(store, home, &name)
                    .await
                    .map(|found| found.map(|(header, hash)| Later { name, header, hash }))
            });
            // Gone before anything else is asked: a request that nobody polls may hold
            // up others.
            let mut headers = std::pin::pin!(headers.buffered(PARALLEL));
            while let Some(Some(later)) = headers.next().await.transpose()? {
                follow(root, &mut all, later)?;
            }
        }
        let gap = root.seq + 1 + all.len() as u64;
        if known_durable(store, home, gap, name).await? {
            attempts += 1;
            if attempts == ATTEMPTS {
                return Err(LogError::Missing { object: name(gap) });
            }
            sleep(PAUSE * attempts).await;
            continue;
        }
        let name = name(gap);
        match decide::stop(store, home.volume, by, &name).await? {
            None => return Ok(all),
            Some(body) => {
                let decoded = Header::decode(&name, home.volume, &home.cipher, &body);
                let (header, hash) = decoded.map_err(|damage| LogError::damaged(&name, damage))?;
                follow(root, &mut all, Later { name, header, hash })?;
            }
        }
    }
}

/// Adds a segment that names the one before it.
fn follow(root: &Root, all: &mut Vec<Later>, later: Later) -> Result<(), LogError> {
    let before = all.last().map_or(root.header, |last| last.hash);
    if later.header.previous != before {
        let damage = Damage::Malformed("it does not follow the segment before it");
        return Err(LogError::damaged(later.name, damage));
    }
    all.push(later);
    Ok(())
}

/// Whether a segment beyond says that this one is durable.
async fn known_durable(
    store: &dyn ObjectStore,
    home: &Home,
    gap: u64,
    name: impl Fn(u64) -> String,
) -> Result<bool, LogError> {
    let names = (gap + 1..=gap + WINDOW).map(name);
    let probes = stream::iter(names).map(|name| async move { probe(store, home, &name).await });
    let mut probes = std::pin::pin!(probes.buffer_unordered(PARALLEL));
    while let Some(found) = probes.next().await {
        match found {
            Ok(Some((header, _))) if header.durable >= gap => return Ok(true),
            // Beyond the gap nothing else counts, damage neither.
            Ok(_) | Err(LogError::Damaged { .. } | LogError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The map with these segments, in memory and partly in the store. What is not known
/// to be durable is written again, under the new epoch's names; returns the last
/// segment's number and hash.
pub async fn replay(
    store: &dyn ObjectStore,
    engine: &Engine,
    root: &Root,
    later: Vec<Later>,
) -> Result<(u64, Hash), LogError> {
    let mut last = (root.seq, root.header);
    let durable = durable(root, &later);
    for later in later {
        let (header, hash, stored) = if later.header.seq <= durable {
            let stored = later.header.object_length().unwrap_or(256);
            (later.header, later.hash, stored)
        } else {
            let built = write_again(store, engine, &later, last.1).await?;
            let stored = built.body.len() as u64;
            (built.header, built.hash, stored)
        };
        let spill =
            || -> BoxFuture<'_, Result<(), LogError>> { Box::pin(spill_once(store, engine)) };
        engine.map.apply(store, &header, stored, &spill).await?;
        last = (header.seq, hash);
    }
    Ok(last)
}

/// The last segment that is known to be durable.
pub fn durable(root: &Root, later: &[Later]) -> u64 {
    later
        .iter()
        .map(|later| later.header.durable)
        .fold(root.seq, u64::max)
}

/// The journal that may have what no segment has, and up to where they have it.
pub fn journal(root: &Root, later: &[Later]) -> Option<(JournalId, u64)> {
    let (id, position) = root.journal?;
    let segments = later.iter().map(|later| later.header.journal);
    Some((id, segments.fold(position, u64::max)))
}

/// Whether the root names a journal, and a segment that seems to be there says that it
/// has ended. Changes nothing.
pub async fn journal_has_ended(store: &dyn ObjectStore, found: &Found) -> Result<bool, LogError> {
    let (root, home) = (&found.root, &found.home);
    let Some((_, mut position)) = root.journal else {
        return Ok(false);
    };
    for seq in root.seq + 1.. {
        let name = names::segment(root.epoch, root.attach, seq);
        match probe(store, home, &name).await? {
            Some((header, _)) => position = position.max(header.journal),
            None => break,
        }
    }
    Ok(position == JOURNAL_ENDED)
}

/// Stores a segment's content again as our own.
async fn write_again(
    store: &dyn ObjectStore,
    engine: &Engine,
    later: &Later,
    previous: Hash,
) -> Result<Built, LogError> {
    let home = &engine.home;
    let decode = |body: Bytes| rebuild(engine, home, later, previous, &body);
    let built = read_object(store, &later.name, decode).await?;
    put_once(store, &[(built.name.clone(), built.body.clone())]).await?;
    Ok(built)
}

fn rebuild(
    engine: &Engine,
    home: &Home,
    later: &Later,
    previous: Hash,
    body: &Bytes,
) -> Result<Built, Damage> {
    let header = &later.header;
    let plan = Plan {
        frames: header.frames.len(),
        sources: header.frames.iter().map(|frame| frame.sources.len()).sum(),
        holes: header.holes.len(),
    };
    let id = (engine.epoch, engine.attach, header.seq);
    let compression = engine.geometry.compression;
    let durable = header.seq - 1;
    let mut builder = Builder::new(
        home.volume,
        &home.cipher,
        compression,
        id,
        previous,
        durable,
        plan,
        body.len(),
    );
    for info in &header.frames {
        let range = info.offset as usize..info.offset as usize + info.stored as usize;
        if range.end > body.len() {
            return Err(Damage::Truncated("a frame"));
        }
        let content = frame::open(
            &home.cipher,
            home.volume,
            &later.name,
            info.offset,
            info.start,
            &body.slice(range),
        )?;
        if content.len() as u64 != info.blocks * BLOCK {
            return Err(Damage::Malformed(
                "a frame of another length than its header says",
            ));
        }
        builder.frame(info.start, &[content], &info.sources);
    }
    for hole in &header.holes {
        builder.hole(hole.start, hole.blocks);
    }
    builder.journal(header.journal);
    Ok(builder.finish())
}

/// Writes the pin: from here on the volume is ours.
pub async fn pin(
    store: &dyn ObjectStore,
    engine: &Engine,
    previous: Option<(u32, u32, Hash)>,
    at: (u64, Hash),
    key: u32,
    journal: Option<(JournalId, u64)>,
) -> Result<Last, LogError> {
    let mut checkpoint = Checkpoint::prepare(engine, 0, previous, at, key, journal);
    put_once(store, &checkpoint.objects).await?;
    checkpoint.commit(engine);
    let (name, body) = &checkpoint.object;
    match decide::create_and_look(store, name, body).await? {
        Created::Ours => Ok(Last {
            hash: hash(body),
            root: checkpoint.root,
        }),
        Created::Taken(other) => Err(engine.taken(name, &other)),
    }
}

/// The map as the root has it, with a new era after `durable`.
pub fn map_of(home: &Home, root: &Root, mut tables: Tables, era: Era, memory: u64) -> Arc<Map> {
    tables.eras.push(era);
    Arc::new(Map::new(home.clone(), tables, root.next_k, memory))
}
