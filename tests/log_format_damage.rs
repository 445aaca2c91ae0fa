//! Format 2's objects, damaged, moved or made up: no decoder panics, none takes more
//! memory than the bytes warrant, and none returns what was not written there.

#[path = "support/boxes.rs"]
mod boxes;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/objects2.rs"]
mod objects2;

use std::fmt::Debug;

use boxes::{FRAME, PAGE, TABLES, plain_box, plain_object, plain_prelude, plain_segment};
use bytes::Bytes;
use objects2::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use swiftnbd::image::log::format::claim::{Claim, Release, Stop};
use swiftnbd::image::log::format::entry::Entry;
use swiftnbd::image::log::format::keys::{self, DataKey, KeyError};
use swiftnbd::image::log::format::names;
use swiftnbd::image::log::format::root::{Compression, Geometry, Location, Root};
use swiftnbd::image::log::format::seal::{Cipher, Kind};
use swiftnbd::image::log::format::segment::Header;
use swiftnbd::image::log::format::tables::{Era, MapBuilder, MapRow, PageRow, SegmentRow, Tables};
use swiftnbd::image::log::format::{Damage, VolumeId, frame, page};

type Decode = Box<dyn Fn(&Bytes) -> Result<String, Damage>>;

/// Bytes, and what reads them where they belong.
struct Item {
    what: String,
    bytes: Bytes,
    decode: Decode,
}

fn item<T: Debug>(
    what: String,
    bytes: Bytes,
    decode: impl Fn(&Bytes) -> Result<T, Damage> + 'static,
) -> Item {
    let decode = move |bytes: &Bytes| decode(bytes).map(|value| format!("{value:?}"));
    Item {
        what,
        bytes,
        decode: Box::new(decode),
    }
}

/// The value, if it is of this volume.
fn of<T>(volume: VolumeId, found: Result<(VolumeId, T), Damage>) -> Result<T, Damage> {
    match found? {
        (other, _) if other != volume => Err(Damage::Foreign),
        (_, value) => Ok(value),
    }
}

/// Every kind of object and box in a volume, each at two places.
fn items(what: &str, volume: VolumeId, cipher: &Cipher) -> Vec<Item> {
    let mut items = Vec::new();
    unsealed(what, volume, &mut items);
    for n in [0, 1] {
        let name = names::root(5, n);
        let root = Root {
            key: cipher.is_sealed().into(),
            ..sample_root(n)
        };
        let (bytes, key) = (root.encode(volume, cipher, &name), cipher.clone());
        items.push(item(format!("{what} {name}"), bytes, move |bytes| {
            of(volume, Root::decode(&name, bytes, Some(volume), &key))
        }));
    }
    for seq in [2, 3] {
        segment(what, volume, cipher, seq, &mut items);
    }
    map_object(what, volume, cipher, &mut items);
    items
}

fn unsealed(what: &str, volume: VolumeId, items: &mut Vec<Item>) {
    for e in [5, 6] {
        let (name, attach) = (names::epoch(e), ATTACH);
        let claim = Claim {
            epoch: e,
            attach,
            host: "host".to_owned(),
            unix_seconds: 1_700_000_000,
            flags: 0,
        };
        let bytes = claim.encode(volume, &name);
        items.push(item(format!("{what} {name}"), bytes, move |bytes| {
            of(volume, Claim::decode(&name, bytes))
        }));
        let name = names::released(e);
        let bytes = Release { epoch: e, attach }.encode(volume, &name);
        items.push(item(format!("{what} {name}"), bytes, move |bytes| {
            of(volume, Release::decode(&name, bytes))
        }));
    }
    for name in [
        names::root(5, 0),
        names::root(5, 1),
        names::segment(5, ATTACH, 2),
    ] {
        let stop = Stop {
            epoch: 5,
            attach: ATTACH,
        };
        let bytes = stop.encode(volume, &name);
        items.push(item(
            format!("{what} stop at {name}"),
            bytes,
            move |bytes| of(volume, Stop::decode(&name, bytes)),
        ));
    }
    for n in [1, 2] {
        let name = names::key(n);
        let bytes = keys::wrap(&DataKey::random(), &passphrase("p"), volume, n, CHEAP);
        items.push(item(
            format!("{what} {name}"),
            bytes,
            move |bytes| match keys::unwrap(&name, volume, bytes, &passphrase("p")) {
                Ok(_) => Ok(()),
                Err(KeyError::Damage(damage)) => Err(damage),
                Err(KeyError::Wrong) => panic!("damage is not taken for a wrong passphrase"),
            },
        ));
    }
}

fn segment(what: &str, volume: VolumeId, cipher: &Cipher, seq: u64, items: &mut Vec<Item>) {
    let frame = |start, kind| ScriptFrame {
        start,
        pieces: vec![data(kind, 1, start)],
        sources: Vec::new(),
    };
    let frames = vec![frame(0, 1), frame(8, 2), frame(9, 2)];
    let script = Script {
        seq,
        frames,
        holes: vec![(4, 2)],
    };
    let built = script.build_in(volume, cipher, Compression::Lz4);
    let end = Header::needed(&built.body).unwrap() as usize;
    let (name, key) = (built.name.clone(), cipher.clone());
    let what = format!("{what} {name}");
    let bytes = built.body.slice(..end);
    items.push(item(format!("{what} header"), bytes, move |bytes| {
        Header::decode(&name, volume, &key, bytes)
    }));
    for info in built.header.frames {
        let (name, key) = (built.name.clone(), cipher.clone());
        let bytes = built
            .body
            .slice(info.offset as usize..(info.offset + info.stored) as usize);
        items.push(item(
            format!("{what} frame {}", info.start),
            bytes,
            move |bytes| frame::open(&key, volume, &name, info.offset, info.start, bytes),
        ));
    }
}

fn map_object(what: &str, volume: VolumeId, cipher: &Cipher, items: &mut Vec<Item>) {
    let mut map = MapBuilder::new(volume, cipher, 5, ATTACH, 1);
    let entries = [
        Entry::new(0, 3, 2, 200, 4102, 0).unwrap(),
        Entry::new(7, 1, 3, 200, 4102, 2).unwrap(),
    ];
    let pages = [3, 4].map(|page| (page, map.page(page, &entries)));
    let tables = map.tables(&sample_tables());
    let (name, body) = map.finish();
    let part = |at: Location| body.slice(at.offset as usize..(at.offset + at.length) as usize);
    for (number, at) in pages {
        let (name, key) = (name.clone(), cipher.clone());
        items.push(item(
            format!("{what} page {number}"),
            part(at),
            move |bytes| page::decode(bytes, &key, volume, &name, at.offset, number),
        ));
    }
    let key = cipher.clone();
    items.push(item(format!("{what} tables"), part(tables), move |bytes| {
        Tables::decode(bytes, &key, volume, &name, tables.offset)
    }));
}

fn sample_root(n: u32) -> Root {
    let geometry = Geometry {
        size: 1 << 30,
        block_size: 4096,
        compression: Compression::Lz4,
    };
    let tables = Location {
        k: 1,
        offset: 32,
        length: 100,
    };
    Root {
        epoch: 5,
        attach: ATTACH,
        n,
        geometry,
        seq: 3,
        header: [3; 16],
        next_k: 2,
        previous: Some((4, 9, [4; 16])),
        tables,
        key: 0,
    }
}

fn sample_tables() -> Tables {
    let era = Era {
        epoch: 5,
        attach: ATTACH,
        first_seq: 1,
        first_k: 1,
    };
    let segment = |seq| SegmentRow {
        seq,
        stored: 9000,
        blocks: 3,
        live: 2,
    };
    let page = |page| PageRow {
        page,
        location: Location {
            k: 1,
            offset: 32,
            length: 20,
        },
    };
    Tables {
        eras: vec![era],
        segments: vec![segment(2), segment(3)],
        maps: vec![MapRow { k: 1, stored: 300 }],
        pages: vec![page(3), page(4)],
    }
}

/// Two plain volumes and two encrypted ones.
fn everything() -> Vec<Item> {
    let other = VolumeId([9; 16]);
    let sealed = &ciphers()[1];
    let mut all = items("plain", VOLUME, &Cipher::Plain);
    all.extend(items("plain foreign", other, &Cipher::Plain));
    all.extend(items("sealed", VOLUME, sealed));
    // The same key under another id: what binds to the volume is not the key alone.
    all.extend(items("sealed foreign", other, sealed));
    all.extend(items(
        "sealed otherwise",
        VOLUME,
        &DataKey::random().cipher(VOLUME),
    ));
    all
}

#[test]
fn each_is_read_at_its_own_place_only() {
    let all = everything();
    let mut refused = 0;
    for (i, from) in all.iter().enumerate() {
        for (j, to) in all.iter().enumerate() {
            let found = (to.decode)(&from.bytes);
            if from.bytes == to.bytes && i != j {
                // Claims, stops and releases are never sealed: the same in both.
                continue;
            }
            match i == j {
                true => assert!(found.is_ok(), "{}: {found:?}", from.what),
                // A key may have been wrapped twice for one place.
                false if from.what.contains(" key/") && same_place(from, to) => {}
                false => {
                    refused += 1;
                    assert!(
                        found.is_err(),
                        "{} read as {}: {found:?}",
                        from.what,
                        to.what
                    );
                }
            }
        }
    }
    assert!(refused > 10_000, "{refused} moves");
}

fn same_place(a: &Item, b: &Item) -> bool {
    let place = |item: &Item| {
        let foreign = item.what.contains("foreign");
        (foreign, item.what.rsplit(' ').next().map(str::to_owned))
    };
    place(a) == place(b)
}

#[test]
fn every_changed_bit_is_noticed() {
    for item in everything() {
        let mut bytes = item.bytes.to_vec();
        // All bits of what is short, some of every byte region of what is long.
        let step = (bytes.len() / 512).max(1);
        for at in (0..bytes.len()).step_by(step) {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let found = (item.decode)(&Bytes::copy_from_slice(&bytes));
                assert!(
                    found.is_err(),
                    "{}: bit {bit} of byte {at}: {found:?}",
                    item.what
                );
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    for item in everything() {
        let length = item.bytes.len();
        for at in (0..length)
            .step_by((length / 512).max(1))
            .chain([length - 1])
        {
            let found = (item.decode)(&item.bytes.slice(..at));
            assert!(
                found.is_err(),
                "{}: {at} of {length} bytes: {found:?}",
                item.what
            );
        }
        let longer = Bytes::from([&item.bytes[..], &[0]].concat());
        // More of the object may follow a segment's header.
        if !item.what.ends_with("header") {
            let found = (item.decode)(&longer);
            assert!(found.is_err(), "{}: and a byte more: {found:?}", item.what);
        }
    }
}

#[test]
fn a_prelude_tells_what_is_wrong() {
    let name = names::root(5, 0);
    let body = sample_root(0).encode(VOLUME, &Cipher::Plain, &name);
    let decode = |at: usize, value: u8| {
        let mut body = body.to_vec();
        body[at] = value;
        Root::decode(&name, &body.into(), Some(VOLUME), &Cipher::Plain).unwrap_err()
    };
    assert_eq!(decode(0, b'S'), Damage::Magic);
    assert_eq!(
        decode(8, 4),
        Damage::Kind {
            found: 4,
            wanted: 3
        }
    );
    assert_eq!(decode(9, 3), Damage::Unknown("version 3".to_owned()));
    assert!(matches!(decode(10, 4), Damage::Unknown(_)));
    assert!(matches!(decode(10, 1), Damage::Malformed(_)));
    assert_eq!(decode(16, 0), Damage::Foreign);
    assert_eq!(decode(60, 0xff), Damage::Checksum);
    assert!(matches!(decode(9, 3).to_string(), text if text.contains("version 3")));
}

/// Whoever has no key cannot put a plain object into an encrypted volume.
#[test]
fn a_plain_object_in_an_encrypted_volume_is_refused() {
    let sealed = &ciphers()[1];
    let plain = sample_segment(&Cipher::Plain, Compression::None, 2);
    let decode = |cipher, body| Header::decode(&plain.name, VOLUME, cipher, body);
    assert_eq!(decode(sealed, &plain.body), Err(Damage::Seal));
    let made = sample_segment(sealed, Compression::None, 2);
    assert_eq!(decode(&Cipher::Plain, &made.body), Err(Damage::Seal));
    let name = names::root(5, 0);
    let body = sample_root(0).encode(VOLUME, &Cipher::Plain, &name);
    assert_eq!(Root::decode(&name, &body, None, sealed), Err(Damage::Seal));
}

/// Whatever of a root this version does not know, refuses the volume.
#[test]
fn an_unknown_feature_of_a_root_is_unknown() {
    let name = names::root(5, 0);
    let body = sample_root(0).encode(VOLUME, &Cipher::Plain, &name);
    let payload = &body[32..body.len() - 4];
    let end = payload.len();
    // Features, the page's size, the logical block, compression, journal, parent,
    // snapshots.
    for at in [0, 7, 8, 44, 48, end - 30, end - 14, end - 6, end - 4] {
        let mut payload = payload.to_vec();
        payload[at] ^= 0x40;
        let body = plain_object(Kind::Root, VOLUME, &name, &payload);
        let damage = Root::decode(&name, &body, None, &Cipher::Plain).unwrap_err();
        assert!(matches!(damage, Damage::Unknown(_)), "byte {at}: {damage}");
    }
    let name = names::segment(5, ATTACH, 1);
    let mut payload = vec![0; 73];
    payload[1] = 5;
    payload[5..21].copy_from_slice(&ATTACH.0);
    payload[21] = 1;
    let decode = |payload: &[u8]| {
        let body = plain_segment(VOLUME, &name, payload);
        Header::decode(&name, VOLUME, &Cipher::Plain, &body).map(|_| ())
    };
    assert_eq!(decode(&payload), Ok(()));
    for at in [0, 53] {
        let mut payload = payload.clone();
        payload[at] = 2;
        assert!(
            matches!(decode(&payload), Err(Damage::Unknown(_))),
            "byte {at}"
        );
    }
}

#[test]
fn a_count_allocates_nothing() {
    let many = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let name = names::map(5, ATTACH, 1);
    let prelude = plain_prelude(Kind::Map, VOLUME);
    let tables = |payload: &[u8]| {
        let boxed = plain_box(&prelude, &name, (TABLES, 32, 0), payload);
        let (most, found) =
            memory::most(|| Tables::decode(&boxed, &Cipher::Plain, VOLUME, &name, 32));
        assert!(matches!(found, Err(Damage::Truncated(_))), "{found:?}");
        assert!(most < 4096, "{most} bytes");
    };
    for lists in 0..4 {
        tables(&[&vec![0; lists], &many[..]].concat());
    }
    let boxed = plain_box(&prelude, &name, (PAGE, 32, 0), &many);
    let (most, found) = memory::most(|| page::decode(&boxed, &Cipher::Plain, VOLUME, &name, 32, 0));
    assert!(found.is_err() && most < 4096, "{most} bytes: {found:?}");
}

/// What the decoder made of a payload, and the most memory that it took at once.
fn decode(kind: u8, payload: &[u8]) -> (usize, Option<String>) {
    let prelude = plain_prelude(Kind::Map, VOLUME);
    let (seg, map) = (names::segment(5, ATTACH, 3), names::map(5, ATTACH, 1));
    let show = |most: usize, found: Option<&dyn Debug>| (most, found.map(|f| format!("{f:?}")));
    match kind % 8 {
        0 => {
            let body = plain_segment(VOLUME, &seg, payload);
            let (most, found) =
                memory::most(|| Header::decode(&seg, VOLUME, &Cipher::Plain, &body));
            if let Ok((header, _)) = &found {
                check_header(header);
            }
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        1 => {
            let prelude = plain_prelude(Kind::Segment, VOLUME);
            let boxed = plain_box(&prelude, &seg, (FRAME, 200, 8), payload);
            let (most, found) =
                memory::most(|| frame::open(&Cipher::Plain, VOLUME, &seg, 200, 8, &boxed));
            if let Ok(data) = &found {
                assert!(!data.is_empty() && data.len() % 4096 == 0 && data.len() <= 65536);
            }
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        2 => {
            let boxed = plain_box(&prelude, &map, (PAGE, 32, 6), payload);
            let (most, found) =
                memory::most(|| page::decode(&boxed, &Cipher::Plain, VOLUME, &map, 32, 6));
            if let Ok(entries) = &found {
                assert!(
                    entries
                        .windows(2)
                        .all(|pair| pair[0].end() <= pair[1].start())
                );
                assert!(entries.last().is_none_or(|entry| entry.end() <= 8192));
            }
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        3 => {
            let boxed = plain_box(&prelude, &map, (TABLES, 32, 0), payload);
            let (most, found) =
                memory::most(|| Tables::decode(&boxed, &Cipher::Plain, VOLUME, &map, 32));
            if let Ok(tables) = &found {
                check_tables(tables);
            }
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        4 => {
            let name = names::root(5, 1);
            let body = plain_object(Kind::Root, VOLUME, &name, payload);
            let (most, found) = memory::most(|| Root::decode(&name, &body, None, &Cipher::Plain));
            if let Ok((_, root)) = &found {
                assert!(root.geometry.is_possible());
            }
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        5 => {
            let name = names::epoch(5);
            let body = plain_object(Kind::Claim, VOLUME, &name, payload);
            let (most, found) = memory::most(|| Claim::decode(&name, &body));
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        6 => {
            let body = plain_object(Kind::Stop, VOLUME, &seg, payload);
            let (most, found) = memory::most(|| Stop::decode(&seg, &body));
            show(most, found.as_ref().ok().map(|f| f as _))
        }
        _ => {
            let mut payload = payload.to_vec();
            // As much memory and time as it asks for is its right: let it ask for less.
            let length = payload.len();
            for at in [2, 3, 4, 6, 7, 8].into_iter().filter(|&at| at < length) {
                payload[at] = 0;
            }
            let name = names::key(1);
            let body = plain_object(Kind::Key, VOLUME, &name, &payload);
            let (most, found) =
                memory::most(|| keys::unwrap(&name, VOLUME, &body, &passphrase("p")));
            let most = most.saturating_sub(256 << 10);
            show(most, found.as_ref().ok().map(|f| f as _))
        }
    }
}

fn check_header(header: &Header) {
    let frames = header
        .frames
        .iter()
        .map(|frame| (frame.start, frame.blocks));
    let holes = header.holes.iter().map(|hole| (hole.start, hole.blocks));
    let mut all: Vec<_> = frames.chain(holes).collect();
    all.sort();
    assert!(
        all.windows(2)
            .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
    );
    for frame in &header.frames {
        let sum: u64 = frame
            .sources
            .iter()
            .map(|source| u64::from(source.blocks))
            .sum();
        assert_eq!(sum, if header.collected { frame.blocks } else { 0 });
        assert!(frame.start / 8192 == (frame.start + frame.blocks - 1) / 8192);
    }
}

fn check_tables(tables: &Tables) {
    let eras = &tables.eras;
    assert!(eras.windows(2).all(|pair| pair[0].epoch < pair[1].epoch));
    assert!(
        tables
            .segments
            .windows(2)
            .all(|pair| pair[0].seq < pair[1].seq)
    );
    assert!(tables.maps.windows(2).all(|pair| pair[0].k < pair[1].k));
    assert!(
        tables
            .pages
            .windows(2)
            .all(|pair| pair[0].page < pair[1].page)
    );
}

/// A payload that a writer makes, of the kinds of [`decode`].
fn payloads() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let payload = |boxed: &[u8]| boxed[..boxed.len() - 4].to_vec();
    prop_oneof![
        scripts().prop_map(move |mut script| {
            script.seq = 3;
            for source in script
                .frames
                .iter_mut()
                .flat_map(|frame| &mut frame.sources)
            {
                source.seq = 1 + source.seq % 2;
            }
            let built = script.build(&Cipher::Plain, Compression::None);
            let end = Header::needed(&built.body).unwrap() as usize;
            (0, payload(&built.body[36..end]))
        }),
        (0u8..3, 1usize..=16, any::<u64>()).prop_map(move |(kind, blocks, seed)| {
            let pieces = vec![data(kind, blocks, seed)];
            let frames = vec![ScriptFrame {
                start: 0,
                pieces,
                sources: Vec::new(),
            }];
            let script = Script {
                seq: 3,
                frames,
                holes: Vec::new(),
            };
            let built = script.build(&Cipher::Plain, Compression::Lz4);
            let at = built.header.frames[0].offset as usize;
            (1, payload(&built.body[at..]))
        }),
        page_entries().prop_map(move |entries| {
            let mut map = MapBuilder::new(VOLUME, &Cipher::Plain, 5, ATTACH, 1);
            map.page(6, &entries);
            (2, payload(&map.finish().1[32..]))
        }),
        tables().prop_map(move |tables| {
            let mut map = MapBuilder::new(VOLUME, &Cipher::Plain, 5, ATTACH, 1);
            map.tables(&tables);
            (3, payload(&map.finish().1[32..]))
        }),
        roots().prop_map(move |root| {
            let root = Root {
                epoch: 5,
                n: 1,
                previous: None,
                ..root
            };
            let body = root.encode(VOLUME, &Cipher::Plain, &names::root(5, 1));
            (4, payload(&body[32..]))
        }),
        (".{0,80}", any::<u64>(), 0u64..2).prop_map(move |(host, unix_seconds, flags)| {
            let claim = Claim {
                epoch: 5,
                attach: ATTACH,
                host,
                unix_seconds,
                flags,
            };
            (5, payload(&claim.encode(VOLUME, &names::epoch(5))[32..]))
        }),
        Just((6, {
            let stop = Stop {
                epoch: 5,
                attach: ATTACH,
            };
            payload(&stop.encode(VOLUME, "seg/")[32..])
        })),
        any::<()>().prop_map(move |()| {
            let body = keys::wrap(&DataKey::random(), &passphrase("p"), VOLUME, 1, CHEAP);
            (7, payload(&body[32..]))
        }),
    ]
}

/// What memory a payload of so many bytes warrants: a frame's blocks, or some times
/// its own length.
fn warranted(kind: u8, length: usize) -> usize {
    let own = if kind % 8 == 1 { 64 << 10 } else { 0 };
    own + 8 * length + 4096
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Past the checksum: whatever the payload, what comes out keeps the format's word.
    #[test]
    fn any_payload_is_refused_or_makes_sense(kind: u8, payload in vec(any::<u8>(), 0..600)) {
        let (most, _) = decode(kind, &payload);
        prop_assert!(most <= warranted(kind, payload.len()), "{most} bytes");
    }

    #[test]
    fn a_changed_payload_is_refused_or_makes_sense(
        (kind, mut payload) in payloads(),
        changes in vec((any::<Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<Index>()),
        splice in proptest::option::of((any::<Index>(), any::<Index>(), 0usize..64)),
    ) {
        let whole = decode(kind, &payload);
        prop_assert!(kind == 7 || whole.1.is_some(), "kind {kind} is not even read unchanged");
        for (at, value) in changes {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        if let Some((from, to, length)) = splice {
            let (from, to) = (from.index(payload.len()), to.index(payload.len()));
            let part = payload[from..payload.len().min(from + length)].to_vec();
            payload.splice(to..to, part);
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        let (most, _) = decode(kind, &payload);
        prop_assert!(most <= warranted(kind, payload.len()), "{most} bytes");
    }

    #[test]
    fn noise_is_refused(which: Index, noise in vec(any::<u8>(), 0..300)) {
        let all = ITEMS.with(|all| all.clone());
        let item = &all[which.index(all.len())];
        prop_assert!((item.decode)(&noise.into()).is_err(), "{}", item.what);
    }

    /// Of two objects, the beginning of one and the end of the other.
    #[test]
    fn spliced_objects_are_refused(a: Index, b: Index, at: Index, from: Index) {
        let all = ITEMS.with(|all| all.clone());
        let (a, b) = (&all[a.index(all.len())], &all[b.index(all.len())]);
        let (at, from) = (at.index(a.bytes.len() + 1), from.index(b.bytes.len() + 1));
        let spliced = Bytes::from([&a.bytes[..at], &b.bytes[from..]].concat());
        for item in [a, b] {
            if !spliced.starts_with(&item.bytes) {
                let found = (item.decode)(&spliced);
                prop_assert!(found.is_err(), "{} and {} as {}", a.what, b.what, item.what);
            }
        }
    }
}

thread_local! {
    static ITEMS: std::rc::Rc<Vec<Item>> = std::rc::Rc::new(everything());
}
