//! CPU work for responses: all clients share one CPU, and requests without work wait for one unit of it
//! at most.

use std::time::{Duration, Instant};

use crate::scenario::{Clients, Scenario};
use crate::support::{Exposition, request, wait_until};

/// Returns the number of units of work that are done.
fn units_done(metrics: &Exposition) -> u64 {
    metrics.requests("GET", "/probe", 200)
}

/// Connects clients and sends a request on each. Returns when the service has received all of them.
fn send_work(scenario: &Scenario, count: usize) -> Clients {
    let mut clients = scenario.silent_clients(count);
    clients.send_request("GET", "/probe");
    // A later client is accepted and gets its turn after them.
    scenario.scrape();
    clients
}

#[test]
fn scrapes_and_health_checks_wait_for_at_most_one_unit_of_work() {
    let scenario = Scenario::start(&["--work", "100ms"]);
    let mut connected = scenario.connect();
    let mut clients = scenario.silent_clients(64);
    let before = scenario.cpu_time();
    clients.send_request("GET", "/probe");
    // The number of units that were finished from one response to the next. A pause of this client, on a
    // busy machine, can add some, but not to the median.
    let mut existing = Vec::new();
    let mut new = Vec::new();
    let mut finished = 0;
    while finished < 60 {
        let metrics = connected.scrape();
        existing.push(units_done(&metrics) - finished);
        assert_eq!(connected.ask("GET", "/healthz").status, 200);
        finished = units_done(&scenario.scrape());
        new.push(finished - units_done(&metrics));
        assert_eq!(scenario.get("/healthz").status, 200);
        finished = units_done(&connected.scrape());
    }
    clients.expect_successful_probes();
    existing.sort_unstable();
    new.sort_unstable();
    println!("units: {existing:?} for one request, {new:?} for two");
    assert!(existing[existing.len() / 2] <= 1, "{existing:?}");
    assert!(new[new.len() / 2] <= 2, "{new:?}");

    let used = scenario.cpu_time().saturating_sub(before).as_secs_f64();
    println!("used {used} s of CPU time for 64 times 100 ms");
    assert!(
        (5.76..=7.04).contains(&used),
        "{used} s, expected 64 times 100 ms"
    );
    assert_eq!(units_done(&scenario.scrape()), 64);
}

#[test]
fn responses_on_one_connection_stay_in_order_whatever_their_work() {
    let flags = ["--work", "2ms", "--latency", "2ms", "--fail-rate", "0.3"];
    let scenario = Scenario::start(&flags);
    let mut client = scenario.connect();
    let requests = ["/probe", "/healthz", "/nope"].map(|path| request("GET", path));
    client.send(requests.concat().repeat(50));
    for _ in 0..50 {
        assert!(matches!(client.read_response().status, 200 | 500));
        assert_eq!(client.read_response().body, "ok\n");
        assert_eq!(client.read_response().status, 404);
    }
}

#[test]
fn no_work_is_done_for_clients_that_have_disconnected() {
    let scenario = Scenario::start(&["--work", "500ms"]);
    let clients = send_work(&scenario, 20);
    let before = units_done(&scenario.scrape());
    clients.disconnect_with_reset();
    wait_until("every request is recorded", || {
        let metrics = scenario.scrape();
        let disconnected = metrics.sum("app_request_count_total", "http_status", "499");
        // Work that had already started is finished, and its response may have been sent.
        units_done(&metrics) + disconnected == 20
    });
    let done = units_done(&scenario.scrape()) - before;
    assert!(done <= 2, "{done} more units of 500 ms of work were done");
    assert_eq!(scenario.get("/probe").status, 200);
}

#[test]
fn queued_work_is_done_before_the_service_ends() {
    // Far less work than the grace period allows, even on a busy machine.
    let mut scenario = Scenario::start(&["--work", "5ms"]);
    let mut clients = send_work(&scenario, 10);
    scenario.signal("TERM");
    clients.expect_successful_probes();
    assert_eq!(scenario.wait(), Some(0));
}

#[test]
fn queued_work_beyond_the_grace_period_does_not_delay_the_end() {
    let mut scenario = Scenario::start(&["--work", "200ms"]);
    // A hundred seconds of work.
    let _clients = send_work(&scenario, 500);
    let signaled = Instant::now();
    scenario.signal("TERM");
    assert_eq!(scenario.wait(), Some(0));
    // The grace period, and the units that had begun, which take longer on a busy machine.
    let expected = Duration::from_secs(5)..Duration::from_secs(40);
    assert!(expected.contains(&signaled.elapsed()));
}

#[test]
fn a_client_that_disconnects_before_its_work_does_not_affect_others() {
    let scenario = Scenario::start(&["--work", "100ms"]);
    let mut clients = send_work(&scenario, 6);
    clients.remove(5).disconnect_with_reset();
    clients.expect_successful_probes();
}
