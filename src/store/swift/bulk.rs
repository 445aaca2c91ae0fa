//! Deleting much: many objects in one request, and the container itself.
//!
//! Knows: what Swift's bulk middleware answers. It says 200 before it begins; how
//! it went is in the body, behind white space that keeps the connection alive.
//! Whatever that body does not call a success is deleted name by name, where every
//! failure has an answer of its own. So is everything where the middleware is
//! missing: then the request is a POST to the account that changes nothing.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;

use super::request::{Request, encode_path};
use super::{CLOCK_SKEW, SwiftStore, http, no_container};
use crate::store::{ErrorKind, ObjectStore, StoreError, check};

/// A name that failed takes about a hundred bytes of an answer.
const MAX_ANSWER: u64 = 16 << 20;
/// Single DELETEs at a time.
const AT_ONCE: usize = 8;

/// What a bulk delete came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Every name was there and is gone.
    Gone,
    /// None failed, but some were not found: a 404, which by itself proves nothing.
    NotFound,
    /// It is to be seen name by name.
    Unclear,
}

impl SwiftStore {
    /// Deletes the objects by as few requests as this Swift allows.
    pub(super) async fn delete_together(&self, names: &[String]) -> Result<(), StoreError> {
        if names.len() > 1 && !self.no_bulk.load(Ordering::Relaxed) {
            for last in [false, true] {
                match self.bulk_delete(names).await? {
                    Outcome::Gone => return Ok(()),
                    Outcome::NotFound if last => return Ok(()),
                    Outcome::NotFound => self.confirm().await?,
                    Outcome::Unclear => break,
                };
            }
        }
        let single =
            stream::iter(names.to_vec()).map(|name| async move { self.delete(&name).await });
        single.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn bulk_delete(&self, names: &[String]) -> Result<Outcome, StoreError> {
        let container = encode_path(&self.container);
        let lines = names
            .iter()
            .map(|name| format!("{container}/{}\n", encode_path(name)));
        let request = Request {
            method: Method::POST,
            path: "?bulk-delete".to_owned(),
            headers: HeaderMap::from_iter([
                (CONTENT_TYPE, HeaderValue::from_static("text/plain")),
                (ACCEPT, HeaderValue::from_static("application/json")),
            ]),
            body: Bytes::from(lines.collect::<String>()),
            target: self.container.to_string(),
        };
        let reply = self.send(&request).await?;
        let status = reply.status().as_u16();
        if status != 200 {
            let error = super::finish(&request, reply).await;
            // Overload and broken nodes pass; everything else means that nobody
            // here knows what a bulk delete is, or lets us do one.
            if status >= 500 || matches!(status, 401 | 408 | 429 | 498 | 499) {
                return Err(error);
            }
            tracing::debug!("no bulk deletes here: {error}");
            self.no_bulk.store(true, Ordering::Relaxed);
            return Ok(Outcome::Unclear);
        }
        let timeouts = *self.account().timeouts();
        let received = http::receive(&request, reply, MAX_ANSWER, &timeouts).await;
        let received = received.map_err(|error| StoreError {
            lingers: super::REQUEST_LIFETIME,
            ..error
        })?;
        outcome(&received.body, names.len() as u64).map_err(|why| StoreError {
            lingers: CLOCK_SKEW,
            ..request.error(ErrorKind::Unavailable, format!("bulk delete: {why}"))
        })
    }

    /// Deletes the container. Its 404 is believed once the account has answered:
    /// without that, a container that is there looks absent.
    pub(super) async fn remove_container(&self) -> Result<(), StoreError> {
        let request = self.request(Method::DELETE, "");
        let reply = self.send(&request).await?;
        match reply.status().as_u16() {
            204 => {
                http::drain(reply).await;
                Ok(())
            }
            409 => {
                http::drain(reply).await;
                let detail = "409: the container is not empty";
                Err(check::not_empty(&self.container, detail))
            }
            404 => {
                http::drain(reply).await;
                let account = Request {
                    method: Method::HEAD,
                    path: String::new(),
                    ..self.request(Method::HEAD, "")
                };
                let reply = self.send(&account).await?;
                match reply.status().as_u16() {
                    200 | 204 => Ok(()),
                    404 => Err(no_container(&account)),
                    _ => Err(account.refused(&reply)),
                }
            }
            _ => Err(super::finish(&request, reply).await),
        }
    }
}

/// What the body says, which came with 200 in any case.
///
/// # Errors
/// Servers failed, as it says: to be tried again.
fn outcome(body: &[u8], asked: u64) -> Result<Outcome, String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Response Status")]
        status: String,
        #[serde(rename = "Number Deleted", default)]
        deleted: u64,
        #[serde(rename = "Number Not Found", default)]
        not_found: u64,
        #[serde(rename = "Errors", default)]
        errors: Vec<(String, String)>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return Ok(Outcome::Unclear);
    };
    let code = |status: &str| status.get(..3).and_then(|code| code.parse::<u16>().ok());
    let failed = |status: &str| code(status).is_some_and(|code| code >= 500);
    if failed(&answer.status) {
        let first = answer.errors.iter().find(|(_, status)| failed(status));
        let first = first.map_or(String::new(), |(name, status)| {
            let shown: String = format!("{name}: {status}").chars().take(200).collect();
            format!(" (among others {})", shown.escape_debug())
        });
        let count = answer.errors.len();
        return Err(format!("servers failed on {count} of {asked} names{first}"));
    }
    let all = answer.deleted.checked_add(answer.not_found) == Some(asked);
    Ok(match code(&answer.status) {
        Some(200) if all && answer.errors.is_empty() && answer.not_found == 0 => Outcome::Gone,
        Some(200) if all && answer.errors.is_empty() => Outcome::NotFound,
        _ => Outcome::Unclear,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_body_that_says_so_is_a_success() {
        let said = |text: &str| outcome(text.as_bytes(), 3);
        let success = r#"{"Response Status": "200 OK", "Number Deleted": 3,
            "Number Not Found": 0, "Errors": []}"#;
        assert_eq!(said(success), Ok(Outcome::Gone));
        assert_eq!(said(&format!(" \r\n \n{success}")), Ok(Outcome::Gone));
        let part = success.replace("Found\": 0", "Found\": 1");
        assert_eq!(said(&part), Ok(Outcome::Unclear));
        let absent = part.replace("Deleted\": 3", "Deleted\": 2");
        assert_eq!(said(&absent), Ok(Outcome::NotFound));
        for unclear in [
            "",
            "[]",
            "<html>",
            "{}",
            &success.replace("200 OK", "401 Unauthorized"),
            &success.replace("200 OK", "413 Too Large"),
            &success.replace("200 OK", "é"),
            &success.replace("[]", r#"[["/c/o", "403 Forbidden"]]"#),
            &success.replace("Deleted\": 3", "Deleted\": 4"),
            &absent.replace("Found\": 1", "Found\": 18446744073709551615"),
        ] {
            assert_eq!(said(unclear), Ok(Outcome::Unclear), "{unclear}");
        }
        let failed = success
            .replace("200 OK", "502 Bad Gateway")
            .replace("[]", r#"[["/c/a", "403 F"], ["/c/o\u0007", "503 S"]]"#);
        let why = said(&failed).unwrap_err();
        assert!(
            why.contains("2 of 3") && why.contains("/c/o\\u{7}: 503"),
            "{why}"
        );
    }
}
