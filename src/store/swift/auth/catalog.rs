//! Keystone's catalog: which of its addresses is the account's.
//!
//! Knows: services, regions, interfaces, and what to say when none fits. Does not
//! know: how the catalog was had. It comes from outside: what is shown of it is
//! bounded and plain.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::session::plain_url;
use crate::credentials::{Interface, Service};

/// At most so many names are listed in a hint.
const MAX_LISTED: usize = 8;

/// One service of a catalog.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    interface: String,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    region_id: Option<String>,
    #[serde(default)]
    url: String,
}

impl Endpoint {
    fn region(&self) -> &str {
        let region = self.region_id.as_deref().or(self.region.as_deref());
        region.unwrap_or_default()
    }
}

/// Why a catalog is of no use, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) why: String,
    pub(super) hint: String,
}

/// The account's address.
pub(super) fn storage_url<'a>(catalog: &'a [Entry], service: &Service) -> Result<&'a str, Unfit> {
    let kind = plain(&service.kind);
    let endpoints: Vec<&Endpoint> = catalog
        .iter()
        .filter(|entry| entry.kind == service.kind)
        .flat_map(|entry| &entry.endpoints)
        .collect();
    if endpoints.is_empty() {
        let kinds = listed(catalog.iter().map(|entry| entry.kind.as_str()));
        return Err(Unfit {
            why: format!("the catalog has no object store (no service of type {kind})"),
            hint: format!(
                "ask the cloud's operator for one, or choose another project; its services \
                 are: {kinds}"
            ),
        });
    }
    let wanted = |endpoint: &&&Endpoint| {
        let region = service.region.as_deref();
        region.is_none_or(|region| endpoint.region() == region)
    };
    let there: Vec<&Endpoint> = endpoints.iter().filter(wanted).copied().collect();
    if there.is_empty() {
        let region = plain(service.region.as_deref().unwrap_or_default());
        let regions = listed(endpoints.iter().map(|endpoint| endpoint.region()));
        return Err(Unfit {
            why: format!("the object store is not in region {region}"),
            hint: format!("its regions are: {regions}; write one of them as region"),
        });
    }
    let interface = service.interface;
    let fit: Vec<&Endpoint> = there
        .iter()
        .filter(|endpoint| is_interface(&endpoint.interface, interface))
        .copied()
        .collect();
    let Some(endpoint) = fit.first() else {
        let names = listed(there.iter().map(|endpoint| endpoint.interface.as_str()));
        return Err(Unfit {
            why: format!("the object store has no {} interface", interface.name()),
            hint: format!("there is: {names}; write one of them as interface"),
        });
    };
    // A catalog has no order: the next token could lead elsewhere.
    if fit.iter().any(|other| other.region() != endpoint.region()) {
        let regions = listed(fit.iter().map(|endpoint| endpoint.region()));
        return Err(Unfit {
            why: "the object store is in several regions".to_owned(),
            hint: format!("write one of them as region: {regions}"),
        });
    }
    plain_url(&endpoint.url)
        .map(|()| endpoint.url.as_str())
        .map_err(|()| Unfit {
            why: "the object store's address in the catalog is not a plain URL".to_owned(),
            hint: "ask the cloud's operator to correct it".to_owned(),
        })
}

/// The old catalogs say `publicURL`.
fn is_interface(name: &str, interface: Interface) -> bool {
    name.strip_suffix("URL").unwrap_or(name) == interface.name()
}

/// Different names, a few of them.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.filter(|name| !name.is_empty()).collect();
    let mut shown: Vec<String> = names.iter().take(MAX_LISTED).copied().map(plain).collect();
    if names.len() > MAX_LISTED {
        shown.push("…".to_owned());
    }
    match shown.is_empty() {
        true => "none".to_owned(),
        false => shown.join(", "),
    }
}

/// A name as it may be shown.
pub(super) fn plain(name: &str) -> String {
    let clean = name.chars().filter(|c| !c.is_control());
    clean.take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Vec<Entry> {
        let text = r#"[
            {"type": "identity", "endpoints": []},
            {"type": "object-store", "endpoints": [
                {"interface": "public", "region": "one", "region_id": "one", "url": "http://p1/v1/A"},
                {"interface": "internal", "region": "one", "url": "http://i1/v1/A"},
                {"interface": "publicURL", "region": "two", "url": "http://p2/v1/A"},
                {"interface": "admin", "region": "two", "url": "http://u:p@a2/"}
            ]}
        ]"#;
        serde_json::from_str(text).unwrap()
    }

    fn choose(kind: &str, region: Option<&str>, interface: Interface) -> Result<String, Unfit> {
        let service = Service {
            kind: kind.to_owned(),
            region: region.map(str::to_owned),
            interface,
        };
        storage_url(&catalog(), &service).map(str::to_owned)
    }

    #[test]
    fn an_address_is_chosen_by_region_and_interface() {
        use Interface::*;
        for (region, interface, url) in [
            (Some("one"), Public, "http://p1/v1/A"),
            (None, Internal, "http://i1/v1/A"),
            (Some("two"), Public, "http://p2/v1/A"),
        ] {
            assert_eq!(choose("object-store", region, interface).unwrap(), url);
        }
    }

    #[test]
    fn what_does_not_fit_names_what_there_is() {
        use Interface::*;
        for (kind, region, interface, why, hint) in [
            (
                "s3",
                None,
                Public,
                "no object store",
                "identity, object-store",
            ),
            (
                "object-store",
                None,
                Public,
                "in several regions",
                "one, two",
            ),
            (
                "object-store",
                Some("three"),
                Public,
                "region three",
                "one, two",
            ),
            (
                "object-store",
                Some("two"),
                Internal,
                "no internal",
                "admin, publicURL",
            ),
            ("object-store", Some("two"), Admin, "not a plain URL", ""),
        ] {
            let unfit = choose(kind, region, interface).unwrap_err();
            assert!(unfit.why.contains(why), "{unfit:?}");
            assert!(unfit.hint.contains(hint), "{unfit:?}");
        }
        let many: Vec<String> = (10..30).map(|number| format!("r{number}\n")).collect();
        let shown = listed(many.iter().map(String::as_str));
        assert!(shown.ends_with("r17, …"), "{shown}");
    }
}
