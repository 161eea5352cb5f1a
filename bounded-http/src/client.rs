//! One client: its socket, its connection, and what a turn does with them.
//!
//! ```text
//! a reply is due -> answer what was received -> read, answer -> write -> expire or half-close
//! ```
//!
//! A turn does what can be done without waiting, and is bounded in time: a client that pipelines a
//! thousand requests takes many turns, and other clients take theirs in between.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::connection::{Buffers, Connection, KEEP_ALIVE_TIMEOUT_WHILE_STOPPING};
use crate::date::Date;
use crate::http::Status;
use crate::listener::SEND_BUFFER_SIZE;

use crate::reply::{Reply, unavailable};
use crate::request::Request;
use crate::request_head::{Rejection, field_space};
use crate::service::{Ended, Outcome, Service};
use crate::socket::{Readiness, Received, Socket, Stream};
use crate::timer_queue::TimerQueue;
use crate::work::work;

/// How long a turn lasts: no request is started after that. The most expensive ordinary request is
/// HEAD /metrics, some 25 µs.
pub const TURN_TIME: Duration = Duration::from_micros(50);
/// How long a reset may take to arrive after a response to a client that had closed its sending
/// side: a round trip. Only then is it known whether the client had left or waits for the response.
const CONFIRMATION_TIME: Duration = Duration::from_millis(250);

/// The most bytes that the kernel holds for a client that does not read: it appends what fits into
/// the last segment, however small its buffer.
const MAX_IN_KERNEL_BYTES: usize = 64 * 1024 + 2 * SEND_BUFFER_SIZE;
/// From so many written bytes on, the kernel is asked whether it has delivered them. It costs a system
/// call.
const MAX_UNCHECKED_BYTES: usize = 24 * 1024;
/// The most bytes that one read takes while memory is scarce: requests wait in the kernel instead.
const SCARCE_READ_SIZE: usize = 1024;

/// The body of the 503 when every connection is taken.
const TOO_BUSY: &str = "Every connection is taken. Try again later.\n";
/// The body of the 503 for delayed responses that an orderly end does not wait for.
const STOPPING: &str = "The service is stopping. Try again later, or elsewhere.\n";

/// What the turns of all clients share.
pub struct Shared<V> {
    /// The service.
    pub service: V,
    /// Reads the time: `Instant::now`, except where a test sets the clock.
    pub clock: fn() -> Instant,
    /// The time, as of the last turn or request.
    pub now: Instant,
    /// The wall clock's time, as the value of the `Date` field.
    pub date: Date,
    /// When delayed replies are due.
    pub timers: TimerQueue,
    /// The keys of the clients whose reply is due and takes work, in the order in which they asked.
    pub work_queue: VecDeque<usize>,
    /// Where a read puts its bytes; its length is the most that is read at once.
    pub read_buffer: Box<[u8]>,
    /// The buffers of the client that has a turn.
    pub spare_buffers: Buffers,
    /// The bytes that the buffers of all connections hold between turns.
    pub held_bytes: usize,
    /// From that many held bytes on, a client gets its next response when it has read the last one.
    pub scarce_from: usize,
    /// From that many on, requests that are not urgent wait until others hold less. Without this, many
    /// clients that do read would fill the memory, and some of them would be reset.
    pub full_from: usize,
    /// The keys of the clients that wait for this, each once.
    pub waiting_for_memory: Vec<usize>,
    /// How many more responses may close their connection to make room for clients that wait.
    pub turnovers: usize,
    /// When the service was given the request that it is answering now. Set before each call and cleared
    /// after it, so that it remains set after a panic, until the client [closed](Client::close).
    pub answer_began_at: Option<Instant>,
    /// The first signal has come: responses close their connections.
    pub is_stopping: bool,
    /// The time for delayed replies is over: they are replaced with a 503.
    pub is_grace_over: bool,
}

/// A client of the event loop.
pub struct Client<S, M> {
    key: usize,
    peer: SocketAddr,
    socket: Socket<S>,
    connection: Connection,
    /// The reply that is not due yet or takes work. The requests behind it wait.
    pending: Option<Box<PendingReply<M>>>,
    /// A response that is sent to a client that had closed its sending side before.
    unconfirmed: Option<Box<UnconfirmedReply<M>>>,
    /// An exchange that lasts as long as the connection: its response stays incomplete on purpose.
    incomplete: Option<Box<IncompleteReply<M>>>,
    /// Whether the connection has a place among `--max-connections`.
    admission: Admission,
    /// The requests that were answered in this turn, or are pending.
    requests_in_turn: usize,
    /// When it was last seen to have sent several requests at once.
    pipelined_at: Option<Instant>,
    /// The deadline has passed, and all events up to then are known. Set by the event loop, cleared
    /// when the client has made progress.
    is_overdue: bool,
    /// The client is in the queue for a turn.
    pub is_queued: bool,
    /// Where its use of the event loop's time ends, for the fair queue.
    pub finish_tag: u64,
    /// The bytes that were written since the kernel was known to have delivered all before them.
    in_kernel: usize,
    /// The client is among those that wait for memory.
    waits_for_memory: bool,
    /// The bytes that its buffers held after the last turn.
    held_bytes: usize,
}

/// A reply that is not due yet or takes work.
struct PendingReply<M> {
    due: Instant,
    /// The reply is due, and the client is in the work queue.
    waits_for_work: bool,
    /// When the client closed its sending side, if it has. It may have left, or still read.
    half_closed_at: Option<Instant>,
    /// Its `work` is what remains to be done.
    reply: Reply<M>,
    /// When the request was received.
    started: Instant,
}

/// A response that may not arrive.
struct UnconfirmedReply<M> {
    ended: Ended<M>,
    /// When the request was received.
    started: Instant,
    /// When the client closed its sending side.
    half_closed_at: Instant,
    /// When the response was given.
    answered_at: Instant,
}

/// A response that stays incomplete, or is not sent at all, while the connection is open.
struct IncompleteReply<M> {
    ended: Ended<M>,
    /// When the request was received.
    started: Instant,
}

/// Whether a connection has a place among `--max-connections`, or is one of the few above them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It has a place.
    Admitted,
    /// It is on the reserve: requests that are not urgent wait for a place.
    Waiting,
    /// It is on the reserve, and requests that are not urgent get a 503.
    Refused,
}

/// What happens after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until an event, a timer or a deadline.
    Wait,
    /// Another turn, after those of other clients.
    AnotherTurn,
    /// The connection ends.
    Close,
}

/// Why a connection may be closed to make room, in the order in which that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evictable {
    /// The client has closed its sending side and waits, or its last response is sent. Since when.
    HalfClosed(Instant),
    /// Nothing is owed to the client. Since when.
    Idle(Instant),
}

/// How much memory a client holds, and for how long it has not made progress.
#[derive(Clone, Copy, Debug)]
pub struct HeldFor {
    /// The bytes.
    pub bytes: usize,
    /// The time since bytes were last received or sent.
    pub time: Duration,
}

/// How long a client may make no progress while others wait for memory that it holds.
const STALL_TOLERANCE: Duration = Duration::from_millis(500);

impl HeldFor {
    /// The bytes times the microseconds.
    fn product(self) -> u128 {
        self.bytes as u128 * self.time.as_micros().max(1)
    }

    /// Whether the client has made no progress for longer than others have to wait for it.
    pub fn is_stalled(self) -> bool {
        self.time >= STALL_TOLERANCE
    }
}

/// The clients that hold memory, with the one last that has held the most for the longest time.
pub fn memory_holders<'a, S: Stream + 'a, M: 'a>(
    clients: impl Iterator<Item = (usize, &'a Client<S, M>)>,
    now: Instant,
) -> Vec<(HeldFor, usize)> {
    let memory_holders = clients.map(|(key, client)| (client.held_for(now), key));
    let mut memory_holders: Vec<(HeldFor, usize)> =
        memory_holders.filter(|(held_for, _)| held_for.bytes > 0).collect();
    memory_holders.sort_unstable_by_key(|(held_for, key)| (held_for.product(), *key));
    memory_holders
}

impl<S: Stream, M> Client<S, M> {
    /// A client that was accepted at `now`. `key` is its key among the clients.
    pub fn new(
        key: usize,
        stream: S,
        peer: SocketAddr,
        admission: Admission,
        now: Instant,
    ) -> Self {
        Self {
            key,
            peer,
            socket: Socket::new(stream),
            connection: Connection::new(now),
            pending: None,
            unconfirmed: None,
            incomplete: None,
            admission,
            requests_in_turn: 0,
            pipelined_at: None,
            is_overdue: false,
            is_queued: false,
            finish_tag: 0,
            in_kernel: 0,
            waits_for_memory: false,
            held_bytes: 0,
        }
    }

    /// Adds what an event says about the socket.
    pub fn update_readiness(&mut self, readiness: Readiness, now: Instant) {
        self.socket.update(readiness);
        if self.socket.is_read_closed()
            && let Some(pending) = &mut self.pending
        {
            pending.half_closed_at.get_or_insert(now);
        }
    }

    /// Has the next turn end a wait whose deadline has passed, unless unread bytes end it: what the
    /// kernel has received by now was received in time.
    pub fn check_deadline(&mut self) {
        self.is_overdue = true;
        self.socket.assume_readable();
    }

    /// Has the connection end soon: the service has been told to stop.
    pub fn stop(&mut self, now: Instant) {
        self.connection.stop(now);
        self.socket.assume_readable();
    }

    /// When the client's time is up, unless something happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let confirmation = self.confirmation_ends();
        let deadline = self.connection.deadline();
        match deadline.filter(|_| !self.waits_for_service()) {
            Some(deadline) => Some(confirmation.map_or(deadline, |end| end.min(deadline))),
            None => confirmation,
        }
    }

    /// Whether the connection may be closed to make room, and since when.
    pub fn evictable(&self) -> Option<Evictable> {
        let half_closed_at = self.pending.as_ref().and_then(|p| p.half_closed_at);
        if let Some(since) = half_closed_at.or(self.connection.lingers_since()) {
            return Some(Evictable::HalfClosed(since));
        }
        self.connection.idle_since().map(Evictable::Idle)
    }

    /// Whether the client is idle as far as the server is concerned, and still reads its last response.
    /// To close the connection would reset it.
    pub fn is_reading_last_response(&self) -> bool {
        self.connection.is_idle() && !self.socket.has_delivered()
    }

    /// Whether the client has sent bytes that are unread. It reads them if so; the next turn answers.
    pub fn has_unread<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> bool {
        self.socket.assume_readable();
        self.connection.borrow_buffers(&mut shared.spare_buffers);
        let has_read = self.can_read()
            && self.connection.lingers_since().is_none()
            && matches!(self.read(shared), Ok(Received::Bytes(_)));
        self.return_buffers(shared);
        has_read
    }

    /// Whether a complete request, or an invalid one, is received and not answered.
    pub fn has_request(&mut self) -> bool {
        self.connection.has_next_request()
    }

    /// Since when the client has read nothing of its responses, if some are unsent.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.connection.stalled_since()
    }

    /// When its delayed reply is due, if it has one.
    pub fn reply_due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.due)
    }

    /// Whether the client is in the work queue.
    pub fn waits_for_work(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.waits_for_work)
    }

    /// Whether the client has closed its sending side. It may have left.
    pub fn is_half_closed(&self) -> bool {
        self.socket.is_read_closed()
    }

    /// Whether the connection has failed, as far as the kernel knows by now.
    pub fn has_failed(&self) -> bool {
        self.socket.has_failed()
    }

    /// Does the work that its reply takes. The next turn gives the response.
    pub fn work(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.waits_for_work = false;
            work(mem::take(&mut pending.reply.work));
        }
    }

    /// Whether the connection has a place among `--max-connections`.
    pub fn admission(&self) -> Admission {
        self.admission
    }

    /// Changes whether the connection has a place.
    pub fn set_admission(&mut self, admission: Admission) {
        self.admission = admission;
    }

    /// Whether a request is here that waits for a place.
    pub fn waits_for_admission<V: Service<Memo = M>>(&mut self, shared: &Shared<V>) -> bool {
        self.admission == Admission::Waiting
            && self.connection.can_answer()
            && !self.is_next_urgent(shared)
    }

    /// Whether the next complete request is urgent, or will be rejected, which takes as little.
    fn is_next_urgent<V: Service<Memo = M>>(&mut self, shared: &Shared<V>) -> bool {
        let mut space = field_space();
        let head = self.connection.peek_request(&mut space);
        head.is_none_or(|head| {
            let request = Request::received(head.method, head.target, shared.now);
            let request = request.with_fields(head.fields);
            shared.service.is_urgent(&request)
        })
    }

    /// Does what can be done without waiting, within the time of a turn.
    ///
    /// # Errors
    /// When the socket fails: the client has disconnected.
    pub fn take_turn<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> io::Result<Next> {
        self.connection.borrow_buffers(&mut shared.spare_buffers);
        let next = self.serve(shared);
        self.return_buffers(shared);
        next
    }

    /// The bytes that its buffers held after the last turn.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The bytes that its buffers held after the last turn, and the time since it last received or sent
    /// any.
    pub fn held_for(&self, now: Instant) -> HeldFor {
        HeldFor {
            bytes: self.held_bytes(),
            time: now.saturating_duration_since(self.connection.active_at()),
        }
    }

    /// Ends the wait for memory.
    pub fn stop_waiting_for_memory(&mut self) {
        self.waits_for_memory = false;
    }

    /// Adds to what the kernel may hold, and asks it only now and then.
    fn count_written(&mut self, count: usize) {
        self.in_kernel = (self.in_kernel + count).min(MAX_IN_KERNEL_BYTES);
        if self.in_kernel > MAX_UNCHECKED_BYTES && self.socket.has_delivered() {
            self.in_kernel = 0;
        }
    }

    /// Looks whether the kernel still holds what was written, and corrects what the client holds.
    pub fn check_delivery<V>(&mut self, shared: &mut Shared<V>) {
        let counted = self.counted_in_kernel();
        if counted > 0 && self.socket.has_delivered() {
            self.held_bytes -= counted;
            shared.held_bytes -= counted;
            self.in_kernel = 0;
        }
    }

    /// The bytes in the kernel that count as held: beyond its buffer, which has its place beside them.
    fn counted_in_kernel(&self) -> usize {
        if self.in_kernel > 2 * SEND_BUFFER_SIZE {
            self.in_kernel
        } else {
            0
        }
    }

    /// Ends the client. Requests that got no response are recorded as such. `is_lost` says that the
    /// connection has failed, and with it responses on their way.
    pub fn close<V: Service<Memo = M>>(mut self, is_lost: bool, shared: &mut Shared<V>) {
        shared.held_bytes -= self.held_bytes;
        // What a client does not read must not stay in the kernel's memory. At the end it may.
        let is_read = self.connection.unsent().is_empty() && self.socket.has_delivered();
        if !is_read && !shared.is_stopping {
            self.socket.reset_on_close();
        }
        if let Some(started) = shared.answer_began_at.take() {
            let reply = Reply::text(Status::InternalServerError, "");
            let ended = self.ended(reply, Outcome::Panicked, 0, started, Instant::now());
            shared.service.ended(without_memo(ended));
        }
        if let Some(pending) = self.pending.take() {
            let left_at = pending.half_closed_at.unwrap_or(shared.now);
            let PendingReply { reply, started, .. } = *pending;
            let ended = self.ended(reply, Outcome::Disconnected, 0, started, left_at);
            shared.service.ended(ended);
        }
        if let Some(incomplete) = self.incomplete.take() {
            let IncompleteReply { mut ended, started } = *incomplete;
            ended.duration = shared.now.saturating_duration_since(started);
            shared.service.ended(ended);
        }
        self.confirm(is_lost, shared);
    }

    fn serve<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> io::Result<Next> {
        self.requests_in_turn = 0;
        let turn_ends = shared.now + TURN_TIME;
        if shared.is_stopping && self.is_reply_due(shared) && self.socket.is_readable() {
            // A client that has sent nothing more is told that this response is the last.
            self.read(shared)?;
        }
        self.advance_pending(shared);
        self.answer_received(turn_ends, shared);
        if self.can_read() && shared.now < turn_ends {
            self.read(shared)?;
            self.answer_received(turn_ends, shared);
        }
        self.write(shared.now)?;
        if self
            .confirmation_ends()
            .is_some_and(|end| end <= shared.now)
        {
            self.confirm(false, shared);
        }
        if self.is_expired(shared) {
            let Some(rejection) = self.connection.expire() else {
                return Ok(Next::Close);
            };
            self.reject(rejection, shared.now, shared);
            self.write(shared.now)?;
        }
        if self.connection.wants_reset() {
            self.socket.reset_on_close();
            return Ok(Next::Close);
        }
        // The kernel says that everything is delivered once the sending side is closed. So that the
        // rest of a response is not left to it, in memory that nobody counts, it is delivered before. An
        // event comes when the client has read more. If it does not, the deadline does.
        if self.connection.wants_half_close()
            && (shared.is_stopping || self.socket.has_delivered())
        {
            self.socket.close_sending_side()?;
            self.connection.linger(shared.now);
        }
        Ok(self.next(shared))
    }

    /// Whether a wait has ended without progress.
    fn is_expired<V: Service<Memo = M>>(&mut self, shared: &Shared<V>) -> bool {
        if !self.is_overdue {
            return false;
        }
        let deadline = self.connection.deadline();
        self.is_overdue = deadline.is_some_and(|end| end <= shared.now);
        self.is_overdue
            && (self.connection.is_deadline_final()
                || !(self.can_read() || self.can_answer(shared) || self.waits_for_service()))
    }

    fn next<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> Next {
        let wants_memory = self.connection.can_answer()
            && self.connection.unsent().is_empty()
            && shared.held_bytes >= shared.full_from;
        if wants_memory && !self.waits_for_memory {
            self.waits_for_memory = true;
            shared.waiting_for_memory.push(self.key);
        }
        if self.connection.is_finished() && self.unconfirmed.is_none() {
            // An event comes when the client has read more. If it does not, the deadline does.
            if shared.is_stopping || self.socket.has_delivered() {
                Next::Close
            } else {
                Next::Wait
            }
        } else if self.can_read() || self.can_answer(shared) {
            Next::AnotherTurn
        } else {
            Next::Wait
        }
    }

    fn can_read(&self) -> bool {
        self.socket.is_readable() && self.connection.wants_bytes()
    }

    /// Whether a request is received, and all responses before it are sent: the client waits for its
    /// turn, a place or memory, so that its own deadlines do not apply.
    fn waits_for_service(&self) -> bool {
        self.connection.can_answer() && self.connection.unsent().is_empty()
    }

    /// Whether a request may be here that can be answered now. While memory is scarce, a client
    /// must have read its last response first.
    fn can_answer<V: Service<Memo = M>>(&mut self, shared: &Shared<V>) -> bool {
        let is_scarce = shared.held_bytes >= shared.scarce_from;
        self.connection.can_answer()
            && (!is_scarce || self.connection.unsent().is_empty())
            && (shared.held_bytes < shared.full_from || self.is_next_urgent(shared))
            && !self.waits_for_admission(shared)
    }

    fn read<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> io::Result<Received> {
        let is_scarce = shared.held_bytes >= shared.scarce_from;
        let length = shared.read_buffer.len();
        let length = if is_scarce { length.min(SCARCE_READ_SIZE) } else { length };
        let received = self.socket.read(&mut shared.read_buffer[..length])?;
        match received {
            Received::Nothing => {}
            Received::End => self.connection.receive_end(),
            Received::Bytes(count) => {
                let bytes = &shared.read_buffer[..count];
                self.connection.receive(bytes, shared.now);
            }
        }
        Ok(received)
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        while !self.connection.unsent().is_empty()
            && let Some(count) = self.socket.write(self.connection.unsent())?
        {
            self.connection.mark_sent(count, now);
            self.count_written(count);
        }
        Ok(())
    }

    fn return_buffers<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) {
        self.connection.return_buffers(&mut shared.spare_buffers);
        // What a client has sent and nobody has read is in the kernel's receive buffer, which is small
        // and has its place beside these.
        let held_bytes = self.connection.held_bytes()
            + self.counted_in_kernel()
            + self.pending.as_ref().map_or(0, |p| p.reply.held_bytes())
            + usize::from(!self.connection.unsent().is_empty()) * 2 * SEND_BUFFER_SIZE;
        shared.held_bytes = shared.held_bytes - self.held_bytes + held_bytes;
        self.held_bytes = held_bytes;
    }

    fn is_reply_due<V: Service<Memo = M>>(&self, shared: &Shared<V>) -> bool {
        self.pending.as_ref().is_some_and(|pending| {
            shared.is_grace_over || (pending.due <= shared.now && !pending.waits_for_work)
        })
    }

    /// Answers with the pending reply if it is due, or queues its work if it takes some.
    fn advance_pending<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) {
        if !self.is_reply_due(shared) {
            return;
        }
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        if !shared.is_grace_over && !pending.reply.work.is_zero() {
            shared.work_queue.push_back(self.key);
            pending.waits_for_work = true;
            self.pending = Some(pending);
            return;
        }
        let PendingReply {
            mut reply,
            started,
            half_closed_at,
            ..
        } = *pending;
        if shared.is_grace_over {
            reply = reply.replaced(STOPPING);
        }
        let Some(half_closed_at) = half_closed_at else {
            return self.respond(reply, started, shared);
        };
        self.confirm(false, shared);
        let mut ended = self.send(reply, started, shared);
        ended.body = Cow::default();
        self.unconfirmed = Some(Box::new(UnconfirmedReply {
            ended,
            started,
            half_closed_at,
            answered_at: shared.now,
        }));
    }

    /// When it is known that the response to a half-closed client has arrived, if there is one.
    fn confirmation_ends(&self) -> Option<Instant> {
        let unconfirmed = self.unconfirmed.as_ref()?;
        Some(unconfirmed.answered_at + CONFIRMATION_TIME)
    }

    /// Records the response to a half-closed client, now that its fate is known.
    fn confirm<V: Service<Memo = M>>(&mut self, is_lost: bool, shared: &mut Shared<V>) {
        let Some(unconfirmed) = self.unconfirmed.take() else {
            return;
        };
        let UnconfirmedReply {
            mut ended,
            started,
            half_closed_at,
            ..
        } = *unconfirmed;
        if is_lost {
            ended.outcome = Outcome::Disconnected;
            ended.body_length = 0;
            ended.duration = half_closed_at.saturating_duration_since(started);
        }
        shared.service.ended(ended);
    }

    /// Answers the complete requests that are here until the turn ends, up to one whose reply is
    /// pending.
    fn answer_received<V: Service<Memo = M>>(&mut self, turn_ends: Instant, shared: &mut Shared<V>) {
        loop {
            if !self.can_answer(shared) {
                return;
            }
            let mut space = field_space();
            let Some(head) = self.connection.next_request(&mut space) else {
                return;
            };
            let started = (shared.clock)();
            let head = match head {
                Ok(head) => head,
                Err(rejection) => return self.reject(rejection, started, shared),
            };
            let request = Request::received(head.method, head.target, started)
                .with_fields(head.fields)
                .with_peer(Some(self.peer));
            shared.answer_began_at = Some(started);
            let is_refused =
                self.admission == Admission::Refused && !shared.service.is_urgent(&request);
            if is_refused {
                let memo = shared.service.refuse(&request);
                shared.answer_began_at = None;
                self.refuse(memo, started, shared);
                return;
            }
            let reply = shared.service.answer(&request);
            shared.answer_began_at = None;
            if reply.delay.is_zero() && reply.work.is_zero() {
                self.respond(reply, started, shared);
            } else if shared.is_grace_over {
                self.respond(reply.replaced(STOPPING), started, shared);
            } else {
                let due = started + reply.delay;
                shared.timers.push(due, self.key);
                self.pending = Some(Box::new(PendingReply {
                    due,
                    waits_for_work: false,
                    half_closed_at: self.socket.is_read_closed().then_some(started),
                    reply,
                    started,
                }));
                if shared.is_grace_over {
                    self.advance_pending(shared);
                }
            }
            if turn_ends <= shared.now {
                return;
            }
        }
    }

    /// Responds to a request that is not well-formed.
    fn reject<V: Service<Memo = M>>(
        &mut self,
        rejection: Rejection,
        started: Instant,
        shared: &mut Shared<V>,
    ) {
        let ended = self.send(rejection.reply(), started, shared);
        shared.service.ended(Ended {
            memo: None,
            outcome: Outcome::Rejected,
            ..without_memo(ended)
        });
    }

    /// Responds to a request for which there is no room.
    fn refuse<V: Service<Memo = M>>(
        &mut self,
        memo: Option<M>,
        started: Instant,
        shared: &mut Shared<V>,
    ) {
        let ended = self.send(unavailable(TOO_BUSY), started, shared);
        shared.service.ended(Ended {
            memo,
            ..without_memo(ended)
        });
    }

    fn respond<V: Service<Memo = M>>(
        &mut self,
        reply: Reply<M>,
        started: Instant,
        shared: &mut Shared<V>,
    ) {
        let stays_open = reply.ending().stays_open();
        let mut ended = self.send(reply, started, shared);
        if stays_open {
            // Nobody knows for how long, so the memory of its body is freed now.
            ended.body = Cow::default();
            self.incomplete = Some(Box::new(IncompleteReply { ended, started }));
        } else {
            shared.service.ended(ended);
        }
    }

    fn ended<N>(
        &self,
        reply: Reply<N>,
        outcome: Outcome,
        body_length: usize,
        started: Instant,
        end: Instant,
    ) -> Ended<N> {
        Ended {
            body_length,
            duration: end.saturating_duration_since(started),
            peer: Some(self.peer),
            ..Ended::of(reply, outcome)
        }
    }

    /// Whether the client may have sent more requests. They get their responses, too, so this response
    /// does not close the connection.
    fn is_pipelining(&self) -> bool {
        self.requests_in_turn > 1 || self.socket.is_readable() || self.connection.has_bytes_left()
    }

    /// Whether the client has pipelined within the time for which it may be silent while the service
    /// stops. The kernel holds little of a connection, so more may be on its way although nothing can be
    /// read.
    fn has_just_pipelined(&self, now: Instant) -> bool {
        self.pipelined_at
            .is_some_and(|at| now < at + KEEP_ALIVE_TIMEOUT_WHILE_STOPPING)
    }

    /// Has a response sent, or what is to happen in its place. Returns how the exchange has ended.
    fn send<V, N>(
        &mut self,
        reply: Reply<N>,
        started: Instant,
        shared: &mut Shared<V>,
    ) -> Ended<N> {
        let now = (shared.clock)();
        shared.now = now;
        self.requests_in_turn += 1;
        if self.requests_in_turn > 1 || self.connection.has_bytes_left() {
            self.pipelined_at = Some(now);
        }
        let is_last = !self.is_pipelining()
            && (shared.is_stopping && !self.has_just_pipelined(now)
                || self.admission != Admission::Admitted
                || (!self.connection.awaits_body() && shared.take_turnover()));
        let date = shared.date.as_str();
        let body_length = self.connection.respond(&reply, date, is_last, now);
        let outcome = if reply.ending().is_silent() {
            Outcome::Dropped
        } else {
            Outcome::Responded
        };
        self.ended(reply, outcome, body_length, started, now)
    }
}

/// The same for a service whose memos are of another type.
fn without_memo<M>(ended: Ended<()>) -> Ended<M> {
    Ended {
        memo: None,
        outcome: ended.outcome,
        status: ended.status,
        body_length: ended.body_length,
        duration: ended.duration,
        peer: ended.peer,
        body: ended.body,
    }
}

impl<V> Shared<V> {
    /// Whether this response may close its connection to make room for a client that waits.
    fn take_turnover(&mut self) -> bool {
        let may_close = self.turnovers > 0;
        self.turnovers -= usize::from(may_close);
        may_close
    }
}
