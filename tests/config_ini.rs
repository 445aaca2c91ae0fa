//! The original's secrets.conf, read as Python 2's RawConfigParser read it.

mod config_dir;

use config_dir::{assert_says, load_ini, v1};
use swiftnbd::config::Config;
use swiftnbd::error::Exit;

/// The URL, the user and the password.
fn account(config: &Config, name: &str) -> (String, String, String) {
    let volume = config.volume(name).expect(name);
    let (url, user, password) = v1(&volume.backend);
    (url.into(), user.into(), password.expose().into())
}

#[test]
fn the_file_of_the_readme() {
    let config = load_ini(
        "[container-name]\nusername = user\npassword = pass\n\
         authurl = https://swift.example/v1.0\n",
    )
    .expect("valid");
    let volume = config.volume("container-name").expect("complete");
    assert_eq!(volume.container, "container-name");
    assert!(!volume.read_only && !volume.attach_at_boot);
    let account = account(&config, "container-name");
    assert_eq!(account.0, "https://swift.example/v1.0");
    assert_eq!((&*account.1, &*account.2), ("user", "pass"));
    assert!(config.notes().is_empty());
}

#[test]
fn the_dialect() {
    let config = load_ini(
        "\u{feff}# comment\r\n; comment\r\nREM comment\r\n\r\n\
         [DEFAULT]\r\nauthurl: http://h:8080/v1.0\r\nread-only = yes\r\n\
         [one] ; anything\r\nUserName=a:b=c\r\nPASSWORD : p#a%(x)s;w;rd ; comment\r\n\
         [two]\r\nusername = u\r\npassword = \"\"\r\nread-only = off\r\n\
         [two]\r\npassword = first\r\npassword = last\r\n  # indented comment\r\n",
    )
    .expect("valid");
    assert_eq!(config.names().collect::<Vec<_>>(), ["one", "two"]);
    let one = account(&config, "one");
    assert_eq!(one.1, "a:b=c");
    assert_eq!(one.0, "http://h:8080/v1.0");
    assert!(config.volume("one").expect("complete").read_only);
    // Python looks at the first ';' only, and it has no blank before it.
    assert_eq!(one.2, "p#a%(x)s;w;rd ; comment");
    assert_eq!(account(&config, "two").2, "last");
    assert!(!config.volume("two").expect("complete").read_only);
}

#[test]
fn a_comment_after_a_value() {
    let text = "[v]\nusername = u\t; me\npassword = ;p\nauthurl = http://h/ # x\n";
    let error = load_ini(text).expect_err("a blank in the URL");
    assert_says(
        &error,
        "secrets.conf, line 4: authurl in [v]: the URL contains blanks",
        "",
    );
    let config = load_ini(&text.replace(" # x", "")).expect("valid");
    assert_eq!(account(&config, "v").1, "u");
    assert_eq!(account(&config, "v").2, ";p");
}

#[test]
fn read_only_words() {
    for (word, read_only) in [
        ("1", true),
        ("yes", true),
        ("True", true),
        ("ON", true),
        ("0", false),
        ("no", false),
        ("false", false),
        ("off", false),
        ("", false),
    ] {
        let text =
            format!("[v]\nusername = u\npassword = p\nauthurl = http://h/\nread-only = {word}");
        let volume = load_ini(&text)
            .and_then(|config| config.volume("v"))
            .expect(word);
        assert_eq!(volume.read_only, read_only, "{word}");
    }
    let error = load_ini("[v]\nread-only = maybe").expect_err("maybe");
    assert_says(
        &error,
        "line 2: read-only in [v]: must be one of 1, yes",
        "",
    );
}

#[test]
fn only_its_sections_exist() {
    let config = load_ini("[mynbd0]\nusername = u\n[backup]\n").expect("valid");
    let error = config.volume("mynbd").expect_err("unknown");
    assert_eq!(error.exit, Exit::NotFound);
    assert_says(&error, "volume 'mynbd' is not in ", "'mynbd0'");
    assert_says(&error, "secrets.conf", "");
    let error = config.volume("DEFAULT").expect_err("unknown");
    assert_says(&error, "'DEFAULT'", "there are: backup, mynbd0");

    let many: String = (0..12).map(|n| format!("[volume-{n:02}]\n")).collect();
    let error = load_ini(&many)
        .expect("valid")
        .volume("x")
        .expect_err("unknown");
    assert_says(&error, "'x'", "volume-07, …");
}

#[test]
fn what_is_missing_is_asked_for_in_the_words_of_the_file() {
    let config = load_ini("[v]\nusername = u\npassword = p\n").expect("valid");
    let error = config.volume("v").expect_err("no authurl");
    assert_eq!(error.exit, Exit::Usage);
    assert_says(&error, "no authurl", "[v]\n    authurl = https://");
    assert_says(&error, "volume 'v'", "ST_AUTH");
}

#[test]
fn unknown_keys_have_no_effect_but_are_noted() {
    let text =
        "[v]\nusername = u\npassword = p\nauthurl = http://h/\nreadonly = 1\nzzz: s3cr3t\n  more\n";
    let config = load_ini(text).expect("valid");
    assert!(!config.volume("v").expect("complete").read_only);
    let [readonly, other] = config.notes() else {
        panic!("{:?}", config.notes());
    };
    assert!(readonly.ends_with("secrets.conf, line 5: the key is not known and has no effect; did you mean 'read-only'?"), "{readonly}");
    assert!(
        other.ends_with("line 6: the key is not known and has no effect"),
        "{other}"
    );
}

#[test]
fn mistakes_name_the_line_and_never_quote_it() {
    for (text, message) in [
        (
            "password = s3cr3t\n",
            "line 1: there is no [container] line before",
        ),
        (
            "[v]\n\ns3cr3t\n",
            "line 3: this is neither [container] nor KEY = VALUE",
        ),
        (
            "[v\npassword = s3cr3t\n",
            "line 1: there is no [container] line",
        ),
        ("[]\n", "line 1: there is no [container] line"),
        (
            "[v]\npassword = s3cr3t\n s3cr3t\n",
            "line 3: the line begins with a blank",
        ),
        ("[a b]\n", "line 1: a volume's name has no blanks"),
        ("[a/b]\n", "line 1: the name contains a '/'"),
        (
            "[v]\npassword = s3cr3t\u{1}\n",
            "line 2: password in [v]: it contains a control",
        ),
        (
            "[v]\nauthurl = http://u:s3cr3t@h/\n",
            "line 2: authurl in [v]: the URL contains a user",
        ),
    ] {
        let error = load_ini(text).expect_err(text);
        assert_eq!(error.exit, Exit::Usage);
        assert_says(&error, message, "");
        assert!(!format!("{error}{error:?}").contains("s3cr3t"), "{error}");
    }
}

#[test]
fn a_password_that_a_lost_line_break_moved_is_not_shown() {
    for text in [
        "[v]\npassword = p\nusername = u\nauthurl = http://h/v1.0password=s3cr3t\n",
        "[v]\npassword = p\nauthurl = http://h/\nusername = upassword = s3cr3t\n",
    ] {
        let config = load_ini(text).expect(text);
        let volume = config.volume("v").expect(text);
        let shown = format!("{config:?}{volume:?}");
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
}
