//! What the original's programs do, by the functions of today's.

mod pid_file;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use self::pid_file::PidFile;
use super::attach::{self, Report};
use super::logging::{self, Process};
use super::{block_on, container, daemon, delete, download, explain, serve, setup, volumes};
use crate::cli;
use crate::compat::{AS_DAEMON, CtlCommand, Invocation, SERVER, Server};
use crate::config::{Config, Volume};
use crate::error::{Error, Exit, Result};
use crate::image::meta::{self, MetaError};

/// Carries out what one of the programs was called for.
pub fn run(invocation: &Invocation) -> Result<()> {
    if let Invocation::Server(args) = invocation {
        return match (args.as_daemon, args.foreground) {
            (true, _) => serve_in_background(invocation, args),
            (false, true) => {
                logging::start(&invocation.global(), Process::Foreground)?;
                serve(invocation, args, &mut |address| tracing::info!("{address}"))
            }
            (false, false) => start_in_background(args),
        };
    }
    logging::start(&invocation.global(), Process::Command)?;
    let config = load(invocation)?;
    match invocation {
        Invocation::Setup(args) => setup::run(&config, &args.what.modern()),
        Invocation::Ctl(args) => control(&config, &args.command),
        Invocation::Server(_) => Ok(()),
    }
}

fn load(invocation: &Invocation) -> Result<Config> {
    let config = Config::load(&invocation.sources())?;
    for note in config.notes() {
        tracing::warn!("{note}");
    }
    Ok(config)
}

fn control(config: &Config, command: &CtlCommand) -> Result<()> {
    match command {
        CtlCommand::Setup(args) => setup::run(config, &args.modern()),
        CtlCommand::List { simple_output } => {
            let args = cli::List {
                simple_output: *simple_output,
                json: false,
            };
            volumes::list(config, &args)
        }
        CtlCommand::Lock(args) => volumes::lock(config, args),
        CtlCommand::Unlock(args) => volumes::unlock(config, args),
        CtlCommand::Download {
            container,
            image,
            quiet,
        } => {
            let args = cli::Download {
                name: container.clone(),
                image: image.clone(),
                quiet: *quiet,
                limit: None,
                passphrase: cli::PassphraseFrom::default(),
            };
            download::run(config, &args)
        }
        CtlCommand::Delete(args) => {
            // The original never asked.
            let args = cli::Delete {
                name: args.name.clone(),
                yes: true,
            };
            delete::run(config, &args)
        }
    }
}

/// Starts the server as a process of its own and returns once clients can connect.
/// What fails until then is said here.
fn start_in_background(args: &Server) -> Result<()> {
    let mut server = Command::new("/proc/self/exe")
        .arg0(SERVER)
        .arg(format!("--{AS_DAEMON}"))
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::failed(format!("cannot start the server: {error}")))?;
    let log = match &args.log_file {
        Some(path) => path.display().to_string(),
        None => "syslog".to_owned(),
    };
    attach::await_ready(&mut server, |how| {
        Error::failed(format!("the server died before it was ready ({how})"))
            .hint(format!("its log may say more: {log}"))
    })?;
    Ok(())
}

/// The background process.
fn serve_in_background(invocation: &Invocation, args: &Server) -> Result<()> {
    daemon::leave_the_caller();
    let mut reported = false;
    let result = logging::start(&invocation.global(), Process::Daemon).and_then(|()| {
        serve(invocation, args, &mut |address| {
            tracing::info!("{address}");
            send(&Report::Ready(address.to_owned()));
            daemon::close_stdout();
            reported = true;
        })
    });
    if let Err(error) = &result {
        tracing::error!("{}", error.message);
        if !reported {
            send(&Report::Failed(error.clone()));
        }
    }
    result
}

/// Tells the process that the user waits for, if that is still there.
fn send(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn serve(invocation: &Invocation, args: &Server, on_ready: &mut dyn FnMut(&str)) -> Result<()> {
    let config = load(invocation)?;
    let options = serve::Options {
        listen: serve::Listen::Tcp(address(args)?),
        tls: None,
        // Whoever gives an address has told us to listen there.
        insecure_plaintext: true,
    };
    let _pid_file = PidFile::take(&args.pid_file())?;
    let mut volumes = chosen(&config, args)?;
    for volume in &mut volumes {
        volume.cache = args.cache_limit << 20;
    }
    if args.as_daemon {
        // The caller's directory was needed for relative paths only.
        std::env::set_current_dir("/").map_err(|error| Error::failed(error.to_string()))?;
    }
    // As the original did, a container is locked from its first client on.
    serve::run_volumes(volumes, true, &options, on_ready)
}

/// The container that was named, which must be one that can be served now; or all.
fn chosen(config: &Config, args: &Server) -> Result<Vec<Volume>> {
    if let Some(name) = &args.container {
        let volume = config.volume(name)?;
        let store = container(&volume)?.impatient;
        let there = block_on(async { meta::read(&*store).await });
        let there = there.map_err(|error| explain::meta(&volume, &error))?;
        return match there.client {
            // In format 2 the lease decides, at the first client.
            Some(client) if there.format.number() == 1 || !client.is_daemon() => {
                Err(explain::meta(&volume, &MetaError::Locked(client)))
            }
            _ => Ok(vec![volume]),
        };
    }
    let mut volumes = Vec::new();
    for name in config.names() {
        match config.volume(name) {
            Ok(volume) => volumes.push(volume),
            // One that cannot be used is no reason not to serve the others.
            Err(error) => tracing::warn!("not served: {}", error.message),
        }
    }
    match volumes.is_empty() {
        false => Ok(volumes),
        true => Err(Error::usage(
            "no container in the secrets file can be served",
        )),
    }
}

fn address(args: &Server) -> Result<SocketAddr> {
    let asked = (args.bind_address.as_str(), args.port());
    let all: Vec<SocketAddr> = asked.to_socket_addrs().into_iter().flatten().collect();
    // The original knew IPv4 alone, and so do those who connect to `localhost`.
    let found = all.iter().find(|address| address.is_ipv4()).or(all.first());
    found.copied().ok_or_else(|| {
        let text = format!("{} is no address of this machine", args.bind_address);
        Error::new(Exit::Usage, text)
    })
}
