//! `serve`: volumes over NBD, in the foreground, until SIGTERM or SIGINT.
//!
//! - [`listener`]: an address or a socket file, and who comes from there.
//! - [`tls`]: certificates, and the address that may do without them.
//! - [`volumes`]: the exports: when they are leased and when given back.
//! - [`clients`]: how many there may be, and the life of one.
//! - [`traffic`]: what went through, for the log.
//!
//! The order at the start: what the command line names is checked; the volumes
//! that it names are leased; the server listens; the address is told. At the end:
//! nobody new, the clients' requests are answered up to a boundary, everything is
//! made durable, the volumes are unlocked.

mod clients;
mod listener;
mod tls;
mod traffic;
mod volumes;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::clients::Clients;
use self::listener::Listener;
use self::traffic::Traffic;
use self::volumes::Volumes;
use super::signals::Signals;
use super::{block_on, container, daemon, passphrase, service};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Result};

/// Where clients come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 is any free one.
    Tcp(SocketAddr),
    /// A socket file, for its owner alone.
    Unix(PathBuf),
}

/// The files that TLS takes, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// Its key; not readable by everyone.
    pub key: PathBuf,
    /// The authority that a client's certificate has to be of. `None`: clients
    /// need none.
    pub client_ca: Option<PathBuf>,
}

/// How volumes are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where clients come from.
    pub listen: Listen,
    /// With it, clients have to use TLS.
    pub tls: Option<TlsFiles>,
    /// Other addresses than the machine's own are fine without TLS.
    pub insecure_plaintext: bool,
}

impl Options {
    fn of(args: &cli::Serve) -> Options {
        let tls = match (&args.tls_cert, &args.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: args.tls_client_ca.clone(),
            }),
            _ => None,
        };
        Options {
            listen: match &args.unix {
                Some(path) => Listen::Unix(path.clone()),
                None => Listen::Tcp(args.bind),
            },
            tls,
            insecure_plaintext: args.insecure_plaintext,
        }
    }
}

/// `serve`: the volumes that the command line names, or all. Prints the address
/// once clients can connect.
pub fn run(config: &Config, args: &cli::Serve) -> Result<()> {
    let mut volumes = chosen(config, &args.names)?;
    for volume in &mut volumes {
        volume.read_only |= args.read_only;
    }
    let from = &args.passphrase;
    match (&mut volumes[..], args.names.len()) {
        ([volume], 1) => {
            passphrase::choose(volume, from)?;
            let container = container(volume)?;
            block_on(passphrase::ask_if_needed(volume, &container))?;
        }
        _ if from.passphrase_file.is_some() || from.passphrase_fd.is_some() => {
            let text = "a passphrase on the command line is for one volume that is named there";
            return Err(Error::usage(text)
                .hint("for several volumes: passphrase_file, in the configuration of each"));
        }
        _ => {}
    }
    let on_demand = args.names.is_empty();
    run_volumes(volumes, on_demand, &Options::of(args), &mut |address| {
        // Nobody has to listen to it.
        let _ = writeln!(std::io::stdout(), "{address}");
    })
}

fn chosen(config: &Config, names: &[String]) -> Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Err(Error::usage(format!("volume {name} is named twice")));
        }
        volumes.push(config.volume(name)?);
    }
    if !names.is_empty() {
        return Ok(volumes);
    }
    let mut incomplete = None;
    for name in config.names() {
        match config.volume(name) {
            Ok(volume) => volumes.push(volume),
            // One that cannot be used is no reason not to serve the others.
            Err(error) => {
                tracing::warn!("not served: {}", error.message);
                incomplete.get_or_insert(error);
            }
        }
    }
    match incomplete {
        _ if !volumes.is_empty() => Ok(volumes),
        Some(error) => Err(error),
        None => Err(Error::usage("no volume is configured and none is named")
            .hint("name one: `swiftnbd serve NAME`")),
    }
}

/// Serves these volumes until SIGTERM or SIGINT. `on_demand`: each is leased at its
/// first client and given back some time after its last one; if not, all of them
/// are leased at the start and kept. A single volume is also the default export.
/// `on_ready` is told once, with the address that clients can connect to, as a URI
/// without an export.
pub fn run_volumes(
    volumes: Vec<Volume>,
    on_demand: bool,
    options: &Options,
    on_ready: &mut dyn FnMut(&str),
) -> Result<()> {
    let tls = tls::prepare(options)?;
    let runtime = daemon::runtime()?;
    let result = runtime.block_on(async {
        service::begin();
        let mut signals = Signals::listen()?;
        let volumes = Volumes::new(volumes, on_demand);
        let served = async {
            volumes.lease_all(&mut signals).await?;
            let listener = Listener::bind(&options.listen).await?;
            let address = listener.address(tls.is_some())?;
            tracing::info!(%address, "serving");
            on_ready(&address);
            service::ready(&format!("serving {address}"));
            let traffic = Arc::new(Traffic::default());
            let keepers = volumes.start_keepers();
            let report = traffic::report(Arc::clone(&traffic), Arc::clone(&volumes));
            let report = tokio::spawn(report);
            let clients = Clients::new(Arc::clone(&volumes), tls, traffic);
            let interrupted = clients.serve(&listener, &mut signals).await;
            report.abort();
            drop(keepers);
            Ok(interrupted)
        }
        .await;
        let interrupted = *served.as_ref().unwrap_or(&false);
        let ended = volumes.end(&mut signals, interrupted).await;
        service::ending();
        // What ended it was the first to go wrong; what was lost is in the log too.
        served.and(ended)
    });
    // Whatever still runs (a fetch nobody waits for) must not delay the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options(arguments: &str) -> std::result::Result<Options, clap::Error> {
        let arguments = ["swiftnbd", "serve"]
            .into_iter()
            .chain(arguments.split(' '));
        let cli = cli::Cli::try_parse_from(arguments.filter(|word| !word.is_empty()))?;
        match cli.command {
            cli::Command::Serve(args) => Ok(Options::of(&args)),
            _ => unreachable!("that was serve"),
        }
    }

    #[test]
    fn addresses_in_every_form() {
        for (given, meant) in [
            ("", "127.0.0.1:10809"),
            ("--bind 127.0.0.1:0", "127.0.0.1:0"),
            ("--bind 0.0.0.0", "0.0.0.0:10809"),
            ("--bind ::1", "[::1]:10809"),
            ("--bind [::1]", "[::1]:10809"),
            ("--bind [fe80::2]:99", "[fe80::2]:99"),
        ] {
            let listen = options(given).unwrap().listen;
            assert_eq!(listen, Listen::Tcp(meant.parse().unwrap()), "{given}");
        }
        for bad in [
            "host",
            "[127.0.0.1]",
            "127.0.0.1:",
            "127.0.0.1:99999",
            "[::1",
            ":10809",
        ] {
            assert!(options(&format!("--bind {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_does_not_go_together() {
        for bad in [
            "--bind 127.0.0.1 --unix /s",
            "--tls-cert c",
            "--tls-key k",
            "--tls-client-ca a",
            "--tls-cert c --tls-key k --insecure-plaintext",
        ] {
            assert!(options(bad).is_err(), "{bad}");
        }
        let all = options("--unix /s --tls-cert c --tls-key k --tls-client-ca a").unwrap();
        assert_eq!(all.listen, Listen::Unix("/s".into()));
        assert_eq!(all.tls.unwrap().client_ca, Some("a".into()));
    }
}
