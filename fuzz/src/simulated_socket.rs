//! A socket that does on demand what a kernel does now and then, and the client at its other end.
//!
//! It behaves like TCP on Linux: a read stops before urgent data, more bytes can arrive just after a
//! short read, a close with unread bytes is a reset, and the poll is edge-triggered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::Instant;

use bounded_http::internals::listener::LARGE_SEND_BUFFER_SIZE;
use bounded_http::internals::socket::{Readiness, Stream};

/// The number of bytes that the kernel receives before they are read. The rest waits at the client.
const RECEIVE_QUEUE: usize = 16 * 1024;
/// The number of bytes that the kernel's send queue accepts by default.
const SEND_QUEUE: usize = 16 * 1024;

/// The maximum number of bytes that the kernel accepts at once.
const MAX_WRITE: usize = 45_000;

/// The server's end. [`Kernel`] is what the test sees and changes.
pub struct SimulatedSocket {
    kernel: Rc<RefCell<Kernel>>,
    clock: fn() -> Instant,
}

/// The state of one connection in the kernel and at the client.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is independent of the others"
)]
pub struct Kernel {
    /// Bytes that the client has sent and the kernel has not received, because its receive queue is
    /// full.
    on_the_way: VecDeque<u8>,
    /// All bytes that the kernel has received.
    pub received: Vec<u8>,
    /// The number of these that the server has read.
    pub read: usize,
    /// The number of these that had been received at the server's last poll.
    pub known: usize,
    /// The maximum number of bytes that one read takes, as if the rest arrived just after it.
    pub max_read: usize,
    /// The position of the urgent byte. The next one replaces it (tcp(7)).
    urgent: Option<usize>,
    has_finished_sending: bool,
    /// The client has closed its socket. Its kernel responds with a reset to what is sent.
    has_left: bool,
    /// The connection was reset, by the client or because it has closed its socket.
    pub is_reset: bool,
    /// All bytes that the server has written.
    pub written: Vec<u8>,
    /// The number of these that the client has not read.
    pub unread_by_client: usize,
    /// The number of bytes that the kernel's send queue accepts.
    pub send_queue: usize,
    /// If there is any space, it accepts a whole write.
    pub takes_whole_writes: bool,
    /// How much the client reads at a time. `None` means everything at once.
    pub pace: Option<usize>,
    /// There must be an event when the send queue has space again.
    awaits_room: bool,
    has_event: bool,
    /// When the kernel last accepted a write.
    pub written_at: Option<Instant>,
    /// The number of writes that were not accepted completely, or failed.
    pub refused_writes: usize,
    /// A call of the server failed because of a reset, before the event of the reset.
    pub has_failed_early: bool,
    pub half_close: Option<HalfClose>,
    pub is_closed: bool,
    /// Closing resets the connection, and the client does not receive what it has not read.
    pub resets_on_close: bool,
}

/// What the kernel had received when the server closed its sending side.
#[derive(Clone, Copy)]
pub struct HalfClose {
    pub at: Instant,
    pub read: usize,
    pub known: usize,
    /// Returns the bytes that can be read at once, whether or not an event has said so.
    pub received: usize,
}

impl SimulatedSocket {
    pub fn new(clock: fn() -> Instant) -> (Self, Rc<RefCell<Kernel>>) {
        let kernel = Rc::new(RefCell::new(Kernel::new()));
        let socket = Self {
            kernel: Rc::clone(&kernel),
            clock,
        };
        (socket, kernel)
    }
}

impl Read for SimulatedSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().read(buffer)
    }
}

impl Write for SimulatedSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().write(bytes, (self.clock)())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for SimulatedSocket {
    fn close_sending_side(&mut self) -> io::Result<()> {
        let mut kernel = self.kernel.borrow_mut();
        if kernel.is_reset {
            kernel.has_failed_early = true;
            return Err(ErrorKind::NotConnected.into());
        }
        assert!(kernel.half_close.is_none(), "closed twice");
        kernel.half_close = Some(HalfClose {
            at: (self.clock)(),
            read: kernel.read,
            known: kernel.known,
            received: kernel.received_at_once(),
        });
        Ok(())
    }

    fn has_failed(&self) -> bool {
        self.kernel.borrow().is_reset
    }

    fn has_delivered(&self) -> bool {
        let mut kernel = self.kernel.borrow_mut();
        // Once the sending side is closed, Linux always reports the socket as writable.
        let has_room = kernel.is_writable() || kernel.is_reset || kernel.half_close.is_some();
        kernel.awaits_room |= !has_room;
        has_room
    }

    fn enlarge_receive_buffer(&mut self) {
        // The server never knows how much is unread, so one size is enough here.
    }

    fn enlarge_send_buffer(&mut self) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.send_queue = kernel.send_queue.max(2 * LARGE_SEND_BUFFER_SIZE);
    }

    fn reset_on_close(&mut self) {
        self.kernel.borrow_mut().resets_on_close = true;
    }
}

impl Drop for SimulatedSocket {
    fn drop(&mut self) {
        self.kernel.borrow_mut().is_closed = true;
    }
}

impl Kernel {
    fn new() -> Self {
        Self {
            on_the_way: VecDeque::new(),
            received: Vec::new(),
            read: 0,
            known: 0,
            max_read: usize::MAX,
            urgent: None,
            has_finished_sending: false,
            has_left: false,
            is_reset: false,
            written: Vec::new(),
            unread_by_client: 0,
            send_queue: SEND_QUEUE,
            takes_whole_writes: false,
            pace: None,
            awaits_room: false,
            // A new socket is writable, which the poll reports once.
            has_event: true,
            written_at: None,
            refused_writes: 0,
            has_failed_early: false,
            half_close: None,
            is_closed: false,
            resets_on_close: false,
        }
    }

    /// Returns the number of received bytes, without those that arrive after a limited read.
    fn received_at_once(&self) -> usize {
        if self.max_read == usize::MAX {
            self.received.len()
        } else {
            self.known
        }
    }

    /// Returns the number of bytes that the server has not read.
    pub fn unread(&self) -> usize {
        self.received.len() - self.read
    }

    /// Returns whether the client sends no more and everything that it has sent is received.
    pub fn is_end_received(&self) -> bool {
        self.has_finished_sending && self.on_the_way.is_empty()
    }

    /// Returns whether the kernel holds more than it may hold after the connection is closed.
    pub fn holds_much(&self) -> bool {
        self.unread_by_client > self.send_queue / 3 * 2 + 2
    }

    /// Returns whether the poll reports the socket as writable: if a third of the queue is free, as on
    /// Linux.
    pub fn is_writable(&self) -> bool {
        self.send_queue - self.unread_by_client.min(self.send_queue) > self.send_queue / 3
    }

    pub fn has_event(&self) -> bool {
        self.has_event && !self.is_closed
    }

    /// Returns the event of a poll, if anything has happened since the last one.
    pub fn poll(&mut self) -> Option<Readiness> {
        self.known = self.received.len();
        if !self.has_event() {
            return None;
        }
        self.has_event = false;
        self.awaits_room |= !self.is_writable();
        let is_over = self.is_end_received() || self.is_reset;
        Some(Readiness {
            is_readable: self.unread() > 0 || is_over,
            is_read_closed: is_over,
            is_writable: self.is_writable(),
            has_urgent_data: self
                .urgent
                .is_some_and(|urgent| (self.read..self.received.len()).contains(&urgent)),
            is_error: self.is_reset,
        })
    }

    /// Sends bytes from the client, of which one may be urgent.
    pub fn send(&mut self, bytes: &[u8], urgent: Option<usize>) {
        if self.has_finished_sending || self.is_reset || bytes.is_empty() {
            return;
        }
        if let Some(urgent) = urgent {
            let end = self.received.len() + self.on_the_way.len();
            self.urgent = Some(end + urgent % bytes.len());
        }
        self.on_the_way.extend(bytes);
        self.receive();
    }

    /// Closes the client's sending side or its socket.
    pub fn finish(&mut self, leaves: bool) {
        if !self.has_finished_sending && !self.is_reset {
            self.has_finished_sending = true;
            self.has_event |= self.on_the_way.is_empty();
        }
        self.has_left |= leaves;
    }

    /// Resets the connection from the client.
    pub fn reset(&mut self) {
        self.is_reset = true;
        self.has_event = true;
        self.on_the_way.clear();
    }

    /// Reads at the client.
    pub fn client_reads(&mut self, count: usize) {
        self.unread_by_client = self.unread_by_client.saturating_sub(count);
        if self.awaits_room && self.is_writable() {
            self.awaits_room = false;
            self.has_event = true;
        }
    }

    /// Reads at the client at its pace.
    pub fn keep_pace(&mut self) {
        self.client_reads(self.pace.unwrap_or(usize::MAX));
    }

    fn receive(&mut self) {
        let room = RECEIVE_QUEUE - self.unread().min(RECEIVE_QUEUE);
        let count = room.min(self.on_the_way.len());
        if count > 0 {
            self.received.extend(self.on_the_way.drain(..count));
            self.has_event = true;
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.unread().min(buffer.len());
        if count == 0 && self.is_reset {
            self.has_failed_early = true;
            return Err(ErrorKind::ConnectionReset.into());
        }
        if count == 0 {
            return if self.is_end_received() {
                Ok(0)
            } else {
                Err(ErrorKind::WouldBlock.into())
            };
        }
        if count > self.max_read {
            count = self.max_read;
            self.known = self.known.min(self.read + count);
            self.has_event = true;
        }
        if let Some(urgent) = self.urgent
            && (self.read + 1..self.read + count).contains(&urgent)
        {
            count = urgent - self.read;
        }
        let bytes = &self.received[self.read..self.read + count];
        buffer[..count].copy_from_slice(bytes);
        self.read += count;
        self.receive();
        Ok(count)
    }

    fn write(&mut self, bytes: &[u8], now: Instant) -> io::Result<usize> {
        assert!(self.half_close.is_none(), "written after the end");
        if self.is_reset {
            self.refused_writes += 1;
            self.has_failed_early = true;
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = self.send_queue - self.unread_by_client.min(self.send_queue);
        let count = if self.takes_whole_writes && room > 0 {
            bytes.len().min(MAX_WRITE)
        } else {
            room.min(bytes.len())
        };
        if count < bytes.len() {
            self.awaits_room = true;
        }
        if count == 0 {
            self.refused_writes += 1;
            return Err(ErrorKind::WouldBlock.into());
        }
        self.written.extend_from_slice(&bytes[..count]);
        self.written_at = Some(now);
        self.unread_by_client += count;
        if self.has_left {
            self.reset();
        } else if self.pace.is_none() {
            self.client_reads(usize::MAX);
        }
        Ok(count)
    }
}
