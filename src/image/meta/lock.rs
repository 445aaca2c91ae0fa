//! The lock in a container's metadata: taken, looked at, given back.
//!
//! Client is read, then written, then read again; there is no compare-and-swap, so two
//! hosts that lock in the same instant can both believe that they won. Reading back
//! closes most of that window, several reads (a container's replicas may differ) most of
//! the rest.

use super::{
    CLIENT, DELETING, Holder, LAST, LOOKS, MetaError, UNLOCKED, Volume, complete, doom, read,
    read_unfinished,
};
use crate::store::{Metadata, ObjectStore, StoreError};

/// Locks the volume for `holder`. [`MetaError::Locked`] if somebody else has it.
pub async fn lock(store: &dyn ObjectStore, holder: &Holder) -> Result<Volume, MetaError> {
    lock_this(store, holder, complete(read_unfinished(store).await?)?).await
}

/// The same for whoever makes it.
pub async fn lock_unfinished(
    store: &dyn ObjectStore,
    holder: &Holder,
) -> Result<Volume, MetaError> {
    lock_this(store, holder, read_unfinished(store).await?).await
}

async fn lock_this(
    store: &dyn ObjectStore,
    holder: &Holder,
    volume: Volume,
) -> Result<Volume, MetaError> {
    if let Some(other) = volume.client {
        return Err(MetaError::Locked(other));
    }
    let locked = async {
        set_client(store, &holder.0, volume.last.as_ref()).await?;
        match Volume::parse_unfinished(&store.metadata().await?)?.client {
            Some(other) if other != *holder => Err(MetaError::Locked(other)),
            _ => Ok(()),
        }
    };
    match locked.await {
        Ok(()) => Ok(volume),
        Err(MetaError::Locked(other)) => Err(MetaError::Locked(other)),
        Err(error) => {
            // The lock may be there although the answer was lost. What cannot be
            // taken back here is for a person to unlock.
            let _ = release(store, holder, false).await;
            Err(error)
        }
    }
}

/// Shows `holder` as who has the volume, whoever was shown before. The lease has decided;
/// this is for people and for the original's tools.
pub async fn show(
    store: &dyn ObjectStore,
    holder: &Holder,
    there: &Volume,
) -> Result<(), StoreError> {
    let last = there.client.as_ref().or(there.last.as_ref());
    set_client(store, &holder.0, last).await
}

/// Who has locked the container, whatever else its metadata says: damage there
/// must not hide a lock.
pub async fn client(store: &dyn ObjectStore) -> Result<Option<Holder>, StoreError> {
    for _ in 0..LOOKS {
        let metadata = store.metadata().await?;
        if let Some(client) = metadata
            .get(CLIENT)
            .map(|text| text.trim())
            .filter(|t| !t.is_empty())
        {
            return Ok(Some(Holder(client.to_owned())));
        }
    }
    Ok(None)
}

/// Takes the lock away from whoever has it, at a person's word: `now` (Unix
/// seconds) is remembered, for the requests of a holder that died may still be
/// on their way. Works on damaged metadata too, and on a volume that is deleted.
pub async fn unlock(store: &dyn ObjectStore, now: u64) -> Result<Holder, MetaError> {
    let unlocked = match read(store).await {
        Ok(_) | Err(MetaError::Unfinished(_)) => MetaError::NotLocked,
        Err(damage @ (MetaError::Damaged { .. } | MetaError::Deleting)) => damage,
        Err(error) => return Err(error),
    };
    let intended = doom::only_intended(store).await?;
    let (holder, mut changes) = match (client(store).await?, &intended) {
        (Some(holder), _) => {
            let mut changes = released(&holder);
            changes.insert(UNLOCKED.to_owned(), now.to_string());
            (holder, changes)
        }
        (None, Some(deleter)) => (deleter.clone(), Metadata::new()),
        (None, None) => return Err(unlocked),
    };
    if intended.is_some() {
        changes.insert(DELETING.to_owned(), String::new());
    }
    store.set_metadata(&changes).await?;
    Ok(holder)
}

/// Gives our own lock back, once no request of ours can take effect any more.
/// `settled` says that requests of holders before us cannot either: then an unlock
/// by hand is forgotten. [`MetaError::Locked`] if somebody else has taken the lock
/// meanwhile: that lock stays.
pub async fn release(
    store: &dyn ObjectStore,
    holder: &Holder,
    settled: bool,
) -> Result<(), MetaError> {
    match Volume::parse_doomed(&store.metadata().await?)?.client {
        Some(other) if other != *holder => Err(MetaError::Locked(other)),
        _ => {
            let mut changes = released(holder);
            if settled {
                changes.insert(UNLOCKED.to_owned(), String::new());
            }
            Ok(store.set_metadata(&changes).await?)
        }
    }
}

fn released(holder: &Holder) -> Metadata {
    Metadata::from([
        (CLIENT.to_owned(), String::new()),
        (LAST.to_owned(), holder.0.clone()),
    ])
}

async fn set_client(
    store: &dyn ObjectStore,
    client: &str,
    last: Option<&Holder>,
) -> Result<(), StoreError> {
    let last = last.map_or(String::new(), |last| last.0.clone());
    let changes = Metadata::from([
        (CLIENT.to_owned(), client.to_owned()),
        (LAST.to_owned(), last),
    ]);
    store.set_metadata(&changes).await
}
