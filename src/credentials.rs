//! Who we are to a Swift account, and how to reach it: checked, and complete; and
//! where the passphrase of an encrypted volume comes from.
//!
//! Knows: the ways to log in, and what each needs. Does not know: the files and
//! variables it was read from, nor any request. [`config`](crate::config) makes
//! these values and [`store::swift`](crate::store::swift) uses them.
//!
//! `Debug` shows no secret and no user: where a line break is missing in a file,
//! the line with the password has become part of the URL or the user.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A password, a key or a token. `Debug` and `Display` print `…` in its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides this text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the request that needs it and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where the passphrase of an encrypted volume is. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Passphrase {
    /// In this file, which is read when it is needed.
    File(PathBuf),
    /// Here: it was typed, or came through a descriptor.
    Here(Arc<Zeroizing<Vec<u8>>>),
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Passphrase::File(path) => f.debug_tuple("File").field(path).finish(),
            Passphrase::Here(_) => f.write_str("…"),
        }
    }
}

/// A Swift account and the credentials for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// How to log in, and as whom.
    pub auth: Auth,
    /// Which entry of Keystone's catalog is meant; of no use to the other ways.
    pub service: Service,
    /// Which certificates are trusted.
    pub tls: Tls,
}

/// A way to log in. URLs are `http://` or `https://`, without a user part, a
/// query or a fragment.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// Swift's own authentication, of version 1.
    V1 {
        /// `https://swift.example/auth/v1.0`.
        auth_url: String,
        /// `account:user`.
        username: String,
        /// The user's key.
        password: Secret,
    },
    /// Keystone v3, as a user of its own.
    Password {
        /// `https://keystone.example/v3`, with the version or without.
        auth_url: String,
        /// Who.
        user: User,
        /// The user's password.
        password: Secret,
        /// What the token is for; else the user's default project.
        project: Option<Project>,
    },
    /// Keystone v3, by an application credential, which belongs to a project.
    ApplicationCredential {
        /// As for [`Auth::Password`].
        auth_url: String,
        /// Which.
        credential: Credential,
        /// Its secret.
        secret: Secret,
    },
    /// A token that somebody else got, and cannot be renewed.
    Token {
        /// The account's URL.
        storage_url: String,
        /// The token.
        token: Secret,
    },
}

/// A domain of Keystone's: users and projects have names that are unique in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domain {
    /// By its id.
    Id(String),
    /// By its name.
    Name(String),
}

/// A user of Keystone's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// By the id, which is unique.
    Id(String),
    /// By the name in a domain.
    Name(String, Domain),
}

/// A project of Keystone's: one account in Swift.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Project {
    /// By the id, which is unique.
    Id(String),
    /// By the name in a domain.
    Name(String, Domain),
}

/// An application credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// By its id.
    Id(String),
    /// By its name and whose it is.
    Name(String, User),
}

/// Which entry of a catalog is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The type of the service: `object-store`.
    pub kind: String,
    /// The region; else the only one there is.
    pub region: Option<String>,
    /// From where the account is reached.
    pub interface: Interface,
}

impl Default for Service {
    fn default() -> Service {
        Service {
            kind: "object-store".to_owned(),
            region: None,
            interface: Interface::Public,
        }
    }
}

/// From where an account is reached: each has an address of its own in a catalog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Interface {
    /// The internet.
    #[default]
    Public,
    /// The cloud itself.
    Internal,
    /// Its operators' network.
    Admin,
}

impl Interface {
    /// All there are.
    pub const ALL: [Interface; 3] = [Interface::Public, Interface::Internal, Interface::Admin];

    /// Its name in a catalog.
    pub fn name(self) -> &'static str {
        match self {
            Interface::Public => "public",
            Interface::Internal => "internal",
            Interface::Admin => "admin",
        }
    }
}

/// Which certificates are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tls {
    /// Those that the system trusts.
    #[default]
    System,
    /// Those that these sign, and no others.
    Authorities {
        /// The certificates, PEM.
        pem: String,
        /// Where they were read, for messages.
        file: String,
    },
    /// Any: whoever is on the way can read and change everything.
    Insecure,
}

impl Credentials {
    /// Of this way to log in, with all else as usual.
    pub fn new(auth: Auth) -> Credentials {
        Credentials {
            auth,
            service: Service::default(),
            tls: Tls::default(),
        }
    }

    /// For Swift's own authentication, of version 1.
    pub fn v1(
        auth_url: impl Into<String>,
        username: impl Into<String>,
        password: impl Into<String>,
    ) -> Credentials {
        Credentials::new(Auth::V1 {
            auth_url: auth_url.into(),
            username: username.into(),
            password: Secret::new(password),
        })
    }
}

impl Credentials {
    /// A name for the account, as far as it is known without asking; without
    /// secrets. Different ones may mean one account.
    pub fn account(&self) -> String {
        let url = self.auth.url();
        let who = match &self.auth {
            Auth::V1 { username, .. } => username.clone(),
            Auth::Password {
                project: Some(project),
                ..
            } => format!("{project:?}"),
            Auth::Password { user, .. } => format!("{user:?}"),
            Auth::ApplicationCredential { credential, .. } => format!("{credential:?}"),
            Auth::Token { .. } => String::new(),
        };
        let region = self.service.region.as_deref().unwrap_or_default();
        format!("{url} {who} {region}")
    }
}

impl Auth {
    /// The address that is asked first: the authentication's, or the account's
    /// where there is none.
    pub fn url(&self) -> &str {
        match self {
            Auth::V1 { auth_url, .. }
            | Auth::Password { auth_url, .. }
            | Auth::ApplicationCredential { auth_url, .. } => auth_url,
            Auth::Token { storage_url, .. } => storage_url,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::V1 { .. } => "V1",
            Auth::Password { .. } => "Password",
            Auth::ApplicationCredential { .. } => "ApplicationCredential",
            Auth::Token { .. } => "Token",
        })
    }
}
