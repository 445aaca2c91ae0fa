//! A volume of format 2 with one object damaged, missing, swapped or foreign: what
//! needs it fails and names it, and nothing wrong is ever read.
//!
//! The volume was attached three times. The second time it was detached in good order
//! or, in another run, the last process died with segments after its last root.

#[path = "support/volume2.rs"]
mod volume2;

use std::collections::BTreeSet;

use bytes::Bytes;
use swiftnbd::image::log::LogError;
use swiftnbd::image::log::format::Damage;
use swiftnbd::image::log::format::names::Name;
use swiftnbd::image::log::format::root::Compression;
use volume2::*;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// A bit flipped, at so much of its length in a hundred.
    Bit(u8),
    /// Its kind became that of a stop.
    Kind,
    Cut,
    Missing,
    /// Another of its kind lies there.
    Swapped,
    /// One of its kind lies there, of another volume.
    Foreign,
    /// It says that a later version wrote it.
    Version,
}

const ALL: [Harm; 10] = [
    Harm::Bit(1),
    Harm::Bit(45),
    Harm::Bit(70),
    Harm::Bit(99),
    Harm::Kind,
    Harm::Cut,
    Harm::Missing,
    Harm::Swapped,
    Harm::Foreign,
    Harm::Version,
];

/// What came of opening, reading and checking a volume.
struct Outcome {
    opened: Result<(), LogError>,
    /// All that was said.
    messages: Vec<String>,
}

impl Outcome {
    async fn of(mut volume: Volume) -> Outcome {
        let mut messages = match volume.check().await {
            Ok(findings) => findings,
            Err(error) => vec![error.to_string()],
        };
        let opened = volume.try_attach().await.map(drop);
        match &opened {
            // It compares what can be read.
            Ok(()) => messages.extend(volume.read().await),
            Err(error) => messages.push(error.to_string()),
        }
        Outcome { opened, messages }
    }

    fn names(&self, object: &str) -> bool {
        self.messages.iter().any(|message| message.contains(object))
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_volume_that_was_detached() {
    for text in [None, Some("secret")] {
        try_all(text, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_volume_whose_writer_died() {
    for text in [None, Some("secret")] {
        try_all(text, false).await;
    }
}

async fn used(text: Option<&str>, detached: bool) -> Volume {
    let mut volume = Volume::create(text, Compression::Lz4, 4096).await;
    use_it(&mut volume).await;
    if detached {
        volume.attach().await;
        volume.write(200 * BLOCK, noise(8, BLOCK)).await;
        volume.detach().await;
    }
    volume
}

async fn try_all(text: Option<&str>, detached: bool) {
    let volume = used(text, detached).await;
    let other = used(text, detached).await;
    let whole = Outcome::of(volume.copy()).await;
    assert!(
        whole.opened.is_ok() && whole.messages.is_empty(),
        "{:?}",
        whole.messages
    );

    let mut needed = BTreeSet::new();
    let mut map_bits = 0;
    for name in volume.names() {
        let kind = name.split('/').next().unwrap_or_default();
        let pin = is_newest(&volume, &name, |n| n == 0);
        if pin && detached {
            assert!(is_missed(&volume, &name).await, "{name}");
        }
        let newest = is_newest(&volume, &name, |_| true);
        // What came last before a crash can vanish without a trace: it is as if the
        // writer had died before it. (Its epoch's pin, while no later root and no
        // release tells of it; the last segment.)
        let last = !detached && (pin || is_last_segment(&volume, &name));
        if !newest && !last && (pin || !is_missed(&volume, &name).await) {
            all_can_be_read(&volume, &other, &name).await;
            continue;
        }
        needed.insert(kind.to_owned());
        for harm in ALL {
            if harm == Harm::Missing && last {
                continue;
            }
            let noticed = is_noticed(&volume, &other, &name, harm).await;
            // Nobody reads a map object's prelude, nor a page that a later one
            // replaced: a root tells where in it to look.
            let within = matches!(harm, Harm::Bit(_) | Harm::Kind | Harm::Version | Harm::Cut);
            if kind == "map" && within {
                map_bits += usize::from(noticed == Some(true));
            } else if !(newest && harm == Harm::Missing) {
                // Without the newest root, the one before it and the segments after
                // that one give the same.
                assert_ne!(noticed, Some(false), "{name} {harm:?}");
            }
        }
    }
    assert!(map_bits > 3, "{map_bits}");
    let mut kinds = BTreeSet::from(["epoch", "map", "root", "seg"].map(str::to_owned));
    kinds.extend(text.map(|_| "key".to_owned()));
    assert!(needed.is_superset(&kinds), "{needed:?}");
}

/// Whether anything says that the object is not there.
async fn is_missed(volume: &Volume, name: &str) -> bool {
    let copy = volume.copy();
    copy.set(name, None);
    Outcome::of(copy).await.names(name)
}

/// Nothing needs the object: whatever happens to it, all can be read, or it is named.
async fn all_can_be_read(volume: &Volume, other: &Volume, name: &str) {
    for harm in ALL {
        let copy = volume.copy();
        if apply(&copy, other, name, harm) {
            let outcome = Outcome::of(copy).await;
            // Without the first claim it is no volume at all.
            let fine = outcome.opened.is_ok() || outcome.names(name) || name.starts_with("epoch/");
            assert!(fine, "{name} {harm:?}: {:?}", outcome.messages);
        }
    }
}

/// Whether an object's harm is noticed and named; nothing if it cannot be harmed so.
async fn is_noticed(volume: &Volume, other: &Volume, name: &str, harm: Harm) -> Option<bool> {
    let copy = volume.copy();
    if !apply(&copy, other, name, harm) {
        return None;
    }
    let outcome = Outcome::of(copy).await;
    let decides = name.starts_with("key/") || is_newest(volume, name, |_| true);
    if decides && harm != Harm::Missing {
        assert!(outcome.opened.is_err(), "{name} {harm:?}");
    }
    if decides && harm == Harm::Version {
        let unknown = matches!(
            &outcome.opened,
            Err(LogError::Damaged { damage: Damage::Unknown(what), .. }) if what == "version 3"
        );
        assert!(unknown, "{name}: {:?}", outcome.opened);
    }
    Some(outcome.names(name))
}

/// Whether it is the newest of the roots with such numbers.
fn is_newest(volume: &Volume, name: &str, such: impl Fn(u32) -> bool) -> bool {
    let names = volume.names().into_iter().rev();
    let mut roots = names.filter(|name| match Name::parse(name) {
        Some(Name::Root(_, n)) => such(n),
        _ => false,
    });
    roots.next().as_deref() == Some(name)
}

fn is_last_segment(volume: &Volume, name: &str) -> bool {
    let number = |name: &str| match Name::parse(name) {
        Some(Name::Segment { seq, .. }) => Some(seq),
        _ => None,
    };
    let last = volume.names().iter().filter_map(|name| number(name)).max();
    number(name).is_some() && number(name) == last
}

/// Harms an object, if it can be harmed so.
fn apply(volume: &Volume, other: &Volume, name: &str, harm: Harm) -> bool {
    let body = volume.object(name);
    let kind = |name: &str| name.split('/').next().map(str::to_owned);
    let of_its_kind = |from: &Volume| {
        let names = from.names().into_iter().rev();
        let alike = names.filter(|other| kind(other) == kind(name));
        let mut bodies = alike.map(|name| from.object(&name));
        bodies.find(|found| *found != body)
    };
    let change = |at: usize, value: u8| {
        let mut body = body.to_vec();
        body[at] = value;
        Some(Bytes::from(body))
    };
    let new = match harm {
        Harm::Bit(percent) => {
            let at = body.len() * usize::from(percent) / 100;
            change(at, body[at] ^ 4)
        }
        Harm::Kind => change(8, 2),
        Harm::Cut => Some(body.slice(..body.len() - 1)),
        Harm::Missing => None,
        Harm::Swapped => of_its_kind(volume),
        Harm::Foreign => of_its_kind(other),
        Harm::Version => change(9, 3),
    };
    let changed = new.as_ref() != Some(&body) && (new.is_some() || harm == Harm::Missing);
    if changed {
        volume.set(name, new);
    }
    changed
}

/// The newest claim says who may write: damaged, or of a later version, it refuses.
#[tokio::test(start_paused = true)]
async fn a_claim_that_cannot_be_read_refuses() {
    let volume = used(None, true).await;
    let newest = volume
        .names()
        .into_iter()
        .rfind(|name| name.starts_with("epoch/"));
    let newest = newest.unwrap();
    for harm in [Harm::Bit(70), Harm::Cut, Harm::Kind, Harm::Version] {
        let mut copy = volume.copy();
        apply(&copy, &volume, &newest, harm);
        let before = copy.names();
        let error = copy.try_attach().await.unwrap_err().to_string();
        assert!(error.contains(&newest), "{harm:?}: {error}");
        assert_eq!(copy.names(), before, "nothing was changed");
    }
}
