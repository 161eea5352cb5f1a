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

use std::collections::VecDeque;
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
use crate::connection::Buffers;
use crate::date::Date;
use crate::eviction::{Eviction, RESERVE_SIZE, SEARCH_INTERVAL};
use crate::fair_queue::FairQueue;
use crate::listener::{self, BACKLOG};
use crate::server::Limits;
use crate::service::Service;
use crate::socket::Readiness;
use crate::timer_queue::TimerQueue;

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
/// For how many wake-ups in a row work waits for newly accepted clients, which may be scrapes. That is
/// enough to accept a full backlog. After that, work is done even if clients never stop connecting.
const MAX_WORK_DEFERRALS: usize = BACKLOG as usize / ACCEPTS_PER_WAKE_UP;
/// The minimum time between two sweeps. A sweep checks the deadline of every client.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// How long accepting pauses when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many bytes all buffers may hold together, per connection that the limit allows. This includes
/// the kernel's buffers for clients that do not read. If they hold more, the connections that hold the
/// most for the longest time are reset.
const HELD_BYTES_PER_CONNECTION: usize = 4 * 1024;
/// One in this many of the connections that the limit allows may keep the receive buffer that it has at
/// first. A new connection keeps it as long as fewer than these are open. It takes 3.5 KiB more.
const CONNECTIONS_PER_FIRST_BUFFER: usize = 16;
/// The number of connections that may keep their first receive buffer is never lower than this.
const MIN_FIRST_BUFFERS: usize = 64;
/// The minimum time between two checks of the memory that each client holds.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_millis(1);
/// The limit for all connections together is never lower than this.
const MIN_HELD_BYTES: usize = 1024 * 1024;
/// The state of a running server.
pub struct EventLoop<V: Service> {
    poll: Poll,
    /// Closed some time after the stop signal. `None` from then on.
    listener: Option<TcpListener>,
    /// Kept open so that a signal handler can write to the other end.
    _stop_signal: mio::net::UnixStream,
    clients: Slab<Client<TcpStream, V::Memo>>,
    /// The maximum number of connections, apart from the reserve.
    max_clients: usize,
    /// How long delayed replies may keep waiting after the stop signal.
    grace: Duration,
    shared: Shared<V>,
    /// The clients that are queued for a turn.
    queue: FairQueue,
    /// The connections above the limit, oldest first.
    reserve: Vec<Reserved>,
    /// Spare descriptors for connections on the reserve, which nothing else in the process, or in the
    /// system, can take. One is closed when no other descriptor is left for a connection. They are never
    /// polled: a poll is used because it needs no path and takes less memory than a socket.
    spare: Vec<Poll>,
    /// The number of spare descriptors that should be open. 0 until the event loop runs.
    max_spare: usize,
    eviction: Eviction,
    /// When the reserve is checked next. Checks are counted: see `MAX_CHECKS_IN_WAIT`.
    next_reserve_check: Instant,
    /// Requests that wait for a slot get a 503 at once. Set when one has waited too long, cleared when
    /// a slot becomes free.
    is_refusing: bool,
    /// The maximum number of bytes that all buffers may hold together.
    max_held_bytes: usize,
    /// The earliest time of the next check of all clients' memory.
    next_memory_check: Instant,
    /// The listener may have more connections. Set by an event, cleared when `accept` finds none.
    may_accept: bool,
    /// A client was accepted in this wake-up and has not had a turn.
    has_accepted: bool,
    /// For how many wake-ups in a row work has waited for such a client.
    work_deferrals: usize,
    /// Set when no connection can be accepted for now, cleared when one is closed or the time has come.
    accept_paused_until: Option<Instant>,
    /// When the next sweep is due. `None` if no client has a deadline.
    next_sweep: Option<Instant>,
    /// When the service wants to be called again at the latest.
    next_service_call: Option<Instant>,
    /// The schedule of the shutdown. `None` until the stop signal.
    stop: Option<Stop>,
}

impl<V: Service> EventLoop<V> {
    /// Creates a server that accepts connections from `listener` until `stop_signal` becomes readable.
    ///
    /// # Errors
    /// If polling fails.
    pub fn new(
        listener: std::net::TcpListener,
        stop_signal: UnixStream,
        service: V,
        limits: &Limits,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        stop_signal.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let mut stop_signal = mio::net::UnixStream::from_std(stop_signal);
        let max_clients = limits.connections;
        let max_held_bytes = max_clients
            .saturating_mul(HELD_BYTES_PER_CONNECTION)
            .max(MIN_HELD_BYTES);
        let poll = Poll::new()?;
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        registry.register(&mut stop_signal, STOP, Interest::READABLE)?;
        let now = Instant::now();
        Ok(Self {
            poll,
            listener: Some(listener),
            _stop_signal: stop_signal,
            clients: Slab::new(),
            max_clients,
            grace: limits.grace,
            shared: Shared {
                service,
                clock: Instant::now,
                now,
                date: Date::default(),
                timers: TimerQueue::default(),
                work_queue: VecDeque::new(),
                read_buffer: vec![0; READ_SIZE].into_boxed_slice(),
                spare_buffers: Buffers::default(),
                held_bytes: 0,
                scarce_from: max_held_bytes / 2,
                full_from: max_held_bytes / 4 * 3,
                waiting_for_memory: Vec::new(),
                large_buffers: LargeBuffers::new(max_held_bytes / 4),
                turnovers: 0,
                answer_began_at: None,
                is_stopping: false,
                is_grace_over: false,
                closes_from: None,
            },
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
            self.shared.now = Instant::now();
            self.shared.date.update();
            let mut count = 0;
            for event in &events {
                count += 1;
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
            // If more events are pending, one of them may be about bytes that arrived in time.
            if count < MAX_EVENTS {
                self.sweep();
            }
            self.run_turns();
            self.limit_held_bytes();
            self.advance_stop();
            self.work();
            self.finish_wake_up();
        }
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.close(key);
        }
        self.finish_wake_up();
        Ok(())
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
        .map(|next| next.saturating_duration_since(Instant::now()))
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
        self.shared.now = Instant::now();
        let end = self.shared.now + TURNS_TIME;
        while self.shared.now < end
            && let Some((key, turn_time)) = self.queue.pop()
        {
            let started = self.shared.now;
            let next = self.give_turn(key, turn_time);
            self.shared.now = Instant::now();
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
    /// accepted in this wake-up has not had a turn yet and may be a scrape, so work waits for it.
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
                        // If slots are free, something else in the process, or in the system, uses the
                        // descriptors. That is like the connection limit: the next connection goes to
                        // the reserve.
                        let had_free_slot = self.has_free_slot();
                        let can_retry = is_out_of_descriptors(&error)
                            && (self.spare.pop().is_some()
                                || self.evict_from_reserve()
                                || self.evict());
                        if had_free_slot || !can_retry {
                            let message = format!("accepting a connection failed: {error}");
                            self.shared.service.report(&message);
                        }
                        if !can_retry {
                            self.accept_paused_until = Some(now + ACCEPT_PAUSE);
                            return;
                        }
                    }
                },
            }
        }
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
    /// from time to time what it has delivered. Resets connections if they hold too
    /// much together, or if other clients wait for memory. Queues the clients that have waited for
    /// memory when there is enough again.
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
            let took = now.elapsed();
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
                 parts of requests, or wait for many delayed pages: all buffers together may hold \
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

    /// Keeps memory in proportion to the number of open connections, however many there were before.
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
        self.next_service_call = again.map(|time| self.shared.now + time);
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
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::OnceLock;
    use std::thread;

    use mio::event::Event;
    use rustix::io::ioctl_fionread;
    use rustix::net::sockopt;

    use super::stop::LAST_RESPONSES_TIME;
    use super::*;
    use crate::fair_queue::TURN_TIME;
    use crate::http::Status;
    use crate::reply::Reply;
    use crate::request::Request;
    use crate::service::Ended;

    /// Answers some paths, of which only /open is urgent, panics at any other, and counts exchanges that
    /// ended.
    #[derive(Default)]
    struct Probe {
        work: Duration,
        /// How long the service takes to answer.
        pause: Duration,
        ended: usize,
        open: usize,
    }

    impl Service for Probe {
        type Memo = ();

        fn answer(&mut self, request: &Request<'_>) -> Reply {
            let asked = Instant::now();
            while asked.elapsed() < self.pause {}
            match request.path() {
                "/probe" => Reply::text(Status::Ok, "I'm ok!").work(self.work),
                "/long" => Reply::text(Status::Ok, "x".repeat(1 << 20)),
                "/page" => Reply::text(Status::Ok, "x".repeat(12 * 1024)),
                "/open" => Reply::text(Status::Ok, format!("{} open", self.open)),
                path => panic!("{path}"),
            }
        }

        fn is_urgent(&self, request: &Request<'_>) -> bool {
            request.path() == "/open"
        }

        fn ended(&mut self, _: Ended<()>) {
            self.ended += 1;
        }

        fn connections_changed(&mut self, open: usize) {
            self.open = open;
        }
    }

    fn limits(connections: usize) -> Limits {
        Limits {
            connections,
            ..Limits::default()
        }
    }

    fn ask(mut stream: &TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = vec![0; 16 * 1024];
        let count = stream.read(&mut response).unwrap();
        String::from_utf8_lossy(&response[..count]).into_owned()
    }

    #[test]
    fn a_panic_closes_its_connection_and_affects_no_other() {
        let listener = crate::listener::listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop_signal, mut stop) = UnixStream::pair().unwrap();
        let event_loop = thread::spawn(move || {
            EventLoop::new(listener, stop_signal, Probe::default(), &limits(10))
                .unwrap()
                .run()
        });
        let connect = || {
            let stream = TcpStream::connect(address).unwrap();
            let timeout = Some(Duration::from_secs(60));
            stream.set_read_timeout(timeout).unwrap();
            stream
        };

        let other = connect();
        assert!(ask(&other, "/probe").ends_with("I'm ok!"));
        for _ in 0..3 {
            assert_eq!(ask(&connect(), "/panic"), "", "closed without a response");
            assert!(ask(&other, "/probe").ends_with("I'm ok!"));
        }
        let page = ask(&other, "/open");
        assert!(page.ends_with("1 open"), "{page}");

        stop.write_all(&[0]).unwrap();
        event_loop.join().unwrap().unwrap();
        assert_eq!(
            (&other).read(&mut [0]).unwrap(),
            0,
            "idle connections are closed"
        );
    }

    #[test]
    fn the_service_is_called_before_the_first_wait_and_when_it_asks_to_be() {
        struct Ticks(usize, UnixStream);
        impl Service for Ticks {
            type Memo = ();

            fn answer(&mut self, _: &Request<'_>) -> Reply {
                Reply::text(Status::Ok, "")
            }

            fn before_wait(&mut self) -> Option<Duration> {
                self.0 += 1;
                if self.0 == 3 {
                    self.1.write_all(&[0]).unwrap();
                }
                Some(Duration::from_millis(1))
            }
        }
        // The service stops the server, and no client connects.
        let listener = crate::listener::listen("127.0.0.1:0").unwrap();
        let (stop_signal, stop) = UnixStream::pair().unwrap();
        let ticks = Ticks(0, stop);
        let mut event_loop = EventLoop::new(listener, stop_signal, ticks, &limits(10)).unwrap();
        event_loop.run().unwrap();
        assert!(event_loop.shared.service.0 >= 3);
    }

    /// Returns an event loop that the test drives step by step, its address, and the other end of its
    /// stop signal.
    fn driven(service: Probe) -> (EventLoop<Probe>, SocketAddr, UnixStream) {
        let listener = crate::listener::listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop_signal, stop) = UnixStream::pair().unwrap();
        let event_loop = EventLoop::new(listener, stop_signal, service, &limits(10));
        (event_loop.unwrap(), address, stop)
    }

    /// Connects this number of clients, whose keys count from 0. Returns their sockets.
    fn accepted(
        event_loop: &mut EventLoop<Probe>,
        address: SocketAddr,
        count: usize,
    ) -> Vec<TcpStream> {
        let connect = |_| TcpStream::connect(address).unwrap();
        let streams = (0..count).map(connect).collect();
        while event_loop.clients.len() < count {
            wait_for(event_loop, LISTENER, Event::is_readable);
            event_loop.may_accept = true;
            event_loop.accept(count, usize::MAX);
        }
        streams
    }

    /// Waits until a poll reports this about a socket. Bytes may take a while to arrive.
    fn wait_for(event_loop: &mut EventLoop<Probe>, token: Token, condition: fn(&Event) -> bool) {
        let mut events = Events::with_capacity(16);
        let is_it = |event: &Event| event.token() == token && condition(event);
        while !events.iter().any(is_it) {
            let timeout = Some(Duration::from_secs(60));
            event_loop.poll.poll(&mut events, timeout).unwrap();
            assert!(!events.is_empty(), "waited in vain");
        }
    }

    const READABLE: Readiness = Readiness {
        is_readable: true,
        is_read_closed: false,
        is_writable: false,
        has_urgent_data: false,
        is_error: false,
    };
    const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Sends bytes from a client in one piece, and queues it for a turn.
    fn send(event_loop: &mut EventLoop<Probe>, key: usize, mut stream: &TcpStream, bytes: &str) {
        stream.write_all(bytes.as_bytes()).unwrap();
        wait_for(event_loop, Token(key), Event::is_readable);
        event_loop.handle_event(key, READABLE);
    }

    /// Gives one turn to the next client in the queue. Returns whether there was one.
    fn take_turn(event_loop: &mut EventLoop<Probe>) -> bool {
        let Some((key, turn_time)) = event_loop.queue.pop() else {
            return false;
        };
        if event_loop.give_turn(key, turn_time) == Next::AnotherTurn {
            event_loop.queue_turn(key);
        }
        true
    }

    #[test]
    fn a_client_that_fills_a_read_is_read_from_again() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        event_loop.shared.read_buffer = vec![0; PROBE.len()].into_boxed_slice();
        send(&mut event_loop, 0, &streams[0], &PROBE.repeat(2));
        for _ in 0..3 {
            assert!(
                take_turn(&mut event_loop),
                "after a full read, there may be more"
            );
        }
        assert!(!take_turn(&mut event_loop));
        assert_eq!(event_loop.clients.len(), 1);
    }

    #[test]
    fn a_client_gets_no_second_turn_after_a_short_read() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], PROBE);
        assert!(take_turn(&mut event_loop));
        assert!(!take_turn(&mut event_loop));
    }

    /// A read or a write may find the reset before its event is handled.
    #[test]
    fn a_connection_is_closed_when_a_read_or_a_write_finds_that_it_was_reset() {
        for sent in ["", PROBE] {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            let stream = accepted(&mut event_loop, address, 1).remove(0);
            (&stream).write_all(sent.as_bytes()).unwrap();
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            drop(stream);
            wait_for(&mut event_loop, Token(0), Event::is_error);
            event_loop.handle_event(0, READABLE);
            assert!(take_turn(&mut event_loop));
            assert!(event_loop.clients.is_empty());
        }
    }

    const LONGER_THAN_A_TURN: Duration = Duration::from_micros(100);

    #[test]
    fn a_turn_starts_no_request_after_50_microseconds_or_10_while_other_new_clients_wait() {
        static NOW: OnceLock<Instant> = OnceLock::new();
        let (new, busy) = (0, 1_000_000);
        for (finish_tag, others, micros, expected) in [
            (new, 0, 49, 40),
            (new, 0, 50, 1),
            (new, 1, 9, 40),
            (new, 1, 10, 1),
            (busy, 0, 49, 40),
            (busy, 0, 50, 1),
        ] {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            let streams = accepted(&mut event_loop, address, 1);
            event_loop.clients[0].finish_tag = finish_tag;
            send(&mut event_loop, 0, &streams[0], &PROBE.repeat(40));
            (0..others).for_each(|_| event_loop.queue.push(usize::MAX, new));
            let (key, turn_time) = event_loop.queue.pop().unwrap();
            // This much time of the turn is over, and the clock stands still.
            event_loop.shared.clock = || *NOW.get_or_init(Instant::now);
            event_loop.shared.now = (event_loop.shared.clock)();
            event_loop.shared.now -= Duration::from_micros(micros);
            event_loop.give_turn(key, turn_time);
            let answered = event_loop.shared.service.ended;
            let case = format!("{finish_tag}, {others} others, after {micros} µs");
            assert_eq!(answered, expected, "{case}");
        }
    }

    #[test]
    fn all_buffers_together_may_hold_4_kib_per_connection_and_at_least_1_mib() {
        for (connections, bytes, to_receive, to_send) in [
            (10, 1_048_576, 22, 3),
            (256, 1_048_576, 22, 3),
            (257, 1_052_672, 22, 3),
            (1000, 4_096_000, 86, 13),
        ] {
            let listener = crate::listener::listen("127.0.0.1:0").unwrap();
            let (stop_signal, _stop) = UnixStream::pair().unwrap();
            let limits = limits(connections);
            let event_loop = EventLoop::new(listener, stop_signal, Probe::default(), &limits);
            let mut event_loop = event_loop.unwrap();
            assert_eq!(event_loop.max_held_bytes, bytes);
            // One connection in 12 can have a large receive buffer, and one in 72 a large send buffer.
            let large = &event_loop.shared.large_buffers;
            assert_eq!((large.to_receive, large.to_send), (to_receive, to_send));
            // Memory is scarce from half of that on, and full from three quarters on.
            for (held, is_scarce, is_full) in [
                (bytes / 2 - 1, false, false),
                (bytes / 2, true, false),
                (bytes / 4 * 3 - 1, true, false),
                (bytes / 4 * 3, true, true),
            ] {
                event_loop.shared.held_bytes = held;
                assert_eq!(event_loop.shared.is_memory_scarce(), is_scarce, "{held}");
                assert_eq!(event_loop.shared.is_memory_full(), is_full, "{held}");
            }
        }
    }

    #[test]
    fn a_read_takes_1_kib_while_memory_is_scarce() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        event_loop.shared.held_bytes = event_loop.shared.scarce_from;
        let before = event_loop.shared.held_bytes;
        send(&mut event_loop, 0, &streams[0], &"x".repeat(3000));
        assert!(take_turn(&mut event_loop));
        assert_eq!(event_loop.shared.held_bytes - before, 1024);
    }

    #[test]
    fn a_client_is_stalled_after_half_a_second_without_progress() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], "GET /probe");
        while take_turn(&mut event_loop) {}
        // The time of the turn, in which the bytes were read.
        let now = event_loop.shared.now;
        let client = &event_loop.clients[0];
        let is_stalled = |millis| client.is_stalled(now + Duration::from_millis(millis));
        assert!(!is_stalled(499) && is_stalled(500));
    }

    #[test]
    fn turns_end_after_a_millisecond() {
        const CLIENTS: usize = 9;
        let (mut event_loop, address, _stop) = driven(Probe {
            pause: Duration::from_micros(260),
            ..Probe::default()
        });
        let streams = accepted(&mut event_loop, address, CLIENTS);
        // The third turn starts after 520 µs, unless a busy machine interrupts the others.
        for _ in 0..1000 {
            for (key, stream) in streams.iter().enumerate() {
                send(&mut event_loop, key, stream, PROBE);
            }
            let before = event_loop.shared.service.ended;
            event_loop.run_turns();
            let served = event_loop.shared.service.ended - before;
            assert!(served <= 4, "{served} turns of 260 µs");
            while take_turn(&mut event_loop) {}
            if served >= 3 {
                return;
            }
        }
        panic!("all turns together never took a millisecond");
    }

    #[test]
    fn a_turn_ends_when_its_time_is_over_and_the_remaining_requests_wait_for_the_next() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], &PROBE.repeat(40));
        let mut turns = 0;
        let mut answered = 0;
        while event_loop.queue.pop().is_some() {
            // The time is over from the start, so only one request is answered.
            event_loop.shared.now -= LONGER_THAN_A_TURN;
            let next = event_loop.give_turn(0, TURN_TIME);
            turns += 1;
            answered = event_loop.shared.service.ended;
            assert!(answered >= turns, "each turn answers a request");
            if next == Next::AnotherTurn {
                event_loop.queue_turn(0);
            }
        }
        assert_eq!(answered, 40);
        assert!(turns >= 2);
    }

    /// The requests behind the first ones may still be in the client's kernel.
    #[test]
    fn a_client_that_pipelined_just_before_the_stop_can_go_on() {
        static NOW: OnceLock<Instant> = OnceLock::new();
        for (sent_before, closes) in [(1, true), (2, false)] {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            // The time stands still, however busy the machine is.
            event_loop.shared.clock = || *NOW.get_or_init(Instant::now);
            let streams = accepted(&mut event_loop, address, 1);
            send(&mut event_loop, 0, &streams[0], &PROBE.repeat(sent_before));
            while take_turn(&mut event_loop) {}
            event_loop.stop();
            while take_turn(&mut event_loop) {}
            send(&mut event_loop, 0, &streams[0], PROBE);
            while take_turn(&mut event_loop) {}
            let mut received = vec![0; 16 * 1024];
            let count = (&streams[0]).read(&mut received).unwrap();
            let received = String::from_utf8_lossy(&received[..count]);
            assert_eq!(event_loop.shared.service.ended, sent_before + 1);
            assert_eq!(received.contains("Connection: close"), closes, "{received}");
        }
    }

    /// Otherwise its last responses would be lost to a reset when the server ends.
    #[test]
    fn a_client_that_never_stops_pipelining_is_told_at_the_end_that_its_connection_closes() {
        static NOW: OnceLock<Instant> = OnceLock::new();
        // The time stands still, however busy the machine is.
        let at_first: fn() -> Instant = || *NOW.get_or_init(Instant::now);
        let later: fn() -> Instant = || *NOW.get_or_init(Instant::now) + LAST_RESPONSES_TIME;
        for (clock, closes) in [(at_first, 0), (later, 1)] {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            let streams = accepted(&mut event_loop, address, 1);
            event_loop.grace = Duration::ZERO;
            event_loop.shared.now = at_first();
            event_loop.stop();
            event_loop.advance_stop();
            event_loop.shared.clock = clock;
            // Whether or not it is late, every request that has been received gets its response.
            send(&mut event_loop, 0, &streams[0], &PROBE.repeat(4));
            while take_turn(&mut event_loop) {}
            let mut received = vec![0; 16 * 1024];
            let count = (&streams[0]).read(&mut received).unwrap();
            let received = String::from_utf8_lossy(&received[..count]);
            assert_eq!(received.matches("HTTP/1.1 200 OK").count(), 4);
            assert_eq!(received.matches("Connection: close").count(), closes);
        }
    }

    /// A write costs as much as some requests.
    #[test]
    fn responses_of_several_turns_are_sent_together() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], &PROBE.repeat(3));
        for turn in 1..=3 {
            // The time is over from the beginning, so that each turn answers one request.
            event_loop.shared.now -= LONGER_THAN_A_TURN;
            assert!(take_turn(&mut event_loop));
            assert_eq!(event_loop.shared.service.ended, turn);
            let mut received = vec![0; 16 * 1024];
            streams[0].set_nonblocking(turn < 3).unwrap();
            match (&streams[0]).read(&mut received) {
                Ok(count) => {
                    let received = String::from_utf8_lossy(&received[..count]);
                    assert_eq!((turn, received.matches("I'm ok!").count()), (3, 3));
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    const PAGE: &str = "GET /page HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Most of what counts as held may have been read long ago. If the kernel were not asked before memory is
    /// full, a thousand clients that pipeline would get one response in each turn.
    #[test]
    fn while_memory_is_scarce_the_kernel_is_asked_what_it_still_holds() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], PAGE);
        while take_turn(&mut event_loop) {}
        assert!(event_loop.shared.held_bytes > 12 * 1024);
        event_loop.limit_held_bytes();
        assert!(event_loop.shared.held_bytes > 12 * 1024);
        event_loop.shared.scarce_from = 12 * 1024;
        let deadline = Instant::now() + Duration::from_secs(10);
        while event_loop.shared.held_bytes > 0 {
            assert!(Instant::now() < deadline, "waited in vain for an ACK");
            event_loop.shared.now = Instant::now();
            event_loop.limit_held_bytes();
        }
    }

    /// Returns whether the last response is delivered within half a second. The client's kernel sends an ACK
    /// after at most 200 ms, unless the client must read first.
    fn is_delivered(client: &Client<mio::net::TcpStream, ()>) -> bool {
        let end = Instant::now() + Duration::from_millis(500);
        while client.is_reading_last_response() {
            if end < Instant::now() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Otherwise clients that pipeline urgent requests and read slowly would be reset.
    #[test]
    fn while_memory_is_full_an_urgent_request_waits_until_the_client_has_read_its_last_response() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        // The pages fill the client's receive buffer, and then a part of the send buffer.
        while is_delivered(&event_loop.clients[0]) {
            assert!(event_loop.shared.service.ended < 10_000);
            send(&mut event_loop, 0, &streams[0], PAGE);
            while take_turn(&mut event_loop) {}
        }
        let pages = event_loop.shared.service.ended;
        event_loop.shared.scarce_from = 0;
        event_loop.shared.full_from = 0;
        let urgent = "GET /open HTTP/1.1\r\nHost: a\r\n\r\n";
        send(&mut event_loop, 0, &streams[0], urgent);
        while take_turn(&mut event_loop) {}
        assert_eq!(event_loop.shared.service.ended, pages);

        let mut received = vec![0; pages * 12 * 1024];
        (&streams[0]).read_exact(&mut received).unwrap();
        wait_for(&mut event_loop, Token(0), Event::is_writable);
        event_loop.handle_event(0, READABLE);
        while take_turn(&mut event_loop) {}
        assert_eq!(event_loop.shared.service.ended, pages + 1);
    }

    /// Otherwise many clients that do not read would hold more of the kernel's memory than the limit leaves.
    #[test]
    fn at_most_8_kib_of_a_client_are_in_the_kernel_without_counting_as_held() {
        const BURST: usize = 20;
        // The kernel is asked now and then. What it holds then depends on how much the client read before.
        for bursts_read in 0..9 {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            event_loop.shared.large_buffers = LargeBuffers::new(0);
            let streams = accepted(&mut event_loop, address, 1);
            // The kernel then does not enlarge this buffer.
            sockopt::set_socket_recv_buffer_size(&streams[0], 64 * 1024).unwrap();
            send(&mut event_loop, 0, &streams[0], PROBE);
            while take_turn(&mut event_loop) {}
            let response = (&streams[0]).read(&mut [0; 1024]).unwrap();
            let mut read = response;
            let mut in_kernel = 0;
            let mut bursts = 0;
            while in_kernel < 12 * 1024 {
                send(&mut event_loop, 0, &streams[0], &PROBE.repeat(BURST));
                while take_turn(&mut event_loop) {}
                bursts += 1;
                if bursts <= bursts_read {
                    let mut responses = vec![0; BURST * response];
                    (&streams[0]).read_exact(&mut responses).unwrap();
                    read += responses.len();
                }
                let unread = event_loop.shared.service.ended * response - read;
                let held = event_loop.shared.held_bytes;
                let end = Instant::now() + Duration::from_secs(10);
                loop {
                    let readable = ioctl_fionread(&streams[0]).unwrap();
                    in_kernel = unread - usize::try_from(readable).unwrap();
                    if in_kernel <= held + 8192 {
                        break;
                    }
                    // On a busy machine, some of it may be on its way.
                    assert!(Instant::now() < end, "{in_kernel} bytes, {held} held");
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Linux doubles the size that it is told (socket(7)).
    const FACTOR: usize = if cfg!(target_os = "linux") { 2 } else { 1 };

    /// Returns the sizes of the kernel's receive buffer and send buffer for a client.
    fn buffer_sizes(event_loop: &EventLoop<Probe>, key: usize) -> (usize, usize) {
        let stream = event_loop.clients[key].stream();
        let received = sockopt::socket_recv_buffer_size(stream).unwrap();
        let sent = sockopt::socket_send_buffer_size(stream).unwrap();
        (received / FACTOR, sent / FACTOR)
    }

    #[test]
    fn connections_keep_their_first_receive_buffer_while_few_are_open() {
        for (limit, expected) in [(10, 64), (1600, 100)] {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            event_loop.max_clients = limit;
            let _streams = accepted(&mut event_loop, address, expected + 2);
            let keeps_first = |key: &usize| buffer_sizes(&event_loop, *key).0 == 4096;
            let kept = (0..expected + 2).filter(keeps_first).count();
            assert_eq!(kept, expected, "of {limit}");
            assert_eq!(buffer_sizes(&event_loop, expected).0, 2304);
        }
    }

    #[test]
    fn clients_that_pipeline_get_larger_receive_buffers_up_to_a_number() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        event_loop.shared.large_buffers = LargeBuffers::new(2 * 2 * (8192 - 2304));
        let streams = accepted(&mut event_loop, address, 4);
        for round in 0..3 {
            for (key, stream) in streams.iter().enumerate() {
                // The last client sends one request at a time.
                let count = if key == 3 { 1 } else { 60 };
                send(&mut event_loop, key, stream, &PROBE.repeat(count));
                while take_turn(&mut event_loop) {}
                let mut responses = vec![0; 64 * 1024];
                assert_ne!((&*stream).read(&mut responses).unwrap(), 0);
            }
            let expected = if round == 0 {
                [4096; 4]
            } else {
                [8192, 8192, 4096, 4096]
            };
            let sizes = [0, 1, 2, 3].map(|key| buffer_sizes(&event_loop, key));
            assert_eq!(sizes, expected.map(|size| (size, 4096)));
        }
        // A closed connection makes room for another.
        event_loop.close(0);
        for _ in 0..2 {
            send(&mut event_loop, 2, &streams[2], &PROBE.repeat(60));
            while take_turn(&mut event_loop) {}
        }
        assert_eq!(buffer_sizes(&event_loop, 2).0, 8192);
    }

    /// A client on the same machine delays its ACK of a single segment of 64 KiB, and the kernel sends no
    /// other until then.
    #[test]
    fn clients_with_long_responses_get_larger_send_buffers_up_to_a_number() {
        // While memory is scarce, no buffer becomes larger.
        for (scarce_from, large) in [(usize::MAX, 40 * 1024), (0, 4096)] {
            let (mut event_loop, address, _stop) = driven(Probe::default());
            event_loop.shared.scarce_from = scarce_from;
            event_loop.shared.large_buffers = LargeBuffers::new(2 * (40 * 1024 - 4096));
            let streams = accepted(&mut event_loop, address, 3);
            for (key, path) in ["/probe", "/long", "/long"].into_iter().enumerate() {
                let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
                send(&mut event_loop, key, &streams[key], &request);
                while take_turn(&mut event_loop) {}
            }
            let sizes = [0, 1, 2].map(|key| buffer_sizes(&event_loop, key).1);
            assert_eq!(sizes, [4096, large, 4096]);
            // A closed connection makes room for another.
            event_loop.close(1);
            event_loop.handle_event(2, READABLE);
            while take_turn(&mut event_loop) {}
            assert_eq!(buffer_sizes(&event_loop, 2).1, large);
        }
    }

    #[test]
    fn work_waits_for_new_clients_but_not_forever() {
        let (mut event_loop, _, _stop) = driven(Probe::default());
        event_loop.shared.work_queue.push_back(0);
        for _ in 0..64 {
            event_loop.has_accepted = true;
            event_loop.work();
            assert!(!event_loop.shared.work_queue.is_empty());
            assert_eq!(event_loop.timeout(), Some(Duration::ZERO));
        }
        event_loop.work();
        assert!(event_loop.shared.work_queue.is_empty());
    }

    #[test]
    fn work_for_disconnected_clients_is_dropped_and_for_half_closed_clients_comes_last() {
        let work = Duration::from_millis(1);
        let (mut event_loop, address, _stop) = driven(Probe {
            work,
            ..Probe::default()
        });
        let streams = accepted(&mut event_loop, address, 4);
        for (key, stream) in streams.iter().enumerate() {
            send(&mut event_loop, key, stream, PROBE);
        }
        while take_turn(&mut event_loop) {}
        event_loop.shared.now = Instant::now();
        event_loop.queue_due();
        while take_turn(&mut event_loop) {}
        assert_eq!(event_loop.shared.work_queue, [0, 1, 2, 3]);
        event_loop.close_lost(1);
        assert_eq!(event_loop.shared.work_queue, [0, 2, 3]);
        let half_closed = Readiness {
            is_read_closed: true,
            ..READABLE
        };
        event_loop.handle_event(0, half_closed);
        for left in [&[0, 3][..], &[0], &[]] {
            while event_loop.queue.pop().is_some() {}
            event_loop.has_accepted = false;
            event_loop.work();
            assert_eq!(event_loop.shared.work_queue, left);
        }
    }
}
