//! What every store refuses before it does anything: names, bodies, limits and
//! metadata that some store could not keep.
//!
//! Knows: the rules of the trait [`ObjectStore`](super::ObjectStore). Does not
//! know: the further limits of one store.

use super::{ErrorKind, MAX_TOGETHER, Metadata, StoreError};

/// The longest object name, in bytes; Swift's own limit.
const MAX_NAME: usize = 1024;
/// The most names that one listing may ask for; Swift's own limit.
pub(super) const MAX_LISTING: usize = 10_000;

/// How errors speak of an object.
pub(super) fn target(container: &str, name: &str) -> String {
    match (container, name) {
        ("", name) => name.to_owned(),
        (container, "") => container.to_owned(),
        (container, name) => format!("{container}/{name}"),
    }
}

/// Refuses an object name that is not one.
pub(super) fn name(operation: &'static str, container: &str, name: &str) -> Result<(), StoreError> {
    let fault = if name.is_empty() {
        "the object name is empty"
    } else if name.len() > MAX_NAME {
        "the object name is longer than 1024 bytes"
    } else if name.contains('\0') {
        "the object name contains a NUL"
    } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "the object name has an empty, '.' or '..' part"
    } else {
        return Ok(());
    };
    let target = target(container, name);
    Err(StoreError::new(
        ErrorKind::Invalid,
        operation,
        target,
        fault,
    ))
}

/// Refuses a PUT that no store takes.
pub(super) fn put(container: &str, object: &str, body: &[u8]) -> Result<(), StoreError> {
    name("PUT", container, object)?;
    if body.is_empty() {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "PUT",
            target(container, object),
            "the body is empty",
        ));
    }
    Ok(())
}

/// Refuses a part of an object that is none, or longer than `most` bytes.
pub(super) fn range(
    container: &str,
    object: &str,
    offset: u64,
    length: u64,
    most: u64,
) -> Result<(), StoreError> {
    name("GET", container, object)?;
    let detail = if length == 0 || length > most {
        format!("a length of {length} bytes is not between 1 and {most}")
    } else if offset.checked_add(length).is_none() {
        format!("{length} bytes from {offset} on end behind every object")
    } else {
        return Ok(());
    };
    let target = target(container, object);
    Err(StoreError::new(ErrorKind::Invalid, "GET", target, detail))
}

/// Refuses a container name that is not one, or that could not be a directory.
pub(super) fn container(name: &str) -> Result<(), StoreError> {
    let fault = if matches!(name, "" | "." | "..") {
        "a container needs a name other than '', '.' and '..'"
    } else if name.len() > 255 {
        "the container's name is longer than 255 bytes"
    } else if name.contains(['/', '\0']) {
        "the container's name contains a slash or a NUL"
    } else {
        return Ok(());
    };
    Err(StoreError::new(ErrorKind::Invalid, "open", name, fault))
}

/// Refuses a limit outside 1 to 10,000.
pub(super) fn limit(container: &str, limit: usize) -> Result<(), StoreError> {
    if (1..=MAX_LISTING).contains(&limit) {
        return Ok(());
    }
    let detail = format!("a limit of {limit} is not between 1 and {MAX_LISTING}");
    Err(StoreError::new(
        ErrorKind::Invalid,
        "list",
        container,
        detail,
    ))
}

/// Refuses names that are none, or too many at once.
pub(super) fn names(container: &str, names: &[String]) -> Result<(), StoreError> {
    if names.len() > MAX_TOGETHER {
        let detail = format!("{} names are more than {MAX_TOGETHER}", names.len());
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "DELETE",
            container,
            detail,
        ));
    }
    names
        .iter()
        .try_for_each(|object| name("DELETE", container, object))
}

/// The failure of removing a container that holds objects.
pub(super) fn not_empty(container: &str, detail: &str) -> StoreError {
    StoreError::new(ErrorKind::Invalid, "DELETE", container, detail)
}

/// Refuses metadata that would not come back as it was given.
pub(super) fn metadata(container: &str, changes: &Metadata) -> Result<(), StoreError> {
    for (key, value) in changes {
        // Swift drops header names with underscores, and HTTP trims values.
        let key_is_fine = (1..=128).contains(&key.len())
            && key
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let value_is_fine = value.len() <= 256
            && value.trim() == value
            && !value.chars().any(|char| char.is_control());
        if !(key_is_fine && value_is_fine) {
            let detail = format!("the metadata {key:?} cannot be stored with that name or value");
            return Err(StoreError::new(
                ErrorKind::Invalid,
                "POST",
                container,
                detail,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        let long = "x".repeat(1025);
        for bad in [
            "", "/", "a//b", "/a", "a/", ".", "a/../b", "a/.", "a\0b", &long,
        ] {
            assert_eq!(
                name("GET", "c", bad).unwrap_err().kind,
                ErrorKind::Invalid,
                "{bad:?}"
            );
        }
        for good in ["a", "a/b", "...", "a/..b", " ", "ä/é", &long[1..]] {
            assert!(name("GET", "c", good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn metadata_that_would_change_on_its_way_is_refused() {
        let one = |key: &str, value: &str| Metadata::from([(key.into(), value.into())]);
        for (key, value) in [
            ("", "v"),
            ("under_score", "v"),
            ("Upper", "v"),
            ("k", " v"),
            ("k", "a\r\nb: c"),
        ] {
            assert!(
                metadata("c", &one(key, value)).is_err(),
                "{key:?} {value:?}"
            );
        }
        assert!(metadata("c", &one("swiftnbd-object-size", "")).is_ok());
        assert!(metadata("c", &one("k", "host@1700000000 é")).is_ok());
    }
}
