//! Builds the data path: the only file that names every layer.
//!
//! ```text
//! nbd::transmission → device → image::{objects, log} → store::retry → store::{swift, dir}
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Backend, Volume};
use crate::image::log::format::keys::Passphrase;
use crate::image::log::lease::{Keeper, Lease};
use crate::image::log::{self, Log, LogError, Who};
use crate::image::objects::layout::Layout;
use crate::image::objects::lease::Leased;
use crate::image::objects::{Limits, Objects};
use crate::store::dir::DirStore;
use crate::store::retry::{Policy, Retry};
use crate::store::swift::{Account, SwiftStore, Timeouts};
use crate::store::{MAX_BODY, ObjectStore, StoreError};

/// A volume's container, for three kinds of caller. All know which names may
/// still be changed by earlier requests.
#[derive(Debug, Clone)]
pub struct Container {
    /// For commands, and while attaching: what is refused fails at once, what does
    /// not answer fails after a few seconds.
    pub impatient: Arc<dyn ObjectStore>,
    /// For commands that send or fetch a lot: what is refused fails at once, an
    /// outage of some minutes is waited out.
    pub diligent: Arc<dyn ObjectStore>,
    /// For a live device: everything is waited out, for as long as the user's
    /// `io_timeout` allows.
    pub patient: Arc<dyn ObjectStore>,
    /// One attempt at each request.
    once: Arc<dyn ObjectStore>,
    /// The part that logs in, if there is one, and the part that waits for it.
    swift: Option<SwiftStore>,
    retry: Retry,
}

impl Container {
    /// Uses the credentials of this backend from now on; requests that wait go on
    /// at once. False if it is no other account but another kind of store.
    pub fn log_in_again(&self, backend: &Backend) -> Result<bool, StoreError> {
        match (&self.swift, backend) {
            (Some(swift), Backend::Swift(credentials)) => {
                swift.set_credentials(credentials.as_ref().clone())?;
                self.retry.hurry();
                Ok(true)
            }
            (None, Backend::Dir(_)) => Ok(true),
            _ => Ok(false),
        }
    }
}

/// Opens a volume's container. Nothing is sent yet.
pub fn container(volume: &Volume) -> Result<Container, StoreError> {
    let (once, swift): (Arc<dyn ObjectStore>, _) = match &volume.backend {
        Backend::Dir(root) => {
            let dir = DirStore::new(root, &volume.container, MAX_BODY)?;
            (Arc::new(dir), None)
        }
        Backend::Swift(credentials) => {
            let account = Account::shared(credentials.as_ref().clone(), Timeouts::default())?;
            let swift = SwiftStore::in_account(account, &volume.container, MAX_BODY)?;
            (Arc::new(swift.clone()), Some(swift))
        }
    };
    let impatient = Retry::new(Arc::clone(&once), Policy::attach(), fastrand::Rng::new());
    let patient = impatient.with_policy(Policy::live(volume.io_timeout));
    let diligent = impatient.with_policy(Policy::transfer());
    Ok(Container {
        impatient: Arc::new(impatient.clone()),
        diligent: Arc::new(diligent),
        patient: Arc::new(patient),
        once,
        swift,
        retry: impatient,
    })
}

/// Starts the volume of format 1 over its container; `live` is the store that it uses.
/// Within a tokio runtime.
pub fn objects(volume: &Volume, live: &Arc<dyn ObjectStore>, layout: Layout) -> Objects {
    let limits = Limits {
        cache: volume.cache,
        dirty: volume.dirty,
    };
    Objects::start(Arc::clone(live), layout, limits)
}

/// The same under a lease, for a live device. Within a tokio runtime.
pub fn leased(
    volume: &Volume,
    container: &Container,
    layout: Layout,
    (lease, kept): (Arc<Lease>, Keeper),
) -> Leased {
    let policy = Policy::live(volume.io_timeout);
    let once = Arc::clone(&container.once);
    Leased::start(lease, kept, once, |gate| {
        let live = container.retry.with_inner(Arc::new(gate));
        let live: Arc<dyn ObjectStore> = Arc::new(live.with_policy(policy));
        objects(volume, &live, layout)
    })
}

/// Opens the volume of format 2 over its container; `live` is the store that it uses
/// once it is open, `patience` how long a read waits for an object that is not found.
/// Within a tokio runtime.
pub async fn log(
    volume: &Volume,
    container: &Container,
    live: &Arc<dyn ObjectStore>,
    patience: Option<Duration>,
    passphrase: Option<&Passphrase>,
    who: Who,
) -> Result<Log, LogError> {
    let (cache, dirty, map) = (volume.cache, volume.dirty, volume.map);
    let limits = log::Limits::new(cache, dirty, map, patience);
    let attaching = Arc::clone(&container.impatient);
    Log::open(attaching, Arc::clone(live), passphrase, limits, who).await
}
