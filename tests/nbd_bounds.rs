//! Memory stays bounded, whatever a client sends. A file of its own, with one
//! test: it counts every allocation of the process.

mod nbd_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_support::*;
use swiftnbd::device::Device;
use swiftnbd::nbd::{Agreed, Export, Limits, Outcome, Terms, Tls, negotiate};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(now, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: `pointer` came from `alloc` above, that is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: u64 = 4 << 20;

/// Bytes that a connection may need beyond its limit: its buffers, the pipe of
/// the test, a hundred requests.
const OVERHEAD: usize = 1 << 20;

/// Runs one client against a server of a terabyte and returns the bytes that
/// were allocated at most.
async fn peak<F: Future<Output = ()>>(
    client: impl FnOnce(Client<DuplexStream>, Arc<TestImage>) -> F,
) -> usize {
    peak_of(limits().into(), client).await
}

fn limits() -> Limits {
    Limits {
        requests: 128,
        bytes: LIMIT,
    }
}

async fn peak_of<F: Future<Output = ()>>(
    terms: Terms,
    client: impl FnOnce(Client<DuplexStream>, Arc<TestImage>) -> F,
) -> usize {
    let image = TestImage::new(1 << 40);
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let (connection, server) = start(&image, terms);
    client(connection, image).await;
    let _ = server.await.unwrap();
    PEAK.load(Ordering::SeqCst) - before
}

async fn send_zeros(client: &mut Client<DuplexStream>, mut length: usize) {
    while length > 0 {
        let piece = length.min(4096);
        client.send(&[0; 4096][..piece]).await;
        length -= piece;
    }
}

/// Sends one header, leaves, and reads whatever comes.
async fn one(header: Vec<u8>) -> usize {
    peak(|mut client, _| async move {
        client.send(&header).await;
        client.0.shutdown().await.unwrap();
        let mut sink = tokio::io::sink();
        tokio::io::copy(&mut client.0, &mut sink).await.unwrap();
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn no_client_can_make_it_grow() {
    for command in [READ, WRITE, TRIM, WRITE_ZEROES, 5, 7] {
        for length in [u32::MAX, u32::MAX - 511, 64 << 20, (32 << 20) + 512] {
            let used = one(header(0, command, 1, 0, length)).await;
            assert!(used < OVERHEAD, "{command} {length}: {used}");
        }
    }

    // Refused writes are skipped, not kept.
    let used = peak(|mut client, _| async move {
        for cookie in 0..4 {
            let refused = header(0, WRITE, cookie, 1, 64 << 20);
            client.send(&refused).await;
            send_zeros(&mut client, 64 << 20).await;
            assert_eq!(client.reply().await, (EINVAL, cookie));
        }
    })
    .await;
    assert!(used < OVERHEAD, "{used}");

    // Reads whose data nobody takes.
    let used = peak(|mut client, _| async move {
        for cookie in 0..1000 {
            let read = header(0, READ, cookie, 0, 1 << 20);
            client.send(&read).await;
        }
        settle().await;
    })
    .await;
    assert!(used < LIMIT as usize + OVERHEAD, "{used}");

    // Writes that wait in the image while more are sent.
    let used = peak(|mut client, image| async move {
        for cookie in 0..16 {
            let write = header(0, WRITE, cookie, GATED, 256 << 10);
            client.send(&write).await;
            send_zeros(&mut client, 256 << 10).await;
        }
        let (mut replies, mut requests) = tokio::io::split(client.0);
        let more = tokio::spawn(async move {
            let mut endless = header(0, WRITE, 16, GATED, 1 << 20);
            endless.resize(endless.len() + (1 << 20), 0);
            requests.write_all(&endless).await.unwrap();
            requests.shutdown().await.unwrap();
        });
        settle().await;
        assert_eq!(image.started(), 16);
        assert!(!more.is_finished());
        image.gate.add_permits(17);
        let mut sink = tokio::io::sink();
        tokio::io::copy(&mut replies, &mut sink).await.unwrap();
        more.await.unwrap();
    })
    .await;
    // The client's own megabyte is in there.
    assert!(used < LIMIT as usize + (1 << 20) + OVERHEAD, "{used}");

    // The same in chunks, and extents that nobody takes.
    for command in [READ, 7] {
        let used = peak_of(structured(), |mut client, _| async move {
            for cookie in 0..1000 {
                let request = header(0, command, cookie, 0, 16 << 20);
                client.send(&request).await;
            }
            settle().await;
        })
        .await;
        // One request alone may be larger than the limit.
        assert!(used < (16 << 20) + 2 * OVERHEAD, "{command}: {used}");
    }

    hostile_handshakes().await;
}

fn structured() -> Terms {
    Terms {
        agreed: Agreed {
            structured: true,
            block_status: true,
        },
        ..limits().into()
    }
}

async fn hostile_handshakes() {
    let export = Export {
        name: "a".into(),
        description: String::new(),
    };
    let exports = vec![(export, Device::new(TestImage::new(KEPT), 512, false))];
    let cases = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 99_u32]
        .into_iter()
        .flat_map(|option| [u32::MAX, 1 << 20, 9000, 8192].map(|length| (option, length)));
    for (option, length) in cases {
        for tls in [Tls::None, Tls::Required] {
            let before = NOW.load(Ordering::SeqCst);
            PEAK.store(before, Ordering::SeqCst);
            let (client, mut server) = duplex(4096);
            let (mut replies, mut sender) = tokio::io::split(client);
            let sending = async {
                sender.write_all(&[0, 0, 0, 3]).await.unwrap();
                // Structured replies, without which there are no contexts.
                sender
                    .write_all(b"IHAVEOPT\0\0\0\x08\0\0\0\0")
                    .await
                    .unwrap();
                sender.write_all(b"IHAVEOPT").await.unwrap();
                sender.write_all(&option.to_be_bytes()).await.unwrap();
                sender.write_all(&length.to_be_bytes()).await.unwrap();
                let mut endless = tokio::io::repeat(0).take(length.into());
                let _ = tokio::io::copy(&mut endless, &mut sender).await;
                let _ = sender.shutdown().await;
            };
            let receiving = async {
                let mut sink = tokio::io::sink();
                let _ = tokio::io::copy(&mut replies, &mut sink).await;
            };
            let negotiating = async {
                let outcome = negotiate(&mut server, &exports, tls).await;
                assert!(!matches!(outcome, Ok(Outcome::Chosen(_))));
                drop(server);
            };
            tokio::join!(negotiating, sending, receiving);
            let used = PEAK.load(Ordering::SeqCst) - before;
            assert!(used < 64 << 10, "{option} {length}: {used}");
        }
    }
}
