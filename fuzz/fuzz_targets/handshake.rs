//! Any bytes as the client of a handshake.

#![no_main]

mod support;

use libfuzzer_sys::fuzz_target;
use swiftnbd::nbd::{Export, negotiate};

fuzz_target!(|bytes: &[u8]| {
    let exports: Vec<_> = ["a", "b"]
        .map(|name| {
            let export = Export {
                name: name.to_owned(),
                description: String::new(),
            };
            (export, support::device())
        })
        .into();
    support::converse(bytes, |mut stream| async move {
        let _ = negotiate(&mut stream, &exports).await;
    });
});
