//! A proxy between swiftnbd and a real Swift that forwards every request, but
//! for those that it is told to answer itself, to spoil or to lose.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::plain_swift::{Reply, read_head, receive};
use super::waiting::wait_until;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// Whether this is a request of that method for an object whose name ends so.
    pub fn is(&self, method: &str, end: &str) -> bool {
        self.method == method && self.path.ends_with(end)
    }

    pub fn is_auth(&self) -> bool {
        self.path.starts_with("/auth/")
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }
}

/// What is done with a request.
pub enum Act {
    /// The real Swift answers.
    Forward,
    /// An answer of these statuses and without a body; Swift never sees it.
    Status(u16),
    /// These bytes are the answer, and the connection ends.
    Raw(Vec<u8>),
    /// Swift carries it out, and its answer is lost with the connection.
    Swallow,
    /// Swift answers, and this makes of it what is sent before the connection
    /// ends.
    Spoil(fn(&Reply) -> Vec<u8>),
    /// The connection ends without an answer; Swift never sees the request.
    Close,
    /// Nothing is answered until the rule is changed; Swift never sees it.
    Hang,
}

type Rule = Box<dyn FnMut(&Seen) -> Act + Send>;

struct Shared {
    upstream: String,
    rule: Mutex<Rule>,
    /// Number of the rule; a hanging request waits for the next one.
    version: AtomicU64,
    /// Requests that were not simply forwarded, since the rule was set.
    hits: AtomicU64,
    /// Every request since the rule was set: method and path.
    seen: Mutex<Vec<Seen>>,
    ended: AtomicBool,
}

/// The proxy; it ends when this is dropped.
pub struct Tamper {
    pub address: String,
    shared: Arc<Shared>,
}

impl Tamper {
    /// Forwards everything to this address.
    pub fn start(upstream: &str) -> Tamper {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            rule: Mutex::new(Box::new(|_| Act::Forward)),
            version: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&accepting)) else {
                    return;
                };
                // A connection that fails is the client's affair.
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Tamper { address, shared }
    }

    /// The address of the authentication, for a configuration.
    pub fn auth_url(&self) -> String {
        format!("http://{}/auth/v1.0", self.address)
    }

    /// From now on this decides.
    pub fn rule(&self, rule: impl FnMut(&Seen) -> Act + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
        self.shared.hits.store(0, Ordering::SeqCst);
        self.shared.seen.lock().unwrap().clear();
        self.shared.version.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on everything is forwarded.
    pub fn forward(&self) {
        self.rule(|_| Act::Forward);
    }

    /// How many requests the rule has caught.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::SeqCst)
    }

    /// Waits until the rule has caught so many.
    pub fn await_hits(&self, number: u64) {
        wait_until("the proxy's rule to be hit", || self.hits() >= number);
    }

    /// Requests that came since the rule was set.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }
}

impl Drop for Tamper {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Ends those that hang, and wakes the one that accepts.
        self.shared.version.fetch_add(1, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    loop {
        let (start, headers) = read_head(&mut client)?;
        let mut words = start.split(' ').map(str::to_owned);
        let seen = Seen {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            headers,
        };
        let length = seen
            .header("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        client.read_exact(&mut body)?;

        let version = shared.version.load(Ordering::SeqCst);
        let act = {
            let act = shared.rule.lock().unwrap()(&seen);
            shared.seen.lock().unwrap().push(seen.clone());
            if !matches!(act, Act::Forward) {
                shared.hits.fetch_add(1, Ordering::SeqCst);
            }
            act
        };
        let last = match act {
            Act::Forward => {
                let reply = forward(&seen, &body, shared)?;
                client.write_all(&bytes_of(&seen, &reply))?;
                continue;
            }
            Act::Status(status) => {
                let length = if status == 204 {
                    ""
                } else {
                    "Content-Length: 0\r\n"
                };
                let text = format!("HTTP/1.1 {status} Tampered\r\n{length}\r\n");
                client.write_all(text.as_bytes())?;
                continue;
            }
            Act::Raw(bytes) => bytes,
            Act::Swallow => {
                forward(&seen, &body, shared)?;
                Vec::new()
            }
            Act::Spoil(spoil) => spoil(&forward(&seen, &body, shared)?),
            Act::Close => Vec::new(),
            Act::Hang => {
                wait_until("the proxy's rule to change", || {
                    shared.version.load(Ordering::SeqCst) != version
                });
                Vec::new()
            }
        };
        client.write_all(&last)?;
        return client.shutdown(Shutdown::Both);
    }
}

/// Has the real Swift answer.
fn forward(seen: &Seen, body: &[u8], shared: &Shared) -> std::io::Result<Reply> {
    let mut upstream = TcpStream::connect(&shared.upstream)?;
    upstream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!(
        "{} {} HTTP/1.1\r\nConnection: close\r\n",
        seen.method, seen.path
    );
    // Host stays as it is: Swift makes the storage URL of it.
    for (name, value) in &seen.headers {
        if !matches!(name.as_str(), "connection" | "expect") {
            head += &format!("{name}: {value}\r\n");
        }
    }
    upstream.write_all(format!("{head}\r\n").as_bytes())?;
    upstream.write_all(body)?;
    receive(&mut upstream, &seen.method)
}

/// An answer as it came, on a connection that stays.
fn bytes_of(seen: &Seen, reply: &Reply) -> Vec<u8> {
    let mut head = head_of(reply, |name| {
        !matches!(name, "connection" | "content-length" | "transfer-encoding")
    });
    if seen.method == "HEAD" {
        if let Some(length) = reply.header("content-length") {
            head += &format!("Content-Length: {length}\r\n");
        }
    } else if reply.status != 204 {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    [head.as_bytes(), b"\r\n", &reply.body].concat()
}

/// The first line and those headers that are wanted, without the empty line.
fn head_of(reply: &Reply, wanted: impl Fn(&str) -> bool) -> String {
    let mut head = format!("HTTP/1.1 {} Forwarded\r\n", reply.status);
    for (name, value) in reply.headers.iter().filter(|(name, _)| wanted(name)) {
        head += &format!("{name}: {value}\r\n");
    }
    head
}

/// The right head, ETag included, and no body at all.
pub fn empty_body(reply: &Reply) -> Vec<u8> {
    let head = head_of(reply, |name| {
        !matches!(name, "content-length" | "connection")
    });
    format!("{head}Connection: close\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

/// The right head, ETag included, over the first bytes of the body alone.
pub fn short_body(reply: &Reply) -> Vec<u8> {
    let part = &reply.body[..reply.body.len() / 3];
    let head = head_of(reply, |name| {
        !matches!(name, "content-length" | "connection")
    });
    let length = part.len();
    let head = format!("{head}Connection: close\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), part].concat()
}

/// The right head, and a connection that ends within the body.
pub fn truncated_body(reply: &Reply) -> Vec<u8> {
    let head = head_of(reply, |name| name != "connection");
    let part = &reply.body[..reply.body.len() / 3];
    [head.as_bytes(), b"Connection: close\r\n\r\n", part].concat()
}

/// The right head over a body in which one bit is wrong.
pub fn flipped_bit(reply: &Reply) -> Vec<u8> {
    let mut body = reply.body.clone();
    if let Some(byte) = body.last_mut() {
        *byte ^= 1;
    }
    let head = head_of(reply, |name| name != "connection");
    [head.as_bytes(), b"Connection: close\r\n\r\n", &body].concat()
}
