//! What clients do in the tests: suspend the process while they send, send urgent data, disconnect in
//! different ways, and read what they have received.

#![cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "used by tests that run only on Linux")
)]

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::time::Duration;

use rustix::net::{SendFlags, sockopt};

use crate::support::{Client, Response, Service, TIMEOUT};

impl Service {
    /// Suspends the process as `docker pause` does while clients act. The kernel still accepts and receives
    /// for it.
    #[track_caller]
    pub fn while_paused<T>(&self, act: impl FnOnce() -> T) -> T {
        self.signal("STOP");
        // Elsewhere, there is no /proc to read the state from.
        #[cfg(target_os = "linux")]
        crate::support::wait_until("the process is stopped", || self.state() == 'T');
        let result = act();
        self.signal("CONT");
        result
    }
}

#[cfg(target_os = "linux")]
impl Service {
    /// Connects with a receive buffer of about 2 KiB, so that most responses stay unsent.
    pub fn connect_with_small_window(&self) -> Client {
        self.connect_with_receive_buffer(2304)
    }

    /// Connects with a receive buffer of about this many bytes, so that few responses fit into it.
    pub fn connect_with_receive_buffer(&self, bytes: usize) -> Client {
        use rustix::net::{AddressFamily, SocketFlags, SocketType};

        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        // The window is negotiated when connecting, so the buffer is set before.
        sockopt::set_socket_recv_buffer_size(&socket, bytes).unwrap();
        rustix::net::connect(&socket, &self.address).unwrap();
        Client::from(std::net::TcpStream::from(socket))
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// By a FIN. Nothing that was sent is lost.
    Orderly,
    /// By a reset.
    Reset,
}

impl Client {
    /// Disconnects with a reset, like a client that crashes or does not read everything.
    pub fn disconnect_with_reset(self) {
        sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }

    /// Disconnects with a FIN, as `curl -m` does. Its kernel responds with a reset to what is sent
    /// afterward.
    pub fn disconnect_with_fin(self) {
        assert!(
            self.has_nothing_to_read(),
            "unread bytes would turn the FIN into a reset"
        );
    }

    /// Closes the sending side only. The client still reads.
    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends one byte as TCP urgent data.
    pub fn send_urgent(&self, byte: u8) {
        let sent = rustix::net::send(&self.stream, &[byte], SendFlags::OOB);
        assert_eq!(sent, Ok(1));
    }

    /// Returns whether there is nothing to read.
    pub fn has_nothing_to_read(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Waits for a response to a request with a body, or for the connection to end without it.
    pub fn response_or_ending(&mut self) -> Result<Response, ConnectionEnd> {
        loop {
            if let Some((response, rest)) = split_response(&self.received) {
                self.received = rest.to_vec();
                return Ok(response);
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ConnectionEnd::Orderly),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(ConnectionEnd::Reset);
                }
                Err(error) => panic!("neither a response nor an end: {error}"),
            }
        }
    }

    /// Reads to the end of the connection: the responses to requests that have a body, and how it
    /// ended.
    pub fn read_to_the_end(&mut self) -> (Vec<Response>, ConnectionEnd) {
        let mut responses = Vec::new();
        loop {
            match self.response_or_ending() {
                Ok(response) => responses.push(response),
                Err(ending) => return (responses, ending),
            }
        }
    }

    /// Reads until nothing more comes.
    pub fn read_what_is_there(&mut self) {
        let pause = Duration::from_millis(200);
        self.stream.set_read_timeout(Some(pause)).unwrap();
        while self.stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
            self.receive();
        }
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    }

    /// Asserts that this number of responses follow, all with status 200, and then an orderly close.
    pub fn expect_responses_and_orderly_close(&mut self, count: usize) {
        let (responses, ending) = self.read_to_the_end();
        let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
        let as_expected = statuses.iter().filter(|status| **status == 200).count();
        assert!(
            (as_expected, statuses.len(), ending) == (count, count, ConnectionEnd::Orderly),
            "expected {count} responses with status 200 and an orderly close, got {as_expected} \
             of {} responses, and then {ending:?}",
            statuses.len()
        );
    }
}

/// Removes the first response, which has a body, from the received bytes if it is complete.
fn split_response(received: &[u8]) -> Option<(Response, &[u8])> {
    let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, rest) = received.split_at(end + 4);
    let head = String::from_utf8(head.to_vec()).unwrap();
    let mut response = Response {
        status: head[9..12].parse().expect("a status line"),
        head: head.trim_end().to_owned(),
        body: String::new(),
    };
    let length = response.field("Content-Length").expect("Content-Length");
    let (body, rest) = rest.split_at_checked(length.parse().unwrap())?;
    response.body = String::from_utf8(body.to_vec()).unwrap();
    Some((response, rest))
}
