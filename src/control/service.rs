//! The service manager, where one has started this process (systemd's
//! `Type=notify`): it is told when a device is ready, what is being waited for,
//! and, if it watches, that the runtime still runs.
//!
//! Does not know: units, or what they are called. Without a service manager
//! nothing here does anything.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

/// The manager's patience is used up this often before it ends.
const PINGS_IN_TIME: u32 = 4;

/// Starts to say, from a task of this runtime, that the runtime runs. A store that
/// does not answer is waited for by other tasks and does not delay it. Within a
/// tokio runtime.
///
/// From here on SIGHUP, which a unit sends to have credentials read again, does not
/// end the process, whoever else listens for it.
pub fn begin() {
    if let Err(error) = signal(SignalKind::hangup()) {
        tracing::warn!(%error, "SIGHUP would end this process");
    }
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let pause = (patience / PINGS_IN_TIME).max(Duration::from_millis(10));
    tokio::spawn(async move {
        let mut pings = tokio::time::interval(pause);
        loop {
            pings.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

/// Whether a service manager has started this process.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// What is being done, for `systemctl status`.
pub fn status(text: &str) {
    // A line break would begin another message.
    tell(&[NotifyState::Status(&text.replace('\n', " "))]);
}

/// What was started is ready for use.
pub fn ready(text: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// The process ends now: nothing is left to be saved. Not before, because from here
/// on the manager counts the time until it kills the process.
pub fn ending() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot reach the service manager");
    }
}
