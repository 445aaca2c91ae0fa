//! Background work without which a volume would wait for ever.
//!
//! A task that panics is noticed by nobody who waits for what it should do: a device
//! would hang. Such an error is a bug; that it happened says that what is in memory may
//! be wrong. So the process ends there and then, as in a crash: the device fails within
//! moments, what was durable is, and the log says where it happened.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

/// Does the work; ends the process if it panics.
pub async fn vital<T>(work: impl Future<Output = T>) -> T {
    // Nothing is used afterwards.
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(done) => done,
        Err(_) => {
            tracing::error!(
                "an error in swiftnbd itself (see above) stopped work that the volume needs: this \
                 process ends, as in a crash; what was flushed is stored"
            );
            std::process::abort()
        }
    }
}
