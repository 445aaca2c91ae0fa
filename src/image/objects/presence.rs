//! Which objects exist, as far as listings, reads and our own uploads show it.
//!
//! | found out by                                  | object             | it is   |
//! |-----------------------------------------------|--------------------|---------|
//! | our own PUT or DELETE, or a read of it        | present or absent  | known   |
//! | a listing that shows it                       | probably present   | a hint  |
//! | a listing that does not show it               | perhaps absent     | a hint  |
//!
//! A listing may lack an object that is there. A discard may take the hint: one
//! whose objects no listing showed costs no request, and then does nothing, which
//! a discard may. [`holes`](super::holes) tells hints from what is known. What a
//! listing says never replaces what is known. Zeroing and reading never ask here.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::dirty::ByIndex;
use super::layout::{Layout, PREFIX};
use crate::store::{ObjectStore, StoreError};

/// Objects in one window; one page of a listing holds them all.
const WINDOW: u64 = 8192;
/// Windows remembered, 2 KiB each; beyond that, others are looked at again.
const MAX_WINDOWS: usize = 4096;
/// Pages that are read for one window: strangers' names may stand between ours.
const MAX_PAGES: usize = 8;
/// Names a page, below every Swift's limit.
const PAGE: usize = 10_000;

/// The objects that may exist.
#[derive(Debug)]
pub struct Presence {
    layout: Layout,
    windows: Mutex<ByIndex<Window>>,
}

/// What is known of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is there, or was listed.
    Present,
    /// It is certainly not there: a read or our own deletion has shown it.
    Absent,
    /// It was not listed.
    Unlisted,
    /// Nothing is known before the window around it is listed.
    Nothing,
}

type Bits = Box<[u64; (WINDOW / 64) as usize]>;

#[derive(Debug)]
struct Window {
    listed: bool,
    present: Bits,
    /// Those whose bit in `present` is more than a hint.
    known: Bits,
}

impl Window {
    fn new() -> Window {
        let none = || Box::new([0; (WINDOW / 64) as usize]);
        Window {
            listed: false,
            present: none(),
            known: none(),
        }
    }

    /// It is known whether the object is there.
    fn set(&mut self, index: u64, present: bool) {
        set(&mut self.known, index, true);
        set(&mut self.present, index, present);
    }

    /// A listing shows these objects.
    fn list(&mut self, listed: &[u64]) {
        self.listed = true;
        for index in listed.iter().copied() {
            if !get(&self.known, index) {
                set(&mut self.present, index, true);
            }
        }
    }

    fn get(&self, index: u64) -> Known {
        let (present, known) = (get(&self.present, index), get(&self.known, index));
        match (present, known) {
            (true, _) => Known::Present,
            (false, true) => Known::Absent,
            (false, false) if self.listed => Known::Unlisted,
            (false, false) => Known::Nothing,
        }
    }
}

fn set(bits: &mut Bits, index: u64, value: bool) {
    let (word, bit) = ((index % WINDOW / 64) as usize, 1 << (index % 64));
    if value {
        bits[word] |= bit
    } else {
        bits[word] &= !bit
    }
}

fn get(bits: &Bits, index: u64) -> bool {
    bits[(index % WINDOW / 64) as usize] & (1 << (index % 64)) != 0
}

impl Presence {
    /// Nothing is known.
    pub fn new(layout: Layout) -> Presence {
        Presence {
            layout,
            windows: Mutex::default(),
        }
    }

    /// We stored, deleted or read this object.
    pub fn set(&self, index: u64, present: bool) {
        let mut windows = self.windows();
        make_room(&mut windows, index / WINDOW);
        windows
            .entry(index / WINDOW)
            .or_insert_with(Window::new)
            .set(index, present);
    }

    /// What is known of the object already.
    pub fn get(&self, index: u64) -> Known {
        self.windows()
            .get(&(index / WINDOW))
            .map_or(Known::Nothing, |window| window.get(index))
    }

    /// Whether the object may exist. Lists the window around it the first time.
    pub async fn may_exist(&self, store: &dyn ObjectStore, index: u64) -> Result<bool, StoreError> {
        Ok(self.look_up(store, index).await? == Known::Present)
    }

    /// As [`Presence::get`], and lists the window around the object if nothing is
    /// known of it.
    pub async fn look_up(&self, store: &dyn ObjectStore, index: u64) -> Result<Known, StoreError> {
        match self.get(index) {
            Known::Nothing => {}
            known => return Ok(known),
        }
        let number = index / WINDOW;
        let names = self.list(store, number).await?;
        let mut windows = self.windows();
        make_room(&mut windows, number);
        let window = windows.entry(number).or_insert_with(Window::new);
        window.list(&names);
        Ok(window.get(index))
    }

    async fn list(&self, store: &dyn ObjectStore, window: u64) -> Result<Vec<u64>, StoreError> {
        let first = window * WINDOW;
        let mut after = match first.checked_sub(1) {
            Some(before) => self.layout.name(before),
            None => PREFIX.to_owned(),
        };
        // One past the last: eight digits sort like numbers, and ':' after '9'.
        let before = match first + WINDOW {
            end if end < self.layout.objects => self.layout.name(end),
            _ => format!("{PREFIX}:"),
        };
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = store.list(&after, &before, PAGE).await?;
            found.extend(
                page.iter()
                    .filter_map(|entry| self.layout.index(&entry.name)),
            );
            match page.last() {
                Some(last) if page.len() == PAGE => after.clone_from(&last.name),
                _ => break,
            }
        }
        found.retain(|index| index / WINDOW == window);
        Ok(found)
    }

    fn windows(&self) -> MutexGuard<'_, ByIndex<Window>> {
        // A bit set is whole at every moment: a panic elsewhere leaves it usable.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets some window if there are too many and `number` is a new one.
fn make_room(windows: &mut ByIndex<Window>, number: u64) {
    if windows.len() >= MAX_WINDOWS && !windows.contains_key(&number) {
        let victim = windows.keys().copied().min();
        victim.map(|victim| windows.remove(&victim));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_never_replaces_what_is_known() {
        let mut window = Window::new();
        assert_eq!(window.get(1), Known::Nothing);
        window.set(1, false);
        window.set(2, true);
        window.list(&[1, 3]);
        let found = [1, 2, 3, 4].map(|index| window.get(index));
        assert_eq!(
            found,
            [
                Known::Absent,
                Known::Present,
                Known::Present,
                Known::Unlisted
            ]
        );
        window.set(4, false);
        window.set(3, false);
        window.set(1, true);
        let found = [1, 3, 4].map(|index| window.get(index));
        assert_eq!(found, [Known::Present, Known::Absent, Known::Absent]);
    }
}
