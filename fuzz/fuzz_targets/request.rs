//! Any bytes as the client of a transmission phase; the first one says what was
//! agreed on.

#![no_main]

mod support;

use std::future::pending;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use swiftnbd::nbd::wire::{decode_request, encode_reply};
use swiftnbd::nbd::{Agreed, Limits, Pool, Terms, serve};

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    if let Some(header) = bytes.first_chunk()
        && let Ok(request) = decode_request(header)
    {
        encode_reply(request.cookie, None);
    }
    let terms = Terms {
        limits: Limits {
            requests: 4,
            bytes: 1 << 20,
        },
        agreed: Agreed {
            structured: first & 1 != 0,
            block_status: first & 3 == 3,
        },
        pool: (first & 4 != 0).then(|| Pool::new(1 << 20, 4096)),
        patience: (first & 8 != 0).then_some(Duration::from_secs(60)),
    };
    support::converse(bytes, |stream| async move {
        let _ = serve(stream, support::device(), terms, pending()).await;
    });
});
