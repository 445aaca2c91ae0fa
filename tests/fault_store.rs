//! The simulation's store is as bad as it says, and no worse: what a simulation
//! over it shows is worth as much as this.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use support::fault::{Counts, FaultStore, Faults, LIFETIME, SKEW};
use swiftnbd::store::memory::{MemoryService, MemoryStore};
use swiftnbd::store::{ErrorKind, Metadata, ObjectStore, StoreError};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const ALWAYS: u32 = 1000;

async fn cluster(faults: Faults, seed: u64) -> (MemoryStore, FaultStore) {
    let memory = MemoryService::new().store("box");
    memory.create().await.unwrap();
    let store = FaultStore::new(Arc::new(memory.clone()), faults, seed);
    (memory, store)
}

fn in_memory(memory: &MemoryStore, name: &str) -> Option<Bytes> {
    memory.service().object("box", name)
}

/// What was found, or the kind of failure.
fn found(result: Result<Bytes, StoreError>) -> Result<Bytes, ErrorKind> {
    result.map_err(|error| error.kind)
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_a_store() {
    let (memory, store) = cluster(Faults::default(), 1).await;
    for number in 0..100 {
        let name = format!("o{number}");
        let body = Bytes::from(name.clone());
        assert!(store.put_new(&name, body.clone()).await.unwrap());
        assert!(!store.put_new(&name, Bytes::from("x")).await.unwrap());
        assert_eq!(store.get(&name).await.unwrap(), body);
        assert_eq!(store.get_range(&name, 1, 100).await.unwrap(), body[1..]);
        assert_eq!(store.get_range(&name, 9, 1).await.unwrap(), "");
        assert_eq!(store.list("", "", 100).await.unwrap().len(), 1);
        // The proxies' clocks differ: sooner it might be refused.
        sleep(SKEW).await;
        store.delete(&name).await.unwrap();
        let absent = store.get_range(&name, 0, 1).await.unwrap_err();
        assert_eq!(absent.kind, ErrorKind::NotFound);
    }
    assert_eq!(memory.service().names("box"), [""; 0]);
    let each = Counts {
        get: 1,
        get_range: 3,
        put_new: 2,
        delete: 1,
        list: 1,
        ..Counts::default()
    };
    let counts = store.counts();
    assert_eq!(counts.requests(), 100 * each.requests());
    assert_eq!(counts.get_range, 300);
    store.put("a", Bytes::from("1234567")).await.unwrap();
    let more = store.counts() - counts;
    assert_eq!((more.put, more.bytes_written, more.requests()), (1, 7, 1));
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_schedule() {
    let run = async |seed| {
        let (memory, store) = cluster(Faults::replicas(3), seed).await;
        let began = Instant::now();
        let mut log = Vec::new();
        for number in 0..200 {
            let name = format!("o{}", number / 5);
            let result = match number % 5 {
                0 => store.put_new(&name, Bytes::from("new")).await.map(drop),
                1 => store.put(&name, Bytes::from("put")).await,
                2 => store.get(&name).await.map(drop),
                3 => store.get_range(&name, 1, 1).await.map(drop),
                _ => store.list("", "", 100).await.map(drop),
            };
            log.push((began.elapsed(), result.map_err(|error| error.kind)));
        }
        (log, memory.service().names("box"))
    };
    let first = run(1).await;
    assert_eq!(first, run(1).await);
    assert_ne!(first, run(2).await);
}

#[tokio::test(start_paused = true)]
async fn two_that_create_at_once_can_both_be_told_so_and_one_stays() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let (memory, one) = cluster(Faults::default(), seed).await;
        let two = one.another();
        let (a, b) = (Bytes::from("a"), Bytes::from("b"));
        let made = join(one.put_new("claim", a.clone()), two.put_new("claim", b)).await;
        let stays = in_memory(&memory, "claim").unwrap();
        match made {
            (Ok(true), Ok(false)) => assert_eq!(stays, "a"),
            (Ok(false), Ok(true)) => assert_eq!(stays, "b"),
            // One may also learn that it came too late (202).
            (Ok(true), Err(_)) => assert_eq!(stays, "a"),
            (Err(_), Ok(true)) => assert_eq!(stays, "b"),
            (Ok(true), Ok(true)) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
        outcomes.insert(format!(
            "{:?} {:?} {stays:?}",
            made.0.is_ok(),
            made.1.is_ok()
        ));
        // Whoever comes later is told that it is there.
        assert!(!two.put_new("claim", a).await.unwrap());
    }
    let both: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.starts_with("true true"))
        .collect();
    assert_eq!(both.len(), 2, "either stays: {outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_is_overlooked_by_plain_reads_alone() {
    let lagging = Faults {
        lagging: ALWAYS,
        ..Faults::default()
    };
    let (_memory, store) = cluster(lagging, 1).await;
    let body = Bytes::from("body");
    assert!(store.put_new("a", body.clone()).await.unwrap());
    let (mut plain, mut whole, mut new) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let began = Instant::now();
    while began.elapsed() < 10 * SECOND {
        plain.insert(format!("{:?}", found(store.get_range("a", 0, 9).await)));
        whole.insert(format!("{:?}", found(store.get("a").await)));
        let made = store.put_new("a", Bytes::from("other")).await;
        new.insert(format!("{:?}", made.map_err(|error| error.kind)));
    }
    let there = "Ok(b\"body\")";
    let (absent, busy) = ("Err(NotFound)", "Err(Unavailable)");
    assert_eq!(plain, [absent, busy, there].map(String::from).into());
    assert_eq!(whole, [busy, there].map(String::from).into());
    assert_eq!(new, [busy, "Ok(false)"].map(String::from).into());
    // The replicas agree in the end.
    sleep(120 * SECOND).await;
    for _ in 0..20 {
        assert_eq!(store.get_range("a", 0, 9).await.unwrap(), body);
    }
    // A deleted one comes back in plain reads.
    store.delete("a").await.unwrap();
    let mut ghosts = 0;
    for _ in 0..40 {
        ghosts += usize::from(store.get_range("a", 0, 9).await.is_ok());
        assert!(store.get("a").await.is_err());
    }
    assert!(ghosts > 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_acknowledged_may_come_and_go() {
    let weak = Faults {
        failed_after: ALWAYS,
        weak: ALWAYS,
        ..Faults::default()
    };
    let calm = Faults::default();
    let (_memory, store) = cluster(weak, 2).await;
    let error = store.put("a", Bytes::from("weak")).await.unwrap_err();
    assert_eq!((error.kind, error.lingers), (ErrorKind::Unavailable, SKEW));
    store.set_faults(calm);
    let mut seen = Vec::new();
    for _ in 0..40 {
        seen.push(found(store.get("a").await));
    }
    let there = Ok(Bytes::from("weak"));
    for outcome in [there, Err(ErrorKind::NotFound), Err(ErrorKind::Unavailable)] {
        assert!(seen.contains(&outcome), "{outcome:?} in {seen:?}");
    }
    // Written again, and answered with success, it stays.
    sleep(2 * SKEW).await;
    store.put("a", Bytes::from("firm")).await.unwrap();
    for _ in 0..40 {
        assert_eq!(store.get("a").await.unwrap(), "firm");
        assert!(!store.put_new("a", Bytes::from("x")).await.unwrap());
    }
    // Over a weak one something new can be created.
    let mut made = BTreeSet::new();
    for number in 0..40 {
        let name = format!("b{number}");
        store.set_faults(weak);
        store.put(&name, Bytes::from("weak")).await.unwrap_err();
        store.set_faults(calm);
        sleep(2 * SKEW).await;
        if let Ok(new) = store.put_new(&name, Bytes::from("stop")).await {
            made.insert(new);
            let expected = if new { "stop" } else { "weak" };
            let seen = found(store.get(&name).await);
            let firm = seen == Ok(Bytes::from(expected));
            assert!(firm || !new, "{name}: {seen:?}");
        }
    }
    assert_eq!(made, BTreeSet::from([false, true]));
}

#[tokio::test(start_paused = true)]
async fn a_404_is_no_proof() {
    let faults = Faults {
        false_absence: 500,
        ..Faults::default()
    };
    let (_memory, store) = cluster(faults, 1).await;
    store.put("a", Bytes::from("body")).await.unwrap();
    let mut absent = 0;
    for _ in 0..100 {
        match found(store.get("a").await) {
            Ok(body) => assert_eq!(body, "body"),
            Err(kind) => {
                assert_eq!(kind, ErrorKind::NotFound);
                absent += 1;
            }
        }
        assert!(!store.put_new("a", Bytes::from("x")).await.unwrap());
    }
    assert!((20..80).contains(&absent), "{absent} of 100");
}

#[tokio::test(start_paused = true)]
async fn refusals_leave_nothing_and_lost_answers_leave_something() {
    let one = |set: fn(&mut Faults)| {
        let mut faults = Faults::default();
        set(&mut faults);
        faults
    };
    type Case = (fn(&mut Faults), ErrorKind, Duration, bool);
    let cases: [Case; 7] = [
        (
            |f| f.refused = 1000,
            ErrorKind::Unreachable,
            Duration::ZERO,
            false,
        ),
        (
            |f| f.truncated = 1000,
            ErrorKind::Unavailable,
            Duration::ZERO,
            false,
        ),
        (
            |f| f.corrupt = 1000,
            ErrorKind::Corrupt,
            Duration::ZERO,
            false,
        ),
        (
            |f| f.superseded = 1000,
            ErrorKind::Superseded,
            Duration::ZERO,
            false,
        ),
        (
            |f| f.unavailable = 1000,
            ErrorKind::Unavailable,
            SKEW,
            false,
        ),
        (
            |f| f.failed_after = 1000,
            ErrorKind::Unavailable,
            SKEW,
            true,
        ),
        (|f| f.late = 1000, ErrorKind::Unavailable, SKEW, true),
    ];
    for (number, (set, kind, lingers, applied)) in cases.into_iter().enumerate() {
        for new in [false, true] {
            let (memory, store) = cluster(one(set), 1).await;
            let body = Bytes::from("body");
            let error = match new {
                true => store.put_new("a", body).await.unwrap_err(),
                false => store.put("a", body).await.unwrap_err(),
            };
            assert_eq!((error.kind, error.lingers), (kind, lingers), "{number}");
            sleep(2 * LIFETIME).await;
            assert_eq!(in_memory(&memory, "a").is_some(), applied, "{number}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_process_hears_nothing_and_its_requests_go_on() {
    let slow = Faults {
        slow: ALWAYS,
        ..Faults::default()
    };
    let mut landed = 0;
    for seed in 0..20 {
        let (memory, store) = cluster(slow, seed).await;
        let dying = store.clone();
        let put = tokio::spawn(async move { dying.put("a", Bytes::from("sent")).await });
        sleep(Duration::from_millis(1)).await;
        let next = store.reborn();
        next.set_faults(Faults::default());
        // Another process goes on, on the same cluster.
        next.put("b", Bytes::from("b")).await.unwrap();
        timeout(100 * SECOND, store.crashed()).await.unwrap();
        timeout(2 * LIFETIME, store.put("c", Bytes::from("c")))
            .await
            .expect_err("a dead process gets no answer");
        assert!(!put.is_finished(), "a dead process got an answer");
        assert_eq!(
            in_memory(&memory, "c"),
            None,
            "a dead process sends nothing"
        );
        landed += usize::from(in_memory(&memory, "a").is_some());
        assert_eq!(next.get("b").await.unwrap(), "b");
    }
    assert_eq!(landed, 20);
}

#[tokio::test(start_paused = true)]
async fn it_dies_at_the_request_that_was_said() {
    let mut sent = BTreeSet::new();
    for seed in 0..20 {
        let (memory, store) = cluster(Faults::default(), seed).await;
        store.put("a0", Bytes::from("x")).await.unwrap();
        store.crash_at(3);
        for number in 1..=2 {
            let name = format!("a{number}");
            store.put(&name, Bytes::from("x")).await.unwrap();
        }
        timeout(LIFETIME, store.put("a3", Bytes::from("x")))
            .await
            .expect_err("it is dead");
        timeout(SECOND, store.crashed()).await.unwrap();
        let names = memory.service().names("box");
        assert_eq!(names[..3], ["a0", "a1", "a2"]);
        sent.insert(names.len());
    }
    assert_eq!(sent, BTreeSet::from([3, 4]), "before it is sent, and after");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_cut_off_is_not_alone_in_the_world() {
    let (_memory, store) = cluster(Faults::default(), 1).await;
    let other = store.another();
    store.set_cut(true);
    let error = store.put("a", Bytes::from("a")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    other.put("a", Bytes::from("b")).await.unwrap();
    store.set_cut(false);
    assert_eq!(store.get("a").await.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn listings_and_metadata_are_old_or_incomplete() {
    let stale = Faults {
        stale: 700,
        ..Faults::default()
    };
    let (_memory, store) = cluster(stale, 1).await;
    for number in 0..10 {
        let name = format!("o{number}");
        store.put(&name, Bytes::from("x")).await.unwrap();
        let version = Metadata::from([("version".to_owned(), number.to_string())]);
        store.set_metadata(&version).await.unwrap();
        sleep(60 * SECOND).await;
    }
    store.delete("o0").await.unwrap();
    let (mut lengths, mut ghosts, mut versions) = (BTreeSet::new(), 0, BTreeSet::new());
    for _ in 0..200 {
        let listed = store.list("", "", 100).await.unwrap();
        lengths.insert(listed.len());
        ghosts += usize::from(listed.iter().any(|listed| listed.name == "o0"));
        versions.insert(store.metadata().await.unwrap().remove("version"));
    }
    assert!(lengths.contains(&9), "the truth: {lengths:?}");
    assert!(lengths.contains(&0) && lengths.len() > 4, "{lengths:?}");
    assert!(ghosts > 0, "a deleted name is still shown");
    assert!(versions.contains(&Some("9".to_owned())));
    assert!(versions.contains(&None) && versions.len() > 4);
}

#[tokio::test(start_paused = true)]
async fn a_part_may_be_wrong_by_one_bit() {
    let faults = Faults {
        rotten: 500,
        ..Faults::default()
    };
    let (_memory, store) = cluster(faults, 1).await;
    store.put("a", Bytes::from(vec![0; 100])).await.unwrap();
    let mut wrong = BTreeSet::new();
    for _ in 0..100 {
        let part = store.get_range("a", 10, 20).await.unwrap();
        wrong.insert(part.iter().filter(|byte| **byte != 0).count());
        assert_eq!(store.get("a").await.unwrap(), vec![0; 100]);
    }
    assert_eq!(wrong, BTreeSet::from([0, 1]));
}
