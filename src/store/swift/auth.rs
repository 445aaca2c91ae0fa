//! An account: its token, and the token's renewal.
//!
//! Knows: how long a token holds, what a 401 means, who waits for a renewal. Does
//! not know: how a token is had ([`keystone`], [`v1`]), containers, objects.
//!
//! A token lives in memory only. It is renewed by one request, however many wait:
//!
//! | the token | what a request does |
//! |---|---|
//! | holds for a while | uses it |
//! | has used two thirds of its time | uses it, and has it renewed beside |
//! | has ended, by the time that passed since it came | waits for a new one |
//! | was refused (401) | waits for a new one, and is sent once more |
//!
//! A renewal that fails takes nothing away: the token is used for as long as it
//! works, and Keystone is asked again after a pause. A request that fails with a
//! token that was replaced meanwhile uses the new one.

mod catalog;
mod conversation;
mod keystone;
mod session;
mod v1;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use tokio::time::Instant;

use self::session::{Session, header, plain_url};
use super::http::{self, Timeouts};
use super::request::{Request, shown};
use super::rounds::Rounds;
use crate::credentials::{Auth, Credentials, Tls};
use crate::metrics::Requests;
use crate::store::{ErrorKind, StoreError};

/// Credentials that were refused are not tried again for this long: many
/// waiting requests would otherwise lock the user out of Keystone.
const REFUSAL_KEPT: Duration = Duration::from_secs(5);
/// Between two attempts at an early renewal; doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// So many accounts are kept although nothing is open in them: commands open one
/// container after another.
const IDLE_ACCOUNTS: usize = 4;

/// The accounts of this process, the last used one at the end.
static ACCOUNTS: Mutex<Vec<Arc<Account>>> = Mutex::new(Vec::new());

type Renewal = Result<Arc<Session>, StoreError>;

/// An account in Swift: its credentials, its token and its connections, shared
/// by all the containers that are opened in it.
pub struct Account {
    client: Client,
    timeouts: Timeouts,
    credentials: Credentials,
    state: Mutex<State>,
    renewals: Rounds<Renewal>,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    /// When these credentials were refused, and how.
    refusal: Option<(Instant, StoreError)>,
    /// What is wrong with them was looked into, which costs requests.
    examined: bool,
    early: Early,
}

/// Renewal before it is needed.
#[derive(Default)]
struct Early {
    under_way: bool,
    /// Not again before this, after that pause.
    pause: Option<(Instant, Duration)>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("url", &shown(self.credentials.auth.url()))
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
        let client = http::client(&timeouts, &credentials.tls)?;
        if credentials.tls == Tls::Insecure {
            tracing::warn!(
                "{}: certificates are not checked (insecure): whoever is on the way can read and change everything",
                shown(credentials.auth.url())
            );
        }
        Ok(Arc::new(Account {
            client,
            timeouts,
            credentials,
            state: Mutex::default(),
            renewals: Rounds::new(),
        }))
    }

    /// The account that this process already has for these credentials, or a new
    /// one: one token, and one set of connections.
    ///
    /// # Errors
    /// As for [`Account::new`].
    pub fn shared(
        credentials: Credentials,
        timeouts: Timeouts,
    ) -> Result<Arc<Account>, StoreError> {
        let mut accounts = ACCOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = accounts
            .iter()
            .position(|known| known.credentials == credentials && known.timeouts == timeouts);
        let account = match known {
            Some(index) => accounts.remove(index),
            None => Account::new(credentials, timeouts)?,
        };
        let is_idle = |account: &Arc<Account>| Arc::strong_count(account) == 1;
        let idle = accounts.iter().filter(|account| is_idle(account)).count();
        let mut surplus = idle.saturating_sub(IDLE_ACCOUNTS - 1);
        accounts.retain(|account| {
            let goes = surplus > 0 && is_idle(account);
            surplus -= usize::from(goes);
            !goes
        });
        accounts.push(Arc::clone(&account));
        Ok(account)
    }

    /// Asks again at once, although the credentials were refused a moment ago.
    pub(super) fn forget_refusal(&self) {
        self.lock().refusal = None;
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Sends a request with a token. If the token is refused it is renewed, and
    /// the request sent once more. `pin`: the name of the account, once it is
    /// known: nothing is sent to another one. `sent` counts.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: &Request,
        pin: &OnceLock<String>,
        sent: &Requests,
    ) -> Result<Response, StoreError> {
        let session = self.session(None).await?;
        session.check(pin)?;
        let reply = self.send_with(&session, request, sent).await?;
        if reply.status() != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        http::drain(reply).await;
        let session = self.session(Some(&session)).await?;
        session.check(pin)?;
        self.send_with(&session, request, sent).await
    }

    async fn send_with(
        &self,
        session: &Session,
        request: &Request,
        sent: &Requests,
    ) -> Result<Response, StoreError> {
        let url = format!("{}/{}", session.storage_url, request.path);
        let builder = self
            .client
            .request(request.method.clone(), url)
            .headers(request.headers.clone())
            .header("x-auth-token", session.token.clone());
        let asked = sent.begin(request.method.as_str());
        let reply = http::send(request, builder, &self.timeouts).await;
        asked.answered(reply.as_ref().map_or(0, |reply| reply.status().as_u16()));
        reply
    }

    /// A session other than the one that failed.
    async fn session(self: &Arc<Self>, failed: Option<&Arc<Session>>) -> Renewal {
        loop {
            if let Some(session) = self.usable(failed) {
                self.renew_early(&session);
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
            _ => Some(session).filter(|session| !session.has_ended()),
        }
    }

    /// Has a session that is due renewed beside, unless that is under way.
    fn renew_early(self: &Arc<Self>, session: &Arc<Session>) {
        if !session.is_due() {
            return;
        }
        {
            let early = &mut self.lock().early;
            let too_soon = early.pause.is_some_and(|(until, _)| Instant::now() < until);
            if early.under_way || too_soon {
                return;
            }
            early.under_way = true;
        }
        let (account, session) = (Arc::clone(self), Arc::clone(session));
        tokio::spawn(async move {
            let ended = EarlyEnd(&account);
            let renewed = account
                .renewals
                .after_now(|| account.renew(Some(&session)))
                .await;
            ended.with(&session, &renewed);
        });
    }

    async fn renew(&self, failed: Option<&Arc<Session>>) -> Renewal {
        if let Some(session) = self.usable(failed) {
            return Ok(session);
        }
        let examine = {
            let state = self.lock();
            match &state.refusal {
                Some((when, error)) if when.elapsed() < REFUSAL_KEPT => {
                    return Err(error.clone());
                }
                _ => !state.examined,
            }
        };
        let renewal = self.log_in(failed.is_some(), examine).await.map(Arc::new);
        let mut state = self.lock();
        match &renewal {
            Ok(session) => {
                let now = Instant::now();
                let seconds = session
                    .times
                    .as_ref()
                    .map(|times| (times.end - now).as_secs());
                tracing::debug!(seconds, "a new token");
                state.session = Some(session.clone());
                state.refusal = None;
                state.early = Early {
                    pause: None,
                    ..state.early
                };
            }
            Err(error) if error.kind == ErrorKind::Denied => {
                state.examined = true;
                state.refusal = Some((Instant::now(), error.clone()));
            }
            Err(_) => {}
        }
        renewal
    }

    /// `again`: a token was had before. `examine`: find out what is wrong with
    /// credentials that are refused.
    async fn log_in(&self, again: bool, examine: bool) -> Result<Session, StoreError> {
        let auth = &self.credentials.auth;
        let session = match auth {
            Auth::V1 {
                auth_url,
                username,
                password,
            } => {
                let conversation = self.conversation("GET", auth_url);
                v1::log_in(&conversation, username, password).await?
            }
            Auth::Token { storage_url, token } => {
                if again {
                    return Err(token_refused(storage_url));
                }
                return Ok(Session::new(storage_url, header(token.expose())?, None));
            }
            Auth::Password { auth_url, .. } | Auth::ApplicationCredential { auth_url, .. } => {
                let url = keystone::base(auth_url);
                let conversation = self.conversation("POST", &url);
                keystone::log_in(&conversation, &self.credentials, examine).await?
            }
        };
        let encrypted = |url: &str| url.to_ascii_lowercase().starts_with("https:");
        if encrypted(auth.url()) && !encrypted(&session.storage_url) {
            tracing::warn!(
                "{}: the storage URL is not encrypted (http): the token and all data can be read on the network",
                shown(auth.url())
            );
        }
        Ok(session)
    }

    fn conversation<'a>(
        &'a self,
        operation: &'static str,
        url: &'a str,
    ) -> conversation::Conversation<'a> {
        conversation::Conversation {
            client: &self.client,
            timeout: self.timeouts.read,
            operation,
            url,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of an early renewal, also of one that is dropped with its runtime.
struct EarlyEnd<'a>(&'a Account);

impl EarlyEnd<'_> {
    fn with(self, session: &Session, renewed: &Renewal) {
        let Err(error) = renewed else { return };
        let now = Instant::now();
        let left = session.times.as_ref().map_or(Duration::ZERO, |times| {
            times.end.saturating_duration_since(now)
        });
        let pause = {
            let early = &mut self.0.lock().early;
            let pause = early.pause.map_or(FIRST_PAUSE, |(_, last)| last * 2);
            let pause = pause.min(LAST_PAUSE);
            early.pause = Some((now + pause, pause));
            pause
        };
        tracing::warn!(
            "{error}: no new token; the one in use holds for {} s, asking again in {} s{}",
            left.as_secs(),
            pause.as_secs(),
            error
                .hint
                .as_ref()
                .filter(|_| error.is_permanent())
                .map(|hint| format!("; {hint}"))
                .unwrap_or_default()
        );
    }
}

impl Drop for EarlyEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().early.under_way = false;
    }
}

fn token_refused(storage_url: &str) -> StoreError {
    StoreError::new(
        ErrorKind::Denied,
        "open",
        shown(storage_url),
        "the token was refused: it has expired, was revoked, or is for another account",
    )
    .hint("a ready token cannot be renewed: write a new one, or credentials to get one with")
}

fn check(credentials: &Credentials) -> Result<(), StoreError> {
    let auth = &credentials.auth;
    plain_url(auth.url()).map_err(|()| {
        StoreError::new(
            ErrorKind::Invalid,
            "open",
            shown(auth.url()),
            "it must be an http or https URL without a user part or a query",
        )
    })?;
    match auth {
        Auth::V1 {
            username, password, ..
        } => {
            header(username)?;
            header(password.expose())?;
        }
        Auth::Token { token, .. } => {
            header(token.expose())?;
        }
        // These go in a body.
        Auth::Password { .. } | Auth::ApplicationCredential { .. } => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let credentials = Credentials::v1("http://u:hunter2@h/v1", "a:u", "hunter2");
        assert!(!format!("{credentials:?} {:?}", credentials.auth).contains("hunter2"));
        let error = Account::new(credentials, Timeouts::default()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn a_password_that_no_header_can_carry_is_refused_unseen() {
        let credentials = Credentials::v1("http://h/v1", "a:u", "hunter2\r\nX-Evil: 1");
        let error = Account::new(credentials, Timeouts::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn equal_credentials_share_an_account() {
        let open = |key: &str| {
            let credentials = Credentials::v1("http://shared/v1", "a:u", key);
            Account::shared(credentials, Timeouts::default()).unwrap()
        };
        let (one, other) = (open("one"), open("other"));
        assert!(Arc::ptr_eq(&one, &open("one")));
        assert!(!Arc::ptr_eq(&one, &other));
    }
}
