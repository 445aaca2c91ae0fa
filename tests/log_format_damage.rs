//! Format 2's objects, damaged or moved: no decoder panics, and none returns what was
//! not written there. Damage that no checksum shows is in `log_format_payloads.rs`.

#[path = "support/boxes.rs"]
mod boxes;
#[path = "support/objects2.rs"]
mod objects2;

use std::fmt::Debug;

use boxes::{plain_object, plain_segment};
use bytes::Bytes;
use objects2::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use swiftnbd::image::log::format::claim::{Claim, Release, Renewal, Stop};
use swiftnbd::image::log::format::entry::Entry;
use swiftnbd::image::log::format::keys::{self, DataKey, KeyError};
use swiftnbd::image::log::format::names;
use swiftnbd::image::log::format::root::{Compression, Geometry, Location, Root};
use swiftnbd::image::log::format::seal::{Cipher, Kind};
use swiftnbd::image::log::format::segment::Header;
use swiftnbd::image::log::format::tables::{Era, MapBuilder, MapRow, PageRow, SegmentRow, Tables};
use swiftnbd::image::log::format::{Damage, JournalId, VolumeId, frame, page};

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
            lease: (e == 6).then_some(30),
        };
        let bytes = claim.encode(volume, &name);
        items.push(item(format!("{what} {name}"), bytes, move |bytes| {
            of(volume, Claim::decode(&name, bytes))
        }));
        let name = names::lease(e);
        let renewal = Renewal {
            epoch: e,
            attach,
            count: 7,
        };
        let bytes = renewal.encode(volume, &name);
        items.push(item(format!("{what} {name}"), bytes, move |bytes| {
            of(volume, Renewal::decode(&name, bytes))
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
        journal: (n > 0).then_some((JournalId([9; 16]), 4096)),
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

/// Each part of a place counts for itself: address, offset, name, volume.
#[test]
fn a_box_is_of_one_place_in_every_part() {
    let (other, elsewhere) = (VolumeId([9; 16]), names::segment(5, ATTACH, 4));
    for cipher in ciphers() {
        let built = sample_segment(cipher, Compression::None, 3);
        let info = &built.header.frames[1];
        let (at, start, name) = (info.offset, info.start, &*built.name);
        let boxed = built.body.slice(at as usize..(at + info.stored) as usize);
        let open = |volume, name, offset, address| {
            frame::open(cipher, volume, name, offset, address, &boxed).is_ok()
        };
        assert!(open(VOLUME, name, at, start));
        assert!(!open(VOLUME, name, at, start + 1));
        assert!(!open(VOLUME, name, at + 1, start));
        assert!(!open(VOLUME, &elsewhere, at, start));
        assert!(!open(other, name, at, start));

        let mut map = MapBuilder::new(VOLUME, cipher, 5, ATTACH, 1);
        let entries = [Entry::new(0, 3, 2, 200, 4102, 0).unwrap()];
        let at = map.page(7, &entries);
        let (name, body) = map.finish();
        let boxed = body.slice(at.offset as usize..);
        let open = |volume, name: &str, offset, page| {
            page::decode(&boxed, cipher, volume, name, offset, page).is_ok()
        };
        assert!(open(VOLUME, &name, at.offset, 7));
        assert!(!open(VOLUME, &name, at.offset, 8));
        assert!(!open(VOLUME, &name, at.offset + 1, 7));
        assert!(!open(VOLUME, &names::map(5, ATTACH, 2), at.offset, 7));
        assert!(!open(other, &name, at.offset, 7));
        // Nor is it what it is not.
        let tables = Tables::decode(&boxed, cipher, VOLUME, &name, at.offset);
        assert!(tables.is_err());
    }
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
    // Features, the page's size, the logical block, compression, parent, snapshots.
    for at in [0, 7, 8, 44, 48, end - 6, end - 4] {
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
    payload[0] = 2;
    assert!(matches!(decode(&payload), Err(Damage::Unknown(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

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
