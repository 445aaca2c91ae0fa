//! `status`: what is attached on this machine.

mod watch;

use std::io::Write;
use std::time::Duration;

use super::registry::{self, Client, Entry, Figures, Request, Response};
use super::{find, require_root};
use crate::cli;
use crate::config::format_size;
use crate::error::{Error, Result};
use crate::image::Stats;

const COLUMNS: usize = 11;
const HEADINGS: [&str; COLUMNS] = [
    "DEVICE",
    "VOLUME",
    "SIZE",
    "PROCESS",
    "DIRTY",
    "STATE",
    "BEHIND",
    "LIVE",
    "STORED",
    "SEGMENTS",
    "COLLECTED",
];

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the devices, one or all.
pub fn run(args: &cli::Status) -> Result<()> {
    require_root("status")?;
    if args.watch {
        return watch::run(args);
    }
    let shown = look(args)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&json(&shown)),
        false => Ok(table(&shown)),
    };
    let mut text = text.map_err(|error| Error::failed(error.to_string()))?;
    if args.json {
        text.push('\n');
    }
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|error| Error::failed(format!("cannot print: {error}")))
}

/// What is attached, and how each is doing.
fn look(args: &cli::Status) -> Result<Vec<(State, Entry)>> {
    let entries = match &args.target {
        Some(target) => vec![find(target)?],
        None => registry::entries(),
    };
    let with_state = entries.into_iter().map(|entry| (state(&entry), entry));
    Ok(with_state.collect())
}

/// How a daemon is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Attached(Box<Figures>),
    /// It is there and does not answer.
    Silent,
    /// It is dead; its container is still locked.
    Dead,
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            State::Attached(_) => "attached",
            State::Silent => "silent",
            State::Dead => "dead",
        }
    }

    fn figures(&self) -> Option<&Figures> {
        match self {
            State::Attached(figures) => Some(figures),
            State::Silent | State::Dead => None,
        }
    }

    fn stats(&self) -> Option<&Stats> {
        self.figures().map(|figures| &figures.stats)
    }
}

fn state(entry: &Entry) -> State {
    let Some(Ok(mut client)) = entry.nbd_device().map(Client::connect) else {
        return State::Dead;
    };
    match client.ask(&Request::Status, Some(PATIENCE)) {
        Ok(Response::Status(figures)) => State::Attached(figures),
        _ => State::Silent,
    }
}

fn table(shown: &[(State, Entry)]) -> String {
    if shown.is_empty() {
        return "nothing is attached\n".to_owned();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for (state, entry) in shown {
        let stats = state.stats();
        let dirty = stats.map_or("?".to_owned(), |stats| format_size(stats.dirty_bytes));
        let [behind, live, stored, segments, collected] = log_columns(stats);
        let read_only = if entry.read_only { ", read-only" } else { "" };
        rows.push([
            entry.device.clone(),
            entry.volume.clone(),
            format_size(entry.size),
            entry.pid.to_string(),
            dirty,
            format!("{}{read_only}", state.word()),
            behind,
            live,
            stored,
            segments,
            collected,
        ]);
    }
    aligned(&rows)
}

/// Rows of cells as text.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let cells: Vec<_> = cells.collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// What only a volume of format 2 has.
fn log_columns(stats: Option<&Stats>) -> [String; 5] {
    match stats.map(|stats| stats.log) {
        Some(Some(log)) => [
            format!("{}s", log.seconds_behind),
            about(log.live_bytes),
            about(log.stored_bytes),
            log.segments.to_string(),
            about(log.collected_bytes),
        ],
        Some(None) => ["-"; 5].map(str::to_owned),
        None => ["?"; 5].map(str::to_owned),
    }
}

/// A number of bytes as people compare it: `1.5GiB`.
fn about(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(shift, _)| bytes >> shift > 0);
    unit.map_or(bytes.to_string(), |(shift, unit)| {
        let tenths = (u128::from(bytes) * 10) >> shift;
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    })
}

fn json(shown: &[(State, Entry)]) -> serde_json::Value {
    let devices = shown.iter().map(|(state, entry)| {
        let stats = state.stats();
        serde_json::json!({
            "device": entry.device,
            "volume": entry.volume,
            "container": entry.container,
            "size": entry.size,
            "block_size": entry.block_size,
            "read_only": entry.read_only,
            "pid": entry.pid,
            "since": entry.since,
            "client": entry.client,
            "state": state.word(),
            "dirty_bytes": stats.map(|stats| stats.dirty_bytes),
            "cached_bytes": stats.map(|stats| stats.cached_bytes),
            "cache_hits": stats.map(|stats| stats.cache_hits),
            "cache_misses": stats.map(|stats| stats.cache_misses),
            "lease_seconds": stats.and_then(|stats| stats.lease_seconds),
            "log": stats.and_then(|stats| stats.log),
            "traffic": state.figures().map(|figures| &figures.traffic),
            "requests": state.figures().map(|figures| &figures.requests),
        })
    });
    devices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_compare_them() {
        for (bytes, shown) in [
            (0, "0"),
            (1023, "1023"),
            (1536, "1.5KiB"),
            (1 << 20, "1.0MiB"),
            ((1 << 40) - 1, "1023.9GiB"),
            (u64::MAX, "16777215.9TiB"),
        ] {
            assert_eq!(about(bytes), shown);
        }
    }
}
