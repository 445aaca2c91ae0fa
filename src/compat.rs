//! The command lines of the original's programs, for the scripts that use them.
//!
//! Knows: the arguments of `swiftnbd-setup`, `swiftnbd-server` and `swiftnbd-ctl` as
//! versions 0.9.3 to 0.11 had them. Does not know: what any of them does. Which
//! program it is, is said by the name that ours is called by.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::cli::{self, Global};
use crate::config::{OriginalKeystone, OriginalLogin, Sources, parse_name, parse_size};

/// What every help text ends with.
const NOTES: &str = "\
This is swiftnbd under a name of the original's. The oldstyle NBD handshake of its
versions up to 0.9.4 is not spoken any more: use an nbd-client of this decade.
`swiftnbd --help` shows what else there is.

Exit status: 0 done, 1 any error, 2 usage.";

/// One of the original's programs, and how it was called.
#[derive(Debug, Clone)]
pub enum Invocation {
    /// `swiftnbd-setup`.
    Setup(Setup),
    /// `swiftnbd-server`.
    Server(Server),
    /// `swiftnbd-ctl`.
    Ctl(Ctl),
}

impl Invocation {
    /// Reads the command line of this process, if it was called by such a name.
    /// Mistakes end the process.
    pub fn of_this_process() -> Option<Invocation> {
        let name = std::env::args_os().next()?;
        match Path::new(&name).file_name().and_then(OsStr::to_str)? {
            "swiftnbd-setup" => Some(Invocation::Setup(Setup::parse())),
            SERVER => Some(Invocation::Server(Server::parse())),
            "swiftnbd-ctl" => Some(Invocation::Ctl(Ctl::parse())),
            _ => None,
        }
    }

    /// The program's name.
    pub fn program(&self) -> &'static str {
        match self {
            Invocation::Setup(_) => "swiftnbd-setup",
            Invocation::Server(_) => SERVER,
            Invocation::Ctl(_) => "swiftnbd-ctl",
        }
    }

    /// The options that all of them have.
    pub fn common(&self) -> &Common {
        match self {
            Invocation::Setup(args) => &args.common,
            Invocation::Server(args) => &args.common,
            Invocation::Ctl(args) => &args.common,
        }
    }

    /// The same as options of today's.
    pub fn global(&self) -> Global {
        let mut global = Global {
            config: None,
            secrets: self.common().secrets.clone(),
            store: None,
            verbose: self.common().verbose,
            log_file: None,
            syslog: false,
        };
        if let Invocation::Server(args) = self {
            global.log_file.clone_from(&args.log_file);
            global.syslog = args.syslog;
        }
        global
    }

    /// Where the configuration comes from.
    pub fn sources(&self) -> Sources {
        Sources {
            original: Some(self.common().login()),
            ..self.global().sources()
        }
    }
}

/// The name of the server, which is also what it calls itself.
pub const SERVER: &str = "swiftnbd-server";

/// Options of all programs.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The secrets file [default: /etc/swiftnbd/swiftnbd.toml, or secrets.conf there]
    #[arg(long, global = true, value_name = "FILE")]
    pub secrets: Option<PathBuf>,
    /// The authentication, for containers without an authurl in the secrets file
    #[arg(short, long, global = true, value_name = "URL")]
    pub auth_url: Option<String>,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Ask Keystone; user names are TENANT.USER
    #[arg(short, long, global = true)]
    pub keystone_auth: bool,
    /// What stands between tenant and user
    #[arg(long, global = true, value_name = "TEXT", default_value = ".")]
    pub keystone_separator: String,
    /// The type of the service
    #[arg(
        long,
        global = true,
        value_name = "TYPE",
        default_value = "object-store"
    )]
    pub keystone_service: String,
    /// The endpoint of the service
    #[arg(long, global = true, value_name = "NAME", default_value = "publicURL")]
    pub keystone_endpoint: String,
    /// The region of the service
    #[arg(long, global = true, value_name = "REGION")]
    pub keystone_region: Option<String>,
}

impl Common {
    /// What these options say of the account.
    fn login(&self) -> OriginalLogin {
        OriginalLogin {
            auth_url: self.auth_url.clone(),
            keystone: self.keystone_auth.then(|| OriginalKeystone {
                separator: self.keystone_separator.clone(),
                service_type: self.keystone_service.clone(),
                endpoint: self.keystone_endpoint.clone(),
                region: self.keystone_region.clone(),
            }),
        }
    }
}

/// Makes a container a volume, as swiftnbd-setup did.
#[derive(Debug, Clone, Parser)]
#[command(name = "swiftnbd-setup", version, after_help = NOTES)]
pub struct Setup {
    /// What to set up.
    #[command(flatten)]
    pub what: SetupArgs,
    /// Options of all programs.
    #[command(flatten)]
    pub common: Common,
}

/// What to set up: `swiftnbd-setup`, and `swiftnbd-ctl setup`.
#[derive(Debug, Clone, Args)]
pub struct SetupArgs {
    /// The container
    #[arg(value_parser = parse_name)]
    pub container: String,
    /// Its size as a number of objects
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub objects: u64,
    /// The size of an object in bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "65536")]
    pub object_size: u64,
    /// Set it up again even if it is a volume already
    #[arg(short, long)]
    pub force: bool,
}

impl SetupArgs {
    /// The same in today's words.
    pub fn modern(&self) -> cli::Setup {
        cli::Setup {
            name: self.container.clone(),
            objects: Some(self.objects),
            size: None,
            object_size: Some(self.object_size),
            make: cli::Make {
                format: Some(1),
                ..cli::Make::default()
            },
            force: self.force,
            passphrase: cli::PassphraseFrom::default(),
        }
    }
}

/// Serves containers over NBD, as swiftnbd-server did.
///
/// With CONTAINER: that one, as the default export too, on port 10811 (versions up
/// to 0.9.4). Without: all of the secrets file, by name, on port 10809 (0.9.7 and
/// later). A container is locked while a client is connected.
#[derive(Debug, Clone, Parser)]
#[command(name = SERVER, version, after_help = NOTES)]
pub struct Server {
    /// The container [default: all of the secrets file]
    #[arg(value_parser = parse_name)]
    pub container: Option<String>,
    /// The address to listen on
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub bind_address: String,
    /// The port to listen on [default: 10811 with CONTAINER, else 10809]
    #[arg(short = 'p', long, value_name = "PORT")]
    pub bind_port: Option<u16>,
    /// Clean data in memory, in MB, for each container
    #[arg(short, long, value_name = "MB", default_value = "64",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub cache_limit: u64,
    /// Write the log to this file
    #[arg(short, long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Write the log to syslog (local0)
    #[arg(long)]
    pub syslog: bool,
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Where the process id is written [default: swiftnbd.pid in the temporary
    /// directory]
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// It is the background process
    #[arg(long = AS_DAEMON, hide = true)]
    pub as_daemon: bool,
    /// Options of all programs.
    #[command(flatten)]
    pub common: Common,
}

/// The hidden option that the background process is started with.
pub const AS_DAEMON: &str = "as-daemon";

impl Server {
    /// The port to listen on.
    pub fn port(&self) -> u16 {
        self.bind_port.unwrap_or(match self.container {
            Some(_) => 10811,
            None => 10809,
        })
    }

    /// Where the process id is written.
    pub fn pid_file(&self) -> PathBuf {
        match &self.pid_file {
            Some(path) => path.clone(),
            None => std::env::temp_dir().join("swiftnbd.pid"),
        }
    }
}

/// Lists, locks, unlocks, downloads and deletes containers, as swiftnbd-ctl did.
#[derive(Debug, Clone, Parser)]
#[command(name = "swiftnbd-ctl", version, after_help = NOTES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Ctl {
    /// What to do.
    #[command(subcommand)]
    pub command: CtlCommand,
    /// Options of all programs.
    #[command(flatten)]
    pub common: Common,
}

/// The verbs of `swiftnbd-ctl`.
#[derive(Debug, Clone, Subcommand)]
pub enum CtlCommand {
    /// Make a container a volume
    Setup(SetupArgs),
    /// List the containers of the secrets file
    List {
        /// Names and figures alone, which is what it always prints now
        #[arg(short, long)]
        simple_output: bool,
    },
    /// Lock a container
    Lock(cli::Name),
    /// Unlock a container
    Unlock(cli::Name),
    /// Make a raw image of a container
    Download {
        /// The container
        #[arg(value_parser = parse_name)]
        container: String,
        /// The image
        image: PathBuf,
        /// Show no progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// Delete all objects of a container and the container, without asking
    Delete(cli::Name),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        for mut command in [Setup::command(), Server::command(), Ctl::command()] {
            command.clone().debug_assert();
            let help = command.render_help().to_string();
            assert!(help.contains("oldstyle"), "{help}");
        }
    }

    #[test]
    fn the_port_is_that_of_the_version_with_these_arguments() {
        let port = |line: &str| Server::try_parse_from(line.split(' ')).unwrap().port();
        assert_eq!(port("swiftnbd-server c"), 10811);
        assert_eq!(port("swiftnbd-server"), 10809);
        assert_eq!(port("swiftnbd-server -p 5 c"), 5);
        assert_eq!(port("swiftnbd-server -vfp 5"), 5);
    }
}
