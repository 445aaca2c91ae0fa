//! OpenStack's own files: clouds.yaml, secure.yaml and clouds-public.yaml.
//!
//! Knows: where they are looked for, how they complete each other, and the keys
//! that matter here; others belong to other programs and are left alone. Does not
//! know: what else is configured.
//!
//! Of each kind the first file that exists is read, as OpenStack's clients do.
//! No message quotes a file: there are passwords in it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::file;
use super::keys::Key;
use super::login::{Login, WAYS};
use super::settings::Source;
use super::values::{Checked, nearest, quoted};
use crate::error::{Error, Result};

/// Where the files are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloudFiles {
    /// `OS_CLIENT_CONFIG_FILE`: instead of the first clouds.yaml.
    pub clouds: Option<PathBuf>,
    /// `OS_CLIENT_SECURE_FILE`: instead of the first secure.yaml.
    pub secure: Option<PathBuf>,
    /// `OS_CLIENT_VENDOR_FILE`: instead of the first clouds-public.yaml.
    pub public: Option<PathBuf>,
    /// The directories, the first one first; absolute.
    pub directories: Vec<PathBuf>,
}

impl CloudFiles {
    /// The usual places: what the variables name, the current directory, the
    /// user's configuration, `/etc/openstack`.
    pub fn usual(variable: impl Fn(&str) -> Option<String>) -> CloudFiles {
        let path = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            std::path::absolute(value).ok()
        };
        let home = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")));
        let users = home.map(|home| home.join("openstack"));
        let directories = std::env::current_dir().ok().into_iter().chain(users);
        CloudFiles {
            clouds: path("OS_CLIENT_CONFIG_FILE"),
            secure: path("OS_CLIENT_SECURE_FILE"),
            public: path("OS_CLIENT_VENDOR_FILE"),
            directories: directories
                .chain([PathBuf::from("/etc/openstack")])
                .collect(),
        }
    }

    /// What the files say of this cloud.
    pub(super) fn login(&self, name: &str) -> Result<Login> {
        let shown = quoted(name);
        let Some((path, clouds)) = self.read(&self.clouds, "clouds")? else {
            return Err(self.no_file(&shown));
        };
        let named = |file: &Value, section: &str| file.get(section)?.get(name).cloned();
        let Some(mut cloud) = named(&clouds, "clouds") else {
            return Err(no_cloud(&path, &clouds, name));
        };
        if let Some((_, secure)) = self.read(&self.secure, "secure")?
            && let Some(secure) = named(&secure, "clouds")
        {
            merge(&mut cloud, secure);
        }
        if let Some(profile) = text(&cloud, &["profile", "cloud"])
            && let Some((_, public)) = self.read(&self.public, "clouds-public")?
            && let Some(mut base) = public
                .get("public-clouds")
                .and_then(|all| all.get(&profile))
                .cloned()
        {
            merge(&mut base, cloud);
            cloud = base;
        }
        login(&cloud).map_err(|why| {
            let path = path.display();
            Error::usage(format!("{path}: cloud {shown}: {why}"))
        })
    }

    /// The first file of this kind that exists, and its path.
    fn read(&self, chosen: &Option<PathBuf>, stem: &str) -> Result<Option<(PathBuf, Value)>> {
        let usual = self.directories.iter().flat_map(|directory| {
            ["yaml", "yml", "json"].map(|end| directory.join(format!("{stem}.{end}")))
        });
        for path in chosen.iter().cloned().chain(usual) {
            let Some(text) = file::read(&path)? else {
                continue;
            };
            let value = parse(&path, &text.body)?;
            if text.world_readable && holds_secret(&value) {
                return Err(file::world_readable(&path));
            }
            return Ok(Some((path, value)));
        }
        Ok(None)
    }

    fn no_file(&self, cloud: &str) -> Error {
        let places: Vec<String> = self
            .directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        Error::usage(format!("cloud {cloud}: there is no clouds.yaml")).hint(format!(
            "it is looked for in {}, or where OS_CLIENT_CONFIG_FILE says",
            places.join(", ")
        ))
    }
}

fn no_cloud(path: &Path, file: &Value, name: &str) -> Error {
    let path = path.display();
    let error = Error::usage(format!("cloud {} is not in {path}", quoted(name)));
    let clouds = file.get("clouds").and_then(Value::as_object);
    let names = || clouds.into_iter().flat_map(Map::keys).map(String::as_str);
    match nearest(name, names()) {
        Some(near) => error.hint(format!("did you mean {}?", quoted(near))),
        None => {
            let names: Vec<String> = names().take(super::MAX_LISTED).map(quoted).collect();
            match names.is_empty() {
                true => error.hint("the file names no cloud"),
                false => error.hint(format!("there are: {}", names.join(", "))),
            }
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Value> {
    // The limits of the crate bound what aliases can make of a small file.
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line() as usize);
        Source { path, text }.error_in_line(line, "this is not YAML that can be used")
    })
}

/// Puts `over` into `base`, section by section.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over,
    }
}

/// Whether anything in it must not be read by all.
fn holds_secret(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| {
            let secret = ["password", "token", "application_credential_secret"]
                .contains(&key.replace('-', "_").as_str());
            match value {
                Value::Object(_) | Value::Array(_) => holds_secret(value),
                Value::Null => false,
                value => secret && value.as_str() != Some(""),
            }
        }),
        Value::Array(all) => all.iter().any(holds_secret),
        _ => false,
    }
}

/// The first of these keys that has a plain value.
fn text(section: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| {
        // Both spellings are in use.
        let value = section
            .get(key)
            .or_else(|| section.get(key.replace('_', "-")))?;
        match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(bool) => Some(bool.to_string()),
            _ => None,
        }
    })
}

/// The keys of a cloud that matter here. Those of `auth` may also stand beside it.
fn login(cloud: &Value) -> Checked<Login> {
    let mut login = Login::default();
    let auth = cloud.get("auth").unwrap_or(&Value::Null);
    for key in Key::all() {
        let names = key.in_clouds();
        if let Some(value) = text(auth, names).or_else(|| text(cloud, names)) {
            login.set(key, &value);
        }
    }
    if text(cloud, &["verify"]).as_deref() == Some("false") {
        login.set(Key::Insecure, "true");
    }
    match text(cloud, &["auth_type"]).as_deref() {
        None => {}
        Some("password" | "v3password") => login = login.without(WAYS[1]),
        Some("v3applicationcredential") => login = login.without(WAYS[0]),
        Some("v1password") => login.set(Key::AuthVersion, "1"),
        Some(_) => {
            return Err(
                "its auth_type is not known here; there are password, v3applicationcredential \
                 and v1password"
                    .into(),
            );
        }
    }
    login.check().map_err(|(key, why)| {
        let name = key.in_clouds().first().unwrap_or(&"");
        format!("{name}: {why}")
    })?;
    Ok(login.of_keystone())
}
