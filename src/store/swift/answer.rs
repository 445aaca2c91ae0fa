//! What Swift's answers carry besides a body's bytes: checksums, listings,
//! metadata.
//!
//! Knows: their form. Does not know: requests. Everything here comes from
//! outside: nothing panics on it, and nothing is taken for granted.

use jiff::fmt::rfc2822;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::store::{Listed, Metadata};

const PREFIX: &str = "x-container-meta-";

/// The MD5 in an answer's ETag, if there is a usable one: 32 hexadecimal
/// digits, quoted or not, weak or not.
pub(super) fn etag(headers: &HeaderMap) -> Option<[u8; 16]> {
    let text = headers.get(ETAG)?.to_str().ok()?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    let digits = text.trim_matches('"').as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut md5 = [0; 16];
    for (byte, pair) in md5.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(md5)
}

/// A time in an answer's head (Date, Last-Modified), in seconds since 1970.
pub(super) fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?;
    let date = rfc2822::parse(text).ok()?;
    u64::try_from(date.timestamp().as_second()).ok()
}

/// How many bytes follow in this answer (206 or 416) to a request for `length`
/// bytes from `offset` on, by its Content-Range.
///
/// # Errors
/// It is for another part than that, or does not say for which.
pub(super) fn part(
    status: u16,
    headers: &HeaderMap,
    offset: u64,
    length: u64,
) -> Result<u64, String> {
    let text = headers.get(CONTENT_RANGE).map(HeaderValue::as_bytes);
    let text = String::from_utf8_lossy(text.unwrap_or_default());
    let parsed = text.trim().strip_prefix("bytes ").and_then(|text| {
        let (part, whole) = text.split_once('/')?;
        let whole: u64 = whole.trim().parse().ok()?;
        let expected = whole.saturating_sub(offset).min(length);
        let right = match (status, expected) {
            (416, 0) => part.trim() == "*",
            (206, 1..) => {
                let (first, last) = part.split_once('-')?;
                let (first, last): (u64, u64) =
                    (first.trim().parse().ok()?, last.trim().parse().ok()?);
                (first, last) == (offset, offset + expected - 1)
            }
            _ => false,
        };
        right.then_some(expected)
    });
    parsed.ok_or_else(|| {
        let said: String = text.escape_debug().take(80).collect();
        format!("{status} with the Content-Range '{said}' for {length} bytes from {offset} on")
    })
}

/// An MD5 in hexadecimal digits.
pub(super) fn hex(md5: [u8; 16]) -> String {
    md5.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A listing in JSON, checked against what was asked for.
///
/// # Errors
/// What is wrong with it.
pub(super) fn listing(
    json: &[u8],
    after: &str,
    before: &str,
    limit: usize,
) -> Result<Vec<Listed>, String> {
    #[derive(Deserialize)]
    struct Row {
        name: String,
        bytes: u64,
    }
    let rows: Vec<Row> = serde_json::from_slice(json)
        .map_err(|error| format!("the listing cannot be read: {error}"))?;
    if rows.len() > limit {
        return Err(format!("{} names where {limit} were asked for", rows.len()));
    }
    let mut last = after;
    for row in &rows {
        // An empty `after` is below every name; an empty name never passes.
        if row.name.as_str() <= last || (!before.is_empty() && row.name.as_str() >= before) {
            return Err("the listing's names are not in order or not in bounds".to_owned());
        }
        last = &row.name;
    }
    let listed = rows.into_iter().map(|row| Listed {
        name: row.name,
        size: row.bytes,
    });
    Ok(listed.collect())
}

/// The container's metadata among the headers of an answer.
pub(super) fn metadata(headers: &HeaderMap) -> Metadata {
    let mut metadata = Metadata::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(PREFIX) else {
            continue;
        };
        // The keys of the tempurl middleware are secrets, shown to the owner.
        if key.is_empty() || key.starts_with("temp-url-key") {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        metadata.insert(key.to_owned(), value);
    }
    metadata
}

/// The headers that make these changes; `None` if one cannot be a header.
pub(super) fn metadata_headers(changes: &Metadata) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (key, value) in changes {
        let (name, value) = match value.as_str() {
            "" => (format!("x-remove-container-meta-{key}"), "x"),
            value => (format!("{PREFIX}{key}"), value),
        };
        headers.insert(
            HeaderName::try_from(name).ok()?,
            HeaderValue::from_bytes(value.as_bytes()).ok()?,
        );
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn with_etag(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(ETAG, HeaderValue::from_str(text).unwrap())])
    }

    #[test]
    fn etags_of_every_form() {
        for good in [
            EMPTY.to_owned(),
            format!("\"{EMPTY}\""),
            format!("W/\"{EMPTY}\""),
            EMPTY.to_uppercase(),
        ] {
            let md5 = etag(&with_etag(&good)).unwrap();
            assert_eq!(hex(md5), EMPTY, "{good}");
        }
        for bad in [
            "",
            "\"\"",
            &EMPTY[1..],
            &EMPTY.replace('d', "g"),
            &format!("{EMPTY}-2"),
        ] {
            assert_eq!(etag(&with_etag(bad)), None, "{bad}");
        }
        assert_eq!(etag(&HeaderMap::new()), None);
    }

    #[test]
    fn a_part_must_be_the_one_that_was_asked_for() {
        let said = |status, text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, value)]);
            part(status, &headers, 10, 5)
        };
        assert_eq!(said(206, "bytes 10-14/15"), Ok(5));
        assert_eq!(said(206, "bytes 10-14/1000"), Ok(5));
        assert_eq!(said(206, "bytes 10-12/13"), Ok(3));
        assert_eq!(said(416, "bytes */10"), Ok(0));
        assert_eq!(said(416, "bytes */3"), Ok(0));
        for (status, bad) in [
            (206, ""),
            (206, "bytes"),
            (206, "bytes 10-14"),
            (206, "bytes 10-14/*"),
            (206, "bytes 0-4/15"),
            (206, "bytes 10-15/16"),
            (206, "bytes 10-13/15"),
            (206, "bytes 10-14/12"),
            (206, "bytes 10-9/10"),
            (206, "bytes */10"),
            (206, "bytes 10-99999999999999999999999/15"),
            (416, "bytes */11"),
            (416, "bytes 10-14/15"),
            (416, ""),
        ] {
            assert!(said(status, bad).is_err(), "{status} {bad}");
        }
        assert!(part(206, &HeaderMap::new(), 10, 5).is_err());
        assert!(part(206, &HeaderMap::new(), u64::MAX - 1, 1).is_err());
    }

    #[test]
    fn a_listing_must_be_what_was_asked_for() {
        let json = br#"[{"name":"b","bytes":1,"hash":"x"},{"name":"c","bytes":2}]"#;
        let names = |after, before, limit| {
            listing(json, after, before, limit)
                .map(|rows| rows.iter().map(|row| row.name.clone()).collect::<String>())
        };
        assert_eq!(names("", "", 2).unwrap(), "bc");
        assert_eq!(names("a", "d", 9).unwrap(), "bc");
        assert!(names("b", "", 2).is_err());
        assert!(names("", "c", 2).is_err());
        assert!(names("", "", 1).is_err());
        assert!(
            listing(
                br#"[{"name":"b","bytes":1},{"name":"b","bytes":1}]"#,
                "",
                "",
                9
            )
            .is_err()
        );
        assert!(listing(br#"[{"name":"","bytes":1}]"#, "", "", 9).is_err());
        assert!(listing(br#"[{"subdir":"b/"}]"#, "", "", 9).is_err());
        assert!(listing(br#"[{"name":"b","bytes":-1}]"#, "", "", 9).is_err());
    }

    #[test]
    fn metadata_goes_out_and_comes_back() {
        let changes = Metadata::from([
            ("swiftnbd-client".to_owned(), "é@1".to_owned()),
            ("gone".to_owned(), String::new()),
        ]);
        let mut headers = metadata_headers(&changes).unwrap();
        assert_eq!(headers["x-remove-container-meta-gone"], "x");
        headers.insert(
            "x-container-meta-temp-url-key-2",
            "hunter2".parse().unwrap(),
        );
        assert_eq!(
            metadata(&headers),
            Metadata::from([("swiftnbd-client".to_owned(), "é@1".to_owned())])
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(
            json in proptest::collection::vec(any::<u8>(), 0..200),
            value in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = listing(&json, "", "", 10);
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let key = HeaderName::from_static("x-container-meta-k");
                let headers = HeaderMap::from_iter([(ETAG, value.clone()), (key, value.clone())]);
                let _ = etag(&headers);
                let range = HeaderMap::from_iter([(CONTENT_RANGE, value.clone())]);
                let _ = (part(206, &range, 1, 1), part(416, &range, 1, 1));
                prop_assert_eq!(metadata(&headers).len(), 1);
            }
        }

        #[test]
        fn what_passes_as_a_listing_is_in_order(
            names in proptest::collection::vec("[a-c]{0,3}", 0..6),
            after in "[a-c]{0,2}", before in "[a-c]{0,2}", limit in 1_usize..6,
        ) {
            let rows: Vec<_> = names.iter()
                .map(|name| serde_json::json!({"name": name, "bytes": 1}))
                .collect();
            let json = serde_json::to_vec(&rows).unwrap();
            if let Ok(listed) = listing(&json, &after, &before, limit) {
                prop_assert!(listed.len() <= limit);
                prop_assert!(listed.is_sorted_by(|a, b| a.name < b.name));
                prop_assert!(listed.iter().all(|row| row.name > after));
                prop_assert!(before.is_empty() || listed.iter().all(|row| row.name < before));
            }
        }
    }
}
