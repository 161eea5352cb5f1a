//! The event loop: one thread that no client can hold up.
//!
//! It owns the sockets, the deadlines and the late answers. What the bytes mean and what is too
//! much is for [`Connection`] to say; this is what happens on a wake-up:
//!
//! ```text
//! poll -> a socket is ready      -> its client has a turn: read, answer, send
//!      -> an answer is due       -> its client has a turn
//!      -> a deadline has passed  -> its client has a turn: 408, or close
//!      -> the listener is ready  -> accept
//!      -> told to stop           -> no more connections; end when the last answer is sent
//! ```
//!
//! A turn is bounded, so that a client with a thousand requests waits for the others between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use httpdate::HttpDate;
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use slab::Slab;

use super::connection::{Buffers, Connection};
use super::request_head::Rejection;
use crate::access_log::{AccessLog, Entry};
use crate::app::{App, Reply};
use crate::complaint::{complain, complain_of_panics};
use crate::shutdown::GRACE;

const LISTENER: Token = Token(usize::MAX - 1);
const STOP: Token = Token(usize::MAX - 2);

/// Descriptors kept free of clients: the standard streams, the listener, the poll, the signals,
/// and what a scrape opens in /proc.
const RESERVED_DESCRIPTORS: usize = 32;
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Requests answered in one turn. The dearest is HEAD /metrics, a tenth of a millisecond or two.
const REQUESTS_PER_TURN: usize = 32;
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Deadlines are looked at no more often than this: a look is at every connection.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);
/// How long accepting pauses when there is no descriptor, or no room, and nobody to make some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `told_to_stop` becomes readable and the requests received by then are answered, or
/// the grace is over.
///
/// # Errors
/// When the kernel refuses to poll. What goes wrong with a connection ends that connection only.
pub fn run(
    listener: std::net::TcpListener,
    told_to_stop: UnixStream,
    app: App,
    access_log: AccessLog,
    max_connections: usize,
) -> io::Result<()> {
    complain_of_panics();
    EventLoop::new(listener, told_to_stop, app, access_log, max_connections)?.run()
}

struct EventLoop {
    poll: Poll,
    /// `None` from the first signal on.
    listener: Option<TcpListener>,
    /// Kept, so that the signal handler has somewhere to write.
    _told_to_stop: mio::net::UnixStream,
    clients: Slab<Client>,
    max_clients: usize,
    shared: Shared,
    /// The clients whose last turn ended with work left, each once.
    unfinished: Vec<usize>,
    /// The listener may have more connections than were accepted.
    may_accept: bool,
    accept_paused_until: Option<Instant>,
    /// When deadlines are looked at next.
    next_sweep: Option<Instant>,
    /// From the first signal on, when the grace is over.
    stop_at: Option<Instant>,
}

/// What the turns of all clients share.
struct Shared {
    app: App,
    access_log: AccessLog,
    /// When the last wake-up was.
    now: Instant,
    date: Date,
    /// When late answers are due, and in which place. The entry of a client that has left gives
    /// whoever is in its place a turn too many, which does no harm.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    read: Box<[u8]>,
    warm: Buffers,
    is_stopping: bool,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is independent of the others"
)]
struct Client {
    stream: TcpStream,
    peer: SocketAddr,
    connection: Connection,
    late: Option<Late>,
    /// The socket may hold bytes: an edge was seen and not yet an empty socket.
    is_readable: bool,
    /// The client has closed its end: after the bytes comes the end, and no other edge.
    end_follows: bool,
    /// The socket was full, and no edge has said since that there is room.
    is_full: bool,
    /// The socket was full once, and is watched for room since.
    is_watched_for_room: bool,
    /// The client is among the unfinished.
    is_unfinished: bool,
}

/// An answer that is not due yet.
struct Late {
    due: Instant,
    reply: Reply,
    begun: Begun,
}

/// A request that is being answered: since when, and what the access log says of it.
struct Begun {
    at: Instant,
    entry: Option<Entry>,
}

/// What is to happen after a turn.
#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    AnotherTurn,
    Close,
}

impl EventLoop {
    fn new(
        listener: std::net::TcpListener,
        told_to_stop: UnixStream,
        app: App,
        access_log: AccessLog,
        max_connections: usize,
    ) -> io::Result<Self> {
        let descriptors = raise_descriptor_limit();
        let max_clients = max_connections.min(descriptors.saturating_sub(RESERVED_DESCRIPTORS));
        if max_clients < max_connections {
            complain(format_args!(
                "the descriptor limit, {descriptors}, leaves room for {max_clients} connections; \
                 raise it (ulimit -n) or lower --max-connections"
            ));
        }
        listener.set_nonblocking(true)?;
        told_to_stop.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let mut told_to_stop = mio::net::UnixStream::from_std(told_to_stop);
        let poll = Poll::new()?;
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        registry.register(&mut told_to_stop, STOP, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener: Some(listener),
            _told_to_stop: told_to_stop,
            clients: Slab::new(),
            max_clients: max_clients.max(1),
            shared: Shared {
                app,
                access_log,
                now: Instant::now(),
                date: Date::default(),
                due: BinaryHeap::new(),
                read: vec![0; READ].into_boxed_slice(),
                warm: Buffers::default(),
                is_stopping: false,
            },
            unfinished: Vec::new(),
            may_accept: false,
            accept_paused_until: None,
            next_sweep: None,
            stop_at: None,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => result?,
            }
            self.shared.now = Instant::now();
            self.shared.date.set(SystemTime::now());
            for event in &events {
                match event.token() {
                    LISTENER => self.may_accept = true,
                    STOP => self.stop(),
                    Token(place) => self.wake(place, event),
                }
            }
            self.go_on_with_unfinished();
            self.send_due();
            self.sweep();
            self.accept();
            let now = self.shared.now;
            if self
                .stop_at
                .is_some_and(|end| self.clients.is_empty() || end <= now)
            {
                return Ok(());
            }
        }
    }

    /// How long nothing is to do unless a socket says so; `None` is for ever.
    fn timeout(&self) -> Option<Duration> {
        if !self.unfinished.is_empty() || (self.may_accept && self.accept_paused_until.is_none()) {
            return Some(Duration::ZERO);
        }
        let due = self.shared.due.peek().map(|Reverse((due, _))| *due);
        [due, self.next_sweep, self.accept_paused_until, self.stop_at]
            .into_iter()
            .flatten()
            .min()
            .map(|next| next.saturating_duration_since(Instant::now()))
    }

    /// Notes what an event says of a client, and gives it a turn.
    fn wake(&mut self, place: usize, event: &Event) {
        let Some(client) = self.clients.get_mut(place) else {
            return;
        };
        if event.is_error() || event.is_write_closed() {
            // Reset: nobody is left to answer.
            self.close(place);
            return;
        }
        client.is_readable |= event.is_readable();
        client.end_follows |= event.is_read_closed();
        client.is_full &= !event.is_writable();
        if !client.is_unfinished {
            self.take_turn(place);
        }
    }

    fn go_on_with_unfinished(&mut self) {
        let count = self.unfinished.len();
        for index in 0..count {
            let place = self.unfinished[index];
            if let Some(client) = self.clients.get_mut(place) {
                client.is_unfinished = false;
            }
            self.take_turn(place);
        }
        self.unfinished.drain(..count);
    }

    /// Gives a turn to every client that has an answer due.
    fn send_due(&mut self) {
        while let Some(Reverse((due, place))) = self.shared.due.peek().copied()
            && due <= self.shared.now
        {
            self.shared.due.pop();
            self.take_turn(place);
        }
    }

    /// Gives a turn to every client whose deadline has passed, if it is time to look.
    fn sweep(&mut self) {
        let now = self.shared.now;
        if self.next_sweep.is_none_or(|next| now < next) {
            return;
        }
        self.next_sweep = None;
        let mut passed = Vec::new();
        for (place, client) in &self.clients {
            match client.connection.deadline() {
                Some(deadline) if deadline <= now => passed.push(place),
                deadline => plan_sweep(&mut self.next_sweep, deadline, now),
            }
        }
        for place in passed {
            self.take_turn(place);
        }
    }

    /// Lets a client do what it can do now. A fault ends its connection, and harms no other.
    fn take_turn(&mut self, place: usize) {
        let Some(client) = self.clients.get_mut(place) else {
            return;
        };
        let (shared, registry) = (&mut self.shared, self.poll.registry());
        let turn = AssertUnwindSafe(|| client.turn(place, shared, registry));
        // An error is the client's leaving. A panic was complained of where it happened.
        match catch_unwind(turn).unwrap_or(Ok(Next::Close)) {
            Ok(Next::Wait) => {}
            Ok(Next::AnotherTurn) => {
                if !mem::replace(&mut client.is_unfinished, true) {
                    self.unfinished.push(place);
                }
            }
            Ok(Next::Close) | Err(_) => return self.close(place),
        }
        let deadline = client.connection.deadline();
        plan_sweep(&mut self.next_sweep, deadline, self.shared.now);
    }

    /// Accepts what the kernel has completed, as far as there is room.
    fn accept(&mut self) {
        let now = self.shared.now;
        if self.accept_paused_until.is_some_and(|end| now < end) {
            return;
        }
        self.accept_paused_until = None;
        for _ in 0..ACCEPTS_PER_TURN {
            let (true, Some(listener)) = (self.may_accept, &self.listener) else {
                return;
            };
            let is_full = self.clients.len() >= self.max_clients;
            let idle_longest = is_full.then(|| self.idle_longest()).flatten();
            if is_full && idle_longest.is_none() {
                self.accept_paused_until = Some(now + ACCEPT_PAUSE);
                return;
            }
            match listener.accept() {
                Ok((stream, peer)) => {
                    if let Some(place) = idle_longest {
                        self.close(place);
                    }
                    self.welcome(stream, peer);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.may_accept = false,
                    // The client was faster to leave, or a signal came.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        complain(format_args!("cannot accept connections for now: {error}"));
                        self.accept_paused_until = Some(now + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// The connection that has been idle longest, to make room for another. One that was accepted
    /// in this very wake-up had no chance yet to say something.
    fn idle_longest(&self) -> Option<usize> {
        let idle = self.clients.iter().filter_map(|(place, client)| {
            let since = client.connection.idle_since()?;
            (since < self.shared.now).then_some((since, place))
        });
        idle.min().map(|(_, place)| place)
    }

    fn welcome(&mut self, mut stream: TcpStream, peer: SocketAddr) {
        let entry = self.clients.vacant_entry();
        let token = Token(entry.key());
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut stream, token, Interest::READABLE) {
            return complain(format_args!("cannot watch a connection: {error}"));
        }
        let client = entry.insert(Client {
            stream,
            peer,
            connection: Connection::new(self.shared.now),
            late: None,
            is_readable: false,
            end_follows: false,
            is_full: false,
            is_watched_for_room: false,
            is_unfinished: false,
        });
        let deadline = client.connection.deadline();
        plan_sweep(&mut self.next_sweep, deadline, self.shared.now);
        self.shared.app.metrics().connections_open().inc();
    }

    fn close(&mut self, place: usize) {
        let Some(client) = self.clients.try_remove(place) else {
            return;
        };
        self.shared.app.metrics().connections_open().dec();
        self.accept_paused_until = None;
        if let Some(late) = client.late {
            // The client did not wait for its answer. The request is recorded all the same.
            self.shared.record(&late.reply, &late.begun);
        }
        self.forget_the_departed();
    }

    /// Keeps memory in proportion to the clients that are here, however many came and left.
    fn forget_the_departed(&mut self) {
        let count = self.clients.len();
        if self.clients.capacity() > 4 * count + 64 {
            self.clients.shrink_to_fit();
        }
        if self.shared.due.len() > 2 * count + 64 {
            let clients = &self.clients;
            self.shared.due.retain(|Reverse((due, place))| {
                let late = clients.get(*place).and_then(|client| client.late.as_ref());
                late.is_some_and(|late| late.due == *due)
            });
            self.shared.due.shrink_to_fit();
        }
    }

    /// Takes no more connections, and has every client end when nothing is owed to it.
    fn stop(&mut self) {
        if self.stop_at.is_some() {
            return;
        }
        self.stop_at = Some(self.shared.now + GRACE);
        self.may_accept = true;
        self.accept();
        self.listener = None;
        self.may_accept = false;
        self.shared.is_stopping = true;
        let places: Vec<usize> = self.clients.iter().map(|(place, _)| place).collect();
        for place in places {
            if let Some(client) = self.clients.get_mut(place) {
                // What the kernel has received is received.
                client.is_readable = true;
                self.take_turn(place);
            }
        }
    }
}

/// Has the next sweep come no later than a deadline, but not before the pause is over.
fn plan_sweep(next_sweep: &mut Option<Instant>, deadline: Option<Instant>, now: Instant) {
    if let Some(deadline) = deadline {
        let sweep = deadline.max(now + SWEEP_PAUSE);
        *next_sweep = Some(next_sweep.map_or(sweep, |next| next.min(sweep)));
    }
}

impl Shared {
    /// Begins with a request: what follows until [`record`](Self::record) is its latency.
    fn begin(&self, peer: SocketAddr, method: &str, target: &str) -> Begun {
        let entry = self.access_log.note(Some(peer), method, target);
        let at = Instant::now();
        Begun { at, entry }
    }

    fn record(&self, reply: &Reply, begun: &Begun) {
        let latency = begun.at.elapsed();
        self.app.record(reply, latency);
        if let Some(entry) = &begun.entry {
            entry.print(reply, latency);
        }
    }
}

impl Client {
    /// Does what can be done without waiting, up to the bounds of a turn.
    fn turn(&mut self, place: usize, shared: &mut Shared, registry: &Registry) -> io::Result<Next> {
        self.connection.lend(&mut shared.warm);
        let next = self.serve(place, shared, registry);
        self.connection.give_back(&mut shared.warm);
        next
    }

    fn serve(
        &mut self,
        place: usize,
        shared: &mut Shared,
        registry: &Registry,
    ) -> io::Result<Next> {
        if let Some(late) = self.late.take_if(|late| late.due <= shared.now) {
            self.answer(&late.reply, &late.begun, shared);
        }
        let mut budget = REQUESTS_PER_TURN;
        self.answer_received(place, &mut budget, shared);
        if self.is_readable && self.connection.wants_bytes() {
            self.read(shared)?;
            self.answer_received(place, &mut budget, shared);
        }
        self.send(place, shared, registry)?;
        if self
            .connection
            .deadline()
            .is_some_and(|end| end <= shared.now)
        {
            let Some(rejection) = self.connection.expire() else {
                return Ok(Next::Close);
            };
            self.refuse(rejection, shared);
            self.send(place, shared, registry)?;
        }
        if self.connection.wants_half_close() {
            self.stream.shutdown(Shutdown::Write)?;
            self.connection.linger(shared.now);
        }

        let may_read = self.is_readable && self.connection.wants_bytes();
        let is_to_end = shared.is_stopping && self.connection.is_idle();
        Ok(
            if self.connection.is_finished() || (is_to_end && !may_read) {
                Next::Close
            } else if may_read || self.connection.can_answer() {
                Next::AnotherTurn
            } else {
                Next::Wait
            },
        )
    }

    /// Answers the complete requests that are here, up to one that must be late.
    fn answer_received(&mut self, place: usize, budget: &mut usize, shared: &mut Shared) {
        while *budget > 0
            && let Some(request) = self.connection.next_request()
        {
            *budget -= 1;
            let request = match request {
                Ok(request) => request,
                Err(rejection) => return self.refuse(rejection, shared),
            };
            let begun = shared.begin(self.peer, request.method, request.target);
            let reply = shared.app.answer(request.method, request.target);
            #[cfg(test)]
            assert_ne!(request.target, "/fault", "a fault on purpose");
            if reply.delay.is_zero() {
                self.answer(&reply, &begun, shared);
            } else {
                let due = begun.at + reply.delay;
                shared.due.push(Reverse((due, place)));
                self.late = Some(Late { due, reply, begun });
            }
        }
    }

    /// Answers what is no request.
    fn refuse(&mut self, rejection: Rejection, shared: &mut Shared) {
        let begun = shared.begin(self.peer, "", "");
        self.answer(&rejection.reply(), &begun, shared);
    }

    fn answer(&mut self, reply: &Reply, begun: &Begun, shared: &Shared) {
        shared.record(reply, begun);
        let date = &shared.date.text;
        self.connection
            .answer(reply, date, shared.is_stopping, shared.now);
    }

    fn read(&mut self, shared: &mut Shared) -> io::Result<()> {
        match self.stream.read(&mut shared.read) {
            Ok(0) => {
                self.is_readable = false;
                self.connection.receive_end();
            }
            Ok(count) => {
                // Less than was asked for: the socket is empty (epoll(7), "edge-triggered"), and
                // only an end that was announced already would not be announced again.
                self.is_readable = count == shared.read.len() || self.end_follows;
                self.connection.receive(&shared.read[..count], shared.now);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn send(&mut self, place: usize, shared: &Shared, registry: &Registry) -> io::Result<()> {
        // A full socket takes a little more now and then although the client reads nothing. Were it
        // tried without an edge, that would count as progress.
        while !self.is_full && !self.connection.unsent().is_empty() {
            match self.stream.write(self.connection.unsent()) {
                Ok(count) => self.connection.sent(count, shared.now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_full = true;
                    if !self.is_watched_for_room {
                        let interest = Interest::READABLE | Interest::WRITABLE;
                        registry.reregister(&mut self.stream, Token(place), interest)?;
                        self.is_watched_for_room = true;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The value of the `Date` field, made once a second.
#[derive(Default)]
struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn set(&mut self, now: SystemTime) {
        let second = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text.clear();
            // A String takes every write.
            let _ = write!(self.text, "{}", HttpDate::from(now));
        }
    }
}

/// Raises the soft limit on descriptors to the hard one, and returns it.
fn raise_descriptor_limit() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Where it is not allowed, the soft limit is what there is.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| limit as usize)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::thread;

    use super::*;
    use crate::config::Config;

    fn ask(mut stream: &TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = vec![0; 16 * 1024];
        let count = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    #[test]
    fn a_fault_closes_its_connection_and_harms_no_other() {
        let listener = crate::server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (told_to_stop, mut stop) = UnixStream::pair().unwrap();
        let event_loop = thread::spawn(move || {
            let app = App::new(&Config::default());
            run(listener, told_to_stop, app, AccessLog::new(false), 10)
        });
        let connect = || {
            let stream = TcpStream::connect(address).unwrap();
            let patience = Some(Duration::from_secs(60));
            stream.set_read_timeout(patience).unwrap();
            stream
        };

        let other = connect();
        assert!(ask(&other, "/probe").ends_with("I'm ok!"));
        for _ in 0..3 {
            assert_eq!(ask(&connect(), "/fault"), "", "closed without an answer");
            assert!(ask(&other, "/probe").ends_with("I'm ok!"));
        }
        let page = ask(&other, "/metrics");
        assert!(page.contains("app_connections_open 1\n"), "{page}");

        stop.write_all(&[0]).unwrap();
        event_loop.join().unwrap().unwrap();
        assert_eq!(
            (&other).read(&mut [0]).unwrap(),
            0,
            "idle connections are closed"
        );
    }
}
