//! One HTTP request and how its answer or failure reads as a [`StoreError`].
//!
//! Knows: status codes, headers, URLs in the form in which they may be shown.
//! Does not know: tokens, containers, what a caller makes of an error.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};

use super::{CLOCK_SKEW, REQUEST_LIFETIME, tls};
use crate::store::{ErrorKind, StoreError};

/// A server may ask for a longer pause than this; it does not get it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// A part of a path, slashes kept, everything else that is special encoded.
pub(super) fn encode_path(text: &str) -> String {
    utf8_percent_encode(text, PATH).to_string()
}

/// A value in a query.
pub(super) fn encode_query(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

/// A URL as it may be shown: no user part, no query.
pub(super) fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut url) if url.has_host() => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.set_fragment(None);
            url.into()
        }
        _ => "(an address that is not a URL)".to_owned(),
    }
}

/// A request below the storage URL.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Encoded, with the query, without a leading slash.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Empty: no body.
    pub(super) body: Bytes,
    /// `container/object` or the container, for errors.
    pub(super) target: String,
}

impl Request {
    /// Whether Swift changes anything because of it.
    pub(super) fn is_write(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD)
    }

    /// A failure of this request that leaves nothing behind.
    pub(super) fn error(&self, kind: ErrorKind, detail: impl Into<String>) -> StoreError {
        let operation = match self.method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::PUT => "PUT",
            Method::POST => "POST",
            _ => "DELETE",
        };
        StoreError::new(kind, operation, self.target.clone(), detail)
    }

    /// No answer came in time.
    pub(super) fn timed_out(&self, limit: Duration) -> StoreError {
        let detail = format!("nothing was heard for {} s", limit.as_secs_f32());
        self.unanswered(detail)
    }

    /// The connection failed, before or after the request was sent.
    pub(super) fn transport(&self, error: reqwest::Error) -> StoreError {
        let (builder, connect) = (error.is_builder(), error.is_connect());
        let error = error.without_url();
        let detail = reason(&error);
        // On a connection that stood, the request may have been received.
        if connect && let Some(hint) = tls::hint(&error) {
            return self.error(ErrorKind::Invalid, detail).hint(hint);
        }
        if builder {
            self.error(ErrorKind::Invalid, detail)
        } else if connect {
            self.error(ErrorKind::Unreachable, detail)
        } else {
            self.unanswered(detail)
        }
    }

    /// The request may have been received by somebody, and its fate is unknown.
    fn unanswered(&self, detail: String) -> StoreError {
        StoreError {
            lingers: self.lingers(REQUEST_LIFETIME),
            ..self.error(ErrorKind::Unavailable, detail)
        }
    }

    /// An answer with a status that is not the one hoped for.
    pub(super) fn refused(&self, reply: &Response) -> StoreError {
        self.refusal(reply.status(), reply.headers())
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> StoreError {
        let (kind, meaning) = match status.as_u16() {
            401 => (ErrorKind::Denied, "the token was refused"),
            403 => (ErrorKind::Denied, "this user may not do that"),
            404 => (ErrorKind::NotFound, ""),
            202 if self.is_write() => (ErrorKind::Superseded, "a newer version is stored already"),
            409 if self.is_write() => (ErrorKind::Superseded, "a newer version is stored already"),
            413 if self.is_write() => (ErrorKind::Quota, "over quota"),
            422 if self.is_write() => (ErrorKind::Corrupt, "the body was damaged on its way"),
            408 | 499 => (ErrorKind::Unavailable, "the request took too long"),
            429 | 498 => (ErrorKind::Unavailable, "too many requests"),
            500..=599 => (ErrorKind::Unavailable, ""),
            _ => (ErrorKind::Invalid, "not an answer to this request"),
        };
        StoreError {
            retry_after: retry_after(headers),
            lingers: self.lingers(lifetime_after(status)),
            hint: self.hint(status).map(Box::from),
            ..self.error(kind, describe(status, meaning, headers))
        }
    }

    /// What to do about a refusal that has its own remedy.
    fn hint(&self, status: StatusCode) -> Option<&'static str> {
        match status.as_u16() {
            401 => Some(
                "check the credentials; if they are right, Swift cannot have the token checked at \
                 present, or the storage URL is another cloud's",
            ),
            403 if self.is_write() => Some(
                "the account lets this user read at most: the user needs a role that may write \
                 (with Keystone often member), or the volume must be read_only",
            ),
            403 => Some(
                "the account belongs to somebody else, or this user has no role in it: check the \
                 user, the project and the storage URL",
            ),
            _ => None,
        }
    }

    /// How long this request lingers, if a write would linger for this long.
    fn lingers(&self, write: Duration) -> Duration {
        match self.is_write() {
            true => write,
            false => Duration::ZERO,
        }
    }
}

/// How long a write may still take effect after this answer; see the module's
/// documentation.
fn lifetime_after(status: StatusCode) -> Duration {
    match status.as_u16() {
        // Swift's own 202: it refused, since it holds something newer.
        202 => Duration::ZERO,
        // Somebody answered who is not Swift.
        200..=299 => REQUEST_LIFETIME,
        // A gateway's: Swift may not have read the request yet.
        502 | 504 => REQUEST_LIFETIME,
        500..=599 => CLOCK_SKEW,
        _ => Duration::ZERO,
    }
}

/// The status, what it means, and what an operator of the Swift would ask for.
pub(super) fn describe(status: StatusCode, meaning: &str, headers: &HeaderMap) -> String {
    let mut text = status.as_u16().to_string();
    if let Some(name) = status.canonical_reason() {
        text = format!("{text} {name}");
    }
    if !meaning.is_empty() {
        text = format!("{text}: {meaning}");
    }
    match transaction(headers) {
        Some(id) => format!("{text} (transaction {id})"),
        None => text,
    }
}

/// The transaction's name, if it looks like one: it comes from outside and
/// ends in logs.
fn transaction(headers: &HeaderMap) -> Option<&str> {
    ["x-trans-id", "x-openstack-request-id"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .find(|id| {
            (1..=80).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        })
}

/// The pause that the server asks for, where it says so in seconds.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// An error and its causes in one line, each said once.
pub(super) fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method) -> Request {
        Request {
            method,
            path: String::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            target: "c/o".to_owned(),
        }
    }

    #[test]
    fn every_status_has_its_kind_and_what_it_leaves_behind() {
        use ErrorKind::*;
        let (zero, skew, life) = (Duration::ZERO, CLOCK_SKEW, REQUEST_LIFETIME);
        for (status, kind, lingers) in [
            (200, Invalid, life),
            (202, Superseded, zero),
            (204, Invalid, life),
            (301, Invalid, zero),
            (400, Invalid, zero),
            (401, Denied, zero),
            (403, Denied, zero),
            (404, NotFound, zero),
            (408, Unavailable, zero),
            (409, Superseded, zero),
            (411, Invalid, zero),
            (413, Quota, zero),
            (422, Corrupt, zero),
            (429, Unavailable, zero),
            (498, Unavailable, zero),
            (499, Unavailable, zero),
            (500, Unavailable, skew),
            (502, Unavailable, life),
            (503, Unavailable, skew),
            (504, Unavailable, life),
            (507, Unavailable, skew),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = request(Method::PUT).refusal(status, &HeaderMap::new());
            assert_eq!((error.kind, error.lingers), (kind, lingers), "{status}");
            let error = request(Method::GET).refusal(status, &HeaderMap::new());
            assert_eq!(error.lingers, zero, "{status}");
        }
    }

    #[test]
    fn what_a_server_sends_is_bounded_before_it_is_shown() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "99999".parse().unwrap());
        headers.insert("x-trans-id", "tx\tevil token".parse().unwrap());
        headers.insert("x-openstack-request-id", "tx1-ab.c".parse().unwrap());
        let status = StatusCode::from_u16(498).unwrap();
        let error = request(Method::GET).refusal(status, &headers);
        assert_eq!(error.retry_after, Some(MAX_RETRY_AFTER));
        assert_eq!(
            error.to_string(),
            "GET c/o: 498: too many requests (transaction tx1-ab.c)"
        );
    }

    #[test]
    fn a_shown_url_has_no_secret() {
        assert_eq!(shown("https://u:pw@h:5/v3?a=pw#pw"), "https://h:5/v3");
        assert!(!shown("u:pw@h").contains("pw"));
        assert!(!shown("not a url pw").contains("pw"));
    }

    #[test]
    fn names_are_encoded_for_their_place() {
        assert_eq!(encode_path("a/b c?%é"), "a/b%20c%3F%25%C3%A9");
        assert_eq!(encode_query("a/b&c=+"), "a%2Fb%26c%3D%2B");
    }
}
