//! The manual: every verb and option is explained, every verb has an example, and
//! what the operators' page says of messages is true.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Command;
use swiftnbd::config::{Config, Sources};
use swiftnbd::manual;

fn verbs(root: &Command) -> impl Iterator<Item = &Command> {
    root.get_subcommands()
}

/// Everything below src as one text, in which a literal that goes on in the next line
/// is in one piece.
fn sources() -> String {
    fn read(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).expect("the sources are there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|end| end == "rs") {
                text.push_str(&fs::read_to_string(&path).expect("readable"));
            }
        }
    }
    let mut text = String::new();
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut text,
    );
    let mut joined = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut line = line.to_owned();
        while let Some(begun) = line.strip_suffix('\\') {
            line = begun.to_owned() + lines.next().unwrap_or_default().trim_start();
        }
        joined.push_str(&line);
        joined.push('\n');
    }
    joined.replace("\\\"", "\"")
}

fn page(name: &str) -> String {
    let files = manual::files().expect("the manual can be made");
    let (_, text) = files
        .into_iter()
        .find(|(path, _)| path.ends_with(name))
        .unwrap_or_else(|| panic!("no page {name}"));
    String::from_utf8(text).expect("UTF-8")
}

/// A line of roff as it is read.
fn plain(roff: &str) -> String {
    let mut text = roff.replace("\\-", "-").replace("\\(dq", "\"");
    for font in ["\\fB", "\\fI", "\\fR"] {
        text = text.replace(font, "");
    }
    text
}

#[test]
fn every_verb_and_option_has_a_help_text() {
    let mut root = manual::shown();
    root.build();
    let mut missing = Vec::new();
    for verb in verbs(&root).chain([&root]) {
        let name = verb.get_name();
        if verb.get_about().is_none() {
            missing.push(name.to_owned());
        }
        for argument in verb.get_arguments() {
            if argument.get_help().is_none() {
                missing.push(format!("{name} {}", argument.get_id()));
            }
        }
    }
    assert!(verbs(&root).count() > 8, "where are the verbs?");
    assert!(missing.is_empty(), "not explained: {missing:?}");
}

#[test]
fn every_verb_shows_an_example_and_the_common_mistakes() {
    let mut root = manual::shown();
    root.build();
    for verb in verbs(&root).filter(|verb| verb.get_name() != "help") {
        let name = verb.get_name();
        let after = verb.get_after_help().map(ToString::to_string);
        let after = after.unwrap_or_default();
        let example = format!("  swiftnbd {name} ");
        let shown = after
            .lines()
            .any(|line| line.contains(example.trim_start()) || line.ends_with(example.trim()));
        assert!(shown && after.contains("Example"), "no example: {name}");
        assert!(after.contains("Common mistakes:\n"), "no mistakes: {name}");
    }
}

#[test]
fn every_verb_has_a_page_and_hidden_ones_are_nowhere() {
    let names: BTreeSet<PathBuf> = manual::files()
        .expect("the manual can be made")
        .into_iter()
        .map(|(path, content)| {
            let text = String::from_utf8(content).expect("UTF-8");
            for hidden in ["__daemon", "__boot", "__stop", "__manual", "__guardian"] {
                assert!(!text.contains(hidden), "{hidden} is in {path:?}");
            }
            path
        })
        .collect();
    let mut root = manual::shown();
    root.build();
    for verb in verbs(&root).filter(|verb| verb.get_name() != "help") {
        let path = format!("man/man8/swiftnbd-{}.8", verb.get_name());
        assert!(names.contains(Path::new(&path)), "no {path}");
    }
    for path in [
        "man/man8/swiftnbd.8",
        "man/man8/swiftnbd-ctl.8",
        "man/man8/swiftnbd-server.8",
        "man/man5/swiftnbd.toml.5",
        "man/man7/swiftnbd-operating.7",
        "bash-completion/completions/swiftnbd",
        "zsh/site-functions/_swiftnbd",
        "fish/vendor_completions.d/swiftnbd.fish",
    ] {
        assert!(names.contains(Path::new(path)), "no {path}");
    }
}

#[test]
fn the_messages_that_operators_read_of_occur() {
    let page = page("swiftnbd-operating.7");
    let section = page.split(".SH MESSAGES").nth(1).expect("a section");
    let section = section.split(".SH ").next().expect("its text");
    let mut lines = section.lines();
    let sources = sources();
    let mut wrong = Vec::new();
    let mut found = 0;
    while let Some(line) = lines.next() {
        if line == ".TP" {
            let head = lines.next().expect("a heading");
            let message = plain(head.strip_prefix(".B ").expect("a message in bold"));
            match sources.contains(&message) {
                true => found += 1,
                false => wrong.push(message),
            }
        }
    }
    assert!(wrong.is_empty(), "no message says: {wrong:#?}");
    assert!(found > 15, "only {found} messages were looked for");
}

#[test]
fn the_page_of_the_configuration_has_every_key() {
    let page = plain(&page("swiftnbd.toml.5"));
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/toml_text.rs"))
            .expect("readable");
    let keys = source
        .split("VOLUME_KEYS: [&str; ")
        .nth(1)
        .and_then(|rest| rest.split("];").next())
        .expect("the keys are listed");
    let keys: Vec<&str> = keys
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","))
        .collect();
    assert!(keys.len() >= 9, "found only {keys:?}");
    for key in keys {
        assert!(
            page.contains(&format!(".B {key}\n")),
            "{key} is not explained"
        );
    }
}

#[test]
fn the_manual_says_that_the_oldstyle_handshake_is_not_spoken() {
    for name in ["swiftnbd-operating.7", "swiftnbd-server.8"] {
        let page = page(name);
        assert!(
            page.contains("oldstyle handshake of NBD is not spoken"),
            "{name}"
        );
    }
}

/// A configuration with this text.
fn load(text: &str) -> Result<Config, swiftnbd::error::Error> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("swiftnbd.toml");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("set");
    Config::load(&Sources {
        config: Some(path),
        ..Sources::in_dir(directory.path())
    })
}

/// Every configuration that the README shows can be written as it stands.
#[test]
fn the_readmes_configurations_are_some() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.expect("the README is there");
    let blocks: Vec<&str> = readme
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(blocks.len() > 5);
    for block in blocks {
        let config = load(block).unwrap_or_else(|error| panic!("{block}\n{error}"));
        // A cloud's name leads to another file, and a volume may have no account here.
        if block.starts_with("[swift]") && !block.contains("cloud =") {
            let complete = config.volume("any");
            complete.unwrap_or_else(|error| panic!("{block}\n{error}"));
        }
    }
}

/// What the page of the configuration shows can be written as it stands, and every
/// key that it explains is one.
#[test]
fn the_configuration_that_is_shown_is_one() {
    let page = page("swiftnbd.toml.5");
    let examples: Vec<String> = page
        .split(".EX\n")
        .skip(1)
        .map(|rest| plain(rest.split(".EE").next().unwrap_or_default()))
        .collect();
    assert!(examples.len() >= 2);
    for example in examples {
        let config = load(&example).unwrap_or_else(|error| panic!("{example}\n{error}"));
        for name in config.names() {
            config
                .volume(name)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        config
            .volume("any")
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let section = |from: &str, to: &str| {
        let rest = page.split(from).nth(1).expect("a section");
        rest.split(to).next().expect("its end").to_owned()
    };
    let (account, volume) = (
        section(".SH THE ACCOUNT", ".SH THE VOLUMES"),
        section(".SH THE VOLUMES", ".SH EXAMPLES"),
    );
    let mut keys = 0;
    for (text, table) in [(account, "swift"), (volume, "volumes.v")] {
        for entry in text.split(".TP\n").skip(1) {
            let line = entry.lines().next().unwrap_or_default();
            for key in plain(line.trim_start_matches(".B ")).split(", ") {
                keys += 1;
                // The value is of the wrong type: then the key itself was known.
                let error = load(&format!("[{table}]\n{key} = {{ x = 1 }}\n"))
                    .err()
                    .map(|error| error.to_string())
                    .unwrap_or_default();
                assert!(!error.contains("no key of"), "{key}: {error}");
                let other = load(&format!("[{table}]\n{key}_x = \"\"\n")).unwrap_err();
                assert!(other.message.contains("no key of"), "{other}");
            }
        }
    }
    assert!(keys > 25, "only {keys} keys are explained");
}
