//! The command line's types only.
//!
//! Knows: verbs, arguments and their help. Does not know: what any of them
//! does. Mistakes end in exit status 2, help and version in 0, both through
//! [`clap::Error::exit`].

mod volume;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{NbdDevice, Sources, parse_device, parse_duration, parse_name};

pub use self::volume::{
    Check, Compression, Convert, Download, Make, Passphrase, PassphraseFrom, Setup, Upload,
};
pub use crate::config::parse_size;

/// An OpenStack Swift container as a Linux block device.
#[derive(Debug, Parser)]
#[command(
    name = "swiftnbd",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Example:
  # a disk of 10 GiB, from nothing to a file system
  swiftnbd setup mynbd0 --size 10G
  D=$(swiftnbd attach mynbd0) && mkfs.ext4 $D && mount $D /mnt
  umount /mnt && swiftnbd detach mynbd0

Common mistakes:
  - No account is configured: write it in /etc/swiftnbd/swiftnbd.toml, see
    swiftnbd.toml(5).
  - A password on the command line: there is no option for it, because everybody
    sees it there.

Exit status: 0 done, 1 failed, 2 usage, 3 in use or locked, 4 not found,
5 access refused, 6 Swift unreachable."
)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that may stand before or after the verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The configuration (TOML) [default: /etc/swiftnbd/swiftnbd.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A secrets.conf of the original swiftnbd, instead of a configuration
    #[arg(long, global = true, value_name = "FILE")]
    pub secrets: Option<PathBuf>,
    /// Where the volumes are, instead of Swift: dir:PATH
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<String>,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Write the log to this file
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Write the log to syslog
    #[arg(long, global = true)]
    pub syslog: bool,
}

impl Global {
    /// These options, as a command line has them.
    pub fn words(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        let files = [
            ("--config", &self.config),
            ("--secrets", &self.secrets),
            ("--log-file", &self.log_file),
        ];
        for (option, path) in files {
            if let Some(path) = path {
                words.extend([option.into(), path.into()]);
            }
        }
        if let Some(store) = &self.store {
            words.extend(["--store".into(), store.into()]);
        }
        words.extend((0..self.verbose).map(|_| "-v".into()));
        if self.syslog {
            words.push("--syslog".into());
        }
        words
    }

    /// Where the configuration comes from: these options, and the system.
    pub fn sources(&self) -> Sources {
        Sources {
            config: self.config.clone(),
            secrets: self.secrets.clone(),
            store: self.store.clone(),
            ..Sources::system()
        }
    }
}

/// The verbs.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Make a container a volume
    Setup(Setup),
    /// Attach a volume to a block device and print the device
    Attach(Attach),
    /// Detach a device; returns when all is durable and unlocked
    Detach(Detach),
    /// Have attached devices served by the program that is installed now
    Restart(Restart),
    /// Show what is attached, and how it is doing
    Status(Status),
    /// List the volumes
    List(List),
    /// Lock a volume, so that nothing attaches it
    #[command(after_help = "\
Example:
  swiftnbd lock mynbd0                 # status 3: somebody has it

Common mistakes:
  - To lock a volume before attaching it: `attach` locks it by itself.")]
    Lock(Name),
    /// Unlock a volume that a crash left locked
    #[command(after_help = "\
Example:
  swiftnbd unlock mynbd0

Common mistakes:
  - To unlock a volume that somebody still writes to: its device fails, and what it has
    not stored is lost. If that is an older program, or the Python one, it destroys the
    volume: make sure that the holder which `swiftnbd list` shows is dead, not only out
    of reach.
  - To unlock one after a crash: there is no need to; `attach` takes it up when the
    lease of the dead has run out, and without waiting for that where only the daemon
    died.
  - To unlock what is attached on this machine: `swiftnbd detach` does.")]
    Unlock(Name),
    /// Make an image file of a volume
    Download(Download),
    /// Make a volume of an image file or a device
    Upload(Upload),
    /// Make a volume of format 2 of one of format 1
    Convert(Convert),
    /// Read all of a volume and say what is damaged
    Check(Check),
    /// Change the passphrase of an encrypted volume
    Passphrase(Passphrase),
    /// Delete a volume: its data and its container
    Delete(Delete),
    /// Serve volumes over NBD, exports by name, in the foreground
    Serve(Serve),
    /// The process behind `attach`
    #[command(name = crate::control::attach::DAEMON_VERB, hide = true)]
    Daemon(Attach),
    /// A daemon that goes on with the device of the program before
    #[command(name = crate::control::handover::VERB, hide = true)]
    Resume(Resume),
    /// Start the unit of each volume that is attached at boot
    #[command(name = "__boot", hide = true)]
    Boot,
    /// End the attachment that a unit has started
    #[command(name = "__stop", hide = true)]
    Stop(Name),
    /// Write the manual pages and the shells' completions
    #[command(name = "__manual", hide = true)]
    Manual(Manual),
}

/// Arguments of `attach`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  D=$(swiftnbd attach mynbd0)          # any free device
  swiftnbd attach mynbd0 /dev/nbd3 --read-only

Common mistakes:
  - \"locked by\": another machine has it, or died with it. Wait until its lease has run
    out and try again; --takeover does not care whether it lives. If it is an older
    program, or the Python one, and only if that is dead: `swiftnbd unlock NAME`.
  - \"in use\": it is attached already; `swiftnbd status` shows where.
  - To mount one volume on two machines: no file system for local disks survives
    that, and the lock prevents it.
  - To start it from rc.local or cron: attach_at_boot and a line in /etc/fstab with
    _netdev take care of the order, see swiftnbd-operating(7).")]
pub struct Attach {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The device [default: the configured one, else a free one]
    #[arg(value_parser = parse_device)]
    pub device: Option<NbdDevice>,
    /// Allow no writes
    #[arg(long)]
    pub read_only: bool,
    /// Take it from a holder that may be alive: what that one was not told to be
    /// stored is lost, and what only its journal has
    #[arg(long)]
    pub takeover: bool,
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Its passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
    /// The passphrase comes on stdin: from `attach` to the process behind it
    #[arg(long = PASSPHRASE_ON_STDIN, hide = true)]
    pub passphrase_on_stdin: bool,
}

/// The hidden option by which `attach` tells that it hands on a passphrase.
pub const PASSPHRASE_ON_STDIN: &str = "passphrase-on-stdin";

/// Arguments of `detach`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  umount /mnt && swiftnbd detach mynbd0
  swiftnbd detach /dev/nbd0 --timeout 60

Common mistakes:
  - The device is mounted or in use: unmount it first. Nothing is lost by trying.
  - --force while Swift is away: what is not stored yet is lost, unless a journal has
    it. Without it, everything waits until Swift is back.
  - `nbd-client -d` instead: it does not care whether the device is in use.")]
pub struct Detach {
    /// The device, or the volume on it
    #[arg(value_name = "DEVICE|NAME", value_parser = parse_target)]
    pub target: Target,
    /// Give up what cannot be saved, after saying what that is
    #[arg(short, long)]
    pub force: bool,
    /// Wait no longer than this [default: as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// Arguments of `restart`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd restart /dev/nbd0
  swiftnbd restart all                 # after an upgrade

What is mounted stays mounted, and what runs goes on after a pause, mostly of a second
or two: the new program is tried before the old one stops. It reads the
configuration again, so that new limits hold from then on. If it cannot do its work,
the old one goes on, and the status is not 0.

Common mistakes:
  - To detach and attach again for an upgrade: there is no need to.
  - To expect it to move a volume: where it is kept, its name and its device stay.")]
pub struct Restart {
    /// The device, or the volume on it, or all of them
    #[arg(value_name = "DEVICE|NAME|all", value_parser = parse_restarted)]
    pub target: Restarted,
}

/// What `restart` restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restarted {
    /// One attachment.
    One(Target),
    /// All that there are on this machine.
    All,
}

fn parse_restarted(text: &str) -> Result<Restarted, String> {
    match text {
        "all" => Ok(Restarted::All),
        text => parse_target(text).map(Restarted::One),
    }
}

/// Arguments of the process that goes on with a device.
#[derive(Debug, Clone, Args)]
pub struct Resume {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The descriptor that tells the rest [default: stdin, and it is only a trial]
    #[arg(long)]
    pub state: Option<i32>,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd status
  swiftnbd status /dev/nbd0 --json
  swiftnbd status --watch

With --watch, READ and WRITE are bytes in that second, REQUESTS what the kernel asked
for, STORE what Swift was asked for; FOUND is the part of the looks into the cache that
found something; DIRTY is not in Swift yet, BEHIND how old that is, LEASE how long the
volume stays ours if Swift goes away now. With --json as well, a line a second, of totals
since the device was attached or restarted.

Common mistakes:
  - To look here for a volume that another machine has: `swiftnbd list` shows who
    has locked it.")]
pub struct Status {
    /// The device, or the volume on it [default: all]
    #[arg(value_name = "DEVICE|NAME", value_parser = parse_target)]
    pub target: Option<Target>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    /// Print it again every second, with what was done in that second
    #[arg(short, long)]
    pub watch: bool,
}

/// Arguments of `list`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd list
  swiftnbd list --json | jq -r '.[] | select(.locked) | .name'

Common mistakes:
  - To look for a container that is not configured: only the volumes of the
    configuration are listed.")]
pub struct List {
    /// A line a volume, as the original swiftnbd-ctl printed it
    #[arg(short, long, conflicts_with = "json")]
    pub simple_output: bool,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lock` and `unlock`.
#[derive(Debug, Clone, Args)]
pub struct Name {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
}

/// Arguments of `delete`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  swiftnbd delete mynbd0 --yes

After an interruption, the same command deletes the rest. A container that holds
other objects besides stays, with them.

Common mistakes:
  - To delete what is attached or locked: it is refused; detach it first.
  - To expect it to ask in a script: without a terminal it wants --yes.")]
pub struct Delete {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd serve mynbd0                     # nbd://127.0.0.1:10809/mynbd0
  swiftnbd serve mynbd0 --unix /run/mynbd0.sock
  nbdinfo 'nbd+unix:///mynbd0?socket=/run/mynbd0.sock'
  swiftnbd serve --bind 0.0.0.0 --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem

Volumes that are named are locked until the server ends. Without names every
configured volume is an export, locked from its first client until a few seconds
after its last one.

Common mistakes:
  - To serve what is attached, or to attach what is served: a volume has one user.
  - A client that cannot ask for an export by its name: the oldstyle handshake is
    not spoken.")]
pub struct Serve {
    /// The volumes [default: all that are configured]
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub names: Vec<String>,
    /// Listen on this address; the port may be left out
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
    #[arg(value_parser = parse_bind)]
    pub bind: SocketAddr,
    /// Listen on this socket instead
    #[arg(long, value_name = "PATH", conflicts_with = "bind")]
    pub unix: Option<PathBuf>,
    /// Allow no writes
    #[arg(long)]
    pub read_only: bool,
    /// Its passphrase, if one volume is named.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
    /// Encrypt the connections, with this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of this authority (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Listen on other addresses than this machine's own without TLS: whoever
    /// reaches the port can read and write the volumes
    #[arg(long, conflicts_with = "tls_cert")]
    pub insecure_plaintext: bool,
}

/// The port that is NBD's own.
const NBD_PORT: u16 = 10809;

/// An address to listen on, from `ADDR:PORT` or `ADDR`; IPv6 in brackets where a
/// port follows.
fn parse_bind(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match bare.unwrap_or(text).parse::<IpAddr>() {
        Ok(address) if bare.is_none() || address.is_ipv6() => {
            Ok(SocketAddr::new(address, NBD_PORT))
        }
        _ => Err("an address is written 127.0.0.1:10809, 0.0.0.0 or [::1]:10809".into()),
    }
}

/// Arguments of the verb that writes the manual.
#[derive(Debug, Clone, Args)]
pub struct Manual {
    /// Where to; as it is laid out below a prefix's share directory
    pub directory: PathBuf,
}

/// An attachment, by its device or its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A device, whatever is on it.
    Device(NbdDevice),
    /// A volume, wherever it is attached.
    Name(String),
}

/// A volume's name has no slash, so one decides.
fn parse_target(text: &str) -> Result<Target, String> {
    match text.contains('/') {
        true => parse_device(text).map(Target::Device),
        false => parse_name(text).map(Target::Name),
    }
}
