//! Encrypted volumes of format 2: what is in the store, and who can read it.

#[path = "support/volume2.rs"]
mod volume2;

use swiftnbd::image::log::LogError;
use swiftnbd::image::log::format::root::Compression;
use volume2::*;

/// 4 KiB that hold this, however they are aligned.
const PATTERN: &[u8] = b"plain as day";

fn pattern() -> Vec<u8> {
    let mut block = PATTERN.repeat(BLOCK / PATTERN.len() + 1);
    block.truncate(BLOCK);
    block
}

fn shows(volume: &Volume, pattern: &[u8]) -> Vec<String> {
    let names = volume.names().into_iter();
    let found = names.filter(|name| {
        volume
            .object(name)
            .windows(pattern.len())
            .any(|part| part == pattern)
    });
    found.collect()
}

async fn with_pattern(text: Option<&str>, compression: Compression) -> Volume {
    let mut volume = Volume::create(text, compression, 4096).await;
    volume.attach().await;
    for block in 0..40 {
        volume.write(block * 3 * BLOCK, pattern()).await;
        if block % 7 == 0 {
            volume.flush().await;
        }
    }
    volume.detach().await;
    volume
}

#[tokio::test(start_paused = true)]
async fn no_plaintext_is_in_the_store() {
    for compression in [Compression::None, Compression::Lz4] {
        // Where it is not encrypted it is found: the search works.
        let plain = with_pattern(None, compression).await;
        assert!(!shows(&plain, PATTERN).is_empty());
        let volume = with_pattern(Some("correct horse"), compression).await;
        assert_eq!(shows(&volume, PATTERN), [""; 0]);
        assert_eq!(shows(&volume, b"correct horse"), [""; 0]);
        assert_eq!(shows(&volume, &pattern()[..8]), [""; 0]);
    }
}

/// Equal blocks at different places, and the same block written again, are not equal
/// in the store.
#[tokio::test(start_paused = true)]
async fn nothing_is_encrypted_the_same_twice() {
    let volume = with_pattern(Some("secret"), Compression::None).await;
    let mut seen = std::collections::HashSet::new();
    let mut boxes = 0;
    for name in volume
        .names()
        .into_iter()
        .filter(|name| name.starts_with("seg/"))
    {
        // Boxes are of no round length, so look at every offset.
        let object = volume.object(&name);
        for part in object.get(64..).unwrap_or_default().windows(16) {
            boxes += 1;
            // Only the nonce's random half is the same in a segment's boxes.
            let _ = seen.insert(<[u8; 16]>::try_from(part).unwrap());
        }
    }
    let repeated = boxes - seen.len();
    assert!(
        boxes > 40 * BLOCK && repeated < 200,
        "{repeated} of {boxes}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_passphrase_changes_nothing() {
    let mut volume = with_pattern(Some("right"), Compression::Lz4).await;
    let objects = |volume: &Volume| {
        let names = volume.names().into_iter();
        names
            .map(|name| (volume.object(&name), name))
            .collect::<Vec<_>>()
    };
    let before = objects(&volume);
    volume.passphrase = Some(passphrase("wrong"));
    assert!(matches!(
        volume.try_attach().await,
        Err(LogError::WrongPassphrase)
    ));
    assert!(matches!(
        volume.check().await,
        Err(LogError::WrongPassphrase)
    ));
    volume.passphrase = None;
    assert!(matches!(
        volume.try_attach().await,
        Err(LogError::PassphraseNeeded)
    ));
    assert!(matches!(
        volume.check().await,
        Err(LogError::PassphraseNeeded)
    ));
    assert!(objects(&volume) == before);
    volume.passphrase = Some(passphrase("right\n"));
    volume.attach().await;
    assert_eq!(volume.read().await, [""; 0]);
}

/// Whoever writes into the store cannot have a plain volume taken for an encrypted one.
#[tokio::test(start_paused = true)]
async fn a_passphrase_for_a_plain_volume_is_refused() {
    let mut volume = with_pattern(None, Compression::Lz4).await;
    let before = volume.names();
    volume.passphrase = Some(passphrase("right"));
    assert!(matches!(
        volume.try_attach().await,
        Err(LogError::NotEncrypted)
    ));
    assert_eq!(volume.names(), before);
}

#[tokio::test(start_paused = true)]
async fn another_passphrase_rewrites_no_data() {
    let mut volume = with_pattern(Some("old"), Compression::Lz4).await;
    volume.attach().await;
    let segments = |volume: &Volume| {
        let names = volume.names().into_iter();
        let segments = names.filter(|name| name.starts_with("seg/") || name.starts_with("map/"));
        segments
            .map(|name| (volume.object(&name), name))
            .collect::<Vec<_>>()
    };
    let before = segments(&volume);
    let log = volume.log.as_ref().unwrap();
    log.change_passphrase(&passphrase("new"), CHEAP)
        .await
        .unwrap();
    let after = segments(&volume);
    for object in before.iter().filter(|(_, name)| name.starts_with("seg/")) {
        assert!(after.contains(object), "{} was rewritten", object.1);
    }
    // The same attachment goes on.
    volume.write(500 * BLOCK, pattern()).await;
    volume.detach().await;
    assert!(matches!(
        volume.try_attach().await,
        Err(LogError::WrongPassphrase)
    ));
    volume.passphrase = Some(passphrase("new"));
    volume.attach().await;
    assert_eq!(volume.read().await, [""; 0]);
    assert_eq!(shows(&volume, PATTERN), [""; 0]);
    volume.detach().await;
    // What the old passphrase opened is gone.
    let keys: Vec<_> = volume
        .names()
        .into_iter()
        .filter(|name| name.starts_with("key/"))
        .collect();
    assert_eq!(keys, ["key/00000002"]);
}

/// A process that dies while the passphrase is changed: one of the two opens it.
#[tokio::test(start_paused = true)]
async fn a_key_that_no_root_names_opens_nothing() {
    let mut volume = with_pattern(Some("old"), Compression::Lz4).await;
    let old = volume.copy();
    volume.attach().await;
    let log = volume.log.as_ref().unwrap();
    log.change_passphrase(&passphrase("new"), CHEAP)
        .await
        .unwrap();
    // Its key object alone came into the store.
    old.set("key/00000002", Some(volume.object("key/00000002")));
    let mut old = old;
    assert!(old.try_attach().await.is_ok());
    assert_eq!(old.read().await, [""; 0]);
    old.detach().await;
    old.passphrase = Some(passphrase("new"));
    assert!(matches!(
        old.try_attach().await,
        Err(LogError::WrongPassphrase)
    ));
}
