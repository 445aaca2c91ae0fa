//! One request for one object: its body, a part of it, its checksum, and storing it.
//!
//! Knows: which answers are successes, and how a body is checked. Does not know: when
//! a 404 is believed (see the [module above](super)).

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, LAST_MODIFIED,
    RANGE,
};
use reqwest::{Method, Response};

use super::request::Request;
use super::{CLOCK_SKEW, SwiftStore, answer, finish, http, no_container};
use crate::store::{Age, ErrorKind, StoreError, check};

impl SwiftStore {
    /// The answer to a request for an object's newest version, if it is there.
    async fn newest(&self, method: Method, name: &str) -> Result<(Request, Response), StoreError> {
        let mut request = self.object(method, name);
        let newest = HeaderName::from_static("x-newest");
        request
            .headers
            .insert(newest, HeaderValue::from_static("true"));
        let reply = self.send(&request).await?;
        match reply.status().as_u16() {
            200 => Ok((request, reply)),
            404 => {
                http::drain(reply).await;
                Err(request.error(ErrorKind::NotFound, "the object does not exist"))
            }
            _ => Err(finish(&request, reply).await),
        }
    }

    pub(super) async fn md5_once(&self, name: &str) -> Result<[u8; 16], StoreError> {
        let (request, reply) = self.newest(Method::HEAD, name).await?;
        let missing = || request.error(ErrorKind::Corrupt, "the answer has no checksum (ETag)");
        answer::etag(reply.headers()).ok_or_else(missing)
    }

    pub(super) async fn age_once(&self, name: &str) -> Result<Option<Age>, StoreError> {
        let (_, reply) = self.newest(Method::HEAD, name).await?;
        let date = |name| answer::date(reply.headers(), name);
        let known = date(DATE).zip(date(LAST_MODIFIED));
        Ok(known.map(|(now, stored)| Age {
            seconds: now as i64 - stored as i64,
            stored: Duration::from_secs(stored),
        }))
    }

    pub(super) async fn get_once(&self, name: &str) -> Result<Bytes, StoreError> {
        let (request, reply) = self.newest(Method::GET, name).await?;
        let etag = answer::etag(reply.headers());
        let timeouts = *self.account().timeouts();
        let received = http::receive(&request, reply, self.max_object, &timeouts).await?;
        let fault = match etag {
            Some(etag) if etag == received.md5 => return Ok(received.body),
            Some(_) => "does not match its checksum (ETag)",
            None => "came without a checksum (ETag)",
        };
        let detail = format!("the body of {} bytes {fault}", received.body.len());
        Err(request.error(ErrorKind::Corrupt, detail))
    }

    pub(super) async fn get_range_once(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        let mut request = self.object(Method::GET, name);
        let range = HeaderValue::try_from(format!("bytes={offset}-{}", offset + length - 1))
            .map_err(|_| request.error(ErrorKind::Invalid, "the range is not a header"))?;
        request.headers.insert(RANGE, range);
        let reply = self.send(&request).await?;
        let status = reply.status().as_u16();
        if !matches!(status, 206 | 416) {
            return Err(match finish(&request, reply).await {
                error if status == 404 => StoreError {
                    detail: "the object does not exist".to_owned(),
                    ..error
                },
                error => error,
            });
        }
        let expected = match answer::part(status, reply.headers(), offset, length) {
            Ok(expected) => expected,
            Err(fault) => {
                http::drain(reply).await;
                return Err(request.error(ErrorKind::Corrupt, fault));
            }
        };
        if status == 416 {
            http::drain(reply).await;
            return Ok(Bytes::new());
        }
        let timeouts = *self.account().timeouts();
        let body = http::receive_part(&request, reply, expected, &timeouts).await?;
        if body.len() as u64 != expected {
            let detail = format!("{} of {expected} bytes came", body.len());
            return Err(request.error(ErrorKind::Corrupt, detail));
        }
        Ok(body)
    }

    /// Stores an object; with `only_new` false means that there is one already.
    pub(super) async fn upload(
        &self,
        name: &str,
        body: Bytes,
        only_new: bool,
    ) -> Result<bool, StoreError> {
        check::put(&self.container, name, &body)?;
        let mut request = self.object(Method::PUT, name);
        if body.len() as u64 > self.max_object {
            let detail = format!("{} bytes are more than {}", body.len(), self.max_object);
            return Err(request.error(ErrorKind::Invalid, detail));
        }
        let md5 = http::md5(&body).await;
        let etag = HeaderValue::try_from(answer::hex(md5))
            .map_err(|_| request.error(ErrorKind::Invalid, "the checksum is not a header"))?;
        let plain = HeaderValue::from_static("application/octet-stream");
        request.headers = HeaderMap::from_iter([(ETAG, etag), (CONTENT_TYPE, plain)]);
        if only_new {
            let any = HeaderValue::from_static("*");
            request.headers.insert(IF_NONE_MATCH, any);
        }
        request.body = body;
        let reply = self.send(&request).await?;
        let stored = match reply.status().as_u16() {
            201 => answer::etag(reply.headers()),
            412 if only_new => {
                http::drain(reply).await;
                return Ok(false);
            }
            404 => {
                http::drain(reply).await;
                return Err(self.not_stored(&request).await);
            }
            _ => return Err(finish(&request, reply).await),
        };
        http::drain(reply).await;
        if stored.is_some_and(|stored| stored != md5) {
            return Err(StoreError {
                lingers: CLOCK_SKEW,
                ..request.error(ErrorKind::Corrupt, "Swift stored something else (ETag)")
            });
        }
        Ok(true)
    }

    /// What a PUT's 404 means.
    async fn not_stored(&self, request: &Request) -> StoreError {
        match self.confirm().await {
            Ok(_) => request.error(
                ErrorKind::Unavailable,
                "404, but the container is there: Swift's account or container servers cannot be reached",
            ),
            Err(error) if error.kind == ErrorKind::NoContainer => no_container(request),
            Err(error) => error,
        }
    }
}
