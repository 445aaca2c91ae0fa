//! The repeating store: which failures it repeats, for how long, and that no
//! late write lands on a later one. All by the paused clock.

#[path = "support/store_fake.rs"]
mod store_fake;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store_fake::{FakeStore, LINGER, Step, failure};
use swiftnbd::store::retry::{Permanent, Policy, Retry};
use swiftnbd::store::{ErrorKind, Metadata, ObjectStore, StoreError};
use tokio::time::{Instant, sleep, timeout};

const A: Bytes = Bytes::from_static(b"A");
const B: Bytes = Bytes::from_static(b"B");
const SECOND: Duration = Duration::from_secs(1);

const PERMANENT: [ErrorKind; 4] = [
    ErrorKind::NoContainer,
    ErrorKind::Denied,
    ErrorKind::Quota,
    ErrorKind::Invalid,
];
const PASSING: [ErrorKind; 4] = [
    ErrorKind::Unavailable,
    ErrorKind::Unreachable,
    ErrorKind::Superseded,
    ErrorKind::Corrupt,
];

fn store(policy: Policy, steps: impl IntoIterator<Item = Step>) -> (Arc<FakeStore>, Retry) {
    let fake = Arc::new(FakeStore::new(steps));
    let retry = Retry::new(fake.clone(), policy, fastrand::Rng::with_seed(7));
    (fake, retry)
}

fn live(steps: impl IntoIterator<Item = Step>) -> (Arc<FakeStore>, Retry) {
    store(Policy::live(None), steps)
}

fn within(seconds: u64) -> Policy {
    Policy::live(Some(Duration::from_secs(seconds)))
}

#[tokio::test(start_paused = true)]
async fn a_live_device_waits_for_whatever_can_be_mended() {
    for kind in PERMANENT.into_iter().chain(PASSING) {
        let (fake, retry) = live((0..40).map(|_| Step::Fail(kind)));
        let began = Instant::now();
        retry.put("a", A).await.unwrap();
        assert_eq!(fake.requests(), 41, "{kind:?}");
        assert_eq!(fake.object("a"), Some(A));
        let mean = began.elapsed() / 40;
        assert!(mean > SECOND && mean < 10 * SECOND, "{kind:?}: {mean:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tool_fails_at_once_where_waiting_is_pointless() {
    for kind in PERMANENT {
        let (fake, retry) = store(Policy::attach(), [Step::Fail(kind)]);
        let began = Instant::now();
        assert_eq!(retry.put("a", A).await.unwrap_err().kind, kind);
        assert_eq!((fake.requests(), began.elapsed()), (1, Duration::ZERO));
    }
    for kind in PASSING {
        let (_, retry) = store(Policy::attach(), [Step::Fail(kind), Step::Fail(kind)]);
        retry.put("a", A).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_absent_object_is_an_answer() {
    let (fake, retry) = live([Step::Fail(ErrorKind::Unavailable)]);
    assert_eq!(retry.get("a").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(fake.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_absent_object_is_an_answer_to_a_request_for_a_part_too() {
    let (fake, retry) = live([Step::Fail(ErrorKind::Unavailable)]);
    let error = retry.get_range("a", 0, 1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    retry.put("a", A).await.unwrap();
    fake.then(Step::Fail(ErrorKind::Corrupt));
    assert_eq!(retry.get_range("a", 0, 9).await.unwrap(), A);
    assert_eq!(fake.requests(), 5);
}

#[tokio::test(start_paused = true)]
async fn creating_is_repeated_and_may_find_its_own_object() {
    let (fake, retry) = live([Step::Fail(ErrorKind::Unavailable)]);
    assert!(retry.put_new("a", A).await.unwrap());
    assert!(!retry.put_new("a", B).await.unwrap());
    assert_eq!(fake.object("a"), Some(A));
    // The first attempt's answer is lost, and it lands before the second comes.
    let (fake, retry) = live([Step::LandLate(Duration::ZERO)]);
    assert!(!retry.put_new("a", A).await.unwrap());
    assert_eq!((fake.object("a"), fake.requests()), (Some(A), 2));
    // So it can be stored again for certain, at once.
    let (fake, retry) = live([Step::LandLate(Duration::ZERO)]);
    let began = Instant::now();
    assert!(!retry.put_new("a", A).await.unwrap());
    retry.put("a", A).await.unwrap();
    assert!(began.elapsed() < SECOND, "the same bytes need not wait");
    assert_eq!(fake.requests(), 3);
    retry.put("a", B).await.unwrap();
    assert!(began.elapsed() >= LINGER, "others must");
    // Nor does it land on what was written later.
    let (fake, retry) = live([Step::LandLate(25 * SECOND)]);
    assert!(retry.put_new("a", A).await.unwrap());
    retry.put("a", B).await.unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(fake.object("a"), Some(B));
}

#[tokio::test(start_paused = true)]
async fn what_no_store_takes_never_waits() {
    let (fake, retry) = live([]);
    for error in [
        retry.put("a", Bytes::new()).await.unwrap_err(),
        retry.put("a//b", A).await.unwrap_err(),
        retry.get("").await.unwrap_err(),
        retry.put_new("a", Bytes::new()).await.unwrap_err(),
        retry.get_range("a", 0, 0).await.unwrap_err(),
        retry.get_range("a", u64::MAX, 1).await.unwrap_err(),
        retry.list("", "", 0).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
    assert_eq!(fake.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_body_is_asked_for_three_times_more() {
    let corrupt = || Step::Fail(ErrorKind::Corrupt);
    let (fake, retry) = live((0..4).map(|_| corrupt()));
    fake.then(Step::Fail(ErrorKind::Unavailable));
    let error = timeout(60 * SECOND, retry.get("a")).await.unwrap();
    assert_eq!(error.unwrap_err().kind, ErrorKind::Corrupt);
    assert_eq!(fake.requests(), 4);

    let (fake, retry) = live([]);
    retry.put("a", A).await.unwrap();
    for _ in 0..3 {
        fake.then(corrupt());
        fake.then(Step::Fail(ErrorKind::Unavailable));
    }
    assert_eq!(retry.get("a").await.unwrap(), A);
    assert_eq!(fake.requests(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_limit_bounds_the_whole_call() {
    for seconds in [1, 10, 100] {
        let limit = Duration::from_secs(seconds);
        let endless = (0..1000).map(|_| Step::Fail(ErrorKind::Unreachable));
        let (fake, retry) = store(within(seconds), endless);
        let began = Instant::now();
        let error = retry.get("a").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert!(began.elapsed() <= limit, "{:?}", began.elapsed());
        assert!(began.elapsed() > limit * 8 / 10, "{:?}", began.elapsed());
        assert!(fake.requests() > 3);
        assert!(error.detail.contains("given up"), "{error}");
    }
    // An attempt under way too; and it is not known what becomes of it.
    let (fake, retry) = store(within(10), [Step::Hang]);
    let began = Instant::now();
    let error = retry.put("a", A).await.unwrap_err();
    assert_eq!(began.elapsed(), 10 * SECOND);
    assert_eq!(
        (error.kind, error.lingers),
        (ErrorKind::Unavailable, LINGER)
    );
    // So the next call for that name has no time to wait for it.
    let error = retry.put("a", B).await.unwrap_err();
    assert_eq!(error.lingers, LINGER - 10 * SECOND);
    assert_eq!(fake.requests(), 1);
    retry.put("b", B).await.unwrap();
    retry.put("a", B).await.unwrap_err();
    // One that could be sent only with its last breath is not: were it cut short,
    // the name would have to be left alone once more.
    retry.put("a", B).await.unwrap_err();
    assert_eq!(fake.requests(), 2);
    retry.put("a", B).await.unwrap();
    assert_eq!(fake.object("a"), Some(B));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_was_asked_for_is_made() {
    let busy = |seconds| {
        Step::FailAs(StoreError {
            retry_after: Some(Duration::from_secs(seconds)),
            ..failure(ErrorKind::Unavailable)
        })
    };
    let (_, retry) = live([busy(40)]);
    let began = Instant::now();
    retry.put("a", A).await.unwrap();
    assert_eq!(began.elapsed(), 40 * SECOND);

    let (_, retry) = live([busy(100_000)]);
    let began = Instant::now();
    retry.put("a", A).await.unwrap();
    assert_eq!(began.elapsed(), 60 * SECOND);

    // Longer than there is time for: no use in waiting.
    let (_, retry) = store(within(10), [busy(40)]);
    let began = Instant::now();
    retry.put("a", A).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_late_write_does_not_land_on_a_later_one() {
    // PUT(A) is not answered and lands 25 s later; PUT(A) again is answered.
    let (fake, retry) = live([Step::LandLate(25 * SECOND)]);
    let began = Instant::now();
    retry.put("a", A).await.unwrap();
    assert!(began.elapsed() < SECOND, "the same bytes need not wait");
    retry.put("other", A).await.unwrap();
    assert!(began.elapsed() < SECOND, "other names need not wait");
    retry.put("a", B).await.unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(fake.object("a"), Some(B));
}

#[tokio::test(start_paused = true)]
async fn a_late_write_does_not_bring_back_what_was_deleted() {
    let (fake, retry) = live([Step::LandLate(25 * SECOND)]);
    retry.put("a", A).await.unwrap();
    retry.delete("a").await.unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(fake.object("a"), None);
}

#[tokio::test(start_paused = true)]
async fn a_late_delete_does_not_remove_what_was_put() {
    let (fake, retry) = live([Step::LandLate(25 * SECOND)]);
    retry.delete("a").await.unwrap();
    retry.put("a", B).await.unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(fake.object("a"), Some(B));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_leaves_its_name_in_quarantine() {
    let (fake, retry) = live([Step::HangAndLand(25 * SECOND)]);
    timeout(SECOND, retry.put("a", A)).await.unwrap_err();
    // By another policy it is the same store.
    let other = retry.with_policy(Policy::live(None));
    other.put("a", B).await.unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(fake.object("a"), Some(B));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gives_up_says_what_it_leaves_behind() {
    let (fake, retry) = store(within(2), [Step::LandLate(25 * SECOND), Step::Hang]);
    let error = retry.put("a", A).await.unwrap_err();
    assert_eq!(error.lingers, LINGER);
    retry
        .with_policy(Policy::live(None))
        .put("a", B)
        .await
        .unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(fake.object("a"), Some(B));
}

#[tokio::test(start_paused = true)]
async fn metadata_lingers_too() {
    let lost = StoreError {
        lingers: LINGER,
        ..failure(ErrorKind::Unavailable)
    };
    let (fake, retry) = live([Step::FailAs(lost)]);
    let lock = Metadata::from([("swiftnbd-client".to_owned(), "host@1".to_owned())]);
    let unlock = Metadata::from([("swiftnbd-client".to_owned(), String::new())]);
    retry.set_metadata(&lock).await.unwrap();
    retry.set_metadata(&unlock).await.unwrap();
    let log = fake.log.lock().unwrap();
    assert!(log[2].0 - log[0].0 >= LINGER);
}

#[tokio::test(start_paused = true)]
async fn settle_waits_until_nothing_can_land_any_more() {
    let (_, retry) = live([]);
    let began = Instant::now();
    retry.settle().await;
    assert_eq!(began.elapsed(), Duration::ZERO);

    let (fake, retry) = live([Step::LandLate(25 * SECOND)]);
    retry.put("a", A).await.unwrap();
    let under_way = retry.clone();
    fake.then(Step::Hang);
    let task = tokio::spawn(async move { timeout(SECOND, under_way.put("b", A)).await });
    tokio::task::yield_now().await;
    let began = Instant::now();
    retry.settle().await;
    task.await.unwrap().unwrap_err();
    assert_eq!(
        began.elapsed(),
        SECOND + LINGER,
        "the one that was dropped last"
    );
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_schedule() {
    let run = async |seed| {
        let fake = Arc::new(FakeStore::new(
            (0..20).map(|_| Step::Fail(ErrorKind::Unavailable)),
        ));
        let rng = fastrand::Rng::with_seed(seed);
        let retry = Retry::new(fake.clone(), Policy::live(None), rng);
        let began = Instant::now();
        retry.put("a", A).await.unwrap();
        let log = fake.log.lock().unwrap();
        log.iter()
            .map(|(when, _)| *when - began)
            .collect::<Vec<_>>()
    };
    let first = run(1).await;
    assert_eq!(first, run(1).await);
    assert_ne!(first, run(2).await);
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_its_own() {
    let policy = Policy {
        give_up_after: None,
        permanent: Permanent::Fail,
    };
    let passing = (0..50).map(|_| Step::Fail(ErrorKind::Unavailable));
    let (fake, retry) = store(policy, passing);
    fake.then(Step::Fail(ErrorKind::Denied));
    assert_eq!(retry.put("a", A).await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(fake.requests(), 51);
}

/// After credentials were replaced nobody waits for the rest of a pause, nor does
/// who is in the middle of an attempt with the old ones.
#[tokio::test(start_paused = true)]
async fn a_pause_ends_when_somebody_says_so() {
    let mut long = failure(ErrorKind::Denied);
    long.retry_after = Some(50 * SECOND);
    let (fake, retry) = live([Step::FailAs(long.clone()), Step::FailAs(long)]);
    let began = Instant::now();
    let puts = [("a", retry.clone()), ("b", retry.clone())]
        .map(|(name, retry)| tokio::spawn(async move { retry.put(name, A).await }));
    sleep(SECOND).await;
    assert_eq!(fake.requests(), 2);
    retry.hurry();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    assert_eq!((fake.requests(), began.elapsed()), (4, SECOND));
}
