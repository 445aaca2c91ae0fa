//! Making segments.
//!
//! Knows: in which order a segment's bytes come to be. Does not know: what makes a
//! header right ([`Header`] does).

use std::ops::Range;

use bytes::Bytes;

use super::{FIXED, FRAME, FrameInfo, HEADER_AT, HOLE, Header, Hole, SOURCE, Source};
use crate::image::log::format::frame::{self, Encoder};
use crate::image::log::format::names;
use crate::image::log::format::root::{Compression, hash};
use crate::image::log::format::seal::{Cipher, Kind, Maker, PRELUDE, Prelude, Role};
use crate::image::log::format::{AttachId, BLOCK, Hash, VolumeId};

/// How much will be in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// Frames.
    pub frames: usize,
    /// Sources of all frames together; 0 in a written segment.
    pub sources: usize,
    /// Holes.
    pub holes: usize,
}

impl Plan {
    /// Bytes of the header's payload.
    fn payload(self) -> usize {
        FIXED + self.frames * FRAME + self.sources * SOURCE + self.holes * HOLE
    }

    /// Bytes of the object before its first frame: at most [`MAX_HEADER`].
    pub fn header_length(self, cipher: &Cipher) -> u64 {
        (HEADER_AT + self.payload() + cipher.overhead()) as u64
    }
}

/// A segment, made.
#[derive(Debug)]
pub struct Built {
    /// Its name.
    pub name: String,
    /// The object.
    pub body: Bytes,
    /// What its header says.
    pub header: Header,
    /// The hash of its header's box.
    pub hash: Hash,
}

/// Makes a segment. Each byte of an uncompressed frame is copied once.
pub struct Builder {
    name: String,
    maker: Maker,
    encoder: Encoder,
    plan: Plan,
    header: Header,
    header_box: Range<usize>,
}

impl Builder {
    /// A segment of this epoch, attachment and number, that will have exactly what is
    /// planned; `capacity`: bytes of its frames before they are compressed.
    #[expect(clippy::too_many_arguments, reason = "each is a field of the header")]
    pub fn new(
        volume: VolumeId,
        cipher: &Cipher,
        compression: Compression,
        (epoch, attach, seq): (u32, AttachId, u64),
        previous: Hash,
        durable: u64,
        plan: Plan,
        capacity: usize,
    ) -> Builder {
        let name = names::segment(epoch, attach, seq);
        let prelude = Prelude {
            kind: Kind::Segment,
            sealed: cipher.is_sealed(),
            key: 0,
            volume,
        };
        let room = plan.header_length(cipher) as usize;
        let room = room + capacity + plan.frames * (cipher.overhead() + frame::HEAD);
        let mut maker = Maker::new(&prelude, &name, cipher, room - PRELUDE);
        let header_length = plan.header_length(cipher) as usize - HEADER_AT;
        maker.clear(&(header_length as u32).to_le_bytes());
        let header_box = maker.reserve(plan.payload());
        let header = Header {
            epoch,
            attach,
            seq,
            previous,
            durable,
            journal: 0,
            collected: plan.sources > 0,
            frames: Vec::with_capacity(plan.frames),
            holes: Vec::with_capacity(plan.holes),
        };
        let encoder = Encoder::new(compression);
        Builder {
            name,
            maker,
            encoder,
            plan,
            header,
            header_box,
        }
    }

    /// This segment and those before it have every write of the journal up to there.
    pub fn journal(&mut self, position: u64) {
        self.header.journal = position;
    }

    /// The next frame: pieces that are 1 to [`FRAME_BLOCKS`] whole blocks together.
    pub fn frame(&mut self, start: u64, pieces: &[Bytes], sources: &[Source]) {
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let blocks = bytes as u64 / BLOCK;
        assert_eq!(bytes as u64, blocks * BLOCK, "a frame is of whole blocks");
        let encoder = &mut self.encoder;
        let boxed = self.maker.add(Role::Frame, start, |out| {
            encoder.encode(pieces, blocks, out)
        });
        let (offset, stored) = (boxed.start as u32, boxed.len() as u32);
        let sources = sources.to_vec();
        self.header.frames.push(FrameInfo {
            start,
            blocks,
            offset,
            stored,
            sources,
        });
    }

    /// The next hole.
    pub fn hole(&mut self, start: u64, blocks: u64) {
        self.header.holes.push(Hole { start, blocks });
    }

    /// The segment. What no reader would take is a mistake of the program, and panics
    /// before anything is stored.
    pub fn finish(mut self) -> Built {
        let mut payload = Vec::with_capacity(self.plan.payload());
        self.header.encode(&mut payload);
        assert_eq!(
            payload.len(),
            self.plan.payload(),
            "a segment is as it was planned"
        );
        if let Err(damage) = self.header.check(self.maker.overhead()) {
            panic!("segment {}: {damage}", self.name);
        }
        self.maker
            .fill(self.header_box.clone(), Role::Header, 0, &payload);
        let hash = hash(self.maker.part(self.header_box));
        Built {
            name: self.name,
            body: self.maker.finish(),
            header: self.header,
            hash,
        }
    }
}
