//! The limit: plain requests to Swift, as many at once as swiftnbd sends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use md5::{Digest, Md5};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Failure;

const CONTAINER: &str = "plain";

/// PUTs and GETs at once. Large objects need fewer to fill a line or a processor.
fn parallel(object_size: u64) -> usize {
    if object_size >= 4 << 20 { 8 } else { 16 }
}

pub struct Plain {
    client: reqwest::Client,
    storage: String,
    token: String,
}

impl Plain {
    /// The Swift that `scripts/lab` announces, as it is reached at `host`.
    pub async fn reached_at(host: &str) -> Result<Plain, Failure> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| format!("{name} is not set: run scripts/bench"))
        };
        let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
        let answer = client
            .get(variable("SWIFTNBD_LAB_AUTH")?.replace("127.0.0.1", host))
            .header("X-Auth-User", variable("SWIFTNBD_LAB_USER")?)
            .header("X-Auth-Key", variable("SWIFTNBD_LAB_KEY")?)
            .send()
            .await?
            .error_for_status()?;
        let header = |name: &str| -> Result<String, Failure> {
            Ok(answer
                .headers()
                .get(name)
                .ok_or("no such header")?
                .to_str()?
                .to_owned())
        };
        let plain = Plain {
            storage: header("X-Storage-Url")?,
            token: header("X-Auth-Token")?,
            client: client.clone(),
        };
        let url = format!("{}/{CONTAINER}", plain.storage);
        plain.send(reqwest::Method::PUT, url, None).await?;
        Ok(plain)
    }

    /// Puts `size` bytes as objects; how long that took.
    pub async fn put(&self, object_size: u64, size: u64) -> Result<Duration, Failure> {
        let body = noise(object_size);
        let start = Instant::now();
        let count = size / object_size;
        self.each(
            count,
            reqwest::Method::PUT,
            Some(body),
            parallel(object_size),
        )
        .await?;
        Ok(start.elapsed())
    }

    /// Puts one object after the other; how long each took.
    pub async fn put_alone(&self, object_size: u64, count: u64) -> Result<Vec<f64>, Failure> {
        let body = noise(object_size);
        let mut times = Vec::new();
        for at in 0..count {
            let start = Instant::now();
            let url = format!("{}/{CONTAINER}/alone/{at:08}", self.storage);
            self.send(reqwest::Method::PUT, url, Some(body.clone()))
                .await?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(times)
    }

    /// Gets them again.
    pub async fn get(&self, object_size: u64, size: u64) -> Result<Duration, Failure> {
        let start = Instant::now();
        let count = size / object_size;
        self.each(count, reqwest::Method::GET, None, parallel(object_size))
            .await?;
        Ok(start.elapsed())
    }

    /// Deletes them.
    pub async fn clean(&self, object_size: u64, size: u64) -> Result<(), Failure> {
        self.each(size / object_size, reqwest::Method::DELETE, None, 16)
            .await
    }

    async fn each(
        &self,
        count: u64,
        method: reqwest::Method,
        body: Option<Bytes>,
        parallel: usize,
    ) -> Result<(), Failure> {
        let places = Arc::new(Semaphore::new(parallel));
        let mut tasks = JoinSet::new();
        for at in 0..count {
            let place = Arc::clone(&places).acquire_owned().await?;
            let url = format!("{}/{CONTAINER}/o/{at:08}", self.storage);
            let (method, body) = (method.clone(), body.clone());
            let (client, token) = (self.client.clone(), self.token.clone());
            tasks.spawn(async move {
                let done = send(&client, &token, method, url, body).await;
                drop(place);
                done.map(drop)
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn send(
        &self,
        method: reqwest::Method,
        url: String,
        body: Option<Bytes>,
    ) -> Result<Bytes, Failure> {
        send(&self.client, &self.token, method, url, body).await
    }
}

/// One request, its data under an MD5 both ways.
async fn send(
    client: &reqwest::Client,
    token: &str,
    method: reqwest::Method,
    url: String,
    body: Option<Bytes>,
) -> Result<Bytes, Failure> {
    let mut request = client
        .request(method.clone(), url)
        .header("X-Auth-Token", token);
    if let Some(body) = body {
        request = request.header("ETag", hex(&body)).body(body);
    }
    if method == reqwest::Method::GET {
        request = request.header("X-Newest", "true");
    }
    let answer = request.send().await?.error_for_status()?;
    let tag = answer
        .headers()
        .get("ETag")
        .and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
    let body = answer.bytes().await?;
    if let (reqwest::Method::GET, Some(tag)) = (method, tag) {
        assert_eq!(tag, hex(&body), "damaged");
    }
    Ok(body)
}

/// Bytes that do not compress.
fn noise(size: u64) -> Bytes {
    let mut body = vec![0; size as usize];
    fastrand::Rng::with_seed(1).fill(&mut body);
    Bytes::from(body)
}

fn hex(body: &[u8]) -> String {
    Md5::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
