//! The TOML of `swiftnbd.toml` into [`Settings`].
//!
//! Knows: TOML's sections and keys, where each stands in the file, and which
//! keys there are. Does not know: how the settings are used.
//!
//! The `toml` crate's own errors quote the line at fault, and with it perhaps
//! a password; messages here are made of its description and the line's number
//! alone.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::Key;
use super::login::Login;
use super::settings::{Settings, Source, VolumeSettings, shown_key};
use super::values::{
    Checked, Flush, check_container, check_file, check_name, format_size, nearest, parse_device,
    parse_duration, parse_metrics, parse_size, parse_store, quoted,
};
use crate::error::{Error, Result};

const SECTIONS: [&str; 2] = ["swift", "volumes"];

/// The keys of `[volumes.NAME]` besides those of `[swift]`.
const VOLUME_KEYS: [&str; 15] = [
    "container",
    "device",
    "attach_at_boot",
    "read_only",
    "cache",
    "dirty",
    "map",
    "io_timeout",
    "lease",
    "flush",
    "journal",
    "reattach_timeout",
    "store",
    "passphrase_file",
    "metrics",
];

/// Bounds of `cache`, `dirty` and `map`: below, every object is fetched or uploaded
/// again at once; above, the unit is certainly a mistake.
const MIN_MEMORY: u64 = 1 << 20;
const MAX_MEMORY: u64 = 1 << 40;

/// What `metrics` is to be.
const METRICS: &str = "an address: \"127.0.0.1:9464\", or the path of a socket";

/// Bounds of `lease`: below, requests and their repetition take a good part of it; and
/// whoever takes a volume over waits that long.
const LEASE: RangeInclusive<Duration> = Duration::from_secs(3)..=Duration::from_secs(3600);

/// Bounds of `reattach_timeout`: for so long a file system waits.
const REATTACH: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// Reads the whole file.
pub(super) fn parse(source: Source<'_>) -> Result<Settings> {
    let document = DeTable::parse(source.text).map_err(|error| syntax(source, &error))?;
    let mut settings = Settings::default();
    for (key, value) in document.get_ref() {
        let entry = Entry::new(source, "", key, value);
        match entry.key {
            "swift" => settings.every = Some(swift(&entry)?),
            "volumes" => {
                for (name, value) in entry.table()? {
                    let volume = volume(source, name, value)?;
                    settings.volumes.insert(name.get_ref().to_string(), volume);
                }
            }
            _ => return Err(entry.unknown(&SECTIONS)),
        }
    }
    Ok(settings)
}

fn syntax(source: Source<'_>, error: &toml::de::Error) -> Error {
    let byte = error.span().map_or(source.text.len(), |span| span.start);
    let found = source.error_at(byte, error.message());
    match source.path.extension() {
        Some(extension) if extension == "conf" || extension == "ini" => {
            found.hint("a secrets.conf of the original is read with --secrets FILE")
        }
        _ => found,
    }
}

fn swift(section: &Entry<'_>) -> Result<Login> {
    let mut login = Login::default();
    for (key, value) in section.table()? {
        let entry = Entry::new(section.source, "[swift]", key, value);
        if entry.login(&mut login)? {
            continue;
        }
        if VOLUME_KEYS.contains(&entry.key) {
            return Err(entry
                .error(format!("{} does not belong in [swift]", entry.key))
                .hint("it is a key of [volumes.NAME]"));
        }
        return Err(entry.unknown(&login_keys()));
    }
    Ok(login)
}

fn volume(
    source: Source<'_>,
    name: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<VolumeSettings> {
    check_name(name.get_ref()).map_err(|why| {
        let name_shown = quoted(name.get_ref());
        source.error_at(name.span().start, format!("volume {name_shown}: {why}"))
    })?;
    let place = section_of(name.get_ref());
    let section = Entry::new(source, "[volumes]", name, value);
    let mut settings = VolumeSettings::default();
    for (key, value) in section.table()? {
        volume_key(&mut settings, &Entry::new(source, &place, key, value))?;
    }
    Ok(settings)
}

fn volume_key(settings: &mut VolumeSettings, entry: &Entry<'_>) -> Result<()> {
    match entry.key {
        "container" => {
            let name = entry.text("a text")?;
            check_container(name).map_err(|why| entry.wrong(why))?;
            settings.container = Some(name.to_owned());
        }
        "device" => settings.device = Some(entry.parsed("a device: \"/dev/nbd0\"", parse_device)?),
        "attach_at_boot" => settings.attach_at_boot = entry.boolean()?,
        "read_only" => settings.read_only = entry.boolean()?,
        "cache" => settings.cache = Some(entry.memory()?),
        "dirty" => settings.dirty = Some(entry.memory()?),
        "map" => settings.map = Some(entry.memory()?),
        "io_timeout" => {
            settings.io_timeout = Some(entry.parsed_number("a time: \"30s\"", parse_duration)?)
        }
        "lease" => {
            let lease = entry.parsed_number("a time: \"30s\"", parse_duration)?;
            if !LEASE.contains(&lease) || lease.subsec_nanos() != 0 {
                let why = "a lease is 3 to 3600 seconds, without a fraction";
                return Err(entry.wrong(why));
            }
            settings.lease = Some(lease);
        }
        "flush" => settings.flush = Some(entry.flush()?),
        "journal" => {
            let path = entry.text("a path in quotes")?;
            check_file(path).map_err(|why| entry.wrong(why))?;
            settings.journal = Some(path.into());
        }
        "reattach_timeout" => {
            let time = entry.parsed_number("a time: \"2m\"", parse_duration)?;
            if !REATTACH.contains(&time) || time.subsec_nanos() != 0 {
                let why = "it is 0 (not at all) to 3600 seconds, without a fraction";
                return Err(entry.wrong(why));
            }
            settings.reattach_timeout = Some(time);
        }
        "metrics" => settings.metrics = Some(entry.parsed(METRICS, parse_metrics)?),
        "store" => settings.store = Some(entry.parsed("a store: \"dir:PATH\"", parse_store)?),
        "passphrase_file" => {
            let path = entry.text("a path in quotes")?;
            check_file(path).map_err(|why| entry.wrong(why))?;
            settings.passphrase_file = Some(path.into());
        }
        _ if entry.login(&mut settings.login)? => {}
        _ => {
            let mut known = VOLUME_KEYS.to_vec();
            known.extend(login_keys());
            return Err(entry.unknown(&known));
        }
    }
    Ok(())
}

fn login_keys() -> Vec<&'static str> {
    Key::all().map(Key::in_toml).collect()
}

/// The header of a volume's section as it would be written.
pub(super) fn section_of(name: &str) -> String {
    let bare = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    match bare {
        true => format!("[volumes.{name}]"),
        false => format!("[volumes.\"{name}\"]"),
    }
}

/// One key with its value, and where they stand.
struct Entry<'a> {
    source: Source<'a>,
    /// The section as it is written, or empty at the top level.
    section: &'a str,
    key: &'a str,
    key_at: usize,
    value: &'a DeValue<'a>,
    value_at: usize,
}

impl<'a> Entry<'a> {
    fn new(
        source: Source<'a>,
        section: &'a str,
        key: &'a Spanned<DeString<'_>>,
        value: &'a Spanned<DeValue<'_>>,
    ) -> Entry<'a> {
        Entry {
            source,
            section,
            key: key.get_ref(),
            key_at: key.span().start,
            value: value.get_ref(),
            value_at: value.span().start,
        }
    }

    fn error(&self, message: String) -> Error {
        self.source.error_at(self.key_at, message)
    }

    /// The value is not what this key takes.
    fn wrong(&self, why: impl std::fmt::Display) -> Error {
        let (key, section) = (self.key, self.section);
        self.source
            .error_at(self.value_at, format!("{key} in {section}: {why}"))
    }

    fn wrong_type(&self, expected: &str) -> Error {
        let (found, section) = (self.value.type_str(), self.section);
        let key = shown_key(self.key);
        let place = match section {
            "" => key,
            _ => format!("{key} in {section}"),
        };
        let message = format!("{place} must be {expected}, not of type {found}");
        self.source.error_at(self.value_at, message)
    }

    fn unknown(&self, known: &[&str]) -> Error {
        let key = shown_key(self.key);
        let message = match self.section {
            "" => format!("{key} is no section of this file"),
            section => format!("{key} is no key of {section}"),
        };
        // OpenStack's own name for it, or nearly one of ours.
        let meant = Key::all().find(|key| key.in_clouds().contains(&self.key));
        let meant = meant.map(Key::in_toml).filter(|key| known.contains(key));
        let hint = match meant.or_else(|| nearest(self.key, known.iter().copied())) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("known here: {}", known.join(", ")),
        };
        self.error(message).hint(hint)
    }

    fn table(&self) -> Result<&'a DeTable<'a>> {
        self.value
            .as_table()
            .ok_or_else(|| self.wrong_type("a section"))
    }

    fn text(&self, expected: &str) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong_type(expected))
    }

    fn boolean(&self) -> Result<bool> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong_type("true or false"))
    }

    fn parsed<T>(&self, expected: &str, parse: fn(&str) -> Checked<T>) -> Result<T> {
        parse(self.text(expected)?).map_err(|why| self.wrong(why))
    }

    /// A value that may also be written as a number without quotes.
    fn parsed_number<T>(&self, expected: &str, parse: fn(&str) -> Checked<T>) -> Result<T> {
        let Some(integer) = self.value.as_integer() else {
            return self.parsed(expected, parse);
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| self.wrong("the number is negative or too large"))?;
        parse(&number.to_string()).map_err(|why| self.wrong(why))
    }

    fn memory(&self) -> Result<u64> {
        let bytes = self.parsed_number("a size: \"64MiB\"", parse_size)?;
        if (MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
            return Ok(bytes);
        }
        let (size, min) = (format_size(bytes), format_size(MIN_MEMORY));
        let max = format_size(MAX_MEMORY);
        let unit = if size.ends_with('B') { "" } else { " bytes" };
        Err(self
            .wrong(format!("{size}{unit} is not between {min} and {max}"))
            .hint(format!("sizes have a unit: {} = \"64MiB\"", self.key)))
    }

    fn flush(&self) -> Result<Flush> {
        match self.text("\"swift\" or \"local\"")? {
            "swift" => Ok(Flush::Swift),
            "local" => Ok(Flush::Local),
            _ => Err(self.wrong("must be \"swift\" or \"local\"")),
        }
    }

    /// Takes the value into the login; false if this is no key of a login.
    fn login(&self, login: &mut Login) -> Result<bool> {
        let Some(key) = Key::all().find(|key| key.in_toml() == self.key) else {
            return Ok(false);
        };
        let value = match (key, self.value.as_integer()) {
            (Key::Insecure, _) => self.boolean()?.to_string(),
            (Key::AuthVersion, Some(number)) => number.as_str().to_owned(),
            _ => self.text("a text in quotes")?.to_owned(),
        };
        if !value.is_empty() {
            key.check(&value).map_err(|why| self.wrong(why))?;
        }
        login.set(key, &value);
        Ok(true)
    }
}
