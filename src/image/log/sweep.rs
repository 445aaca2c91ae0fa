//! Deletes what earlier epochs left behind and nothing can reach.
//!
//! Knows: which names of lower epochs nobody will look for. Does not know: objects of
//! its own epoch, which the [applier](super::applier) deletes.
//!
//! A listing only says what may be there: what it leaves out stays until the next
//! attachment. What stays for good is small: claims, pins, and the stops that keep an
//! older writer from going on.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};

use super::applier::Dead;
use super::engine::Engine;
use super::format::names::Name;
use crate::store::StoreError;

/// Names in one listing.
const TOGETHER: usize = 10_000;
/// Before it begins, and between two attempts.
const PAUSE: Duration = Duration::from_secs(5);
/// Stops are smaller than this, in bytes, roots and segments larger.
pub const STOP: u64 = 80;

/// Sweeps once. `key` is the newest root's key.
pub async fn run(engine: Arc<Engine>, key: u32, to_delete: mpsc::UnboundedSender<Dead>) {
    sleep(PAUSE).await;
    let orphans = loop {
        match orphans(&engine, key).await {
            Ok(orphans) => break orphans,
            Err(error) => tracing::warn!(
                "what earlier attachments left cannot be listed, it is tried again: {error}"
            ),
        }
        sleep(PAUSE).await;
    };
    if !orphans.is_empty() {
        tracing::info!(
            "{} objects that earlier attachments left behind are deleted",
            orphans.len()
        );
        let _ = to_delete.send(Dead::Names(orphans));
    }
}

async fn orphans(engine: &Engine, key: u32) -> Result<Vec<String>, StoreError> {
    let mut orphans = Vec::new();
    let maps: BTreeSet<u64> = engine.map.objects().0.into_iter().collect();
    let mut after = String::new();
    loop {
        let listed = engine.store.list(&after, "", TOGETHER).await?;
        let full = listed.len() == TOGETHER;
        after = listed
            .last()
            .map_or(String::new(), |last| last.name.clone());
        for object in listed {
            let Some(name) = Name::parse(&object.name) else {
                continue;
            };
            match name {
                Name::Root(epoch, n) if epoch < engine.epoch && n > 0 && object.size > STOP => {
                    orphans.push(object.name);
                }
                Name::Segment { epoch, seq, .. } if epoch < engine.epoch && object.size > STOP => {
                    let live = engine.map.segment_name(seq).as_deref() == Some(&object.name)
                        && engine.map.space(|space| space.knows(seq));
                    if !live {
                        orphans.push(object.name);
                    }
                }
                Name::Map { epoch, k, .. }
                    if epoch < engine.epoch
                        && (!maps.contains(&k) || engine.map.map_name(k) != object.name) =>
                {
                    orphans.push(object.name);
                }
                Name::Key(n) if n < key => orphans.push(object.name),
                Name::Lease(epoch) if epoch < engine.epoch => orphans.push(object.name),
                _ => {}
            }
        }
        if !full {
            return Ok(orphans);
        }
    }
}
