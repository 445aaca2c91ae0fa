//! Keystone, version 3: a token and a catalog for a password or for an
//! application credential.
//!
//! Knows: its requests, its answers, what a refusal of it means. Does not know:
//! when a token is needed.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::catalog::{self, Entry, listed, plain};
use super::conversation::{Answer, Conversation};
use super::session::{Session, header};
use crate::credentials::{Auth, Credential, Credentials, Domain, Project, User};
use crate::store::{ErrorKind, StoreError};

/// The address of version 3, whichever was written: there is no other any more.
pub(super) fn base(auth_url: &str) -> String {
    let url = auth_url.trim_end_matches('/');
    let url = url.strip_suffix("/v3").unwrap_or(url);
    let url = url.strip_suffix("/v2.0").unwrap_or(url);
    format!("{url}/v3")
}

#[derive(Debug, Deserialize)]
struct Issued {
    token: Token,
}

#[derive(Debug, Deserialize)]
struct Token {
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    issued_at: Option<String>,
    #[serde(default)]
    project: Option<Value>,
    #[serde(default)]
    catalog: Vec<Entry>,
}

/// `examine`: find out what is wrong with credentials that are refused.
pub(super) async fn log_in(
    conversation: &Conversation<'_>,
    credentials: &Credentials,
    examine: bool,
) -> Result<Session, StoreError> {
    let auth = &credentials.auth;
    let answer = issue(conversation, &request(auth, project(auth).map(scope))).await?;
    if answer.status.as_u16() != 201 {
        let refused = refusal(conversation, auth, &answer);
        return match project(auth) {
            Some(project) if examine && answer.status.as_u16() == 401 => {
                Err(without_project(conversation, auth, project)
                    .await
                    .unwrap_or(refused))
            }
            _ => Err(refused),
        };
    }
    let wrong = |why: &str| conversation.refusal(&answer, ErrorKind::Invalid, why);
    let token = subject(&answer).ok_or_else(|| wrong("the answer has no X-Subject-Token"))?;
    let issued: Issued =
        serde_json::from_slice(&answer.body).map_err(|_| wrong("the answer is not Keystone's"))?;
    if issued.token.project.is_none() {
        return Err(wrong("the token is for no project").hint(
            "the user has no default project: write project_name (and project_domain_name), or \
             project_id",
        ));
    }
    let url = catalog::storage_url(&issued.token.catalog, &credentials.service)
        .map_err(|unfit| wrong(&unfit.why).hint(unfit.hint))?;
    Ok(Session::new(url, token, lifetime(&issued.token, &answer)))
}

async fn issue(conversation: &Conversation<'_>, body: &Value) -> Result<Answer, StoreError> {
    let request = conversation
        .client
        .post(format!("{}/auth/tokens", conversation.url))
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_string());
    conversation.ask(request).await
}

fn subject(answer: &Answer) -> Option<HeaderValue> {
    let token = answer.headers.get("x-subject-token")?;
    (!token.is_empty()).then(|| token.clone())
}

fn project(auth: &Auth) -> Option<&Project> {
    match auth {
        Auth::Password { project, .. } => project.as_ref(),
        _ => None,
    }
}

/// The body of a request for a token. An application credential has its scope.
fn request(auth: &Auth, scope: Option<Value>) -> Value {
    let identity = match auth {
        Auth::ApplicationCredential {
            credential, secret, ..
        } => {
            let mut it = match credential {
                Credential::Id(id) => json!({ "id": id }),
                Credential::Name(name, user) => json!({ "name": name, "user": who(user) }),
            };
            it["secret"] = secret.expose().into();
            json!({ "methods": ["application_credential"], "application_credential": it })
        }
        Auth::Password { user, password, .. } => {
            let mut it = who(user);
            it["password"] = password.expose().into();
            json!({ "methods": ["password"], "password": { "user": it } })
        }
        // They never ask Keystone.
        Auth::V1 { .. } | Auth::Token { .. } => Value::Null,
    };
    match scope {
        Some(scope) => json!({ "auth": { "identity": identity, "scope": scope } }),
        None => json!({ "auth": { "identity": identity } }),
    }
}

fn who(user: &User) -> Value {
    match user {
        User::Id(id) => json!({ "id": id }),
        User::Name(name, domain) => json!({ "name": name, "domain": of(domain) }),
    }
}

fn scope(project: &Project) -> Value {
    match project {
        Project::Id(id) => json!({ "project": { "id": id } }),
        Project::Name(name, domain) => {
            json!({ "project": { "name": name, "domain": of(domain) } })
        }
    }
}

fn of(domain: &Domain) -> Value {
    match domain {
        Domain::Id(id) => json!({ "id": id }),
        Domain::Name(name) => json!({ "name": name }),
    }
}

/// How long the token holds, by Keystone's own clock: ours may be wrong.
fn lifetime(token: &Token, answer: &Answer) -> Option<Duration> {
    let end: Timestamp = token.expires_at.as_ref()?.parse().ok()?;
    let issued = token.issued_at.as_ref().and_then(|at| at.parse().ok());
    let date = || {
        let date = answer.headers.get(DATE)?.to_str().ok()?;
        rfc2822::parse(date).ok().map(|date| date.timestamp())
    };
    let left = end.as_second() - issued.or_else(date)?.as_second();
    u64::try_from(left)
        .ok()
        .filter(|left| *left > 0)
        .map(Duration::from_secs)
}

fn refusal(conversation: &Conversation<'_>, auth: &Auth, answer: &Answer) -> StoreError {
    let by_credential = matches!(auth, Auth::ApplicationCredential { .. });
    // Anybody says 404, but this way only Keystone.
    let is_keystone = serde_json::from_slice::<Value>(&answer.body)
        .is_ok_and(|body| body.pointer("/error/code").is_some());
    match answer.status.as_u16() {
        404 if by_credential && is_keystone => conversation
            .refusal(
                answer,
                ErrorKind::Denied,
                "the application credential does not exist: it was deleted, or never was",
            )
            .hint(
                "make a new one (`openstack application credential create`) and write its id and \
                 secret in the configuration",
            ),
        404 => conversation.refusal(
            answer,
            ErrorKind::Invalid,
            "no Keystone v3 at this address (check auth_url)",
        ),
        401 | 403 if by_credential => conversation
            .refusal(
                answer,
                ErrorKind::Denied,
                "the application credential or its secret was refused",
            )
            .hint(
                "check application_credential_id and application_credential_secret; it may also \
                 have expired, or its user been disabled",
            ),
        401 | 403 => conversation
            .refusal(
                answer,
                ErrorKind::Denied,
                "the user, the password or the project was refused",
            )
            .hint(
                "check username, user_domain_name, password, project_name and project_domain_name \
                 in the configuration",
            ),
        _ => conversation.usual_refusal(answer),
    }
}

#[derive(Debug, Deserialize)]
struct Projects {
    projects: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// After a refusal: what it is if it is the project that is wrong. Keystone says
/// the same of a wrong password.
async fn without_project(
    conversation: &Conversation<'_>,
    auth: &Auth,
    project: &Project,
) -> Option<StoreError> {
    let unscoped = request(auth, Some("unscoped".into()));
    let answer = issue(conversation, &unscoped).await.ok()?;
    if answer.status.as_u16() == 401 {
        return Some(
            conversation
                .refusal(
                    &answer,
                    ErrorKind::Denied,
                    "the user or the password was refused",
                )
                .hint("check username, user_domain_name and password in the configuration"),
        );
    }
    let token = header(subject(&answer)?.to_str().ok()?).ok()?;
    let name = match project {
        Project::Id(name) | Project::Name(name, _) => plain(name),
    };
    let why = format!("project {name} does not exist, or this user has no role in it");
    let request = conversation
        .client
        .get(format!("{}/auth/projects", conversation.url))
        .header("x-auth-token", token);
    let projects = conversation.ask(request).await.ok();
    let projects: Option<Projects> =
        projects.and_then(|answer| serde_json::from_slice(&answer.body).ok());
    let names = projects.map(|found| {
        let names = found.projects.iter().map(|project| project.name.as_str());
        format!("the user's projects are: {}; ", listed(names))
    });
    let names = names.unwrap_or_default();
    Some(
        conversation
            .failure(ErrorKind::Denied, why)
            .hint(format!("{names}check project_name and project_domain_name")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;

    #[test]
    fn the_address_of_version_3() {
        for url in [
            "http://h:5000",
            "http://h:5000/",
            "http://h:5000/v3/",
            "http://h:5000/v2.0",
        ] {
            assert_eq!(base(url), "http://h:5000/v3");
        }
        assert_eq!(base("https://h/identity/v3"), "https://h/identity/v3");
    }

    #[test]
    fn a_token_holds_by_the_clock_of_whoever_issued_it() {
        let seconds = |issued: Option<&str>, date: Option<&str>| {
            let token = Token {
                expires_at: Some("2001-01-01T01:00:00.000000Z".to_owned()),
                issued_at: issued.map(str::to_owned),
                project: None,
                catalog: Vec::new(),
            };
            let mut headers = HeaderMap::new();
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            let answer = Answer {
                status: StatusCode::CREATED,
                headers,
                body: Vec::new(),
            };
            lifetime(&token, &answer).map(|time| time.as_secs())
        };
        let date = Some("Mon, 01 Jan 2001 00:59:50 GMT");
        assert_eq!(
            seconds(Some("2001-01-01T00:00:00.000000Z"), date),
            Some(3600)
        );
        assert_eq!(seconds(None, date), Some(10));
        assert_eq!(seconds(Some("2001-01-01T02:00:00.000000Z"), date), None);
        assert_eq!(seconds(Some("nonsense"), None), None);
    }
}
