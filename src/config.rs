//! TOML, the original's INI and the environment into one checked [`Config`].
//!
//! Knows: which files there are, which of several sources wins, defaults, and
//! what a volume needs to be complete. Does not know: Swift, devices, or what
//! the settings do. It reads files, and nothing else that is global: the
//! variables of the environment come in through [`Sources`].
//!
//! What wins, from the first: `--store`; the volume's own section; the cloud that
//! it names; `[swift]` (`[DEFAULT]` in the INI); the cloud that that names; the
//! variables of the environment, where the files do not say enough. What one
//! source says of another way to log in than a source that wins is dropped
//! ([`login`]).
//!
//! A mistake in a file is an error of the whole file. A volume that merely
//! lacks something is an error of that volume alone, so that the others can be
//! attached.

mod account;
mod clouds;
mod file;
mod ini;
mod keys;
mod login;
mod original;
mod settings;
mod toml_text;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::{Credentials, Passphrase};
use crate::error::{Error, Exit, Result};
use settings::{Settings, Source, VolumeSettings};
use values::{check_name, nearest, parse_store, quoted};

pub use clouds::CloudFiles;
pub use login::Login;
pub use original::{OriginalKeystone, OriginalLogin};
pub use values::{
    Flush, MetricsAt, NbdDevice, format_size, parse_device, parse_duration, parse_name, parse_size,
};

/// Where the files are when the command line names none.
const ETC_DIR: &str = "/etc/swiftnbd";

/// Long enough for requests that are repeated, short enough for whoever waits for it.
const DEFAULT_LEASE: Duration = Duration::from_secs(30);
const DEFAULT_REATTACH: Duration = Duration::from_secs(120);

/// Clean data kept in memory, in bytes, unless the volume says otherwise; the
/// original's own limit.
const DEFAULT_CACHE: u64 = 64 << 20;

/// Data answered and not yet durable, in bytes, unless the volume says
/// otherwise.
const DEFAULT_DIRTY: u64 = 64 << 20;

/// Pages of a map kept in memory, in bytes, unless the volume says otherwise.
const DEFAULT_MAP: u64 = 32 << 20;

/// At most so many names are listed in a hint.
const MAX_LISTED: usize = 8;

/// Where a configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// `--config`: a TOML file, instead of the default one.
    pub config: Option<PathBuf>,
    /// `--secrets`: an INI file of the original. Excludes `config`.
    pub secrets: Option<PathBuf>,
    /// `--store`: where all volumes are, whatever a file says.
    pub store: Option<String>,
    /// What the original's command line said, under its old names.
    pub original: Option<OriginalLogin>,
    /// What the environment says; fills what the files leave out.
    pub environment: Login,
    /// Where OpenStack's own files are, for a cloud that is named.
    pub clouds: CloudFiles,
    /// Where the default files are.
    pub etc_dir: PathBuf,
}

impl Sources {
    /// No arguments, no environment, and the default files of `etc_dir`.
    pub fn in_dir(etc_dir: impl Into<PathBuf>) -> Sources {
        Sources {
            config: None,
            secrets: None,
            store: None,
            original: None,
            environment: Login::default(),
            clouds: CloudFiles::default(),
            etc_dir: etc_dir.into(),
        }
    }

    /// No arguments, the environment of this process, and `/etc/swiftnbd`.
    pub fn system() -> Sources {
        let variable = |name: &str| std::env::var(name).ok();
        Sources {
            environment: Login::from_environment(variable),
            clouds: CloudFiles::usual(variable),
            ..Sources::in_dir(ETC_DIR)
        }
    }

    /// The same, with paths that hold in any directory.
    fn absolute(&self) -> Sources {
        let absolute = |path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        };
        Sources {
            config: absolute(&self.config),
            secrets: absolute(&self.secrets),
            ..self.clone()
        }
    }
}

/// One volume with every setting decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What the user calls it.
    pub name: String,
    /// The container that it is kept in.
    pub container: String,
    /// The device to attach it to, if one was chosen.
    pub device: Option<NbdDevice>,
    /// Whether the machine attaches it when it starts.
    pub attach_at_boot: bool,
    /// Whether it is never written.
    pub read_only: bool,
    /// Clean data in memory, in bytes: 1 MiB to 1 TiB.
    pub cache: u64,
    /// Data answered and not yet durable, in bytes: 1 MiB to 1 TiB.
    pub dirty: u64,
    /// Pages of the map in memory, in bytes, in format 2: 1 MiB to 1 TiB.
    pub map: u64,
    /// Where the passphrase of an encrypted volume is, if it was said.
    pub passphrase: Option<Passphrase>,
    /// How long a request waits for a failing store; `None`: for ever.
    pub io_timeout: Option<Duration>,
    /// How long it stays ours when nothing is heard of us: 3 s to 1 h, whole seconds.
    pub lease: Duration,
    /// What a flush waits for.
    pub flush: Flush,
    /// Where its journal is, if that was said.
    pub journal: Option<PathBuf>,
    /// How long the device of a daemon that died waits for another one, if it has a
    /// journal: whole seconds; zero: not at all.
    pub reattach_timeout: Duration,
    /// Where the figures of its device can be read, if anywhere.
    pub metrics: Option<MetricsAt>,
    /// What keeps its bytes.
    pub backend: Backend,
    /// Where all this was read.
    sources: Arc<Sources>,
}

impl Volume {
    /// What keeps its bytes, as the same sources have it now: credentials may
    /// have changed since.
    pub fn reread(&self) -> Result<Backend> {
        let config = Config::load(&self.sources)?;
        Ok(config.volume(&self.name)?.backend)
    }
}

/// What keeps the bytes of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A local directory that holds containers; an absolute path.
    Dir(PathBuf),
    /// A Swift account.
    Swift(Box<Credentials>),
}

/// Which kind of file the settings are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Toml,
    Ini,
    /// No file was read.
    Nothing,
}

/// All that was configured, checked as far as one can without looking at a
/// store.
#[derive(Debug, Clone)]
pub struct Config {
    settings: Settings,
    origin: Origin,
    /// The file that was read, or that a user would write where none was.
    file: PathBuf,
    sources: Arc<Sources>,
    /// `--store`.
    store: Option<PathBuf>,
}

impl Config {
    /// Reads the files that `sources` names, or the default ones: the TOML
    /// file, else the INI. With `--store` the default files are left alone,
    /// and having no file at all is no error.
    pub fn load(sources: &Sources) -> Result<Config> {
        let store = sources.store.as_deref().map(parse_store).transpose();
        let store = store.map_err(|why| {
            Error::usage(format!("--store: {why}")).hint("for example --store dir:/srv/swiftnbd")
        })?;
        let default = sources.etc_dir.join("swiftnbd.toml");
        let (origin, file, settings) = match (&sources.config, &sources.secrets) {
            (Some(_), Some(_)) => {
                return Err(Error::usage("--config and --secrets exclude each other"));
            }
            (Some(path), None) => (Origin::Toml, path.clone(), named(path, Origin::Toml)?),
            (None, Some(path)) => (Origin::Ini, path.clone(), named(path, Origin::Ini)?),
            (None, None) if store.is_some() => (Origin::Nothing, default, Settings::default()),
            (None, None) => default_files(default, sources.etc_dir.join("secrets.conf"))?,
        };
        Ok(Config {
            settings,
            origin,
            file,
            sources: Arc::new(sources.absolute()),
            store,
        })
    }

    /// The volume of this name: one that is configured, or, where the account
    /// is known for every volume, any other with the defaults.
    /// [`Exit::NotFound`] if there is none.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        check_name(name).map_err(|why| Error::usage(format!("volume {}: {why}", quoted(name))))?;
        match self.settings.volumes.get(name) {
            Some(settings) => self.resolve(name, settings),
            None if self.takes_any_name() => self.resolve(name, &VolumeSettings::default()),
            None => Err(self.no_volume(name)),
        }
    }

    /// The names that are configured, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.volumes.keys().map(String::as_str)
    }

    /// The names of the volumes that the machine attaches when it starts, in byte
    /// order.
    pub fn names_at_boot(&self) -> impl Iterator<Item = &str> {
        let volumes = self.settings.volumes.iter();
        volumes
            .filter(|(_, settings)| settings.attach_at_boot)
            .map(|(name, _)| name.as_str())
    }

    /// The devices that volumes are to be attached to.
    pub fn devices(&self) -> impl Iterator<Item = NbdDevice> {
        let volumes = self.settings.volumes.values();
        volumes.filter_map(|settings| settings.device)
    }

    /// Every volume that is configured, in the order of their names; fails if
    /// one of them is not complete. [`Config::names`] with [`Config::volume`]
    /// tells which.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        self.names().map(|name| self.volume(name)).collect()
    }

    /// What a person should know of the file although it is no error, for the
    /// log.
    pub fn notes(&self) -> &[String] {
        &self.settings.notes
    }

    fn takes_any_name(&self) -> bool {
        self.store.is_some()
            || match self.origin {
                Origin::Nothing => true,
                Origin::Ini => false,
                Origin::Toml => self.settings.every.is_some() || self.environment_suffices(),
            }
    }

    fn no_volume(&self, name: &str) -> Error {
        let file = self.file.display();
        let found = Error::new(
            Exit::NotFound,
            format!("volume {} is not in {file}", quoted(name)),
        );
        let mut names: Vec<&str> = self.names().take(MAX_LISTED + 1).collect();
        if let Some(near) = nearest(name, self.names()) {
            return found.hint(format!("did you mean '{near}'?"));
        }
        if names.is_empty() {
            return found.hint("the file names no volume");
        }
        if names.len() > MAX_LISTED {
            names[MAX_LISTED] = "…";
        }
        found.hint(format!("there are: {}", names.join(", ")))
    }

    fn resolve(&self, name: &str, settings: &VolumeSettings) -> Result<Volume> {
        let backend = match self.store.as_ref().or(settings.store.as_ref()) {
            Some(dir) => Backend::Dir(dir.clone()),
            None => Backend::Swift(Box::new(self.account(name, settings)?)),
        };
        Ok(Volume {
            name: name.to_owned(),
            container: settings.container.as_deref().unwrap_or(name).to_owned(),
            device: settings.device,
            attach_at_boot: settings.attach_at_boot,
            read_only: settings.read_only,
            cache: settings.cache.unwrap_or(DEFAULT_CACHE),
            dirty: settings.dirty.unwrap_or(DEFAULT_DIRTY),
            map: settings.map.unwrap_or(DEFAULT_MAP),
            passphrase: settings.passphrase_file.clone().map(Passphrase::File),
            io_timeout: settings.io_timeout.filter(|time| !time.is_zero()),
            lease: settings.lease.unwrap_or(DEFAULT_LEASE),
            flush: settings.flush.unwrap_or_default(),
            journal: settings.journal.clone(),
            reattach_timeout: settings.reattach_timeout.unwrap_or(DEFAULT_REATTACH),
            metrics: settings.metrics.clone(),
            backend,
            sources: Arc::clone(&self.sources),
        })
    }
}

/// The settings of a file that the user named.
fn named(path: &Path, origin: Origin) -> Result<Settings> {
    read(path, origin)?.ok_or_else(|| {
        Error::new(Exit::NotFound, format!("{} does not exist", path.display()))
            .hint("the file was named on the command line; is the path right?")
    })
}

fn default_files(toml: PathBuf, ini: PathBuf) -> Result<(Origin, PathBuf, Settings)> {
    if let Some(settings) = read(&toml, Origin::Toml)? {
        return Ok((Origin::Toml, toml, settings));
    }
    match read(&ini, Origin::Ini)? {
        Some(settings) => Ok((Origin::Ini, ini, settings)),
        None => Ok((Origin::Nothing, toml, Settings::default())),
    }
}

/// The settings of a file; `None` if it does not exist.
fn read(path: &Path, origin: Origin) -> Result<Option<Settings>> {
    let Some(text) = file::read(path)? else {
        return Ok(None);
    };
    let source = Source {
        path,
        text: &text.body,
    };
    let settings = match origin {
        Origin::Ini => ini::parse(source)?,
        Origin::Toml | Origin::Nothing => toml_text::parse(source)?,
    };
    if text.world_readable && settings.holds_secret() {
        return Err(file::world_readable(path));
    }
    Ok(Some(settings))
}
