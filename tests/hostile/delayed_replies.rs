//! Delayed responses: they delay no other client, and responses on one connection keep their order.

use crate::support::{Client, Service, wait_until};

const SERVER: &str = "event-loop";

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_delayed_responses_delay_no_other_client() {
    let service = Service::start(SERVER, &["--slow-rate", "1", "--slow-latency", "4s"]);
    let mut delayed: Vec<Client> = (0..1000)
        .map(|_| {
            let mut client = service.connect();
            client.send_request("GET", "/probe");
            client
        })
        .collect();
    crate::assert_others_are_served(&service);
    assert_eq!(service.connect().ask("POST", "/probe").status, 405);
    let metrics = service.scrape();
    // All connections are still open, even if the first responses were already sent on a slow machine.
    assert!(metrics.count("app_connections_open") >= 1000);
    for client in &mut delayed {
        assert_eq!(client.read_response().body, "I'm ok!");
    }
    let count = r#"app_request_latency_seconds_count{method="GET",endpoint="/probe"}"#;
    assert_eq!(service.scrape().count(count), 1000);
}

#[test]
fn responses_on_one_connection_stay_in_order_whatever_their_delays() {
    let flags = [
        "--latency",
        "5ms",
        "--fail-rate",
        "0.3",
        "--random-seed",
        "3",
    ];
    let service = Service::start(SERVER, &flags);
    let mut client = service.connect();
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
    let service = Service::start(SERVER, &[&slow[..], &["--fault-injection"]].concat());
    let mut waiting = service.connect();
    waiting.send_request("GET", "/probe?status=503&delay=3s");
    let resident = || cfg!(target_os = "linux").then(|| service.status("VmRSS"));
    let before = resident();
    for _ in 0..20 {
        let mut delayed: Vec<Client> = (0..100).map(|_| service.connect()).collect();
        for client in &mut delayed {
            client.send_request("GET", "/probe");
        }
        // 100 of these clients, the waiting one, and the scrape.
        wait_until("every request is received", || {
            service.scrape().count("app_requests_in_flight") >= 102
        });
        for client in &delayed {
            let linger = Some(std::time::Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&client.stream, linger).unwrap();
        }
    }
    wait_until("every request is recorded", || {
        service
            .scrape()
            .sum("app_request_count_total", "http_status", "499")
            == 2000
    });
    // The service may not have seen yet that the scrape before is over.
    wait_until("the connections are closed", || {
        service.scrape().count("app_connections_open") == 2
    });
    assert_eq!(waiting.read_response().status, 503);
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 2048, "{grown} KiB for disconnected clients");
    }
}
