//! A volume of format 2 is made, and looked at from outside.
//!
//! Knows: in which order its first objects come. Does not know: how it is used.

use std::sync::Arc;

use super::decide::{self, Created};
use super::engine::Engine;
use super::error::LogError;
use super::format::claim::{Claim, Release};
use super::format::keys::{self, Cost, DataKey, Passphrase};
use super::format::root::Geometry;
use super::format::seal::Cipher;
use super::format::tables::{Era, Tables};
use super::format::{MAX_SIZE, VolumeId, names};
use super::lease::Lease;
use super::map::Map;
use super::place::Home;
use super::{Limits, Who, engine, recovery};
use crate::store::ObjectStore;

/// What can be told about a volume without its passphrase.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its id.
    pub volume: VolumeId,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The last attachment.
    pub claim: Claim,
}

/// Makes a volume in a container; where `replace` is true, over an old one of this
/// format, whose content is lost. Else it refuses if an epoch after that of an unused
/// volume is there: metadata and listings are no proof that none is.
pub async fn create(
    store: &Arc<dyn ObjectStore>,
    geometry: Geometry,
    passphrase: Option<(&Passphrase, Cost)>,
    who: &Who,
    replace: bool,
) -> Result<(), LogError> {
    check_geometry(&geometry)?;
    let highest = recovery::highest_epoch(&**store).await?;
    if highest > 1 && !replace {
        return Err(LogError::Occupied);
    }
    let volume = VolumeId::random();
    let (cipher, key) = match passphrase {
        None => (Cipher::Plain, 0),
        Some((passphrase, cost)) => {
            let data_key = DataKey::random();
            let key = create_key(&**store, &data_key, passphrase, volume, 1, cost).await?;
            (data_key.cipher(volume), key)
        }
    };
    let terms = who.terms;
    let epoch = recovery::claim(&**store, volume, highest, who, terms.seconds(), 0).await?;
    if epoch > 2 && !replace {
        return Err(LogError::Occupied);
    }
    recovery::stop_older(&**store, volume, (epoch, who.attach)).await?;
    let era = Era {
        epoch,
        attach: who.attach,
        first_seq: 1,
        first_k: 1,
    };
    let home = Home { volume, cipher };
    let map = Arc::new(Map::new(
        home.clone(),
        Tables {
            eras: vec![era],
            ..Tables::default()
        },
        1,
        0,
    ));
    let limits = Limits::new(0, Limits::least_dirty(), 0, None);
    let owner = (epoch, who.attach);
    let clock = Arc::clone(&who.clock);
    let lease = Lease::new(Arc::clone(store), volume, owner, terms, clock);
    let (engine, _) = engine(
        home,
        geometry,
        epoch,
        who.attach,
        Arc::clone(store),
        map,
        Arc::new(lease),
        limits,
        0,
        None,
    );
    recovery::pin(&**store, &engine, None, (0, [0; 16]), key, None).await?;
    release(&**store, &engine).await
}

fn check_geometry(geometry: &Geometry) -> Result<(), LogError> {
    let Geometry {
        size, block_size, ..
    } = *geometry;
    if block_size != 512 && block_size != 4096 {
        return Err(LogError::Geometry(format!(
            "a block size of {block_size} is neither 512 nor 4096"
        )));
    }
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(u64::from(block_size)) {
        return Err(LogError::Geometry(format!(
            "a size of {size} bytes is not a multiple of {block_size} between {block_size} and {MAX_SIZE}"
        )));
    }
    Ok(())
}

/// Stores a wrapped key at the first free number from `first` on.
pub(super) async fn create_key(
    store: &dyn ObjectStore,
    data_key: &DataKey,
    passphrase: &Passphrase,
    volume: VolumeId,
    first: u32,
    cost: Cost,
) -> Result<u32, LogError> {
    for n in first..first.saturating_add(1000) {
        let name = names::key(n);
        if recovery::read(store, &name).await?.is_some() {
            continue;
        }
        let body = keys::wrap(data_key, passphrase, volume, n, cost);
        if decide::create_and_look(store, &name, &body).await? == Created::Ours {
            return Ok(n);
        }
    }
    Err(LogError::Fenced(
        "there are too many key objects".to_owned(),
    ))
}

/// Says that this epoch ended in good order.
pub(super) async fn release(store: &dyn ObjectStore, engine: &Engine) -> Result<(), LogError> {
    let name = names::released(engine.epoch);
    let release = Release {
        epoch: engine.epoch,
        attach: engine.attach,
    };
    decide::create(store, &name, &release.encode(engine.home.volume, &name)).await?;
    Ok(())
}

/// Whether the volume could be opened: everything that opening needs to read, and the
/// passphrase, without changing anything. Its geometry.
pub async fn try_out(
    store: &dyn ObjectStore,
    passphrase: Option<&Passphrase>,
) -> Result<Geometry, LogError> {
    let found = recovery::find(store, passphrase).await?;
    recovery::read_claims(store, &found).await?;
    Ok(found.root.geometry)
}

/// Looks at a volume without changing anything.
pub async fn look(store: &dyn ObjectStore) -> Result<Seen, LogError> {
    let (prelude, claim) = recovery::look(store).await?;
    Ok(Seen {
        volume: prelude.volume,
        encrypted: prelude.sealed,
        claim,
    })
}
