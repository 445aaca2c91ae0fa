//! What a configuration file says, key by key, before anything is resolved.
//!
//! Knows: the keys, and the shape of their values. Does not know: defaults,
//! how files, environment and command line are combined, nor any syntax; the
//! TOML and the INI reader both fill these types.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::login::Login;
use super::values::{Flush, MetricsAt, NbdDevice};
use crate::error::Error;

/// What a file says of one volume. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VolumeSettings {
    pub container: Option<String>,
    pub device: Option<NbdDevice>,
    pub attach_at_boot: bool,
    pub read_only: bool,
    pub cache: Option<u64>,
    pub dirty: Option<u64>,
    pub map: Option<u64>,
    /// Zero: wait for ever.
    pub io_timeout: Option<Duration>,
    /// Whole seconds, within its bounds.
    pub lease: Option<Duration>,
    pub flush: Option<Flush>,
    pub journal: Option<PathBuf>,
    /// Whole seconds, within its bounds; zero: not at all.
    pub reattach_timeout: Option<Duration>,
    pub store: Option<PathBuf>,
    pub passphrase_file: Option<PathBuf>,
    pub metrics: Option<MetricsAt>,
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
    pub(super) fn holds_secret(&self) -> bool {
        self.volumes
            .values()
            .map(|volume| &volume.login)
            .chain(&self.every)
            .any(|login| login.holds_secret())
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
