//! Timeouts for slow clients. The tests wait for the real timeouts, in parallel. `make soak` tests the
//! keep-alive timeout of 75 seconds.

use std::thread;
use std::time::{Duration, Instant};

use crate::assert_little_memory_was_taken;
use crate::scenario::Scenario;

#[test]
fn slow_clients_are_closed_after_10_seconds() {
    let scenario = Scenario::start(&[]);
    thread::scope(|scope| {
        scope.spawn(|| a_slow_head_gets_408(&scenario));
        #[cfg(target_os = "linux")]
        scope.spawn(|| a_client_that_reads_no_responses_is_closed(&scenario));
        scope.spawn(|| a_body_that_never_arrives_closes_the_connection(&scenario));
    });
    assert_little_memory_was_taken(&scenario);
    assert_eq!(scenario.scrape().requests("other", "other", 408), 1);
    assert_eq!(scenario.scrape().count("app_connections_open"), 1);
}

/// Asserts that the timeout of ten seconds has passed once: not sooner than that after the client's first
/// byte, and not twice as long after its last one. On a busy machine, the time between them is long, too.
fn assert_took_10_seconds(first: Instant, last: Instant) {
    let (since_first, since_last) = (first.elapsed(), last.elapsed());
    // The service may have started its timeout a moment earlier.
    assert!(
        since_first >= Duration::from_millis(9900),
        "{since_first:?}"
    );
    assert!(since_last < Duration::from_secs(19), "{since_last:?}");
}

fn a_slow_head_gets_408(scenario: &Scenario) {
    let mut client = scenario.connect();
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
    assert_took_10_seconds(started, started);
    let response = client.read_response();
    assert_eq!(response.status, 408);
    assert_eq!(response.field("Connection"), Some("close"));
}

#[cfg(target_os = "linux")]
fn a_client_that_reads_no_responses_is_closed(scenario: &Scenario) {
    use std::io::{ErrorKind, Read, Write};

    use crate::support::request;

    let mut stream = scenario.connect().stream;
    let started = Instant::now();
    // Send until the service stops reading because its responses are not read.
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let burst = request("GET", "/metrics").repeat(1000);
    let mut sent = 0;
    let mut last_sent = started;
    while let Ok(count) = stream.write(burst.as_bytes()) {
        sent += count;
        last_sent = Instant::now();
        assert!(sent < 1 << 30, "the service does not stop reading");
    }
    scenario.expect_others_served();
    // Read nothing until the service has closed the connection.
    let is_open = || {
        let state = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let port = format!(":{:04X} ", scenario.address.port());
        let own = format!(":{:04X} ", stream.local_addr().unwrap().port());
        state.lines().any(|line| {
            let local = line.find(&port);
            let remote = line.find(&own);
            let is_service_side = matches!((local, remote), (Some(l), Some(r)) if l < r);
            is_service_side && line.split_whitespace().nth(3) == Some("01")
        })
    };
    while is_open() {
        // Bytes that only fill the kernel's buffer must not count as progress and restart the timeout.
        assert!(
            last_sent.elapsed() < Duration::from_secs(20),
            "timed out: the connection is not closed"
        );
        thread::sleep(Duration::from_millis(100));
    }
    assert_took_10_seconds(started, last_sent);
    // The bytes in the buffers still arrive, followed by a FIN or a reset.
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

fn a_body_that_never_arrives_closes_the_connection(scenario: &Scenario) {
    let mut client = scenario.connect();
    let started = Instant::now();
    client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(client.read_response().status, 405);
    client.expect_close();
    assert_took_10_seconds(started, started);
}
