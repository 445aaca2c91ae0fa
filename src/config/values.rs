//! The values that keys and arguments take: sizes, times, names, devices,
//! URLs, read from text and checked.
//!
//! Knows: what a value looks like and its bounds. Does not know: which key or
//! argument it stood in, nor in which file; the caller puts that in front of
//! the reasons returned here. No reason ever quotes a text that may hold a
//! password (see [`quoted`]).

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A value, or the reason why it is none.
pub(super) type Checked<T> = Result<T, String>;

/// The units of sizes, with the power of two that each stands for.
const SIZE_UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// Longer times are certainly mistakes.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Swift's own limit for the name of a container, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// The kernel numbers block devices with 20 bits.
const MAX_DEVICE_INDEX: u32 = (1 << 20) - 1;

/// Longer URLs are refused.
const MAX_URL_BYTES: usize = 2048;

/// What a flush waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flush {
    /// Swift has what was written.
    #[default]
    Swift,
    /// A disk of this machine has it.
    Local,
}

/// Where figures can be read: on this machine only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAt {
    /// A port of a loopback address.
    Tcp(SocketAddr),
    /// A socket in the file system; an absolute path.
    Unix(PathBuf),
}

impl fmt::Display for MetricsAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAt::Tcp(address) => address.fmt(f),
            MetricsAt::Unix(path) => path.display().fmt(f),
        }
    }
}

/// From `127.0.0.1:9464`, `[::1]:9464` or `/run/swiftnbd/vol.metrics`.
pub(super) fn parse_metrics(text: &str) -> Checked<MetricsAt> {
    if text.starts_with('/') {
        check_file(text)?;
        // What the kernel takes as a socket's name.
        if text.len() > 107 {
            return Err("the path of a socket has at most 107 bytes".into());
        }
        return Ok(MetricsAt::Unix(text.into()));
    }
    let address: SocketAddr = text.parse().map_err(
        |_| "it is written \"127.0.0.1:9464\", \"[::1]:9464\" or \"/run/swiftnbd/NAME.metrics\"",
    )?;
    if !address.ip().is_loopback() {
        return Err("others than this machine must not read them there: 127.0.0.1 or [::1]".into());
    }
    if address.port() == 0 {
        return Err("nobody would know which port that is".into());
    }
    Ok(MetricsAt::Tcp(address))
}

/// A size in bytes, from `512`, `64K`, `64KB`, `64KiB` and the like with M, G
/// and T, in any case. All units are powers of two.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (number, unit) = split_number(text);
    if number.is_empty() {
        return Err("a size is a number with a unit, such as 64KiB, 512M or 2T".into());
    }
    if unit.starts_with(['.', ',']) {
        return Err("a size is a whole number with a unit: 1536M, not 1.5G".into());
    }
    let shift = size_shift(unit).ok_or_else(|| {
        let unit = quoted(unit);
        format!("{unit} is no unit of size; known are K, M, G, T and KiB, MiB, GiB, TiB")
    })?;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "the size is larger than 64 bits can count".into())
}

fn size_shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return Some(0);
    }
    SIZE_UNITS
        .iter()
        .find(|(letter, _)| {
            unit.strip_prefix(letter)
                .is_some_and(|rest| ["", "B", "IB"].contains(&rest))
        })
        .map(|(_, shift)| *shift)
}

/// Leading digits, and what follows them without the blanks between.
fn split_number(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start())
}

/// A size as [`parse_size`] reads it, in the largest unit that divides it:
/// `64MiB`, `1000`.
pub fn format_size(bytes: u64) -> String {
    SIZE_UNITS
        .iter()
        .find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(
            || bytes.to_string(),
            |(letter, shift)| format!("{}{letter}iB", bytes >> shift),
        )
}

/// A time from `30s`, `5m`, `2h`, `1d` or plain seconds; at most a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text.trim());
    let seconds_each = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("a time is a whole number with s, m, h or d: 30s, 5m".into()),
    };
    if number.is_empty() {
        return Err("a time is a whole number with s, m, h or d: 30s, 5m".into());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds_each))
        .map(Duration::from_secs)
        .filter(|time| *time <= MAX_DURATION)
        .ok_or_else(|| "the time is longer than a year (365d)".into())
}

/// A device of the kernel's nbd driver, `/dev/nbdN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NbdDevice(u32);

impl NbdDevice {
    /// The device with this number, 0 to 1,048,575.
    pub fn new(index: u32) -> Option<NbdDevice> {
        (index <= MAX_DEVICE_INDEX).then_some(NbdDevice(index))
    }

    /// The number N of `/dev/nbdN`: what netlink calls the index.
    pub fn index(self) -> u32 {
        self.0
    }

    /// The path of the device node.
    pub fn path(self) -> PathBuf {
        PathBuf::from(self.to_string())
    }
}

impl fmt::Display for NbdDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

/// A device from its path: exactly `/dev/nbdN`, no partition and no symlink.
pub fn parse_device(text: &str) -> Result<NbdDevice, String> {
    const FORM: &str = "a device is written /dev/nbd0, /dev/nbd1 and so on";
    let number = text.strip_prefix("/dev/nbd").ok_or(FORM)?;
    let digits = number.bytes().take_while(u8::is_ascii_digit).count();
    if digits > 0 && number[digits..].starts_with('p') {
        return Err("this is a partition; name the whole device, such as /dev/nbd0".into());
    }
    let plain = digits > 0 && digits == number.len() && (digits == 1 || !number.starts_with('0'));
    if !plain {
        return Err(FORM.into());
    }
    number
        .parse()
        .ok()
        .and_then(NbdDevice::new)
        .ok_or_else(|| format!("the number is larger than {MAX_DEVICE_INDEX}"))
}

/// A volume's name as an argument: 1 to 256 bytes without `/`, blanks or
/// control characters, neither `.` nor `..`, and not beginning with `-`.
pub fn parse_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// Whether this can be the name of a volume.
pub(super) fn check_name(name: &str) -> Checked<()> {
    check_container(name)?;
    if name.contains(char::is_whitespace) {
        return Err("a volume's name has no blanks".into());
    }
    if name.starts_with('-') {
        return Err("a volume's name does not begin with '-'".into());
    }
    Ok(())
}

/// Whether this can be the name of a container.
pub(super) fn check_container(name: &str) -> Checked<()> {
    if name.is_empty() {
        return Err("the name is empty".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("the name is longer than {MAX_NAME_BYTES} bytes"));
    }
    if name.contains('/') {
        return Err("the name contains a '/'".into());
    }
    if name == "." || name == ".." {
        return Err("'.' and '..' are no names".into());
    }
    if name.contains(char::is_control) {
        return Err("the name contains a control character".into());
    }
    Ok(())
}

/// Whether this can be the URL of an authentication service. The reasons do
/// not quote it: it may hold a password by mistake.
pub(super) fn check_auth_url(url: &str) -> Checked<()> {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| {
            let head = url.get(..scheme.len())?;
            head.eq_ignore_ascii_case(scheme)
                .then(|| &url[scheme.len()..])
        })
        .ok_or("the URL must begin with https:// or http://")?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let reason = if url.len() > MAX_URL_BYTES {
        "the URL is longer than 2048 bytes"
    } else if url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "the URL contains blanks or control characters"
    } else if host.contains('@') {
        "the URL contains a user; write it under username and password"
    } else if host.is_empty() || host.starts_with(':') {
        "the URL names no host"
    } else if rest.contains(['?', '#']) {
        "the URL contains a query or a fragment"
    } else {
        return Ok(());
    };
    Err(reason.into())
}

/// Whether this can be sent as a user name or a password. The reason does not
/// quote it.
pub(super) fn check_credential(text: &str) -> Checked<()> {
    match text.contains(char::is_control) {
        true => Err("it contains a control character".into()),
        false => Ok(()),
    }
}

/// Whether this can be the path of a file; absolute, since the daemon works in
/// another directory than its caller.
pub(super) fn check_file(path: &str) -> Checked<()> {
    check_credential(path)?;
    match Path::new(path).is_absolute() {
        true => Ok(()),
        false => Err("the path must be absolute".into()),
    }
}

/// The directory of a store `dir:PATH`; the path is absolute, since the daemon
/// works in another directory than its caller. Other stores are not known yet.
pub(super) fn parse_store(text: &str) -> Checked<PathBuf> {
    const FORM: &str = "a store is written dir:PATH with an absolute path";
    let (scheme, path) = text.split_once(':').ok_or(FORM)?;
    if scheme != "dir" {
        // Only a plain word is quoted: what follows it may hold a password.
        let word = scheme.len() <= 16 && scheme.bytes().all(|b| b.is_ascii_alphabetic());
        let what = match word {
            true => format!("stores of the kind '{scheme}:' are not known"),
            false => "this kind of store is not known".into(),
        };
        return Err(format!("{what}; there is dir:PATH"));
    }
    if path.contains(char::is_control) {
        return Err("the path contains a control character".into());
    }
    if !Path::new(path).is_absolute() {
        return Err(FORM.into());
    }
    Ok(PathBuf::from(path))
}

/// A text in quotes for a message, or a description of it where it is long or
/// has control characters: then it may be more than the one value that it
/// should be, with a password in it.
pub(super) fn quoted(text: &str) -> String {
    match text.chars().count() {
        0 => "an empty text".into(),
        1..=40 if !text.contains(char::is_control) => format!("'{text}'"),
        _ => "what stands there".into(),
    }
}

/// The word that `word` was most probably meant to be.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_NAME_BYTES {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&word, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, candidate)| {
            let length = word.chars().count().max(candidate.chars().count());
            *distance <= (length * 2 / 5).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
