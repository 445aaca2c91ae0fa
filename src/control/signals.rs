//! SIGTERM and SIGINT: the wish to end.
//!
//! Listen before a lock is taken: a signal that comes while a volume starts is
//! kept until somebody asks for it, instead of killing a process that would leave
//! its container locked. SIGHUP is no such wish, and must not end the process
//! either: [`reload`](super::reload) answers it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

/// The signals that have come and were not asked for yet.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from here on. Within a tokio runtime.
    pub fn listen() -> Result<Signals> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Error::failed(format!("cannot listen for signals: {error}")))
        };
        // From the first time that somebody listens, the signal kills no more.
        let _ = listen(SignalKind::hangup())?;
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Returns at the next signal. May be dropped before.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
