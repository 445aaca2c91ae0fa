//! The transmission phase, spoken to in raw bytes.

mod nbd_support;

use std::future::pending;
use std::time::Duration;

use nbd_support::*;
use proptest::prelude::*;
use swiftnbd::device::Device;
use swiftnbd::image::ImageError;
use swiftnbd::nbd::{Ended, Limits, serve};
use swiftnbd::store::{ErrorKind, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test]
async fn what_is_written_is_read() {
    let image = TestImage::new(GATED);
    let device = Device::new(image, 512, false);
    let (client, server) = UnixStream::pair().unwrap();
    let server = tokio::spawn(serve(server, device, Limits::default(), pending()));
    let mut client = Client(client);
    for length in [512, 4096, 60 << 10, 1 << 20] {
        let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        client.send(&write(1, 512, &payload)).await;
        assert_eq!(client.reply().await, (OK, 1));
        client.send(&header(0, READ, 2, 512, length)).await;
        assert_eq!(client.reply().await, (OK, 2));
        assert_eq!(client.data(length as usize).await, payload);
    }
    client.send(&header(0, DISC, 0, 0, 0)).await;
    client.assert_end().await;
    assert_eq!(server.await.unwrap().unwrap(), Ended::Disconnected);
}

#[tokio::test]
async fn zeroes_and_trim_reach_the_image() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    client.send(&write(1, 0, &[7; 4096])).await;
    client.reply().await;
    assert_eq!(client.ask(NO_HOLE, WRITE_ZEROES, 0, 512).await, OK);
    assert_eq!(client.ask(0, TRIM, 1024, 512).await, OK);
    let read = [0, 511, 512, 1023, 1024, 1535, 1536].map(|offset| image.byte(offset));
    assert_eq!(read, [0, 0, 7, 7, 0, 0, 7]);
}

#[tokio::test]
async fn flush_and_fua_flush() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    assert_eq!(client.ask(0, FLUSH, 0, 0).await, OK);
    assert_eq!(image.flushes(), 1);
    assert_eq!(client.ask(FUA, WRITE_ZEROES, 0, 512).await, OK);
    assert_eq!(client.ask(FUA, TRIM, 0, 512).await, OK);
    assert_eq!(image.flushes(), 3);
    let mut request = header(FUA, WRITE, 1, 0, 512);
    request.extend([1; 512]);
    client.send(&request).await;
    assert_eq!(client.reply().await, (OK, 1));
    assert_eq!(image.flushes(), 4);
    // Accepted everywhere, and its reserved fields are not looked at.
    assert_eq!(client.ask(FUA, FLUSH, 512, 512).await, OK);
    client.send(&header(FUA, READ, 1, 0, 512)).await;
    assert_eq!(client.reply().await, (OK, 1));
}

#[tokio::test]
async fn invalid_requests_get_the_documents_errnos() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    let end = KEPT;
    for (flags, command, offset, length, expected) in [
        (0, READ, end, 512, EINVAL),
        (0, READ, end - 512, 1024, EINVAL),
        (0, READ, u64::MAX - 511, 512, EINVAL),
        (0, READ, 0, 0, EINVAL),
        (0, READ, 1, 512, EINVAL),
        (0, READ, 0, 513, EINVAL),
        (0, READ, 0, u32::MAX, EINVAL),
        (0, WRITE, 0, 0, EINVAL),
        (0, WRITE, 0, 511, EINVAL),
        (0, WRITE, 100, 512, EINVAL),
        (0, WRITE, end, 512, ENOSPC),
        (0, WRITE, end - 512, 1024, ENOSPC),
        (0, WRITE, 0, (32 << 20) + 512, EINVAL),
        (0, TRIM, end, 512, EINVAL),
        (0, TRIM, 0, u32::MAX - 511, EINVAL),
        (0, TRIM, 0, 0, EINVAL),
        (0, WRITE_ZEROES, end, 512, ENOSPC),
        (0, WRITE_ZEROES, 0, 0, EINVAL),
        // Flags that were not negotiated, or not for this command: DF,
        // REQ_ONE, FAST_ZERO, PAYLOAD_LEN, NO_HOLE.
        (1 << 2, READ, 0, 512, EINVAL),
        (1 << 3, READ, 0, 512, EINVAL),
        (1 << 4, WRITE_ZEROES, 0, 512, EINVAL),
        (1 << 5, WRITE, 0, 512, EINVAL),
        (NO_HOLE, WRITE, 0, 512, EINVAL),
        (1 << 15, FLUSH, 0, 0, EINVAL),
        // CACHE, BLOCK_STATUS, RESIZE, nonsense.
        (0, 5, 0, 512, EINVAL),
        (0, 7, 0, 512, EINVAL),
        (0, 8, 0, 512, EINVAL),
        (0, 0xffff, 0, 512, EINVAL),
    ] {
        let mut request = header(flags, command, 99, offset, length);
        if command == WRITE {
            // The payload of a refused write is skipped.
            request.resize(request.len() + length as usize, 0xee);
        }
        client.send(&request).await;
        let reply = client.reply().await;
        assert_eq!(reply, (expected, 99), "{command} {offset}+{length}");
    }
    assert_eq!(image.started(), 0);
    assert_eq!(client.ask(0, FLUSH, 0, 0).await, OK);
}

#[tokio::test]
async fn a_read_only_device_is_not_written() {
    let image = TestImage::new(KEPT);
    let device = Device::new(image.clone(), 512, true);
    let (mut client, _server) = start_device(device, Limits::default());
    for length in [512, 1 << 20] {
        client.send(&write(1, 0, &vec![9; length])).await;
        assert_eq!(client.reply().await, (EPERM, 1));
    }
    assert_eq!(client.ask(0, TRIM, 0, 512).await, EPERM);
    assert_eq!(client.ask(0, WRITE_ZEROES, 0, 512).await, EPERM);
    assert_eq!(client.ask(0, FLUSH, 0, 0).await, OK);
    client.send(&header(0, READ, 3, 0, 512)).await;
    assert_eq!(client.reply().await, (OK, 3));
    assert_eq!(client.data(512).await, [0; 512]);
}

#[tokio::test]
async fn failures_of_the_volume_become_errnos() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    let store = StoreError::new(ErrorKind::Quota, "PUT", "c/o", "413");
    for (misbehave, expected) in [
        (Misbehave::Fail(ImageError::Store(store)), EIO),
        (Misbehave::Fail(ImageError::Damaged("short".into())), EIO),
        (Misbehave::Fail(ImageError::Closed), ESHUTDOWN),
        (Misbehave::ShortRead, EIO),
        (Misbehave::Panic, EIO),
    ] {
        *image.misbehave.lock().unwrap() = Some(misbehave);
        assert_eq!(client.ask(0, READ, 0, 512).await, expected);
    }
    let closed = Misbehave::Fail(ImageError::Closed);
    *image.misbehave.lock().unwrap() = Some(closed);
    assert_eq!(client.ask(0, FLUSH, 0, 0).await, ESHUTDOWN);
    // One that waits first becomes a task; its panic is its own too.
    *image.misbehave.lock().unwrap() = Some(Misbehave::Panic);
    client.send(&header(0, TRIM, 5, GATED, 512)).await;
    image.gate.add_permits(1);
    assert_eq!(client.reply().await, (EIO, 5));
    *image.misbehave.lock().unwrap() = None;
    assert_eq!(client.ask(0, TRIM, 0, 512).await, OK);
}

#[tokio::test]
async fn a_slow_request_delays_nobody() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    client.send(&header(0, READ, 1, GATED, 4096)).await;
    client.send(&write(2, GATED + 4096, &[2; 8192])).await;
    client.send(&write(3, 0, &[3; 8192])).await;
    client.send(&header(0, READ, 4, 0, 512)).await;
    client.send(&header(0, FLUSH, 5, 0, 0)).await;
    assert_eq!(client.reply().await, (OK, 3));
    assert_eq!(client.reply().await, (OK, 4));
    assert_eq!(client.data(512).await, [3; 512]);
    assert_eq!(client.reply().await, (OK, 5));
    image.gate.add_permits(1);
    assert_eq!(client.reply().await, (OK, 1));
    client.data(4096).await;
    image.gate.add_permits(1);
    assert_eq!(client.reply().await, (OK, 2));
    assert_eq!(image.byte(GATED + 4096), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_bounded() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, Limits::default());
    for cookie in 0..200 {
        client.send(&header(0, TRIM, cookie, GATED, 512)).await;
    }
    settle().await;
    assert_eq!(image.started(), 128);
    image.gate.add_permits(1);
    client.reply().await;
    settle().await;
    assert_eq!(image.started(), 129);
    image.gate.add_permits(199);
    for _ in 1..200 {
        assert_eq!(client.reply().await.0, OK);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_in_flight_are_bounded() {
    const LENGTH: u64 = 64 << 10;
    let image = TestImage::new(KEPT);
    let limits = Limits {
        requests: 128,
        bytes: 4 * LENGTH,
    };
    let (client, _server) = start(&image, limits);
    let (mut replies, mut requests) = tokio::io::split(client.0);
    let sender = tokio::spawn(async move {
        for cookie in 0..8 {
            let request = write(cookie, GATED, &[1; LENGTH as usize]);
            requests.write_all(&request).await.unwrap();
        }
        requests
    });
    settle().await;
    assert_eq!(image.started(), 4);
    // The fifth payload is neither read nor has it a buffer: what was not sent
    // yet does not fit between the two.
    assert!(!sender.is_finished());
    image.gate.add_permits(1);
    settle().await;
    assert_eq!(image.started(), 5);
    image.gate.add_permits(7);
    let mut bytes = [0; 16 * 8];
    replies.read_exact(&mut bytes).await.unwrap();
    sender.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_not_read_from() {
    let image = TestImage::new(KEPT);
    let limits = Limits {
        requests: 128,
        bytes: 256 << 10,
    };
    let (mut client, _server) = start(&image, limits);
    for cookie in 0..100 {
        client.send(&header(0, READ, cookie, 0, 16 << 10)).await;
    }
    settle().await;
    // 16 of them in flight, and what the pipe took.
    assert!(image.started() <= 16 + 4, "{}", image.started());
    for cookie in 0..100 {
        assert_eq!(client.reply().await, (OK, cookie));
        client.data(16 << 10).await;
    }
}

#[tokio::test]
async fn a_request_larger_than_the_bound_goes_alone() {
    let image = TestImage::new(KEPT);
    let limits = Limits {
        requests: 1,
        bytes: 1,
    };
    let (mut client, _server) = start(&image, limits);
    client.send(&header(0, READ, 1, 0, 512)).await;
    client.send(&header(0, READ, 2, 0, 1 << 20)).await;
    assert_eq!(client.reply().await, (OK, 1));
    client.data(512).await;
    assert_eq!(client.reply().await, (OK, 2));
    client.data(1 << 20).await;
}

#[tokio::test]
async fn trim_and_zeroes_of_four_gibibytes() {
    let image = TestImage::new(1 << 40);
    let (mut client, _server) = start(&image, Limits::default());
    let length = 4_294_966_784;
    assert_eq!(client.ask(0, TRIM, 1 << 32, length).await, OK);
    assert_eq!(client.ask(0, WRITE_ZEROES, 1 << 33, length).await, OK);
}

/// Bytes that look more or less like requests.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        any::<u32>(),
        Just(0),
        Just(512),
        Just(u32::MAX),
        (1..100u32).prop_map(|blocks| blocks * 512),
    ];
    let request = (
        prop_oneof![Just(0), Just(FUA), any::<u16>()],
        prop_oneof![0..8u16, any::<u16>()],
        any::<u64>(),
        prop_oneof![any::<u64>(), (0..8192u64).prop_map(|block| block * 512)],
        number,
        any::<bool>(),
    )
        .prop_map(|(flags, command, cookie, offset, length, payload)| {
            let mut bytes = header(flags, command, cookie, offset, length);
            if command == WRITE && payload {
                bytes.resize(bytes.len() + length.min(100 << 10) as usize, 0x25);
            }
            bytes
        });
    let piece = prop_oneof![
        8 => request,
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever comes, it ends when the client has left: no panic, no hang
    /// (with paused time a hang runs into the timeout at once).
    #[test]
    fn any_bytes_are_survived(bytes in hostile(), requests in 1..20usize, limit in 0..200_000u64) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let image = TestImage::new(KEPT);
            image.gate.add_permits(1000);
            let limits = Limits { requests, bytes: limit };
            let (client, server) = start(&image, limits);
            let (mut replies, mut sender) = tokio::io::split(client.0);
            let sending = async {
                // The server may hang up before the end.
                let _ = sender.write_all(&bytes).await;
                let _ = sender.shutdown().await;
            };
            let mut sink = tokio::io::sink();
            let receiving = tokio::io::copy(&mut replies, &mut sink);
            let all = async { tokio::join!(server, sending, receiving) };
            let (ended, (), _) = tokio::time::timeout(Duration::from_secs(60), all)
                .await
                .expect("the server hangs");
            assert!(ended.is_ok(), "the server panicked");
        });
    }
}
