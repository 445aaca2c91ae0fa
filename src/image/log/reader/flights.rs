//! Frames on their way: each is fetched once, however many wait for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{FrameError, FrameRef};

/// What became of a frame.
pub(super) type Landed = Result<Bytes, FrameError>;

/// A frame on its way.
#[derive(Debug, Default)]
pub(super) struct Flight {
    landed: OnceLock<Landed>,
    told: Notify,
}

impl Flight {
    /// Waits for the frame. Giving up to wait changes nothing for others.
    pub(super) async fn landed(&self) -> Landed {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            // From here on no landing is missed.
            told.as_mut().enable();
            if let Some(landed) = self.landed.get() {
                return landed.clone();
            }
            told.await;
        }
    }
}

/// All frames on their way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<FrameRef, Arc<Flight>>>,
}

impl Flights {
    /// The frame's flight. True: it is new, and the caller must see to it that it
    /// [lands](Flights::land).
    pub(super) fn join(&self, frame: &FrameRef) -> (Arc<Flight>, bool) {
        match self.lock().entry(*frame) {
            Entry::Occupied(flight) => (Arc::clone(flight.get()), false),
            Entry::Vacant(place) => (Arc::clone(place.insert(Arc::default())), true),
        }
    }

    /// Tells all who wait. Who comes from now on finds no flight: a frame that is to
    /// be cached is cached before.
    pub(super) fn land(&self, frame: &FrameRef, landed: &Landed) {
        // Taken out first: the lock is not held while waiters are woken.
        let flight = self.lock().remove(frame);
        if let Some(flight) = flight {
            // Only whoever started it lands it, and once.
            let _ = flight.landed.set(landed.clone());
            flight.told.notify_waiters();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FrameRef, Arc<Flight>>> {
        // Every change is one call; nothing half done can be seen.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
