//! How long a connection waits for its client, by a clock that the tests turn.

use std::time::{Duration, Instant};

use bounded_http::connection::{Connection, MAX_UNSENT};
use bounded_http::request_head::{MAX_HEAD, field_space};
use bounded_http::{Reply, Service, Status};
use tiny_probe::app::App;
use tiny_probe::config::{Config, FaultInjection};

use crate::drive::{DATE, request};

const REQUEST: &[u8] = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

struct Driver {
    connection: Connection,
    app: App,
    start: Instant,
    now: Instant,
}

impl Driver {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            connection: Connection::new(start),
            app: App::new(&Config::default()),
            start,
            now: start,
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.connection.receive(bytes, self.now);
        while let Some(head) = self.connection.next_request(&mut field_space()) {
            let reply = match head {
                Ok(head) => self.app.answer(&request(&head, self.now)).split().0,
                Err(rejection) => rejection.reply(),
            };
            self.connection.answer(&reply, DATE, false, self.now);
        }
    }

    fn send(&mut self) {
        let count = self.connection.unsent().len();
        self.connection.sent(count, self.now);
    }

    /// The deadline in seconds from the beginning.
    fn deadline(&self) -> Option<u64> {
        let deadline = self.connection.deadline()?;
        Some(deadline.duration_since(self.start).as_secs())
    }
}

#[test]
fn silence_is_tolerated_for_75_seconds_from_the_last_answer() {
    let mut driver = Driver::new();
    assert_eq!(driver.deadline(), Some(75));
    driver.wait(50);
    driver.receive(REQUEST);
    driver.send();
    assert_eq!(driver.deadline(), Some(125));
    assert!(
        driver.connection.expire().is_none(),
        "closed without a word"
    );
}

#[test]
fn a_head_may_take_10_seconds_from_its_first_byte_however_it_drips() {
    let mut driver = Driver::new();
    driver.wait(50);
    for byte in &REQUEST[..REQUEST.len() - 1] {
        driver.receive(&[*byte]);
        assert_eq!(driver.deadline(), Some(60));
    }
    let rejection = driver
        .connection
        .expire()
        .expect("a head that takes too long");
    driver
        .connection
        .answer(&rejection.reply(), DATE, false, driver.now);
    let answer = String::from_utf8_lossy(driver.connection.unsent()).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    driver.send();
    assert!(driver.connection.wants_half_close());
}

#[test]
fn the_next_head_has_its_own_10_seconds() {
    let mut driver = Driver::new();
    driver.receive(&REQUEST[..5]);
    driver.wait(9);
    driver.receive(&[&REQUEST[5..], b"GET"].concat());
    driver.send();
    assert_eq!(driver.deadline(), Some(19));
}

#[test]
fn a_body_may_take_10_seconds_and_is_no_head() {
    let mut driver = Driver::new();
    driver.receive(b"GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    driver.send();
    assert_eq!(driver.deadline(), Some(10));
    driver.wait(5);
    driver.receive(b"12345678");
    assert_eq!(driver.deadline(), Some(10));
    assert!(
        driver.connection.expire().is_none(),
        "it is answered already"
    );
    driver.receive(b"9");
    assert_eq!(driver.deadline(), Some(80), "idle again");
}

#[test]
fn answers_may_go_untaken_for_10_seconds_and_any_progress_counts() {
    let mut driver = Driver::new();
    driver.wait(50);
    driver.receive(REQUEST);
    assert_eq!(driver.deadline(), Some(60));
    driver.wait(9);
    driver.connection.sent(1, driver.now);
    assert_eq!(driver.deadline(), Some(69));
    assert!(
        driver.connection.expire().is_none(),
        "closed without a word"
    );
}

#[test]
fn sending_more_is_no_progress_while_answers_go_untaken() {
    let with_body = b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n";
    let pieces: [&[u8]; 4] = [REQUEST, &REQUEST[..9], &REQUEST[9..], with_body];
    let mut driver = Driver::new();
    for piece in pieces {
        driver.receive(piece);
        assert_eq!(driver.deadline(), Some(10));
        driver.wait(1);
    }
    driver.receive(b"1");
    assert_eq!(driver.deadline(), Some(10));
}

#[test]
fn a_client_that_waits_for_its_answer_has_no_deadline() {
    let mut driver = Driver::new();
    driver.connection.receive(REQUEST, driver.now);
    let mut space = field_space();
    assert!(driver.connection.next_request(&mut space).is_some());
    assert_eq!(driver.deadline(), None);
    assert!(!driver.connection.is_idle());
    assert!(!driver.connection.wants_bytes(), "one request at a time");
}

#[test]
fn a_rejected_client_may_be_silent_for_2_seconds_and_go_on_sending_for_30() {
    let mut driver = Driver::new();
    driver.wait(5);
    driver.receive(b"nonsense\r\n");
    driver.send();
    assert!(driver.connection.wants_half_close() && !driver.connection.is_finished());
    driver.connection.linger(driver.now);
    for _ in 0..1000 {
        driver.receive(REQUEST);
        assert!(driver.connection.unsent().is_empty());
    }
    assert!(driver.connection.wants_bytes() && !driver.connection.is_finished());
    assert_eq!(driver.deadline(), Some(7));
    for (waited, deadline) in [(1, 8), (1, 9), (26, 35), (1, 35)] {
        driver.wait(waited);
        driver.receive(REQUEST);
        assert_eq!(driver.deadline(), Some(deadline));
    }
    assert!(driver.connection.is_deadline_final());
    driver.connection.receive_end();
    assert!(driver.connection.is_finished());
}

#[test]
fn no_more_requests_are_given_out_while_64_kib_of_answers_wait() {
    let mut driver = Driver::new();
    driver.receive(&REQUEST.repeat(10_000));
    let waiting = driver.connection.unsent().len();
    assert!(
        (MAX_UNSENT..MAX_UNSENT + 1024).contains(&waiting),
        "{waiting}"
    );
    assert!(!driver.connection.wants_bytes() && !driver.connection.is_idle());
    driver.send();
    assert!(driver.connection.can_answer());
    assert!(!driver.connection.wants_bytes(), "what is here comes first");
}

/// Answers a request with so many bytes, head and all, that none are sent of.
fn with_unsent(bytes: usize) -> Driver {
    let mut driver = Driver::new();
    driver.receive(REQUEST);
    let reply = |body: String| Reply::text(Status::NotFound, body);
    let request = |driver: &mut Driver| {
        driver.connection.receive(REQUEST, driver.now);
        let mut space = field_space();
        assert!(driver.connection.next_request(&mut space).is_some());
    };
    // The head's length, with a Content-Length of as many digits.
    driver.send();
    request(&mut driver);
    let now = driver.now;
    driver
        .connection
        .answer(&reply("x".repeat(60_000)), DATE, false, now);
    let head = driver.connection.unsent().len() - 60_000;
    driver.send();
    request(&mut driver);
    driver
        .connection
        .answer(&reply("x".repeat(bytes - head)), DATE, false, now);
    assert_eq!(driver.connection.unsent().len(), bytes);
    driver
}

#[test]
fn nothing_is_read_or_given_out_from_64_kib_of_unsent_answers_on() {
    for (unsent, goes_on) in [(MAX_UNSENT - 1, true), (MAX_UNSENT, false)] {
        let mut driver = with_unsent(unsent);
        assert_eq!(driver.connection.wants_bytes(), goes_on);
        driver.connection.receive(REQUEST, driver.now);
        assert_eq!(driver.connection.can_answer(), goes_on);
    }
}

#[test]
fn a_head_is_looked_at_when_a_line_is_complete_or_it_is_too_long() {
    let mut driver = Driver::new();
    let mut receive = |bytes: &[u8]| {
        driver.connection.receive(bytes, driver.now);
        driver.connection.can_answer()
    };
    assert!(!receive(b"GET /probe HTTP/1.1"));
    assert!(receive(b"\r\n"));
    let mut space = field_space();
    assert!(driver.connection.next_request(&mut space).is_none());
    assert!(!driver.connection.can_answer());
    let mut driver = Driver::new();
    let mut receive = |bytes: &[u8]| {
        driver.connection.receive(bytes, driver.now);
        driver.connection.can_answer()
    };
    assert!(!receive(&[b'x'; MAX_HEAD - 1]));
    assert!(receive(b"x"));
}

#[test]
fn a_client_that_is_owed_nothing_is_idle_since_then() {
    let mut driver = Driver::new();
    let since = |driver: &Driver| {
        let since = driver.connection.idle_since()?;
        Some(since.duration_since(driver.start).as_secs())
    };
    assert_eq!(since(&driver), Some(0));
    driver.wait(5);
    driver.receive(REQUEST);
    assert_eq!(since(&driver), None, "its answer is not sent");
    driver.send();
    assert_eq!(since(&driver), Some(5));
    driver.wait(5);
    driver.receive(b"nonsense\r\n");
    driver.send();
    assert_eq!(since(&driver), None, "the connection will be closed");
    driver.connection.linger(driver.now);
    assert_eq!(since(&driver), None);
    assert_eq!(driver.connection.lingers_since(), Some(driver.now));
}

#[test]
fn empty_lines_between_requests_are_no_head() {
    let mut driver = Driver::new();
    driver.receive(REQUEST);
    driver.send();
    driver.wait(5);
    driver.receive(b"\r\n\n\r\n");
    assert_eq!(driver.deadline(), Some(80), "the keep-alive timeout");
    assert!(driver.connection.expire().is_none(), "no 408");
    assert!(driver.connection.is_idle());
}

#[test]
fn an_end_with_nothing_owed_finishes_the_connection() {
    for (bytes, is_finished) in [
        (&b""[..], true),
        (b"GET /pro", true),
        (REQUEST, false),
        (
            b"GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
            false,
        ),
    ] {
        let mut driver = Driver::new();
        driver.receive(bytes);
        driver.connection.receive_end();
        assert_eq!(driver.connection.is_finished(), is_finished);
        driver.send();
        assert!(driver.connection.is_finished());
    }
}

#[test]
fn silence_is_tolerated_for_a_moment_once_the_service_has_been_told_to_stop() {
    let millis = |driver: &Driver| {
        let deadline = driver.connection.deadline().expect("it is not answering");
        deadline.duration_since(driver.start).as_millis()
    };
    for (sent, answered) in [(&b""[..], 0), (b"GET /pro", 0), (REQUEST, 1)] {
        let mut driver = Driver::new();
        driver.receive(sent);
        driver.wait(5);
        assert_eq!(driver.connection.unsent().is_empty(), answered == 0);
        driver.send();
        driver.connection.stop(driver.now);
        assert_eq!(millis(&driver), 5200);
        driver.wait(1);
        driver.receive(b"G");
        assert_eq!(millis(&driver), 6200, "bytes break the silence");
        assert!(driver.connection.expire().is_none(), "no 408");
    }
}

#[test]
fn sent_bytes_take_no_memory_however_slowly_the_client_reads() {
    use bounded_http::connection::Buffers;

    let mut driver = Driver::new();
    let mut spare = Buffers::default();
    let requests = REQUEST.repeat(20);
    for _ in 0..10_000 {
        let wants_bytes = driver.connection.wants_bytes();
        driver.receive(if wants_bytes { &requests } else { b"" });
        driver.connection.sent(2000, driver.now);
        driver.connection.put_back(&mut spare);
        assert!(!driver.connection.unsent().is_empty(), "never everything");
        assert!(driver.connection.held_bytes() < 2 * MAX_UNSENT);
    }
}

#[test]
fn a_response_that_stalls_or_hangs_on_purpose_ends_after_60_seconds() {
    for ending in ["stall", "hang"] {
        let mut driver = Driver::new();
        driver.app = App::new(&Config {
            fault_injection: FaultInjection::On,
            ..Config::default()
        });
        let target = format!("/probe?fail-with={ending}");
        driver.wait(5);
        driver.receive(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        driver.send();
        assert_eq!(driver.deadline(), Some(65), "{ending}");
        // What the client sends meanwhile is discarded and prolongs nothing.
        driver.wait(30);
        driver.receive(REQUEST);
        assert_eq!(driver.deadline(), Some(65), "{ending}");
        assert!(driver.connection.unsent().is_empty());
        assert!(driver.connection.is_deadline_final());
        assert!(driver.connection.expire().is_none(), "no 408");
    }
}
