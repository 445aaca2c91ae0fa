//! A lease over a store that loses answers: it goes on being renewed.

#[path = "support/store_fake.rs"]
mod store_fake;

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use store_fake::{FakeStore, LINGER, Step};
use swiftnbd::image::log::format::claim::Claim;
use swiftnbd::image::log::format::{AttachId, VolumeId};
use swiftnbd::image::log::lease::{self, Clock, Lease, Terms};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::retry::{Policy, Retry};
use tokio::time::{Instant, sleep};

const SECONDS: u32 = 6;

#[derive(Debug)]
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The renewal that comes after one whose answer was lost says the same, and so need not
/// wait until the lost one can take effect no more: flushes would wait with it.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_hold_up_the_next_renewals() {
    let fake = Arc::new(FakeStore::new([]));
    let store = Retry::new(fake.clone(), Policy::attach(), Rng::with_seed(1));
    let lease = Arc::new(Lease::new(
        Arc::new(store),
        VolumeId([1; 16]),
        (1, AttachId([2; 16])),
        Terms::new(SECONDS),
        Arc::new(Paused(Instant::now())),
    ));
    let _keeper = lease.keeper();
    sleep(Duration::from_secs(SECONDS.into())).await;
    for lost in [Step::LandLate, Step::HangAndLand, Step::LandLate] {
        fake.then(lost(LINGER / 2));
        for _ in 0..4 * LINGER.as_secs() {
            sleep(Duration::from_millis(250)).await;
            assert!(lease.lasts(None), "{:?} left", lease.left());
        }
    }
    let said = fake.object("lease/00000001").unwrap();
    sleep(2 * LINGER).await;
    let then = fake.object("lease/00000001").unwrap();
    assert_ne!(then, said, "it counts again");
}

/// Whoever ends waits for what was written, not for renewals, of which there may be one at
/// any time.
#[tokio::test(start_paused = true)]
async fn the_end_does_not_wait_for_a_renewal() {
    let fake = Arc::new(FakeStore::new([]));
    let store = Retry::new(fake.clone(), Policy::attach(), Rng::with_seed(1));
    let lease = Arc::new(Lease::new(
        Arc::new(store.clone()),
        VolumeId([1; 16]),
        (1, AttachId([2; 16])),
        Terms::new(SECONDS),
        Arc::new(Paused(Instant::now())),
    ));
    for _ in 0..3 {
        fake.then(Step::HangAndLand(LINGER / 2));
    }
    let keeper = lease.keeper();
    sleep(Duration::from_secs(SECONDS.into()) / 2).await;
    let began = Instant::now();
    store.settle().await;
    drop(keeper);
    tokio::task::yield_now().await;
    store.settle().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    let name = "lease/00000001";
    assert!(!store.unsettled(name).is_zero(), "they may still land");
}

/// Whoever watches it from a host of the same name does not see it counting, and sees that
/// it is alive.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_says_the_same_is_seen() {
    let fake = Arc::new(FakeStore::new([]));
    let attach = AttachId([2; 16]);
    let claim = Claim {
        epoch: 1,
        attach,
        host: "host".to_owned(),
        unix_seconds: 0,
        flags: 0,
        lease: Some(SECONDS),
    };
    let name = "epoch/00000001";
    let body = claim.encode(VolumeId([1; 16]), name);
    fake.put(name, body).await.unwrap();
    let store = Retry::new(fake.clone(), Policy::attach(), Rng::with_seed(1));
    let lease = Arc::new(Lease::new(
        Arc::new(store.clone()),
        VolumeId([1; 16]),
        (1, attach),
        Terms::new(SECONDS),
        Arc::new(Paused(Instant::now())),
    ));
    let keeper = lease.keeper();
    sleep(Duration::from_secs(SECONDS.into())).await;
    fake.then(Step::LandLate(LINGER / 2));
    sleep(Duration::from_secs(SECONDS.into())).await;
    let said = fake.object("lease/00000001");
    let seen = lease::standing(&store).await.unwrap();
    assert!(lease::is_renewed(&store, &seen).await.unwrap());
    assert_eq!(fake.object("lease/00000001"), said);
    drop(keeper);
    let seen = lease::standing(&store).await.unwrap();
    assert!(!lease::is_renewed(&store, &seen).await.unwrap());
}
