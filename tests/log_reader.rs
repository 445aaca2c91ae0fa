//! Frames of format 2: how many GETs bring them, and what becomes of those that fail.

#[path = "support/shelf.rs"]
mod shelf;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use shelf::{BLOCK, Shelf, VOLUME, content, until};
use swiftnbd::image::log::format::Damage;
use swiftnbd::image::log::format::keys::DataKey;
use swiftnbd::image::log::format::root::Compression;
use swiftnbd::image::log::format::seal::Cipher;
use swiftnbd::image::log::reader::{FrameError, FrameRef, Frames, ReadAhead};
use swiftnbd::store::ErrorKind;
use tokio::task::JoinHandle;

const MIB: u64 = 1 << 20;

/// Frames of this many blocks each, of a segment.
fn row(count: usize) -> Vec<u64> {
    vec![16; count]
}

fn check(frames: &[FrameRef], contents: &[Bytes]) {
    assert_eq!(frames.len(), contents.len());
    for (frame, found) in frames.iter().zip(contents) {
        let blocks = (found.len() / BLOCK) as u64;
        assert!(*found == content(frame.address, blocks), "{frame:?}");
    }
}

/// A reader of its own, under way when this returns.
fn reader(frames: &Frames, wanted: &[FrameRef]) -> JoinHandle<Result<Vec<Bytes>, FrameError>> {
    let (frames, wanted) = (frames.clone(), wanted.to_vec());
    tokio::spawn(async move { frames.get(&wanted).await })
}

#[tokio::test]
async fn neighbours_come_in_one_get_and_are_there_then() {
    let sealed = DataKey::random().cipher(VOLUME);
    for cipher in [Cipher::Plain, sealed] {
        for compression in [Compression::None, Compression::Lz4] {
            let shelf = Shelf::new(cipher.clone(), compression);
            let stored = shelf.store(1, 5000, &[16, 1, 7, 16, 2]);
            let frames = shelf.frames(64 * MIB);
            let mut wanted = stored.clone();
            wanted.reverse();
            wanted.push(stored[2]);
            check(&wanted, &frames.get(&wanted).await.unwrap());
            let end = u64::from(stored[4].offset + stored[4].stored);
            let from = u64::from(stored[0].offset);
            assert_eq!(shelf.got(), [(shelf.object(1), from, Some(end - from))]);
            check(&wanted, &frames.get(&wanted).await.unwrap());
            let cached: Vec<Bytes> = wanted
                .iter()
                .map(|frame| frames.cached(frame).unwrap())
                .collect();
            check(&wanted, &cached);
            assert_eq!(shelf.got(), []);
            assert!(frames.cached_bytes() >= 42 * BLOCK as u64);
        }
    }
}

#[tokio::test]
async fn much_comes_in_large_gets_in_parallel_and_within_the_bounds() {
    let shelf = Shelf::plain();
    let mut wanted = Vec::new();
    for seq in 1..=8 {
        wanted.extend(shelf.store(seq, seq * 2048, &row(128)));
    }
    // 64 MiB in all, with a cache of 64: an eighth of that may be under way.
    let frames = shelf.frames(64 * MIB);
    shelf.hold();
    let all = reader(&frames, &wanted);
    shelf.until_got(2).await;
    shelf.release_all();
    check(&wanted, &all.await.unwrap().unwrap());
    let got = shelf.got();
    assert!(got.len() <= 3 * 8, "{} GETs", got.len());
    let most = shelf.most_bytes.load(Ordering::SeqCst);
    assert!(most <= 8 * MIB, "{most} bytes were under way");
    assert!(frames.cached_bytes() <= 64 * MIB);
}

#[tokio::test]
async fn small_gets_are_bounded_in_number() {
    let shelf = Shelf::plain();
    let mut wanted = Vec::new();
    for seq in 1..=200 {
        wanted.extend(shelf.store(seq, seq * 16, &[1]));
    }
    shelf.hold();
    let frames = shelf.frames(64 * MIB);
    let all = reader(&frames, &wanted);
    shelf.until_got(64).await;
    shelf.release_all();
    check(&wanted, &all.await.unwrap().unwrap());
    assert_eq!(shelf.most.load(Ordering::SeqCst), 64);
    assert_eq!(shelf.got().len(), 200);
}

#[tokio::test]
async fn a_small_cache_holds_no_more_and_every_read_succeeds() {
    for cache in [0, 4096, 200_000, MIB] {
        let shelf = Shelf::plain();
        let wanted = shelf.store(1, 0, &row(100));
        let frames = shelf.frames(cache);
        for _ in 0..3 {
            check(&wanted, &frames.get(&wanted).await.unwrap());
            assert!(frames.cached_bytes() <= cache);
            let most = shelf.most_bytes.load(Ordering::SeqCst);
            assert!(most <= MIB, "{most} bytes were under way");
        }
    }
}

#[tokio::test]
async fn all_readers_of_a_frame_share_one_get() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(3));
    shelf.hold();
    let frames = shelf.frames(64 * MIB);
    let first = reader(&frames, &stored[..2]);
    shelf.until_got(1).await;
    let others: Vec<_> = (0..10).map(|_| reader(&frames, &stored)).collect();
    // One more GET, for the third frame alone.
    shelf.until_got(2).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    shelf.release_all();
    for other in others {
        check(&stored, &other.await.unwrap().unwrap());
    }
    assert_eq!(shelf.got().len(), 2);
}

#[tokio::test]
async fn a_failure_is_told_to_all_who_wait_and_not_kept() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(2));
    shelf.hold();
    shelf.fail(ErrorKind::Unavailable);
    let frames = shelf.frames(64 * MIB);
    let readers: Vec<_> = (0..3).map(|_| reader(&frames, &stored)).collect();
    // All have joined: they run before the answer.
    shelf.until_got(1).await;
    shelf.release(1);
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert!(matches!(error, FrameError::Store(error) if error.kind == ErrorKind::Unavailable));
    }
    assert_eq!(shelf.got().len(), 1);
    shelf.release_all();
    check(&stored, &frames.get(&stored).await.unwrap());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(1));
    let name = shelf.object(1);
    shelf.set(1, None);
    let frames = shelf.frames(64 * MIB);
    let error = frames.get(&stored).await.unwrap_err();
    assert!(matches!(&error, FrameError::Missing { seq: 1, name: found } if *found == name));
    assert!(error.to_string().contains(&name), "{error}");
    shelf.forget(1);
    shelf.got();
    let error = frames.get(&stored).await.unwrap_err();
    assert!(matches!(error, FrameError::Missing { seq: 1, .. }));
    assert_eq!(shelf.got(), [], "there is no name to ask for");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_frame_is_asked_for_again_by_itself() {
    let sealed = DataKey::random().cipher(VOLUME);
    for cipher in [Cipher::Plain, sealed] {
        for times in 1..=3 {
            let shelf = Shelf::new(cipher.clone(), Compression::Lz4);
            let stored = shelf.store(1, 0, &row(5));
            let (from, length) = (u64::from(stored[3].offset), u64::from(stored[3].stored));
            shelf.damage(1, from + 1000, times);
            let frames = shelf.frames(64 * MIB);
            check(&stored, &frames.get(&stored).await.unwrap());
            let mut again = vec![(shelf.object(1), from, Some(length)); times.min(2)];
            if times == 3 {
                again.push((shelf.object(1), 0, None));
            }
            assert_eq!(shelf.got()[1..], again);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_stays_damaged_is_named_and_spoils_nothing_else() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(5));
    shelf.damage(1, u64::from(stored[3].offset) + 1000, usize::MAX);
    let frames = shelf.frames(64 * MIB);
    let error = frames.get(&stored).await.unwrap_err();
    let FrameError::Damaged {
        seq,
        name,
        offset,
        damage,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (*seq, name, *offset),
        (1, &shelf.object(1), stored[3].offset)
    );
    assert_eq!(*damage, Damage::Checksum);
    for (at, frame) in stored.iter().enumerate() {
        assert_eq!(frames.cached(frame).is_some(), at != 3, "frame {at}");
    }
    // Nor is the failure kept.
    shelf.got();
    assert!(frames.get(&stored[3..4]).await.is_err());
    assert_eq!(shelf.got().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_ends_early_is_damaged_from_there_on() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(5));
    let body = shelf.body(1);
    shelf.set(1, Some(body.slice(..stored[3].offset as usize + 77)));
    let frames = shelf.frames(64 * MIB);
    check(&stored[..3], &frames.get(&stored[..3]).await.unwrap());
    for frame in &stored[3..] {
        let error = frames.get(&[*frame]).await.unwrap_err();
        let truncated = Damage::Truncated("the object ends before the frame does");
        assert!(matches!(error, FrameError::Damaged { damage, .. } if damage == truncated));
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_is_refused_for_any_other_part_of_the_device() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(2));
    let frames = shelf.frames(64 * MIB);
    frames.get(&stored).await.unwrap();
    let other = FrameRef {
        address: 16,
        ..stored[0]
    };
    assert_eq!(frames.cached(&other), None);
    let error = frames.get(&[other]).await.unwrap_err();
    assert!(matches!(
        error,
        FrameError::Damaged {
            damage: Damage::Checksum,
            ..
        }
    ));
}

#[tokio::test]
async fn a_length_that_no_frame_has_is_refused_before_anything_is_asked_for() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(2));
    let frames = shelf.frames(64 * MIB);
    for length in [0, 70_000, u32::MAX] {
        let wanted = [
            stored[0],
            FrameRef {
                stored: length,
                ..stored[1]
            },
        ];
        let error = frames.get(&wanted).await.unwrap_err();
        assert!(matches!(
            error,
            FrameError::Damaged {
                damage: Damage::Malformed(_),
                ..
            }
        ));
        frames.prefetch(&wanted[1..]);
    }
    assert_eq!(shelf.got(), []);
}

#[tokio::test]
async fn what_is_prefetched_needs_no_get_later() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(64));
    shelf.hold();
    let frames = shelf.frames(64 * MIB);
    frames.prefetch(&stored[..32]);
    frames.prefetch(&stored[..40]);
    shelf.until_got(2).await;
    let reader = reader(&frames, &stored);
    shelf.until_got(3).await;
    shelf.release_all();
    check(&stored, &reader.await.unwrap().unwrap());
    frames.prefetch(&stored);
    assert_eq!(shelf.got().len(), 3, "32 frames, 8 more, and the rest");
}

#[tokio::test]
async fn prefetching_is_bounded_and_goes_on_afterwards() {
    let shelf = Shelf::plain();
    let mut stored = Vec::new();
    for seq in 1..=16 {
        stored.extend(shelf.store(seq, seq * 2048, &row(128)));
    }
    shelf.hold();
    let frames = shelf.frames(64 * MIB);
    frames.prefetch(&stored);
    frames.prefetch(&stored);
    shelf.until_got(1).await;
    shelf.release_all();
    until(|| format!("{frames:?}").contains("under_way: 0")).await;
    let bytes: u64 = shelf
        .got()
        .iter()
        .filter_map(|(_, _, length)| *length)
        .sum();
    assert!(bytes <= 48 * MIB && bytes > 40 * MIB, "{bytes} bytes");
    frames.prefetch(&stored[2000..]);
    until(|| frames.cached(&stored[2047]).is_some()).await;
}

#[tokio::test]
async fn closing_tells_who_waits() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(2));
    shelf.hold();
    let frames = shelf.frames(64 * MIB);
    let waiting = reader(&frames, &stored);
    frames.prefetch(&stored);
    shelf.until_got(1).await;
    frames.close().await;
    assert!(waiting.await.unwrap().is_err());
    assert!(frames.get(&stored).await.is_err());
    frames.prefetch(&stored);
    frames.close().await;
    assert_eq!(shelf.got().len(), 1);
}

#[tokio::test]
async fn no_fetch_outlives_the_last_handle() {
    let shelf = Shelf::plain();
    let stored = shelf.store(1, 0, &row(2));
    shelf.hold();
    let frames = shelf.frames(64 * MIB);
    frames.prefetch(&stored);
    shelf.until_got(1).await;
    drop(frames);
    until(|| Arc::strong_count(&shelf) == 1).await;
}

/// Reads as the kernel does, through the cache's whole life: first at random until
/// the cache is full of what is used often, then one long stream.
#[tokio::test]
async fn a_stream_comes_in_large_gets_and_every_frame_once() {
    let shelf = Shelf::plain();
    let mut stored = Vec::new();
    for seq in 1..=32 {
        // As a segment is: not quite 8 MiB.
        stored.extend(shelf.store(seq, seq * 127 * 16, &row(127)));
    }
    let cache = 64 * MIB;
    let frames = shelf.frames(cache);
    let hot = shelf.store(99, 1 << 20, &row(127 * 8));
    for _ in 0..3 {
        for frame in &hot {
            frames.get(&[*frame]).await.unwrap();
        }
    }
    shelf.got();
    let ahead = ReadAhead::new(cache / 2);
    let end = stored.len() as u64;
    for at in 0..end / 2 {
        // Two frames are a read of 128 KiB; every fourth pair comes in reverse.
        let at = if at % 8 > 5 { at ^ 1 } else { at };
        if let Some(range) = ahead.on_read(at << 17, 1 << 17) {
            let range = (range.start >> 16).min(end)..(range.end >> 16).min(end);
            frames.prefetch(&stored[range.start as usize..range.end as usize]);
        }
        let wanted = &stored[at as usize * 2..at as usize * 2 + 2];
        check(wanted, &frames.get(wanted).await.unwrap());
    }
    let got = shelf.got();
    let bytes: u64 = got.iter().filter_map(|(_, _, length)| *length).sum();
    let all: u64 = stored.iter().map(|frame| u64::from(frame.stored)).sum();
    assert!(bytes * 100 <= all * 101, "{bytes} bytes for {all}");
    assert!(got.len() <= 110, "{} GETs for {} MiB", got.len(), all / MIB);
}
