//! The life of an attached device: requests on its control socket, signals, and
//! the orderly end. [`daemon`](super::daemon) has the order of events.

mod restart;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use self::restart::{Restart, respond};
use super::attachment::Attachment;
use super::daemon::disconnect;
use super::explain;
use super::handover::{Handed, Told};
use super::lease::{Lease, way_back};
use super::metrics;
use super::netlink::Nbd;
use super::registry::{self, Entry, Figures, MAX_LINE, Request, Response};
use super::service;
use super::signals::Signals;
use super::sysfs::{self, NotReleased};
use crate::config::{NbdDevice, format_size};
use crate::device::Device;
use crate::error::{Error, Exit, Result};
use crate::nbd::transmission::Ended as How;
use crate::store::ObjectStore;

/// How long `detach --force` tries to save what it can, unless told.
const FORCED_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts at what has to succeed in the end.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// Between two attempts to close a volume or to unlock a container.
const BETWEEN_ENDINGS: Duration = Duration::from_secs(5);
/// Between two sentences for the service manager.
const BETWEEN_SENTENCES: Duration = Duration::from_secs(10);
/// From so many seconds on, they say how far Swift is behind.
const BEHIND: u64 = 30;
/// Control connections that are served at a time.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to send its request, or to read the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// A device's control socket and signals.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    listener: UnixListener,
    signals: Signals,
    outcome: watch::Sender<Option<Vec<String>>>,
    restarts: mpsc::Receiver<Restart>,
    metrics: Option<metrics::Listener>,
}

/// A task that ends when nobody has it any more.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    number: NbdDevice,
    device: Device,
    nbd: Arc<Nbd>,
    /// Somebody wants the device to be detached as soon as nobody holds it.
    leave: Notify,
    /// What the end may not wait for any longer, once somebody forced it.
    forced: watch::Sender<Option<Forced>>,
    clients: Semaphore,
    /// Held while the device is written out: one at a time, for that cannot be
    /// interrupted and takes a thread.
    writing_out: Arc<Semaphore>,
    /// DISCONNECT was sent.
    disconnected: AtomicBool,
    /// The registry says that no other daemon can go on with the device.
    alone: AtomicBool,
    /// Held by whoever ends the device's service here: a detach, or a restart.
    ending: Arc<Mutex<()>>,
    /// Restarts that are ready, for the one task that can carry them out.
    restarts: mpsc::Sender<Restart>,
    store: Arc<dyn ObjectStore>,
    told: Told,
    place: String,
    backend: String,
    entry: Entry,
}

/// How a session ends.
pub enum Ended {
    /// The device is disconnected.
    Over(Result<()>),
    /// The device goes on in another program, which has everything now.
    HandedOver(Box<Handed>),
}

/// How patient the end is.
#[derive(Debug, Clone, Copy)]
struct Forced {
    until: Instant,
    /// Whether data may be given up; else only the unlocking.
    give_up_data: bool,
}

impl Session {
    /// Makes a device's control socket. Within a tokio runtime.
    pub fn listen(number: NbdDevice) -> Result<UnixListener> {
        let path = registry::socket_path(number)?;
        let _ = std::fs::remove_file(&path);
        // The directory is root's alone.
        UnixListener::bind(&path)
            .map_err(|error| Error::failed(format!("cannot listen on {}: {error}", path.display())))
    }

    /// Serves on this socket, of which the registry tells. Within a tokio runtime.
    pub fn start(
        attachment: &Attachment,
        listener: UnixListener,
        signals: Signals,
        lease: &Lease,
        told: Told,
        place: String,
    ) -> Session {
        let number = attachment.number;
        let (restart, restarts) = mpsc::channel(1);
        let shared = Shared {
            number,
            device: attachment.device.clone(),
            nbd: Arc::clone(&attachment.nbd),
            leave: Notify::new(),
            forced: watch::Sender::new(None),
            clients: Semaphore::new(MAX_CLIENTS),
            writing_out: Arc::new(Semaphore::new(1)),
            disconnected: AtomicBool::new(false),
            alone: AtomicBool::new(false),
            ending: Arc::default(),
            restarts: restart,
            store: lease.store(),
            told,
            place,
            backend: attachment.backend.clone(),
            entry: attachment.entry.clone(),
        };
        let outcome = watch::Sender::new(None);
        Session {
            shared: Arc::new(shared),
            listener,
            signals,
            outcome,
            restarts,
            metrics: None,
        }
    }

    /// Has the figures be read there.
    pub fn measure(&mut self, listener: metrics::Listener) {
        self.metrics = Some(listener);
    }

    /// Detach as soon as nobody holds the device.
    pub fn leave(&self) {
        self.shared.leave.notify_one();
    }

    /// Serves until the kernel lets go of the device, then ends in order; or until the
    /// device goes on in another program.
    pub async fn run(mut self, attachment: Attachment, lease: &Lease) -> Ended {
        let mut clients = JoinSet::new();
        let mut transmission = attachment.transmission;
        let mut connected = attachment.connected;
        let mut leaving = JoinSet::new();
        let mut restart = None;
        let mut telling = interval(BETWEEN_SENTENCES);
        telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let _measured = self.metrics.take().map(|listener| {
            let shared = Arc::clone(&self.shared);
            AbortOnDrop(tokio::spawn(listener.serve(move || shared.metrics())))
        });
        let ended = loop {
            tokio::select! {
                ended = &mut transmission.task => match (ended, restart.take()) {
                    (Ok((stream, Ok(How::Stopped))), Some(asked)) => {
                        match self.hand_over(asked, stream, !leaving.is_empty()).await {
                            Ok(mut handed) => {
                                handed.netlink = connected.take();
                                return Ended::HandedOver(Box::new(handed));
                            }
                            Err(stream) => {
                                let device = self.shared.device.clone();
                                transmission = transmission.go_on(stream, device);
                            }
                        }
                    }
                    (ended, asked) => {
                        if let Some(asked) = asked {
                            let why = Error::failed("it was disconnected meanwhile");
                            respond(asked.client, &Response::Failed(why)).await;
                        }
                        break ended.map(|(_, ended)| ended);
                    }
                },
                Some(asked) = self.restarts.recv(), if restart.is_none() => {
                    restart = Some(asked);
                    transmission.stop();
                }
                // Requests that still wait for the store will not be answered.
                () = self.shared.given_up() => {
                    transmission.task.abort();
                    break (&mut transmission.task).await.map(|(_, ended)| ended);
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (shared, outcome) = (Arc::clone(&self.shared), self.outcome.subscribe());
                        clients.spawn(async move { shared.serve(stream, outcome).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "control socket");
                        sleep(BETWEEN_TRIES).await;
                    }
                },
                Some(_) = clients.join_next() => {}
                Some(_) = leaving.join_next() => {}
                _ = telling.tick(), if leaving.is_empty() => {
                    service::status(&self.shared.sentence());
                    self.shared.look_after_journal();
                }
                () = self.signals.recv() => self.shared.leave.notify_one(),
                () = self.shared.leave.notified() => {
                    if leaving.is_empty() {
                        let shared = Arc::clone(&self.shared);
                        leaving.spawn(async move { shared.leave_when_released().await });
                    }
                }
            }
        };
        let number = self.shared.number;
        match ended {
            Ok(Ok(how)) => tracing::info!(device = %number, ?how, "disconnected"),
            Ok(Err(error)) => tracing::error!(device = %number, %error, "transmission failed"),
            Err(error) => tracing::error!(device = %number, %error, "transmission died"),
        }
        let ours = sysfs::connected_by(number) == Some(self.shared.entry.connected_by);
        if ours && !self.shared.disconnected.load(Ordering::Acquire) {
            self.shared.disconnect().await;
        }
        let result = self.shared.end(lease).await;
        let notes = match &result {
            Ok(()) => Vec::new(),
            Err(error) => vec![error.message.clone()],
        };
        self.outcome.send_replace(Some(notes));
        let _ = timeout(CLIENT_PATIENCE, async {
            while clients.join_next().await.is_some() {}
        })
        .await;
        Ended::Over(result)
    }
}

impl Shared {
    /// Serves one control connection; keeps it open until the process ends if it
    /// asked for the end.
    async fn serve(&self, mut stream: UnixStream, outcome: watch::Receiver<Option<Vec<String>>>) {
        let Ok(_place) = self.clients.try_acquire() else {
            return;
        };
        let Ok(Some(request)) = timeout(CLIENT_PATIENCE, read_request(&mut stream)).await else {
            return;
        };
        let response = match request {
            Request::Status => Response::Status(Box::new(self.figures())),
            Request::Restart { program } => match self.prepare_restart(&program).await {
                Ok((state, ending)) => {
                    let restart = Restart {
                        state,
                        program,
                        client: stream,
                        _ending: ending,
                    };
                    // Answered by whoever ends it.
                    let _ = self.restarts.send(restart).await;
                    return;
                }
                Err(error) => Response::Failed(error),
            },
            Request::Detach { force, timeout } => {
                self.detach(
                    &mut stream,
                    force,
                    timeout.map(Duration::from_secs),
                    outcome,
                )
                .await
            }
        };
        let Ok(mut line) = serde_json::to_vec(&response) else {
            return;
        };
        line.push(b'\n');
        let _ = timeout(CLIENT_PATIENCE, stream.write_all(&line)).await;
        if matches!(response, Response::Detached { .. }) {
            // Its end tells the client that the process has ended.
            std::mem::forget(stream);
        }
    }

    /// A device whose journal has failed is not to go on with another daemon, for that
    /// one could not know what this one has answered.
    fn look_after_journal(&self) {
        let journal = self.device.stats().log.and_then(|log| log.journal);
        let failed = journal.is_some_and(|journal| !journal.relied_on);
        if !failed || self.alone.swap(true, Ordering::AcqRel) {
            return;
        }
        let entry = Entry {
            reattach_seconds: 0,
            ..self.entry.clone()
        };
        if let Err(error) = entry.write(self.number) {
            tracing::error!(device = %self.number, "{}", error.message);
        }
    }

    fn figures(&self) -> Figures {
        Figures {
            stats: self.device.stats(),
            traffic: self.device.traffic(),
            requests: self.store.requests(),
        }
    }

    /// The figures as Prometheus reads them.
    fn metrics(&self) -> String {
        metrics::text(&self.entry, &self.figures())
    }

    /// What the service manager is told now and then.
    fn sentence(&self) -> String {
        let (number, volume) = (self.number, &self.entry.volume);
        let stats = self.device.stats();
        let dirty = format_size(stats.dirty_bytes);
        let behind = match stats.log.map(|log| log.seconds_behind) {
            Some(seconds) if seconds >= BEHIND => {
                format!(", and Swift has not taken what was written {seconds} s ago")
            }
            _ => String::new(),
        };
        format!("volume {volume} is attached to {number}: {dirty} not durable yet{behind}")
    }

    /// One end at a time.
    fn begin_to_end(&self) -> Result<OwnedMutexGuard<()>> {
        Arc::clone(&self.ending).try_lock_owned().map_err(|_| {
            let text = format!("{} is being detached or restarted already", self.number);
            Error::new(Exit::InUse, text)
        })
    }

    /// Carries out a detach; the caller holds the device exclusively, unless it
    /// forces.
    async fn detach(
        &self,
        stream: &mut UnixStream,
        force: bool,
        patience: Option<Duration>,
        mut outcome: watch::Receiver<Option<Vec<String>>>,
    ) -> Response {
        let _ending = match (self.begin_to_end(), force) {
            (Ok(ending), _) => Some(ending),
            (Err(_), true) => None,
            (Err(error), false) => return Response::Failed(error),
        };
        let patience = if force {
            patience.or(Some(FORCED_PATIENCE))
        } else {
            patience
        };
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut gone = [0];
        let durable = tokio::select! {
            durable = self.make_durable_until(deadline) => durable,
            // The client gave up (or sent more than it should): so do we.
            _ = stream.read(&mut gone) => {
                return Response::Failed(Error::failed("the client has gone"));
            }
        };
        match durable {
            Err(error) if !force => return Response::Failed(error),
            Err(error) => tracing::error!("detaching by force: {}", error.message),
            Ok(()) => {}
        }
        self.forced.send_replace(deadline.map(|until| Forced {
            until,
            give_up_data: force,
        }));
        self.disconnect().await;
        let notes = outcome.wait_for(Option::is_some).await;
        Response::Detached {
            notes: notes
                .ok()
                .and_then(|notes| notes.clone())
                .unwrap_or_default(),
        }
    }

    async fn disconnect(&self) {
        self.disconnected.store(true, Ordering::Release);
        disconnect(&self.nbd, self.number).await;
    }

    /// Writes out what the kernel has buffered, then makes all of it durable.
    /// [`Exit::InUse`]: it cannot be made so any more, for somebody else has the volume.
    async fn make_durable(&self) -> Result<()> {
        let turn = Arc::clone(&self.writing_out).acquire_owned().await;
        let turn = turn.map_err(|error| Error::failed(error.to_string()))?;
        let number = self.number;
        let written = spawn_blocking(move || {
            let _turn = turn;
            sysfs::write_out(number)
        });
        let written = match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::failed(format!(
                "the kernel cannot write it: {error}"
            ))),
            Err(error) => Err(Error::failed(error.to_string())),
        };
        // The kernel does not know why it cannot write.
        self.flush().await.and(written)
    }

    /// The same, once nobody else ends the device's service; nobody does from then on.
    async fn make_durable_alone(&self) -> Result<()> {
        let ending = Arc::clone(&self.ending).lock_owned().await;
        let made = self.make_durable().await;
        if made.is_ok() {
            // Until the process ends.
            std::mem::forget(ending);
        }
        made
    }

    async fn flush(&self) -> Result<()> {
        let flushed = self.device.flush_to_store().await;
        flushed.map_err(|error| explain::device(&error))
    }

    async fn make_durable_until(&self, deadline: Option<Instant>) -> Result<()> {
        let done = match deadline {
            Some(deadline) => timeout_at(deadline, self.make_durable()).await.ok(),
            None => Some(self.make_durable().await),
        };
        let why = match done {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => error,
            None => Error::failed("the store did not take it in time"),
        };
        let (number, dirty) = (self.number, format_size(self.device.stats().dirty_bytes));
        let message = format!("{number}: {dirty} are not durable: {}", why.message);
        if why.exit == Exit::InUse {
            return Err(Error::new(Exit::InUse, message).hint(format!(
                "the volume is theirs now, and nothing more can be stored here: \
                 `swiftnbd detach --force {number}` ends the device"
            )));
        }
        Err(Error::new(Exit::Unreachable, message)
            .hint("the device goes on working; try again when the store does"))
    }

    /// Waits until nobody holds the device, keeping it durable meanwhile, and
    /// disconnects it.
    async fn leave_when_released(&self) {
        let number = self.number;
        let mut said = None;
        loop {
            // Whoever opens a device may have to wait for it, and so for us.
            let released = spawn_blocking(move || sysfs::release(number)).await;
            let why = match released {
                Ok(Ok(_released)) => match self.make_durable_alone().await {
                    Ok(()) => {
                        self.disconnect().await;
                        return;
                    }
                    // Nothing can be stored any more, however long it waits.
                    Err(error) if error.exit == Exit::InUse => {
                        self.disconnect().await;
                        return;
                    }
                    Err(error) => error.message,
                },
                Ok(Err(NotReleased::Held(who))) => {
                    // What the kernel has not written yet as well, once: whoever
                    // asked for the end may not wait for the rest.
                    let first = said.is_none();
                    self.cannot_yet(&mut said, &who);
                    let saved = match first {
                        true => self.make_durable().await,
                        false => self.flush().await,
                    };
                    if let Err(error) = saved {
                        tracing::error!(device = %number, "cannot flush: {}", error.message);
                    }
                    who
                }
                Ok(Err(NotReleased::Failed(error))) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.cannot_yet(&mut said, &why);
            sleep(BETWEEN_TRIES).await;
        }
    }

    /// Says why the end has to wait, unless that was the last thing said.
    fn cannot_yet(&self, said: &mut Option<String>, why: &str) {
        if said.as_deref() != Some(why) {
            tracing::warn!(device = %self.number, "asked to end, and cannot yet: {why}");
            service::status(&format!("asked to end, and cannot yet: {why}"));
            *said = Some(why.to_owned());
        }
    }

    /// The device is disconnected: makes everything durable and gives the volume
    /// back, however long it takes, unless somebody forced an end or has taken the
    /// volume over: then it is theirs, and their lock stays.
    async fn end(&self, lease: &Lease) -> Result<()> {
        let number = self.number;
        let journal = self.device.stats().log.and_then(|log| log.journal);
        let journaled = journal.is_some_and(|journal| journal.relied_on);
        let closed = self.persist("cannot store what is dirty", true, || async {
            let closed = self.device.close().await;
            closed.map_err(|error| explain::device(&error))
        });
        if let Err(error) = closed.await {
            let lost = self.device.stats().dirty_bytes;
            if error.exit == Exit::InUse {
                return Err(explain::taken_over(&number.to_string(), &error, lost));
            }
            let lost = match journaled {
                true => format!(
                    "{} could not be stored, and are in the journal",
                    format_size(lost)
                ),
                false => format!("{} could not be stored and are lost", format_size(lost)),
            };
            let text = format!(
                "{number}: {lost} ({}); the container stays locked, because requests may still be \
                 on their way; when the store works again: {}",
                error.message,
                way_back(lease.name(), lease.format())
            );
            return Err(Error::failed(text));
        }
        let unlocked = self.persist("cannot unlock the container", false, || async {
            lease.release().await
        });
        unlocked.await.map_err(|error| {
            Error::failed(format!(
                "{number}: everything is durable, but the container is still locked: {}",
                error.message
            ))
        })?;
        tracing::info!(device = %number, "detached: everything is durable, the container unlocked");
        Ok(())
    }

    /// Completes when data may be given up, and the time for saving it has passed.
    async fn given_up(&self) {
        self.time_is_up(|forced| forced.give_up_data).await;
    }

    /// Completes once somebody has forced the end in the way that `applies` says,
    /// and the time that is left has passed. Whatever that is, one attempt is worth
    /// a moment.
    async fn time_is_up(&self, applies: impl Fn(&Forced) -> bool) {
        let mut forced = self.forced.subscribe();
        let applied = forced
            .wait_for(|forced| forced.as_ref().is_some_and(&applies))
            .await;
        let until = applied.ok().and_then(|forced| Some((*forced)?.until));
        match until {
            Some(until) => {
                tokio::time::sleep_until(until.max(Instant::now() + BETWEEN_TRIES)).await
            }
            None => std::future::pending().await,
        }
    }

    /// Repeats until it succeeds, or until the end was forced and its time is up.
    async fn persist<F, T>(&self, what: &str, data: bool, work: F) -> Result<()>
    where
        F: Fn() -> T,
        T: Future<Output = Result<()>>,
    {
        let give_up = self.time_is_up(|forced| forced.give_up_data || !data);
        let insist = async {
            loop {
                match work().await {
                    Ok(()) => return Ok(()),
                    Err(error) if error.exit == Exit::InUse => return Err(error),
                    Err(error) => {
                        tracing::error!(device = %self.number, "{what}: {}", error.message)
                    }
                }
                sleep(BETWEEN_ENDINGS).await;
            }
        };
        tokio::select! {
            done = insist => done,
            () = give_up => Err(Error::failed("there was no time left")),
        }
    }
}

async fn read_request(stream: &mut UnixStream) -> Option<Request> {
    let mut line = Vec::new();
    let mut byte = [0];
    while (line.len() as u64) < MAX_LINE && stream.read(&mut byte).await.ok()? == 1 {
        if byte == *b"\n" {
            return serde_json::from_slice(&line).ok();
        }
        line.push(byte[0]);
    }
    None
}
