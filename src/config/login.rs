//! What one source says of an account.
//!
//! Knows: what a source that wins over another replaces in it, and how the
//! variables of OpenStack's clients are read. Does not know: which source wins,
//! nor which keys a way to log in needs.
//!
//! # Two sources
//! The one that wins may speak of another way to log in than the other: then the
//! secrets of the other's way are dropped, not mixed in. So is what would
//! contradict it: an id beside a name of the same thing, and the version that
//! belongs to another URL.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::{Key, Version, parse_version, version_in};
use crate::credentials::Secret;

/// Where to authenticate and as whom, as far as one source says it.
///
/// `Debug` shows nothing of it: where a line break is missing in the INI, the
/// line with the password has become part of the URL or the user.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login(BTreeMap<Key, Secret>);

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// Of each pair only one can be meant.
const ALTERNATIVES: [(Key, Key); 5] = [
    (Key::Username, Key::UserId),
    (Key::UserDomain, Key::UserDomainId),
    (Key::Project, Key::ProjectId),
    (Key::ProjectDomain, Key::ProjectDomainId),
    (Key::CredentialId, Key::CredentialName),
];

/// The keys that choose a way to log in, a row a way.
pub(super) const WAYS: [&[Key]; 3] = [
    &[Key::Password],
    &[
        Key::CredentialSecret,
        Key::CredentialId,
        Key::CredentialName,
    ],
    &[Key::Token, Key::StorageUrl],
];

impl Login {
    /// What the variables of OpenStack's clients say. An empty one counts as
    /// unset. The first of these that is there:
    /// `OS_STORAGE_URL` with `OS_AUTH_TOKEN`; `ST_AUTH`, `ST_USER`, `ST_KEY`;
    /// `OS_CLOUD`; the other `OS_*`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Login {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let pick = |names: fn(Key) -> Option<&'static str>| {
            let mut login = Login::default();
            for key in Key::all() {
                if let Some(value) = names(key).and_then(&variable) {
                    login.set(key, &value);
                }
            }
            login
        };
        let st = pick(Key::in_st);
        let mut os = Login::default();
        for key in Key::all() {
            if let Some(value) = key.variables().iter().find_map(|name| variable(name)) {
                os.set(key, &value);
            }
        }
        if os.has(Key::Token) && os.has(Key::StorageUrl) {
            return os.without(WAYS[0]).without(WAYS[1]).without(&[Key::Cloud]);
        }
        os = os.without(WAYS[2]);
        if [Key::AuthUrl, Key::Username, Key::Password]
            .iter()
            .any(|key| st.has(*key))
        {
            let keystone = st.version() == Some(Version::V3);
            return if keystone {
                st.over(&os.without(&[Key::Cloud]))
            } else {
                st
            };
        }
        if os.has(Key::Cloud) {
            return os.only(&[
                Key::Cloud,
                Key::Region,
                Key::Interface,
                Key::CaFile,
                Key::Insecure,
            ]);
        }
        // As its usual files set them, one way is asked for by name.
        let by_password = variable("OS_AUTH_TYPE").is_some_and(|kind| kind.ends_with("password"));
        os = match os.has(Key::CredentialSecret) && !by_password {
            true => os.without(WAYS[0]),
            false if by_password => os.without(WAYS[1]),
            false => os,
        };
        os.of_keystone()
    }

    /// Of a source that speaks of Keystone only, unless the URL says otherwise.
    pub(super) fn of_keystone(mut self) -> Login {
        if let Some(url) = self.get(Key::AuthUrl)
            && !self.has(Key::AuthVersion)
            && version_in(url).is_none()
        {
            self.set(Key::AuthVersion, "3");
        }
        self
    }

    pub(super) fn get(&self, key: Key) -> Option<&str> {
        self.0.get(&key).map(Secret::expose)
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.0.contains_key(&key)
    }

    /// An empty value counts as left out.
    pub(super) fn set(&mut self, key: Key, value: &str) {
        match value.is_empty() {
            true => self.0.remove(&key),
            false => self.0.insert(key, Secret::new(value)),
        };
    }

    pub(super) fn holds_secret(&self) -> bool {
        self.0.keys().any(|key| key.is_secret())
    }

    /// The first value that cannot be right: its key, and why.
    pub(super) fn check(&self) -> Result<(), (Key, String)> {
        for (key, value) in &self.0 {
            key.check(value.expose()).map_err(|why| (*key, why))?;
        }
        Ok(())
    }

    /// This login, with what it leaves out taken from one that it wins over.
    pub(super) fn over(self, lower: &Login) -> Login {
        let mut rest = lower.clone();
        let ours = WAYS.map(|way| way.iter().any(|key| self.has(*key)));
        for (way, is_ours) in WAYS.into_iter().zip(ours) {
            if ours.contains(&true) && !is_ours {
                rest = rest.without(way);
            }
        }
        if (self.has(Key::Username) || self.has(Key::UserId)) && !ours[1] && !ours[2] {
            rest = rest.without(WAYS[2]);
            if rest.has(Key::CredentialId) {
                rest = rest.without(WAYS[1]);
            }
        }
        for (one, other) in ALTERNATIVES {
            if self.has(one) || self.has(other) {
                rest = rest.without(&[one, other]);
            }
        }
        if self.has(Key::AuthUrl) {
            rest = rest.without(&[Key::AuthVersion]);
        }
        rest.0.extend(self.0);
        rest
    }

    pub(super) fn without(mut self, keys: &[Key]) -> Login {
        self.0.retain(|key, _| !keys.contains(key));
        self
    }

    fn only(mut self, keys: &[Key]) -> Login {
        self.0.retain(|key, _| keys.contains(key));
        self
    }

    /// Which authentication this is for, as far as one can tell.
    pub(super) fn version(&self) -> Option<Version> {
        let keystone = [
            Key::UserId,
            Key::UserDomain,
            Key::UserDomainId,
            Key::Project,
            Key::ProjectId,
            Key::ProjectDomain,
            Key::ProjectDomainId,
            Key::CredentialId,
            Key::CredentialName,
            Key::CredentialSecret,
        ];
        let said = self.get(Key::AuthVersion);
        said.and_then(|text| parse_version(text).ok())
            .or_else(|| self.get(Key::AuthUrl).and_then(version_in))
            .or_else(|| {
                keystone
                    .iter()
                    .any(|key| self.has(*key))
                    .then_some(Version::V3)
            })
    }
}
