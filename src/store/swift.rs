//! A container in OpenStack Swift.
//!
//! Knows: HTTP, Swift's statuses and headers, tokens. Does not know: volumes,
//! retrying (except once, after a token was refused).
//!
//! # What an answer proves
//! A PUT succeeded if it was answered 201 and with nothing else: with 202 Swift
//! says that it holds something newer and stored nothing. A body is right if
//! its length and its MD5 are those that its head promises; Swift may send the
//! right ETag with no bytes at all. Every object is read with `X-Newest`, which
//! asks all replicas that can be reached; a part of one is not, since it is asked
//! for only of objects that are never overwritten. A part has no checksum: its
//! place (Content-Range) and its length are what can be checked.
//!
//! A PUT with `If-None-Match: *` is answered 412 if any replica that was asked
//! has such an object. The replicas look when the request arrives and store when
//! its body has come: of two that race both may be answered 201, and the one with
//! the newer timestamp stays.
//!
//! # What a 404 proves
//! By itself, nothing. A proxy that cannot find the container's record (its
//! servers or the account's are down, or it remembers for some seconds that
//! they were) looks for an object under the wrong storage policy, and answers a
//! DELETE with 404 without having sent it anywhere. Taken for absence, that
//! would be zeros in place of data. So a 404 is followed by a HEAD of the
//! container, which asks its servers and renews what the proxies remember, and
//! then the request is made again: only that second 404 counts. A GET needs no
//! second one where the policy is `Policy-0`, the one that is looked under by
//! default. The HEAD must begin after the 404 came, so its result is not kept;
//! those who wait share it, and reading a sparse volume costs one HEAD at a
//! time, not one for each absent object.
//!
//! # How long a write lingers
//! Swift orders the writes of a name by a timestamp that the proxy gives when
//! it reads the request. A write without an answer may still sit in a balancer
//! or in a stopped proxy, get its timestamp later than a write that was sent
//! after it and answered, and replace it. So it lingers for
//! [`REQUEST_LIFETIME`]. A write answered with 5xx has its timestamp, and may
//! be kept by some replica; it can only win over a later one by the difference
//! of two proxies' clocks, [`CLOCK_SKEW`]. 502 and 504 are a gateway's answers
//! and say nothing of Swift: they count as none. A refused connection and a
//! refusal (4xx, 202) leave nothing behind.

mod answer;
mod auth;
mod bulk;
mod http;
mod object;
mod request;
mod rounds;
mod tls;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{DATE, HeaderMap};
use reqwest::{Method, Response};

pub use self::auth::Account;
pub use self::http::Timeouts;
use self::request::Request;
use self::rounds::Lanes;
use super::{Age, ErrorKind, Listed, Metadata, ObjectStore, StoreError, check};
use crate::credentials::Credentials;
use crate::metrics::{RequestCount, Requests};

/// How long a request without an answer may still take effect. Nothing between here and
/// Swift's proxies may hold a whole request for longer before it passes it on.
pub const REQUEST_LIFETIME: Duration = Duration::from_secs(30);
/// The most by which the clocks of two proxies of one Swift may differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// 10,000 names of usual length take 2 MiB.
const MAX_LISTING_BYTES: u64 = 16 << 20;
/// The policy of objects whose container has none, and the name that only it
/// may have.
const LEGACY_POLICY: &str = "Policy-0";

/// One container in a Swift account.
#[derive(Clone)]
pub struct SwiftStore {
    /// All clones change to another one together.
    account: Arc<RwLock<Arc<Account>>>,
    /// The account's name, from the first token on.
    pin: Arc<OnceLock<String>>,
    container: Arc<str>,
    max_object: u64,
    /// Whether the container is there, and whether a 404 for an object in it
    /// was looked for in the right place.
    presence: Arc<Lanes<Result<Certainty, StoreError>>>,
    /// Whether this Swift was seen not to know bulk deletes.
    no_bulk: Arc<AtomicBool>,
    /// The latest Date of all answers, in seconds since 1970; 0: none came yet.
    time: Arc<AtomicU64>,
    /// What was sent to this container.
    sent: Arc<Requests>,
}

/// What a container's HEAD says of a GET's 404 that came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    /// The object is absent.
    Sure,
    /// The proxy may have looked under the wrong policy.
    AskAgain,
}

impl fmt::Debug for SwiftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwiftStore")
            .field("container", &self.container)
            .field("account", &self.account())
            .finish_non_exhaustive()
    }
}

impl SwiftStore {
    /// A container in an account of its own. Nothing is sent yet. Objects of
    /// more than `max_object` bytes are neither stored nor read.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the names or addresses cannot be used.
    pub fn new(
        credentials: Credentials,
        container: &str,
        max_object: u64,
    ) -> Result<SwiftStore, StoreError> {
        let account = Account::new(credentials, Timeouts::default())?;
        SwiftStore::in_account(account, container, max_object)
    }

    /// A container in an account that others use too.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the container's name cannot be used.
    pub fn in_account(
        account: Arc<Account>,
        container: &str,
        max_object: u64,
    ) -> Result<SwiftStore, StoreError> {
        check::container(container)?;
        Ok(SwiftStore {
            account: Arc::new(RwLock::new(account)),
            pin: Arc::default(),
            container: container.into(),
            max_object,
            presence: Arc::new(Lanes::new()),
            no_bulk: Arc::default(),
            time: Arc::default(),
            sent: Arc::default(),
        })
    }

    /// The account that requests are sent with.
    fn account(&self) -> Arc<Account> {
        let account = self.account.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&account)
    }

    /// Uses these credentials from the next request on, also if they are the
    /// same and were refused a moment ago.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if they cannot even be sent; the old ones stay.
    pub fn set_credentials(&self, credentials: Credentials) -> Result<(), StoreError> {
        let timeouts = *self.account().timeouts();
        let account = Account::shared(credentials, timeouts)?;
        account.forget_refusal();
        *self.account.write().unwrap_or_else(PoisonError::into_inner) = account;
        Ok(())
    }

    async fn send(&self, request: &Request) -> Result<Response, StoreError> {
        let reply = self.account().send(request, &self.pin, &self.sent).await?;
        if let Some(date) = answer::date(reply.headers(), DATE) {
            self.time.fetch_max(date, Ordering::Relaxed);
        }
        Ok(reply)
    }

    fn request(&self, method: Method, query: &str) -> Request {
        Request {
            method,
            path: request::encode_path(&self.container) + query,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            target: self.container.to_string(),
        }
    }

    fn object(&self, method: Method, name: &str) -> Request {
        let mut request = self.request(method, "/");
        request.path += &request::encode_path(name);
        request.target = check::target(&self.container, name);
        request
    }

    /// Asks for the container; there is no error if it is there.
    async fn confirm(&self) -> Result<Certainty, StoreError> {
        self.presence
            .after_now(|| async {
                let reply = self.head().await?;
                let policy = reply.headers().get("x-storage-policy");
                Ok(match policy.is_some_and(|name| name == LEGACY_POLICY) {
                    true => Certainty::Sure,
                    false => Certainty::AskAgain,
                })
            })
            .await
    }

    async fn head(&self) -> Result<Response, StoreError> {
        let request = self.request(Method::HEAD, "");
        let reply = self.send(&request).await?;
        match reply.status().as_u16() {
            200 | 204 => Ok(reply),
            404 => Err(no_container(&request)),
            _ => Err(request.refused(&reply)),
        }
    }

    /// Believes a 404 only once the container was asked for.
    async fn confirmed<T, F>(&self, once: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let answer = once().await;
        match &answer {
            Err(error) if error.kind == ErrorKind::NotFound => {}
            _ => return answer,
        }
        match self.confirm().await? {
            Certainty::Sure => answer,
            Certainty::AskAgain => once().await,
        }
    }

    /// Sends a write of an object. `Ok` is an answer with `success`.
    async fn write(&self, request: &Request, success: u16) -> Result<Response, StoreError> {
        let reply = self.send(request).await?;
        if reply.status() == success {
            return Ok(reply);
        }
        Err(finish(request, reply).await)
    }

    /// Sends a write of the container itself.
    /// Its status is one of these.
    async fn change(&self, request: &Request, success: &[u16]) -> Result<u16, StoreError> {
        let reply = self.send(request).await?;
        let status = reply.status().as_u16();
        let error = match status {
            404 => no_container(request),
            409 => StoreError {
                kind: ErrorKind::Invalid,
                ..request.refused(&reply)
            },
            _ => request.refused(&reply),
        };
        http::drain(reply).await;
        match success.contains(&status) {
            true => Ok(status),
            false => Err(error),
        }
    }
}

/// The error that an answer means, its connection left fit for use.
async fn finish(request: &Request, reply: Response) -> StoreError {
    let error = request.refused(&reply);
    http::drain(reply).await;
    error
}

fn no_container(request: &Request) -> StoreError {
    request.error(
        ErrorKind::NoContainer,
        "404: the container does not exist (or Swift's account servers are down)",
    )
}

#[async_trait]
impl ObjectStore for SwiftStore {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        check::name("GET", &self.container, name)?;
        self.confirmed(|| self.get_once(name)).await
    }

    async fn md5(&self, name: &str) -> Result<[u8; 16], StoreError> {
        check::name("HEAD", &self.container, name)?;
        self.confirmed(|| self.md5_once(name)).await
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        check::range(&self.container, name, offset, length, self.max_object)?;
        self.confirmed(|| self.get_range_once(name, offset, length))
            .await
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        self.upload(name, body, false).await.map(drop)
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        self.upload(name, body, true).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        check::name("DELETE", &self.container, name)?;
        let request = self.object(Method::DELETE, name);
        for last in [false, true] {
            match self.write(&request, 204).await {
                Ok(reply) => {
                    http::drain(reply).await;
                    return Ok(());
                }
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                Err(_) if last => return Ok(()),
                Err(_) => self.confirm().await?,
            };
        }
        Ok(())
    }

    async fn delete_many(&self, names: &[String]) -> Result<(), StoreError> {
        check::names(&self.container, names)?;
        self.delete_together(names).await
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        check::limit(&self.container, limit)?;
        let mut query = format!("?format=json&limit={limit}");
        for (key, bound) in [("marker", after), ("end_marker", before)] {
            if !bound.is_empty() {
                query += &format!("&{key}={}", request::encode_query(bound));
            }
        }
        let request = self.request(Method::GET, &query);
        let reply = self.send(&request).await?;
        match reply.status().as_u16() {
            200 => {}
            204 => return Ok(Vec::new()),
            404 => {
                http::drain(reply).await;
                return Err(no_container(&request));
            }
            _ => return Err(finish(&request, reply).await),
        }
        let timeouts = *self.account().timeouts();
        let received = http::receive(&request, reply, MAX_LISTING_BYTES, &timeouts).await?;
        answer::listing(&received.body, after, before, limit)
            .map_err(|fault| request.error(ErrorKind::Invalid, fault))
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        let reply = self.head().await?;
        Ok(answer::metadata(reply.headers()))
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        check::metadata(&self.container, changes)?;
        let mut request = self.request(Method::POST, "");
        request.headers = answer::metadata_headers(changes)
            .ok_or_else(|| request.error(ErrorKind::Invalid, "a key or value is not a header"))?;
        self.change(&request, &[202, 204]).await.map(drop)
    }

    async fn create(&self) -> Result<bool, StoreError> {
        let request = self.request(Method::PUT, "");
        let status = self.change(&request, &[201, 202]).await?;
        Ok(status == 201)
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.remove_container().await
    }

    /// Nothing to wait for: who repeats after failures (see
    /// [`retry`](super::retry)) knows what lingers.
    async fn settle(&self) {}

    fn linger(&self) -> Duration {
        REQUEST_LIFETIME
    }

    fn requests(&self) -> Vec<RequestCount> {
        self.sent.counts()
    }

    fn time(&self) -> Option<Duration> {
        match self.time.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }

    async fn age(&self, name: &str) -> Result<Option<Age>, StoreError> {
        check::name("HEAD", &self.container, name)?;
        self.confirmed(|| self.age_once(name)).await
    }
}
