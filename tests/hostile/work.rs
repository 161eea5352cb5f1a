//! CPU work for responses: all clients share one CPU, and requests without work wait for one unit of it
//! at most.

use std::time::{Duration, Instant};

use crate::support::{Client, Exposition, Service, request, wait_until};

const SERVER: &str = "event-loop";
const PROBES: &str = r#"app_request_count_total{method="GET",endpoint="/probe",http_status="200"}"#;

/// Connects clients and sends a request on each. Returns when the service has received all of them.
fn send_work(service: &Service, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.send_request("GET", "/probe");
    }
    // A later client is accepted and gets its turn after them.
    service.scrape();
    clients
}

#[test]
fn scrapes_and_health_checks_wait_for_at_most_one_unit_of_work() {
    let service = Service::start(SERVER, &["--work", "100ms"]);
    let mut connected = service.connect();
    let mut clients: Vec<Client> = (0..64).map(|_| service.connect()).collect();
    let before = service.cpu_time();
    for client in &mut clients {
        client.send_request("GET", "/probe");
    }
    // The number of units that were finished from one response to the next. A pause of this client, on a
    // busy machine, can add some, but not to the median.
    let mut existing = Vec::new();
    let mut new = Vec::new();
    let mut finished = 0;
    while finished < 60 {
        let metrics = Exposition::parse(&connected.ask("GET", "/metrics").body);
        existing.push(metrics.count(PROBES) - finished);
        assert_eq!(connected.ask("GET", "/healthz").status, 200);
        finished = service.scrape().count(PROBES);
        new.push(finished - metrics.count(PROBES));
        assert_eq!(service.get("/healthz").status, 200);
        finished = Exposition::parse(&connected.ask("GET", "/metrics").body).count(PROBES);
    }
    for client in &mut clients {
        assert_eq!(client.read_response().body, "I'm ok!");
    }
    existing.sort_unstable();
    new.sort_unstable();
    println!("units: {existing:?} for one request, {new:?} for two");
    assert!(existing[existing.len() / 2] <= 1, "{existing:?}");
    assert!(new[new.len() / 2] <= 2, "{new:?}");

    let used = service.cpu_time().saturating_sub(before).as_secs_f64();
    println!("used {used} s of CPU time for 64 times 100 ms");
    assert!(
        (5.76..=7.04).contains(&used),
        "{used} s, expected 64 times 100 ms"
    );
    assert_eq!(service.scrape().count(PROBES), 64);
}

#[test]
fn responses_on_one_connection_stay_in_order_whatever_their_work() {
    let flags = ["--work", "2ms", "--latency", "2ms", "--fail-rate", "0.3"];
    let service = Service::start(SERVER, &flags);
    let mut client = service.connect();
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
    let service = Service::start(SERVER, &["--work", "500ms"]);
    let clients = send_work(&service, 20);
    for client in &clients {
        let linger = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&client.stream, linger).unwrap();
    }
    let before = service.scrape().count(PROBES);
    drop(clients);
    wait_until("every request is recorded", || {
        let metrics = service.scrape();
        let disconnected = metrics.sum("app_request_count_total", "http_status", "499");
        // Work that had already started is finished, and its response may have been sent.
        metrics.count(PROBES) + disconnected == 20
    });
    let done = service.scrape().count(PROBES) - before;
    assert!(done <= 2, "{done} more units of 500 ms of work were done");
    assert_eq!(service.get("/probe").status, 200);
}

#[test]
fn queued_work_is_done_before_the_service_ends() {
    // Far less work than the grace period allows, even on a busy machine.
    let mut service = Service::start(SERVER, &["--work", "5ms"]);
    let mut clients = send_work(&service, 10);
    service.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.read_response().body, "I'm ok!");
    }
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn queued_work_beyond_the_grace_period_does_not_delay_the_end() {
    let mut service = Service::start(SERVER, &["--work", "200ms"]);
    // A hundred seconds of work.
    let _clients = send_work(&service, 500);
    let signaled = Instant::now();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    // The grace period, and the units that had begun, which take longer on a busy machine.
    let expected = Duration::from_secs(5)..Duration::from_secs(40);
    assert!(expected.contains(&signaled.elapsed()));
}

#[test]
fn a_client_that_disconnects_before_its_work_does_not_affect_others() {
    let service = Service::start(SERVER, &["--work", "100ms"]);
    let mut clients = send_work(&service, 6);
    let leaving = clients.remove(5);
    let linger = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&leaving.stream, linger).unwrap();
    drop(leaving);
    for client in &mut clients {
        assert_eq!(client.read_response().body, "I'm ok!");
    }
}
