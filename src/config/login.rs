//! The keys of an account, and what one source says of them.
//!
//! Knows: each key's name in every source, the shape of its value, and what a
//! source that wins over another replaces in it. Does not know: which source
//! wins, nor which keys a way to log in needs.
//!
//! # Two sources
//! The one that wins may speak of another way to log in than the other: then the
//! secrets of the other's way are dropped, not mixed in. So is what would
//! contradict it: an id beside a name of the same thing, and the version that
//! belongs to another URL.

use std::collections::BTreeMap;
use std::fmt;

use super::values::{Checked, check_auth_url, check_credential, check_file};
use crate::credentials::{Interface, Secret};

/// A key of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    AuthUrl,
    AuthVersion,
    Username,
    UserId,
    UserDomain,
    UserDomainId,
    Password,
    Project,
    ProjectId,
    ProjectDomain,
    ProjectDomainId,
    CredentialId,
    CredentialName,
    CredentialSecret,
    Token,
    StorageUrl,
    Region,
    Interface,
    ServiceType,
    CaFile,
    Insecure,
    Cloud,
}

/// Its name in swiftnbd.toml, in the environment, and in clouds.yaml (the same
/// with one `auth_` or `os_` less where there are several).
const NAMES: [(Key, &str, &[&str], &[&str]); 22] = {
    use Key::*;
    [
        (AuthUrl, "auth_url", &["OS_AUTH_URL"], &["auth_url"]),
        (
            AuthVersion,
            "auth_version",
            &["OS_IDENTITY_API_VERSION", "OS_AUTH_VERSION"],
            &["identity_api_version"],
        ),
        (Username, "username", &["OS_USERNAME"], &["username"]),
        (UserId, "user_id", &["OS_USER_ID"], &["user_id"]),
        (
            UserDomain,
            "user_domain_name",
            &["OS_USER_DOMAIN_NAME"],
            &["user_domain_name"],
        ),
        (
            UserDomainId,
            "user_domain_id",
            &["OS_USER_DOMAIN_ID"],
            &["user_domain_id"],
        ),
        (Password, "password", &["OS_PASSWORD"], &["password"]),
        (
            Project,
            "project_name",
            &["OS_PROJECT_NAME", "OS_TENANT_NAME"],
            &["project_name", "tenant_name"],
        ),
        (
            ProjectId,
            "project_id",
            &["OS_PROJECT_ID", "OS_TENANT_ID"],
            &["project_id", "tenant_id"],
        ),
        (
            ProjectDomain,
            "project_domain_name",
            &["OS_PROJECT_DOMAIN_NAME"],
            &["project_domain_name"],
        ),
        (
            ProjectDomainId,
            "project_domain_id",
            &["OS_PROJECT_DOMAIN_ID"],
            &["project_domain_id"],
        ),
        (
            CredentialId,
            "application_credential_id",
            &["OS_APPLICATION_CREDENTIAL_ID"],
            &["application_credential_id"],
        ),
        (
            CredentialName,
            "application_credential_name",
            &["OS_APPLICATION_CREDENTIAL_NAME"],
            &["application_credential_name"],
        ),
        (
            CredentialSecret,
            "application_credential_secret",
            &["OS_APPLICATION_CREDENTIAL_SECRET"],
            &["application_credential_secret"],
        ),
        (Token, "token", &["OS_AUTH_TOKEN"], &[]),
        (StorageUrl, "storage_url", &["OS_STORAGE_URL"], &[]),
        (Region, "region", &["OS_REGION_NAME"], &["region_name"]),
        (
            Interface,
            "interface",
            &["OS_INTERFACE", "OS_ENDPOINT_TYPE"],
            &["interface", "endpoint_type"],
        ),
        (
            ServiceType,
            "service_type",
            &["OS_SERVICE_TYPE"],
            &["object_store_service_type"],
        ),
        (CaFile, "ca_file", &["OS_CACERT"], &["cacert"]),
        (Insecure, "insecure", &["OS_INSECURE"], &["insecure"]),
        (Cloud, "cloud", &["OS_CLOUD"], &[]),
    ]
};

impl Key {
    pub(super) fn all() -> impl Iterator<Item = Key> {
        NAMES.iter().map(|(key, ..)| *key)
    }

    fn names(
        self,
    ) -> (
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    ) {
        let (_, toml, variables, clouds) = NAMES[self as usize];
        (toml, variables, clouds)
    }

    pub(super) fn in_toml(self) -> &'static str {
        self.names().0
    }

    /// Its variables, the first of which wins.
    pub(super) fn variables(self) -> &'static [&'static str] {
        self.names().1
    }

    /// Its names in clouds.yaml, the first of which wins.
    pub(super) fn in_clouds(self) -> &'static [&'static str] {
        self.names().2
    }

    /// Its name in the original's secrets file, if it was known there.
    pub(super) fn in_ini(self) -> Option<&'static str> {
        match self {
            Key::AuthUrl => Some("authurl"),
            Key::Username => Some("username"),
            Key::Password => Some("password"),
            _ => None,
        }
    }

    /// The variable of Swift's own client for v1.
    pub(super) fn in_st(self) -> Option<&'static str> {
        match self {
            Key::AuthUrl => Some("ST_AUTH"),
            Key::AuthVersion => Some("ST_AUTH_VERSION"),
            Key::Username => Some("ST_USER"),
            Key::Password => Some("ST_KEY"),
            _ => None,
        }
    }

    /// What a value looks like, for a hint.
    pub(super) fn example(self) -> &'static str {
        match self {
            Key::AuthUrl => "https://swift.example/auth/v1.0",
            Key::Username => "account:user",
            Key::Password => "the password",
            Key::CredentialId => "the credential's id",
            Key::CredentialSecret => "the credential's secret",
            Key::Token => "the token",
            Key::StorageUrl => "https://swift.example/v1/AUTH_account",
            _ => "…",
        }
    }

    /// Whether others may not know its value.
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Key::Password | Key::CredentialSecret | Key::Token)
    }

    /// Whether this can be its value. The reason does not quote it.
    pub(super) fn check(self, value: &str) -> Checked<()> {
        match self {
            Key::AuthUrl | Key::StorageUrl => check_auth_url(value),
            Key::AuthVersion => parse_version(value).map(drop),
            Key::Interface => parse_interface(value).map(drop),
            Key::Insecure => parse_bool(value).map(drop),
            Key::CaFile => check_file(value),
            _ => check_credential(value),
        }
    }
}

/// The version of the authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V3,
}

fn parse_version(text: &str) -> Checked<Version> {
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    match text {
        "1" | "1.0" => Ok(Version::V1),
        "3" | "3.0" => Ok(Version::V3),
        "2" | "2.0" => Err("Keystone v2 no longer exists: write 3".into()),
        _ => Err("must be 1 or 3".into()),
    }
}

pub(super) fn parse_interface(text: &str) -> Checked<Interface> {
    let name = text.strip_suffix("URL").unwrap_or(text);
    Interface::ALL
        .into_iter()
        .find(|interface| interface.name() == name)
        .ok_or_else(|| "must be public, internal or admin".into())
}

/// As the original and OpenStack's clients write it.
pub(super) fn parse_bool(value: &str) -> Checked<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Ok(true),
        "0" | "no" | "false" | "off" | "" => Ok(false),
        _ => Err("must be one of 1, yes, true, on, 0, no, false, off".into()),
    }
}

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

/// The version that the last part of a URL's path names.
fn version_in(url: &str) -> Option<Version> {
    let last = url.trim_end_matches('/').rsplit('/').next()?;
    match last {
        "v1" => Some(Version::V1),
        "v3" | "v2.0" => Some(Version::V3),
        _ if last.starts_with("v1.") => Some(Version::V1),
        _ => None,
    }
}
