//! Swift's own authentication, of version 1: `X-Auth-User` and `X-Auth-Key` for
//! `X-Auth-Token` and `X-Storage-Url`.

use std::time::Duration;

use reqwest::header::HeaderMap;

use super::conversation::Conversation;
use super::session::{Session, header, plain_url};
use crate::credentials::Secret;
use crate::store::swift::request::describe;
use crate::store::{ErrorKind, StoreError};

pub(super) async fn log_in(
    conversation: &Conversation<'_>,
    username: &str,
    password: &Secret,
) -> Result<Session, StoreError> {
    let request = conversation
        .client
        .get(conversation.url)
        .header("x-auth-user", header(username)?)
        .header("x-auth-key", header(password.expose())?);
    let answer = conversation.ask(request).await?;
    match answer.status.as_u16() {
        200..=299 => session(&answer.headers).map_err(|fault| {
            let detail = describe(answer.status, fault, &answer.headers);
            conversation.failure(ErrorKind::Invalid, detail)
        }),
        401 | 403 => {
            let meaning = "the user name or the password was refused";
            let error = conversation.refusal(&answer, ErrorKind::Denied, meaning);
            Err(error.hint("check username (account:user) and password in the configuration"))
        }
        404 => {
            let meaning = "no authentication at this address (check auth_url)";
            Err(conversation.refusal(&answer, ErrorKind::Invalid, meaning))
        }
        _ => Err(conversation.usual_refusal(&answer)),
    }
}

fn session(headers: &HeaderMap) -> Result<Session, &'static str> {
    let token = headers
        .get("x-auth-token")
        .or_else(|| headers.get("x-storage-token"))
        .filter(|token| !token.is_empty())
        .ok_or("the answer has no X-Auth-Token")?
        .clone();
    let url = headers
        .get("x-storage-url")
        .and_then(|url| url.to_str().ok())
        .ok_or("the answer has no X-Storage-Url")?;
    plain_url(url).map_err(|()| "the answer's X-Storage-Url is not a plain http or https URL")?;
    // Seconds from now on.
    let lifetime = headers
        .get("x-auth-token-expires")
        .and_then(|seconds| seconds.to_str().ok()?.trim().parse().ok())
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    Ok(Session::new(url, token, lifetime))
}
