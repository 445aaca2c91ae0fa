//! A live volume over a real Swift whose answers are spoiled on their way: what
//! a client of `swiftnbd serve` sees, what the log says, and that afterwards the
//! container holds exactly what was written.
//!
//! Needs `scripts/lab run -- cargo test --test serve_faults`, or `scripts/test`;
//! without a Swift it fails.

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
use std::time::Duration;

use nix::sys::signal::Signal;

use command::{Sandbox, VOLUME};
use nbd_client::{Client, EIO, EPERM};
use plain_swift::Reply;
use tamper::{Act, empty_body, flipped_bit, short_body, truncated_body};
use waiting::{pause, wait_until};

const OBJECTS: u64 = 16;
const SIZE: usize = 4096;

/// Long enough for an answer that must not come, if it came.
const A_WHILE: Duration = Duration::from_millis(700);

fn name(index: usize) -> String {
    format!("disk.part/{index:08}")
}

/// An object's worth of bytes, not zeros.
fn body(seed: u8) -> Vec<u8> {
    (0..SIZE)
        .map(|at| seed.wrapping_add((at * 7 % 251) as u8) | 1)
        .collect()
}

fn at(index: usize) -> u64 {
    (index * SIZE) as u64
}

/// The volume's objects; those of its lease are none of its content.
fn content(sandbox: &Sandbox) -> BTreeMap<String, Vec<u8>> {
    let mut objects = sandbox.snapshot().unwrap().1;
    objects.retain(|name, _| name.starts_with("disk.part/"));
    objects
}

/// What the container must hold: these objects and no others.
fn assert_holds(sandbox: &Sandbox, wanted: &[(usize, Vec<u8>)]) {
    let mut objects = sandbox.lab().objects(&sandbox.container);
    // The lease's are not the volume's content.
    objects.retain(|name, _| name.starts_with("disk.part/"));
    let wanted: BTreeMap<_, _> = wanted
        .iter()
        .map(|(index, body)| (name(*index), body.clone()))
        .collect();
    let names = |objects: &BTreeMap<String, Vec<u8>>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&objects), names(&wanted));
    for (name, body) in &wanted {
        assert!(objects[name] == *body, "{name} holds something else");
    }
}

/// Answers to a PUT that do not mean that it was stored: FLUSH is not answered
/// until a 201 came, and then the objects are there.
#[test]
fn a_flush_waits_for_201() {
    type Refusal = (&'static str, fn() -> Act, &'static str);
    let refusals: [Refusal; 8] = [
        ("PUT", || Act::Status(202), "202"),
        ("PUT", || Act::Status(200), "200"),
        ("PUT", || Act::Status(422), "422"),
        ("PUT", || Act::Status(503), "503"),
        ("PUT", || Act::Status(413), "413"),
        ("PUT", || Act::Status(403), "403"),
        ("PUT", || Act::Status(404), "404"),
        ("PUT", || Act::Close, "connection"),
    ];
    std::thread::scope(|scope| {
        for (method, act, word) in refusals {
            scope.spawn(move || one_refusal(method, act, word));
        }
    });
}

fn one_refusal(method: &'static str, act: fn() -> Act, word: &str) {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    sandbox.put(&name(1), &body(1));
    let server = sandbox.serve();
    let mut client = server.client();

    tamper.rule(move |seen| match seen.is(method, &name(3)) {
        true => act(),
        false => Act::Forward,
    });
    client.write(at(2), &body(20)).unwrap();
    client.write(at(3), &body(30)).unwrap();
    let flush = client.send_flush().unwrap();
    tamper.await_hits(2);
    assert!(
        !client.hears_within(A_WHILE),
        "{word}: answered, and not stored"
    );
    assert_eq!(sandbox.lab().get(&sandbox.container, &name(3)), None);
    // Meanwhile others are served, and see what was written.
    let mut other = server.client();
    assert!(other.read(at(3), SIZE as u32).unwrap() == body(30));
    assert!(other.read(at(1), SIZE as u32).unwrap() == body(1));

    tamper.forward();
    client.reply(flush).unwrap();
    assert_holds(&sandbox, &[(1, body(1)), (2, body(20)), (3, body(30))]);
    server.await_log(&["WARN", &name(3), word]);
    client.disconnect();
    other.disconnect();
    server.stop();
    assert_holds(&sandbox, &[(1, body(1)), (2, body(20)), (3, body(30))]);
}

/// A DELETE that is refused keeps a flush waiting like a PUT.
#[test]
fn a_flush_waits_for_deletes() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    sandbox.put(&name(3), &body(3));
    let server = sandbox.serve();
    let mut client = server.client();
    tamper.rule(|seen| match seen.is("DELETE", &name(3)) {
        true => Act::Status(503),
        false => Act::Forward,
    });
    client.write_zeroes(at(3), SIZE as u32).unwrap();
    let flush = client.send_flush().unwrap();
    tamper.await_hits(2);
    assert!(!client.hears_within(A_WHILE), "answered, and not deleted");
    tamper.forward();
    client.reply(flush).unwrap();
    assert_holds(&sandbox, &[]);
    client.disconnect();
    server.stop();
}

/// With an `io_timeout` a flush fails instead of waiting, and is not forgotten:
/// no later one succeeds before what the first covered is stored.
#[test]
fn a_failed_flush_is_not_forgotten() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.configure("io_timeout = \"2s\"");
    sandbox.set_up(OBJECTS, SIZE as u64);
    let server = sandbox.serve();
    let mut client = server.client();
    tamper.rule(|seen| match seen.is("PUT", &name(3)) {
        true => Act::Status(202),
        false => Act::Forward,
    });
    client.write(at(3), &body(30)).unwrap();
    assert_eq!(client.flush(), Err(EIO));
    server.await_log(&["ERROR", &name(3), "202"]);
    // Nothing new was written, and still it cannot succeed.
    assert_eq!(client.flush(), Err(EIO));
    assert_eq!(client.write_fua(at(5), &body(50)), Err(EIO));
    assert!(client.read(at(3), SIZE as u32).unwrap() == body(30));
    tamper.forward();
    client.flush().unwrap();
    assert_holds(&sandbox, &[(3, body(30)), (5, body(50))]);
    client.disconnect();
    server.stop();
}

/// A PUT that was carried out and whose answer was lost: the flush is answered
/// in the end, and nothing older or newer is there.
#[test]
fn a_lost_answer_to_a_put() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    let server = sandbox.serve();
    let mut client = server.client();
    let mut lost = 0;
    tamper.rule(move |seen| match seen.method == "PUT" && lost < 3 {
        true => {
            lost += 1;
            Act::Swallow
        }
        false => Act::Forward,
    });
    for index in 0..4 {
        client.write(at(index), &body(index as u8)).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(tamper.hits(), 3);
    let all: Vec<_> = (0..4).map(|index| (index, body(index as u8))).collect();
    assert_holds(&sandbox, &all);
    client.disconnect();
    // Its end waits until a lost request cannot take effect any more.
    server.stop();
    assert_holds(&sandbox, &all);
}

/// A body that is not what its head says is never returned, nor written back:
/// the read fails with EIO, the log names the object, other objects go on, and
/// when the damage is over the data is there.
#[test]
fn spoiled_bodies_are_never_returned() {
    type Spoil = (&'static str, fn(&Reply) -> Vec<u8>);
    let spoils: [Spoil; 3] = [
        ("an empty body with the right ETag", empty_body),
        ("a short body with the right ETag", short_body),
        ("a bit flipped", flipped_bit),
    ];
    std::thread::scope(|scope| {
        for (what, spoil) in spoils {
            scope.spawn(move || one_spoiled_body(what, spoil));
        }
    });
}

fn one_spoiled_body(what: &str, spoil: fn(&Reply) -> Vec<u8>) {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    let whole: Vec<_> = (0..6).map(|index| (index, body(index as u8))).collect();
    for (index, body) in &whole {
        sandbox.put(&name(*index), body);
    }
    let server = sandbox.serve();
    let mut client = server.client();
    tamper.rule(move |seen| match seen.is("GET", &name(3)) {
        true => Act::Spoil(spoil),
        false => Act::Forward,
    });
    assert_eq!(client.read(at(3), 512), Err(EIO), "{what}");
    assert_eq!(client.read(at(2), 3 * SIZE as u32), Err(EIO), "{what}");
    server.await_log(&[&name(3)]);
    for index in [0, 1, 2, 4, 5] {
        assert!(
            client.read(at(index), SIZE as u32).unwrap() == body(index as u8),
            "{what}"
        );
    }
    // A part of it is written: that needs the rest, which cannot be had. The
    // flush must not claim anything, and the object must stay as it is.
    client.write(at(3), &[0xee; 512]).unwrap();
    client.write(at(4), &body(40)).unwrap();
    assert_eq!(client.flush(), Err(EIO), "{what}");
    assert!(
        sandbox.lab().get(&sandbox.container, &name(3)).unwrap() == body(3),
        "{what}"
    );
    assert!(
        client.read(at(3), 512).unwrap() == [0xee; 512],
        "{what}: what was answered is seen"
    );

    tamper.forward();
    client.flush().unwrap();
    let mut merged = body(3);
    merged[..512].fill(0xee);
    assert!(client.read(at(3), SIZE as u32).unwrap() == merged, "{what}");
    let mut wanted = whole;
    wanted[3].1 = merged;
    wanted[4].1 = body(40);
    assert_holds(&sandbox, &wanted);
    client.disconnect();
    server.stop();
}

/// An object that really has another size than the volume's: EIO, named, and
/// never overwritten by a merge; writing it whole mends it.
#[test]
fn an_object_of_another_size() {
    for sandbox in [Sandbox::dir(), Sandbox::swift()] {
        sandbox.set_up(OBJECTS, SIZE as u64);
        sandbox.put(&name(2), &body(2));
        sandbox.put(&name(3), &body(3)[..1000]);
        sandbox.put(&name(4), &[body(4), body(5)].concat());
        let before = content(&sandbox);
        let server = sandbox.serve();
        let mut client = server.client();
        for (index, size) in [(3, "1000"), (4, "8192")] {
            assert_eq!(client.read(at(index), SIZE as u32), Err(EIO));
            server.await_log(&["WARN", &name(index), size]);
        }
        assert!(client.read(at(2), SIZE as u32).unwrap() == body(2));
        client.write(at(3) + 512, &[1; 512]).unwrap();
        assert_eq!(client.flush(), Err(EIO));
        assert_eq!(content(&sandbox), before);
        for index in [3, 4] {
            client.write(at(index), &body(index as u8)).unwrap();
        }
        client.flush().unwrap();
        for index in [3, 4] {
            assert!(client.read(at(index), SIZE as u32).unwrap() == body(index as u8));
            assert!(sandbox.get(&name(index)).unwrap() == body(index as u8));
        }
        client.disconnect();
        server.stop();
    }
}

/// Damage in the files of a local directory is noticed, too.
#[test]
fn a_damaged_file() {
    let sandbox = Sandbox::dir();
    sandbox.set_up(OBJECTS, SIZE as u64);
    for index in [2, 3, 4] {
        sandbox.put(&name(index), &body(index as u8));
    }
    let objects = sandbox
        .files
        .path()
        .join("store")
        .join(&sandbox.container)
        .join("objects");
    let file = |index| objects.join(format!("disk.part.dir/{index:08}.obj"));
    let mut bytes = std::fs::read(file(3)).unwrap();
    bytes[100] ^= 1;
    std::fs::write(file(3), &bytes).unwrap();
    std::fs::write(file(4), b"").unwrap();
    let server = sandbox.serve();
    let mut client = server.client();
    for index in [3, 4] {
        assert_eq!(client.read(at(index), SIZE as u32), Err(EIO));
        server.await_log(&[&name(index)]);
    }
    assert!(client.read(at(2), SIZE as u32).unwrap() == body(2));
    assert!(std::fs::read(file(3)).unwrap() == bytes);
    client.disconnect();
    server.stop();
}

/// A read that is cut off, refused or lost waits until it works again.
#[test]
fn reads_wait() {
    type Failure = (&'static str, fn() -> Act);
    let failures: [Failure; 5] = [
        ("503", || Act::Status(503)),
        ("498", || Act::Status(498)),
        ("truncated", || Act::Spoil(truncated_body)),
        ("closed", || Act::Close),
        ("swallowed", || Act::Swallow),
    ];
    std::thread::scope(|scope| {
        for (what, act) in failures {
            scope.spawn(move || {
                let (sandbox, tamper) = Sandbox::tampered();
                sandbox.set_up(OBJECTS, SIZE as u64);
                sandbox.put(&name(3), &body(3));
                let server = sandbox.serve();
                let mut client = server.client();
                tamper.rule(move |seen| match seen.is("GET", &name(3)) {
                    true => act(),
                    false => Act::Forward,
                });
                let read = client.send_read(at(3), SIZE as u32).unwrap();
                // More often than a damaged body would be asked for.
                tamper.await_hits(6);
                assert!(!client.hears_within(Duration::from_millis(1)), "{what}");
                tamper.forward();
                assert!(client.reply(read).unwrap() == body(3), "{what}");
                server.await_log(&["WARN", &name(3)]);
                client.disconnect();
                server.stop();
            });
        }
    });
}

/// A container that seems to be gone, and a token or a password that is refused,
/// while the volume is in use: it waits with a loud warning, nothing reads as
/// zeros, and it goes on when that is over.
#[test]
fn what_is_refused_meanwhile_is_waited_out() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    sandbox.put(&name(3), &body(3));
    sandbox.put(&name(4), &body(4));
    let server = sandbox.serve();
    let mut client = server.client();

    // Everything is 404: the objects and their container.
    tamper.rule(|seen| {
        if seen.is_auth() {
            Act::Forward
        } else {
            Act::Status(404)
        }
    });
    let read = client.send_read(at(3), SIZE as u32).unwrap();
    tamper.await_hits(8);
    assert!(
        !client.hears_within(A_WHILE),
        "a missing container read as something"
    );
    tamper.forward();
    assert!(client.reply(read).unwrap() == body(3));
    server.await_log(&["WARN", &sandbox.container, "404"]);

    // Every token is refused, the password is not.
    tamper.rule(|seen| {
        if seen.is_auth() {
            Act::Forward
        } else {
            Act::Status(401)
        }
    });
    client.write(at(5), &body(5)).unwrap();
    let flush = client.send_flush().unwrap();
    tamper.await_hits(4);
    assert!(!client.hears_within(A_WHILE));
    tamper.forward();
    client.reply(flush).unwrap();
    server.await_log(&["WARN", "401"]);

    // The password is refused, too.
    tamper.rule(|_| Act::Status(401));
    let read = client.send_read(at(4), SIZE as u32).unwrap();
    tamper.await_hits(3);
    assert!(!client.hears_within(A_WHILE));
    tamper.forward();
    assert!(client.reply(read).unwrap() == body(4));

    client.disconnect();
    server.stop();
    assert_holds(&sandbox, &[(3, body(3)), (4, body(4)), (5, body(5))]);
}

/// SIGTERM while Swift does not take anything: the server stays until all is
/// durable, and only then unlocks and ends.
#[test]
fn the_end_waits_for_swift() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    let mut server = sandbox.serve();
    let mut client = server.client();
    tamper.rule(|seen| {
        if seen.method == "PUT" {
            Act::Status(503)
        } else {
            Act::Forward
        }
    });
    client.write(at(3), &body(3)).unwrap();
    client.disconnect();
    server.signal(Signal::SIGTERM);
    tamper.await_hits(3);
    pause(A_WHILE);
    assert_ne!(
        sandbox.metadata("swiftnbd-client"),
        "",
        "unlocked too early"
    );
    tamper.forward();
    assert_eq!(server.end(), 0);
    assert_holds(&sandbox, &[(3, body(3))]);
    assert_eq!(sandbox.metadata("swiftnbd-client"), "");
}

/// A second signal ends the wait, and the volume stays locked: what was not
/// durable is lost, and the log says how much.
#[test]
fn a_second_signal_gives_up() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    let mut server = sandbox.serve();
    let mut client = server.client();
    client.write_fua(at(2), &body(2)).unwrap();
    tamper.rule(|seen| {
        if seen.method == "PUT" {
            Act::Status(503)
        } else {
            Act::Forward
        }
    });
    client.write(at(3), &body(3)).unwrap();
    client.disconnect();
    server.signal(Signal::SIGTERM);
    tamper.await_hits(2);
    pause(A_WHILE);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.end(), 1);
    server.await_log(&["ERROR", VOLUME, "not durable", "locked"]);
    assert_holds(&sandbox, &[(2, body(2))]);
    assert_ne!(sandbox.metadata("swiftnbd-client"), "");
}

/// A server that is killed leaves the volume locked, with its name; after
/// `unlock`, everything that was flushed is there.
#[test]
fn killed() {
    for sandbox in [Sandbox::dir(), Sandbox::swift()] {
        sandbox.set_up(OBJECTS, SIZE as u64);
        let mut server = sandbox.serve();
        let mut client = server.client();
        for index in 0..4 {
            client.write(at(index), &body(index as u8)).unwrap();
        }
        client.flush().unwrap();
        client.write(at(1), &body(99)).unwrap();
        let holder = sandbox.metadata("swiftnbd-client");
        server.signal(Signal::SIGKILL);
        assert_eq!(server.end(), -9);
        assert_eq!(sandbox.metadata("swiftnbd-client"), holder);
        let who = holder.split('@').next().unwrap();
        sandbox
            .run(&["lock", VOLUME])
            .failed(3, &[VOLUME, who], "swiftnbd unlock vol");
        sandbox.run(&["unlock", VOLUME]).is_silent();
        // The socket file that it left is replaced.
        assert!(server.socket.exists());
        drop(server);
        let server = sandbox.serve();
        let mut client = server.client();
        for index in [0, 2, 3] {
            assert!(client.read(at(index), SIZE as u32).unwrap() == body(index as u8));
        }
        let found = client.read(at(1), SIZE as u32).unwrap();
        assert!(
            found == body(1) || found == body(99),
            "neither the old nor the new"
        );
        client.disconnect();
        server.stop();
    }
}

/// A signal while a server waits for the requests of a holder that died: it ends
/// and gives the lock back.
#[test]
fn a_signal_before_the_volume_is_open() {
    let sandbox = Sandbox::swift();
    sandbox.set_up(OBJECTS, SIZE as u64);
    sandbox.run(&["lock", VOLUME]).is_silent();
    sandbox.run(&["unlock", VOLUME]).is_silent();
    let mut server = sandbox.start_serving();
    server.await_log(&["waiting", "last holder"]);
    server.signal(Signal::SIGTERM);
    server.end();
    assert_eq!(
        sandbox.metadata("swiftnbd-client"),
        "",
        "it ended and left the lock"
    );
}

/// The wait for the requests of a holder that died is owed until somebody has
/// waited: a start that failed before does not pay it.
#[test]
fn the_pause_outlives_a_failed_start() {
    let sandbox = Sandbox::swift();
    sandbox.set_up(OBJECTS, 4 << 20);
    sandbox.run(&["lock", VOLUME]).is_silent();
    sandbox.run(&["unlock", VOLUME]).is_silent();
    let socket = sandbox.files.path().join("never.sock");
    sandbox.configure("dirty = \"1MiB\"");
    sandbox
        .run(&["serve", VOLUME, "--unix", socket.to_str().unwrap()])
        .failed(2, &[VOLUME, "dirty"], "at least");
    sandbox.configure("");
    let server = sandbox.start_serving();
    wait_until("the server to begin", || {
        let log = server.log();
        assert!(!log.contains(" serving "), "it did not wait:\n{log}");
        log.contains("waiting") && log.contains("last holder")
    });
}

/// Both ways to choose an export, what is advertised, and requests that are not
/// allowed.
#[test]
fn a_read_only_volume_and_both_handshakes() {
    let sandbox = Sandbox::dir();
    sandbox.set_up(OBJECTS, SIZE as u64);
    sandbox.put(&name(3), &body(3));
    let before = content(&sandbox);
    {
        let server = sandbox.serve();
        let writable = server.client();
        assert_eq!(
            (writable.size, writable.flags & 2),
            (OBJECTS * SIZE as u64, 0)
        );
        let mut default = Client::export_name(&server.socket, VOLUME);
        assert_eq!(default.flags, writable.flags);
        assert!(default.read(at(3), SIZE as u32).unwrap() == body(3));
        assert!(Client::go(&server.socket, "other").is_err());
        server.stop();
    }
    sandbox.configure("read_only = true");
    let server = sandbox.serve();
    let mut client = server.client();
    assert_eq!(client.flags & 2, 2);
    assert_eq!(client.write(0, &[1; 512]), Err(EPERM));
    assert_eq!(client.trim(0, 512), Err(EPERM));
    assert_eq!(client.write_zeroes(0, 512), Err(EPERM));
    client.flush().unwrap();
    assert!(client.read(at(3), SIZE as u32).unwrap() == body(3));
    client.disconnect();
    server.stop();
    assert_eq!(content(&sandbox), before);
}
