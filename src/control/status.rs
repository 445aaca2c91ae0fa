//! `status`: what is attached on this machine.

use std::io::Write;
use std::time::Duration;

use super::registry::{self, Client, Entry, Request, Response};
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
    let entries = match &args.target {
        Some(target) => vec![find(target)?],
        None => registry::entries(),
    };
    let shown: Vec<_> = entries
        .into_iter()
        .map(|entry| (state(&entry), entry))
        .collect();
    let text = if args.json {
        json(&shown)?
    } else {
        table(&shown)
    };
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|error| Error::failed(format!("cannot print: {error}")))
}

/// How a daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Attached(Stats),
    /// It is there and does not answer.
    Silent,
    /// It is dead; its container is still locked.
    Dead,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Attached(_) => "attached",
            State::Silent => "silent",
            State::Dead => "dead",
        }
    }
}

fn state(entry: &Entry) -> State {
    let Some(Ok(mut client)) = entry.nbd_device().map(Client::connect) else {
        return State::Dead;
    };
    match client.ask(&Request::Status, Some(PATIENCE)) {
        Ok(Response::Status(stats)) => State::Attached(stats),
        _ => State::Silent,
    }
}

fn table(shown: &[(State, Entry)]) -> String {
    if shown.is_empty() {
        return "nothing is attached\n".to_owned();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for (state, entry) in shown {
        let stats = match state {
            State::Attached(stats) => Some(stats),
            State::Silent | State::Dead => None,
        };
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
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; COLUMNS]| {
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

fn json(shown: &[(State, Entry)]) -> Result<String> {
    let devices: Vec<_> = shown
        .iter()
        .map(|(state, entry)| {
            let stats = match state {
                State::Attached(stats) => Some(*stats),
                State::Silent | State::Dead => None,
            };
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
                "log": stats.and_then(|stats| stats.log),
            })
        })
        .collect();
    let text = serde_json::to_string_pretty(&devices);
    text.map(|text| text + "\n")
        .map_err(|error| Error::failed(error.to_string()))
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
