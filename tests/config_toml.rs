//! swiftnbd.toml: every key, its default, its bounds, and the messages about
//! mistakes.

mod config_dir;

use std::path::PathBuf;
use std::time::Duration;

use config_dir::{assert_says, load_toml, v1};
use swiftnbd::config::{Backend, Flush, NbdDevice, Volume};
use swiftnbd::credentials::Passphrase;
use swiftnbd::error::{Error, Exit};

const SWIFT: &str = r#"[swift]
auth_url = "https://swift.example/auth/v1.0"
username = "account:user"
password = "s3cr3t-Zx9"
"#;

fn volume(section: &str) -> Volume {
    load_toml(&format!("{SWIFT}[volumes.v]\n{section}"))
        .and_then(|config| config.volume("v"))
        .unwrap_or_else(|error| panic!("{section}: {error}"))
}

/// The failure of a volume's section; its first line is line 6 of the file.
fn mistake(section: &str) -> Error {
    let error = load_toml(&format!("{SWIFT}[volumes.v]\n{section}"))
        .map(|config| panic!("{section}: {config:?}"))
        .unwrap_err();
    assert_eq!(error.exit, Exit::Usage, "{error}");
    assert!(!format!("{error}{error:?}").contains("s3cr3t"), "{error}");
    error
}

#[test]
fn defaults() {
    let volume = volume("");
    assert_eq!(
        (volume.name.as_str(), volume.container.as_str()),
        ("v", "v")
    );
    assert_eq!(volume.device, None);
    assert!(!volume.attach_at_boot && !volume.read_only);
    assert_eq!((volume.cache, volume.dirty), (64 << 20, 64 << 20));
    assert_eq!((volume.map, volume.passphrase), (32 << 20, None));
    assert_eq!(volume.io_timeout, None);
    assert_eq!((volume.flush, &volume.journal), (Flush::Swift, &None));
    assert_eq!(volume.reattach_timeout, Duration::from_secs(120));
    let (auth_url, username, password) = v1(&volume.backend);
    assert_eq!(auth_url, "https://swift.example/auth/v1.0");
    assert_eq!(username, "account:user");
    assert_eq!(password.expose(), "s3cr3t-Zx9");
    assert_eq!(format!("{password} {password:?}"), "… …");
}

#[test]
fn every_key() {
    let volume = volume(
        r#"container = "my box"
        device = "/dev/nbd3"
        attach_at_boot = true
        read_only = true
        cache = "1MiB"
        dirty = 1_048_577
        map = "2MiB"
        passphrase_file = "/etc/swiftnbd/v.pass"
        io_timeout = "5m"
        flush = "local"
        journal = "/var/journal"
        reattach_timeout = "90s"
        password = "other"
        username = "account:other"
        "#,
    );
    assert_eq!(volume.container, "my box");
    assert_eq!(volume.device, NbdDevice::new(3));
    assert!(volume.attach_at_boot && volume.read_only);
    assert_eq!((volume.cache, volume.dirty), (1 << 20, (1 << 20) + 1));
    assert_eq!(volume.map, 2 << 20);
    let file = Passphrase::File("/etc/swiftnbd/v.pass".into());
    assert_eq!(volume.passphrase, Some(file));
    assert_eq!(volume.io_timeout, Some(Duration::from_secs(300)));
    assert_eq!(volume.flush, Flush::Local);
    assert_eq!(volume.journal, Some("/var/journal".into()));
    assert_eq!(volume.reattach_timeout, Duration::from_secs(90));
    let (auth_url, username, password) = v1(&volume.backend);
    assert_eq!(auth_url, "https://swift.example/auth/v1.0");
    assert_eq!((username, password.expose()), ("account:other", "other"));
}

#[test]
fn values_are_read_in_every_form() {
    for (text, seconds) in [
        ("\"0s\"", None),
        ("0", None),
        ("\"0\"", None),
        ("30", Some(30)),
        ("\"30\"", Some(30)),
        ("\"2h\"", Some(7200)),
    ] {
        let found = volume(&format!("io_timeout = {text}")).io_timeout;
        assert_eq!(found, seconds.map(Duration::from_secs), "{text}");
    }
    for (text, bytes) in [
        ("\"1TiB\"", 1 << 40),
        ("0x200000", 2 << 20),
        ("\"8M\"", 8 << 20),
    ] {
        assert_eq!(volume(&format!("cache = {text}")).cache, bytes, "{text}");
    }
    let store = volume("store = \"dir:/var/lib/swiftnbd\"").backend;
    assert_eq!(store, Backend::Dir(PathBuf::from("/var/lib/swiftnbd")));
    for url in ["http://[::1]:8080/auth/v1.0", "HTTPS://h/a@b", "https://h"] {
        volume(&format!("auth_url = {url:?}"));
    }
}

#[test]
fn a_store_needs_no_account_and_a_volume_its_own_section_is_enough() {
    let config = load_toml(
        "[volumes.d]\nstore = \"dir:/d\"\n\
         [volumes.s]\nauth_url = \"http://h/\"\nusername = \"u\"\npassword = \"p\"\n",
    )
    .expect("valid");
    assert_eq!(config.names().collect::<Vec<_>>(), ["d", "s"]);
    assert_eq!(config.volumes().expect("complete").len(), 2);
}

#[test]
fn unknown_keys_name_the_place_and_the_nearest() {
    let error = mistake("cach = \"1M\"");
    assert_says(
        &error,
        "swiftnbd.toml, line 6: 'cach' is no key of [volumes.v]",
        "'cache'",
    );
    assert_says(&mistake("read-only = true"), "'read-only'", "'read_only'");
    assert_says(&mistake("paswd = \"x\""), "'paswd'", "'password'");
    assert_says(
        &mistake("\"\" = 1"),
        "what stands before the '='",
        "known here: container",
    );
    assert_says(
        &mistake("s3cr3t = 1"),
        "what stands before the '='",
        "known here",
    );

    for (text, message, hint) in [
        (
            "[volume.x]\n",
            "line 1: 'volume' is no section",
            "'volumes'",
        ),
        (
            "\nzzzzzz = 1\n",
            "line 2: 'zzzzzz' is no section",
            "swift, volumes",
        ),
        (
            "[swift]\nauthurl = \"\"\n",
            "line 2: 'authurl' is no key of [swift]",
            "'auth_url'",
        ),
        (
            "[swift]\ncache = 1\n",
            "cache does not belong in [swift]",
            "[volumes.NAME]",
        ),
        (
            "[volumes.\"a.b\"]\nzzz = 1\n",
            "'zzz' is no key of [volumes.\"a.b\"]",
            "known here",
        ),
    ] {
        let error = load_toml(text).expect_err(text);
        assert_eq!(error.exit, Exit::Usage);
        assert_says(&error, message, hint);
    }
}

#[test]
fn wrong_types_name_the_key_what_is_expected_and_the_line() {
    for (section, message) in [
        (
            "\ncache = true",
            "line 7: 'cache' in [volumes.v] must be a size: \"64MiB\", not of type boolean",
        ),
        (
            "read_only = \"yes\"",
            "line 6: 'read_only' in [volumes.v] must be true or false, not of type string",
        ),
        ("attach_at_boot = 1", "must be true or false"),
        ("container = 1", "must be a text"),
        ("device = 0", "must be a device"),
        ("io_timeout = 1.5", "must be a time"),
        ("flush = false", "must be \"swift\""),
        ("store = []", "must be a store"),
        (
            "password = 12345",
            "'password' in [volumes.v] must be a text in quotes, not of type integer",
        ),
    ] {
        assert_says(&mistake(section), message, "");
    }
    for (text, message) in [
        (
            "swift = 1",
            "line 1: 'swift' must be a section, not of type integer",
        ),
        ("volumes = \"\"", "'volumes' must be a section"),
        (
            "[volumes]\nv = 1",
            "line 2: 'v' in [volumes] must be a section",
        ),
        ("[[volumes.v]]", "must be a section, not of type array"),
        (
            "[swift]\npassword = [\"s3cr3t\"]",
            "'password' in [swift] must be a text in quotes",
        ),
    ] {
        let error = load_toml(text).expect_err(text);
        assert_says(&error, message, "");
        assert!(!error.to_string().contains("s3cr3t"));
    }
}

#[test]
fn wrong_values_say_why() {
    for (section, message, hint) in [
        (
            "cache = 64",
            "line 6: cache in [volumes.v]: 64 bytes is not between 1MiB and 1TiB",
            "\"64MiB\"",
        ),
        ("cache = 0", "0 bytes is not between", "cache = \"64MiB\""),
        (
            "dirty = \"2TiB\"",
            "2TiB is not between",
            "dirty = \"64MiB\"",
        ),
        ("dirty = \"1023KiB\"", "1023KiB is not between", ""),
        ("map = \"1\"", "1 bytes is not between", "map = \"64MiB\""),
        ("passphrase_file = \"v.pass\"", "must be absolute", ""),
        ("cache = -1", "negative or too large", ""),
        ("cache = \"64XB\"", "'XB' is no unit of size", ""),
        ("io_timeout = \"soon\"", "30s, 5m", ""),
        ("io_timeout = -1", "negative", ""),
        ("io_timeout = 99999999999", "longer than a year", ""),
        ("device = \"nbd0\"", "/dev/nbd0", ""),
        ("device = \"/dev/nbd0p1\"", "partition", ""),
        ("container = \"a/b\"", "contains a '/'", ""),
        ("container = \"\"", "empty", ""),
        ("container = \"..\"", "no names", ""),
        ("flush = \"none\"", "must be \"swift\" or \"local\"", ""),
        ("journal = 1", "a path in quotes", ""),
        (
            "reattach_timeout = \"2h\"",
            "0 (not at all) to 3600 seconds",
            "",
        ),
        ("reattach_timeout = \"100ms\"", "", ""),
        ("store = \"dir:relative\"", "absolute path", ""),
        ("store = \"/var/lib\"", "dir:PATH", ""),
        (
            "store = \"s3://u:s3cr3t@h/\"",
            "this kind of store is not known; there is dir:PATH",
            "",
        ),
        (
            "store = \"file:/x\"",
            "'file:' are not known; there is dir:PATH",
            "",
        ),
        (
            "auth_url = \"swift.example\"",
            "must begin with https://",
            "",
        ),
        ("auth_url = \"ftp://h/\"", "must begin with https://", ""),
        ("auth_url = \"https://u:s3cr3t@h/\"", "contains a user", ""),
        ("auth_url = \"https:///x\"", "names no host", ""),
        ("auth_url = \"https://h/ x\"", "blanks", ""),
        (
            "auth_url = \"https://h/?key=s3cr3t\"",
            "a query or a fragment",
            "",
        ),
        ("username = \"a\\nb\"", "control character", ""),
        (
            "password = \"s3cr3t\\u0000\"",
            "line 6: password in [volumes.v]: it contains a control",
            "",
        ),
    ] {
        assert_says(&mistake(section), message, hint);
    }
    let long = format!("auth_url = \"https://h/{}\"", "x".repeat(2048));
    assert_says(&mistake(&long), "longer than 2048 bytes", "");
    for name in ["\"a b\"", "\"a/b\"", "\".\"", "\"\"", "\"-x\"", "\"a\\tb\""] {
        let error = load_toml(&format!("[volumes.{name}]")).expect_err(name);
        assert_says(&error, "line 1: volume ", "");
    }
}

#[test]
fn syntax_errors_name_the_line_and_never_quote_it() {
    for (text, line) in [
        ("[swift]\npassword = \"s3cr3t", 2),
        ("[swift]\npassword = s3cr3t\n", 2),
        ("[swift]\n\npassword \"s3cr3t\"\n", 3),
        ("[swift\npassword = \"s3cr3t\"\n", 1),
        ("[swift]\npassword = \"s3cr3t\"\npassword = \"s3cr3t\"\n", 3),
        ("[swift]\npassword = \"\\qs3cr3t\"\n", 2),
        ("[swift]\npassword = \"a\" s3cr3t\n", 2),
        ("[swift]\npassword = \"s3cr3t\"\npassword.x = 1\n", 3),
    ] {
        let error = load_toml(text).expect_err(text);
        assert_eq!(error.exit, Exit::Usage);
        assert_says(&error, &format!("swiftnbd.toml, line {line}: "), "");
        assert!(!format!("{error}{error:?}").contains("s3cr3t"), "{error}");
    }
}

#[test]
fn a_name_without_a_section_needs_swift() {
    let config = load_toml(&format!("{SWIFT}[volumes.mynbd0]\ncontainer = \"c\"")).expect("valid");
    assert_eq!(config.volume("free").expect("allowed").container, "free");
    let error = config.volume("a/b").expect_err("a slash");
    assert_eq!(error.exit, Exit::Usage);

    let config = load_toml("[volumes.mynbd0]\nstore = \"dir:/d\"").expect("valid");
    let error = config.volume("mynbd1").expect_err("unknown");
    assert_eq!(error.exit, Exit::NotFound);
    assert_says(
        &error,
        "volume 'mynbd1' is not in ",
        "did you mean 'mynbd0'?",
    );
    assert_says(&error, "swiftnbd.toml", "");
    let error = config.volume("database").expect_err("unknown");
    assert_says(&error, "'database'", "there are: mynbd0");
    let error = load_toml("")
        .expect("valid")
        .volume("v")
        .expect_err("unknown");
    assert_says(&error, "'v'", "names no volume");
}

#[test]
fn a_volume_without_an_account_fails_alone_and_says_what_to_write() {
    let config = load_toml(
        "[swift]\nusername = \"u\"\npassword = \"\"\n[volumes.d]\nstore = \"dir:/d\"\n[volumes.s]\n",
    )
    .expect("valid");
    config.volume("d").expect("complete");
    let error = config.volume("s").expect_err("incomplete");
    assert_eq!(error.exit, Exit::Usage);
    assert_says(&error, "volume 's'", "[swift]\n    auth_url = \"https://");
    assert_says(
        &error,
        "no auth_url, no password",
        "or set ST_AUTH, ST_KEY in the environment",
    );
    assert!(!error.message.contains("username"), "{error}");
    config.volumes().expect_err("one is incomplete");
}
