//! How long an attach takes and how much memory it needs, against a volume's size and
//! fragmentation: from the start of the process to the first answered read, after a
//! clean end. No limit stands beside it.

use serde::Serialize;
use tokio::time::Instant;

use crate::client::{Client, Pattern};
use crate::link::Link;
use crate::requests::{Log, Requests};
use crate::server::{Made, Volume, short};
use crate::{Failure, MIB, median};

/// Sizes and numbers of extents.
const CASES: [(u64, u64); 3] = [(1 << 30, 1_000), (64 << 30, 64_000), (1 << 40, 1_000_000)];
/// Random reads after the attach, each of which may need a page of the map.
const READS: u64 = 2_000;
/// The longest that an attach may take, in seconds, however large the volume.
pub const TARGET_SECONDS: f64 = 2.0;

/// One volume's figures, a list item a round.
#[derive(Debug, Serialize)]
pub struct Attach {
    pub link: &'static str,
    pub volume: String,
    pub size: u64,
    pub extents: u64,
    /// Seconds.
    pub times: Vec<f64>,
    /// Bytes: the most it has had when the first read was answered.
    pub memory: Vec<f64>,
    /// Bytes: the same after some thousand random reads.
    pub memory_after_reads: Vec<f64>,
    pub requests: Vec<Requests>,
}

/// Makes the volumes and attaches each so many times.
pub fn attach(links: &[Link], volumes: &[Volume], rounds: usize) -> Result<Vec<Attach>, Failure> {
    let mut found = Vec::new();
    for &volume in volumes {
        for (size, extents) in CASES {
            // A format 1 object for each extent: as many requests.
            if matches!(volume, Volume::One { .. }) && extents > 1_000 {
                continue;
            }
            eprintln!(
                "attach: {}, {}, {extents} extents",
                volume.name(),
                short(size)
            );
            let mut made = Some(links[0].run(|| make(&links[0], volume, size, extents))?);
            for link in links {
                let mut row = Attach {
                    link: link.name,
                    volume: volume.name(),
                    size,
                    extents,
                    times: Vec::new(),
                    memory: Vec::new(),
                    memory_after_reads: Vec::new(),
                    requests: Vec::new(),
                };
                for _ in 0..rounds {
                    let Some(volume_made) = made.take() else {
                        continue;
                    };
                    let row = &mut row;
                    made = Some(link.run(|| once(link, volume, size, volume_made, row))?);
                }
                found.push(row);
            }
        }
    }
    Ok(found)
}

async fn make(link: &Link, volume: Volume, size: u64, extents: u64) -> Result<Made, Failure> {
    let server = Made::setup(volume, size, link.host)?.serve().await?;
    let mut client = Client::connect(server.socket()).await?;
    let pattern = Pattern::Scattered {
        size,
        count: extents,
    };
    client.write(pattern, 128).await?;
    drop(client);
    server.end().await
}

async fn once(
    link: &Link,
    volume: Volume,
    size: u64,
    made: Made,
    row: &mut Attach,
) -> Result<Made, Failure> {
    made.reached_at(link.host, volume == Volume::Two { encrypted: true })?;
    let log = Log::now().await?;
    let start = Instant::now();
    let server = made.serve().await?;
    let mut client = Client::connect(server.socket()).await?;
    let reads = |count| Pattern::Random {
        size,
        request: 4096,
        count,
    };
    client.read(reads(1), 1).await?;
    row.times.push(start.elapsed().as_secs_f64());
    row.memory.push(server.peak_memory()? as f64);
    row.requests.push(log.seen(server.container()).await?);
    client.read(reads(READS), 32).await?;
    row.memory_after_reads.push(server.peak_memory()? as f64);
    drop(client);
    server.end().await
}

impl Attach {
    pub const HEAD: &str = "| link | volume | size | extents | attach, s (spread) | target | \
         GETs | MiB fetched | memory, MiB | after 2,000 random reads |\n\
         |---|---|---|---|---|---|---|---|---|---|";

    pub fn line(&self) -> String {
        let least = self.times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.times.iter().copied().fold(0.0, f64::max);
        let time = median(&self.times);
        let of = |pick: fn(&Requests) -> u64| {
            let values: Vec<f64> = self.requests.iter().map(|r| pick(r) as f64).collect();
            median(&values)
        };
        format!(
            "| {} | {} | {} | {} | {time:.2} ({least:.2} to {most:.2}) | ≤ {TARGET_SECONDS}: {} \
             | {:.0} | {:.1} | {:.0} | {:.0} |",
            self.link,
            self.volume,
            short(self.size),
            self.extents,
            if time <= TARGET_SECONDS {
                "yes"
            } else {
                "**no**"
            },
            of(|requests| requests.gets),
            of(|requests| requests.received) / MIB as f64,
            median(&self.memory) / MIB as f64,
            median(&self.memory_after_reads) / MIB as f64,
        )
    }
}
