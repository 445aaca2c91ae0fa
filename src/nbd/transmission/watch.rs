//! A client that keeps the server waiting.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Bytes that count as progress. Less would let a client hold what it has asked
/// for as long as it likes, a byte at a time.
const ENOUGH: usize = 1 << 20;

/// Measures how long one direction of a connection has been stuck.
#[derive(Debug)]
pub(super) struct Watch {
    patience: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    running: bool,
    moved: usize,
}

impl Watch {
    /// `None` never runs out.
    pub(super) fn new(patience: Option<Duration>) -> Watch {
        Watch {
            patience,
            timer: None,
            running: false,
            moved: 0,
        }
    }

    /// So many bytes went through.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
    }

    /// Something was completed: what comes next has its own time.
    pub(super) fn completed(&mut self) {
        self.running = false;
    }

    /// Whether the patience is over. `waiting`: the server waits for the client
    /// now; if not, the next wait begins anew.
    pub(super) fn is_over(&mut self, waiting: bool, cx: &mut Context<'_>) -> bool {
        let Some(patience) = self.patience.filter(|_| waiting) else {
            self.running = false;
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        if !self.running || self.moved >= ENOUGH {
            timer.as_mut().reset(Instant::now() + patience);
            (self.running, self.moved) = (true, 0);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}
