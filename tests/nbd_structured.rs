//! Structured replies and BLOCK_STATUS, spoken to in raw bytes.

mod nbd_support;

use bytes::Bytes;
use nbd_support::*;
use proptest::prelude::*;
use swiftnbd::device::Device;
use swiftnbd::image::ImageError;
use swiftnbd::nbd::{Agreed, Limits, Terms};
use swiftnbd::store::{ErrorKind, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const BLOCK_STATUS: u16 = 7;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;

fn terms(structured: bool, block_status: bool) -> Terms {
    Terms {
        agreed: Agreed {
            structured,
            block_status,
        },
        ..Terms::default()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Chunk {
    Data(u64, Bytes),
    Hole(u64, u32),
    Status(Vec<(u32, u32)>),
    Error(u32, String),
    /// A simple reply without an error.
    Done,
}

trait StructuredClient {
    async fn chunk(&mut self, cookie: u64) -> (Chunk, bool);
    async fn chunks(&mut self, cookie: u64) -> Vec<Chunk>;
    async fn one(&mut self, request: Vec<u8>) -> Chunk;
}

impl StructuredClient for Client<DuplexStream> {
    /// A chunk, and whether it is the last one.
    async fn chunk(&mut self, cookie: u64) -> (Chunk, bool) {
        let magic = self.0.read_u32().await.unwrap();
        if magic == 0x6744_6698 {
            assert_eq!(self.0.read_u32().await.unwrap(), OK, "errors have a text");
            assert_eq!(self.0.read_u64().await.unwrap(), cookie);
            return (Chunk::Done, true);
        }
        assert_eq!(magic, 0x668e_33ef);
        let flags = self.0.read_u16().await.unwrap();
        let kind = self.0.read_u16().await.unwrap();
        assert_eq!(self.0.read_u64().await.unwrap(), cookie);
        let length = self.0.read_u32().await.unwrap();
        let chunk = match kind {
            1 => {
                let offset = self.0.read_u64().await.unwrap();
                Chunk::Data(offset, self.data(length as usize - 8).await.into())
            }
            2 => {
                assert_eq!(length, 12);
                let offset = self.0.read_u64().await.unwrap();
                Chunk::Hole(offset, self.0.read_u32().await.unwrap())
            }
            5 => {
                assert_eq!(self.0.read_u32().await.unwrap(), 1, "the context");
                let mut extents = Vec::new();
                for _ in 0..(length - 4) / 8 {
                    let length = self.0.read_u32().await.unwrap();
                    extents.push((length, self.0.read_u32().await.unwrap()));
                }
                Chunk::Status(extents)
            }
            0x8001 => {
                let error = self.0.read_u32().await.unwrap();
                let length = self.0.read_u16().await.unwrap();
                let text = self.data(length.into()).await;
                Chunk::Error(error, String::from_utf8(text).unwrap())
            }
            _ => panic!("a chunk of kind {kind}"),
        };
        (chunk, flags == 1)
    }

    async fn chunks(&mut self, cookie: u64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        loop {
            let (chunk, last) = self.chunk(cookie).await;
            chunks.push(chunk);
            if last {
                return chunks;
            }
        }
    }

    /// Sends a request of cookie 1 whose answer is one chunk.
    async fn one(&mut self, request: Vec<u8>) -> Chunk {
        self.send(&request).await;
        let mut chunks = self.chunks(1).await;
        assert_eq!(chunks.len(), 1);
        chunks.remove(0)
    }
}

#[tokio::test]
async fn reads_come_in_chunks_and_zeros_are_not_sent() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, terms(true, false));
    let data: Vec<u8> = (0..100 << 10).map(|at| (at % 251) as u8 + 1).collect();
    client.send(&write(1, 0, &data)).await;
    assert_eq!(client.chunks(1).await, [Chunk::Done]);
    let read = |flags, offset, length| header(flags, READ, 1, offset, length);
    let all = Chunk::Data(512, data[512..].to_vec().into());
    let length = data.len() as u32 - 512;
    assert!(client.one(read(0, 512, length)).await == all);
    assert!(client.one(read(DF, 512, length)).await == all);
    let zeros = client.one(read(0, 1 << 20, 1 << 20)).await;
    assert_eq!(zeros, Chunk::Hole(1 << 20, 1 << 20));
    let zeros = client.one(read(DF, 1 << 20, 32 << 10)).await;
    assert_eq!(zeros, Chunk::Hole(1 << 20, 32 << 10));
    // The image gives a third and the rest: only the rest is zeros.
    client.send(&read(0, 50 << 10, 150 << 10)).await;
    let (first, second) = (50 << 10, 100 << 10);
    let wanted = [
        Chunk::Data(first, data[50 << 10..].to_vec().into()),
        Chunk::Hole(second, 100 << 10),
    ];
    assert!(client.chunks(1).await == wanted);
    let Chunk::Data(_, whole) = client.one(read(DF, 50 << 10, 150 << 10)).await else {
        panic!("not data");
    };
    assert!(whole[..50 << 10] == data[50 << 10..] && whole[50 << 10..].iter().all(|b| *b == 0));
}

#[tokio::test]
async fn errors_have_a_text() {
    let image = TestImage::new(KEPT);
    let device = Device::new(image.clone(), 512, true);
    let (mut client, _server) = start_device(device, terms(true, true));
    let text = |chunk| match chunk {
        Chunk::Error(error, text) => (error, text),
        other => panic!("{other:?}"),
    };
    let refused = text(client.one(write(1, 0, &[1; 512])).await);
    assert_eq!(refused, (EPERM, "the device is read-only".to_owned()));
    for (command, offset, length) in [(READ, KEPT, 512), (BLOCK_STATUS, KEPT, 512), (READ, 1, 512)]
    {
        let (error, said) = text(client.one(header(0, command, 1, offset, length)).await);
        assert_eq!(error, EINVAL);
        assert!(said.contains(&offset.to_string()), "{said}");
    }
    let failure = StoreError::new(
        ErrorKind::Quota,
        "GET",
        "c/disk.part/00000003",
        "é".repeat(3000),
    );
    *image.misbehave.lock().unwrap() = Some(Misbehave::Fail(ImageError::Store(failure)));
    let (error, said) = text(client.one(header(0, READ, 1, 0, 512)).await);
    assert_eq!(error, EIO);
    assert!(said.contains("disk.part/00000003") && said.len() < 2000);
    // The stream is where it should be.
    *image.misbehave.lock().unwrap() = None;
    assert_eq!(client.one(header(0, FLUSH, 1, 0, 0)).await, Chunk::Done);
}

#[tokio::test]
async fn block_status_tells_holes() {
    let image = TestImage::new(1 << 40);
    let (mut client, _server) = start(&image, terms(true, true));
    let status = |flags, offset, length| header(flags, BLOCK_STATUS, 1, offset, length);
    let stretch = STRETCH as u32;
    let found = client.one(status(0, 512, 3 * stretch)).await;
    let wanted = [(stretch - 512, 0), (stretch, 3), (stretch, 0), (512, 3)];
    assert_eq!(found, Chunk::Status(wanted.to_vec()));
    let found = client
        .one(status(REQ_ONE | FUA, STRETCH, 3 * stretch))
        .await;
    assert_eq!(found, Chunk::Status(vec![(stretch, 3)]));
    // As many as may be, however much is asked for.
    let Chunk::Status(many) = client.one(status(0, 0, u32::MAX - 511)).await else {
        panic!("no extents");
    };
    assert_eq!(many.len(), 1024);
    let refused = [status(DF, 0, 512), status(0, 0, 0), status(0, 100, 512)];
    for request in refused {
        assert!(matches!(client.one(request).await, Chunk::Error(EINVAL, _)));
    }
    *image.misbehave.lock().unwrap() = Some(Misbehave::Panic);
    assert!(matches!(
        client.one(status(0, 0, 512)).await,
        Chunk::Error(EIO, _)
    ));
}

#[tokio::test]
async fn what_was_not_agreed_on_is_refused() {
    let image = TestImage::new(KEPT);
    let (mut client, _server) = start(&image, terms(true, false));
    let refused = client.one(header(0, BLOCK_STATUS, 1, 0, 512)).await;
    assert!(matches!(refused, Chunk::Error(EINVAL, _)));
    let refused = client.one(header(REQ_ONE, READ, 1, 0, 512)).await;
    assert!(matches!(refused, Chunk::Error(EINVAL, _)));
    let (mut client, _server) = start(&image, terms(false, false));
    assert_eq!(client.ask(0, BLOCK_STATUS, 0, 512).await, EINVAL);
    assert_eq!(client.ask(DF, READ, 0, 512).await, EINVAL);
}

proptest! {
    /// Whatever comes, it ends when the client has left, and what was sent until
    /// then makes sense.
    #[test]
    fn any_requests_are_survived(
        requests in prop::collection::vec(
            (
                prop_oneof![Just(0), Just(DF), Just(REQ_ONE), any::<u16>()],
                0..9u16,
                prop_oneof![(0..8192u64).prop_map(|block| block * 512), any::<u64>()],
                prop_oneof![(0..200u32).prop_map(|blocks| blocks * 512), any::<u32>()],
            ),
            0..30,
        ),
        cut in prop_oneof![Just(usize::MAX), 0..3000usize],
        block_status: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let image = TestImage::new(KEPT);
            image.gate.add_permits(1000);
            let terms = Terms {
                limits: Limits { requests: 7, bytes: 100_000 },
                ..terms(true, block_status)
            };
            let (client, server) = start(&image, terms);
            let mut bytes = Vec::new();
            for (flags, command, offset, length) in &requests {
                bytes.extend(header(*flags, *command, 1, *offset, *length));
                if *command == WRITE {
                    bytes.resize(bytes.len() + (*length).min(100 << 10) as usize, 7);
                }
            }
            bytes.truncate(cut);
            let (mut replies, mut sender) = tokio::io::split(client.0);
            let sending = async {
                let _ = sender.write_all(&bytes).await;
                let _ = sender.shutdown().await;
            };
            let mut sink = tokio::io::sink();
            let receiving = tokio::io::copy(&mut replies, &mut sink);
            let all = async { tokio::join!(server, sending, receiving) };
            let ended = tokio::time::timeout(std::time::Duration::from_secs(5), all).await;
            assert!(ended.expect("the server hangs").0.is_ok(), "the server panicked");
        });
    }
}
