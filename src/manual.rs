//! The manual: a page for the command and one for each verb, made from the command
//! line's definition; pages written by hand; and the shells' completions.
//!
//! Knows: clap, roff, and how these files are laid out below a `share` directory.
//! Does not know: what any verb does.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::error::{Error, Result};

/// The section of the verbs' pages: commands of the machine's administrator.
const SECTION: &str = "8";

/// When the manual was last looked through.
const DATE: &str = "2026-11-24";

/// The page of the original's commands.
const ORIGINAL: &str = include_str!("manual/swiftnbd-ctl.8");

/// Pages that are written by hand, by the names of their files.
const BY_HAND: [(&str, &str); 4] = [
    ("swiftnbd.toml.5", include_str!("manual/swiftnbd.toml.5")),
    (
        "swiftnbd-operating.7",
        include_str!("manual/swiftnbd-operating.7"),
    ),
    ("swiftnbd-ctl.8", ORIGINAL),
    ("swiftnbd-server.8", ORIGINAL),
];

/// Writes every file below a directory that is laid out as `share` is.
pub fn write(share: &Path) -> Result<()> {
    for (path, content) in files()? {
        let path = share.join(path);
        let failed = |error| Error::failed(format!("cannot write {}: {error}", path.display()));
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        fs::write(&path, content).map_err(failed)?;
    }
    Ok(())
}

/// Every file, by its path below `share`.
pub fn files() -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut root = shown();
    root.build();
    for (name, command) in pages(&root) {
        let page =
            page(&name, command).map_err(|error| Error::failed(format!("page {name}: {error}")))?;
        files.push((man_path(&format!("{name}.{SECTION}")), page));
    }
    for (name, text) in BY_HAND {
        files.push((man_path(name), text.as_bytes().to_vec()));
    }
    for (shell, path) in [
        (Shell::Bash, "bash-completion/completions/swiftnbd"),
        (Shell::Zsh, "zsh/site-functions/_swiftnbd"),
        (Shell::Fish, "fish/vendor_completions.d/swiftnbd.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut shown(), "swiftnbd", &mut script);
        files.push((PathBuf::from(path), script));
    }
    Ok(files)
}

/// The command line without the verbs that are not for people.
pub fn shown() -> Command {
    let whole = Cli::command();
    let mut shown = Command::new("swiftnbd")
        .args(whole.get_arguments().cloned())
        .subcommands(
            whole
                .get_subcommands()
                .filter(|verb| !verb.is_hide_set())
                .cloned(),
        )
        .subcommand_required(true)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .subcommand_help_heading("VERBS")
        .subcommand_value_name("verb");
    if let Some(about) = whole.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(after) = whole.get_after_help() {
        shown = shown.after_help(after.clone());
    }
    shown
}

/// The command and its verbs, by the names of their pages.
fn pages(root: &Command) -> Vec<(String, &Command)> {
    let verbs = root
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help")
        .map(|verb| (format!("swiftnbd-{}", verb.get_name()), verb));
    std::iter::once(("swiftnbd".to_owned(), root))
        .chain(verbs)
        .collect()
}

fn man_path(file: &str) -> PathBuf {
    let section = file.rsplit('.').next().unwrap_or_default();
    PathBuf::from(format!("man/man{section}")).join(file)
}

fn page(name: &str, command: &Command) -> std::io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .title(name)
        .section(SECTION)
        .date(DATE)
        .source(format!("swiftnbd {}", env!("CARGO_PKG_VERSION")))
        .manual("swiftnbd");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(command).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let verbs: Vec<&Command> = command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help")
        .collect();
    if !verbs.is_empty() {
        list_of(&verbs).to_writer(&mut page)?;
    }
    if let Some(after) = command.get_after_help() {
        sections(&after.to_string()).to_writer(&mut page)?;
    }
    see_also(name).to_writer(&mut page)?;
    Ok(page)
}

/// The usage as the help has it: options by name are in the sections below.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([roman(usage.trim_start_matches("Usage:").trim())]);
    roff
}

fn list_of(verbs: &[&Command]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["VERBS"]);
    for verb in verbs {
        roff.control("TP", []);
        let name = format!("swiftnbd-{}", verb.get_name());
        roff.text([bold(name), roman(format!("({SECTION})"))]);
        let about = verb.get_about().map(ToString::to_string);
        roff.text([roman(about.unwrap_or_default())]);
    }
    roff
}

/// The text after a command's help, as sections of a page. An unindented paragraph
/// begins one by its first words, up to a colon: `Examples:`. `- ` begins an item,
/// whose other lines stand below its first word. Other indented lines, and what
/// follows `Example:` in its line, are shown as they are.
fn sections(text: &str) -> Roff {
    let mut page = Sections::default();
    let mut begins = true;
    for line in text.lines() {
        match heading(line).filter(|_| begins) {
            Some((title, rest)) => {
                page.literal(false);
                page.roff.control("SH", [title.to_uppercase().as_str()]);
                (page.item, page.paragraph) = (false, false);
                let is_command = title.starts_with("Example") && !rest.is_empty();
                page.line(&match is_command {
                    true => format!("  {rest}"),
                    false => rest.to_owned(),
                });
            }
            None if line.trim().is_empty() => page.paragraph(),
            None => page.line(line),
        }
        begins = line.trim().is_empty();
    }
    page.literal(false);
    page.roff
}

/// The words before a colon, if they can be a heading, and what follows.
fn heading(line: &str) -> Option<(&str, &str)> {
    let (title, rest) = line.split_once(':')?;
    let short = title.split(' ').count() <= 2 && !line.starts_with(' ');
    short.then_some((title, rest.trim()))
}

/// Sections of a page, as they grow.
#[derive(Default)]
struct Sections {
    roff: Roff,
    /// Lines are shown as they are.
    literal: bool,
    /// An item of a list has begun.
    item: bool,
    /// A paragraph is to begin, if something follows.
    paragraph: bool,
}

impl Sections {
    fn literal(&mut self, wanted: bool) {
        if self.literal != wanted {
            self.roff.control(if wanted { "EX" } else { "EE" }, []);
            self.literal = wanted;
        }
    }

    fn paragraph(&mut self) {
        self.literal(false);
        self.item = false;
        self.paragraph = true;
    }

    fn line(&mut self, line: &str) {
        let indented = line.starts_with(' ');
        let words = line.trim();
        if words.is_empty() {
            return;
        }
        if std::mem::take(&mut self.paragraph) {
            self.roff.control("PP", []);
        }
        if let Some(words) = words.strip_prefix("- ").filter(|_| indented) {
            self.literal(false);
            self.item = true;
            self.roff.control("IP", ["\\(bu", "2"]);
            self.roff.text([roman(words)]);
        } else if indented && !self.item {
            self.literal(true);
            let shown = line.strip_prefix("  ").unwrap_or(line);
            self.roff.text([roman(shown)]);
        } else {
            self.literal(false);
            self.roff.text([roman(words)]);
        }
    }
}

fn see_also(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let others = [
        ("swiftnbd", "8"),
        ("swiftnbd.toml", "5"),
        ("swiftnbd-operating", "7"),
    ];
    let mut inlines = Vec::new();
    for (other, section) in others.into_iter().filter(|(other, _)| *other != name) {
        if !inlines.is_empty() {
            inlines.push(roman(", "));
        }
        inlines.extend([bold(other), roman(format!("({section})"))]);
    }
    roff.text(inlines);
    roff
}
