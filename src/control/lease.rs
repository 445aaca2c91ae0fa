//! The right to use a volume, as the commands see it. On one machine that is a lock
//! file. Beyond it the lease ([format 2](crate::image::log::lease),
//! [format 1](crate::image::objects::lease)), which whoever opens the volume takes; the
//! original's lock shows who that is, and in format 1 keeps the original's tools out.

use std::fs::File;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::sleep;

use super::registry::{self, VolumeLock, unix_now};
use super::reload::Reload;
use super::{explain, open, standing};
use crate::config::{Flush, Volume, format_size};
use crate::device::Device;
use crate::error::{Error, Exit, Result};
use crate::image::Image;
use crate::image::log::format::AttachId;
use crate::image::log::{self, LogError, Who};
use crate::image::meta::{self, Format, Holder, MetaError};
use crate::image::objects::Limits;
use crate::image::objects::layout::Layout;
use crate::image::objects::lease::{Before, wait_out};
use crate::stack::{self, Container};
use crate::store::{ErrorKind, ObjectStore};

/// After an unlock by hand, attaching waits for requests of the dead holder that
/// may still be on their way. When that was is told by the clock of whoever
/// unlocked, so an unlock counts as recent for as long as two machines' clocks may
/// be apart.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// Whether an unlock by hand at this time, in Unix seconds, counts as recent.
pub(super) fn unlocked_lately(then: Option<u64>) -> bool {
    then.is_some_and(|then| unix_now() < then.saturating_add(CLOCKS_DIFFER.as_secs()))
}

/// Refuses memory with which format 1 could not work.
pub(super) fn check_limits(volume: &Volume, layout: &Layout) -> Result<()> {
    let least = Limits::least_dirty(layout);
    if volume.dirty >= least {
        return Ok(());
    }
    let (name, dirty) = (&volume.name, format_size(volume.dirty));
    let text = format!("volume {name}: dirty = \"{dirty}\" is too little for its objects");
    Err(Error::usage(text).hint(format!("it must be at least {}", format_size(least))))
}

/// Refuses a journal for format 1, which has none.
pub(super) fn check_flush(volume: &Volume) -> Result<()> {
    let name = &volume.name;
    match volume.flush {
        Flush::Swift => Ok(()),
        Flush::Local => {
            let text =
                format!("volume {name}: flush = \"local\" needs format 2, and it is of format 1");
            let hint = format!("`swiftnbd convert {name} NEW` makes a copy in format 2");
            Err(Error::usage(text).hint(hint))
        }
    }
}

/// How a volume of this format that was not given back can be used again.
pub fn way_back(volume: &str, format: u8) -> String {
    let here = match format {
        1 => "here after half a minute",
        _ => "here at once",
    };
    format!(
        "`swiftnbd attach {volume}` takes it up again: {here}, elsewhere when its lease has run out"
    )
}

/// A volume that is ours to use.
#[derive(Debug)]
pub struct Lease {
    volume: Volume,
    container: Container,
    /// What the container's lock says; nothing if an account that may not write
    /// reads a volume that nobody holds.
    holder: Option<Holder>,
    /// Whether it says so already.
    shown: AtomicBool,
    there: meta::Volume,
    /// What is worth telling about the holder before.
    news: Option<String>,
    /// How long to wait before the first request that relies on it.
    pause: Duration,
    read_only: bool,
    /// The pause is over: nothing of an earlier holder can take effect any more.
    settled: AtomicBool,
    /// Our attachment.
    attach: AttachId,
    /// It goes on from the program before, all of whose requests have ended.
    resumed: bool,
    /// A person takes it from whoever has it.
    takeover: bool,
    /// Whose work ours goes on from, once it is open.
    goes_on_from: OnceLock<AttachId>,
    _reload: Reload,
    machine: VolumeLock,
}

impl Lease {
    /// Takes a volume, or says who has it. It is claimed only when it is opened;
    /// `takeover`: whoever has it.
    pub async fn take(volume: &Volume, takeover: bool) -> Result<Lease> {
        let container = super::container(volume)?;
        let reload = Reload::on_hangup(volume, &container)?;
        let store = &container.impatient;
        let machine = registry::lock_volume(volume)?;
        let holder = Holder::new(&registry::host_name(), std::process::id(), unix_now());
        let explained = |error| explain::meta(volume, &error);
        let there = meta::read(&**store).await.map_err(explained)?;
        if let Format::Log { .. } = there.format {
            let (client, lock) = (there.client.as_ref(), Some(&machine));
            let news = standing::may_claim(&**store, volume, client, lock, takeover).await?;
            return Ok(Lease {
                shown: AtomicBool::new(false),
                takeover,
                news,
                ..Lease::of(volume, container, reload, machine, Some(holder), there)
            });
        }
        let client = there.client.as_ref();
        let before = Before::find(&**store).await;
        let before = before.map_err(|error| explain::log(volume, &error))?;
        let lock = Some(&machine);
        let left = match client {
            Some(client) if !before.is_of(&client.0) => match before.released_by(&client.0) {
                Some(claim) => {
                    let there = (client, claim);
                    Some(standing::left(&**store, volume, there, lock, takeover).await?)
                }
                // The original's, an older program's, or a person's: it does not run out.
                None => return Err(explained(MetaError::Locked(client.clone()))),
            },
            _ => None,
        };
        let news = standing::may_claim(&**store, volume, client, lock, takeover).await?;
        let news = news.or(left);
        let mut there = there;
        let (holder, shown) = match &there.client {
            // It stays until nothing of theirs can take effect any more.
            Some(_) => (Some(holder), false),
            None => match meta::lock(&**store, &holder).await {
                Ok(_) => {
                    there.client = Some(holder.clone());
                    (Some(holder), true)
                }
                Err(MetaError::Store(error))
                    if volume.read_only && error.kind == ErrorKind::Denied =>
                {
                    tracing::warn!(
                        volume = volume.name,
                        "this account may not lock the volume; if somebody writes to it meanwhile, \
                         what is read here may be a mixture"
                    );
                    (None, false)
                }
                Err(error) => return Err(explained(error)),
            },
        };
        Ok(Lease {
            shown: AtomicBool::new(shown),
            takeover,
            news,
            pause: match unlocked_lately(there.unlocked) {
                true => store.linger(),
                false => Duration::ZERO,
            },
            ..Lease::of(volume, container, reload, machine, holder, there)
        })
    }

    /// The volume of the program before, whose lock on this machine is `file`, and which
    /// the container's lock shows as `client`'s. All of its requests have ended.
    pub async fn resume(volume: &Volume, file: File, client: &str) -> Result<Lease> {
        let container = super::container(volume)?;
        let reload = Reload::on_hangup(volume, &container)?;
        let machine = registry::adopt_lock(volume, file)?;
        let explained = |error| explain::meta(volume, &error);
        let there = meta::read(&*container.impatient).await.map_err(explained)?;
        let holder = (!client.is_empty()).then(|| Holder(client.to_owned()));
        let of_others = matches!(there.format, Format::Objects(_)) && there.client != holder;
        if of_others && let (Some(other), Some(_)) = (&there.client, &holder) {
            return Err(explained(MetaError::Locked(other.clone())));
        }
        if of_others && holder.is_some() {
            let text = format!("volume {}: somebody has unlocked it meanwhile", volume.name);
            return Err(Error::new(Exit::InUse, text));
        }
        Ok(Lease {
            resumed: true,
            ..Lease::of(volume, container, reload, machine, holder, there)
        })
    }

    /// One that `holder` shows already, and that waits for nothing.
    fn of(
        volume: &Volume,
        container: Container,
        reload: Reload,
        machine: VolumeLock,
        holder: Option<Holder>,
        there: meta::Volume,
    ) -> Lease {
        Lease {
            volume: volume.clone(),
            container,
            shown: AtomicBool::new(holder.is_some()),
            holder,
            there,
            news: None,
            pause: Duration::ZERO,
            read_only: volume.read_only,
            settled: AtomicBool::new(false),
            attach: AttachId::random(),
            resumed: false,
            takeover: false,
            goes_on_from: OnceLock::new(),
            _reload: reload,
            machine,
        }
    }

    /// The store that the volume is kept in.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.container.impatient)
    }

    /// The open file of the machine's lock, once more.
    pub fn lock_file(&self) -> std::io::Result<File> {
        self.machine.file()
    }

    /// Starts the volume, once nothing of an earlier holder can take effect any
    /// more; `notice` is told if that takes time. `interrupted` ends the wait. Within a
    /// tokio runtime.
    pub async fn open(
        &self,
        notice: impl Fn(&str),
        interrupted: impl Future<Output = ()>,
    ) -> Result<Device> {
        let mut interrupted = pin!(interrupted);
        let name = &self.volume.name;
        let ended = || Error::failed(format!("volume {name}: interrupted"));
        let volume = &self.volume;
        if let Format::Objects(layout) = &self.there.format {
            check_limits(volume, layout)?;
            check_flush(volume)?;
        }
        if !self.pause.is_zero() {
            notice(&format!(
                "volume {}: it was unlocked by hand; waiting {} s for requests of its last holder \
                 that may still be on their way",
                volume.name,
                self.pause.as_secs()
            ));
            tokio::select! {
                () = sleep(self.pause) => {}
                () = &mut interrupted => return Err(ended()),
            }
        }
        let (image, block_size): (Arc<dyn Image>, u32) = match self.there.format {
            Format::Objects(layout) => {
                if let Some(news) = &self.news {
                    notice(news);
                }
                let leased = tokio::select! {
                    leased = self.open_objects(layout, &notice) => leased?,
                    () = &mut interrupted => return Err(ended()),
                };
                (leased, self.there.format.block_size())
            }
            Format::Log { .. } => {
                if let Some(news) = &self.news {
                    notice(news);
                }
                let log = tokio::select! {
                    log = open::live(volume, &self.machine, &self.container, self.attach, self.takeover) => log?,
                    () = &mut interrupted => return Err(ended()),
                };
                if let Err(error) = self.show().await {
                    let closed = open::close(volume, &log).await;
                    return Err(closed.err().unwrap_or(error));
                }
                open::describe(volume, &self.container, &log, &self.there.format).await;
                let block_size = log.geometry().block_size;
                if let Some(before) = log.goes_on_from() {
                    let _ = self.goes_on_from.set(before);
                }
                (Arc::new(log), block_size)
            }
        };
        self.settled.store(true, Ordering::Release);
        Ok(Device::new(image, block_size, self.read_only))
    }

    /// Starts the volume of format 1, once it is ours and nothing of anybody else's can
    /// take effect any more.
    async fn open_objects(&self, layout: Layout, notice: &impl Fn(&str)) -> Result<Arc<dyn Image>> {
        let volume = &self.volume;
        if self.holder.is_none() {
            // It may not write there.
            let live = &self.container.patient;
            return Ok(Arc::new(stack::objects(volume, live, layout)));
        }
        let store = &self.container.impatient;
        let failed = |error| explain::log(volume, &error);
        let before = Before::find(&**store).await.map_err(failed)?;
        let host = self.client();
        if self.resumed
            && let Some(other) = before.of_another_than(&host)
        {
            return Err(failed(LogError::Superseded(Box::new(other.clone()))));
        }
        let shown = self.shown.load(Ordering::Acquire);
        let left = self.there.client.as_ref().filter(|_| !shown);
        let left = left.is_some_and(|client| before.released_by(&client.0).is_some());
        let unclean = (before.is_unclean() || left) && !self.resumed;
        let who = Who {
            attach: self.attach,
            host,
            dead: self.machine.dead(),
            ..open::who(volume)
        };
        self.machine.remember(self.attach)?;
        let lease = before.claim(Arc::clone(store), &who).await;
        let lease = Arc::new(lease.map_err(failed)?);
        let mut kept = lease.keeper();
        let waiting = |time: Duration| {
            notice(&format!(
                "volume {}: waiting {} s for requests of its last holder that may still be on \
                 their way",
                volume.name,
                time.as_secs()
            ));
        };
        let alone = tokio::select! {
            biased;
            alone = wait_out(&lease, &who, unclean, store.linger(), waiting) => alone,
            lost = kept.lost() => Err(lost),
        };
        alone.map_err(failed)?;
        if let Err(error) = self.lock(&lease).await {
            // Nothing was sent, and nobody need wait for us.
            let _ = lease.release().await;
            return Err(error);
        }
        Ok(Arc::new(stack::leased(
            volume,
            &self.container,
            layout,
            (lease, kept),
        )))
    }

    /// Has the container's lock show us, in format 1, instead of a holder who has lost the
    /// volume: whoever has no lease respects it.
    async fn lock(&self, lease: &log::lease::Lease) -> Result<()> {
        let Some(holder) = &self.holder else {
            return Ok(());
        };
        let store = &*self.container.impatient;
        let explained = |error| explain::meta(&self.volume, &error);
        match &self.there.client {
            Some(client) if client == holder => Ok(()),
            // One whose lease has ended, or who was taken by a person.
            Some(client) => {
                let now = meta::read(store).await.map_err(explained)?;
                match now.client {
                    Some(other) if other != *client && !lease.is_above(&other.0) => {
                        Err(explained(MetaError::Locked(other)))
                    }
                    _ => {
                        self.shown.store(true, Ordering::Release);
                        let shown = meta::show(store, holder, &self.there).await;
                        shown.map_err(|error| explained(error.into()))
                    }
                }
            }
            // It was ours.
            None => Ok(()),
        }
    }

    /// Has the container's lock say that the volume is ours. It decides nothing; but
    /// whoever deletes the volume has looked for our claim before that, or left a mark.
    async fn show(&self) -> Result<()> {
        let Some(holder) = &self.holder else {
            return Ok(());
        };
        let (store, name) = (&*self.container.impatient, &self.volume.name);
        self.shown.store(true, Ordering::Release);
        if let Err(error) = meta::show(store, holder, &self.there).await {
            tracing::warn!(volume = name, %error, "the container's lock does not show who has it");
        }
        match meta::read(store).await {
            Err(error @ MetaError::Deleting) => Err(explain::meta(&self.volume, &error)),
            _ => Ok(()),
        }
    }

    /// Our attachment.
    pub fn attach(&self) -> AttachId {
        self.attach
    }

    /// Whether the volume was, before us, as one of these attachments left it.
    pub fn goes_on_from(&self, attachments: &[String]) -> bool {
        let before = self.goes_on_from.get().map(AttachId::to_string);
        before.is_some_and(|before| attachments.contains(&before))
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.volume.name
    }

    /// The volume's format, 1 or 2.
    pub fn format(&self) -> u8 {
        self.there.format.number()
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
        let Some(holder) = &self.holder else {
            return Ok(());
        };
        if !self.shown.load(Ordering::Acquire) {
            return Ok(());
        }
        let settled = self.settled.load(Ordering::Acquire);
        let log = matches!(self.there.format, Format::Log { .. });
        match meta::release(&*self.container.impatient, holder, settled).await {
            // Somebody else has claimed the volume since, and shows it.
            Err(MetaError::Locked(_)) if log => Ok(()),
            released => released.map_err(|error| explain::meta(&self.volume, &error)),
        }
    }
}
