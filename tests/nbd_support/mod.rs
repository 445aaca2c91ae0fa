//! What the tests of `nbd` share: an image in memory that waits, fails and
//! counts as told, and a client that speaks raw bytes.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::device::{Device, MAX_REQUEST};
use swiftnbd::image::{Extent, ExtentKind, Image, ImageError, Stats};
use swiftnbd::nbd::{Ended, Terms, TransmissionError, serve};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;

pub const OK: u32 = 0;
pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ESHUTDOWN: u32 = 108;

/// Size of the part of a [`TestImage`] that keeps what is written to it.
pub const KEPT: u64 = 4 << 20;

/// From here on, requests wait at the gate.
pub const GATED: u64 = 2 << 20;

/// What every request to an image does instead of succeeding.
#[derive(Debug, Clone)]
pub enum Misbehave {
    Fail(ImageError),
    ShortRead,
    Panic,
}

/// Bytes in memory. Beyond [`KEPT`] everything reads as zeros.
#[derive(Debug)]
pub struct TestImage {
    size: u64,
    data: Mutex<Vec<u8>>,
    /// One permit lets one request at or beyond [`GATED`] pass.
    pub gate: Semaphore,
    pub misbehave: Mutex<Option<Misbehave>>,
    pub started: AtomicUsize,
    pub finished: AtomicUsize,
    pub flushes: AtomicUsize,
}

impl TestImage {
    pub fn new(size: u64) -> Arc<TestImage> {
        Arc::new(TestImage {
            size,
            data: Mutex::new(vec![0; KEPT.min(size) as usize]),
            gate: Semaphore::new(0),
            misbehave: Mutex::new(None),
            started: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
        })
    }

    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    pub fn finished(&self) -> usize {
        self.finished.load(Ordering::SeqCst)
    }

    pub fn flushes(&self) -> usize {
        self.flushes.load(Ordering::SeqCst)
    }

    pub fn byte(&self, offset: u64) -> u8 {
        self.data.lock().unwrap()[offset as usize]
    }

    async fn enter(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        assert!(length > 0 && offset + length <= self.size);
        self.started.fetch_add(1, Ordering::SeqCst);
        if (GATED..KEPT).contains(&offset) {
            self.gate.acquire().await.unwrap().forget();
        }
        let misbehave = self.misbehave.lock().unwrap().clone();
        match misbehave {
            Some(Misbehave::Fail(error)) => Err(error),
            Some(Misbehave::Panic) => panic!("asked to"),
            _ => Ok(()),
        }
    }

    fn fill(&self, offset: u64, length: u64, value: impl Fn(usize) -> u8) {
        let mut data = self.data.lock().unwrap();
        let end = (offset + length).min(data.len() as u64);
        for at in offset..end {
            data[at as usize] = value((at - offset) as usize);
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Image for TestImage {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, ImageError> {
        assert!(length <= MAX_REQUEST);
        self.enter(offset, length.into()).await?;
        let mut bytes = vec![0; length as usize];
        let data = self.data.lock().unwrap();
        if let Some(kept) = data.get(offset as usize..) {
            let kept = &kept[..kept.len().min(bytes.len())];
            bytes[..kept.len()].copy_from_slice(kept);
        }
        if matches!(*self.misbehave.lock().unwrap(), Some(Misbehave::ShortRead)) {
            bytes.pop();
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Bytes::from(bytes);
        let head = bytes.split_to(bytes.len() / 3);
        Ok(vec![head, Bytes::new(), bytes])
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ImageError> {
        assert!(data.len() <= MAX_REQUEST as usize);
        self.enter(offset, data.len() as u64).await?;
        self.fill(offset, data.len() as u64, |at| data[at]);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.enter(offset, length).await?;
        self.fill(offset, length, |_| 0);
        Ok(())
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        self.write_zeroes(offset, length).await
    }

    async fn flush(&self) -> Result<(), ImageError> {
        if let Some(Misbehave::Fail(error)) = self.misbehave.lock().unwrap().clone() {
            return Err(error);
        }
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn close(&self) -> Result<(), ImageError> {
        Ok(())
    }

    async fn hand_over(&self, _: Duration) -> Result<bool, ImageError> {
        Ok(true)
    }

    /// Stretches of 64 KiB, every other one a hole, the first one data.
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Extent>, ImageError> {
        self.enter(offset, length).await?;
        let (mut at, mut found) = (offset, Vec::new());
        while at < offset + length && found.len() < most {
            let end = (at / STRETCH + 1) * STRETCH;
            let kind = match at / STRETCH % 2 {
                0 => ExtentKind::Data,
                _ => ExtentKind::Hole,
            };
            Extent::append(&mut found, end.min(offset + length) - at, kind);
            at = end;
        }
        Ok(found)
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// Length of a stretch in [`TestImage::extents`].
pub const STRETCH: u64 = 64 << 10;

/// A request's 28 bytes.
pub fn header(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// A WRITE with its payload.
pub fn write(cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(0, WRITE, cookie, offset, payload.len() as u32);
    bytes.extend(payload);
    bytes
}

/// The client's end of a connection.
pub struct Client<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// A reply's error and cookie.
    pub async fn reply(&mut self) -> (u32, u64) {
        assert_eq!(self.0.read_u32().await.unwrap(), 0x6744_6698);
        let error = self.0.read_u32().await.unwrap();
        (error, self.0.read_u64().await.unwrap())
    }

    pub async fn data(&mut self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.0.read_exact(&mut data).await.unwrap();
        data
    }

    /// Sends a request that has neither payload nor data, and returns the error.
    pub async fn ask(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
        self.send(&header(flags, command, 4711, offset, length))
            .await;
        let (error, cookie) = self.reply().await;
        assert_eq!(cookie, 4711);
        error
    }

    /// Asserts that nothing more comes.
    pub async fn assert_end(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{} bytes too many", rest.len());
    }
}

pub type Server = JoinHandle<Result<Ended, TransmissionError>>;

/// Serves an image to a client over a pipe of 64 KiB in memory.
pub fn start(image: &Arc<TestImage>, terms: impl Into<Terms>) -> (Client<DuplexStream>, Server) {
    start_device(Device::new(image.clone(), 512, false), terms)
}

pub fn start_device(device: Device, terms: impl Into<Terms>) -> (Client<DuplexStream>, Server) {
    let (client, server) = duplex(64 << 10);
    let server = tokio::spawn(serve(server, device, terms.into(), pending()));
    (Client(client), server)
}

/// Returns when every task waits for something that only the test can bring.
/// Needs paused time: the clock moves only when nothing else can.
pub async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}
