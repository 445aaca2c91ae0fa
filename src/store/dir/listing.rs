//! The objects of a directory store in the byte order of their whole names.
//!
//! Knows: the suffixes of files and directories. Does not know: what is in
//! them.
//!
//! A directory is read from its start for each page, in no order, and the
//! smallest names that are still wanted are kept: a page costs time in
//! proportion to the entries of the directories it touches, and memory in
//! proportion to `limit`. Reading all of 100,000 objects in pages of 10,000
//! looks at a million entries, which takes about two seconds.

use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::path::Path;

use super::files::TRAILER;
use super::{DIRECTORY, Listed, OBJECT};

/// The names after `after` and before `before`, at most `limit`.
pub(super) fn page(
    objects: &Path,
    after: &str,
    before: &str,
    limit: usize,
) -> io::Result<Vec<Listed>> {
    let mut page = Page {
        after,
        before,
        limit,
        listed: Vec::new(),
    };
    page.visit(objects, "")?;
    Ok(page.listed)
}

struct Page<'a> {
    after: &'a str,
    before: &'a str,
    limit: usize,
    listed: Vec<Listed>,
}

impl Page<'_> {
    /// Adds what is in this directory, whose objects' names begin with
    /// `prefix`. As a key, a subdirectory is its name and a slash: so sorted,
    /// all that is in it comes in its place.
    fn visit(&mut self, directory: &Path, prefix: &str) -> io::Result<()> {
        let mut done = None;
        loop {
            let wanted = self.limit - self.listed.len();
            let keys = self.smallest(directory, prefix, done.as_deref(), wanted)?;
            let all = keys.len() < wanted;
            for key in &keys {
                if self.listed.len() == self.limit {
                    return Ok(());
                }
                let name = format!("{prefix}{key}");
                match key.strip_suffix('/') {
                    Some(part) => {
                        let below = directory.join(format!("{part}{DIRECTORY}"));
                        ignore_missing(self.visit(&below, &name))?;
                    }
                    None => self.add(&directory.join(format!("{key}{OBJECT}")), name)?,
                }
            }
            // Subdirectories may have held less than they promised.
            if all || self.listed.len() == self.limit {
                return Ok(());
            }
            done = keys.into_iter().next_back();
        }
    }

    /// The smallest keys of this directory after `done`, at most `count`.
    fn smallest(
        &self,
        directory: &Path,
        prefix: &str,
        done: Option<&str>,
        count: usize,
    ) -> io::Result<Vec<String>> {
        let mut smallest = BinaryHeap::new();
        for entry in fs::read_dir(directory)? {
            let file = entry?.file_name();
            let Some(key) = file.to_str().and_then(key) else {
                continue; // Not ours.
            };
            if done.is_some_and(|done| key.as_str() <= done) || !self.may_have(prefix, &key) {
                continue;
            }
            if smallest.len() < count {
                smallest.push(key);
            } else if let Some(mut largest) = smallest.peek_mut()
                && key < *largest
            {
                *largest = key;
            }
        }
        Ok(smallest.into_sorted_vec())
    }

    /// Whether a name that is in bounds can be there.
    fn may_have(&self, prefix: &str, key: &str) -> bool {
        let name = format!("{prefix}{key}");
        let below = name.ends_with('/') && self.after.starts_with(&name);
        (name.as_str() > self.after || below)
            && (self.before.is_empty() || name.as_str() < self.before)
    }

    fn add(&mut self, path: &Path, name: String) -> io::Result<()> {
        match fs::metadata(path) {
            Ok(file) => {
                let size = file.len().saturating_sub(TRAILER as u64);
                self.listed.push(Listed { name, size });
                Ok(())
            }
            Err(error) => ignore_missing(Err(error)),
        }
    }
}

/// The key of an entry: its part of the name, with a slash if more follows.
fn key(file: &str) -> Option<String> {
    match (file.strip_suffix(OBJECT), file.strip_suffix(DIRECTORY)) {
        (Some(part), _) => Some(part.to_owned()),
        (_, Some(part)) => Some(format!("{part}/")),
        _ => None,
    }
}

/// What was deleted while it was looked at is not there.
fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
