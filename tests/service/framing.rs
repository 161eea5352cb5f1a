//! Where a request ends, and what of it can get into a response.

use std::net::Shutdown;

use crate::support::{Client, Response, Service};

on_every_server!(
    no_request_is_served_after_one_whose_end_is_unclear,
    a_chunked_body_is_rejected_and_the_next_connection_is_served,
    a_body_is_not_taken_for_a_request,
    http_1_0_keep_alive_is_confirmed,
    nothing_of_a_request_gets_into_a_header_field,
    a_request_that_is_rejected_has_a_line_in_the_access_log,
    a_client_that_sends_a_long_body_is_rejected_before_its_end,
);

const FAULTS: &[&str] = &["--fault-injection"];

/// A request that must not be served, because a proxy takes it for a part of the body before it.
const SMUGGLED: &str = "PUT /faults?fail-rate=1 HTTP/1.1\r\nHost: test\r\n\r\n";

/// Sends a request with these header fields and this body, and reads its response.
fn post(client: &mut Client, fields: &str, body: &str) -> Response {
    client.send(format!(
        "POST /probe HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n{body}"
    ));
    client.read_response()
}

fn no_request_is_served_after_one_whose_end_is_unclear(server: &str) {
    let service = Service::start(server, FAULTS);
    for (fields, body, status) in [
        ("Transfer-Encoding: chunked", "0\r\n\r\n", 411),
        ("Transfer-Encoding: Chunked", "1\r\na\r\n0\r\n\r\n", 411),
        ("Transfer-Encoding: identity", "0\r\n\r\n", 501),
        ("Transfer-Encoding: chunked, identity", "0\r\n\r\n", 501),
        ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n", 501),
        ("Transfer-Encoding: xchunked", "0\r\n\r\n", 501),
        // These clients wait for the response.
        (
            "Transfer-Encoding: chunked\r\nExpect: 100-continue",
            "",
            411,
        ),
        (
            "Transfer-Encoding: xchunked\r\nConnection: Upgrade",
            "",
            501,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 53",
            "0\r\n\r\n",
            400,
        ),
        (
            "Content-Length: 53\r\nTransfer-Encoding: identity",
            "0\r\n\r\n",
            400,
        ),
        ("Content-Length: 0\r\nContent-Length: 48", "", 400),
        ("Content-Length: +0", "", 400),
        ("Content-Length: 0, 48", "", 400),
        ("Content-Length: 0x30", "", 400),
        ("X: a\rTransfer-Encoding: chunked", "", 400),
    ] {
        let mut client = service.connect();
        let response = post(&mut client, fields, &format!("{body}{SMUGGLED}"));
        assert_eq!(response.status, status, "{fields:?}: {response:?}");
        assert_eq!(response.field("Connection"), Some("close"), "{fields:?}");
        // The service closes the connection when it has dealt with everything that was sent.
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.expect_close();
        let settings = service.get("/faults").body;
        assert!(
            settings.starts_with("fail-rate=0\n"),
            "{fields:?}: {settings}"
        );
    }
    let metrics = service.scrape();
    let count = |label, value| metrics.sum("app_request_count_total", label, value);
    assert_eq!(count("http_status", "411"), 3);
    assert_eq!(count("http_status", "501"), 5);
    assert_eq!(count("http_status", "400"), 7);
    assert_eq!(count("method", "other"), 15);
    assert_eq!(count("method", "PUT"), 0);
}

/// Clients that do not know the length of a body send it in chunks: Go's for a stream, Node's by default.
fn a_chunked_body_is_rejected_and_the_next_connection_is_served(server: &str) {
    let service = Service::start(server, &[]);
    for length in [1, 1000, 60_000] {
        let chunk = "x".repeat(length);
        let body = format!("{length:x}\r\n{chunk}\r\n0\r\n\r\n");
        let mut client = service.connect();
        let response = post(&mut client, "Transfer-Encoding: chunked", &body);
        assert_eq!(response.status, 411, "{length}");
        assert!(response.body.contains("Content-Length"), "{response:?}");
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.expect_close();
        assert_eq!(service.get("/probe").status, 200);
    }
}

fn a_body_is_not_taken_for_a_request(server: &str) {
    let service = Service::start(server, FAULTS);
    let mut client = service.connect();
    for repeated in [1, 100, 1000] {
        let body = SMUGGLED.repeat(repeated);
        let length = format!("Content-Length: {}", body.len());
        assert_eq!(post(&mut client, &length, &body).status, 405);
        let settings = client.ask("GET", "/faults").body;
        assert!(settings.starts_with("fail-rate=0\n"), "{settings}");
    }
}

fn a_request_that_is_rejected_has_a_line_in_the_access_log(server: &str) {
    let mut service = Service::start(server, &["--access-log"]);
    let mut expected = Vec::new();
    for method in ["GET", "HEAD"] {
        let mut client = service.connect();
        client.send(format!(
            "{method} /probe HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ));
        client.stream.shutdown(Shutdown::Write).unwrap();
        while client.receive() {}
        let received = String::from_utf8(client.received).unwrap();
        let (_, body) = received.split_once("\r\n\r\n").expect("a response");
        assert_eq!(body.is_empty(), method == "HEAD", "{received}");
        expected.push(format!(" 411 {} ", body.len()));
    }
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let log = service.stdout();
    assert_eq!(log.lines().count(), expected.len(), "{log}");
    for (line, expected) in log.lines().zip(expected) {
        assert!(line.contains(&expected), "{line}: {expected}");
    }
}

fn a_client_that_sends_a_long_body_is_rejected_before_its_end(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    let part = "a".repeat(80 * 1024);
    let response = post(
        &mut client,
        "Transfer-Encoding: chunked",
        &format!("100000\r\n{part}"),
    );
    assert_eq!(response.status, 411);
}

/// `ab -k` waits for the connection to close unless this field says that it stays open.
fn http_1_0_keep_alive_is_confirmed(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for option in ["keep-alive", "Keep-Alive", "keep-alive"] {
        client.send(format!(
            "GET /probe HTTP/1.0\r\nConnection: {option}\r\n\r\n"
        ));
        let response = client.read_response();
        assert_eq!(response.body, "I'm ok!");
        assert_eq!(response.field("Connection"), Some("keep-alive"));
    }
    client.send("GET /probe HTTP/1.0\r\n\r\n");
    assert_eq!(client.read_response().field("Connection"), Some("close"));
    client.expect_close();
}

fn nothing_of_a_request_gets_into_a_header_field(server: &str) {
    const NAMES: [&str; 12] = [
        "Date",
        // tiny_http's own responses have this field.
        "Server",
        "Content-Type",
        "Content-Length",
        "Connection",
        "Allow",
        "Vary",
        "Retry-After",
        "X-Fault-Injection",
        "Content-Security-Policy",
        "Referrer-Policy",
        "X-Content-Type-Options",
    ];
    let service = Service::start(server, &[]);
    let with_faults = Service::start(server, FAULTS);
    let mut requests = Vec::new();
    for end in ["", "%0d%0a", "\t", "\r"] {
        let marked = format!("x{end}Injected:1");
        for target in ["/", "/probe", "/metrics", "/faults", "/faults/", "/nope"] {
            for target in [format!("{target}?{marked}"), format!("{target}{marked}")] {
                for method in ["GET", "OPTIONS", "PUT", "Injected"] {
                    requests.push(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n"));
                }
            }
            for field in ["Origin", "Accept", "traceparent", "Injected"] {
                let fields = format!("Host: test\r\n{field}: {marked}\r\n");
                requests.push(format!("PUT {target} HTTP/1.1\r\n{fields}"));
                requests.push(format!("GET {target} HTTP/1.1\r\n{fields}"));
            }
            requests.push(format!("PUT {target} HTTP/1.1\r\nHost: {marked}\r\n"));
        }
    }
    for service in [&service, &with_faults] {
        for request in &requests {
            // In the plain loop, a client that happens to have the port of one that was rejected within the
            // last minute gets no response.
            let attempts = if server == "tiny-http" { 10 } else { 1 };
            let mut responses = (0..attempts).map(|_| {
                let mut client = service.connect();
                client.send(format!("{request}Connection: close\r\n\r\n"));
                // tiny_http's own 400 has no length, so read until the end.
                while client.receive() {}
                String::from_utf8(client.received).unwrap()
            });
            let received = responses.find(|received| !received.is_empty());
            let received = received.unwrap_or_default();
            let (head, _body) = received.split_once("\r\n\r\n").expect("a response");
            for line in head.lines().skip(1) {
                let (name, value) = line.split_once(": ").expect("a field");
                assert!(NAMES.contains(&name), "{request:?}: {head}");
                assert!(!value.contains("njected"), "{request:?}: {head}");
            }
        }
    }
}
