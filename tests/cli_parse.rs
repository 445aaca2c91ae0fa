//! The command line: what parses to what, which mistakes are refused, and with
//! which exit status.

use std::path::Path;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use swiftnbd::cli::{Cli, Command, Compression, Target};

fn parse(line: &str) -> Cli {
    let words = line.split_whitespace();
    Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// The exit status and the text of a line that does not parse.
fn refusal(line: &str) -> (i32, String) {
    match Cli::try_parse_from(line.split_whitespace()) {
        Ok(cli) => panic!("{line}: parsed as {cli:?}"),
        Err(error) => (error.exit_code(), error.to_string()),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn setup_takes_objects_or_a_size() {
    let Command::Setup(setup) = parse("swiftnbd setup mynbd0 16384").command else {
        panic!("not setup");
    };
    assert_eq!(
        (setup.name.as_str(), setup.objects),
        ("mynbd0", Some(16384))
    );
    assert_eq!(
        (setup.size, setup.object_size, setup.make.format),
        (None, None, None)
    );
    assert!(!setup.force && !setup.make.encrypt);

    let line = "swiftnbd setup v --size 1GiB --object-size 128K --format 1 --block-size 512 -f";
    let Command::Setup(setup) = parse(line).command else {
        panic!("not setup");
    };
    assert_eq!((setup.objects, setup.size), (None, Some(1 << 30)));
    assert_eq!(
        (setup.object_size, setup.make.format),
        (Some(128 << 10), Some(1))
    );
    assert_eq!(setup.make.block_size, Some(512));
    assert!(setup.force);

    let line = "swiftnbd setup v --size 1G --block-size 4096 --compression none --encrypt \
                --passphrase-fd 3";
    let Command::Setup(setup) = parse(line).command else {
        panic!("not setup");
    };
    assert_eq!(setup.make.block_size, Some(4096));
    assert_eq!(setup.make.compression, Some(Compression::None));
    assert!(setup.make.encrypt && !setup.force);
    assert_eq!(setup.passphrase.passphrase_fd, Some(3));
    assert_eq!(setup.passphrase.passphrase_file, None);
}

#[test]
fn attach_and_detach() {
    let line = "swiftnbd attach v /dev/nbd3 --read-only --foreground";
    let Command::Attach(attach) = parse(line).command else {
        panic!("not attach");
    };
    let device = attach.device.expect("a device");
    assert_eq!(device.index(), 3);
    assert_eq!(device.path(), Path::new("/dev/nbd3"));
    assert!(attach.read_only && attach.foreground);

    let line = "swiftnbd detach /dev/nbd3 --force --timeout 60";
    let Command::Detach(detach) = parse(line).command else {
        panic!("not detach");
    };
    assert_eq!(detach.target, Target::Device(device));
    assert_eq!(detach.timeout, Some(Duration::from_secs(60)));
    assert!(detach.force);

    let Command::Detach(detach) = parse("swiftnbd detach nbd3").command else {
        panic!("not detach");
    };
    assert_eq!(detach.target, Target::Name("nbd3".into()));
    assert_eq!(detach.timeout, None);
}

#[test]
fn the_other_verbs() {
    assert!(matches!(
        parse("swiftnbd status").command,
        Command::Status(status) if status.target.is_none() && !status.json
    ));
    assert!(matches!(
        parse("swiftnbd status v --json").command,
        Command::Status(status) if status.target == Some(Target::Name("v".into())) && status.json
    ));
    assert!(matches!(
        parse("swiftnbd list -s").command,
        Command::List(list) if list.simple_output && !list.json
    ));
    assert!(matches!(
        parse("swiftnbd list --simple-output").command,
        Command::List(list) if list.simple_output
    ));
    assert!(matches!(parse("swiftnbd lock v").command, Command::Lock(of) if of.name == "v"));
    assert!(matches!(parse("swiftnbd unlock v").command, Command::Unlock(of) if of.name == "v"));
    assert!(matches!(
        parse("swiftnbd download v image -q --limit 20M").command,
        Command::Download(of) if of.name == "v" && of.image == Path::new("image")
            && of.quiet && of.limit == Some(20 << 20)
    ));
    assert!(matches!(
        parse("swiftnbd upload image v --object-size 1M --quiet").command,
        Command::Upload(of) if of.name == "v" && of.image == Path::new("image")
            && of.quiet && of.limit.is_none() && of.object_size == Some(1 << 20)
    ));
    assert!(matches!(
        parse("swiftnbd convert v w --encrypt --limit 1M").command,
        Command::Convert(of) if of.name == "v" && of.new == "w" && of.encrypt
            && of.limit == Some(1 << 20)
    ));
    assert!(matches!(
        parse("swiftnbd check v --repair --json").command,
        Command::Check(of) if of.name == "v" && of.repair && of.json
    ));
    assert!(matches!(
        parse("swiftnbd passphrase v --new-passphrase-file f --passphrase-fd 4").command,
        Command::Passphrase(of) if of.name == "v" && of.passphrase.passphrase_fd == Some(4)
            && of.new_passphrase_file.as_deref() == Some(Path::new("f"))
    ));
    assert!(matches!(
        parse("swiftnbd delete v --yes").command,
        Command::Delete(of) if of.name == "v" && of.yes
    ));
    assert!(matches!(
        parse("swiftnbd serve").command,
        Command::Serve(serve) if serve.names.is_empty() && serve.unix.is_none()
    ));
    assert!(matches!(
        parse("swiftnbd serve a b --unix /run/s --read-only").command,
        Command::Serve(serve) if serve.names == ["a", "b"]
            && serve.unix.as_deref() == Some(Path::new("/run/s")) && serve.read_only
    ));
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    let before = "swiftnbd --config c --store dir:/d -vv --log-file l --syslog list";
    let after = "swiftnbd list --config c --store dir:/d -v -v --log-file l --syslog";
    for line in [before, after] {
        let global = parse(line).global;
        assert_eq!(global.config.as_deref(), Some(Path::new("c")), "{line}");
        assert_eq!(global.store.as_deref(), Some("dir:/d"), "{line}");
        assert_eq!(global.log_file.as_deref(), Some(Path::new("l")), "{line}");
        assert_eq!((global.verbose, global.syslog), (2, true), "{line}");
    }
    let secrets = parse("swiftnbd list --secrets s").global.secrets;
    assert_eq!(secrets.as_deref(), Some(Path::new("s")));
}

#[test]
fn help_and_version_succeed_before_and_after_the_verb() {
    for line in [
        "swiftnbd --help",
        "swiftnbd --version",
        "swiftnbd attach --help",
        "swiftnbd attach --version",
    ] {
        let (status, text) = refusal(line);
        assert_eq!(status, 0, "{line}");
        assert!(text.contains("swiftnbd"), "{line}: {text}");
    }
}

#[test]
fn every_verb_has_an_example() {
    let mut cli = Cli::command();
    for verb in cli.get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        let help = verb.render_help().to_string();
        assert!(help.contains("Example"), "{help}");
    }
    assert!(cli.render_help().to_string().contains("Exit status: 0"));
}

#[test]
fn mistakes_are_usage_errors_that_say_what_is_wrong() {
    for (line, part) in [
        ("swiftnbd", "Usage"),
        ("swiftnbd atach v", "attach"),
        ("swiftnbd attach", "<NAME>"),
        ("swiftnbd setup v", "required"),
        ("swiftnbd setup v 0", "0 is not in"),
        ("swiftnbd setup v 10 --size 1G", "cannot be used with"),
        ("swiftnbd setup v --size 1.5G", "1536M, not 1.5G"),
        ("swiftnbd setup v --size 16777216T", "larger than 64 bits"),
        ("swiftnbd setup v --size 1X", "'X' is no unit of size"),
        ("swiftnbd setup v 1 --format 3", "the format is 1 or 2"),
        ("swiftnbd setup v 1 --block-size 1024", "512 or 4096"),
        ("swiftnbd setup v 1 --compression zip", "lz4"),
        (
            "swiftnbd setup v 1 --passphrase-file f --passphrase-fd 3",
            "cannot be used with",
        ),
        ("swiftnbd setup a/b 1", "contains a '/'"),
        ("swiftnbd attach v /dev/sda", "/dev/nbd0"),
        ("swiftnbd attach v /dev/nbd0p1", "partition"),
        ("swiftnbd detach /dev/sda", "/dev/nbd0"),
        ("swiftnbd detach v --timeout soon", "30s"),
        ("swiftnbd list -s --json", "cannot be used with"),
        ("swiftnbd detach v --takeover", "--takeover"),
    ] {
        let (status, text) = refusal(line);
        assert_eq!(status, 2, "{line}");
        assert!(text.contains(part), "{line}: {text}");
    }
}
