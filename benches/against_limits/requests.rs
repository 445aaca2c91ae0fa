//! What Swift was asked for, as its own proxy's log has it: the program that is
//! measured counts nothing.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::Failure;

/// Requests for the objects of one container, and the bytes of their bodies.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Requests {
    pub puts: u64,
    pub gets: u64,
    pub deletes: u64,
    pub sent: u64,
    pub received: u64,
}

/// The log from some moment on.
pub struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    pub async fn now() -> Result<Log, Failure> {
        let path = PathBuf::from(std::env::var("SWIFTNBD_LAB_DIR")?).join("log/proxy.log");
        settle().await;
        let from = std::fs::metadata(&path)?.len();
        Ok(Log { path, from })
    }

    /// What it has seen of a container since then.
    pub async fn seen(&self, container: &str) -> Result<Requests, Failure> {
        settle().await;
        let log = std::fs::read(&self.path)?;
        let log = String::from_utf8_lossy(&log[self.from as usize..]);
        let mut seen = Requests::default();
        for line in log.lines() {
            seen.add(line, container);
        }
        Ok(seen)
    }
}

/// The proxy logs a request just after its answer is out.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

impl Requests {
    /// `proxy-server: client remote time method path protocol status referer agent
    /// token received sent ...`, received and sent as the proxy sees it, `-` for none.
    /// Its requests to itself have no client.
    fn add(&mut self, line: &str, container: &str) {
        let Some((_, line)) = line.split_once("proxy-server: ") else {
            return;
        };
        let fields: Vec<&str> = line.split(' ').collect();
        let &[
            client,
            _,
            _,
            method,
            path,
            _,
            _,
            _,
            _,
            _,
            sent,
            received,
            ..,
        ] = &fields[..]
        else {
            return;
        };
        let mut parts = path.splitn(5, '/').skip(3);
        if client == "-" || parts.next() != Some(container) {
            return;
        }
        let is_object = parts.next().is_some();
        match method {
            "PUT" if is_object => self.puts += 1,
            // Listings are answers to be fetched too.
            "GET" => self.gets += 1,
            "DELETE" if is_object => self.deletes += 1,
            _ => {}
        }
        self.sent += sent.parse::<u64>().unwrap_or(0);
        self.received += received.parse::<u64>().unwrap_or(0);
    }
}
