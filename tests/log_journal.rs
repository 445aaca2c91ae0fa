//! The journal's bytes: entries come back, whatever is damaged is no entry, and the end of
//! a journal is told from damage in it.

#[path = "support/objects2.rs"]
mod objects2;

use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use objects2::{VOLUME, ciphers};
use proptest::prelude::*;
use swiftnbd::image::log::format::journal::{
    ALIGN, CLEAR, Clear, Content, Edit, HEAD, Head, Owner, encode,
};
use swiftnbd::image::log::format::seal::Cipher;
use swiftnbd::image::log::format::{JournalId, VolumeId};
use swiftnbd::image::log::journal::replay::{Entries, Found, look};
use swiftnbd::image::log::journal::{Disk, Problem, Shelf};

const ID: JournalId = JournalId([7; 16]);
const RING: u64 = 64 << 10;

fn owner(cipher: &Cipher) -> Owner {
    Owner {
        volume: VOLUME,
        id: ID,
        cipher: cipher.clone(),
    }
}

/// A file in memory.
#[derive(Debug, Clone)]
struct Memory(Arc<Mutex<Vec<u8>>>);

#[async_trait]
impl Disk for Memory {
    fn length(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    async fn read(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let file = self.0.lock().unwrap();
        let range = at as usize..at as usize + length;
        let bytes = file.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Bytes::copy_from_slice(bytes))
    }

    async fn write(&self, at: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let all = pieces.concat();
        self.0.lock().unwrap()[at as usize..at as usize + all.len()].copy_from_slice(&all);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Shelf for Memory {
    async fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(Some(Arc::new(self.clone())))
    }

    async fn create(&self, _length: u64, _head: Bytes) -> io::Result<Arc<dyn Disk>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn set_aside(&self) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn remove(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

/// A journal whose entries are written one after the other from a position on: the
/// positions after each.
struct Written {
    disk: Memory,
    owner: Owner,
    head: u64,
    ends: Vec<u64>,
}

impl Written {
    fn new(owner: Owner, first: u64) -> Written {
        let head = Head {
            volume: owner.volume,
            id: owner.id,
            ring: RING,
        };
        let mut file = head.encode().to_vec();
        file.resize((HEAD + RING) as usize, 0);
        Written {
            disk: Memory(Arc::new(Mutex::new(file))),
            owner,
            head: first,
            ends: Vec::new(),
        }
    }

    /// Block `tag`, filled with it.
    fn write(&mut self, tag: u8, synced: u64, epoch: u32) {
        let data = [tag; 4096];
        let id = (self.head, synced, epoch);
        let entry = encode(&self.owner, id, tag.into(), Content::Data(&data));
        assert!((entry.len() as u64).is_multiple_of(ALIGN));
        let mut file = self.disk.0.lock().unwrap();
        for (i, byte) in entry.iter().enumerate() {
            file[(HEAD + (self.head + i as u64) % RING) as usize] = *byte;
        }
        drop(file);
        self.head += entry.len() as u64;
        self.ends.push(self.head);
    }

    fn damage(&self, position: u64) {
        self.disk.0.lock().unwrap()[(HEAD + position % RING) as usize] ^= 1;
    }

    /// The tags from a position on, and the position after the last.
    async fn read(&self, from: u64) -> Result<(Vec<u8>, u64), Problem> {
        let disk = Arc::new(self.disk.clone());
        let mut entries = Entries::new(disk, self.owner.clone(), RING, from);
        let mut tags = Vec::new();
        while let Some(edit) = entries.next().await? {
            match edit {
                Edit::Write { start, data } => {
                    assert!(data.iter().all(|byte| u64::from(*byte) == start));
                    tags.push(data[0]);
                }
                Edit::Zeroes { start, .. } => tags.push(start as u8),
            }
        }
        Ok((tags, entries.position()))
    }
}

#[tokio::test]
async fn entries_are_read_from_any_of_them_on_and_around_the_ring() {
    for cipher in ciphers() {
        for first in [0, RING - 4096, 5 * RING - 64] {
            let mut journal = Written::new(owner(cipher), first);
            for tag in 1..=9 {
                journal.write(tag, first, 3);
            }
            let all = journal.read(first).await.unwrap();
            assert_eq!(all, ((1..=9).collect(), journal.head));
            let rest = journal.read(journal.ends[4]).await.unwrap();
            assert_eq!(rest, ((6..=9).collect(), journal.head));
            assert_eq!(journal.read(journal.head).await, Ok((vec![], journal.head)));
            // Another round of the ring.
            assert_eq!(journal.read(first + RING).await, Ok((vec![], first + RING)));
        }
    }
}

#[tokio::test]
async fn an_end_is_told_from_damage() {
    for cipher in ciphers() {
        for hit in 0..5 {
            let mut journal = Written::new(owner(cipher), 0);
            for tag in 1..=5 {
                // What is before the third was durable when the fourth was made.
                let synced = if tag < 4 { 0 } else { journal.ends[1] };
                journal.write(tag, synced, 3);
            }
            let start = if hit == 0 { 0 } else { journal.ends[hit - 1] };
            for at in [0, CLEAR as u64 - 1, CLEAR as u64 + 100] {
                journal.damage(start + at);
                let read = journal.read(0).await;
                match hit {
                    0 | 1 => assert_eq!(read, Err(Problem::Damaged(start)), "{hit}"),
                    _ => assert_eq!(read, Ok(((1..=hit as u8).collect(), start)), "{hit}"),
                }
                journal.damage(start + at);
            }
        }
    }
}

/// What an earlier attachment left behind a gap is not taken for what follows the entries
/// of a later one.
#[tokio::test]
async fn an_earlier_epoch_does_not_follow_a_later_one() {
    let mut journal = Written::new(owner(&Cipher::Plain), 0);
    for tag in 1..=4 {
        journal.write(tag, 0, 3);
    }
    let head = journal.ends[1];
    journal.damage(journal.ends[0]);
    assert_eq!(journal.read(0).await, Ok((vec![1], journal.ends[0])));
    journal.head = journal.ends[0];
    journal.write(7, journal.ends[0], 4);
    assert_eq!(journal.head, head);
    assert_eq!(journal.read(0).await, Ok((vec![1, 7], head)));
}

#[tokio::test]
async fn a_file_is_told_from_another() {
    let journal = Written::new(owner(&Cipher::Plain), 0);
    let head = |found: Option<Found>| found.unwrap().head;
    let found = look(&journal.disk, VOLUME).await.unwrap();
    assert_eq!(head(found).unwrap().id, ID);
    let found = look(&journal.disk, VolumeId([1; 16])).await.unwrap();
    assert_eq!(head(found), Err(Problem::Foreign));
    journal.disk.0.lock().unwrap().truncate(5000);
    let found = look(&journal.disk, VOLUME).await.unwrap();
    assert_eq!(head(found), Err(Problem::CutOff));
    for length in [0, 10, 50] {
        journal.disk.0.lock().unwrap().truncate(length);
        let found = look(&journal.disk, VOLUME).await.unwrap();
        assert_eq!(head(found), Err(Problem::NoJournal));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn entries_come_back(
        sealed: bool, position: u64, synced: u64, epoch: u32, start in 0u64..1 << 31, blocks in 0usize..20,
    ) {
        let owner = owner(&ciphers()[usize::from(sealed)]);
        let data: Vec<u8> = (0..blocks * 4096).map(|at| at as u8).collect();
        let content = match blocks {
            0 => Content::Zeroes(77),
            _ => Content::Data(&data),
        };
        let entry = encode(&owner, (position, synced, epoch), start, content);
        prop_assert_eq!(entry.len() as u64, content.entry_length(&owner.cipher));
        let clear = Clear::decode(&owner, position, &entry).unwrap();
        prop_assert_eq!((clear.position, clear.synced, clear.epoch), (position, synced, epoch));
        prop_assert_eq!(clear.length(), entry.len() as u64);
        let wanted = match blocks {
            0 => Edit::Zeroes { start, blocks: 77 },
            _ => Edit::Write { start, data: data.into() },
        };
        prop_assert_eq!(clear.open(&owner, &entry), Ok(wanted));
        prop_assert_eq!(Clear::decode(&owner, position ^ 64, &entry), None);
        let other = Owner { id: JournalId([8; 16]), ..owner };
        prop_assert_eq!(Clear::decode(&other, position, &entry), None);
    }

    /// No byte of a file makes it panic, or is taken for more than it is.
    #[test]
    fn noise_is_no_entry(noise in proptest::collection::vec(any::<u8>(), 0..300), position: u64) {
        let noise = Bytes::from(noise);
        for cipher in ciphers() {
            prop_assert_eq!(Clear::decode(&owner(cipher), position, &noise), None);
        }
        prop_assert!(Head::decode(&noise).is_err());
    }
}
