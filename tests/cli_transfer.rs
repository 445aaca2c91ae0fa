//! `upload` and `download` of volumes of format 1: images go in and come out as they
//! were, whatever happens on the way; nothing is sent twice, and nothing looks complete
//! that is not. Those of format 2 are in `cli_format2`.
//!
//! Those of Swift need `scripts/lab run -- cargo test --test cli_transfer`, or
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

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use command::{ANY, Sandbox, VOLUME, command, everywhere, finish};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tamper::{Act, Seen, Tamper, flipped_bit};
use waiting::wait_until;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// An image of this size, sparse, with random bytes in these ranges.
fn image(path: &Path, size: u64, data: &[(u64, u64)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut rng = fastrand::Rng::with_seed(size);
    for (offset, length) in data {
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..))
            .take(*length as usize)
            .collect();
        file.write_all_at(&bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

fn path(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.files.path().join(name)
}

fn part_of(image: &Path) -> PathBuf {
    PathBuf::from(format!("{}.swiftnbd-part", image.display()))
}

fn upload<'a>(image: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["upload", image.to_str().unwrap(), VOLUME], more].concat()
}

fn download<'a>(image: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["download", VOLUME, image.to_str().unwrap()], more].concat()
}

fn same(one: &Path, other: &Path) {
    let status = std::process::Command::new("cmp")
        .args([one, other])
        .status()
        .unwrap();
    assert!(status.success(), "{one:?} and {other:?} differ");
}

fn same_but_for_zeros_at_the_end(image: &Path, longer: &Path, size: u64) {
    let mut bytes = std::fs::read(image).unwrap();
    bytes.resize(size as usize, 0);
    assert!(std::fs::read(longer).unwrap() == bytes, "{longer:?}");
}

/// Bytes of the disk that a file takes.
fn blocks(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

everywhere! {
    /// What goes in comes out; holes are neither stored nor written.
    fn there_and_back(sandbox: &Sandbox) {
        let (disk, copy) = (path(sandbox, "disk.raw"), path(sandbox, "copy.raw"));
        // The last object is not filled.
        image(&disk, 40 * 64 * KIB + 1000, &[
            (3 * 64 * KIB, 64 * KIB),
            (10 * 64 * KIB - 512, 1024),
            (40 * 64 * KIB + 999, 1),
        ]);
        // Zeros that are there as data.
        let file = OpenOptions::new().write(true).open(&disk).unwrap();
        file.write_all_at(&vec![0; 256 * 1024], 20 * 64 * KIB).unwrap();

        sandbox.run(&upload(&disk, &["--format", "1"])).is_silent();
        let listed = sandbox.run(&["list"]);
        assert_eq!(listed.stdout, "vol objects=41 size=2686976 (version=1, unlocked)\n");
        let last = sandbox.metadata("swiftnbd-last");
        assert!(last.starts_with("ctl-upload@"), "{last}");
        let (_, objects) = sandbox.snapshot().unwrap();
        let names: Vec<_> = objects.keys().map(String::as_str).collect();
        assert_eq!(names, [
            "disk.part/00000003",
            "disk.part/00000009",
            "disk.part/00000010",
            "disk.part/00000040",
        ]);

        sandbox.run(&download(&copy, &["-q"])).is_silent();
        same_but_for_zeros_at_the_end(&disk, &copy, 41 * 64 * KIB);
        assert!(blocks(&copy) <= 64 * KIB + 4 * 4096, "{} bytes", blocks(&copy));
        assert!(!part_of(&copy).exists());
        let last = sandbox.metadata("swiftnbd-last");
        assert!(last.starts_with("ctl-download@"), "{last}");
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");

        // A disk holds what not everybody may read.
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&copy), 0o600);

        // Once more over what is there: an image that is there is replaced, and who
        // may read it stays as it was; a link stays a link.
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o640)).unwrap();
        let link = path(sandbox, "link.raw");
        std::os::unix::fs::symlink(&copy, &link).unwrap();
        sandbox.run(&download(&link, &[])).is_silent();
        same_but_for_zeros_at_the_end(&disk, &copy, 41 * 64 * KIB);
        assert_eq!(mode(&copy), 0o640);
        assert!(link.is_symlink());
    }

    /// A volume with other content becomes the image, zeros included, also behind
    /// the image's end.
    fn over_other_content(sandbox: &Sandbox) {
        let (disk, copy) = (path(sandbox, "disk.raw"), path(sandbox, "copy.raw"));
        sandbox.set_up(8, 4096);
        for index in [0, 1, 2, 5, 7] {
            sandbox.put(&format!("disk.part/{index:08}"), &[7; 4096]);
        }
        sandbox.put("holiday.jpg", b"somebody else's");
        image(&disk, 6 * 4096, &[(4096, 4096), (3 * 4096, 10)]);
        sandbox.run(&upload(&disk, &[])).is_silent();
        let (_, objects) = sandbox.snapshot().unwrap();
        let names: Vec<_> = objects.keys().map(String::as_str).collect();
        assert_eq!(names, ["disk.part/00000001", "disk.part/00000003", "holiday.jpg"]);
        sandbox.run(&download(&copy, &[])).is_silent();
        same_but_for_zeros_at_the_end(&disk, &copy, 8 * 4096);
    }

    /// What does not fit is refused before anything is changed.
    fn what_does_not_fit(sandbox: &Sandbox) {
        let disk = path(sandbox, "disk.raw");
        sandbox.set_up(8, 4096);
        sandbox.put("disk.part/00000000", &[7; 4096]);
        let before = sandbox.snapshot();
        image(&disk, 8 * 4096 + 1, &[(0, 1)]);
        sandbox.run(&upload(&disk, &[])).failed(1, &[VOLUME, "32769", "32768"], "larger");
        image(&disk, 8 * 4096, &[(0, 1)]);
        sandbox.run(&upload(&disk, &["--object-size", "8192"]))
            .failed(2, &[VOLUME, "4KiB"], "--object-size");
        image(&disk, 0, &[]);
        sandbox.run(&upload(&disk, &[])).failed(2, &["empty"], "");
        sandbox.run(&upload(&path(sandbox, "none.raw"), &[])).failed(4, &["none.raw"], "");
        sandbox.set_metadata(&[("Swiftnbd-Client", "far:1@1385853264")]);
        image(&disk, 4096, &[(0, 1)]);
        sandbox.run(&upload(&disk, &[])).failed(3, &["far:1"], "swiftnbd unlock vol");
        sandbox.run(&download(&disk, &[])).failed(3, &["far:1"], "swiftnbd unlock vol");
        sandbox.set_metadata(&[("Swiftnbd-Client", "")]);
        assert_eq!(sandbox.snapshot(), before);
    }

    /// An object that is not as long as it must be makes no image.
    fn damaged_objects(sandbox: &Sandbox) {
        let copy = path(sandbox, "copy.raw");
        sandbox.set_up(8, 4096);
        sandbox.put("disk.part/00000006", &[7; 4095]);
        sandbox.run(&download(&copy, &[])).failed(1, &["00000006", "4095"], "damaged");
        assert!(!copy.exists());
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    }
}

/// Starts the command.
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

/// A request for one of a volume's objects: its number.
fn object(seen: &Seen, method: &str) -> Option<u64> {
    let (_, digits) = seen.path.rsplit_once("/disk.part/")?;
    (seen.method == method).then(|| digits.parse().unwrap())
}

fn objects(tamper: &Tamper, method: &str) -> Vec<u64> {
    let seen = tamper.seen();
    seen.iter()
        .filter_map(|seen| object(seen, method))
        .collect()
}

/// Lets so many requests of this method for objects pass, then none, and kills
/// the command there. The objects of those that passed.
fn killed_after(
    sandbox: &Sandbox,
    tamper: &Tamper,
    args: &[&str],
    method: &'static str,
    count: u64,
) -> Vec<u64> {
    let mut passed = 0;
    tamper.rule(move |seen| match object(seen, method) {
        Some(_) if passed == count => Act::Hang,
        Some(_) => {
            passed += 1;
            Act::Forward
        }
        None => Act::Forward,
    });
    let mut child = start(sandbox, args);
    tamper.await_hits(1);
    let passed: Vec<u64> = objects(tamper, method)
        .into_iter()
        .take(count as usize)
        .collect();
    if method == "PUT" {
        wait_until("what was sent to be stored", || {
            passed.iter().all(|index| {
                let name = format!("disk.part/{index:08}");
                sandbox.lab().get(&sandbox.container, &name).is_some()
            })
        });
    }
    child.kill().unwrap();
    child.wait().unwrap();
    tamper.forward();
    passed
}

/// The sparse image of the transfers that are killed: 1 GiB, of which 48 parts of
/// 256 KiB hold data.
const BIG: u64 = 1024 * MIB;
const PART: u64 = 256 * KIB;

fn big_image(path: &Path) -> BTreeSet<u64> {
    let parts: BTreeSet<u64> = (0..48).map(|number| number * number + 3).collect();
    let data: Vec<_> = parts
        .iter()
        .map(|part| (part * PART + 100, PART / 2))
        .collect();
    image(path, BIG, &data);
    parts
}

/// An upload that is killed, twice, and run again stores each part with data once,
/// and nothing else.
#[test]
fn an_upload_that_is_killed() {
    let (sandbox, tamper) = Sandbox::tampered();
    let disk = path(&sandbox, "disk.raw");
    let data = big_image(&disk);
    let args = upload(&disk, &["--object-size", "256KiB"]);

    let mut sent = killed_after(&sandbox, &tamper, &args, "PUT", 11);
    assert_eq!(sent.len(), 11);
    // It is still locked, for everybody but the same command.
    let client = sandbox.metadata("swiftnbd-client");
    assert!(client.starts_with("ctl-upload@"), "{client}");
    let copy = path(&sandbox, "copy.raw");
    sandbox
        .run(&download(&copy, &[]))
        .failed(3, &[VOLUME, "upload"], "swiftnbd unlock vol");
    sandbox
        .run(&["lock", VOLUME])
        .failed(3, &["ctl-upload since"], "swiftnbd unlock vol");

    sent.extend(killed_after(&sandbox, &tamper, &args, "PUT", 20));
    assert_eq!(sandbox.metadata("swiftnbd-client"), client);
    tamper.forward();
    sandbox.run_once(&args).is_silent();
    sent.extend(objects(&tamper, "PUT"));
    // The container was empty before: there is nothing to delete.
    assert!(objects(&tamper, "DELETE").is_empty());
    let bulk = |seen: &Seen| seen.path.contains("bulk-delete");
    assert!(!tamper.seen().iter().any(bulk));

    assert_eq!(sent.len(), data.len(), "{sent:?}");
    assert_eq!(sent.into_iter().collect::<BTreeSet<_>>(), data);
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    sandbox.run_once(&download(&copy, &[])).is_silent();
    same(&disk, &copy);

    // All is there: nothing is sent.
    tamper.forward();
    sandbox.run_once(&args).is_silent();
    assert!(objects(&tamper, "PUT").is_empty());
}

/// A download that is killed, twice, and run again fetches nothing that is in the
/// file already; the image appears at the end.
#[test]
fn a_download_that_is_killed() {
    let (sandbox, tamper) = Sandbox::tampered();
    let (disk, copy) = (path(&sandbox, "disk.raw"), path(&sandbox, "copy.raw"));
    let data = big_image(&disk);
    sandbox
        .run_once(&upload(&disk, &["--object-size", "256KiB"]))
        .is_silent();
    let args = download(&copy, &[]);
    let original = std::fs::read(&disk).unwrap();
    let is_done = |part: &u64| {
        let mut bytes = vec![0; PART as usize];
        let file = File::open(part_of(&copy)).unwrap();
        file.read_exact_at(&mut bytes, part * PART).unwrap();
        let at = (part * PART) as usize;
        bytes == original[at..at + bytes.len()]
    };
    for count in [500, 1200] {
        killed_after(&sandbox, &tamper, &args, "GET", count);
        assert!(!copy.exists());
    }
    let client = sandbox.metadata("swiftnbd-client");
    assert!(client.starts_with("ctl-download@"), "{client}");
    sandbox
        .run(&upload(&disk, &[]))
        .failed(3, &[VOLUME, "download"], "swiftnbd unlock vol");
    let done: BTreeSet<u64> = data.iter().copied().filter(is_done).collect();
    assert!(done.len() > 10 && done.len() < data.len(), "{done:?}");

    tamper.forward();
    sandbox.run_once(&args).is_silent();
    let fetched: BTreeSet<u64> = objects(&tamper, "GET").into_iter().collect();
    let twice: Vec<_> = done.intersection(&fetched).collect();
    assert!(twice.is_empty(), "{twice:?}");
    same(&disk, &copy);
    assert!(blocks(&copy) <= blocks(&disk) + MIB);
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    assert!(!part_of(&copy).exists());
}

/// The image changes between two attempts: what comes out is the new one. What the
/// first one has left on its way is waited for, also by the attempt after one that
/// was killed while it waited.
#[test]
fn an_image_that_changes_between_two_attempts() {
    let (sandbox, tamper) = Sandbox::tampered();
    let (disk, copy) = (path(&sandbox, "disk.raw"), path(&sandbox, "copy.raw"));
    image(&disk, 16 * 4096, &[(0, 12 * 4096)]);
    let args = upload(&disk, &["--object-size", "4096"]);
    killed_after(&sandbox, &tamper, &args, "PUT", 8);
    image(&disk, 15 * 4096, &[(4096, 100), (9 * 4096, 4096)]);
    let args = [&args[..], &["-v"]].concat();
    let mut second = command(&args)
        .arg("--config")
        .arg(sandbox.config())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stderr = second.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut line).unwrap();
    second.kill().unwrap();
    second.wait().unwrap();
    assert!(line.contains("waiting"), "{line}");
    let third = sandbox.run_once(&args);
    assert_eq!(third.status, 0, "{third:?}");
    assert!(third.stderr.contains("waiting"), "{third:?}");
    sandbox.run_once(&download(&copy, &[])).is_silent();
    same_but_for_zeros_at_the_end(&disk, &copy, 16 * 4096);
}

/// The volume changes between two attempts: the image is what it is now.
#[test]
fn a_volume_that_changes_between_two_attempts() {
    let (sandbox, tamper) = Sandbox::tampered();
    let (disk, copy) = (path(&sandbox, "disk.raw"), path(&sandbox, "copy.raw"));
    image(&disk, 64 * 4096, &[(0, 64 * 4096)]);
    sandbox
        .run_once(&upload(&disk, &["--object-size", "4096"]))
        .is_silent();
    killed_after(&sandbox, &tamper, &download(&copy, &[]), "GET", 40);
    sandbox.run(&["unlock", VOLUME]).is_silent();
    // A part goes, another one comes.
    image(&disk, 64 * 4096, &[(2 * 4096, 62 * 4096)]);
    sandbox.run_once(&upload(&disk, &[])).is_silent();
    sandbox.run_once(&download(&copy, &[])).is_silent();
    same(&disk, &copy);
}

/// An object that the listing lacks is there all the same: it is fetched, and it
/// is deleted where there must be zeros.
#[test]
fn a_listing_that_lacks_objects() {
    let (sandbox, tamper) = Sandbox::tampered();
    let (disk, copy) = (path(&sandbox, "disk.raw"), path(&sandbox, "copy.raw"));
    sandbox.set_up(8, 4096);
    sandbox.put("disk.part/00000002", &[2; 4096]);
    sandbox.put("disk.part/00000005", &[5; 4096]);
    let empty = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]";
    let blind = move |seen: &Seen| match seen.path.contains("?format=json") {
        true => Act::Raw(empty.to_vec()),
        false => Act::Forward,
    };
    tamper.rule(blind);
    sandbox.run_once(&download(&copy, &[])).is_silent();
    let bytes = std::fs::read(&copy).unwrap();
    assert_eq!(bytes[2 * 4096..3 * 4096], [2; 4096]);
    assert_eq!(bytes[5 * 4096..6 * 4096], [5; 4096]);
    image(&disk, 8 * 4096, &[(4096, 4096)]);
    sandbox.run_once(&upload(&disk, &[])).is_silent();
    assert!(tamper.hits() > 0);
    let (_, objects) = sandbox.snapshot().unwrap();
    assert_eq!(objects.keys().collect::<Vec<_>>(), ["disk.part/00000001"]);
}

/// A body that is damaged on its way makes no image.
#[test]
fn a_damaged_body() {
    let (sandbox, tamper) = Sandbox::tampered();
    let copy = path(&sandbox, "copy.raw");
    sandbox.set_up(8, 4096);
    sandbox.put("disk.part/00000002", &[2; 4096]);
    tamper.rule(|seen| match object(seen, "GET") {
        Some(2) => Act::Spoil(flipped_bit),
        _ => Act::Forward,
    });
    sandbox
        .run_once(&download(&copy, &[]))
        .failed(1, &["00000002", "checksum"], ANY);
    assert!(tamper.hits() > 1, "it is asked for again");
    assert!(!copy.exists());
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
}

/// A quota that is full ends it, with the reason; the volume is unlocked.
#[test]
fn a_full_quota() {
    let (sandbox, tamper) = Sandbox::tampered();
    let disk = path(&sandbox, "disk.raw");
    image(&disk, 16 * 4096, &[(0, 16 * 4096)]);
    tamper.rule(|seen| match object(seen, "PUT") {
        Some(9) => Act::Status(413),
        _ => Act::Forward,
    });
    let args = upload(&disk, &["--object-size", "4096"]);
    sandbox.run_once(&args).failed(
        1,
        &["a part of the image", "00000009", "quota"],
        "free some space",
    );
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
    tamper.forward();
    sandbox.run_once(&args).is_silent();
    // What was there by then is not sent again.
    assert!(objects(&tamper, "PUT").len() < 16);
}

/// A signal in the middle: what was begun is finished, and the volume unlocked.
#[test]
fn a_signal() {
    let (sandbox, tamper) = Sandbox::tampered();
    let disk = path(&sandbox, "disk.raw");
    let copy = path(&sandbox, "copy.raw");
    image(&disk, 64 * 64 * KIB, &[(0, 64 * 64 * KIB)]);
    for (args, method) in [
        (upload(&disk, &["--format", "1", "--limit", "64KiB"]), "PUT"),
        (download(&copy, &["--limit", "64KiB"]), "GET"),
    ] {
        tamper.forward();
        let mut child = start(&sandbox, &args);
        wait_until("the first request", || !objects(&tamper, method).is_empty());
        let client = sandbox.metadata("swiftnbd-client");
        assert!(client.starts_with("ctl-"), "{client}");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(sandbox.metadata("swiftnbd-client"), "");
        // The pace was kept: not all of it went at once.
        assert!(objects(&tamper, method).len() < 64);
        if method == "PUT" {
            sandbox.run_once(&upload(&disk, &[])).is_silent();
        }
    }
    assert!(!copy.exists() && part_of(&copy).exists());
}

/// The image changes while it is read: that is said.
#[test]
fn an_image_that_changes_meanwhile() {
    let (sandbox, tamper) = Sandbox::tampered();
    let disk = path(&sandbox, "disk.raw");
    image(&disk, 16 * 4096, &[(0, 16 * 4096)]);
    let changed = disk.clone();
    tamper.rule(move |seen| {
        if object(seen, "PUT") == Some(7) {
            let file = OpenOptions::new().write(true).open(&changed).unwrap();
            file.write_all_at(b"new", 2 * 4096).unwrap();
        }
        Act::Forward
    });
    sandbox
        .run_once(&upload(&disk, &["--object-size", "4096"]))
        .failed(1, &["disk.raw", "was changed"], "same command again");
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
}

/// The lock is taken away meanwhile: no image, for it may be a mixture.
#[test]
fn a_lock_that_is_taken_away() {
    let (sandbox, tamper) = Sandbox::tampered();
    let copy = path(&sandbox, "copy.raw");
    sandbox.set_up(8, 4096);
    sandbox.put("disk.part/00000002", &[2; 4096]);
    let (container, url) = (sandbox.container.clone(), plain_swift::Swift::lab());
    tamper.rule(move |seen| {
        if object(seen, "GET") == Some(2) {
            url.set_metadata(&container, &[("Swiftnbd-Client", "far:1@1385853264")]);
        }
        Act::Forward
    });
    sandbox.run_once(&download(&copy, &[])).failed(
        3,
        &[VOLUME, "far:1"],
        "run the same command again",
    );
    assert!(!copy.exists());
    // Whoever has it keeps it.
    assert_eq!(sandbox.metadata("swiftnbd-client"), "far:1@1385853264");
}

/// Progress is for terminals.
#[test]
fn progress() {
    let sandbox = Sandbox::dir();
    let disk = path(&sandbox, "disk.raw");
    image(&disk, 4 * MIB, &[(0, 4 * MIB)]);
    let config = sandbox.config();
    let line = |more: &str| {
        let words = [
            env!("CARGO_BIN_EXE_swiftnbd"),
            "--config",
            config.to_str().unwrap(),
            "upload",
            disk.to_str().unwrap(),
            VOLUME,
            more,
        ];
        let outcome = finish(
            std::process::Command::new("script")
                .args(["-qec", &words.join(" "), "/dev/null"])
                .env("TERM", "xterm"),
        );
        assert_eq!(outcome.status, 0, "{outcome:?}");
        outcome.stdout
    };
    let shown = line("");
    assert!(
        shown.contains("100 %") && shown.contains("4.00 MiB"),
        "{shown:?}"
    );
    assert_eq!(line("--quiet"), "");
}
