//! Whatever is in a configuration file: no panic, and no password in anything
//! that is printed.

mod config_dir;

use std::rc::Rc;

use config_dir::Dir;
use proptest::prelude::*;
use swiftnbd::config::{Config, Sources};

/// Short enough to be quoted by a careless message; in two copies, so that one
/// survives a mutation.
const PASSWORD: &str = "s3cr3t-Zx9-s3cr3t";

/// No part of a password that can be recognised may be printed.
const MARKER: &str = "s3cr3t";

const TOML: &str = r#"
[swift]
auth_url = "https://swift.example/auth/v1.0"
username = "account:user"
password = "s3cr3t-Zx9-s3cr3t"
region = "one"
interface = "internal"
auth_version = 1

[volumes.mynbd0]
container = "box"
device = "/dev/nbd0"
attach_at_boot = true
read_only = false
cache = "64MiB"
dirty = 67108864
io_timeout = "30s"
flush = "swift"

[volumes.other]
store = "dir:/var/lib/swiftnbd"
password = 's3cr3t-Zx9-s3cr3t'

[volumes.credential]
auth_url = "https://keystone.example/v3"
auth_version = 3
application_credential_id = "7"
application_credential_secret = "s3cr3t-Zx9-s3cr3t"

[volumes.ready]
token = "s3cr3t-Zx9-s3cr3t"
storage_url = "https://swift.example/v1/AUTH_account"

[volumes.cloudy]
cloud = "one"

[volumes]
inline = { username = "a:b", password = """s3cr3t-Zx9-s3cr3t""" }
"#;

const INI: &str = "
# the original's
[DEFAULT]
authurl = https://swift.example/auth/v1.0
password: s3cr3t-Zx9-s3cr3t

[mynbd0] ; first
username = account:user
password = s3cr3t-Zx9-s3cr3t
read-only = yes

[other]
Username: account:other
  password = s3cr3t-Zx9-s3cr3t
comment = nothing
";

const CLOUDS: &str = r#"
# OpenStack's
clouds:
  one:
    auth: &auth
      auth_url: https://keystone.example/v3
      username: user
      password: s3cr3t-Zx9-s3cr3t
      project_name: "project"
    region_name: one
    verify: true
    cacert:
  two:
    auth:
      <<: *auth
      password: 's3cr3t-Zx9-s3cr3t'
    profile: vendor
  three: {auth: {token: s3cr3t-Zx9-s3cr3t}, auth_type: v3token}
"#;

/// Everything that could be printed of this file.
fn all_output(sources: &Sources) -> String {
    let config = match Config::load(sources) {
        Ok(config) => config,
        Err(error) => return format!("{error}\n{error:?}"),
    };
    let mut output = format!("{config:?}\n{:?}\n{:?}\n", config.notes(), config.volumes());
    let names = [
        "mynbd0",
        "other",
        "inline",
        "box",
        "mynbd",
        "credential",
        "ready",
        "cloudy",
    ];
    for name in names {
        match config.volume(name) {
            Ok(volume) => output += &format!("{volume:?}\n"),
            Err(error) => output += &format!("{error}\n{error:?}\n"),
        }
    }
    output
}

#[derive(Debug, Clone)]
enum Mutation {
    Replace(u8),
    Insert(String),
    Remove(usize),
    Truncate,
    /// Puts a copy of the line at another place.
    CopyLine(prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = (prop::sample::Index, Mutation)> {
    // Removals are short: a longer one could turn the password into the value
    // of another key, which may be printed.
    let kind = prop_oneof![
        any::<u8>().prop_map(Mutation::Replace),
        "[\\[\\]\"'=:;#{}.,\\\\\n\t a-z0-9_-]{1,3}".prop_map(Mutation::Insert),
        (1usize..6).prop_map(Mutation::Remove),
        Just(Mutation::Truncate),
        any::<prop::sample::Index>().prop_map(Mutation::CopyLine),
    ];
    (any::<prop::sample::Index>(), kind)
}

fn mutate(text: &mut Vec<u8>, at: prop::sample::Index, mutation: Mutation) {
    let at = at.index(text.len() + 1);
    match mutation {
        Mutation::Replace(byte) => {
            if let Some(old) = text.get_mut(at) {
                *old = byte;
            }
        }
        Mutation::Insert(new) => {
            text.splice(at..at, new.into_bytes());
        }
        Mutation::Remove(count) => {
            text.drain(at..text.len().min(at + count));
        }
        Mutation::Truncate => text.truncate(at),
        Mutation::CopyLine(from) => {
            let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
            if lines.is_empty() {
                return;
            }
            let copy = lines[from.index(lines.len())].to_vec();
            let target = at % lines.len();
            let start: usize = lines[..target].iter().map(|line| line.len()).sum();
            text.splice(start..start, copy);
        }
    }
}

/// One directory for all cases of a test: each test runs in a thread of its
/// own, and thousands of directories are slow.
fn shared_dir() -> Rc<Dir> {
    thread_local!(static DIR: Rc<Dir> = Rc::new(Dir::new()));
    DIR.with(Rc::clone)
}

fn with_file(dir: &Dir, ini: bool, content: &[u8]) -> Sources {
    let mut sources = dir.sources();
    match ini {
        true => sources.secrets = Some(dir.file("secrets.conf", content)),
        false => sources.config = Some(dir.file("swiftnbd.toml", content)),
    }
    sources
}

#[test]
fn the_files_are_valid_before_they_are_damaged() {
    let dir = Dir::new();
    let mut toml = with_file(&dir, false, TOML.as_bytes());
    dir.file("clouds.yaml", CLOUDS.as_bytes());
    toml.clouds.directories = vec![dir.path().to_owned()];
    let config = Config::load(&toml).expect("valid TOML");
    assert_eq!(config.volumes().expect("complete").len(), 6);
    // But for the one line that the original would misread.
    let ini = INI.replace("  password", "password");
    let config = Config::load(&with_file(&dir, true, ini.as_bytes())).expect("valid INI");
    assert_eq!(config.volumes().expect("complete").len(), 2);
    assert!(TOML.contains(PASSWORD) && INI.contains(PASSWORD));
}

#[test]
fn deep_and_long_files_end_in_an_error_soon() {
    let dir = Dir::new();
    let half = 500_000;
    for text in [
        format!("a = {}", "[".repeat(half)),
        format!("a = {}", "{a=".repeat(half / 3)),
        format!("{} = 1", vec!["a"; half / 2].join(".")),
        format!("[{}]", vec!["a"; half / 2].join(".")),
        format!("{} = 1", "a".repeat(half)),
        format!("[volumes.{}]", "a".repeat(half)),
        "=".repeat(half),
        "[a".repeat(half),
    ] {
        for ini in [false, true] {
            let sources = with_file(&dir, ini, text.as_bytes());
            let error = Config::load(&sources).expect_err("nonsense");
            assert!(error.to_string().len() < 500, "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn a_damaged_file_never_shows_its_password(
        ini: bool,
        mutations in prop::collection::vec(mutation(), 0..4),
    ) {
        let dir = shared_dir();
        let mut content = if ini { INI } else { TOML }.as_bytes().to_vec();
        for (at, mutation) in mutations {
            mutate(&mut content, at, mutation);
        }
        let output = all_output(&with_file(&dir, ini, &content));
        prop_assert!(
            !output.contains(MARKER),
            "{}\n{output}", String::from_utf8_lossy(&content)
        );
    }

    #[test]
    fn a_damaged_cloud_never_shows_its_password(
        mutations in prop::collection::vec(mutation(), 0..4),
        secure: bool,
    ) {
        let dir = shared_dir();
        let mut content = CLOUDS.as_bytes().to_vec();
        for (at, mutation) in mutations {
            mutate(&mut content, at, mutation);
        }
        let text = "[volumes.mynbd0]\ncloud = \"one\"\n[volumes.other]\ncloud = \"two\"\n\
            [volumes.inline]\ncloud = \"three\"\n[volumes.cloudy]\ncloud = \"four\"\n";
        let mut sources = with_file(&dir, false, text.as_bytes());
        let (clouds, other) = if secure { ("secure.yaml", "clouds.yaml") } else { ("clouds.yaml", "secure.yaml") };
        dir.file(clouds, &content);
        dir.file(other, b"clouds: {one: {}, two: {auth: {}}}\n");
        sources.clouds.directories = vec![dir.path().to_owned()];
        let output = all_output(&sources);
        prop_assert!(
            !output.contains(MARKER),
            "{}\n{output}", String::from_utf8_lossy(&content)
        );
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        ini: bool,
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        text in "(\\[|\\]|\"|'|=|:|;|#|\\{|\\}|\\.|,|\n|\t| |volumes|swift|password|1|é){0,60}",
    ) {
        let dir = shared_dir();
        all_output(&with_file(&dir, ini, &bytes));
        all_output(&with_file(&dir, ini, text.as_bytes()));
        let mut sources = with_file(&dir, false, b"[swift]\ncloud = \"one\"\n");
        sources.clouds.directories = vec![dir.path().to_owned()];
        for content in [&bytes[..], text.as_bytes()] {
            dir.file("clouds.yaml", content);
            all_output(&sources);
        }
    }
}
