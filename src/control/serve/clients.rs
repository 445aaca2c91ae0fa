//! The clients: how many there may be, and the life of one.
//!
//! What a client may cost the others is bounded: places, those of one machine
//! among them; the time of a handshake; memory in flight, its own and the common
//! part; the time that it keeps a reply or a half request waiting. One that
//! exceeds them is closed; nothing happens to the others.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::Instrument;

use super::listener::{Listener, Peer, Stream};
use super::traffic::{Counted, Traffic};
use super::volumes::{Session, Volumes};
use crate::control::signals::Signals;
use crate::nbd::{
    Chosen, HandshakeError, Limits, Outcome, Pool, Terms, Tls, TransmissionError, negotiate, serve,
};

/// Clients that are served at a time.
const MOST_CLIENTS: usize = 64;

/// Of those, the ones that come from one other machine.
const MOST_OF_ONE_MACHINE: usize = 32;

/// Memory for requests in flight: what all clients share, and what each has for
/// itself, in bytes. A client may hold [`Limits::bytes`] of both together.
const COMMON_MEMORY: u32 = 256 << 20;
const OWN_MEMORY: u64 = 2 << 20;

/// How long a client may leave a request half sent, or a reply untaken.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a client may take to notice that it is over.
const FAREWELL: Duration = Duration::from_secs(1);

/// Lines in the log about clients that fail or are turned away, in a time; the
/// others are counted.
const MOST_COMPLAINTS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// What all clients share.
pub(super) struct Clients {
    volumes: Arc<Volumes>,
    tls: Option<TlsAcceptor>,
    traffic: Arc<Traffic>,
    pool: Pool,
    places: Arc<Mutex<Places>>,
    complaints: Mutex<Complaints>,
}

impl Clients {
    pub(super) fn new(
        volumes: Arc<Volumes>,
        tls: Option<TlsAcceptor>,
        traffic: Arc<Traffic>,
    ) -> Arc<Clients> {
        Arc::new(Clients {
            volumes,
            tls,
            traffic,
            pool: Pool::new(COMMON_MEMORY, OWN_MEMORY),
            places: Arc::default(),
            complaints: Mutex::default(),
        })
    }

    /// Serves whoever comes until a signal; returns when all have been answered, or
    /// at a second signal: true if that came.
    pub(super) async fn serve(
        self: &Arc<Clients>,
        listener: &Listener,
        signals: &mut Signals,
    ) -> bool {
        let (stop, stopping) = watch::channel(false);
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                () = signals.recv() => break,
                Some(_) = clients.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => match Place::take(&self.places, peer) {
                        Ok(place) => {
                            let life = Arc::clone(self).client(stream, peer, stopping.clone());
                            clients.spawn(async move {
                                let _place = place;
                                life.await;
                            });
                        }
                        Err(why) => self.complain(peer, "turned away", &why),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a client");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        tracing::info!(clients = clients.len(), "ending");
        stop.send_replace(true);
        let answered = async { while clients.join_next().await.is_some() {} };
        let interrupted = tokio::select! {
            () = answered => false,
            () = signals.recv() => true,
        };
        if interrupted {
            tracing::warn!("ended with {} clients not answered", clients.len());
            clients.shutdown().await;
        }
        interrupted
    }

    async fn client(
        self: Arc<Clients>,
        stream: Stream,
        peer: Peer,
        stopping: watch::Receiver<bool>,
    ) {
        let traffic = Arc::clone(&self.traffic);
        let ended = match stream {
            Stream::Tcp(stream) => {
                self.talk(Counted::new(stream, traffic), peer, stopping)
                    .await
            }
            Stream::Unix(stream) => {
                self.talk(Counted::new(stream, traffic), peer, stopping)
                    .await
            }
        };
        match ended {
            Ok(()) => {}
            // What TLS has against a client comes in an error of this kind.
            Err(Failure::Handshake(HandshakeError::Io(error)))
                if error.kind() != io::ErrorKind::InvalidData =>
            {
                tracing::debug!(%error, "a client left during the handshake");
            }
            Err(Failure::Handshake(error)) => self.complain(peer, "handshake", &error),
            Err(Failure::Transmission(error)) => self.complain(peer, "client failed", &error),
        }
    }

    /// Writes to the log, not a thousand lines a second.
    fn complain(&self, peer: Peer, what: &str, why: &dyn fmt::Display) {
        let complaints = self.complaints.lock();
        let mut complaints = complaints.unwrap_or_else(PoisonError::into_inner);
        let admitted = complaints.admit(Instant::now());
        drop(complaints);
        if let Some(others) = admitted {
            if others > 0 {
                tracing::warn!("{others} more clients failed or were turned away");
            }
            tracing::warn!(%peer, "{what}: {why}");
        }
    }

    async fn talk<S>(
        &self,
        mut stream: S,
        peer: Peer,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let session = Session::new(Arc::clone(&self.volumes));
        let Some(acceptor) = &self.tls else {
            let negotiation = negotiate(&mut stream, &session, Tls::None);
            return match unless_stopped(&mut stopping, negotiation).await? {
                Outcome::Chosen(chosen) => self.transmit(stream, peer, chosen, stopping).await,
                Outcome::StartTls(_) | Outcome::Left => Ok(()),
            };
        };
        let negotiation = negotiate(&mut stream, &session, Tls::Required);
        let mut upgrade = match unless_stopped(&mut stopping, negotiation).await? {
            Outcome::StartTls(upgrade) => upgrade,
            Outcome::Chosen(_) | Outcome::Left => return Ok(()),
        };
        let mut secured = None;
        let negotiation = async {
            let accepted = upgrade.wait(acceptor.accept(stream)).await?;
            let stream = secured.insert(accepted);
            upgrade.resume(stream, &session).await
        };
        let outcome = unless_stopped(&mut stopping, negotiation).await?;
        match (outcome, secured) {
            (Outcome::Chosen(chosen), Some(stream)) => {
                self.transmit(stream, peer, chosen, stopping).await
            }
            _ => Ok(()),
        }
    }

    async fn transmit<S>(
        &self,
        mut stream: S,
        peer: Peer,
        chosen: Chosen,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let stop = async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let terms = Terms {
            limits: Limits::default(),
            agreed: chosen.agreed,
            pool: Some(self.pool.clone()),
            patience: Some(PATIENCE),
        };
        tracing::debug!(%peer, export = chosen.name, "client came");
        let serving = serve(&mut stream, chosen.device, terms, stop);
        let span = tracing::info_span!("volume", name = chosen.name, %peer);
        let ended = serving.instrument(span).await;
        // After a failure in writing, the stream may end in the middle of a reply:
        // nothing may follow, nor a word that it was complete.
        if !matches!(ended, Err(TransmissionError::Io(_))) {
            let _ = timeout(FAREWELL, stream.shutdown()).await;
        }
        let how = ended.map_err(Failure::Transmission)?;
        tracing::debug!(%peer, export = chosen.name, ?how, "client left");
        Ok(())
    }
}

/// Why a client is not served any more.
enum Failure {
    Handshake(HandshakeError),
    Transmission(TransmissionError),
}

/// A handshake ends at once when the server does.
async fn unless_stopped(
    stopping: &mut watch::Receiver<bool>,
    negotiation: impl Future<Output = Result<Outcome, HandshakeError>>,
) -> Result<Outcome, Failure> {
    tokio::select! {
        outcome = negotiation => outcome.map_err(Failure::Handshake),
        _ = stopping.wait_for(|stop| *stop) => Ok(Outcome::Left),
    }
}

/// Who is here.
#[derive(Debug, Default)]
struct Places {
    taken: usize,
    of_machine: HashMap<IpAddr, usize>,
}

/// A client's place, free again when it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Mutex<Places>>,
    machine: Option<IpAddr>,
}

impl Place {
    /// A place for this client, or why there is none.
    fn take(places: &Arc<Mutex<Places>>, peer: Peer) -> Result<Place, &'static str> {
        let machine = peer.machine();
        let mut taken = places.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.taken == MOST_CLIENTS {
            return Err("as many as can be served are here already");
        }
        if let Some(machine) = machine {
            let count = taken.of_machine.entry(machine).or_default();
            if *count == MOST_OF_ONE_MACHINE {
                return Err("its machine has as many connections as one may have");
            }
            *count += 1;
        }
        taken.taken += 1;
        Ok(Place {
            places: Arc::clone(places),
            machine,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        taken.taken -= 1;
        if let Some(machine) = self.machine
            && let Some(count) = taken.of_machine.get_mut(&machine)
        {
            *count -= 1;
            if *count == 0 {
                taken.of_machine.remove(&machine);
            }
        }
    }
}

/// Complaints that were written, and those that were not.
#[derive(Debug, Default)]
struct Complaints {
    since: Option<Instant>,
    logged: u32,
    unlogged: u64,
}

impl Complaints {
    /// Whether there is room for one more, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now - since >= WINDOW) {
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged == MOST_COMPLAINTS {
            self.unlogged += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Peer {
        Peer::At(address.parse().unwrap())
    }

    #[test]
    fn a_flood_of_complaints_is_counted() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        let admitted = (0..100).filter_map(|_| complaints.admit(start)).count();
        assert_eq!(admitted, MOST_COMPLAINTS as usize);
        assert_eq!(complaints.admit(start + WINDOW), Some(80));
        assert_eq!(complaints.admit(start + WINDOW), Some(0));
    }

    #[test]
    fn one_machine_leaves_places_for_the_others() {
        let places = Arc::default();
        let mut taken: Vec<_> = (0..MOST_OF_ONE_MACHINE)
            .map(|_| Place::take(&places, from("192.0.2.1:1")).unwrap())
            .collect();
        // The same machine in its other notation.
        for address in ["192.0.2.1:2", "[::ffff:192.0.2.1]:3"] {
            assert!(Place::take(&places, from(address)).is_err());
        }
        while taken.len() < MOST_CLIENTS {
            let peer = match taken.len() % 3 {
                0 => from("127.0.0.1:1"),
                1 => from("[2001:db8::1]:1"),
                _ => Peer::Local,
            };
            taken.push(Place::take(&places, peer).unwrap());
        }
        assert!(Place::take(&places, Peer::Local).is_err());
        drop(taken.swap_remove(0));
        taken.push(Place::take(&places, from("192.0.2.1:4")).unwrap());
        taken.clear();
        let left = places.lock().unwrap();
        assert_eq!((left.taken, left.of_machine.len()), (0, 0));
    }
}
