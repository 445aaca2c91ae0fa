//! The keys of an account: their names in every source, and their values.
//!
//! Knows: what each key is called where, and what its value looks like. Does not
//! know: which keys belong together, nor what any source says.

use super::values::{Checked, check_auth_url, check_credential, check_file};
use crate::credentials::Interface;

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

/// Its name in swiftnbd.toml, its variables, and its names in clouds.yaml; in the
/// order of [`Key`].
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

pub(super) fn parse_version(text: &str) -> Checked<Version> {
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

/// The version that the last part of a URL's path names.
pub(super) fn version_in(url: &str) -> Option<Version> {
    let (_, rest) = url.split_once("://")?;
    let (_, path) = rest.split_once('/')?;
    let last = path.trim_end_matches('/').rsplit('/').next()?;
    match last {
        "v1" => Some(Version::V1),
        "v3" | "v2.0" => Some(Version::V3),
        _ if last.starts_with("v1.") => Some(Version::V1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_in_the_order_of_the_keys() {
        for (index, key) in Key::all().enumerate() {
            assert_eq!(key as usize, index, "{key:?}");
        }
    }

    #[test]
    fn what_the_path_of_a_url_says() {
        for (url, version) in [
            ("https://h/auth/v1.0", Some(Version::V1)),
            ("https://h/v1/", Some(Version::V1)),
            ("https://h/v3", Some(Version::V3)),
            ("https://h/v2.0/", Some(Version::V3)),
            ("https://h/v12", None),
            ("https://v1.h:5000", None),
            ("https://h", None),
            ("", None),
        ] {
            assert_eq!(version_in(url), version, "{url}");
        }
    }
}
