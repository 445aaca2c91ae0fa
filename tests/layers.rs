//! Imports point down: each room knows only the ones below it.

use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms of this crate that it may name.
const ROOMS: &[(&str, &[&str])] = &[
    ("src/error.rs", &[]),
    (
        "src/cli",
        &[
            "config",
            "control::attach::DAEMON_VERB",
            "control::handover::VERB",
        ],
    ),
    ("src/compat.rs", &["cli", "config", "error"]),
    ("src/manual.rs", &["cli", "error"]),
    ("src/credentials.rs", &[]),
    ("src/config", &["credentials", "error"]),
    ("src/metrics.rs", &[]),
    ("src/store", &["credentials", "metrics", "store"]),
    ("src/image", &["image", "metrics", "store"]),
    ("src/device.rs", &["image", "metrics"]),
    ("src/nbd", &["nbd", "device", "image"]),
    (
        "src/stack.rs",
        &["config", "device", "image", "nbd", "store"],
    ),
];

/// Words that only one room may use, outside of comments.
const SECRETS_OF_A_ROOM: &[(&str, &str)] = &[
    ("reqwest", "src/store/swift"),
    ("neli::", "src/control/netlink.rs"),
    ("/sys/", "src/control/"),
    ("encode_reply", "src/nbd/"),
];

fn sources(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).expect("the sources are there") {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
    found
}

fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("readable");
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    let mut checked = 0;
    for path in sources(&root.join("src")) {
        let name = path
            .strip_prefix(root)
            .expect("below")
            .to_string_lossy()
            .into_owned();
        let Some((_, allowed)) = ROOMS.iter().find(|(room, _)| {
            name == *room || name == format!("{room}.rs") || name.starts_with(&format!("{room}/"))
        }) else {
            continue;
        };
        checked += 1;
        for import in code(&path).split("crate::").skip(1) {
            if !allowed.iter().any(|room| import.starts_with(room)) {
                wrong.push(format!(
                    "{name}: crate::{}",
                    import.split([';', '\n']).next().unwrap()
                ));
            }
        }
    }
    assert!(checked > 20, "only {checked} files were found");
    assert!(
        wrong.is_empty(),
        "imports that do not point down:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn what_one_room_knows_stays_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for path in sources(&root.join("src")) {
        let name = path
            .strip_prefix(root)
            .expect("below")
            .to_string_lossy()
            .into_owned();
        let code = code(&path);
        for (word, room) in SECRETS_OF_A_ROOM {
            if !name.starts_with(room) && code.contains(word) {
                wrong.push(format!("{name} says {word}, which only {room} knows"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
