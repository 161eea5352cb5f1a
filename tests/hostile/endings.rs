//! Endings other than a whole response: a reset, a close without a response, a response that is cut or
//! stalls, and silence. The tests check how each is recorded, and what a client sees of it on a new
//! connection, on a kept-alive one, after pipelined requests, with HEAD and with HTTP/1.0.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use crate::assert_little_memory_was_taken;
use crate::scenario::Scenario;
use crate::support::{Client, Service, request, wait_until};

const ENDINGS: [&str; 5] = ["reset", "close", "cut", "stall", "hang"];

fn start() -> Scenario {
    Scenario::start(&["--fault-injection"])
}

/// Returns a request that asks for an ending.
fn own(method: &str, ending: &str) -> String {
    request(method, &format!("/probe?fail-with={ending}"))
}

/// The bytes that a client receives, and how the connection ends.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The connection was closed in an orderly way.
    Close,
    /// The connection was reset.
    Reset,
    /// The connection is open, and nothing more is received.
    Open,
}

/// Reads until the connection ends, or until `is_all` returns true.
fn read(client: &mut Client, mut is_all: impl FnMut(&str) -> bool) -> (String, Seen) {
    let mut received = std::mem::take(&mut client.received);
    let mut buffer = [0; 1024];
    loop {
        let text = String::from_utf8(received.clone()).unwrap();
        if is_all(&text) {
            client.stream.set_nonblocking(true).unwrap();
            let next = client.stream.read(&mut buffer);
            client.stream.set_nonblocking(false).unwrap();
            assert_eq!(next.unwrap_err().kind(), ErrorKind::WouldBlock, "{text}");
            return (text, Seen::Open);
        }
        match client.stream.read(&mut buffer) {
            Ok(0) => return (text, Seen::Close),
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (text, Seen::Reset),
            Err(error) => panic!("{error}: {text}"),
        }
    }
}

/// Returns the number of requests to /probe that were counted with a status.
fn counted(service: &Service, method: &str, status: u16) -> u64 {
    service.scrape().requests(method, "/probe", status)
}

/// Returns the number of requests in flight without the scrape.
fn in_flight(service: &Service) -> u64 {
    service.scrape().count("app_requests_in_flight") - 1
}

/// Returns what a client sees of an ending after the responses to earlier requests: the part of the
/// response that arrives, and how the connection ends.
fn see(service: &Service, client: &mut Client, method: &str, ending: &str) -> (String, Seen) {
    let part = if method == "HEAD" { "" } else { "I'm" };
    read(client, |text| match ending {
        // Once the request is in flight, nothing more is expected.
        "hang" => {
            wait_until("it is in flight", || in_flight(service) == 1);
            true
        }
        "stall" => text.ends_with(&format!("\r\n\r\n{part}")),
        _ => false,
    })
}

/// Asserts that this is what a client sees of an ending.
fn check(ending: &str, method: &str, seen: &(String, Seen)) {
    let (text, end) = seen;
    let part = if method == "HEAD" { "" } else { "I'm" };
    let is_silent = ["reset", "close", "hang"].contains(&ending);
    if is_silent {
        assert_eq!(text, "", "{ending}");
    } else {
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{ending}: {text}");
        assert!(text.contains("\r\nContent-Length: 7\r\n"), "{text}");
        assert!(text.ends_with(&format!("\r\n\r\n{part}")), "{text}");
    }
    let expected = match ending {
        "reset" => Seen::Reset,
        "close" | "cut" => Seen::Close,
        _ => Seen::Open,
    };
    assert_eq!(*end, expected, "{ending}");
}

#[test]
fn each_ending_does_what_its_name_says_for_get_and_head() {
    for method in ["GET", "HEAD"] {
        for ending in ENDINGS {
            let scenario = start();
            let mut client = scenario.connect();
            client.send(own(method, ending));
            check(ending, method, &see(&scenario, &mut client, method, ending));
            drop(client);
            let has_head = ["cut", "stall"].contains(&ending);
            let recorded_as = if has_head { 200 } else { 444 };
            wait_until("the exchange ends", || in_flight(&scenario) == 0);
            assert_eq!(counted(&scenario, method, recorded_as), 1, "{ending}");
        }
    }
}

#[test]
fn an_ending_follows_earlier_responses_and_nothing_follows_it() {
    let other = &*request("GET", "/healthz");
    for ending in ENDINGS {
        let scenario = start();
        // On a kept-alive connection, and then pipelined.
        let mut client = scenario.connect();
        let first = client.ask("GET", "/healthz").body;
        client.send([other, other, &own("GET", ending), other, other].concat());
        for _ in 0..2 {
            assert_eq!(client.read_response().body, first);
        }
        check(ending, "GET", &see(&scenario, &mut client, "GET", ending));
        let counted = scenario.scrape().requests("GET", "/healthz", 200);
        assert_eq!(counted, 3, "{ending}");
    }
}

#[test]
fn endings_are_the_same_for_http_1_0() {
    for ending in ENDINGS {
        for keep_alive in ["", "Connection: keep-alive\r\n"] {
            let scenario = start();
            let mut client = scenario.connect();
            let target = format!("/probe?fail-with={ending}");
            client.send(format!("GET {target} HTTP/1.0\r\n{keep_alive}\r\n"));
            check(ending, "GET", &see(&scenario, &mut client, "GET", ending));
        }
    }
}

#[test]
fn an_ending_happens_after_its_delay() {
    for ending in ["reset", "close", "cut"] {
        let scenario = start();
        let mut client = scenario.connect();
        let asked = Instant::now();
        client.send_request("GET", &format!("/probe?fail-with={ending}&delay=200ms"));
        check(ending, "GET", &see(&scenario, &mut client, "GET", ending));
        assert!(asked.elapsed() >= Duration::from_millis(200), "{ending}");
        assert!(scenario.scrape().total_latency("/probe") >= 0.2, "{ending}");
    }
}

#[test]
fn endings_are_the_same_for_a_request_with_a_body() {
    for ending in ENDINGS {
        let scenario = start();
        let mut client = scenario.connect();
        let target = format!("/probe?fail-with={ending}");
        client.send(format!(
            "GET {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"
        ));
        check(ending, "GET", &see(&scenario, &mut client, "GET", ending));
    }
}

#[test]
fn clients_that_hang_hold_their_connections_until_they_disconnect() {
    const CLIENTS: usize = 100;
    for ending in ["stall", "hang"] {
        let mut scenario = start();
        let clients = scenario.clients(CLIENTS, |client| client.send(own("GET", ending)));
        wait_until("all are left hanging", || {
            in_flight(&scenario) == CLIENTS as u64
        });
        scenario.expect_others_served();
        scenario.assert_asleep();
        let open = || scenario.scrape().count("app_connections_open");
        assert!(open() > CLIENTS as u64);
        drop(clients);
        wait_until("their connections are closed", || open() < CLIENTS as u64);
        assert_little_memory_was_taken(&scenario);
        scenario.signal("TERM");
        assert_eq!(scenario.wait(), Some(0));
    }
}

/// The recorded latency is the time that the client waited.
#[test]
fn a_client_that_hangs_is_recorded_with_the_time_until_it_disconnected() {
    const WAIT: Duration = Duration::from_millis(300);
    for ending in ["stall", "hang"] {
        let scenario = start();
        let mut client = scenario.connect();
        let sent = Instant::now();
        client.send(own("GET", ending));
        wait_until("it is in flight", || in_flight(&scenario) == 1);
        let began = Instant::now();
        wait_until("it has waited", || began.elapsed() >= WAIT);
        assert_eq!(in_flight(&scenario), 1, "{ending}");
        drop(client);
        wait_until("the exchange ends", || in_flight(&scenario) == 0);
        let most = sent.elapsed().as_secs_f64();
        let recorded = scenario.scrape().total_latency("/probe");
        let expected = WAIT.as_secs_f64()..most;
        assert!(expected.contains(&recorded), "{ending}: {recorded} s");
    }
}

#[test]
fn an_orderly_shutdown_does_not_wait_for_clients_that_hang() {
    let mut scenario = start()
        .with_clients(1, |client| client.send(own("GET", "hang")))
        .with_clients(1, |client| client.send(own("GET", "stall")));
    wait_until("both are left hanging", || in_flight(&scenario) == 2);
    scenario.signal("TERM");
    assert_eq!(scenario.wait(), Some(0));
}

#[test]
fn endings_occur_at_the_configured_rate_and_are_counted() {
    let fail = ["--fail-rate", "0.5", "--fail-with", "close"];
    let scenario = Scenario::start(&[&fail[..], &["--random-seed", "1"]].concat());
    let mut closed = 0;
    for _ in 0..100 {
        let mut client = scenario.connect();
        client.send_request("GET", "/probe");
        if client.receive() {
            assert_eq!(client.read_response().body, "I'm ok!");
        } else {
            closed += 1;
        }
    }
    assert!((30..=70).contains(&closed), "{closed} of 100");
    assert_eq!(counted(&scenario, "GET", 444), closed);
    assert_eq!(counted(&scenario, "GET", 200), 100 - closed);
}

#[test]
fn both_log_formats_show_how_a_request_without_a_response_ended() {
    for format in ["on", "json"] {
        let flags = ["--fault-injection", "--access-log", format];
        let mut scenario = Scenario::start(&flags);
        let mut ends = vec![(499, "delay=60s", 0)];
        for (ending, recorded_as, bytes) in [
            ("reset", 444, 0),
            ("close", 444, 0),
            ("hang", 444, 0),
            ("cut", 200, 3),
            ("stall", 200, 3),
        ] {
            let mut client = scenario.connect();
            client.send(own("GET", ending));
            if ["stall", "hang"].contains(&ending) {
                wait_until("it is in flight", || in_flight(&scenario) == 1);
                drop(client);
            }
            wait_until("it is recorded", || {
                let count = |status| counted(&scenario, "GET", status);
                count(444) + count(200) == ends.len() as u64
            });
            ends.push((recorded_as, ending, bytes));
        }
        let mut leaving = scenario.connect();
        leaving.send_delayed("/probe?delay=60s");
        leaving.disconnect_with_reset();
        wait_until("the disconnect is recorded", || {
            counted(&scenario, "GET", 499) == 1
        });
        scenario.signal("TERM");
        assert_eq!(scenario.wait(), Some(0));
        let log = scenario.stdout();
        for (status, query, bytes) in ends {
            let line = log.lines().find(|line| line.contains(query)).expect(&log);
            let fields = if format == "json" {
                format!("\"status\":{status},\"bytes\":{bytes},")
            } else {
                format!(" {status} {bytes} ")
            };
            assert!(line.contains(&fields), "{line}");
        }
    }
}
