//! How long a connection waits for its client. The tests pass the time to it.

use std::time::{Duration, Instant};

use bounded_http::internals::connection::Connection;
use bounded_http::internals::request_head::field_space;
use bounded_http::{Reply, Service, Status};
use tiny_probe::app::App;
use tiny_probe::config::{Config, FaultInjection};

use crate::drive::{DATE, request};

/// The numbers that docs/limits.md promises, and not the server's constants, which may be wrong.
const MAX_UNSENT_BYTES: usize = 65_536;
const MAX_HEAD_BYTES: usize = 16_384;

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
            self.connection.respond(&reply, DATE, false, self.now);
        }
    }

    fn send(&mut self) {
        let count = self.connection.unsent().len();
        self.connection.mark_sent(count, self.now);
    }

    /// The deadline in seconds since the start.
    fn deadline(&self) -> Option<u64> {
        let deadline = self.connection.deadline()?;
        Some(deadline.duration_since(self.start).as_secs())
    }
}

#[test]
fn idle_connections_close_75_seconds_after_the_last_response() {
    let mut driver = Driver::new();
    assert_eq!(driver.deadline(), Some(75));
    driver.wait(50);
    driver.receive(REQUEST);
    driver.send();
    assert_eq!(driver.deadline(), Some(125));
    assert!(
        driver.connection.expire().is_none(),
        "closed without a response"
    );
}

#[test]
fn a_head_may_take_10_seconds_from_its_first_byte_in_any_number_of_pieces() {
    let mut driver = Driver::new();
    driver.wait(50);
    for byte in &REQUEST[..REQUEST.len() - 1] {
        driver.receive(&[*byte]);
        assert_eq!(driver.deadline(), Some(60));
    }
    let rejection = driver
        .connection
        .expire()
        .expect("an incomplete head is rejected");
    driver
        .connection
        .respond(&rejection.reply(), DATE, false, driver.now);
    let response = String::from_utf8_lossy(driver.connection.unsent()).into_owned();
    assert!(
        response.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{response}"
    );
    assert!(response.contains("\r\nConnection: close\r\n"), "{response}");
    driver.send();
    assert!(driver.connection.wants_to_close_sending_side());
}

#[test]
fn each_head_has_10_seconds_of_its_own() {
    let mut driver = Driver::new();
    driver.receive(&REQUEST[..5]);
    driver.wait(9);
    driver.receive(&[&REQUEST[5..], b"GET"].concat());
    driver.send();
    assert_eq!(driver.deadline(), Some(19));
}

#[test]
fn a_connection_whose_body_takes_longer_than_10_seconds_closes_without_a_408() {
    let mut driver = Driver::new();
    driver.receive(b"GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    driver.send();
    assert_eq!(driver.deadline(), Some(10));
    driver.wait(5);
    driver.receive(b"12345678");
    assert_eq!(driver.deadline(), Some(10));
    assert!(
        driver.connection.expire().is_none(),
        "its request has a response already"
    );
    driver.receive(b"9");
    assert_eq!(driver.deadline(), Some(80), "idle again");
}

#[test]
fn responses_may_be_unread_for_10_seconds_after_any_progress() {
    let mut driver = Driver::new();
    driver.wait(50);
    driver.receive(REQUEST);
    assert_eq!(driver.deadline(), Some(60));
    driver.wait(9);
    driver.connection.mark_sent(1, driver.now);
    assert_eq!(driver.deadline(), Some(69));
    assert!(
        driver.connection.expire().is_none(),
        "closed without another response"
    );
}

#[test]
fn received_bytes_do_not_count_as_progress_while_responses_are_unread() {
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
fn a_client_that_waits_for_its_response_has_no_deadline() {
    let mut driver = Driver::new();
    driver.connection.receive(REQUEST, driver.now);
    let mut space = field_space();
    assert!(driver.connection.next_request(&mut space).is_some());
    assert_eq!(driver.deadline(), None);
    assert!(!driver.connection.has_answered_everything());
    assert!(!driver.connection.wants_bytes(), "one request at a time");
}

#[test]
fn a_rejected_client_may_be_silent_for_2_seconds_and_keep_sending_for_30() {
    let mut driver = Driver::new();
    driver.wait(5);
    driver.receive(b"nonsense\r\n");
    driver.send();
    assert!(driver.connection.wants_to_close_sending_side() && !driver.connection.is_finished());
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
fn no_more_requests_are_returned_while_64_kib_of_responses_are_unsent() {
    let mut driver = Driver::new();
    driver.receive(&REQUEST.repeat(10_000));
    let waiting = driver.connection.unsent().len();
    assert!(
        (MAX_UNSENT_BYTES..MAX_UNSENT_BYTES + 1024).contains(&waiting),
        "{waiting}"
    );
    assert!(!driver.connection.wants_bytes() && !driver.connection.has_answered_everything());
    driver.send();
    assert!(driver.connection.may_answer());
    assert!(
        !driver.connection.wants_bytes(),
        "requests that have arrived come first"
    );
}

/// A connection with an unsent response of this many bytes, including its head.
fn with_unsent(bytes: usize) -> Driver {
    let mut driver = Driver::new();
    driver.receive(REQUEST);
    let reply = |body: String| Reply::text(Status::NotFound, body);
    let request = |driver: &mut Driver| {
        driver.connection.receive(REQUEST, driver.now);
        let mut space = field_space();
        assert!(driver.connection.next_request(&mut space).is_some());
    };
    // Measure the length of the head with a Content-Length that has the same number of digits.
    driver.send();
    request(&mut driver);
    let now = driver.now;
    driver
        .connection
        .respond(&reply("x".repeat(60_000)), DATE, false, now);
    let head = driver.connection.unsent().len() - 60_000;
    driver.send();
    request(&mut driver);
    driver
        .connection
        .respond(&reply("x".repeat(bytes - head)), DATE, false, now);
    assert_eq!(driver.connection.unsent().len(), bytes);
    driver
}

#[test]
fn at_64_kib_of_unsent_responses_nothing_more_is_read_or_returned() {
    for (unsent, continues) in [(MAX_UNSENT_BYTES - 1, true), (MAX_UNSENT_BYTES, false)] {
        let mut driver = with_unsent(unsent);
        assert_eq!(driver.connection.wants_bytes(), continues);
        driver.connection.receive(REQUEST, driver.now);
        assert_eq!(driver.connection.may_answer(), continues);
    }
}

#[test]
fn a_head_is_parsed_when_a_line_is_complete_or_the_head_is_too_long() {
    let mut driver = Driver::new();
    let mut receive = |bytes: &[u8]| {
        driver.connection.receive(bytes, driver.now);
        driver.connection.may_answer()
    };
    assert!(!receive(b"GET /probe HTTP/1.1"));
    assert!(receive(b"\r\n"));
    let mut space = field_space();
    assert!(driver.connection.next_request(&mut space).is_none());
    assert!(!driver.connection.may_answer());
    let mut driver = Driver::new();
    let mut receive = |bytes: &[u8]| {
        driver.connection.receive(bytes, driver.now);
        driver.connection.may_answer()
    };
    assert!(!receive(&[b'x'; MAX_HEAD_BYTES - 1]));
    assert!(receive(b"x"));
}

#[test]
fn everything_is_answered_from_when_all_responses_are_sent() {
    let mut driver = Driver::new();
    let answered_everything_at = |driver: &Driver| {
        let answered_everything_at = driver.connection.answered_everything_at()?;
        Some(
            answered_everything_at
                .duration_since(driver.start)
                .as_secs(),
        )
    };
    assert_eq!(answered_everything_at(&driver), Some(0));
    driver.wait(5);
    driver.receive(REQUEST);
    assert_eq!(
        answered_everything_at(&driver),
        None,
        "its response is not sent"
    );
    driver.send();
    assert_eq!(answered_everything_at(&driver), Some(5));
    driver.wait(5);
    driver.receive(b"nonsense\r\n");
    driver.send();
    assert_eq!(
        answered_everything_at(&driver),
        None,
        "the connection will be closed"
    );
    driver.connection.linger(driver.now);
    assert_eq!(answered_everything_at(&driver), None);
    assert_eq!(driver.connection.lingers_since(), Some(driver.now));
    // While a body is on its way, each part of it counts.
    let mut driver = Driver::new();
    driver.receive(b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    driver.send();
    driver.wait(5);
    driver.receive(b"1234");
    assert_eq!(answered_everything_at(&driver), Some(5));
}

#[test]
fn empty_lines_between_requests_do_not_start_a_head() {
    let mut driver = Driver::new();
    driver.receive(REQUEST);
    driver.send();
    driver.wait(5);
    // The connection is still idle, and has been since the response.
    for piece in ["\r\n\n\r\n", "\n", "\r", "\n\r", "\n"] {
        driver.receive(piece.as_bytes());
        assert_eq!(driver.deadline(), Some(75), "{piece:?}");
        assert_eq!(
            driver.connection.answered_everything_at(),
            Some(driver.start),
            "{piece:?}"
        );
        assert!(driver.connection.is_between_requests(), "{piece:?}");
        assert!(driver.connection.expire().is_none(), "no 408");
    }
    driver.receive(b"\r\nG");
    assert_eq!(driver.deadline(), Some(15), "the timeout of the head");
    assert!(!driver.connection.is_between_requests());
}

#[test]
fn a_half_close_finishes_the_connection_once_all_responses_are_sent() {
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
fn while_stopping_connections_close_after_200_milliseconds_of_silence() {
    let millis = |driver: &Driver| {
        let deadline = driver.connection.deadline();
        let deadline = deadline.expect("a connection without a pending response has a deadline");
        deadline.duration_since(driver.start).as_millis()
    };
    for (received, has_response) in [(&b""[..], false), (b"GET /pro", false), (REQUEST, true)] {
        let mut driver = Driver::new();
        driver.receive(received);
        driver.wait(5);
        assert_eq!(driver.connection.unsent().is_empty(), !has_response);
        driver.send();
        driver.connection.stop(driver.now);
        assert_eq!(millis(&driver), 5200);
        driver.wait(1);
        driver.receive(b"G");
        assert_eq!(millis(&driver), 6200, "received bytes restart the time");
        assert!(driver.connection.expire().is_none(), "no 408");
    }
}

#[test]
fn sent_bytes_are_released_however_slowly_the_client_reads() {
    use bounded_http::internals::connection::Buffers;

    let mut driver = Driver::new();
    let mut spare = Buffers::default();
    let requests = REQUEST.repeat(20);
    for _ in 0..10_000 {
        let wants_bytes = driver.connection.wants_bytes();
        driver.receive(if wants_bytes { &requests } else { b"" });
        driver.connection.mark_sent(2000, driver.now);
        driver.connection.return_buffers(&mut spare);
        assert!(
            !driver.connection.unsent().is_empty(),
            "the client never reads everything"
        );
        assert!(driver.connection.held_bytes() < 2 * MAX_UNSENT_BYTES);
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
        // Bytes that the client sends meanwhile are discarded and do not move the deadline.
        driver.wait(30);
        driver.receive(REQUEST);
        assert_eq!(driver.deadline(), Some(65), "{ending}");
        assert!(driver.connection.unsent().is_empty());
        assert!(!driver.connection.has_bytes_left(), "it is not kept");
        assert!(driver.connection.is_deadline_final());
        assert!(driver.connection.expire().is_none(), "no 408");
    }
}
