//! Any payload in a plain box of an object of format 2, whose checksum is right; the
//! first byte says which: a segment's header, a frame, a page, tables, a root, a claim,
//! a stop, a key.

#![no_main]

#[path = "../../tests/support/boxes.rs"]
mod boxes;

use boxes::{FRAME, PAGE, TABLES, plain_box, plain_object, plain_prelude, plain_segment};
use libfuzzer_sys::fuzz_target;
use swiftnbd::image::log::format::claim::{self, Claim, Release, Stop};
use swiftnbd::image::log::format::keys::{self, Passphrase};
use swiftnbd::image::log::format::names::{self, Name};
use swiftnbd::image::log::format::root::Root;
use swiftnbd::image::log::format::seal::{Cipher, Kind};
use swiftnbd::image::log::format::segment::Header;
use swiftnbd::image::log::format::tables::Tables;
use swiftnbd::image::log::format::{AttachId, VolumeId, frame, page};

const VOLUME: VolumeId = VolumeId([1; 16]);
const ATTACH: AttachId = AttachId([2; 16]);

fuzz_target!(|bytes: &[u8]| {
    let Some((first, payload)) = bytes.split_first() else {
        return;
    };
    let (segment, map) = (names::segment(5, ATTACH, 3), names::map(5, ATTACH, 1));
    let boxed = |kind, name: &str, role, address| {
        plain_box(
            &plain_prelude(kind, VOLUME),
            name,
            (role, 200, address),
            payload,
        )
    };
    let object = |kind, name: &str| plain_object(kind, VOLUME, name, payload);
    match first % 9 {
        0 => {
            let body = plain_segment(VOLUME, &segment, payload);
            let _ = Header::decode(&segment, VOLUME, &Cipher::Plain, &body);
        }
        1 => {
            let boxed = boxed(Kind::Segment, &segment, FRAME, 8);
            if let Ok(data) = frame::open(&Cipher::Plain, VOLUME, &segment, 200, 8, &boxed) {
                assert!((1..=16).any(|blocks| data.len() == blocks * 4096));
            }
        }
        2 => {
            let boxed = boxed(Kind::Map, &map, PAGE, 6);
            if let Ok(entries) = page::decode(&boxed, &Cipher::Plain, VOLUME, &map, 200, 6) {
                assert!(
                    entries
                        .windows(2)
                        .all(|pair| pair[0].end() <= pair[1].start())
                );
            }
        }
        3 => {
            let boxed = boxed(Kind::Map, &map, TABLES, 0);
            let _ = Tables::decode(&boxed, &Cipher::Plain, VOLUME, &map, 200);
        }
        4 => {
            let name = names::root(5, 1);
            let _ = Root::decode(&name, &object(Kind::Root, &name), None, &Cipher::Plain);
        }
        5 => {
            let name = names::epoch(5);
            let _ = Claim::decode(&name, &object(Kind::Claim, &name));
            let name = names::released(5);
            let _ = Release::decode(&name, &object(Kind::Release, &name));
        }
        6 => {
            let _ = Stop::decode(&segment, &object(Kind::Stop, &segment));
        }
        7 => {
            // It has a right to the time and memory that it asks for; not here.
            let mut payload = payload.to_vec();
            let length = payload.len();
            for at in [2, 3, 4, 6, 7, 8].into_iter().filter(|&at| at < length) {
                payload[at] = 0;
            }
            let name = names::key(1);
            let body = plain_object(Kind::Key, VOLUME, &name, &payload);
            let passphrase = Passphrase::from_bytes("p").expect("a passphrase");
            let _ = keys::unwrap(&name, VOLUME, &body, &passphrase);
        }
        _ => {
            // Without a right checksum, and as a name.
            let body = payload.to_vec().into();
            let _ = claim::kind(&body);
            let _ = Header::needed(&body);
            let _ = Header::decode(&segment, VOLUME, &Cipher::Plain, &body);
            let _ = std::str::from_utf8(payload).map(Name::parse);
        }
    }
});
