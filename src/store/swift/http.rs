//! Sending a request and receiving its answer within their time limits.
//!
//! Knows: reqwest, timeouts, progress. Does not know: what an answer means.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use md5::{Digest, Md5};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Body, Certificate, Client, RequestBuilder, Response};
use tokio::time::{Instant, sleep_until, timeout};

use super::REQUEST_LIFETIME;
use super::request::{Request, reason};
use crate::credentials::Tls;
use crate::store::{ErrorKind, StoreError};

/// A body is handed over in parts of this size: each is a sign of progress, and
/// none keeps a thread for long (its MD5 takes 0.4 ms).
const PART: usize = 256 * 1024;
/// What is read of an answer that nobody needs, so that its connection can be
/// used again.
const MAX_DRAINED: usize = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a request waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the head of the answer to a read, and for each further part of it.
    pub read: Duration,
    /// For the answer to a write, since Swift last took a part of its body.
    pub write: Duration,
}

impl Default for Timeouts {
    /// 10 s, 30 s, and 60 s: giving up on a write early would leave a request
    /// of unknown fate behind, so that one is long on purpose.
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            write: Duration::from_secs(60),
        }
    }
}

/// A pool of connections.
pub(super) fn client(timeouts: &Timeouts, tls: &Tls) -> Result<Client, StoreError> {
    // A second installation fails, and then there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    // A compressed body would not match its ETag.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let builder = match tls {
        Tls::System => Client::builder(),
        Tls::Authorities { pem, file } => {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|error| unusable(file, &error.without_url()))?;
            Client::builder().tls_certs_only(certificates)
        }
        Tls::Insecure => Client::builder().tls_danger_accept_invalid_certs(true),
    };
    builder
        .user_agent(concat!("swiftnbd/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .http1_only()
        // 90 metadata headers and those of the protocol; 100 is the default.
        .http1_max_headers(256)
        // A token must not follow a redirect.
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(timeouts.connect)
        // Also after we have given a request up and closed its connection: what the kernel
        // still has of it must not arrive when nobody reckons with it any more.
        .tcp_user_timeout(REQUEST_LIFETIME)
        // Servers close idle connections after 60 s or so. One that is closed
        // just as it is used again costs a write its certainty.
        .pool_idle_timeout(Duration::from_secs(15))
        .build()
        .map_err(|error| {
            let file = match tls {
                Tls::Authorities { file, .. } => file,
                Tls::System | Tls::Insecure => "HTTP client",
            };
            unusable(file, &error.without_url())
        })
}

fn unusable(what: &str, error: &reqwest::Error) -> StoreError {
    StoreError::new(ErrorKind::Invalid, "open", what, reason(error))
}

/// Sends it and waits for the head of the answer.
pub(super) async fn send(
    request: &Request,
    builder: RequestBuilder,
    timeouts: &Timeouts,
) -> Result<Response, StoreError> {
    if !request.is_write() {
        let answer = timeout(timeouts.read, builder.send()).await;
        return answer
            .map_err(|_| request.timed_out(timeouts.read))?
            .map_err(|error| request.transport(error));
    }
    let progress = Progress::new();
    let builder = builder.header(CONTENT_LENGTH, request.body.len());
    let builder = match request.body.len() {
        0 => builder,
        1..=PART => builder.body(request.body.clone()),
        _ => builder.body(in_parts(request.body.clone(), progress.clone())),
    };
    tokio::select! {
        biased;
        answer = builder.send() => answer.map_err(|error| request.transport(error)),
        () = progress.stall(timeouts.write) => Err(request.timed_out(timeouts.write)),
    }
}

/// When the connection last took a part of the body.
struct Progress(Mutex<Instant>);

impl Progress {
    fn new() -> Arc<Progress> {
        Arc::new(Progress(Mutex::new(Instant::now())))
    }

    fn made(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when none was made for this long.
    async fn stall(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= limit {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}

fn in_parts(body: Bytes, progress: Arc<Progress>) -> Body {
    let starts = (0..body.len()).step_by(PART);
    Body::wrap_stream(stream::iter(starts).map(move |start| {
        progress.made();
        Ok::<_, Infallible>(body.slice(start..body.len().min(start + PART)))
    }))
}

/// The MD5 of a body; lets other tasks run now and then.
pub(super) async fn md5(body: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    for part in body.chunks(PART) {
        hash.update(part);
        if body.len() > PART {
            tokio::task::yield_now().await;
        }
    }
    hash.finalize().into()
}

/// A body that was received, and its MD5.
pub(super) struct Received {
    pub(super) body: Bytes,
    pub(super) md5: [u8; 16],
}

/// The whole body of an answer, no longer than `limit` bytes and exactly as
/// long as its head says. A longer one is refused before it is read.
pub(super) async fn receive(
    request: &Request,
    reply: Response,
    limit: u64,
    timeouts: &Timeouts,
) -> Result<Received, StoreError> {
    let mut hash = Md5::new();
    let body = take(request, reply, limit, timeouts, |part| hash.update(part)).await?;
    Ok(Received {
        body,
        md5: hash.finalize().into(),
    })
}

/// Like [`receive`], where there is no MD5 to compare with.
pub(super) async fn receive_part(
    request: &Request,
    reply: Response,
    limit: u64,
    timeouts: &Timeouts,
) -> Result<Bytes, StoreError> {
    take(request, reply, limit, timeouts, |_| {}).await
}

/// The body, each part of it shown to `see` as it comes.
async fn take(
    request: &Request,
    mut reply: Response,
    limit: u64,
    timeouts: &Timeouts,
    mut see: impl FnMut(&[u8]),
) -> Result<Bytes, StoreError> {
    let announced = announced(reply.headers());
    let too_long = || {
        let detail = format!("the body is longer than {limit} bytes, the most expected here");
        request.error(ErrorKind::Corrupt, detail)
    };
    if announced > Some(limit) {
        return Err(too_long());
    }
    // Bounded by `limit`, whatever the head said.
    let mut body = BytesMut::with_capacity(announced.unwrap_or(0) as usize);
    loop {
        let part = timeout(timeouts.read, reply.chunk())
            .await
            .map_err(|_| request.timed_out(timeouts.read))?
            .map_err(|error| request.transport(error))?;
        let Some(part) = part else { break };
        if body.len() as u64 + part.len() as u64 > limit {
            return Err(too_long());
        }
        see(&part);
        body.extend_from_slice(&part);
    }
    if let Some(announced) = announced
        && announced != body.len() as u64
    {
        let detail = format!("{} of {announced} bytes came", body.len());
        return Err(request.error(ErrorKind::Corrupt, detail));
    }
    Ok(body.freeze())
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads what is left of an answer, if it is short and comes at once.
pub(super) async fn drain(mut reply: Response) {
    let rest = async {
        let mut length = 0;
        while let Ok(Some(part)) = reply.chunk().await {
            length += part.len();
            if length > MAX_DRAINED {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, rest).await;
}
