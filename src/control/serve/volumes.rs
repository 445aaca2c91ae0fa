//! The exports: when a volume is leased and when it is given back.
//!
//! | a volume is      | how it gets there                       | what INFO does       |
//! |------------------|-----------------------------------------|----------------------|
//! | idle             | at the start, with leasing on demand    | reads the metadata   |
//! | being leased     | its first client chooses it             | reads the metadata   |
//! | open             | leased; all its clients share one image | asks the image       |
//! | being given back | no client for [`IDLE`], all is durable  | reads the metadata   |
//!
//! Reading the metadata takes no lock, so a listing of exports stops nobody. What
//! leases and gives back is a task of its own: a client that goes away in the
//! middle leaves no lock behind that nobody knows of. A client that comes while a
//! volume is given back waits, and then leases it anew.

mod session;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub(super) use self::session::Session;
use crate::config::{Volume, format_size};
use crate::control::lease::Lease;
use crate::control::signals::Signals;
use crate::control::{container, explain};
use crate::device::{Device, Shape};
use crate::error::{Error, Exit, Result};
use crate::image::meta;
use crate::nbd::Export;

/// A volume that is leased on demand is given back when nobody has used it for so
/// long: one tool after the other finds it open, and another host soon gets it.
const IDLE: Duration = Duration::from_secs(5);

/// The last chance of what is to be saved, once the server has to end.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// Between two attempts to close a volume or to unlock its container.
const BETWEEN_ENDINGS: Duration = Duration::from_secs(5);

/// All volumes of a server.
#[derive(Debug)]
pub(super) struct Volumes {
    entries: Vec<Arc<Entry>>,
    on_demand: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// With the credentials that were valid last.
    volume: SyncMutex<Volume>,
    /// Held while it is leased or given back. Nothing: it is idle.
    open: Arc<Mutex<Option<Opened>>>,
    /// The device, for as long as it is open: for figures.
    device: SyncMutex<Option<Device>>,
    clients: AtomicUsize,
    /// The last client left.
    left: Notify,
}

#[derive(Debug)]
struct Opened {
    lease: Lease,
    device: Device,
}

impl Volumes {
    pub(super) fn new(volumes: Vec<Volume>, on_demand: bool) -> Arc<Volumes> {
        let entry = |volume: Volume| {
            Arc::new(Entry {
                name: volume.name.clone(),
                volume: SyncMutex::new(volume),
                open: Arc::default(),
                device: SyncMutex::new(None),
                clients: AtomicUsize::new(0),
                left: Notify::new(),
            })
        };
        Arc::new(Volumes {
            entries: volumes.into_iter().map(entry).collect(),
            on_demand,
        })
    }

    /// Leases every volume, unless that waits for a client.
    pub(super) async fn lease_all(&self, signals: &mut Signals) -> Result<()> {
        if !self.on_demand {
            for entry in &self.entries {
                let open = Arc::clone(&entry.open).lock_owned().await;
                entry.lease(open, signals).await?;
            }
        }
        Ok(())
    }

    /// Starts the tasks that give back what nobody uses, if volumes are leased on
    /// demand. They end when they are dropped.
    pub(super) fn start_keepers(&self) -> JoinSet<()> {
        let mut keepers = JoinSet::new();
        if self.on_demand {
            for entry in &self.entries {
                keepers.spawn(keep(Arc::clone(entry)));
            }
        }
        keepers
    }

    /// Makes everything durable and unlocks, however long it takes: a second signal
    /// ends the wait, and fails with what is lost. `interrupted`: it has come
    /// already.
    pub(super) async fn end(&self, signals: &mut Signals, interrupted: bool) -> Result<()> {
        let all = join_all(self.entries.iter().map(|entry| entry.end()));
        let given_up = async {
            match interrupted {
                true => drop(timeout(LAST_CHANCE, signals.recv()).await),
                false => signals.recv().await,
            }
        };
        tokio::select! {
            ended = all => return ended.into_iter().collect(),
            () = given_up => {}
        }
        let lost: Vec<_> = self
            .entries
            .iter()
            .filter_map(|entry| entry.lost())
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        lost.iter().for_each(|lost| tracing::error!("{lost}"));
        Err(Error::failed(lost.join("; ")).hint(
            "requests may still be on their way; when the store works again, `swiftnbd serve` or \
             `swiftnbd attach` takes them up again: here at once, or in format 1 after half a \
             minute; elsewhere when the lease has run out",
        ))
    }

    /// Bytes of clean and of dirty data in memory, in all that is open.
    pub(super) fn memory(&self) -> (u64, u64) {
        let open = self.entries.iter().filter_map(|entry| entry.device());
        open.fold((0, 0), |(cached, dirty), device| {
            let stats = device.stats();
            (cached + stats.cached_bytes, dirty + stats.dirty_bytes)
        })
    }

    fn find(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// Gives a volume back whenever nobody uses it any more.
async fn keep(entry: Arc<Entry>) {
    loop {
        entry.left.notified().await;
        loop {
            sleep(IDLE).await;
            if entry.is_used() || entry.give_back().await {
                break;
            }
        }
    }
}

impl Entry {
    fn is_used(&self) -> bool {
        self.clients.load(Ordering::SeqCst) > 0
    }

    fn device(&self) -> Option<Device> {
        let device = self.device.lock();
        device.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_device(&self, device: Option<Device>) {
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = device;
    }

    fn volume(&self) -> Volume {
        let volume = self.volume.lock();
        volume.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The volume with its credentials as they are configured now; with the old
    /// ones if that cannot be read.
    fn volume_now(&self) -> Volume {
        let mut volume = self.volume.lock().unwrap_or_else(PoisonError::into_inner);
        match volume.reread() {
            Ok(backend) => volume.backend = backend,
            Err(error) => tracing::error!(
                volume = self.name,
                "cannot read the configuration again: {}; the old credentials stay",
                error.message
            ),
        }
        volume.clone()
    }

    /// The volume's device; leases it first if it is idle. `open` is the entry's
    /// own.
    async fn lease(
        &self,
        mut open: OwnedMutexGuard<Option<Opened>>,
        signals: &mut Signals,
    ) -> Result<Device> {
        if let Some(opened) = &*open {
            return Ok(opened.device.clone());
        }
        let lease = Lease::take(&self.volume_now(), false).await?;
        let notice = |text: &str| tracing::info!("{text}");
        let opened = lease.open(notice, signals.recv()).await;
        let device = match opened {
            Ok(device) => device,
            Err(error) => {
                // Until then nobody else leases it, and the end waits.
                let name = self.name.clone();
                tokio::spawn(async move {
                    unlock(&name, &lease).await;
                    drop(open);
                });
                return Err(error);
            }
        };
        tracing::info!(volume = self.name, "leased");
        self.set_device(Some(device.clone()));
        *open = Some(Opened {
            lease,
            device: device.clone(),
        });
        Ok(device)
    }

    /// What an end at this moment leaves behind.
    fn lost(&self) -> Option<String> {
        let name = &self.name;
        match self.device() {
            Some(device) => {
                let stats = device.stats();
                let journal = stats.log.and_then(|log| log.journal);
                let journaled = journal.is_some_and(|journal| journal.relied_on);
                Some(match (stats.dirty_bytes, journaled) {
                    (0, _) => format!("volume {name}: all is durable, but it stays locked"),
                    (dirty, true) => format!(
                        "volume {name}: {} are in the journal only; it stays locked",
                        format_size(dirty)
                    ),
                    (dirty, false) => format!(
                        "volume {name}: {} were not durable and are lost; it stays locked",
                        format_size(dirty)
                    ),
                })
            }
            // Somebody leases it, or cannot unlock it.
            None if self.open.try_lock().is_err() => Some(format!(
                "volume {name}: it was being leased or unlocked; it may stay locked"
            )),
            None => None,
        }
    }

    /// Makes everything durable and unlocks, unless somebody has come meanwhile.
    /// False if that failed and has to be tried again.
    async fn give_back(&self) -> bool {
        // Before anybody has to wait for it: Swift may be out of reach for long.
        if let Some(device) = self.device()
            && let Err(error) = device.flush().await
        {
            let error = explain::device(&error);
            if error.exit != Exit::InUse {
                let why = error.message;
                tracing::error!(volume = self.name, "cannot store what is dirty: {why}");
                return false;
            }
        }
        let mut open = self.open.lock().await;
        // Whoever comes from here on waits for the lock.
        if !self.is_used()
            && let Err(error) = self.close(&mut open).await
        {
            tracing::error!("{}", error.message);
        }
        true
    }

    /// As [`Volumes::end`], for one volume.
    async fn end(&self) -> Result<()> {
        let mut open = self.open.lock().await;
        let closed = self.close(&mut open).await;
        if let Err(error) = &closed {
            tracing::error!("{}", error.message);
        }
        closed
    }

    /// Fails if somebody else has attached the volume: it is theirs then, and so is the
    /// lock.
    async fn close(&self, open: &mut Option<Opened>) -> Result<()> {
        let name = &self.name;
        let Some(opened) = &*open else {
            return Ok(());
        };
        let closed = loop {
            let Err(error) = opened.device.close().await else {
                break Ok(());
            };
            let why = explain::device(&error);
            if why.exit == Exit::InUse {
                let lost = opened.device.stats().dirty_bytes;
                break Err(explain::taken_over(&format!("volume {name}"), &why, lost));
            }
            tracing::error!(volume = name, %error, "cannot store what is dirty");
            sleep(BETWEEN_ENDINGS).await;
        };
        if closed.is_ok() && unlock(name, &opened.lease).await {
            tracing::info!(volume = name, "everything is durable, unlocked");
        }
        // Only now: whoever drops this future in the middle leaves it open.
        self.set_device(None);
        *open = None;
        closed
    }

    /// What the container says, without a lock.
    async fn inspect(&self) -> Result<Shape> {
        if let Some(device) = self.device() {
            return Ok(device.shape());
        }
        let volume = self.volume_now();
        let store = container(&volume)?.impatient;
        let found = meta::read(&*store).await;
        let found = found.map_err(|error| explain::meta(&volume, &error))?;
        let (size, block_size) = (found.format.size(), found.format.block_size());
        Ok(Shape::new(size, block_size, volume.read_only))
    }

    fn export(&self) -> Export {
        let container = self.volume().container;
        let description = match self.device() {
            Some(device) => format!("{} in container {container}", format_size(device.size())),
            None => format!("container {container}"),
        };
        Export {
            name: self.name.clone(),
            description,
        }
    }
}

/// Gives a lease back, however long it takes. False if somebody else has taken it
/// over.
async fn unlock(name: &str, lease: &Lease) -> bool {
    while let Err(error) = lease.release().await {
        tracing::error!(volume = name, "cannot unlock: {}", error.message);
        if error.exit == Exit::InUse {
            return false;
        }
        sleep(BETWEEN_ENDINGS).await;
    }
    true
}
