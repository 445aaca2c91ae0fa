//! `delete`: a volume's objects, and then its container.
//!
//! The container is marked before the first object goes, so that nobody uses what
//! is left, and it says that it is a volume until the last is gone. Whoever is
//! interrupted runs it again. Only objects of a volume are deleted; a container
//! that holds others stays, with them, and is no volume any more.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::daemon;
use super::explain;
use super::registry::{VolumeLock, since_epoch};
use super::signals::Signals;
use super::transfer::progress::Progress;
use super::transfer::{Pace, in_parallel, interrupted};
use super::{container, standing, volumes};
use crate::cli;
use crate::config::{Config, Volume, format_size};
use crate::error::{Error, Result};
use crate::image::log::format::names::Name;
use crate::image::meta::{self, Format, Holder, MetaError, doom};
use crate::image::objects::layout;
use crate::store::{ErrorKind, ObjectStore};

/// Names in one listing, below every Swift's limit.
const PAGE: usize = 10_000;
/// Names in one deletion: some seconds of work, so that progress is seen.
const TOGETHER: usize = 1000;
/// Deletions at a time; each is much work on Swift's side.
const DELETIONS: usize = 2;
/// How often the container is looked through: a listing may be behind.
const ROUNDS: u32 = 3;
const BETWEEN_ROUNDS: Duration = Duration::from_secs(2);

/// Carries it out.
pub fn run(config: &Config, args: &cli::Delete) -> Result<()> {
    let volume = config.volume(&args.name)?;
    if !args.yes && !std::io::stdin().is_terminal() {
        let text = format!(
            "volume {}: not deleted: there is nobody to ask",
            volume.name
        );
        return Err(Error::usage(text).hint("--yes deletes it without asking"));
    }
    let machine = volumes::keep_from_this_machine(&volume)?;
    let store = container(&volume)?.diligent;
    let runtime = daemon::runtime()?;
    let what = runtime.block_on(describe(&*store, &volume, machine.as_ref()))?;
    if !args.yes {
        ask(&volume, &what)?;
    }
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let deleter = Holder::deleter(since_epoch());
        let dooming = doom(&*store, &volume, &deleter, machine.as_ref());
        unless_told(&mut signals, dooming).await??;
        delete(&store, &volume, &mut signals).await
    })
}

/// The same, unless a signal comes before it is done.
async fn unless_told<T>(signals: &mut Signals, work: impl Future<Output = T>) -> Result<T> {
    tokio::select! {
        done = work => Ok(done),
        () = signals.recv() => Err(interrupted()),
    }
}

/// Marks the volume, so that nobody uses it any more. Whoever claims one of format 2
/// looks for the mark afterwards, and here the claim is looked for after the mark is
/// there: so one of the two sees the other.
async fn doom(
    store: &dyn ObjectStore,
    volume: &Volume,
    deleter: &Holder,
    machine: Option<&VolumeLock>,
) -> Result<()> {
    let client = meta::client(store).await;
    let client = client.map_err(|error| explain::store(volume, &error))?;
    let explained = |error| explain::meta(volume, &error);
    let is_log = matches!(meta::read(store).await, Ok(there) if there.format.number() == 2);
    if let Some(dead) = client.filter(|client| is_log && client.is_daemon()) {
        let released = meta::release(store, &dead, false).await;
        released.map_err(explained)?;
    }
    doom::begin(store, deleter).await.map_err(explained)?;
    if is_log {
        let held = standing::may_claim(store, volume, None, machine, false).await;
        if let Err(error) = held {
            let withdrawn = doom::withdraw(store).await;
            withdrawn.map_err(|error| explain::store(volume, &error))?;
            return Err(error);
        }
    }
    Ok(())
}

/// What a person should know of a volume that can be deleted.
async fn describe(
    store: &dyn ObjectStore,
    volume: &Volume,
    machine: Option<&VolumeLock>,
) -> Result<String> {
    match meta::read(store).await {
        Ok(there) => {
            let client = there.client.as_ref();
            match (there.format, client) {
                (Format::Log { .. }, _) => {
                    standing::may_claim(store, volume, client, machine, false).await?;
                }
                (Format::Objects(_), Some(client)) => {
                    return Err(explain::meta(volume, &MetaError::Locked(client.clone())));
                }
                (Format::Objects(_), None) => {}
            }
            Ok(format!("all its {}", format_size(there.format.size())))
        }
        Err(MetaError::Unfinished(source)) => {
            Ok(format!("an unfinished conversion of container {source}"))
        }
        Err(MetaError::Deleting) => Ok("what is left of it".to_owned()),
        Err(error) => Err(explain::meta(volume, &error)),
    }
}

fn ask(volume: &Volume, what: &str) -> Result<()> {
    let name = &volume.name;
    eprint!(
        "Delete volume {name} (container {}), {what}? [y/N] ",
        volume.container
    );
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Error::failed(format!("volume {name}: not deleted"))),
    }
}

async fn delete(
    store: &Arc<dyn ObjectStore>,
    volume: &Volume,
    signals: &mut Signals,
) -> Result<()> {
    let failed = |error| explain::store(volume, &error);
    let progress = Progress::objects();
    for round in 1..=ROUNDS {
        let (ours, strangers) = delete_objects(store, volume, &progress, signals).await?;
        if let Some(strangers) = strangers {
            // A listing may be behind. The next one then shows what is left; what
            // none shows would be the content of whatever is made here later.
            if ours > 0 && round < ROUNDS {
                unless_told(signals, sleep(BETWEEN_ROUNDS)).await?;
                continue;
            }
            progress.end();
            let erased = unless_told(signals, doom::erase(&**store)).await?;
            erased.map_err(failed)?;
            tracing::warn!(
                "volume {} is deleted; its container {} stays: it holds {strangers}",
                volume.name,
                volume.container
            );
            return Ok(());
        }
        match unless_told(signals, store.remove()).await? {
            Ok(()) => {
                progress.end();
                return Ok(());
            }
            Err(error) if error.kind == ErrorKind::Invalid && round < ROUNDS => {
                unless_told(signals, sleep(BETWEEN_ROUNDS)).await?;
            }
            Err(error) if error.kind == ErrorKind::Invalid => {
                let error = failed(error);
                return Err(error.hint(
                    "the listing may be behind, or somebody puts objects there: \
                     the same command goes on from where it was",
                ));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Deletes all of a volume's objects that listings show: how many, and what else
/// there is, in words.
async fn delete_objects(
    store: &Arc<dyn ObjectStore>,
    volume: &Volume,
    progress: &Progress,
    signals: &mut Signals,
) -> Result<(usize, Option<String>)> {
    let mut after = String::new();
    let mut strangers = (0_u64, String::new());
    let mut deleted = 0;
    loop {
        let page = tokio::select! {
            page = store.list(&after, "", PAGE) => page,
            () = signals.recv() => return Err(interrupted()),
        };
        let page = page.map_err(|error| explain::store(volume, &error))?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.name);
        let (ours, others): (Vec<_>, Vec<_>) = page
            .into_iter()
            .map(|listed| listed.name)
            .partition(|name| layout::index(name).is_some() || Name::parse(name).is_some());
        if strangers.0 == 0
            && let Some(first) = others.first()
        {
            strangers.1 = first.escape_debug().to_string();
        }
        strangers.0 += others.len() as u64;
        deleted += ours.len();
        let batches = ours.chunks(TOGETHER).map(|names| Ok(names.to_vec()));
        let work = |names: Vec<String>| {
            let (store, volume, progress) = (Arc::clone(store), volume.clone(), progress.clone());
            async move {
                let deleted = store.delete_many(&names).await;
                deleted.map_err(|error| explain::store(&volume, &error))?;
                progress.add(names.len() as u64);
                Ok(())
            }
        };
        in_parallel(batches, DELETIONS, &Pace::new(None), signals, work).await?;
    }
    let strangers = match strangers {
        (0, _) => None,
        (1, name) => Some(format!("an object that is not a volume's: {name}")),
        (many, name) => Some(format!("{many} objects that are not a volume's: {name}, …")),
    };
    Ok((deleted, strangers))
}
