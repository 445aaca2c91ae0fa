//! From what all sources say together to checked [`Credentials`].
//!
//! Knows: which source wins, which keys each way to log in needs, what to say when
//! one is missing. Does not know: how a source is read.

use std::path::Path;

use super::keys::{Key, Version, parse_bool, parse_interface};
use super::login::{Login, WAYS};
use super::settings::VolumeSettings;
use super::{Config, Origin, file};
use crate::credentials::{
    Auth, Credential, Credentials, Domain, Project, Secret, Service, Tls, User,
};
use crate::error::{Error, Result};

/// The domain that every Keystone begins with.
const DEFAULT_DOMAIN: &str = "Default";

impl Config {
    /// The account of this volume, as all sources say together.
    pub(super) fn account(&self, name: &str, settings: &VolumeSettings) -> Result<Credentials> {
        let mut login = self.with_cloud(&settings.login)?;
        if let Some(every) = &self.settings.every {
            login = login.over(&self.with_cloud(every)?);
        }
        if let Some(original) = &self.sources.original {
            login = original.apply(name, login)?;
        }
        if matches!(auth(&login), Err(Lacking::Keys(_))) {
            let environment = &self.sources.environment;
            // What a file says was checked when it was read.
            environment.check().map_err(|(key, why)| {
                let variable = self.variable(key);
                Error::usage(format!("{variable} in the environment: {why}"))
            })?;
            login = login.over(&self.with_cloud(environment)?);
        }
        match auth(&login) {
            Ok(auth) => {
                credentials(&login, auth).map_err(|error| error.context(format!("volume '{name}'")))
            }
            Err(Lacking::Keys(missing)) => Err(self.incomplete(name, &login, &missing)),
            Err(Lacking::TwoWays(one, other)) => Err(Error::usage(format!(
                "volume '{name}': {} and {} are two ways to log in",
                one.in_toml(),
                other.in_toml()
            ))
            .hint("leave one of them out")),
        }
    }

    /// This login, completed by the cloud that it names.
    fn with_cloud(&self, login: &Login) -> Result<Login> {
        match login.get(Key::Cloud) {
            None => Ok(login.clone()),
            Some(cloud) => {
                let rest = login.clone().without(&[Key::Cloud]);
                Ok(rest.over(&self.sources.clouds.login(cloud)?))
            }
        }
    }

    /// Whether the environment alone names an account.
    pub(super) fn environment_suffices(&self) -> bool {
        let environment = &self.sources.environment;
        environment.has(Key::Cloud) || auth(environment).is_ok()
    }

    /// The variable that set this key.
    fn variable(&self, key: Key) -> &'static str {
        let keystone = self.sources.environment.version() == Some(Version::V3);
        match key.in_st() {
            Some(variable) if !keystone => variable,
            _ => key.variables()[0],
        }
    }

    /// Lists what is missing, and shows what to write and where.
    fn incomplete(&self, name: &str, login: &Login, missing: &[Key]) -> Error {
        let keystone = login.version() == Some(Version::V3) || login.has(Key::CredentialSecret);
        let in_ini = |key: &Key| (self.origin == Origin::Ini).then(|| key.in_ini())?;
        let key_name = |key: &Key| in_ini(key).unwrap_or(key.in_toml());
        let line = |key: &Key| {
            let example = match key {
                Key::AuthUrl if keystone => "https://keystone.example/v3",
                Key::Username if keystone => "the user",
                _ => key.example(),
            };
            match in_ini(key) {
                Some(name) => format!("    {name} = {example}\n"),
                None => format!("    {} = \"{example}\"\n", key.in_toml()),
            }
        };
        let variable = |key: &Key| match key.in_st() {
            Some(variable) if !keystone => variable,
            _ => key.variables()[0],
        };
        let section = match self.origin {
            Origin::Ini => format!("[{name}]"),
            Origin::Toml | Origin::Nothing => "[swift]".to_owned(),
        };
        let lines: String = missing.iter().map(line).collect();
        let variables: Vec<&str> = missing.iter().map(variable).collect();
        let keys: Vec<&str> = missing.iter().map(key_name).collect();
        Error::usage(format!(
            "volume '{name}': the Swift account is not complete: no {}",
            keys.join(", no ")
        ))
        .hint(format!(
            "write in {}\n\n    {section}\n{lines}\nor set {} in the environment",
            self.file.display(),
            variables.join(", ")
        ))
    }
}

/// Why there are no credentials.
#[derive(Debug)]
enum Lacking {
    /// These keys are not there.
    Keys(Vec<Key>),
    /// These two contradict each other.
    TwoWays(Key, Key),
}

type Found<T> = std::result::Result<T, Lacking>;

/// The way to log in that this login describes. Its values were checked.
fn auth(login: &Login) -> Found<Auth> {
    let mut ways = WAYS.into_iter().enumerate().filter_map(|(number, keys)| {
        let key = keys.iter().find(|key| login.has(**key))?;
        Some((number, *key))
    });
    let way = ways.next();
    if let (Some((_, one)), Some((_, other))) = (way, ways.next()) {
        return Err(Lacking::TwoWays(one, other));
    }
    let v1 = login.version().unwrap_or(Version::V1) == Version::V1;
    match way.map_or(0, |(number, _)| number) {
        1 if login.has(Key::CredentialId) => {
            let [auth_url, id, secret] = need(
                login,
                [Key::AuthUrl, Key::CredentialId, Key::CredentialSecret],
            )?;
            Ok(Auth::ApplicationCredential {
                auth_url,
                credential: Credential::Id(id),
                secret: Secret::new(secret),
            })
        }
        1 => application_credential(login),
        2 => {
            let [storage_url, token] = need(login, [Key::StorageUrl, Key::Token])?;
            Ok(Auth::Token {
                storage_url,
                token: Secret::new(token),
            })
        }
        _ if v1 => {
            let [auth_url, username, password] =
                need(login, [Key::AuthUrl, Key::Username, Key::Password])?;
            Ok(Auth::V1 {
                auth_url,
                username,
                password: Secret::new(password),
            })
        }
        _ => by_password(login),
    }
}

fn by_password(login: &Login) -> Found<Auth> {
    let who = who(login);
    let [auth_url, _, password] = need(login, [Key::AuthUrl, who, Key::Password])?;
    Ok(Auth::Password {
        auth_url,
        user: user(login),
        password: Secret::new(password),
        project: project(login),
    })
}

fn application_credential(login: &Login) -> Found<Auth> {
    if !login.has(Key::CredentialName) {
        need(
            login,
            [Key::AuthUrl, Key::CredentialId, Key::CredentialSecret],
        )?;
    }
    let who = who(login);
    let [auth_url, name, _, secret] = need(
        login,
        [
            Key::AuthUrl,
            Key::CredentialName,
            who,
            Key::CredentialSecret,
        ],
    )?;
    Ok(Auth::ApplicationCredential {
        auth_url,
        credential: Credential::Name(name, user(login)),
        secret: Secret::new(secret),
    })
}

/// The key that says who the user is, or should.
fn who(login: &Login) -> Key {
    match login.has(Key::UserId) {
        true => Key::UserId,
        false => Key::Username,
    }
}

fn user(login: &Login) -> User {
    match (login.get(Key::UserId), login.get(Key::Username)) {
        (Some(id), _) => User::Id(id.to_owned()),
        (None, name) => User::Name(
            name.unwrap_or_default().to_owned(),
            domain(login, Key::UserDomainId, Key::UserDomain),
        ),
    }
}

fn project(login: &Login) -> Option<Project> {
    if let Some(id) = login.get(Key::ProjectId) {
        return Some(Project::Id(id.to_owned()));
    }
    let name = login.get(Key::Project)?.to_owned();
    let domain = domain(login, Key::ProjectDomainId, Key::ProjectDomain);
    Some(Project::Name(name, domain))
}

fn domain(login: &Login, id: Key, name: Key) -> Domain {
    match login.get(id) {
        Some(id) => Domain::Id(id.to_owned()),
        None => Domain::Name(login.get(name).unwrap_or(DEFAULT_DOMAIN).to_owned()),
    }
}

/// The values of these keys, or those that are not there.
fn need<const N: usize>(login: &Login, keys: [Key; N]) -> Found<[String; N]> {
    let missing: Vec<Key> = keys.into_iter().filter(|key| !login.has(*key)).collect();
    match missing.is_empty() {
        true => Ok(keys.map(|key| login.get(key).unwrap_or_default().to_owned())),
        false => Err(Lacking::Keys(missing)),
    }
}

/// The credentials of this way to log in, with what else the login says.
fn credentials(login: &Login, auth: Auth) -> Result<Credentials> {
    let usual = Service::default();
    let interface = login.get(Key::Interface).map(parse_interface);
    let service = Service {
        kind: login
            .get(Key::ServiceType)
            .map_or(usual.kind, str::to_owned),
        region: login.get(Key::Region).map(str::to_owned),
        interface: interface
            .and_then(std::result::Result::ok)
            .unwrap_or_default(),
    };
    let insecure = login.get(Key::Insecure).map(parse_bool) == Some(Ok(true));
    let tls = match login.get(Key::CaFile) {
        _ if insecure => Tls::Insecure,
        Some(path) => authorities(path)?,
        None => Tls::System,
    };
    Ok(Credentials { auth, service, tls })
}

/// The certificates of this file. That they are usable is seen when they are used.
fn authorities(path: &str) -> Result<Tls> {
    let text = file::read(Path::new(path))?.map(|text| text.body);
    match text {
        Some(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => Ok(Tls::Authorities {
            pem,
            file: path.to_owned(),
        }),
        Some(_) => Err(
            Error::usage(format!("ca_file {path}: there is no certificate in it"))
                .hint("it must be PEM: -----BEGIN CERTIFICATE-----"),
        ),
        None => Err(Error::usage(format!("ca_file {path} does not exist"))),
    }
}
