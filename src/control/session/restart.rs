//! A session hands its device over to another program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::super::explain;
use super::super::handover::{Handed, State, attempt, boot_clock};
use super::super::registry::Response;
use super::{CLIENT_PATIENCE, Session, Shared};
use crate::error::{Error, Exit, Result};

/// How long the store may take for what is dirty before a restart, while the device
/// works; and afterwards, while it does not.
const FLUSH_PATIENCE: Duration = Duration::from_secs(60);
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(20);

/// A restart whose new program is known to start.
pub(super) struct Restart {
    pub state: State,
    pub program: PathBuf,
    pub client: UnixStream,
    pub _ending: OwnedMutexGuard<()>,
}

impl Session {
    /// The transmission phase has stopped: makes the rest durable, and collects what
    /// another program needs. If that cannot be, the stream, to go on with.
    pub(super) async fn hand_over(
        &mut self,
        asked: Restart,
        stream: UnixStream,
        leaving: bool,
    ) -> std::result::Result<Handed, UnixStream> {
        let stopped = boot_clock();
        match self.try_to_hand_over(&asked.client, &stream).await {
            Ok([kernel, listener, client]) => {
                let mut state = asked.state;
                (state.leaving, state.stopped) = (leaving, stopped);
                Ok(Handed {
                    state,
                    program: asked.program,
                    kernel,
                    listener,
                    client,
                    netlink: None,
                })
            }
            Err(why) => {
                tracing::error!(device = %self.shared.number, "not restarted: {}", why.message);
                respond(asked.client, &Response::Failed(why)).await;
                Err(stream)
            }
        }
    }

    /// The descriptors of the kernel's socket, of ours, and of the client; the volume is
    /// closed then.
    async fn try_to_hand_over(
        &self,
        client: &UnixStream,
        kernel: &UnixStream,
    ) -> Result<[OwnedFd; 3]> {
        let again = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned()
                .map_err(|error| Error::failed(format!("cannot pass a descriptor on: {error}")))
        };
        let passed = [
            again(kernel.as_fd())?,
            again(self.listener.as_fd())?,
            again(client.as_fd())?,
        ];
        match self.shared.device.hand_over(HAND_OVER_PATIENCE).await {
            Ok(true) => Ok(passed),
            Ok(false) => Err(too_slow(HAND_OVER_PATIENCE)),
            Err(error) => Err(explain::device(&error)),
        }
    }
}

impl Shared {
    /// Everything about a restart that takes time or may fail, while the device works.
    pub(super) async fn prepare_restart(
        &self,
        program: &Path,
    ) -> Result<(State, OwnedMutexGuard<()>)> {
        let ending = self.begin_to_end()?;
        let (told, place, backend) = (&self.told, self.place.clone(), self.backend.clone());
        let state = State::new(told, self.entry.clone(), place, backend);
        let (program, global) = (program.to_owned(), told.global.clone());
        let tried = spawn_blocking(move || {
            attempt(&program, &global, &state)?;
            Ok::<_, Error>(state)
        });
        let state = tried
            .await
            .map_err(|error| Error::failed(error.to_string()))??;
        // The less is dirty then, the shorter is the pause.
        match timeout(FLUSH_PATIENCE, self.flush()).await {
            Ok(flushed) => flushed?,
            Err(_) => return Err(too_slow(FLUSH_PATIENCE)),
        }
        Ok((state, ending))
    }
}

/// Answers a client, which may have gone.
pub(super) async fn respond(mut client: UnixStream, response: &Response) {
    if let Ok(mut line) = serde_json::to_vec(response) {
        line.push(b'\n');
        let _ = timeout(CLIENT_PATIENCE, client.write_all(&line)).await;
    }
}

fn too_slow(patience: Duration) -> Error {
    let text = format!(
        "the store did not take everything within {} s",
        patience.as_secs()
    );
    Error::new(Exit::Unreachable, text).hint("try again when it does")
}
