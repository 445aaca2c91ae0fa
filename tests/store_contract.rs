//! One suite of checks for every `ObjectStore`: memory, directory, the
//! repeating one, and a real Swift.
//!
//! The last needs `scripts/lab run -- cargo test --test store_contract`, or
//! `scripts/test`; without a Swift it fails.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use md5::{Digest, Md5};
use swiftnbd::credentials::Credentials;
use swiftnbd::store::dir::DirStore;
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::retry::{Policy, Retry};
use swiftnbd::store::swift::SwiftStore;
use swiftnbd::store::{ErrorKind, Metadata, ObjectStore};

const MAX_OBJECT: u64 = 8 << 20;

/// All of it, on a container that is not there yet.
async fn contract(store: &dyn ObjectStore) {
    a_missing_container_is_not_an_empty_one(store).await;
    assert!(store.create().await.unwrap());
    assert!(!store.create().await.unwrap());
    objects_are_what_was_put_last(store).await;
    what_is_no_name_or_no_body_is_refused(store).await;
    names_are_kept_as_they_are(store).await;
    bodies_of_one_byte_and_of_many(store).await;
    parts_of_bodies(store).await;
    what_is_there_is_not_created(store).await;
    different_names_at_once(store).await;
    listings_have_bounds_order_and_pages(store).await;
    metadata_is_merged(store).await;
    many_go_together(store).await;
    a_container_goes_once_it_is_empty(store).await;
    store.settle().await;
    a_missing_container_is_not_an_empty_one(store).await;
    store.remove().await.unwrap();
    store.create().await.unwrap();
    assert!(store.metadata().await.unwrap().is_empty());
}

async fn a_missing_container_is_not_an_empty_one(store: &dyn ObjectStore) {
    let body = Bytes::from("x");
    let changes = Metadata::from([("k".to_owned(), "v".to_owned())]);
    let results = [
        store.get("a").await.map(drop),
        store.get_range("a", 0, 1).await.map(drop),
        store.put("a", body.clone()).await,
        store.put_new("a", body).await.map(drop),
        store.delete("a").await,
        store.delete_many(&["a".to_owned(), "b".to_owned()]).await,
        store.md5("a").await.map(drop),
        store.list("", "", 10).await.map(drop),
        store.metadata().await.map(drop),
        store.set_metadata(&changes).await,
    ];
    for (number, result) in results.into_iter().enumerate() {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoContainer, "{number}: {error}");
        assert!(error.lingers.is_zero(), "{number}: {error}");
    }
}

async fn objects_are_what_was_put_last(store: &dyn ObjectStore) {
    let absent = || async {
        let error = store.get("a").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
        let no_md5 = store.md5("a").await.unwrap_err();
        assert_eq!(no_md5.kind, ErrorKind::NotFound, "{no_md5}");
        assert!(error.target.ends_with("/a"), "{error}");
    };
    absent().await;
    store.delete("a").await.unwrap();
    for body in ["one", "another", "one"] {
        store.put("a", Bytes::from(body)).await.unwrap();
        assert_eq!(store.get("a").await.unwrap(), body);
        let md5: [u8; 16] = Md5::digest(body).into();
        assert_eq!(store.md5("a").await.unwrap(), md5);
    }
    store.delete("a").await.unwrap();
    absent().await;
    store.delete("a").await.unwrap();
    store.put("a", Bytes::from("again")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), "again");
    store.delete("a").await.unwrap();
}

async fn what_is_no_name_or_no_body_is_refused(store: &dyn ObjectStore) {
    let long = "n/".repeat(512) + "n";
    for name in [
        "", "/", "a//b", "/a", "a/", ".", "../a", "a/./b", "a\0b", &long,
    ] {
        let body = Bytes::from("x");
        let put = store.put(name, body.clone()).await.unwrap_err();
        let put_new = store.put_new(name, body).await.unwrap_err();
        let get = store.get(name).await.unwrap_err();
        let get_range = store.get_range(name, 0, 1).await.unwrap_err();
        let delete = store.delete(name).await.unwrap_err();
        for error in [put, put_new, get, get_range, delete] {
            assert_eq!(error.kind, ErrorKind::Invalid, "{name:?}: {error}");
        }
    }
    let error = store.put("a", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    let error = store.put_new("a", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    for (offset, length) in [(0, 0), (1, u64::MAX), (u64::MAX, 1)] {
        let error = store.get_range("a", offset, length).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{offset} {length}");
    }
    for limit in [0, 10_001] {
        let error = store.list("", "", limit).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
    assert_eq!(names(store, "", "", 10).await, [""; 0]);
}

async fn names_are_kept_as_they_are(store: &dyn ObjectStore) {
    let long = "l".repeat(251);
    let deep = "d/".repeat(511) + "dd";
    let mut odd = vec![
        " ",
        "%",
        "%2e%2e/a",
        "a",
        "a b?c=d&e#f",
        "a.dir",
        "a.dir/b",
        "a.obj",
        "a.obj/x",
        "a/b",
        "a/b/c",
        "a\"b'c\\d",
        "a-b",
        "a\tb\nc",
        "a+b",
        "ä/ö/ü€𝄞",
        "...",
        ".hidden",
        "tmp",
        "lock",
        "metadata.json",
        &long,
        &deep,
    ];
    for name in &odd {
        store
            .put(name, Bytes::from(name.to_string()))
            .await
            .unwrap();
    }
    for name in &odd {
        assert_eq!(store.get(name).await.unwrap(), *name);
    }
    odd.sort_unstable();
    assert_eq!(names(store, "", "", 1000).await, odd);
    for name in &odd {
        store.delete(name).await.unwrap();
    }
    assert_eq!(names(store, "", "", 1000).await, [""; 0]);
}

async fn bodies_of_one_byte_and_of_many(store: &dyn ObjectStore) {
    let mut rng = fastrand::Rng::with_seed(1);
    for length in [1, 2, 4096, 65_537, MAX_OBJECT as usize] {
        let body: Bytes = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
        store.put("body", body.clone()).await.unwrap();
        assert!(store.get("body").await.unwrap() == body, "{length} bytes");
        let listed = store.list("", "", 10).await.unwrap();
        assert_eq!(listed[0].size, length as u64);
    }
    // Bytes that look like the end of something.
    let body = Bytes::from([&[0; 100][..], b"SWNBDOBJ\r\n\r\n0\r\n\r\n"].concat());
    store.put("body", body.clone()).await.unwrap();
    assert_eq!(store.get("body").await.unwrap(), body);
    store.delete("body").await.unwrap();
}

async fn parts_of_bodies(store: &dyn ObjectStore) {
    let error = store.get_range("parts", 0, 1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.target.ends_with("/parts"), "{error}");
    let mut rng = fastrand::Rng::with_seed(2);
    let whole: Bytes = std::iter::repeat_with(|| rng.u8(..))
        .take(1_000_000)
        .collect();
    store.put("parts", whole.clone()).await.unwrap();
    let all = whole.len() as u64;
    let mut ranges = vec![
        (0, 1),
        (0, all),
        (0, all - 1),
        (0, all + 1),
        (1, all),
        (65_535, 65_538),
        (all - 1, 1),
        (all - 1, MAX_OBJECT),
        (all, 1),
        (all + 1, 1),
        (all, MAX_OBJECT),
        (u64::MAX - 1, 1),
    ];
    ranges.extend((0..20).map(|_| (rng.u64(0..all), rng.u64(1..all))));
    for (offset, length) in ranges {
        let part = store.get_range("parts", offset, length).await.unwrap();
        let within = |at: u64| at.min(all) as usize;
        let expected = &whole[within(offset)..within(offset.saturating_add(length))];
        assert!(part == expected, "{length} bytes from {offset} on");
    }
    store.delete("parts").await.unwrap();
    let error = store.get_range("parts", 0, 1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

async fn what_is_there_is_not_created(store: &dyn ObjectStore) {
    // Large ones too: the answer may come while the body is still being sent.
    for length in [1, 300_000, MAX_OBJECT as usize] {
        let first = Bytes::from(vec![1; length]);
        let second = Bytes::from(vec![2; length]);
        assert!(store.put_new("new/a", first.clone()).await.unwrap());
        for other in [&second, &first] {
            assert!(!store.put_new("new/a", other.clone()).await.unwrap());
        }
        assert!(store.get("new/a").await.unwrap() == first, "{length} bytes");
        // It is an object like any other.
        store.put("new/a", second.clone()).await.unwrap();
        assert!(!store.put_new("new/a", first).await.unwrap());
        assert!(store.get("new/a").await.unwrap() == second);
        store.delete("new/a").await.unwrap();
    }
}

async fn different_names_at_once(store: &dyn ObjectStore) {
    let names: Vec<String> = (0..32).map(|number| format!("at/once/{number}")).collect();
    let put = names
        .iter()
        .map(|name| store.put(name, Bytes::from(name.clone())));
    for result in join_all(put).await {
        result.unwrap();
    }
    for (name, body) in names
        .iter()
        .zip(join_all(names.iter().map(|name| store.get(name))).await)
    {
        assert_eq!(body.unwrap(), *name);
    }
    for result in join_all(names.iter().map(|name| store.delete(name))).await {
        result.unwrap();
    }
    for result in join_all(names.iter().map(|name| store.get(name))).await {
        assert_eq!(result.unwrap_err().kind, ErrorKind::NotFound);
    }
}

async fn listings_have_bounds_order_and_pages(store: &dyn ObjectStore) {
    let mut all: Vec<String> = (0..10).map(|number| format!("p/{number:02}")).collect();
    all.extend(["o", "p", "p-", "p/00/x", "p/00/y", "p/00-", "p0", "q/a/b/c"].map(String::from));
    all.sort_unstable();
    for name in &all {
        store.put(name, Bytes::from("x")).await.unwrap();
    }
    let mut bounds = all.clone();
    bounds.extend(["", "a", "p/", "p/00/", "p/05x", "q", "z"].map(String::from));
    for after in &bounds {
        for before in ["", "p/", "p/00/x", "p/05", "q"] {
            let expected: Vec<&String> = all
                .iter()
                .filter(|name| *name > after && (before.is_empty() || name.as_str() < before))
                .collect();
            // A real Swift refuses or empties a range that is turned round.
            if !before.is_empty() && before <= after.as_str() {
                continue;
            }
            let listed = names(store, after, before, 10_000).await;
            assert_eq!(
                listed.iter().collect::<Vec<_>>(),
                expected,
                "{after:?} {before:?}"
            );
        }
    }
    for limit in [1, 2, 3, 7] {
        let mut paged: Vec<String> = Vec::new();
        loop {
            let after = paged.last().cloned().unwrap_or_default();
            let page = names(store, &after, "", limit).await;
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, all, "pages of {limit}");
    }
    for name in &all {
        store.delete(name).await.unwrap();
    }
    // A directory may keep its empty parts, but shows none of them.
    assert_eq!(names(store, "", "", 1).await, [""; 0]);
}

async fn many_go_together(store: &dyn ObjectStore) {
    let mut all: Vec<String> = (0..40).map(|number| format!("many/é %{number}")).collect();
    for name in &all[..30] {
        store.put(name, Bytes::from(name.clone())).await.unwrap();
    }
    store.put("stays", Bytes::from("x")).await.unwrap();
    // Some of them were never there.
    store.delete_many(&all).await.unwrap();
    assert_eq!(names(store, "", "", 100).await, ["stays"]);
    store.delete_many(&all).await.unwrap();
    store.delete_many(&[]).await.unwrap();
    all.push("a//b".to_owned());
    let error = store.delete_many(&all).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    let many = vec!["n".to_owned(); 10_001];
    let error = store.delete_many(&many).await;
    assert!(error.is_err_and(|error| error.kind == ErrorKind::Invalid));
}

async fn a_container_goes_once_it_is_empty(store: &dyn ObjectStore) {
    let error = store.remove().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert_eq!(names(store, "", "", 100).await, ["stays"]);
    assert!(!store.metadata().await.unwrap().is_empty());
    store.delete("stays").await.unwrap();
    store.remove().await.unwrap();
}

async fn metadata_is_merged(store: &dyn ObjectStore) {
    let set = async |changes: &[(&str, &str)]| {
        let changes = changes
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        store.set_metadata(&changes.collect()).await.unwrap();
    };
    let get = async |key: &str| store.metadata().await.unwrap().remove(key);
    assert_eq!(get("swiftnbd-version").await, None);
    set(&[("swiftnbd-version", "1"), ("swiftnbd-object-size", "65536")]).await;
    set(&[
        ("swiftnbd-client", "host.example@1700000000"),
        ("swiftnbd-version", "2"),
    ])
    .await;
    assert_eq!(get("swiftnbd-version").await.as_deref(), Some("2"));
    assert_eq!(get("swiftnbd-object-size").await.as_deref(), Some("65536"));
    set(&[("swiftnbd-client", ""), ("swiftnbd-never-there", "")]).await;
    assert_eq!(get("swiftnbd-client").await, None);
    assert_eq!(get("swiftnbd-object-size").await.as_deref(), Some("65536"));
    set(&[("swiftnbd-last", "hôst €")]).await;
    assert_eq!(get("swiftnbd-last").await.as_deref(), Some("hôst €"));
    for (key, value) in [
        ("under_score", "v"),
        ("Upper", "v"),
        ("k", "a\r\nb: c"),
        ("k", " v"),
    ] {
        let changes = Metadata::from([(key.to_owned(), value.to_owned())]);
        let error = store.set_metadata(&changes).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
    // Making it once more changes nothing.
    store.create().await.unwrap();
    assert_eq!(get("swiftnbd-object-size").await.as_deref(), Some("65536"));
}

async fn names(store: &dyn ObjectStore, after: &str, before: &str, limit: usize) -> Vec<String> {
    let listed = store.list(after, before, limit).await.unwrap();
    listed.into_iter().map(|listed| listed.name).collect()
}

#[tokio::test]
async fn memory() {
    contract(&MemoryService::new().store("box")).await;
}

#[tokio::test]
async fn directory() {
    let root = tempfile::tempdir().unwrap();
    // Two stores of one directory see the same.
    let path = root.path().join("made/by/create");
    contract(&DirStore::new(&path, "box", MAX_OBJECT).unwrap()).await;
    let other = DirStore::new(&path, "box", MAX_OBJECT).unwrap();
    assert!(other.metadata().await.unwrap().is_empty());
    let stores = [0, 1, 2, 3].map(|_| DirStore::new(&path, "box", MAX_OBJECT).unwrap());
    for store in &stores {
        // The first write of each cleans up, which could disturb the others.
        store.put("race", Bytes::from("x")).await.unwrap();
    }
    for round in 0..50 {
        let name = format!("race/{round}");
        let racing = stores.iter().zip(["a", "b", "c", "d"]);
        let racing = racing.map(|(store, body)| store.put_new(&name, Bytes::from(body)));
        let made = join_all(racing).await.into_iter().map(Result::unwrap);
        let made: Vec<bool> = made.collect();
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "{made:?}");
        let winner = made.iter().position(|made| *made).unwrap();
        assert_eq!(
            other.get(&name).await.unwrap(),
            ["a", "b", "c", "d"][winner]
        );
    }
    let left = std::fs::read_dir(path.join("box/tmp")).unwrap().count();
    assert_eq!(left, 0, "files left in tmp");
}

#[tokio::test]
async fn repeating() {
    let inner = Arc::new(MemoryService::new().store("box"));
    let rng = fastrand::Rng::with_seed(1);
    contract(&Retry::new(inner, Policy::attach(), rng)).await;
}

#[tokio::test]
async fn swift() {
    let variable = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| {
            panic!(
                "{name} is not set: this test needs a real Swift. Run it by \
                 `scripts/lab run -- cargo test --test store_contract`, or run scripts/test"
            )
        })
    };
    let credentials = |key: &str| {
        let (url, user) = (variable("SWIFTNBD_LAB_AUTH"), variable("SWIFTNBD_LAB_USER"));
        Credentials::v1(url, user, key)
    };
    let container = format!("contract ä?%{}", std::process::id());
    let store = SwiftStore::new(
        credentials(&variable("SWIFTNBD_LAB_KEY")),
        &container,
        MAX_OBJECT,
    )
    .unwrap();
    contract(&store).await;
    wrong_key(credentials("not the key"), &container).await;
}

async fn wrong_key(wrong: Credentials, container: &str) {
    let store = SwiftStore::new(wrong, container, MAX_OBJECT).unwrap();
    let error = store.metadata().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(!error.to_string().contains("not the key"), "{error}");
}
