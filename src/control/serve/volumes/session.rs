//! The exports as one client sees them. Knows: when a client waits, and what it
//! keeps open. Does not know: how a volume is leased.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::{Entry, Volumes};
use crate::control::signals::Signals;
use crate::device::{Device, Shape};
use crate::error::Error;
use crate::nbd::{Export, Exports, Unavailable};

/// How long a client waits until the volume that it chose is leased. Longer, and
/// those who wait for one volume would take the places of everyone.
const LONGEST_LEASING: Duration = Duration::from_secs(60);

/// Keeps a volume from being given back.
#[derive(Debug)]
struct Hold(Arc<Entry>);

impl Hold {
    fn of(entry: &Arc<Entry>) -> Hold {
        entry.clients.fetch_add(1, Ordering::SeqCst);
        Hold(Arc::clone(entry))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.0.clients.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.left.notify_one();
        }
    }
}

/// The exports as one client sees them. What it has opened stays open for as long
/// as this lives.
#[derive(Debug)]
pub(in crate::control::serve) struct Session {
    volumes: Arc<Volumes>,
    hold: SyncMutex<Option<Hold>>,
}

impl Session {
    pub(in crate::control::serve) fn new(volumes: Arc<Volumes>) -> Session {
        Session {
            volumes,
            hold: SyncMutex::new(None),
        }
    }
}

#[async_trait]
impl Exports for Session {
    fn list(&self) -> Vec<Export> {
        let entries = self.volumes.entries.iter();
        entries.map(|entry| entry.export()).collect()
    }

    async fn inspect(&self, name: &str) -> std::result::Result<Option<Shape>, Unavailable> {
        let Some(entry) = self.volumes.find(name) else {
            return Ok(None);
        };
        let shape = entry.inspect().await;
        shape.map(Some).map_err(|error| unavailable(name, &error))
    }

    async fn open(&self, name: &str) -> std::result::Result<Option<Device>, Unavailable> {
        let Some(entry) = self.volumes.find(name) else {
            return Ok(None);
        };
        let hold = Hold::of(entry);
        let entry = Arc::clone(entry);
        let leasing = async move {
            let open = Arc::clone(&entry.open).lock_owned().await;
            // Its own task: it holds a lock in Swift, and this client may go away.
            let leasing = tokio::spawn(async move {
                let mut signals = Signals::listen()?;
                let device = entry.lease(open, &mut signals).await;
                device.map(|device| (device, hold))
            });
            leasing
                .await
                .unwrap_or_else(|error| Err(Error::failed(error.to_string())))
        };
        let leased = timeout(LONGEST_LEASING, leasing).await;
        let leased = leased.unwrap_or_else(|_| {
            Err(Error::failed(format!(
                "volume {name}: it is still being leased or given back after {} s; try again later",
                LONGEST_LEASING.as_secs()
            )))
        });
        let (device, hold) = leased.map_err(|error| unavailable(name, &error))?;
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = Some(hold);
        Ok(Some(device))
    }
}

fn unavailable(name: &str, error: &Error) -> Unavailable {
    tracing::warn!(export = name, "not served: {}", error.message);
    Unavailable(error.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_lease_for_ever() {
        let sources = Sources {
            store: Some("dir:/nowhere".to_owned()),
            ..Sources::in_dir("/nowhere")
        };
        let volume = Config::load(&sources).unwrap().volume("disk").unwrap();
        let volumes = Volumes::new(vec![volume], true);
        let entry = &volumes.entries[0];
        let busy = entry.open.lock().await;
        let session = Session::new(Arc::clone(&volumes));
        let Err(Unavailable(why)) = session.open("disk").await else {
            panic!("nobody has leased it");
        };
        assert!(why.contains("after 60 s"), "{why}");
        // It keeps nothing from being given back.
        assert!(!entry.is_used());
        drop(busy);
    }
}
