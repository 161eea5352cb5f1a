//! A client's socket, and what is known of it without asking the kernel.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

/// A byte stream of which a poll tells when it is ready. The event loop uses TCP; tests and fuzz
/// targets use streams that do on demand what a kernel does now and then.
pub trait Stream: Read + Write {
    /// Closes the sending side: the client reads the end after the bytes that were written.
    ///
    /// # Errors
    /// When the client has disconnected.
    fn close_sending_side(&mut self) -> io::Result<()>;

    /// Whether an error has ended the connection.
    fn has_failed(&self) -> bool;

    /// Whether the kernel has delivered most of what was written. It may take a whole response at
    /// once, however small its buffer, and keep it for a client that does not read. Only known until
    /// the sending side is closed.
    fn has_delivered(&self) -> bool;

    /// Has the connection be reset when it is closed. The kernel then drops the bytes that the client
    /// has not read; otherwise it keeps them, and their memory, for minutes.
    fn reset_on_close(&mut self);
}

impl Stream for TcpStream {
    fn close_sending_side(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn has_failed(&self) -> bool {
        !matches!(self.take_error(), Ok(None))
    }

    fn has_delivered(&self) -> bool {
        // A socket counts as writable when a third of its buffer is free (tcp(7), sk_stream_is_writeable).
        let mut socket = [PollFd::new(self, PollFlags::OUT)];
        let polled = poll(&mut socket, Some(&Timespec::default()));
        polled.is_err() || !socket[0].revents().is_empty()
    }

    fn reset_on_close(&mut self) {
        // Without it the memory is freed later.
        let _ = sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }
}

/// What an event of the poll says about a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the kernel reports them together and each is independent of the others"
)]
pub struct Readiness {
    /// There may be bytes, or the end, to read.
    pub is_readable: bool,
    /// The client has closed its sending side.
    pub is_read_closed: bool,
    /// There is room for bytes.
    pub is_writable: bool,
    /// There is urgent data.
    pub is_urgent: bool,
    /// The connection was reset.
    pub is_error: bool,
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Self {
        Self {
            is_readable: event.is_readable(),
            is_read_closed: event.is_read_closed(),
            is_writable: event.is_writable(),
            is_urgent: event.is_priority(),
            is_error: event.is_error(),
        }
    }
}

/// A stream, and what the poll has said about it. The poll is edge-triggered: it says everything
/// once, and what it said holds until a call finds otherwise.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is set and cleared independently of the others"
)]
pub struct Socket<S> {
    stream: S,
    /// There may be bytes to read. Set by an event, cleared by a read that empties the socket.
    is_readable: bool,
    /// The client has closed its sending side: the end follows the bytes, and no event says so again.
    is_read_closed: bool,
    /// The socket was full, and no event has said since then that there is room.
    is_write_blocked: bool,
    /// A read may stop at the urgent data, so that a short one does not prove the socket empty
    /// (tcp(7)). Set by an event, cleared when a read finds nothing.
    has_urgent_data: bool,
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(usize),
    /// The end: the client sends no more.
    End,
    /// Nothing, for now.
    Nothing,
}

impl<S: Stream> Socket<S> {
    /// A socket about which the poll has said nothing yet.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            is_readable: false,
            is_read_closed: false,
            is_write_blocked: false,
            has_urgent_data: false,
        }
    }

    /// Adds what an event says.
    pub fn update(&mut self, readiness: Readiness) {
        self.is_readable |= readiness.is_readable;
        self.is_read_closed |= readiness.is_read_closed;
        self.is_write_blocked &= !readiness.is_writable;
        self.has_urgent_data |= readiness.is_urgent;
    }

    /// Has the next turn read, whether or not an event has said that there are bytes: whatever
    /// the kernel has received counts as received.
    pub fn assume_readable(&mut self) {
        self.is_readable = true;
    }

    /// Whether there may be bytes to read.
    pub fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Whether the client has closed its sending side.
    pub fn is_read_closed(&self) -> bool {
        self.is_read_closed
    }

    /// Whether the connection has failed, as far as the kernel knows by now.
    pub fn has_failed(&self) -> bool {
        self.stream.has_failed()
    }

    /// Closes the sending side.
    ///
    /// # Errors
    /// When the client has disconnected.
    pub fn close_sending_side(&mut self) -> io::Result<()> {
        self.stream.close_sending_side()
    }

    /// Whether the kernel has delivered most of what was written.
    pub fn has_delivered(&self) -> bool {
        self.stream.has_delivered()
    }

    /// Has the connection be reset when it is closed.
    pub fn reset_on_close(&mut self) {
        self.stream.reset_on_close();
    }

    /// Reads once.
    ///
    /// # Errors
    /// When the client has disconnected.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        match self.stream.read(buffer) {
            Ok(0) => {
                self.is_readable = false;
                self.is_read_closed = true;
                Ok(Received::End)
            }
            Ok(count) => {
                // A short read has emptied the socket (epoll(7), "edge-triggered"), except at urgent
                // data and at an end that is announced already.
                self.is_readable =
                    count == buffer.len() || self.is_read_closed || self.has_urgent_data;
                Ok(Received::Bytes(count))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                self.has_urgent_data = false;
                Ok(Received::Nothing)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Writes as much as there is room for. `None` if there is none: a full socket is not tried again
    /// without an event. It takes a little now and then of its own accord although the client reads
    /// nothing, and that would count as progress.
    ///
    /// # Errors
    /// When the client has disconnected.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        while !self.is_write_blocked {
            match self.stream.write(bytes) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_write_blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
