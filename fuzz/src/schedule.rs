//! One connection through everything that can happen to it, in any order: bytes in any pieces, a
//! client that reads slowly or never, delayed replies, time, ends, and being told to stop.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tiny_probe::app::{App, Reply};
use tiny_probe::config::Config;
use tiny_probe::server::event_loop::connection::{
    Buffers, Connection, KEEP_ALIVE_TIMEOUT, MAX_LINGERING, MAX_UNSENT, WRITE_TIMEOUT,
};
use tiny_probe::server::event_loop::request_head::{MAX_HEAD, Rejection};

use super::answers::{Answer, read};
use crate::drive::{DATE, drive, rejected_method};
use crate::request_heads::REQUEST_HEADS;

/// What the event loop reads at once, and answers in one turn, at most.
const READ: usize = 16 * 1024;
const REQUESTS_PER_TURN: usize = 32;
/// What the client sends in all, at most: enough to reach every bound, and soon done.
const MOST: usize = 96 * 1024;

const REQUEST: &[u8] = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";
const WITH_BODY: &[u8] = b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n";
const EXPECTING: &[u8] =
    b"PUT /probe HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 300\r\n\r\n";

/// Has it all happen: the input is pairs of what, and how much of it. Returns the connection as it
/// is left, and how many bytes it may hold.
pub fn check(mut input: &[u8]) -> (Connection, usize) {
    let mut world = World::new();
    while let [what, how_much, rest @ ..] = input
        && !world.is_closed
    {
        input = rest;
        let count = usize::from(*how_much);
        let tenths = Duration::from_millis(100) * u32::from(*how_much);
        match what % 11 {
            0 => world.client_sends(REQUEST_HEADS[count % REQUEST_HEADS.len()].1.as_bytes()),
            1 => world.client_sends(&REQUEST.repeat(count)),
            2 => {
                let (bytes, rest) = input.split_at(count.min(input.len()));
                input = rest;
                world.client_sends(bytes);
            }
            3 => world.client_sends(&b"x".repeat(count * count)),
            4 => world.client_sends(WITH_BODY),
            5 => world.client_sends(EXPECTING),
            6 => world.client_reads(count * count),
            7 => world.now += tenths,
            8 => world.delay = tenths,
            9 => world.read_size = (count * count).clamp(1, READ),
            _ if count % 2 == 0 => world.client_ends(),
            _ => world.stop(),
        }
        world.take_turns();
    }
    world.settle();
    world.check_conversation();
    let may_hold = world.may_hold();
    (world.connection, may_hold)
}

/// A connection, what the event loop keeps of it, its socket, and its client.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is independent of the others"
)]
struct World {
    app: App,
    now: Instant,

    connection: Connection,
    spare: Buffers,
    delayed: Option<(Instant, Reply)>,
    is_readable: bool,
    is_stopping: bool,
    is_closed: bool,
    /// An event has come, and is worth a turn.
    is_woken: bool,

    /// How long the next replies are delayed.
    delay: Duration,
    read_size: usize,
    /// Sent by the client, and not yet read.
    in_flight: VecDeque<u8>,
    sent_in_all: usize,
    has_ended: bool,
    /// How many more bytes the socket takes.
    room: usize,
    got: String,

    /// What was read and was to be answered.
    read: Vec<u8>,
    requests: Vec<Line>,
    answers: Vec<Answer>,
    /// Since when none of the unsent answers was taken.
    stalled_since: Option<Instant>,
    lingers_since: Option<Instant>,
    is_last_answered_while_stopping: bool,
    has_timed_out: bool,
    was_given_up: bool,
}

/// Method, target and status of a request that was given out, as in an `Outcome`.
type Line = (String, String, u16);

#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    AnotherTurn,
    Close,
}

/// What happens.
impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            app: App::new(&Config::default()),
            now,
            connection: Connection::new(now),
            spare: Buffers::default(),
            delayed: None,
            is_readable: false,
            is_stopping: false,
            is_closed: false,
            is_woken: false,
            delay: Duration::ZERO,
            read_size: READ,
            in_flight: VecDeque::new(),
            sent_in_all: 0,
            has_ended: false,
            room: 0,
            got: String::new(),
            read: Vec::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            stalled_since: None,
            lingers_since: None,
            is_last_answered_while_stopping: false,
            has_timed_out: false,
            was_given_up: false,
        }
    }

    fn client_sends(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(MOST - self.sent_in_all)];
        if bytes.is_empty() || self.has_ended {
            return;
        }
        self.in_flight.extend(bytes);
        self.sent_in_all += bytes.len();
        self.is_readable = true;
        self.is_woken = true;
    }

    fn client_ends(&mut self) {
        self.has_ended = true;
        self.is_readable = true;
        self.is_woken = true;
    }

    fn client_reads(&mut self, count: usize) {
        self.room += count;
        self.is_woken |= count > 0 && !self.connection.unsent().is_empty();
    }

    fn stop(&mut self) {
        self.is_stopping = true;
        self.is_readable = true;
        self.is_woken = true;
    }

    /// Waits until nothing is to be waited for but the client, which reads everything.
    fn settle(&mut self) {
        self.client_reads(usize::MAX / 2);
        self.take_turns();
        while !self.is_closed
            && let Some((due, _)) = self.delayed
        {
            self.now = due;
            self.take_turns();
        }
    }
}

/// What the event loop does about it. The names are its own.
impl World {
    fn take_turns(&mut self) {
        let is_due = self
            .delayed
            .as_ref()
            .is_some_and(|(due, _)| *due <= self.now);
        if self.is_closed || !(self.is_woken || is_due || self.has_deadline_passed()) {
            return;
        }
        self.is_woken = false;
        loop {
            let before = self.progress();
            self.connection.take_spare(&mut self.spare);
            let next = self.serve();
            self.connection.put_back(&mut self.spare);
            match next {
                Next::AnotherTurn => assert_ne!(self.progress(), before, "turns without an end"),
                Next::Wait => return self.check_wait(),
                Next::Close => return self.is_closed = true,
            }
        }
    }

    fn progress(&self) -> (usize, usize, usize, bool) {
        let (asked, got) = (self.requests.len(), self.got.len());
        (self.in_flight.len(), asked, got, self.is_readable)
    }

    fn has_deadline_passed(&self) -> bool {
        let deadline = self.connection.deadline();
        deadline.is_some_and(|deadline| deadline <= self.now)
    }

    fn serve(&mut self) -> Next {
        if let Some((_, reply)) = self.delayed.take_if(|(due, _)| *due <= self.now) {
            self.answer(&reply);
        }
        let mut budget = REQUESTS_PER_TURN;
        self.answer_received(&mut budget);
        if self.is_readable && self.connection.wants_bytes() {
            self.read();
            self.answer_received(&mut budget);
        }
        self.send();
        if self.has_deadline_passed() {
            let Some(rejection) = self.connection.expire() else {
                self.was_given_up = true;
                return Next::Close;
            };
            self.has_timed_out = true;
            self.refuse(rejection);
            self.send();
        }
        if self.connection.wants_half_close() {
            self.connection.linger(self.now);
            self.lingers_since = Some(self.now);
        }
        let may_read = self.is_readable && self.connection.wants_bytes();
        let is_to_end = self.is_stopping && self.connection.is_idle();
        if self.connection.is_finished() || (is_to_end && !may_read) {
            Next::Close
        } else if may_read || self.connection.can_answer() {
            Next::AnotherTurn
        } else {
            Next::Wait
        }
    }

    fn answer_received(&mut self, budget: &mut usize) {
        while *budget > 0 {
            let unsent = self.connection.unsent().len();
            let Some(request) = self.connection.next_request() else {
                return;
            };
            *budget -= 1;
            assert!(unsent < MAX_UNSENT && self.delayed.is_none());
            let request = match request {
                Ok(request) => request,
                Err(rejection) => return self.refuse(rejection),
            };
            let (method, target) = (request.method.to_owned(), request.target.to_owned());
            let reply = self.app.answer(&request, self.now);
            assert_eq!(
                self.connection.unsent().len(),
                unsent,
                "sent before the answer"
            );
            self.requests.push((method, target, reply.status.code()));
            if self.delay.is_zero() {
                self.answer(&reply);
            } else {
                self.delayed = Some((self.now + self.delay, reply));
            }
        }
    }

    fn refuse(&mut self, rejection: Rejection) {
        let reply = rejection.reply();
        let method = rejected_method(rejection);
        self.requests
            .push((method, String::new(), reply.status.code()));
        self.answer(&reply);
    }

    fn answer(&mut self, reply: &Reply) {
        if self.connection.unsent().is_empty() {
            self.stalled_since = Some(self.now);
        }
        self.answers.push(Answer::new(reply));
        self.is_last_answered_while_stopping = self.is_stopping;
        self.connection
            .answer(reply, DATE, self.is_stopping, self.now);
    }

    fn read(&mut self) {
        let count = self.in_flight.len().min(self.read_size);
        if count > 0 {
            let bytes: Vec<u8> = self.in_flight.drain(..count).collect();
            if self.lingers_since.is_none() {
                self.read.extend_from_slice(&bytes);
            }
            self.is_readable = count == self.read_size || self.has_ended;
            self.connection.receive(&bytes, self.now);
        } else {
            self.is_readable = false;
            if self.has_ended {
                self.connection.receive_end();
            }
        }
    }

    fn send(&mut self) {
        let unsent = self.connection.unsent();
        let count = unsent.len().min(self.room);
        if count > 0 {
            self.got += str::from_utf8(&unsent[..count]).expect("answers are ASCII");
            self.room -= count;
            self.connection.sent(count, self.now);
            self.stalled_since = Some(self.now);
        }
    }
}

/// What must hold.
impl World {
    /// Nothing is to be done: something must be waited for, and not forever.
    fn check_wait(&self) {
        let connection = &self.connection;
        let is_answering = self.delayed.is_some();
        let is_sending = !connection.unsent().is_empty();
        assert!(!is_sending || self.room == 0);
        assert!(!connection.wants_bytes() || self.in_flight.is_empty());
        assert!(
            is_answering || is_sending || connection.wants_bytes(),
            "stuck"
        );
        assert!(!connection.can_answer() && !connection.wants_half_close());
        assert!(connection.unsent().len() < 2 * MAX_UNSENT);
        let is_idle = !is_answering && !is_sending && self.lingers_since.is_none();
        assert_eq!(connection.is_idle(), is_idle);
        assert!(
            connection
                .idle_since()
                .is_none_or(|since| since <= self.now)
        );

        let Some(deadline) = connection.deadline() else {
            assert!(is_answering && !is_sending, "nobody ends this");
            return;
        };
        assert!(
            is_sending || !is_answering,
            "the client waits, and is to blame"
        );
        assert!(deadline > self.now && deadline <= self.now + KEEP_ALIVE_TIMEOUT);
        if let Some(since) = self.lingers_since {
            assert!(deadline <= since + MAX_LINGERING);
        } else if let (true, Some(since)) = (is_sending, self.stalled_since) {
            assert_eq!(deadline, since + WRITE_TIMEOUT);
        }
    }

    /// What was asked is what the same bytes ask for in one piece, and what was got answers it.
    fn check_conversation(&mut self) {
        let in_one_piece = drive(&mut self.app, [&self.read[..]]).requests;
        let understood = self.requests.len() - usize::from(self.has_timed_out);
        let lines = &self.requests[..understood];
        if self.was_given_up || self.may_have_expected_a_100() {
            assert!(in_one_piece.starts_with(lines), "{in_one_piece:?}");
        } else {
            assert_eq!(lines, in_one_piece);
            assert_eq!(self.answers.len(), self.requests.len());
        }

        let mut rest = &*self.got;
        let mut closes = false;
        for ((method, ..), expected) in self.requests.iter().zip(&self.answers) {
            let Some(mut answer) = read(&mut rest, method) else {
                assert!(self.was_given_up, "an answer was not sent");
                return;
            };
            assert!(!closes, "an answer after the last");
            closes = std::mem::take(&mut answer.closes);
            assert_eq!(&answer, expected);
        }
        assert!(rest.is_empty(), "{rest:?}");
        let is_over = self.is_closed || self.lingers_since.is_some();
        assert!(is_over || !closes, "the last was not the last");
        let is_refused = (self.requests.last()).is_some_and(|(_, target, _)| target.is_empty());
        let lingers = self.lingers_since.is_some() || self.has_ended || self.was_given_up;
        assert!(lingers || !is_refused, "the refusal may be lost to a reset");
        let may_close = closes || self.has_ended || self.was_given_up;
        let goes_unsaid = self.is_stopping && !self.is_last_answered_while_stopping;
        assert!(
            !is_over || may_close || goes_unsaid,
            "no answer said that it was the last"
        );
    }

    /// Whether a client may have been told to close because its body was not here with its head.
    fn may_have_expected_a_100(&self) -> bool {
        let read = self.read.to_ascii_lowercase();
        read.windows(12).any(|word| word == b"100-continue")
    }

    /// The head that has begun to come, and nothing else.
    fn may_hold(&self) -> usize {
        let idle_since = self.connection.idle_since();
        let is_within_head = self.connection.is_idle()
            && idle_since.map(|since| since + KEEP_ALIVE_TIMEOUT) != self.connection.deadline();
        match (self.is_closed, is_within_head) {
            (true, _) => usize::MAX,
            (false, true) => MAX_HEAD,
            (false, false) => 0,
        }
    }
}
