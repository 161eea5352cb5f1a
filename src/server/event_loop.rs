//! The event loop: one thread that no client can hold up.
//!
//! It waits for what happens, and says whose turn it is:
//!
//! ```text
//! poll -> a socket is ready      -> its client has a turn: read, answer, write
//!      -> a reply is due         -> its client has a turn
//!      -> a deadline has passed  -> its client has a turn: 408, or close
//!      -> the listener is ready  -> accept
//!      -> a reply takes work     -> one of them, when everybody else had a turn
//!      -> told to stop           -> no more connections; end when the last answer is sent
//! ```
//!
//! What a turn does is in `client`, what the bytes mean and what is too much in [`connection`],
//! what a request may look like in [`request_head`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use slab::Slab;

use self::client::{Client, Next, Shared};
use self::connection::Buffers;
use self::date::Date;
use self::timer_queue::TimerQueue;
use crate::access_log::AccessLog;
use crate::app::App;
use crate::diagnostics::{self, report, report_panics};
use crate::line_writer;
use crate::server::BACKLOG;
use crate::shutdown::GRACE;

mod client;
pub mod connection;
mod date;
pub mod request_head;
mod timer_queue;

const LISTENER: Token = Token(usize::MAX - 1);
const STOP: Token = Token(usize::MAX - 2);

/// Descriptors kept free of clients: the standard streams, the listener, the poll, the signals,
/// and what a scrape reads in /proc.
const RESERVED_DESCRIPTORS: usize = 32;
/// macOS' bound on descriptors where there is no other.
const OPEN_MAX: u64 = 10_240;
/// Bytes read at once.
const READ_SIZE: usize = 16 * 1024;
/// Connections accepted in one wake-up.
const ACCEPTS_PER_WAKE_UP: usize = 64;
/// How often in a row work is put off for the sake of who was just accepted: until the longest
/// backlog is accepted. Somebody who never stops connecting does not put it off for ever.
const WORK_PUT_OFF: usize = BACKLOG as usize / ACCEPTS_PER_WAKE_UP;
/// Deadlines are looked at no more often than this: a look is at every client.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);
/// How long accepting pauses when there is no descriptor, or no room, and nobody to make some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop_signal` becomes readable and the requests received by then are answered, or
/// the grace is over.
///
/// # Errors
/// When the kernel refuses to poll. What goes wrong with a connection ends that connection only.
pub fn run(
    listener: std::net::TcpListener,
    stop_signal: UnixStream,
    app: App,
    access_log: &AccessLog,
    max_connections: usize,
) -> io::Result<()> {
    report_panics();
    EventLoop::new(listener, stop_signal, app, access_log, max_connections)?.run()
}

struct EventLoop {
    poll: Poll,
    /// `None` from the first signal on.
    listener: Option<TcpListener>,
    /// Kept, so that the signal handler has somewhere to write.
    _stop_signal: mio::net::UnixStream,
    clients: Slab<Client>,
    max_clients: usize,
    shared: Shared,
    /// The keys of the clients whose last turn ended with work left, each once.
    run_queue: Vec<usize>,
    /// The listener may have more connections than were accepted.
    may_accept: bool,
    /// Somebody was accepted in this wake-up, and has not had a turn.
    has_accepted: bool,
    /// How often in a row work was put off for that.
    work_put_off: usize,
    accept_paused_until: Option<Instant>,
    /// When deadlines are looked at next.
    next_sweep: Option<Instant>,
    /// When lines that found no room are tried again.
    next_flush: Option<Instant>,
    /// From the first signal on, when the grace is over.
    stop_at: Option<Instant>,
}

impl EventLoop {
    fn new(
        listener: std::net::TcpListener,
        stop_signal: UnixStream,
        app: App,
        access_log: &AccessLog,
        max_connections: usize,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        stop_signal.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let mut stop_signal = mio::net::UnixStream::from_std(stop_signal);
        let max_clients = max_clients(max_connections);
        let gauge = app.metrics().connections_max();
        gauge.set(i64::try_from(max_clients).unwrap_or(i64::MAX));
        let poll = Poll::new()?;
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        registry.register(&mut stop_signal, STOP, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener: Some(listener),
            _stop_signal: stop_signal,
            clients: Slab::new(),
            max_clients,
            shared: Shared {
                app,
                access_log: access_log.clone(),
                now: Instant::now(),
                time: SystemTime::now(),
                date: Date::default(),
                timers: TimerQueue::default(),
                work_queue: VecDeque::new(),
                read_buffer: vec![0; READ_SIZE].into_boxed_slice(),
                spare_buffers: Buffers::default(),
                is_stopping: false,
            },
            run_queue: Vec::new(),
            may_accept: false,
            has_accepted: false,
            work_put_off: 0,
            accept_paused_until: None,
            next_sweep: None,
            next_flush: None,
            stop_at: None,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.has_ended() {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => result?,
            }
            self.shared.now = Instant::now();
            self.shared.time = SystemTime::now();
            self.shared.date.set(self.shared.time);
            for event in &events {
                match event.token() {
                    LISTENER => self.may_accept = true,
                    STOP => self.stop(),
                    Token(key) => self.handle_event(key, event),
                }
            }
            self.run_queued();
            self.run_timers();
            self.sweep();
            self.accept(ACCEPTS_PER_WAKE_UP);
            self.flush_logs();
            self.work();
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.stop_at
            .is_some_and(|end| self.clients.is_empty() || end <= self.shared.now)
    }

    /// How long nothing is to do unless a socket says so; `None` is for ever.
    fn timeout(&self) -> Option<Duration> {
        if !self.run_queue.is_empty()
            || !self.shared.work_queue.is_empty()
            || (self.may_accept && self.accept_paused_until.is_none())
        {
            return Some(Duration::ZERO);
        }
        [
            self.shared.timers.next_due(),
            self.next_sweep,
            self.accept_paused_until,
            self.stop_at,
            self.next_flush,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|next| next.saturating_duration_since(Instant::now()))
    }

    /// Takes what an event says of a client, and gives it a turn.
    fn handle_event(&mut self, key: usize, event: &Event) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if event.is_error() {
            // Reset: nobody is left to answer.
            return self.close(key);
        }
        client.note(event);
        if !client.is_queued {
            self.give_turn(key);
        }
    }

    /// Gives another turn to every client that asked for one.
    fn run_queued(&mut self) {
        let count = self.run_queue.len();
        for index in 0..count {
            let key = self.run_queue[index];
            if let Some(client) = self.clients.get_mut(key) {
                client.is_queued = false;
            }
            self.give_turn(key);
        }
        self.run_queue.drain(..count);
    }

    /// Gives a turn to every client that has a reply due.
    fn run_timers(&mut self) {
        while let Some(key) = self.shared.timers.pop_due(self.shared.now) {
            self.give_turn(key);
        }
    }

    /// Gives a turn to every client whose deadline has passed, if it is time to look.
    fn sweep(&mut self) {
        let now = self.shared.now;
        if self.next_sweep.is_none_or(|next| now < next) {
            return;
        }
        let mut expired = Vec::new();
        let mut next_deadline: Option<Instant> = None;
        for (key, client) in &self.clients {
            match client.deadline() {
                Some(deadline) if deadline <= now => expired.push(key),
                Some(deadline) => {
                    next_deadline = Some(next_deadline.map_or(deadline, |next| next.min(deadline)));
                }
                None => {}
            }
        }
        self.next_sweep = None;
        self.plan_sweep(next_deadline);
        for key in expired {
            self.give_turn(key);
        }
    }

    /// Has the next sweep come no later than a deadline, but not before the pause is over.
    fn plan_sweep(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            let sweep = deadline.max(self.shared.now + SWEEP_PAUSE);
            self.next_sweep = Some(self.next_sweep.map_or(sweep, |next| next.min(sweep)));
        }
    }

    /// Lets a client do what it can do now. A panic ends its connection, and harms no other.
    fn give_turn(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let turn = AssertUnwindSafe(|| client.take_turn(&mut self.shared));
        // An error is the client's leaving. A panic was reported where it happened.
        match catch_unwind(turn).unwrap_or(Ok(Next::Close)) {
            Ok(Next::Wait) => {}
            Ok(Next::AnotherTurn) => self.queue_turn(key),
            Ok(Next::Close) | Err(_) => return self.close(key),
        }
        let deadline = self.clients.get(key).and_then(Client::deadline);
        self.plan_sweep(deadline);
    }

    /// Has a client take another turn, when the others had theirs.
    fn queue_turn(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key)
            && !mem::replace(&mut client.is_queued, true)
        {
            self.run_queue.push(key);
        }
    }

    /// Does the work of one reply, so that nobody waits for more than one. Who was accepted in this
    /// wake-up has not had a turn yet, and may be a scrape: then the work is put off.
    fn work(&mut self) {
        if self.has_accepted && self.work_put_off < WORK_PUT_OFF {
            self.work_put_off += 1;
            return;
        }
        self.work_put_off = 0;
        if let Some(key) = self.shared.work_queue.pop_front()
            && let Some(client) = self.clients.get_mut(key)
        {
            client.work();
            self.queue_turn(key);
        }
    }

    /// Accepts what the kernel has completed, up to so many, as far as there is room.
    fn accept(&mut self, most: usize) {
        let now = self.shared.now;
        self.has_accepted = false;
        if self.accept_paused_until.is_some_and(|end| now < end) {
            return;
        }
        self.accept_paused_until = None;
        for _ in 0..most {
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
                    if let Some(key) = idle_longest {
                        self.close(key);
                    }
                    self.insert(stream, peer);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.may_accept = false,
                    // The client was faster to leave, or a signal came.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        report(format_args!("cannot accept connections for now: {error}"));
                        self.accept_paused_until = Some(now + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Writes the lines of this wake-up, and has those come up again that find no room.
    fn flush_logs(&mut self) {
        let is_full = self.shared.access_log.flush() | diagnostics::flush();
        self.next_flush = is_full.then(|| self.shared.now + line_writer::PAUSE);
    }

    /// The client that has been idle longest, to make room for another. One that was accepted in
    /// this very wake-up had no chance yet to say something.
    fn idle_longest(&self) -> Option<usize> {
        let idle = self.clients.iter().filter_map(|(key, client)| {
            let since = client.idle_since()?;
            (since < self.shared.now).then_some((since, key))
        });
        idle.min().map(|(_, key)| key)
    }

    /// Takes a new connection among the clients.
    fn insert(&mut self, mut stream: TcpStream, peer: SocketAddr) {
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut stream, Token(key), interest) {
            return report(format_args!("cannot watch a connection: {error}"));
        }
        self.has_accepted = true;
        let client = entry.insert(Client::new(key, stream, peer, self.shared.now));
        let deadline = client.deadline();
        self.plan_sweep(deadline);
        self.shared.app.metrics().connections_open().inc();
    }

    fn close(&mut self, key: usize) {
        let Some(client) = self.clients.try_remove(key) else {
            return;
        };
        if client.waits_for_work() {
            self.shared.work_queue.retain(|waiting| *waiting != key);
        }
        client.leave(&self.shared);
        self.shared.app.metrics().connections_open().dec();
        self.accept_paused_until = None;
        self.shrink();
    }

    /// Keeps memory in proportion to the clients that are here, however many came and left.
    fn shrink(&mut self) {
        let count = self.clients.len();
        if self.clients.capacity() > 4 * count + 64 {
            self.clients.shrink_to_fit();
        }
        if self.shared.work_queue.capacity() > 4 * count + 64 {
            self.shared.work_queue.shrink_to_fit();
        }
        if self.shared.timers.len() > 2 * count + 64 {
            let reply_due = |key| self.clients.get(key).and_then(Client::reply_due);
            let timers = &mut self.shared.timers;
            timers.retain(|due, key| reply_due(key) == Some(due));
        }
    }

    /// Takes no more connections, and has every client end when nothing is owed to it.
    fn stop(&mut self) {
        if self.stop_at.is_some() {
            return;
        }
        self.stop_at = Some(self.shared.now + GRACE);
        // The last chance of those whom the kernel has accepted, whether or not there was room.
        self.may_accept = true;
        self.accept_paused_until = None;
        self.accept(BACKLOG.into());
        self.listener = None;
        self.may_accept = false;
        self.shared.is_stopping = true;
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(client) = self.clients.get_mut(key) {
                client.assume_readable();
                self.give_turn(key);
            }
        }
    }
}

/// How many clients there may be: as many as configured, or as the descriptor limit leaves room
/// for.
fn max_clients(max_connections: usize) -> usize {
    let descriptors = raise_descriptor_limit();
    let room = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(1);
    if room < max_connections {
        report(format_args!(
            "the descriptor limit, {descriptors}, leaves room for {room} connections; raise it \
             (ulimit -n) or lower --max-connections"
        ));
    }
    room.min(max_connections)
}

/// Raises the soft limit on descriptors to the hard one, and returns it.
fn raise_descriptor_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raise_to = |current| setrlimit(Resource::Nofile, Rlimit { current, maximum });
    // Where it is not allowed, the soft limit is what there is. macOS, whose hard limit is none and
    // whose soft one is 256, allows no more than OPEN_MAX (setrlimit(2)).
    if raise_to(maximum).is_err() && current.is_some_and(|limit| limit < OPEN_MAX) {
        let _ = raise_to(Some(OPEN_MAX));
    }
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| limit as usize)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::thread;

    use rustix::net::sockopt;

    use super::*;
    use crate::config::Config;
    use crate::metrics::Format;

    fn ask(mut stream: &TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = vec![0; 16 * 1024];
        let count = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    #[test]
    fn a_panic_closes_its_connection_and_harms_no_other() {
        let listener = crate::server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop_signal, mut stop) = UnixStream::pair().unwrap();
        let event_loop = thread::spawn(move || {
            let app = App::new(&Config::default());
            run(listener, stop_signal, app, &AccessLog::new(false), 10)
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

    /// An event loop that does what it is told and no more, its address, and what would stop it.
    fn driven(config: &Config) -> (EventLoop, SocketAddr, UnixStream) {
        let listener = crate::server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop_signal, stop) = UnixStream::pair().unwrap();
        let log = AccessLog::new(false);
        let event_loop = EventLoop::new(listener, stop_signal, App::new(config), &log, 10);
        (event_loop.unwrap(), address, stop)
    }

    /// The other ends of so many clients, whose keys count from 0.
    fn accepted(event_loop: &mut EventLoop, address: SocketAddr, count: usize) -> Vec<TcpStream> {
        let connect = |_| TcpStream::connect(address).unwrap();
        let streams = (0..count).map(connect).collect();
        while event_loop.clients.len() < count {
            wait_for(event_loop, LISTENER, Event::is_readable);
            event_loop.may_accept = true;
            event_loop.accept(count);
        }
        streams
    }

    /// Waits until the poll says this of a socket: what was sent may be under way for a while.
    fn wait_for(event_loop: &mut EventLoop, token: Token, condition: fn(&Event) -> bool) {
        let mut events = Events::with_capacity(16);
        let is_it = |event: &Event| event.token() == token && condition(event);
        while !events.iter().any(is_it) {
            let timeout = Some(Duration::from_secs(10));
            event_loop.poll.poll(&mut events, timeout).unwrap();
            assert!(!events.is_empty(), "waited in vain");
        }
    }

    const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Has a client send something in one piece, and gives it a turn.
    fn send(event_loop: &mut EventLoop, key: usize, mut stream: &TcpStream, bytes: &str) {
        stream.write_all(bytes.as_bytes()).unwrap();
        wait_for(event_loop, Token(key), Event::is_readable);
        event_loop.clients[key].assume_readable();
        event_loop.give_turn(key);
    }

    #[test]
    fn whoever_has_sent_as_much_as_is_read_at_once_is_read_from_again() {
        let (mut event_loop, address, _stop) = driven(&Config::default());
        let streams = accepted(&mut event_loop, address, 1);
        let field = format!("X: {}\r\n\r\n", "x".repeat(READ_SIZE / 2 - PROBE.len() - 5));
        let half = PROBE.replace("\r\n\r\n", "\r\n") + &field;
        assert_eq!(half.len(), READ_SIZE / 2);
        send(&mut event_loop, 0, &streams[0], &half.repeat(2));
        assert_eq!(event_loop.run_queue, [0]);
        event_loop.run_queued();
        assert!(event_loop.run_queue.is_empty(), "there was nothing more");
        send(&mut event_loop, 0, &streams[0], PROBE);
        assert!(event_loop.run_queue.is_empty(), "nobody is asked twice");
        assert_eq!(event_loop.clients.len(), 1);
    }

    /// It is read from, or written to, before the event that says so is looked at.
    #[test]
    fn whoever_is_found_to_have_left_is_closed() {
        for sent in ["", PROBE] {
            let (mut event_loop, address, _stop) = driven(&Config::default());
            let stream = accepted(&mut event_loop, address, 1).remove(0);
            (&stream).write_all(sent.as_bytes()).unwrap();
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            drop(stream);
            wait_for(&mut event_loop, Token(0), Event::is_error);
            event_loop.clients[0].assume_readable();
            event_loop.give_turn(0);
            assert!(event_loop.clients.is_empty());
        }
    }

    #[test]
    fn a_turn_is_32_requests_and_what_is_left_waits_for_the_next() {
        let (mut event_loop, address, _stop) = driven(&Config::default());
        let streams = accepted(&mut event_loop, address, 1);
        send(&mut event_loop, 0, &streams[0], &PROBE.repeat(80));
        for answered in [32, 64, 80] {
            let metrics = event_loop.shared.app.metrics();
            let page = metrics.exposition(Format::Text, &Config::default());
            let counted = format!("_count{{endpoint=\"/probe\",method=\"GET\"}} {answered}\n");
            assert!(page.contains(&counted), "{page}");
            event_loop.run_queued();
        }
        assert!(event_loop.run_queue.is_empty());
    }

    #[test]
    fn work_is_not_put_off_for_ever_by_who_never_stops_connecting() {
        let (mut event_loop, _, _stop) = driven(&Config::default());
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
    fn whoever_leaves_is_not_worked_for() {
        let work = Duration::from_secs(1);
        let (mut event_loop, address, _stop) = driven(&Config {
            work,
            ..Config::default()
        });
        let streams = accepted(&mut event_loop, address, 3);
        for (key, stream) in streams.iter().enumerate() {
            send(&mut event_loop, key, stream, PROBE);
        }
        event_loop.shared.now = Instant::now();
        event_loop.run_timers();
        assert_eq!(event_loop.shared.work_queue, [0, 1, 2]);
        event_loop.close(1);
        assert_eq!(event_loop.shared.work_queue, [0, 2]);
    }
}
