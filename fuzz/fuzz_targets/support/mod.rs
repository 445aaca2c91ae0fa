//! A device that keeps nothing, and a client that sends bytes and leaves.

#![allow(dead_code, reason = "each target uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use swiftnbd::device::{Device, MAX_REQUEST};
use swiftnbd::image::{Image, ImageError, Stats};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

const SIZE: u64 = 1 << 40;

#[derive(Debug)]
struct Nothing;

/// Waits now and then, so that both ways of a request are taken.
async fn enter(offset: u64, length: u64) {
    assert!(length > 0 && offset + length <= SIZE);
    if offset & 0x1000 != 0 {
        tokio::time::sleep(Duration::from_millis(offset % 7)).await;
    }
}

#[async_trait]
impl Image for Nothing {
    fn size(&self) -> u64 {
        SIZE
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, ImageError> {
        static ZEROS: [u8; MAX_REQUEST as usize] = [0; MAX_REQUEST as usize];
        enter(offset, length.into()).await;
        Ok(vec![Bytes::from_static(&ZEROS[..length as usize])])
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ImageError> {
        enter(offset, data.len() as u64).await;
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        enter(offset, length).await;
        Ok(())
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), ImageError> {
        enter(offset, length).await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), ImageError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), ImageError> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// A device of one tebibyte.
pub fn device() -> Device {
    Device::new(Arc::new(Nothing), 512, false)
}

/// Sends `bytes` to a server, leaves, and fails if the server does not end.
pub fn converse<F: Future<Output = ()>>(bytes: &[u8], serve: impl FnOnce(DuplexStream) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (client, server) = duplex(64 << 10);
        let (mut replies, mut sender) = tokio::io::split(client);
        let sending = async {
            let _ = sender.write_all(bytes).await;
            let _ = sender.shutdown().await;
        };
        let mut sink = tokio::io::sink();
        let receiving = tokio::io::copy(&mut replies, &mut sink);
        let all = async { tokio::join!(serve(server), sending, receiving) };
        let ended = tokio::time::timeout(Duration::from_secs(3600), all).await;
        assert!(ended.is_ok(), "the server hangs");
    });
}
