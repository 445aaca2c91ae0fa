//! The real Swift of `scripts/lab`, spoken to in plain HTTP requests as a person
//! with curl would, with nothing of swiftnbd's own store in between.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Metadata keys begin with this, in an answer's headers in lower case.
pub const META: &str = "x-container-meta-";

/// No answer takes longer on a loopback, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// An HTTP answer, whole.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }
}

/// The lab's account.
#[derive(Debug)]
pub struct Swift {
    pub auth_url: String,
    pub user: String,
    pub key: String,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// Path of the account and the token; replaced when it was refused.
    session: Mutex<(String, String)>,
}

impl Swift {
    /// The lab whose environment this is. A test that needs it fails without it.
    pub fn lab() -> Swift {
        Swift::at("SWIFTNBD_LAB_AUTH")
    }

    /// The same through the proxy whose address this variable has.
    pub fn at(auth: &str) -> Swift {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!(
                    "{name} is not set: this test needs a real Swift; \
                     run through scripts/lab run -- … or scripts/test"
                )
            })
        };
        let auth_url = variable(auth);
        let (user, key) = (variable("SWIFTNBD_LAB_USER"), variable("SWIFTNBD_LAB_KEY"));
        let address = auth_url.split('/').nth(2).unwrap().to_owned();
        let swift = Swift {
            auth_url,
            user,
            key,
            address,
            session: Mutex::default(),
        };
        swift.authenticate();
        swift
    }

    fn authenticate(&self) {
        let path = self.auth_url.splitn(4, '/').nth(3).unwrap();
        let headers = [
            ("X-Auth-User", self.user.as_str()),
            ("X-Auth-Key", self.key.as_str()),
        ];
        let reply = exchange(&self.address, "GET", &format!("/{path}"), &headers, b"");
        assert_eq!(reply.status, 200, "the lab's authentication: {reply:?}");
        let storage = reply.header("x-storage-url").unwrap();
        let account = format!("/{}", storage.splitn(4, '/').nth(3).unwrap());
        let token = reply.header("x-auth-token").unwrap().to_owned();
        *self.session.lock().unwrap() = (account, token);
    }

    /// Sends a request for `path` below the account.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        for _ in 0..3 {
            let (account, token) = self.session.lock().unwrap().clone();
            let mut all = headers.to_vec();
            all.push(("X-Auth-Token", &token));
            let reply = exchange(
                &self.address,
                method,
                &format!("{account}/{path}"),
                &all,
                body,
            );
            if reply.status != 401 {
                return reply;
            }
            self.authenticate();
        }
        panic!("the lab refuses every token");
    }

    /// A name for a container that nothing else uses.
    pub fn fresh_name(what: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{what}-{}-{number}", std::process::id())
    }

    /// Makes the container.
    pub fn create(&self, container: &str) {
        let reply = self.request("PUT", container, &[], b"");
        assert!(matches!(reply.status, 201 | 202), "{reply:?}");
    }

    /// Sets metadata of the container: names without `X-Container-Meta-`.
    pub fn set_metadata(&self, container: &str, metadata: &[(&str, &str)]) {
        let names: Vec<_> = metadata
            .iter()
            .map(|(key, value)| (format!("X-Container-Meta-{key}"), *value))
            .collect();
        let headers: Vec<_> = names.iter().map(|(key, value)| (&**key, *value)).collect();
        let reply = self.request("POST", container, &headers, b"");
        assert_eq!(reply.status, 204, "{reply:?}");
    }

    /// The container's metadata, names in lower case without their prefix.
    /// `None` if there is no such container.
    pub fn metadata(&self, container: &str) -> Option<BTreeMap<String, String>> {
        let reply = self.request("HEAD", container, &[], b"");
        if reply.status == 404 {
            return None;
        }
        assert_eq!(reply.status, 204, "{reply:?}");
        let pairs = reply.headers.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(META)?;
            Some((key.to_owned(), value.clone()))
        });
        Some(pairs.collect())
    }

    /// Stores an object.
    pub fn put(&self, container: &str, object: &str, body: &[u8]) {
        let reply = self.request("PUT", &format!("{container}/{object}"), &[], body);
        assert_eq!(reply.status, 201, "{reply:?}");
    }

    /// The object's body, if there is one.
    pub fn get(&self, container: &str, object: &str) -> Option<Vec<u8>> {
        let newest = [("X-Newest", "true")];
        let reply = self.request("GET", &format!("{container}/{object}"), &newest, b"");
        match reply.status {
            200 => Some(reply.body),
            404 => None,
            _ => panic!("{object}: {reply:?}"),
        }
    }

    /// Deletes an object.
    pub fn delete(&self, container: &str, object: &str) {
        let reply = self.request("DELETE", &format!("{container}/{object}"), &[], b"");
        assert_eq!(reply.status, 204, "{reply:?}");
    }

    /// The names of the objects in it, at most 10,000.
    pub fn names(&self, container: &str) -> Vec<String> {
        let reply = self.request("GET", container, &[], b"");
        match reply.status {
            200 => String::from_utf8(reply.body)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect(),
            204 | 404 => Vec::new(),
            _ => panic!("{container}: {reply:?}"),
        }
    }

    /// All objects with their bodies.
    pub fn objects(&self, container: &str) -> BTreeMap<String, Vec<u8>> {
        let bodies = self.names(container).into_iter().filter_map(|name| {
            let body = self.get(container, &name)?;
            Some((name, body))
        });
        bodies.collect()
    }

    /// Removes a container and all that is in it, as far as that can be done.
    pub fn remove(&self, container: &str) {
        for object in self.names(container) {
            self.request("DELETE", &format!("{container}/{object}"), &[], b"");
        }
        self.request("DELETE", container, &[], b"");
    }
}

/// One request on a connection of its own.
pub fn exchange(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(address)
        .unwrap_or_else(|error| panic!("no Swift at {address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    receive(&mut stream, method).unwrap()
}

/// Reads one answer.
pub fn receive(stream: &mut TcpStream, method: &str) -> std::io::Result<Reply> {
    let (start, headers) = read_head(stream)?;
    let status = start
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap();
    let mut reply = Reply {
        status,
        headers,
        body: Vec::new(),
    };
    if method == "HEAD" || matches!(status, 204 | 304) {
        return Ok(reply);
    }
    match reply.header("content-length") {
        Some(length) => {
            reply.body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut reply.body)?;
        }
        None => {
            stream.read_to_end(&mut reply.body)?;
            if reply.header("transfer-encoding") == Some("chunked") {
                reply.body = without_chunks(&reply.body);
            }
        }
    }
    Ok(reply)
}

/// A body without the lengths between its parts.
fn without_chunks(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = raw.windows(2).position(|two| two == b"\r\n").unwrap();
        let digits = std::str::from_utf8(&raw[..end]).unwrap();
        let length = usize::from_str_radix(digits.trim(), 16).unwrap();
        if length == 0 {
            return body;
        }
        raw = &raw[end + 2..];
        body.extend_from_slice(&raw[..length]);
        raw = &raw[length + 2..];
    }
}

/// The first line of a message and its headers. Read byte by byte, so that
/// nothing of what follows is taken; fails at the end of the connection.
pub fn read_head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<(String, String)>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        assert!(head.len() < 64 << 10, "a head without end");
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.trim_end().split("\r\n");
    let start = lines.next().unwrap().to_owned();
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    });
    Ok((start, headers.collect()))
}
