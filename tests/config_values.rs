//! Sizes, times, devices and names: what is read, and what is refused and why.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use swiftnbd::config::{format_size, parse_device, parse_duration, parse_name, parse_size};

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64KB", 64 << 10),
        ("64KiB", 64 << 10),
        ("64kib", 64 << 10),
        (" 64 MiB ", 64 << 20),
        ("3M", 3 << 20),
        ("10G", 10 << 30),
        ("2TiB", 2 << 40),
        ("18446744073709551615", u64::MAX),
        ("16777215T", 16_777_215 << 40),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for (text, part) in [
        ("", "a number with a unit"),
        ("G", "a number with a unit"),
        ("-1", "a number with a unit"),
        ("1.5G", "whole number"),
        ("1,5G", "whole number"),
        ("10X", "'X' is no unit"),
        ("10KiBs", "'KiBs' is no unit"),
        ("10 0", "is no unit"),
        ("1P", "'P' is no unit"),
        ("18446744073709551616", "larger than 64 bits"),
        ("16777216T", "larger than 64 bits"),
        ("１K", "a number with a unit"),
    ] {
        let why = parse_size(text).expect_err(text);
        assert!(why.contains(part), "{text}: {why}");
    }
}

#[test]
fn sizes_are_printed_in_the_largest_unit_that_divides_them() {
    for (bytes, text) in [
        (0, "0"),
        (1000, "1000"),
        (1024, "1KiB"),
        (64 << 20, "64MiB"),
        (1536 << 20, "1536MiB"),
        (1 << 50, "1024TiB"),
    ] {
        assert_eq!(format_size(bytes), text);
    }
}

#[test]
fn times() {
    for (text, seconds) in [("0", 0), ("0s", 0), ("90", 90), ("30s", 30), ("5m", 300)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
    }
    assert_eq!(parse_duration("365d"), parse_duration("8760h"));
    for text in ["", "s", "-1s", "1.5s", "5min", "500ms", "5 0"] {
        let why = parse_duration(text).expect_err(text);
        assert!(why.contains("30s, 5m"), "{text}: {why}");
    }
    for text in ["366d", "99999999999999999999s", "18446744073709551615d"] {
        let why = parse_duration(text).expect_err(text);
        assert!(why.contains("longer than a year"), "{text}: {why}");
    }
}

#[test]
fn devices() {
    for (text, index) in [
        ("/dev/nbd0", 0),
        ("/dev/nbd15", 15),
        ("/dev/nbd1048575", 1048575),
    ] {
        let device = parse_device(text).expect(text);
        assert_eq!(device.index(), index);
        assert_eq!(device.path(), Path::new(text));
    }
    for text in [
        "",
        "nbd0",
        "/dev/nbd",
        "/dev/nbd01",
        "/dev/nbd-1",
        "/dev/nbd+1",
        "/dev/nbd0 ",
        "/dev/nbdx",
        "/dev/sda",
        "/dev//nbd0",
        "/dev/nbd0/",
    ] {
        let why = parse_device(text).expect_err(text);
        assert!(why.contains("/dev/nbd0, /dev/nbd1"), "{text}: {why}");
    }
    assert!(
        parse_device("/dev/nbd0p1")
            .expect_err("part")
            .contains("partition")
    );
    for text in ["/dev/nbd1048576", "/dev/nbd99999999999"] {
        let why = parse_device(text).expect_err(text);
        assert!(why.contains("larger than"), "{text}: {why}");
    }
}

#[test]
fn names() {
    let longest = "x".repeat(256);
    for name in ["mynbd0", "a.b", "...", "größe", "a=b", longest.as_str()] {
        assert_eq!(parse_name(name).as_deref(), Ok(name));
    }
    let too_long = "ö".repeat(129);
    for (name, part) in [
        ("", "empty"),
        (".", "no names"),
        ("..", "no names"),
        ("a/b", "'/'"),
        ("a b", "blanks"),
        ("a\u{a0}b", "blanks"),
        ("a\nb", "control"),
        ("a\u{7f}", "control"),
        ("-f", "begin with '-'"),
        (too_long.as_str(), "longer than 256 bytes"),
    ] {
        let why = parse_name(name).expect_err(name);
        assert!(why.contains(part), "{name}: {why}");
    }
}

proptest! {
    #[test]
    fn a_printed_size_is_read_back(bytes: u64, shift in 0u32..50) {
        let bytes = bytes >> shift << shift;
        prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(
        number: u32,
        unit in prop::sample::select(vec![("", 0), ("K", 10), ("mb", 20), ("GiB", 30)]),
        blank in " ?",
    ) {
        let text = format!("{number}{blank}{}", unit.0);
        prop_assert_eq!(parse_size(&text), Ok(u64::from(number) << unit.1));
    }

    #[test]
    fn no_text_makes_them_panic(text in ".{0,40}", digits in "[0-9]{0,24}[a-zA-Z. ]{0,4}") {
        for text in [&text, &digits] {
            let _ = parse_size(text);
            let _ = parse_duration(text);
            let _ = parse_device(&format!("/dev/nbd{text}"));
            let _ = parse_name(text);
        }
    }
}
