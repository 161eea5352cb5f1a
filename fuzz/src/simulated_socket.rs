//! A socket that does on demand what a kernel does now and then, and the client at its other end.
//!
//! It behaves as Linux does for TCP: a read stops before urgent data, a read that is shorter than what
//! is there is one after which more has arrived, a close with unread bytes is a reset, and the poll
//! is edge-triggered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::Instant;

use bounded_http::socket::{Readiness, Stream};

/// How much the kernel receives before it is read. The rest waits at the client.
const RECEIVE_QUEUE: usize = 16 * 1024;
/// How much the kernel takes to send, unless a client says otherwise.
const SEND_QUEUE: usize = 16 * 1024;

/// The most that the kernel takes at once.
const MAX_WRITE: usize = 45_000;

/// The server's end. [`Kernel`] is what the test sees and changes.
pub struct SimulatedSocket {
    kernel: Rc<RefCell<Kernel>>,
    clock: fn() -> Instant,
}

/// What the kernel and the client know of one connection.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is independent of the others"
)]
pub struct Kernel {
    /// Sent by the client, and not yet received: the receive queue is full.
    on_the_way: VecDeque<u8>,
    /// Every byte that was received.
    pub received: Vec<u8>,
    /// How many of them the server has read.
    pub read: usize,
    /// How many of them had been received when the server last asked for events.
    pub known: usize,
    /// The most that one read takes, as if the rest arrived just after it.
    pub max_read: usize,
    /// The position of the urgent byte. The next one replaces it (tcp(7)).
    urgent: Option<usize>,
    has_finished_sending: bool,
    /// The client has closed its socket: what is sent to it is answered with a reset.
    has_left: bool,
    /// The connection was reset by the client, or because it has left.
    pub is_reset: bool,
    /// Every byte that the server wrote.
    pub written: Vec<u8>,
    /// How many of them the client has not read.
    pub unread_by_client: usize,
    /// How much the kernel takes to send.
    pub send_queue: usize,
    /// If there is any space, it accepts a whole write.
    pub takes_whole_writes: bool,
    /// How much the client reads at a time. `None` means everything, as it comes.
    pub pace: Option<usize>,
    /// The server is to be told when there is room again.
    awaits_room: bool,
    has_event: bool,
    /// When a write last took something.
    pub written_at: Option<Instant>,
    /// Writes that found less room than they needed, or failed.
    pub refused_writes: usize,
    /// A call has told the server that the connection was reset, before an event did.
    pub has_failed_early: bool,
    pub half_close: Option<HalfClose>,
    pub is_closed: bool,
    /// The close resets the connection, so that the client does not get what it has not read.
    pub resets_on_close: bool,
}

/// What the kernel had received when the server closed its sending side.
#[derive(Clone, Copy)]
pub struct HalfClose {
    pub at: Instant,
    pub read: usize,
    pub known: usize,
    /// What can be read at once, known or not.
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
        // Once the sending side is closed, Linux says that there is room, whatever it still holds.
        let has_room = kernel.is_writable() || kernel.is_reset || kernel.half_close.is_some();
        kernel.awaits_room |= !has_room;
        has_room
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
            // A new socket is writable, which the poll says once.
            has_event: true,
            written_at: None,
            refused_writes: 0,
            has_failed_early: false,
            half_close: None,
            is_closed: false,
            resets_on_close: false,
        }
    }

    /// How many bytes have been received, without those that the limit on a read has arrive later.
    fn received_at_once(&self) -> usize {
        if self.max_read == usize::MAX {
            self.received.len()
        } else {
            self.known
        }
    }

    /// Bytes that the server has not read.
    pub fn unread(&self) -> usize {
        self.received.len() - self.read
    }

    /// Whether the client sends no more, and everything that it sent is received.
    pub fn is_end_received(&self) -> bool {
        self.has_finished_sending && self.on_the_way.is_empty()
    }

    /// Whether the kernel holds more than it should be left with when the connection is closed.
    pub fn holds_much(&self) -> bool {
        self.unread_by_client > self.send_queue / 3 * 2 + 2
    }

    /// Whether the poll says that there is room: a third of the queue, as Linux has it.
    pub fn is_writable(&self) -> bool {
        self.send_queue - self.unread_by_client.min(self.send_queue) > self.send_queue / 3
    }

    pub fn has_event(&self) -> bool {
        self.has_event && !self.is_closed
    }

    /// What the poll says, if something has happened since it was last asked.
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
            is_urgent: self
                .urgent
                .is_some_and(|urgent| (self.read..self.received.len()).contains(&urgent)),
            is_error: self.is_reset,
        })
    }

    /// Has the client send bytes, of which one may be urgent.
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

    /// Has the client close its sending side, or its socket.
    pub fn finish(&mut self, leaves: bool) {
        if !self.has_finished_sending && !self.is_reset {
            self.has_finished_sending = true;
            self.has_event |= self.on_the_way.is_empty();
        }
        self.has_left |= leaves;
    }

    /// Has the client reset the connection.
    pub fn reset(&mut self) {
        self.is_reset = true;
        self.has_event = true;
        self.on_the_way.clear();
    }

    /// Has the client read.
    pub fn client_reads(&mut self, count: usize) {
        self.unread_by_client = self.unread_by_client.saturating_sub(count);
        if self.awaits_room && self.is_writable() {
            self.awaits_room = false;
            self.has_event = true;
        }
    }

    /// Has the client read at its pace.
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
