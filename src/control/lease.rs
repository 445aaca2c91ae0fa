//! The right to write a volume. In format 1 that is the original's lock in the
//! container's metadata, and on one machine a lock file besides.

use std::sync::Arc;
use std::time::Duration;

use super::explain;
use super::registry::{self, VolumeLock, unix_now};
use crate::config::Volume;
use crate::error::Result;
use crate::image::objects::layout::Layout;
use crate::image::objects::meta::{self, Holder, MetaError};
use crate::store::{ErrorKind, ObjectStore};

/// A volume that is ours to use.
#[derive(Debug)]
pub struct Lease {
    volume: Volume,
    store: Arc<dyn ObjectStore>,
    /// What the container's lock says; nothing if an account that may not write
    /// reads a volume that nobody holds.
    holder: Option<Holder>,
    /// Its geometry.
    pub layout: Layout,
    /// How long to wait before the first request that relies on it.
    pub pause: Duration,
    _machine: VolumeLock,
}

impl Lease {
    /// Takes a volume, or says who has it. `store` fails soon rather than late.
    pub async fn take(
        volume: &Volume,
        store: Arc<dyn ObjectStore>,
        read_only: bool,
    ) -> Result<Lease> {
        let machine = registry::lock_volume(volume)?;
        let holder = Holder::new(&registry::host_name(), std::process::id(), unix_now());
        let (there, holder) = match meta::lock(&*store, &holder).await {
            Ok(there) => (there, Some(holder)),
            Err(MetaError::Store(error)) if read_only && error.kind == ErrorKind::Denied => {
                let there = meta::read(&*store).await;
                let there = there.map_err(|error| explain::meta(volume, &error))?;
                tracing::warn!(
                    volume = volume.name,
                    "this account may not lock the volume; if somebody writes to it meanwhile, \
                     what is read here may be a mixture"
                );
                (there, None)
            }
            Err(error) => return Err(explain::meta(volume, &error)),
        };
        let since_unlock = there.unlocked.map(|then| unix_now().saturating_sub(then));
        let pause = match since_unlock {
            Some(seconds) => store.linger().saturating_sub(Duration::from_secs(seconds)),
            None => Duration::ZERO,
        };
        Ok(Lease {
            volume: volume.clone(),
            store,
            holder,
            layout: there.layout,
            pause,
            _machine: machine,
        })
    }

    /// What the container's lock says of us.
    pub fn client(&self) -> String {
        self.holder
            .as_ref()
            .map_or(String::new(), |holder| holder.0.clone())
    }

    /// Gives the volume back. Everything is durable, and no request of ours can
    /// take effect any more.
    pub async fn release(&self) -> Result<()> {
        match &self.holder {
            Some(holder) => meta::release(&*self.store, holder)
                .await
                .map_err(|error| explain::meta(&self.volume, &error)),
            None => Ok(()),
        }
    }
}
