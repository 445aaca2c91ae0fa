//! A volume that is deleted: nobody's to use from its first object to its last, and
//! still known for what it was.

use std::time::Duration;

use super::{
    BLOCK_SIZE, CLIENT, CONVERTING, DELETING, Holder, LAST, LOOKS, MetaError, OBJECT_SIZE, OBJECTS,
    SIZE, UNLOCKED, VERSION, Volume, client,
};
use crate::store::{Metadata, ObjectStore, StoreError};

/// Who a volume's holder is meanwhile.
const DELETER: &str = "ctl-delete";
/// What stands before the holder in the mark until the deletion can begin.
const INTENDED: &str = "intended by ";

impl Holder {
    /// Whoever deletes a volume, now.
    pub fn deleter(since_epoch: Duration) -> Holder {
        Holder::tool(DELETER, since_epoch)
    }

    fn is_deleter(&self) -> bool {
        self.parts().0 == DELETER
    }
}

/// Dooms the volume for `holder`, one of [`Holder::deleter`], who will delete it:
/// nobody can use it any more. [`MetaError::Locked`] if somebody does.
///
/// Whoever locks a volume writes Client and then looks for this mark; here the mark
/// is written first and then Client looked for. So one of the two sees the other.
/// Two that delete the same volume do no harm.
pub async fn begin(store: &dyn ObjectStore, holder: &Holder) -> Result<(), MetaError> {
    let metadata = store.metadata().await?;
    Volume::parse_doomed(&metadata)?;
    let user = async || Ok::<_, StoreError>(client(store).await?.filter(|it| !it.is_deleter()));
    if let Some(user) = user().await? {
        return Err(MetaError::Locked(user));
    }
    let set = |key: &str, value: &str| Metadata::from([(key.to_owned(), value.to_owned())]);
    if !metadata.contains_key(DELETING) {
        let intended = format!("{INTENDED}{}", holder.0);
        store.set_metadata(&set(DELETING, &intended)).await?;
        match user().await {
            Ok(None) => {}
            Ok(Some(user)) => {
                store.set_metadata(&set(DELETING, "")).await?;
                return Err(MetaError::Locked(user));
            }
            Err(error) => {
                // If this fails too, `unlock` does it.
                let _ = store.set_metadata(&set(DELETING, "")).await;
                return Err(error.into());
            }
        }
    }
    // The original's tools know nothing of the mark.
    let mut begun = set(CLIENT, &holder.0);
    begun.extend(set(DELETING, &holder.0));
    Ok(store.set_metadata(&begun).await?)
}

/// Takes the mark back, before anything was deleted.
pub async fn withdraw(store: &dyn ObjectStore) -> Result<(), StoreError> {
    let keys = [CLIENT, DELETING].map(|key| (key.to_owned(), String::new()));
    store.set_metadata(&Metadata::from(keys)).await
}

/// Whoever marked the volume and died before anything could be deleted. Several looks
/// must agree: of a deletion that has begun, nothing is taken back.
pub(super) async fn only_intended(store: &dyn ObjectStore) -> Result<Option<Holder>, StoreError> {
    let mut intender = None;
    for _ in 0..LOOKS {
        let metadata = store.metadata().await?;
        let mark = metadata.get(DELETING).map_or("", String::as_str);
        match mark.strip_prefix(INTENDED) {
            Some(holder) => intender = Some(Holder(holder.to_owned())),
            None => return Ok(None),
        }
    }
    Ok(intender)
}

/// Takes all that makes the container a volume away from it.
pub async fn erase(store: &dyn ObjectStore) -> Result<(), StoreError> {
    let keys = [
        VERSION,
        OBJECTS,
        OBJECT_SIZE,
        SIZE,
        BLOCK_SIZE,
        CONVERTING,
        CLIENT,
        LAST,
        UNLOCKED,
        DELETING,
    ];
    let changes = keys.map(|key| (key.to_owned(), String::new()));
    store.set_metadata(&Metadata::from(changes)).await
}
