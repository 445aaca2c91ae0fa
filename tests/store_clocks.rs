//! Proxies of one Swift whose clocks differ: the writes that they give their
//! timestamps to are ordered by these, not by when they came.
//!
//! Needs `scripts/lab run --skew 3 -- cargo test --test store_clocks`, or
//! `scripts/test`; without a Swift whose clocks differ it fails.

#[path = "support/plain_swift.rs"]
mod plain_swift;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use plain_swift::{Reply, Swift};
use swiftnbd::credentials::Credentials;
use swiftnbd::store::swift::SwiftStore;
use swiftnbd::store::{ErrorKind, ObjectStore};
use tokio::time::Instant;

const AHEAD: &str = "SWIFTNBD_LAB_AUTH_AHEAD";
const BEHIND: &str = "SWIFTNBD_LAB_AUTH_BEHIND";
/// A request that takes this long is tried again.
const TRIES: usize = 10;

/// By how many seconds each is off.
fn skew() -> f64 {
    let skew = std::env::var("SWIFTNBD_LAB_SKEW").unwrap_or_else(|_| {
        panic!("SWIFTNBD_LAB_SKEW is not set: run through scripts/lab run --skew 3 -- …")
    });
    skew.parse().unwrap()
}

/// Seconds since 1970, by this machine's clock.
fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

/// When the answer was made, by the clock of who made it; in whole seconds.
fn date(reply: &Reply) -> f64 {
    let date = reply.header("date").unwrap();
    let date = jiff::fmt::rfc2822::parse(date).unwrap();
    date.timestamp().as_second() as f64
}

#[test]
fn each_proxy_has_a_clock_of_its_own() {
    let container = Swift::fresh_name("clocks");
    Swift::lab().create(&container);
    for (variable, offset) in [
        ("SWIFTNBD_LAB_AUTH", 0.0),
        (AHEAD, skew()),
        (BEHIND, -skew()),
    ] {
        let swift = Swift::at(variable);
        let before = now() + offset;
        let path = format!("{container}/{variable}");
        let put = swift.request("PUT", &path, &[], b"x");
        let after = now() + offset;
        assert_eq!(put.status, 201, "{put:?}");
        let within = |when: f64| before.floor() <= when && when <= after;
        assert!(within(date(&put)), "{variable}: {put:?}, not {before}");
        // What Swift orders writes by is that clock too.
        let head = swift.request("HEAD", &path, &[], b"");
        let timestamp: f64 = head.header("x-timestamp").unwrap().parse().unwrap();
        let within = before <= timestamp && timestamp <= after;
        assert!(within, "{variable}: {timestamp}, not {before} to {after}");
    }
    Swift::lab().remove(&container);
}

/// A store that sends its requests to that proxy.
fn store(variable: &str, container: &str) -> SwiftStore {
    let swift = Swift::at(variable);
    let credentials = Credentials::v1(swift.auth_url.clone(), swift.user.clone(), &*swift.key);
    SwiftStore::new(credentials, container, 1 << 20).unwrap()
}

#[tokio::test]
async fn what_comes_later_by_a_clock_that_is_behind_is_superseded() {
    let container = Swift::fresh_name("clocks");
    let (ahead, behind) = (store(AHEAD, &container), store(BEHIND, &container));
    ahead.create().await.unwrap();
    let difference = Duration::from_secs_f64(2.0 * skew());
    for number in 0..TRIES {
        let name = format!("o{number}");
        let began = Instant::now();
        ahead.put(&name, Bytes::from("first")).await.unwrap();
        let put = behind.put(&name, Bytes::from("second")).await;
        let delete = behind.delete(&name).await;
        if began.elapsed() >= difference {
            continue;
        }
        for late in [put, delete] {
            let error = late.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Superseded, "{error}");
            assert!(error.lingers.is_zero(), "{error}");
        }
        assert_eq!(behind.get(&name).await.unwrap(), "first");
        // What is new is new for both, and what is there is there for both.
        let made = behind.put_new("new", Bytes::from("1")).await;
        assert!(made.unwrap());
        assert!(!ahead.put_new("new", Bytes::from("2")).await.unwrap());
        assert_eq!(ahead.get("new").await.unwrap(), "1");
        Swift::lab().remove(&container);
        return;
    }
    panic!("no three requests took less than {difference:?} together");
}
