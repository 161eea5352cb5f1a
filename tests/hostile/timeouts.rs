//! How long the service waits for a client that takes its time. The waits are real, and run side
//! by side. The keep-alive timeout, 75 seconds, is waited for by `make soak`.

use std::thread;
use std::time::{Duration, Instant};

use crate::little_memory_was_taken;
use crate::support::{Client, Service};

const SERVER: &str = "event-loop";

#[test]
fn slow_and_greedy_clients_have_their_time_and_no_more() {
    let service = Service::start(SERVER, &[]);
    thread::scope(|scope| {
        scope.spawn(|| a_head_that_drips_is_answered_408(&service));
        #[cfg(target_os = "linux")]
        scope.spawn(|| a_client_that_takes_no_answers_is_closed(&service));
        scope.spawn(|| a_body_that_never_comes_is_waited_for_10_seconds(&service));
    });
    little_memory_was_taken(&service);
    let timed_out = r#"app_request_count_total{method="other",endpoint="other",http_status="408"}"#;
    assert_eq!(service.scrape().count(timed_out), 1);
    assert_eq!(service.scrape().count("app_connections_open"), 1);
}

/// Asserts that something took at least this long, and returned in good time.
fn took(started: Instant, seconds: u64) {
    // The service's clock started a moment after this one, or before.
    let tolerance = Duration::from_millis(100);
    let took = started.elapsed() + tolerance;
    assert!(took >= Duration::from_secs(seconds), "{took:?}");
}

fn a_head_that_drips_is_answered_408(service: &Service) {
    let mut client = service.connect();
    let started = Instant::now();
    client.send("GET /probe HTTP/1.1\r\nHost: a\r\n");
    client
        .stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    while client.stream.peek(&mut [0]).is_err() {
        client.send("X: 1\r\n");
        assert!(started.elapsed() < Duration::from_secs(40), "no 408");
    }
    took(started, 10);
    let answer = client.answer();
    assert_eq!(answer.status, 408);
    assert_eq!(answer.field("Connection"), Some("close"));
}

#[cfg(target_os = "linux")]
fn a_client_that_takes_no_answers_is_closed(service: &Service) {
    use std::io::{ErrorKind, Read, Write};

    use crate::others_are_served;
    use crate::support::request;

    let client = service.connect();
    let mut stream = client.stream;
    let started = Instant::now();
    // Until the service does not read any more, since its answers do not go out.
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let burst = request("GET", "/metrics").repeat(1000);
    let mut sent = 0;
    while let Ok(count) = stream.write(burst.as_bytes()) {
        sent += count;
        assert!(sent < 1 << 30, "it never stops reading");
    }
    others_are_served(service);
    // Nothing is taken until the service has closed.
    let is_open = || {
        let state = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let port = format!(":{:04X} ", service.address.port());
        let own = format!(":{:04X} ", stream.local_addr().unwrap().port());
        state.lines().any(|line| {
            let local = line.find(&port);
            let remote = line.find(&own);
            let is_service_side = matches!((local, remote), (Some(l), Some(r)) if l < r);
            is_service_side && line.split_whitespace().nth(3) == Some("01")
        })
    };
    while is_open() {
        // What the kernel's buffer takes of itself is no progress, and starts no second timeout.
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "it is not closed"
        );
        thread::sleep(Duration::from_millis(100));
    }
    took(started, 10);
    // What was under way when it was closed still arrives, and then an end or a reset.
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                break;
            }
        }
    }
}

fn a_body_that_never_comes_is_waited_for_10_seconds(service: &Service) {
    let mut client: Client = service.connect();
    let started = Instant::now();
    client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(client.answer().status, 405);
    client.expect_close();
    took(started, 10);
}
