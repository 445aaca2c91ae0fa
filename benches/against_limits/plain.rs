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

/// As many PUTs and GETs at once as a volume of 64 KiB objects sends.
const PARALLEL: usize = 16;

pub struct Plain {
    client: reqwest::Client,
    storage: String,
    token: String,
}

impl Plain {
    /// The Swift that `scripts/lab` announces.
    pub async fn from_environment() -> Result<Plain, Failure> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| format!("{name} is not set: run scripts/bench"))
        };
        let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
        let answer = client
            .get(variable("SWIFTNBD_LAB_AUTH")?)
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
        let mut body = vec![0; object_size as usize];
        fastrand::Rng::with_seed(1).fill(&mut body);
        let body = Bytes::from(body);
        let start = Instant::now();
        self.each(size / object_size, reqwest::Method::PUT, Some(body))
            .await?;
        Ok(start.elapsed())
    }

    /// Gets them again.
    pub async fn get(&self, object_size: u64, size: u64) -> Result<Duration, Failure> {
        let start = Instant::now();
        self.each(size / object_size, reqwest::Method::GET, None)
            .await?;
        Ok(start.elapsed())
    }

    /// Deletes everything.
    pub async fn clean(&self) -> Result<(), Failure> {
        let url = format!("{}/{CONTAINER}?limit=10000", self.storage);
        let listing = self.send(reqwest::Method::GET, url, None).await?;
        let listing = String::from_utf8(listing.to_vec())?;
        self.each(
            listing.lines().count() as u64,
            reqwest::Method::DELETE,
            None,
        )
        .await
    }

    async fn each(
        &self,
        count: u64,
        method: reqwest::Method,
        body: Option<Bytes>,
    ) -> Result<(), Failure> {
        let places = Arc::new(Semaphore::new(PARALLEL));
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

fn hex(body: &[u8]) -> String {
    Md5::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
