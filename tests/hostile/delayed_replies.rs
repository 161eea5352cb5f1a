//! Delayed responses: they delay no other client, and responses on one connection keep their order.

use crate::scenario::Scenario;
use crate::support::wait_until;

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_delayed_responses_delay_no_other_client() {
    let scenario = Scenario::start(&["--slow-rate", "1", "--slow-latency", "4s"]);
    let mut delayed = scenario.clients(1000, |client| client.send_request("GET", "/probe"));
    scenario.expect_others_served();
    assert_eq!(scenario.connect().ask("POST", "/probe").status, 405);
    let metrics = scenario.scrape();
    // All connections are still open, even if the first responses were already sent on a slow machine.
    assert!(metrics.count("app_connections_open") >= 1000);
    delayed.expect_successful_probes();
    assert_eq!(scenario.scrape().recorded("/probe"), 1000);
}

#[test]
fn responses_on_one_connection_stay_in_order_whatever_their_delays() {
    let faults = ["--latency", "5ms", "--fail-rate", "0.3"];
    let scenario = Scenario::start(&[&faults[..], &["--random-seed", "3"]].concat());
    let mut client = scenario.connect();
    for _ in 0..50 {
        client.send_request("GET", "/probe");
        client.send_request("GET", "/healthz");
        client.send_request("GET", "/nope");
    }
    for _ in 0..50 {
        assert!(matches!(client.read_response().status, 200 | 500));
        assert_eq!(client.read_response().body, "ok\n");
        assert_eq!(client.read_response().status, 404);
    }
}

#[test]
fn clients_that_disconnect_before_their_response_are_recorded_and_use_no_memory() {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let scenario = Scenario::start(&[&slow[..], &["--fault-injection"]].concat());
    let mut waiting = scenario.connect();
    waiting.send_request("GET", "/probe?status=503&delay=3s");
    let resident = || cfg!(target_os = "linux").then(|| scenario.status("VmRSS"));
    let before = resident();
    for _ in 0..20 {
        let mut delayed = scenario.silent_clients(100);
        delayed.send_request("GET", "/probe");
        // 100 of these clients, the waiting one, and the scrape.
        wait_until("every request is received", || {
            scenario.scrape().count("app_requests_in_flight") >= 102
        });
        delayed.disconnect_with_reset();
    }
    wait_until("every request is recorded", || {
        let metrics = scenario.scrape();
        metrics.sum("app_request_count_total", "http_status", "499") == 2000
    });
    // The service may not have seen yet that the scrape before is over.
    wait_until("the connections are closed", || {
        scenario.scrape().count("app_connections_open") == 2
    });
    assert_eq!(waiting.read_response().status, 503);
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 2048, "{grown} KiB for disconnected clients");
    }
}
