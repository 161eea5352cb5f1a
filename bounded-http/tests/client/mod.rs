//! A client that reads responses, for the tests.

#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum time of every wait. After that, the test fails and says what it waited for.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a server.
pub struct Client {
    pub stream: TcpStream,
    received: Vec<u8>,
}

/// A response: its status, its head, and the part of its body that has been received.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self {
            stream,
            received: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).unwrap();
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(&get(path));
        self.response()
    }

    /// Waits for a response and its whole body.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        let (_, length) = response.head.split_once("Content-Length: ").unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        while self.received.len() < length {
            assert!(self.receive(), "closed within the body: {response:?}");
        }
        response.body = String::from_utf8(self.received.drain(..length).collect()).unwrap();
        response
    }

    /// Waits for the head of a response.
    pub fn head(&mut self) -> Response {
        let end = loop {
            let mut ends = self.received.windows(4);
            match ends.position(|bytes| bytes == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => assert!(self.receive(), "closed without a response"),
            }
        };
        let head = String::from_utf8(self.received.drain(..end).collect()).unwrap();
        Response {
            status: head[9..12].parse().expect("a status line"),
            head,
            body: String::new(),
        }
    }

    /// Reads until the server closes the connection. Returns the bytes, or the error that ended it.
    pub fn read_to_the_end(&mut self) -> Result<String, ErrorKind> {
        match self.stream.read_to_end(&mut self.received) {
            Ok(_) => Ok(String::from_utf8(std::mem::take(&mut self.received)).unwrap()),
            Err(error) => Err(error.kind()),
        }
    }

    /// Returns whether the connection is open and there is nothing to read.
    pub fn is_silent(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Waits for more bytes. Returns `false` if the server has closed the connection in an orderly way.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).expect("bytes, or an end");
        self.received.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

/// Returns a GET request.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < TIMEOUT, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
