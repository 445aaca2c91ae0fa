//! A small NBD client: fixed newstyle, EXPORT_NAME or GO, simple replies. It
//! shares no code with the server.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::waiting::PATIENCE;

pub const EIO: u32 = 5;
pub const EPERM: u32 = 1;
pub const EINVAL: u32 = 22;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

/// A client in the transmission phase. Dropped, it leaves without a word.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Size of the export in bytes.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    next: u64,
}

/// A request that was sent; its reply is to be awaited.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Sent {
    cookie: u64,
    /// Bytes of data in its reply.
    data: usize,
}

impl Client {
    /// By GO. Fails with the type of the error reply.
    pub fn go(socket: &Path, export: &str) -> Result<Client, u32> {
        let mut stream = greet(socket, FIXED_NEWSTYLE | NO_ZEROES);
        let name = export.as_bytes();
        let length = (name.len() as u32).to_be_bytes();
        option(&mut stream, OPT_GO, &[&length, name, &[0, 0]].concat());
        let (mut size, mut flags) = (0, 0);
        loop {
            let magic: [u8; 8] = array(&mut stream);
            assert_eq!(u64::from_be_bytes(magic), 0x0003_e889_0455_65a9);
            assert_eq!(u32::from_be_bytes(array(&mut stream)), OPT_GO);
            let kind = u32::from_be_bytes(array(&mut stream));
            let length = u32::from_be_bytes(array(&mut stream));
            let mut data = vec![0; length as usize];
            stream.read_exact(&mut data).unwrap();
            match kind {
                REP_ACK => break,
                REP_INFO if data[..2] == [0, 0] => {
                    size = u64::from_be_bytes(data[2..10].try_into().unwrap());
                    flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
                }
                REP_INFO => {}
                error => return Err(error),
            }
        }
        Ok(Client {
            stream,
            size,
            flags,
            next: 1,
        })
    }

    /// By EXPORT_NAME.
    pub fn export_name(socket: &Path, export: &str) -> Client {
        let mut stream = greet(socket, FIXED_NEWSTYLE);
        option(&mut stream, OPT_EXPORT_NAME, export.as_bytes());
        let size = u64::from_be_bytes(array(&mut stream));
        let flags = u16::from_be_bytes(array(&mut stream));
        let zeroes: [u8; 124] = array(&mut stream);
        assert_eq!(zeroes, [0; 124]);
        Client {
            stream,
            size,
            flags,
            next: 1,
        }
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<Sent> {
        let cookie = self.next;
        self.next += 1;
        let request = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
            payload,
        ]
        .concat();
        self.stream.write_all(&request)?;
        let data = if command == READ { length as usize } else { 0 };
        Ok(Sent { cookie, data })
    }

    /// The reply to the only request under way: its data, or its errno.
    pub fn reply(&mut self, sent: Sent) -> Result<Vec<u8>, u32> {
        self.try_reply(sent).expect("the server answers")
    }

    /// As [`Client::reply`]; fails if the connection ends instead.
    pub fn try_reply(&mut self, sent: Sent) -> io::Result<Result<Vec<u8>, u32>> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        assert_eq!(
            header[8..],
            sent.cookie.to_be_bytes(),
            "the request's cookie"
        );
        if error != 0 {
            return Ok(Err(error));
        }
        let mut data = vec![0; sent.data];
        self.stream.read_exact(&mut data)?;
        Ok(Ok(data))
    }

    /// Whether anything comes within this time.
    pub fn hears_within(&mut self, time: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, u16::try_from(time.as_millis()).unwrap()).unwrap() > 0
    }

    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<Sent> {
        self.send(WRITE, 0, offset, data.len() as u32, data)
    }

    pub fn send_flush(&mut self) -> io::Result<Sent> {
        self.send(FLUSH, 0, 0, 0, b"")
    }

    pub fn send_read(&mut self, offset: u64, length: u32) -> io::Result<Sent> {
        self.send(READ, 0, offset, length, b"")
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        let sent = self.send_read(offset, length).unwrap();
        self.reply(sent)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        let sent = self.send_write(offset, data).unwrap();
        self.reply(sent).map(drop)
    }

    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        let sent = self
            .send(WRITE, FUA, offset, data.len() as u32, data)
            .unwrap();
        self.reply(sent).map(drop)
    }

    pub fn flush(&mut self) -> Result<(), u32> {
        let sent = self.send_flush().unwrap();
        self.reply(sent).map(drop)
    }

    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        let sent = self.send(TRIM, 0, offset, length, b"").unwrap();
        self.reply(sent).map(drop)
    }

    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        let sent = self.send(WRITE_ZEROES, 0, offset, length, b"").unwrap();
        self.reply(sent).map(drop)
    }

    /// Leaves as the protocol wants it.
    pub fn disconnect(mut self) {
        let _ = self.send(DISC, 0, 0, 0, b"");
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "nothing follows DISC");
    }
}

fn greet(socket: &Path, flags: u16) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(&array::<8>(&mut stream), b"NBDMAGIC");
    assert_eq!(&array::<8>(&mut stream), b"IHAVEOPT");
    let offered = u16::from_be_bytes(array(&mut stream));
    assert_eq!(offered & flags, flags, "what the server offers");
    stream.write_all(&u32::from(flags).to_be_bytes()).unwrap();
    stream
}

fn option(stream: &mut UnixStream, option: u32, data: &[u8]) {
    let length = (data.len() as u32).to_be_bytes();
    let message = [b"IHAVEOPT", &option.to_be_bytes()[..], &length, data].concat();
    stream.write_all(&message).unwrap();
}

fn array<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
