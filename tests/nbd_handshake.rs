//! The handshake, spoken to in raw bytes.

mod nbd_support;

use std::time::Duration;

use async_trait::async_trait;
use nbd_support::{Client, KEPT, TestImage};
use proptest::prelude::*;
use swiftnbd::device::{Device, Shape};
use swiftnbd::nbd::{
    Agreed, Chosen, Export, Exports, HandshakeError, Outcome, Tls, Unavailable, negotiate,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const WRITABLE: u16 = 0b1_0110_1101;
/// HAS_FLAGS, READ_ONLY, SEND_FLUSH, CAN_MULTI_CONN.
const READ_ONLY: u16 = 0b1_0000_0111;
const SEND_DF: u16 = 1 << 7;

type Handshake = JoinHandle<Result<Option<Chosen>, HandshakeError>>;

fn export(name: &str, read_only: bool) -> (Export, Device) {
    let export = Export {
        name: name.to_owned(),
        description: format!("volume {name}"),
    };
    (export, Device::new(TestImage::new(KEPT), 4096, read_only))
}

fn start(exports: impl Exports + 'static) -> (Client<DuplexStream>, Handshake) {
    let (client, mut server) = duplex(4096);
    let handshake = tokio::spawn(async move {
        match negotiate(&mut server, &exports, Tls::None).await? {
            Outcome::Chosen(chosen) => Ok(Some(chosen)),
            Outcome::StartTls(_) => panic!("TLS was not offered"),
            Outcome::Left => Ok(None),
        }
    });
    (Client(client), handshake)
}

/// A server that wants TLS. What stands in for it is another pipe, whose end the
/// test is given.
fn start_tls() -> (Client<DuplexStream>, Client<DuplexStream>, Handshake) {
    let (client, mut server) = duplex(4096);
    let (secret, mut secured) = duplex(4096);
    let exports = vec![export("a", false)];
    let handshake = tokio::spawn(async move {
        let outcome = negotiate(&mut server, &exports, Tls::Required).await?;
        let Outcome::StartTls(mut upgrade) = outcome else {
            assert!(matches!(outcome, Outcome::Left), "no TLS and {outcome:?}");
            return Ok(None);
        };
        upgrade.wait(async { Ok(()) }).await?;
        match upgrade.resume(&mut secured, &exports).await? {
            Outcome::Chosen(chosen) => Ok(Some(chosen)),
            Outcome::StartTls(_) => panic!("TLS a second time"),
            Outcome::Left => Ok(None),
        }
    });
    (Client(client), Client(secret), handshake)
}

/// A client that has exchanged flags with a server of volumes `a` and `b`.
async fn greeted(flags: u32) -> (Client<DuplexStream>, Handshake) {
    let (mut client, handshake) = start(vec![export("a", false), export("b", true)]);
    client.greet(flags).await;
    (client, handshake)
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn info_export(flags: u16) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(KEPT.to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

fn info_block_size() -> Vec<u8> {
    let mut data = vec![0, 3];
    for size in [4096_u32, 64 << 10, 32 << 20] {
        data.extend(size.to_be_bytes());
    }
    data
}

trait HandshakeClient {
    async fn greet(&mut self, flags: u32);
    async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>);
    async fn haggle(&mut self, option: u32, data: &[u8]) -> u32;
}

impl HandshakeClient for Client<DuplexStream> {
    async fn greet(&mut self, flags: u32) {
        assert_eq!(self.data(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.0.read_u64().await.unwrap(), 0x0003_e889_0455_65a9);
        assert_eq!(self.0.read_u32().await.unwrap(), option);
        let kind = self.0.read_u32().await.unwrap();
        let length = self.0.read_u32().await.unwrap();
        (kind, self.data(length as usize).await)
    }

    /// Sends an option that has one reply, and returns its kind.
    async fn haggle(&mut self, number: u32, data: &[u8]) -> u32 {
        self.send(&option(number, data)).await;
        self.option_reply(number).await.0
    }
}

#[tokio::test]
async fn go_tells_all_and_ends_the_handshake() {
    for (name, flags) in [("a", WRITABLE), ("b", READ_ONLY)] {
        let (mut client, handshake) = greeted(3).await;
        client.send(&option(GO, &go(name, &[1, 2, 3, 77]))).await;
        // What follows belongs to the transmission phase.
        client.send(b"next").await;
        let mut replies = Vec::new();
        for _ in 0..5 {
            replies.push(client.option_reply(GO).await);
        }
        let text = |kind: u8, text: &str| [&[0, kind], text.as_bytes()].concat();
        assert_eq!(
            replies,
            [
                (REP_INFO, info_export(flags)),
                (REP_INFO, info_block_size()),
                (REP_INFO, text(1, name)),
                (REP_INFO, text(2, &format!("volume {name}"))),
                (ACK, vec![]),
            ]
        );
        let chosen = handshake.await.unwrap().unwrap().unwrap();
        assert_eq!(chosen.name, name);
        assert_eq!(chosen.device.read_only(), name == "b");
    }
}

#[tokio::test]
async fn info_tells_and_goes_on() {
    let (mut client, _handshake) = greeted(3).await;
    for number in [INFO, INFO, GO] {
        client.send(&option(number, &go("a", &[]))).await;
        for expected in [info_export(WRITABLE), info_block_size()] {
            assert_eq!(client.option_reply(number).await, (REP_INFO, expected));
        }
        assert_eq!(client.option_reply(number).await, (ACK, vec![]));
    }
}

#[tokio::test]
async fn export_name_with_and_without_zeroes() {
    for (flags, zeroes) in [(1, 124), (3, 0), (0, 124)] {
        let (mut client, handshake) = greeted(flags).await;
        client.send(&option(EXPORT_NAME, b"b")).await;
        let mut expected = info_export(READ_ONLY)[2..].to_vec();
        expected.resize(10 + zeroes, 0);
        assert_eq!(client.data(10 + zeroes).await, expected);
        client.assert_end().await;
        assert_eq!(handshake.await.unwrap().unwrap().unwrap().name, "b");
    }
}

#[tokio::test]
async fn export_name_of_nothing_closes() {
    let long = [b'x'; 9000];
    for name in [&b"c"[..], b"", b"\xff", &long[..5000], &long] {
        let (mut client, handshake) = greeted(3).await;
        client.send(&option(EXPORT_NAME, b"")[..12]).await;
        client.send(&(name.len() as u32).to_be_bytes()).await;
        let _ = client.0.write_all(name).await;
        client.assert_end().await;
        assert!(matches!(
            handshake.await.unwrap(),
            Err(HandshakeError::Refused { .. } | HandshakeError::Oversized { .. })
        ));
    }
}

#[tokio::test]
async fn list_names_every_export() {
    let (mut client, handshake) = greeted(3).await;
    client.send(&option(LIST, b"")).await;
    for name in ["a", "b"] {
        let expected = format!("\0\0\0\x01{name}volume {name}").into_bytes();
        assert_eq!(client.option_reply(LIST).await, (SERVER, expected));
    }
    assert_eq!(client.option_reply(LIST).await, (ACK, vec![]));
    assert_eq!(client.haggle(LIST, b"x").await, ERR_INVALID);
    assert_eq!(client.haggle(ABORT, b"").await, ACK);
    client.assert_end().await;
    assert!(handshake.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn the_empty_name_is_the_only_export() {
    let (mut client, handshake) = start(vec![export("only", false)]);
    client.greet(3).await;
    assert_eq!(client.haggle(GO, &go("", &[])).await, REP_INFO);
    assert_eq!(handshake.await.unwrap().unwrap().unwrap().name, "only");

    let (mut client, _handshake) = greeted(3).await;
    assert_eq!(client.haggle(GO, &go("", &[])).await, ERR_UNKNOWN);
}

#[tokio::test]
async fn what_is_refused_leaves_the_client_where_it_was() {
    let (mut client, _handshake) = greeted(3).await;
    // PEEK_EXPORT, STARTTLS, EXTENDED_HEADERS, others.
    for number in [0, 4, STARTTLS, 11, u32::MAX] {
        assert_eq!(client.haggle(number, b"").await, ERR_UNSUP);
        assert_eq!(client.haggle(number, &[7; 5000]).await, ERR_UNSUP);
    }
    assert_eq!(client.haggle(GO, &go("c", &[])).await, ERR_UNKNOWN);
    assert_eq!(client.haggle(GO, b"").await, ERR_INVALID);
    assert_eq!(client.haggle(INFO, &[0xff; 20]).await, ERR_INVALID);
    assert_eq!(client.haggle(GO, &go("a\0", &[])).await, ERR_INVALID);
    let trailing = [go("a", &[]), vec![0]].concat();
    assert_eq!(client.haggle(GO, &trailing).await, ERR_INVALID);
    let long = go(&"x".repeat(5000), &[]);
    assert_eq!(client.haggle(GO, &long).await, ERR_TOO_BIG);
    assert_eq!(client.haggle(GO, &[0; 100_000]).await, ERR_TOO_BIG);
    assert_eq!(client.haggle(GO, &go("a", &[])).await, REP_INFO);
}

#[tokio::test]
async fn what_is_not_nbd_is_closed() {
    let huge = [&option(99, b"")[..12], &[0xff; 4]].concat();
    for (flags, bytes) in [(4, vec![]), (3, b"GET / HTTP/1.1\r\n".to_vec()), (3, huge)] {
        let (mut client, handshake) = greeted(flags).await;
        let _ = client.0.write_all(&bytes).await;
        client.assert_end().await;
        assert!(matches!(
            handshake.await.unwrap(),
            Err(HandshakeError::ClientFlags(4)
                | HandshakeError::BadMagic(_)
                | HandshakeError::Oversized { option: 99, .. })
        ));
    }
}

#[tokio::test]
async fn options_are_bounded() {
    let (mut client, handshake) = greeted(3).await;
    for _ in 0..64 {
        assert_eq!(client.haggle(99, b"").await, ERR_UNSUP);
    }
    client.assert_end().await;
    let ended = handshake.await.unwrap();
    assert!(matches!(ended, Err(HandshakeError::TooManyOptions)));
}

#[tokio::test]
async fn a_client_may_leave() {
    let (client, handshake) = start(vec![export("a", false)]);
    drop(client);
    // The greeting may have failed already.
    assert!(!matches!(handshake.await.unwrap(), Ok(Some(_))));

    for sent in [&[][..], &option(LIST, b"")[..5]] {
        let (mut client, handshake) = greeted(3).await;
        client.send(sent).await;
        client.0.shutdown().await.unwrap();
        client.assert_end().await;
        let ended = handshake.await.unwrap();
        assert_eq!(ended.is_ok(), sent.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn patience_ends() {
    // Silent.
    let (_client, handshake) = start(vec![export("a", false)]);
    let ended = handshake.await.unwrap();
    assert!(matches!(ended, Err(HandshakeError::Timeout)));

    // One byte a second, and one option every three.
    let (mut client, slow) = greeted(3).await;
    let (mut talker, endless) = greeted(3).await;
    for (second, byte) in option(GO, &go("a", &[])).iter().cycle().enumerate() {
        let slow = client.0.write_all(&[*byte]).await;
        let mut endless = Ok(());
        if second % 3 == 0 {
            endless = talker.0.write_all(&option(99, b"")).await;
        }
        if slow.is_err() && endless.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for handshake in [slow, endless] {
        let ended = handshake.await.unwrap();
        assert!(matches!(ended, Err(HandshakeError::Timeout)));
    }
}

/// Volumes that take a minute to open; the second is held by somebody else.
struct Slow;

#[async_trait]
impl Exports for Slow {
    fn list(&self) -> Vec<Export> {
        vec![export("free", false).0, export("held", false).0]
    }

    async fn inspect(&self, name: &str) -> Result<Option<Shape>, Unavailable> {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(Some(export(name, false).1.shape()))
    }

    async fn open(&self, name: &str) -> Result<Option<Device>, Unavailable> {
        tokio::time::sleep(Duration::from_secs(60)).await;
        match name {
            "held" => Err(Unavailable("in use by host-7".into())),
            _ => Ok(Some(export(name, false).1)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn opening_is_not_the_clients_fault() {
    let (mut client, handshake) = start(Slow);
    client.greet(3).await;
    client.send(&option(GO, &go("held", &[]))).await;
    let refused = (ERR_POLICY, b"in use by host-7".to_vec());
    assert_eq!(client.option_reply(GO).await, refused);
    client.send(&option(INFO, &go("held", &[]))).await;
    for kind in [REP_INFO, REP_INFO, ACK] {
        assert_eq!(client.option_reply(INFO).await.0, kind);
    }
    assert_eq!(client.haggle(GO, &go("free", &[])).await, REP_INFO);
    assert_eq!(handshake.await.unwrap().unwrap().unwrap().name, "free");
}

#[tokio::test]
async fn structured_replies_and_contexts_are_agreed_on() {
    let (mut client, handshake) = greeted(3).await;
    // Not before structured replies, and then they are not lost.
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let early = contexts("a", &["base:allocation"]);
        assert_eq!(client.haggle(number, &early).await, ERR_INVALID);
    }
    assert_eq!(client.haggle(STRUCTURED_REPLY, b"x").await, ERR_INVALID);
    assert_eq!(client.haggle(STRUCTURED_REPLY, b"").await, ACK);
    assert_eq!(client.haggle(STRUCTURED_REPLY, b"").await, ACK);
    client.send(&option(INFO, &go("a", &[]))).await;
    let expected = (REP_INFO, info_export(WRITABLE | SEND_DF));
    assert_eq!(client.option_reply(INFO).await, expected);
    for _ in 0..2 {
        client.option_reply(INFO).await;
    }

    for (queries, listed) in [
        (&[][..], true),
        (&["base:"], true),
        (&["qemu:", "base:allocation"], true),
        (&["qemu:dirty-bitmap:x"], false),
    ] {
        let list = option(LIST_META_CONTEXT, &contexts("b", queries));
        client.send(&list).await;
        if listed {
            let name = [&[0; 4][..], b"base:allocation"].concat();
            let reply = client.option_reply(LIST_META_CONTEXT).await;
            assert_eq!(reply, (META_CONTEXT, name));
        }
        let reply = client.option_reply(LIST_META_CONTEXT).await;
        assert_eq!(reply, (ACK, vec![]), "{queries:?}");
    }

    let set = option(SET_META_CONTEXT, &contexts("a", &["x:", "base:allocation"]));
    client.send(&set).await;
    let name = [&[0, 0, 0, 1][..], b"base:allocation"].concat();
    let reply = client.option_reply(SET_META_CONTEXT).await;
    assert_eq!(reply, (META_CONTEXT, name));
    assert_eq!(client.option_reply(SET_META_CONTEXT).await, (ACK, vec![]));
    client.send(&option(GO, &go("a", &[]))).await;
    let chosen = handshake.await.unwrap().unwrap().unwrap();
    let agreed = Agreed {
        structured: true,
        block_status: true,
    };
    assert_eq!(chosen.agreed, agreed);
}

#[tokio::test]
async fn a_context_counts_only_if_it_was_chosen_last_and_for_the_export() {
    let all = ["base:allocation"];
    for (first, second, export, counts) in [
        (contexts("a", &all), None, "a", true),
        (contexts("a", &all), None, "b", false),
        (contexts("a", &[]), None, "a", false),
        (contexts("a", &["base:"]), None, "a", false),
        (contexts("a", &all), Some(contexts("a", &[])), "a", false),
        (contexts("a", &all), Some(contexts("b", &all)), "a", false),
        (contexts("a", &all), Some(contexts("c", &all)), "a", false),
        (contexts("a", &all), Some(vec![0xff; 30]), "a", false),
        (contexts("a", &all), Some(vec![0; 9000]), "a", false),
        (contexts("b", &all), Some(contexts("a", &all)), "a", true),
    ] {
        let (client, handshake) = greeted(3).await;
        let mut bytes = option(STRUCTURED_REPLY, b"");
        bytes.extend(option(SET_META_CONTEXT, &first));
        if let Some(second) = second {
            bytes.extend(option(SET_META_CONTEXT, &second));
        }
        bytes.extend(option(GO, &go(export, &[])));
        let (mut replies, mut sender) = tokio::io::split(client.0);
        let reading =
            tokio::spawn(
                async move { tokio::io::copy(&mut replies, &mut tokio::io::sink()).await },
            );
        sender.write_all(&bytes).await.unwrap();
        let chosen = handshake.await.unwrap().unwrap().unwrap();
        assert_eq!(chosen.agreed.block_status, counts, "{first:?}");
        assert!(chosen.agreed.structured);
        drop(sender);
        reading.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_default_export_has_contexts_too() {
    let (mut client, handshake) = start(vec![export("only", false)]);
    client.greet(3).await;
    assert_eq!(client.haggle(STRUCTURED_REPLY, b"").await, ACK);
    let set = contexts("", &["base:allocation"]);
    assert_eq!(client.haggle(SET_META_CONTEXT, &set).await, META_CONTEXT);
    assert_eq!(client.option_reply(SET_META_CONTEXT).await.0, ACK);
    client.send(&option(EXPORT_NAME, b"only")).await;
    client.data(10).await;
    let chosen = handshake.await.unwrap().unwrap().unwrap();
    assert!(chosen.agreed.block_status);
}

#[tokio::test]
async fn before_tls_nothing_is_told() {
    let (mut client, mut secret, handshake) = start_tls();
    client.greet(3).await;
    for (number, data) in [
        (LIST, vec![]),
        (INFO, go("a", &[])),
        (GO, go("a", &[])),
        (STRUCTURED_REPLY, vec![]),
        (SET_META_CONTEXT, contexts("a", &["base:allocation"])),
        (LIST_META_CONTEXT, contexts("a", &[])),
        (99, vec![1; 70]),
    ] {
        assert_eq!(client.haggle(number, &data).await, ERR_TLS_REQD, "{number}");
    }
    assert_eq!(client.haggle(STARTTLS, b"x").await, ERR_INVALID);
    assert_eq!(client.haggle(STARTTLS, b"").await, ACK);
    // What was said before is forgotten.
    let set = contexts("a", &["base:allocation"]);
    assert_eq!(secret.haggle(SET_META_CONTEXT, &set).await, ERR_INVALID);
    assert_eq!(secret.haggle(STARTTLS, b"").await, ERR_INVALID);
    assert_eq!(secret.haggle(GO, &go("a", &[])).await, REP_INFO);
    let chosen = handshake.await.unwrap().unwrap().unwrap();
    assert_eq!(
        (chosen.name.as_str(), chosen.agreed),
        ("a", Agreed::default())
    );
}

#[tokio::test]
async fn without_tls_a_client_is_closed_or_leaves() {
    let (mut client, _secret, handshake) = start_tls();
    client.greet(3).await;
    client.send(&option(EXPORT_NAME, b"a")).await;
    client.assert_end().await;
    let ended = handshake.await.unwrap();
    assert!(matches!(ended, Err(HandshakeError::Insecure)));

    let (mut client, _secret, handshake) = start_tls();
    client.greet(3).await;
    assert_eq!(client.haggle(ABORT, b"").await, ACK);
    client.assert_end().await;
    assert!(handshake.await.unwrap().unwrap().is_none());

    // The options on both sides of TLS are counted together.
    let (mut client, mut secret, handshake) = start_tls();
    client.greet(3).await;
    for _ in 0..40 {
        assert_eq!(client.haggle(LIST, b"").await, ERR_TLS_REQD);
    }
    assert_eq!(client.haggle(STARTTLS, b"").await, ACK);
    for _ in 41..64 {
        assert_eq!(secret.haggle(99, b"").await, ERR_UNSUP);
    }
    secret.assert_end().await;
    let ended = handshake.await.unwrap();
    assert!(matches!(ended, Err(HandshakeError::TooManyOptions)));
}

#[tokio::test(start_paused = true)]
async fn patience_ends_on_either_side_of_tls() {
    // Nothing comes where TLS should begin, and nothing after it.
    for answers in [false, true] {
        let (client, mut server) = duplex(4096);
        let handshake = tokio::spawn(async move {
            let exports = vec![export("a", false)];
            let outcome = negotiate(&mut server, &exports, Tls::Required).await;
            let Ok(Outcome::StartTls(mut upgrade)) = outcome else {
                panic!("{outcome:?}");
            };
            let tls = async {
                if !answers {
                    std::future::pending::<()>().await;
                }
                Ok(())
            };
            upgrade.wait(tls).await?;
            upgrade.resume(&mut server, &exports).await
        });
        let mut client = Client(client);
        client.greet(3).await;
        assert_eq!(client.haggle(STARTTLS, b"").await, ACK);
        let ended = handshake.await.unwrap();
        assert!(matches!(ended, Err(HandshakeError::Timeout)));
    }
}

/// An option's data that may be what the option wants.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let name = "[abc]?";
    let query = prop_oneof![
        Just("base:allocation".to_owned()),
        Just("base:".to_owned()),
        "[a-z:]{0,20}",
    ];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        Just(Vec::new()),
        (name, any::<Vec<u16>>()).prop_map(|(name, wanted)| go(&name, &wanted)),
        (name, prop::collection::vec(query, 0..5)).prop_map(|(name, queries)| {
            contexts(
                &name,
                &queries.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        }),
    ]
}

proptest! {
    /// Whatever comes, whole or cut short, with TLS or without, it ends when the
    /// client has left.
    #[test]
    fn any_bytes_are_survived(
        flags in prop_oneof![4 => 0..4u32, 1 => any::<u32>()],
        options in prop::collection::vec(
            (prop_oneof![8 => 0..12u32, 1 => any::<u32>()], data()),
            0..80,
        ),
        rest: Vec<u8>,
        cut in prop_oneof![Just(usize::MAX), 0..2000usize],
        tls: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut bytes = flags.to_be_bytes().to_vec();
            for (number, data) in &options {
                bytes.extend(option(*number, data));
            }
            bytes.extend(rest);
            bytes.truncate(cut);
            let exports = vec![export("a", false), export("b", true)];
            let (client, mut server) = duplex(4096);
            let handshake = async move {
                let tls = if tls { Tls::Required } else { Tls::None };
                if let Ok(Outcome::StartTls(mut upgrade)) =
                    negotiate(&mut server, &exports, tls).await
                {
                    upgrade.wait(async { Ok(()) }).await.unwrap();
                    let ended = upgrade.resume(&mut server, &exports).await;
                    assert!(!matches!(ended, Ok(Outcome::StartTls(_))));
                }
            };
            let (mut replies, mut sender) = tokio::io::split(client);
            let sending = async {
                let _ = sender.write_all(&bytes).await;
                let _ = sender.shutdown().await;
            };
            let mut sink = tokio::io::sink();
            let receiving = tokio::io::copy(&mut replies, &mut sink);
            let all = async { tokio::join!(handshake, sending, receiving) };
            let ended = tokio::time::timeout(Duration::from_secs(5), all).await;
            assert!(ended.is_ok(), "the server hangs");
        });
    }
}
