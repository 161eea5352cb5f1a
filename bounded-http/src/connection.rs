//! One HTTP/1.1 connection without its socket: bytes in, requests out, responses in, bytes out.
//!
//! The `client` module reads and writes. This module decides what the bytes mean, in which order
//! responses are sent, what exceeds a limit, and what has taken too long:
//!
//! ```text
//! receive -> next_request -> respond -> unsent, sent -> close the sending side -> linger
//!                deadline -> expire
//! ```
//!
//! `next_request` returns one request at a time. The next one waits for the response, so responses stay
//! in order however long one takes.
//!
//! After the last response, this end closes its sending side and lingers: it discards what the client
//! still sends. If it closed the connection at once while bytes from the client are unread or on their
//! way, it would reset it, and a reset destroys responses that the client has not read yet (RFC 9112,
//! section 9.6).

use std::mem;
use std::time::{Duration, Instant};

use crate::http::Method;
use crate::reply::{Ending, Reply, Response};
use crate::request_head::{self, FieldSpace, MAX_HEAD_BYTES, Rejection, RequestHead, field_space};

/// When at least this many bytes of responses are unsent, no more requests are read.
pub const MAX_UNSENT_BYTES: usize = 64 * 1024;
/// How long a request head may take, counted from its first byte.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body may take, counted from the response.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent between requests.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a connection may be silent once the server has been told to stop. Clients that reuse
/// connections may have just sent a request. It arrives within a round trip, and would otherwise be
/// lost.
pub const KEEP_ALIVE_TIMEOUT_WHILE_STOPPING: Duration = Duration::from_millis(200);
/// How long unsent responses may make no progress.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection stays open after [`Ending::Stall`] or [`Ending::Hang`].
pub const STAY_OPEN_TIME: Duration = Duration::from_secs(60);
/// How long a connection lingers while the client is silent.
pub const LINGERING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection lingers while the client keeps sending. Many clients send a whole body before
/// they read the response that rejects it.
pub const MAX_LINGERING_TIME: Duration = Duration::from_secs(30);

/// One connection.
pub struct Connection {
    buffers: Buffers,
    /// Where in `received` the bytes start that are not parsed yet.
    start: usize,
    /// The number of bytes of `to_send` that are sent.
    sent: usize,
    state: State,
    /// `received` holds no complete head. Set when a head is found to be incomplete, cleared when bytes
    /// arrive that may complete it.
    lacks_complete_head: bool,
    /// The client sends no more. Set when the end of its bytes has been read, never cleared.
    has_received_end: bool,
    /// The server has been told to stop. Silence is then tolerated for a short time only.
    is_stopping: bool,
    /// When the current wait began. The deadline counts from here. Progress starts a new wait.
    wait_began_at: Instant,
    /// When bytes were last received or sent.
    active_at: Instant,
}

/// The bytes that a connection has received and will send. An idle connection holds none.
#[derive(Default)]
pub struct Buffers {
    received: Vec<u8>,
    to_send: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    /// Between requests, or within a head.
    Reading,
    /// `next_request` has returned this request. Until `respond` is called, no other is parsed.
    AwaitingResponse(RequestInfo),
    /// The response is queued. This number of bytes of the request's body are still to come.
    DiscardingBody(usize),
    /// The last response is queued. This happens when it is sent.
    Closing(Closing),
    /// The sending side was closed at this time. What the client still sends is discarded.
    Lingering(Instant),
}

/// What happens after the last response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// The sending side is closed.
    CloseSendingSide,
    /// The connection stays open for [`STAY_OPEN_TIME`].
    StayOpen,
    /// The connection is reset.
    Reset,
}

impl State {
    fn rejected(rejection: Rejection) -> Self {
        Self::AwaitingResponse(RequestInfo {
            body_length: 0,
            is_head: rejection.is_head,
            is_http_1_0: false,
            is_kept_alive: false,
        })
    }
}

/// The properties of a request that its response depends on.
#[derive(Clone, Copy)]
struct RequestInfo {
    body_length: usize,
    /// The method is HEAD, so the response has no body.
    is_head: bool,
    is_http_1_0: bool,
    is_kept_alive: bool,
}

impl Connection {
    /// Creates a connection that was accepted at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            buffers: Buffers::default(),
            start: 0,
            sent: 0,
            state: State::Reading,
            lacks_complete_head: true,
            has_received_end: false,
            is_stopping: false,
            wait_began_at: now,
            active_at: now,
        }
    }

    /// Adds bytes that the client sent.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        self.active_at = now;
        match self.state {
            State::Closing(_) => return,
            State::Lingering(_) => return self.wait_began_at = now,
            _ => {}
        }
        let was_within_head = self.is_within_head();
        self.buffers.received.extend_from_slice(bytes);
        self.discard_up_to_head(now);
        let begins_head = !was_within_head && self.is_within_head();
        if (begins_head || self.is_stopping) && self.unsent().is_empty() {
            self.wait_began_at = now;
        }
        // A head ends with the end of a line, so only then is it parsed again. Usually that is the last
        // byte.
        let completes_a_line = bytes.ends_with(b"\n") || bytes.contains(&b'\n');
        if completes_a_line || self.buffers.received.len() >= MAX_HEAD_BYTES {
            self.lacks_complete_head = !self.has_begun_head();
        }
    }

    /// Records that the client has closed its sending side. It may still wait for responses.
    pub fn receive_end(&mut self) {
        self.has_received_end = true;
    }

    /// Shortens the time for which the client may be silent, because the server was told to stop.
    pub fn stop(&mut self, now: Instant) {
        self.is_stopping = true;
        if self.has_answered_everything() {
            self.wait_began_at = now;
        }
    }

    /// Parses the next request, or returns why it is rejected. [`respond`](Self::respond) must be
    /// called for either before the next. Returns `None` if there is no complete request, or if
    /// responses must be sent first.
    pub fn next_request<'a>(
        &'a mut self,
        space: &'a mut FieldSpace<'a>,
    ) -> Option<Result<RequestHead<'a>, Rejection>> {
        if !self.may_answer() {
            return None;
        }
        let head = match request_head::parse(&self.buffers.received[self.start..], space) {
            Ok(Some(head)) => head,
            Ok(None) => {
                self.lacks_complete_head = true;
                return None;
            }
            Err(rejection) => {
                self.start = self.buffers.received.len();
                self.state = State::rejected(rejection);
                return Some(Err(rejection));
            }
        };
        self.start += head.length;
        // A client that expects a 100 gets the final response instead. It may then send its body or
        // not, so it is unknown where its next request starts (RFC 9110, section 10.1.1).
        let body_is_here = self.buffers.received.len() - self.start >= head.body_length;
        self.state = State::AwaitingResponse(RequestInfo {
            body_length: head.body_length,
            is_head: Method::parse(head.method) == Method::Head,
            is_http_1_0: head.is_http_1_0,
            is_kept_alive: head.is_kept_alive && (body_is_here || !head.expects_continue),
        });
        Some(Ok(head))
    }

    /// Parses the next request without removing it. Returns `None` if there is none, or if it will be
    /// rejected.
    pub fn peek_request<'a>(&'a self, space: &'a mut FieldSpace<'a>) -> Option<RequestHead<'a>> {
        if !self.may_answer() {
            return None;
        }
        request_head::parse(&self.buffers.received[self.start..], space).ok()?
    }

    /// Appends the response to the request that [`next_request`](Self::next_request) returned. `date`
    /// is the value of its `Date` field. With `is_last`, the connection is closed after it unless
    /// another request has been received. Returns the number of bytes of its body.
    pub fn respond<M>(
        &mut self,
        reply: &Reply<M>,
        date: &str,
        is_last: bool,
        now: Instant,
    ) -> usize {
        let State::AwaitingResponse(request) = self.state else {
            return 0;
        };
        if self.unsent().is_empty() {
            self.wait_began_at = now;
        }
        self.state = State::DiscardingBody(request.body_length);
        self.discard_up_to_head(now);
        let closes = !request.is_kept_alive || (is_last && !self.has_next_request());
        let connection = match (closes, request.is_http_1_0) {
            (true, _) => "\r\nConnection: close",
            (false, true) => "\r\nConnection: keep-alive",
            (false, false) => "",
        };
        let body = if request.is_head { &[] } else { reply.body() };
        let half = &body[..body.len() / 2];
        let (body, closing) = match reply.ending() {
            Ending::Whole => (body, closes.then_some(Closing::CloseSendingSide)),
            Ending::Cut => (half, Some(Closing::CloseSendingSide)),
            Ending::Stall => (half, Some(Closing::StayOpen)),
            Ending::Close => (&[][..], Some(Closing::CloseSendingSide)),
            Ending::Hang => (&[][..], Some(Closing::StayOpen)),
            Ending::Reset => (&[][..], Some(Closing::Reset)),
        };
        if !reply.ending().is_silent() {
            write_response(
                &mut self.buffers.to_send,
                &reply.response,
                body,
                date,
                connection,
            );
        }
        if let Some(closing) = closing {
            self.state = State::Closing(closing);
            self.wait_began_at = now;
            self.buffers.received.clear();
            self.start = 0;
        }
        body.len()
    }

    /// Returns the bytes of responses that are not sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.buffers.to_send[self.sent..]
    }

    /// Records that the first `count` unsent bytes were sent.
    pub fn mark_sent(&mut self, count: usize, now: Instant) {
        self.wait_began_at = now;
        self.active_at = now;
        self.sent += count;
        if self.unsent().is_empty() {
            self.buffers.to_send.clear();
            self.sent = 0;
        }
    }

    /// Returns whether bytes have been received after the current request and its body.
    pub fn has_bytes_left(&self) -> bool {
        let body_length = match self.state {
            State::AwaitingResponse(request) => request.body_length,
            _ => 0,
        };
        self.buffers.received.len() - self.start > body_length
    }

    /// Returns whether a part of the current request's body has not been received. If the connection
    /// were closed after the response, a client that is sending it might not see the response.
    pub fn awaits_body(&self) -> bool {
        match self.state {
            State::AwaitingResponse(request) => {
                self.buffers.received.len() - self.start < request.body_length
            }
            _ => false,
        }
    }

    /// Returns the capacity of the connection's buffers in bytes.
    pub fn held_bytes(&self) -> usize {
        self.buffers.received.capacity() + self.buffers.to_send.capacity()
    }

    /// Returns whether a complete request may have been received that can be answered now.
    pub fn may_answer(&self) -> bool {
        self.may_have_request() && self.unsent().len() < MAX_UNSENT_BYTES
    }

    /// Returns whether more bytes should be read from the socket.
    pub fn wants_bytes(&self) -> bool {
        let wants = match self.state {
            State::Reading => self.lacks_complete_head && self.unsent().len() < MAX_UNSENT_BYTES,
            // What the client sends is discarded.
            State::DiscardingBody(_) | State::Lingering(_) | State::Closing(Closing::StayOpen) => {
                true
            }
            State::AwaitingResponse(_) | State::Closing(_) => false,
        };
        wants && !self.has_received_end
    }

    /// Returns whether the sending side must be closed now. [`linger`](Self::linger) must be called
    /// then.
    pub fn wants_to_close_sending_side(&self) -> bool {
        matches!(self.state, State::Closing(Closing::CloseSendingSide))
            && !self.has_received_end
            && self.unsent().is_empty()
    }

    /// Returns whether the connection must be reset now.
    pub fn wants_reset(&self) -> bool {
        matches!(self.state, State::Closing(Closing::Reset)) && self.unsent().is_empty()
    }

    /// Records that the sending side was closed.
    pub fn linger(&mut self, now: Instant) {
        self.state = State::Lingering(now);
        self.wait_began_at = now;
    }

    /// Returns whether nothing remains to be sent or received, so that the socket can be closed.
    pub fn is_finished(&self) -> bool {
        let is_over = match self.state {
            State::Reading => self.lacks_complete_head,
            State::DiscardingBody(_) | State::Closing(_) | State::Lingering(_) => true,
            State::AwaitingResponse(_) => false,
        };
        is_over && self.has_received_end && self.unsent().is_empty()
    }

    /// Returns whether every complete request is answered and all responses are sent. The rest of a
    /// body, or a part of a head, may still be on its way.
    pub fn has_answered_everything(&self) -> bool {
        let has_answered = match self.state {
            State::Reading => self.lacks_complete_head,
            State::DiscardingBody(_) => true,
            State::AwaitingResponse(_) | State::Closing(_) | State::Lingering(_) => false,
        };
        has_answered && self.unsent().is_empty()
    }

    /// Returns since when every complete request is answered and every response is sent, or `None` if that is
    /// not so. Each part of a body counts anew.
    pub fn answered_everything_at(&self) -> Option<Instant> {
        let since = match self.state {
            State::DiscardingBody(_) => self.active_at,
            _ => self.wait_began_at,
        };
        self.has_answered_everything().then_some(since)
    }

    /// Returns when bytes were last received or sent.
    pub fn active_at(&self) -> Instant {
        self.active_at
    }

    /// Returns since when unsent responses have made no progress, if there are any, or since when the
    /// connection stays open without a response on purpose.
    pub fn stalled_since(&self) -> Option<Instant> {
        let is_stalled = matches!(self.state, State::Closing(Closing::StayOpen));
        (is_stalled || !self.unsent().is_empty()).then_some(self.wait_began_at)
    }

    /// Returns when the sending side was closed, if the connection lingers.
    pub fn lingers_since(&self) -> Option<Instant> {
        match self.state {
            State::Lingering(since) => Some(since),
            _ => None,
        }
    }

    /// Returns when [`expire`](Self::expire) must be called if there is no progress before. `None`
    /// while the client waits for the service.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = match self.state {
            State::Lingering(since) => {
                return Some(
                    (self.wait_began_at + LINGERING_TIMEOUT).min(since + MAX_LINGERING_TIME),
                );
            }
            // The client has yet to read its responses.
            _ if !self.unsent().is_empty() || self.is_finished() => WRITE_TIMEOUT,
            State::AwaitingResponse(_) => return None,
            State::Reading | State::DiscardingBody(_) if self.is_stopping => {
                KEEP_ALIVE_TIMEOUT_WHILE_STOPPING
            }
            State::Reading if !self.has_begun_head() => KEEP_ALIVE_TIMEOUT,
            State::Reading => HEADER_READ_TIMEOUT,
            State::DiscardingBody(_) => BODY_READ_TIMEOUT,
            State::Closing(Closing::StayOpen) => STAY_OPEN_TIME,
            State::Closing(_) => WRITE_TIMEOUT,
        };
        Some(self.wait_began_at + timeout)
    }

    /// Returns whether the deadline applies even if the client has sent bytes that are unread.
    pub fn is_deadline_final(&self) -> bool {
        matches!(
            self.state,
            State::Lingering(_) | State::Closing(Closing::StayOpen)
        )
    }

    /// Ends the current wait, whose deadline has passed. Returns a rejection if a head took too long,
    /// for which [`respond`](Self::respond) must be called. Otherwise the connection must be closed.
    pub fn expire(&mut self) -> Option<Rejection> {
        if !self.is_within_head() || !self.unsent().is_empty() || self.is_stopping {
            return None;
        }
        let rejection = request_head::timed_out(&self.buffers.received[self.start..]);
        self.start = self.buffers.received.len();
        self.state = State::rejected(rejection);
        Some(rejection)
    }

    /// Borrows spare buffers in place of empty ones. They have grown in earlier turns, so that a
    /// request allocates nothing.
    pub fn borrow_buffers(&mut self, spare: &mut Buffers) {
        if self.buffers.received.is_empty() {
            mem::swap(&mut self.buffers.received, &mut spare.received);
        }
        if self.buffers.to_send.is_empty() {
            mem::swap(&mut self.buffers.to_send, &mut spare.to_send);
        }
    }

    /// Gives back empty buffers, and shrinks the others to their contents, so that what is parsed or
    /// sent takes no memory between turns.
    pub fn return_buffers(&mut self, spare: &mut Buffers) {
        self.clear_if_consumed();
        self.buffers.received.drain(..self.start);
        self.start = 0;
        self.buffers.to_send.drain(..self.sent);
        self.sent = 0;
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
        matches!(self.state, State::Reading) && !self.lacks_complete_head
    }

    /// Returns whether a complete or invalid request has been received.
    pub fn has_next_request(&self) -> bool {
        if !self.may_have_request() {
            return false;
        }
        let mut space = field_space();
        let next = request_head::parse(&self.buffers.received[self.start..], &mut space);
        !matches!(next, Ok(None))
    }

    /// Returns whether nothing of the next request has been received, or only empty lines.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Reading) && !self.has_begun_head()
    }

    /// Returns whether a part of the next request has been received.
    fn is_within_head(&self) -> bool {
        matches!(self.state, State::Reading) && self.has_begun_head()
    }

    /// Returns whether unparsed bytes are a part of a request head. Empty lines before it do not count, or a client
    /// that sends only those would never be idle.
    fn has_begun_head(&self) -> bool {
        // A CR may begin an empty line.
        !matches!(self.buffers.received[self.start..], [] | [b'\r'])
    }

    /// Discards what has been received before the next head: the body of the last request, and the empty
    /// lines that some clients send after it (RFC 9112, section 2.2).
    fn discard_up_to_head(&mut self, now: Instant) {
        if let State::DiscardingBody(left) = self.state {
            let here = left.min(self.buffers.received.len() - self.start);
            self.start += here;
            self.state = if here == left {
                // While responses are unsent, only sending counts as progress.
                if self.unsent().is_empty() {
                    self.wait_began_at = now;
                }
                State::Reading
            } else {
                State::DiscardingBody(left - here)
            };
        }
        if matches!(self.state, State::Reading) {
            loop {
                self.start += match self.buffers.received[self.start..] {
                    [b'\n', ..] => 1,
                    [b'\r', b'\n', ..] => 2,
                    _ => break,
                };
            }
        }
        self.clear_if_consumed();
    }

    /// Empties `received` once everything in it has been parsed.
    fn clear_if_consumed(&mut self) {
        if self.start == self.buffers.received.len() {
            self.buffers.received.clear();
            self.start = 0;
            self.lacks_complete_head = true;
        }
    }
}

fn write_response(
    to_send: &mut Vec<u8>,
    response: &Response,
    body: &[u8],
    date: &str,
    connection: &str,
) {
    let mut write = |part: &str| to_send.extend_from_slice(part.as_bytes());
    write("HTTP/1.1 ");
    write(response.status.line());
    write("\r\nDate: ");
    write(date);
    write(connection);
    if let Some(content_type) = response.content_type() {
        write("\r\nContent-Type: ");
        write(content_type);
        write("\r\nContent-Length: ");
        write(itoa::Buffer::new().format(response.body.len()));
    }
    write(&response.fields);
    write("\r\n\r\n");
    to_send.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Status;

    const REQUEST: &str = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Responds to all received requests, and marks the responses as sent.
    fn answer_all(connection: &mut Connection, now: Instant) {
        let reply = Reply::text(Status::Ok, "I'm ok!");
        while let Some(request) = connection.next_request(&mut field_space()) {
            assert!(request.is_ok(), "it is well-formed");
            connection.respond(&reply, "now", false, now);
        }
        connection.mark_sent(connection.unsent().len(), now);
    }

    #[test]
    fn a_request_allocates_nothing_once_the_spare_buffers_have_grown() {
        let now = Instant::now();
        let mut connection = Connection::new(now);
        let mut spare = Buffers {
            received: Vec::with_capacity(10_000),
            to_send: Vec::with_capacity(20_000),
        };
        let capacities =
            |buffers: &Buffers| (buffers.received.capacity(), buffers.to_send.capacity());
        for _ in 0..3 {
            connection.borrow_buffers(&mut spare);
            assert_eq!(capacities(&connection.buffers), (10_000, 20_000));
            connection.receive(REQUEST.as_bytes(), now);
            answer_all(&mut connection, now);
            connection.return_buffers(&mut spare);
            assert_eq!(capacities(&connection.buffers), (0, 0));
            assert_eq!(capacities(&spare), (10_000, 20_000));
        }
        // A buffer that is not empty is kept, and a smaller one does not replace a spare buffer.
        connection.receive(b"GET", now);
        connection.borrow_buffers(&mut spare);
        assert_eq!(capacities(&spare).0, 10_000);
        connection.return_buffers(&mut spare);
        assert_eq!(capacities(&spare), (10_000, 20_000));
        assert_eq!(connection.buffers.received, b"GET");
    }

    #[test]
    fn between_turns_a_connection_holds_only_the_incomplete_head() {
        let with_body = "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n";
        for (begun, before) in [
            ("", REQUEST.repeat(100)),
            ("GET /", REQUEST.repeat(100)),
            ("GET /", with_body.to_owned() + &"x".repeat(900)),
        ] {
            let now = Instant::now();
            let mut connection = Connection::new(now);
            let mut spare = Buffers::default();
            connection.borrow_buffers(&mut spare);
            connection.receive((before + begun).as_bytes(), now);
            answer_all(&mut connection, now);
            connection.return_buffers(&mut spare);
            assert!(connection.has_answered_everything());
            assert_eq!(connection.held_bytes(), begun.len());
        }
    }
}
