//! How fast segments of 8 MiB are made and read, one core, beside what bounds it:
//! `cargo bench --bench log_format`. Bytes are those of the device.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use swiftnbd::image::log::format::keys::DataKey;
use swiftnbd::image::log::format::root::Compression;
use swiftnbd::image::log::format::seal::Cipher;
use swiftnbd::image::log::format::segment::{Builder, Built, Header, Plan};
use swiftnbd::image::log::format::{AttachId, BLOCK, VolumeId, frame};

const SEGMENT: usize = 8 << 20;
const VOLUME: VolumeId = VolumeId([1; 16]);

fn main() {
    let mut noise = vec![0; SEGMENT];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    let text = b"What is stored for a while, and then read, is text. ".repeat(SEGMENT / 40);
    let (noise, text) = (Bytes::from(noise), Bytes::from(text).slice(..SEGMENT));

    let mut room = Vec::with_capacity(SEGMENT);
    report("memcpy", || {
        room.clear();
        room.extend_from_slice(&noise);
        black_box(&room);
    });
    report("memcpy into new memory", || drop(black_box(noise.to_vec())));
    report("CRC-32C of 64 KiB pieces", || {
        noise
            .chunks(64 << 10)
            .for_each(|piece| _ = black_box(crc32c::crc32c(piece)));
    });

    let sealed = DataKey::random().cipher(VOLUME);
    for (name, cipher) in [("plain", &Cipher::Plain), ("sealed", &sealed)] {
        for (kind, compression, data) in [
            ("raw", Compression::None, &noise),
            ("lz4 of noise", Compression::Lz4, &noise),
            ("lz4 of text", Compression::Lz4, &text),
        ] {
            for blocks in [16, 1] {
                let what = format!("{name}, {kind}, frames of {} KiB", blocks * 4);
                report(&format!("make: {what}"), || {
                    drop(black_box(build(cipher, compression, data, blocks)))
                });
                let built = build(cipher, compression, data, blocks);
                report(&format!("read: {what}"), || read(cipher, &built));
            }
        }
    }
}

fn build(cipher: &Cipher, compression: Compression, data: &Bytes, blocks: usize) -> Built {
    let length = blocks * BLOCK as usize;
    let plan = Plan {
        frames: SEGMENT / length,
        sources: 0,
        holes: 0,
    };
    let id = (1, AttachId([2; 16]), 1);
    let mut builder = Builder::new(VOLUME, cipher, compression, id, [0; 16], 0, plan, SEGMENT);
    for at in (0..SEGMENT).step_by(length) {
        builder.frame(at as u64 / BLOCK, &[data.slice(at..at + length)], &[]);
    }
    builder.finish()
}

fn read(cipher: &Cipher, built: &Built) {
    let (header, _) = Header::decode(&built.name, VOLUME, cipher, &built.body).expect("whole");
    for info in &header.frames {
        let boxed = built
            .body
            .slice(info.offset as usize..(info.offset + info.stored) as usize);
        let data = frame::open(cipher, VOLUME, &built.name, info.offset, info.start, &boxed);
        black_box(data.expect("whole"));
    }
}

/// The best of several rounds of one segment each.
#[expect(clippy::disallowed_methods, reason = "no paused clock here")]
fn report(what: &str, mut round: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..24 {
        let start = std::time::Instant::now();
        round();
        best = best.min(start.elapsed());
    }
    println!(
        "{:8.0} MB/s  {what}",
        SEGMENT as f64 / 1e6 / best.as_secs_f64()
    );
}
