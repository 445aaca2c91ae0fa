//! `status --watch`: the figures again and again, with what changed in between.

use std::collections::HashMap;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

use super::super::registry::{Entry, Figures};
use super::{State, about, aligned, json, look};
use crate::cli;
use crate::error::{Error, Result};

/// Between two looks.
const BETWEEN: Duration = Duration::from_secs(1);
/// Clears a terminal: the cursor goes home, what is below goes.
const CLEAR: &str = "\x1b[H\x1b[J";

const COLUMNS: usize = 11;
const HEADINGS: [&str; COLUMNS] = [
    "DEVICE", "VOLUME", "STATE", "READ", "WRITE", "REQUESTS", "STORE", "DIRTY", "BEHIND", "LEASE",
    "FOUND",
];

/// Prints until it is interrupted, or nobody reads.
pub fn run(args: &cli::Status) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let clear = if out.is_terminal() { CLEAR } else { "" };
    let mut before = HashMap::new();
    loop {
        let begun = Instant::now();
        let shown = look(args)?;
        let text = match args.json {
            true => format!("{}\n", json(&shown)),
            false => format!("{clear}{}", table(&shown, &before, begun)),
        };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Error::failed(format!("cannot print: {error}"))),
        }
        let figures = shown.into_iter().filter_map(|(state, entry)| match state {
            State::Attached(figures) => Some((entry.device, (begun, *figures))),
            State::Silent | State::Dead => None,
        });
        before = figures.collect();
        nap(BETWEEN.saturating_sub(begun.elapsed()));
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a command waits for the time to pass; no runtime here"
)]
fn nap(time: Duration) {
    std::thread::sleep(time);
}

type Before = HashMap<String, (Instant, Figures)>;

fn table(shown: &[(State, Entry)], before: &Before, now: Instant) -> String {
    if shown.is_empty() {
        return "nothing is attached\n".to_owned();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for (state, entry) in shown {
        let since = before.get(&entry.device);
        let word = state.word().to_owned();
        let mut row = ["?"; COLUMNS].map(str::to_owned);
        (row[0], row[1], row[2]) = (entry.device.clone(), entry.volume.clone(), word);
        if let Some(figures) = state.figures() {
            let seconds = since.map_or(0.0, |(then, _)| (now - *then).as_secs_f64());
            cells(&mut row, figures, since.map(|(_, then)| then), seconds);
        }
        rows.push(row);
    }
    aligned(&rows)
}

/// What is known of one that answered; rates are unknown at the first look.
fn cells(row: &mut [String; COLUMNS], now: &Figures, then: Option<&Figures>, seconds: f64) {
    let rate = |value: fn(&Figures) -> u64| {
        let then = then?;
        // The daemon may have been restarted.
        let change = value(now).saturating_sub(value(then));
        (seconds > 0.0).then(|| (change as f64 / seconds).round() as u64)
    };
    let unknown = || "-".to_owned();
    let bytes = |rate: Option<u64>| rate.map_or_else(unknown, |rate| format!("{}/s", about(rate)));
    let times = |rate: Option<u64>| rate.map_or_else(unknown, |rate| format!("{rate}/s"));
    row[3] = bytes(rate(|figures| figures.traffic.read.bytes));
    row[4] = bytes(rate(|figures| figures.traffic.write.bytes));
    row[5] = times(rate(|figures| {
        let kinds = figures.traffic.kinds();
        kinds.iter().map(|(_, counts)| counts.all()).sum()
    }));
    row[6] = times(rate(|figures| {
        figures.requests.iter().map(|request| request.count).sum()
    }));
    row[7] = about(now.stats.dirty_bytes);
    let log = now.stats.log;
    row[8] = log.map_or_else(unknown, |log| format!("{}s", log.seconds_behind));
    row[9] = now
        .stats
        .lease_seconds
        .map_or_else(unknown, |seconds| format!("{seconds}s"));
    let (hits, misses) = match then {
        Some(then) => (
            now.stats.cache_hits.saturating_sub(then.stats.cache_hits),
            now.stats
                .cache_misses
                .saturating_sub(then.stats.cache_misses),
        ),
        None => (now.stats.cache_hits, now.stats.cache_misses),
    };
    row[10] = match hits + misses {
        0 => unknown(),
        looks => format!("{}%", hits * 100 / looks),
    };
}
