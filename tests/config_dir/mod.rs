//! A directory in the place of `/etc/swiftnbd`.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use swiftnbd::config::{Backend, Config, Login, Sources};
use swiftnbd::credentials::{Auth, Secret};
use swiftnbd::error::{Error, Result};

/// Removed when dropped.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().expect("a temporary directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file that only its owner can read.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        self.file_with_mode(name, content, 0o600)
    }

    pub fn file_with_mode(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).expect("writing a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    /// The default files of this directory and an empty environment.
    pub fn sources(&self) -> Sources {
        Sources::in_dir(self.path())
    }
}

/// Loads this text as the default TOML file.
pub fn load_toml(text: &str) -> Result<Config> {
    let dir = Dir::new();
    dir.file("swiftnbd.toml", text.as_bytes());
    Config::load(&dir.sources())
}

/// Loads this text as the secrets file named on the command line.
pub fn load_ini(text: &str) -> Result<Config> {
    let dir = Dir::new();
    let mut sources = dir.sources();
    sources.secrets = Some(dir.file("secrets.conf", text.as_bytes()));
    Config::load(&sources)
}

/// An environment with these variables.
pub fn environment(variables: &[(&str, &str)]) -> Login {
    Login::from_environment(|name| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.to_string())
    })
}

/// Checks a part of the message and of the hint.
pub fn assert_says(error: &Error, message: &str, hint: &str) {
    assert!(error.message.contains(message), "{message:?} in: {error}");
    let found = error.hint.as_deref().unwrap_or_default();
    assert!(found.contains(hint), "hint {hint:?} in: {error}");
}

/// The URL, the user and the password of an account with v1 authentication.
pub fn v1(backend: &Backend) -> (&str, &str, &Secret) {
    match backend {
        Backend::Swift(credentials) => match &credentials.auth {
            Auth::V1 {
                auth_url,
                username,
                password,
            } => (auth_url, username, password),
            other => panic!("{other:?}"),
        },
        Backend::Dir(dir) => panic!("{dir:?}"),
    }
}
