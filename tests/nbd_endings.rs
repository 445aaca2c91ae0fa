//! How a transmission phase ends, and what becomes of what is in flight.

mod nbd_support;

use std::future::pending;

use nbd_support::*;
use swiftnbd::device::Device;
use swiftnbd::nbd::{Ended, Limits, TransmissionError, serve};
use tokio::io::{AsyncWriteExt, duplex};
use tokio::sync::oneshot;

#[tokio::test]
async fn disc_waits_for_what_is_in_flight() {
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, Limits::default());
    client.send(&write(1, GATED, &[1; 512])).await;
    client.send(&header(0, DISC, 0, 0, 0)).await;
    // Nothing after DISC is looked at.
    client.send(b"not a request").await;
    image.gate.add_permits(1);
    assert_eq!(client.reply().await, (OK, 1));
    client.assert_end().await;
    assert_eq!(server.await.unwrap().unwrap(), Ended::Disconnected);
}

#[tokio::test]
async fn the_stream_may_end_between_requests() {
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, Limits::default());
    client.send(&write(1, GATED, &[1; 512])).await;
    client.0.shutdown().await.unwrap();
    image.gate.add_permits(1);
    assert_eq!(client.reply().await, (OK, 1));
    client.assert_end().await;
    assert_eq!(server.await.unwrap().unwrap(), Ended::Eof);
}

#[tokio::test]
async fn a_stream_cut_short_completes_what_came_whole() {
    let whole = write(1, GATED, &[1; 512]);
    let next = write(2, 0, &[2; 100 << 10]);
    let refused = write(2, 1, &[2; 512]);
    for rest in [
        &next[..1],
        &next[..27],
        &next[..28],
        &next[..90 << 10],
        &refused[..100],
    ] {
        let image = TestImage::new(KEPT);
        let (mut client, server) = start(&image, Limits::default());
        client.send(&whole).await;
        client.send(rest).await;
        client.0.shutdown().await.unwrap();
        image.gate.add_permits(1);
        assert_eq!(client.reply().await, (OK, 1));
        client.assert_end().await;
        let ended = server.await.unwrap();
        assert!(matches!(ended, Err(TransmissionError::Truncated)));
        assert_eq!(image.finished(), 1);
    }
}

#[tokio::test]
async fn a_lost_stream_is_closed() {
    let long = header(0, WRITE, 2, 0, (64 << 20) + 1);
    for rest in [vec![0; 28], long] {
        let image = TestImage::new(KEPT);
        let (mut client, server) = start(&image, Limits::default());
        client.send(&write(1, GATED, &[1; 512])).await;
        client.send(&rest).await;
        image.gate.add_permits(1);
        assert_eq!(client.reply().await, (OK, 1));
        client.assert_end().await;
        assert!(matches!(
            server.await.unwrap(),
            Err(TransmissionError::BadMagic(_) | TransmissionError::Oversized { .. })
        ));
    }
}

#[tokio::test]
async fn writes_of_a_client_that_vanished_are_completed() {
    let image = TestImage::new(KEPT);
    let (mut client, server) = start(&image, Limits::default());
    client.send(&write(1, GATED, &[1; 512])).await;
    client.send(&header(0, READ, 2, 0, 1 << 20)).await;
    client.reply().await;
    drop(client);
    image.gate.add_permits(1);
    assert!(server.await.unwrap().is_err());
    assert_eq!(image.byte(GATED), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_stream_can_be_served_on() {
    // Stopped within a header, within a payload, within a refused payload.
    stop_and_serve_on(0, 10, OK).await;
    stop_and_serve_on(0, 1000, OK).await;
    stop_and_serve_on(1, 1000, EINVAL).await;
}

async fn stop_and_serve_on(offset: u64, cut: usize, expected: u32) {
    let image = TestImage::new(KEPT);
    let device = Device::new(image.clone(), 512, false);
    let (client, mut server) = duplex(64 << 10);
    let mut client = Client(client);
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let request = write(2, offset, &[2; 4096]);
    let part_one = async {
        // In flight, and a request of which only a part has come.
        client.send(&write(1, GATED, &[1; 512])).await;
        client.send(&request[..cut]).await;
        settle().await;
        stop.send(()).unwrap();
        settle().await;
        // The rest of it, and one that is left to whoever serves on.
        client.send(&request[cut..]).await;
        client.send(&write(3, 512, &[3; 512])).await;
        assert_eq!(client.reply().await, (expected, 2));
        image.gate.add_permits(1);
        assert_eq!(client.reply().await, (OK, 1));
        settle().await;
        assert_ne!(image.byte(512), 3);
    };
    let serving = serve(&mut server, device.clone(), Limits::default(), stopped);
    let (ended, ()) = tokio::join!(serving, part_one);
    assert_eq!(ended.unwrap(), Ended::Stopped);

    tokio::spawn(serve(server, device, Limits::default(), pending()));
    assert_eq!(client.reply().await, (OK, 3));
    assert_eq!(image.byte(512), 3);
}

#[tokio::test]
async fn an_idle_stream_stops_at_once() {
    let image = TestImage::new(KEPT);
    let device = Device::new(image, 512, false);
    let (_client, server) = duplex(64);
    let ended = serve(server, device, Limits::default(), async {}).await;
    assert_eq!(ended.unwrap(), Ended::Stopped);
}
