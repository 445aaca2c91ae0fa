//! The command line's types only.
//!
//! Knows: verbs, arguments and their help. Does not know: what any of them
//! does. Mistakes end in exit status 2, help and version in 0, both through
//! [`clap::Error::exit`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{NbdDevice, Sources, parse_device, parse_duration, parse_name};

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
  - To unlock a volume that somebody still writes to: that destroys it. Make sure
    that the holder which `swiftnbd list` shows is dead, not only out of reach.
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

/// Arguments of `setup`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("how large").required(true).args(["objects", "size"])))]
#[command(override_usage = "swiftnbd setup [OPTIONS] NAME <OBJECTS | --size SIZE>")]
#[command(after_help = "\
Examples:
  # both make a volume of 1 GiB
  swiftnbd setup mynbd0 --size 1G
  swiftnbd setup mynbd0 16384          # times 64 KiB
  # nobody reads it without the passphrase
  swiftnbd setup private --size 100G --encrypt --passphrase-file /root/private.pass
  # as the original swiftnbd made it
  swiftnbd setup old --size 1T --object-size 1M

Sizes take K, M, G, T and KiB, MiB, GiB, TiB; all are powers of two.

Format 2, the default, writes a log: faster, safe after a crash, compressed, and
encrypted if you want. Format 1 is the original's, which its tools can use.

Common mistakes:
  - A number without a unit is a number of objects of 64 KiB, not of bytes or
    megabytes.
  - The size has to be a multiple of the block size (of the object size in format 1).
  - --force empties a volume of format 2. One of format 1 it does not empty: its
    objects stay, and are its content.
  - To lose the passphrase: nobody can help then.")]
pub struct Setup {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Its size as a number of objects of 64 KiB, or of --object-size
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub objects: Option<u64>,
    /// Its size
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// The size of an object; makes a volume of format 1 [default there: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub object_size: Option<u64>,
    /// How it is kept.
    #[command(flatten)]
    pub make: Make,
    /// Set it up again even if it is a volume already
    #[arg(short, long)]
    pub force: bool,
    /// Its passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// How a volume that is made is kept.
#[derive(Debug, Clone, Default, Args)]
pub struct Make {
    /// The format of the volume: 2, or 1 for the original's tools [default: 2]
    #[arg(long, value_parser = parse_format)]
    pub format: Option<u8>,
    /// The size of a block in bytes: 512 or 4096
    #[arg(long, value_name = "BYTES", value_parser = parse_block_size)]
    pub block_size: Option<u32>,
    /// How data is compressed [default: lz4]
    #[arg(long, value_name = "HOW")]
    pub compression: Option<Compression>,
    /// Encrypt all data with a passphrase
    #[arg(long)]
    pub encrypt: bool,
}

/// How data is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// With LZ4, where that makes it smaller.
    Lz4,
    /// Not at all.
    None,
}

/// Where a volume's passphrase comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct PassphraseFrom {
    /// The file that holds the volume's passphrase, not readable by everyone
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// The descriptor that the volume's passphrase is read from
    #[arg(long, value_name = "N", conflicts_with = "passphrase_file")]
    pub passphrase_fd: Option<u16>,
}

/// Arguments of `attach`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  D=$(swiftnbd attach mynbd0)          # any free device
  swiftnbd attach mynbd0 /dev/nbd3 --read-only

Common mistakes:
  - \"locked by\": another machine has it, or died with it. Only if that holder is
    dead: `swiftnbd unlock NAME`.
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
  - --force while Swift is away: what is not stored yet is lost. Without it,
    everything waits until Swift is back.
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

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd status
  swiftnbd status /dev/nbd0 --json

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

/// Arguments of `download`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd download mynbd0 mynbd0.raw
  swiftnbd download mynbd0 mynbd0.raw --quiet --limit 20MiB

IMAGE appears when it is complete; until then the data is in IMAGE.swiftnbd-part.
After an interruption, the same command goes on from there. Zeros become holes.

Common mistakes:
  - To download what is attached: it is locked; detach it first.
  - To copy the image with a tool that fills holes: `cp --sparse=always` keeps them.")]
pub struct Download {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The image file; replaced if it is there
    pub image: PathBuf,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Fetch no more than this in a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit: Option<u64>,
    /// Its passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// Arguments of `upload`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd upload disk.raw mynbd0      # makes the volume if need be
  swiftnbd upload /dev/sdb mynbd1 --limit 20MiB
  swiftnbd upload disk.raw private --encrypt --passphrase-file /root/private.pass

Holes and zeros are not stored. A volume that is there becomes the image, zeros
behind it. One that is made has blocks of 512 bytes, as most images have. After an
interruption, the same command sends what is missing.

Common mistakes:
  - To set the volume up first: `upload` makes it. One of format 1 that is there takes
    longer: every object of it that must be zeros is deleted, stored or not.
  - An image in qcow2 or another format: convert it with `qemu-img convert -O raw`.
  - To upload a device that is mounted: it is refused, because it changes.")]
pub struct Upload {
    /// A raw image: a file, or a block device that nothing uses
    pub image: PathBuf,
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Send no more than this in a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit: Option<u64>,
    /// The size of an object, if the volume is made; makes one of format 1
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub object_size: Option<u64>,
    /// How it is kept, if it is made.
    #[command(flatten)]
    pub make: Make,
    /// Its passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// Arguments of `convert`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  swiftnbd convert mynbd0 mynbd0-new && swiftnbd delete mynbd0

NAME stays as it is, and is locked meanwhile. NEW is made, and nobody can use it
before all of it is there and was compared with NAME. After an interruption, the same
command goes on from where it was.

Common mistakes:
  - To convert what is attached: it is locked; detach it first.
  - To name the same container twice: the old volume stays until you delete it.")]
pub struct Convert {
    /// The volume of format 1
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The volume that is made of it
    #[arg(value_parser = parse_name)]
    pub new: String,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Copy no more than this in a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub limit: Option<u64>,
    /// How data is compressed [default: lz4]
    #[arg(long, value_name = "HOW")]
    pub compression: Option<Compression>,
    /// Encrypt NEW with a passphrase
    #[arg(long)]
    pub encrypt: bool,
    /// Its passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd check mynbd0                # status 1: something is damaged
  swiftnbd check mynbd0 --json | jq '.findings'
  swiftnbd check mynbd0 --repair

It reads every object of the volume, and says which parts of the device are damaged.
The volume is locked meanwhile.

Common mistakes:
  - To check what is attached: it is locked; detach it first.
  - To expect lost data from --repair: it brings in order what can be brought in
    order, and what was damaged stays so, to be noticed by whoever reads it.")]
pub struct Check {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Mend what can be mended
    #[arg(long)]
    pub repair: bool,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Its passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// Arguments of `passphrase`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  swiftnbd passphrase private          # asks for the old one and the new one
  swiftnbd passphrase private --passphrase-file old --new-passphrase-file new

No data is written anew: the key of the data stays, and is wrapped by the new
passphrase.

Common mistakes:
  - To change it because the old one became known, and to rely on that: whoever had
    both the old passphrase and the container can know the key of the data. Only a new
    volume has another one.
  - To forget the file that `passphrase_file` names: the new passphrase belongs there.")]
pub struct Passphrase {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The file that holds the new passphrase, not readable by everyone
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
    /// The descriptor that the new passphrase is read from
    #[arg(long, value_name = "N", conflicts_with = "new_passphrase_file")]
    pub new_passphrase_fd: Option<u16>,
    /// The present one.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
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

/// Bytes a second, at least one.
fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("it must be more than nothing".into()),
        rate => Ok(rate),
    }
}

fn parse_format(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err("the format is 1 or 2".into()),
    }
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("the block size is 512 or 4096".into()),
    }
}
