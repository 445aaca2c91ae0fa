//! The figures as a picture: SVG, readable on white and on black.

use std::fmt::Write;

use crate::attach::{Attach, TARGET_SECONDS};
use crate::figures::{Figure, Figures, Row};
use crate::link::Link;
use crate::median;
use crate::server::short;

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 20.0;
/// Height of a bar with the room below it.
const BAR: f64 = 17.0;
/// Of the scale: what is faster ends there.
const MOST: f64 = 1.25;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.head{font-weight:600;font-size:14px}.row{font-weight:600}.small{font-size:11px;fill:#59636e}\
.v0{fill:#b3b9c1}.v1{fill:#7d8590}.v2{fill:#0969da}.v3{fill:#bc4c00}\
.axis{stroke:#d1d9e0}.limit{stroke:#59636e}.target{stroke:#1a7f37;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}\
.v0{fill:#5b636d}.v1{fill:#8b949e}.v2{fill:#4493f8}.v3{fill:#f0883e}\
.axis{stroke:#3d444d}.limit{stroke:#9198a1}.target{stroke:#3fb950}}";

/// A picture that grows downwards.
struct Picture {
    body: String,
    y: f64,
}

/// All of it.
pub fn picture(figures: &Figures, attached: &[Attach], links: &[Link]) -> String {
    let mut picture = Picture {
        body: String::new(),
        y: 30.0,
    };
    let volumes = volumes(figures);
    picture.legend(&volumes);
    let top = picture.y;
    let column = (WIDTH - 2.0 * MARGIN) / links.len() as f64;
    let mut bottom = top;
    for (at, link) in links.iter().enumerate() {
        picture.y = top;
        let left = MARGIN + column * at as f64;
        picture.panel(figures, &volumes, link, left, column - 16.0);
        bottom = bottom.max(picture.y);
    }
    picture.y = bottom;
    if !attached.is_empty() {
        picture.attached(attached, &volumes);
    }
    let height = picture.y + 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         width=\"{WIDTH}\" height=\"{height:.0}\" role=\"img\" \
         aria-label=\"swiftnbd beside its limits\">\n<style>{STYLE}</style>\n{}</svg>\n",
        picture.body
    )
}

/// The volumes in the order in which they were measured; their place is their colour.
fn volumes(figures: &Figures) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for figure in &figures.0 {
        if found.iter().any(|(name, _)| *name == figure.volume) {
            continue;
        }
        let ones = found.iter().filter(|(_, colour)| *colour < 2).count();
        let colour = match (figure.format, figure.encrypted) {
            (1, _) => ones.min(1),
            (_, false) => 2,
            (_, true) => 3,
        };
        found.push((figure.volume.clone(), colour));
    }
    found
}

impl Picture {
    fn text(&mut self, x: f64, class: &str, text: &str) {
        let y = self.y;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"
        );
    }

    /// A bar on this line, with what it says.
    fn bar(&mut self, x: f64, length: f64, colour: usize, text: &str) {
        let y = self.y - 10.0;
        let length = length.max(1.0);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"12\" rx=\"2\" \
             class=\"v{colour}\"/>"
        );
        self.text(x + length + 5.0, "small", text);
        self.y += BAR;
    }

    fn upright(&mut self, x: f64, from: f64, to: f64, class: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x:.1}\" y1=\"{from:.1}\" x2=\"{x:.1}\" y2=\"{to:.1}\" \
             class=\"{class}\"/>"
        );
    }

    fn legend(&mut self, volumes: &[(String, usize)]) {
        let mut x = MARGIN;
        for (name, colour) in volumes {
            let y = self.y - 10.0;
            let _ = writeln!(
                self.body,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\" rx=\"2\" \
                 class=\"v{colour}\"/>"
            );
            self.text(x + 17.0, "", name);
            x += 32.0 + 6.6 * name.len() as f64;
        }
        let (from, to) = (self.y - 11.0, self.y + 3.0);
        self.upright(x + 5.0, from, to, "limit");
        self.text(x + 11.0, "", "the limit");
        self.upright(x + 76.0, from, to, "target");
        self.text(x + 82.0, "", "target of format 2");
        self.y += 34.0;
    }

    fn panel(
        &mut self,
        figures: &Figures,
        volumes: &[(String, usize)],
        link: &Link,
        left: f64,
        width: f64,
    ) {
        self.text(left, "head", &link.title);
        self.y += 24.0;
        // Room for what stands right of the longest bar.
        let unit = (width - 120.0) / MOST;
        for row in Row::ALL {
            let of_row: Vec<&Figure> = figures
                .0
                .iter()
                .filter(|f| f.link == link.name && f.row == row)
                .collect();
            if of_row.is_empty() {
                continue;
            }
            self.text(left, "row", row.title());
            self.y += 14.0;
            self.text(left, "small", &format!("limit: {}", row.limit()));
            self.y += 18.0;
            let top = self.y - 13.0;
            for figure in &of_row {
                let colour = volumes.iter().find(|(name, _)| *name == figure.volume);
                let speed = row.speed(median(&figure.ratio));
                let more = if speed > MOST { "» " } else { "" };
                let digits = if row == Row::Flush { 1 } else { 0 };
                let text = format!(
                    "{more}{speed:.2} · {:.digits$} {}",
                    median(&figure.ours),
                    figure.unit
                );
                let colour = colour.map_or(0, |(_, colour)| *colour);
                self.bar(left, speed.min(MOST) * unit, colour, &text);
            }
            let bottom = self.y - 12.0;
            self.upright(left, top, bottom, "axis");
            self.upright(left + unit, top, bottom, "limit");
            if let Some(target) = row.target(link.name) {
                self.upright(left + row.speed(target) * unit, top, bottom, "target");
            }
            self.y += 10.0;
        }
    }

    fn attached(&mut self, attached: &[Attach], volumes: &[(String, usize)]) {
        self.y += 10.0;
        self.text(
            MARGIN,
            "head",
            "Attaching a volume that was cleanly detached",
        );
        self.y += 22.0;
        let (label, top) = (MARGIN + 330.0, self.y - 13.0);
        let unit = (WIDTH - label - 170.0) / TARGET_SECONDS / 1.1;
        for one in attached {
            let colour = volumes.iter().find(|(name, _)| *name == one.volume);
            let what = format!(
                "{}, {}, {} extents, {}",
                one.volume,
                short(one.size),
                one.extents,
                one.link
            );
            self.text(MARGIN, "", &what);
            let time = median(&one.times);
            let text = format!("{time:.2} s · {:.0} MiB", median(&one.memory) / 1048576.0);
            let length = (time * unit).min(TARGET_SECONDS * 1.1 * unit);
            self.bar(
                label,
                length,
                colour.map_or(2, |(_, colour)| *colour),
                &text,
            );
        }
        let bottom = self.y - 12.0;
        self.upright(label, top, bottom, "axis");
        self.upright(label + TARGET_SECONDS * unit, top, bottom, "target");
    }
}
