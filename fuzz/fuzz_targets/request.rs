//! Any bytes as the client of a transmission phase.

#![no_main]

mod support;

use std::future::pending;

use libfuzzer_sys::fuzz_target;
use swiftnbd::nbd::wire::{decode_request, encode_reply};
use swiftnbd::nbd::{Limits, serve};

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk()
        && let Ok(request) = decode_request(header)
    {
        encode_reply(request.cookie, None);
    }
    let limits = Limits {
        requests: 4,
        bytes: 1 << 20,
    };
    support::converse(bytes, |stream| async move {
        let _ = serve(stream, support::device(), limits, pending()).await;
    });
});
