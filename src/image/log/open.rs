//! A volume is taken over and opened: from the first look to the first request.
//!
//! Knows: in which order it is claimed, recovered, pinned, and its journal written again.
//! Does not know: what each of these does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::applier::{self, Item};
use super::engine::Engine;
use super::format::claim::JOURNAL;
use super::format::keys::Passphrase;
use super::format::tables::Era;
use super::journal::take::{self, Taken};
use super::lease::Lease;
use super::ranges::Ranges;
use super::recovery::{self, Found};
use super::{Limits, Log, LogError, PAUSE, Who, collector, engine, sweep, writer};
use crate::image::{Image, ImageError};
use crate::store::ObjectStore;

/// How often a volume is looked at again whose journal is not found.
const ATTEMPTS: u32 = 5;

impl Log {
    /// Takes the volume over and opens it. Until it is pinned, requests go through
    /// `attaching`; afterwards through `live`, which waits. Within a tokio runtime.
    ///
    /// # Errors
    /// Whatever keeps the volume from being opened; nothing was changed if the
    /// passphrase or the format is the cause.
    pub async fn open(
        attaching: Arc<dyn ObjectStore>,
        live: Arc<dyn ObjectStore>,
        passphrase: Option<&Passphrase>,
        limits: Limits,
        who: Who,
    ) -> Result<Log, LogError> {
        let opening = Opening {
            attaching,
            live,
            passphrase,
            limits,
            who: &who,
        };
        let log = opening.open().await?;
        if log.engine.journal.is_none() || who.journaling.wanted {
            return Ok(log);
        }
        // An earlier attachment left a journal, and this one wants none: what it has is
        // stored, and it is given back.
        let goes_on_from = log.goes_on_from;
        log.close().await.map_err(lost)?;
        drop(log);
        let mut log = opening.open().await?;
        log.goes_on_from = goes_on_from;
        Ok(log)
    }

    /// Writes what the journal has and no segment has; then it takes what comes.
    async fn replay(&self, taken: Taken) -> Result<(), LogError> {
        let engine = &self.engine;
        let Taken {
            journal,
            mut entries,
            ..
        } = taken;
        loop {
            let next = entries.next().await;
            let next = next.map_err(|problem| journal.refused(problem))?;
            let Some(edit) = next else { break };
            let written = writer::write_again(engine, edit, entries.position()).await;
            written.map_err(lost)?;
        }
        // What was found now is found again, whatever happens before the next flush.
        if !journal.sync_what_was_found().await {
            let stored = writer::flush(engine).await;
            stored.map_err(lost)?;
        }
        let owner = Arc::clone(engine);
        engine.tasks.spawn(async move {
            Arc::clone(&journal).run().await;
            without_journal(&owner).await;
        });
        Ok(())
    }
}

/// What it takes to open a volume.
struct Opening<'a> {
    /// Until it is pinned.
    attaching: Arc<dyn ObjectStore>,
    /// Afterwards.
    live: Arc<dyn ObjectStore>,
    passphrase: Option<&'a Passphrase>,
    limits: Limits,
    who: &'a Who,
}

impl Opening<'_> {
    async fn open(&self) -> Result<Log, LogError> {
        let (store, passphrase, who) = (&*self.attaching, self.passphrase, self.who);
        let mut found = recovery::find(store, passphrase).await?;
        for attempt in 1.. {
            let journaling = &who.journaling;
            match take::check(journaling, &found.home, found.root.journal).await {
                Ok(()) => break,
                // It has ended, and one that died here has begun another.
                Err(_) if recovery::journal_has_ended(store, &found).await? => break,
                // An older root may have been served, which names an older journal.
                Err(_) if attempt < ATTEMPTS => {
                    sleep(PAUSE * attempt).await;
                    found = recovery::find(store, passphrase).await?;
                }
                Err(error) => return Err(error),
            }
        }
        let claims = recovery::read_claims(store, &found).await?;
        let (volume, highest) = (found.home.volume, found.highest);
        let named = found.root.journal;
        let flags = match who.journaling.wanted || take::needed(named).is_some() {
            true => JOURNAL,
            false => 0,
        };
        let own = Arc::clone(&self.attaching);
        let lease = Lease::claim(own, volume, highest, claims, who, flags).await?;
        let lease = Arc::new(lease);
        // From now on, and for as long as the volume is open.
        let mut keeper = lease.keeper();
        let opened = self.take_over(found, Arc::clone(&lease));
        // Whoever claims after us has the volume, also while we are at this.
        let (log, taken) = tokio::select! {
            biased;
            opened = opened => opened?,
            lost = keeper.lost() => return Err(lost),
        };
        let engine = Arc::clone(&log.engine);
        let kept = Arc::clone(&engine);
        let lost = async move { kept.fenced(&keeper.lost().await) };
        engine.tasks.spawn(lost);
        if let Some(taken) = taken {
            log.replay(taken).await?;
        }
        Ok(log)
    }

    /// Once the epoch is claimed: waits for the leases before it, recovers, pins.
    async fn take_over(
        &self,
        found: Found,
        lease: Arc<Lease>,
    ) -> Result<(Log, Option<Taken>), LogError> {
        let Opening {
            passphrase,
            limits,
            who,
            ..
        } = *self;
        let (store, live) = (&*self.attaching, Arc::clone(&self.live));
        let epoch = lease.epoch();
        lease.wait_out(who).await?;
        let by = (epoch, who.attach);
        let found = recovery::settle(store, found, by, passphrase).await?;
        let tables = recovery::read_tables(store, &found.home, &found.root).await?;
        let later = recovery::segments_after(store, &found, by).await?;
        let root = &found.root;
        let last_seq = root.seq + later.len() as u64;
        let named = recovery::journal(root, &later);
        let journaling = &who.journaling;
        let taken = take::take(journaling, &found.home, epoch, named, limits.journal).await?;
        let first_seq = recovery::durable(root, &later) + 1;
        let era = Era {
            epoch,
            attach: who.attach,
            first_seq,
            first_k: root.next_k,
        };
        let map = recovery::map_of(
            &found.home,
            root,
            tables,
            era,
            limits.map.max(Limits::least_map()),
        );
        let (engine, queues) = engine(
            found.home.clone(),
            root.geometry,
            epoch,
            who.attach,
            live,
            map,
            lease,
            limits,
            last_seq,
            taken.as_ref().map(|taken| Arc::clone(&taken.journal)),
        );
        let at = recovery::replay(store, &engine, root, later).await?;
        recovery::is_ours(store, epoch, who).await?;
        let previous = Some((root.epoch, root.n, found.hash));
        let needed = take::needed(named);
        let named = taken
            .as_ref()
            .map(|taken| (taken.journal.id(), taken.position));
        let lost = needed.is_some() && needed != named.map(|(id, _)| id);
        let last = recovery::pin(store, &engine, previous, at, root.key, named).await?;
        let (to_delete, dead) = mpsc::unbounded_channel();
        let tasks = &engine.tasks;
        let key = last.root.key;
        tasks.spawn(writer::run(Arc::clone(&engine), queues.jobs, at.1));
        tasks.spawn(writer::age(Arc::clone(&engine)));
        tasks.spawn(applier::run(
            Arc::clone(&engine),
            queues.items,
            last,
            to_delete.clone(),
        ));
        tasks.spawn(applier::delete(Arc::clone(&engine), dead));
        tasks.spawn(collector::run(Arc::clone(&engine)));
        tasks.spawn(sweep::run(Arc::clone(&engine), key, to_delete.clone()));
        engine.collect.notify_one();
        let log = Log {
            engine,
            ranges: Ranges::default(),
            data_key: found.data_key,
            goes_on_from: (!lost).then_some(found.root.attach),
            key: Mutex::new(key),
            closed: AtomicBool::new(false),
            to_delete,
        };
        Ok((log, taken))
    }
}

/// The journal has failed: has everything stored that it has, and says that it is not
/// needed any more.
async fn without_journal(engine: &Engine) {
    while writer::flush(engine).await.is_err() {
        if engine.check().is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
    engine.given_back.store(true, Ordering::Release);
    engine.ask(Item::Root).await;
}

/// Why a volume that was opened a moment ago cannot be used.
fn lost(error: ImageError) -> LogError {
    match error {
        ImageError::Store(error) => LogError::Store(error),
        other => LogError::Fenced(other.to_string()),
    }
}
