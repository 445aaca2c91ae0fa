//! Builds the data path: the only file that names every layer.
//!
//! ```text
//! nbd::transmission → device → image::objects → store::retry → store::{swift, dir}
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Backend, Volume};
use crate::image::Image;
use crate::image::objects::layout::{Layout, MAX_OBJECT_SIZE};
use crate::image::objects::{Limits, Objects};
use crate::store::dir::DirStore;
use crate::store::retry::{Permanent, Policy, Retry};
use crate::store::swift::{Credentials, Secret, SwiftStore};
use crate::store::{ObjectStore, StoreError};

/// How long commands try to reach a store that does not answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);

/// A volume's container, one attempt a request.
pub fn container(volume: &Volume) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let most = u64::from(MAX_OBJECT_SIZE);
    Ok(match &volume.backend {
        Backend::Dir(root) => Arc::new(DirStore::new(root, &volume.container, most)?),
        Backend::Swift(account) => {
            let credentials = Credentials {
                auth_url: account.auth_url.clone(),
                username: account.username.clone(),
                password: Secret::new(account.password.expose()),
            };
            Arc::new(SwiftStore::new(credentials, &volume.container, most)?)
        }
    })
}

/// The container for a command: what is refused fails at once, what does not
/// answer fails after a few seconds.
pub fn for_command(container: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    let policy = Policy {
        give_up_after: Some(COMMAND_PATIENCE),
        permanent: Permanent::Fail,
    };
    Arc::new(Retry::new(container, policy, fastrand::Rng::new()))
}

/// The container for a live device: everything is waited out, for as long as the
/// user's `io_timeout` allows.
pub fn for_device(container: Arc<dyn ObjectStore>, volume: &Volume) -> Arc<dyn ObjectStore> {
    let policy = Policy {
        give_up_after: volume.io_timeout,
        permanent: Permanent::Wait,
    };
    Arc::new(Retry::new(container, policy, fastrand::Rng::new()))
}

/// Starts the volume of this layout over its container. Within a tokio runtime.
pub fn image(volume: &Volume, live: Arc<dyn ObjectStore>, layout: Layout) -> Arc<dyn Image> {
    let limits = Limits {
        cache: volume.cache,
        dirty: volume.dirty,
    };
    Arc::new(Objects::start(live, layout, limits))
}
