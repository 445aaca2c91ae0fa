//! A machine's disk with a journal on it, that fails as disks do, by a seed: what was not
//! synced survives the process and not a power cut, after which each sector of it is
//! there or is not.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::image::log::journal::{Disk, Shelf};
use tokio::time::sleep;

use super::fault::FaultStore;

const SECTOR: usize = 512;

/// A machine's disk: it has at most one file, and those that were set aside.
#[derive(Debug)]
pub struct Machine {
    state: Mutex<State>,
    /// One of so many writes or syncs fails, and so do all after it, until the file is
    /// replaced; 0: none.
    failing: u64,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    file: Option<File>,
    kept: Vec<File>,
}

/// A file; its content as a reader sees it.
#[derive(Debug)]
struct File {
    number: u64,
    content: Vec<u8>,
    /// Places that were written since the last sync, and what was there.
    before: Vec<(usize, Vec<u8>)>,
    broken: bool,
}

impl Machine {
    /// A disk of which one of `failing` writes fails; 0: none.
    pub fn new(seed: u64, failing: u64) -> Arc<Machine> {
        let rng = fastrand::Rng::with_seed(seed);
        let state = State {
            rng,
            file: None,
            kept: Vec::new(),
        };
        Arc::new(Machine {
            state: Mutex::new(state),
            failing,
        })
    }

    /// The power is cut and comes back.
    pub fn cut_power(&self) {
        let mut state = self.state.lock().unwrap();
        let State { rng, file, .. } = &mut *state;
        if let Some(file) = file {
            // Sector by sector, the newest first: it goes back as far as it wants.
            for (at, before) in std::mem::take(&mut file.before).into_iter().rev() {
                for (i, sector) in before.chunks(SECTOR).enumerate() {
                    if rng.bool() {
                        let at = at + i * SECTOR;
                        file.content[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }

    /// How many files were set aside.
    pub fn kept(&self) -> usize {
        self.state.lock().unwrap().kept.len()
    }

    /// Where a process of this machine has its journal.
    pub fn shelf(self: &Arc<Machine>, process: &FaultStore) -> Arc<dyn Shelf> {
        Arc::new(SimulatedShelf {
            machine: Arc::clone(self),
            process: process.clone(),
        })
    }

    fn fails(&self, state: &mut State) -> bool {
        self.failing > 0 && state.rng.u64(0..self.failing) == 0
    }
}

#[derive(Debug)]
struct SimulatedShelf {
    machine: Arc<Machine>,
    process: FaultStore,
}

#[derive(Debug)]
struct SimulatedDisk {
    machine: Arc<Machine>,
    process: FaultStore,
    number: u64,
    length: u64,
}

/// Takes its time, and never ends if the process dies meanwhile.
async fn take_time(machine: &Machine, process: &FaultStore, most: u64) {
    let time = machine.state.lock().unwrap().rng.u64(0..most);
    tokio::select! {
        biased;
        () = process.crashed() => std::future::pending().await,
        () = sleep(Duration::from_micros(time)) => {}
    }
}

impl SimulatedShelf {
    fn disk(&self, file: &File) -> Arc<dyn Disk> {
        Arc::new(SimulatedDisk {
            machine: Arc::clone(&self.machine),
            process: self.process.clone(),
            number: file.number,
            length: file.content.len() as u64,
        })
    }
}

#[async_trait]
impl Shelf for SimulatedShelf {
    async fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        take_time(&self.machine, &self.process, 1000).await;
        let state = self.machine.state.lock().unwrap();
        Ok(state.file.as_ref().map(|file| self.disk(file)))
    }

    async fn create(&self, length: u64, head: Bytes) -> io::Result<Arc<dyn Disk>> {
        take_time(&self.machine, &self.process, 20_000).await;
        let mut state = self.machine.state.lock().unwrap();
        if self.machine.fails(&mut state) {
            return Err(io::Error::other("the disk is full"));
        }
        if state.file.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut content = vec![0; length as usize];
        content[..head.len()].copy_from_slice(&head);
        let file = File {
            number: state.rng.u64(..),
            content,
            before: Vec::new(),
            broken: false,
        };
        let disk = self.disk(&file);
        state.file = Some(file);
        Ok(disk)
    }

    async fn set_aside(&self) -> io::Result<String> {
        take_time(&self.machine, &self.process, 1000).await;
        let mut state = self.machine.state.lock().unwrap();
        let file = state.file.take().expect("there is one");
        state.kept.push(file);
        Ok("another name".to_owned())
    }

    async fn remove(&self) -> io::Result<()> {
        take_time(&self.machine, &self.process, 1000).await;
        self.machine.state.lock().unwrap().file = None;
        Ok(())
    }

    fn name(&self) -> String {
        "the simulated disk".to_owned()
    }
}

impl SimulatedDisk {
    fn with<T>(&self, work: impl FnOnce(&mut File, bool) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.machine.state.lock().unwrap();
        let fails = self.machine.fails(&mut state);
        match &mut state.file {
            Some(file) if file.number == self.number => work(file, fails),
            _ => Err(io::Error::other("it was removed")),
        }
    }
}

#[async_trait]
impl Disk for SimulatedDisk {
    fn length(&self) -> u64 {
        self.length
    }

    async fn read(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let at = at as usize;
        let bytes = self.with(|file, _| Ok(file.content[at..at + length].to_vec()));
        bytes.map(Bytes::from)
    }

    async fn write(&self, at: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let mut at = at as usize;
        for piece in pieces {
            // The process may die between any two.
            take_time(&self.machine, &self.process, 2000).await;
            self.with(|file, fails| {
                file.broken |= fails;
                if file.broken {
                    return Err(io::Error::other("the disk is broken"));
                }
                let there = &mut file.content[at..at + piece.len()];
                // By sectors, as the disk has them.
                file.before.push((at, there.to_vec()));
                there.copy_from_slice(&piece);
                Ok(())
            })?;
            at += piece.len();
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        // What is written meanwhile may be synced with it, or not.
        let begun = self.with(|file, _| Ok(file.before.len()))?;
        take_time(&self.machine, &self.process, 30_000).await;
        self.with(|file, fails| {
            file.broken |= fails;
            if file.broken {
                return Err(io::Error::other("the disk is broken"));
            }
            file.before.drain(..begun.min(file.before.len()));
            Ok(())
        })
    }
}
