//! How a connection handles requests that arrive in one piece.

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
fn every_head_gets_its_expected_status() {
    for (what, head, status) in REQUEST_HEADS {
        assert_eq!(statuses(head), [*status], "{what}");
    }
}

#[test]
fn only_rejected_requests_and_http_1_0_close_the_connection() {
    for (what, head, status) in REQUEST_HEADS {
        let outcome = outcome(head);
        let is_rejected = matches!(status, 400 | 411 | 413 | 414 | 431 | 501 | 505);
        let closes = is_rejected || head.contains("HTTP/1.0");
        assert_eq!(outcome.is_open, !closes, "{what}");
        let announces_close = outcome.responses.contains("\r\nConnection: close\r\n");
        assert_eq!(announces_close, closes, "{what}");
    }
}

#[test]
fn nothing_after_a_rejected_head_is_a_request() {
    for (what, head, _) in REQUEST_HEADS.iter().filter(|(_, _, status)| *status >= 400) {
        let smuggled = format!("{head}GET /probe HTTP/1.1\r\nHost: a\r\n\r\n");
        let statuses = statuses(&smuggled);
        // 404 and 405 are responses to valid requests.
        let expected = if matches!(statuses[0], 404 | 405) {
            2
        } else {
            1
        };
        assert_eq!(statuses.len(), expected, "{what}");
    }
}

#[test]
fn responses_have_exactly_the_expected_bytes() {
    assert_eq!(
        outcome("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n").responses,
        format!(
            "HTTP/1.1 200 OK\r\nDate: {DATE}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 7\r\n\r\nI'm ok!"
        )
    );
    assert_eq!(
        outcome("HEAD /probe HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").responses,
        format!(
            "HTTP/1.1 200 OK\r\nDate: {DATE}\r\nConnection: keep-alive\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 7\r\n\r\n"
        )
    );
    assert_eq!(
        outcome("POST /probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").responses,
        format!(
            "HTTP/1.1 405 Method Not Allowed\r\nDate: {DATE}\r\nConnection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 54\r\n\
             Allow: GET, HEAD, OPTIONS\r\n\r\nMethod not allowed. Allowed here: GET, HEAD, OPTIONS.\n"
        )
    );
    assert_eq!(
        outcome("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").responses,
        format!("HTTP/1.1 204 No Content\r\nDate: {DATE}\r\nAllow: GET, HEAD, OPTIONS\r\n\r\n")
    );
    assert_eq!(
        outcome("HEAD /probe HTTP/1.1\r\n\r\n").responses,
        format!(
            "HTTP/1.1 400 Bad Request\r\nDate: {DATE}\r\nConnection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 33\r\n\r\n"
        ),
        "the response to HEAD has no body, whatever the status"
    );
}

#[test]
fn the_default_for_keep_alive_depends_on_the_version_and_can_be_overridden() {
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
fn pipelined_requests_get_their_responses_in_order() {
    let paths = ["/probe", "/nope", "/healthz", "/nope", "/probe"];
    let burst = paths
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .concat();
    assert_eq!(statuses(&burst), [200, 404, 200, 404, 200]);
    assert_eq!(statuses(&burst.repeat(1000)).len(), 5000);
}

#[test]
fn bodies_within_the_limit_are_discarded() {
    let body = "GET /nope HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10);
    let length = body.len();
    let head = format!("GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    assert_eq!(statuses(&(head + &body).repeat(3)), [200, 200, 200]);
    let longest = "x".repeat(65536);
    let head = "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n";
    assert_eq!(statuses(&format!("{head}{longest}{head}")), [200, 200]);
}

#[test]
fn expect_100_continue_gets_the_final_response_and_a_close_unless_the_body_has_arrived() {
    for (version, expect, length, body, closes) in [
        ("1.1", "100-continue", 3, "", true),
        ("1.1", "100-Continue", 3, "", true),
        ("1.1", "x, 100-continue", 3, "ab", true),
        ("1.1", "100-continue", 3, "abc", false),
        ("1.1", "100-continue", 0, "", false),
        ("1.1", "later", 3, "", false),
        // In HTTP/1.0 the field is ignored (RFC 9110, section 10.1.1).
        ("1.0", "100-continue", 3, "", false),
    ] {
        let bytes = format!(
            "POST /probe HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\nExpect: {expect}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let outcome = outcome(&bytes);
        assert!(outcome.responses.starts_with("HTTP/1.1 405 "), "{bytes}");
        assert_eq!(outcome.responses.matches("HTTP/1.1").count(), 1, "{bytes}");
        let announces_close = outcome.responses.contains("\r\nConnection: close\r\n");
        assert_eq!(
            (announces_close, outcome.is_open),
            (closes, !closes),
            "{bytes}"
        );
    }
}

#[test]
fn heads_are_limited_in_bytes_and_fields() {
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
    // Without a space, the method is too long and not the target, which requires a 501 (RFC 9112, section 3).
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
fn the_last_response_closes_unless_another_request_has_arrived() {
    use bounded_http::internals::connection::Connection;
    use bounded_http::internals::request_head::field_space;
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
        let head = head.expect("the head is complete");
        assert!(head.is_ok(), "the head is valid");
        let reply = Reply::text(Status::Ok, "I'm ok!");
        connection.respond(&reply, DATE, true, now);
        let response = String::from_utf8_lossy(connection.unsent()).into_owned();
        assert_eq!(
            response.contains("\r\nConnection: close\r\n"),
            closes,
            "{after}"
        );
        assert_eq!(connection.may_answer(), !closes, "{after}");
        connection.mark_sent(response.len(), now);
        assert_eq!(connection.wants_to_close_sending_side(), closes, "{after}");
        assert!(!connection.is_finished(), "the client may still send");
        connection.receive_end();
        assert_eq!(connection.is_finished(), closes, "{after}");
    }
}
