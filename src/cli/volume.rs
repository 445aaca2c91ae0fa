//! The verbs that make volumes, copy them and look through them, and the options that
//! they share.

use std::path::PathBuf;

use clap::Args;

use crate::config::{parse_name, parse_size};

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
    /// How data is compressed: lz4 or none [default: lz4]
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
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
    /// How data is compressed: lz4 or none [default: lz4]
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
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
  - To expect lost data from --repair: it gives up what cannot be read, so that
    reading it fails at once, until it is written anew. The status is 1 then, too.
  - To repair while one of Swift's servers is away: what only that one has looks lost.
    Two looks, half a minute apart on Swift, must agree; start the server first anyway.")]
pub struct Check {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Give up what cannot be read, and write the metadata anew if it is damaged
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
