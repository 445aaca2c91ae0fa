//! `delete`: a volume goes whole or can be deleted on; nothing else goes with it.
//!
//! Those of Swift need `scripts/lab run -- cargo test --test cli_delete`, or
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

use std::io::Write;
use std::process::{Command, Stdio};

use command::{Sandbox, VOLUME, command, everywhere};
use tamper::{Act, Seen, Tamper};

const DELETE: [&str; 3] = ["delete", VOLUME, "--yes"];

/// A volume with so many objects, past swiftnbd.
fn fill(sandbox: &Sandbox, objects: u64) {
    sandbox.set_up(objects, 512);
    for index in 0..objects {
        sandbox.put(&format!("disk.part/{index:08}"), &[1; 512]);
    }
}

everywhere! {
    /// All of it goes, container included; then there is nothing to delete.
    fn all_of_it(sandbox: &Sandbox) {
        fill(sandbox, 30);
        // Of a time when it was larger.
        sandbox.put("disk.part/00000099", &[1; 512]);
        sandbox.run_once(&DELETE).is_silent();
        assert_eq!(sandbox.snapshot(), None);
        sandbox.run(&DELETE).failed(4, &[&sandbox.container], "swiftnbd setup");
        // An empty one.
        sandbox.set_up(16, 512);
        sandbox.run_once(&DELETE).is_silent();
        assert_eq!(sandbox.snapshot(), None);
    }

    /// Nobody is asked without a terminal, and nothing done unasked.
    fn nobody_to_ask(sandbox: &Sandbox) {
        fill(sandbox, 3);
        let before = sandbox.snapshot();
        sandbox.run(&["delete", VOLUME]).failed(2, &[VOLUME, "nobody to ask"], "--yes");
        assert_eq!(sandbox.snapshot(), before);
    }

    /// What somebody uses stays as it is.
    fn locked(sandbox: &Sandbox) {
        fill(sandbox, 3);
        sandbox.set_metadata(&[("Swiftnbd-Client", "far.example:10809@1385853264")]);
        let before = sandbox.snapshot();
        sandbox.run(&DELETE).failed(3, &[VOLUME, "far.example:10809"], "swiftnbd unlock vol");
        assert_eq!(sandbox.snapshot(), before);
        sandbox.set_metadata(&[("Swiftnbd-Client", "")]);
        let server = sandbox.serve();
        let before = sandbox.snapshot();
        sandbox.run(&DELETE).failed(3, &[VOLUME, "on this machine"], "swiftnbd status");
        assert_eq!(sandbox.snapshot(), before);
        server.stop();
    }

    /// Objects of others stay, and the container with them; it is no volume then.
    fn strangers(sandbox: &Sandbox) {
        const STRANGERS: [&str; 5] = [
            "backup/1",
            "disk.part/0000000",
            "disk.part/000000001",
            "disk.part/0000000x",
            "z",
        ];
        fill(sandbox, 4);
        for name in STRANGERS {
            sandbox.put(name, name.as_bytes());
        }
        let outcome = sandbox.run_once(&DELETE);
        assert_eq!((outcome.status, &*outcome.stdout), (0, ""), "{outcome:?}");
        for word in ["stays", &sandbox.container, "5 objects", "backup/1"] {
            assert!(outcome.stderr.contains(word), "{word:?}: {outcome:?}");
        }
        let (metadata, objects) = sandbox.snapshot().unwrap();
        assert_eq!(objects.keys().collect::<Vec<_>>(), STRANGERS);
        assert!(!metadata.keys().any(|key| key.starts_with("swiftnbd")), "{metadata:?}");
        sandbox.run(&DELETE).failed(4, &["not a swiftnbd volume"], "setup");
    }

    /// Half a volume is nobody's to use, and can be deleted.
    fn half_deleted(sandbox: &Sandbox) {
        fill(sandbox, 6);
        sandbox.set_metadata(&[
            ("Swiftnbd-Deleting", "ctl-delete@1700000000.5"),
            ("Swiftnbd-Client", "ctl-delete@1700000000.5"),
        ]);
        refused_by_all(sandbox);
        // Not even an unlock brings it back.
        sandbox.run_once(&["unlock", VOLUME]).is_silent();
        refused_by_all(sandbox);
        // One that locks it all the same, an old tool or a race: it is not taken
        // away under it.
        sandbox.set_metadata(&[("Swiftnbd-Client", "far:1@1385853264")]);
        let before = sandbox.snapshot();
        sandbox.run(&DELETE).failed(3, &[VOLUME, "far:1"], "swiftnbd unlock vol");
        assert_eq!(sandbox.snapshot(), before);
        sandbox.run_once(&["unlock", VOLUME]).is_silent();
        sandbox.run_once(&DELETE).is_silent();
        assert_eq!(sandbox.snapshot(), None);
    }
}

/// A deletion that died before it could begin: an unlock takes its mark back, and
/// nothing is lost.
#[test]
fn only_intended() {
    let sandbox = Sandbox::swift();
    fill(&sandbox, 6);
    let before = sandbox.snapshot().unwrap();
    let mark = "intended by ctl-delete@1700000000.5";
    sandbox.set_metadata(&[("Swiftnbd-Deleting", mark)]);
    refused_by_all(&sandbox);
    sandbox.run_once(&["unlock", VOLUME]).is_silent();
    sandbox.run_once(&["lock", VOLUME]).is_silent();
    sandbox.run_once(&["unlock", VOLUME]).is_silent();
    assert_eq!(sandbox.snapshot().unwrap().1, before.1);
    // Another holder was faster than the deletion, and goes on.
    sandbox.set_metadata(&[
        ("Swiftnbd-Deleting", mark),
        ("Swiftnbd-Client", "far:1@1385853264"),
    ]);
    sandbox.run(&DELETE).failed(3, &[VOLUME, "far:1"], "unlock");
    sandbox.set_metadata(&[("Swiftnbd-Client", "")]);
    sandbox.run_once(&DELETE).is_silent();
    assert_eq!(sandbox.snapshot(), None);
}

/// A listing that is behind, in a container that stays because of what else is in
/// it: what it lacked goes as well.
#[test]
fn a_listing_that_is_behind() {
    let (sandbox, tamper) = Sandbox::tampered();
    fill(&sandbox, 5);
    sandbox.put("stranger", b"here");
    let rows = ["disk.part/00000001", "stranger"]
        .map(|name| format!("{{\"name\": \"{name}\", \"bytes\": 4, \"hash\": \"\"}}"));
    let body = format!("[{}]", rows.join(","));
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut once = Some(answer.into_bytes());
    tamper.rule(move |seen| match seen.path.contains("format=json") {
        true => once.take().map_or(Act::Forward, Act::Raw),
        false => Act::Forward,
    });
    let outcome = sandbox.run_once(&DELETE);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(tamper.hits(), 1);
    let (_, objects) = sandbox.snapshot().unwrap();
    assert_eq!(objects.keys().collect::<Vec<_>>(), ["stranger"]);
}

fn refused_by_all(sandbox: &Sandbox) {
    let before = sandbox.snapshot();
    let socket = sandbox.files.path().join("never.sock");
    let image = sandbox.files.path().join("never.img");
    for args in [
        &["lock", VOLUME][..],
        &["setup", VOLUME, "6", "--object-size", "512", "--force"],
        &["serve", VOLUME, "--unix", socket.to_str().unwrap()],
        &["download", VOLUME, image.to_str().unwrap()],
    ] {
        sandbox
            .run(args)
            .failed(3, &[VOLUME, "being deleted"], "swiftnbd delete vol");
    }
    assert!(!image.exists());
    assert_eq!(sandbox.snapshot(), before);
}

fn is_bulk(seen: &Seen) -> bool {
    seen.method == "POST" && seen.path.contains("bulk-delete")
}

fn bulk_deletes(tamper: &Tamper) -> usize {
    tamper.seen().iter().filter(|seen| is_bulk(seen)).count()
}

fn single_deletes(tamper: &Tamper) -> usize {
    let single = |seen: &&Seen| seen.method == "DELETE" && seen.path.contains("/disk.part/");
    tamper.seen().iter().filter(single).count()
}

/// Killed between two requests, and run again.
#[test]
fn killed() {
    let (sandbox, tamper) = Sandbox::tampered();
    let disk = sandbox.files.path().join("disk.raw");
    std::fs::write(&disk, vec![1; 2500 * 512]).unwrap();
    let disk = disk.to_str().unwrap();
    sandbox
        .run_once(&["upload", disk, VOLUME, "--object-size", "512"])
        .is_silent();
    let mut passed = 0;
    tamper.rule(move |seen| match is_bulk(seen) {
        true if passed == 1 => Act::Hang,
        true => {
            passed += 1;
            Act::Forward
        }
        false => Act::Forward,
    });
    let config = sandbox.config();
    let mut all = vec!["--config", config.to_str().unwrap()];
    all.extend(DELETE);
    let mut child = command(&all).stdin(Stdio::null()).spawn().unwrap();
    tamper.await_hits(1);
    // The one that passed is carried out, whoever waits for it.
    waiting::wait_until("the first thousand to be gone", || {
        sandbox.lab().names(&sandbox.container).len() == 1500
    });
    child.kill().unwrap();
    child.wait().unwrap();
    tamper.forward();
    refused_by_all(&sandbox);
    let listed = sandbox.run(&["list"]);
    assert_eq!(listed.status, 3, "{listed:?}");
    assert!(listed.stderr.contains("being deleted"), "{listed:?}");

    tamper.forward();
    sandbox.run_once(&DELETE).is_silent();
    assert_eq!(sandbox.snapshot(), None);
    // By thousands, each of them once.
    assert_eq!((bulk_deletes(&tamper), single_deletes(&tamper)), (2, 0));
}

/// The status of a bulk delete is always 200; what failed is in its body.
#[test]
fn bulk_errors() {
    let (sandbox, tamper) = Sandbox::tampered();
    let answer = |status: &str, errors: &str| {
        let body = format!(
            " \r\n{{\"Response Status\": \"{status}\", \"Number Deleted\": 0, \
             \"Number Not Found\": 0, \"Response Body\": \"\", \"Errors\": [{errors}]}}"
        );
        let length = body.len();
        // It is the last one on its connection, and says so: the next request must
        // not be lost with it.
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    };
    let refused = answer("400 Bad Request", r#"["/c/o", "403 Forbidden"]"#);
    let broken = answer("502 Bad Gateway", r#"["/c/o", "503 Unavailable"]"#);
    let lies = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec();
    for (answer, single) in [(refused, 5), (lies, 5), (broken, 0)] {
        fill(&sandbox, 5);
        let mut once = Some(answer);
        tamper.rule(move |seen| match is_bulk(seen) {
            true => once.take().map_or(Act::Forward, Act::Raw),
            false => Act::Forward,
        });
        let outcome = sandbox.run_once(&DELETE);
        assert_eq!(outcome.status, 0, "{outcome:?}");
        assert_eq!(tamper.hits(), 1);
        let seen = tamper.seen();
        assert_eq!(single_deletes(&tamper), single, "{seen:?}");
        assert_eq!(sandbox.snapshot(), None);
    }
}

/// A Swift without bulk deletes: the request is a POST to the account there.
#[test]
fn without_bulk_deletes() {
    for status in [204, 403, 404, 405] {
        let (sandbox, tamper) = Sandbox::tampered();
        fill(&sandbox, 5);
        tamper.rule(move |seen| match is_bulk(seen) {
            true => Act::Status(status),
            false => Act::Forward,
        });
        sandbox.run_once(&DELETE).is_silent();
        assert_eq!((bulk_deletes(&tamper), single_deletes(&tamper)), (1, 5));
        assert_eq!(sandbox.snapshot(), None);
    }
}

/// The answers to every write are lost: it is done all the same.
#[test]
fn lost_answers() {
    let (sandbox, tamper) = Sandbox::tampered();
    fill(&sandbox, 5);
    let container = format!("/{}", sandbox.container);
    let mut lost = 0;
    tamper.rule(move |seen| match seen.is("DELETE", &container) {
        true if lost == 0 => {
            lost += 1;
            Act::Swallow
        }
        _ => Act::Forward,
    });
    let outcome = sandbox.run_once(&DELETE);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(tamper.hits(), 1);
    assert_eq!(sandbox.snapshot(), None);
}

/// On a terminal a person is asked, and has the last word.
#[test]
fn a_person_is_asked() {
    let sandbox = Sandbox::dir();
    fill(&sandbox, 3);
    let config = sandbox.config();
    let answered = |answer: &str| {
        let line = [
            env!("CARGO_BIN_EXE_swiftnbd"),
            "--config",
            config.to_str().unwrap(),
            "delete",
            VOLUME,
        ];
        let mut child = Command::new("script")
            .args(["-qec", &line.join(" "), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(answer.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Delete volume vol (container "), "{text}");
        assert!(text.contains("1.5KiB") || text.contains("1536"), "{text}");
        output.status.code()
    };
    let before = sandbox.snapshot();
    for no in ["n\n", "\n", "no\n", "vol\n", ""] {
        assert_eq!(answered(no), Some(1), "{no:?}");
        assert_eq!(sandbox.snapshot(), before);
    }
    assert_eq!(answered("y\n"), Some(0));
    assert_eq!(sandbox.snapshot(), None);
}
