//! What was measured, and how it is told: as a table and as JSON.

use serde::Serialize;

use crate::link::Link;
use crate::median;
use crate::requests::Requests;
use crate::server::Volume;

/// What is measured of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    Write,
    Read,
    Random,
    Flush,
    Hot,
}

impl Row {
    pub const ALL: [Row; 5] = [Row::Write, Row::Read, Row::Random, Row::Flush, Row::Hot];

    pub fn title(self) -> &'static str {
        match self {
            Row::Write => "sequential write, until durable",
            Row::Read => "sequential read, cold",
            Row::Random => "4 KiB random write QD32, final flush",
            Row::Flush => "4 KiB write and flush, p50",
            Row::Hot => "4 KiB random read QD32, hot",
        }
    }

    pub fn limit(self) -> &'static str {
        match self {
            Row::Write => "parallel PUT of objects of that size",
            Row::Read => "parallel GET of objects of that size",
            Row::Random => "the same bytes as PUTs of 8 MiB",
            Row::Flush => "one PUT of 4 KiB",
            Row::Hot => "nbdkit's memory plugin",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Row::Write | Row::Read => "MiB/s",
            Row::Random | Row::Hot => "IOPS",
            Row::Flush => "ms",
        }
    }

    /// How fast ours is, 1 being the limit, of a ratio of ours to the limit.
    pub fn speed(self, ratio: f64) -> f64 {
        if self == Row::Flush {
            1.0 / ratio
        } else {
            ratio
        }
    }

    /// What the ratio to the limit shall be, at most for a time, else at least.
    pub fn target(self, link: &str) -> Option<f64> {
        match (self, link) {
            (Row::Write | Row::Read, "shaped") => Some(0.9),
            (Row::Random, "shaped") => Some(0.8),
            (Row::Flush, "shaped") => Some(1.2),
            (Row::Write, _) => Some(0.6),
            (Row::Read, _) => Some(0.7),
            (Row::Random, _) => Some(0.4),
            (Row::Flush, _) => None,
            (Row::Hot, _) => Some(0.8),
        }
    }
}

/// Bytes sent a byte written at random places, at most.
const SENT_TARGET: f64 = 1.1;

/// What work cost: as it is, or a GiB of it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Cost {
    /// Processor seconds of ours.
    pub cpu: f64,
    pub puts: f64,
    pub gets: f64,
    pub deletes: f64,
    /// Bytes of bodies.
    pub sent: f64,
    pub received: f64,
}

impl Cost {
    pub fn new(cpu: f64, requests: Requests) -> Cost {
        Cost {
            cpu,
            puts: requests.puts as f64,
            gets: requests.gets as f64,
            deletes: requests.deletes as f64,
            sent: requests.sent as f64,
            received: requests.received as f64,
        }
    }

    /// The cost of one GiB, if this was for so many.
    pub fn per(self, gib: f64) -> Cost {
        Cost {
            cpu: self.cpu / gib,
            puts: self.puts / gib,
            gets: self.gets / gib,
            deletes: self.deletes / gib,
            sent: self.sent / gib,
            received: self.received / gib,
        }
    }
}

/// One thing, measured on one volume over one link; a list item a round.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub row: Row,
    pub link: &'static str,
    pub volume: String,
    /// Which of the volumes that were asked for: a picture's colour.
    pub format: u8,
    pub encrypted: bool,
    pub unit: &'static str,
    pub ours: Vec<f64>,
    pub limit: Vec<f64>,
    /// Ours to the limit, of one round each.
    pub ratio: Vec<f64>,
    pub target: Option<f64>,
    pub cost_per_gib: Vec<Cost>,
}

#[derive(Default, Serialize)]
#[serde(transparent)]
pub struct Figures(pub Vec<Figure>);

impl Figures {
    pub fn add(
        &mut self,
        link: &Link,
        row: Row,
        volume: Volume,
        ours: f64,
        limit: f64,
        cost: Cost,
    ) {
        let name = volume.name();
        let same = |f: &Figure| f.row == row && f.link == link.name && f.volume == name;
        let at = self.0.iter().position(same).unwrap_or_else(|| {
            let (format, encrypted) = match volume {
                Volume::One { .. } => (1, false),
                Volume::Two { encrypted } => (2, encrypted),
            };
            self.0.push(Figure {
                row,
                link: link.name,
                volume: name.clone(),
                format,
                encrypted,
                unit: row.unit(),
                ours: Vec::new(),
                limit: Vec::new(),
                ratio: Vec::new(),
                // Format 1 is measured to be compared with.
                target: row.target(link.name).filter(|_| format == 2),
                cost_per_gib: Vec::new(),
            });
            self.0.len() - 1
        });
        let figure = &mut self.0[at];
        figure.ours.push(ours);
        figure.limit.push(limit);
        figure.ratio.push(ours / limit);
        figure.cost_per_gib.push(cost);
    }

    pub const HEAD: &str = "| what | volume | swiftnbd | limit | ratio (spread) | target | \
         CPU s | PUTs | GETs | DELETEs | sent | received |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|";

    /// The lines of the table for one link, in the order of the rows.
    pub fn lines(&self, link: &str) -> Vec<String> {
        let of_row = |row| {
            self.0
                .iter()
                .filter(move |f| f.link == link && f.row == row)
        };
        Row::ALL
            .into_iter()
            .flat_map(of_row)
            .map(Figure::line)
            .collect()
    }
}

impl Figure {
    fn line(&self) -> String {
        let least = self.ratio.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.ratio.iter().copied().fold(0.0, f64::max);
        let digits = if self.row == Row::Flush { 1 } else { 0 };
        let cost = |pick: fn(&Cost) -> f64| {
            let values: Vec<f64> = self.cost_per_gib.iter().map(pick).collect();
            median(&values)
        };
        let gib = (1u64 << 30) as f64;
        format!(
            "| {}, {} | {} | {:.digits$} | {:.digits$} | {:.2} ({least:.2} to {most:.2}) | {} \
             | {:.1} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |",
            self.row.title(),
            self.unit,
            self.volume,
            median(&self.ours),
            median(&self.limit),
            median(&self.ratio),
            self.verdicts(cost(|c| c.sent) / gib),
            cost(|c| c.cpu),
            cost(|c| c.puts),
            cost(|c| c.gets),
            cost(|c| c.deletes),
            cost(|c| c.sent) / gib,
            cost(|c| c.received) / gib,
        )
    }

    /// Each target, and whether it was reached.
    fn verdicts(&self, sent: f64) -> String {
        let mut said = Vec::new();
        let mut say = |what: &str, target: f64, reached: bool| {
            let reached = if reached { "yes" } else { "**no**" };
            said.push(format!("{what} {target}: {reached}"));
        };
        let ratio = median(&self.ratio);
        match self.target {
            Some(target) if self.row == Row::Flush => say("≤", target, ratio <= target),
            Some(target) => say("≥", target, ratio >= target),
            None => {}
        }
        if self.row == Row::Random && self.format == 2 {
            say("sent ≤", SENT_TARGET, sent <= SENT_TARGET);
        }
        said.join("; ")
    }
}
