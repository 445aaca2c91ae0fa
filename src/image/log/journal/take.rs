//! Which journal an attachment goes on with.
//!
//! Knows: what a root names, what is on the shelf, what the user wants. Does not know:
//! epochs, leases.

use std::sync::Arc;

use super::replay::{self, Entries, Found};
use super::{Journal, Journaling, Problem, Shelf, create};
use crate::image::log::LogError;
use crate::image::log::format::journal::Owner;
use crate::image::log::format::{JOURNAL_ENDED, JournalId, VolumeId, random};
use crate::image::log::place::Home;

/// A journal to go on with.
#[derive(Debug)]
pub struct Taken {
    /// It, with room for what comes.
    pub journal: Arc<Journal>,
    /// Up to where segments have it.
    pub position: u64,
    /// What they do not have.
    pub entries: Entries,
}

/// What the volume itself says: its journal, and up to where segments have it.
type Named = Option<(JournalId, u64)>;

/// Whether the volume needs a journal: it may have what no segment has.
pub fn needed(named: Named) -> Option<JournalId> {
    let (id, position) = named?;
    (position != JOURNAL_ENDED).then_some(id)
}

/// The journal on the shelf.
struct There<'a> {
    shelf: &'a Arc<dyn Shelf>,
    found: Result<Option<Found>, Problem>,
}

impl There<'_> {
    /// The one of this id, or why it is not there.
    fn of(&self, id: JournalId) -> Result<&Found, Problem> {
        match &self.found {
            Err(problem) => Err(problem.clone()),
            Ok(None) => Err(Problem::Missing),
            Ok(Some(found)) => match &found.head {
                Err(problem) => Err(problem.clone()),
                Ok(head) if head.id != id => Err(Problem::Other),
                Ok(_) => Ok(found),
            },
        }
    }

    /// What must not be touched, because it is nothing of this volume's.
    fn strange(&self) -> Option<Problem> {
        match &self.found {
            Err(problem) => Some(problem.clone()),
            Ok(Some(Found {
                head: Err(problem), ..
            })) if *problem != Problem::CutOff => Some(problem.clone()),
            _ => None,
        }
    }
}

async fn look<'a>(shelf: &'a Arc<dyn Shelf>, volume: VolumeId) -> There<'a> {
    let found = replay::look(&**shelf, volume).await;
    There { shelf, found }
}

fn refused(
    id: impl Into<Option<JournalId>>,
    shelf: Option<&Arc<dyn Shelf>>,
    problem: Problem,
) -> LogError {
    let id = id.into();
    let place = shelf.map_or("an unknown place".to_owned(), |shelf| shelf.name());
    LogError::Journal { id, place, problem }
}

/// Refuses what [`take`] would refuse, as far as it can be told without changing anything.
pub async fn check(journaling: &Journaling, home: &Home, named: Named) -> Result<(), LogError> {
    let needed = needed(named).filter(|_| !journaling.give_up);
    let Some(shelf) = &journaling.shelf else {
        return match needed {
            Some(id) => Err(refused(id, None, Problem::Missing)),
            None => Ok(()),
        };
    };
    let there = look(shelf, home.volume).await;
    if let Some(id) = needed {
        there
            .of(id)
            .map_err(|problem| refused(id, Some(shelf), problem))?;
    } else if let (true, Some(problem)) =
        (journaling.wanted && !journaling.give_up, there.strange())
    {
        return Err(refused(None, Some(shelf), problem));
    }
    Ok(())
}

/// The journal to go on with: the one that the volume names, if it needs one; else a new
/// one, if one is wanted and can be made. What is in the way is kept under another name.
pub async fn take(
    journaling: &Journaling,
    home: &Home,
    epoch: u32,
    named: Named,
    ring: u64,
) -> Result<Option<Taken>, LogError> {
    check(journaling, home, named).await?;
    let Some(shelf) = &journaling.shelf else {
        return Ok(None);
    };
    let there = look(shelf, home.volume).await;
    let owner = |id| Owner {
        volume: home.volume,
        id,
        cipher: home.cipher.clone(),
    };
    if let (Some(id), Some((_, position))) = (needed(named), named) {
        match old(&there, owner(id), epoch, position).await {
            Ok(taken) => return Ok(Some(taken)),
            Err(problem) if journaling.give_up => tracing::warn!(
                "the journal {id} at {}: {problem}; what it has and the store has not is given up",
                shelf.name()
            ),
            Err(problem) => return Err(refused(id, Some(shelf), problem)),
        }
    }
    clear(&there, named).await;
    if !journaling.wanted {
        return Ok(None);
    }
    let owner = owner(JournalId(random()));
    match create(&**shelf, &owner, ring).await {
        Ok(disk) => {
            let ring = super::ring_of(&*disk);
            let entries = Entries::new(Arc::clone(&disk), owner.clone(), ring, 0);
            let journal = Journal::new(owner, epoch, disk, Arc::clone(shelf), (0, 0));
            Ok(Some(Taken {
                journal: Arc::new(journal),
                position: 0,
                entries,
            }))
        }
        Err(error) => {
            tracing::error!(
                "no journal can be made at {}: {error}; every flush waits for the store, as with \
                 flush = \"swift\"",
                shelf.name()
            );
            Ok(None)
        }
    }
}

/// The journal that is there, from a position on.
async fn old(there: &There<'_>, owner: Owner, epoch: u32, position: u64) -> Result<Taken, Problem> {
    let found = there.of(owner.id)?;
    let head = found.head.clone()?;
    let entries = || Entries::new(Arc::clone(&found.disk), owner.clone(), head.ring, position);
    let mut all = entries();
    while all.next().await?.is_some() {}
    let end = all.position();
    if end > position {
        tracing::info!(
            "the journal {} has {} bytes that the store does not have yet",
            there.shelf.name(),
            end - position
        );
    }
    let (disk, shelf) = (Arc::clone(&found.disk), Arc::clone(there.shelf));
    let journal = Journal::new(owner.clone(), epoch, disk, shelf, (position, end));
    Ok(Taken {
        journal: Arc::new(journal),
        position,
        entries: entries(),
    })
}

/// Clears the place of a journal that is not needed.
async fn clear(there: &There<'_>, named: Named) {
    let Ok(Some(found)) = &there.found else {
        return;
    };
    let place = there.shelf.name();
    let ended = |id| named == Some((id, JOURNAL_ENDED));
    match &found.head {
        Ok(head) if ended(head.id) || found.is_new().await => {
            if let Err(error) = there.shelf.remove().await {
                tracing::warn!("{place} cannot be removed: {error}");
            }
        }
        Ok(_) | Err(Problem::CutOff) => match there.shelf.set_aside().await {
            Ok(kept) => tracing::warn!(
                "{place} is a journal of this volume that it does not name any more: the volume \
                 was given back since, or somebody took it over, and what only this journal had \
                 is no part of it; the file is kept as {kept}"
            ),
            Err(error) => tracing::warn!("{place} is in the way, and cannot be renamed: {error}"),
        },
        // Nothing of ours.
        Err(_) => {}
    }
}
