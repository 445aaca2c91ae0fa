//! Where the log goes: stderr, a file, or syslog.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::Global;
use crate::error::{Error, Exit, Result};

/// Who is logging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// A command: warnings go to stderr.
    Command,
    /// A server in the foreground: what happens goes to stderr.
    Foreground,
    /// A daemon, which has no stderr: syslog, if nothing else was asked for.
    Daemon,
}

/// Sets the log up, once a process. Only this crate's own events are shown unless
/// everything was asked for.
pub fn start(global: &Global, process: Process) -> Result<()> {
    let quiet = process == Process::Command;
    let filter = match (global.verbose, quiet) {
        (0, true) => "swiftnbd=warn",
        (0, false) | (1, true) => "swiftnbd=info",
        (1, false) => "swiftnbd=debug",
        (_, _) => "swiftnbd=trace,info",
    };
    let filter = EnvFilter::new(filter);
    if let Some(path) = &global.log_file {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)
            .map_err(|error| {
                Error::new(
                    Exit::Usage,
                    format!("cannot write the log file {}: {error}", path.display()),
                )
            })?;
        set(filter, Mutex::new(file), true);
    } else if global.syslog || process == Process::Daemon {
        let (options, facility) = (
            syslog_tracing::Options::LOG_PID,
            syslog_tracing::Facility::Local0,
        );
        match syslog_tracing::Syslog::new(c"swiftnbd", options, facility) {
            Some(syslog) => set(filter, syslog, false),
            None => {
                return Err(Error::failed(
                    "syslog is in use by another part of this process",
                ));
            }
        }
    } else {
        set(filter, std::io::stderr, !stderr_is_the_journal());
    }
    // A daemon has nowhere else to say why it died.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("{panic}");
        default(panic);
    }));
    Ok(())
}

/// Whether stderr goes to systemd's journal, which notes the time by itself.
fn stderr_is_the_journal() -> bool {
    let Ok(found) = nix::sys::stat::fstat(std::io::stderr()) else {
        return false;
    };
    let stream = format!("{}:{}", found.st_dev, found.st_ino);
    std::env::var("JOURNAL_STREAM").is_ok_and(|journal| journal == stream)
}

fn set<W>(filter: EnvFilter, writer: W, timed: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .with_target(false);
    // A second call in one process keeps the first log: that is what is wanted.
    let _ = if timed {
        log.try_init()
    } else {
        log.without_time().try_init()
    };
}
