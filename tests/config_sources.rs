//! Which files are read, who may read them, and which source wins.

mod config_dir;

use std::path::PathBuf;

use config_dir::{Dir, assert_says, environment, v1};
use swiftnbd::config::{Backend, Config, Login, Sources};
use swiftnbd::error::{Error, Exit};

const TOML: &[u8] =
    b"[swift]\nauth_url = \"http://toml/\"\nusername = \"u\"\npassword = \"s3cr3t\"\n\
    [volumes.v]\ncache = \"2MiB\"\n";
const INI: &[u8] = b"[v]\nauthurl = http://ini/\nusername = u\npassword = s3cr3t\n";

fn auth_url(sources: &Sources, name: &str) -> String {
    let volume = Config::load(sources).and_then(|config| config.volume(name));
    v1(&volume.expect(name).backend).0.to_owned()
}

fn refused(sources: &Sources) -> Error {
    Config::load(sources)
        .map(|config| panic!("{config:?}"))
        .unwrap_err()
}

#[test]
fn the_toml_file_is_the_default_and_the_ini_where_it_alone_exists() {
    let dir = Dir::new();
    dir.file("secrets.conf", INI);
    assert_eq!(auth_url(&dir.sources(), "v"), "http://ini/");
    dir.file("swiftnbd.toml", TOML);
    assert_eq!(auth_url(&dir.sources(), "v"), "http://toml/");

    let mut sources = dir.sources();
    sources.secrets = Some(dir.path().join("secrets.conf"));
    assert_eq!(auth_url(&sources, "v"), "http://ini/");
    sources.config = Some(dir.path().join("swiftnbd.toml"));
    assert_says(
        &refused(&sources),
        "--config and --secrets exclude each other",
        "",
    );
    sources.secrets = None;
    assert_eq!(auth_url(&sources, "v"), "http://toml/");
}

#[test]
fn a_file_named_by_the_user_must_exist() {
    let dir = Dir::new();
    for (config, secrets) in [(Some("no.toml"), None), (None, Some("no.conf"))] {
        let mut sources = dir.sources();
        sources.config = config.map(PathBuf::from);
        sources.secrets = secrets.map(PathBuf::from);
        let error = refused(&sources);
        assert_eq!(error.exit, Exit::NotFound);
        assert_says(&error, "does not exist", "is the path right?");
    }
}

#[test]
fn without_any_file_the_environment_suffices() {
    let dir = Dir::new();
    let mut sources = dir.sources();
    sources.environment = environment(&[
        ("ST_AUTH", "http://env/"),
        ("ST_USER", "u"),
        ("ST_KEY", "s3cr3t"),
    ]);
    assert_eq!(auth_url(&sources, "any"), "http://env/");
    assert!(!format!("{sources:?}").contains("s3cr3t"));

    sources.environment = environment(&[("ST_AUTH", "http://env/"), ("ST_KEY", "")]);
    let config = Config::load(&sources).expect("nothing to read");
    assert!(config.volumes().expect("none").is_empty());
    let error = config.volume("any").expect_err("incomplete");
    assert_says(&error, "no username, no password", "swiftnbd.toml");
    assert_says(&error, "volume 'any'", "ST_USER, ST_KEY");
}

#[test]
fn the_file_wins_over_the_environment_which_fills_the_rest() {
    let dir = Dir::new();
    dir.file("swiftnbd.toml", TOML);
    let mut sources = dir.sources();
    sources.environment = environment(&[("ST_AUTH", "not looked at"), ("ST_USER", "env")]);
    assert_eq!(auth_url(&sources, "v"), "http://toml/");

    dir.file(
        "swiftnbd.toml",
        b"[volumes.v]\nusername = \"u\"\npassword = \"p\"\n",
    );
    sources.environment = environment(&[("ST_AUTH", "http://env/")]);
    assert_eq!(auth_url(&sources, "v"), "http://env/");
    let config = Config::load(&sources).expect("valid");
    assert_eq!(
        config.volume("w").expect_err("no section").exit,
        Exit::NotFound
    );
    sources.environment = environment(&[
        ("ST_AUTH", "http://env/"),
        ("ST_USER", "u"),
        ("ST_KEY", "k"),
    ]);
    assert_eq!(auth_url(&sources, "w"), "http://env/");

    sources.environment = environment(&[("ST_AUTH", "http://u:s3cr3t@env/")]);
    let config = Config::load(&sources).expect("valid");
    let error = config.volume("v").expect_err("a user in the URL");
    assert_says(
        &error,
        "ST_AUTH in the environment: the URL contains a user",
        "",
    );
    assert!(!error.to_string().contains("s3cr3t"));

    sources.secrets = Some(dir.file("secrets.conf", b"[v]\nusername = u\npassword = p\n"));
    sources.environment = environment(&[("ST_AUTH", "http://env/")]);
    assert_eq!(auth_url(&sources, "v"), "http://env/");
}

#[test]
fn a_store_on_the_command_line_needs_no_file_and_takes_any_name() {
    let dir = Dir::new();
    dir.file("swiftnbd.toml", b"this is not read");
    let mut sources = dir.sources();
    sources.store = Some("dir:/srv/x".into());
    let config = Config::load(&sources).expect("no file is read");
    let volume = config.volume("any").expect("allowed");
    assert_eq!(volume.backend, Backend::Dir("/srv/x".into()));

    sources.config = Some(dir.file("other.toml", TOML));
    let volume = Config::load(&sources).and_then(|config| config.volume("v"));
    let volume = volume.expect("allowed");
    assert_eq!(
        (volume.cache, volume.backend),
        (2 << 20, Backend::Dir("/srv/x".into()))
    );

    for (store, part) in [
        ("dir:here", "absolute path"),
        ("/srv/x", "dir:PATH"),
        ("swift:x", "'swift:' are not known; there is dir:PATH"),
        ("https://u:s3cr3t@h/", "'https:' are not known"),
    ] {
        sources.store = Some(store.into());
        let error = refused(&sources);
        assert_eq!(error.exit, Exit::Usage);
        assert_says(&error, part, "--store dir:/");
        assert!(!error.to_string().contains("s3cr3t"));
    }
}

#[test]
fn a_password_in_a_world_readable_file_is_refused() {
    let dir = Dir::new();
    let default_only = b"[DEFAULT]\npassword = s3cr3t\n".as_slice();
    for (name, content) in [
        ("swiftnbd.toml", TOML),
        (
            "swiftnbd.toml",
            b"[volumes.v]\npassword = \"s3cr3t\"\n".as_slice(),
        ),
        ("secrets.conf", INI),
        ("secrets.conf", default_only),
    ] {
        let dir = Dir::new();
        for mode in [0o644, 0o604] {
            let path = dir.file_with_mode(name, content, mode);
            let error = refused(&dir.sources());
            assert_eq!(error.exit, Exit::Usage);
            let path = path.display();
            let message = format!("{path} is readable by everyone and holds a password");
            assert_says(&error, &message, &format!("chmod 600 {path}"));
        }
        for mode in [0o600, 0o640] {
            dir.file_with_mode(name, content, mode);
            Config::load(&dir.sources()).expect("readable by few");
        }
    }
    dir.file_with_mode("swiftnbd.toml", b"[volumes.v]\nusername = \"u\"\n", 0o644);
    Config::load(&dir.sources()).expect("no password in it");
}

#[test]
fn files_that_cannot_be_configurations() {
    let dir = Dir::new();
    dir.file("swiftnbd.toml", &vec![b'#'; (1 << 20) + 1]);
    assert_says(
        &refused(&dir.sources()),
        "swiftnbd.toml: larger than 1 MiB",
        "",
    );
    dir.file("swiftnbd.toml", &vec![b'#'; 1 << 20]);
    Config::load(&dir.sources()).expect("exactly 1 MiB");
    dir.file("swiftnbd.toml", b"\n# s3cr3t\n\xff");
    let error = refused(&dir.sources());
    assert_says(&error, "swiftnbd.toml, line 3: not UTF-8 text", "");

    let mut sources = dir.sources();
    sources.config = Some(dir.path().to_owned());
    let error = refused(&sources);
    assert_eq!(error.exit, Exit::Failed);
    assert_says(&error, "cannot read", "");
    sources.config = Some(dir.file("secrets.conf", INI));
    assert_says(&refused(&sources), "line 2: ", "--secrets FILE");
}

#[test]
fn a_file_that_may_not_be_read_is_an_access_refused() {
    if nix::unistd::geteuid().is_root() {
        return as_nobody();
    }
    unreadable();
}

fn unreadable() {
    let dir = Dir::new();
    dir.file_with_mode("swiftnbd.toml", TOML, 0o000);
    let error = refused(&dir.sources());
    assert_eq!(error.exit, Exit::Denied);
    assert_says(&error, "cannot read", "its owner");
}

/// Root may read everything, so the check runs in a thread that is somebody
/// else: the raw system call changes the calling thread alone.
fn as_nobody() {
    let thread = std::thread::spawn(|| {
        // SAFETY: setresuid takes three numbers and touches no memory.
        let outcome = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(outcome, 0, "becoming nobody");
        unreadable();
    });
    thread.join().expect("the check as nobody");
}

#[test]
fn the_system_reads_etc() {
    let sources = Sources::system();
    assert_eq!(sources.etc_dir, PathBuf::from("/etc/swiftnbd"));
    assert!(sources.config.is_none() && sources.secrets.is_none() && sources.store.is_none());
    assert_eq!(environment(&[]), Login::default());
}
