//! What a container says about the volume in it, in the original's words:
//! `X-Container-Meta-Swiftnbd-{Version,Objects,Object-Size,Client,Last}`; in format 2
//! `Size` and `Block-Size` instead of `Objects` and `Object-Size`. The
//! lock looks the same in both formats; among programs that have a lease it decides
//! nothing.
//!
//! Client is the lock: empty or absent means unlocked.

pub mod doom;
mod format;
mod lock;

use std::fmt;
use std::time::Duration;

pub use self::format::Format;
pub use self::lock::{client, lock, lock_unfinished, release, show, unlock};
use crate::store::{Metadata, ObjectStore, StoreError};

const VERSION: &str = "swiftnbd-version";
const OBJECTS: &str = "swiftnbd-objects";
const OBJECT_SIZE: &str = "swiftnbd-object-size";
const SIZE: &str = "swiftnbd-size";
const BLOCK_SIZE: &str = "swiftnbd-block-size";
const CLIENT: &str = "swiftnbd-client";
const LAST: &str = "swiftnbd-last";
const UNLOCKED: &str = "swiftnbd-unlocked";
/// Set from the first object that is deleted to the last: what is left is no
/// volume any more.
const DELETING: &str = "swiftnbd-deleting";
/// Set while the volume is made of another one: that one's container.
const CONVERTING: &str = "swiftnbd-converting";

/// How often the metadata is read where a lock may be there: each read may reach
/// another replica, and any holder that one of them shows counts.
pub const LOOKS: usize = 3;

/// A volume, as its container describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its format and geometry.
    pub format: Format,
    /// Who has locked it.
    pub client: Option<Holder>,
    /// Who had locked it before.
    pub last: Option<Holder>,
    /// When a person took a lock away that was not released, in Unix seconds.
    pub unlocked: Option<u64>,
    /// The container that this one is being made of; nothing if it is complete.
    pub converting: Option<String>,
}

/// The value of Client or Last: `who@unix-seconds`. The original writes
/// `host:port`, `ctl` or `ctl-download` for who; we write `host:pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(pub String);

/// Why a container's metadata does not describe a volume that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetaError {
    /// The container cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// None of the keys is there.
    #[error("it is not a swiftnbd volume: its metadata has no Swiftnbd-Version")]
    NotAVolume,
    /// A format that this program does not know.
    #[error("it is a volume of format {0:?}, which this version of swiftnbd does not know")]
    UnknownVersion(String),
    /// A key is missing or makes no sense.
    #[error("its metadata is damaged: Swiftnbd-{key} is {}", .value.as_deref().map_or("missing".to_owned(), |value| format!("{value:?}")))]
    Damaged {
        /// The format of the volume, as the other keys tell.
        format: u8,
        /// The key, without its prefix.
        key: &'static str,
        /// What it holds, if it is there.
        value: Option<String>,
    },
    /// Some of its objects are deleted already.
    #[error("it is being deleted, and some of its data is gone already")]
    Deleting,
    /// A part of its data is not there yet.
    #[error("it is being made of container {0}, and not complete")]
    Unfinished(String),
    /// Somebody holds the lock.
    #[error("it is locked by {0}")]
    Locked(Holder),
    /// Nobody holds the lock.
    #[error("it is not locked")]
    NotLocked,
}

impl Holder {
    /// A holder of our own: this host, this process, now.
    pub fn new(host: &str, pid: u32, unix_seconds: u64) -> Holder {
        Holder(format!("{host}:{pid}@{unix_seconds}"))
    }

    /// A tool of our own, now. The time has a fraction, so that two that begin in the
    /// same second are told apart; the original's times have one, too.
    pub fn tool(tool: &str, since_epoch: Duration) -> Holder {
        let (seconds, micros) = (since_epoch.as_secs(), since_epoch.subsec_micros());
        Holder(format!("{tool}@{seconds}.{micros:06}"))
    }

    /// Whether it is a process of ours that serves the volume: `host:pid`, not a tool.
    pub fn is_daemon(&self) -> bool {
        let (who, since) = self.parts();
        let pid = who.rsplit_once(':').map(|(_, pid)| pid);
        since.is_some() && pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
    }

    /// Who it is, and since when in Unix seconds if it says so.
    pub fn parts(&self) -> (&str, Option<u64>) {
        match self.0.rsplit_once('@') {
            Some((who, when)) => match when.parse::<f64>() {
                Ok(seconds) if (0.0..1e11).contains(&seconds) => (who, Some(seconds as u64)),
                _ => (&self.0, None),
            },
            None => (&self.0, None),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (who, Some(seconds)) => {
                write!(f, "{} since {}", who.escape_debug(), utc(seconds))
            }
            (who, None) => write!(f, "{}", who.escape_debug()),
        }
    }
}

/// A time as people read it, in UTC. From days to a date: Howard Hinnant's
/// `civil_from_days`, years counted from March.
fn utc(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400 + 719_468, unix_seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// One key of a container's metadata, if there is something in it.
fn text<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    let value = metadata.get(key)?.trim();
    (!value.is_empty()).then_some(value)
}

impl Volume {
    /// Reads a container's metadata.
    pub fn parse(metadata: &Metadata) -> Result<Volume, MetaError> {
        let volume = Volume::parse_unfinished(metadata)?;
        match volume.converting {
            Some(source) => Err(MetaError::Unfinished(source)),
            None => Ok(volume),
        }
    }

    /// The same, of a volume that may be half made.
    fn parse_unfinished(metadata: &Metadata) -> Result<Volume, MetaError> {
        let volume = Volume::parse_doomed(metadata)?;
        match metadata.contains_key(DELETING) {
            true => Err(MetaError::Deleting),
            false => Ok(volume),
        }
    }

    /// The same, of a volume that may be half deleted.
    fn parse_doomed(metadata: &Metadata) -> Result<Volume, MetaError> {
        let holder = |key| text(metadata, key).map(|value| Holder(value.to_owned()));
        Ok(Volume {
            format: Format::parse(metadata)?,
            client: holder(CLIENT),
            last: holder(LAST),
            unlocked: text(metadata, UNLOCKED).and_then(|value| value.parse().ok()),
            converting: text(metadata, CONVERTING).map(str::to_owned),
        })
    }
}

/// Reads the volume in a container; a lock that any of several reads shows
/// counts.
pub async fn read(store: &dyn ObjectStore) -> Result<Volume, MetaError> {
    complete(read_unfinished(store).await?)
}

/// The same, of a volume that may be half made.
pub async fn read_unfinished(store: &dyn ObjectStore) -> Result<Volume, MetaError> {
    let mut volume = Volume::parse_unfinished(&store.metadata().await?)?;
    for _ in 1..LOOKS {
        if volume.client.is_some() {
            break;
        }
        volume = Volume::parse_unfinished(&store.metadata().await?)?;
    }
    Ok(volume)
}

/// Refuses a volume that is half made.
fn complete(volume: Volume) -> Result<Volume, MetaError> {
    match volume.converting {
        Some(source) => Err(MetaError::Unfinished(source)),
        None => Ok(volume),
    }
}

/// Makes the container a volume that nobody has locked. In format 1, objects that are
/// there already stay, and are its content, as with the original.
pub async fn write(store: &dyn ObjectStore, format: &Format) -> Result<(), StoreError> {
    let mut changes = format.describe();
    for key in [CLIENT, LAST, CONVERTING] {
        changes.insert(key.to_owned(), String::new());
    }
    store.set_metadata(&changes).await
}

/// The same, and leaves alone a lock that is there.
pub async fn describe(store: &dyn ObjectStore, format: &Format) -> Result<(), StoreError> {
    store.set_metadata(&format.describe()).await
}

/// The same for a volume that is to be made of another one's container, and is nobody's
/// to use until [`finish`].
pub async fn describe_unfinished(
    store: &dyn ObjectStore,
    format: &Format,
    source: &str,
) -> Result<(), StoreError> {
    let mut changes = format.describe();
    changes.insert(CONVERTING.to_owned(), source.to_owned());
    store.set_metadata(&changes).await
}

/// The volume is complete.
pub async fn finish(store: &dyn ObjectStore) -> Result<(), StoreError> {
    let changes = Metadata::from([(CONVERTING.to_owned(), String::new())]);
    store.set_metadata(&changes).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::objects::layout::Layout;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn reads_what_the_original_writes() {
        let volume = Volume::parse(&metadata(&[
            ("swiftnbd-version", "1"),
            ("swiftnbd-objects", "16384"),
            ("swiftnbd-object-size", "65536"),
            ("swiftnbd-client", "10.0.0.7:10811@1385853264"),
            ("swiftnbd-last", "ctl@1385853000.5"),
            ("other", "kept"),
        ]))
        .unwrap();
        let layout = Layout {
            objects: 16384,
            object_size: 65536,
        };
        assert_eq!(volume.format, Format::Objects(layout));
        let client = volume.client.unwrap();
        assert_eq!(client.parts(), ("10.0.0.7:10811", Some(1_385_853_264)));
        assert_eq!(
            client.to_string(),
            "10.0.0.7:10811 since 2013-11-30 23:14:24 UTC"
        );
        assert_eq!(volume.last.unwrap().parts(), ("ctl", Some(1_385_853_000)));
    }

    /// What one format says replaces all that the other said.
    #[test]
    fn both_formats_come_back_as_they_were_described() {
        let (objects, object_size) = (16384, 65536);
        let formats = [
            Format::Objects(Layout {
                objects,
                object_size,
            }),
            Format::Log {
                size: 7 * 512,
                block_size: 512,
            },
            Format::Log {
                size: 1 << 30,
                block_size: 4096,
            },
        ];
        for before in formats {
            for format in formats {
                let mut all = before.describe();
                all.extend(format.describe());
                assert_eq!(Volume::parse(&all).unwrap().format, format);
                all.insert(CONVERTING.to_owned(), "old".to_owned());
                let error = Volume::parse(&all).unwrap_err();
                assert!(matches!(error, MetaError::Unfinished(source) if source == "old"));
                // As the original knows its volumes.
                all.retain(|_, value| !value.is_empty());
                let originals = [OBJECTS, OBJECT_SIZE].map(|key| all.contains_key(key));
                assert_eq!(originals, [format.number() == 1; 2]);
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let table: &[(&[(&str, &str)], &str)] = &[
            (
                &[],
                "it is not a swiftnbd volume: its metadata has no Swiftnbd-Version",
            ),
            (
                &[("swiftnbd-version", "3")],
                "it is a volume of format \"3\", which",
            ),
            (
                &[("swiftnbd-version", "2")],
                "damaged: Swiftnbd-Size is missing",
            ),
            (
                &[("swiftnbd-version", "2"), ("swiftnbd-size", "4096")],
                "damaged: Swiftnbd-Block-Size is missing",
            ),
            (
                &[
                    ("swiftnbd-version", "2"),
                    ("swiftnbd-size", "4608"),
                    ("swiftnbd-block-size", "4096"),
                ],
                "damaged: Swiftnbd-Block-Size is \"4096\"",
            ),
            (
                &[("swiftnbd-size", "5")],
                "damaged: Swiftnbd-Version is missing",
            ),
            (
                &[("swiftnbd-objects", "5"), ("swiftnbd-size", "")],
                "damaged: Swiftnbd-Version is missing",
            ),
            (
                &[("swiftnbd-version", "1")],
                "damaged: Swiftnbd-Objects is missing",
            ),
            (
                &[("swiftnbd-version", "1"), ("swiftnbd-objects", "16384")],
                "damaged: Swiftnbd-Object-Size is missing",
            ),
            (
                &[("swiftnbd-version", "1"), ("swiftnbd-objects", "-1")],
                "damaged: Swiftnbd-Objects is \"-1\"",
            ),
            (
                &[("swiftnbd-version", "1"), ("swiftnbd-objects", "0")],
                "damaged: Swiftnbd-Objects is \"0\"",
            ),
            (
                &[
                    ("swiftnbd-version", "1"),
                    ("swiftnbd-objects", "4"),
                    ("swiftnbd-object-size", "99999999999"),
                ],
                "damaged: Swiftnbd-Object-Size is \"99999999999\"",
            ),
        ];
        for (pairs, wanted) in table {
            let error = Volume::parse(&metadata(pairs)).unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
            if let MetaError::Damaged { format, .. } = error {
                let of_2 = |(key, value): &(&str, &str)| {
                    (*key, *value) == (VERSION, "2") || (*key == SIZE && !value.is_empty())
                };
                assert_eq!(format == 2, pairs.iter().any(of_2), "{pairs:?}");
            }
        }
    }

    #[test]
    fn holders_print_whatever_they_hold() {
        for (text, wanted) in [
            ("host:7@0", "host:7 since 1970-01-01 00:00:00 UTC"),
            ("a@b@951782400", "a@b since 2000-02-29 00:00:00 UTC"),
            ("no time", "no time"),
            ("bell\u{7}@NaN", "bell\\u{7}@NaN"),
            ("x@1e300", "x@1e300"),
        ] {
            assert_eq!(Holder(text.to_owned()).to_string(), wanted);
        }
    }
}
