//! When `SwiftStore` asks for a token: once, early, and never so that a failing
//! authentication takes away a token that works.

#[path = "support/http_server.rs"]
mod http_server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_server::{Server, TOKEN, reply};
use swiftnbd::credentials::{Auth, Credentials, Secret};
use swiftnbd::store::swift::{Account, SwiftStore, Timeouts};
use swiftnbd::store::{ErrorKind, ObjectStore, StoreError};
use tokio::time::{sleep, timeout};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// How long the server's tokens hold.
const LIFE: Duration = Duration::from_secs(12);
/// When there must be a new one.
const DUE: Duration = Duration::from_millis(8100);

/// An authentication whose tokens hold for [`LIFE`], and a Swift that knows them
/// all. `status`: what the authentication answers; 200: a token.
struct Tokens {
    server: Server,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
}

impl Tokens {
    async fn start() -> Tokens {
        let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (answer, count) = (status.clone(), asked.clone());
        let server = Server::start(move |seen| {
            if seen.path != "/auth/v1.0" {
                return None;
            }
            let number = count.fetch_add(1, SeqCst) + 1;
            let token = format!("{TOKEN}{number}");
            let url = format!("http://{}/v1/AUTH_test", seen.header("host")?);
            let life = LIFE.as_secs().to_string();
            let headers = [
                ("X-Auth-Token", &*token),
                ("X-Storage-Url", &*url),
                ("X-Auth-Token-Expires", &*life),
            ];
            Some(match answer.load(SeqCst) {
                200 => reply(200, &headers, b""),
                status => reply(status, &[], b""),
            })
        })
        .await;
        Tokens {
            server,
            status,
            asked,
        }
    }

    fn store(&self) -> SwiftStore {
        let credentials = Credentials::v1(self.server.auth_url(), "a:u", "hunter2");
        let account = Account::new(credentials, Timeouts::default()).unwrap();
        SwiftStore::in_account(account, "box", 1 << 20).unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    /// The tokens of the requests that came for objects.
    fn used(&self) -> Vec<String> {
        let seen = self.server.seen.lock().unwrap();
        seen.iter()
            .filter(|seen| seen.path.contains("/box/"))
            .map(|seen| seen.header("x-auth-token").unwrap().replace(TOKEN, ""))
            .collect()
    }
}

async fn put(store: &SwiftStore) -> Result<(), StoreError> {
    store.put("a", Bytes::from_static(b"a")).await
}

/// Waits until it holds; panics when that takes too long.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let done = timeout(PATIENCE, wait).await;
    done.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

async fn many(store: &SwiftStore) {
    for result in join_all((0..32).map(|_| put(store))).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn a_token_is_replaced_before_it_ends_by_one_request() {
    let tokens = Tokens::start().await;
    let store = tokens.store();
    many(&store).await;
    assert_eq!(tokens.asked(), 1);
    sleep(DUE).await;
    // All are sent with what there is; the new token comes beside.
    many(&store).await;
    until("a new token", async || tokens.asked() == 2).await;
    until("its use", async || {
        put(&store).await.unwrap();
        tokens.used().last().unwrap() == "2"
    })
    .await;
    assert_eq!(tokens.asked(), 2);
}

#[tokio::test]
async fn a_token_works_to_its_end_without_the_authentication() {
    let tokens = Tokens::start().await;
    let store = tokens.store();
    put(&store).await.unwrap();
    tokens.status.store(503, SeqCst);
    sleep(DUE).await;
    many(&store).await;
    until("an attempt", async || tokens.asked() > 1).await;
    many(&store).await;
    assert!(tokens.used().iter().all(|token| token == "1"));
    assert!(tokens.asked() < 5, "{} requests", tokens.asked());

    sleep(LIFE).await;
    let error = put(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    tokens.status.store(200, SeqCst);
    put(&store).await.unwrap();
}

#[tokio::test]
async fn refused_credentials_do_not_end_a_token_that_works() {
    let tokens = Tokens::start().await;
    let store = tokens.store();
    put(&store).await.unwrap();
    tokens.status.store(401, SeqCst);
    sleep(DUE).await;
    many(&store).await;
    until("an attempt", async || tokens.asked() > 1).await;
    many(&store).await;
    sleep(LIFE).await;
    let error = put(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn containers_of_an_account_share_its_token() {
    let tokens = Tokens::start().await;
    let open = |container| {
        let credentials = Credentials::v1(tokens.server.auth_url(), "a:u", "hunter2");
        let account = Account::shared(credentials, Timeouts::default()).unwrap();
        SwiftStore::in_account(account, container, 1 << 20).unwrap()
    };
    let (one, other) = (open("box"), open("other"));
    put(&one).await.unwrap();
    put(&other).await.unwrap();
    assert_eq!(tokens.asked(), 1);
    // One of them gets other credentials; that is not the other one's matter.
    let credentials = Credentials::v1(tokens.server.auth_url(), "a:u", "another");
    one.set_credentials(credentials).unwrap();
    put(&one).await.unwrap();
    assert_eq!(tokens.asked(), 2);
    put(&other).await.unwrap();
    assert_eq!(tokens.asked(), 2);
}

#[tokio::test]
async fn a_ready_token_is_used_and_cannot_be_renewed() {
    let server = Server::start(|seen| {
        (seen.header("x-auth-token") != Some("good")).then(|| reply(401, &[], b""))
    })
    .await;
    let store = |token: &str| {
        let auth = Auth::Token {
            storage_url: format!("http://{}/v1/AUTH_test/", server.address),
            token: Secret::new(token),
        };
        let account = Account::new(Credentials::new(auth), Timeouts::default()).unwrap();
        SwiftStore::in_account(account, "box", 1 << 20).unwrap()
    };
    put(&store("good")).await.unwrap();
    let error = put(&store("hunter2")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.hint.as_ref().unwrap().contains("cannot be renewed"));
    assert!(!format!("{error:?}").contains("hunter2"));
    assert_eq!(server.renewals(), 0);
}

/// Other credentials may be for another account: an open volume does not move
/// there.
#[tokio::test]
async fn an_open_container_stays_in_its_account() {
    let server = Server::start(|seen| {
        let account = seen.header("x-auth-user")?;
        let url = format!("http://{}/v1/AUTH_{account}", seen.header("host")?);
        let headers = [("X-Auth-Token", TOKEN), ("X-Storage-Url", &url)];
        (seen.path == "/auth/v1.0").then(|| reply(200, &headers, b""))
    })
    .await;
    let credentials = |user| Credentials::v1(server.auth_url(), user, "hunter2");
    let account = Account::new(credentials("one"), Timeouts::default()).unwrap();
    let store = SwiftStore::in_account(account, "box", 1 << 20).unwrap();
    put(&store).await.unwrap();
    store.set_credentials(credentials("two")).unwrap();
    let error = put(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    let text = error.to_string();
    assert!(text.contains("AUTH_two, not for AUTH_one"), "{text}");
    store.set_credentials(credentials("one")).unwrap();
    put(&store).await.unwrap();
    let seen = server.seen.lock().unwrap();
    assert!(!seen.iter().any(|seen| seen.path.contains("AUTH_two")));
}
