//! The original's `secrets.conf`: a section a container, with `username`,
//! `password`, `authurl` and `read-only`.
//!
//! Knows: the INI dialect of Python 2's RawConfigParser, which the original
//! read it with: keys in any case, `=` or `:`, comments (`#`, `;`, `rem`),
//! ` ;` after a value, `[DEFAULT]`, sections in several parts, the last of
//! several equal keys wins, no `%` interpolation. Does not know: TOML, nor how
//! the settings are used.

use super::keys::{Key, parse_bool};
use super::login::Login;
use super::settings::{Settings, Source, VolumeSettings};
use super::values::{Checked, check_name, nearest};
use crate::error::Result;

/// The section whose keys hold for all others.
const DEFAULT_SECTION: &str = "DEFAULT";

/// The one key that is not part of a login.
const READ_ONLY: &str = "read-only";

/// One section: only what it says itself.
#[derive(Default)]
struct Section {
    login: Login,
    read_only: Option<bool>,
}

/// Reads the whole file.
pub(super) fn parse(source: Source<'_>) -> Result<Settings> {
    let mut reader = Reader {
        source,
        sections: Vec::new(),
        current: None,
        last_key: LastKey::None,
        notes: Vec::new(),
    };
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(source.text);
    for (index, line) in text.lines().enumerate() {
        reader.line(index + 1, line)?;
    }
    Ok(reader.finish())
}

/// Which key a continuation line would add to.
#[derive(PartialEq)]
enum LastKey {
    None,
    Known,
    Ignored,
}

struct Reader<'a> {
    source: Source<'a>,
    sections: Vec<(String, Section)>,
    /// Index into `sections`.
    current: Option<usize>,
    last_key: LastKey,
    notes: Vec<String>,
}

impl Reader<'_> {
    fn line(&mut self, number: usize, line: &str) -> Result<()> {
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) || is_rem(line) {
            return Ok(());
        }
        if line.starts_with(char::is_whitespace) && self.last_key != LastKey::None {
            return self.continuation(number);
        }
        match section_name(content) {
            Some(name) => self.open_section(number, name),
            None => self.key(number, content),
        }
    }

    /// Python would append the line to the value before it. No key of ours has
    /// such a value, so it is a mistake, or belongs to a key that is ignored.
    fn continuation(&self, number: usize) -> Result<()> {
        match self.last_key {
            LastKey::Known => Err(self
                .source
                .error_in_line(number, "the line begins with a blank")
                .hint("such a line continues the value above it; remove the blank")),
            LastKey::None | LastKey::Ignored => Ok(()),
        }
    }

    fn open_section(&mut self, number: usize, name: &str) -> Result<()> {
        if name != DEFAULT_SECTION {
            // The name is not quoted: in a broken file it may be a whole line.
            check_name(name).map_err(|why| {
                self.source.error_in_line(number, why).hint(
                    "swiftnbd.toml can give such a container another name: \
                     [volumes.NAME] with container = \"…\"",
                )
            })?;
        }
        let known = self.sections.iter().position(|(other, _)| other == name);
        self.current = known.or_else(|| {
            self.sections.push((name.to_owned(), Section::default()));
            Some(self.sections.len() - 1)
        });
        self.last_key = LastKey::None;
        Ok(())
    }

    fn key(&mut self, number: usize, content: &str) -> Result<()> {
        let Some(current) = self.current else {
            return Err(self
                .source
                .error_in_line(number, "there is no [container] line before this one"));
        };
        let Some((key, value)) = content.split_once(['=', ':']) else {
            return Err(self
                .source
                .error_in_line(number, "this is neither [container] nor KEY = VALUE"));
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), clean_value(value));
        let (name, section) = &mut self.sections[current];
        self.last_key = LastKey::Known;
        let known = Key::all().find(|known| known.in_ini() == Some(&key));
        let outcome = match (known, key.as_str()) {
            (Some(key), _) => set_login(section, key, value),
            (None, READ_ONLY) => parse_bool(value).map(|on| section.read_only = Some(on)),
            (None, _) => {
                self.last_key = LastKey::Ignored;
                self.notes.push(ignored(self.source, number, &key));
                Ok(())
            }
        };
        outcome.map_err(|why| {
            self.source
                .error_in_line(number, format!("{key} in [{name}]: {why}"))
        })
    }

    fn finish(mut self) -> Settings {
        let default = self.sections.iter().position(|(n, _)| n == DEFAULT_SECTION);
        let default = default.map(|index| self.sections.swap_remove(index).1);
        let read_only = default.as_ref().and_then(|section| section.read_only);
        let volume = |(name, section): (String, Section)| {
            let volume = VolumeSettings {
                login: section.login,
                read_only: section.read_only.or(read_only).unwrap_or(false),
                ..VolumeSettings::default()
            };
            (name, volume)
        };
        Settings {
            every: default.map(|section| section.login),
            volumes: self.sections.into_iter().map(volume).collect(),
            notes: self.notes,
        }
    }
}

/// The original ignores such a key, too. It is not quoted: in a broken file it
/// may be a part of a password.
fn ignored(source: Source<'_>, number: usize, key: &str) -> String {
    let known = Key::all().filter_map(Key::in_ini).chain([READ_ONLY]);
    let near = nearest(key, known).map(|near| format!("; did you mean '{near}'?"));
    format!(
        "{}, line {number}: the key is not known and has no effect{}",
        source.path.display(),
        near.unwrap_or_default()
    )
}

fn set_login(section: &mut Section, key: Key, value: &str) -> Checked<()> {
    if !value.is_empty() {
        key.check(value)?;
    }
    section.login.set(key, value);
    Ok(())
}

/// A comment in the way of old batch files.
fn is_rem(line: &str) -> bool {
    let word = line.split_whitespace().next().unwrap_or_default();
    line.starts_with(['r', 'R']) && word.eq_ignore_ascii_case("rem")
}

/// The name between brackets; what follows them does not matter.
fn section_name(content: &str) -> Option<&str> {
    let (name, _) = content.strip_prefix('[')?.split_once(']')?;
    Some(name).filter(|name| !name.is_empty())
}

/// The value without blanks around it and without a comment ` ; …`. Only the
/// first `;` counts, and only with a blank before it: passwords may contain it.
fn clean_value(value: &str) -> &str {
    let value = value.trim();
    let value = match value.split_once(';') {
        Some((before, _)) if before.ends_with(char::is_whitespace) => before.trim(),
        _ => value,
    };
    match value {
        "\"\"" => "",
        _ => value,
    }
}
