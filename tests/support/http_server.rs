//! A server that answers as it is told, for what a real Swift rarely does.
//!
//! It speaks HTTP/1.1 by hand, so that it can also break it. What its handler
//! does not answer is answered as a healthy Swift would: tokens are given out,
//! the container is there, objects are not.
#![allow(dead_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A part of every token that is given out; must never be seen elsewhere.
pub const TOKEN: &str = "AUTH_tk_sesame";

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }
}

/// What happens next on the connection.
pub enum Answer {
    /// These bytes, and on to the next request.
    Send(Vec<u8>),
    /// These bytes, then the end of the connection.
    SendAndClose(Vec<u8>),
    /// Nothing, ever.
    Hang,
}

/// An answer with its Content-Length, unless the headers have one.
pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    Answer::Send(bytes_of(status, headers, body))
}

/// The bytes of [`reply`].
pub fn bytes_of(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let has = |wanted: &str| {
        headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    if !has("content-length") && !has("transfer-encoding") && status != 204 {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

type Handler = dyn Fn(&Seen) -> Option<Answer> + Send + Sync;

/// Such a server; it ends with the runtime.
pub struct Server {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub tokens: Arc<AtomicUsize>,
}

impl Server {
    pub async fn start(
        handler: impl Fn(&Seen) -> Option<Answer> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server {
            address: address.clone(),
            seen: Arc::default(),
            tokens: Arc::default(),
        };
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen, tokens) = (server.seen.clone(), server.tokens.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, seen, tokens, address) = (
                    handler.clone(),
                    seen.clone(),
                    tokens.clone(),
                    address.clone(),
                );
                tokio::spawn(async move {
                    let answer = |request: Seen| {
                        seen.lock().unwrap().push(request.clone());
                        handler(&request).unwrap_or_else(|| healthy(&request, &tokens, &address))
                    };
                    let _ = serve(stream, answer).await;
                });
            }
        });
        server
    }

    pub fn auth_url(&self) -> String {
        format!("http://{}/auth/v1.0", self.address)
    }

    /// How many requests of this method came below the storage URL.
    pub fn count(&self, method: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|seen| seen.method == method && seen.path.starts_with("/v1/"))
            .count()
    }

    pub fn renewals(&self) -> usize {
        self.tokens.load(Ordering::SeqCst)
    }
}

fn healthy(request: &Seen, tokens: &AtomicUsize, address: &str) -> Answer {
    if request.path == "/auth/v1.0" {
        let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
        let token = format!("{TOKEN}{number}");
        let url = format!("http://{address}/v1/AUTH_test");
        return reply(
            200,
            &[("X-Auth-Token", &token), ("X-Storage-Url", &url)],
            b"",
        );
    }
    match (request.method.as_str(), request.path.matches('/').count()) {
        ("HEAD", 3) => reply(204, &[("X-Storage-Policy", "Policy-0")], b""),
        ("PUT", _) => reply(201, &[], b""),
        ("DELETE", _) | ("POST", _) => reply(204, &[], b""),
        _ => reply(404, &[], b"<html>not found</html>"),
    }
}

async fn serve(mut stream: TcpStream, answer: impl Fn(Seen) -> Answer) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await? {
        match answer(request) {
            Answer::Send(bytes) => stream.write_all(&bytes).await?,
            Answer::SendAndClose(bytes) => return stream.write_all(&bytes).await,
            Answer::Hang => std::future::pending().await,
        }
    }
    Ok(())
}

async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Seen>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let mut seen = Seen {
        method: first.next().unwrap_or_default().to_owned(),
        path: first.next().unwrap_or_default().to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: Vec::new(),
    };
    assert_eq!(seen.header("transfer-encoding"), None, "no chunked bodies");
    let length = seen
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while buffer.len() < end + length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    seen.body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Ok(Some(seen))
}
