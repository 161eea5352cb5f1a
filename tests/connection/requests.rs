//! What a connection makes of its bytes, in one piece.

use tiny_probe::app::App;
use tiny_probe::config::Config;

use crate::drive::{DATE, Outcome, drive};
use crate::request_heads::REQUEST_HEADS;

fn outcome(bytes: &str) -> Outcome {
    drive(&mut App::new(&Config::default()), [bytes.as_bytes()])
}

fn statuses(bytes: &str) -> Vec<u16> {
    let requests = outcome(bytes).requests;
    requests.iter().map(|(_, _, status)| *status).collect()
}

#[test]
fn every_head_gets_the_status_it_must_get() {
    for (what, head, status) in REQUEST_HEADS {
        assert_eq!(statuses(head), [*status], "{what}");
    }
}

#[test]
fn what_is_refused_closes_the_connection_and_what_is_answered_does_not() {
    for (what, head, status) in REQUEST_HEADS {
        let outcome = outcome(head);
        let is_refused = matches!(status, 400 | 411 | 413 | 414 | 431 | 501 | 505);
        let closes = is_refused || head.contains("HTTP/1.0");
        assert_eq!(outcome.is_open, !closes, "{what}");
        let says_so = outcome.answers.contains("\r\nConnection: close\r\n");
        assert_eq!(says_so, closes, "{what}");
    }
}

#[test]
fn nothing_after_a_refused_head_is_a_request() {
    for (what, head, _) in REQUEST_HEADS.iter().filter(|(_, _, status)| *status >= 400) {
        let smuggled = format!("{head}GET /probe HTTP/1.1\r\nHost: a\r\n\r\n");
        let statuses = statuses(&smuggled);
        // 404 and 405 are answers to requests that were understood.
        let expected = if matches!(statuses[0], 404 | 405) {
            2
        } else {
            1
        };
        assert_eq!(statuses.len(), expected, "{what}");
    }
}

#[test]
fn an_answer_is_complete_to_the_byte() {
    assert_eq!(
        outcome("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n").answers,
        format!(
            "HTTP/1.1 200 OK\r\nDate: {DATE}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 7\r\n\r\nI'm ok!"
        )
    );
    assert_eq!(
        outcome("HEAD /probe HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answers,
        format!(
            "HTTP/1.1 200 OK\r\nDate: {DATE}\r\nConnection: keep-alive\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 7\r\n\r\n"
        )
    );
    assert_eq!(
        outcome("POST /probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").answers,
        format!(
            "HTTP/1.1 405 Method Not Allowed\r\nDate: {DATE}\r\nConnection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 54\r\n\
             Allow: GET, HEAD, OPTIONS\r\n\r\nMethod not allowed. Allowed here: GET, HEAD, OPTIONS.\n"
        )
    );
    assert_eq!(
        outcome("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").answers,
        format!("HTTP/1.1 204 No Content\r\nDate: {DATE}\r\nAllow: GET, HEAD, OPTIONS\r\n\r\n")
    );
    assert_eq!(
        outcome("HEAD /probe HTTP/1.1\r\n\r\n").answers,
        format!(
            "HTTP/1.1 400 Bad Request\r\nDate: {DATE}\r\nConnection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 40\r\n\r\n"
        ),
        "nothing but a head answers HEAD, whatever the status"
    );
}

#[test]
fn keep_alive_is_the_default_of_its_version_and_can_be_asked_for() {
    for (version, connection, keeps) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
        (
            "1.1",
            "Connection: keep-alive\r\nConnection: close\r\n",
            false,
        ),
        ("1.1", "Connection: disclose\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: x ,\tKEEP-alive\r\n", true),
        ("1.0", "Connection: close, keep-alive\r\n", false),
    ] {
        let head = format!("GET /probe HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let twice = statuses(&head.repeat(2));
        assert_eq!(twice.len(), 1 + usize::from(keeps), "{head}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let paths = ["/probe", "/nope", "/healthz", "/nope", "/probe"];
    let burst = paths
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .concat();
    assert_eq!(statuses(&burst), [200, 404, 200, 404, 200]);
    assert_eq!(statuses(&burst.repeat(1000)).len(), 5000);
}

#[test]
fn bodies_within_the_bound_are_skipped() {
    let body = "GET /nope HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10);
    let length = body.len();
    let head = format!("GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    assert_eq!(statuses(&(head + &body).repeat(3)), [200, 200, 200]);
    let longest = "x".repeat(65536);
    let head = "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n";
    assert_eq!(statuses(&format!("{head}{longest}{head}")), [200, 200]);
}

#[test]
fn who_expects_a_100_gets_the_answer_and_a_close_unless_the_body_is_here() {
    for (version, expect, length, body, closes) in [
        ("1.1", "100-continue", 3, "", true),
        ("1.1", "100-Continue", 3, "", true),
        ("1.1", "x, 100-continue", 3, "ab", true),
        ("1.1", "100-continue", 3, "abc", false),
        ("1.1", "100-continue", 0, "", false),
        ("1.1", "later", 3, "", false),
        // RFC 9110, section 10.1.1: in HTTP/1.0 it is ignored.
        ("1.0", "100-continue", 3, "", false),
    ] {
        let bytes = format!(
            "POST /probe HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\nExpect: {expect}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let outcome = outcome(&bytes);
        assert!(outcome.answers.starts_with("HTTP/1.1 405 "), "{bytes}");
        assert_eq!(outcome.answers.matches("HTTP/1.1").count(), 1, "{bytes}");
        let says_so = outcome.answers.contains("\r\nConnection: close\r\n");
        assert_eq!((says_so, outcome.is_open), (closes, !closes), "{bytes}");
    }
}

#[test]
fn heads_are_bounded_in_bytes_and_fields() {
    let line = "GET /probe HTTP/1.1\r\nHost: a\r\n";
    let padded = |length: usize| {
        let field = "X: ";
        let padding = length - line.len() - field.len() - 4;
        format!("{line}{field}{}\r\n\r\n", "x".repeat(padding))
    };
    assert_eq!(padded(16_384).len(), 16_384);
    assert_eq!(statuses(&padded(16_384)), [200]);
    assert_eq!(statuses(&padded(16_385)), [431]);
    assert_eq!(statuses(&padded(400_000)), [431]);

    let target = |length: usize| {
        let (before, after) = ("GET /", " HTTP/1.1\r\nHost: a\r\n\r\n");
        let padding = "x".repeat(length - before.len() - after.len());
        format!("{before}{padding}{after}")
    };
    assert_eq!(statuses(&target(16_384)), [404]);
    assert_eq!(statuses(&target(16_500)), [414]);
    assert_eq!(statuses(&"x".repeat(16_383)), [0; 0]);
    // It is not the target that is too long (RFC 9112, section 3).
    assert_eq!(statuses(&"x".repeat(16_384)), [501]);
    assert_eq!(statuses(&"x".repeat(100_000)), [501]);
    assert_eq!(statuses(&format!("X {}", "x".repeat(16_382))), [414]);
    assert_eq!(statuses(&format!(" {}", "x".repeat(16_383))), [400]);
    assert_eq!(statuses(&format!("({}", "x".repeat(16_383))), [400]);

    let fields = |count: usize| format!("{line}{}\r\n", "X: 1\r\n".repeat(count - 1));
    assert_eq!(statuses(&fields(100)), [200]);
    assert_eq!(statuses(&fields(101)), [431]);
}

#[test]
fn the_last_response_closes_unless_another_request_is_here() {
    use bounded_http::connection::Connection;
    use bounded_http::request_head::field_space;
    use bounded_http::{Reply, Status};
    use std::time::Instant;
    let request = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";
    let with_body = "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    for (request, after, closes) in [
        (request, "", true),
        (request, "\r\n", true),
        (request, "GET /pro", true),
        (request, "GET /probe HTTP/1.1\r\nHo", true),
        (request, request, false),
        (request, "nonsense\r\n", false),
        (with_body, "", true),
        (with_body, "ab", true),
        (with_body, "abc", true),
        (with_body, "abcGET /probe HTTP/1.1\r\nHo", true),
    ] {
        let now = Instant::now();
        let mut connection = Connection::new(now);
        connection.receive(format!("{request}{after}").as_bytes(), now);
        let mut space = field_space();
        let head = connection.next_request(&mut space);
        assert!(head.expect("it is complete").is_ok(), "it is well-formed");
        let reply = Reply::text(Status::Ok, "I'm ok!");
        connection.answer(&reply, DATE, true, now);
        let answer = String::from_utf8_lossy(connection.unsent()).into_owned();
        assert_eq!(
            answer.contains("\r\nConnection: close\r\n"),
            closes,
            "{after}"
        );
        assert_eq!(connection.can_answer(), !closes, "{after}");
        connection.sent(answer.len(), now);
        assert_eq!(connection.wants_half_close(), closes, "{after}");
        assert!(!connection.is_finished(), "the client may still send");
        connection.receive_end();
        assert_eq!(connection.is_finished(), closes, "{after}");
    }
}
