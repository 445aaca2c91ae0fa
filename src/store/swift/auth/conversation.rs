//! Asking an authentication service, whichever it is.
//!
//! Knows: time limits, how much of an answer is read, what a failed connection
//! means. Does not know: what is asked.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tokio::time::timeout;

use crate::store::swift::request::{describe, reason, retry_after, shown};
use crate::store::swift::tls;
use crate::store::{ErrorKind, StoreError};

/// A catalog of a large cloud has 100 KiB.
const MAX_ANSWER: usize = 1 << 20;

/// The way to one authentication service.
pub(super) struct Conversation<'a> {
    pub(super) client: &'a Client,
    /// For each answer's head, and for each part of its body.
    pub(super) timeout: Duration,
    /// For messages.
    pub(super) operation: &'static str,
    /// Its address.
    pub(super) url: &'a str,
}

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Conversation<'_> {
    pub(super) fn failure(&self, kind: ErrorKind, detail: impl Into<String>) -> StoreError {
        StoreError::new(kind, self.operation, shown(self.url), detail)
    }

    /// The failure that an answer means.
    pub(super) fn refusal(&self, answer: &Answer, kind: ErrorKind, meaning: &str) -> StoreError {
        let detail = describe(answer.status, meaning, &answer.headers);
        StoreError {
            retry_after: retry_after(&answer.headers),
            ..self.failure(kind, detail)
        }
    }

    /// What is wrong with an answer of any such service, if that is all there is
    /// to say: nobody is there, or somebody else.
    pub(super) fn usual_refusal(&self, answer: &Answer) -> StoreError {
        let other = "not an answer to an authentication (check auth_url)";
        match answer.status.as_u16() {
            408 | 429 | 498 | 499 | 500..=599 => self.refusal(answer, ErrorKind::Unavailable, ""),
            400 if !self.is_encrypted() => self
                .refusal(answer, ErrorKind::Invalid, other)
                .hint("if this port speaks https, write https:// in auth_url"),
            _ => self.refusal(answer, ErrorKind::Invalid, other),
        }
    }

    fn is_encrypted(&self) -> bool {
        self.url.to_ascii_lowercase().starts_with("https:")
    }

    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Answer, StoreError> {
        let mut reply = timeout(self.timeout, request.send())
            .await
            .map_err(|_| self.silence())?
            .map_err(|error| self.broken(error))?;
        let mut body = Vec::new();
        while let Some(part) = self.part(&mut reply).await? {
            if body.len() + part.len() > MAX_ANSWER {
                return Err(self.failure(
                    ErrorKind::Invalid,
                    "the answer is longer than 1 MiB (check auth_url)",
                ));
            }
            body.extend_from_slice(&part);
        }
        Ok(Answer {
            status: reply.status(),
            headers: reply.headers().clone(),
            body,
        })
    }

    async fn part(&self, reply: &mut Response) -> Result<Option<bytes::Bytes>, StoreError> {
        timeout(self.timeout, reply.chunk())
            .await
            .map_err(|_| self.silence())?
            .map_err(|error| self.broken(error))
    }

    fn silence(&self) -> StoreError {
        let seconds = self.timeout.as_secs_f32();
        self.failure(
            ErrorKind::Unavailable,
            format!("nothing was heard for {seconds} s"),
        )
    }

    fn broken(&self, error: reqwest::Error) -> StoreError {
        let connect = error.is_connect();
        let error = error.without_url();
        let detail = reason(&error);
        if connect && let Some(hint) = tls::hint(&error) {
            return self.failure(ErrorKind::Invalid, detail).hint(hint);
        }
        if connect {
            return self.failure(ErrorKind::Unreachable, detail);
        }
        let failure = self.failure(ErrorKind::Unavailable, detail);
        match self.is_encrypted() {
            true => failure,
            // Perhaps somebody is there who does not speak HTTP.
            false => failure
                .hint("try again later; if this port speaks https, write https:// in auth_url"),
        }
    }
}
