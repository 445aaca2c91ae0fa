//! `swiftnbd serve` without names: a volume is leased at its first client, before
//! it reads anything, and given back when nobody uses it any more, all of it
//! durable. Over a real Swift whose answers are spoiled on their way.
//!
//! Needs `scripts/lab run -- cargo test --test serve_on_demand`, or
//! `scripts/test`; without a Swift it fails.

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

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use command::{Sandbox, Server, VOLUME};
use nbd_client::Client;
use tamper::{Act, Tamper};
use waiting::{pause, wait_until};

const OBJECTS: u64 = 16;
const SIZE: usize = 4096;

/// Longer than a volume stays leased without a client.
const LONGER_THAN_IDLE: Duration = Duration::from_secs(8);

fn name(index: u64) -> String {
    format!("disk.part/{index:08}")
}

fn locked(sandbox: &Sandbox) -> bool {
    !sandbox.metadata("swiftnbd-client").is_empty()
}

fn await_unlocked(sandbox: &Sandbox) {
    wait_until("the volume to be given back", || !locked(sandbox));
}

fn serve(sandbox: &Sandbox) -> Server<'_> {
    let server = sandbox.start_serving_these(&[]);
    server.await_ready();
    server
}

fn end(mut server: Server<'_>, sandbox: &Sandbox) {
    server.signal(Signal::SIGTERM);
    assert_eq!(server.end(), 0);
    assert!(!locked(sandbox));
}

/// Says that it wants the volume, and leaves.
fn vanish(server: &Server<'_>) {
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    let name = VOLUME.as_bytes();
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x07");
    bytes.extend((name.len() as u32 + 6).to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name);
    bytes.extend([0, 0]);
    // What stays unread would reset the connection.
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&bytes).unwrap();
}

#[test]
fn leased_while_it_is_used() {
    for sandbox in [Sandbox::dir(), Sandbox::swift()] {
        sandbox.set_up(OBJECTS, SIZE as u64);
        let server = serve(&sandbox);
        assert!(!locked(&sandbox));
        for round in 1..3 {
            let mut client = server.client();
            assert!(locked(&sandbox));
            client.write(0, &[round; SIZE]).unwrap();
            let mut other = server.client();
            client.disconnect();
            pause(LONGER_THAN_IDLE);
            assert!(locked(&sandbox), "given back under a client");
            assert!(other.read(0, SIZE as u32).unwrap() == [round; SIZE]);
            // This one leaves without a word.
            drop(other);
            await_unlocked(&sandbox);
            assert!(sandbox.get(&name(0)).unwrap() == [round; SIZE]);
            // Somebody else changes it: nothing old is served afterwards.
            sandbox.put(&name(1), &[100 + round; SIZE]);
            let mut client = server.client();
            assert!(client.read(SIZE as u64, SIZE as u32).unwrap() == [100 + round; SIZE]);
            client.disconnect();
        }
        let client = server.client();
        end(server, &sandbox);
        drop(client);
    }
}

/// A client that does not wait until the volume is leased leaves no lock behind.
#[test]
fn a_client_that_vanishes() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.set_up(OBJECTS, SIZE as u64);
    let server = serve(&sandbox);
    for _ in 0..3 {
        vanish(&server);
    }
    server.await_log(&["leased"]);
    await_unlocked(&sandbox);
    server.await_log(&["unlocked", VOLUME]);
    // Refused while it is leased: nothing stays either, and the next one has it.
    refuse_locks(&tamper);
    vanish(&server);
    assert!(Client::go(&server.socket, VOLUME).is_err());
    tamper.forward();
    wait_until("the lease", || match Client::go(&server.socket, VOLUME) {
        Ok(client) => {
            client.disconnect();
            true
        }
        Err(_) => false,
    });
    end(server, &sandbox);
}

/// Nobody may change the container's metadata.
fn refuse_locks(tamper: &Tamper) {
    tamper.rule(|seen| match seen.method == "POST" {
        true => Act::Status(403),
        false => Act::Forward,
    });
}

/// A volume that cannot be stored is not given back; who comes meanwhile sees what
/// was written, and when it can be stored it is given back.
#[test]
fn what_is_dirty_is_not_given_back() {
    let (sandbox, tamper) = Sandbox::tampered();
    sandbox.configure("io_timeout = \"2s\"");
    sandbox.set_up(OBJECTS, SIZE as u64);
    let server = serve(&sandbox);
    let mut client = server.client();
    tamper.rule(|seen| match seen.method == "PUT" {
        true => Act::Status(503),
        false => Act::Forward,
    });
    client.write(0, &[7; SIZE]).unwrap();
    client.disconnect();
    server.await_log(&["ERROR", "cannot store what is dirty"]);
    pause(LONGER_THAN_IDLE);
    assert!(locked(&sandbox));
    let mut client = server.client();
    assert!(client.read(0, SIZE as u32).unwrap() == [7; SIZE]);
    client.disconnect();
    tamper.forward();
    await_unlocked(&sandbox);
    assert!(sandbox.get(&name(0)).unwrap() == [7; SIZE]);
    end(server, &sandbox);
}

/// SIGTERM while a client waits for a volume that is being leased.
#[test]
fn a_signal_while_it_is_leased() {
    let sandbox = Sandbox::swift();
    sandbox.set_up(OBJECTS, SIZE as u64);
    sandbox.run(&["lock", VOLUME]).is_silent();
    sandbox.run(&["unlock", VOLUME]).is_silent();
    let server = serve(&sandbox);
    vanish(&server);
    server.await_log(&["waiting", "last holder"]);
    assert!(locked(&sandbox));
    end(server, &sandbox);
}

/// A volume that cannot be opened is unlocked, however often that fails first.
#[test]
fn what_cannot_be_opened_is_unlocked() {
    let (sandbox, tamper) = Sandbox::tampered();
    // Less than four objects: found out when it is locked already.
    sandbox.configure("dirty = \"1MiB\"");
    sandbox.set_up(OBJECTS, 512 << 10);
    let server = serve(&sandbox);
    let mut locks = 0;
    tamper.rule(move |seen| {
        locks += u32::from(seen.method == "POST");
        match seen.method == "POST" && locks > 1 {
            true => Act::Status(403),
            false => Act::Forward,
        }
    });
    assert!(Client::go(&server.socket, VOLUME).is_err());
    server.await_log(&["ERROR", "cannot unlock", VOLUME]);
    assert!(locked(&sandbox));
    tamper.forward();
    await_unlocked(&sandbox);
    end(server, &sandbox);
}

/// The credentials are those that are configured when a volume is leased.
#[test]
fn credentials_are_read_at_each_lease() {
    let sandbox = Sandbox::swift();
    sandbox.set_up(OBJECTS, SIZE as u64);
    let good = std::fs::read_to_string(sandbox.config()).unwrap();
    let bad = good.replace("password = \"", "password = \"not-");
    assert_ne!(bad, good);
    command::write_private(&sandbox.config(), &bad);
    let server = serve(&sandbox);
    assert!(Client::go(&server.socket, VOLUME).is_err());
    command::write_private(&sandbox.config(), &good);
    server.client().disconnect();
    await_unlocked(&sandbox);
    // What cannot be read changes nothing.
    command::write_private(&sandbox.config(), "[");
    server.client().disconnect();
    server.await_log(&["ERROR", "configuration", "old credentials stay", VOLUME]);
    await_unlocked(&sandbox);
    command::write_private(&sandbox.config(), &bad);
    assert!(Client::go(&server.socket, VOLUME).is_err());
    end(server, &sandbox);
}

/// A request that waits for Swift keeps the server, until a second signal.
#[test]
fn a_second_signal_waits_for_no_request() {
    for swift_is_there in [true, false] {
        let (sandbox, tamper) = Sandbox::tampered();
        sandbox.set_up(OBJECTS, SIZE as u64);
        let mut server = serve(&sandbox);
        let mut client = server.client();
        tamper.rule(move |seen| match swift_is_there && seen.method != "GET" {
            true => Act::Forward,
            false => Act::Hang,
        });
        let _waiting = client.send_read(0, SIZE as u32).unwrap();
        tamper.await_hits(1);
        server.signal(Signal::SIGTERM);
        server.await_log(&["INFO", "ending"]);
        server.signal(Signal::SIGTERM);
        let status = server.end();
        server.await_log(&["WARN", "1 clients not answered"]);
        assert_eq!(
            (status, locked(&sandbox)),
            match swift_is_there {
                true => (0, false),
                false => (1, true),
            }
        );
        drop(client);
    }
}
