//! Every way to log in, from every source: which keys make it, which source wins,
//! and what is said where something is missing or wrong.

mod config_dir;

use config_dir::{Dir, assert_says, environment, load_toml};
use swiftnbd::config::{Backend, Config, OriginalKeystone, OriginalLogin, Sources};
use swiftnbd::credentials::{
    Auth, Credential, Credentials, Domain, Interface, Project, Secret, Tls, User,
};
use swiftnbd::error::{Error, Exit, Result};

fn credentials(backend: Backend) -> Credentials {
    match backend {
        Backend::Swift(credentials) => *credentials,
        Backend::Dir(dir) => panic!("{dir:?}"),
    }
}

fn of(sources: &Sources, name: &str) -> Result<Credentials> {
    let volume = Config::load(sources)?.volume(name)?;
    Ok(credentials(volume.backend))
}

fn toml(text: &str) -> Result<Credentials> {
    let volume = load_toml(text)?.volume("v")?;
    Ok(credentials(volume.backend))
}

fn swift(lines: &str) -> Result<Credentials> {
    toml(&format!("[swift]\n{lines}\n[volumes.v]\n"))
}

fn name(text: &str) -> Domain {
    Domain::Name(text.into())
}

fn password(user: User, project: Option<Project>) -> Auth {
    Auth::Password {
        auth_url: "http://k/v3".into(),
        user,
        password: Secret::new("s3cr3t"),
        project,
    }
}

const KEYSTONE: &str = "auth_url = \"http://k/v3\"\npassword = \"s3cr3t\"\n";

#[test]
fn every_way_to_log_in() {
    let user = || User::Name("u".into(), name("Default"));
    let credential = |credential| Auth::ApplicationCredential {
        auth_url: "http://k/v3".into(),
        credential,
        secret: Secret::new("s3cr3t"),
    };
    for (lines, auth) in [
        (
            format!("{KEYSTONE}username = \"u\""),
            password(user(), None),
        ),
        (
            format!("{KEYSTONE}username = \"u\"\nproject_name = \"p\""),
            password(user(), Some(Project::Name("p".into(), name("Default")))),
        ),
        (
            format!(
                "{KEYSTONE}username = \"u\"\nuser_domain_name = \"ud\"\n\
                 project_name = \"p\"\nproject_domain_id = \"pd\""
            ),
            password(
                User::Name("u".into(), name("ud")),
                Some(Project::Name("p".into(), Domain::Id("pd".into()))),
            ),
        ),
        (
            format!("{KEYSTONE}user_id = \"1\"\nproject_id = \"2\""),
            password(User::Id("1".into()), Some(Project::Id("2".into()))),
        ),
        (
            "auth_url = \"http://k/v3\"\napplication_credential_id = \"7\"\n\
             application_credential_secret = \"s3cr3t\""
                .into(),
            credential(Credential::Id("7".into())),
        ),
        (
            "auth_url = \"http://k/v3\"\napplication_credential_name = \"c\"\nusername = \"u\"\n\
             application_credential_secret = \"s3cr3t\""
                .into(),
            credential(Credential::Name("c".into(), user())),
        ),
        (
            "token = \"s3cr3t\"\nstorage_url = \"https://s/v1/A\"".into(),
            Auth::Token {
                storage_url: "https://s/v1/A".into(),
                token: Secret::new("s3cr3t"),
            },
        ),
    ] {
        let found = swift(&lines).unwrap_or_else(|error| panic!("{lines}\n{error}"));
        assert!(found.auth == auth, "{lines}");
        assert_eq!(found.service.interface, Interface::Public);
        assert!(!format!("{found:?} {:?}", found.auth).contains("s3cr3t"));
    }
}

#[test]
fn the_version_is_what_the_url_and_the_keys_say() {
    let v1 = |lines: &str| matches!(swift(lines).expect(lines).auth, Auth::V1 { .. });
    let who = "username = \"u\"\npassword = \"p\"\n";
    for (url, more, is_v1) in [
        ("http://h/auth/v1.0", "", true),
        ("http://h/auth/v1.0", "project_name = \"p\"", true),
        ("http://h/v1", "", true),
        ("http://h/v1.1/", "", true),
        ("http://h/", "", true),
        ("http://h/v3", "", false),
        ("http://h/identity/v3/", "", false),
        ("http://h:5000/v2.0", "", false),
        ("http://h:5000", "project_name = \"p\"", false),
        ("http://h:5000", "user_domain_id = \"d\"", false),
        ("http://h:5000", "auth_version = 3", false),
        ("http://h/v3", "auth_version = \"1.0\"", true),
        ("http://h/auth/v1.0", "auth_version = \"v3\"", false),
    ] {
        let lines = format!("auth_url = \"{url}\"\n{who}{more}");
        assert_eq!(v1(&lines), is_v1, "{lines}");
    }
}

#[test]
fn which_entry_of_the_catalog_and_which_certificates() {
    let base = format!("{KEYSTONE}username = \"u\"\n");
    let found = swift(&format!(
        "{base}region = \"r\"\ninterface = \"internalURL\"\nservice_type = \"t\"\ninsecure = true"
    ))
    .expect("valid");
    assert_eq!(found.service.region.as_deref(), Some("r"));
    assert_eq!(found.service.interface, Interface::Internal);
    assert_eq!(found.service.kind, "t");
    assert_eq!(found.tls, Tls::Insecure);

    let dir = Dir::new();
    let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let path = dir.file("ca.pem", pem.as_bytes());
    let path = path.display();
    let found = swift(&format!("{base}insecure = false\nca_file = \"{path}\"")).expect("valid");
    assert_eq!(
        found.tls,
        Tls::Authorities {
            pem: pem.into(),
            file: path.to_string()
        }
    );
    dir.file("ca.pem", b"nothing");
    let error = swift(&format!("{base}ca_file = \"{path}\"")).expect_err("no certificate");
    assert_says(&error, "there is no certificate in it", "PEM");
    let error = swift(&format!("{base}ca_file = \"/does/not/exist.pem\"")).expect_err("absent");
    assert_says(
        &error,
        "volume 'v': ca_file /does/not/exist.pem does not exist",
        "",
    );
}

#[test]
fn what_is_missing_or_wrong() {
    for (lines, message, hint) in [
        (
            "auth_url = \"http://k/v3\"\nproject_name = \"p\"",
            "no username, no password",
            "OS_USERNAME, OS_PASSWORD",
        ),
        (
            "application_credential_secret = \"s3cr3t\"",
            "no auth_url, no application_credential_id",
            "keystone.example/v3",
        ),
        (
            "auth_url = \"http://k/v3\"\napplication_credential_name = \"c\"",
            "no username, no application_credential_secret",
            "OS_APPLICATION_CREDENTIAL_SECRET",
        ),
        ("token = \"s3cr3t\"", "no storage_url", "OS_STORAGE_URL"),
        (
            "password = \"s3cr3t\"\ntoken = \"s3cr3t\"",
            "password and token are two ways to log in",
            "leave one of them out",
        ),
        (
            "auth_version = 2",
            "auth_version in [swift]: Keystone v2 no longer exists",
            "",
        ),
        ("auth_version = 4", "must be 1 or 3", ""),
        (
            "interface = \"all\"",
            "must be public, internal or admin",
            "",
        ),
        (
            "insecure = \"yes\"",
            "'insecure' in [swift] must be true or false",
            "",
        ),
        ("ca_file = \"ca.pem\"", "the path must be absolute", ""),
        (
            "region_name = \"r\"",
            "'region_name' is no key of [swift]",
            "'region'",
        ),
        ("project = \"r\"", "'project' is no key", "'project_"),
        (
            "aplication_credential_id = \"r\"",
            "is no key",
            "'application_credential_id'",
        ),
        (
            "token = \"s3cr3t\\n\"",
            "token in [swift]: it contains a control",
            "",
        ),
    ] {
        let error = swift(lines).expect_err(lines);
        assert_eq!(error.exit, Exit::Usage, "{error}");
        assert_says(&error, message, hint);
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
    }
}

/// A source that wins may log in another way: nothing of the other's is mixed in.
#[test]
fn a_volume_may_log_in_another_way_than_the_rest() {
    let every =
        format!("[swift]\n{KEYSTONE}username = \"u\"\nproject_name = \"p\"\nregion = \"r\"\n");
    let found = toml(&format!(
        "{every}[volumes.v]\napplication_credential_id = \"7\"\n\
         application_credential_secret = \"other\"\n"
    ))
    .expect("valid");
    assert!(matches!(found.auth, Auth::ApplicationCredential { .. }));
    assert_eq!(found.auth.url(), "http://k/v3");
    assert_eq!(found.service.region.as_deref(), Some("r"));

    let found = toml(&format!(
        "{every}[volumes.v]\ntoken = \"t\"\nstorage_url = \"http://s/v1/A\"\n"
    ));
    assert!(matches!(found.expect("valid").auth, Auth::Token { .. }));

    let found = toml(&format!(
        "{every}[volumes.v]\nuser_id = \"1\"\nproject_id = \"2\"\n"
    ));
    let expected = password(User::Id("1".into()), Some(Project::Id("2".into())));
    assert!(found.expect("valid").auth == expected);

    let found = toml(&format!(
        "{every}auth_version = 3\n[volumes.v]\nauth_url = \"http://h/auth/v1.0\"\n\
         username = \"a:u\"\npassword = \"k\"\n"
    ));
    assert!(matches!(found.expect("valid").auth, Auth::V1 { .. }));

    // Another user than the one that the credential belongs to.
    let error = toml(
        "[swift]\nauth_url = \"http://k/v3\"\napplication_credential_id = \"7\"\n\
         application_credential_secret = \"s3cr3t\"\n[volumes.v]\nusername = \"u\"\n",
    )
    .expect_err("no password");
    assert_says(&error, "no password", "");
}

const OPENRC: [(&str, &str); 6] = [
    ("OS_AUTH_URL", "http://k:5000"),
    ("OS_USERNAME", "u"),
    ("OS_PASSWORD", "s3cr3t"),
    ("OS_PROJECT_NAME", "p"),
    ("OS_REGION_NAME", "r"),
    ("OS_INTERFACE", "internal"),
];

fn with(variables: &[(&str, &str)]) -> Result<Credentials> {
    let mut sources = Dir::new().sources();
    sources.environment = environment(variables);
    of(&sources, "any")
}

#[test]
fn the_variables_of_openstacks_clients() {
    let found = with(&OPENRC).expect("complete");
    assert!(matches!(found.auth, Auth::Password { .. }));
    assert_eq!(found.service.region.as_deref(), Some("r"));
    assert_eq!(found.service.interface, Interface::Internal);
    // Even without a project: these are Keystone's.
    let found = with(&OPENRC[..3]).expect("complete");
    assert!(matches!(found.auth, Auth::Password { project: None, .. }));

    let v1 = [
        ("ST_AUTH", "http://h/v1"),
        ("ST_USER", "u"),
        ("ST_KEY", "k"),
    ];
    let token = [("OS_STORAGE_URL", "http://s/v1/A"), ("OS_AUTH_TOKEN", "t")];
    let credential = [
        ("OS_APPLICATION_CREDENTIAL_ID", "7"),
        ("OS_APPLICATION_CREDENTIAL_SECRET", "c"),
    ];
    type Is = fn(&Auth) -> bool;
    let is_v1: Is = |auth| matches!(auth, Auth::V1 { .. });
    let is_token: Is = |auth| matches!(auth, Auth::Token { .. });
    let is_credential: Is = |auth| matches!(auth, Auth::ApplicationCredential { .. });
    let is_password: Is = |auth| matches!(auth, Auth::Password { .. });
    for (more, is) in [
        (v1.to_vec(), is_v1),
        (token.to_vec(), is_token),
        ([&v1[..], &token].concat(), is_token),
        (token[..1].to_vec(), is_password),
        (credential.to_vec(), is_credential),
        (
            [&credential[..], &[("OS_AUTH_TYPE", "v3password")]].concat(),
            is_password,
        ),
        ([&v1[..], &[("ST_AUTH_VERSION", "3")]].concat(), is_password),
    ] {
        let variables = [&OPENRC[..], &more].concat();
        assert!(is(&with(&variables).expect("complete").auth), "{more:?}");
    }
    for (variable, value, message) in [
        (
            "OS_INTERFACE",
            "x",
            "OS_INTERFACE in the environment: must be public",
        ),
        (
            "OS_AUTH_URL",
            "s3cr3t",
            "OS_AUTH_URL in the environment: the URL must begin",
        ),
        (
            "OS_IDENTITY_API_VERSION",
            "2.0",
            "Keystone v2 no longer exists",
        ),
    ] {
        let mut variables = OPENRC.to_vec();
        variables.retain(|(name, _)| *name != variable);
        variables.push((variable, value));
        let error = with(&variables).expect_err(variable);
        assert_says(&error, message, "");
        assert!(!error.to_string().contains("s3cr3t"));
    }
}

/// A complete login in a file is not changed by a sourced openrc.
#[test]
fn the_environment_fills_only_what_is_incomplete() {
    let dir = Dir::new();
    dir.file(
        "swiftnbd.toml",
        b"[swift]\nauth_url = \"http://h/\"\nusername = \"a:u\"\npassword = \"k\"\n",
    );
    let mut sources = dir.sources();
    sources.environment = environment(&OPENRC);
    let found = of(&sources, "v").expect("complete");
    assert!(matches!(found.auth, Auth::V1 { .. }));
    assert_eq!(found.service.region, None);

    dir.file("swiftnbd.toml", b"[swift]\nproject_id = \"2\"\n");
    let found = of(&sources, "v").expect("filled");
    let expected = Project::Id("2".into());
    assert!(matches!(found.auth, Auth::Password { project: Some(p), .. } if p == expected));
}

const CLOUDS: &str = "
clouds:
  one:
    auth: {auth_url: 'http://k:5000', username: u, project_name: p}
    region_name: r
    verify: false
    others_key: [1, {a: b}]
  two:
    profile: vendor
    auth: {user-id: 1, project_id: 2, password: 12345}
  v1:
    auth_type: v1password
    auth: {auth_url: 'http://h/x', username: a:u, password: k}
  other:
    auth_type: v3oidcpassword
    auth: {auth_url: 'http://h/v3'}
public-clouds: {}
";
const SECURE: &str = "clouds: {one: {auth: {password: s3cr3t}}, unknown: {auth: {password: x}}}\n";
const PUBLIC: &str =
    "public-clouds: {vendor: {auth: {auth_url: 'http://v/v3'}, interface: internal}}\n";

fn clouds(dir: &Dir) -> Sources {
    let mut sources = dir.sources();
    sources.clouds.directories = vec![dir.path().join("first"), dir.path().to_owned()];
    sources
}

#[test]
fn a_cloud_from_openstacks_files() {
    let dir = Dir::new();
    dir.file("clouds.yaml", CLOUDS.as_bytes());
    dir.file("secure.yaml", SECURE.as_bytes());
    dir.file("clouds-public.yml", PUBLIC.as_bytes());
    let with = |lines: &str| {
        dir.file("swiftnbd.toml", lines.as_bytes());
        of(&clouds(&dir), "v")
    };
    let found = with("[swift]\ncloud = \"one\"\n").expect("complete");
    let Auth::Password {
        auth_url,
        user,
        password,
        project,
    } = found.auth
    else {
        panic!("{:?}", found.auth);
    };
    assert_eq!((&*auth_url, password.expose()), ("http://k:5000", "s3cr3t"));
    assert_eq!(user, User::Name("u".into(), name("Default")));
    assert_eq!(project, Some(Project::Name("p".into(), name("Default"))));
    assert_eq!(
        (found.service.region.as_deref(), found.tls),
        (Some("r"), Tls::Insecure)
    );

    let found = with("[volumes.v]\ncloud = \"two\"\n").expect("complete");
    assert_eq!(found.service.interface, Interface::Internal);
    assert!(
        found.auth
            == Auth::Password {
                auth_url: "http://v/v3".into(),
                user: User::Id("1".into()),
                password: Secret::new("12345"),
                project: Some(Project::Id("2".into())),
            }
    );
    let found = with("[swift]\ncloud = \"v1\"\nregion = \"mine\"\n").expect("complete");
    assert!(matches!(found.auth, Auth::V1 { .. }));
    assert_eq!(found.service.region.as_deref(), Some("mine"));

    // The volume's cloud wins over what is said for all.
    let found = with(
        "[swift]\nauth_url = \"http://h/v1\"\nusername = \"a:u\"\npassword = \"k\"\n\
         [volumes.v]\ncloud = \"one\"\n",
    );
    assert_eq!(found.expect("complete").auth.url(), "http://k:5000");

    let mut sources = clouds(&dir);
    dir.file("swiftnbd.toml", b"");
    sources.environment = environment(&[("OS_CLOUD", "one"), ("OS_REGION_NAME", "env")]);
    let found = of(&sources, "v").expect("complete");
    assert_eq!(found.service.region.as_deref(), Some("env"));
}

#[test]
fn clouds_that_are_not_there_and_files_that_are_wrong() {
    let dir = Dir::new();
    let refused = |dir: &Dir, cloud: &str| -> Error {
        dir.file(
            "swiftnbd.toml",
            format!("[swift]\ncloud = \"{cloud}\"\n").as_bytes(),
        );
        let error = of(&clouds(dir), "v").expect_err(cloud);
        assert_eq!(error.exit, Exit::Usage, "{error}");
        assert!(!format!("{error:?}").contains("s3cr3t"), "{error}");
        error
    };
    assert_says(
        &refused(&dir, "one"),
        "cloud 'one': there is no clouds.yaml",
        "OS_CLIENT_CONFIG_FILE",
    );
    dir.file("clouds.yaml", CLOUDS.as_bytes());
    assert_says(
        &refused(&dir, "ona"),
        "cloud 'ona' is not in ",
        "did you mean 'one'?",
    );
    assert_says(
        &refused(&dir, "zzzz"),
        "'zzzz'",
        "there are: 'one', 'other', 'two', 'v1'",
    );
    assert_says(&refused(&dir, "one"), "no password", "");
    assert_says(&refused(&dir, "two"), "no auth_url", "");
    assert_says(
        &refused(&dir, "other"),
        "cloud 'other': its auth_type is not known here",
        "",
    );
    let secure = dir.file_with_mode("secure.yaml", SECURE.as_bytes(), 0o644);
    let secure = secure.display();
    assert_says(
        &refused(&dir, "one"),
        "secure.yaml is readable by everyone and holds a password",
        &format!("chmod 600 {secure}"),
    );
    for text in [
        "clouds: {one: [s3cr3t",
        "a: s3cr3t: b",
        "- \"s3cr3t",
        "\t s3cr3t: {",
    ] {
        dir.file("secure.yaml", text.as_bytes());
        assert_says(
            &refused(&dir, "one"),
            "secure.yaml, line 1: this is not YAML",
            "",
        );
    }
    // Aliases that grow without bound end in an error.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let one = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{one}]\n");
    }
    dir.file("secure.yaml", bomb.as_bytes());
    assert_says(&refused(&dir, "one"), "secure.yaml, line ", "");
}

#[test]
fn the_originals_command_line() {
    let dir = Dir::new();
    let mut sources = dir.sources();
    sources.secrets = Some(dir.file(
        "secrets.conf",
        b"[own]\nusername = t.u\npassword = p\nauthurl = http://own/v1\n\
          [v]\nusername = t.u.x\npassword = p\n[w]\nusername = nodot\npassword = p\n",
    ));
    sources.environment = environment(&[("ST_AUTH", "http://env/v1")]);
    let with = |original: OriginalLogin, name: &str| {
        let mut sources = sources.clone();
        sources.original = Some(original);
        of(&sources, name)
    };
    let plain = || OriginalLogin {
        auth_url: Some("http://line/v2.0".into()),
        keystone: None,
    };
    assert_eq!(
        with(plain(), "own").expect("complete").auth.url(),
        "http://own/v1"
    );
    let found = with(plain(), "w").expect("complete");
    assert_eq!(found.auth.url(), "http://line/v2.0");

    let keystone = |separator: &str| OriginalLogin {
        keystone: Some(OriginalKeystone {
            separator: separator.into(),
            region: Some("r".into()),
            ..OriginalKeystone::default()
        }),
        ..plain()
    };
    let found = with(keystone("."), "v").expect("complete");
    let expected = Auth::Password {
        auth_url: "http://line/v2.0".into(),
        user: User::Name("u.x".into(), name("Default")),
        password: Secret::new("p"),
        project: Some(Project::Name("t".into(), name("Default"))),
    };
    assert!(found.auth == expected);
    assert_eq!(found.service.region.as_deref(), Some("r"));
    assert_eq!(found.service.interface, Interface::Public);
    let found = with(keystone("."), "own").expect("complete");
    assert!(matches!(found.auth, Auth::Password { auth_url, .. } if auth_url == "http://own/v1"));
    let error = with(keystone("."), "w").expect_err("no tenant");
    assert_says(
        &error,
        "the user name is TENANT.USER",
        "--keystone-separator",
    );
    let mut wrong = keystone(".");
    wrong.keystone.as_mut().expect("there").endpoint = "anyURL".into();
    assert_says(
        &with(wrong, "v").expect_err("endpoint"),
        "--keystone-endpoint",
        "",
    );
    let mut wrong = plain();
    wrong.auth_url = Some("nowhere".into());
    assert_says(
        &with(wrong, "v").expect_err("no URL"),
        "--auth-url: the URL must begin",
        "",
    );
}

/// What a daemon does on SIGHUP: the same sources, as they are now.
#[test]
fn a_volume_reads_its_credentials_again() {
    let dir = Dir::new();
    let write = |key: &str| {
        let text = format!(
            "[swift]\nauth_url = \"http://h/v1\"\nusername = \"a:u\"\npassword = \"{key}\"\n"
        );
        dir.file("swiftnbd.toml", text.as_bytes());
    };
    write("old");
    let config = Config::load(&dir.sources()).expect("valid");
    let volume = config.volume("v").expect("complete");
    assert_eq!(volume.reread().expect("valid"), volume.backend);
    write("new");
    let now = credentials(volume.reread().expect("valid"));
    assert!(now == Credentials::v1("http://h/v1", "a:u", "new"));
    dir.file("swiftnbd.toml", b"[swift");
    assert_says(
        &volume.reread().expect_err("broken"),
        "swiftnbd.toml, line 1",
        "",
    );
}
