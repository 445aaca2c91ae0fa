//! Where clients come from: a TCP address or a socket file.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{setsockopt, sockopt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::Listen;
use crate::error::{Error, Exit, Result};

/// An idle connection is probed after so many seconds, then as often as below; a
/// peer that answers none of the probes is dead.
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_BETWEEN_S: u32 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// A peer that acknowledges nothing for so many milliseconds is dead.
const UNACKNOWLEDGED_MS: u32 = 120_000;

/// A path within a URI.
const IN_URI: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_');

/// A socket that listens.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(SocketFile),
}

/// A client's connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// At the other end of a socket file.
    Local,
    /// At this address.
    At(SocketAddr),
}

impl Peer {
    /// Its address, if it is another machine's.
    pub(super) fn machine(&self) -> Option<IpAddr> {
        match self {
            Peer::At(address) => Some(address.ip().to_canonical()).filter(|ip| !ip.is_loopback()),
            Peer::Local => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Local => f.write_str("local"),
            Peer::At(address) => address.fmt(f),
        }
    }
}

impl Listener {
    /// Listens.
    pub(super) async fn bind(listen: &Listen) -> Result<Listener> {
        match listen {
            Listen::Unix(path) => SocketFile::bind(path).await.map(Listener::Unix),
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        let text = format!("another server listens on {address}");
                        Error::new(Exit::InUse, text).hint("--bind ADDR:PORT takes another one")
                    }
                    _ => cannot_listen(address, &error),
                })?;
                Ok(Listener::Tcp(listener))
            }
        }
    }

    /// What clients connect to, as a URI without an export.
    pub(super) fn address(&self, tls: bool) -> Result<String> {
        let scheme = if tls { "nbds" } else { "nbd" };
        Ok(match self {
            Listener::Tcp(listener) => {
                let address = listener.local_addr();
                let address = address.map_err(|error| Error::failed(error.to_string()))?;
                format!("{scheme}://{address}/")
            }
            Listener::Unix(socket) => {
                let path = percent_encode(socket.path.as_os_str().as_bytes(), IN_URI);
                format!("{scheme}+unix:///?socket={path}")
            }
        })
    }

    /// The next client. May be dropped before.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // One that is gone already is found out soon enough.
                let _ = tune(&stream);
                Ok((Stream::Tcp(stream), Peer::At(address)))
            }
            Listener::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }
}

/// Replies leave at once, and a peer that died is noticed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_BETWEEN_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// A file that is in the way, which is no socket, is no server.
fn cannot_listen(place: &dyn fmt::Display, error: &io::Error) -> Error {
    let text = format!("cannot listen on {place}: {error}");
    match error.kind() {
        io::ErrorKind::PermissionDenied => Error::new(Exit::Denied, text),
        _ => Error::failed(text),
    }
}

/// A listening socket file; removed at the end.
pub(super) struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
}

impl SocketFile {
    /// Listens. A socket file that nobody listens on any more is replaced.
    async fn bind(path: &Path) -> Result<SocketFile> {
        let failed = |error: io::Error| cannot_listen(&path.display(), &error);
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
        Ok(SocketFile {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
