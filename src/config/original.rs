//! What the original's command line said of an account.
//!
//! Knows: its options `-a`, `-k` and `--keystone-*`. Does not know: how they are
//! written; who parses them fills these types.

use super::keys::{Key, parse_interface};
use super::login::Login;
use crate::error::{Error, Result};

/// The account options of the original's commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalLogin {
    /// `-a`: the authentication of every volume that has no `authurl` of its own
    /// in the file.
    pub auth_url: Option<String>,
    /// `-k`: Keystone is asked, and the user names of the file are `TENANT.USER`.
    pub keystone: Option<OriginalKeystone>,
}

/// The original's Keystone options. It spoke v2, which no longer exists: v3 is
/// asked, and tenant and user are looked for in the domain `Default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalKeystone {
    /// `--keystone-separator`: what stands between tenant and user.
    pub separator: String,
    /// `--keystone-service`: the service's type.
    pub service_type: String,
    /// `--keystone-endpoint`: `publicURL` and the like.
    pub endpoint: String,
    /// `--keystone-region`.
    pub region: Option<String>,
}

impl Default for OriginalKeystone {
    /// The original's own defaults.
    fn default() -> OriginalKeystone {
        OriginalKeystone {
            separator: ".".to_owned(),
            service_type: "object-store".to_owned(),
            endpoint: "publicURL".to_owned(),
            region: None,
        }
    }
}

impl OriginalLogin {
    /// The login of a volume, as these options make it from what its file says.
    pub(super) fn apply(&self, volume: &str, file: Login) -> Result<Login> {
        let mut login = file;
        if let Some(url) = &self.auth_url
            && !login.has(Key::AuthUrl)
        {
            Key::AuthUrl
                .check(url)
                .map_err(|why| Error::usage(format!("--auth-url: {why}")))?;
            login.set(Key::AuthUrl, url);
        }
        let Some(keystone) = &self.keystone else {
            return Ok(login);
        };
        parse_interface(&keystone.endpoint)
            .map_err(|why| Error::usage(format!("--keystone-endpoint: {why}")))?;
        if let Some(username) = login.get(Key::Username).map(str::to_owned) {
            let Some((tenant, user)) = username.split_once(&keystone.separator) else {
                return Err(Error::usage(format!(
                    "volume '{volume}': with Keystone the user name is TENANT{}USER",
                    keystone.separator
                ))
                .hint("--keystone-separator is what stands between the two"));
            };
            login.set(Key::Project, tenant);
            login.set(Key::Username, user);
        }
        login.set(Key::AuthVersion, "3");
        login.set(Key::ServiceType, &keystone.service_type);
        login.set(Key::Interface, &keystone.endpoint);
        if let Some(region) = &keystone.region {
            login.set(Key::Region, region);
        }
        Ok(login)
    }
}
