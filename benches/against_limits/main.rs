//! How fast it is, each figure beside its limit, all measured in one run and in
//! turns: a plain parallel PUT and GET of objects of the same size on the same
//! Swift, with the same checksums; nbdkit's memory plugin over the same kind of
//! socket. Run it with `scripts/bench`, which brings the Swift.

mod client;
mod plain;
mod server;

use std::time::Duration;

use client::{Client, Pattern};
use plain::Plain;
use server::{Nbdkit, Server};

/// Rounds of every measurement; the median and the spread are shown.
const ROUNDS: usize = 3;
/// Requests in flight.
const DEPTH: usize = 32;
const MIB: u64 = 1 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // `cargo test --benches` runs this too, with no Swift: say so, do nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("run it with scripts/bench");
        return Ok(());
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plain = Plain::from_environment().await?;
    println!("| what | swiftnbd | limit | ratio (spread) | CPU s/GiB |");
    println!("|---|---|---|---|---|");
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |what: &str| words.is_empty() || words.iter().any(|word| word == what);
    if wanted("streaming") {
        for (object_size, volume_mib) in [(64 << 10, 64), (1 << 20, 256), (4 << 20, 256)] {
            streaming(&plain, object_size, volume_mib * MIB).await?;
        }
    }
    if wanted("random") {
        random_writes(&plain).await?;
    }
    if wanted("hot") {
        hot_reads().await?;
    }
    Ok(())
}

/// Sequential writes and cold reads, 1 MiB a request.
async fn streaming(plain: &Plain, object_size: u64, size: u64) -> Result<(), Failure> {
    let mut writes = Ratios::default();
    let mut reads = Ratios::default();
    for _ in 0..ROUNDS {
        let put = plain.put(object_size, size).await?;
        let get = plain.get(object_size, size).await?;
        plain.clean().await?;
        let server = Server::on_swift(object_size, size).await?;
        let mut client = Client::connect(server.socket()).await?;
        let pattern = Pattern::Sequential { size, request: MIB };
        let write = client.write(pattern, 8).await?;
        let cpu = server.cpu_seconds();
        let server = server.restart().await?;
        let mut client = Client::connect(server.socket()).await?;
        let read = client.read(pattern, 8).await?;
        let gib = size as f64 / (1 << 30) as f64;
        writes.add(rate(size, write), rate(size, put), cpu / gib);
        reads.add(
            rate(size, read),
            rate(size, get),
            server.cpu_seconds() / gib,
        );
        server.end().await?;
    }
    let kib = object_size >> 10;
    writes.print(&format!(
        "sequential write, durable, {kib} KiB objects, MiB/s"
    ));
    reads.print(&format!("sequential read, cold, {kib} KiB objects, MiB/s"));
    Ok(())
}

/// 4 KiB random writes with a final flush. The limit is what Swift takes of whole
/// objects: each dirty object costs one of those, however little of it is new.
async fn random_writes(plain: &Plain) -> Result<(), Failure> {
    let (object_size, size, count) = (64 << 10, 64 * MIB, 8192u64);
    let mut ratios = Ratios::default();
    for _ in 0..ROUNDS {
        let put = plain.put(object_size, size).await?;
        plain.clean().await?;
        let server = Server::on_swift(object_size, size).await?;
        let mut client = Client::connect(server.socket()).await?;
        let time = client
            .write(
                Pattern::Random {
                    size,
                    request: 4096,
                    count,
                },
                DEPTH,
            )
            .await?;
        let per_second = count as f64 / time.as_secs_f64();
        let limit = (size / object_size) as f64 / put.as_secs_f64();
        let gib = (count * 4096) as f64 / (1 << 30) as f64;
        ratios.add(per_second, limit, server.cpu_seconds() / gib);
        server.end().await?;
    }
    ratios.print("4 KiB random write QD32 with final flush, IOPS (limit: PUTs/s of 64 KiB)");
    Ok(())
}

/// 4 KiB random reads of data in memory.
async fn hot_reads() -> Result<(), Failure> {
    let (size, count) = (32 * MIB, 400_000u64);
    let fill = Pattern::Sequential { size, request: MIB };
    let reads = Pattern::Random {
        size,
        request: 4096,
        count,
    };
    let server = Server::on_swift(64 << 10, size).await?;
    let nbdkit = Nbdkit::memory(size).await?;
    let mut ours = Client::connect(server.socket()).await?;
    let mut limit = Client::connect(&nbdkit.socket()).await?;
    for client in [&mut ours, &mut limit] {
        client.write(fill, 8).await?;
        client.read(fill, 8).await?;
    }
    let mut ratios = Ratios::default();
    for _ in 0..ROUNDS {
        let before = server.cpu_seconds();
        let time = ours.read(reads, DEPTH).await?;
        let cpu = server.cpu_seconds() - before;
        let base = limit.read(reads, DEPTH).await?;
        let gib = (count * 4096) as f64 / (1 << 30) as f64;
        ratios.add(
            count as f64 / time.as_secs_f64(),
            count as f64 / base.as_secs_f64(),
            cpu / gib,
        );
    }
    ratios.print("hot 4 KiB random read QD32, IOPS (limit: nbdkit memory)");
    server.end().await
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / MIB as f64 / time.as_secs_f64()
}

/// Measurements of one thing, each beside its limit.
#[derive(Default)]
struct Ratios {
    ours: Vec<f64>,
    limits: Vec<f64>,
    ratios: Vec<f64>,
    cpu: Vec<f64>,
}

impl Ratios {
    fn add(&mut self, ours: f64, limit: f64, cpu: f64) {
        self.ours.push(ours);
        self.limits.push(limit);
        self.ratios.push(ours / limit);
        self.cpu.push(cpu);
    }

    fn print(&mut self, what: &str) {
        for values in [
            &mut self.ours,
            &mut self.limits,
            &mut self.ratios,
            &mut self.cpu,
        ] {
            values.sort_by(f64::total_cmp);
        }
        let middle = self.ours.len() / 2;
        let (low, high) = (self.ratios[0], self.ratios[self.ratios.len() - 1]);
        println!(
            "| {what} | {:.0} | {:.0} | {:.2} ({low:.2} to {high:.2}) | {:.1} |",
            self.ours[middle], self.limits[middle], self.ratios[middle], self.cpu[middle]
        );
    }
}
