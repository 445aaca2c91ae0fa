//! What only the directory store promises: damage is noticed, a directory that
//! is not there is not an empty one, writes of a name keep their order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::FutureExt;
use swiftnbd::store::dir::DirStore;
use swiftnbd::store::{ErrorKind, Metadata, ObjectStore};

const MAX_OBJECT: u64 = 1 << 20;

async fn made() -> (tempfile::TempDir, PathBuf, DirStore) {
    let root = tempfile::tempdir().unwrap();
    let store = DirStore::new(root.path(), "box", MAX_OBJECT).unwrap();
    store.create().await.unwrap();
    let container = root.path().join("box");
    (root, container, store)
}

#[tokio::test]
async fn a_damaged_file_is_never_read_as_data() {
    let (_root, container, store) = made().await;
    store.put("a/b", Bytes::from("body")).await.unwrap();
    let file = container.join("objects/a.dir/b.obj");
    let whole = fs::read(&file).unwrap();
    for damaged in [
        &b""[..],
        b"body",
        &whole[1..],
        &[&whole[..], b"more"].concat(),
        &vec![0; MAX_OBJECT as usize + 25],
    ] {
        fs::write(&file, damaged).unwrap();
        let error = store.get("a/b").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().starts_with("GET box/a/b: "), "{error}");
        let error = store.get_range("a/b", 0, 2).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    }
    // Under another object's name it is not that object.
    fs::write(container.join("objects/c.obj"), &whole).unwrap();
    assert_eq!(store.get("c").await.unwrap_err().kind, ErrorKind::Corrupt);
    fs::write(&file, &whole).unwrap();
    assert_eq!(store.get("a/b").await.unwrap(), "body");
}

#[tokio::test]
async fn files_are_private() {
    let (_root, container, store) = made().await;
    store.put("a/b", Bytes::from("body")).await.unwrap();
    for (path, mode) in [
        ("", 0o700),
        ("objects/a.dir", 0o700),
        ("objects/a.dir/b.obj", 0o600),
        ("metadata.json", 0o600),
    ] {
        let found = fs::metadata(container.join(path)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
}

#[tokio::test]
async fn a_directory_that_went_away_is_no_empty_container() {
    let (root, container, store) = made().await;
    store.put("a/b", Bytes::from("body")).await.unwrap();
    let away = root.path().join("unmounted");
    fs::rename(&container, &away).unwrap();
    let changes = Metadata::from([("k".to_owned(), "v".to_owned())]);
    for result in [
        store.get("a/b").await.map(drop),
        store.put("a/b", Bytes::from("x")).await,
        store.put("new", Bytes::from("x")).await,
        store.put_new("new", Bytes::from("x")).await.map(drop),
        store.get_range("a/b", 0, 1).await.map(drop),
        store.delete("a/b").await,
        store.list("", "", 1).await.map(drop),
        store.set_metadata(&changes).await,
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoContainer, "{error}");
    }
    assert!(!container.exists(), "nothing was made in its place");
    fs::rename(&away, &container).unwrap();
    assert_eq!(store.get("a/b").await.unwrap(), "body");
}

#[tokio::test]
async fn a_write_whose_caller_is_gone_does_not_land_on_a_later_one() {
    let (_root, _container, store) = made().await;
    for round in 0..200 {
        let early = Bytes::from(vec![b'a'; 1 << 16]);
        // Polled once: it may run, and nobody waits for it.
        assert!(store.put("a", early).now_or_never().is_none());
        let late = Bytes::from(format!("late {round}"));
        store.put("a", late.clone()).await.unwrap();
        store.settle().await;
        assert_eq!(store.get("a").await.unwrap(), late);
    }
}

#[tokio::test]
async fn metadata_changes_of_several_at_once_all_count() {
    let (root, _container, _store) = made().await;
    let changes = (0..20).map(|number| {
        let store = DirStore::new(root.path(), "box", MAX_OBJECT).unwrap();
        async move {
            let change = Metadata::from([(format!("k{number}"), "v".to_owned())]);
            store.set_metadata(&change).await.unwrap();
        }
    });
    futures_util::future::join_all(changes).await;
    let store = DirStore::new(root.path(), "box", MAX_OBJECT).unwrap();
    assert_eq!(store.metadata().await.unwrap().len(), 20);
}

#[tokio::test]
async fn names_that_no_directory_can_hold_are_refused() {
    let (_root, _container, store) = made().await;
    let error = store.get(&"x".repeat(252)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    for container in ["", ".", "..", "a/b", "a\0"] {
        assert!(DirStore::new("/tmp", container, 1).is_err());
    }
}
