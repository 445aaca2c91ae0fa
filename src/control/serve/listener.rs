//! Where clients come from: a TCP address or a socket file.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
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
    /// What was bound: somebody may put another file there.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Listens. A socket file that nobody listens on any more is replaced.
    async fn bind(path: &Path) -> Result<SocketFile> {
        let failed = |error: io::Error| cannot_listen(&path.display(), &error);
        let is_socket =
            std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket {
            match UnixStream::connect(path)
                .await
                .map_err(|error| error.kind())
            {
                // Alive, or so busy that nobody else may connect now.
                Ok(_) | Err(io::ErrorKind::WouldBlock) => {
                    let text = format!("another server listens on {}", path.display());
                    return Err(Error::new(Exit::InUse, text));
                }
                Err(io::ErrorKind::ConnectionRefused) => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Err(io::ErrorKind::NotFound) => {}
                Err(kind) => return Err(failed(kind.into())),
            }
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = SocketFile {
            listener,
            path: path.to_owned(),
            identity: identity(path),
        };
        // Whoever may connect may read the volume: that is the owner alone.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_dead_socket_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        // Nobody removes the file of a listener that is dropped.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = SocketFile::bind(&path).await.unwrap();
        let second = SocketFile::bind(&path).await.err().unwrap();
        assert_eq!(second.exit, Exit::InUse);
        drop(socket);
        assert!(!path.exists());
        // Somebody lives there, but speaks otherwise.
        let other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let refused = SocketFile::bind(&path).await.err().unwrap();
        assert_eq!(refused.exit, Exit::Failed);
        drop(other);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(SocketFile::bind(&path).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }

    #[tokio::test]
    async fn the_file_of_another_server_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = SocketFile::bind(&path).await.unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let second = SocketFile::bind(&path).await.unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(second);
        assert!(!path.exists());
    }
}
