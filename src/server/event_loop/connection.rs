//! One HTTP/1.1 connection without its socket: bytes in, requests out, answers in, bytes out.
//!
//! The event loop does the reading and the writing. What is in here decides what the bytes mean,
//! which answer goes where, what is too much, and when it has taken too long:
//!
//! ```text
//! receive -> next_request -> answer -> unsent, sent
//!               deadline -> expire
//! ```
//!
//! Requests are given out one at a time, so that answers stay in order however long one of them takes.

use std::mem;
use std::time::{Duration, Instant};

use super::request_head::{self, MAX_HEAD, Rejection};
use crate::app::{Reply, Request};

/// Answers that wait unsent, in bytes, beyond which no more requests are read.
pub const MAX_UNSENT: usize = 64 * 1024;
/// How long a head may take, from its first byte.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body may take, from the answer.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent between requests.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long the client may take none of its answers.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a rejected client may go on sending before it is reset.
pub const LINGERING_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection.
pub struct Connection {
    buffers: Buffers,
    /// Where in `received` the request starts that is next, or is being answered.
    start: usize,
    /// How much of `to_send` is sent.
    sent: usize,
    state: State,
    /// No complete head is in `received`.
    needs_bytes: bool,
    /// The client sends no more.
    is_half_closed: bool,
    /// When what the connection is waiting for began.
    since: Instant,
}

/// The bytes of a connection that has work. An idle one holds none.
#[derive(Default)]
pub struct Buffers {
    received: Vec<u8>,
    to_send: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    /// Between requests, or in the middle of a head.
    Reading,
    /// A request was given out; its answer is awaited.
    Answering(Answering),
    /// The request is answered, and so many bytes of its body are still to come.
    DiscardingBody(usize),
    /// The last answer is given. If the client may still be sending, closing now would reset the
    /// connection, and the answer could be lost with it.
    Closing { client_may_send: bool },
    /// This end is closed; what the client still sends is thrown away.
    Lingering,
}

impl State {
    const REJECTED: Self = Self::Answering(Answering {
        body_length: 0,
        is_http_1_0: false,
        keep_alive: false,
        is_rejected: true,
    });
}

/// What is to be known of a request while it is being answered.
#[derive(Clone, Copy)]
struct Answering {
    body_length: usize,
    is_http_1_0: bool,
    keep_alive: bool,
    is_rejected: bool,
}

impl Connection {
    /// A connection that was accepted at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            buffers: Buffers::default(),
            start: 0,
            sent: 0,
            state: State::Reading,
            needs_bytes: true,
            is_half_closed: false,
            since: now,
        }
    }

    /// Takes what the client sent.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        if matches!(self.state, State::Closing { .. } | State::Lingering) {
            return;
        }
        let is_silent = self.buffers.received.is_empty() && self.unsent().is_empty();
        if is_silent && matches!(self.state, State::Reading) {
            self.since = now;
        }
        self.buffers.received.extend_from_slice(bytes);
        self.discard_body(now);
        // A head ends with a line, so that nothing else is worth another look at it. Most often
        // that is the last byte.
        let completes_a_line = bytes.ends_with(b"\n") || bytes.contains(&b'\n');
        if completes_a_line || self.buffers.received.len() >= MAX_HEAD {
            self.needs_bytes = self.buffers.received.is_empty();
        }
    }

    /// Takes that the client will send no more. It may still wait for answers.
    pub fn receive_end(&mut self) {
        self.is_half_closed = true;
    }

    /// The next complete request, or why it is rejected. Either is to be [answered](Self::answer)
    /// before the next is given out. `None` if bytes must come or go first.
    pub fn next_request(&mut self) -> Option<Result<Request<'_>, Rejection>> {
        if !self.can_answer() {
            return None;
        }
        self.skip_empty_lines();
        let head = match request_head::parse(&self.buffers.received[self.start..]) {
            Ok(Some(head)) => head,
            Ok(None) => {
                self.needs_bytes = true;
                return None;
            }
            Err(rejection) => {
                self.start = self.buffers.received.len();
                self.state = State::REJECTED;
                return Some(Err(rejection));
            }
        };
        self.start += head.length;
        // The answer is what a client waits for that expects a 100. Whether it sends its body then is
        // its own affair, and nobody could say where its next request starts (RFC 9110, section
        // 10.1.1).
        let body_is_here = self.buffers.received.len() - self.start >= head.body_length;
        self.state = State::Answering(Answering {
            body_length: head.body_length,
            is_http_1_0: head.is_http_1_0,
            keep_alive: head.keep_alive && (body_is_here || !head.expects_continue),
            is_rejected: false,
        });
        Some(Ok(Request {
            method: head.method,
            target: head.target,
            accept: head.accept,
            traceparent: head.traceparent,
        }))
    }

    /// Takes the answer to the request that was given out. `date` is the value of its `Date` field.
    /// With `is_last` the connection is closed after it, unless more requests are here already.
    pub fn answer(&mut self, reply: &Reply, date: &str, is_last: bool, now: Instant) {
        let State::Answering(answering) = self.state else {
            return;
        };
        if self.unsent().is_empty() {
            self.since = now;
        }
        self.state = State::DiscardingBody(answering.body_length);
        self.discard_body(now);
        let body_is_here = matches!(self.state, State::Reading);
        let client_sends_more = !body_is_here || !self.buffers.received.is_empty();

        let close = !answering.keep_alive || (is_last && !self.has_next_request());
        if close {
            self.state = State::Closing {
                client_may_send: answering.is_rejected || client_sends_more,
            };
            self.buffers.received.clear();
            self.start = 0;
        }
        let connection = match (close, answering.is_http_1_0) {
            (true, _) => "\r\nConnection: close",
            (false, true) => "\r\nConnection: keep-alive",
            (false, false) => "",
        };
        write_answer(&mut self.buffers.to_send, reply, date, connection);
    }

    /// The bytes to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.buffers.to_send[self.sent..]
    }

    /// Takes that the first `count` of the unsent bytes are sent.
    pub fn sent(&mut self, count: usize, now: Instant) {
        self.since = now;
        self.sent += count;
        if self.unsent().is_empty() {
            self.buffers.to_send.clear();
            self.sent = 0;
        }
    }

    /// Whether what was received may hold a complete request that can be given out.
    pub fn can_answer(&self) -> bool {
        self.may_have_request() && self.unsent().len() < MAX_UNSENT
    }

    /// Whether more bytes should be read from the socket.
    pub fn wants_bytes(&self) -> bool {
        let wants = match self.state {
            State::Reading => self.needs_bytes && self.unsent().len() < MAX_UNSENT,
            State::DiscardingBody(_) | State::Lingering => true,
            State::Answering(_) | State::Closing { .. } => false,
        };
        wants && !self.is_half_closed
    }

    /// Whether this end is to be closed now, and [`linger`](Self::linger) to be called.
    pub fn wants_half_close(&self) -> bool {
        let client_may_send = matches!(
            self.state,
            State::Closing {
                client_may_send: true
            }
        );
        client_may_send && !self.is_half_closed && self.unsent().is_empty()
    }

    /// Takes that this end is closed.
    pub fn linger(&mut self, now: Instant) {
        self.state = State::Lingering;
        self.since = now;
    }

    /// Whether the connection is over and its socket to be closed.
    pub fn is_finished(&self) -> bool {
        let is_over = match self.state {
            State::Reading => self.is_half_closed && self.needs_bytes,
            State::DiscardingBody(_) | State::Lingering => self.is_half_closed,
            State::Answering(_) => false,
            State::Closing { client_may_send } => !client_may_send || self.is_half_closed,
        };
        is_over && self.unsent().is_empty()
    }

    /// Whether nothing is owed to the client: every complete request is answered, and the answers
    /// are sent.
    pub fn is_idle(&self) -> bool {
        let is_idle = match self.state {
            State::Reading => self.needs_bytes,
            State::DiscardingBody(_) => true,
            State::Answering(_) | State::Closing { .. } | State::Lingering => false,
        };
        is_idle && self.unsent().is_empty()
    }

    /// Since when the connection does nothing but take up room, if that is so.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.is_idle() || matches!(self.state, State::Lingering)).then_some(self.since)
    }

    /// When the timeout of what is waited for is over; `None` while it is the client that waits.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = match self.state {
            State::Lingering => LINGERING_CLOSE_TIMEOUT,
            _ if !self.unsent().is_empty() => WRITE_TIMEOUT,
            State::Answering(_) => return None,
            State::Reading if self.buffers.received.is_empty() => KEEP_ALIVE_TIMEOUT,
            State::Reading => HEADER_READ_TIMEOUT,
            State::DiscardingBody(_) => BODY_READ_TIMEOUT,
            State::Closing { .. } => WRITE_TIMEOUT,
        };
        Some(self.since + timeout)
    }

    /// Takes that the deadline has passed. A head that takes too long is rejected, and the
    /// rejection to be answered; in any other case the connection is to be closed.
    pub fn expire(&mut self) -> Option<Rejection> {
        let is_within_head = matches!(self.state, State::Reading)
            && !self.buffers.received.is_empty()
            && self.unsent().is_empty();
        if !is_within_head {
            return None;
        }
        let rejection = request_head::timed_out(&self.buffers.received[self.start..]);
        self.start = self.buffers.received.len();
        self.state = State::REJECTED;
        Some(rejection)
    }

    /// Takes spare buffers, which have grown to their size, so that a request allocates nothing.
    pub fn take_spare(&mut self, spare: &mut Buffers) {
        if self.buffers.received.is_empty() {
            mem::swap(&mut self.buffers.received, &mut spare.received);
        }
        if self.buffers.to_send.is_empty() {
            mem::swap(&mut self.buffers.to_send, &mut spare.to_send);
        }
    }

    /// Puts back the buffers that the connection has nothing in, and cuts the others to size.
    pub fn put_back(&mut self, spare: &mut Buffers) {
        self.clear_if_consumed();
        self.buffers.received.drain(..self.start);
        self.start = 0;
        for (own, spare) in [
            (&mut self.buffers.received, &mut spare.received),
            (&mut self.buffers.to_send, &mut spare.to_send),
        ] {
            if own.is_empty() && own.capacity() > spare.capacity() {
                mem::swap(own, spare);
            }
            own.shrink_to_fit();
        }
    }

    fn may_have_request(&self) -> bool {
        matches!(self.state, State::Reading) && !self.needs_bytes
    }

    /// Whether the next request is here, or what is to be rejected.
    fn has_next_request(&mut self) -> bool {
        if !self.may_have_request() {
            return false;
        }
        self.skip_empty_lines();
        let next = request_head::parse(&self.buffers.received[self.start..]);
        !matches!(next, Ok(None))
    }

    /// Skips the empty lines that some clients send after a body (RFC 9112, section 2.2).
    fn skip_empty_lines(&mut self) {
        loop {
            self.start += match self.buffers.received[self.start..] {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                _ => break,
            };
        }
        self.clear_if_consumed();
    }

    /// Discards what is here of the body, if one is to be discarded.
    fn discard_body(&mut self, now: Instant) {
        if let State::DiscardingBody(left) = self.state {
            let here = left.min(self.buffers.received.len() - self.start);
            self.start += here;
            self.state = if here == left {
                // While answers wait, it is their being taken that counts.
                if self.unsent().is_empty() {
                    self.since = now;
                }
                State::Reading
            } else {
                State::DiscardingBody(left - here)
            };
            self.clear_if_consumed();
        }
    }

    /// Empties `received` once all in it was dealt with.
    fn clear_if_consumed(&mut self) {
        if self.start == self.buffers.received.len() {
            self.buffers.received.clear();
            self.start = 0;
            self.needs_bytes = true;
        }
    }
}

fn write_answer(to_send: &mut Vec<u8>, reply: &Reply, date: &str, connection: &str) {
    let mut write = |part: &str| to_send.extend_from_slice(part.as_bytes());
    write("HTTP/1.1 ");
    write(reply.status.line());
    write("\r\nDate: ");
    write(date);
    write(connection);
    if let Some(methods) = reply.allow {
        write("\r\nAllow: ");
        write(methods);
    }
    if reply.has_body() {
        write("\r\nContent-Type: ");
        write(reply.content_type);
        write("\r\nContent-Length: ");
        write(itoa::Buffer::new().format(reply.body.len()));
    }
    if reply.varies_by_accept() {
        write("\r\nVary: Accept");
    }
    write("\r\n\r\n");
    if !reply.is_to_head {
        write(&reply.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::config::Config;

    #[test]
    fn a_request_allocates_nothing_once_the_spare_buffers_have_grown() {
        let now = Instant::now();
        let mut app = App::new(&Config::default());
        let mut connection = Connection::new(now);
        let mut spare = Buffers {
            received: Vec::with_capacity(10_000),
            to_send: Vec::with_capacity(20_000),
        };
        let capacities =
            |buffers: &Buffers| (buffers.received.capacity(), buffers.to_send.capacity());
        for _ in 0..3 {
            connection.take_spare(&mut spare);
            assert_eq!(capacities(&connection.buffers), (10_000, 20_000));
            connection.receive(b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n", now);
            let request = connection.next_request().expect("a whole one");
            let reply = app.answer(&request.expect("a good one"), now);
            connection.answer(&reply, "now", false, now);
            connection.sent(connection.unsent().len(), now);
            connection.put_back(&mut spare);
            assert_eq!(capacities(&connection.buffers), (0, 0));
            assert_eq!(capacities(&spare), (10_000, 20_000));
        }
        // What has something in it keeps its own, and what has grown less is not worth keeping.
        connection.receive(b"GET", now);
        connection.take_spare(&mut spare);
        assert_eq!(capacities(&spare).0, 10_000);
        connection.put_back(&mut spare);
        assert_eq!(capacities(&spare), (10_000, 20_000));
        assert_eq!(connection.buffers.received, b"GET");
    }

    #[test]
    fn an_idle_connection_holds_the_head_that_has_begun_and_nothing_else() {
        let request = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";
        let with_body = "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n";
        for (begun, before) in [
            ("", request.repeat(100)),
            ("GET /", request.repeat(100)),
            ("GET /", with_body.to_owned() + &"x".repeat(900)),
        ] {
            let now = Instant::now();
            let mut app = App::new(&Config::default());
            let mut connection = Connection::new(now);
            let mut spare = Buffers::default();
            connection.take_spare(&mut spare);
            connection.receive((before + begun).as_bytes(), now);
            while let Some(request) = connection.next_request() {
                let request = request.expect("it is well-formed");
                let reply = app.answer(&request, now);
                connection.answer(&reply, "now", false, now);
            }
            connection.sent(connection.unsent().len(), now);
            connection.put_back(&mut spare);
            assert!(connection.is_idle());
            assert_eq!(connection.buffers.received.capacity(), begun.len());
            assert_eq!(connection.buffers.to_send.capacity(), 0);
        }
    }
}
