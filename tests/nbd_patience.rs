//! Clients that keep the server waiting, and what the others notice of them.

mod nbd_support;

use std::time::Duration;

use nbd_support::*;
use swiftnbd::nbd::{Limits, Pool, Terms, TransmissionError};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);

fn terms(pool: Option<&Pool>) -> Terms {
    Terms {
        pool: pool.cloned(),
        patience: Some(PATIENCE),
        ..Terms::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_begun_is_to_be_finished() {
    let refused = write(1, 1, &[0; 512]);
    let good = write(1, 0, &[0; 512]);
    for part in [
        &good[..1],
        &good[..27],
        &good[..28],
        &good[..300],
        &refused[..300],
    ] {
        let image = TestImage::new(KEPT);
        let (mut client, server) = start(&image, terms(None));
        // Between requests there is no hurry.
        sleep(10 * PATIENCE).await;
        assert_eq!(client.ask(0, FLUSH, 0, 0).await, OK);
        sleep(10 * PATIENCE).await;
        client.send(part).await;
        let began = Instant::now();
        let ended = server.await.unwrap();
        assert!(matches!(ended, Err(TransmissionError::Stalled)));
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < 2 * PATIENCE);
    }
}

#[tokio::test(start_paused = true)]
async fn replies_are_to_be_taken() {
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, terms(None));
    for cookie in 0..8 {
        client.send(&header(0, READ, cookie, 0, 64 << 10)).await;
    }
    let ended = server.await.unwrap();
    let Err(TransmissionError::Io(error)) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

/// A reply that was left half taken is followed by nothing: the client would take
/// that for the rest of it.
#[tokio::test(start_paused = true)]
async fn nothing_follows_half_a_reply() {
    const PIPE: usize = 64 << 10;
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, terms(None));
    client.send(&header(0, READ, 1, GATED, 512)).await;
    client.send(&header(0, READ, 2, 0, 2 * PIPE as u32)).await;
    sleep(2 * PATIENCE).await;
    // It waits for what is in flight.
    assert!(!server.is_finished());
    assert_eq!(client.reply().await, (OK, 2));
    client.data(PIPE - 16).await;
    image.gate.add_permits(1);
    client.assert_end().await;
    assert!(matches!(
        server.await.unwrap(),
        Err(TransmissionError::Io(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_is_not_enough() {
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, terms(None));
    client.send(&header(0, READ, 1, 0, 1 << 20)).await;
    let mut taken = 0;
    while !server.is_finished() {
        client.data(1).await;
        taken += 1;
        assert!(taken < 100, "it goes on for ever");
        sleep(PATIENCE / 10).await;
    }
    assert!(taken >= 9);
}

#[tokio::test(start_paused = true)]
async fn slow_is_not_stuck() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, terms(None));
    // One reply a while, never all of them.
    for cookie in 0..8 {
        client.send(&header(0, READ, cookie, 0, 64 << 10)).await;
    }
    for cookie in 0..8 {
        sleep(PATIENCE * 9 / 10).await;
        assert_eq!(client.reply().await, (OK, cookie));
        client.data(64 << 10).await;
    }
    // The volume may take as long as it needs.
    client.send(&header(0, READ, 9, GATED, 512)).await;
    sleep(10 * PATIENCE).await;
    image.gate.add_permits(1);
    assert_eq!(client.reply().await, (OK, 9));
    client.data(512).await;
    // Requests of which a part is always there already.
    let flush = header(0, FLUSH, 1, 0, 0);
    let halves = [&flush[14..], &flush[..14]].concat();
    client.send(&flush[..14]).await;
    for _ in 0..10 {
        sleep(PATIENCE * 9 / 10).await;
        client.send(&halves).await;
        assert_eq!(client.reply().await, (OK, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn who_holds_the_common_memory_stops_nobody() {
    const OWN: u64 = 64 << 10;
    let pool = Pool::new(1 << 20, OWN);
    let image = TestImage::new(KEPT);
    // Two that never read: all of the common part is theirs.
    let mut greedy = Vec::new();
    for _ in 0..2 {
        let (mut client, server) = start(&image, terms(Some(&pool)));
        for cookie in 0..64 {
            client.send(&header(0, READ, cookie, 0, 128 << 10)).await;
        }
        greedy.push((client, server));
    }
    sleep(Duration::from_secs(1)).await;
    let read = image.started();
    assert!((4..=20).contains(&read), "{read} requests were let in");

    // Ordinary requests go on meanwhile; a large one waits for them to be left.
    let (mut client, _server) = start(&image, terms(Some(&pool)));
    for cookie in 0..100 {
        client.send(&header(0, READ, cookie, 0, OWN as u32)).await;
        assert_eq!(client.reply().await, (OK, cookie));
        client.data(OWN as usize).await;
    }
    let began = Instant::now();
    client.send(&header(0, READ, 1, 0, 512 << 10)).await;
    assert_eq!(client.reply().await, (OK, 1));
    client.data(512 << 10).await;
    assert!(began.elapsed() > PATIENCE / 2, "it did not have to wait");
    for (_client, server) in greedy {
        assert!(server.await.unwrap().is_err());
    }
    // All of it came back.
    client.send(&header(0, READ, 2, 0, 2 << 20)).await;
    assert_eq!(client.reply().await, (OK, 2));
    client.data(2 << 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dropped_gives_its_memory_back() {
    let pool = Pool::new(1 << 20, 0);
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, terms(Some(&pool)));
    for cookie in 0..3 {
        client.send(&header(0, READ, cookie, 0, 1 << 20)).await;
    }
    settle().await;
    server.abort();
    let (mut other, _server) = start(&image, terms(Some(&pool)));
    other.send(&header(0, READ, 7, 0, 1 << 20)).await;
    assert_eq!(other.reply().await, (OK, 7));
}

#[tokio::test(start_paused = true)]
async fn the_kernel_may_take_its_time() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    for cookie in 0..8 {
        client.send(&header(0, READ, cookie, 0, 64 << 10)).await;
    }
    sleep(100 * PATIENCE).await;
    for cookie in 0..8 {
        assert_eq!(client.reply().await, (OK, cookie));
        client.data(64 << 10).await;
    }
    client.send(&header(0, FLUSH, 1, 0, 0)[..9]).await;
    sleep(100 * PATIENCE).await;
    client.send(&header(0, FLUSH, 1, 0, 0)[9..]).await;
    assert_eq!(client.reply().await, (OK, 1));
}
