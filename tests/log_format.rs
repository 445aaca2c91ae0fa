//! Format 2's objects: what was encoded is decoded, whatever it is, plain and sealed.
//! What happens to anything else is in `log_format_damage.rs`.

#[path = "support/boxes.rs"]
mod boxes;
#[path = "support/objects2.rs"]
mod objects2;

use bytes::Bytes;
use objects2::*;
use proptest::prelude::*;
use swiftnbd::image::log::format::claim::{self, Claim, MAX_HOST, Release, Renewal, Stop};
use swiftnbd::image::log::format::entry::Entry;
use swiftnbd::image::log::format::keys::{
    self, Cost, DataKey, KeyError, Passphrase, PassphraseError,
};
use swiftnbd::image::log::format::names::{self, Name};
use swiftnbd::image::log::format::root::{self, Compression, Root, prelude};
use swiftnbd::image::log::format::seal::{Cipher, Kind};
use swiftnbd::image::log::format::segment::{Builder, HEADER_GUESS, Header, Plan};
use swiftnbd::image::log::format::tables::{MapBuilder, Tables, era_of_map, era_of_segment};
use swiftnbd::image::log::format::{AttachId, BLOCK, Damage, VolumeId, frame, page};

#[test]
fn names_are_exact() {
    let a = AttachId(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
    let all = [
        (names::epoch(1), "epoch/00000001", Name::Epoch(1)),
        (
            names::released(0xabcdef),
            "released/00abcdef",
            Name::Released(0xabcdef),
        ),
        (
            names::root(2, 256),
            "root/00000002/00000100",
            Name::Root(2, 256),
        ),
        (
            names::segment(3, a, 0x1234),
            "seg/00000003.00112233445566778899aabbccddeeff/000000001234",
            Name::Segment {
                epoch: 3,
                attach: a,
                seq: 0x1234,
            },
        ),
        (
            names::map(u32::MAX, a, (1 << 48) - 1),
            "map/ffffffff.00112233445566778899aabbccddeeff/ffffffffffff",
            Name::Map {
                epoch: u32::MAX,
                attach: a,
                k: (1 << 48) - 1,
            },
        ),
        (names::key(7), "key/00000007", Name::Key(7)),
    ];
    for (made, text, name) in all {
        assert_eq!(made, text);
        assert_eq!(Name::parse(text), Some(name));
        for wrong in [
            text.to_uppercase(),
            text.replacen('0', "A", 1),
            text.replacen('0', "+", 1),
            text.replacen('/', "//", 1),
            text.replacen('/', "/0", 1),
            format!("{text}0"),
            format!("{text}/"),
            format!("/{text}"),
            format!(" {text}"),
            text[..text.len() - 1].to_owned(),
        ] {
            assert_eq!(Name::parse(&wrong), None, "{wrong}");
        }
    }
    for strange in [
        "",
        "/",
        "epoch",
        "epoch/",
        "disk.part/00000001",
        "seg/1.2/3",
        "éééé/00000001",
    ] {
        assert_eq!(Name::parse(strange), None, "{strange}");
    }
}

#[test]
fn claims_renewals_stops_and_releases_come_back() {
    for host in ["", "host.example", &"h".repeat(MAX_HOST)] {
        let claim = Claim {
            epoch: 9,
            attach: ATTACH,
            host: host.to_owned(),
            unix_seconds: 1 << 40,
            flags: 1,
            lease: [None, Some(0), Some(30)][host.len() % 3],
        };
        let name = names::epoch(9);
        let body = claim.encode(VOLUME, &name);
        assert_eq!(Claim::decode(&name, &body), Ok((VOLUME, claim)));
        assert_eq!(claim::kind(&body).unwrap().kind, Kind::Claim);
    }
    let stop = Stop {
        epoch: 9,
        attach: ATTACH,
    };
    for name in [names::root(3, 1), names::segment(3, ATTACH, 7)] {
        let body = stop.encode(VOLUME, &name);
        assert_eq!(Stop::decode(&name, &body), Ok((VOLUME, stop)));
        assert_eq!(claim::kind(&body).unwrap().kind, Kind::Stop);
    }
    let release = Release {
        epoch: 9,
        attach: ATTACH,
    };
    let name = names::released(9);
    let body = release.encode(VOLUME, &name);
    assert_eq!(Release::decode(&name, &body), Ok((VOLUME, release)));
    let renewal = Renewal {
        epoch: 9,
        attach: ATTACH,
        count: 1 << 40,
    };
    let name = names::lease(9);
    let body = renewal.encode(VOLUME, &name);
    assert_eq!(Renewal::decode(&name, &body), Ok((VOLUME, renewal)));
    assert!(Renewal::decode(&names::lease(8), &body).is_err());
}

#[test]
fn a_long_host_is_cut_between_letters() {
    let host = "é".repeat(200);
    let claim = Claim {
        epoch: 1,
        attach: ATTACH,
        host,
        unix_seconds: 0,
        flags: 0,
        lease: None,
    };
    let body = claim.encode(VOLUME, &names::epoch(1));
    let (_, found) = Claim::decode(&names::epoch(1), &body).unwrap();
    assert_eq!(found.host, "é".repeat(127));
}

#[test]
fn a_claim_of_another_epoch_than_its_name_is_refused() {
    let claim = Claim {
        epoch: 1,
        attach: ATTACH,
        host: String::new(),
        unix_seconds: 0,
        flags: 0,
        lease: None,
    };
    let body = claim.encode(VOLUME, &names::epoch(2));
    assert!(matches!(
        Claim::decode(&names::epoch(2), &body),
        Err(Damage::Malformed(_))
    ));
}

#[test]
fn what_a_later_version_may_mean_is_unknown() {
    let claim = Claim {
        epoch: 1,
        attach: ATTACH,
        host: String::new(),
        unix_seconds: 0,
        flags: 4,
        lease: None,
    };
    let body = claim.encode(VOLUME, &names::epoch(1));
    assert!(matches!(
        Claim::decode(&names::epoch(1), &body),
        Err(Damage::Unknown(_))
    ));
    for (at, value) in [(8, 11), (8, 0), (9, 1), (9, 3), (10, 2), (11, 0x80)] {
        let mut body = body.to_vec();
        body[at] = value;
        let damage = claim::kind(&body.into()).unwrap_err();
        assert!(
            matches!(damage, Damage::Unknown(_)),
            "byte {at} = {value}: {damage}"
        );
    }
}

#[test]
fn pages_of_sequential_data_are_small() {
    let (mut entries, mut offset) = (Vec::new(), 1000);
    for start in (0..8192).step_by(16) {
        entries.push(Entry::new(start, 16, 77, offset, 65542, 0).unwrap());
        offset += 65542;
    }
    let mut map = MapBuilder::new(VOLUME, &Cipher::Plain, 1, ATTACH, 1);
    let location = map.page(0, &entries);
    assert!(
        location.length < 2 * 512 + 32,
        "{} bytes for {} entries",
        location.length,
        entries.len()
    );
}

#[test]
fn eras_tell_who_wrote_a_number() {
    let era = |epoch, first_seq, first_k| swiftnbd::image::log::format::tables::Era {
        epoch,
        attach: ATTACH,
        first_seq,
        first_k,
    };
    // The second epoch wrote no segment.
    let eras = [era(1, 1, 1), era(4, 10, 3), era(5, 10, 5)];
    let segment = |seq| era_of_segment(&eras, seq).map(|era| era.epoch);
    assert_eq!(
        [0, 1, 9, 10, 1 << 40].map(segment),
        [None, Some(1), Some(1), Some(5), Some(5)]
    );
    let map = |k| era_of_map(&eras, k).map(|era| era.epoch);
    assert_eq!(
        [0, 2, 3, 4, 5].map(map),
        [None, Some(1), Some(4), Some(4), Some(5)]
    );
}

#[test]
fn passphrases() {
    let make = |bytes: &[u8]| Passphrase::from_bytes(bytes).map(|_| ());
    assert_eq!(make(b""), Err(PassphraseError::Empty));
    assert_eq!(make(b"\n"), Err(PassphraseError::Empty));
    assert_eq!(make(&[b'x'; Passphrase::MAX]), Ok(()));
    assert_eq!(
        make(&[b'x'; Passphrase::MAX + 1]),
        Err(PassphraseError::TooLong)
    );
    assert_eq!(format!("{:?}", passphrase("secret")), "Passphrase(..)");
    let key = DataKey::random();
    assert_eq!(
        format!("{key:?} {:?}", key.cipher(VOLUME)),
        "DataKey(..) Sealed(SealKey(..))"
    );
}

#[test]
fn keys_open_with_their_passphrase_only() {
    let data = DataKey::random();
    let name = names::key(3);
    let body = keys::wrap(&data, &passphrase("right\n"), VOLUME, 3, CHEAP);
    // One newline at the end is not part of it.
    let found = keys::unwrap(&name, VOLUME, &body, &passphrase("right")).unwrap();
    // The same key: what one seals the other opens.
    let made = sample_segment(&data.cipher(VOLUME), Compression::None, 1);
    Header::decode(&made.name, VOLUME, &found.cipher(VOLUME), &made.body).unwrap();
    for wrong in ["wrong", "right ", "right\n\n", "Right"] {
        let error = keys::unwrap(&name, VOLUME, &body, &passphrase(wrong)).unwrap_err();
        assert_eq!(error, KeyError::Wrong, "{wrong:?}");
    }
    // Another volume's data key derives another key, and so does another volume's id.
    let other = DataKey::random().cipher(VOLUME);
    assert_eq!(
        Header::decode(&made.name, VOLUME, &other, &made.body),
        Err(Damage::Seal)
    );
    let other = data.cipher(VolumeId([1; 16]));
    assert_eq!(
        Header::decode(&made.name, VOLUME, &other, &made.body),
        Err(Damage::Seal)
    );
    // Wrapped again, nothing of it is the same twice.
    let again = keys::wrap(&data, &passphrase("right"), VOLUME, 3, CHEAP);
    assert_ne!(body[45..], again[45..]);
}

#[test]
fn a_key_whose_cost_is_absurd_is_refused_at_once() {
    let body = keys::wrap(&DataKey::random(), &passphrase("p"), VOLUME, 1, CHEAP);
    let absurd = [
        Cost {
            memory_kib: u32::MAX,
            ..CHEAP
        },
        Cost {
            passes: u32::MAX,
            ..CHEAP
        },
        Cost {
            lanes: u32::MAX,
            ..CHEAP
        },
        Cost {
            memory_kib: 0,
            ..CHEAP
        },
        Cost { passes: 0, ..CHEAP },
        Cost { lanes: 0, ..CHEAP },
        Cost { lanes: 2, ..CHEAP },
    ];
    for cost in absurd {
        let mut payload = body[32..body.len() - 4].to_vec();
        payload[1..5].copy_from_slice(&cost.memory_kib.to_le_bytes());
        payload[5..9].copy_from_slice(&cost.passes.to_le_bytes());
        payload[9..13].copy_from_slice(&cost.lanes.to_le_bytes());
        let body = boxes::plain_object(Kind::Key, VOLUME, &names::key(1), &payload);
        let error = keys::unwrap(&names::key(1), VOLUME, &body, &passphrase("p")).unwrap_err();
        assert!(
            matches!(error, KeyError::Damage(Damage::Malformed(_))),
            "{cost:?}: {error}"
        );
    }
}

#[test]
fn frames_that_do_not_shrink_are_stored_as_they_are() {
    let mut noise = vec![0; 16 * BLOCK as usize];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    let noise = Bytes::from(noise);
    let text =
        Bytes::from(b"swiftnbd ".repeat(16 * BLOCK as usize / 8)).slice(..16 * BLOCK as usize);
    let length = |cipher: &Cipher, compression, data: &Bytes| {
        let plan = Plan {
            frames: 1,
            sources: 0,
            holes: 0,
        };
        let id = (1, ATTACH, 1);
        let mut builder = Builder::new(
            VOLUME,
            cipher,
            compression,
            id,
            [0; 16],
            0,
            plan,
            data.len(),
        );
        builder.frame(32, std::slice::from_ref(data), &[]);
        let built = builder.finish();
        let info = &built.header.frames[0];
        assert_eq!(built.header.object_length(), Some(built.body.len() as u64));
        let boxed = built.body.slice(info.offset as usize..);
        let found = frame::open(cipher, VOLUME, &built.name, info.offset, 32, &boxed).unwrap();
        assert!(found == data);
        info.stored as usize - cipher.overhead()
    };
    for cipher in ciphers() {
        assert_eq!(length(cipher, Compression::Lz4, &noise), noise.len() + 2);
        assert_eq!(length(cipher, Compression::None, &text), text.len() + 2);
        assert!(length(cipher, Compression::Lz4, &text) < text.len() / 50);
    }
}

#[test]
fn most_headers_are_within_the_first_guess() {
    let plan = Plan {
        frames: 2048,
        sources: 0,
        holes: 256,
    };
    for cipher in ciphers() {
        assert!(plan.header_length(cipher) <= HEADER_GUESS);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn roots_come_back(root in roots(), sealed: bool) {
        let cipher = &ciphers()[usize::from(sealed)];
        let root = Root { key: u32::from(sealed) * 3, ..root };
        let name = names::root(root.epoch, root.n);
        let body = root.encode(VOLUME, cipher, &name);
        let seen = prelude(&body).unwrap();
        prop_assert_eq!((seen.sealed, seen.key, seen.volume), (sealed, root.key, VOLUME));
        prop_assert_eq!(Root::decode(&name, &body, None, cipher), Ok((VOLUME, root.clone())));
        prop_assert_eq!(Root::decode(&name, &body, Some(VOLUME), cipher), Ok((VOLUME, root)));
        let foreign = Root::decode(&name, &body, Some(VolumeId([1; 16])), cipher);
        prop_assert_eq!(foreign, Err(Damage::Foreign));
    }

    #[test]
    fn segments_come_back(script in scripts(), sealed: bool, lz4: bool) {
        let cipher = &ciphers()[usize::from(sealed)];
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let built = script.build(cipher, compression);
        let body = &built.body;
        prop_assert_eq!(Name::parse(&built.name), Some(Name::Segment { epoch: 5, attach: ATTACH, seq: script.seq }));
        let needed = Header::needed(&body.slice(..36)).unwrap();
        prop_assert_eq!(needed, script.plan().header_length(cipher));
        let first = body.slice(..needed as usize);
        let (header, hash) = Header::decode(&built.name, VOLUME, cipher, &first).unwrap();
        prop_assert_eq!(&header, &built.header);
        prop_assert_eq!(hash, built.hash);
        prop_assert_eq!(hash, root::hash(&body[36..needed as usize]));
        let end = header.object_length().unwrap_or(needed);
        prop_assert_eq!(end, body.len() as u64);
        prop_assert_eq!(header.frames.len(), script.frames.len());
        for (info, wanted) in header.frames.iter().zip(&script.frames) {
            let boxed = body.slice(info.offset as usize..(info.offset + info.stored) as usize);
            let found = frame::open(cipher, VOLUME, &built.name, info.offset, info.start, &boxed).unwrap();
            prop_assert_eq!(info.start, wanted.start);
            prop_assert_eq!(&info.sources, &wanted.sources);
            prop_assert!(found == wanted.data());
        }
        let holes: Vec<_> = header.holes.iter().map(|hole| (hole.start, hole.blocks)).collect();
        prop_assert_eq!(holes, script.holes);
    }

    #[test]
    fn map_objects_come_back(pages in proptest::collection::vec(page_entries(), 0..4), tables in tables(), sealed: bool) {
        let cipher = &ciphers()[usize::from(sealed)];
        let mut map = MapBuilder::new(VOLUME, cipher, 5, ATTACH, 8);
        let places: Vec<_> = pages.iter().enumerate().map(|(i, entries)| map.page(i as u64 * 3, entries)).collect();
        let last = map.tables(&tables);
        let length = map.len();
        let (name, body) = map.finish();
        prop_assert_eq!(body.len(), length);
        prop_assert_eq!(Name::parse(&name), Some(Name::Map { epoch: 5, attach: ATTACH, k: 8 }));
        for (i, (entries, place)) in pages.iter().zip(places).enumerate() {
            prop_assert_eq!(place.k, 8);
            let boxed = body.slice(place.offset as usize..(place.offset + place.length) as usize);
            let found = page::decode(&boxed, cipher, VOLUME, &name, place.offset, i as u64 * 3);
            prop_assert_eq!(found.as_ref(), Ok(entries));
        }
        let boxed = body.slice(last.offset as usize..);
        prop_assert_eq!(Tables::decode(&boxed, cipher, VOLUME, &name, last.offset), Ok(tables));
    }
}
