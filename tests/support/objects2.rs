//! Objects of format 2 as tests make them.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::OnceLock;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use swiftnbd::image::log::format::entry::Entry;
use swiftnbd::image::log::format::keys::{Cost, DataKey, Passphrase};
use swiftnbd::image::log::format::root::{Compression, Geometry, Location, Root};
use swiftnbd::image::log::format::seal::Cipher;
use swiftnbd::image::log::format::segment::{Builder, Built, Plan, Source};
use swiftnbd::image::log::format::tables::{Era, MapRow, PageRow, SegmentRow, Tables};
use swiftnbd::image::log::format::{AttachId, BLOCK, JournalId, PAGE_BLOCKS, VolumeId};

pub const VOLUME: VolumeId = VolumeId(*b"the volume's id.");
pub const ATTACH: AttachId = AttachId(*b"an attachment id");
/// Not safe, but quick.
pub const CHEAP: Cost = Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

pub fn passphrase(text: &str) -> Passphrase {
    Passphrase::from_bytes(text).unwrap()
}

/// A plain one and a sealed one.
pub fn ciphers() -> &'static [Cipher; 2] {
    static CIPHERS: OnceLock<[Cipher; 2]> = OnceLock::new();
    CIPHERS.get_or_init(|| [Cipher::Plain, DataKey::random().cipher(VOLUME)])
}

/// A frame to be built.
#[derive(Debug, Clone)]
pub struct ScriptFrame {
    pub start: u64,
    pub pieces: Vec<Bytes>,
    pub sources: Vec<Source>,
}

impl ScriptFrame {
    pub fn data(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

/// A segment to be built.
#[derive(Debug, Clone)]
pub struct Script {
    pub seq: u64,
    pub frames: Vec<ScriptFrame>,
    pub holes: Vec<(u64, u64)>,
}

impl Script {
    pub fn plan(&self) -> Plan {
        let sources = self.frames.iter().map(|frame| frame.sources.len()).sum();
        Plan {
            frames: self.frames.len(),
            sources,
            holes: self.holes.len(),
        }
    }

    pub fn build(&self, cipher: &Cipher, compression: Compression) -> Built {
        self.build_in(VOLUME, cipher, compression)
    }

    pub fn build_in(&self, volume: VolumeId, cipher: &Cipher, compression: Compression) -> Built {
        let (id, previous, durable) = ((5, ATTACH, self.seq), [7; 16], self.seq - 1);
        let plan = self.plan();
        let mut builder = Builder::new(volume, cipher, compression, id, previous, durable, plan, 0);
        for frame in &self.frames {
            builder.frame(frame.start, &frame.pieces, &frame.sources);
        }
        for &(start, blocks) in &self.holes {
            builder.hole(start, blocks);
        }
        builder.finish()
    }
}

/// Data of so many blocks: 0 zeros, 1 text, 2 noise.
pub fn data(kind: u8, blocks: usize, seed: u64) -> Bytes {
    let length = blocks * BLOCK as usize;
    let mut bytes = match kind {
        1 => b"What is stored for a while. ".repeat(length / 28 + 1),
        _ => vec![0; length],
    };
    bytes.truncate(length);
    if kind == 2 {
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
    }
    bytes.into()
}

/// A segment with some frames and holes.
pub fn sample_segment(cipher: &Cipher, compression: Compression, seq: u64) -> Built {
    let frame = |start, kind| ScriptFrame {
        start,
        pieces: vec![data(kind, 2, start), data(kind, 1, start + 1)],
        sources: Vec::new(),
    };
    let frames = vec![frame(0, 1), frame(8, 2), frame(16, 0), frame(8192, 1)];
    Script {
        seq,
        frames,
        holes: vec![(4, 2), (100, 5000)],
    }
    .build(cipher, compression)
}

/// Any segment that a writer or a collector may make.
pub fn scripts() -> impl Strategy<Value = Script> {
    // For each: a gap, blocks, a hole or what kind of data, a seed.
    let items = vec((0u64..3000, 1u64..=16, 0u8..4, any::<u64>()), 0..12);
    (items, any::<bool>(), 2u64..1 << 48).prop_map(|(items, collected, seq)| {
        let mut script = Script {
            seq,
            frames: Vec::new(),
            holes: Vec::new(),
        };
        let mut at = 0;
        for (gap, blocks, kind, seed) in items {
            let mut start = at + gap;
            if kind == 3 {
                if !collected {
                    script.holes.push((start, blocks * 1000));
                    at = start + blocks * 1000;
                }
                continue;
            }
            if start % PAGE_BLOCKS + blocks > PAGE_BLOCKS {
                start = start.next_multiple_of(PAGE_BLOCKS);
            }
            let first = (seed % blocks) as usize;
            let mut pieces = vec![
                data(kind, first, seed),
                data(kind, blocks as usize - first, !seed),
            ];
            pieces.retain(|piece| !piece.is_empty());
            let part = |piece: &Bytes| {
                let blocks = (piece.len() as u64 / BLOCK) as u8;
                let skip = (seed % u64::from(17 - blocks)) as u8;
                Source {
                    blocks,
                    skip,
                    offset: 36 + (seed >> 33) as u32,
                    seq: 1 + seed % (seq - 1),
                }
            };
            let sources = if collected {
                pieces.iter().map(part).collect()
            } else {
                Vec::new()
            };
            script.frames.push(ScriptFrame {
                start,
                pieces,
                sources,
            });
            at = start + blocks;
        }
        script
    })
}

/// Any page.
pub fn page_entries() -> impl Strategy<Value = Vec<Entry>> {
    let item = (
        0u64..64,
        1u64..=16,
        0u64..16,
        prop_oneof![Just(7u64), 0u64..1 << 48],
        any::<(u32, bool)>(),
        1u32..1 << 24,
    );
    vec(item, 0..300).prop_map(|items| {
        let mut entries: Vec<Entry> = Vec::new();
        let mut at = 0;
        for (gap, blocks, skip, seq, (offset, next), stored) in items {
            let before = entries.last();
            let offset = match before {
                Some(before) if next => before.offset().wrapping_add(before.stored()),
                _ => offset,
            };
            let start = at + gap;
            let skip = skip.min(16 - blocks);
            entries.extend(Entry::new(
                start.min(PAGE_BLOCKS),
                blocks,
                seq,
                offset,
                stored,
                skip,
            ));
            at = entries.last().map_or(0, |entry| entry.end());
        }
        entries
    })
}

fn ids() -> impl Strategy<Value = AttachId> {
    any::<[u8; 16]>().prop_map(AttachId)
}

/// Any tables.
pub fn tables() -> impl Strategy<Value = Tables> {
    let eras = vec((1u32..1000, ids(), 0u64..9, 0u64..9), 1..5);
    let segments = vec(
        (1u64..1000, 0u64..64 << 20, any::<u32>(), any::<u32>()),
        0..50,
    );
    let maps = vec((1u64..1000, 0u64..64 << 20), 0..20);
    let pages = vec(
        (1u64..5000, 1u64..1 << 40, 32u32..32 << 20, 1u32..32 << 20),
        0..80,
    );
    (eras, segments, maps, pages).prop_map(|(eras, segments, maps, pages)| {
        let mut tables = Tables::default();
        let (mut epoch, mut seq, mut k) = (0, 1, 1);
        for (step, attach, more_seq, more_k) in eras {
            epoch += step;
            tables.eras.push(Era {
                epoch,
                attach,
                first_seq: seq,
                first_k: k,
            });
            seq += more_seq;
            k += more_k;
        }
        let mut seq = 0;
        for (step, stored, a, b) in segments {
            seq += step;
            tables.segments.push(SegmentRow {
                seq,
                stored,
                blocks: a.max(b),
                live: a.min(b),
            });
        }
        let mut k = 0;
        for (step, stored) in maps {
            k += step;
            tables.maps.push(MapRow { k, stored });
        }
        let mut next = 0;
        for (step, k, offset, length) in pages {
            let page = next + step - 1;
            next = page + 1;
            tables.pages.push(PageRow {
                page,
                location: Location { k, offset, length },
            });
        }
        tables
    })
}

/// Any root.
pub fn roots() -> impl Strategy<Value = Root> {
    let geometry =
        (1u64..1 << 32, any::<bool>(), any::<bool>()).prop_map(|(blocks, large, lz4)| Geometry {
            size: blocks * if large { 4096 } else { 512 },
            block_size: if large { 4096 } else { 512 },
            compression: if lz4 {
                Compression::Lz4
            } else {
                Compression::None
            },
        });
    let numbers = (1..u32::MAX, any::<u32>(), 0u64..1 << 48, 2u64..=1 << 48);
    let previous = proptest::option::of((any::<u32>(), any::<[u8; 16]>()));
    let tables = (any::<u64>(), 32u32..32 << 20, 1u32..32 << 20);
    (
        geometry,
        ids(),
        numbers,
        previous,
        any::<[u8; 16]>(),
        tables,
    )
        .prop_map(
            |(geometry, attach, (epoch, n, seq, next_k), previous, header, (k, offset, length))| {
                Root {
                    epoch,
                    attach,
                    n,
                    geometry,
                    seq,
                    header: if seq == 0 { [0; 16] } else { header },
                    next_k,
                    previous: previous.map(|(n, hash)| (epoch - 1, n, hash)),
                    tables: Location {
                        k: 1 + k % (next_k - 1),
                        offset,
                        length,
                    },
                    key: 0,
                    journal: (epoch % 2 == 0).then_some((JournalId(attach.0), next_k)),
                }
            },
        )
}
