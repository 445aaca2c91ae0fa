//! The lease of format 1, by seeds, in virtual time: a holder at work is cut off or stands
//! still, another takes the volume over and writes, the first one goes on. Nothing that it
//! sends changes what the second one wrote, its flushes fail, and what it was told to be
//! durable before is what the second one finds.
//!
//! `SWIFTNBD_SEED=17 cargo test --test objects_lease` replays one seed.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use support::fault::{FaultStore, Faults, LIFETIME};
use swiftnbd::image::log::format::AttachId;
use swiftnbd::image::log::lease::{Clock, Terms};
use swiftnbd::image::log::{LogError, Who};
use swiftnbd::image::objects::layout::Layout;
use swiftnbd::image::objects::lease::{Before, HALF_SENT, Leased, wait_out};
use swiftnbd::image::objects::{Limits, Objects};
use swiftnbd::image::{Image, ImageError};
use swiftnbd::store::ObjectStore;
use swiftnbd::store::memory::MemoryService;
use swiftnbd::store::retry::{Policy, Retry};
use tokio::time::{Instant, sleep, timeout};

const SEEDS: u64 = 400;
const LAYOUT: Layout = Layout {
    objects: 4,
    object_size: 4096,
};

#[test]
fn a_holder_who_lost_the_volume_changes_nothing() {
    let seed = std::env::var("SWIFTNBD_SEED").ok();
    let seeds = match seed.map(|seed| seed.parse().expect("a number")) {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    };
    let failed: Vec<u64> = seeds
        .filter(|seed| {
            let failed = catch_unwind(AssertUnwindSafe(|| run(*seed))).is_err();
            if failed {
                eprintln!("SEED {seed} FAILED");
            }
            failed
        })
        .collect();
    assert!(failed.is_empty(), "seeds failed: {failed:?}");
}

fn volume(level: u32) -> FaultStore {
    let memory = MemoryService::new().store("volume");
    FaultStore::new(Arc::new(memory), Faults::level(level), 1)
}

/// A holder who was stopped may have begun a write, and have the rest of it in the buffers
/// of a connection: Swift waits for that longer than a short lease and a request's life.
/// One that is dead for certain has ended its connections.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_half_sent_is_waited_for() {
    let store = volume(0);
    store.create().await.unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let short = |who: Who| Who {
        terms: Terms::new(3),
        ..who
    };
    let first = short(who(&mut rng, "first:1@1"));
    let process = store.another();
    let stopped = attach(&process, &first, rng.fork()).await.unwrap();
    process.crash();
    drop(stopped);

    let began = Instant::now();
    let dead = Who {
        dead: vec![first.attach],
        ..short(who(&mut rng, "first:2@2"))
    };
    let process = store.another();
    let again = attach(&process, &dead, rng.fork()).await.unwrap();
    assert!(began.elapsed() < HALF_SENT - Duration::from_secs(1));
    process.crash();
    drop(again);

    let began = Instant::now();
    let other = short(who(&mut rng, "second:3@3"));
    let _second = attach(&store.another(), &other, rng.fork()).await.unwrap();
    assert!(began.elapsed() >= HALF_SENT, "{:?}", began.elapsed());
}

/// What whoever comes next sees of a holder at each end.
#[tokio::test(start_paused = true)]
async fn a_lock_without_a_claim_is_told_apart() {
    let store = volume(0);
    store.create().await.unwrap();
    let mut rng = fastrand::Rng::with_seed(2);
    let mine = who(&mut rng, "first:1@1");
    let first = attach(&store, &mine, rng.fork()).await.unwrap();
    let held = Before::find(&store).await.unwrap();
    assert!(held.is_of("first:1@1") && held.is_unclean());
    assert!(held.released_by("first:1@1").is_none());

    first.close().await.unwrap();
    let released = Before::find(&store).await.unwrap();
    assert!(released.released_by("first:1@1").is_some());
    assert!(released.released_by("python:1@1").is_none());
    assert!(!released.is_of("first:1@1") && !released.is_unclean());
    assert!(released.of_another_than("first:1@1").is_none());

    // Somebody who died before he could show himself.
    let other = who(&mut rng, "second:2@2");
    let second = attach(&store, &other, rng.fork()).await.unwrap();
    drop(second);
    let taken = Before::find(&store).await.unwrap();
    assert!(taken.released_by("first:1@1").is_some());
    assert_eq!(
        taken.of_another_than("first:1@1").map(|claim| claim.attach),
        Some(other.attach)
    );
}

fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let seeded = async { timeout(Duration::from_secs(24 * 3600), takeover(seed)).await };
    runtime.unwrap().block_on(seeded).expect("it hangs");
}

/// A machine's clock, which runs a little wrong.
#[derive(Debug)]
struct Wrong {
    started: Instant,
    rate: f64,
}

impl Clock for Wrong {
    fn now(&self) -> Duration {
        Duration::from_secs(1000) + self.started.elapsed().mul_f64(self.rate)
    }
}

fn who(rng: &mut fastrand::Rng, host: &str) -> Who {
    Who {
        attach: AttachId(std::array::from_fn(|_| rng.u8(..))),
        terms: Terms::new(rng.u32(3..60)),
        clock: Arc::new(Wrong {
            started: Instant::now(),
            rate: 0.97 + 0.06 * rng.f64(),
        }),
        ..Who::new(host, 0)
    }
}

/// As attaching does it.
async fn attach(
    process: &FaultStore,
    who: &Who,
    mut rng: fastrand::Rng,
) -> Result<Leased, LogError> {
    let once: Arc<dyn ObjectStore> = Arc::new(process.clone());
    let retry = Retry::new(Arc::clone(&once), Policy::attach(), rng.fork());
    let store: Arc<dyn ObjectStore> = Arc::new(retry.clone());
    let before = Before::find(&*store).await?;
    let unclean = before.is_unclean();
    let lease = Arc::new(before.claim(Arc::clone(&store), who).await?);
    let mut kept = lease.keeper();
    tokio::select! {
        biased;
        alone = wait_out(&lease, who, unclean, store.linger(), |_| {}) => alone?,
        lost = kept.lost() => return Err(lost),
    }
    let limits = Limits {
        cache: 4 * 4096,
        dirty: Limits::least_dirty(&LAYOUT),
    };
    Ok(Leased::start(lease, kept, once, |gate| {
        let live = retry.with_inner(Arc::new(gate));
        let live: Arc<dyn ObjectStore> = Arc::new(live.with_policy(Policy::live(None)));
        Objects::start(live, LAYOUT, limits)
    }))
}

async fn attach_at_last(
    store: &FaultStore,
    host: &str,
    rng: &mut fastrand::Rng,
) -> (Leased, FaultStore) {
    for _ in 0..50 {
        let process = store.another();
        let who = who(rng, host);
        match attach(&process, &who, rng.fork()).await {
            Ok(leased) => return (leased, process),
            Err(_) => process.crash(),
        }
        sleep(Duration::from_secs(rng.u64(1..20))).await;
    }
    panic!("{host} cannot attach");
}

/// An object that is nowhere zero.
fn body(tag: u8) -> Bytes {
    vec![tag; 4096].into()
}

async fn takeover(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let memory = MemoryService::new().store("volume");
    memory.create().await.unwrap();
    let truth: Arc<dyn ObjectStore> = Arc::new(memory);
    let mut faults = Faults::level(rng.u32(0..3));
    // What a lease assumes, and what format 1 does not survive anyway.
    faults.corrupt = 0;
    let store = FaultStore::new(Arc::clone(&truth), faults, rng.u64(..));

    let (first, process) = attach_at_last(&store, "first:1@1", &mut rng).await;
    let first = Arc::new(first);
    // The tags that each object may hold: what was flushed last, and what came since.
    let possible = Arc::new(Mutex::new(vec![vec![0_u8]; 4]));
    let (taken, flushed_late) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let flushed_late = Arc::new(flushed_late);
    let worker = {
        let (first, possible, mut rng) = (Arc::clone(&first), Arc::clone(&possible), rng.fork());
        let (taken, late) = (Arc::clone(&taken), Arc::clone(&flushed_late));
        tokio::spawn(async move {
            for tag in (1..=100_u8).cycle() {
                let at = rng.usize(0..4);
                possible.lock().unwrap()[at].push(tag);
                if first.write(at as u64 * 4096, body(tag)).await.is_err() {
                    return;
                }
                if rng.u8(0..3) == 0 {
                    let sure: Vec<usize> = possible.lock().unwrap().iter().map(Vec::len).collect();
                    let begun_late = taken.load(Ordering::SeqCst);
                    match first.flush().await {
                        Ok(()) => {
                            late.fetch_or(begun_late, Ordering::SeqCst);
                            let mut all = possible.lock().unwrap();
                            for (one, sure) in all.iter_mut().zip(sure) {
                                one.drain(..sure - 1);
                            }
                        }
                        Err(ImageError::Superseded(_)) => return,
                        Err(error) => panic!("a flush waits for ever: {error}"),
                    }
                }
                sleep(Duration::from_millis(rng.u64(0..3000))).await;
            }
        })
    };
    sleep(Duration::from_millis(rng.u64(1..60_000))).await;
    let cut = rng.bool();
    if cut {
        process.set_cut(true);
    }
    sleep(Duration::from_millis(rng.u64(1..30_000))).await;

    let (second, other) = attach_at_last(&store, "second:2@2", &mut rng).await;
    taken.store(true, Ordering::SeqCst);
    // Until the last moment, what the first one was told to be durable is there.
    let mut expected = Vec::new();
    for at in 0..4_u64 {
        let found = second.read(at * 4096, 4096).await.unwrap().concat();
        assert!(found.iter().all(|byte| *byte == found[0]), "a mixture");
        let possible = possible.lock().unwrap()[at as usize].clone();
        assert!(
            possible.contains(&found[0]),
            "object {at} holds {}, not one of {possible:?}",
            found[0]
        );
        expected.push(found[0]);
    }
    for at in [1, 2] {
        second.write(at * 4096, body(200)).await.unwrap();
        expected[at as usize] = 200;
    }
    second.flush().await.unwrap();
    process.set_cut(false);
    sleep(Duration::from_millis(rng.u64(1..120_000))).await;
    // It has noticed by now, or does so with its next request.
    timeout(Duration::from_secs(3600), worker)
        .await
        .expect("the first one goes on as if nothing were")
        .unwrap();
    assert!(!flushed_late.load(Ordering::SeqCst), "a flush was answered");
    sleep(2 * LIFETIME).await;
    for (at, tag) in expected.iter().enumerate() {
        let found = second.read(at as u64 * 4096, 4096).await.unwrap().concat();
        assert!(found.iter().all(|byte| byte == tag), "object {at} changed");
        let stored = truth.get(&LAYOUT.name(at as u64)).await;
        match stored {
            Ok(stored) => assert!(stored.iter().all(|byte| byte == tag), "object {at} changed"),
            Err(_) => assert_eq!(*tag, 0),
        }
    }
    other.crash();
}
