//! How far a transfer is, for a person at a terminal. Nobody else is told.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line on stderr that changes; nothing where stderr is not a terminal.
#[derive(Debug, Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Of a transfer of so many bytes.
    pub fn bytes(total: u64, quiet: bool) -> Progress {
        let line = "{bytes:>10} of {total_bytes}  [{bar:30}] {percent:>3} %  \
                    {bytes_per_sec}  {eta} left";
        Progress::new(ProgressBar::no_length(), line, quiet).of(total)
    }

    /// Of a number of objects that nobody knows before.
    pub fn objects() -> Progress {
        let line = "{pos:>10} objects deleted, {per_sec}";
        Progress::new(ProgressBar::no_length(), line, false)
    }

    /// Of segments that are looked through.
    pub fn segments(quiet: bool) -> Progress {
        let line = "{pos:>10} of {len} segments  [{bar:30}] {percent:>3} %  {eta} left";
        Progress::new(ProgressBar::no_length(), line, quiet)
    }

    fn new(bar: ProgressBar, line: &str, quiet: bool) -> Progress {
        bar.set_draw_target(match !quiet && std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        });
        // The line is ours; if it were wrong, the default one would do.
        bar.set_style(ProgressStyle::with_template(line).unwrap_or(ProgressStyle::default_bar()));
        Progress(bar)
    }

    fn of(self, total: u64) -> Progress {
        self.0.set_length(total);
        self
    }

    /// So much more is done.
    pub fn add(&self, amount: u64) {
        self.0.inc(amount);
    }

    /// So much of so much is done.
    pub fn reach(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// All is done, what needed no work included.
    pub fn complete(&self) {
        if let Some(total) = self.0.length() {
            self.0.set_position(total);
        }
    }

    /// Leaves the line as it is; whatever is printed next comes below it.
    pub fn end(&self) {
        self.0.abandon();
    }
}
