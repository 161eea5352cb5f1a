//! One client: its socket, its connection, and what a turn does with them.
//!
//! ```text
//! a reply is due -> answer what was received -> read, answer -> write -> expire or half-close
//! ```
//!
//! A turn does what can be done without waiting, and is bounded: a client with a thousand requests
//! waits for the others between them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::time::{Instant, SystemTime};

use mio::event::Event;
use mio::net::TcpStream;

use super::connection::{Buffers, Connection};
use super::date::Date;
use super::request_head::Rejection;
use super::timer_queue::TimerQueue;
use crate::access_log::{AccessLog, Entry};
use crate::app::{App, Reply};
use crate::diagnostics::announce_change;
use crate::probe;

/// Requests answered in one turn. The most expensive is HEAD /metrics, a tenth of a millisecond or two.
const REQUESTS_PER_TURN: usize = 32;

/// What the turns of all clients share.
pub struct Shared {
    pub app: App,
    pub access_log: AccessLog,
    /// When the last wake-up was.
    pub now: Instant,
    /// The same by the clock on the wall.
    pub time: SystemTime,
    pub date: Date,
    /// When delayed replies are due.
    pub timers: TimerQueue,
    /// The keys of the clients whose reply is due and takes work, in the order of their turns.
    pub work_queue: VecDeque<usize>,
    /// What one read fills at most.
    pub read_buffer: Box<[u8]>,
    /// What the client that has a turn works with.
    pub spare_buffers: Buffers,
    /// The first signal has come: whoever is owed nothing is closed.
    pub is_stopping: bool,
}

/// A client of the event loop.
pub struct Client {
    key: usize,
    peer: SocketAddr,
    socket: Socket,
    connection: Connection,
    pending: Option<PendingReply>,
    /// It is in the run queue.
    pub is_queued: bool,
}

/// A reply that is not due yet, or takes work, and the only one: the requests behind it wait.
struct PendingReply {
    due: Instant,
    /// It is due, and in the work queue.
    waits_for_work: bool,
    /// Its `work` is what is left to be done.
    reply: Reply,
    request: InFlight,
}

/// A request that is being answered.
struct InFlight {
    started: Instant,
    log_entry: Option<Entry>,
}

/// What is to happen after a turn.
#[derive(PartialEq, Eq)]
pub enum Next {
    /// Nothing, until an event, a timer or a deadline.
    Wait,
    /// Another turn, when the others had theirs.
    AnotherTurn,
    /// The connection is over.
    Close,
}

impl Client {
    /// A client that was accepted at `now`. `key` is its key among the clients.
    pub fn new(key: usize, stream: TcpStream, peer: SocketAddr, now: Instant) -> Self {
        Self {
            key,
            peer,
            socket: Socket::new(stream),
            connection: Connection::new(now),
            pending: None,
            is_queued: false,
        }
    }

    /// Takes what an event says of the socket.
    pub fn note(&mut self, event: &Event) {
        self.socket.note(event);
    }

    /// Has the next turn look for bytes without an event. Told to stop, the event loop does so:
    /// what the kernel has received is received.
    pub fn assume_readable(&mut self) {
        self.socket.is_readable = true;
    }

    /// When the client is given up, unless something happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.connection.deadline()
    }

    /// Since when the client does nothing but take up room, if that is so.
    pub fn idle_since(&self) -> Option<Instant> {
        self.connection.idle_since()
    }

    /// When its delayed reply is due, if it has one.
    pub fn reply_due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.due)
    }

    /// Whether it is in the work queue.
    pub fn waits_for_work(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.waits_for_work)
    }

    /// Does the work that its reply takes. The next turn gives the answer.
    pub fn work(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.waits_for_work = false;
            probe::work(mem::take(&mut pending.reply.work));
        }
    }

    /// Does what can be done without waiting, up to the bounds of a turn.
    ///
    /// # Errors
    /// When the socket fails: the client has left.
    pub fn take_turn(&mut self, shared: &mut Shared) -> io::Result<Next> {
        self.connection.take_spare(&mut shared.spare_buffers);
        let next = self.serve(shared);
        self.connection.put_back(&mut shared.spare_buffers);
        next
    }

    /// Takes that the client has left. A request whose reply it did not wait for is recorded.
    pub fn leave(self, shared: &Shared) {
        if let Some(pending) = self.pending {
            shared.record(&pending.reply, &pending.request);
        }
    }

    fn serve(&mut self, shared: &mut Shared) -> io::Result<Next> {
        self.advance_pending(shared);
        let mut budget = REQUESTS_PER_TURN;
        self.answer_received(&mut budget, shared);
        if self.can_read() {
            self.read(shared)?;
            self.answer_received(&mut budget, shared);
        }
        self.write(shared.now)?;
        if self.deadline().is_some_and(|end| end <= shared.now) {
            let Some(rejection) = self.connection.expire() else {
                return Ok(Next::Close);
            };
            self.reject(rejection, shared);
            self.write(shared.now)?;
        }
        if self.connection.wants_half_close() {
            self.socket.stream.shutdown(Shutdown::Write)?;
            self.connection.linger(shared.now);
        }
        Ok(self.next(shared.is_stopping))
    }

    fn next(&self, is_stopping: bool) -> Next {
        let is_to_end = is_stopping && self.connection.is_idle() && !self.can_read();
        if self.connection.is_finished() || is_to_end {
            Next::Close
        } else if self.can_read() || self.connection.can_answer() {
            Next::AnotherTurn
        } else {
            Next::Wait
        }
    }

    fn can_read(&self) -> bool {
        self.socket.is_readable && self.connection.wants_bytes()
    }

    fn read(&mut self, shared: &mut Shared) -> io::Result<()> {
        match self.socket.read(&mut shared.read_buffer)? {
            None => {}
            Some(0) => self.connection.receive_end(),
            Some(count) => {
                let bytes = &shared.read_buffer[..count];
                self.connection.receive(bytes, shared.now);
            }
        }
        Ok(())
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        while !self.connection.unsent().is_empty()
            && let Some(count) = self.socket.write(self.connection.unsent())?
        {
            self.connection.sent(count, now);
        }
        Ok(())
    }

    /// Answers with the pending reply if it is due, or has its work queued if it takes some.
    fn advance_pending(&mut self, shared: &mut Shared) {
        let is_due =
            |pending: &mut PendingReply| pending.due <= shared.now && !pending.waits_for_work;
        let Some(mut pending) = self.pending.take_if(is_due) else {
            return;
        };
        if pending.reply.work.is_zero() {
            return self.answer(&pending.reply, &pending.request, shared);
        }
        shared.work_queue.push_back(self.key);
        pending.waits_for_work = true;
        self.pending = Some(pending);
    }

    /// Answers the complete requests that are here, up to one whose reply is pending.
    fn answer_received(&mut self, budget: &mut usize, shared: &mut Shared) {
        while *budget > 0
            && let Some(request) = self.connection.next_request()
        {
            *budget -= 1;
            let request = match request {
                Ok(request) => request,
                Err(rejection) => return self.reject(rejection, shared),
            };
            let in_flight = shared.start(self.peer, request.method, request.target);
            let reply = shared.app.answer(&request, in_flight.started);
            if reply.is_change {
                announce_change(self.peer, &reply.body);
            }
            #[cfg(test)]
            assert_ne!(request.target, "/panic", "a panic on purpose");
            if reply.delay.is_zero() && reply.work.is_zero() {
                self.answer(&reply, &in_flight, shared);
                shared.app.put_back(reply);
            } else {
                let due = in_flight.started + reply.delay;
                shared.timers.push(due, self.key);
                self.pending = Some(PendingReply {
                    due,
                    waits_for_work: false,
                    reply,
                    request: in_flight,
                });
            }
        }
    }

    /// Answers what is no request.
    fn reject(&mut self, rejection: Rejection, shared: &Shared) {
        let in_flight = shared.start(self.peer, "", "");
        self.answer(&rejection.reply(), &in_flight, shared);
    }

    fn answer(&mut self, reply: &Reply, request: &InFlight, shared: &Shared) {
        shared.record(reply, request);
        let date = shared.date.as_str();
        self.connection
            .answer(reply, date, shared.is_stopping, shared.now);
    }
}

impl Shared {
    /// Starts on a request: what follows until [`record`](Self::record) is its latency.
    fn start(&self, peer: SocketAddr, method: &str, target: &str) -> InFlight {
        let log_entry = self.access_log.note(Some(peer), method, target);
        let started = Instant::now();
        InFlight { started, log_entry }
    }

    fn record(&self, reply: &Reply, request: &InFlight) {
        let latency = request.started.elapsed();
        self.app.record(reply, latency);
        if let Some(entry) = &request.log_entry {
            self.access_log.push(entry, reply, latency, self.time);
        }
    }
}

/// A socket, and what the poll has said of it. It says everything once (it is edge-triggered), and
/// what it said holds until a call finds otherwise.
struct Socket {
    stream: TcpStream,
    /// There may be bytes to read.
    is_readable: bool,
    /// The client has closed its end: after the bytes comes the end, and no event says so again.
    is_read_closed: bool,
    /// The socket was full, and no event has said since that there is room.
    is_write_blocked: bool,
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            is_readable: false,
            is_read_closed: false,
            is_write_blocked: false,
        }
    }

    fn note(&mut self, event: &Event) {
        self.is_readable |= event.is_readable();
        self.is_read_closed |= event.is_read_closed();
        self.is_write_blocked &= !event.is_writable();
    }

    /// Reads once. `Some(0)` is the end, `None` that nothing came.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.stream.read(buffer) {
            Ok(count) => {
                // Less than was asked for: the socket is empty (epoll(7), "edge-triggered"), but
                // for an end that is announced already.
                self.is_readable = count == buffer.len() || (count > 0 && self.is_read_closed);
                Ok(Some(count))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes as much as there is room for. `None` if there is none: a full socket is not tried
    /// again without an event. It takes a little now and then of itself, although the client reads
    /// nothing, and that would count as progress.
    fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
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
