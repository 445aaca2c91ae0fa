//! What `SwiftStore` makes of answers that a healthy Swift rarely gives: each
//! has its kind, none counts as a success, none shows a secret.

#[path = "support/http_server.rs"]
mod http_server;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_server::{Answer, Seen, Server, TOKEN, bytes_of, reply};
use swiftnbd::credentials::Credentials;
use swiftnbd::store::swift::{Account, CLOCK_SKEW, REQUEST_LIFETIME, SwiftStore, Timeouts};
use swiftnbd::store::{ErrorKind, Metadata, ObjectStore, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PASSWORD: &str = "hunter2-open";
const MAX_OBJECT: u64 = 1 << 20;
const BODY: &[u8] = b"a body";
const BODY_MD5: &str = "75fd989981509958777cdfcdc66e21b5";
const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
const ZERO: Duration = Duration::ZERO;

fn credentials(auth_url: String) -> Credentials {
    Credentials::v1(auth_url, "test:tester", PASSWORD)
}

fn store(auth_url: String) -> SwiftStore {
    store_of(auth_url, MAX_OBJECT)
}

fn store_of(auth_url: String, max_object: u64) -> SwiftStore {
    let timeouts = Timeouts {
        connect: Duration::from_secs(5),
        read: Duration::from_secs(1),
        write: Duration::from_millis(1500),
    };
    let account = Account::new(credentials(auth_url), timeouts).unwrap();
    SwiftStore::in_account(account, "box", max_object).unwrap()
}

/// A server that answers requests for objects like this, and a store on it.
async fn with_objects(
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (Server, SwiftStore) {
    let server = Server::start(move |seen| seen.path.contains("/box/").then(|| answer(seen))).await;
    let store = store(server.auth_url());
    (server, store)
}

/// A server that gives one answer to requests that begin like this.
async fn with_answer(
    method: &'static str,
    path: &'static str,
    answer: impl Fn() -> Answer + Send + Sync + 'static,
) -> (Server, SwiftStore) {
    let server = Server::start(move |seen| {
        (seen.method == method && seen.path.starts_with(path)).then(&answer)
    })
    .await;
    let store = store(server.auth_url());
    (server, store)
}

/// No text that is made of this error has a secret in it.
fn checked(error: StoreError) -> StoreError {
    let text = format!("{error} {error:?}");
    for secret in [PASSWORD, TOKEN, "user-part"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert!(!text.contains("?"), "a query in {text}");
    error
}

async fn put(store: &SwiftStore) -> Result<(), StoreError> {
    let result = store.put("a/b", Bytes::from_static(BODY)).await;
    result.map_err(checked)
}

async fn get(store: &SwiftStore) -> Result<Bytes, StoreError> {
    store.get("a/b").await.map_err(checked)
}

async fn delete(store: &SwiftStore) -> Result<(), StoreError> {
    store.delete("a/b").await.map_err(checked)
}

#[tokio::test]
async fn a_healthy_exchange_is_what_swift_expects() {
    let (server, store) = with_objects(|seen| match seen.method.as_str() {
        "PUT" => reply(201, &[("Etag", &format!("\"{BODY_MD5}\""))], b""),
        _ => reply(200, &[("Etag", &BODY_MD5.to_uppercase())], BODY),
    })
    .await;
    put(&store).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), BODY);
    let seen = server.seen.lock().unwrap().clone();
    let (auth, put, get) = (&seen[0], &seen[1], &seen[2]);
    assert_eq!(auth.header("x-auth-user"), Some("test:tester"));
    assert_eq!(auth.header("x-auth-key"), Some(PASSWORD));
    assert_eq!(put.path, "/v1/AUTH_test/box/a/b");
    assert_eq!(put.header("x-auth-token"), Some(&*format!("{TOKEN}1")));
    assert_eq!(put.header("etag"), Some(BODY_MD5));
    assert_eq!(put.header("content-length"), Some("6"));
    assert_eq!(put.header("content-type"), Some("application/octet-stream"));
    assert_eq!(put.body, BODY);
    assert_eq!(get.header("x-newest"), Some("true"));
    assert_eq!(server.renewals(), 1);
}

#[tokio::test]
async fn only_201_stores() {
    use ErrorKind::*;
    for (status, kind, lingers) in [
        (200, Invalid, REQUEST_LIFETIME),
        (202, Superseded, ZERO),
        (204, Invalid, REQUEST_LIFETIME),
        (302, Invalid, ZERO),
        (400, Invalid, ZERO),
        (403, Denied, ZERO),
        (409, Superseded, ZERO),
        (411, Invalid, ZERO),
        (413, Quota, ZERO),
        (422, Corrupt, ZERO),
        (429, Unavailable, ZERO),
        (498, Unavailable, ZERO),
        (499, Unavailable, ZERO),
        (500, Unavailable, CLOCK_SKEW),
        (503, Unavailable, CLOCK_SKEW),
        (504, Unavailable, REQUEST_LIFETIME),
        (507, Unavailable, CLOCK_SKEW),
    ] {
        let (_server, store) = with_objects(move |_| {
            let headers = [("X-Trans-Id", "tx0ops-1"), ("Retry-After", "7")];
            reply(status, &headers, b"")
        })
        .await;
        let error = put(&store).await.unwrap_err();
        assert_eq!((error.kind, error.lingers), (kind, lingers), "{status}");
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("PUT box/a/b: {status}")),
            "{text}"
        );
        assert!(text.ends_with("(transaction tx0ops-1)"), "{text}");
        if status != 204 {
            let error = delete(&store).await.unwrap_err();
            assert_eq!((error.kind, error.lingers), (kind, lingers), "{status}");
        }
        let error = get(&store).await.unwrap_err();
        assert_eq!(error.lingers, ZERO, "{status}");
    }
}

#[tokio::test]
async fn a_201_for_other_bytes_is_no_success() {
    let (_server, store) = with_objects(|_| reply(201, &[("Etag", EMPTY_MD5)], b"")).await;
    let error = put(&store).await.unwrap_err();
    assert_eq!(
        (error.kind, error.lingers),
        (ErrorKind::Corrupt, CLOCK_SKEW)
    );
}

#[tokio::test]
async fn nothing_is_sent_that_no_store_takes() {
    let (server, store) = with_objects(|_| reply(201, &[], b"")).await;
    let big = Bytes::from(vec![0; MAX_OBJECT as usize + 1]);
    for (name, body) in [
        ("a", Bytes::new()),
        ("a", big),
        ("a/../b", Bytes::from("x")),
    ] {
        let error = store.put(name, body).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
    assert_eq!(server.count("PUT"), 0);
}

#[tokio::test]
async fn bodies_that_are_not_what_was_stored() {
    use ErrorKind::*;
    type Make = fn() -> Answer;
    let cases: [(&str, ErrorKind, Make); 9] = [
        ("empty with the right ETag", Corrupt, || {
            reply(200, &[("Etag", BODY_MD5)], b"")
        }),
        ("wrong ETag", Corrupt, || {
            reply(200, &[("Etag", EMPTY_MD5)], BODY)
        }),
        ("no ETag", Corrupt, || reply(200, &[], BODY)),
        ("an ETag that is no MD5", Corrupt, || {
            reply(200, &[("Etag", "\"abc-2\"")], BODY)
        }),
        ("announced too long", Corrupt, || {
            let headers = [("Etag", BODY_MD5), ("Content-Length", "1000000000000")];
            reply(200, &headers, BODY)
        }),
        ("too long without a length", Corrupt, || {
            let mut bytes = bytes_of(
                200,
                &[("Etag", BODY_MD5), ("Transfer-Encoding", "chunked")],
                b"200000\r\n",
            );
            bytes.extend(vec![0; 0x20_0000]);
            bytes.extend(b"\r\n0\r\n\r\n");
            Answer::Send(bytes)
        }),
        ("closed midway", Unavailable, || {
            let headers = [("Etag", BODY_MD5), ("Content-Length", "6")];
            Answer::SendAndClose(bytes_of(200, &headers, b"a b"))
        }),
        ("stopped midway", Unavailable, || {
            let headers = [("Etag", BODY_MD5), ("Content-Length", "6")];
            reply(200, &headers, b"a b")
        }),
        ("a part only", Invalid, || {
            reply(206, &[("Etag", BODY_MD5)], BODY)
        }),
    ];
    for (what, kind, answer) in cases {
        let (_server, store) = with_objects(move |_| answer()).await;
        assert_eq!(get(&store).await.unwrap_err().kind, kind, "{what}");
    }
}

/// Bytes 2 and 3 of [`BODY`].
const PART: (&str, &str) = ("Content-Range", "bytes 2-3/6");

#[tokio::test]
async fn a_part_is_asked_of_any_replica() {
    let (server, store) = with_objects(|_| reply(206, &[PART], b"bo")).await;
    assert_eq!(store.get_range("a/b", 2, 2).await.unwrap(), "bo");
    let seen = server.seen.lock().unwrap().clone();
    assert_eq!(seen[1].path, "/v1/AUTH_test/box/a/b");
    assert_eq!(seen[1].header("range"), Some("bytes=2-3"));
    assert_eq!(seen[1].header("x-newest"), None);
    let error = store.get_range("a/b", 0, MAX_OBJECT + 1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(server.count("GET"), 1);
}

#[tokio::test]
async fn parts_that_are_not_what_was_asked_for() {
    use ErrorKind::*;
    type Make = fn() -> Answer;
    let cases: [(&str, ErrorKind, Make); 12] = [
        ("empty", Corrupt, || reply(206, &[PART], b"")),
        ("too short", Corrupt, || reply(206, &[PART], b"b")),
        ("too long", Corrupt, || reply(206, &[PART], b"bod")),
        ("no place", Corrupt, || reply(206, &[], b"bo")),
        ("another place", Corrupt, || {
            reply(206, &[("Content-Range", "bytes 0-1/6")], b"a ")
        }),
        ("several parts", Corrupt, || {
            let headers = [("Content-Type", "multipart/byteranges; boundary=x")];
            reply(206, &headers, b"--x--")
        }),
        ("an end that is none", Corrupt, || {
            reply(416, &[("Content-Range", "bytes */6")], b"")
        }),
        ("an end without a length", Corrupt, || reply(416, &[], b"")),
        ("all of it", Invalid, || {
            reply(200, &[("Etag", BODY_MD5)], BODY)
        }),
        ("closed midway", Unavailable, || {
            let headers = [PART, ("Content-Length", "2")];
            Answer::SendAndClose(bytes_of(206, &headers, b"b"))
        }),
        ("stopped midway", Unavailable, || {
            reply(206, &[PART, ("Content-Length", "2")], b"b")
        }),
        ("overload", Unavailable, || reply(503, &[], b"")),
    ];
    for (what, kind, answer) in cases {
        let (_server, store) = with_objects(move |_| answer()).await;
        let error = store.get_range("a/b", 2, 2).await.unwrap_err();
        assert_eq!(checked(error).kind, kind, "{what}");
    }
}

#[tokio::test]
async fn creating_succeeds_only_with_201() {
    let (server, store) = with_objects(|seen| match seen.path.ends_with("/a") {
        true => reply(201, &[("Etag", BODY_MD5)], b""),
        false => reply(412, &[], b"<html></html>"),
    })
    .await;
    let body = Bytes::from_static(BODY);
    assert!(store.put_new("a", body.clone()).await.unwrap());
    assert!(!store.put_new("b", body.clone()).await.unwrap());
    // Without the condition that is no answer.
    let error = store.put("b", body.clone()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    let seen = server.seen.lock().unwrap().clone();
    let asked = seen[1..].iter().map(|seen| seen.header("if-none-match"));
    assert_eq!(asked.collect::<Vec<_>>(), [Some("*"), Some("*"), None]);
    assert_eq!(seen[1].header("etag"), Some(BODY_MD5));
    assert_eq!(seen[1].body, BODY);

    use ErrorKind::*;
    for (status, kind, lingers) in [
        (200, Invalid, REQUEST_LIFETIME),
        (202, Superseded, ZERO),
        (404, Unavailable, ZERO),
        (409, Superseded, ZERO),
        (422, Corrupt, ZERO),
        (503, Unavailable, CLOCK_SKEW),
        (504, Unavailable, REQUEST_LIFETIME),
    ] {
        let (_server, store) = with_objects(move |_| reply(status, &[], b"")).await;
        let error = store.put_new("a", body.clone()).await.unwrap_err();
        assert_eq!((error.kind, error.lingers), (kind, lingers), "{status}");
    }
}

#[tokio::test]
async fn no_answer_leaves_a_write_of_unknown_fate() {
    type Make = fn() -> Answer;
    let cases: [(&str, Make); 3] = [
        ("hangs", || Answer::Hang),
        ("closes", || Answer::SendAndClose(Vec::new())),
        ("garbage", || {
            Answer::SendAndClose(b"\0\x01garbage\r\n\r\n\xff".to_vec())
        }),
    ];
    for (what, answer) in cases {
        let (_server, store) = with_objects(move |_| answer()).await;
        let error = put(&store).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{what}");
        assert_eq!(error.lingers, REQUEST_LIFETIME, "{what}");
        assert_eq!(
            delete(&store).await.unwrap_err().lingers,
            REQUEST_LIFETIME,
            "{what}"
        );
        let error = get(&store).await.unwrap_err();
        assert_eq!((error.kind, error.lingers), (ErrorKind::Unavailable, ZERO));
    }
}

#[tokio::test]
async fn a_write_has_time_for_as_long_as_its_body_is_taken() {
    const MIB: u64 = 1 << 20;
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = slow.local_addr().unwrap();
    let server = Server::start(move |seen| {
        let url = format!("http://{address}/v1/AUTH_test");
        let headers = [("X-Auth-Token", TOKEN), ("X-Storage-Url", url.as_str())];
        (seen.path == "/auth/v1.0").then(|| reply(200, &headers, b""))
    })
    .await;
    let reader = tokio::spawn(async move {
        let (mut stream, _) = slow.accept().await.unwrap();
        let mut taken = 0;
        while taken < 48 * MIB {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut part = (&mut stream).take(MIB);
            taken += tokio::io::copy(&mut part, &mut tokio::io::sink())
                .await
                .unwrap();
        }
        stream.write_all(&bytes_of(201, &[], b"")).await.unwrap();
    });
    let began = tokio::time::Instant::now();
    let body = Bytes::from(vec![7; 48 * MIB as usize]);
    let store = store_of(server.auth_url(), 48 * MIB);
    store.put("large", body).await.unwrap();
    assert!(
        began.elapsed() > Duration::from_millis(1500),
        "the test is too fast to show it"
    );
    reader.await.unwrap();
}

#[tokio::test]
async fn a_refused_connection_leaves_nothing_behind() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let error = put(&store(format!("http://{closed}/auth/v1.0")))
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.lingers), (ErrorKind::Unreachable, ZERO));

    let server = Server::start(move |seen| {
        let url = format!("http://{closed}/v1/AUTH_test");
        let headers = [("X-Auth-Token", TOKEN), ("X-Storage-Url", url.as_str())];
        (seen.path == "/auth/v1.0").then(|| reply(200, &headers, b""))
    })
    .await;
    let error = put(&store(server.auth_url())).await.unwrap_err();
    assert_eq!((error.kind, error.lingers), (ErrorKind::Unreachable, ZERO));
}

#[tokio::test]
async fn a_token_is_renewed_once_however_many_wait() {
    let server = Server::start(|seen| {
        let old = seen.header("x-auth-token") == Some(&format!("{TOKEN}1"));
        (seen.path.contains("/box/") && old).then(|| reply(401, &[], b"<html></html>"))
    })
    .await;
    let store = store(server.auth_url());
    store.metadata().await.unwrap();
    assert_eq!(server.renewals(), 1);
    let names: Vec<String> = (0..16).map(|number| format!("o{number}")).collect();
    let puts = names
        .iter()
        .map(|name| store.put(name, Bytes::from_static(BODY)));
    for result in join_all(puts).await {
        result.unwrap();
    }
    assert_eq!(server.renewals(), 2);
}

#[tokio::test]
async fn a_token_that_is_always_refused_is_denied() {
    let (server, store) = with_objects(|_| reply(401, &[], b"")).await;
    for result in [put(&store).await, delete(&store).await] {
        let error = result.unwrap_err();
        assert_eq!((error.kind, error.lingers), (ErrorKind::Denied, ZERO));
    }
    assert_eq!(get(&store).await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(server.count("PUT"), 2, "one request and one more");
}

#[tokio::test]
async fn authentications_that_fail() {
    use ErrorKind::*;
    type Make = fn() -> Answer;
    let cases: [(&str, ErrorKind, Make); 11] = [
        ("401", Denied, || reply(401, &[], b"")),
        ("403", Denied, || reply(403, &[], b"")),
        ("404", Invalid, || reply(404, &[], b"")),
        ("301", Invalid, || {
            reply(301, &[("Location", "http://example.org/")], b"")
        }),
        ("503", Unavailable, || {
            reply(503, &[("Retry-After", "3")], b"")
        }),
        ("hang", Unavailable, || Answer::Hang),
        ("nothing in it", Invalid, || reply(200, &[], b"")),
        ("no URL", Invalid, || {
            reply(200, &[("X-Auth-Token", TOKEN)], b"")
        }),
        ("another scheme", Invalid, || {
            let url = ("X-Storage-Url", "ftp://host/v1");
            reply(200, &[("X-Auth-Token", TOKEN), url], b"")
        }),
        ("a user part", Invalid, || {
            let url = ("X-Storage-Url", "http://user-part:user-part@host/v1");
            reply(200, &[("X-Auth-Token", TOKEN), url], b"")
        }),
        ("garbage", Unavailable, || {
            Answer::SendAndClose(b"garbage".to_vec())
        }),
    ];
    for (what, kind, answer) in cases {
        let (_server, store) = with_answer("GET", "/auth", answer).await;
        let error = put(&store).await.unwrap_err();
        assert_eq!((error.kind, error.lingers), (kind, ZERO), "{what}");
        assert!(error.target.ends_with("/auth/v1.0"), "{}", error.target);
    }
}

#[tokio::test]
async fn refused_credentials_are_not_tried_again_at_once_but_new_ones_are() {
    let server = Server::start(|seen| {
        let wrong = seen.header("x-auth-key") == Some(PASSWORD);
        (seen.path == "/auth/v1.0" && wrong).then(|| reply(401, &[], b""))
    })
    .await;
    let store = store(server.auth_url());
    for _ in 0..5 {
        assert_eq!(put(&store).await.unwrap_err().kind, ErrorKind::Denied);
    }
    assert_eq!(server.seen.lock().unwrap().len(), 1);
    let mended = Credentials::v1(server.auth_url(), "test:tester", "mended");
    store.set_credentials(mended).unwrap();
    put(&store).await.unwrap();
}

#[tokio::test]
async fn a_404_is_absence_only_if_the_container_is_there() {
    let cases = [
        (204, ErrorKind::NotFound, ErrorKind::Unavailable),
        (404, ErrorKind::NoContainer, ErrorKind::NoContainer),
        (503, ErrorKind::Unavailable, ErrorKind::Unavailable),
        (403, ErrorKind::Denied, ErrorKind::Denied),
    ];
    for (status, on_get, on_put) in cases {
        let server = Server::start(move |seen| match seen.path.contains("/box/") {
            true => Some(reply(404, &[], b"<html></html>")),
            false if seen.method == "HEAD" => Some(reply(status, &[], b"")),
            false => None,
        })
        .await;
        let store = store(server.auth_url());
        assert_eq!(get(&store).await.unwrap_err().kind, on_get, "{status}");
        let part = store.get_range("a/b", 2, 2).await.map_err(checked);
        assert_eq!(part.unwrap_err().kind, on_get, "{status}");
        assert_eq!(put(&store).await.unwrap_err().kind, on_put, "{status}");
        let deleted = delete(&store).await.map_err(|error| error.kind);
        match status {
            204 => assert_eq!(deleted, Ok(())),
            _ => assert_eq!(deleted, Err(on_get), "{status}"),
        }
    }
}

#[tokio::test]
async fn a_404_from_a_proxy_that_lost_the_container_is_asked_again() {
    // The first request for each object is looked for in the wrong place.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = Server::start(move |seen| {
        if !seen.path.contains("/box/") {
            let gold = [("X-Storage-Policy", "gold")];
            return (seen.method == "HEAD").then(|| reply(204, &gold, b""));
        }
        Some(
            match (count.fetch_add(1, Ordering::SeqCst), &*seen.method) {
                (0 | 2, _) => reply(404, &[], b""),
                (_, "GET") => reply(200, &[("Etag", BODY_MD5)], BODY),
                _ => reply(204, &[], b""),
            },
        )
    })
    .await;
    let store = store(server.auth_url());
    assert_eq!(get(&store).await.unwrap(), BODY);
    delete(&store).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    assert_eq!(server.count("DELETE"), 2);
}

#[tokio::test]
async fn many_absent_objects_share_one_question_for_the_container() {
    let (server, store) = with_objects(|_| reply(404, &[], b"")).await;
    store.metadata().await.unwrap();
    let names: Vec<String> = (0..64).map(|number| format!("o{number}")).collect();
    for result in join_all(names.iter().map(|name| store.get(name))).await {
        assert_eq!(result.unwrap_err().kind, ErrorKind::NotFound);
    }
    let heads = server.count("HEAD");
    assert!(heads < 33, "{heads} HEADs for 64 absent objects");
    assert_eq!(server.count("GET"), 64);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start(|_| None).await;
    let location = format!("http://{}/v1/AUTH_test/box/a/b", other.address);
    let (_server, store) = with_objects(move |_| reply(307, &[("Location", &location)], b"")).await;
    assert_eq!(put(&store).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(get(&store).await.unwrap_err().kind, ErrorKind::Invalid);
    assert!(other.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn listings_that_are_none() {
    type Make = fn() -> Answer;
    let cases: [(&str, ErrorKind, Make); 6] = [
        ("no JSON", ErrorKind::Invalid, || reply(200, &[], b"a\nb\n")),
        ("out of bounds", ErrorKind::Invalid, || {
            reply(200, &[], br#"[{"name":"a","bytes":1}]"#)
        }),
        ("too many", ErrorKind::Invalid, || {
            let rows = br#"[{"name":"c","bytes":1},{"name":"d","bytes":1},{"name":"e","bytes":1}]"#;
            reply(200, &[], rows)
        }),
        ("too long", ErrorKind::Corrupt, || {
            reply(200, &[("Content-Length", "99999999")], b"[")
        }),
        ("no container", ErrorKind::NoContainer, || {
            reply(404, &[], b"")
        }),
        ("overload", ErrorKind::Unavailable, || reply(503, &[], b"")),
    ];
    for (what, kind, answer) in cases {
        let (server, store) = with_answer("GET", "/v1/AUTH_test/box?", answer).await;
        let error = store
            .list("b &", "x/", 2)
            .await
            .map_err(checked)
            .unwrap_err();
        assert_eq!(error.kind, kind, "{what}");
        let seen = server.seen.lock().unwrap().clone();
        assert_eq!(
            seen[1].path,
            "/v1/AUTH_test/box?format=json&limit=2&marker=b%20%26&end_marker=x%2F"
        );
    }
    let (_server, store) = with_answer("GET", "/v1/", || reply(204, &[], b"")).await;
    assert_eq!(store.list("", "", 10).await.unwrap(), []);
}

#[tokio::test]
async fn metadata_is_sent_and_read_as_swift_has_it() {
    let (server, store) = with_answer("HEAD", "/v1/", || {
        let mut headers = vec![("X-Container-Meta-Swiftnbd-Version", "1")];
        headers.push(("X-Container-Meta-Temp-Url-Key", "user-part"));
        let names: Vec<String> = (0..90).map(|n| format!("X-Container-Meta-K{n}")).collect();
        headers.extend(names.iter().map(|name| (name.as_str(), "v")));
        reply(204, &headers, b"")
    })
    .await;
    let metadata = store.metadata().await.unwrap();
    assert_eq!(metadata["swiftnbd-version"], "1");
    assert_eq!(
        metadata.len(),
        91,
        "all 90 that Swift allows, and no secret"
    );
    let changes = Metadata::from([
        ("swiftnbd-client".to_owned(), "host@1".to_owned()),
        ("swiftnbd-last".to_owned(), String::new()),
    ]);
    store.set_metadata(&changes).await.unwrap();
    store.create().await.unwrap();
    let seen = server.seen.lock().unwrap().clone();
    let post = seen.iter().find(|seen| seen.method == "POST").unwrap();
    assert_eq!(
        post.header("x-container-meta-swiftnbd-client"),
        Some("host@1")
    );
    assert!(
        post.header("x-remove-container-meta-swiftnbd-last")
            .is_some()
    );
    assert_eq!(post.header("content-length"), Some("0"));
}

#[tokio::test]
async fn changes_of_the_container_that_fail() {
    use ErrorKind::*;
    for (status, kind, lingers) in [
        (200, Invalid, REQUEST_LIFETIME),
        (403, Denied, ZERO),
        (404, NoContainer, ZERO),
        (409, Invalid, ZERO),
        (503, Unavailable, CLOCK_SKEW),
    ] {
        let server = Server::start(move |seen| {
            let change = matches!(&*seen.method, "PUT" | "POST");
            change.then(|| reply(status, &[], b""))
        })
        .await;
        let store = store(server.auth_url());
        let changes = Metadata::from([("k".to_owned(), "v".to_owned())]);
        for result in [
            store.create().await.map(drop),
            store.set_metadata(&changes).await,
        ] {
            let error = checked(result.unwrap_err());
            assert_eq!((error.kind, error.lingers), (kind, lingers), "{status}");
        }
    }
}
