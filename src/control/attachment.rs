//! A connected device and the transmission phase that answers its requests.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::netlink::Nbd;
use super::registry::Entry;
use crate::config::{NbdDevice, Volume};
use crate::device::Device;
use crate::nbd::transmission::{self, Limits, TransmissionError};

/// A connected device.
#[derive(Debug)]
pub struct Attachment {
    /// The device.
    pub number: NbdDevice,
    /// What it serves.
    pub device: Device,
    /// The connection to the driver, which the device needs.
    pub nbd: Arc<Nbd>,
    /// The transmission phase; ends when the kernel lets go of the socket.
    pub transmission: Transmission,
    /// What `/sys/block/nbdN/backend` says.
    pub backend: String,
    /// The netlink socket that has connected it, if it could be found.
    pub connected: Option<OwnedFd>,
    /// What the registry says of it.
    pub entry: Entry,
}

/// A transmission phase under way.
#[derive(Debug)]
pub struct Transmission {
    /// Ends when the kernel lets go of the socket, or when it was stopped.
    pub task: JoinHandle<(
        UnixStream,
        std::result::Result<transmission::Ended, TransmissionError>,
    )>,
    stop: Option<oneshot::Sender<()>>,
    limits: Limits,
    volume: String,
}

impl Transmission {
    /// Answers the kernel's requests. Within a tokio runtime.
    pub fn start(stream: UnixStream, device: Device, volume: &Volume) -> Transmission {
        let mut limits = Limits::default();
        limits.bytes = limits.bytes.min(volume.dirty);
        Transmission::begin(stream, device, limits, volume.name.clone())
    }

    /// Goes on after it was stopped.
    pub fn go_on(self, stream: UnixStream, device: Device) -> Transmission {
        Transmission::begin(stream, device, self.limits, self.volume)
    }

    fn begin(
        mut stream: UnixStream,
        device: Device,
        limits: Limits,
        volume: String,
    ) -> Transmission {
        let (stop, stopped) = oneshot::channel();
        let span = tracing::info_span!("volume", name = volume);
        let serving = async move {
            let until = async {
                if stopped.await.is_err() {
                    pending::<()>().await;
                }
            };
            let ended = transmission::serve(&mut stream, device, limits, until).await;
            (stream, ended)
        };
        Transmission {
            task: tokio::spawn(serving.instrument(span)),
            stop: Some(stop),
            limits,
            volume,
        }
    }

    /// Has it end at the next boundary between two requests.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}
