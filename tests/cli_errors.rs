//! What a user sees when a command fails: exit status, message, hint, nothing on
//! stdout; and that the failure changed nothing in the container.
//!
//! The binary runs as a user runs it, over a local directory, over a real Swift,
//! and over a real Swift whose answers are spoiled on their way. Those of Swift
//! need `scripts/lab run -- cargo test --test cli_errors`, or `scripts/test`;
//! without one they fail. No kernel is needed: `attach` is tried as far as it
//! fails before it.

#[path = "support/command.rs"]
mod command;
#[path = "support/nbd_client.rs"]
mod nbd_client;
#[path = "support/plain_swift.rs"]
mod plain_swift;
#[path = "support/tamper.rs"]
mod tamper;
#[path = "support/waiting.rs"]
mod waiting;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use command::{
    ANY, Sandbox, VOLUME, WRONG_PASSWORD, command, everywhere, finish, publish, run, write_private,
};
use tamper::{Act, Tamper};

const KIB: u64 = 1024;

/// Runs every command that needs a volume, but `setup`; each must fail so, and
/// change nothing.
fn all_fail(sandbox: &Sandbox, status: i32, words: &[&str], hint: &str) {
    let before = sandbox.snapshot();
    let socket = sandbox.files.path().join("never.sock");
    let image = sandbox.files.path().join("never.img");
    for args in [
        &["lock", VOLUME][..],
        &["unlock", VOLUME],
        &["download", VOLUME, image.to_str().unwrap()],
        &["delete", VOLUME, "--yes"],
        &["serve", VOLUME, "--unix", socket.to_str().unwrap()],
    ] {
        let mut all = vec![VOLUME];
        all.extend(words);
        sandbox.run(args).failed(status, &all, hint);
        assert!(!socket.exists(), "{args:?} listens");
        assert!(!image.exists(), "{args:?} makes an image");
    }
    // It goes on to the next volume, so the reasons come first.
    let listed = sandbox.run(&["list"]);
    assert_eq!((listed.status, &*listed.stdout), (status, ""), "{listed:?}");
    for word in words {
        assert!(listed.stderr.contains(word), "{word:?}: {listed:?}");
    }
    assert_eq!(sandbox.snapshot(), before);
}

everywhere! {
    /// A container that is not there is "not found", and is not made.
    fn no_container(sandbox: &Sandbox) {
        all_fail(sandbox, 4, &[&sandbox.container], "swiftnbd setup vol --size");
        assert_eq!(sandbox.snapshot(), None);
    }

    /// A container without the metadata of a volume is not one.
    fn not_a_volume(sandbox: &Sandbox) {
        sandbox.create();
        sandbox.put("holiday.jpg", b"somebody else's");
        all_fail(sandbox, 4, &["not a swiftnbd volume"], "swiftnbd setup vol --size");
    }

    /// A format from the future is not touched.
    fn unknown_version(sandbox: &Sandbox) {
        sandbox.create();
        sandbox.set_metadata(&[
            ("Swiftnbd-Version", "7"),
            ("Swiftnbd-Objects", "16"),
            ("Swiftnbd-Object-Size", "4096"),
        ]);
        all_fail(sandbox, 1, &["\"7\"", "does not know"], "a newer version");
        let before = sandbox.snapshot();
        sandbox.run(&["setup", VOLUME, "16"]).failed(1, &["\"7\""], ANY);
        assert_eq!(sandbox.snapshot(), before);
    }

    /// Metadata that make no sense are named, with the way to mend them, and are
    /// left as they are.
    fn damaged_metadata(sandbox: &Sandbox) {
        const SOUND: [(&str, &str); 3] = [
            ("Swiftnbd-Version", "1"),
            ("Swiftnbd-Objects", "16"),
            ("Swiftnbd-Object-Size", "4096"),
        ];
        sandbox.create();
        sandbox.put("disk.part/00000003", &[3; 4096]);
        for (key, value, shown) in [
            ("Swiftnbd-Objects", "", "Swiftnbd-Objects is missing"),
            ("Swiftnbd-Objects", "-16", "Swiftnbd-Objects is \"-16\""),
            ("Swiftnbd-Object-Size", "", "Swiftnbd-Object-Size is missing"),
            ("Swiftnbd-Object-Size", "0", "Swiftnbd-Object-Size is \"0\""),
            ("Swiftnbd-Object-Size", "4096 bytes", "Swiftnbd-Object-Size is \"4096 bytes\""),
            ("Swiftnbd-Objects", "99999999999999999999", "\"99999999999999999999\""),
            ("Swiftnbd-Version", "", "Swiftnbd-Version is missing"),
        ] {
            sandbox.set_metadata(&SOUND);
            sandbox.set_metadata(&[(key, value)]);
            all_fail(sandbox, 1, &["damaged", shown], "setup --force vol");
            let before = sandbox.snapshot();
            sandbox.run(&["setup", VOLUME, "16"]).failed(1, &["damaged", shown], "--force");
            assert_eq!(sandbox.snapshot(), before);
        }
        // What the hint says does mend it, and the data is still there.
        sandbox.run(&["setup", "--force", VOLUME, "16", "--object-size", "4096"]).is_silent();
        let server = sandbox.serve();
        let mut client = server.client();
        assert_eq!(client.read(3 * 4096, 4096).unwrap(), [3; 4096]);
        client.disconnect();
        server.stop();
    }

    /// A volume is not set up anew by mistake; by `--force` it is, and keeps its
    /// data.
    fn setup_over_a_volume(sandbox: &Sandbox) {
        sandbox.set_up(16, 4096);
        sandbox.put("disk.part/00000005", &[5; 4096]);
        let before = sandbox.snapshot();
        sandbox.run(&["setup", VOLUME, "32"]).failed(1, &[VOLUME, "64KiB", "format 1"], "delete vol");
        sandbox.run(&["setup", VOLUME, "32", "--force"]).failed(1, &[VOLUME, "format 1"], "--force");
        sandbox.run(&["setup", VOLUME, "32", "--format", "1"]).failed(1, &[VOLUME, "64KiB"], "--force");
        sandbox.run(&["setup", VOLUME, "16", "--object-size", "4096"])
            .failed(1, &[VOLUME], "--force");
        assert_eq!(sandbox.snapshot(), before);

        sandbox.run(&["setup", VOLUME, "32", "--object-size", "4096", "--force"]).is_silent();
        let (metadata, objects) = sandbox.snapshot().unwrap();
        assert_eq!(metadata["swiftnbd-objects"], "32");
        assert_eq!(objects, before.unwrap().1);
    }

    /// Objects without metadata are somebody's volume, too.
    fn setup_over_objects(sandbox: &Sandbox) {
        sandbox.create();
        sandbox.put("disk.part/00000000", &[9; 4096]);
        let before = sandbox.snapshot();
        sandbox.run(&["setup", VOLUME, "16"]).failed(1, &[VOLUME, "holds the objects"], "--force");
        sandbox.run(&["setup", VOLUME, "16", "--format", "1"])
            .failed(1, &[VOLUME, "holds the objects"], "--force");
        assert_eq!(sandbox.snapshot(), before);
    }

    /// A volume in use is not set up anew, not even by force.
    fn setup_of_a_locked_volume(sandbox: &Sandbox) {
        sandbox.set_up(16, 4096);
        sandbox.set_metadata(&[("Swiftnbd-Client", "far.example:10809@1385853264")]);
        let before = sandbox.snapshot();
        for args in [&["setup", VOLUME, "32"][..], &["setup", VOLUME, "32", "--force"]] {
            sandbox.run(args).failed(
                3,
                &[VOLUME, "far.example:10809", "2013-11-30 23:14:24 UTC"],
                "swiftnbd unlock vol",
            );
        }
        assert_eq!(sandbox.snapshot(), before);
    }

    /// A lock counts even where the rest of the metadata is damaged: what mends
    /// them must not take the volume away from whoever uses it.
    fn setup_of_a_locked_and_damaged_volume(sandbox: &Sandbox) {
        sandbox.set_up(16, 4096);
        sandbox.set_metadata(&[
            ("Swiftnbd-Client", "far.example:10809@1385853264"),
            ("Swiftnbd-Object-Size", ""),
        ]);
        let before = sandbox.snapshot();
        sandbox.run(&["setup", VOLUME, "16", "--object-size", "4096", "--force"])
            .failed(3, &[VOLUME, "far.example:10809"], "swiftnbd unlock vol");
        assert_eq!(sandbox.snapshot(), before);
        // The way out that the hint names.
        sandbox.run(&["unlock", VOLUME]).is_silent();
        sandbox.run(&["setup", VOLUME, "16", "--object-size", "4096", "--force"]).is_silent();
    }

    /// Who has a lock is said by all that need it; it is taken away once.
    fn lock_and_unlock_twice(sandbox: &Sandbox) {
        sandbox.set_up(16, 4096);
        sandbox.run(&["unlock", VOLUME]).failed(1, &[VOLUME, "not locked"], "");
        sandbox.run(&["lock", VOLUME]).is_silent();
        let client = sandbox.metadata("swiftnbd-client");
        let (who, when) = client.split_once('@').unwrap();
        assert_eq!(who, "ctl");
        // With a fraction, as the original's: two locks of one second are not one.
        let (seconds, fraction) = when.split_once('.').unwrap();
        assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000, "{when}");
        assert_eq!(fraction.len(), 6, "{when}");

        let before = sandbox.snapshot();
        sandbox.run(&["lock", VOLUME])
            .failed(3, &[VOLUME, "locked by ctl since"], "swiftnbd unlock vol");
        let socket = sandbox.files.path().join("never.sock");
        sandbox.run(&["serve", VOLUME, "--unix", socket.to_str().unwrap()])
            .failed(3, &[VOLUME, "locked by ctl since"], "swiftnbd unlock vol");
        assert_eq!(sandbox.snapshot(), before);
        let listed = sandbox.run(&["list", "--simple-output"]);
        assert_eq!(listed.status, 0, "{listed:?}");
        assert!(
            listed.stdout.starts_with("vol objects=16 size=65536 (version=1, locked by ctl"),
            "{listed:?}"
        );

        sandbox.run(&["unlock", VOLUME]).is_silent();
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
        assert_eq!(sandbox.metadata("swiftnbd-last"), client);
        let before = sandbox.snapshot();
        sandbox.run(&["unlock", VOLUME]).failed(1, &[VOLUME, "not locked"], "");
        assert_eq!(sandbox.snapshot(), before);
        let listed = sandbox.run(&["list"]);
        assert_eq!(listed.stdout, "vol objects=16 size=65536 (version=1, unlocked)\n");
    }

    /// A volume that is served on this machine is not unlocked under its server.
    fn unlock_of_a_volume_that_is_served_here(sandbox: &Sandbox) {
        sandbox.set_up(16, 4096);
        let server = sandbox.serve();
        let before = sandbox.snapshot();
        sandbox.run(&["unlock", VOLUME]).failed(3, &[VOLUME], ANY);
        assert_eq!(sandbox.snapshot(), before);
        server.stop();
    }

    /// While one server has the volume, everybody else is told who that is.
    fn a_second_holder(sandbox: &Sandbox) {
        sandbox.set_up(16, 4096);
        let server = sandbox.serve();
        let second = sandbox.files.path().join("second.sock");
        let pid = sandbox.metadata("swiftnbd-client");
        let pid = pid.split(['@', ':']).nth(1).unwrap().to_owned();
        for args in [
            &["serve", VOLUME, "--unix", second.to_str().unwrap()][..],
            &["lock", VOLUME],
            &["setup", VOLUME, "16", "--force"],
        ] {
            sandbox.run(args).failed(3, &[VOLUME, &pid], "swiftnbd ");
        }
        assert!(!second.exists());
        let mut client = server.client();
        client.write(0, &[1; 512]).unwrap();
        client.disconnect();
        server.stop();
    }
}

/// Mistakes on the command line: status 2, nothing on stdout, and the right word.
#[test]
fn usage() {
    let sandbox = Sandbox::dir();
    for (args, word) in [
        (&["swim"][..], "swim"),
        (&["setup"], "NAME"),
        (&["setup", VOLUME], "OBJECTS"),
        (&["setup", VOLUME, "16", "--size", "1M"], "--size"),
        (&["setup", VOLUME, "0"], "0"),
        (&["setup", VOLUME, "many"], "many"),
        (&["setup", VOLUME, "--size", "1Q"], "Q"),
        (&["setup", VOLUME, "--size", "100000"], "102400"),
        (&["setup", VOLUME, "--size", "17T"], "16TiB"),
        (
            &["setup", VOLUME, "--size", "100000", "--format", "1"],
            "65536",
        ),
        (
            &["setup", VOLUME, "16", "--format", "1", "--encrypt"],
            "format 2",
        ),
        (
            &[
                "setup",
                VOLUME,
                "16",
                "--format",
                "1",
                "--block-size",
                "4096",
            ],
            "format 2",
        ),
        (
            &[
                "setup",
                VOLUME,
                "16",
                "--object-size",
                "4096",
                "--compression",
                "lz4",
            ],
            "format 2",
        ),
        (
            &[
                "setup",
                VOLUME,
                "16",
                "--object-size",
                "4096",
                "--format",
                "2",
            ],
            "--object-size",
        ),
        (&["setup", VOLUME, "16", "--block-size", "1024"], "4096"),
        (&["setup", VOLUME, "16", "--encrypt"], "--passphrase-file"),
        (
            &["setup", VOLUME, "16", "--passphrase", "open-sesame"],
            "--passphrase",
        ),
        (&["passphrase", VOLUME], "--new-passphrase-file"),
        (&["convert", VOLUME], "NEW"),
        (&["convert", VOLUME, VOLUME], "one container"),
        (&["setup", VOLUME, "16", "--object-size", "1000"], "512"),
        (&["setup", VOLUME, "16", "--object-size", "0"], "512"),
        (&["setup", VOLUME, "16", "--object-size", "1T"], "1TiB"),
        (&["setup", VOLUME, "18446744073709551615"], "16TiB"),
        (
            &["setup", VOLUME, "18446744073709551615", "--format", "1"],
            "objects",
        ),
        (&["setup", VOLUME, "16", "--format", "3"], "format"),
        (&["setup", "a/b", "16"], "a/b"),
        (&["setup", "..", "16"], ".."),
        (&["attach", VOLUME, "nbd0"], "/dev/nbd0"),
        (&["attach", VOLUME, "/dev/nbd0p1"], "partition"),
        (&["attach", VOLUME, "/dev/sda"], "/dev/nbd0"),
        (&["detach"], "DEVICE"),
        (&["detach", "/dev/nbd"], "/dev/nbd0"),
        (&["detach", VOLUME, "--timeout", "soon"], "soon"),
        (&["lock"], "NAME"),
        (&["download", VOLUME], "IMAGE"),
        (
            &["download", VOLUME, "/x", "--limit", "0"],
            "more than nothing",
        ),
        (&["upload", "/nowhere"], "NAME"),
        (&["upload", "/dev/null", VOLUME], "neither a file nor"),
        (&["delete"], "NAME"),
        (&["delete", VOLUME], "nobody to ask"),
        (&["unlock", "a", "b"], "'b'"),
        (&["list", "-s", "--json"], "--json"),
        (&["serve", VOLUME, "--bind", "localhost"], "127.0.0.1:10809"),
        (&["serve", VOLUME, "--bind", "0.0.0.0"], "TLS"),
        (
            &["serve", VOLUME, "--bind", "::1", "--unix", "/s"],
            "--unix",
        ),
        (&["serve", VOLUME, "--tls-cert", "/c"], "--tls-key"),
        (&["serve", VOLUME, VOLUME], "twice"),
        (&["list", "--store", "nfs:/x"], "nfs:"),
        (&["list", "--store", "dir:here"], "absolute"),
        (&["list", "--secrets", "/x"], "--secrets"),
        (&["list", "--log-file", "/nowhere/log"], "/nowhere/log"),
    ] {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.status, 2, "{args:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "{args:?}");
        assert!(
            outcome.stderr.contains(word),
            "{word:?}: {}",
            outcome.stderr
        );
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    }
    assert_eq!(sandbox.snapshot(), None);
    let nothing = run(&[]);
    assert_eq!((nothing.status, &*nothing.stdout), (2, ""));
    for asked in ["--help", "--version"] {
        let outcome = run(&[asked]);
        assert_eq!((outcome.status, &*outcome.stderr), (0, ""), "{asked}");
        assert!(outcome.stdout.contains("swiftnbd"), "{asked}");
    }
}

/// Mistakes in the configuration: which file, which line, what was probably meant.
#[test]
fn configuration() {
    let sandbox = Sandbox::dir();
    let path = sandbox.config();
    let shown = path.to_str().unwrap();
    let socket = sandbox.files.path().join("s").display().to_string();
    let commands = [
        &["list"][..],
        &["lock", VOLUME],
        &["unlock", VOLUME],
        &["setup", VOLUME, "16"],
        &["attach", VOLUME],
        &["serve", VOLUME, "--unix", &socket],
    ];
    let all_fail = |status, words: &[&str], hint| {
        for args in commands {
            sandbox.run(args).failed(status, words, hint);
        }
    };
    let login = format!(
        "[swift]\nauth_url = \"http://127.0.0.1:1/v1\"\nusername = \"u\"\n\
         password = \"{WRONG_PASSWORD}\"\n"
    );

    write_private(&path, &format!("{login}[volumes.vol]\nread_onyl = true\n"));
    all_fail(2, &[shown, "line 6", "read_onyl"], "'read_only'");
    write_private(&path, &format!("{login}[volume.vol]\n"));
    all_fail(2, &[shown, "volume"], "'volumes'");
    write_private(&path, &login.replace("password", "passwort"));
    all_fail(2, &[shown, "line 4", "passwort"], "'password'");
    write_private(
        &path,
        &login.replace(&format!("\"{WRONG_PASSWORD}\""), WRONG_PASSWORD),
    );
    for args in commands {
        let outcome = sandbox.run(args);
        assert_eq!((outcome.status, &*outcome.stdout), (2, ""), "{outcome:?}");
        assert!(outcome.stderr.contains("line 4"), "{outcome:?}");
    }

    write_private(&path, &format!("{login}[volumes.vol]\n"));
    publish(&path);
    all_fail(2, &[shown, "readable by everyone", "password"], "chmod 600");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let other = sandbox.run(&["attach", "vlo"]);
    assert_ne!(other.status, 2, "its group may read it: {other:?}");

    write_private(&path, "[volumes.vol]\nstore = \"dir:/nowhere\"\n");
    for args in [
        &["lock", "vlo"][..],
        &["setup", "vlo", "16"],
        &["attach", "vlo"],
    ] {
        sandbox.run(args).failed(4, &[shown, "'vlo'"], "'vol'");
    }
    std::fs::remove_file(&path).unwrap();
    all_fail(4, &[shown, "does not exist"], "command line");
}

/// What only root may do says so to others, before it has touched anything.
#[test]
fn an_ordinary_user() {
    let sandbox = Sandbox::dir();
    sandbox.set_up(16, 4096);
    let before = sandbox.snapshot();
    // The binary and its configuration where such a user can read them.
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = open.path().join("swiftnbd");
    std::fs::copy(env!("CARGO_BIN_EXE_swiftnbd"), &program).unwrap();
    let config = open.path().join("swiftnbd.toml");
    std::fs::copy(sandbox.config(), &config).unwrap();
    publish(&config);
    for args in [&["attach", VOLUME][..], &["detach", VOLUME], &["status"]] {
        let mut command = std::process::Command::new(&program);
        command.env_clear().args(args).arg("--config").arg(&config);
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        finish(&mut command).failed(5, &["needs root"], "sudo");
    }
    assert_eq!(sandbox.snapshot(), before);
}

/// `attach` of what cannot be attached leaves the volume unlocked.
#[test]
fn attach_before_the_kernel() {
    let sandbox = Sandbox::dir();
    sandbox.set_up(16, 4096);
    let before = sandbox.snapshot();
    let outcome = sandbox.run(&["attach", VOLUME, "/dev/nbd1048575"]);
    // Without the driver it is missing; with it, it has fewer devices.
    outcome.failed(4, &["nbd"], "modprobe nbd");
    sandbox
        .run(&["detach", "/dev/nbd1048575"])
        .failed(4, &["/dev/nbd1048575"], "status");
    sandbox
        .run(&["detach", VOLUME])
        .failed(4, &[VOLUME], "status");
    sandbox
        .run(&["status", VOLUME])
        .failed(4, &[VOLUME], "status");
    let all = sandbox.run(&["status", "--json"]);
    assert_eq!(all.status, 0, "{all:?}");
    assert!(
        serde_json::from_str::<serde_json::Value>(&all.stdout)
            .unwrap()
            .is_array()
    );
    assert_eq!(sandbox.snapshot(), before);
}

/// What `list` prints for scripts.
#[test]
fn list_is_json_where_asked() {
    let sandbox = Sandbox::dir();
    sandbox.set_up(16, 4096);
    let listed = sandbox.run(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(json[0]["name"], VOLUME);
    assert_eq!(json[0]["size"], 16 * 4 * KIB);
    assert_eq!(json[0]["locked"], false);
}

/// A wrong password is refused at once, and never shown.
#[test]
fn wrong_password() {
    let mut sandbox = Sandbox::swift();
    sandbox.set_up(16, 4096);
    let right = sandbox.lab().key.clone();
    sandbox.log_in_as(None, WRONG_PASSWORD);
    all_fail(&sandbox, 5, &["/auth/v1.0", "401"], "password");
    let before = sandbox.snapshot();
    for args in [
        &["setup", VOLUME, "16"][..],
        &["setup", VOLUME, "16", "--force"],
    ] {
        sandbox
            .run(args)
            .failed(5, &[VOLUME, "/auth/v1.0", "401"], "password");
    }
    assert_eq!(sandbox.snapshot(), before);
    sandbox.log_in_as(None, &right);
    sandbox.run(&["lock", VOLUME]).is_silent();
}

/// A host that cannot be reached: named, with a status of its own, after a few
/// seconds.
#[test]
fn unreachable_host() {
    let mut sandbox = Sandbox::swift();
    sandbox.set_up(16, 4096);
    let before = sandbox.snapshot();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    for url in [
        format!("http://{address}/auth/v1.0"),
        "http://nowhere.invalid/auth/v1.0".into(),
    ] {
        sandbox.log_in_as(Some(&url), WRONG_PASSWORD);
        sandbox
            .run(&["lock", VOLUME])
            .failed(6, &[VOLUME, &url], "address");
    }
    assert_eq!(sandbox.snapshot(), before);
}

/// The account itself gone: the storage URL of the token leads nowhere.
#[test]
fn unreachable_storage() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(16, 4096);
    tamper.rule(|seen| match seen.is_auth() {
        true => Act::Raw(
            b"HTTP/1.1 200 OK\r\nX-Auth-Token: AUTH_tkfake\r\nConnection: close\r\n\
              X-Storage-Url: http://127.0.0.1:1/v1/AUTH_test\r\nContent-Length: 0\r\n\r\n"
                .to_vec(),
        ),
        false => Act::Forward,
    });
    sandbox
        .run(&["lock", VOLUME])
        .failed(6, &[VOLUME, &sandbox.container], "address");
}

/// Answers that a Swift rarely gives to requests about the container, and what a
/// user sees of each.
#[test]
fn refusals_of_a_container() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(16, 4096);
    let before = sandbox.snapshot();
    let container = sandbox.container.clone();
    let answer = |tamper: &Tamper, method: &'static str, status: u16| {
        let container = container.clone();
        tamper.rule(move |seen| match seen.is(method, &container) {
            true => Act::Status(status),
            false => Act::Forward,
        });
    };
    for (method, status, exit, hint) in [
        ("HEAD", 404, 4, "swiftnbd setup vol"),
        ("HEAD", 401, 5, "check the credentials"),
        ("HEAD", 403, 5, "has no role in it"),
        ("POST", 403, 5, "a role that may write"),
        ("POST", 404, 4, "swiftnbd setup vol"),
    ] {
        answer(&tamper, method, status);
        let outcome = sandbox.run(&["lock", VOLUME]);
        outcome.failed(
            exit,
            &[VOLUME, method, &sandbox.container, &status.to_string()],
            hint,
        );
        assert!(tamper.hits() > 0);
        tamper.forward();
        assert_eq!(sandbox.snapshot(), before, "{method} {status}");
    }
    for (method, status, hint) in [
        ("PUT", 403, "a role that may write"),
        ("HEAD", 403, "has no role in it"),
        ("POST", 403, "a role that may write"),
    ] {
        answer(&tamper, method, status);
        let outcome = sandbox.run(&["setup", VOLUME, "32", "--format", "1", "--force"]);
        outcome.failed(5, &[VOLUME, method, &sandbox.container], hint);
        tamper.forward();
        assert_eq!(sandbox.snapshot(), before, "{method} {status}");
    }
}

/// A Swift that does not work at present: after some seconds the command says
/// so, and has changed nothing.
#[test]
fn a_swift_that_does_not_work() {
    type Failure = (&'static str, fn() -> Act);
    let failures: [Failure; 5] = [
        ("503", || Act::Status(503)),
        ("498", || Act::Status(498)),
        ("closed", || Act::Close),
        ("no answer", || Act::Hang),
        ("invalid HTTP", || {
            Act::Raw(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec())
        }),
    ];
    std::thread::scope(|scope| {
        for (word, act) in failures {
            scope.spawn(move || {
                let (sandbox, tamper) = Sandbox::tampered();
                sandbox.set_up(16, 4096);
                let before = sandbox.snapshot();
                tamper.rule(move |seen| if seen.is_auth() { Act::Forward } else { act() });
                let words = [VOLUME, word, "given up"];
                sandbox
                    .run(&["lock", VOLUME])
                    .failed(6, &words, "try again later");
                let args = ["setup", VOLUME, "16", "--force"];
                sandbox.run_once(&args).failed(6, &words, "try again later");
                assert_eq!(sandbox.snapshot(), before);
            });
        }
    });
}

/// An authentication service that does not work, or talks nonsense.
#[test]
fn an_authentication_that_does_not_work() {
    type Failure = (i32, fn() -> Act);
    let failures: [Failure; 5] = [
        (6, || Act::Status(503)),
        (5, || Act::Status(401)),
        (5, || Act::Status(403)),
        (6, || Act::Hang),
        // No token, no storage URL.
        (1, || Act::Status(200)),
    ];
    std::thread::scope(|scope| {
        for (exit, act) in failures {
            scope.spawn(move || {
                let (sandbox, tamper) = Sandbox::tampered();
                sandbox.set_up(16, 4096);
                let before = sandbox.snapshot();
                tamper.rule(move |seen| if seen.is_auth() { act() } else { Act::Forward });
                sandbox.run(&["lock", VOLUME]).failed(exit, &[VOLUME], ANY);
                assert_eq!(sandbox.snapshot(), before);
            });
        }
    });
}

/// A change that was made and whose answer was lost is recognized as made.
#[test]
fn lost_answers() {
    let (sandbox, tamper) = Sandbox::tampered();
    let lose_one = |method: &'static str| {
        let mut lost = false;
        tamper.rule(move |seen| match seen.method == method && !lost {
            true => {
                lost = true;
                Act::Swallow
            }
            false => Act::Forward,
        });
    };
    let succeeds = |args: &[&str]| {
        let outcome = sandbox.run(args);
        assert_eq!((outcome.status, &*outcome.stdout), (0, ""), "{outcome:?}");
        assert!(outcome.stderr.contains(&sandbox.container), "{outcome:?}");
        assert_eq!(tamper.hits(), 1);
    };
    lose_one("PUT");
    succeeds(&["setup", VOLUME, "16", "--format", "1"]);
    lose_one("POST");
    succeeds(&["setup", VOLUME, "8", "--format", "1", "--force"]);
    assert_eq!(sandbox.metadata("swiftnbd-objects"), "8");
    lose_one("POST");
    succeeds(&["lock", VOLUME]);
    assert!(sandbox.metadata("swiftnbd-client").starts_with("ctl@"));
    lose_one("POST");
    succeeds(&["unlock", VOLUME]);
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
}

/// Metadata that Swift said it has taken and does not show: `setup` does not
/// claim success.
#[test]
fn metadata_that_do_not_stick() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(16, 4096);
    tamper.rule(|seen| {
        if seen.method == "POST" {
            Act::Status(204)
        } else {
            Act::Forward
        }
    });
    let outcome = sandbox.run(&["setup", VOLUME, "32", "--format", "1", "--force"]);
    outcome.failed(1, &[VOLUME, "other metadata"], "");
}

/// A volume of the original's secrets.conf works as it is.
#[test]
fn secrets_of_the_original() {
    let sandbox = Sandbox::swift();
    let lab = sandbox.lab();
    let container = &sandbox.container;
    let path = sandbox.files.path().join("secrets.conf");
    let text = format!(
        "# as the original's documentation has it\n[{container}]\nusername = {}\n\
         password = {}\nauthurl = {}\n\n[other]\nusername={}\npassword={}\nauthurl={}\n\
         read-only = 1\n",
        lab.user, lab.key, lab.auth_url, lab.user, WRONG_PASSWORD, lab.auth_url
    );
    write_private(&path, &text);
    let secrets = |args: &[&str]| {
        let mut all = vec!["--secrets", path.to_str().unwrap()];
        all.extend(args);
        let outcome = run(&all);
        sandbox.assert_no_secret(&outcome.stdout);
        sandbox.assert_no_secret(&outcome.stderr);
        outcome
    };
    secrets(&["setup", container, "16", "--object-size", "4096"]).is_silent();
    assert_eq!(sandbox.metadata("swiftnbd-version"), "1");
    assert_eq!(sandbox.metadata("swiftnbd-objects"), "16");
    assert_eq!(sandbox.metadata("swiftnbd-object-size"), "4096");
    secrets(&["lock", container]).is_silent();
    let listed = secrets(&["list", "-s"]);
    let line = format!("{container} objects=16 size=65536 (version=1, locked by ctl");
    assert!(listed.stdout.starts_with(&line), "{listed:?}");
    assert_eq!(listed.stdout.lines().count(), 1);
    assert_eq!(
        listed.status, 5,
        "the other one's password is wrong: {listed:?}"
    );
    assert!(listed.stderr.contains("other"), "{listed:?}");
    secrets(&["unlock", container]).is_silent();
    secrets(&["lock", "missing"]).failed(4, &["missing"], "there are: ");

    publish(&path);
    secrets(&["list"]).failed(2, &["readable by everyone"], "chmod 600");
}

/// The original's own container as current Swift keeps it: without Object-Size,
/// whose header Swift dropped. The hint mends it.
#[test]
fn a_container_of_the_original_without_object_size() {
    let sandbox = Sandbox::swift();
    let (lab, container) = (sandbox.lab(), &sandbox.container);
    lab.create(container);
    lab.set_metadata(
        container,
        &[
            ("Swiftnbd-Version", "1"),
            ("Swiftnbd-Objects", "16"),
            ("Swiftnbd-object_size", "65536"),
        ],
    );
    sandbox.put("disk.part/00000001", &[7; 65536]);
    sandbox.run(&["lock", VOLUME]).failed(
        1,
        &["Swiftnbd-Object-Size is missing"],
        "--object-size SIZE",
    );
    sandbox
        .run(&["setup", "--force", VOLUME, "16", "--object-size", "65536"])
        .is_silent();
    assert_eq!(sandbox.get("disk.part/00000001").unwrap(), [7; 65536]);
    sandbox.run(&["lock", VOLUME]).is_silent();
}

/// The environment's credentials: used, and never shown.
#[test]
fn credentials_in_the_environment() {
    let sandbox = Sandbox::swift();
    let (lab, container) = (sandbox.lab(), sandbox.container.as_str());
    write_private(&sandbox.config(), &format!("[volumes.{container}]\n"));
    let with_key = |key: &str, args: &[&str]| {
        let mut command = command(args);
        command.arg("--config").arg(sandbox.config());
        command
            .env("ST_AUTH", &lab.auth_url)
            .env("ST_USER", &lab.user)
            .env("ST_KEY", key);
        let outcome = finish(&mut command);
        sandbox.assert_no_secret(&outcome.stderr);
        outcome
    };
    with_key(&lab.key, &["setup", container, "16"]).is_silent();
    with_key(WRONG_PASSWORD, &["lock", container]).failed(5, &[container, "401"], "password");
    with_key(&format!("{WRONG_PASSWORD}\n"), &["lock", container]).failed(2, &["ST_KEY"], "");
    sandbox
        .run(&["lock", container])
        .failed(2, &[container, "auth_url"], "ST_AUTH");
}
