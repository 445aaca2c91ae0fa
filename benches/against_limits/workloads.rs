//! What is measured: each takes one round, the limit and ours in turns.

use std::path::Path;

use tokio::time::Instant;

use crate::client::{Client, Pattern};
use crate::figures::{Cost, Figures, Row};
use crate::link::Link;
use crate::plain::Plain;
use crate::requests::Log;
use crate::server::{Made, Nbdkit, SEGMENT, Server, Volume};
use crate::{Failure, MIB, median};

/// Requests in flight where many are.
const DEPTH: usize = 32;
/// The part of the device that random writes go to.
const SPREAD: u64 = 1 << 30;
const BLOCK: u64 = 4096;

/// Sequential writes until durable and cold reads, 1 MiB a request.
pub fn sequential(
    figures: &mut Figures,
    link: &Link,
    volumes: &[Volume],
    size: u64,
) -> Result<(), Failure> {
    let mut object_sizes: Vec<u64> = volumes.iter().map(|v| v.object_size()).collect();
    object_sizes.dedup();
    for object_size in object_sizes {
        // What is made of many small objects takes long, and is as telling when short.
        let size = (size * object_size / SEGMENT).max(size / 8);
        let (put, get) = link.run(|| async move {
            let plain = Plain::reached_at(link.host).await?;
            let times = (
                plain.put(object_size, size).await?,
                plain.get(object_size, size).await?,
            );
            plain.clean(object_size, size).await?;
            Ok(times)
        })?;
        let mib = size as f64 / MIB as f64;
        let (put, get) = (mib / put.as_secs_f64(), mib / get.as_secs_f64());
        for &volume in volumes.iter().filter(|v| v.object_size() == object_size) {
            let (write, read) =
                link.run(|| async move { sequential_once(link, volume, size).await })?;
            let gib = mib / 1024.0;
            figures.add(
                link,
                Row::Write,
                volume,
                mib / write.0,
                put,
                write.1.per(gib),
            );
            figures.add(link, Row::Read, volume, mib / read.0, get, read.1.per(gib));
        }
    }
    Ok(())
}

type Timed = (f64, Cost);

async fn sequential_once(
    link: &Link,
    volume: Volume,
    size: u64,
) -> Result<(Timed, Timed), Failure> {
    let pattern = Pattern::Sequential { size, request: MIB };
    let server = Made::setup(volume, size, link.host)?.serve().await?;
    let write = watched(&server, async |client| client.write(pattern, 8).await).await?;
    let server = server.end().await?.serve().await?;
    let read = watched(&server, async |client| client.read(pattern, 8).await).await?;
    remove(server, volume).await?;
    Ok((write, read))
}

/// How long it took, and what it cost.
async fn watched(
    server: &Server,
    work: impl AsyncFnOnce(&mut Client) -> Result<std::time::Duration, Failure>,
) -> Result<Timed, Failure> {
    let mut client = Client::connect(server.socket()).await?;
    let log = Log::now().await?;
    let before = server.cpu_seconds();
    let time = work(&mut client).await?;
    let cpu = server.cpu_seconds() - before;
    let requests = log.seen(server.container()).await?;
    Ok((time.as_secs_f64(), Cost::new(cpu, requests)))
}

/// Ends it, and removes what takes room: small objects take longer than they are worth.
async fn remove(server: Server, volume: Volume) -> Result<(), Failure> {
    let made = server.end().await?;
    match volume {
        Volume::One { .. } => Ok(()),
        Volume::Two { .. } => made.delete(),
    }
}

/// 4 KiB random writes with a final flush, beside the same bytes as plain PUTs of the
/// size of a segment.
pub fn random_writes(
    figures: &mut Figures,
    link: &Link,
    volumes: &[Volume],
    size: u64,
) -> Result<(), Failure> {
    let put = link.run(|| async move {
        let plain = Plain::reached_at(link.host).await?;
        let time = plain.put(SEGMENT, size).await?;
        plain.clean(SEGMENT, size).await?;
        Ok(time.as_secs_f64())
    })?;
    let limit = size as f64 / BLOCK as f64 / put;
    for &volume in volumes {
        let count = match volume {
            // Each costs it an object.
            Volume::One { .. } => size / BLOCK / 32,
            Volume::Two { .. } => size / BLOCK,
        };
        let pattern = Pattern::Random {
            size: SPREAD,
            request: BLOCK,
            count,
        };
        let (time, cost) = link.run(|| async move {
            let server = Made::setup(volume, SPREAD, link.host)?.serve().await?;
            let done = watched(&server, async |client| client.write(pattern, DEPTH).await).await?;
            remove(server, volume).await?;
            Ok(done)
        })?;
        let gib = (count * BLOCK) as f64 / (1u64 << 30) as f64;
        figures.add(
            link,
            Row::Random,
            volume,
            count as f64 / time,
            limit,
            cost.per(gib),
        );
    }
    Ok(())
}

/// One 4 KiB write and a flush at a time, beside one plain PUT of 4 KiB: milliseconds.
pub fn flushes(
    figures: &mut Figures,
    link: &Link,
    volumes: &[Volume],
    count: u64,
) -> Result<(), Failure> {
    for &volume in volumes {
        let (ours, limit, cost) = link.run(|| async move {
            let plain = Plain::reached_at(link.host).await?;
            // So that neither waits for a connection.
            plain.put_alone(BLOCK, 3).await?;
            let server = Made::setup(volume, SPREAD, link.host)?.serve().await?;
            let mut times = Vec::new();
            let one = Pattern::Random {
                size: SPREAD,
                request: BLOCK,
                count: 1,
            };
            let before = plain.put_alone(BLOCK, count / 2).await?;
            let (_, cost) = watched(&server, async |client| {
                let start = Instant::now();
                for _ in 0..count {
                    times.push(client.write(one, 1).await?.as_secs_f64());
                }
                Ok(start.elapsed())
            })
            .await?;
            let after = plain.put_alone(BLOCK, count - count / 2).await?;
            remove(server, volume).await?;
            Ok((median(&times), median(&[before, after].concat()), cost))
        })?;
        let gib = (count * BLOCK) as f64 / (1u64 << 30) as f64;
        figures.add(
            link,
            Row::Flush,
            volume,
            ours * 1e3,
            limit * 1e3,
            cost.per(gib),
        );
    }
    Ok(())
}

/// 4 KiB random reads of data in memory, beside nbdkit's memory plugin.
pub fn hot_reads(
    figures: &mut Figures,
    link: &Link,
    volumes: &[Volume],
    count: u64,
) -> Result<(), Failure> {
    let size = 32 * MIB;
    for &volume in volumes {
        let (ours, limit, cost) = link.run(|| async move {
            let nbdkit = Nbdkit::memory(size).await?;
            let server = Made::setup(volume, size, link.host)?.serve().await?;
            for socket in [server.socket(), &nbdkit.socket()] {
                fill(socket, size).await?;
            }
            // From Swift into memory again, so that what is hot is the cache.
            let server = server.end().await?.serve().await?;
            let reads = Pattern::Random {
                size,
                request: BLOCK,
                count,
            };
            let whole = Pattern::Sequential { size, request: MIB };
            let mut client = Client::connect(&nbdkit.socket()).await?;
            client.read(whole, 8).await?;
            let base = client.read(reads, DEPTH).await?.as_secs_f64();
            let mut client = Client::connect(server.socket()).await?;
            client.read(whole, 8).await?;
            drop(client);
            let (time, cost) =
                watched(&server, async |client| client.read(reads, DEPTH).await).await?;
            remove(server, volume).await?;
            Ok((count as f64 / time, count as f64 / base, cost))
        })?;
        let gib = (count * BLOCK) as f64 / (1u64 << 30) as f64;
        figures.add(link, Row::Hot, volume, ours, limit, cost.per(gib));
    }
    Ok(())
}

async fn fill(socket: &Path, size: u64) -> Result<(), Failure> {
    let mut client = Client::connect(socket).await?;
    let whole = Pattern::Sequential { size, request: MIB };
    client.write(whole, 8).await?;
    Ok(())
}
