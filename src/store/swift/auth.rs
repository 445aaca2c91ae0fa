//! Who we are to Swift: credentials, the token that they buy, and its renewal.
//!
//! Knows: v1 authentication (`X-Auth-User`, `X-Auth-Key`), tokens, what a 401
//! means. Does not know: containers, objects.
//!
//! A token lives in memory only. However many requests find that it was
//! refused, it is renewed once; a request that fails with a token that was
//! replaced meanwhile uses the new one.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::{Instant, timeout};

use super::http::{self, Timeouts};
use super::request::{Request, describe, reason, retry_after, shown};
use super::rounds::Rounds;
use crate::store::{ErrorKind, StoreError};

/// Credentials that were refused are not tried again for this long: many
/// waiting requests would otherwise lock the user out of Keystone.
const REFUSAL_KEPT: Duration = Duration::from_secs(5);

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps it.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the place that must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What an account is opened with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The address of the authentication: `https://swift.example/auth/v1.0`.
    pub auth_url: String,
    /// `account:user`.
    pub username: String,
    /// The user's password or key.
    pub password: Secret,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("auth_url", &shown(&self.auth_url))
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What a successful authentication gave.
struct Session {
    /// The storage URL without a slash at its end.
    storage_url: String,
    token: HeaderValue,
}

type Renewal = Result<Arc<Session>, StoreError>;

/// An account in Swift: its credentials, its token and its connections, shared
/// by all the containers that are opened in it.
pub struct Account {
    client: Client,
    timeouts: Timeouts,
    state: Mutex<State>,
    renewals: Rounds<Renewal>,
}

struct State {
    credentials: Arc<Credentials>,
    session: Option<Arc<Session>>,
    /// When these credentials were refused, and how.
    refusal: Option<(Instant, StoreError)>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("credentials", &self.lock().credentials)
            .finish_non_exhaustive()
    }
}

impl Account {
    /// An account that authenticates at its first request.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the credentials cannot even be sent.
    pub fn new(credentials: Credentials, timeouts: Timeouts) -> Result<Arc<Account>, StoreError> {
        check(&credentials)?;
        Ok(Arc::new(Account {
            client: http::client(&timeouts)?,
            timeouts,
            state: Mutex::new(State {
                credentials: Arc::new(credentials),
                session: None,
                refusal: None,
            }),
            renewals: Rounds::new(),
        }))
    }

    /// Uses these credentials from the next request on.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if they cannot even be sent; the old ones stay.
    pub fn set_credentials(&self, credentials: Credentials) -> Result<(), StoreError> {
        check(&credentials)?;
        let mut state = self.lock();
        *state = State {
            credentials: Arc::new(credentials),
            session: None,
            refusal: None,
        };
        Ok(())
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Sends a request with a token. If the token is refused it is renewed, and
    /// the request sent once more.
    pub(super) async fn send(&self, request: &Request) -> Result<Response, StoreError> {
        let session = self.session(None).await?;
        let reply = self.send_with(&session, request).await?;
        if reply.status() != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        http::drain(reply).await;
        let session = self.session(Some(&session)).await?;
        self.send_with(&session, request).await
    }

    async fn send_with(
        &self,
        session: &Session,
        request: &Request,
    ) -> Result<Response, StoreError> {
        let url = format!("{}/{}", session.storage_url, request.path);
        let builder = self
            .client
            .request(request.method.clone(), url)
            .headers(request.headers.clone())
            .header("x-auth-token", session.token.clone());
        http::send(request, builder, &self.timeouts).await
    }

    /// A session other than the one that failed.
    async fn session(&self, failed: Option<&Arc<Session>>) -> Renewal {
        loop {
            if let Some(session) = self.usable(failed) {
                return Ok(session);
            }
            let renewed = self.renewals.after_now(|| self.renew(failed)).await;
            // A round that somebody else ran for an older token may have found
            // the very one that failed here.
            match (&renewed, failed) {
                (Ok(session), Some(failed)) if Arc::ptr_eq(session, failed) => {}
                _ => return renewed,
            }
        }
    }

    fn usable(&self, failed: Option<&Arc<Session>>) -> Option<Arc<Session>> {
        let session = self.lock().session.clone()?;
        match failed {
            Some(failed) if Arc::ptr_eq(&session, failed) => None,
            _ => Some(session),
        }
    }

    async fn renew(&self, failed: Option<&Arc<Session>>) -> Renewal {
        if let Some(session) = self.usable(failed) {
            return Ok(session);
        }
        loop {
            let credentials = {
                let mut state = self.lock();
                // Not to be used again, even if no other can be had.
                state.session = None;
                match &state.refusal {
                    Some((when, error)) if when.elapsed() < REFUSAL_KEPT => {
                        return Err(error.clone());
                    }
                    _ => state.credentials.clone(),
                }
            };
            let renewal = self.authenticate(&credentials).await;
            let mut state = self.lock();
            if !Arc::ptr_eq(&credentials, &state.credentials) {
                continue; // They were replaced meanwhile.
            }
            match &renewal {
                Ok(session) => state.session = Some(session.clone()),
                Err(error) if error.kind == ErrorKind::Denied => {
                    state.refusal = Some((Instant::now(), error.clone()));
                }
                Err(_) => {}
            }
            return renewal;
        }
    }

    async fn authenticate(&self, credentials: &Credentials) -> Renewal {
        let request = self
            .client
            .get(&credentials.auth_url)
            .header("x-auth-user", header(&credentials.username)?)
            .header("x-auth-key", header(credentials.password.expose())?)
            .send();
        let failure = |kind, detail: String| {
            StoreError::new(kind, "GET", shown(&credentials.auth_url), detail)
        };
        let reply = timeout(self.timeouts.read, request)
            .await
            .map_err(|_| {
                let seconds = self.timeouts.read.as_secs_f32();
                failure(
                    ErrorKind::Unavailable,
                    format!("nothing was heard for {seconds} s"),
                )
            })?
            .map_err(|error| {
                let kind = match error.is_connect() {
                    true => ErrorKind::Unreachable,
                    false => ErrorKind::Unavailable,
                };
                failure(kind, reason(&error.without_url()))
            })?;
        let (status, headers) = (reply.status(), reply.headers().clone());
        http::drain(reply).await;
        if let Some((kind, meaning)) = refusal(status) {
            return Err(StoreError {
                retry_after: retry_after(&headers),
                ..failure(kind, describe(status, meaning, &headers))
            });
        }
        let session = session(&headers)
            .map_err(|fault| failure(ErrorKind::Invalid, describe(status, fault, &headers)))?;
        if credentials.auth_url.starts_with("https:") && session.storage_url.starts_with("http:") {
            tracing::warn!(
                "{}: the storage URL is not encrypted (http): the token and all data can be read on the network",
                shown(&credentials.auth_url)
            );
        }
        Ok(Arc::new(session))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with this answer to an authentication, if anything.
fn refusal(status: StatusCode) -> Option<(ErrorKind, &'static str)> {
    match status.as_u16() {
        200..=299 => None,
        401 | 403 => Some((
            ErrorKind::Denied,
            "the user name or the password was refused",
        )),
        404 => Some((
            ErrorKind::Invalid,
            "no authentication at this address (check auth_url)",
        )),
        408 | 429 | 498 | 499 | 500..=599 => Some((ErrorKind::Unavailable, "")),
        _ => Some((
            ErrorKind::Invalid,
            "not an answer to an authentication (check auth_url)",
        )),
    }
}

fn session(headers: &HeaderMap) -> Result<Session, &'static str> {
    let mut token = headers
        .get("x-auth-token")
        .or_else(|| headers.get("x-storage-token"))
        .filter(|token| !token.is_empty())
        .ok_or("the answer has no X-Auth-Token")?
        .clone();
    token.set_sensitive(true);
    let url = headers
        .get("x-storage-url")
        .and_then(|url| url.to_str().ok())
        .ok_or("the answer has no X-Storage-Url")?;
    plain_url(url).map_err(|()| "the answer's X-Storage-Url is not a plain http or https URL")?;
    Ok(Session {
        storage_url: url.trim_end_matches('/').to_owned(),
        token,
    })
}

/// A URL with http or https, a host, and neither a user part nor a query.
fn plain_url(url: &str) -> Result<(), ()> {
    let url = Url::parse(url).map_err(drop)?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    plain.then_some(()).ok_or(())
}

fn check(credentials: &Credentials) -> Result<(), StoreError> {
    let target = shown(&credentials.auth_url);
    plain_url(&credentials.auth_url).map_err(|()| {
        StoreError::new(
            ErrorKind::Invalid,
            "open",
            target,
            "auth_url must be an http or https URL without a user part or a query",
        )
    })?;
    header(&credentials.username)?;
    header(credentials.password.expose())?;
    Ok(())
}

fn header(text: &str) -> Result<HeaderValue, StoreError> {
    let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        StoreError::new(
            ErrorKind::Invalid,
            "open",
            "credentials",
            "the user name or the password has a character that HTTP cannot carry",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let credentials = Credentials {
            auth_url: "http://u:hunter2@h/v1".to_owned(),
            username: "a:u".to_owned(),
            password: Secret::new("hunter2"),
        };
        assert!(!format!("{credentials:?} {:?}", credentials.password).contains("hunter2"));
        let error = Account::new(credentials, Timeouts::default()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn a_password_that_no_header_can_carry_is_refused_unseen() {
        let credentials = Credentials {
            auth_url: "http://h/v1".to_owned(),
            username: "a:u".to_owned(),
            password: Secret::new("hunter2\r\nX-Evil: 1"),
        };
        let error = Account::new(credentials, Timeouts::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
