//! Counters that the layers keep of their own work, and what they look like to whoever
//! reads them.
//!
//! Knows: numbers. Does not know: what they are of, nor who reads them. A counter costs
//! one atomic addition where the work is done; it begins at 0 with the program, and again
//! when a restart replaces that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the classes that times are counted in, in microseconds: from a read
/// out of memory to a flush that waits for a store that is away.
pub const BOUNDS: [u64; 14] = [
    50,
    100,
    250,
    1_000,
    2_500,
    10_000,
    25_000,
    100_000,
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    60_000_000,
    600_000_000,
];

/// One kind of request.
#[derive(Debug, Default)]
pub struct Operation {
    failed: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
    /// The last class is of those beyond all bounds.
    classes: [AtomicU64; BOUNDS.len() + 1],
}

impl Operation {
    /// One was carried out, for so many bytes, in this time.
    pub fn done(&self, bytes: u64, took: Duration, failed: bool) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = BOUNDS.partition_point(|bound| *bound < micros);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        match failed {
            true => self.failed.fetch_add(1, Ordering::Relaxed),
            false => self.bytes.fetch_add(bytes, Ordering::Relaxed),
        };
    }

    /// What was counted so far.
    pub fn counts(&self) -> OperationCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OperationCounts {
            failed: read(&self.failed),
            bytes: read(&self.bytes),
            micros: read(&self.micros),
            classes: self.classes.iter().map(read).collect(),
        }
    }
}

/// How often an [`Operation`] was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCounts {
    /// How many failed, of all.
    pub failed: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// How long they took together, in microseconds.
    pub micros: u64,
    /// How many took as long as a class of [`BOUNDS`] says, and one class more.
    pub classes: Vec<u64>,
}

impl OperationCounts {
    /// How many there were.
    pub fn all(&self) -> u64 {
        self.classes.iter().sum()
    }
}

/// What a device was asked for.
#[derive(Debug, Default)]
pub struct Traffic {
    /// READ
    pub read: Operation,
    /// WRITE
    pub write: Operation,
    /// WRITE_ZEROES
    pub write_zeroes: Operation,
    /// TRIM
    pub trim: Operation,
    /// FLUSH
    pub flush: Operation,
}

impl Traffic {
    /// What was counted so far.
    pub fn counts(&self) -> TrafficCounts {
        TrafficCounts {
            read: self.read.counts(),
            write: self.write.counts(),
            write_zeroes: self.write_zeroes.counts(),
            trim: self.trim.counts(),
            flush: self.flush.counts(),
        }
    }
}

/// How often a device was asked for what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficCounts {
    /// See [`Traffic`].
    pub read: OperationCounts,
    /// See [`Traffic`].
    pub write: OperationCounts,
    /// See [`Traffic`].
    pub write_zeroes: OperationCounts,
    /// See [`Traffic`].
    pub trim: OperationCounts,
    /// See [`Traffic`].
    pub flush: OperationCounts,
}

impl TrafficCounts {
    /// Each kind by its name.
    pub fn kinds(&self) -> [(&'static str, &OperationCounts); 5] {
        [
            ("read", &self.read),
            ("write", &self.write),
            ("write_zeroes", &self.write_zeroes),
            ("trim", &self.trim),
            ("flush", &self.flush),
        ]
    }
}

/// Requests to a store, by method and answer.
#[derive(Debug, Default)]
pub struct Requests(Mutex<BTreeMap<(String, u16), u64>>);

/// The most kinds that are told apart: more than a store can have.
const KINDS: usize = 256;

impl Requests {
    /// Begins to send one. It counts once its answer is there, or once nobody waits for
    /// that any more.
    pub fn begin<'a>(&'a self, method: &'a str) -> Asked<'a> {
        Asked {
            requests: self,
            method,
            status: 0,
        }
    }

    fn sent(&self, method: &str, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method.to_owned(), status);
        if counts.len() < KINDS || counts.contains_key(&key) {
            *counts.entry(key).or_default() += 1;
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Vec<RequestCount> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.iter();
        counts
            .map(|((method, status), count)| RequestCount {
                method: method.clone(),
                status: *status,
                count: *count,
            })
            .collect()
    }
}

/// A request that is under way. Dropped without an answer, it counts as one that had none.
#[derive(Debug)]
pub struct Asked<'a> {
    requests: &'a Requests,
    method: &'a str,
    status: u16,
}

impl Asked<'_> {
    /// An answer has come, with this status; 0: none will come.
    pub fn answered(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.requests.sent(self.method, self.status);
    }
}

/// How often a store was asked in this way and answered in this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    /// The method.
    pub method: String,
    /// The answer's status; 0 if none came, or nobody waited for it.
    pub status: u16,
    /// How often.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_class() {
        let operation = Operation::default();
        for micros in [0, 50, 51, 100, 600_000_000, 600_000_001, u64::MAX / 2] {
            operation.done(10, Duration::from_micros(micros), micros == 51);
        }
        let counts = operation.counts();
        assert_eq!(counts.classes[..2], [2, 2]);
        assert_eq!(counts.classes[13..], [1, 2]);
        assert_eq!((counts.all(), counts.failed, counts.bytes), (7, 1, 60));
    }

    #[test]
    fn a_store_cannot_make_it_remember_too_much() {
        let requests = Requests::default();
        drop(requests.begin("GET"));
        for status in 1..1000 {
            requests.begin("GET").answered(status);
        }
        requests.begin("GET").answered(7);
        let counts = requests.counts();
        assert_eq!(counts.len(), KINDS);
        assert_eq!(counts[7].count, 2);
    }
}
