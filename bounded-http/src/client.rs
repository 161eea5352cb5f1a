//! One client: its socket, its connection, and what a turn does with them.
//!
//! ```text
//! respond if a reply is due -> answer received requests -> read and answer more
//!     -> write -> expire, reset or half-close
//! ```
//!
//! A turn does what can be done without waiting, and is bounded in time: a client that pipelines a
//! thousand requests needs many turns, and other clients get theirs in between.
//!
//! A request is *answered* by the service, *rejected* if it is invalid, or *refused* with a 503 if its
//! connection is on the reserve and got no slot. Each way ends in a response, and the service is told
//! once how the exchange ended.

use std::borrow::Cow;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::connection::{Buffers, Connection, KEEP_ALIVE_TIMEOUT_WHILE_STOPPING};
use crate::date::Date;
use crate::http::Status;
use crate::listener::{
    LARGE_RECEIVE_BUFFER_SIZE, LARGE_SEND_BUFFER_SIZE, RECEIVE_BUFFER_SIZE, SEND_BUFFER_SIZE,
};
use crate::reply::{Reply, Sending, unavailable};
use crate::request::Request;
use crate::request_head::{Rejection, field_space};
use crate::service::{Ended, Outcome, Service};
use crate::socket::{Readiness, Received, Socket, Stream};
use crate::timer_queue::TimerQueue;
use crate::work::work;

/// How long a reset may take to arrive after a response to a half-closed client: a round trip. Until
/// then it is not known whether the client has disconnected or reads the response.
const CONFIRMATION_TIME: Duration = Duration::from_millis(250);

/// The maximum size of the last segment in the kernel's send buffer. The kernel fills it, however small the
/// buffer is.
const MAX_SEGMENT_BYTES: usize = 64 * 1024;
/// When more written bytes than this may be in the kernel, it is asked whether it has delivered them.
/// The question costs a system call.
const MAX_UNCHECKED_BYTES: usize = 16 * 1024;
/// Up to this number, written bytes do not count as held. The kernel reports bytes as delivered while up to
/// two thirds of a small send buffer are full, and then counting starts again at 0.
const UNCOUNTED_BYTES: usize = 2 * SEND_BUFFER_SIZE / 3;
/// The bytes that the kernel may hold in a large receive buffer in addition to those in a small one. It
/// doubles both sizes.
const EXTRA_RECEIVE_BYTES: usize = 2 * (LARGE_RECEIVE_BUFFER_SIZE - RECEIVE_BUFFER_SIZE);
/// The same for a large send buffer.
const EXTRA_SEND_BYTES: usize = 2 * (LARGE_SEND_BUFFER_SIZE - SEND_BUFFER_SIZE);
/// The maximum number of bytes that one read takes while memory is scarce. Further requests wait in the
/// kernel.
const SCARCE_READ_SIZE: usize = 1024;
/// How many reads of empty lines may precede one of something else in [`Client::read_ahead`]. With
/// [`SCARCE_READ_SIZE`], they take everything that a large receive buffer in the kernel can hold.
const MAX_READS_AHEAD: usize = 16;
/// While fewer bytes than this are unsent, they can wait for the responses of the next turn. With one more small
/// response, the buffer is 4 KiB.
const MIN_WRITE_SIZE: usize = 3 * 1024;
/// How long a client that holds memory may make no progress while others wait for memory.
pub const STALL_TOLERANCE: Duration = Duration::from_millis(500);

/// The body of the 503 for refused requests.
const TOO_BUSY: &str = "Every connection is taken. Try again later.\n";
/// The body of the 503 that replaces delayed replies at the end of the grace period.
const STOPPING: &str = "The service is stopping. Try again later, or elsewhere.\n";

/// The state that all clients share, passed to each turn.
pub struct Shared<V> {
    /// The service.
    pub service: V,
    /// Reads the time: `Instant::now`, except where a test sets the clock.
    pub clock: fn() -> Instant,
    /// The time of the last reading of the clock: before each turn and at each response.
    pub now: Instant,
    /// The value of the `Date` field.
    pub date: Date,
    /// When delayed replies are due.
    pub timers: TimerQueue,
    /// The keys of the clients whose reply is due and takes work, first come, first served.
    pub work_queue: VecDeque<usize>,
    /// Where reads put their bytes. Its length is the maximum of one read.
    pub read_buffer: Box<[u8]>,
    /// Buffers that the client that has a turn borrows, so that a request allocates nothing.
    pub spare_buffers: Buffers,
    /// The bytes that all connections hold in their buffers and in the kernel, as of their last turns.
    pub held_bytes: usize,
    /// When `held_bytes` is at least this, memory is scarce: a client's next request is answered once
    /// it has read the last response.
    pub scarce_from: usize,
    /// When `held_bytes` is at least this, memory is full: a request is answered once the kernel has
    /// delivered the last response, and requests that are not urgent first wait for [`STALL_TOLERANCE`].
    /// Without this, many clients that do read would exceed the limit, and some would be reset.
    pub full_from: usize,
    /// The keys of the clients that wait for memory, each once.
    pub waiting_for_memory: Vec<usize>,
    /// How many buffers in the kernel may still become large.
    pub large_buffers: LargeBuffers,
    /// How many more responses may close their connection to make room for others. Set in each wake-up, taken
    /// by responses.
    pub turnovers: usize,
    /// When the server took up the request that the service is answering now. Set before each call and
    /// cleared after it. After a panic it stays set until the client is [closed](Client::close).
    pub answer_began_at: Option<Instant>,
    /// Set by the stop signal: responses close their connections.
    pub is_stopping: bool,
    /// Set at the end of the grace period: delayed replies are replaced with a 503.
    pub is_grace_over: bool,
    /// From then on, responses close their connections even if the client never stops pipelining. Set
    /// at the end of the grace period.
    pub closes_from: Option<Instant>,
}

/// How many buffers in the kernel may still become large. What is in them is not counted as held, because
/// the event loop cannot know how full they are. So their number is bounded.
pub struct LargeBuffers {
    /// The number of receive buffers that may still become large.
    pub to_receive: usize,
    /// The number of send buffers that may still become large.
    pub to_send: usize,
}

impl LargeBuffers {
    /// Allows as many large buffers of each kind as take up `bytes` in addition to what small ones take.
    pub fn new(bytes: usize) -> Self {
        Self {
            to_receive: bytes / EXTRA_RECEIVE_BYTES,
            to_send: bytes / EXTRA_SEND_BYTES,
        }
    }
}

/// A client of the event loop.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
pub struct Client<S, M> {
    /// Its key in the event loop.
    key: usize,
    /// The address and port of the other end.
    peer: SocketAddr,
    /// The socket, and what the kernel is known to have received and delivered.
    socket: Socket<S>,
    /// The received and unsent bytes, and what they mean.
    connection: Connection,
    /// The reply that is not due yet or takes work. Later requests wait for it. Set when the service returns
    /// it, cleared when the response is written or the client disconnects.
    pending: Option<Box<PendingReply<M>>>,
    /// The response to a half-closed client. Set when it is written, cleared when it is known whether the
    /// client has disconnected.
    unconfirmed: Option<Box<UnconfirmedReply<M>>>,
    /// The exchange whose response is incomplete on purpose. It lasts until the connection is closed.
    incomplete: Option<Box<IncompleteReply<M>>>,
    /// Whether the connection has a slot. Set by the event loop.
    admission: Admission,
    /// The number of responses in this turn. Set to 0 when a turn begins.
    responses_in_turn: usize,
    /// When the client was last seen to have sent several requests at once.
    pipelined_at: Option<Instant>,
    /// The kernel's receive buffer is large. Set when the client pipelines. Never cleared, because the client
    /// may have been told that it can send so much.
    has_large_receive_buffer: bool,
    /// The kernel's send buffer is large. Set when it is full and a long response remains. Never cleared.
    has_large_send_buffer: bool,
    /// The deadline has passed, and all events up to then are known. Set by a sweep, cleared when the
    /// client has made progress.
    is_overdue: bool,
    /// The client is queued for a turn. Set and cleared by the event loop.
    pub is_queued: bool,
    /// The client's tag in the fair queue: see its module.
    pub finish_tag: u64,
    /// The bytes written since the kernel was last known to have delivered everything.
    in_kernel: usize,
    /// The client waits for memory. Set by a turn, cleared by the event loop.
    waits_for_memory: bool,
    /// The bytes that the client held after its last turn.
    held_bytes: usize,
}

/// A reply that is not due yet or takes work.
struct PendingReply<M> {
    due: Instant,
    /// The client is in the work queue. Set when the reply is due, cleared when its work is done.
    waits_for_work: bool,
    /// When the client closed its sending side, if it has. It may have disconnected, or may still read.
    half_closed_at: Option<Instant>,
    /// The reply. Its `work` is set to zero when the work is done.
    reply: Reply<M>,
    /// When the request was received.
    received_at: Instant,
}

/// A response to a half-closed client, which may have disconnected.
struct UnconfirmedReply<M> {
    ended: Ended<M>,
    /// When the request was received.
    received_at: Instant,
    /// When the client closed its sending side.
    half_closed_at: Instant,
    /// When the response was ready.
    responded_at: Instant,
}

/// A response that stays incomplete, or is not sent at all, while the connection stays open.
struct IncompleteReply<M> {
    ended: Ended<M>,
    /// When the request was received.
    received_at: Instant,
}

/// Whether a connection has a slot, which is one of those that the connection limit allows, or is on
/// the reserve above the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It has a slot.
    Admitted,
    /// It is on the reserve. Requests that are not urgent wait for a slot.
    Waiting,
    /// It is on the reserve, and has waited too long. Requests that are not urgent get a 503.
    Refused,
}

/// What the event loop does with a client after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Waits for an event, a timer or a deadline.
    Wait,
    /// Queues the client again.
    AnotherTurn,
    /// Closes the connection.
    Close,
}

/// Why a connection can be evicted, and since when that is so. Lesser values are evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evictable {
    /// The client has closed its sending side and waits for a delayed reply, or this end has closed its
    /// sending side and lingers.
    HalfClosed(Instant),
    /// All requests are answered, and the responses are sent.
    Idle(Instant),
}

/// Returns the keys of the clients that hold memory. The first to pop has held the most for the longest
/// time: the number before its key is bytes multiplied by microseconds.
///
/// A client whose reply is delayed waits for the service. So what the reply holds does not count, unless
/// such replies alone make memory scarce.
pub fn memory_holders<'a, S: Stream + 'a, M: 'a>(
    clients: impl Iterator<Item = (usize, &'a Client<S, M>)> + Clone,
    scarce_from: usize,
    now: Instant,
) -> BinaryHeap<(u64, usize)> {
    let delayed = clients.clone().map(|(_, client)| client.delayed_bytes());
    let counts_delayed = delayed.sum::<usize>() >= scarce_from;
    clients
        .map(|(key, client)| {
            let spared = if counts_delayed {
                0
            } else {
                client.delayed_bytes()
            };
            let bytes = client.held_bytes() - spared;
            let microseconds = client.time_without_progress(now).as_micros() as u64;
            (bytes as u64 * microseconds.max(1), key)
        })
        .filter(|(held, _)| *held > 0)
        .collect()
}

impl<S: Stream, M> Client<S, M> {
    /// Creates a client that was accepted at `now`. `key` is its key among the clients.
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
            responses_in_turn: 0,
            pipelined_at: None,
            has_large_receive_buffer: false,
            has_large_send_buffer: false,
            is_overdue: false,
            is_queued: false,
            finish_tag: 0,
            in_kernel: 0,
            waits_for_memory: false,
            held_bytes: 0,
        }
    }

    /// Returns the stream of its socket.
    #[cfg(test)]
    pub fn stream(&self) -> &S {
        self.socket.stream()
    }

    /// Records what an event says about the socket.
    pub fn update_readiness(&mut self, readiness: Readiness, now: Instant) {
        self.socket.update(readiness);
        if self.socket.is_read_closed()
            && let Some(pending) = &mut self.pending
        {
            pending.half_closed_at.get_or_insert(now);
        }
    }

    /// Makes the next turn expire the connection, because its deadline has passed. If the kernel has
    /// received bytes by now, they were received in time, and the turn reads them instead.
    pub fn check_deadline(&mut self) {
        self.is_overdue = true;
        self.socket.assume_readable();
    }

    /// Makes the connection end soon, because the server was told to stop.
    pub fn stop(&mut self, now: Instant) {
        self.connection.stop(now);
        self.socket.assume_readable();
    }

    /// Returns when a sweep must queue the client for a turn, unless an event does so before.
    pub fn deadline(&self) -> Option<Instant> {
        let confirmation = self.confirmation_ends();
        let deadline = self.connection.deadline();
        match deadline.filter(|_| !self.waits_for_service()) {
            Some(deadline) => Some(confirmation.map_or(deadline, |end| end.min(deadline))),
            None => confirmation,
        }
    }

    /// Returns why the connection can be evicted, or `None` if it cannot.
    pub fn evictable(&self) -> Option<Evictable> {
        let half_closed_at = self.pending.as_ref().and_then(|p| p.half_closed_at);
        if let Some(since) = half_closed_at.or(self.connection.lingers_since()) {
            return Some(Evictable::HalfClosed(since));
        }
        self.connection
            .answered_everything_at()
            .map(Evictable::Idle)
    }

    /// Returns whether everything is answered, but the client has not read all of its last response.
    /// Closing the connection would reset it.
    pub fn is_reading_last_response(&self) -> bool {
        self.connection.has_answered_everything() && !self.socket.has_delivered()
    }

    /// Reads what the client has sent before its next turn, which answers it. Returns whether there was
    /// anything but empty lines between requests.
    pub fn read_ahead<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> bool {
        self.socket.assume_readable();
        self.connection.borrow_buffers(&mut shared.spare_buffers);
        let mut has_read = false;
        for _ in 0..MAX_READS_AHEAD {
            let was_between_requests = self.connection.is_between_requests();
            if !self.can_read()
                || self.connection.lingers_since().is_some()
                || !matches!(self.read(shared), Ok(Received::Bytes(_)))
            {
                break;
            }
            if !(was_between_requests && self.connection.is_between_requests()) {
                has_read = true;
                break;
            }
        }
        self.return_buffers(shared);
        has_read
    }

    /// Returns whether a complete or invalid request has been received and not answered.
    pub fn has_next_request(&self) -> bool {
        self.connection.has_next_request()
    }

    /// Returns since when unsent responses have made no progress, if there are any, or since when the
    /// connection stays open without a response on purpose.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.connection.stalled_since()
    }

    /// Returns when its delayed reply is due, if it has one.
    pub fn reply_due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.due)
    }

    /// Returns whether the client is in the work queue.
    pub fn waits_for_work(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.waits_for_work)
    }

    /// Replaces its delayed reply with a 503 that is due now, because its time on the reserve is over.
    /// Returns whether it has one. Work is not interrupted.
    pub fn refuse_delayed(&mut self, now: Instant) -> bool {
        let pending = self.pending.as_mut();
        let Some(pending) = pending.filter(|pending| !pending.waits_for_work) else {
            return false;
        };
        pending.reply.response = unavailable(TOO_BUSY).response;
        pending.reply.sending = Sending::default();
        pending.due = now;
        true
    }

    /// Returns whether the client has closed its sending side. It may have disconnected.
    pub fn is_half_closed(&self) -> bool {
        self.socket.is_read_closed()
    }

    /// Returns whether the connection has failed, as far as the kernel knows by now.
    pub fn has_failed(&self) -> bool {
        self.socket.has_failed()
    }

    /// Does the work that its reply takes. The next turn sends the response.
    pub fn work(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.waits_for_work = false;
            work(mem::take(&mut pending.reply.sending.work));
        }
    }

    /// Returns whether the connection has a slot.
    pub fn admission(&self) -> Admission {
        self.admission
    }

    /// Sets whether the connection has a slot.
    pub fn set_admission(&mut self, admission: Admission) {
        self.admission = admission;
    }

    /// Returns whether a request has been received that waits for a slot.
    pub fn waits_for_admission<V: Service<Memo = M>>(&self, shared: &Shared<V>) -> bool {
        self.admission == Admission::Waiting
            && self.connection.may_answer()
            && !self.is_next_urgent(shared)
    }

    /// Returns whether the next request is urgent or invalid. Rejecting one takes little time and
    /// memory.
    fn is_next_urgent<V: Service<Memo = M>>(&self, shared: &Shared<V>) -> bool {
        let mut space = field_space();
        let head = self.connection.peek_request(&mut space);
        head.is_none_or(|head| {
            let request = Request::received(head.method, head.target, shared.now)
                .with_fields(head.fields)
                .with_peer(Some(self.peer));
            shared.service.is_urgent(&request)
        })
    }

    /// Does what can be done for the client without waiting. Answers a first request, and further ones
    /// until `turn_time` is over.
    ///
    /// # Errors
    /// If the socket fails, because the client has disconnected.
    pub fn take_turn<V: Service<Memo = M>>(
        &mut self,
        turn_time: Duration,
        shared: &mut Shared<V>,
    ) -> io::Result<Next> {
        self.connection.borrow_buffers(&mut shared.spare_buffers);
        let next = self.serve(turn_time, shared);
        self.return_buffers(shared);
        next
    }

    /// Returns the bytes that the client held after its last turn.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Returns the bytes that its delayed reply holds.
    fn delayed_bytes(&self) -> usize {
        let pending = self.pending.as_ref();
        pending.map_or(0, |pending| pending.reply.held_bytes())
    }

    /// Returns the time since bytes were last received or sent.
    fn time_without_progress(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.connection.active_at())
    }

    /// Returns whether the client has made no progress for [`STALL_TOLERANCE`]. A queued client may have
    /// sent or read something that its next turn will find.
    pub fn is_stalled(&self, now: Instant) -> bool {
        !self.is_queued && self.time_without_progress(now) >= STALL_TOLERANCE
    }

    /// Ends the wait for memory.
    pub fn stop_waiting_for_memory(&mut self) {
        self.waits_for_memory = false;
    }

    /// Adds written bytes to those that may be in the kernel, which is asked only now and then.
    fn count_written(&mut self, count: usize) {
        let buffer_size = if self.has_large_send_buffer {
            LARGE_SEND_BUFFER_SIZE
        } else {
            SEND_BUFFER_SIZE
        };
        self.in_kernel = (self.in_kernel + count).min(MAX_SEGMENT_BYTES + 2 * buffer_size);
        if self.in_kernel > MAX_UNCHECKED_BYTES && self.socket.has_delivered() {
            self.in_kernel = 0;
        }
    }

    /// Asks whether the kernel still holds written bytes, and if not, reduces what the client holds.
    pub fn check_delivery<V>(&mut self, shared: &mut Shared<V>) {
        let counted = self.counted_in_kernel();
        if counted > 0 && self.socket.has_delivered() {
            self.held_bytes -= counted;
            shared.held_bytes -= counted;
            self.in_kernel = 0;
        }
    }

    /// Returns the bytes in the kernel that count as held. A few do not, because the limit for all
    /// connections leaves memory for the send buffers.
    fn counted_in_kernel(&self) -> usize {
        if self.in_kernel > UNCOUNTED_BYTES {
            self.in_kernel
        } else {
            0
        }
    }

    /// Closes the connection. Tells the service the end of every exchange that it has not been told of.
    /// `is_lost` means that the connection has failed, so that responses on their way are lost.
    pub fn close<V: Service<Memo = M>>(mut self, is_lost: bool, shared: &mut Shared<V>) {
        shared.held_bytes -= self.held_bytes;
        shared.large_buffers.to_receive += usize::from(self.has_large_receive_buffer);
        shared.large_buffers.to_send += usize::from(self.has_large_send_buffer);
        // Unread responses must not stay in the kernel's memory. During a shutdown they may.
        let is_read = self.connection.unsent().is_empty() && self.socket.has_delivered();
        if !is_read && !shared.is_stopping {
            self.socket.reset_on_close();
        }
        if let Some(received_at) = shared.answer_began_at.take() {
            let reply = Reply::text(Status::InternalServerError, "");
            let now = (shared.clock)();
            let ended = self.describe_end(reply, Outcome::Panicked, 0, received_at, now);
            shared.service.ended(without_memo(ended));
        }
        if let Some(pending) = self.pending.take() {
            let disconnected_at = pending.half_closed_at.unwrap_or(shared.now);
            let PendingReply {
                reply, received_at, ..
            } = *pending;
            let ended = self.describe_end(
                reply,
                Outcome::Disconnected,
                0,
                received_at,
                disconnected_at,
            );
            shared.service.ended(ended);
        }
        if let Some(incomplete) = self.incomplete.take() {
            let IncompleteReply {
                mut ended,
                received_at,
            } = *incomplete;
            ended.duration = shared.now.saturating_duration_since(received_at);
            shared.service.ended(ended);
        }
        self.confirm(is_lost, shared);
    }

    /// Takes the steps of a turn, in the order that the module's diagram shows.
    fn serve<V: Service<Memo = M>>(
        &mut self,
        turn_time: Duration,
        shared: &mut Shared<V>,
    ) -> io::Result<Next> {
        self.responses_in_turn = 0;
        let turn_ends = shared.now + turn_time;
        if shared.is_stopping && self.is_reply_due(shared) && self.socket.is_readable() {
            // If the client has sent no further request, this response says `Connection: close`.
            self.read(shared)?;
        }
        self.advance_pending(shared);
        self.answer_received(turn_ends, shared);
        if self.can_read() && shared.now < turn_ends {
            self.read(shared)?;
            self.answer_received(turn_ends, shared);
        }
        if !self.collects_responses(shared) {
            self.write(shared)?;
        }
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
            self.write(shared)?;
        }
        if self.connection.wants_reset() {
            self.socket.reset_on_close();
            return Ok(Next::Close);
        }
        if self.can_close_sending_side(shared) {
            self.socket.close_sending_side()?;
            self.connection.linger(shared.now);
        }
        Ok(self.next(shared))
    }

    /// Returns whether the sending side must be closed now. Once it is closed, the kernel no longer tells
    /// whether everything is delivered, and what it holds could not be counted. So it is closed after
    /// delivery. There is an event when the client has read more, or else the deadline passes.
    fn can_close_sending_side<V>(&self, shared: &Shared<V>) -> bool {
        self.connection.wants_to_close_sending_side()
            && (shared.is_stopping || self.socket.has_delivered())
    }

    /// Returns whether the deadline has passed without progress.
    fn is_expired<V: Service<Memo = M>>(&mut self, shared: &Shared<V>) -> bool {
        if !self.is_overdue {
            return false;
        }
        let deadline = self.connection.deadline();
        self.is_overdue = deadline.is_some_and(|end| end <= shared.now);
        // The client may have read the last response in time, although the turn is late.
        self.is_overdue
            && !self.can_close_sending_side(shared)
            && (self.connection.is_deadline_final()
                || !(self.can_read() || self.can_answer(shared) || self.waits_for_service()))
    }

    /// Decides what the event loop does after the turn.
    fn next<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> Next {
        if self.waits_for_service() && shared.is_memory_full() && !self.waits_for_memory {
            self.waits_for_memory = true;
            shared.waiting_for_memory.push(self.key);
        }
        if self.connection.is_finished() && self.unconfirmed.is_none() {
            // There is an event when the client has read more, or else the deadline passes.
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

    /// Returns whether bytes may be read now.
    fn can_read(&self) -> bool {
        self.socket.is_readable() && self.connection.wants_bytes()
    }

    /// Returns whether a request has been received, and all responses before it are sent. The client
    /// then waits for a turn, a slot or memory, so its deadline does not apply.
    fn waits_for_service(&self) -> bool {
        self.connection.may_answer() && self.connection.unsent().is_empty()
    }

    /// Returns whether a request may have been received that can be answered now. While memory is
    /// scarce, the client must have read its last response first. While memory is full, a request that is not
    /// urgent waits for [`STALL_TOLERANCE`]. Then it is answered even though memory is full: its client has made no
    /// progress meanwhile, and would be reset next.
    pub fn can_answer<V: Service<Memo = M>>(&self, shared: &Shared<V>) -> bool {
        self.connection.may_answer()
            && (!shared.is_memory_scarce() || self.connection.unsent().is_empty())
            && (!shared.is_memory_full()
                || (self.socket.has_delivered()
                    && (self.time_without_progress(shared.now) >= STALL_TOLERANCE
                        || self.is_next_urgent(shared))))
            && !self.waits_for_admission(shared)
    }

    fn read<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) -> io::Result<Received> {
        let length = shared.read_buffer.len();
        let length = if shared.is_memory_scarce() {
            length.min(SCARCE_READ_SIZE)
        } else {
            length
        };
        let received = self.socket.read(&mut shared.read_buffer[..length])?;
        match received {
            Received::Nothing => {}
            Received::End => self.connection.receive_end(),
            Received::Bytes(count) => {
                let bytes = &shared.read_buffer[..count];
                self.connection.receive(bytes, shared.now);
                self.enlarge_receive_buffer(count, shared);
            }
        }
        Ok(received)
    }

    /// Enlarges the kernel's receive buffer for a client that pipelines, reads its responses, and from which at
    /// least half of a small buffer is received at once. A full segment is larger.
    fn enlarge_receive_buffer<V>(&mut self, received: usize, shared: &mut Shared<V>) {
        if !self.has_large_receive_buffer
            && self.pipelined_at.is_some()
            && !self.socket.is_write_blocked()
            && received >= RECEIVE_BUFFER_SIZE / 2
            && shared.large_buffers.to_receive > 0
        {
            shared.large_buffers.to_receive -= 1;
            self.has_large_receive_buffer = true;
            self.socket.enlarge_receive_buffer();
        }
    }

    /// Enlarges the kernel's send buffer if it is full and more than a small one remains to be sent. Returns
    /// whether it did.
    fn enlarge_send_buffer<V>(&mut self, shared: &mut Shared<V>) -> bool {
        let enlarges = !self.has_large_send_buffer
            && self.connection.unsent().len() > 2 * SEND_BUFFER_SIZE
            && !shared.is_memory_scarce()
            && shared.large_buffers.to_send > 0;
        if enlarges {
            shared.large_buffers.to_send -= 1;
            self.has_large_send_buffer = true;
            self.socket.enlarge_send_buffer();
        }
        enlarges
    }

    /// Returns whether unsent responses wait for those of the next turn: a client that pipelines gets its
    /// responses in fewer writes, which cost as much as some requests.
    fn collects_responses<V: Service<Memo = M>>(&self, shared: &Shared<V>) -> bool {
        self.connection.unsent().len() < MIN_WRITE_SIZE
            && !shared.is_memory_scarce()
            && !shared.is_stopping
            && self.can_answer(shared)
    }

    fn write<V>(&mut self, shared: &mut Shared<V>) -> io::Result<()> {
        while !self.connection.unsent().is_empty() {
            if let Some(count) = self.socket.write(self.connection.unsent())? {
                self.connection.mark_sent(count, shared.now);
                self.count_written(count);
            } else if !self.enlarge_send_buffer(shared) {
                break;
            }
        }
        Ok(())
    }

    fn return_buffers<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) {
        self.connection.return_buffers(&mut shared.spare_buffers);
        // Unread bytes from the client are in the kernel's receive buffer. It is small or one of a limited
        // number of large ones, and the limit for all connections leaves memory for it.
        let held_bytes = self.connection.held_bytes()
            + self.counted_in_kernel()
            + self.delayed_bytes()
            + usize::from(self.socket.is_write_blocked()) * 2 * SEND_BUFFER_SIZE;
        shared.held_bytes = shared.held_bytes - self.held_bytes + held_bytes;
        self.held_bytes = held_bytes;
    }

    fn is_reply_due<V: Service<Memo = M>>(&self, shared: &Shared<V>) -> bool {
        self.pending.as_ref().is_some_and(|pending| {
            shared.is_grace_over || (pending.due <= shared.now && !pending.waits_for_work)
        })
    }

    /// Sends the pending reply if it is due, or queues its work if it takes some.
    fn advance_pending<V: Service<Memo = M>>(&mut self, shared: &mut Shared<V>) {
        if !self.is_reply_due(shared) {
            return;
        }
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        if !shared.is_grace_over && !pending.reply.sending.work.is_zero() {
            shared.work_queue.push_back(self.key);
            pending.waits_for_work = true;
            self.pending = Some(pending);
            return;
        }
        let PendingReply {
            mut reply,
            received_at,
            half_closed_at,
            ..
        } = *pending;
        if shared.is_grace_over {
            reply = reply.replaced(STOPPING);
        }
        let Some(half_closed_at) = half_closed_at else {
            return self.respond(reply, received_at, shared);
        };
        // The client may have disconnected. The service is told how the exchange ended when that is known.
        self.confirm(false, shared);
        let mut ended = self.send(reply, received_at, shared);
        ended.body = Cow::default();
        self.unconfirmed = Some(Box::new(UnconfirmedReply {
            ended,
            received_at,
            half_closed_at,
            responded_at: shared.now,
        }));
    }

    /// Returns when the response to a half-closed client counts as received, if there is one.
    fn confirmation_ends(&self) -> Option<Instant> {
        let unconfirmed = self.unconfirmed.as_ref()?;
        Some(unconfirmed.responded_at + CONFIRMATION_TIME)
    }

    /// Tells the service how the exchange with a half-closed client ended, if there is one.
    fn confirm<V: Service<Memo = M>>(&mut self, is_lost: bool, shared: &mut Shared<V>) {
        let Some(unconfirmed) = self.unconfirmed.take() else {
            return;
        };
        let UnconfirmedReply {
            mut ended,
            received_at,
            half_closed_at,
            ..
        } = *unconfirmed;
        if is_lost {
            ended.outcome = Outcome::Disconnected;
            ended.body_length = 0;
            ended.duration = half_closed_at.saturating_duration_since(received_at);
        }
        shared.service.ended(ended);
    }

    /// Answers received requests, until the turn ends or a reply is delayed or takes work.
    fn answer_received<V: Service<Memo = M>>(
        &mut self,
        turn_ends: Instant,
        shared: &mut Shared<V>,
    ) {
        loop {
            if !self.can_answer(shared) {
                return;
            }
            let mut space = field_space();
            let Some(head) = self.connection.next_request(&mut space) else {
                return;
            };
            let received_at = (shared.clock)();
            let head = match head {
                Ok(head) => head,
                Err(rejection) => return self.reject(rejection, received_at, shared),
            };
            let request = Request::received(head.method, head.target, received_at)
                .with_fields(head.fields)
                .with_peer(Some(self.peer));
            shared.answer_began_at = Some(received_at);
            let is_refused =
                self.admission == Admission::Refused && !shared.service.is_urgent(&request);
            if is_refused {
                let memo = shared.service.refuse(&request);
                shared.answer_began_at = None;
                self.refuse(memo, received_at, shared);
                return;
            }
            let reply = shared.service.answer(&request);
            shared.answer_began_at = None;
            if reply.sending.delay.is_zero() && reply.sending.work.is_zero() {
                self.respond(reply, received_at, shared);
            } else if shared.is_grace_over {
                self.respond(reply.replaced(STOPPING), received_at, shared);
            } else {
                let due = received_at + reply.sending.delay;
                shared.timers.push(due, self.key);
                self.pending = Some(Box::new(PendingReply {
                    due,
                    waits_for_work: false,
                    half_closed_at: self.socket.is_read_closed().then_some(received_at),
                    reply,
                    received_at,
                }));
            }
            if turn_ends <= shared.now {
                return;
            }
        }
    }

    /// Responds to an invalid request.
    fn reject<V: Service<Memo = M>>(
        &mut self,
        rejection: Rejection,
        received_at: Instant,
        shared: &mut Shared<V>,
    ) {
        let ended = self.send(rejection.reply(), received_at, shared);
        shared.service.ended(Ended {
            outcome: Outcome::Rejected,
            ..without_memo(ended)
        });
    }

    /// Responds with a 503 to a request on the reserve that got no slot.
    fn refuse<V: Service<Memo = M>>(
        &mut self,
        memo: Option<M>,
        received_at: Instant,
        shared: &mut Shared<V>,
    ) {
        let ended = self.send(unavailable(TOO_BUSY), received_at, shared);
        shared.service.ended(Ended {
            memo,
            ..without_memo(ended)
        });
    }

    /// Responds to a request that the service has answered.
    fn respond<V: Service<Memo = M>>(
        &mut self,
        reply: Reply<M>,
        received_at: Instant,
        shared: &mut Shared<V>,
    ) {
        let stays_open = reply.ending().stays_open();
        let mut ended = self.send(reply, received_at, shared);
        if stays_open {
            // The connection may stay open for long, so the memory of the body is freed now.
            ended.body = Cow::default();
            self.incomplete = Some(Box::new(IncompleteReply { ended, received_at }));
        } else {
            shared.service.ended(ended);
        }
    }

    /// Describes how an exchange ended at `end`.
    fn describe_end<N>(
        &self,
        reply: Reply<N>,
        outcome: Outcome,
        body_length: usize,
        received_at: Instant,
        end: Instant,
    ) -> Ended<N> {
        Ended {
            body_length,
            duration: end.saturating_duration_since(received_at),
            peer: Some(self.peer),
            ..Ended::of(reply, outcome)
        }
    }

    /// Returns whether the client may have sent more requests. They must be answered, too, so the
    /// response to this one does not close the connection.
    fn is_pipelining(&self) -> bool {
        self.responses_in_turn > 1 || self.socket.is_readable() || self.connection.has_bytes_left()
    }

    /// Returns whether the client has pipelined within the time for which it may be silent during a
    /// shutdown. The kernel's receive buffer is small, so more requests may be on their way even if
    /// nothing can be read now.
    fn has_just_pipelined(&self, now: Instant) -> bool {
        self.pipelined_at
            .is_some_and(|at| now < at + KEEP_ALIVE_TIMEOUT_WHILE_STOPPING)
    }

    /// Returns whether the connection closes after the response that is being sent, even though the
    /// client would keep it open: because the server is stopping, because the connection is on the
    /// reserve, or to make room for others. Takes a turnover for the last.
    fn is_last_response<V>(&self, shared: &mut Shared<V>) -> bool {
        if shared.closes_from.is_some_and(|from| from <= shared.now) {
            return true;
        }
        if self.is_pipelining() {
            return false;
        }
        (shared.is_stopping && !self.has_just_pipelined(shared.now))
            || self.admission != Admission::Admitted
            || (!self.connection.awaits_body() && shared.take_turnover())
    }

    /// Queues a response on the connection, which then does what its ending says. Returns how the
    /// exchange ended.
    fn send<V, N>(
        &mut self,
        reply: Reply<N>,
        received_at: Instant,
        shared: &mut Shared<V>,
    ) -> Ended<N> {
        let now = (shared.clock)();
        shared.now = now;
        self.responses_in_turn += 1;
        if self.responses_in_turn > 1 || self.connection.has_bytes_left() {
            self.pipelined_at = Some(now);
        }
        let is_last = self.is_last_response(shared);
        let date = shared.date.as_str();
        let body_length = self.connection.respond(&reply, date, is_last, now);
        let outcome = if reply.ending().is_silent() {
            Outcome::Dropped
        } else {
            Outcome::Responded
        };
        self.describe_end(reply, outcome, body_length, received_at, now)
    }
}

/// Converts the end of an exchange without a memo to one of a service whose memo has another type.
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
    /// Creates the state at the start. A read takes at most `read_size` bytes. Memory is never scarce, and no
    /// buffer in the kernel may become large, unless the caller changes that.
    pub fn new(service: V, clock: fn() -> Instant, read_size: usize) -> Self {
        Self {
            service,
            clock,
            now: clock(),
            date: Date::default(),
            timers: TimerQueue::default(),
            work_queue: VecDeque::new(),
            read_buffer: vec![0; read_size].into_boxed_slice(),
            spare_buffers: Buffers::default(),
            held_bytes: 0,
            scarce_from: usize::MAX,
            full_from: usize::MAX,
            waiting_for_memory: Vec::new(),
            large_buffers: LargeBuffers::new(0),
            turnovers: 0,
            answer_began_at: None,
            is_stopping: false,
            is_grace_over: false,
            closes_from: None,
        }
    }

    /// Returns whether memory is scarce: see [`scarce_from`](Self::scarce_from).
    pub fn is_memory_scarce(&self) -> bool {
        self.held_bytes >= self.scarce_from
    }

    /// Returns whether memory is full: see [`full_from`](Self::full_from).
    pub fn is_memory_full(&self) -> bool {
        self.held_bytes >= self.full_from
    }

    /// Takes one of the granted turnovers. Returns whether there was one.
    fn take_turnover(&mut self) -> bool {
        let may_close = self.turnovers > 0;
        self.turnovers -= usize::from(may_close);
        may_close
    }
}

#[cfg(test)]
pub(crate) mod tests;
