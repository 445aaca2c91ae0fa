//! A token, how long it holds, and the account that it opens.
//!
//! Knows: our own clock, what a URL and a header may be. Does not know: how a
//! token is had.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio::time::Instant;

use super::catalog;
use crate::store::swift::request::shown;
use crate::store::{ErrorKind, StoreError};

/// What a successful authentication gave.
pub(super) struct Session {
    /// The storage URL without a slash at its end.
    pub(super) storage_url: String,
    pub(super) token: HeaderValue,
    /// When to have a new one, and when this one ends; where it is known.
    pub(super) times: Option<Times>,
}

/// By our own clock, since a token's time is only known from when it came.
pub(super) struct Times {
    renew: Instant,
    pub(super) end: Instant,
}

impl Session {
    /// `lifetime`: how long the token holds, from now on.
    pub(super) fn new(
        storage_url: &str,
        mut token: HeaderValue,
        lifetime: Option<Duration>,
    ) -> Session {
        token.set_sensitive(true);
        let now = Instant::now();
        let times = lifetime.and_then(|lifetime| {
            Some(Times {
                renew: now.checked_add(lifetime / 3 * 2)?,
                end: now.checked_add(lifetime)?,
            })
        });
        Session {
            storage_url: storage_url.trim_end_matches('/').to_owned(),
            token,
            times,
        }
    }

    /// Whether this is the account that the pin names; the first one sets it. Other
    /// credentials may be for another account, where a container of the same name
    /// may be another volume.
    pub(super) fn check(&self, pin: &OnceLock<String>) -> Result<(), StoreError> {
        let name = self.storage_url.rsplit('/').next().unwrap_or_default();
        let wanted = pin.get_or_init(|| name.to_owned());
        if wanted == name {
            return Ok(());
        }
        let name = catalog::plain(name);
        let detail = format!("the credentials are for the account {name}, not for {wanted}");
        Err(
            StoreError::new(ErrorKind::Denied, "open", shown(&self.storage_url), detail)
                .hint("a volume cannot move while it is open: correct the credentials"),
        )
    }

    pub(super) fn is_due(&self) -> bool {
        self.times
            .as_ref()
            .is_some_and(|times| times.renew <= Instant::now())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.times
            .as_ref()
            .is_some_and(|times| times.end <= Instant::now())
    }
}

/// A URL with http or https, a host, and neither a user part nor a query.
pub(super) fn plain_url(url: &str) -> Result<(), ()> {
    let url = Url::parse(url).map_err(drop)?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    plain.then_some(()).ok_or(())
}

pub(super) fn header(text: &str) -> Result<HeaderValue, StoreError> {
    let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        StoreError::new(
            ErrorKind::Invalid,
            "open",
            "credentials",
            "the user name, the password or the token has a character that HTTP cannot carry",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}
