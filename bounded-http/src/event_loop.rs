//! The event loop: one thread that no client can hold up.
//!
//! It waits for events and decides whose turn it is:
//!
//! ```text
//! poll -> a socket is ready      -> its client is queued for a turn: read, answer, write
//!      -> a reply is due         -> its client is queued
//!      -> a deadline has passed  -> its client is queued: 408, or close
//!      -> the listener is ready  -> accept, and make room if there is none
//!      -> clients are queued     -> their turns, for a millisecond, and then poll again
//!      -> a reply takes work     -> one of them
//!      -> told to stop           -> responses close their connections; end when all are closed
//! ```
//!
//! What a turn does is in `client`, what the bytes mean and what is too much in `connection`, what a
//! request may look like in `request_head`, whose turn is next in `fair_queue`, and which connections
//! make room for others in `room`.

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

use crate::client::{Admission, Client, Evictable, Next, Shared, memory_holders};
use crate::connection::{Buffers, KEEP_ALIVE_TIMEOUT_WHILE_STOPPING};
use crate::date::Date;
use crate::eviction::{
    Eviction, MAX_CHECKS_IN_WAIT, MAX_CHECKS_OVERDUE, MAX_READERS_SKIPPED, MAX_TIME_ON_RESERVE,
    MIN_IDLE_TIME, RESERVE_SIZE, SEARCH_INTERVAL,
};
use crate::fair_queue::FairQueue;
use crate::listener::BACKLOG;
use crate::server::Limits;
use crate::service::Service;
use crate::socket::Readiness;
use crate::timer_queue::TimerQueue;

const LISTENER: Token = Token(usize::MAX - 1);
const STOP: Token = Token(usize::MAX - 2);

/// The most bytes that one read takes.
const READ_SIZE: usize = 16 * 1024;
/// The most events that one poll takes. When it takes fewer, it has taken all that there are.
const MAX_EVENTS: usize = 4096;
/// How long the queued turns last, all together, before the sockets and the listener are looked at
/// again. It is what a new client waits for, twice: until it is accepted, and until its request is
/// seen.
const TURNS_TIME: Duration = Duration::from_millis(1);
/// The most connections that are accepted in one wake-up, of some 15 µs each.
const ACCEPTS_PER_WAKE_UP: usize = 64;
/// How often in a row work waits for newly accepted clients, which may be scrapes: until the longest
/// backlog is accepted. After that, work is done even if clients never stop connecting.
const MAX_WORK_DEFERRALS: usize = BACKLOG as usize / ACCEPTS_PER_WAKE_UP;
/// The least time between two checks_in_wait at all deadlines. A look is at every client.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// How long accepting pauses when there is no descriptor, or no room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many bytes all buffers may hold together, for each connection that there may be, the kernel's
/// buffers of clients that do not read included. Beyond that, connections that hold the most for the
/// longest time are reset.
const HELD_BYTES_PER_CONNECTION: usize = 4 * 1024;
/// The least time between two checks_in_wait at the memory that all clients hold.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_millis(1);
/// The least that is allowed for all connections together.
const MIN_HELD_BYTES: usize = 1024 * 1024;
/// How long the 503s for delayed replies that came too late may take to be sent.
const LAST_RESPONSES_TIME: Duration = Duration::from_millis(500);

/// The state of a running server.
pub struct EventLoop<V: Service> {
    poll: Poll,
    /// `None` once no more connections are accepted, some time after the first signal.
    listener: Option<TcpListener>,
    /// Kept so that the signal handler has somewhere to write.
    _stop_signal: mio::net::UnixStream,
    clients: Slab<Client<TcpStream, V::Memo>>,
    max_clients: usize,
    /// How long delayed replies may go on waiting after the first signal.
    grace: Duration,
    shared: Shared<V>,
    /// The clients that want a turn.
    queue: FairQueue,
    /// The connections above the limit, oldest first.
    reserve: Vec<Reserved>,
    eviction: Eviction,
    /// When the next look at the reserve is one that counts.
    next_reserve_check: Instant,
    /// No place has become free since a request waited in vain for one, so that the next need not.
    is_refusing: bool,
    /// The most bytes that all buffers may hold.
    max_held_bytes: usize,
    /// When all clients are looked at next if they hold much.
    next_memory_check: Instant,
    /// The listener may have more connections than were accepted.
    may_accept: bool,
    /// A client was accepted in this wake-up and has not had a turn.
    has_accepted: bool,
    /// How often in a row work has waited for that.
    work_deferrals: usize,
    accept_paused_until: Option<Instant>,
    /// When deadlines are looked at next.
    next_sweep: Option<Instant>,
    /// When the service wants to be called again.
    next_service_call: Option<Instant>,
    /// How the end proceeds. `None` until the first signal.
    stop: Option<Stop>,
}

/// A connection on the reserve.
struct Reserved {
    key: usize,
    accepted_at: Instant,
    /// At how many checks_in_wait a request was seen to wait for a place.
    checks_in_wait: u32,
    /// The checks_in_wait since its time was over, if it is.
    checks_overdue: Option<u32>,
}

/// The times of an orderly end.
struct Stop {
    /// When the listener is closed. Until then a client that has just connected is served, so that
    /// the time without a listener, in which a restarting service refuses connections, is short.
    listener_closes: Instant,
    /// When delayed replies are replaced with a 503.
    grace_ends: Instant,
    /// When the last of these must be sent. `None` until the grace period is over.
    last_responses_end: Option<Instant>,
}

impl<V: Service> EventLoop<V> {
    /// A server that accepts connections from `listener` until `stop_signal` becomes readable.
    ///
    /// # Errors
    /// When the kernel refuses to poll.
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
                turnovers: 0,
                answer_began_at: None,
                is_stopping: false,
                is_grace_over: false,
            },
            queue: FairQueue::default(),
            reserve: Vec::new(),
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

    /// Serves until the end.
    ///
    /// # Errors
    /// When the kernel refuses to poll. An error of a connection ends that connection only.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_EVENTS);
        // Without clients nothing else would call the service before its first wait.
        self.finish_wake_up();
        while !self.has_ended() {
            match self.poll.poll(&mut events, self.timeout()) {
                // No event is known, so nothing can be judged: a process that was stopped comes here first.
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
            // Of a client with an event that is not known yet, nobody can say that it was too late.
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
            self.close(key, false);
        }
        self.finish_wake_up();
        Ok(())
    }

    /// How long nothing needs to be done unless a socket is ready; `None` means forever.
    fn timeout(&self) -> Option<Duration> {
        if !self.queue.is_empty()
            || !self.shared.work_queue.is_empty()
            || (self.may_accept && self.accept_paused_until.is_none())
        {
            return Some(Duration::ZERO);
        }
        let next_look_at_reserve =
            (!self.reserve.is_empty()).then(|| self.shared.now + SEARCH_INTERVAL);
        let next_memory_check =
            (!self.shared.waiting_for_memory.is_empty()).then_some(self.next_memory_check);
        [
            self.shared.timers.next_due(),
            self.next_sweep,
            self.accept_paused_until,
            next_look_at_reserve,
            next_memory_check,
            self.stop.as_ref().map(|stop| self.next_stop_step(stop)),
            self.next_service_call,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|next| next.saturating_duration_since(Instant::now()))
    }

    /// Adds what an event says about a client, and queues the client for a turn.
    fn handle_event(&mut self, key: usize, readiness: Readiness) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if readiness.is_error {
            return self.close(key, true);
        }
        client.update_readiness(readiness, self.shared.now);
        self.queue_turn(key);
    }

    /// Queues a client for a turn, once.
    fn queue_turn(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key)
            && !client.is_queued
        {
            client.is_queued = true;
            self.queue.push(key, client.finish_tag);
        }
    }

    /// Queues every client that has a reply due.
    fn queue_due(&mut self) {
        while let Some(key) = self.shared.timers.pop_due(self.shared.now) {
            self.queue_turn(key);
        }
    }

    /// Gives turns to queued clients until their time is over.
    fn run_turns(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.shared.now = Instant::now();
        let end = self.shared.now + TURNS_TIME;
        while self.shared.now < end
            && let Some(key) = self.queue.pop()
        {
            let started = self.shared.now;
            let next = self.give_turn(key);
            self.shared.now = Instant::now();
            let used = self.shared.now.saturating_duration_since(started);
            if let Some(client) = self.clients.get_mut(key) {
                client.finish_tag = self.queue.charge(client.finish_tag, used);
            }
            if next == Next::AnotherTurn {
                self.queue_turn(key);
            }
        }
    }

    /// Lets a client do what it can do now. A panic ends its connection and affects no other.
    fn give_turn(&mut self, key: usize) -> Next {
        let Some(client) = self.clients.get_mut(key) else {
            return Next::Wait;
        };
        client.is_queued = false;
        let turn = AssertUnwindSafe(|| client.take_turn(&mut self.shared));
        // The panic hook has reported a panic. An error means that the client has disconnected.
        let next = match catch_unwind(turn) {
            Ok(Ok(next)) => next,
            Ok(Err(_)) => {
                self.close(key, true);
                return Next::Close;
            }
            Err(_) => Next::Close,
        };
        if next == Next::Close {
            self.close(key, false);
        } else {
            let deadline = self.clients.get(key).and_then(Client::deadline);
            self.plan_sweep(deadline);
        }
        next
    }

    /// Queues every client whose deadline has passed, if it is time to look.
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

    /// Has the next sweep come no later than a deadline, but not before the interval is over.
    fn plan_sweep(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            let sweep = deadline.max(self.shared.now + SWEEP_INTERVAL);
            self.next_sweep = Some(self.next_sweep.map_or(sweep, |next| next.min(sweep)));
        }
    }

    /// Does the work of one reply, so that nobody waits for more than one. Work for clients that have
    /// closed their sending side comes last, since most of them have left. A client that was accepted
    /// in this wake-up has not had a turn yet and may be a scrape, so that work waits for it.
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
            return self.close(key, true);
        }
        client.work();
        self.queue_turn(key);
    }

    /// Accepts connections that the kernel has completed, up to so many, and as long as fewer than `limit`
    /// are open. Those above `--max-connections` go to the reserve.
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
                    // The client has disconnected already, or a signal came.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    // Something else in the process, or in the system, has taken the descriptors.
                    // Without room, idle connections would keep everybody out, /faults included.
                    _ if is_out_of_descriptors(&error)
                        && (self.evict_from_reserve() || self.evict()) => {}
                    _ => {
                        let message = format!("cannot accept connections for now: {error}");
                        self.shared.service.report(&message);
                        self.accept_paused_until = Some(now + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Adds a new connection to the clients.
    fn insert(&mut self, mut stream: TcpStream, peer: SocketAddr) {
        let now = self.shared.now;
        // Those that wait longer come first.
        let admission = if self.has_free_slot() && self.reserve.is_empty() {
            Admission::Admitted
        } else {
            Admission::Waiting
        };
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
            self.reserve.push(Reserved {
                key,
                accepted_at: now,
                checks_in_wait: 0,
                checks_overdue: None,
            });
        }
        self.shared.service.connections_changed(self.clients.len());
    }

    /// Whether fewer connections are open than the limit allows, the reserve apart.
    fn has_free_slot(&self) -> bool {
        self.clients.len() - self.reserve.len() < self.max_clients
    }

    /// Admits connections from the reserve as far as there is room, refuses their requests when they
    /// have waited long enough, and lets connections turn over while others wait.
    fn serve_reserve(&mut self) {
        let is_check_due = self.next_reserve_check <= self.shared.now;
        if is_check_due {
            self.next_reserve_check = self.shared.now + SEARCH_INTERVAL;
        }
        let now = self.shared.now;
        let mut index = 0;
        while let Some(reserved) = self.reserve.get(index) {
            let (key, accepted_at) = (reserved.key, reserved.accepted_at);
            let waits = self.clients[key].waits_for_admission(&self.shared);
            if self.has_free_slot() || (waits && self.evict()) {
                // Making room may have closed connections on the reserve, too.
                self.reserve.retain(|reserved| reserved.key != key);
                self.clients[key].set_admission(Admission::Admitted);
                self.queue_turn(key);
                continue;
            }
            let is_over = accepted_at + MAX_TIME_ON_RESERVE <= now;
            if is_over && self.ends_on_reserve(index, waits, is_check_due) {
                self.close(key, false);
                continue;
            }
            if waits {
                let checks_in_wait = &mut self.reserve[index].checks_in_wait;
                *checks_in_wait += u32::from(is_check_due);
                if self.is_refusing || *checks_in_wait > MAX_CHECKS_IN_WAIT || is_over {
                    self.is_refusing = true;
                    self.clients[key].set_admission(Admission::Refused);
                    self.queue_turn(key);
                }
            }
            index += 1;
        }
        // As long as others wait for places, some of those who have one give theirs up.
        let is_full = !self.has_free_slot();
        self.shared.turnovers = if is_full && (self.may_accept || !self.reserve.is_empty()) {
            let left = self.shared.turnovers;
            self.eviction.grant_turnovers(left, now)
        } else {
            0
        };
    }

    /// Whether a connection whose time on the reserve is over can be closed: what was received by now
    /// is answered first, within some checks_in_wait.
    fn ends_on_reserve(&mut self, index: usize, waits: bool, is_check_due: bool) -> bool {
        let Reserved {
            key,
            checks_overdue,
            ..
        } = self.reserve[index];
        let client = &mut self.clients[key];
        if let Some(checks_in_wait) = checks_overdue {
            self.reserve[index].checks_overdue = Some(checks_in_wait + u32::from(is_check_due));
            return checks_in_wait >= MAX_CHECKS_OVERDUE
                || (client.evictable().is_some() && !client.is_queued);
        }
        let has_unread = client.has_unread(&mut self.shared);
        let is_over = !(has_unread || waits || client.is_queued);
        self.reserve[index].checks_overdue = Some(0);
        self.queue_turn(key);
        is_over
    }

    /// Closes the connection that has been idle longest, among those that can go. Gives whether there
    /// was one.
    fn evict(&mut self) -> bool {
        let mut reading = 0;
        for _ in 0..2 {
            while let Some((evictable, key)) = self.eviction.next_candidate() {
                let Some(client) = self.clients.get_mut(key) else {
                    continue;
                };
                if client.evictable() != Some(evictable)
                    || client.admission() != Admission::Admitted
                {
                    continue;
                }
                if client.has_unread(&mut self.shared) {
                    self.queue_turn(key);
                    continue;
                }
                if client.is_reading_last_response() {
                    reading += 1;
                    if reading == MAX_READERS_SKIPPED {
                        return false;
                    }
                    continue;
                }
                self.close(key, false);
                return true;
            }
            let admitted = (self.clients.iter())
                .filter(|(_, client)| client.admission() == Admission::Admitted);
            self.eviction.search(admitted, self.shared.now);
        }
        false
    }

    /// Closes a connection on the reserve that has asked for nothing, or read nothing of its responses,
    /// for a moment. Gives whether there was one. Neither bytes that are no request nor a part of one
    /// keep a place there.
    fn evict_from_reserve(&mut self) -> bool {
        let now = self.shared.now;
        for index in 0..self.reserve.len() {
            let Reserved {
                key, accepted_at, ..
            } = self.reserve[index];
            let client = &mut self.clients[key];
            let since = match client.evictable() {
                Some(Evictable::Idle(_)) => Some(accepted_at),
                Some(Evictable::HalfClosed(since)) => Some(since),
                None => client.stalled_since(),
            };
            if since.is_none_or(|since| now < since + MIN_IDLE_TIME) {
                continue;
            }
            if client.has_unread(&mut self.shared) && client.has_request() {
                self.queue_turn(key);
                continue;
            }
            self.close(key, false);
            return true;
        }
        false
    }

    /// Lets clients go on that wait until all connections together hold less. Resets connections if
    /// they hold too much, or if others wait: those first that have held the most for the longest time
    /// without progress.
    fn limit_held_bytes(&mut self) {
        let now = self.shared.now;
        let is_over = self.shared.held_bytes > self.max_held_bytes;
        let is_full = self.shared.held_bytes >= self.shared.full_from;
        if is_over || (is_full && self.next_memory_check <= now) {
            for (_, client) in &mut self.clients {
                client.check_delivery(&mut self.shared);
            }
            self.reset_stalled();
            // Others wait until the next check, which takes a tenth of the time at the most.
            let took = now.elapsed();
            self.next_memory_check = now + (10 * took).max(MEMORY_CHECK_INTERVAL);
        }
        if self.shared.held_bytes < self.shared.full_from {
            for key in mem::take(&mut self.shared.waiting_for_memory) {
                if let Some(client) = self.clients.get_mut(key) {
                    client.stop_waiting_for_memory();
                    self.queue_turn(key);
                }
            }
        }
    }

    fn reset_stalled(&mut self) {
        if self.shared.held_bytes < self.shared.full_from {
            return;
        }
        let now = self.shared.now;
        let mut memory_holders = memory_holders(self.clients.iter(), now);
        // Some more than necessary, so that the next look at all clients is not soon.
        let enough = self.shared.scarce_from;
        let mut count = 0_u32;
        while self.shared.held_bytes > enough
            && let Some((held_for, key)) = memory_holders.pop()
        {
            // A client that makes progress is spared unless the limit itself is exceeded.
            if held_for.is_stalled() || self.shared.held_bytes > self.max_held_bytes {
                self.close(key, true);
                count += 1;
            }
        }
        if count > 0 {
            let message = format!(
                "reset {count} connections of clients that do not read their responses, or send \
                 only parts of requests: all buffers together may hold {} bytes",
                self.max_held_bytes
            );
            self.shared.service.report(&message);
        }
    }

    /// Closes a connection. `is_lost` says that it has failed, and responses on their way with it.
    fn close(&mut self, key: usize, is_lost: bool) {
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
        // The service may panic while it is told how exchanges have ended.
        let close = AssertUnwindSafe(|| client.close(is_lost, &mut self.shared));
        let _ = catch_unwind(close);
        self.shared.service.connections_changed(self.clients.len());
        self.accept_paused_until = None;
        self.shrink();
    }

    /// Keeps memory in proportion to the clients that are here, however many have come and gone.
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

    /// Lets the service do what it does before the server waits.
    fn finish_wake_up(&mut self) {
        let again = self.shared.service.before_wait();
        self.next_service_call = again.map(|time| self.shared.now + time);
    }

    /// Begins the end: every client gets the responses to what it has sent, and then its connection is
    /// closed.
    fn stop(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let now = self.shared.now;
        // The clients that are there now may be about to connect again: they have just been told to.
        let listener_closes = if self.clients.is_empty() {
            now
        } else {
            now + KEEP_ALIVE_TIMEOUT_WHILE_STOPPING
        };
        self.stop = Some(Stop {
            listener_closes,
            grace_ends: now + self.grace,
            last_responses_end: None,
        });
        self.shared.is_stopping = true;
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.clients[key].stop(now);
            let deadline = self.clients[key].deadline();
            self.plan_sweep(deadline);
            self.queue_turn(key);
        }
    }

    /// Does what the end has come to.
    fn advance_stop(&mut self) {
        let Some(stop) = &mut self.stop else {
            return;
        };
        let now = self.shared.now;
        let is_grace_over = stop.grace_ends <= now && stop.last_responses_end.is_none();
        if is_grace_over {
            stop.last_responses_end = Some(now + LAST_RESPONSES_TIME);
        }
        if self.listener.is_some() && stop.listener_closes <= now {
            // The last chance for connections that the kernel has completed, whatever the limit.
            self.may_accept = true;
            self.accept_paused_until = None;
            self.accept(BACKLOG.into(), usize::MAX);
            self.listener = None;
            self.may_accept = false;
        }
        if is_grace_over {
            self.shared.is_grace_over = true;
            self.shared.work_queue.clear();
            let pending = self
                .clients
                .iter()
                .filter(|(_, client)| client.reply_due().is_some());
            let pending: Vec<usize> = pending.map(|(key, _)| key).collect();
            for key in pending {
                self.queue_turn(key);
            }
        }
    }

    /// When the end proceeds without an event.
    fn next_stop_step(&self, stop: &Stop) -> Instant {
        if self.listener.is_some() {
            stop.listener_closes
        } else {
            stop.last_responses_end.unwrap_or(stop.grace_ends)
        }
    }

    fn has_ended(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| {
            let last_responses_end = stop.last_responses_end;
            last_responses_end.is_some_and(|end| end <= self.shared.now)
                || (self.listener.is_none() && self.clients.is_empty())
        })
    }
}

/// The events that are asked for. A read may stop at urgent data, which Linux announces (tcp(7)).
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLIENT_INTEREST: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLIENT_INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Whether the process or the system has no descriptor left.
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
    use rustix::net::sockopt;

    use super::*;
    use crate::client::TURN_TIME;
    use crate::http::Status;
    use crate::reply::Reply;
    use crate::request::Request;
    use crate::service::Ended;

    /// Answers /probe, panics at /panic, and counts what has ended.
    #[derive(Default)]
    struct Probe {
        work: Duration,
        ended: usize,
        open: usize,
    }

    impl Service for Probe {
        type Memo = ();

        fn answer(&mut self, request: &Request<'_>) -> Reply {
            match request.path() {
                "/probe" => Reply::text(Status::Ok, "I'm ok!").work(self.work),
                "/open" => Reply::text(Status::Ok, format!("{} open", self.open)),
                path => panic!("{path}"),
            }
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
        let mut answer = vec![0; 16 * 1024];
        let count = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    #[test]
    fn a_panic_closes_its_connection_and_harms_no_other() {
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
            let timeout = Some(Duration::from_secs(10));
            stream.set_read_timeout(timeout).unwrap();
            stream
        };

        let other = connect();
        assert!(ask(&other, "/probe").ends_with("I'm ok!"));
        for _ in 0..3 {
            assert_eq!(ask(&connect(), "/panic"), "", "closed without an answer");
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
    fn the_service_is_called_before_the_first_wait_and_when_it_wants_to_be() {
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
        // It stops itself, and no client comes.
        let listener = crate::listener::listen("127.0.0.1:0").unwrap();
        let (stop_signal, stop) = UnixStream::pair().unwrap();
        let ticks = Ticks(0, stop);
        let mut event_loop = EventLoop::new(listener, stop_signal, ticks, &limits(10)).unwrap();
        event_loop.run().unwrap();
        assert!(event_loop.shared.service.0 >= 3);
    }

    /// An event loop that does what it is told and no more, its address, and what would stop it.
    fn driven(service: Probe) -> (EventLoop<Probe>, SocketAddr, UnixStream) {
        let listener = crate::listener::listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop_signal, stop) = UnixStream::pair().unwrap();
        let event_loop = EventLoop::new(listener, stop_signal, service, &limits(10));
        (event_loop.unwrap(), address, stop)
    }

    /// The other ends of so many clients, whose keys count from 0.
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

    /// Waits until the poll says this about a socket: what was sent may take a while to arrive.
    fn wait_for(event_loop: &mut EventLoop<Probe>, token: Token, condition: fn(&Event) -> bool) {
        let mut events = Events::with_capacity(16);
        let is_it = |event: &Event| event.token() == token && condition(event);
        while !events.iter().any(is_it) {
            let timeout = Some(Duration::from_secs(10));
            event_loop.poll.poll(&mut events, timeout).unwrap();
            assert!(!events.is_empty(), "waited in vain");
        }
    }

    const READABLE: Readiness = Readiness {
        is_readable: true,
        is_read_closed: false,
        is_writable: false,
        is_urgent: false,
        is_error: false,
    };
    const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Has a client send something in one piece, and queues it for a turn.
    fn send(event_loop: &mut EventLoop<Probe>, key: usize, mut stream: &TcpStream, bytes: &str) {
        stream.write_all(bytes.as_bytes()).unwrap();
        wait_for(event_loop, Token(key), Event::is_readable);
        event_loop.handle_event(key, READABLE);
    }

    /// Gives one turn to the client that is next. Gives whether there was one.
    fn take_turn(event_loop: &mut EventLoop<Probe>) -> bool {
        let Some(key) = event_loop.queue.pop() else {
            return false;
        };
        if event_loop.give_turn(key) == Next::AnotherTurn {
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
            assert!(take_turn(&mut event_loop), "a full read may not be all");
        }
        assert!(!take_turn(&mut event_loop));
        assert_eq!(event_loop.clients.len(), 1);
    }

    #[test]
    fn a_client_that_has_been_read_from_is_not_asked_again() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], PROBE);
        assert!(take_turn(&mut event_loop));
        assert!(!take_turn(&mut event_loop));
    }

    /// A reset may be found by a read or a write before the event that tells of it is handled.
    #[test]
    fn a_client_that_is_found_to_have_disconnected_is_closed() {
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

    #[test]
    fn a_turn_ends_in_time_and_the_remaining_requests_wait_for_the_next() {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], &PROBE.repeat(40));
        let mut turns = 0;
        let mut answered = 0;
        while event_loop.queue.pop().is_some() {
            // The time is over from the beginning, so that one request is answered, and no more.
            event_loop.shared.now -= 2 * TURN_TIME;
            let next = event_loop.give_turn(0);
            turns += 1;
            answered = event_loop.shared.service.ended;
            assert!(answered >= turns, "each turn answers something");
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
    fn no_work_is_done_for_clients_that_disconnected_and_that_of_half_closed_ones_comes_last() {
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
        event_loop.close(1, true);
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
