//! Which objects may exist, as listings and our own uploads show it.
//!
//! A hint, for discards alone: a discarded range whose objects no listing showed
//! and we did not write costs no request. A listing may lack an object that is
//! there; then the discard does nothing, which a discard may. Zeroing and reading
//! never ask here.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::dirty::ByIndex;
use super::layout::{Layout, PREFIX};
use crate::store::{ObjectStore, StoreError};

/// Objects in one window; one page of a listing holds them all.
const WINDOW: u64 = 8192;
/// Windows remembered, 1 KiB each; beyond that, others are listed again.
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

#[derive(Debug)]
struct Window {
    listed: bool,
    bits: Box<[u64; (WINDOW / 64) as usize]>,
}

impl Window {
    fn new() -> Window {
        Window {
            listed: false,
            bits: Box::new([0; (WINDOW / 64) as usize]),
        }
    }

    fn set(&mut self, index: u64, present: bool) {
        let (word, bit) = ((index % WINDOW / 64) as usize, 1 << (index % 64));
        if present {
            self.bits[word] |= bit
        } else {
            self.bits[word] &= !bit
        }
    }

    fn get(&self, index: u64) -> bool {
        self.bits[(index % WINDOW / 64) as usize] & (1 << (index % 64)) != 0
    }
}

impl Presence {
    /// Nothing is known.
    pub fn new(layout: Layout) -> Presence {
        Presence {
            layout,
            windows: Mutex::default(),
        }
    }

    /// We stored or deleted this object.
    pub fn set(&self, index: u64, present: bool) {
        let mut windows = self.windows();
        make_room(&mut windows, index / WINDOW);
        windows
            .entry(index / WINDOW)
            .or_insert_with(Window::new)
            .set(index, present);
    }

    /// Whether the object may exist. Lists the window around it the first time.
    pub async fn may_exist(&self, store: &dyn ObjectStore, index: u64) -> Result<bool, StoreError> {
        let number = index / WINDOW;
        if let Some(window) = self.windows().get(&number).filter(|window| window.listed) {
            return Ok(window.get(index));
        }
        let names = self.list(store, number).await?;
        let mut windows = self.windows();
        make_room(&mut windows, number);
        let window = windows.entry(number).or_insert_with(Window::new);
        window.listed = true;
        names.iter().for_each(|index| window.set(*index, true));
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
