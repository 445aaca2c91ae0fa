//! What a container says about the volume in it, in the original's words:
//! `X-Container-Meta-Swiftnbd-{Version,Objects,Object-Size,Client,Last}`.
//!
//! Client is the lock: empty or absent means unlocked. It is read, then written,
//! then read again; there is no compare-and-swap, so two hosts that lock in the
//! same instant can both believe that they won. Reading back closes most of that
//! window, several reads (a container's replicas may differ) most of the rest.

pub mod doom;

use std::fmt;
use std::time::Duration;

use super::layout::{Layout, MAX_OBJECT_SIZE, MAX_OBJECTS};
use crate::store::{Metadata, ObjectStore, StoreError};

const VERSION: &str = "swiftnbd-version";
const OBJECTS: &str = "swiftnbd-objects";
const OBJECT_SIZE: &str = "swiftnbd-object-size";
const CLIENT: &str = "swiftnbd-client";
const LAST: &str = "swiftnbd-last";
const UNLOCKED: &str = "swiftnbd-unlocked";
/// Set from the first object that is deleted to the last: what is left is no
/// volume any more.
const DELETING: &str = "swiftnbd-deleting";

/// How often the metadata is read where a lock may be there: each read may reach
/// another replica, and any holder that one of them shows counts.
pub const LOOKS: usize = 3;

/// A volume of format 1, as its container describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its geometry.
    pub layout: Layout,
    /// Who has locked it.
    pub client: Option<Holder>,
    /// Who had locked it before.
    pub last: Option<Holder>,
    /// When a person took a lock away that was not released, in Unix seconds.
    pub unlocked: Option<u64>,
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
        /// The key, without its prefix.
        key: &'static str,
        /// What it holds, if it is there.
        value: Option<String>,
    },
    /// Some of its objects are deleted already.
    #[error("it is being deleted, and some of its data is gone already")]
    Deleting,
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

impl Volume {
    /// Reads a container's metadata.
    pub fn parse(metadata: &Metadata) -> Result<Volume, MetaError> {
        let volume = Volume::parse_doomed(metadata)?;
        match metadata.contains_key(DELETING) {
            true => Err(MetaError::Deleting),
            false => Ok(volume),
        }
    }

    /// The same, of a volume that may be half deleted.
    fn parse_doomed(metadata: &Metadata) -> Result<Volume, MetaError> {
        let text = |key: &str| {
            metadata
                .get(key)
                .map(|value| value.trim())
                .filter(|v| !v.is_empty())
        };
        match text(VERSION) {
            Some("1") => {}
            Some(other) => return Err(MetaError::UnknownVersion(other.to_owned())),
            None if text(OBJECTS).or(text(OBJECT_SIZE)).is_none() => {
                return Err(MetaError::NotAVolume);
            }
            None => {
                return Err(MetaError::Damaged {
                    key: "Version",
                    value: None,
                });
            }
        }
        let number = |key: &'static str, name: &'static str, most: u64| {
            let value = text(key);
            match value.and_then(|value| value.parse::<u64>().ok()) {
                Some(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(MetaError::Damaged {
                    key: name,
                    value: value.map(str::to_owned),
                }),
            }
        };
        let layout = Layout {
            objects: number(OBJECTS, "Objects", MAX_OBJECTS)?,
            object_size: number(OBJECT_SIZE, "Object-Size", u64::from(MAX_OBJECT_SIZE))? as u32,
        };
        let holder = |key| text(key).map(|value| Holder(value.to_owned()));
        Ok(Volume {
            layout,
            client: holder(CLIENT),
            last: holder(LAST),
            unlocked: text(UNLOCKED).and_then(|value| value.parse().ok()),
        })
    }
}

/// Reads the volume in a container; a lock that any of several reads shows
/// counts.
pub async fn read(store: &dyn ObjectStore) -> Result<Volume, MetaError> {
    let mut volume = Volume::parse(&store.metadata().await?)?;
    for _ in 1..LOOKS {
        if volume.client.is_some() {
            break;
        }
        volume = Volume::parse(&store.metadata().await?)?;
    }
    Ok(volume)
}

/// Makes the container a volume that nobody has locked. Objects that are there
/// already stay, and are its content, as with the original.
pub async fn write(store: &dyn ObjectStore, layout: &Layout) -> Result<(), StoreError> {
    let mut changes = description(layout);
    changes.insert(CLIENT.to_owned(), String::new());
    changes.insert(LAST.to_owned(), String::new());
    store.set_metadata(&changes).await
}

/// The same, and leaves alone a lock that is there.
pub async fn describe(store: &dyn ObjectStore, layout: &Layout) -> Result<(), StoreError> {
    store.set_metadata(&description(layout)).await
}

fn description(layout: &Layout) -> Metadata {
    let set = |key: &str, value: String| (key.to_owned(), value);
    Metadata::from([
        set(VERSION, "1".to_owned()),
        set(OBJECTS, layout.objects.to_string()),
        set(OBJECT_SIZE, layout.object_size.to_string()),
    ])
}

/// Locks the volume for `holder`. [`MetaError::Locked`] if somebody else has it.
pub async fn lock(store: &dyn ObjectStore, holder: &Holder) -> Result<Volume, MetaError> {
    let volume = read(store).await?;
    if let Some(other) = volume.client {
        return Err(MetaError::Locked(other));
    }
    let locked = async {
        set_client(store, &holder.0, volume.last.as_ref()).await?;
        match Volume::parse(&store.metadata().await?)?.client {
            Some(other) if other != *holder => Err(MetaError::Locked(other)),
            _ => Ok(()),
        }
    };
    match locked.await {
        Ok(()) => Ok(volume),
        Err(MetaError::Locked(other)) => Err(MetaError::Locked(other)),
        Err(error) => {
            // The lock may be there although the answer was lost. What cannot be
            // taken back here is for a person to unlock.
            let _ = release(store, holder, false).await;
            Err(error)
        }
    }
}

/// Who has locked the container, whatever else its metadata says: damage there
/// must not hide a lock.
pub async fn client(store: &dyn ObjectStore) -> Result<Option<Holder>, StoreError> {
    for _ in 0..LOOKS {
        let metadata = store.metadata().await?;
        if let Some(client) = metadata
            .get(CLIENT)
            .map(|text| text.trim())
            .filter(|t| !t.is_empty())
        {
            return Ok(Some(Holder(client.to_owned())));
        }
    }
    Ok(None)
}

/// Takes the lock away from whoever has it, at a person's word: `now` (Unix
/// seconds) is remembered, for the requests of a holder that died may still be
/// on their way. Works on damaged metadata too, and on a volume that is deleted.
pub async fn unlock(store: &dyn ObjectStore, now: u64) -> Result<Holder, MetaError> {
    let unlocked = match read(store).await {
        Ok(_) => MetaError::NotLocked,
        Err(damage @ (MetaError::Damaged { .. } | MetaError::Deleting)) => damage,
        Err(error) => return Err(error),
    };
    let intended = doom::only_intended(store).await?;
    let (holder, mut changes) = match (client(store).await?, &intended) {
        (Some(holder), _) => {
            let mut changes = released(&holder);
            changes.insert(UNLOCKED.to_owned(), now.to_string());
            (holder, changes)
        }
        (None, Some(deleter)) => (deleter.clone(), Metadata::new()),
        (None, None) => return Err(unlocked),
    };
    if intended.is_some() {
        changes.insert(DELETING.to_owned(), String::new());
    }
    store.set_metadata(&changes).await?;
    Ok(holder)
}

/// Gives our own lock back, once no request of ours can take effect any more.
/// `settled` says that requests of holders before us cannot either: then an unlock
/// by hand is forgotten. [`MetaError::Locked`] if somebody else has taken the lock
/// meanwhile: that lock stays.
pub async fn release(
    store: &dyn ObjectStore,
    holder: &Holder,
    settled: bool,
) -> Result<(), MetaError> {
    match Volume::parse_doomed(&store.metadata().await?)?.client {
        Some(other) if other != *holder => Err(MetaError::Locked(other)),
        _ => {
            let mut changes = released(holder);
            if settled {
                changes.insert(UNLOCKED.to_owned(), String::new());
            }
            Ok(store.set_metadata(&changes).await?)
        }
    }
}

fn released(holder: &Holder) -> Metadata {
    Metadata::from([
        (CLIENT.to_owned(), String::new()),
        (LAST.to_owned(), holder.0.clone()),
    ])
}

async fn set_client(
    store: &dyn ObjectStore,
    client: &str,
    last: Option<&Holder>,
) -> Result<(), StoreError> {
    let last = last.map_or(String::new(), |last| last.0.clone());
    let changes = Metadata::from([
        (CLIENT.to_owned(), client.to_owned()),
        (LAST.to_owned(), last),
    ]);
    store.set_metadata(&changes).await
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(
            volume.layout,
            Layout {
                objects: 16384,
                object_size: 65536
            }
        );
        let client = volume.client.unwrap();
        assert_eq!(client.parts(), ("10.0.0.7:10811", Some(1_385_853_264)));
        assert_eq!(
            client.to_string(),
            "10.0.0.7:10811 since 2013-11-30 23:14:24 UTC"
        );
        assert_eq!(volume.last.unwrap().parts(), ("ctl", Some(1_385_853_000)));
    }

    #[test]
    fn damage_is_named() {
        let table: &[(&[(&str, &str)], &str)] = &[
            (
                &[],
                "it is not a swiftnbd volume: its metadata has no Swiftnbd-Version",
            ),
            (
                &[("swiftnbd-version", "2")],
                "it is a volume of format \"2\", which",
            ),
            (
                &[("swiftnbd-objects", "5")],
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
            let error = Volume::parse(&metadata(pairs)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
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
