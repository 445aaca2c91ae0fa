//! The right to a volume for as long as a transfer takes, and the way back to it
//! after the process was killed.
//!
//! The container's lock stays then, for nobody can know that its holder is dead:
//! except this machine, on which the volume's lock file (`registry::lock_volume`)
//! is free again. A record beside that file says what the container's lock looked
//! like and what it was for; the same command takes it over. The order: the lock
//! file; the record; the container's lock; the transfer; nothing of ours can take
//! effect any more; the container's lock is gone; the record is gone.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::interrupted;
use crate::config::Volume;
use crate::control::lease::unlocked_lately;
use crate::control::registry::{self, VolumeLock, since_epoch};
use crate::control::signals::Signals;
use crate::control::{container, explain, open, standing};
use crate::error::{Error, Exit, Result};
use crate::image::log::Log;
use crate::image::meta::{self, Format, Holder, MetaError};
use crate::stack::Container;
use crate::store::{ErrorKind, ObjectStore};

/// The longest record, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// What a volume is claimed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Its data is read.
    Download,
    /// Its data is replaced.
    Upload,
    /// It is made into another volume.
    Convert,
    /// It is made of another volume.
    Make,
    /// All of it is looked through.
    Check,
    /// Its passphrase is changed.
    Passphrase,
}

impl Verb {
    /// What the container's lock says.
    fn holder(self) -> Holder {
        Holder::tool(&format!("ctl-{}", self.name()), since_epoch())
    }

    fn name(self) -> &'static str {
        match self {
            Verb::Download => "download",
            Verb::Upload => "upload",
            Verb::Convert | Verb::Make => "convert",
            Verb::Check => "check",
            Verb::Passphrase => "passphrase",
        }
    }
}

/// What a killed transfer leaves behind on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// The container's lock.
    client: String,
    verb: Verb,
    /// What was uploaded, as it was then.
    source: String,
    /// The container was made by this transfer: there is nothing in it but what
    /// this source put there.
    fresh: bool,
}

/// A volume of which this process has the machine's lock, and nothing else yet.
#[derive(Debug)]
pub struct Place {
    volume: Volume,
    container: Container,
    record: PathBuf,
    machine: VolumeLock,
}

/// A volume that is ours until it is released.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    /// Nothing if an account that may not write reads a volume that nobody holds.
    holder: Option<Holder>,
    format: Format,
    resumed: bool,
    fresh: bool,
    /// Whether earlier requests may still be on their way that want something else
    /// than we do.
    differs: bool,
    /// From when on nothing of an earlier holder can take effect.
    quiet_at: Option<Instant>,
    /// What the record is to say from then on, if that is something else.
    pending: Option<Record>,
}

impl Place {
    /// Keeps every other process of this machine from the volume.
    pub fn enter(volume: &Volume) -> Result<Place> {
        Ok(Place {
            machine: registry::lock_volume(volume)?,
            record: registry::transfer_path(volume)?,
            container: container(volume)?,
            volume: volume.clone(),
        })
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The store for commands that are short.
    pub fn impatient(&self) -> &dyn ObjectStore {
        &*self.container.impatient
    }

    /// Refuses a volume of format 2 that somebody has. `client` is what the container's
    /// lock says.
    pub async fn may_claim(&self, client: Option<&Holder>) -> Result<()> {
        let (volume, machine) = (&self.volume, Some(&self.machine));
        let notice = standing::may_claim(self.impatient(), volume, client, machine, false).await?;
        if let Some(notice) = notice {
            tell(&notice);
        }
        Ok(())
    }

    /// Opens the volume, of format 2.
    pub async fn open(&self, volume: &Volume) -> Result<Log> {
        open::log(volume, &self.machine, &self.container).await
    }

    /// Locks the volume. `source` says what is uploaded, so that a change of it is
    /// noticed; `fresh` that there was no container before.
    pub async fn claim(self, verb: Verb, source: &str, fresh: bool) -> Result<Claim> {
        let store = self.impatient();
        let there = match verb {
            Verb::Make => meta::read_unfinished(store).await,
            _ => meta::read(store).await,
        };
        let mut there = there.map_err(|error| explain::meta(&self.volume, &error))?;
        if matches!(there.format, Format::Log { .. })
            && there.client.as_ref().is_none_or(Holder::is_daemon)
        {
            self.may_claim(there.client.as_ref()).await?;
            if let Some(dead) = there.client.take() {
                let released = meta::release(store, &dead, false).await;
                released.map_err(|error| explain::meta(&self.volume, &error))?;
            }
        }
        let mut record = Record {
            client: verb.holder().0,
            verb,
            source: source.to_owned(),
            fresh,
        };
        let resumed = match &there.client {
            Some(client) => {
                let left = self.left_behind(client, verb)?;
                record.fresh = left.fresh && left.source == source;
                record.client = left.client;
                Some(left.source == source)
            }
            None => None,
        };
        // Until the wait for what another source has left on its way is over, the
        // record is of no source: whoever takes this one up has to wait as well.
        let pending = (resumed == Some(false)).then(|| record.clone());
        if pending.is_some() {
            record.source.clear();
        }
        self.write(&record)?;
        let mut holder = Some(Holder(record.client));
        let lock = async |ours: &Holder| match verb {
            Verb::Make => meta::lock_unfinished(store, ours).await,
            _ => meta::lock(store, ours).await,
        };
        if let (None, Some(ours)) = (resumed, &holder)
            && let Err(error) = lock(ours).await
        {
            // After any other failure the lock may be there, and is ours to take up.
            if matches!(error, MetaError::Locked(_)) {
                let _ = fs::remove_file(&self.record);
            }
            holder = None;
            self.check_may_go_unlocked(verb, &error)?;
        }
        // In format 2 nothing of an earlier holder is read.
        let in_place = matches!(there.format, Format::Objects(_));
        let lately = in_place && unlocked_lately(there.unlocked);
        // Only an upload that was killed has left something on its way.
        let earlier = lately || (in_place && resumed.is_some() && verb == Verb::Upload);
        let quiet_at = earlier.then(|| Instant::now() + self.impatient().linger());
        Ok(Claim {
            holder,
            format: there.format,
            resumed: resumed.is_some(),
            fresh: record.fresh,
            differs: lately || (in_place && resumed == Some(false)),
            quiet_at,
            pending,
            place: self,
        })
    }

    /// An account that may not write reads a volume all the same, if it is configured
    /// so.
    fn check_may_go_unlocked(&self, verb: Verb, error: &MetaError) -> Result<()> {
        let volume = &self.volume;
        match error {
            MetaError::Store(refused)
                if verb == Verb::Download
                    && volume.read_only
                    && refused.kind == ErrorKind::Denied =>
            {
                tracing::warn!(
                    volume = volume.name,
                    "this account may not lock the volume; if somebody writes to it meanwhile, \
                     the image may be a mixture"
                );
                Ok(())
            }
            error => Err(explain::meta(volume, error)),
        }
    }

    /// The record of a transfer that was killed and holds the volume, if it was the
    /// same command.
    fn left_behind(&self, client: &Holder, verb: Verb) -> Result<Record> {
        match self.read() {
            Some(record) if record.client != client.0 => {}
            Some(record) if record.verb == verb => return Ok(record),
            Some(record) => {
                let (name, other) = (&self.volume.name, record.verb.name());
                let text = format!("volume {name}: its {other} was interrupted here");
                return Err(Error::new(Exit::InUse, text).hint(format!(
                    "the same {other} again finishes it; `swiftnbd unlock {name}` gives it up"
                )));
            }
            None => {}
        }
        let error = MetaError::Locked(client.clone());
        Err(explain::meta(&self.volume, &error))
    }

    fn read(&self) -> Option<Record> {
        let mut text = String::new();
        let file = fs::File::open(&self.record).ok()?;
        file.take(MAX_RECORD).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the record, whole or not at all.
    fn write(&self, record: &Record) -> Result<()> {
        let new = self.record.with_extension("new");
        let write = || -> io::Result<()> {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options
                .open(&new)?
                .write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&new, &self.record)
        };
        let path = self.record.display();
        write().map_err(|error| Error::failed(format!("cannot write {path}: {error}")))
    }
}

/// Tells a person, if one is there.
fn tell(notice: &str) {
    tracing::info!("{notice}");
    if std::io::stderr().is_terminal() {
        eprintln!("swiftnbd: {notice}");
    }
}

impl Claim {
    /// Opens the volume, of format 2.
    pub async fn open(&self, volume: &Volume) -> Result<Log> {
        self.place.open(volume).await
    }

    /// The volume's format and geometry, as its container tells.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.place.container
    }

    /// The store for the transfer.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.place.container.diligent)
    }

    /// Whether a transfer that was killed is taken up again.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Whether the container holds nothing but what this transfer put there.
    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// Waits for requests of an earlier holder that would spoil what we do. Those of
    /// a killed transfer with the same aim are harmless until the volume is
    /// released.
    pub async fn await_quiet(&self, signals: &mut Signals) -> Result<()> {
        match self.quiet_at {
            Some(at) if self.differs => self.wait_until(at, signals).await?,
            _ => {}
        }
        match &self.pending {
            Some(record) => self.place.write(record),
            None => Ok(()),
        }
    }

    async fn wait_until(&self, at: Instant, signals: &mut Signals) -> Result<()> {
        let left = at.saturating_duration_since(Instant::now()).as_secs();
        if left > 0 {
            let notice = format!(
                "volume {}: waiting {left} s for requests of its last holder that may still be on \
                 their way",
                self.place.volume.name
            );
            tell(&notice);
        }
        tokio::select! {
            () = sleep_until(at) => Ok(()),
            () = signals.recv() => Err(interrupted()),
        }
    }

    /// Fails if the lock was taken away meanwhile: then what was transferred may be
    /// a mixture.
    pub async fn check(&self) -> Result<()> {
        let volume = &self.place.volume;
        let Some(holder) = &self.holder else {
            return Ok(());
        };
        let client = meta::client(self.place.impatient()).await;
        let client = client.map_err(|error| explain::store(volume, &error))?;
        if client.as_ref() == Some(holder) {
            return Ok(());
        }
        let how = match client {
            Some(other) => format!("is held by {other} now"),
            None => "was taken away".to_owned(),
        };
        let text = format!("volume {}: its lock {how}", volume.name);
        Err(Error::new(Exit::InUse, text)
            .hint("somebody may have changed it meanwhile: run the same command again"))
    }

    /// Gives the volume back, once nothing of ours can take effect any more. A
    /// signal ends the wait for that; then the volume stays locked, and the same
    /// command can take it up again.
    pub async fn release(self, signals: &mut Signals) -> Result<()> {
        let volume = &self.place.volume;
        let Some(holder) = &self.holder else {
            return Ok(());
        };
        let locked = |error: Error| error.context(format!("volume {} stays locked", volume.name));
        let store = self.store();
        tokio::select! {
            () = store.settle() => {}
            () = signals.recv() => return Err(locked(interrupted())),
        }
        if let Some(at) = self.quiet_at {
            self.wait_until(at, signals).await.map_err(locked)?;
        }
        let released = meta::release(self.place.impatient(), holder, true).await;
        if matches!(released, Ok(()) | Err(MetaError::Locked(_))) {
            let _ = fs::remove_file(&self.place.record);
        }
        released.map_err(|error| locked(explain::meta(volume, &error)))
    }
}
