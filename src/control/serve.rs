//! `serve`: volumes over NBD on a socket file, in the foreground.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::Instrument;

use super::daemon;
use super::lease::Lease;
use super::service;
use super::signals::Signals;
use crate::cli;
use crate::config::{Config, Volume, format_size};
use crate::device::Device;
use crate::error::{Error, Exit, Result};
use crate::nbd::handshake::{self, Export};
use crate::nbd::transmission::{self, Limits};

/// Clients that are served at a time; each may have data in flight up to the
/// transmission phase's limit.
const MAX_CLIENTS: usize = 16;

/// Between two attempts to close a volume or to unlock its container.
const BETWEEN_ENDINGS: Duration = Duration::from_secs(5);

type Exports = Arc<Vec<(Export, Device)>>;

/// Serves the volumes that the command line names until SIGTERM or SIGINT.
pub fn run(config: &Config, args: &cli::Serve) -> Result<()> {
    let Some(path) = &args.unix else {
        return Err(Error::usage("serve needs --unix PATH in this version"));
    };
    if args.names.is_empty() {
        return Err(Error::usage(
            "serve needs the name of a volume in this version",
        ));
    }
    let mut volumes = Vec::new();
    for name in &args.names {
        let mut volume = config.volume(name)?;
        volume.read_only |= args.read_only;
        volumes.push(volume);
    }
    let runtime = daemon::runtime()?;
    let result = runtime.block_on(serve(&volumes, path));
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(volumes: &[Volume], path: &Path) -> Result<()> {
    service::begin();
    let mut signals = Signals::listen()?;
    let mut open = Vec::new();
    let result = async {
        for volume in volumes {
            open.push(lease(volume, &mut signals).await?);
        }
        let socket = Socket::bind(path).await?;
        let exports = open
            .iter()
            .map(|opened| (opened.export.clone(), opened.device.clone()));
        accept(&socket, Arc::new(exports.collect()), &mut signals).await
    }
    .await;
    for opened in &open {
        opened.end(&mut signals).await;
    }
    service::ending();
    result
}

/// A volume that is leased and running.
struct Opened {
    lease: Lease,
    export: Export,
    device: Device,
}

async fn lease(volume: &Volume, signals: &mut Signals) -> Result<Opened> {
    let lease = Lease::take(volume).await?;
    let device = match lease.open(|text| tracing::info!("{text}"), signals).await {
        Ok(device) => device,
        Err(error) => {
            let _ = lease.release().await;
            return Err(error);
        }
    };
    let description = format!(
        "{} in container {}",
        format_size(device.size()),
        volume.container
    );
    Ok(Opened {
        lease,
        export: Export {
            name: volume.name.clone(),
            description,
        },
        device,
    })
}

impl Opened {
    /// Makes everything durable and unlocks, however long it takes: a second
    /// signal ends the wait.
    async fn end(&self, signals: &mut Signals) {
        let insist = async {
            while let Err(error) = self.device.close().await {
                tracing::error!(volume = self.export.name, %error, "cannot store what is dirty");
                sleep(BETWEEN_ENDINGS).await;
            }
            while let Err(error) = self.lease.release().await {
                tracing::error!(
                    volume = self.export.name,
                    "cannot unlock: {}",
                    error.message
                );
                if error.exit == Exit::InUse {
                    return;
                }
                sleep(BETWEEN_ENDINGS).await;
            }
            tracing::info!(volume = self.export.name, "everything is durable, unlocked");
        };
        tokio::select! {
            () = insist => {}
            () = signals.recv() => {
                let lost = format_size(self.device.stats().dirty_bytes);
                tracing::error!(volume = self.export.name, "ended with {lost} not durable; it stays locked");
            }
        }
    }
}

/// A listening socket file; removed at the end.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens. A socket file that nobody listens on any more is replaced.
    async fn bind(path: &Path) -> Result<Socket> {
        let failed = |error: std::io::Error| {
            Error::failed(format!("cannot listen on {}: {error}", path.display()))
        };
        let is_socket =
            std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket {
            if UnixStream::connect(path).await.is_ok() {
                let text = format!("another server listens on {}", path.display());
                return Err(Error::new(Exit::InUse, text));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Whoever may connect may read the volume: that is the owner alone.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        Ok(Socket {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(socket: &Socket, exports: Exports, signals: &mut Signals) -> Result<()> {
    let (stop, stopping) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    tracing::info!(socket = %socket.path.display(), "serving");
    service::ready("serving");
    loop {
        tokio::select! {
            () = signals.recv() => break,
            Some(_) = clients.join_next() => {}
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        tracing::warn!("a client was turned away: {MAX_CLIENTS} are here already");
                        continue;
                    };
                    let (exports, stopping) = (Arc::clone(&exports), stopping.clone());
                    clients.spawn(async move {
                        let _place = place;
                        client(stream, exports, stopping).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    stop.send_replace(true);
    while clients.join_next().await.is_some() {}
    Ok(())
}

async fn client(mut stream: UnixStream, exports: Exports, mut stopping: watch::Receiver<bool>) {
    let chosen = tokio::select! {
        chosen = handshake::negotiate(&mut stream, &*exports) => chosen,
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    let chosen = match chosen {
        Ok(Some(chosen)) => chosen,
        Ok(None) => return,
        Err(handshake::HandshakeError::Io(error)) => {
            tracing::debug!(%error, "a client left during the handshake");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "handshake");
            return;
        }
    };
    let stop = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let serving = transmission::serve(stream, chosen.device, Limits::default(), stop);
    let span = tracing::info_span!("volume", name = chosen.name);
    let ended = serving.instrument(span).await;
    match ended {
        Ok(how) => tracing::debug!(export = chosen.name, ?how, "client left"),
        Err(error) => tracing::warn!(export = chosen.name, %error, "client failed"),
    }
}
