//! The event loop: one thread that no client can hold up.
//!
//! A turn is the time in which the loop does for one client what can be done without waiting: it reads,
//! answers requests, and writes responses. The loop waits for events and gives turns to clients:
//!
//! ```text
//! poll -> a socket is ready      -> queue its client for a turn
//!      -> a reply is due         -> queue its client
//!      -> a deadline has passed  -> queue its client; the turn sends a 408 or closes the connection
//!      -> the listener is ready  -> accept, and close idle connections if there are too many
//!      -> clients are queued     -> give turns for a millisecond, then poll again
//!      -> a reply takes work     -> do the work of one reply
//!      -> told to stop           -> responses close their connections; return when all are closed
//! ```
//!
//! | module | what it decides |
//! | --- | --- |
//! | `client` | what happens in a turn |
//! | `connection` | what the bytes mean, and what exceeds a limit |
//! | `request_head` | which requests are valid |
//! | `fair_queue` | which client gets the next turn |
//! | `event_loop::reserve` | which connections get a slot, and what happens to the others |
//! | `eviction` | which connections are closed at the connection limit |
//! | `event_loop::stop` | how the server ends |

use std::io::{self, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use slab::Slab;

use self::reserve::Reserved;
use self::stop::Stop;
use crate::client::{Admission, Client, LargeBuffers, Next, Shared, memory_holders};
use crate::eviction::{Eviction, RESERVE_SIZE, SEARCH_INTERVAL};
use crate::fair_queue::FairQueue;
use crate::limits::{Limits, MAX_WAIT};
use crate::listener::{self, BACKLOG};
use crate::service::Service;
use crate::socket::Readiness;

mod reserve;
mod stop;

const LISTENER: Token = Token(usize::MAX - 1);
const STOP: Token = Token(usize::MAX - 2);

/// The maximum number of bytes that one read takes.
const READ_SIZE: usize = 16 * 1024;
/// The maximum number of events that one poll returns. If it returns fewer, no other event is pending.
const MAX_EVENTS: usize = 4096;
/// How long the loop gives turns before it polls the sockets and the listener again. A new client waits
/// for this twice: until it is accepted, and until its request is read.
const TURNS_TIME: Duration = Duration::from_millis(1);
/// The maximum number of connections accepted in one wake-up, which takes about as long as all turns.
const ACCEPTS_PER_WAKE_UP: usize = 64;
/// For how many wake-ups in a row work waits for newly accepted clients, which may be urgent. That is
/// enough to accept a full backlog. After that, work is done even if clients never stop connecting.
const MAX_WORK_DEFERRALS: usize = BACKLOG as usize / ACCEPTS_PER_WAKE_UP;
/// The minimum time between two sweeps. A sweep checks the deadline of every client.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// How long a sweep waits while more events may be pending.
const MAX_SWEEP_DELAY: Duration = Duration::from_secs(1);
/// How long accepting pauses when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many bytes all buffers may hold together, per connection that the limit allows. This includes
/// the kernel's buffers for clients that do not read. From three quarters of that on, connections without
/// progress are reset, those first that have held the most for the longest time. Above it, others are reset,
/// too.
const HELD_BYTES_PER_CONNECTION: usize = 4 * 1024;
/// The number of bytes that all buffers may hold together is never lower than this.
const MIN_HELD_BYTES: usize = 1024 * 1024;
/// One in this many of the connections that the limit allows may keep the receive buffer that it has at
/// first. A connection keeps it if fewer than these are open when it is accepted. It takes 3.5 KiB more.
const CONNECTIONS_PER_FIRST_BUFFER: usize = 16;
/// The number of connections that may keep their first receive buffer is never lower than this.
const MIN_FIRST_BUFFERS: usize = 64;
/// The minimum time between two checks of the memory that each client holds.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The state of a running server.
pub struct EventLoop<V: Service> {
    /// Polls the listener, the stop signals and the sockets of all clients.
    poll: Poll,
    /// Closed some time after the stop signal. `None` from then on.
    listener: Option<TcpListener>,
    /// Kept open so that a signal handler can write to the other ends.
    _stop_signals: [Option<mio::net::UnixStream>; 2],
    /// All clients, including those on the reserve. A client's key is its token in polls. Added when a
    /// connection is accepted, removed when it is closed.
    clients: Slab<Client<TcpStream, V::Memo>>,
    /// The maximum number of connections, apart from the reserve.
    max_clients: usize,
    /// How long delayed replies may keep waiting after the stop signal.
    grace: Duration,
    /// The state that turns read and change: the service, the clock, and what all clients share.
    shared: Shared<V>,
    /// The clients that are queued for a turn. Added by `queue_turn`, removed when their turn begins.
    queue: FairQueue,
    /// The connections above the limit, oldest first. Removed when they are closed or get a slot.
    reserve: Vec<Reserved>,
    /// Spare descriptors for connections on the reserve, which nothing else in the process, or in the
    /// system, can take. One is closed when no other descriptor is left for a connection. Their type is Poll
    /// because it needs no path and takes less memory than a socket. They are never polled.
    spare: Vec<Poll>,
    /// The number of spare descriptors that should be open. 0 until `run` sets it.
    max_spare: usize,
    /// Decides which connection is closed for the next client at the connection limit.
    eviction: Eviction,
    /// When the reserve is checked next. Set by each check. Checks are counted: see `MAX_CHECKS_IN_WAIT`.
    next_reserve_check: Instant,
    /// Requests that wait for a slot get a 503 at once. Set when one has waited too long, cleared when
    /// a slot becomes free.
    is_refusing: bool,
    /// The maximum number of bytes that all buffers may hold together.
    max_held_bytes: usize,
    /// The earliest time of the next check of all clients' memory. Set by each check.
    next_memory_check: Instant,
    /// The listener may have more connections. Set by an event, cleared when `accept` finds none.
    may_accept: bool,
    /// A client was accepted in this wake-up and has not had a turn. Cleared and set by `accept`.
    has_accepted: bool,
    /// For how many wake-ups in a row work has waited for such a client. Set to 0 when work is done.
    work_deferrals: usize,
    /// Set when no connection can be accepted for now, cleared when one is closed or this time has passed.
    accept_paused_until: Option<Instant>,
    /// When the next sweep is due. Set when a client gets an earlier deadline, cleared by the sweep. `None` if no
    /// client has a deadline.
    next_sweep: Option<Instant>,
    /// When the service must be called again at the latest. Set after each
    /// call, from the duration that it returns.
    next_service_call: Option<Instant>,
    /// The schedule of the shutdown. `None` until the stop signal.
    stop: Option<Stop>,
}

impl<V: Service> EventLoop<V> {
    /// Creates a server that accepts connections from `listener` until one of `stop_signals` becomes readable.
    ///
    /// # Errors
    /// If polling fails.
    pub fn new(
        listener: std::net::TcpListener,
        stop_signals: [Option<UnixStream>; 2],
        service: V,
        limits: &Limits,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let max_clients = limits.connections;
        let max_held_bytes = max_clients
            .saturating_mul(HELD_BYTES_PER_CONNECTION)
            .max(MIN_HELD_BYTES);
        let poll = Poll::new()?;
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        for stop_signal in stop_signals.iter().flatten() {
            stop_signal.set_nonblocking(true)?;
        }
        let mut stop_signals =
            stop_signals.map(|signal| signal.map(mio::net::UnixStream::from_std));
        for stop_signal in stop_signals.iter_mut().flatten() {
            registry.register(stop_signal, STOP, Interest::READABLE)?;
        }
        let shared = Shared {
            scarce_from: max_held_bytes / 2,
            full_from: max_held_bytes / 4 * 3,
            large_buffers: LargeBuffers::new(max_held_bytes / 4),
            ..Shared::new(service, Instant::now, READ_SIZE)
        };
        let now = shared.now;
        Ok(Self {
            poll,
            listener: Some(listener),
            _stop_signals: stop_signals,
            clients: Slab::new(),
            max_clients,
            grace: limits.grace.min(MAX_WAIT),
            shared,
            queue: FairQueue::default(),
            reserve: Vec::new(),
            spare: Vec::new(),
            max_spare: 0,
            eviction: Eviction::new(now),
            next_reserve_check: now,
            is_refusing: false,
            max_held_bytes,
            next_memory_check: now,
            may_accept: false,
            has_accepted: false,
            work_deferrals: 0,
            accept_paused_until: None,
            next_sweep: None,
            next_service_call: None,
            stop: None,
        })
    }

    /// Serves until the stop signal, and then until every received request is answered.
    ///
    /// # Errors
    /// If polling fails. An error of a connection only ends that connection.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_EVENTS);
        // If few descriptors are left, ordinary connections get half of them.
        self.max_spare = 2 * RESERVE_SIZE;
        self.open_spare();
        self.max_spare = self.spare.len() / 2;
        self.spare.truncate(self.max_spare);
        // The service is called before the first wait, too.
        self.finish_wake_up();
        while !self.has_ended() {
            match self.poll.poll(&mut events, self.timeout()) {
                // No event is known yet, so no deadline can be judged. A process that was suspended
                // (SIGSTOP) continues here.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            self.wake_up(&events);
        }
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.close(key);
        }
        self.finish_wake_up();
        Ok(())
    }

    /// Handles the events of a poll, and does everything else that is due.
    fn wake_up(&mut self, events: &Events) {
        self.shared.now = (self.shared.clock)();
        self.shared.date.update();
        for event in events {
            match event.token() {
                LISTENER => self.may_accept = true,
                STOP => self.stop(),
                Token(key) => self.handle_event(key, event.into()),
            }
        }
        let limit = self.max_clients.saturating_add(RESERVE_SIZE);
        self.accept(ACCEPTS_PER_WAKE_UP, limit);
        self.serve_reserve();
        self.queue_due();
        // If more events are pending, one of them may be about bytes that arrived in time. A few polls return all
        // of them. On a busy machine, many clients that never stop sending can fill every poll.
        let may_have_more = events.iter().count() >= events.capacity();
        if !may_have_more || self.is_sweep_overdue() {
            self.sweep();
        }
        self.run_turns();
        self.limit_held_bytes();
        self.advance_stop();
        self.work();
        self.finish_wake_up();
    }

    /// Returns how long the poll may wait for an event; `None` means forever.
    fn timeout(&self) -> Option<Duration> {
        if !self.queue.is_empty()
            || !self.shared.work_queue.is_empty()
            || (self.may_accept && self.accept_paused_until.is_none())
        {
            return Some(Duration::ZERO);
        }
        let reserve_check = (!self.reserve.is_empty()).then(|| self.shared.now + SEARCH_INTERVAL);
        let next_memory_check =
            (!self.shared.waiting_for_memory.is_empty()).then_some(self.next_memory_check);
        [
            self.shared.timers.next_due(),
            self.next_sweep,
            self.accept_paused_until,
            reserve_check,
            next_memory_check,
            self.stop.as_ref().map(|stop| self.next_stop_step(stop)),
            self.next_service_call,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|next| next.saturating_duration_since((self.shared.clock)()))
    }

    /// Updates the client that an event concerns, and queues it for a turn.
    fn handle_event(&mut self, key: usize, readiness: Readiness) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if readiness.is_error {
            return self.close_lost(key);
        }
        client.update_readiness(readiness, self.shared.now);
        self.queue_turn(key);
    }

    /// Queues a client for a turn, unless it is queued already.
    fn queue_turn(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key)
            && !client.is_queued
        {
            client.is_queued = true;
            self.queue.push(key, client.finish_tag);
        }
    }

    /// Queues every client whose delayed reply is due.
    fn queue_due(&mut self) {
        while let Some(key) = self.shared.timers.pop_due(self.shared.now) {
            self.queue_turn(key);
        }
    }

    /// Gives turns to queued clients for [`TURNS_TIME`].
    fn run_turns(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.shared.now = (self.shared.clock)();
        let end = self.shared.now + TURNS_TIME;
        while self.shared.now < end
            && let Some((key, turn_time)) = self.queue.pop()
        {
            let started = self.shared.now;
            let next = self.give_turn(key, turn_time);
            self.shared.now = (self.shared.clock)();
            let used = self.shared.now.saturating_duration_since(started);
            self.queue.end_turn(used);
            if let Some(client) = self.clients.get_mut(key) {
                client.finish_tag = self.queue.charge(client.finish_tag, used);
            }
            if next == Next::AnotherTurn {
                self.queue_turn(key);
            }
        }
    }

    /// Gives a client its turn. A panic closes its connection and affects no other.
    fn give_turn(&mut self, key: usize, turn_time: Duration) -> Next {
        let Some(client) = self.clients.get_mut(key) else {
            return Next::Wait;
        };
        client.is_queued = false;
        let turn = AssertUnwindSafe(|| client.take_turn(turn_time, &mut self.shared));
        // The panic hook has reported a panic. An error means that the client has disconnected.
        let next = match catch_unwind(turn) {
            Ok(Ok(next)) => next,
            Ok(Err(_)) => {
                self.close_lost(key);
                return Next::Close;
            }
            Err(_) => Next::Close,
        };
        if next == Next::Close {
            self.close(key);
        } else {
            let deadline = self.clients.get(key).and_then(Client::deadline);
            self.plan_sweep(deadline);
        }
        next
    }

    /// Returns whether the next sweep has been due for [`MAX_SWEEP_DELAY`].
    fn is_sweep_overdue(&self) -> bool {
        let now = self.shared.now;
        self.next_sweep
            .is_some_and(|next| next + MAX_SWEEP_DELAY <= now)
    }

    /// Queues every client whose deadline has passed, if a sweep is due.
    fn sweep(&mut self) {
        let now = self.shared.now;
        if self.next_sweep.is_none_or(|next| now < next) {
            return;
        }
        let mut overdue = Vec::new();
        let mut next_deadline: Option<Instant> = None;
        for (key, client) in &mut self.clients {
            match client.deadline() {
                Some(deadline) if deadline <= now => {
                    client.check_deadline();
                    overdue.push(key);
                }
                Some(deadline) => {
                    next_deadline = Some(next_deadline.map_or(deadline, |next| next.min(deadline)));
                }
                None => {}
            }
        }
        self.next_sweep = None;
        self.plan_sweep(next_deadline);
        for key in overdue {
            self.queue_turn(key);
        }
    }

    /// Plans the next sweep for the time of a deadline, unless one is planned before it. Sweeps are at
    /// least [`SWEEP_INTERVAL`] apart.
    fn plan_sweep(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            let sweep = deadline.max(self.shared.now + SWEEP_INTERVAL);
            self.next_sweep = Some(self.next_sweep.map_or(sweep, |next| next.min(sweep)));
        }
    }

    /// Does the work of one reply. Other clients get turns before the next. Work for clients that have
    /// closed their sending side comes last, because most of them have disconnected. A client that was
    /// accepted in this wake-up has not had a turn yet and may be urgent, so work waits for it.
    fn work(&mut self) {
        let has_new_clients = self.has_accepted || self.queue.has_light();
        if has_new_clients && self.work_deferrals < MAX_WORK_DEFERRALS {
            self.work_deferrals += 1;
            return;
        }
        self.work_deferrals = 0;
        let clients = &self.clients;
        let is_half_closed = |key: &usize| clients.get(*key).is_some_and(Client::is_half_closed);
        let queue = &mut self.shared.work_queue;
        let next = queue.iter().position(|key| !is_half_closed(key));
        let Some(key) = queue.remove(next.unwrap_or(0)) else {
            return;
        };
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if client.has_failed() {
            return self.close_lost(key);
        }
        client.work();
        self.queue_turn(key);
    }

    /// Accepts at most `count` connections that the kernel has completed, as long as fewer than `limit`
    /// are open. Connections above the connection limit go to the reserve.
    fn accept(&mut self, count: usize, limit: usize) {
        let now = self.shared.now;
        self.has_accepted = false;
        if self.accept_paused_until.is_some_and(|end| now < end) {
            return;
        }
        self.accept_paused_until = None;
        for _ in 0..count {
            if !self.may_accept {
                return;
            }
            let is_full = self.clients.len() >= limit;
            if is_full && !self.evict_from_reserve() {
                self.accept_paused_until = Some(now + SEARCH_INTERVAL);
                return;
            }
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => self.insert(stream, peer),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.may_accept = false,
                    // The client has disconnected already, or a signal interrupted the call.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        if !self.free_descriptor(&error) {
                            self.accept_paused_until = Some(now + ACCEPT_PAUSE);
                            return;
                        }
                    }
                },
            }
        }
    }

    /// Frees a descriptor for the next connection, if accepting it failed because there was none. Returns
    /// whether it did.
    fn free_descriptor(&mut self, error: &io::Error) -> bool {
        // If slots are free, something else in the process, or in the system, uses the descriptors. That
        // is like the connection limit: the next connection goes to the reserve.
        let had_free_slot = self.has_free_slot();
        let has_freed = is_out_of_descriptors(error)
            && (self.spare.pop().is_some() || self.evict_from_reserve() || self.evict());
        if had_free_slot || !has_freed {
            let message = format!("accepting a connection failed: {error}");
            self.shared.service.report(&message);
        }
        has_freed
    }

    /// Adds a new connection to the clients.
    fn insert(&mut self, mut stream: TcpStream, peer: SocketAddr) {
        let now = self.shared.now;
        // A connection that waits on the reserve gets the next free slot.
        let admission = if self.has_free_slot() && self.reserve.is_empty() {
            Admission::Admitted
        } else {
            Admission::Waiting
        };
        let first_buffers = self.max_clients / CONNECTIONS_PER_FIRST_BUFFER;
        if self.clients.len() >= first_buffers.max(MIN_FIRST_BUFFERS) {
            listener::reduce_receive_buffer(&stream);
        }
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut stream, Token(key), CLIENT_INTEREST) {
            let message = format!("cannot watch a connection: {error}");
            return self.shared.service.report(&message);
        }
        self.has_accepted = true;
        let client = entry.insert(Client::new(key, stream, peer, admission, now));
        if self.shared.is_stopping {
            client.stop(now);
        }
        let deadline = client.deadline();
        self.plan_sweep(deadline);
        if admission == Admission::Waiting {
            self.reserve.push(Reserved::new(key, now));
        }
        self.shared.service.connections_changed(self.clients.len());
    }

    /// Keeps the bytes that all connections hold within the limit. While memory is scarce, asks the kernel
    /// from time to time what it has delivered. Resets connections if they hold too much together, or if
    /// other clients wait for memory. Queues the clients that have waited for memory when there is enough
    /// again.
    fn limit_held_bytes(&mut self) {
        let now = self.shared.now;
        let is_over = self.shared.held_bytes > self.max_held_bytes;
        if is_over || (self.shared.is_memory_scarce() && self.next_memory_check <= now) {
            for (_, client) in &mut self.clients {
                client.check_delivery(&mut self.shared);
            }
            self.queue_stalled();
            self.reset_stalled();
            // At most a tenth of the time is spent on these checks.
            let took = (self.shared.clock)().saturating_duration_since(now);
            self.next_memory_check = now + (10 * took).max(MEMORY_CHECK_INTERVAL);
        }
        if !self.shared.is_memory_full() {
            for key in mem::take(&mut self.shared.waiting_for_memory) {
                if let Some(client) = self.clients.get_mut(key) {
                    client.stop_waiting_for_memory();
                    self.queue_turn(key);
                }
            }
        }
    }

    /// Queues the clients that have waited for memory until they count as stalled, if their requests can be
    /// answered.
    fn queue_stalled(&mut self) {
        for index in 0..self.shared.waiting_for_memory.len() {
            let key = self.shared.waiting_for_memory[index];
            if let Some(client) = self.clients.get_mut(key)
                && client.is_stalled(self.shared.now)
                && client.can_answer(&self.shared)
            {
                self.queue_turn(key);
            }
        }
    }

    /// Resets connections that have made no progress, those first that have held the most for the
    /// longest time.
    fn reset_stalled(&mut self) {
        if !self.shared.is_memory_full() {
            return;
        }
        let now = self.shared.now;
        // Resets some more than necessary, so that the next check is not needed soon.
        let enough = self.shared.scarce_from;
        let mut memory_holders = memory_holders(self.clients.iter(), enough, now);
        let mut count = 0_u32;
        while self.shared.held_bytes > enough
            && let Some((_, key)) = memory_holders.pop()
        {
            let is_stalled = self.clients[key].is_stalled(now);
            // A client that makes progress is spared unless the limit itself is exceeded.
            if is_stalled || self.shared.held_bytes > self.max_held_bytes {
                self.close_lost(key);
                count += 1;
            }
        }
        if count > 0 {
            let message = format!(
                "reset {count} connections of clients that do not read their responses, send only \
                 parts of requests, or wait for many delayed responses: all buffers together may hold \
                 {} bytes",
                self.max_held_bytes
            );
            self.shared.service.report(&message);
        }
    }

    /// Closes a connection.
    fn close(&mut self, key: usize) {
        self.remove(key, false);
    }

    /// Closes a connection that has failed or is reset. Responses on their way to the client are lost.
    fn close_lost(&mut self, key: usize) {
        self.remove(key, true);
    }

    fn remove(&mut self, key: usize, is_lost: bool) {
        let Some(client) = self.clients.try_remove(key) else {
            return;
        };
        if client.waits_for_work() {
            self.shared.work_queue.retain(|waiting| *waiting != key);
        }
        let waiting_for_memory = &mut self.shared.waiting_for_memory;
        waiting_for_memory.retain(|waiting| *waiting != key);
        if client.admission() == Admission::Admitted {
            self.is_refusing = false;
        } else {
            self.reserve.retain(|reserved| reserved.key != key);
        }
        // The service may panic when it is told how an exchange ended.
        let close = AssertUnwindSafe(|| client.close(is_lost, &mut self.shared));
        let _ = catch_unwind(close);
        self.shared.service.connections_changed(self.clients.len());
        self.accept_paused_until = None;
        self.shrink();
    }

    /// Frees memory that a larger number of connections needed before. The slab keeps its entries up to the
    /// highest key in use.
    fn shrink(&mut self) {
        let count = self.clients.len();
        if self.clients.capacity() > 4 * count + 64 {
            self.clients.shrink_to_fit();
        }
        if self.shared.work_queue.capacity() > 4 * count + 64 {
            self.shared.work_queue.shrink_to_fit();
        }
        self.queue.shrink(count);
        if self.shared.timers.count() > 2 * count + 64 {
            let reply_due = |key| self.clients.get(key).and_then(Client::reply_due);
            let timers = &mut self.shared.timers;
            timers.retain(|due, key| reply_due(key) == Some(due));
        }
    }

    /// Calls the service before the server waits.
    fn finish_wake_up(&mut self) {
        let again = self.shared.service.before_wait();
        self.next_service_call = again.map(|time| self.shared.now + time.min(MAX_WAIT));
    }
}

/// The events that a client's socket is polled for. Linux reports urgent data, at which a read may stop
/// (tcp(7)).
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLIENT_INTEREST: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLIENT_INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Returns whether the process or the system has no descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}

#[cfg(test)]
mod tests;
