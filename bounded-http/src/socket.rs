//! A client's socket, and what is known about it without a system call.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use crate::listener::{LARGE_RECEIVE_BUFFER_SIZE, LARGE_SEND_BUFFER_SIZE};

/// A byte stream that can be polled. The event loop uses TCP. Tests and fuzz targets use streams that
/// do on demand what a kernel does only now and then.
pub trait Stream: Read + Write {
    /// Closes the sending side. The client reads the end of the stream after the bytes that were
    /// written.
    ///
    /// # Errors
    /// If the client has disconnected.
    fn close_sending_side(&mut self) -> io::Result<()>;

    /// Returns whether an error has ended the connection.
    fn has_failed(&self) -> bool;

    /// Returns whether the kernel has delivered most of what was written. It may accept a whole
    /// response at once, however small its buffer, and hold it for a client that does not read. Once
    /// the sending side is closed, the result is always true.
    fn has_delivered(&self) -> bool;

    /// Enlarges the kernel's receive buffer to [`LARGE_RECEIVE_BUFFER_SIZE`].
    fn enlarge_receive_buffer(&mut self);

    /// Enlarges the kernel's send buffer to [`LARGE_SEND_BUFFER_SIZE`].
    fn enlarge_send_buffer(&mut self);

    /// Makes closing the stream reset the connection. The kernel then drops the bytes that the client
    /// has not read. Otherwise it holds them in memory for minutes.
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
        // A socket counts as writable when a third of its buffer is free (tcp(7),
        // sk_stream_is_writeable).
        let mut socket = [PollFd::new(self, PollFlags::OUT)];
        let polled = poll(&mut socket, Some(&Timespec::default()));
        polled.is_err() || !socket[0].revents().is_empty()
    }

    fn enlarge_receive_buffer(&mut self) {
        // If this fails, the client is only served less efficiently.
        let _ = sockopt::set_socket_recv_buffer_size(self, LARGE_RECEIVE_BUFFER_SIZE);
    }

    fn enlarge_send_buffer(&mut self) {
        let _ = sockopt::set_socket_send_buffer_size(self, LARGE_SEND_BUFFER_SIZE);
    }

    fn reset_on_close(&mut self) {
        // If this fails, the memory is freed later.
        let _ = sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }
}

/// What an event says about a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the kernel reports them together, and they are independent of each other"
)]
pub struct Readiness {
    /// There may be bytes to read, or the end of the stream.
    pub is_readable: bool,
    /// The client has closed its sending side.
    pub is_read_closed: bool,
    /// Bytes can be written.
    pub is_writable: bool,
    /// There is urgent data.
    pub has_urgent_data: bool,
    /// The connection was reset.
    pub is_error: bool,
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Self {
        Self {
            is_readable: event.is_readable(),
            is_read_closed: event.is_read_closed(),
            is_writable: event.is_writable(),
            has_urgent_data: event.is_priority(),
            is_error: event.is_error(),
        }
    }
}

/// A stream, and what events have said about it. The poll is edge-triggered: it reports a change once,
/// and the state is remembered here until a read or write finds that it has changed.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
pub struct Socket<S> {
    stream: S,
    /// There may be bytes to read. Set by an event, cleared by a read that empties the socket.
    is_readable: bool,
    /// The client has closed its sending side. Set by an event or a read, never cleared.
    is_read_closed: bool,
    /// The socket's buffer is full. Set by a write, cleared by an event.
    is_write_blocked: bool,
    /// A read may stop at urgent data, so a short read does not mean that the socket is empty (tcp(7)).
    /// Set by an event, cleared when a read finds nothing.
    has_urgent_data: bool,
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This number of bytes.
    Bytes(usize),
    /// The end of the stream: the client sends no more.
    End,
    /// Nothing for now.
    Nothing,
}

impl<S: Stream> Socket<S> {
    /// Creates a socket for a stream without events so far.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            is_readable: false,
            is_read_closed: false,
            is_write_blocked: false,
            has_urgent_data: false,
        }
    }

    /// Returns the stream.
    #[cfg(test)]
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Records what an event says.
    pub fn update(&mut self, readiness: Readiness) {
        self.is_readable |= readiness.is_readable;
        self.is_read_closed |= readiness.is_read_closed;
        self.is_write_blocked &= !readiness.is_writable;
        self.has_urgent_data |= readiness.has_urgent_data;
    }

    /// Makes the next turn read even without an event. What the kernel has received counts as received.
    pub fn assume_readable(&mut self) {
        self.is_readable = true;
    }

    /// Returns whether there may be bytes to read.
    pub fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Returns whether the kernel takes no more bytes for now.
    pub fn is_write_blocked(&self) -> bool {
        self.is_write_blocked
    }

    /// Returns whether the client has closed its sending side.
    pub fn is_read_closed(&self) -> bool {
        self.is_read_closed
    }

    /// Returns whether the connection has failed, as far as the kernel knows by now.
    pub fn has_failed(&self) -> bool {
        self.stream.has_failed()
    }

    /// Closes the sending side.
    ///
    /// # Errors
    /// If the client has disconnected.
    pub fn close_sending_side(&mut self) -> io::Result<()> {
        self.stream.close_sending_side()
    }

    /// Returns whether the kernel has delivered most of what was written.
    pub fn has_delivered(&self) -> bool {
        self.stream.has_delivered()
    }

    /// Enlarges the kernel's receive buffer.
    pub fn enlarge_receive_buffer(&mut self) {
        self.stream.enlarge_receive_buffer();
    }

    /// Enlarges the kernel's send buffer, which then takes more bytes.
    pub fn enlarge_send_buffer(&mut self) {
        self.stream.enlarge_send_buffer();
        self.is_write_blocked = false;
    }

    /// Makes closing the socket reset the connection.
    pub fn reset_on_close(&mut self) {
        self.stream.reset_on_close();
    }

    /// Reads once.
    ///
    /// # Errors
    /// If the client has disconnected.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        match self.stream.read(buffer) {
            Ok(0) => {
                self.is_readable = false;
                self.is_read_closed = true;
                Ok(Received::End)
            }
            Ok(count) => {
                // A short read has emptied the socket (epoll(7), "edge-triggered"), unless it stopped
                // at urgent data. If the client has closed its sending side, the end is still to be
                // read.
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

    /// Writes as much as the socket accepts. Returns `None` if it is full. A full socket is not tried
    /// again until an event says that it accepts more. Without an event, it would accept a few bytes
    /// now and then although the client reads nothing, and that would count as progress.
    ///
    /// # Errors
    /// If the client has disconnected.
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

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{TcpListener, TcpStream as Client};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Returns a socket and the client at its other end.
    fn connected() -> (Socket<TcpStream>, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::connect(listener.local_addr().unwrap()).unwrap();
        let timeout = Some(Duration::from_secs(60));
        client.set_read_timeout(timeout).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (Socket::new(TcpStream::from_std(stream)), client)
    }

    /// Waits for a condition, which a packet on its way will make true.
    pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < end, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads when there are bytes, or the end of the stream.
    fn read(socket: &mut Socket<TcpStream>, size: usize) -> Received {
        wait_until("bytes or the end", || {
            socket.stream().peek(&mut [0]).is_ok()
        });
        socket.read(&mut vec![0; size]).unwrap()
    }

    #[test]
    fn a_short_read_has_emptied_the_socket_unless_the_end_or_urgent_data_may_follow() {
        let urgent = Readiness {
            has_urgent_data: true,
            ..Readiness::default()
        };
        let read_closed = Readiness {
            is_read_closed: true,
            ..Readiness::default()
        };
        for (readiness, size, is_readable) in [
            (Readiness::default(), 4, false),
            (Readiness::default(), 3, true),
            (urgent, 4, true),
            (read_closed, 4, true),
        ] {
            let (mut socket, mut client) = connected();
            assert!(!socket.is_readable());
            socket.assume_readable();
            assert!(socket.is_readable());
            socket.update(readiness);
            socket.update(Readiness::default());
            assert!(socket.is_readable(), "until a read");
            client.write_all(b"abc").unwrap();
            assert_eq!(read(&mut socket, size), Received::Bytes(3));
            assert_eq!(socket.is_readable(), is_readable, "{readiness:?}, {size}");
        }
    }

    #[test]
    fn urgent_data_has_been_read_when_a_read_finds_nothing() {
        let (mut socket, mut client) = connected();
        socket.update(Readiness {
            is_readable: true,
            has_urgent_data: true,
            ..Readiness::default()
        });
        assert_eq!(socket.read(&mut [0; 4]).unwrap(), Received::Nothing);
        assert!(!socket.is_readable());
        client.write_all(b"abc").unwrap();
        assert_eq!(read(&mut socket, 4), Received::Bytes(3));
        assert!(!socket.is_readable());
        drop(client);
        assert_eq!(read(&mut socket, 4), Received::End);
        assert!(socket.is_read_closed() && !socket.is_readable());
    }

    #[test]
    fn a_full_socket_is_not_tried_again_until_an_event_says_that_it_accepts_more() {
        let (mut socket, mut client) = connected();
        let bytes = vec![0; 1 << 20];
        let mut written = 0;
        while let Some(count) = socket.write(&bytes).unwrap() {
            written += count;
            assert!(written < 1 << 30, "the kernel accepts any number of bytes");
        }
        assert!(socket.is_write_blocked() && !socket.has_delivered());
        client.read_exact(&mut vec![0; written]).unwrap();
        wait_until("room", || socket.has_delivered());
        socket.update(Readiness {
            is_readable: true,
            ..Readiness::default()
        });
        assert_eq!(socket.write(b"abc").unwrap(), None);
        socket.update(Readiness {
            is_writable: true,
            ..Readiness::default()
        });
        assert!(!socket.is_write_blocked());
        assert_eq!(socket.write(b"abc").unwrap(), Some(3));
    }

    #[test]
    fn closing_the_sending_side_ends_the_stream() {
        let (mut socket, mut client) = connected();
        socket.close_sending_side().unwrap();
        assert_eq!(client.read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn a_reset_is_reported_once() {
        // Unread bytes make the client's kernel send a reset.
        let (mut socket, client) = connected();
        assert!(!socket.has_failed());
        assert_eq!(socket.write(b"abc").unwrap(), Some(3));
        wait_until("bytes", || client.peek(&mut [0; 3]).unwrap() == 3);
        drop(client);
        wait_until("the reset", || socket.has_failed());
        assert!(!socket.has_failed());
    }

    #[test]
    fn closing_resets_the_connection_after_reset_on_close() {
        for resets in [false, true] {
            let (mut socket, mut client) = connected();
            if resets {
                socket.reset_on_close();
            }
            drop(socket);
            let end = client.read(&mut [0; 4]).map_err(|error| error.kind());
            let expected = if resets {
                Err(ErrorKind::ConnectionReset)
            } else {
                Ok(0)
            };
            assert_eq!(end, expected);
        }
    }
}
