//! The figures of an attached device, as Prometheus reads them.
//!
//! Knows: Prometheus' text format, HTTP by way of hyper. Does not know: where the figures
//! come from. It answers GET /metrics on a loopback port or a socket of root's; a reader
//! that is slow, or one too many, is left.
//!
//! Source: the exposition format of Prometheus, text, version 0.0.4.

use std::convert::Infallible;
use std::fmt::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::registry::{Entry, Figures};
use crate::config::MetricsAt;
use crate::error::{Error, Exit, Result};
use crate::metrics::{BOUNDS, OperationCounts};

/// Readers that are served at a time.
const READERS: usize = 4;
/// How long one may take for all that it asks.
const PATIENCE: Duration = Duration::from_secs(10);
/// The version of the format that the text is in.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Where readers come in.
#[derive(Debug)]
pub enum Listener {
    /// On a port.
    Tcp(TcpListener),
    /// On a socket in the file system.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens from here on. Within a tokio runtime.
    pub async fn bind(at: &MetricsAt) -> Result<Listener> {
        let failed = |error: std::io::Error| {
            let exit = match error.kind() {
                std::io::ErrorKind::AddrInUse => Exit::InUse,
                _ => Exit::Failed,
            };
            Error::new(exit, format!("metrics = \"{at}\": cannot listen: {error}"))
                .hint("each volume needs an address of its own")
        };
        match at {
            MetricsAt::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                Ok(Listener::Tcp(listener))
            }
            MetricsAt::Unix(path) => {
                remove_stale(path);
                let listener = UnixListener::bind(path).map_err(failed)?;
                let private = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(path, private).map_err(failed)?;
                Ok(Listener::Unix(listener, path.clone()))
            }
        }
    }

    /// Answers whoever comes, with what `text` makes at that moment.
    pub async fn serve(self, text: impl Fn() -> String + Send + Sync + 'static) {
        let (text, places) = (Arc::new(text), Arc::new(Semaphore::new(READERS)));
        loop {
            let accepted: std::io::Result<Box<dyn Stream>> = match &self {
                Listener::Tcp(listener) => listener.accept().await.map(|(s, _)| Box::new(s) as _),
                Listener::Unix(listener, _) => {
                    listener.accept().await.map(|(s, _)| Box::new(s) as _)
                }
            };
            let Ok(stream) = accepted else {
                // No descriptors, mostly.
                sleep(Duration::from_secs(1)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                continue;
            };
            let text = Arc::clone(&text);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let text = Arc::clone(&text);
                    async move { Ok::<_, Infallible>(answer(&request, &*text)) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = timeout(PATIENCE, connection).await;
                drop(place);
            });
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A socket that a dead process left; nothing else that is there.
fn remove_stale(path: &std::path::Path) {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    if socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

fn answer(request: &Request<Incoming>, text: &dyn Fn() -> String) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, text()),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "the figures are at /metrics\n".into(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// The figures in Prometheus' text format.
pub fn text(entry: &Entry, figures: &Figures) -> String {
    let mut page = Page {
        text: String::new(),
        labels: format!(
            "volume=\"{}\",device=\"{}\"",
            escaped(&entry.volume),
            escaped(&entry.device)
        ),
    };
    let stats = &figures.stats;
    page.family("info", "gauge", "The program that serves the device.");
    let version = env!("CARGO_PKG_VERSION");
    let format = entry.format;
    page.line(
        "info",
        &format!("version=\"{version}\",format=\"{format}\""),
        1,
    );
    page.operations(figures);
    let gauges = [
        (
            "dirty_bytes",
            "Answered and not in Swift yet.",
            stats.dirty_bytes,
        ),
        ("cached_bytes", "Clean data in memory.", stats.cached_bytes),
        ("size_bytes", "Size of the device.", entry.size),
    ];
    for (name, help, value) in gauges {
        page.one(name, "gauge", help, value);
    }
    page.one(
        "cache_hits_total",
        "counter",
        "Looks into the cache that found data.",
        stats.cache_hits,
    );
    page.one(
        "cache_misses_total",
        "counter",
        "Looks into the cache that found none.",
        stats.cache_misses,
    );
    let sent = "Requests to the store by method and status; status 0: no answer came.";
    page.family("store_requests_total", "counter", sent);
    for request in &figures.requests {
        let method = escaped(&request.method);
        let labels = format!("method=\"{method}\",status=\"{}\"", request.status);
        page.line("store_requests_total", &labels, request.count);
    }
    if let Some(seconds) = stats.lease_seconds {
        let help = "How long the lease lasts if it is not renewed.";
        page.one("lease_seconds", "gauge", help, seconds);
    }
    let Some(log) = &stats.log else {
        return page.text;
    };
    let only_format_2 = [
        (
            "behind_seconds",
            "gauge",
            "Age of the oldest write that is not durable.",
            log.seconds_behind,
        ),
        (
            "journal_bytes",
            "gauge",
            "Bytes in the journal that may not be in the store yet; 0 without one.",
            log.journal.map_or(0, |journal| journal.used_bytes),
        ),
        (
            "journal_relied_on",
            "gauge",
            "1 while flushes are answered from the journal; 0 without one, or when its disk failed.",
            log.journal.is_some_and(|journal| journal.relied_on).into(),
        ),
        (
            "epoch",
            "gauge",
            "The number of this attachment.",
            log.epoch.into(),
        ),
        (
            "live_bytes",
            "gauge",
            "Bytes of the device that hold data.",
            log.live_bytes,
        ),
        (
            "stored_bytes",
            "gauge",
            "Bytes of the objects that hold it.",
            log.stored_bytes,
        ),
        ("segments", "gauge", "Objects that hold data.", log.segments),
        (
            "collected_bytes_total",
            "counter",
            "Bytes that the collector copied.",
            log.collected_bytes,
        ),
        (
            "deleted_objects_total",
            "counter",
            "Objects that were deleted.",
            log.deleted_objects,
        ),
    ];
    for (name, kind, help, value) in only_format_2 {
        page.one(name, kind, help, value);
    }
    page.text
}

/// One figure of a kind of request.
type Figure = fn(&OperationCounts) -> u64;

struct Page {
    text: String,
    /// Those of every line.
    labels: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP swiftnbd_{name} {help}");
        let _ = writeln!(self.text, "# TYPE swiftnbd_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let comma = if labels.is_empty() { "" } else { "," };
        let own = &self.labels;
        let _ = writeln!(self.text, "swiftnbd_{name}{{{own}{comma}{labels}}} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.line(name, "", value);
    }

    fn operations(&mut self, figures: &Figures) {
        let kinds = figures.traffic.kinds();
        self.family(
            "request_duration_seconds",
            "histogram",
            "Requests of the kernel, and how long they took.",
        );
        for (operation, counts) in kinds {
            self.histogram("request_duration_seconds", operation, counts);
        }
        let families: [(&str, &str, Figure); 2] = [
            (
                "request_bytes_total",
                "Bytes of requests that succeeded.",
                |counts| counts.bytes,
            ),
            (
                "request_failures_total",
                "Requests that failed.",
                |counts| counts.failed,
            ),
        ];
        for (name, help, value) in families {
            self.family(name, "counter", help);
            for (operation, counts) in kinds {
                self.line(name, &format!("operation=\"{operation}\""), value(counts));
            }
        }
    }

    fn histogram(&mut self, name: &str, operation: &str, counts: &OperationCounts) {
        let mut below = 0;
        let bounds = BOUNDS.iter().map(|micros| seconds(*micros));
        let bounds = bounds.chain([String::from("+Inf")]);
        for (bound, count) in bounds.zip(&counts.classes) {
            below += count;
            let labels = format!("operation=\"{operation}\",le=\"{bound}\"");
            self.line(&format!("{name}_bucket"), &labels, below);
        }
        let labels = format!("operation=\"{operation}\"");
        self.line(&format!("{name}_sum"), &labels, seconds(counts.micros));
        self.line(&format!("{name}_count"), &labels, counts.all());
    }
}

/// Microseconds as seconds, exactly.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_seconds_are_written_as_the_format_wants() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        assert_eq!(seconds(50), "0.00005");
        assert_eq!(seconds(60_000_000), "60");
        assert_eq!(seconds(1_500_000), "1.5");
        assert_eq!(seconds(0), "0");
    }
}
