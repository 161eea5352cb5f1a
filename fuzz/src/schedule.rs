//! Simulates everything that can happen to a few clients, in any order: bytes in any pieces, readers at
//! any pace, delayed replies and work, disconnects of every kind, a suspended process, a limit on
//! connections, scarce memory, and the shutdown of the service.
//!
//! [`Client`] has a simulated socket. This module calls it in the same order as the event loop, but
//! without a poll and with a clock that the input advances.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use bounded_http::Service;
use bounded_http::internals::client::{
    Admission, Client, Evictable, LargeBuffers, Next, STALL_TOLERANCE, Shared, memory_holders,
};
use bounded_http::internals::connection::{
    KEEP_ALIVE_TIMEOUT, KEEP_ALIVE_TIMEOUT_WHILE_STOPPING, LINGERING_TIMEOUT, MAX_UNSENT_BYTES,
    WRITE_TIMEOUT,
};
use bounded_http::internals::eviction::{
    MAX_CHECKS_IN_WAIT, MAX_CHECKS_OVERDUE, MAX_TIME_ON_RESERVE, SEARCH_INTERVAL, candidates,
};
use bounded_http::internals::fair_queue::FairQueue;
use bounded_http::internals::listener::{LARGE_SEND_BUFFER_SIZE, RECEIVE_BUFFER_SIZE};
use bounded_http::internals::request_head::MAX_HEAD_BYTES;
use tiny_probe::app::{App, Exchange};
use tiny_probe::config::{Config, FaultInjection, ProbeSettings};
use tiny_probe::metrics::{Format, InForce};
use tiny_probe::shutdown::GRACE_PERIOD;

use super::responses::read;
use super::simulated_socket::{Kernel, SimulatedSocket};
use crate::drive::{Outcome, drive};
use crate::request_heads::REQUEST_HEADS;

/// The maximum number of simultaneous clients.
const PEERS: usize = 4;
/// The maximum number of bytes that one read takes.
const READ_SIZE: usize = 16 * 1024;
/// The maximum number of bytes that all clients send, and of requests that they pipeline. This is
/// enough to reach every limit, and does not take long.
const MAX_BYTES_SENT: usize = 128 * 1024;
const MAX_REQUESTS: usize = 600;
/// The maximum number of wake-ups in [`World::settle`]. If the limit on memory is lower than what one client holds,
/// each request waits for [`STALL_TOLERANCE`], with a check every [`SEARCH_INTERVAL`]. A fifth is added for everything
/// else.
const MAX_STEPS: u128 =
    6 * MAX_REQUESTS as u128 * STALL_TOLERANCE.as_millis() / SEARCH_INTERVAL.as_millis() / 5;
/// The largest response is much smaller than this.
const MAX_RESPONSE_BYTES: usize = 32 * 1024;
/// More wake-ups than sending all responses through the smallest queue takes.
const MAX_WAKE_UPS: usize = 50_000;
/// The maximum that the buffers of one client may hold, including the kernel's.
const MAX_HELD_BYTES: usize = MAX_HEAD_BYTES
    + READ_SIZE
    + 2 * (MAX_UNSENT_BYTES + MAX_RESPONSE_BYTES)
    + 2 * LARGE_SEND_BUFFER_SIZE
    + 2 * RECEIVE_BUFFER_SIZE;
/// Enough for one large send buffer.
const MAX_LARGE_BUFFER_BYTES: usize = 2 * LARGE_SEND_BUFFER_SIZE;
/// The maximum memory of a client apart from its buffers.
const MAX_BYTES_BESIDE_BUFFERS: usize = 1024;
/// The maximum number of consecutive turns without progress: one may read nothing, and another may find
/// that there is no more.
const MAX_IDLE_TURNS: usize = 3;
/// The same as in the event loop.
const LAST_RESPONSES_TIME: Duration = Duration::from_millis(500);
/// A turn uses the time at which it began, or at which its last response was ready.
const TOLERANCE: Duration = Duration::from_millis(5);
/// A reset this soon after a response always precedes the confirmation that the client has received it.
const SURELY_UNCONFIRMED: Duration = Duration::from_millis(100);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
    /// The time that passes between two readings of the clock.
    static TICK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn clock() -> Instant {
    let now = NOW.get() + TICK.get();
    NOW.set(now);
    now
}

/// Returns the time without advancing it.
fn time() -> Instant {
    NOW.get()
}

/// Runs the simulation. The input consists of pairs of bytes, an action and an amount, with comments
/// between them, so that it can be written by hand. `freed_by` measures how much memory a function
/// frees.
pub fn check(mut input: &[u8], freed_by: fn(&mut dyn FnMut()) -> usize) {
    let mut world = World::new(freed_by);
    world.select(0);
    while let [what, rest @ ..] = input {
        input = rest;
        match what {
            b'#' => {
                let end = input.iter().position(|byte| *byte == b'\n');
                input = &input[end.unwrap_or(input.len())..];
                continue;
            }
            b' ' | b'\n' => continue,
            _ => {}
        }
        let [how_much, rest @ ..] = input else { break };
        input = rest;
        let raw;
        (raw, input) = match what % 32 {
            14 => input.split_at(amount(*how_much).min(input.len())),
            _ => (&[][..], input),
        };
        world.happen(*what, amount(*how_much), raw);
    }
    world.settle();
    world.check_records();
}

/// Converts the second byte of a pair to a number. Digits have their own value.
fn amount(how_much: u8) -> usize {
    usize::from(how_much ^ b'0')
}

/// The clients, their sockets, and the state of the event loop.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is independent of the others"
)]
struct World {
    shared: Shared<App>,
    peers: [Option<Peer>; PEERS],
    selected: usize,
    queue: FairQueue,
    max_clients: usize,
    max_held_bytes: usize,
    /// The process is suspended while time passes.
    is_suspended: bool,
    /// The process was suspended after its poll had returned.
    has_polled: bool,
    is_signaled: bool,
    next_reserve_check: Instant,
    next_memory_check: Instant,
    is_refusing: bool,
    grace_ends: Option<Instant>,
    has_ended: bool,

    bytes_sent: usize,
    requests_sent: usize,
    /// The position of the urgent byte in the bytes that are sent next.
    urgent: Option<usize>,

    /// Another app that answers the same requests, for comparison.
    oracle: App,
    tally: Tally,
    freed_by: fn(&mut dyn FnMut()) -> usize,
}

/// One client.
struct Peer {
    kernel: Rc<RefCell<Kernel>>,
    /// Until the connection is accepted.
    socket: Option<SimulatedSocket>,
    /// From then on.
    client: Option<Client<SimulatedSocket, Exchange>>,
    accepted_at: Instant,
    /// The numbers of checks of the reserve that found a request waiting for a slot, and of those after
    /// its time on the reserve was over.
    checks_in_wait: u32,
    checks_overdue: Option<u32>,
    /// Responses may have closed the connection to make room.
    may_turn_over: bool,
    was_on_reserve: bool,
    turns_without_progress: usize,
    /// When its last response was ready, if that was delayed and the client had closed its sending
    /// side.
    unconfirmed_since: Option<Instant>,
}

/// Why a connection is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// A turn has returned `Next::Close`.
    Turn,
    /// The connection has failed.
    Lost,
    /// The connection is evicted.
    Evicted(Evictable),
    /// Its time on the reserve is over.
    ReserveTimeOver { is_served: bool },
    /// It holds the most memory, and all together hold too much.
    HoldsTooMuch,
    /// The service has ended.
    Stop,
}

/// The responses that were written to one client.
#[derive(Default)]
struct Responses {
    statuses: Vec<u16>,
    /// The number of requests in the bytes that the client has sent.
    understood: usize,
    /// The last response says `Connection: close`.
    has_closed: bool,
    /// The last response is a 408.
    has_timed_out: bool,
}

/// The responses that were written to all clients, to compare them with the metrics.
#[derive(Default)]
struct Tally {
    /// The number of written responses by status.
    written: BTreeMap<u16, usize>,
    /// The number of requests that must be recorded as 499.
    disconnects: usize,
    /// The number of written responses that must be recorded as 499.
    withdrawn: usize,
    /// The number of written responses that may be recorded as 499.
    may_be_withdrawn: usize,
    /// Some recorded responses may not have been written.
    has_unwritten: bool,
}

impl Tally {
    fn add(&mut self, peer: &Peer, responses: &Responses, is_lost: bool, is_pending: bool) {
        let kernel = peer.kernel.borrow();
        for status in &responses.statuses {
            *self.written.entry(*status).or_default() += 1;
        }
        self.has_unwritten |= kernel.refused_writes > 0 || kernel.has_failed_early;
        self.disconnects += usize::from(is_pending);
        if is_lost && let Some(since) = peer.unconfirmed_since {
            if NOW.get() < since + SURELY_UNCONFIRMED && kernel.refused_writes == 0 {
                self.withdrawn += 1;
            } else {
                self.may_be_withdrawn += 1;
            }
        }
    }
}

/// The actions.
impl World {
    fn new(freed_by: fn(&mut dyn FnMut()) -> usize) -> Self {
        let config = Config {
            fault_injection: FaultInjection::On,
            probe: ProbeSettings {
                work: Duration::from_nanos(1),
                ..ProbeSettings::default()
            },
            random_seed: Some(1),
            ..Config::default()
        };
        TICK.set(Duration::ZERO);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let mut shared = Shared {
            scarce_from: usize::MAX / 2,
            large_buffers: LargeBuffers::new(MAX_LARGE_BUFFER_BYTES),
            ..Shared::new(App::new(&config), clock, READ_SIZE)
        };
        shared.date.set(time);
        let now = shared.now;
        Self {
            shared,
            peers: Default::default(),
            selected: 0,
            queue: FairQueue::default(),
            max_clients: PEERS,
            max_held_bytes: usize::MAX,
            is_suspended: false,
            has_polled: false,
            is_signaled: false,
            next_reserve_check: now,
            next_memory_check: now,
            is_refusing: false,
            grace_ends: None,
            has_ended: false,
            bytes_sent: 0,
            requests_sent: 0,
            urgent: None,
            oracle: App::new(&config),
            tally: Tally::default(),
            freed_by,
        }
    }

    fn happen(&mut self, what: u8, count: usize, raw: &[u8]) {
        let square = count * count;
        let tenths = Duration::from_millis(100) * count as u32;
        match what % 32 {
            // a: selects the client that acts next. It connects if it is not connected.
            1 => self.select(count % PEERS),
            // b: the head of a request with a body; v sends the body.
            2 => self.send_request(&format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {square}\r\n\r\n"
            )),
            // c: a last request, whose response is delayed by this many tenths of a second.
            3 => self.send_request(&format!(
                "GET /probe?delay={}ms HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                tenths.as_millis()
            )),
            // d: a request whose response is delayed by this many tenths of a second.
            4 => self.send_request(&format!(
                "GET /probe?delay={}ms HTTP/1.1\r\nHost: a\r\n\r\n",
                tenths.as_millis()
            )),
            // e: a request with `Expect: 100-continue`.
            5 => self.send_request(&format!(
                "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {square}\r\n\r\n"
            )),
            // f: the client closes its sending side (even) or its socket (odd).
            6 => self.with_kernel(|kernel| kernel.finish(count % 2 == 1)),
            // g, h, m, p: this many requests.
            7 => self.send_requests("GET /", count),
            8 => self.send_requests("HEAD /metrics", count),
            13 => self.send_requests("GET /metrics", count),
            // This response takes work.
            16 => self.send_requests("GET /probe", count),
            // i: an unusual request.
            9 => self.send_request(REQUEST_HEADS[count % REQUEST_HEADS.len()].1),
            // j: sets whether the kernel accepts whole writes (odd) if it has any space.
            10 => self.with_kernel(|kernel| kernel.takes_whole_writes = count % 2 == 1),
            // k: the client resets the connection.
            11 => self.with_kernel(Kernel::reset),
            // l: sets the limit on memory. With none, it would be full even if nobody held any.
            12 => {
                let count = count.max(1);
                self.max_held_bytes = (count * 4096).max(MAX_HELD_BYTES);
                self.shared.scarce_from = count * 2048;
                self.shared.full_from = count * 3072;
            }
            // n: sends this many bytes of the input. They contain no equals sign, so they cannot ask
            // for expensive work.
            14 => {
                let raw: Vec<u8> = raw.iter().copied().filter(|byte| *byte != b'=').collect();
                self.send(&raw);
            }
            // o: sets how many bytes the kernel's send queue accepts.
            15 => self.with_kernel(|kernel| {
                // The server decides when to close by the room that the kernel has then.
                if kernel.half_close.is_none() {
                    kernel.send_queue = (count * 512).max(512);
                }
            }),
            // q: evicts a connection.
            17 if !self.is_suspended => drop(self.evict()),
            // r: sets how much the client reads at a time.
            18 => self.with_kernel(|kernel| kernel.pace = Some(square * 16)),
            // s: the service is told to stop.
            19 => self.is_signaled = true,
            // t, ~: time passes.
            20 => self.pass_time(tenths),
            30 => self.pass_time(100 * tenths),
            // u: makes a byte of the next ones urgent.
            21 => self.urgent = Some(count),
            // v: meaningless bytes.
            22 => self.send(&b"x".repeat(square)),
            // w: resumes the suspended process (0), or lets it take this many turns.
            23 if count == 0 => self.is_suspended = false,
            23 if self.is_suspended && !self.has_ended => {
                for _ in 0..count % 16 {
                    self.wake_up(1);
                }
            }
            // x: sets the maximum size of a read.
            24 => self.with_kernel(|kernel| {
                kernel.max_read = if count == 0 { usize::MAX } else { square };
            }),
            // y: grants turnovers.
            25 => {
                self.shared.turnovers = count;
                for peer in self.peers.iter_mut().flatten() {
                    peer.may_turn_over |= count > 0;
                }
            }
            // z: suspends the process, before (even) or after (odd) its poll has returned.
            26 if !self.has_ended => {
                self.is_suspended = true;
                if count % 2 == 1 && !self.has_polled {
                    self.poll();
                    self.has_polled = true;
                }
            }
            // [, ]: sends the first bytes of a request, or the rest.
            27 => self.send(&REQUEST[..count.min(REQUEST.len())]),
            29 => self.send(&REQUEST[count.min(REQUEST.len())..]),
            // |: sets how many microseconds pass between two readings of the clock.
            28 => TICK.set(Duration::from_micros(count as u64)),
            // _: sets the connection limit.
            31 => self.max_clients = count.max(1),
            _ => {}
        }
        self.run_until_quiet();
    }

    fn select(&mut self, key: usize) {
        self.selected = key;
        let no_listener = self.has_ended
            || self.grace_ends.is_some_and(|end| {
                NOW.get() + GRACE_PERIOD >= end + KEEP_ALIVE_TIMEOUT_WHILE_STOPPING
            });
        if self.peers[key].is_some() || no_listener {
            return;
        }
        let (socket, kernel) = SimulatedSocket::new(time);
        self.peers[key] = Some(Peer {
            kernel,
            socket: Some(socket),
            client: None,
            accepted_at: NOW.get(),
            checks_in_wait: 0,
            checks_overdue: None,
            may_turn_over: self.shared.turnovers > 0,
            was_on_reserve: false,
            turns_without_progress: 0,
            unconfirmed_since: None,
        });
    }

    fn with_kernel(&mut self, act: impl FnOnce(&mut Kernel)) {
        if let Some(peer) = &self.peers[self.selected] {
            act(&mut peer.kernel.borrow_mut());
        }
    }

    fn send_request(&mut self, request: &str) {
        self.send(request.as_bytes());
    }

    fn send_requests(&mut self, what: &str, count: usize) {
        let count = count.min(MAX_REQUESTS - self.requests_sent);
        self.requests_sent += count;
        self.send_request(&format!("{what} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(count));
    }

    fn send(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(MAX_BYTES_SENT - self.bytes_sent)];
        self.bytes_sent += bytes.len();
        let urgent = self.urgent.take();
        self.with_kernel(|kernel| kernel.send(bytes, urgent));
    }

    /// Lets time pass. Unless the process is suspended, it wakes up for everything that falls due.
    fn pass_time(&mut self, time: Duration) {
        let end = NOW.get() + time;
        self.run_until_quiet();
        while !self.is_suspended
            && !self.has_ended
            && let Some(next) = self.next_wake_up()
            && next < end
        {
            NOW.set(NOW.get().max(next));
            self.run_until_quiet();
        }
        NOW.set(NOW.get().max(end));
    }

    /// Lets every client read its responses, until all have disconnected.
    fn settle(&mut self) {
        self.is_suspended = false;
        for peer in self.peers.iter().flatten() {
            peer.kernel.borrow_mut().pace = None;
        }
        self.run_until_quiet();
        let mut steps = 0;
        while !self.has_ended && self.peers.iter().any(Option::is_some) {
            let next = self.next_wake_up().expect("nothing ends this");
            NOW.set(NOW.get().max(next));
            self.run_until_quiet();
            steps += 1;
            assert!(steps < MAX_STEPS, "clients that do nothing stay forever");
        }
    }
}

/// The event loop's part. The methods have the same names as there.
impl World {
    fn client(&mut self, key: usize) -> Option<&mut Client<SimulatedSocket, Exchange>> {
        self.peers[key].as_mut()?.client.as_mut()
    }

    fn clients(&self) -> impl Iterator<Item = (usize, &Client<SimulatedSocket, Exchange>)> + Clone {
        let clients = self.peers.iter().map(|peer| peer.as_ref()?.client.as_ref());
        clients
            .enumerate()
            .filter_map(|(key, client)| Some((key, client?)))
    }

    fn run_until_quiet(&mut self) {
        let mut wake_ups = 0;
        loop {
            for peer in self.peers.iter().flatten() {
                peer.kernel.borrow_mut().keep_pace();
            }
            if self.is_suspended || self.has_ended || !self.has_something_to_do() {
                break;
            }
            self.wake_up(PEERS);
            wake_ups += 1;
            assert!(wake_ups < MAX_WAKE_UPS, "it never waits");
        }
        if !self.is_suspended {
            self.check_wait();
        }
    }

    fn has_something_to_do(&self) -> bool {
        let has_event = |peer: &Peer| peer.socket.is_some() || peer.kernel.borrow().has_event();
        self.has_polled
            || self.is_signaled
            || self.peers.iter().flatten().any(has_event)
            || !self.queue.is_empty()
            || !self.shared.work_queue.is_empty()
            || self.next_wake_up().is_some_and(|next| next <= NOW.get())
    }

    /// Returns when something falls due next.
    fn next_wake_up(&self) -> Option<Instant> {
        let deadlines = self.clients().filter_map(|(_, client)| client.deadline());
        let is_reserved = |client: &Client<_, _>| client.admission() != Admission::Admitted;
        let next_reserve_check = (self.clients().any(|(_, client)| is_reserved(client)))
            .then_some(self.next_reserve_check);
        let next_memory_check =
            (!self.shared.waiting_for_memory.is_empty()).then_some(self.next_memory_check);
        let stop = self.grace_ends.map(|end| {
            if self.shared.is_grace_over {
                end + LAST_RESPONSES_TIME
            } else {
                end
            }
        });
        deadlines
            .chain(next_reserve_check)
            .chain(next_memory_check)
            .chain(self.shared.timers.next_due())
            .chain(stop)
            .min()
    }

    fn wake_up(&mut self, max_turns: usize) {
        if !std::mem::take(&mut self.has_polled) {
            self.poll();
        }
        self.run_turns(max_turns);
        self.limit_held_bytes();
        self.advance_stop();
        self.work();
    }

    fn poll(&mut self) {
        self.shared.now = clock();
        for key in 0..PEERS {
            let readiness = match &self.peers[key] {
                Some(peer) if peer.client.is_some() => peer.kernel.borrow_mut().poll(),
                _ => None,
            };
            match readiness {
                Some(readiness) if readiness.is_error => self.close(key, Ending::Lost),
                Some(readiness) => {
                    let now = self.shared.now;
                    let client = self.client(key).expect("it has an event");
                    client.update_readiness(readiness, now);
                    self.queue_turn(key);
                }
                None => {}
            }
        }
        if std::mem::take(&mut self.is_signaled) && self.grace_ends.is_none() {
            self.stop();
        }
        self.accept();
        self.serve_reserve();
        while let Some(key) = self.shared.timers.pop_due(self.shared.now) {
            self.queue_turn(key);
        }
        self.sweep();
    }

    fn queue_turn(&mut self, key: usize) {
        if let Some(client) = self.client(key)
            && !client.is_queued
        {
            client.is_queued = true;
            let finish_tag = client.finish_tag;
            self.queue.push(key, finish_tag);
        }
    }

    fn accept(&mut self) {
        let now = self.shared.now;
        for key in 0..PEERS {
            let has_free_slot = self.has_free_slot();
            let is_stopping = self.shared.is_stopping;
            let Some(peer) = &mut self.peers[key] else {
                continue;
            };
            let Some(socket) = peer.socket.take() else {
                continue;
            };
            let admission = if has_free_slot {
                Admission::Admitted
            } else {
                Admission::Waiting
            };
            let address = ([127, 0, 0, 1], 4242).into();
            let mut client = Client::new(key, socket, address, admission, now);
            if is_stopping {
                client.stop(now);
            }
            peer.accepted_at = now;
            peer.was_on_reserve |= !has_free_slot;
            peer.client = Some(client);
            self.count_connections();
        }
    }

    fn has_free_slot(&self) -> bool {
        let admitted = self.clients();
        admitted
            .filter(|(_, client)| client.admission() == Admission::Admitted)
            .count()
            < self.max_clients
    }

    fn serve_reserve(&mut self) {
        let now = self.shared.now;
        let is_check_due = self.next_reserve_check <= now;
        if is_check_due {
            self.next_reserve_check = now + SEARCH_INTERVAL;
        }
        for key in 0..PEERS {
            let Some(peer) = &mut self.peers[key] else {
                continue;
            };
            let Some(client) = &mut peer.client else {
                continue;
            };
            if client.admission() == Admission::Admitted {
                continue;
            }
            let waits = client.waits_for_admission(&self.shared);
            if self.has_free_slot() || (waits && self.evict()) {
                let client = self.client(key).expect("only others make room");
                client.set_admission(Admission::Admitted);
                self.queue_turn(key);
                continue;
            }
            let peer = self.peers[key].as_mut().expect("only others make room");
            let client = peer.client.as_mut().expect("it is accepted");
            let is_time_over = peer.accepted_at + MAX_TIME_ON_RESERVE <= now;
            if is_time_over {
                let is_first = peer.checks_overdue.is_none();
                let (ends, is_served) = if let Some(checks) = peer.checks_overdue {
                    peer.checks_overdue = Some(checks + u32::from(is_check_due));
                    let is_served = client.evictable().is_some() && !client.is_queued;
                    (checks >= MAX_CHECKS_OVERDUE || is_served, is_served)
                } else {
                    peer.checks_overdue = Some(0);
                    let is_delayed = client.refuse_delayed(now);
                    let has_unread = !is_delayed && client.read_ahead(&mut self.shared);
                    let has_request = client.has_next_request();
                    let is_served = !(has_unread || has_request || is_delayed || client.is_queued);
                    (is_served, is_served)
                };
                if ends {
                    let ending = Ending::ReserveTimeOver { is_served };
                    self.close(key, ending);
                    continue;
                }
                if is_first {
                    self.queue_turn(key);
                }
            }
            if waits {
                let peer = self.peers[key].as_mut().expect("it is not closed");
                peer.checks_in_wait += u32::from(is_check_due);
                if is_time_over || self.is_refusing || peer.checks_in_wait > MAX_CHECKS_IN_WAIT {
                    self.is_refusing = true;
                    let client = self.client(key).expect("it is accepted");
                    client.set_admission(Admission::Refused);
                    self.queue_turn(key);
                }
            }
        }
    }

    fn evict(&mut self) -> bool {
        let now = self.shared.now;
        let admitted =
            (self.clients()).filter(|(_, client)| client.admission() == Admission::Admitted);
        let mut candidates = candidates(admitted, now);
        while let Some(Reverse((evictable, key))) = candidates.pop() {
            let peer = self.peers[key].as_mut().expect("it is a candidate");
            let client = peer.client.as_mut().expect("it is a candidate");
            if client.read_ahead(&mut self.shared) {
                self.queue_turn(key);
            } else if !client.is_reading_last_response() {
                self.close(key, Ending::Evicted(evictable));
                return true;
            }
        }
        false
    }

    fn sweep(&mut self) {
        let now = self.shared.now;
        for key in 0..PEERS {
            if let Some(client) = self.client(key)
                && client.deadline().is_some_and(|deadline| deadline <= now)
            {
                client.check_deadline();
                self.queue_turn(key);
            }
        }
    }

    fn run_turns(&mut self, max_turns: usize) {
        for _ in 0..max_turns {
            let Some((key, turn_time)) = self.queue.pop() else {
                return;
            };
            self.shared.now = clock();
            let started = self.shared.now;
            let next = self.give_turn(key, turn_time);
            self.shared.now = clock();
            let used = self.shared.now.saturating_duration_since(started);
            self.queue.end_turn(used);
            let peer = self.peers[key].as_mut();
            if let Some(client) = peer.and_then(|peer| peer.client.as_mut()) {
                client.finish_tag = self.queue.charge(client.finish_tag, used);
            }
            match next {
                Some(Next::AnotherTurn) => self.queue_turn(key),
                Some(Next::Wait) => {}
                Some(Next::Close) => self.close(key, Ending::Turn),
                None => self.close(key, Ending::Lost),
            }
        }
    }

    /// Gives a client its turn. Returns `None` if the socket has failed.
    fn give_turn(&mut self, key: usize, turn_time: Duration) -> Option<Next> {
        let Some(peer) = &mut self.peers[key] else {
            return Some(Next::Wait);
        };
        let Some(client) = &mut peer.client else {
            return Some(Next::Wait);
        };
        client.is_queued = false;
        let before = Progress::of(client, &peer.kernel.borrow());
        let half_closed_due = client.reply_due().filter(|_| client.is_half_closed());
        let next = client.take_turn(turn_time, &mut self.shared).ok();

        let after = Progress::of(client, &peer.kernel.borrow());
        let held_bytes = client.held_bytes();
        assert!(held_bytes <= MAX_HELD_BYTES, "{held_bytes}");
        peer.turns_without_progress = if before == after && next == Some(Next::AnotherTurn) {
            peer.turns_without_progress + 1
        } else {
            0
        };
        assert!(
            peer.turns_without_progress <= MAX_IDLE_TURNS,
            "turns without an end"
        );
        let has_written = before.written != after.written;
        let is_given = half_closed_due
            .is_some_and(|due| has_written || client.reply_due().is_none_or(|next| next != due));
        if is_given {
            peer.unconfirmed_since = Some(self.shared.now);
        }
        let held = self.clients().map(|(_, client)| client.held_bytes());
        let held: usize = held.sum();
        assert_eq!(held, self.shared.held_bytes);
        next
    }

    fn limit_held_bytes(&mut self) {
        let now = self.shared.now;
        let is_over = self.shared.held_bytes > self.max_held_bytes;
        if is_over || (self.shared.is_memory_scarce() && self.next_memory_check <= now) {
            self.next_memory_check = now + SEARCH_INTERVAL;
            let peers = self.peers.iter_mut().flatten();
            for client in peers.filter_map(|peer| peer.client.as_mut()) {
                client.check_delivery(&mut self.shared);
            }
            self.queue_stalled();
            self.reset_stalled();
        }
        if !self.shared.is_memory_full() {
            for key in std::mem::take(&mut self.shared.waiting_for_memory) {
                if let Some(client) = self.client(key) {
                    client.stop_waiting_for_memory();
                    self.queue_turn(key);
                }
            }
        }
    }

    fn queue_stalled(&mut self) {
        for key in self.shared.waiting_for_memory.clone() {
            let peer = self.peers[key].as_mut();
            if let Some(client) = peer.and_then(|peer| peer.client.as_mut())
                && client.is_stalled(self.shared.now)
                && client.can_answer(&self.shared)
            {
                self.queue_turn(key);
            }
        }
    }

    fn reset_stalled(&mut self) {
        if !self.shared.is_memory_full() {
            return;
        }
        let now = self.shared.now;
        let mut memory_holders = memory_holders(self.clients(), self.shared.scarce_from, now);
        while self.shared.held_bytes > self.shared.scarce_from
            && let Some((_, key)) = memory_holders.pop()
        {
            let is_stalled = self
                .client(key)
                .is_some_and(|client| client.is_stalled(now));
            if is_stalled || self.shared.held_bytes > self.max_held_bytes {
                self.close(key, Ending::HoldsTooMuch);
            }
        }
    }

    fn stop(&mut self) {
        let now = self.shared.now;
        self.grace_ends = Some(now + GRACE_PERIOD);
        self.shared.is_stopping = true;
        for key in 0..PEERS {
            if let Some(client) = self.client(key) {
                client.stop(now);
                self.queue_turn(key);
            }
        }
    }

    fn advance_stop(&mut self) {
        let now = self.shared.now;
        let Some(grace_ends) = self.grace_ends.filter(|end| *end <= now) else {
            return;
        };
        if !self.shared.is_grace_over {
            self.shared.is_grace_over = true;
            self.shared.closes_from = Some(now + LAST_RESPONSES_TIME / 2);
            self.shared.work_queue.clear();
            for key in 0..PEERS {
                if (self.client(key)).is_some_and(|client| client.reply_due().is_some()) {
                    self.queue_turn(key);
                }
            }
        } else if grace_ends + LAST_RESPONSES_TIME <= now {
            self.has_ended = true;
            for key in 0..PEERS {
                self.close(key, Ending::Stop);
            }
        }
    }

    fn work(&mut self) {
        let is_half_closed = |key: &usize| {
            let peer = self.peers[*key].as_ref();
            let client = peer.and_then(|peer| peer.client.as_ref());
            client.is_some_and(Client::is_half_closed)
        };
        let queue = &self.shared.work_queue;
        let next = queue.iter().position(|key| !is_half_closed(key));
        let Some(key) = self.shared.work_queue.remove(next.unwrap_or(0)) else {
            return;
        };
        let client = self.client(key).expect("those who left are removed");
        if client.has_failed() {
            return self.close(key, Ending::Lost);
        }
        client.work();
        self.queue_turn(key);
    }

    fn close(&mut self, key: usize, ending: Ending) {
        let Some(mut peer) = self.peers[key].take() else {
            return;
        };
        // The connection was not accepted.
        let Some(client) = peer.client.take() else {
            return;
        };
        self.is_refusing &= client.admission() != Admission::Admitted;
        if client.waits_for_work() {
            self.shared.work_queue.retain(|waiting| *waiting != key);
        }
        let waiting_for_memory = &mut self.shared.waiting_for_memory;
        waiting_for_memory.retain(|waiting| *waiting != key);
        let is_pending = client.reply_due().is_some();
        let is_lost = matches!(ending, Ending::Lost | Ending::HoldsTooMuch);
        let responses = self.read_responses(&peer);
        self.check_end(&peer, ending, is_pending, &responses);
        self.tally.add(&peer, &responses, is_lost, is_pending);
        // Small responses wait for those of the next turn. They are lost if the client resets the connection before.
        self.tally.has_unwritten |= is_lost && client.stalled_since().is_some();

        let may_free = client.held_bytes() + MAX_BYTES_BESIDE_BUFFERS;
        let mut client = Some(client);
        let shared = &mut self.shared;
        let mut close = || client.take().expect("once").close(is_lost, shared);
        if is_pending || peer.unconfirmed_since.is_some() {
            close();
        } else {
            let freed = (self.freed_by)(&mut close);
            assert!(freed <= may_free, "{freed} bytes, not {may_free}");
        }
        self.check_what_is_left(&peer.kernel.borrow(), ending);
        self.count_connections();
    }

    fn count_connections(&mut self) {
        let count = self.clients().count();
        self.shared.service.connections_changed(count);
    }
}

/// The state that a turn can change, to see whether it made progress.
#[derive(PartialEq, Eq)]
struct Progress {
    read: usize,
    written: usize,
    held_bytes: usize,
    reply_due: Option<Instant>,
    waits_for_work: bool,
}

impl Progress {
    fn of(client: &Client<SimulatedSocket, Exchange>, kernel: &Kernel) -> Self {
        Self {
            read: kernel.read,
            written: kernel.written.len(),
            held_bytes: client.held_bytes(),
            reply_due: client.reply_due(),
            waits_for_work: client.waits_for_work(),
        }
    }
}

/// The checks.
impl World {
    /// Checks, when there is nothing to do, that each client waits for something that has an end.
    fn check_wait(&mut self) {
        let now = NOW.get();
        let mut pending = 0;
        for key in 0..PEERS {
            let Some(peer) = &mut self.peers[key] else {
                continue;
            };
            let Some(client) = &mut peer.client else {
                continue;
            };
            let kernel = peer.kernel.borrow();
            let waits_for_admission = client.waits_for_admission(&self.shared);
            let is_delayed = client.reply_due().is_some();
            pending += usize::from(is_delayed);
            let waits_for_memory = self.shared.waiting_for_memory.contains(&key);
            assert!(!client.waits_for_work(), "work that is not done");
            assert!(
                kernel.unread() == 0
                    || is_delayed
                    || waits_for_admission
                    || waits_for_memory
                    || !kernel.is_writable()
                    || self.shared.is_memory_scarce(),
                "unread, and nothing is waited for"
            );
            let Some(deadline) = client.deadline() else {
                assert!(
                    is_delayed || waits_for_admission || waits_for_memory,
                    "no event or deadline ends this"
                );
                continue;
            };
            assert!(deadline <= now + KEEP_ALIVE_TIMEOUT);
            assert!(
                !is_delayed || !kernel.is_writable() || peer.unconfirmed_since.is_some(),
                "the client waits, and is to blame"
            );
        }
        let in_flight = self.shared.service.metrics().requests_in_flight().get();
        let in_flight = usize::try_from(in_flight).expect("it is not negative");
        let most = pending + self.clients().count();
        assert!((pending..=most).contains(&in_flight), "{in_flight}");
    }

    fn requests_in(&mut self, bytes: &[u8]) -> Outcome {
        drive(&mut self.oracle, [bytes])
    }

    /// Parses what was written to a client, and checks that each response matches its request.
    fn read_responses(&mut self, peer: &Peer) -> Responses {
        let kernel = peer.kernel.borrow();
        let understood = self.requests_in(&kernel.received);
        let mut responses = Responses {
            understood: understood.requests.len(),
            ..Responses::default()
        };
        let mut rest = str::from_utf8(&kernel.written).expect("responses are ASCII");
        while !rest.is_empty() {
            assert!(!responses.has_closed, "a response after the last");
            let answered = responses.statuses.len();
            let is_timeout = rest.starts_with("HTTP/1.1 408 ");
            let (method, status) = if is_timeout {
                let has_no_body = rest.ends_with("\r\n\r\n");
                (if has_no_body { "HEAD" } else { "GET" }, 408)
            } else {
                let request = understood.requests.get(answered);
                let (method, _, status) = request.expect("no request asked for this");
                (&**method, *status)
            };
            let Some(response) = read(&mut rest, method) else {
                assert!(kernel.refused_writes > 0, "half a response");
                break;
            };
            let may_be_refused = peer.was_on_reserve || self.shared.is_grace_over;
            assert!(
                response.status == status || (response.status == 503 && may_be_refused),
                "{response:?}"
            );
            let is_told_to_close = is_timeout
                || expects_a_100(&kernel)
                || (answered + 1 == understood.requests.len() && !understood.is_open);
            let may_close = self.shared.is_stopping || peer.was_on_reserve || peer.may_turn_over;
            let closes = response.closes;
            assert!(
                !closes || is_told_to_close || may_close,
                "the last for no reason"
            );
            responses.statuses.push(response.status);
            responses.has_closed = closes;
            responses.has_timed_out = is_timeout;
        }
        responses
    }

    /// Checks that no received request is lost.
    fn check_end(&mut self, peer: &Peer, ending: Ending, is_pending: bool, responses: &Responses) {
        let kernel = peer.kernel.borrow();
        let now = NOW.get() + TOLERANCE;
        let is_stalled = !kernel.is_writable()
            && (kernel.written_at).is_none_or(|written_at| written_at + WRITE_TIMEOUT <= now);
        let is_excused = match ending {
            Ending::Lost => {
                assert!(kernel.is_reset, "closed for no reason");
                true
            }
            Ending::Stop => {
                assert!(!is_pending || is_stalled, "stopped without a response");
                true
            }
            Ending::HoldsTooMuch | Ending::Evicted(Evictable::HalfClosed(_)) => true,
            Ending::Evicted(Evictable::Idle(_)) => false,
            Ending::ReserveTimeOver { is_served } => {
                !is_served || kernel.half_close.is_some() || !kernel.is_writable()
            }
            // After the grace period, a client that never stops pipelining is not waited for.
            Ending::Turn => is_stalled || self.shared.closes_from.is_some_and(|from| from <= now),
        };
        if is_excused {
            return;
        }
        assert!(!is_pending, "closed without a response");
        let received = if let Some(half_close) = kernel.half_close {
            let has_lingered = half_close.at + LINGERING_TIMEOUT <= now;
            assert!(
                has_lingered || kernel.is_end_received(),
                "closed without lingering"
            );
            assert!(
                has_lingered || kernel.unread() == 0,
                "closed with unread bytes"
            );
            match (kernel.refused_writes, responses.has_timed_out) {
                (0, true) => half_close.received,
                (0, false) => half_close.read.max(half_close.known),
                _ => half_close.read,
            }
        } else {
            assert_eq!(kernel.unread(), 0, "closed with unread bytes");
            let timeout = if self.shared.is_stopping {
                KEEP_ALIVE_TIMEOUT_WHILE_STOPPING
            } else {
                WRITE_TIMEOUT
            };
            let is_silent = kernel.written_at.is_none_or(|at| at + timeout <= now);
            assert!(
                ending != Ending::Turn || kernel.is_end_received() || is_silent,
                "closed for no reason"
            );
            kernel.received.len()
        };
        let answered = responses.statuses.len() - usize::from(responses.has_timed_out);
        if answered >= responses.understood {
            return;
        }
        let received = self.requests_in(&kernel.received[..received]);
        let is_closed_early = responses.has_closed && expects_a_100(&kernel);
        assert!(
            answered >= received.requests.len() || is_closed_early,
            "{answered} responses to {} requests",
            received.requests.len()
        );
    }

    /// Checks what happens to the bytes that the kernel holds after a connection was closed.
    fn check_what_is_left(&self, kernel: &Kernel, ending: Ending) {
        assert!(
            !kernel.holds_much()
                || kernel.resets_on_close
                || kernel.is_reset
                || self.shared.is_stopping,
            "the kernel holds memory that is not counted"
        );
        let now = NOW.get() + TOLERANCE;
        let is_stalled = (kernel.written_at).is_none_or(|at| at + WRITE_TIMEOUT <= now);
        let may_reset = match ending {
            Ending::Turn => is_stalled,
            Ending::Evicted(Evictable::Idle(_)) => false,
            _ => true,
        };
        assert!(
            !kernel.resets_on_close || kernel.unread_by_client == 0 || may_reset,
            "reset before the response was read"
        );
    }

    /// Checks that every request is recorded once, with the status that was sent or a 499.
    fn check_records(&self) {
        let metrics = self.shared.service.metrics();
        assert_eq!(metrics.requests_in_flight().get(), 0);
        assert_eq!(metrics.connections_open().get(), 0);
        assert_eq!(self.shared.held_bytes, 0);
        let in_force = InForce {
            probe: &ProbeSettings::default(),
            is_active: &|_| false,
            extra_series: 0,
        };
        let exposition = metrics.exposition(Format::Text, &in_force);
        let recorded = |status: u16| -> usize {
            let label = format!("http_status=\"{status}\"");
            let lines = exposition.lines().filter(|line| {
                line.starts_with("app_request_count_total{") && line.contains(&label)
            });
            let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
            counts.sum()
        };
        let tally = &self.tally;
        let least = tally.disconnects + tally.withdrawn;
        let most = least + tally.may_be_withdrawn;
        let disconnects = recorded(499);
        assert!(
            (least..=most).contains(&disconnects),
            "{disconnects} recorded as 499, expected {least} to {most}"
        );
        let withdrawn = tally.withdrawn + tally.may_be_withdrawn;
        for (status, written) in &tally.written {
            let recorded = recorded(*status);
            assert!(
                recorded + withdrawn >= *written,
                "{written} written as {status}, {recorded} recorded"
            );
            assert!(
                recorded <= *written || tally.has_unwritten,
                "{written} written as {status}, {recorded} recorded"
            );
        }
    }
}

/// Returns whether a client may have got `Connection: close` because its body had not arrived with its
/// head.
fn expects_a_100(kernel: &Kernel) -> bool {
    let received = kernel.received.to_ascii_lowercase();
    received.windows(12).any(|word| word == b"100-continue")
}
