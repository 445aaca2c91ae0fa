//! What a configuration file says, key by key, before anything is resolved.
//!
//! Knows: the keys, and the shape of their values. Does not know: defaults,
//! how files, environment and command line are combined, nor any syntax; the
//! TOML and the INI reader both fill these types.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::values::{Checked, NbdDevice, check_auth_url, check_credential};
use crate::error::Error;

/// A password. `Debug` and `Display` print `…` in its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides this text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the request that needs it and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where to authenticate and as whom, as far as one source says it.
///
/// `Debug` shows nothing of it: where a line break is missing in the INI, the
/// line with the password has become part of the URL or the user.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The URL of the authentication service.
    pub auth_url: Option<String>,
    /// The user; `account:user` for v1.
    pub username: Option<String>,
    /// The user's password or key.
    pub password: Option<Secret>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

impl Login {
    /// What `ST_AUTH`, `ST_USER` and `ST_KEY` say, the v1 variables of Swift's
    /// own client. An empty variable counts as unset.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Login {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        Login {
            auth_url: variable("ST_AUTH"),
            username: variable("ST_USER"),
            password: variable("ST_KEY").map(Secret),
        }
    }

    /// This login, with what it leaves out taken from `other`.
    pub(super) fn or(self, other: &Login) -> Login {
        Login {
            auth_url: self.auth_url.or_else(|| other.auth_url.clone()),
            username: self.username.or_else(|| other.username.clone()),
            password: self.password.or_else(|| other.password.clone()),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.auth_url.is_some() && self.username.is_some() && self.password.is_some()
    }

    /// The first part that cannot be right: its key, and why.
    pub(super) fn check(&self) -> Result<(), (Key, String)> {
        let secret = self.password.as_ref().map(Secret::expose);
        let parts: [(Key, Option<&str>, Check); 3] = [
            (Key::AuthUrl, self.auth_url.as_deref(), check_auth_url),
            (Key::Username, self.username.as_deref(), check_credential),
            (Key::Password, secret, check_credential),
        ];
        for (key, value, check) in parts {
            value.map_or(Ok(()), check).map_err(|why| (key, why))?;
        }
        Ok(())
    }
}

type Check = fn(&str) -> Checked<()>;

/// The keys of a [`Login`], under the name that each source has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    AuthUrl,
    Username,
    Password,
}

impl Key {
    pub(super) const ALL: [Key; 3] = [Key::AuthUrl, Key::Username, Key::Password];

    pub(super) fn in_toml(self) -> &'static str {
        match self {
            Key::AuthUrl => "auth_url",
            Key::Username => "username",
            Key::Password => "password",
        }
    }

    pub(super) fn in_ini(self) -> &'static str {
        match self {
            Key::AuthUrl => "authurl",
            Key::Username => "username",
            Key::Password => "password",
        }
    }

    pub(super) fn in_environment(self) -> &'static str {
        match self {
            Key::AuthUrl => "ST_AUTH",
            Key::Username => "ST_USER",
            Key::Password => "ST_KEY",
        }
    }

    /// What a value looks like, for a hint.
    pub(super) fn example(self) -> &'static str {
        match self {
            Key::AuthUrl => "https://swift.example/auth/v1.0",
            Key::Username => "account:user",
            Key::Password => "the password",
        }
    }

    /// An empty value counts as left out.
    pub(super) fn set(self, login: &mut Login, value: &str) {
        let value = Some(value.to_owned()).filter(|value| !value.is_empty());
        match self {
            Key::AuthUrl => login.auth_url = value,
            Key::Username => login.username = value,
            Key::Password => login.password = value.map(Secret),
        }
    }

    pub(super) fn is_in(self, login: &Login) -> bool {
        match self {
            Key::AuthUrl => login.auth_url.is_some(),
            Key::Username => login.username.is_some(),
            Key::Password => login.password.is_some(),
        }
    }
}

/// What a file says of one volume. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VolumeSettings {
    pub container: Option<String>,
    pub device: Option<NbdDevice>,
    pub attach_at_boot: bool,
    pub read_only: bool,
    pub cache: Option<u64>,
    pub dirty: Option<u64>,
    /// Zero: wait for ever.
    pub io_timeout: Option<Duration>,
    pub store: Option<PathBuf>,
    pub login: Login,
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// What holds for every volume that does not say otherwise: `[swift]`, or
    /// `[DEFAULT]` of the original's file. `None` where there is no such section.
    pub every: Option<Login>,
    pub volumes: BTreeMap<String, VolumeSettings>,
    /// What a person should know of this file, although it is no error.
    pub notes: Vec<String>,
}

impl Settings {
    pub(super) fn holds_password(&self) -> bool {
        self.volumes
            .values()
            .map(|volume| &volume.login)
            .chain(&self.every)
            .any(|login| login.password.is_some())
    }
}

/// The text of a file, for messages that say where something stands in it.
///
/// No message quotes a line: there may be a password in it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

impl Source<'_> {
    /// A mistake in the line that this byte is in.
    pub(super) fn error_at(&self, byte: usize, message: impl fmt::Display) -> Error {
        self.error_in_line(line_at(self.text.as_bytes(), byte), message)
    }

    /// A mistake in this line, counted from 1.
    pub(super) fn error_in_line(&self, line: usize, message: impl fmt::Display) -> Error {
        Error::usage(format!("{}, line {line}: {message}", self.path.display()))
    }
}

/// The number of the line that this byte is in, counted from 1.
pub(super) fn line_at(text: &[u8], byte: usize) -> usize {
    let before = &text[..byte.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// A key for a message. In a broken file a password may stand where a key
/// should: only what looks like a key is shown.
pub(super) fn shown_key(key: &str) -> String {
    let looks_like_key = (1..=40).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || b"_-.".contains(&byte));
    match looks_like_key {
        true => format!("'{key}'"),
        false => "what stands before the '='".into(),
    }
}
