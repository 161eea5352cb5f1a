//! Tests of a client with a socket that does what the test says, and a clock that the test sets.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;

use super::*;
use crate::reply::Ending;

/// What the service was told about an exchange: path, outcome, number of body bytes, and milliseconds.
type Exchange = (Option<&'static str>, Outcome, usize, u128);

/// Answers a few paths, of which only /urgent is urgent, and records how exchanges ended.
#[derive(Default)]
struct Paths {
    ended: Vec<Exchange>,
    last_ended: Option<Ended<&'static str>>,
}

const BODY: &str = "I'm ok!";
const DELAY: Duration = Duration::from_secs(1);
/// As short as possible, so that the tests stay fast.
const WORK: Duration = Duration::from_nanos(1);

impl Service for Paths {
    type Memo = &'static str;

    fn answer(&mut self, request: &Request<'_>) -> Reply<&'static str> {
        let reply = Reply::text(Status::Ok, BODY);
        let ends = |ending| Reply::text(Status::Ok, BODY).end_with(ending);
        match request.path() {
            "/probe" => reply.remember("/probe"),
            "/urgent" => reply.remember("/urgent"),
            "/delayed" => reply.after(DELAY).remember("/delayed"),
            "/work" => reply.work(WORK).remember("/work"),
            "/both" => reply.after(DELAY).work(WORK).remember("/both"),
            "/stall" => ends(Ending::Stall).remember("/stall"),
            "/hang" => ends(Ending::Hang).remember("/hang"),
            "/reset" => ends(Ending::Reset).remember("/reset"),
            path => {
                // A body of this many bytes, delayed if the path says so.
                let (size, delay) = match path[1..].strip_suffix("/delayed") {
                    Some(size) => (size, DELAY),
                    None => (&path[1..], Duration::ZERO),
                };
                let body = vec![b'x'; size.parse().expect("a number of bytes")];
                let reply = Reply::new(Status::Ok, "text/plain; charset=utf-8", body);
                reply.after(delay).remember("/size")
            }
        }
    }

    fn is_urgent(&self, request: &Request<'_>) -> bool {
        assert_eq!(request.peer(), Some(peer()));
        request.path() == "/urgent"
    }

    fn refuse(&mut self, _: &Request<'_>) -> Option<&'static str> {
        Some("refused")
    }

    fn ended(&mut self, ended: Ended<&'static str>) {
        let millis = ended.duration.as_millis();
        self.ended
            .push((ended.memo, ended.outcome, ended.body_length, millis));
        self.last_ended = Some(ended);
    }
}

/// The kernel's side of the socket.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
struct Kernel {
    /// The bytes that the client has sent and that have not been read.
    unread: VecDeque<u8>,
    /// The client has closed its sending side.
    has_ended: bool,
    written: Vec<u8>,
    /// The number of bytes that are accepted before the send buffer is full.
    room: usize,
    /// Most of what was written has been delivered.
    has_delivered: bool,
    /// How often the kernel was asked about deliveries.
    questions: Cell<usize>,
    has_failed: bool,
    /// The next call fails as if a signal had interrupted it.
    is_interrupted: bool,
    is_sending_side_closed: bool,
    has_large_receive_buffer: bool,
    has_large_send_buffer: bool,
    resets_on_close: bool,
}

pub(crate) struct FakeStream(Rc<RefCell<Kernel>>);

impl Read for FakeStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut kernel = self.0.borrow_mut();
        if mem::take(&mut kernel.is_interrupted) {
            return Err(ErrorKind::Interrupted.into());
        }
        if kernel.unread.is_empty() && !kernel.has_ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        kernel.unread.read(buffer)
    }
}

impl Write for FakeStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kernel = self.0.borrow_mut();
        if mem::take(&mut kernel.is_interrupted) {
            return Err(ErrorKind::Interrupted.into());
        }
        let count = bytes.len().min(kernel.room);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        kernel.room -= count;
        kernel.written.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for FakeStream {
    fn close_sending_side(&mut self) -> io::Result<()> {
        self.0.borrow_mut().is_sending_side_closed = true;
        Ok(())
    }

    fn has_failed(&self) -> bool {
        self.0.borrow().has_failed
    }

    fn has_delivered(&self) -> bool {
        let kernel = self.0.borrow();
        kernel.questions.set(kernel.questions.get() + 1);
        kernel.has_delivered
    }

    fn enlarge_receive_buffer(&mut self) {
        self.0.borrow_mut().has_large_receive_buffer = true;
    }

    fn enlarge_send_buffer(&mut self) {
        self.0.borrow_mut().has_large_send_buffer = true;
    }

    fn reset_on_close(&mut self) {
        self.0.borrow_mut().resets_on_close = true;
    }
}

thread_local! {
    pub(crate) static NOW: Cell<Instant> = Cell::new(Instant::now());
}

const KEY: usize = 7;
const LONG: Duration = Duration::from_micros(50);
/// One request is answered, and nothing more is read.
const SHORT: Duration = Duration::ZERO;

pub(crate) const READABLE: Readiness = Readiness {
    is_readable: true,
    is_read_closed: false,
    is_writable: false,
    has_urgent_data: false,
    is_error: false,
};
pub(crate) const HALF_CLOSED: Readiness = Readiness {
    is_read_closed: true,
    ..READABLE
};

/// A client with a fake socket, and the state that all clients share.
pub(crate) struct Driver {
    pub(crate) client: Client<FakeStream, &'static str>,
    shared: Shared<Paths>,
    kernel: Rc<RefCell<Kernel>>,
}

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1234))
}

pub(crate) fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

impl Driver {
    /// A client with a slot, while memory is not scarce. The kernel accepts and delivers everything.
    pub(crate) fn new() -> Self {
        let kernel = Rc::new(RefCell::new(Kernel {
            room: usize::MAX,
            has_delivered: true,
            ..Kernel::default()
        }));
        let stream = FakeStream(Rc::clone(&kernel));
        let mut shared = Shared::new(Paths::default(), || NOW.get(), 16 * 1024);
        shared.date.update();
        Self {
            client: Client::new(KEY, stream, peer(), Admission::Admitted, shared.now),
            shared,
            kernel,
        }
    }

    /// Returns the time that the client's turns see.
    pub(crate) fn shared_now(&self) -> Instant {
        self.shared.now
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        NOW.set(NOW.get() + time);
        self.shared.now = NOW.get();
    }

    /// Sends bytes from the client, and reports the event.
    fn send(&mut self, bytes: &str) {
        self.kernel.borrow_mut().unread.extend(bytes.as_bytes());
        self.client.update_readiness(READABLE, self.shared.now);
    }

    /// Closes the client's sending side.
    pub(crate) fn half_close(&mut self) {
        self.kernel.borrow_mut().has_ended = true;
        self.client.update_readiness(HALF_CLOSED, self.shared.now);
    }

    /// Makes the kernel accept this many more bytes, and reports that the socket is writable.
    fn make_room(&mut self, room: usize) {
        self.kernel.borrow_mut().room = room;
        let readiness = Readiness {
            is_writable: true,
            ..Readiness::default()
        };
        self.client.update_readiness(readiness, self.shared.now);
    }

    fn turn(&mut self, time: Duration) -> Next {
        self.client.take_turn(time, &mut self.shared).unwrap()
    }

    /// Sends one request, and gives the client a turn.
    pub(crate) fn ask(&mut self, path: &str) -> Next {
        self.send(&request(path));
        self.turn(LONG)
    }

    /// Returns what was written since the last call.
    fn written(&mut self) -> String {
        let written = mem::take(&mut self.kernel.borrow_mut().written);
        String::from_utf8(written).unwrap()
    }

    fn unread(&self) -> usize {
        self.kernel.borrow().unread.len()
    }

    fn ended(&mut self) -> Vec<Exchange> {
        mem::take(&mut self.shared.service.ended)
    }

    /// Closes the connection. Returns whether that resets it, the exchanges that ended, and the shared state.
    fn close(mut self, is_lost: bool) -> (bool, Vec<Exchange>, Shared<Paths>) {
        self.client.close(is_lost, &mut self.shared);
        let ended = mem::take(&mut self.shared.service.ended);
        (self.kernel.borrow().resets_on_close, ended, self.shared)
    }
}

const ANSWERED: Exchange = (Some("/probe"), Outcome::Responded, BODY.len(), 0);

/// Returns the path of a response that has this many bytes in all. The length of its body has five digits
/// or, below 10,000, four.
fn path_of_length(length: usize) -> String {
    let digits = if length > 10_200 { 5 } else { 4 };
    let mut driver = Driver::new();
    driver.ask(if digits == 5 { "/10000" } else { "/1000" });
    let body = driver.shared.service.last_ended.take().unwrap().body_length;
    let head = driver.written().len() - body;
    format!("/{}", length - head)
}

#[test]
fn a_request_is_answered_in_one_turn_and_recorded_once() {
    let mut driver = Driver::new();
    assert_eq!(driver.ask("/probe"), Next::Wait);
    assert!(driver.written().ends_with(BODY));
    assert_eq!(driver.ended(), [ANSWERED]);
    let ended = driver.shared.service.last_ended.take().unwrap();
    assert_eq!((ended.status, ended.peer), (Status::Ok, Some(peer())));
    assert_eq!(&*ended.body, BODY.as_bytes());
    assert_eq!(
        (driver.client.held_bytes(), driver.shared.held_bytes),
        (0, 0)
    );
    let (resets, ended, _) = driver.close(false);
    assert!(!resets && ended.is_empty());
}

#[test]
fn an_invalid_request_is_rejected_and_then_the_sending_side_is_closed() {
    let mut driver = Driver::new();
    driver.send("nonsense\r\n\r\n");
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert!(driver.written().starts_with("HTTP/1.1 400 "));
    let ended = driver.shared.service.last_ended.take().unwrap();
    assert_eq!((ended.memo, ended.outcome), (None, Outcome::Rejected));
    assert_eq!(
        (ended.status, ended.peer),
        (Status::BadRequest, Some(peer()))
    );
    assert_eq!(ended.body_length, ended.body.len());
    assert!(driver.kernel.borrow().is_sending_side_closed);
    driver.half_close();
    assert_eq!(driver.turn(LONG), Next::Close);
}

#[test]
fn a_call_that_was_interrupted_is_repeated() {
    let mut driver = Driver::new();
    driver.kernel.borrow_mut().is_interrupted = true;
    assert_eq!(driver.ask("/probe"), Next::AnotherTurn);
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert_eq!(driver.ended(), [ANSWERED]);
    // The next request has been read, so that only the write is interrupted.
    driver.send(&request("/probe"));
    driver.client.read_ahead(&mut driver.shared);
    driver.written();
    driver.kernel.borrow_mut().is_interrupted = true;
    assert_eq!(driver.turn(SHORT), Next::Wait);
    assert!(driver.written().ends_with(BODY));
}

#[test]
fn a_turn_reads_only_before_its_end() {
    let mut driver = Driver::new();
    driver.send(&request("/probe"));
    assert_eq!(driver.turn(SHORT), Next::AnotherTurn);
    assert_ne!(driver.unread(), 0);
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert_eq!((driver.unread(), driver.ended().len()), (0, 1));
}

#[test]
fn after_its_end_a_turn_answers_no_further_request() {
    let mut driver = Driver::new();
    driver.send(&request("/probe").repeat(3));
    driver.client.read_ahead(&mut driver.shared);
    for answered in 1..=3 {
        let next = driver.turn(SHORT);
        assert_eq!(next == Next::AnotherTurn, answered < 3);
        assert_eq!(driver.shared.service.ended.len(), answered);
    }
    driver.send(&request("/probe").repeat(3));
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert_eq!(driver.shared.service.ended.len(), 6);
}

#[test]
fn while_a_reply_is_delayed_or_takes_work_later_requests_stay_in_the_kernel() {
    // While stopping, a reply that is due is sent after a look for another request.
    for (path, is_stopping) in [
        ("/delayed", false),
        ("/delayed", true),
        ("/both", false),
        ("/both", true),
        ("/work", false),
    ] {
        let mut driver = Driver::new();
        driver.ask(path);
        driver.shared.is_stopping = is_stopping;
        driver.send(&request("/probe"));
        // A reply without a delay is due at once, and then waits for its work.
        for _ in 0..2 {
            assert_eq!(driver.turn(LONG), Next::Wait, "{path}");
            assert_eq!(driver.unread(), request("/probe").len(), "{path}");
        }
        assert!(driver.written().is_empty() && driver.ended().is_empty());
    }
}

#[test]
fn a_delayed_reply_is_sent_when_it_is_due() {
    let mut driver = Driver::new();
    let received = NOW.get();
    assert_eq!(driver.ask("/delayed"), Next::Wait);
    assert_eq!(driver.client.reply_due(), Some(received + DELAY));
    assert_eq!(driver.shared.timers.next_due(), Some(received + DELAY));
    driver.wait(Duration::from_millis(999));
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert!(driver.written().is_empty());
    driver.wait(Duration::from_millis(1));
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert!(driver.written().ends_with(BODY));
    let expected = (Some("/delayed"), Outcome::Responded, BODY.len(), 1000);
    assert_eq!(driver.ended(), [expected]);
    assert_eq!(driver.client.reply_due(), None);
}

#[test]
fn work_is_queued_once_when_the_reply_is_due() {
    let mut driver = Driver::new();
    driver.ask("/both");
    assert!(driver.shared.work_queue.is_empty() && !driver.client.waits_for_work());
    driver.wait(DELAY);
    for _ in 0..2 {
        assert_eq!(driver.turn(LONG), Next::Wait);
        assert_eq!(driver.shared.work_queue, [KEY]);
        assert!(driver.client.waits_for_work());
    }
    assert!(
        !driver.client.refuse_delayed(NOW.get()),
        "work is not interrupted"
    );
    driver.client.work();
    assert!(!driver.client.waits_for_work() && driver.written().is_empty());
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert!(driver.written().ends_with(BODY));
    assert_eq!(driver.ended().len(), 1);
}

#[test]
fn a_delayed_reply_can_be_replaced_with_a_503() {
    let mut driver = Driver::new();
    assert!(!driver.client.refuse_delayed(NOW.get()));
    driver.ask("/delayed");
    driver.wait(DELAY / 2);
    assert!(driver.client.refuse_delayed(NOW.get()));
    assert_eq!(driver.client.reply_due(), Some(NOW.get()));
    driver.turn(LONG);
    let response = driver.written();
    assert!(response.starts_with("HTTP/1.1 503 ") && response.ends_with(TOO_BUSY));
    assert_eq!(driver.ended()[0].0, Some("/delayed"));
}

#[test]
fn at_the_end_of_the_grace_period_delayed_replies_become_a_503() {
    for path in ["/delayed", "/work", "/both"] {
        for is_over_before in [false, true] {
            let mut driver = Driver::new();
            driver.shared.is_stopping = true;
            driver.shared.is_grace_over = is_over_before;
            driver.ask(path);
            if !is_over_before {
                assert!(driver.written().is_empty());
                driver.shared.is_grace_over = true;
                driver.turn(LONG);
            }
            let response = driver.written();
            assert!(response.starts_with("HTTP/1.1 503 ") && response.ends_with(STOPPING));
            assert_eq!(driver.ended()[0].0, Some(path));
            assert!(driver.shared.work_queue.is_empty());
        }
    }
}

/// The client may have disconnected, or may still wait for its response.
#[test]
fn the_end_of_an_exchange_with_a_half_closed_client_is_known_after_250_milliseconds() {
    let after = |millis, confirms| {
        let mut driver = Driver::new();
        driver.ask("/delayed");
        driver.wait(DELAY / 4);
        driver.half_close();
        assert_eq!(driver.turn(LONG), Next::Wait);
        driver.wait(DELAY / 4 * 3);
        assert_eq!(driver.client.deadline(), None);
        assert_eq!(driver.turn(LONG), Next::Wait);
        assert!(driver.written().ends_with(BODY));
        assert!(driver.ended().is_empty());
        let confirmed = NOW.get() + Duration::from_millis(250);
        assert_eq!(driver.client.deadline(), Some(confirmed));
        driver.wait(Duration::from_millis(millis));
        let next = driver.turn(LONG);
        assert_eq!(next, if confirms { Next::Close } else { Next::Wait });
        driver
    };
    let responded = (Some("/delayed"), Outcome::Responded, BODY.len(), 1000);
    let disconnected = (Some("/delayed"), Outcome::Disconnected, 0, 250);
    assert_eq!(after(250, true).ended(), [responded]);
    assert!(after(249, false).ended().is_empty());
    assert_eq!(after(249, false).close(false).1, [responded]);
    assert_eq!(after(249, false).close(true).1, [disconnected]);
}

#[test]
fn a_client_that_waits_for_a_slot_has_no_deadline() {
    let mut driver = Driver::new();
    let start = NOW.get();
    assert_eq!(
        driver.client.deadline(),
        Some(start + Duration::from_secs(75))
    );
    driver.send("GET");
    driver.turn(LONG);
    assert_eq!(
        driver.client.deadline(),
        Some(start + Duration::from_secs(10))
    );
    // No deadline applies to a client that waits for the service.
    driver.client.set_admission(Admission::Waiting);
    driver.send(" /probe HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert_eq!(driver.client.deadline(), None);
}

#[test]
fn a_connection_expires_only_when_a_sweep_finds_that_its_deadline_has_passed() {
    for (seconds, is_swept, expected) in [
        (74, true, Next::Wait),
        (75, false, Next::Wait),
        (75, true, Next::Close),
    ] {
        let mut driver = Driver::new();
        driver.wait(Duration::from_secs(seconds));
        if is_swept {
            driver.client.check_deadline();
        }
        assert_eq!(driver.turn(LONG), expected, "{seconds}, {is_swept}");
        assert!(driver.written().is_empty());
    }
}

#[test]
fn a_head_that_takes_too_long_gets_a_408() {
    let mut driver = Driver::new();
    driver.send("GET /probe");
    driver.turn(LONG);
    driver.wait(Duration::from_secs(10));
    driver.client.check_deadline();
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert!(driver.written().starts_with("HTTP/1.1 408 "));
    assert_eq!(driver.ended()[0].1, Outcome::Rejected);
    assert!(driver.kernel.borrow().is_sending_side_closed);
}

#[test]
fn a_connection_does_not_expire_before_what_arrived_in_time_is_read_and_answered() {
    let expires = |driver: &mut Driver, time| {
        driver.wait(Duration::from_secs(10));
        driver.client.check_deadline();
        let next = driver.turn(time);
        let written = driver.written();
        (next, written.contains("HTTP/1.1 408"))
    };
    // Only one read per turn: the rest of the head is still in the kernel.
    let mut driver = Driver::new();
    driver.send("GET /probe");
    driver.turn(LONG);
    driver.send(&"x".repeat(2 * 1024));
    driver.shared.read_buffer = vec![0; 1024].into_boxed_slice();
    let outcome = expires(&mut driver, LONG);
    assert_eq!(outcome, (Next::AnotherTurn, false));

    // The client reads nothing. Each turn answers one request.
    let mut driver = Driver::new();
    driver.kernel.borrow_mut().room = 0;
    driver.send(&request("/probe").repeat(3));
    driver.client.read_ahead(&mut driver.shared);
    driver.turn(SHORT);
    let outcome = expires(&mut driver, SHORT);
    assert_eq!(outcome, (Next::AnotherTurn, false));
    driver.client.check_deadline();
    assert_eq!(driver.turn(LONG), Next::Close);
    assert_eq!(driver.ended().len(), 3);

    // The request waits for a slot.
    let mut driver = Driver::new();
    driver.client.set_admission(Admission::Waiting);
    driver.ask("/probe");
    assert_eq!(expires(&mut driver, LONG), (Next::Wait, false));
}

/// A client that never stops sending could otherwise keep its connection.
#[test]
fn a_lingering_connection_expires_although_bytes_are_unread() {
    let mut driver = Driver::new();
    driver.send("nonsense\r\n\r\n");
    driver.turn(LONG);
    driver.wait(Duration::from_secs(2));
    driver.send(&"x".repeat(64 * 1024));
    driver.client.check_deadline();
    assert_eq!(driver.turn(SHORT), Next::Close);
}

#[test]
fn the_sending_side_is_closed_after_delivery_or_while_stopping() {
    for (has_delivered, is_stopping, closes) in [
        (true, false, true),
        (false, false, false),
        (false, true, true),
    ] {
        let mut driver = Driver::new();
        driver.kernel.borrow_mut().has_delivered = has_delivered;
        driver.shared.is_stopping = is_stopping;
        driver.send("nonsense\r\n\r\n");
        assert_eq!(driver.turn(LONG), Next::Wait);
        assert_eq!(driver.kernel.borrow().is_sending_side_closed, closes);
        assert_eq!(driver.client.evictable().is_some(), closes);
    }
    let mut driver = Driver::new();
    driver.ask("/probe");
    assert!(!driver.kernel.borrow().is_sending_side_closed);
}

#[test]
fn a_last_response_that_was_read_in_time_is_not_lost_when_the_turn_is_late() {
    // After the half-close, there may be bytes to discard.
    for (is_read, expected) in [(true, Next::AnotherTurn), (false, Next::Close)] {
        let mut driver = Driver::new();
        driver.kernel.borrow_mut().has_delivered = false;
        driver.send("nonsense\r\n\r\n");
        driver.turn(LONG);
        driver.wait(Duration::from_secs(11));
        driver.kernel.borrow_mut().has_delivered = is_read;
        driver.client.check_deadline();
        assert_eq!(driver.turn(LONG), expected);
        assert_eq!(driver.kernel.borrow().is_sending_side_closed, is_read);
    }
}

#[test]
fn a_finished_connection_is_closed_after_delivery_or_while_stopping() {
    for (has_delivered, is_stopping, expected) in [
        (true, false, Next::Close),
        (false, false, Next::Wait),
        (false, true, Next::Close),
    ] {
        let mut driver = Driver::new();
        driver.kernel.borrow_mut().has_delivered = has_delivered;
        driver.ask("/probe");
        driver.shared.is_stopping = is_stopping;
        driver.half_close();
        assert_eq!(driver.turn(LONG), expected);
    }
}

#[test]
fn a_reply_that_resets_sends_nothing() {
    let mut driver = Driver::new();
    assert_eq!(driver.ask("/reset"), Next::Close);
    assert!(driver.written().is_empty() && driver.kernel.borrow().resets_on_close);
    assert_eq!(driver.ended()[0].1, Outcome::Dropped);
}

#[test]
fn an_exchange_whose_response_stays_incomplete_ends_with_its_connection() {
    for (path, outcome, body_length) in [
        ("/stall", Outcome::Responded, BODY.len() / 2),
        ("/hang", Outcome::Dropped, 0),
    ] {
        let mut driver = Driver::new();
        let start = NOW.get();
        assert_eq!(driver.ask(path), Next::Wait);
        assert!(driver.ended().is_empty());
        assert_eq!(driver.client.stalled_since(), Some(start));
        driver.wait(Duration::from_secs(3));
        let (_, ended, _) = driver.close(true);
        assert_eq!(ended, [(Some(path), outcome, body_length, 3000)]);
    }
}

#[test]
fn a_client_that_disconnects_before_its_reply_is_recorded_with_the_time_until_then() {
    let mut driver = Driver::new();
    driver.ask("/delayed");
    driver.wait(Duration::from_millis(300));
    driver.half_close();
    driver.wait(Duration::from_millis(300));
    let expected = |millis| (Some("/delayed"), Outcome::Disconnected, 0, millis);
    assert_eq!(driver.close(true).1, [expected(300)]);

    let mut driver = Driver::new();
    driver.ask("/delayed");
    // Only a half-close counts, and no other event.
    driver.send(&request("/probe"));
    driver.wait(Duration::from_millis(600));
    assert_eq!(driver.close(true).1, [expected(600)]);

    // The end can also be known before the request is answered.
    let mut driver = Driver::new();
    driver.send(&request("/delayed"));
    driver.half_close();
    driver.turn(LONG);
    driver.wait(Duration::from_millis(600));
    assert_eq!(driver.close(true).1, [expected(0)]);
}

#[test]
fn a_request_whose_answer_panics_is_recorded_when_its_connection_closes() {
    let mut driver = Driver::new();
    driver.shared.answer_began_at = Some(NOW.get());
    NOW.set(NOW.get() + Duration::from_millis(3));
    let (_, ended, shared) = driver.close(false);
    assert_eq!(ended, [(None, Outcome::Panicked, 0, 3)]);
    assert_eq!(shared.answer_began_at, None);
    let ended = shared.service.last_ended.unwrap();
    assert_eq!(ended.status, Status::InternalServerError);
    assert_eq!(ended.peer, Some(peer()));
}

#[test]
fn closing_resets_the_connection_if_a_response_is_unread_unless_the_server_stops() {
    for (room, has_delivered, is_stopping, resets) in [
        (usize::MAX, true, false, false),
        (usize::MAX, false, false, true),
        (0, true, false, true),
        (0, false, true, false),
    ] {
        let mut driver = Driver::new();
        driver.kernel.borrow_mut().room = room;
        driver.ask("/probe");
        driver.kernel.borrow_mut().has_delivered = has_delivered;
        driver.shared.is_stopping = is_stopping;
        assert_eq!(driver.close(false).0, resets);
    }
}

#[test]
fn closing_returns_memory_and_large_buffers() {
    let mut driver = Driver::new();
    driver.shared.large_buffers = LargeBuffers {
        to_receive: 3,
        to_send: 3,
    };
    driver.shared.held_bytes = 5;
    driver.kernel.borrow_mut().room = 0;
    driver.send(&request("/probe").repeat(60));
    driver.ask("/20000");
    assert!(driver.shared.held_bytes > 20_000);
    driver.make_room(usize::MAX);
    driver.turn(LONG);
    driver.send(&request("/probe").repeat(60));
    driver.turn(LONG);
    let large = &driver.shared.large_buffers;
    assert_eq!((large.to_receive, large.to_send), (2, 2));
    assert_ne!(driver.shared.held_bytes, 5);
    let (_, _, shared) = driver.close(false);
    let large = shared.large_buffers;
    assert_eq!((large.to_receive, large.to_send), (3, 3));
    assert_eq!(shared.held_bytes, 5);
}

#[test]
fn written_bytes_count_as_held_from_2731_until_the_kernel_has_delivered_them() {
    for (length, counted) in [(2730, 0), (2731, 2731)] {
        let path = path_of_length(length);
        let mut driver = Driver::new();
        driver.shared.held_bytes = 5;
        driver.kernel.borrow_mut().has_delivered = false;
        driver.ask(&path);
        assert_eq!(driver.written().len(), length);
        assert_eq!(driver.client.held_bytes(), counted);
        assert_eq!(driver.shared.held_bytes, 5 + counted);
        // The kernel is asked only if bytes are counted.
        driver.client.check_delivery(&mut driver.shared);
        assert_eq!(
            driver.kernel.borrow().questions.get(),
            usize::from(counted > 0)
        );
        assert_eq!(driver.shared.held_bytes, 5 + counted);
        driver.kernel.borrow_mut().has_delivered = true;
        driver.client.check_delivery(&mut driver.shared);
        assert_eq!(
            (driver.client.held_bytes(), driver.shared.held_bytes),
            (0, 5)
        );
        // Then counting starts again from 0, unless the kernel was not asked.
        let left = if counted > 0 { 0 } else { length };
        assert_eq!(driver.client.in_kernel, left);
    }
}

#[test]
fn the_kernel_is_asked_for_deliveries_after_more_than_16_kib() {
    for (length, has_delivered, held) in [
        (16_384, true, 16_384),
        (16_385, true, 0),
        (16_385, false, 16_385),
    ] {
        let path = path_of_length(length);
        let mut driver = Driver::new();
        driver.kernel.borrow_mut().has_delivered = has_delivered;
        driver.ask(&path);
        assert_eq!(driver.client.held_bytes(), held, "{length}");
    }
    let path = path_of_length(8000);
    let mut driver = Driver::new();
    for expected in [8000, 16_000, 0, 8000] {
        driver.ask(&path);
        assert_eq!(driver.client.held_bytes(), expected);
    }
}

/// The kernel takes at most one segment and the contents of the buffer, whose size it doubles.
#[test]
fn at_most_72_kib_count_as_in_the_kernel_or_144_with_a_large_send_buffer() {
    for (is_large, counted) in [(false, 73_728), (true, 147_456)] {
        let mut driver = Driver::new();
        driver.client.has_large_send_buffer = is_large;
        driver.kernel.borrow_mut().has_delivered = false;
        driver.ask("/1000000");
        assert_eq!(driver.client.held_bytes(), counted);
    }
}

#[test]
fn a_client_holds_its_buffers_its_delayed_reply_and_a_full_send_buffer() {
    // An incomplete head.
    let mut driver = Driver::new();
    driver.shared.held_bytes = 5;
    driver.send("GET");
    driver.turn(LONG);
    assert_eq!(
        (driver.client.held_bytes(), driver.shared.held_bytes),
        (3, 8)
    );
    driver.send(" /");
    driver.turn(LONG);
    assert_eq!(
        (driver.client.held_bytes(), driver.shared.held_bytes),
        (5, 10)
    );

    // A delayed reply.
    let mut driver = Driver::new();
    driver.ask("/3000/delayed");
    assert_eq!(driver.client.held_bytes(), 3000);
    driver.send("GET");
    driver.client.read_ahead(&mut driver.shared);
    assert_eq!(
        driver.client.held_bytes(),
        3000,
        "nothing is read meanwhile"
    );

    // 3000 bytes of a response are written. The rest waits because the send buffer is full.
    let mut driver = Driver::new();
    driver.kernel.borrow_mut().room = 3000;
    driver.ask(&path_of_length(5000));
    assert_eq!(driver.client.held_bytes(), 2000 + 3000 + 2 * 4096);
    assert_eq!(driver.shared.held_bytes, driver.client.held_bytes());
}

#[test]
fn the_client_that_has_held_the_most_for_the_longest_time_is_the_first_memory_holder() {
    let start = NOW.get();
    // What they have sent, and after how many microseconds.
    let mut holding = [
        ("", 3),
        ("GET /xxxxx", 0),
        ("GET /xxxxxxxxxxxxxx", 1),
        ("GET", 3),
    ]
    .map(|(bytes, micros)| {
        let mut driver = Driver::new();
        driver.shared.now = start + Duration::from_micros(micros);
        driver.send(bytes);
        driver.turn(LONG);
        driver
    });
    let now = start + Duration::from_micros(3);
    let clients = |holding: &[Driver], scarce_from| {
        let clients = holding.iter().map(|driver| &driver.client).enumerate();
        let holders = memory_holders(clients, scarce_from, now);
        holders.into_sorted_vec()
    };
    let expected = [(3, 3), (10 * 3, 1), (19 * 2, 2)];
    assert_eq!(clients(&holding, 1), expected);

    // A delayed reply counts only if such replies make memory scarce.
    holding[3] = Driver::new();
    holding[3].ask("/3000/delayed");
    for (scarce_from, expected) in [
        (3001, &[(10 * 3, 1), (19 * 2, 2)][..]),
        (3000, &[(10 * 3, 1), (19 * 2, 2), (3000 * 3, 3)]),
    ] {
        assert_eq!(clients(&holding, scarce_from), expected);
    }
}

#[test]
fn a_client_is_stalled_half_a_second_after_its_last_progress_unless_it_is_queued() {
    let mut driver = Driver::new();
    driver.send("GET");
    driver.turn(LONG);
    let is_stalled = |driver: &Driver, millis| {
        let now = NOW.get() + Duration::from_millis(millis);
        driver.client.is_stalled(now)
    };
    assert!(!is_stalled(&driver, 499) && is_stalled(&driver, 500));
    driver.client.is_queued = true;
    assert!(!is_stalled(&driver, 499) && !is_stalled(&driver, 500));
}

#[test]
fn while_memory_is_scarce_the_last_response_must_have_been_sent() {
    for (scarce_from, answered) in [(usize::MAX, 2), (0, 1)] {
        let mut driver = Driver::new();
        driver.kernel.borrow_mut().room = 0;
        driver.shared.scarce_from = scarce_from;
        driver.send(&request("/probe").repeat(2));
        driver.turn(LONG);
        assert_eq!(driver.ended().len(), answered);
        driver.make_room(usize::MAX);
        while driver.turn(LONG) == Next::AnotherTurn {}
        assert_eq!(driver.ended().len(), 2 - answered);
    }
}

#[test]
fn while_memory_is_full_a_request_waits_for_delivery_and_if_it_is_not_urgent_for_half_a_second() {
    for (path, has_delivered, millis, is_answered) in [
        ("/probe", true, 499, false),
        ("/probe", true, 500, true),
        ("/probe", false, 500, false),
        ("/urgent", true, 0, true),
        ("/urgent", false, 0, false),
    ] {
        let mut driver = Driver::new();
        driver.shared.scarce_from = 0;
        driver.shared.full_from = 0;
        driver.kernel.borrow_mut().has_delivered = false;
        driver.send(&request(path));
        driver.turn(LONG);
        driver.kernel.borrow_mut().has_delivered = has_delivered;
        driver.wait(Duration::from_millis(millis));
        let can_answer = driver.client.can_answer(&driver.shared);
        assert_eq!(can_answer, is_answered, "{path}");
        driver.turn(LONG);
        assert_eq!(driver.ended().len(), usize::from(is_answered), "{path}");
    }
}

#[test]
fn a_client_waits_for_memory_once_and_only_with_a_request() {
    let mut driver = Driver::new();
    driver.shared.full_from = 0;
    assert_eq!(driver.turn(LONG), Next::Wait);
    assert!(driver.shared.waiting_for_memory.is_empty());
    driver.ask("/probe");
    driver.turn(LONG);
    assert_eq!(driver.shared.waiting_for_memory, [KEY]);
    driver.client.stop_waiting_for_memory();
    driver.turn(LONG);
    assert_eq!(driver.shared.waiting_for_memory, [KEY, KEY]);

    // While memory is not full, a request that waits for a slot does not wait for memory.
    let mut driver = Driver::new();
    driver.client.set_admission(Admission::Waiting);
    driver.ask("/probe");
    assert!(driver.shared.waiting_for_memory.is_empty());
}

#[test]
fn a_read_takes_1_kib_while_memory_is_scarce() {
    for (scarce_from, unread) in [(usize::MAX, 0), (0, 1000)] {
        let mut driver = Driver::new();
        driver.shared.scarce_from = scarce_from;
        driver.send(&"x".repeat(2024));
        driver.turn(LONG);
        assert_eq!(driver.unread(), unread);
    }
}

#[test]
fn the_receive_buffer_becomes_large_for_a_client_that_pipelines_and_reads() {
    // (number of requests before, bytes received at once, room for responses, large buffers left)
    for (before, received, room, left, enlarges) in [
        (2, 1152, usize::MAX, 2, true),
        (2, 1152, usize::MAX, 1, true),
        (2, 1152, usize::MAX, 0, false),
        (2, 1151, usize::MAX, 1, false),
        (1, 1152, usize::MAX, 1, false),
        (2, 1152, 0, 1, false),
    ] {
        let mut driver = Driver::new();
        driver.shared.large_buffers.to_receive = left;
        driver.kernel.borrow_mut().room = room;
        driver.send(&request("/probe").repeat(before));
        driver.turn(LONG);
        driver.send(&"x".repeat(received));
        driver.turn(LONG);
        let case = format!("{before}, {received}, {room}, {left}");
        let is_large = driver.kernel.borrow().has_large_receive_buffer;
        assert_eq!(is_large, enlarges, "{case}");
        let taken = left - driver.shared.large_buffers.to_receive;
        assert_eq!(taken, usize::from(enlarges), "{case}");
        // A client takes at most one.
        driver.send(&"x".repeat(1152));
        driver.turn(LONG);
        if enlarges {
            assert_eq!(left - driver.shared.large_buffers.to_receive, 1, "{case}");
        }
    }
}

#[test]
fn the_send_buffer_becomes_large_when_it_is_full_and_more_than_8_kib_remain() {
    for (unsent, scarce_from, left, enlarges) in [
        (8193, usize::MAX, 2, true),
        (8193, usize::MAX, 1, true),
        (8193, usize::MAX, 0, false),
        (8192, usize::MAX, 1, false),
        (8193, 0, 1, false),
    ] {
        let path = path_of_length(unsent + 3000);
        let mut driver = Driver::new();
        driver.shared.large_buffers.to_send = left;
        driver.shared.scarce_from = scarce_from;
        driver.kernel.borrow_mut().room = 3000;
        driver.ask(&path);
        let case = format!("{unsent}, {scarce_from}, {left}");
        assert_eq!(driver.written().len(), 3000, "{case}");
        let is_large = driver.kernel.borrow().has_large_send_buffer;
        assert_eq!(is_large, enlarges, "{case}");
        // The full buffer is found twice, but a client takes at most one large buffer.
        let taken = left - driver.shared.large_buffers.to_send;
        assert_eq!(taken, usize::from(enlarges), "{case}");
    }
}

#[test]
fn fewer_than_3_kib_wait_for_the_responses_of_the_next_turn() {
    // (unsent bytes, whether the server stops, memory is scarce, another request has been received)
    for (length, is_stopping, is_scarce, has_another, waits) in [
        (3071, false, false, true, true),
        (3072, false, false, true, false),
        (3071, true, false, true, false),
        (3071, false, true, true, false),
        (3071, false, false, false, false),
    ] {
        let path = path_of_length(length);
        let mut driver = Driver::new();
        driver.shared.is_stopping = is_stopping;
        driver.shared.scarce_from = if is_scarce { 0 } else { usize::MAX };
        let mut requests = request(&path);
        if has_another {
            requests += &request("/probe");
        }
        driver.send(&requests);
        driver.client.read_ahead(&mut driver.shared);
        driver.turn(SHORT);
        assert_eq!(driver.written().is_empty(), waits, "{length}");
    }
}

#[test]
fn the_rest_of_a_response_is_written_when_the_kernel_has_room() {
    let path = path_of_length(5000);
    let mut driver = Driver::new();
    driver.kernel.borrow_mut().room = 3000;
    driver.ask(&path);
    assert_eq!(driver.written().len(), 3000);
    assert!(driver.client.stalled_since().is_some());
    driver.make_room(usize::MAX);
    driver.turn(LONG);
    assert_eq!(driver.written().len(), 2000);
    assert_eq!(driver.client.stalled_since(), None);
}

#[test]
fn a_request_on_the_reserve_waits_for_a_slot_unless_it_is_urgent_or_invalid() {
    for (bytes, admission, waits) in [
        (request("/probe"), Admission::Waiting, true),
        (request("/probe"), Admission::Admitted, false),
        (request("/probe"), Admission::Refused, false),
        (request("/urgent"), Admission::Waiting, false),
        ("nonsense\r\n\r\n".to_owned(), Admission::Waiting, false),
        ("GET /pro".to_owned(), Admission::Waiting, false),
    ] {
        let mut driver = Driver::new();
        driver.client.set_admission(admission);
        assert_eq!(driver.client.admission(), admission);
        driver.send(&bytes);
        assert!(driver.client.read_ahead(&mut driver.shared));
        let waits_now = driver.client.waits_for_admission(&driver.shared);
        assert_eq!(waits_now, waits, "{bytes} {admission:?}");
        driver.turn(LONG);
        let ended = driver.ended().len();
        let is_complete = bytes.ends_with("\r\n\r\n");
        assert_eq!(ended, usize::from(is_complete && !waits), "{bytes}");
    }
}

#[test]
fn a_refused_request_gets_a_503_unless_it_is_urgent() {
    for (path, memo, status) in [
        ("/probe", "refused", Status::ServiceUnavailable),
        ("/urgent", "/urgent", Status::Ok),
    ] {
        let mut driver = Driver::new();
        driver.client.set_admission(Admission::Refused);
        driver.ask(path);
        assert_eq!(driver.shared.answer_began_at, None);
        let response = driver.written();
        assert!(response.contains("\r\nConnection: close\r\n"), "{response}");
        let ended = driver.shared.service.last_ended.take().unwrap();
        assert_eq!((ended.memo, ended.status), (Some(memo), status));
        assert_eq!(ended.outcome, Outcome::Responded);
    }
}

#[test]
fn reading_ahead_reads_what_the_client_has_sent_and_answers_nothing() {
    let mut driver = Driver::new();
    assert!(!driver.client.read_ahead(&mut driver.shared));
    driver.kernel.borrow_mut().unread.extend(b"GET");
    assert!(driver.client.read_ahead(&mut driver.shared));
    assert!(!driver.client.has_next_request());
    let rest = b" /probe HTTP/1.1\r\nHost: a\r\n\r\n";
    driver.kernel.borrow_mut().unread.extend(rest);
    assert!(driver.client.read_ahead(&mut driver.shared));
    assert!(driver.client.has_next_request());
    assert!(driver.ended().is_empty());
    // While a request waits, nothing more is read.
    driver.kernel.borrow_mut().unread.extend(b"GET");
    assert!(!driver.client.read_ahead(&mut driver.shared));
    assert_eq!(driver.unread(), 3);

    // What a lingering client sends is discarded by its turns.
    let mut driver = Driver::new();
    driver.send("nonsense\r\n\r\n");
    driver.turn(LONG);
    driver.kernel.borrow_mut().unread.extend(b"GET");
    assert!(!driver.client.read_ahead(&mut driver.shared));
    assert_eq!(driver.unread(), 3);
}

#[test]
fn an_idle_or_half_closed_connection_can_be_evicted() {
    let mut driver = Driver::new();
    let start = NOW.get();
    assert_eq!(driver.client.evictable(), Some(Evictable::Idle(start)));
    driver.ask("/delayed");
    assert_eq!(driver.client.evictable(), None);
    driver.wait(DELAY / 2);
    assert!(!driver.client.is_half_closed());
    driver.half_close();
    assert!(driver.client.is_half_closed());
    let half_closed = Some(Evictable::HalfClosed(start + DELAY / 2));
    assert_eq!(driver.client.evictable(), half_closed);
    driver.wait(DELAY / 4);
    driver.half_close();
    assert_eq!(
        driver.client.evictable(),
        half_closed,
        "the first time counts"
    );
}

#[test]
fn a_client_reads_its_last_response_until_the_kernel_has_delivered_it() {
    let mut driver = Driver::new();
    driver.kernel.borrow_mut().has_delivered = false;
    driver.ask("/probe");
    assert!(driver.client.is_reading_last_response());
    driver.kernel.borrow_mut().has_delivered = true;
    assert!(!driver.client.is_reading_last_response());
    driver.kernel.borrow_mut().has_delivered = false;
    driver.ask("/delayed");
    assert!(!driver.client.is_reading_last_response(), "it is not idle");
}

#[test]
fn a_client_whose_socket_has_failed_has_failed() {
    let driver = Driver::new();
    assert!(!driver.client.has_failed());
    driver.kernel.borrow_mut().has_failed = true;
    assert!(driver.client.has_failed());
}

/// Returns whether the last response in `written` closes its connection.
fn closes(written: &str) -> bool {
    let last = written.rfind("HTTP/1.1 ").unwrap();
    written[last..].contains("\r\nConnection: close\r\n")
}

#[test]
fn a_response_closes_its_connection_while_stopping_or_on_the_reserve() {
    for (is_stopping, admission, expected) in [
        (false, Admission::Admitted, false),
        (true, Admission::Admitted, true),
        (false, Admission::Waiting, true),
        (false, Admission::Refused, true),
    ] {
        let mut driver = Driver::new();
        driver.shared.is_stopping = is_stopping;
        driver.client.set_admission(admission);
        driver.ask("/urgent");
        let response = driver.written();
        assert_eq!(closes(&response), expected, "{is_stopping} {admission:?}");
    }
}

#[test]
fn while_stopping_a_client_that_pipelined_within_200_milliseconds_keeps_its_connection() {
    for (sent, millis, expected) in [(2, 199, false), (2, 200, true), (1, 0, true)] {
        let mut driver = Driver::new();
        driver.send(&request("/probe").repeat(sent));
        driver.turn(LONG);
        driver.written();
        driver.shared.is_stopping = true;
        driver.wait(Duration::from_millis(millis));
        driver.ask("/probe");
        assert_eq!(closes(&driver.written()), expected, "{sent} {millis}");
    }
    // A turn answers what was read before it, and then what it reads itself.
    let mut driver = Driver::new();
    driver.send(&request("/probe"));
    driver.client.read_ahead(&mut driver.shared);
    driver.ask("/probe");
    driver.written();
    driver.shared.is_stopping = true;
    driver.ask("/probe");
    assert!(!closes(&driver.written()));
}

#[test]
fn a_response_does_not_close_the_connection_before_further_requests_are_answered() {
    // A second request has been read, is in the kernel, or was answered in the same turn.
    let mut driver = Driver::new();
    driver.shared.turnovers = 1;
    driver.send(&request("/probe").repeat(2));
    driver.client.read_ahead(&mut driver.shared);
    driver.turn(SHORT);
    driver.turn(SHORT);
    let written = driver.written();
    assert_eq!(written.matches("Connection: close").count(), 1);
    assert!(closes(&written));
    assert_eq!(driver.shared.turnovers, 0);

    let mut driver = Driver::new();
    driver.shared.turnovers = 1;
    driver.shared.read_buffer = vec![0; request("/probe").len()].into_boxed_slice();
    driver.send(&request("/probe").repeat(2));
    driver.turn(LONG);
    assert!(!closes(&driver.written()));

    let mut driver = Driver::new();
    driver.shared.turnovers = 1;
    driver.send(&request("/probe").repeat(2));
    driver.turn(LONG);
    assert!(!driver.written().contains("Connection: close"));
    assert_eq!(driver.shared.turnovers, 1);
}

#[test]
fn a_turnover_closes_one_connection_unless_a_body_is_still_on_its_way() {
    let mut driver = Driver::new();
    driver.shared.turnovers = 2;
    driver.ask("/probe");
    assert!(closes(&driver.written()));
    assert_eq!(driver.shared.turnovers, 1);

    let mut driver = Driver::new();
    driver.ask("/probe");
    assert!(!closes(&driver.written()));
    assert_eq!(driver.shared.turnovers, 0);

    for (body, expected) in [("", false), ("x", false), ("xyz", true)] {
        let mut driver = Driver::new();
        driver.shared.turnovers = 1;
        let head = "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
        driver.send(&format!("{head}{body}"));
        driver.turn(LONG);
        assert_eq!(closes(&driver.written()), expected, "{body}");
    }
}

#[test]
fn at_the_end_of_a_shutdown_the_last_response_closes_the_connection_even_if_the_client_pipelines() {
    for (from, expected) in [(1, 0), (0, 1)] {
        let mut driver = Driver::new();
        driver.shared.is_stopping = true;
        driver.shared.closes_from = Some(NOW.get() + Duration::from_millis(from));
        driver.send(&request("/probe").repeat(3));
        driver.turn(LONG);
        let written = driver.written();
        assert_eq!(written.matches("Connection: close").count(), expected);
    }
}

/// Otherwise the request would be lost: this response would close the connection.
#[test]
fn while_stopping_a_turn_reads_further_requests_before_it_sends_a_delayed_reply() {
    for (is_stopping, sends_another, closes_connection, is_read) in [
        (true, false, true, true),
        (true, true, false, true),
        (false, true, false, false),
    ] {
        let mut driver = Driver::new();
        driver.ask("/delayed");
        driver.shared.is_stopping = is_stopping;
        driver.wait(DELAY);
        if sends_another {
            driver.send(&request("/probe"));
        }
        driver.turn(SHORT);
        assert_eq!(closes(&driver.written()), closes_connection);
        assert_eq!(driver.unread() == 0, is_read);
    }
}

#[test]
fn a_stop_makes_the_next_turn_read_and_shortens_the_keep_alive_timeout() {
    let mut driver = Driver::new();
    driver.ask("/probe");
    driver
        .kernel
        .borrow_mut()
        .unread
        .extend(request("/probe").as_bytes());
    driver.wait(Duration::from_secs(1));
    driver.client.stop(NOW.get());
    let deadline = NOW.get() + Duration::from_millis(200);
    assert_eq!(driver.client.deadline(), Some(deadline));
    driver.turn(LONG);
    assert_eq!(driver.ended().len(), 2);
}
