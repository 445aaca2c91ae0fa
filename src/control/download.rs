//! `download`: makes an image file of a volume.
//!
//! Every object is asked for, for a listing that lacks it proves nothing; what is
//! absent, and what is zeros, becomes a hole. Each body is checked against its MD5
//! as it comes. Of what an earlier attempt left behind nothing is taken on trust: a
//! part of the file stays if Swift says, asked for the object's newest version, that
//! its MD5 is that of the part. So the volume may change between two attempts.
//!
//! All this is of format 1. A volume of format 2 is opened and read; what its map has as
//! a hole costs no request, and every frame is verified.

use std::sync::Arc;

use super::signals::Signals;
use super::transfer::claim::{Claim, Place, Verb};
use super::transfer::copy::{self, Content, Copy};
use super::transfer::image::Target;
use super::transfer::progress::Progress;
use super::transfer::{Pace, blocking, in_parallel, width};
use super::{daemon, explain, passphrase};
use crate::cli;
use crate::config::{Config, Volume};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::meta::Format;
use crate::image::objects::layout::Layout;
use crate::store::{ErrorKind, ObjectStore};

/// Carries it out.
pub fn run(config: &Config, args: &cli::Download) -> Result<()> {
    let mut volume = config.volume(&args.name)?;
    passphrase::choose(&mut volume, &args.passphrase)?;
    let runtime = daemon::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let place = Place::enter(&volume)?;
        passphrase::ask_if_needed(&mut volume, place.container()).await?;
        let claim = place.claim(Verb::Download, "", false).await?;
        let fetched = match claim.format() {
            Format::Objects(layout) => fetch(&volume, &claim, layout, args, &mut signals).await,
            Format::Log { .. } => match read(&volume, &claim, args, &mut signals).await {
                Ok(done) => done,
                // It could not be closed: it stays ours.
                Err(error) => return Err(error),
            },
        };
        let released = claim.release(&mut signals).await;
        fetched.and(released)
    })
}

/// Makes the image of a volume of format 2. Fails if the volume cannot be given back;
/// what came of the download is the result.
async fn read(
    volume: &Volume,
    claim: &Claim,
    args: &cli::Download,
    signals: &mut Signals,
) -> Result<Result<()>> {
    let log = match claim.open(volume).await {
        Ok(log) => Arc::new(log),
        Err(error) => return Ok(Err(error)),
    };
    let copy = Arc::new(Copy {
        pace: Pace::new(args.limit),
        progress: Progress::bytes(log.size(), args.quiet),
    });
    let content = Content {
        volume: volume.clone(),
        image: Arc::clone(&log) as Arc<dyn Image>,
    };
    let done = async {
        let target = Arc::new(Target::open(&args.image, log.size())?);
        let copied = copy.into_file(&content, Arc::clone(&target), signals).await;
        copy.progress.end();
        copied?;
        claim.check().await?;
        finish(target).await
    }
    .await;
    copy::close(volume, &log, signals).await?;
    Ok(done)
}

/// Makes what is complete the image.
async fn finish(target: Arc<Target>) -> Result<()> {
    match Arc::into_inner(target) {
        Some(target) => blocking(move || target.finish()).await,
        None => Err(Error::failed("a part of the work goes on")),
    }
}

async fn fetch(
    volume: &Volume,
    claim: &Claim,
    layout: Layout,
    args: &cli::Download,
    signals: &mut Signals,
) -> Result<()> {
    claim.await_quiet(signals).await?;
    let download = Arc::new(Download {
        volume: volume.clone(),
        store: claim.store(),
        layout,
        target: Target::open(&args.image, layout.size())?,
        pace: Pace::new(args.limit),
        progress: Progress::bytes(layout.size(), args.quiet),
    });
    let work = |index| {
        let download = Arc::clone(&download);
        async move { download.object(index).await }
    };
    let indices = (0..layout.objects).map(Ok);
    let width = width(layout.object_size);
    let done = in_parallel(indices, width, &download.pace, signals, work).await;
    download.progress.end();
    done?;
    claim.check().await?;
    match Arc::into_inner(download) {
        Some(download) => blocking(move || download.target.finish()).await,
        None => Err(Error::failed("a part of the work goes on")),
    }
}

/// One volume on its way into one file.
struct Download {
    volume: Volume,
    store: Arc<dyn ObjectStore>,
    layout: Layout,
    target: Target,
    pace: Pace,
    progress: Progress,
}

impl Download {
    /// Makes one part of the file what the volume has there.
    async fn object(self: Arc<Self>, index: u64) -> Result<()> {
        let size = self.layout.object_size;
        let offset = index * u64::from(size);
        let name = self.layout.name(index);
        if !Arc::clone(&self).is_done(&name, offset).await? {
            let body = match self.store.get(&name).await {
                Ok(body) => Some(body),
                Err(error) if error.kind == ErrorKind::NotFound => None,
                Err(error) => return Err(explain::store(&self.volume, &error)),
            };
            let this = Arc::clone(&self);
            blocking(move || match body {
                Some(body) => {
                    this.pace.spent(body.len() as u64);
                    this.check_length(&name, body.len())?;
                    this.target.write(offset, &body)
                }
                None => this.target.clear(offset, size.into()),
            })
            .await?;
        }
        self.progress.add(size.into());
        Ok(())
    }

    /// Whether an earlier attempt has done this part.
    async fn is_done(self: Arc<Self>, name: &str, offset: u64) -> Result<bool> {
        let size = self.layout.object_size;
        if !self.target.has_data(offset, size.into()) {
            return Ok(false);
        }
        let there = match self.store.md5(name).await {
            Ok(md5) => md5,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(explain::store(&self.volume, &error)),
        };
        let this = Arc::clone(&self);
        let ours = blocking(move || this.target.md5(offset, size as usize)).await?;
        Ok(ours == there)
    }

    fn check_length(&self, name: &str, length: usize) -> Result<()> {
        if length == self.layout.object_size as usize {
            return Ok(());
        }
        let (volume, wanted) = (&self.volume.name, self.layout.object_size);
        Err(Error::failed(format!(
            "volume {volume}: object {name} has {length} bytes, not {wanted}"
        ))
        .hint("it is damaged, or somebody else's; nothing was made of it"))
    }
}
