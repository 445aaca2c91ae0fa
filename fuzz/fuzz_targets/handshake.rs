//! Any bytes as the client of a handshake, with TLS required if the first one is
//! odd. What stands in for TLS is the stream as it is.

#![no_main]

mod support;

use libfuzzer_sys::fuzz_target;
use swiftnbd::nbd::wire::context::decode_contexts;
use swiftnbd::nbd::{Export, Outcome, Tls, negotiate};

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_contexts(bytes);
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let tls = match first % 2 {
        0 => Tls::None,
        _ => Tls::Required,
    };
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
        let outcome = negotiate(&mut stream, &exports, tls).await;
        if let Ok(Outcome::StartTls(upgrade)) = outcome {
            assert_eq!(tls, Tls::Required);
            let outcome = upgrade.resume(&mut stream, &exports).await;
            assert!(!matches!(outcome, Ok(Outcome::StartTls(_))));
        }
    });
});
