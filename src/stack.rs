//! Builds the data path: the only file that names every layer.
//!
//! ```text
//! nbd::transmission → device → image::objects → store::retry → store::{swift, dir}
//! ```

use std::sync::Arc;

use crate::config::{Backend, Volume};
use crate::image::Image;
use crate::image::objects::layout::{Layout, MAX_OBJECT_SIZE};
use crate::image::objects::{Limits, Objects};
use crate::store::dir::DirStore;
use crate::store::retry::{Policy, Retry};
use crate::store::swift::{Credentials, Secret, SwiftStore};
use crate::store::{ObjectStore, StoreError};

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
}

/// Opens a volume's container. Nothing is sent yet.
pub fn container(volume: &Volume) -> Result<Container, StoreError> {
    let most = u64::from(MAX_OBJECT_SIZE);
    let once: Arc<dyn ObjectStore> = match &volume.backend {
        Backend::Dir(root) => Arc::new(DirStore::new(root, &volume.container, most)?),
        Backend::Swift(account) => {
            let credentials = Credentials {
                auth_url: account.auth_url.clone(),
                username: account.username.clone(),
                password: Secret::new(account.password.expose()),
            };
            Arc::new(SwiftStore::new(credentials, &volume.container, most)?)
        }
    };
    let impatient = Retry::new(once, Policy::attach(), fastrand::Rng::new());
    let patient = impatient.with_policy(Policy::live(volume.io_timeout));
    let diligent = impatient.with_policy(Policy::transfer());
    Ok(Container {
        diligent: Arc::new(diligent),
        impatient: Arc::new(impatient),
        patient: Arc::new(patient),
    })
}

/// Starts the volume of this layout over its container. Within a tokio runtime.
pub fn image(volume: &Volume, container: &Container, layout: Layout) -> Arc<dyn Image> {
    let limits = Limits {
        cache: volume.cache,
        dirty: volume.dirty,
    };
    Arc::new(Objects::start(
        Arc::clone(&container.patient),
        layout,
        limits,
    ))
}
