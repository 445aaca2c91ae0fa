//! Volumes of format 2, as a user meets them: made, served, listed, checked, copied,
//! converted, deleted; plain and encrypted; and what is refused.
//!
//! Those of Swift need `scripts/lab run -- cargo test --test cli_format2`, or
//! `scripts/test`; without one they fail.

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

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use command::{ANY, Outcome, Sandbox, VOLUME, command, everywhere, finish, publish, write_private};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use swiftnbd::image::Image;
use swiftnbd::image::log::lease::{self, Standing};
use swiftnbd::image::log::{Limits, Log, Who};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::dir::DirStore;
use tamper::Act;
use waiting::wait_until;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A passphrase, which must not be seen anywhere.
const SESAME: &str = "open-sesame-marker";
/// Another one.
const LENTIL: &str = "open-lentil-marker";
/// What must not be found in the store of an encrypted volume. Nothing in it repeats, so
/// that it is seen in a compressed one.
const PLAINTEXT: &[u8] = b"Nel mezzo del cammin di nostra vita mi ritrovai per una selva osc";

fn path(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.files.path().join(name)
}

/// A file with a passphrase, and its path.
fn passphrase(sandbox: &Sandbox, name: &str, text: &str) -> String {
    let file = path(sandbox, name);
    write_private(&file, &format!("{text}\n"));
    file.to_str().unwrap().to_owned()
}

/// Runs a command, and checks that it says no passphrase.
fn run(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    let outcome = sandbox.run_once(args);
    for secret in [SESAME, LENTIL] {
        for text in [&outcome.stdout, &outcome.stderr] {
            assert!(!text.contains(secret), "{outcome:?}");
        }
    }
    outcome
}

/// Sets up a volume of this size; with a passphrase file it is encrypted, and the
/// configuration names the file.
fn set_up(sandbox: &Sandbox, size: &str, passphrase: Option<&str>) {
    let mut args = vec!["setup", VOLUME, "--size", size];
    if let Some(file) = passphrase {
        args.extend(["--encrypt", "--passphrase-file", file]);
    }
    run(sandbox, &args).is_silent();
    if let Some(file) = passphrase {
        sandbox.configure(&format!("passphrase_file = \"{file}\""));
    }
}

/// Some bytes in which an encrypted volume's plaintext would be found.
fn plaintext(length: usize) -> Vec<u8> {
    PLAINTEXT.iter().copied().cycle().take(length).collect()
}

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u8(1..))
        .take(length)
        .collect()
}

/// Writes these over NBD and makes them durable.
fn write(sandbox: &Sandbox, writes: &[(u64, &[u8])]) {
    let server = sandbox.serve();
    let mut client = server.client();
    for (offset, bytes) in writes {
        client.write(*offset, bytes).unwrap();
    }
    client.flush().unwrap();
    client.disconnect();
    no_passphrase_in(&server.said());
    server.stop();
}

fn read(sandbox: &Sandbox, offset: u64, length: u32) -> Vec<u8> {
    let server = sandbox.serve();
    let mut client = server.client();
    let bytes = client.read(offset, length).unwrap();
    client.disconnect();
    server.stop();
    bytes
}

fn no_passphrase_in(text: &str) {
    for secret in [SESAME, LENTIL] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// An image of this size, sparse, with these bytes in it.
fn image(path: &Path, size: u64, data: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// What the volume holds, by `download`.
fn content(sandbox: &Sandbox, name: &str) -> Vec<u8> {
    let copy = path(sandbox, "content.raw");
    run(sandbox, &["download", name, copy.to_str().unwrap()]).is_silent();
    let bytes = std::fs::read(&copy).unwrap();
    std::fs::remove_file(&copy).unwrap();
    bytes
}

fn objects_below(sandbox: &Sandbox, prefix: &str) -> Vec<String> {
    let (_, objects) = sandbox.snapshot().unwrap();
    let names = objects.into_keys();
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The segments with data, and their sizes; a stop at a segment's name is none.
fn segments(sandbox: &Sandbox) -> BTreeMap<String, usize> {
    const KIND: usize = 8;
    const SEGMENT: u8 = 4;
    let (_, objects) = sandbox.snapshot().unwrap();
    let segments = objects.into_iter();
    segments
        .filter(|(name, body)| name.starts_with("seg/") && body[KIND] == SEGMENT)
        .map(|(name, body)| (name, body.len()))
        .collect()
}

/// Configures a second volume, `new`, in a container of its own.
fn configure_another(sandbox: &Sandbox, lines: &str) -> String {
    let container = format!("{}-new", sandbox.container);
    let mut text = std::fs::read_to_string(sandbox.config()).unwrap();
    let store = text.lines().find(|line| line.starts_with("store ="));
    let store = store.unwrap_or_default().to_owned();
    text += &format!("\n[volumes.new]\ncontainer = \"{container}\"\n{store}\n{lines}\n");
    write_private(&sandbox.config(), &text);
    container
}

/// A volume is made, written, read, listed, checked, copied and deleted.
fn live(sandbox: &Sandbox, passphrase: Option<&str>) {
    set_up(sandbox, "16M", passphrase);
    let keys = ["version", "size", "block-size", "objects", "object-size"];
    let said = keys.map(|key| sandbox.metadata(&format!("swiftnbd-{key}")));
    assert_eq!(said, ["2", "16777216", "4096", "", ""]);

    let (first, second) = (plaintext(300 * 1024), random(7, 8192));
    write(sandbox, &[(MIB, &first), (16 * MIB - 8192, &second)]);
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    assert!(read(sandbox, MIB, first.len() as u32) == first);

    let listed = run(sandbox, &["list"]);
    assert_eq!(listed.stdout, "vol size=16777216 (version=2, unlocked)\n");
    let listed = run(sandbox, &["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed[0]["version"], 2);
    assert_eq!(listed[0]["block_size"], 4096);
    assert_eq!(listed[0]["size"], 16 << 20);

    let mut wanted = vec![0; 16 << 20];
    wanted[1 << 20..][..first.len()].copy_from_slice(&first);
    wanted[(16 << 20) - 8192..].copy_from_slice(&second);
    assert!(content(sandbox, VOLUME) == wanted);

    let checked = run(sandbox, &["check", VOLUME]);
    assert_eq!((checked.status, &*checked.stderr), (0, ""), "{checked:?}");
    assert!(checked.stdout.contains("nothing is damaged"), "{checked:?}");
    let checked = run(sandbox, &["check", VOLUME, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(report["findings"], serde_json::json!([]));
    assert!(report["frames"].as_u64().unwrap() > 4, "{report}");

    // Another image over it, one that ends earlier.
    let disk = path(sandbox, "disk.raw");
    image(&disk, 9 * MIB + 512, &[(0, &second), (MIB, &first[..4096])]);
    run(sandbox, &["upload", disk.to_str().unwrap(), VOLUME]).is_silent();
    let mut wanted = std::fs::read(&disk).unwrap();
    wanted.resize(16 << 20, 0);
    assert!(content(sandbox, VOLUME) == wanted);

    let (_, objects) = sandbox.snapshot().unwrap();
    let seen = |body: &Vec<u8>| {
        body.windows(PLAINTEXT.len() / 2)
            .any(|window| PLAINTEXT.starts_with(window))
    };
    assert_eq!(objects.values().any(seen), passphrase.is_none());
    run(sandbox, &["delete", VOLUME, "--yes"]).is_silent();
    assert_eq!(sandbox.snapshot(), None);
}

everywhere! {
    /// From nothing to nothing.
    fn a_life(sandbox: &Sandbox) {
        live(sandbox, None);
    }

    /// The same, encrypted.
    fn an_encrypted_life(sandbox: &Sandbox) {
        let file = passphrase(sandbox, "sesame", SESAME);
        live(sandbox, Some(&file));
    }

    /// A passphrase that is wrong, missing or too many: noticed before anything is
    /// served or changed.
    fn passphrases_that_do_not_fit(sandbox: &Sandbox) {
        let right = passphrase(sandbox, "sesame", SESAME);
        let wrong = passphrase(sandbox, "lentil", LENTIL);
        let (socket, copy) = (path(sandbox, "never.sock"), path(sandbox, "never.raw"));
        let disk = path(sandbox, "disk.raw");
        image(&disk, MIB, &[(0, &[1; 4096])]);
        let fails = |more: &[&str], words: &str, hint: &str| {
            for args in [
                &["serve", VOLUME, "--unix", socket.to_str().unwrap()][..],
                &["download", VOLUME, copy.to_str().unwrap()],
                &["upload", disk.to_str().unwrap(), VOLUME],
                &["check", VOLUME],
            ] {
                run(sandbox, &[args, more].concat()).failed(5, &[VOLUME, words], hint);
                assert!(!socket.exists() && !copy.exists(), "{args:?}");
                assert_eq!(sandbox.metadata("swiftnbd-client"), "", "{args:?}");
            }
        };
        run(sandbox, &["setup", VOLUME, "--size", "4M", "--encrypt", "--passphrase-file", &right])
            .is_silent();
        fails(&["--passphrase-file", &wrong], "the passphrase is wrong", "no data was changed");
        fails(&[], "there is no passphrase for it", "--passphrase-file");
        assert_eq!(segments(sandbox), BTreeMap::new());
        run(sandbox, &["setup", VOLUME, "--size", "4M", "--force"]).is_silent();
        fails(&["--passphrase-file", &right], "not encrypted", "replaced");
        run(sandbox, &["passphrase", VOLUME, "--new-passphrase-file", &right])
            .failed(5, &["not encrypted"], ANY);
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    }

    /// The passphrase is changed; the data is not.
    fn another_passphrase(sandbox: &Sandbox) {
        let old = passphrase(sandbox, "sesame", SESAME);
        let new = passphrase(sandbox, "lentil", LENTIL);
        set_up(sandbox, "4M", Some(&old));
        let bytes = random(1, 65536);
        write(sandbox, &[(0, &bytes)]);
        let before = segments(sandbox);
        assert!(!before.is_empty());
        run(sandbox, &["passphrase", VOLUME, "--new-passphrase-file", &new]).is_silent();
        assert_eq!(segments(sandbox), before);
        assert_eq!(objects_below(sandbox, "key/").len(), 1);
        let copy = path(sandbox, "copy.raw");
        run(sandbox, &["download", VOLUME, copy.to_str().unwrap()])
            .failed(5, &["the passphrase is wrong"], ANY);
        sandbox.configure(&format!("passphrase_file = \"{new}\""));
        assert!(read(sandbox, 0, 65536) == bytes);
    }

    /// A volume of format 1 becomes one of format 2, whatever interrupts it.
    fn converted(sandbox: &Sandbox) {
        let file = passphrase(sandbox, "sesame", SESAME);
        sandbox.set_up(64, 65536);
        for index in [0, 3, 4, 40, 63] {
            sandbox.put(&format!("disk.part/{index:08}"), &random(index, 65536));
        }
        let old = content(sandbox, VOLUME);
        configure_another(sandbox, &format!("passphrase_file = \"{file}\""));

        // Killed in the middle: nobody can use it, and somebody else's aim is refused.
        let mut child = start(sandbox, &["convert", VOLUME, "new", "--encrypt", "--limit", "64K"]);
        let is_unfinished = || {
            let listed = sandbox.run_once(&["list"]);
            listed.stderr.contains("it is being made of container")
        };
        wait_until("the conversion to begin", is_unfinished);
        child.kill().unwrap();
        child.wait().unwrap();
        let copy = path(sandbox, "copy.raw");
        run(sandbox, &["download", "new", copy.to_str().unwrap()])
            .failed(3, &["new", "it is being made of"], "swiftnbd convert");
        run(sandbox, &["setup", "new", "--size", "4M", "--encrypt", "--force"])
            .failed(3, &["new", "it is being made of"], "swiftnbd convert");

        run(sandbox, &["convert", VOLUME, "new", "--encrypt"]).is_silent();
        assert!(content(sandbox, "new") == old);
        assert!(content(sandbox, VOLUME) == old);
        let listed = run(sandbox, &["list"]);
        assert!(listed.stdout.contains("new size=4194304 (version=2, unlocked)"), "{listed:?}");
        assert!(listed.stdout.contains("vol objects=64 "), "{listed:?}");
        run(sandbox, &["convert", VOLUME, "new", "--encrypt"])
            .failed(1, &["new", "a volume already"], "swiftnbd delete new");
        run(sandbox, &["convert", "new", VOLUME]).failed(2, &["format 2 already"], "");
        run(sandbox, &["delete", "new", "--yes"]).is_silent();
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    }

    /// A setup that was cut off before the metadata came is done again; one that would
    /// lose data is refused, and the metadata can be had back.
    fn metadata_that_is_lost(sandbox: &Sandbox) {
        let lose = |keys: &[&str]| {
            let none: Vec<_> = keys.iter().map(|key| (*key, "")).collect();
            sandbox.set_metadata(&none);
        };
        const ALL: [&str; 3] = ["Swiftnbd-Version", "Swiftnbd-Size", "Swiftnbd-Block-Size"];
        set_up(sandbox, "4M", None);
        lose(&ALL);
        set_up(sandbox, "8M", None);
        // Nobody knows any more what this was; it has no data that a listing shows.
        lose(&ALL);
        run(sandbox, &["setup", VOLUME, "--size", "4M"])
            .failed(3, &[VOLUME, "has been attached before"], "check --repair vol");
        let disk = path(sandbox, "small.raw");
        image(&disk, MIB, &[(0, &[1; 4096])]);
        run(sandbox, &["upload", disk.to_str().unwrap(), VOLUME])
            .failed(3, &[VOLUME, "has been attached before"], "check --repair vol");
        assert_eq!(run(sandbox, &["check", VOLUME, "--repair"]).status, 0);
        assert_eq!(sandbox.metadata("swiftnbd-size"), "8388608");
        let bytes = random(1, 65536);
        write(sandbox, &[(4 * MIB, &bytes)]);

        lose(&ALL);
        for format in ["1", "2"] {
            run(sandbox, &["setup", VOLUME, "--size", "4M", "--format", format])
                .failed(1, &[VOLUME, "holds the objects"], "check vol --repair");
        }
        run(sandbox, &["check", VOLUME]).failed(4, &["not a swiftnbd volume"], ANY);
        let checked = run(sandbox, &["check", VOLUME, "--repair"]);
        assert_eq!(checked.status, 0, "{checked:?}");
        assert!(checked.stdout.contains("metadata"), "{checked:?}");
        lose(&["Swiftnbd-Size"]);
        run(sandbox, &["lock", VOLUME])
            .failed(1, &["Swiftnbd-Size is missing"], "check vol --repair");
        run(sandbox, &["setup", VOLUME, "--size", "4M"])
            .failed(1, &["Swiftnbd-Size is missing"], "check vol --repair");
        lose(&["Swiftnbd-Version"]);
        for force in [&[][..], &["--force"]] {
            let setup = ["setup", VOLUME, "64", "--format", "1"];
            run(sandbox, &[&setup[..], force].concat())
                .failed(1, &["Swiftnbd-Version is missing"], "check vol --repair");
        }
        assert_eq!(run(sandbox, &["check", VOLUME, "--repair"]).status, 0);
        // No more goes into it than it has, whatever the metadata says.
        let disk = path(sandbox, "disk.raw");
        image(&disk, 9 * MIB, &[(0, &[1; 4096])]);
        sandbox.set_metadata(&[("Swiftnbd-Size", "16777216")]);
        run(sandbox, &["upload", disk.to_str().unwrap(), VOLUME])
            .failed(1, &["9437184 bytes does not fit into its 8388608"], "larger one");
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
        // What is wrong in it is corrected when the volume is used.
        sandbox.set_metadata(&[("Swiftnbd-Size", "4096"), ("Swiftnbd-Block-Size", "512")]);
        assert!(read(sandbox, 4 * MIB, 65536) == bytes);
        assert_eq!(sandbox.metadata("swiftnbd-size"), "8388608");
    }

    /// `setup --force` empties a volume of format 2, and changes no format.
    fn set_up_again(sandbox: &Sandbox) {
        set_up(sandbox, "4M", None);
        write(sandbox, &[(0, &[1; 4096])]);
        run(sandbox, &["setup", VOLUME, "--size", "8M"])
            .failed(1, &[VOLUME, "4MiB already"], "all that is there is lost");
        run(sandbox, &["setup", VOLUME, "64", "--format", "1", "--force"])
            .failed(1, &[VOLUME, "format 2"], "swiftnbd delete vol");
        run(sandbox, &["lock", VOLUME]).is_silent();
        run(sandbox, &["setup", VOLUME, "--size", "8M", "--force"])
            .failed(3, &[VOLUME, "locked"], "unlock");
        run(sandbox, &["unlock", VOLUME]).is_silent();
        run(sandbox, &["setup", VOLUME, "--size", "8M", "--block-size", "512", "--force"])
            .is_silent();
        let listed = run(sandbox, &["list"]);
        assert_eq!(listed.stdout, "vol size=8388608 (version=2, unlocked)\n");
        write(sandbox, &[(512, &[2; 512])]);
        let bytes = read(sandbox, 0, 4096);
        assert!(bytes[..512] == [0; 512] && bytes[512..1024] == [2; 512]);
        assert!(bytes[1024..] == [0; 3072]);
    }

    /// Uploads that are interrupted go on; until then they have the volume.
    fn an_upload_that_is_interrupted(sandbox: &Sandbox) {
        let disk = path(sandbox, "disk.raw");
        let bytes = random(3, 24 << 20);
        image(&disk, 40 * MIB + 1536, &[(MIB, &bytes), (40 * MIB + 1024, &[1; 512])]);
        let disk = disk.to_str().unwrap();
        let slowly = ["upload", disk, VOLUME, "--limit", "1M"];
        let is_locked = || {
            let listed = sandbox.run_once(&["list"]).stdout;
            listed.contains("locked by ctl-upload since")
        };
        let mut child = start(sandbox, &slowly);
        wait_until("the upload's lock", is_locked);
        child.kill().unwrap();
        child.wait().unwrap();
        run(sandbox, &["check", VOLUME]).failed(3, &["upload was interrupted"], "same upload");
        run(sandbox, &["lock", VOLUME]).failed(3, &["ctl-upload since"], "unlock");

        let mut child = start(sandbox, &slowly);
        wait_until("a segment", || !segments(sandbox).is_empty());
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");

        run(sandbox, &["upload", disk, VOLUME]).is_silent();
        let wanted = std::fs::read(disk).unwrap();
        assert_eq!(sandbox.metadata("swiftnbd-size"), wanted.len().to_string());
        assert!(content(sandbox, VOLUME) == wanted);
        // What is the same is not sent again: full segments stay what they are.
        let full = segments(sandbox).into_iter().filter(|(_, size)| *size > 4 << 20);
        let full: Vec<_> = full.collect();
        assert!(full.len() >= 2, "{full:?}");
        run(sandbox, &["upload", disk, VOLUME]).is_silent();
        let now = segments(sandbox);
        assert!(full.iter().all(|(name, _)| now.contains_key(name)), "{full:?}, {now:?}");
    }

    /// What is damaged is named, with the part of the device, and never returned.
    fn damage(sandbox: &Sandbox) {
        set_up(sandbox, "4M", None);
        write(sandbox, &[(MIB, &random(1, 65536))]);
        let segments: Vec<_> = segments(sandbox).into_keys().collect();
        let [segment] = &segments[..] else { panic!("{segments:?}") };
        let mut body = sandbox.get(segment).unwrap();
        let last = body.len() - 20;
        body[last] ^= 1;
        sandbox.put(segment, &body);
        let copy = path(sandbox, "copy.raw");
        run(sandbox, &["download", VOLUME, copy.to_str().unwrap()])
            .failed(1, &[VOLUME, segment], ANY);
        assert!(!copy.exists());
        let checked = run(sandbox, &["check", VOLUME, "--json"]);
        assert_eq!(checked.status, 1, "{checked:?}");
        assert!(checked.stderr.contains("hint: --repair"), "{checked:?}");
        let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
        let finding = &report["findings"][0];
        assert_eq!(finding["object"], segment.as_str());
        let range = &finding["ranges"][0];
        let (from, length) = (range["offset"].as_u64(), range["length"].as_u64());
        let (from, length) = (from.unwrap(), length.unwrap());
        assert!(from >= MIB && length > 0 && from + length <= MIB + 65536, "{report}");
        let checked = run(sandbox, &["check", VOLUME]);
        assert!(checked.stdout.contains(segment.as_str()), "{checked:?}");
        assert!(checked.stdout.contains(&format!("from {from} on")), "{checked:?}");
        // It is given up: the rest is sound, and so is what is written there anew.
        let checked = run(sandbox, &["check", VOLUME, "--repair"]);
        assert_eq!(checked.status, 1, "{checked:?}");
        assert!(checked.stdout.contains("are given up"), "{checked:?}");
        let checked = run(sandbox, &["check", VOLUME]);
        assert!(checked.stdout.contains("given up before: "), "{checked:?}");
        run(sandbox, &["download", VOLUME, copy.to_str().unwrap()]).failed(1, &[VOLUME], ANY);
        // An image goes over it, zeros included.
        let disk = path(sandbox, "disk.raw");
        image(&disk, 4 * MIB, &[(2 * MIB, &random(3, 4096))]);
        run(sandbox, &["upload", disk.to_str().unwrap(), VOLUME]).is_silent();
        assert!(content(sandbox, VOLUME) == std::fs::read(&disk).unwrap());
        image(&disk, 4 * MIB, &[]);
        run(sandbox, &["upload", disk.to_str().unwrap(), VOLUME]).is_silent();
        write(sandbox, &[(MIB, &random(2, 65536))]);
        let wanted = [vec![0; 1 << 20], random(2, 65536), vec![0; (3 << 20) - 65536]].concat();
        assert!(content(sandbox, VOLUME) == wanted);
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    }
}

/// What is away at the first look of `check --repair`, and there again at the second,
/// is not given up.
#[test]
fn what_is_away_for_a_while_is_not_given_up() {
    let sandbox = &Sandbox::swift();
    set_up(sandbox, "4M", None);
    write(sandbox, &[(MIB, &random(1, 65536))]);
    let before = content(sandbox, VOLUME);
    let segments: Vec<_> = segments(sandbox).into_keys().collect();
    let [segment] = &segments[..] else {
        panic!("{segments:?}")
    };
    let body = sandbox.get(segment).unwrap();
    sandbox.lab().delete(&sandbox.container, segment);
    let log = path(sandbox, "repair.log");
    let mut child = start(
        sandbox,
        &[
            "check",
            VOLUME,
            "--repair",
            "--log-file",
            log.to_str().unwrap(),
        ],
    );
    wait_until("the first look to end", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("looked at again"))
    });
    sandbox.put(segment, &body);
    assert!(child.wait().unwrap().success());
    assert!(content(sandbox, VOLUME) == before);
}

/// Starts a command.
fn start(sandbox: &Sandbox, args: &[&str]) -> Child {
    let config = sandbox.config();
    let mut all = vec!["--config", config.to_str().unwrap()];
    all.extend(args);
    command(&all)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Every way to give a passphrase; and the ways that are none.
#[test]
fn where_a_passphrase_comes_from() {
    let sandbox = Sandbox::dir();
    let file = passphrase(&sandbox, "sesame", SESAME);
    let config = sandbox.config();
    let with_config = |args: &[&str]| {
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        command(&all)
    };
    // A file that everybody may read, an empty one, none, and one that is too long.
    for (text, published, status, word) in [
        (SESAME, true, 2, "readable by everyone"),
        ("", false, 2, "empty"),
        (&*"x".repeat(5000), false, 2, "longer"),
    ] {
        let bad = passphrase(&sandbox, "bad", text);
        if published {
            publish(Path::new(&bad));
        }
        let args = [
            "setup",
            VOLUME,
            "--size",
            "1M",
            "--encrypt",
            "--passphrase-file",
            &bad,
        ];
        run(&sandbox, &args).failed(status, &[word], ANY);
        assert_eq!(sandbox.snapshot(), None);
    }
    let none = path(&sandbox, "none");
    let args = [
        "setup",
        VOLUME,
        "--size",
        "1M",
        "--encrypt",
        "--passphrase-file",
    ];
    run(&sandbox, &[&args[..], &[none.to_str().unwrap()]].concat()).failed(4, &["none"], "");
    // Without --encrypt it would be of no use.
    let args = ["setup", VOLUME, "--size", "1M", "--passphrase-file", &file];
    run(&sandbox, &args).failed(2, &["not to be encrypted"], "--encrypt");
    assert_eq!(sandbox.snapshot(), None);

    // A descriptor.
    let shell = |line: &str| {
        let program = env!("CARGO_BIN_EXE_swiftnbd");
        let line = line.replace(
            "swiftnbd",
            &format!("{program} --config {}", config.display()),
        );
        finish(Command::new("sh").args(["-c", &line]))
    };
    let line = format!("swiftnbd setup vol --size 1M --encrypt --passphrase-fd 3 3<{file}");
    shell(&line).is_silent();
    let copy = path(&sandbox, "copy.raw");
    let copy = copy.to_str().unwrap();
    shell(&format!(
        "swiftnbd download vol {copy} --passphrase-fd 0 <{file}"
    ))
    .is_silent();
    shell(&format!(
        "cat {file} | swiftnbd download vol {copy} --passphrase-fd 0"
    ))
    .is_silent();
    shell(&format!("swiftnbd download vol {copy} --passphrase-fd 7")).failed(
        2,
        &["descriptor 7"],
        "--passphrase-fd",
    );

    // A credential of systemd's.
    let credentials = path(&sandbox, "credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::copy(&file, credentials.join("swiftnbd.vol")).unwrap();
    let mut download = with_config(&["download", VOLUME, copy]);
    finish(download.env("CREDENTIALS_DIRECTORY", &credentials)).is_silent();

    // A person, who is asked where there is a terminal; what is typed is not shown.
    let typed = |args: &str, answers: &str| {
        let program = env!("CARGO_BIN_EXE_swiftnbd");
        let line = format!("{program} --config {} {args}", config.display());
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(answers.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let (status, text) = typed(&format!("download vol {copy} -q"), &format!("{SESAME}\n"));
    assert!(
        status == Some(0) && text.contains("Passphrase of volume vol"),
        "{text}"
    );
    let (status, text) = typed(&format!("download vol {copy} -q"), &format!("{LENTIL}\n"));
    assert!(
        status == Some(5) && text.contains("the passphrase is wrong"),
        "{text}"
    );
    let change = format!("passphrase vol --passphrase-file {file}");
    let (status, text) = typed(&change, &format!("{LENTIL}\n{SESAME}\n"));
    assert!(status == Some(1) && text.contains("not the same"), "{text}");
    let (status, text) = typed(&change, &format!("{LENTIL}\n{LENTIL}\n"));
    assert!(
        status == Some(0) && text.contains("New passphrase"),
        "{text}"
    );
    let (status, text) = typed(&format!("download vol {copy} -q"), &format!("{LENTIL}\n"));
    assert_eq!(status, Some(0), "{text}");
}

/// Neither the original's tools nor ours under their names take such a volume for one
/// of theirs.
#[test]
fn the_originals_tools_refuse_it() {
    let sandbox = Sandbox::swift();
    set_up(&sandbox, "1M", None);
    let (metadata, _) = sandbox.snapshot().unwrap();
    // Version 0.9.3 takes a container with all of these for a volume.
    let all = [
        "swiftnbd-version",
        "swiftnbd-objects",
        "swiftnbd-object-size",
    ];
    assert!(
        !all.iter().all(|key| metadata.contains_key(*key)),
        "{metadata:?}"
    );
    let lab = sandbox.lab();
    let secrets = path(&sandbox, "secrets.conf");
    let text = format!(
        "[{}]\nusername = {}\npassword = {}\nauthurl = {}\n",
        sandbox.container, lab.user, lab.key, lab.auth_url
    );
    write_private(&secrets, &text);
    let before = sandbox.snapshot();
    for more in [&["16"][..], &["16", "-f"]] {
        let mut setup = command(&["--secrets", secrets.to_str().unwrap(), &sandbox.container]);
        let outcome = finish(setup.args(more).arg0("swiftnbd-setup"));
        assert_eq!(outcome.status, 1, "{outcome:?}");
        assert!(outcome.stderr.contains("of format 2"), "{outcome:?}");
        assert_eq!(sandbox.snapshot(), before);
    }
}

/// Memory with which it could not work is refused before it is touched.
/// A server of Swift's that is behind shows no container, or one in which there is
/// nothing: nobody makes a volume over another because of it.
#[test]
fn a_look_at_a_server_that_is_behind() {
    let (sandbox, tamper) = Sandbox::tampered();
    configure_another(&sandbox, "");
    run(&sandbox, &["setup", "new", "4", "--format", "1"]).is_silent();
    set_up(&sandbox, "4M", None);
    write(&sandbox, &[(0, &[1; 4096])]);
    for status in [404, 204] {
        for args in [
            &["setup", VOLUME, "--size", "4M"][..],
            &["convert", "new", VOLUME],
        ] {
            let container = sandbox.container.clone();
            let (mut heads, mut listings) = (0, 0);
            tamper.rule(move |seen| {
                let is_head = seen.is("HEAD", &format!("/{container}"));
                let is_listing = seen.path.contains(&format!("/{container}?"))
                    && seen.path.contains("format=json");
                heads += u32::from(is_head);
                listings += u32::from(is_listing);
                match (is_head, is_listing) {
                    (true, _) if heads == 1 => Act::Status(status),
                    (_, true) if listings <= 2 => Act::Status(204),
                    _ => Act::Forward,
                }
            });
            run(&sandbox, args).failed(1, &[VOLUME, "already"], ANY);
            assert!(tamper.hits() >= 1, "{args:?}");
        }
    }
    tamper.forward();
    assert_eq!(read(&sandbox, 0, 4096), [1; 4096]);
    run(&sandbox, &["delete", "new", "--yes"]).is_silent();
}

/// A server whose volume somebody else has attached ends, and says what is lost.
#[test]
fn taken_over_by_somebody_else() {
    let sandbox = Sandbox::dir();
    set_up(&sandbox, "4M", None);
    let server = sandbox.serve();
    let mut client = server.client();
    client.write(0, &[1; 4096]).unwrap();
    client.flush().unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = sandbox.files.path().join("store");
    let store = DirStore::new(&store, &sandbox.container, 64 << 20).unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    // It does not wait for the lease of the one who is alive.
    let standing = runtime.block_on(lease::standing(&*store)).unwrap();
    let Standing::Claimed { claim, .. } = standing else {
        panic!("nobody has it")
    };
    let who = Who {
        dead: vec![claim.attach],
        ..Who::new("elsewhere", 0)
    };
    let limits = Limits::new(1 << 20, 8 << 20, 1 << 20, None);
    let other = Log::open(Arc::clone(&store), store, None, limits, who);
    let other = runtime.block_on(other).unwrap();
    sandbox.set_metadata(&[("Swiftnbd-Client", "elsewhere:7@1")]);

    // It may have looked just now.
    let written = client.write(4096, &[2; 4096]);
    client.flush().unwrap_err();
    drop(client);
    server.signal(Signal::SIGTERM);
    let mut server = server;
    assert_eq!(server.end(), 3, "{}", server.said());
    let said = server.said();
    let why = ["somebody else attached it", "it was attached by elsewhere"];
    assert!(why.iter().any(|why| said.contains(why)), "{said}");
    let lost = said.contains("bytes that were not stored before are lost");
    assert_eq!(lost, written.is_ok(), "{said}");
    assert!(!said.contains("unlock"), "{said}");
    assert_eq!(sandbox.metadata("swiftnbd-client"), "elsewhere:7@1");
    let read = runtime.block_on(other.read(0, 8192)).unwrap().concat();
    assert!(read[..4096] == [1; 4096] && read[4096..] == [0; 4096]);
    runtime.block_on(other.close()).unwrap();
}

#[test]
fn too_little_memory() {
    let sandbox = Sandbox::dir();
    set_up(&sandbox, "1M", None);
    sandbox.configure("dirty = \"1MiB\"");
    let before = sandbox.snapshot();
    let copy = path(&sandbox, "copy.raw");
    run(&sandbox, &["download", VOLUME, copy.to_str().unwrap()]).failed(
        2,
        &["dirty = \"1MiB\"", "too little"],
        "at least",
    );
    let (_, objects) = before.unwrap();
    assert_eq!(sandbox.snapshot().unwrap().1, objects);
}
