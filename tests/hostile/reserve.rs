//! The reserve above the connection limit: every request on it gets a response, and no client can hold
//! it.

use std::thread;
use std::time::Duration;

use crate::scenario::Scenario;
use crate::support::{request, wait_until};

/// Starts a service whose four connections are occupied by delayed requests.
fn full_service(delay: &str) -> Scenario {
    let path = format!("/probe?delay={delay}");
    Scenario::start(&["--max-connections", "4", "--fault-injection=all"])
        .with_clients(4, |client| client.send_delayed(&path))
}

#[test]
fn the_reserve_has_sixteen_connections() {
    let scenario = full_service("30s");
    let mut most = 0;
    // On a busy machine, the first clients may have been closed before the scrape.
    for _ in 0..5 {
        // As many as the reserve has room for, besides the scrape, and more.
        for count in [15, 40] {
            let _silent = scenario.silent_clients(count);
            most = most.max(scenario.scrape().count("app_connections_open"));
        }
    }
    assert_eq!(most, 4 + 16);
}

#[test]
fn requests_pipelined_on_the_reserve_are_all_answered() {
    let scenario = full_service("30s");
    let mut client = scenario.connect();
    client.send(request("GET", "/metrics").repeat(40) + &request("GET", "/probe"));
    for _ in 0..40 {
        assert_eq!(client.read_response().status, 200);
    }
    client.expect_refusal();
}

#[test]
fn requests_that_arrive_on_the_reserve_while_the_process_is_suspended_are_answered() {
    let scenario = full_service("30s");
    for (path, status) in [("/healthz", 200), ("/probe", 503)] {
        let mut clients = scenario.silent_clients(8);
        wait_until("all connections are accepted", || {
            scenario.scrape().count("app_connections_open") == 13
        });
        scenario.while_paused(|| {
            clients.send_request("GET", path);
            // This is longer than a connection may stay on the reserve.
            thread::sleep(Duration::from_millis(2100));
        });
        clients.each(|client| _ = client.expect_last_response(status));
    }
}

#[test]
fn health_checks_are_served_while_clients_try_to_hold_the_reserve() {
    let scenario = full_service("30s");
    let requests = request("GET", "/metrics").repeat(40);
    let slow_readers = scenario.slow_readers(16, |reader| reader.send(&requests));
    scenario.expect_served_promptly("GET", "/healthz");
    drop(slow_readers);

    scenario.meanwhile_empty_lines(16, |scenario| {
        for _ in 0..5 {
            scenario.expect_served_promptly("GET", "/healthz");
        }
    });
}

#[test]
fn health_checks_that_hang_do_not_hold_the_reserve() {
    let scenario = full_service("30s");
    scenario.change_faults("healthz?fail-rate=1&fail-with=hang&for=1h");
    let _hanging = scenario.clients(16, |client| client.send_request("GET", "/healthz"));
    scenario.expect_served_promptly("GET", "/faults");
    scenario.expect_served_promptly("GET", "/metrics");
}

#[test]
fn a_delayed_response_that_outlasts_the_time_on_the_reserve_becomes_a_503() {
    let scenario = full_service("30s");
    scenario.change_faults("metrics?slow-rate=1&slow-latency=1h&for=1h");
    let mut scraper = scenario.connect();
    scraper.send_request("GET", "/metrics");
    scraper.expect_refusal();
}

/// Something else in the process takes the descriptors before the connection limit is reached.
#[test]
fn the_reserve_is_served_when_delayed_responses_hold_every_descriptor() {
    let scenario = Scenario::start_after("ulimit -n 300", &["--fault-injection=all"]);
    let open = || scenario.scrape().count("process_open_fds");
    let open_at_start = open();
    scenario.take_descriptors();
    // These are more clients than free descriptors.
    let mut delayed = scenario.silent_clients(100);
    delayed.send_request("GET", "/probe?delay=30s");
    scenario.expect_served_promptly("GET", "/healthz");
    scenario.expect_served_promptly("GET", "/metrics");
    wait_until("every descriptor is open", || open() == 300);
    let mut refused = scenario.connect();
    refused.send_request("GET", "/probe");
    refused.expect_refusal();
    scenario.expect_served_promptly("DELETE", "/faults");
    wait_until("other requests are served", || {
        scenario.get("/probe").status == 200
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
    let mut scenario = full_service("4s");
    let mut clients = scenario.while_paused(|| {
        let mut clients = scenario.silent_clients(100);
        clients.send_request("GET", "/probe");
        scenario.signal("TERM");
        clients
    });
    clients.each(|client| _ = client.expect_last_response(503));
    drop(clients);
    assert_eq!(scenario.wait(), Some(0));
}
