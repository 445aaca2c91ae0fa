//! Format 2, one attachment after another: an older writer that is still alive changes
//! nothing that is read; roots are found among hundreds; numbers never restart.

#[path = "support/attachments.rs"]
mod attachments;
mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swiftnbd::image::log::format::names;
use swiftnbd::image::log::format::names::Name;
use swiftnbd::image::log::format::root::{Compression, Geometry};
use swiftnbd::image::log::{self, Limits, Log, Who};
use swiftnbd::image::{Image, ImageError};
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::{ErrorKind, ObjectStore};

const GEOMETRY: Geometry = Geometry {
    size: 4 << 20,
    block_size: 4096,
    compression: Compression::None,
};

async fn volume() -> Arc<dyn ObjectStore> {
    let store = MemoryService::new().store("volume");
    store.create().await.unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    log::create(&store, GEOMETRY, None, &who("setup"), true)
        .await
        .unwrap();
    store
}

fn who(host: &str) -> Who {
    attachments::who(host)
}

fn limits() -> Limits {
    Limits::new(1 << 20, 8 << 20, 1 << 20, None)
}

async fn open(store: &Arc<dyn ObjectStore>, host: &str) -> Log {
    let (attaching, live) = (Arc::clone(store), Arc::clone(store));
    Log::open(attaching, live, None, limits(), who(host))
        .await
        .unwrap()
}

async fn byte(log: &Log, block: u64) -> u8 {
    log.read(block * 4096, 4096).await.unwrap().concat()[0]
}

async fn write(log: &Log, block: u64, byte: u8) -> Result<(), ImageError> {
    log.write(block * 4096, Bytes::from(vec![byte; 4096])).await
}

async fn names(store: &Arc<dyn ObjectStore>) -> Vec<String> {
    let listed = store.list("", "", 10_000).await.unwrap();
    listed.into_iter().map(|object| object.name).collect()
}

#[tokio::test(start_paused = true)]
async fn an_older_writer_that_lives_on_changes_nothing_and_is_told() {
    let store = volume().await;
    let old = open(&store, "old").await;
    write(&old, 0, 1).await.unwrap();
    old.flush().await.unwrap();
    write(&old, 1, 2).await.unwrap();

    let new = open(&store, "new").await;
    assert_eq!((byte(&new, 0).await, byte(&new, 1).await), (1, 0));
    write(&new, 2, 3).await.unwrap();
    new.flush().await.unwrap();

    // What it had in memory, and what it writes from now on, is not answered as
    // durable; then nothing is answered at all.
    let refused = old.flush().await.unwrap_err();
    assert!(matches!(refused, ImageError::Superseded(_)), "{refused}");
    assert!(refused.to_string().contains("stop"), "{refused}");
    assert!(matches!(
        write(&old, 0, 9).await,
        Err(ImageError::Superseded(_))
    ));
    assert!(matches!(
        old.read(0, 4096).await,
        Err(ImageError::Superseded(_))
    ));
    assert!(matches!(old.close().await, Err(ImageError::Superseded(_))));
    tokio::time::sleep(Duration::from_secs(60)).await;

    let seen = (
        byte(&new, 0).await,
        byte(&new, 1).await,
        byte(&new, 2).await,
    );
    assert_eq!(seen, (1, 0, 3));
    new.close().await.unwrap();
    let again = open(&store, "again").await;
    assert_eq!(
        (
            byte(&again, 0).await,
            byte(&again, 1).await,
            byte(&again, 2).await
        ),
        (1, 0, 3)
    );
}

#[tokio::test(start_paused = true)]
async fn an_older_writer_deletes_nothing_once_it_was_followed() {
    let store = volume().await;
    let old = open(&store, "old").await;
    write(&old, 0, 1).await.unwrap();
    old.flush().await.unwrap();
    // All that it stored is dead for the old one now, and was never replaced for
    // anybody else.
    old.write_zeroes(0, 4096).await.unwrap();
    let new = open(&store, "new").await;
    let before = names(&store).await;
    let _ = old.close().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = names(&store).await;
    let gone: Vec<&String> = before.iter().filter(|name| !after.contains(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");
    assert_eq!(byte(&new, 0).await, 1);
}

#[tokio::test(start_paused = true)]
async fn two_that_attach_at_once_leave_one() {
    let store = volume().await;
    for round in 0..20 {
        let attach = |host: &'static str| {
            let (attaching, live) = (Arc::clone(&store), Arc::clone(&store));
            tokio::spawn(async move { Log::open(attaching, live, None, limits(), who(host)).await })
        };
        let (first, second) = (attach("first"), attach("second"));
        let opened = [first.await.unwrap(), second.await.unwrap()];
        let mut flushed = 0;
        for log in opened.iter().flatten() {
            write(log, 3, round).await.ok();
            flushed += usize::from(log.flush().await.is_ok());
        }
        assert!(flushed <= 1, "round {round}: {flushed} writers");
        assert!(
            opened.iter().any(Result::is_ok),
            "round {round}: nobody has it"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_hundreds_of_roots_is_found_and_old_ones_go() {
    let store = volume().await;
    let mut pace = limits();
    pace.pace.root_segments = 1;
    let log = Log::open(
        Arc::clone(&store),
        Arc::clone(&store),
        None,
        pace,
        who("host"),
    )
    .await
    .unwrap();
    for round in 0..1300_u64 {
        write(&log, round % 7, (round % 251) as u8).await.unwrap();
        log.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    log.close().await.unwrap();
    let (epoch, root) = (log.epoch(), log.stats().log.unwrap().root);
    assert!(root > 1200, "{root} roots");
    let roots: Vec<u32> = names(&store)
        .await
        .iter()
        .filter_map(|name| match Name::parse(name) {
            Some(Name::Root(e, n)) if e == epoch => Some(n),
            _ => None,
        })
        .collect();
    let last = root - root % 256;
    let expected: Vec<u32> = (0..=root)
        .filter(|n| n % 256 == 0 || *n > last - 256)
        .collect();
    assert_eq!(roots, expected);
    let again = open(&store, "again").await;
    for block in 0..7 {
        let round = (0..1300).rev().find(|round| round % 7 == block).unwrap();
        assert_eq!(byte(&again, block).await, (round % 251) as u8);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_volume_over_an_old_one_goes_on_with_the_numbers_and_is_empty() {
    let store = volume().await;
    let log = open(&store, "host").await;
    write(&log, 0, 1).await.unwrap();
    log.close().await.unwrap();
    log::create(&store, GEOMETRY, None, &who("setup"), true)
        .await
        .unwrap();
    let log = open(&store, "host").await;
    assert_eq!(log.epoch(), 4);
    assert_eq!(byte(&log, 0).await, 0);
    // What the first one left is swept in time.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let left: Vec<String> = names(&store)
        .await
        .into_iter()
        .filter(|name| name.starts_with("seg/"))
        .collect();
    assert!(
        left.iter().all(|name| !matches!(
            Name::parse(name),
            Some(Name::Segment {
                epoch: 2,
                seq: 1,
                ..
            })
        )),
        "{left:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_clean_end_says_so_and_the_next_attach_stores_nothing_but_names() {
    let store = volume().await;
    let log = open(&store, "host").await;
    write(&log, 5, 7).await.unwrap();
    log.close().await.unwrap();
    store.get(&names::released(log.epoch())).await.unwrap();
    let log = open(&store, "host").await;
    assert_eq!(log.stats().log.unwrap().segments, 1);
    assert_eq!(byte(&log, 5).await, 7);
    let absent = store.get(&names::released(log.epoch())).await.unwrap_err();
    assert_eq!(absent.kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_read_of_more_frames_than_are_fetched_together_is_whole() {
    let store = volume().await;
    let log = open(&store, "host").await;
    for block in (0..1024).step_by(2).chain((1..1024).step_by(2)) {
        write(&log, block, (block % 251) as u8 + 1).await.unwrap();
    }
    log.close().await.unwrap();
    let log = open(&store, "host").await;
    let read = log.read(0, 4 << 20).await.unwrap().concat();
    for (block, content) in read.chunks(4096).enumerate() {
        let expected = (block % 251) as u8 + 1;
        assert!(
            content.iter().all(|byte| *byte == expected),
            "block {block}"
        );
    }
}
