//! The reserve above the connection limit: every request on it gets a response, and no client can hold
//! it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::crowd::{assert_served_promptly, connect_with_small_window};
use crate::support::{Client, Service, request, wait_until};

const SERVER: &str = "event-loop";

/// Starts a service whose four connections are occupied by delayed requests.
fn full_service(delay: &str) -> (Service, Vec<Client>) {
    let flags = ["--max-connections", "4", "--fault-injection=all"];
    let service = Service::start(SERVER, &flags);
    let delayed = (0..4).map(|_| {
        let mut client = service.connect();
        client.send_delayed(&format!("/probe?delay={delay}"));
        client
    });
    let delayed = delayed.collect();
    (service, delayed)
}

#[test]
fn the_reserve_has_sixteen_connections() {
    let (service, _delayed) = full_service("30s");
    let mut most = 0;
    // On a busy machine, the first clients may have been closed before the scrape.
    for _ in 0..5 {
        // As many as the reserve has room for, besides the scrape, and more.
        for count in [15, 40] {
            let _silent: Vec<Client> = (0..count).map(|_| service.connect()).collect();
            most = most.max(service.scrape().count("app_connections_open"));
        }
    }
    assert_eq!(most, 4 + 16);
}

#[test]
fn requests_pipelined_on_the_reserve_are_all_answered() {
    let (service, _delayed) = full_service("30s");
    let mut client = service.connect();
    client.send(request("GET", "/metrics").repeat(40) + &request("GET", "/probe"));
    for _ in 0..40 {
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!(client.read_response().status, 503);
    client.expect_close();
}

#[test]
fn requests_that_arrive_on_the_reserve_while_the_process_is_suspended_are_answered() {
    let (service, _delayed) = full_service("30s");
    for (path, status) in [("/healthz", 200), ("/probe", 503)] {
        let mut clients: Vec<Client> = (0..8).map(|_| service.connect()).collect();
        wait_until("all connections are accepted", || {
            service.scrape().count("app_connections_open") == 13
        });
        service.pause();
        for client in &mut clients {
            client.send_request("GET", path);
        }
        // This is longer than a connection may stay on the reserve.
        thread::sleep(Duration::from_millis(2100));
        service.resume();
        for client in &mut clients {
            assert_eq!(client.read_response().status, status);
            client.expect_close();
        }
    }
}

#[test]
fn health_checks_are_served_while_clients_try_to_hold_the_reserve() {
    let (service, _delayed) = full_service("30s");
    let slow_readers: Vec<_> = (0..16)
        .map(|_| {
            let mut reader = connect_with_small_window(&service);
            let requests = request("GET", "/metrics").repeat(40);
            reader.write_all(requests.as_bytes()).unwrap();
            reader
        })
        .collect();
    assert_served_promptly(&service, "GET", "/healthz");
    drop(slow_readers);

    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let holding = scope.spawn(|| {
            let mut clients: Vec<Client> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                clients.resize_with(16, || service.connect());
                // Empty lines are not a request. A client whose connection is closed connects again.
                clients.retain_mut(|client| client.stream.write_all(b"\r\n").is_ok());
                thread::park_timeout(Duration::from_millis(20));
            }
        });
        let checks = scope.spawn(|| {
            for _ in 0..5 {
                assert_served_promptly(&service, "GET", "/healthz");
            }
        });
        let result = checks.join();
        is_over.store(true, Ordering::Relaxed);
        holding.join().unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn health_checks_that_hang_do_not_hold_the_reserve() {
    let (service, _delayed) = full_service("30s");
    let hang = "/faults/healthz?fail-rate=1&fail-with=hang&for=1h";
    assert_eq!(service.connect().ask("PUT", hang).status, 200);
    let _hanging: Vec<Client> = (0..16)
        .map(|_| {
            let mut client = service.connect();
            client.send_request("GET", "/healthz");
            client
        })
        .collect();
    assert_served_promptly(&service, "GET", "/faults");
    assert_served_promptly(&service, "GET", "/metrics");
}

#[test]
fn a_delayed_response_that_outlasts_the_time_on_the_reserve_becomes_a_503() {
    let (service, _delayed) = full_service("30s");
    let slow = "/faults/metrics?slow-rate=1&slow-latency=1h&for=1h";
    assert_eq!(service.connect().ask("PUT", slow).status, 200);
    let mut scraper = service.connect();
    let response = scraper.ask("GET", "/metrics");
    assert_eq!(response.status, 503, "{response:?}");
    assert_eq!(response.field("Retry-After"), Some("1"));
    assert_eq!(response.field("Connection"), Some("close"));
    scraper.expect_close();
}

/// Something else in the process takes the descriptors before the connection limit is reached.
#[test]
fn the_reserve_is_served_when_delayed_responses_hold_every_descriptor() {
    let service = Service::start_after("ulimit -n 300", SERVER, &["--fault-injection=all"]);
    let open = || service.scrape().count("process_open_fds");
    let open_at_start = open();
    let change = "/faults/process?open-files=1000000&for=1h";
    assert_eq!(service.connect().ask("PUT", change).status, 200);
    wait_until("the descriptors are taken", || open() > 220);
    // These are more clients than free descriptors.
    let mut delayed: Vec<Client> = (0..100).map(|_| service.connect()).collect();
    for client in &mut delayed {
        client.send_request("GET", "/probe?delay=30s");
    }
    assert_served_promptly(&service, "GET", "/healthz");
    assert_served_promptly(&service, "GET", "/metrics");
    wait_until("every descriptor is open", || open() == 300);
    let refused = service.get("/probe");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.field("Retry-After"), Some("1"));
    assert_served_promptly(&service, "DELETE", "/faults");
    wait_until("other requests are served", || {
        service.get("/probe").status == 200
    });
    drop(delayed);
    wait_until("the reserve has its descriptors again", || {
        open() == open_at_start
    });
}

#[test]
fn connections_in_the_backlog_are_answered_when_the_service_stops_at_the_limit() {
    // The responses are due before the grace period ends, and after the service has stopped accepting, also if
    // the clients below need some seconds.
    let (mut service, _delayed) = full_service("4s");
    service.pause();
    let mut clients: Vec<Client> = (0..100).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.send_request("GET", "/probe");
    }
    service.signal("TERM");
    service.resume();
    for client in &mut clients {
        assert_eq!(client.read_response().status, 503);
        client.expect_close();
    }
    drop(clients);
    assert_eq!(service.wait(), Some(0));
}
