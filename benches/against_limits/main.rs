//! How fast it is, each figure beside its limit, all measured in one run and in
//! turns, on one real Swift, over loopback and over a line as a user's network may be:
//! a plain parallel PUT and GET of objects of the same size with the same checksums;
//! nbdkit's memory plugin over the same kind of socket. Run it with `scripts/bench`,
//! which brings the Swift and the namespace.
//!
//! [`link`] is the way to Swift, [`plain`] the limit, [`server`] the programs that are
//! measured, [`client`] what asks them, [`requests`] what Swift saw; [`workloads`] and
//! [`attach`] measure, [`figures`] and [`picture`] tell.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures true time, and its threads carry packets"
)]

mod attach;
mod client;
mod figures;
mod link;
mod picture;
mod plain;
mod requests;
mod server;
mod workloads;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use serde_json::json;

use attach::Attach;
use figures::Figures;
use link::Link;
use server::Volume;

const MIB: u64 = 1 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures swiftnbd beside its limits.
#[derive(Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    /// Rounds of every measurement; the median and the spread are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these [default: all]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<What>,
    /// Only these volumes [default: all]
    #[arg(long, value_name = "VOLUME", value_delimiter = ',')]
    volumes: Vec<Kind>,
    /// Only this way to Swift [default: both]
    #[arg(long, value_delimiter = ',')]
    link: Vec<Way>,
    /// Bytes of sequential work a round, in MiB: a multiple of 64
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..=65536))]
    size: u64,
    /// Where to write results.md, results.json and results.svg
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    out: PathBuf,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Sequential writes and cold reads
    Sequential,
    /// 4 KiB random writes
    Random,
    /// 4 KiB writes with a flush each
    Flush,
    /// 4 KiB reads from memory
    Hot,
    /// Time and memory that an attach takes
    Attach,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Format 1, 64 KiB objects
    #[value(name = "1-64k")]
    One64k,
    /// Format 1, 1 MiB objects
    #[value(name = "1-1m")]
    One1m,
    /// Format 2
    #[value(name = "2")]
    Two,
    /// Format 2, encrypted
    #[value(name = "2-encrypted")]
    TwoEncrypted,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Shaped,
    Loopback,
}

impl Kind {
    fn volume(self) -> Volume {
        match self {
            Kind::One64k => Volume::One {
                object_size: 64 << 10,
            },
            Kind::One1m => Volume::One {
                object_size: 1 << 20,
            },
            Kind::Two => Volume::Two { encrypted: false },
            Kind::TwoEncrypted => Volume::Two { encrypted: true },
        }
    }
}

fn main() -> Result<(), Failure> {
    // `cargo test --benches` runs this too, with no Swift: say so, do nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("run it with scripts/bench");
        return Ok(());
    }
    let arguments = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let port = std::env::var("SWIFTNBD_LAB_PORT").map_err(|_| "no Swift: run scripts/bench")?;
    let links = chosen(&arguments.link, Way::value_variants())
        .into_iter()
        .map(|way| match way {
            Way::Shaped => Link::shaped(),
            Way::Loopback => Ok(Link::loopback()),
        })
        .collect::<Result<Vec<Link>, Failure>>()?;
    let mut trips = Vec::new();
    for link in &links {
        trips.push(link.round_trip(port.parse()?)?);
    }
    let start = Instant::now();
    let (figures, attached) = measure(&arguments, &links)?;
    eprintln!("measured in {:.0} s", start.elapsed().as_secs_f64());
    tell(&arguments, &links, &trips, &figures, &attached)
}

/// Those, or all if none is named.
fn chosen<T: Copy>(named: &[T], all: &[T]) -> Vec<T> {
    if named.is_empty() { all } else { named }.to_vec()
}

fn measure(arguments: &Arguments, links: &[Link]) -> Result<(Figures, Vec<Attach>), Failure> {
    let volumes: Vec<Volume> = chosen(&arguments.volumes, Kind::value_variants())
        .into_iter()
        .map(Kind::volume)
        .collect();
    let wanted = chosen(&arguments.only, What::value_variants());
    let size = arguments.size * MIB;
    let mut figures = Figures::default();
    for round in 1..=arguments.rounds {
        for link in links {
            for what in &wanted {
                let start = Instant::now();
                match what {
                    What::Sequential => {
                        workloads::sequential(&mut figures, link, &volumes, size)?;
                    }
                    What::Random => {
                        workloads::random_writes(&mut figures, link, &volumes, size / 4)?;
                    }
                    What::Flush => workloads::flushes(&mut figures, link, &volumes, 60)?,
                    // Swift has no part in it, so one link will do.
                    What::Hot if link.name == links[0].name => {
                        workloads::hot_reads(&mut figures, link, &volumes, 200_000)?;
                    }
                    What::Hot | What::Attach => continue,
                }
                let name = what.to_possible_value().map(|v| v.get_name().to_owned());
                eprintln!(
                    "round {round}, {}, {}: {:.0} s",
                    link.name,
                    name.unwrap_or_default(),
                    start.elapsed().as_secs_f64()
                );
            }
        }
    }
    let attached = if wanted.contains(&What::Attach) {
        attach::attach(links, &volumes, arguments.rounds as usize)?
    } else {
        Vec::new()
    };
    Ok((figures, attached))
}

/// Prints the tables, and writes them, the picture and the raw figures.
fn tell(
    arguments: &Arguments,
    links: &[Link],
    trips: &[f64],
    figures: &Figures,
    attached: &[Attach],
) -> Result<(), Failure> {
    let mut text = String::new();
    for (link, trip) in links.iter().zip(trips) {
        let lines = figures.lines(link.name);
        if !lines.is_empty() {
            text += &format!("{} (measured: {trip:.1} ms):\n\n", link.title);
            text += &format!("{}\n{}\n\n", Figures::HEAD, lines.join("\n"));
        }
    }
    if !attached.is_empty() {
        let lines: Vec<String> = attached.iter().map(Attach::line).collect();
        text += &format!("Attaching after a clean detach:\n\n{}\n", Attach::HEAD);
        text += &format!("{}\n", lines.join("\n"));
    }
    print!("{text}");
    let raw = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cores": std::thread::available_parallelism()?.get(),
        "rounds": arguments.rounds,
        "sequential_bytes": arguments.size * MIB,
        "round_trip_ms": links.iter().map(|link| link.name).zip(trips)
            .collect::<std::collections::BTreeMap<_, _>>(),
        "figures": figures,
        "attach": attached,
    });
    let out = &arguments.out;
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("results.md"), &text)?;
    std::fs::write(
        out.join("results.json"),
        serde_json::to_string_pretty(&raw)? + "\n",
    )?;
    let picture = picture::picture(figures, attached, links);
    std::fs::write(out.join("results.svg"), picture)?;
    eprintln!("written: {}/results.{{md,json,svg}}", out.display());
    Ok(())
}

/// The middle one; of two, their mean.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}
