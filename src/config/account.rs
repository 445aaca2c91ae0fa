//! From what all sources say together to checked [`Credentials`].
//!
//! Knows: which keys each way to log in needs. Does not know: where they are
//! from.

use std::path::Path;

use super::file;
use super::login::{Key, Login, Version, WAYS, parse_bool, parse_interface};
use crate::credentials::{
    Auth, Credential, Credentials, Domain, Project, Secret, Service, Tls, User,
};
use crate::error::{Error, Result};

/// The domain that every Keystone begins with.
const DEFAULT_DOMAIN: &str = "Default";

/// Why there are no credentials.
#[derive(Debug)]
pub(super) enum Lacking {
    /// These keys are not there.
    Keys(Vec<Key>),
    /// These two contradict each other.
    TwoWays(Key, Key),
}

type Found<T> = std::result::Result<T, Lacking>;

/// The way to log in that this login describes. Its values were checked.
pub(super) fn auth(login: &Login) -> Found<Auth> {
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
pub(super) fn credentials(login: &Login, auth: Auth) -> Result<Credentials> {
    let mut service = Service::default();
    service.region = login.get(Key::Region).map(str::to_owned);
    if let Some(kind) = login.get(Key::ServiceType) {
        service.kind = kind.to_owned();
    }
    if let Some(Ok(interface)) = login.get(Key::Interface).map(parse_interface) {
        service.interface = interface;
    }
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
