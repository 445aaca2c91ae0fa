//! SIGHUP: the credentials of an open volume are read again.
//!
//! Knows: the signal. Does not know: files, nor how a store logs in. What is
//! wrong with the new ones is logged, and the old ones stay.

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::explain;
use crate::config::Volume;
use crate::error::{Error, Result};
use crate::stack::Container;

/// Listens for as long as it lives.
#[derive(Debug)]
pub struct Reload(JoinHandle<()>);

impl Reload {
    /// From here on, SIGHUP has this volume's credentials read again. Within a
    /// tokio runtime.
    pub fn on_hangup(volume: &Volume, container: &Container) -> Result<Reload> {
        let mut hangup = signal(SignalKind::hangup())
            .map_err(|error| Error::failed(format!("cannot listen for SIGHUP: {error}")))?;
        let (volume, container) = (volume.clone(), container.clone());
        Ok(Reload(tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                match reload(&volume, &container) {
                    Ok(()) => tracing::info!(volume = volume.name, "credentials were read again"),
                    Err(error) => tracing::error!(
                        volume = volume.name,
                        "SIGHUP: {}; the old credentials stay",
                        error.message
                    ),
                }
            }
        })))
    }
}

impl Drop for Reload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The files are small and local: reading them here keeps no request waiting for
/// long.
fn reload(volume: &Volume, container: &Container) -> Result<()> {
    let backend = volume.reread()?;
    match container.log_in_again(&backend) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::failed(
            "the volume is kept elsewhere now, which needs a new attach",
        )),
        Err(error) => Err(explain::store(volume, &error)),
    }
}
