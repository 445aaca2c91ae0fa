//! Format 2's decoders past the checksum: whatever the payload of a box, none panics,
//! none takes more memory than the bytes warrant, and what comes out keeps the
//! format's word.

#[path = "support/boxes.rs"]
mod boxes;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/objects2.rs"]
mod objects2;

use std::fmt::Debug;

use boxes::{FRAME, PAGE, TABLES, plain_box, plain_object, plain_prelude, plain_segment};
use objects2::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use swiftnbd::image::log::format::claim::{Claim, Stop};
use swiftnbd::image::log::format::keys::{self, DataKey};
use swiftnbd::image::log::format::names;
use swiftnbd::image::log::format::root::{Compression, Root};
use swiftnbd::image::log::format::seal::{Cipher, Kind};
use swiftnbd::image::log::format::segment::Header;
use swiftnbd::image::log::format::tables::{MapBuilder, Tables};
use swiftnbd::image::log::format::{Damage, frame, page};

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
        ((".{0,80}", any::<u64>()), (0u64..2, any::<Option<u32>>()),).prop_map(
            move |((host, unix_seconds), (flags, lease))| {
                let claim = Claim {
                    epoch: 5,
                    attach: ATTACH,
                    host,
                    unix_seconds,
                    flags,
                    lease,
                };
                (5, payload(&claim.encode(VOLUME, &names::epoch(5))[32..]))
            }
        ),
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
}
