//! A plain pipelined NBD client: fixed newstyle EXPORT_NAME, simple replies.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Failure;

/// Which requests to send.
#[derive(Debug, Clone, Copy)]
pub enum Pattern {
    /// The first so many bytes in order.
    Sequential { size: u64, request: u64 },
    /// So many requests at random places.
    Random { size: u64, request: u64, count: u64 },
    /// One 4 KiB block at a random place in each of so many equal parts of the device,
    /// of data that compresses: none touches another.
    Scattered { size: u64, count: u64 },
}

pub struct Client {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    rng: fastrand::Rng,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
/// Bytes of random data that writes are cut from, beside their own length.
const POOL: u64 = 1 << 20;

impl Pattern {
    fn request(self) -> u64 {
        match self {
            Pattern::Sequential { request, .. } | Pattern::Random { request, .. } => request,
            Pattern::Scattered { .. } => 4096,
        }
    }

    fn count(self) -> u64 {
        match self {
            Pattern::Sequential { size, request } => size / request,
            Pattern::Random { count, .. } | Pattern::Scattered { count, .. } => count,
        }
    }

    fn offset(self, at: u64, rng: &mut fastrand::Rng) -> u64 {
        match self {
            Pattern::Sequential { request, .. } => at * request,
            Pattern::Random { size, request, .. } => rng.u64(0..size / request) * request,
            Pattern::Scattered { size, count } => {
                let part = size / count / 4096;
                (at * part + rng.u64(0..part)) * 4096
            }
        }
    }

    /// Data that writes are cut from.
    fn pool(self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut pool = vec![0; (self.request() + POOL) as usize];
        match self {
            // Every cut has one of these in it.
            Pattern::Scattered { .. } => pool.iter_mut().step_by(1024).for_each(|byte| *byte = 1),
            _ => rng.fill(&mut pool),
        }
        pool
    }
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Client, Failure> {
        let stream = UnixStream::connect(socket).await?;
        let (from, mut to) = stream.into_split();
        let mut from = BufReader::with_capacity(1 << 20, from);
        let mut greeting = [0; 18];
        from.read_exact(&mut greeting).await?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle and no zeroes, then EXPORT_NAME of the default export.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1u32.to_be_bytes());
        hello.extend_from_slice(&0u32.to_be_bytes());
        to.write_all(&hello).await?;
        let mut export = [0; 10];
        from.read_exact(&mut export).await?;
        Ok(Client {
            from,
            to,
            rng: fastrand::Rng::with_seed(7),
        })
    }

    /// Writes, then flushes. How long both took together.
    pub async fn write(&mut self, pattern: Pattern, depth: usize) -> Result<Duration, Failure> {
        let pool = pattern.pool(&mut self.rng);
        let start = Instant::now();
        self.run(WRITE, pattern, depth, &pool).await?;
        self.flush().await?;
        Ok(start.elapsed())
    }

    pub async fn read(&mut self, pattern: Pattern, depth: usize) -> Result<Duration, Failure> {
        let start = Instant::now();
        self.run(READ, pattern, depth, &[]).await?;
        Ok(start.elapsed())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        let one = Pattern::Sequential {
            size: 1,
            request: 1,
        };
        self.run(FLUSH, one, 1, &[]).await
    }

    async fn run(
        &mut self,
        command: u16,
        pattern: Pattern,
        depth: usize,
        pool: &[u8],
    ) -> Result<(), Failure> {
        let (count, request) = (pattern.count(), pattern.request() as usize);
        let length = if command == FLUSH { 0 } else { request };
        let places = Semaphore::new(depth);
        let (from, to, rng) = (&mut self.from, &mut self.to, &mut self.rng);
        let send = async {
            let mut message = Vec::with_capacity(28 + request);
            for at in 0..count {
                places.acquire().await?.forget();
                message.clear();
                message.extend_from_slice(&0x2560_9513u32.to_be_bytes());
                message.extend_from_slice(&0u16.to_be_bytes());
                message.extend_from_slice(&command.to_be_bytes());
                message.extend_from_slice(&at.to_be_bytes());
                message.extend_from_slice(&pattern.offset(at, rng).to_be_bytes());
                message.extend_from_slice(&(length as u32).to_be_bytes());
                if command == WRITE {
                    // No two are alike for a long while.
                    let cut = (at * 5008 % POOL) as usize;
                    message.extend_from_slice(&pool[cut..cut + request]);
                }
                to.write_all(&message).await?;
            }
            Ok::<(), Failure>(())
        };
        let receive = async {
            let mut body = vec![0; if command == READ { request } else { 0 }];
            for _ in 0..count {
                let mut reply = [0; 16];
                from.read_exact(&mut reply).await?;
                assert_eq!(
                    reply[..8],
                    [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0],
                    "an error reply"
                );
                from.read_exact(&mut body).await?;
                places.add_permits(1);
            }
            Ok::<(), Failure>(())
        };
        tokio::try_join!(send, receive)?;
        Ok(())
    }
}
