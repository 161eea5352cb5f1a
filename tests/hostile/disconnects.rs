//! Clients that disconnect before their delayed response. Each is recorded as 499, with the time until
//! it disconnected, and not as a success.

use std::thread;
use std::time::{Duration, Instant};

use crate::scenario::{Clients, Scenario};
use crate::support::{Exposition, wait_until};

/// How long the clients wait before they disconnect. It differs clearly from the delays.
const PATIENCE: Duration = Duration::from_millis(500);
/// How much later a busy server may notice that they have.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Waits until this number of requests to /probe have been recorded. Returns the metrics.
#[track_caller]
fn scrape_when_recorded(scenario: &Scenario, count: u64) -> Exposition {
    let mut metrics = scenario.scrape();
    wait_until("every request is recorded", || {
        metrics = scenario.scrape();
        metrics.recorded("/probe") == count
    });
    metrics
}

/// Returns the number of requests to /probe that were recorded with a status.
fn probes(metrics: &Exposition, status: u16) -> u64 {
    metrics.requests("GET", "/probe", status)
}

/// Asserts that a recorded time is the time until a client disconnected. It may be shorter than the
/// test measures, because a busy server may have started the request some time after receiving it.
#[track_caller]
fn assert_is_time_until_disconnect(seconds: f64, most: Duration) {
    let most = most.as_secs_f64();
    let least = (PATIENCE / 2).as_secs_f64();
    assert!(
        (least..most).contains(&seconds),
        "{seconds} s, expected {least} to {most} s"
    );
}

/// Connects clients, and returns them when their delayed requests have been received and some time has
/// passed.
fn clients_that_have_waited(scenario: &Scenario, path: &str, count: usize) -> Clients {
    let mut clients = scenario.silent_clients(count);
    clients.each(|client| client.send_delayed(path));
    thread::sleep(PATIENCE);
    clients
}

/// Ends the service. Returns status, bytes of the body and seconds from the log's lines about a path.
fn logged(mut scenario: Scenario, path: &str) -> Vec<(String, String, f64)> {
    scenario.signal("TERM");
    assert_eq!(scenario.wait(), Some(0));
    let log = scenario.stdout();
    println!("{log}");
    let lines = log.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter(|fields| fields[3] == path)
        .map(|fields| {
            let seconds = fields[6].parse().unwrap();
            (fields[4].to_owned(), fields[5].to_owned(), seconds)
        })
        .collect()
}

/// This is so for slow, ordinary and requested delays.
#[test]
fn clients_that_reset_the_connection_are_recorded_as_499_at_once() {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let ordinary = ["--latency", "1h"];
    let requested = ["--fault-injection"];
    for (flags, path) in [
        (&slow[..], "/probe"),
        (&ordinary[..], "/probe"),
        (&requested[..], "/probe?delay=60s"),
    ] {
        let scenario = Scenario::start(&[flags, &["--access-log"]].concat());
        let started = Instant::now();
        clients_that_have_waited(&scenario, path, 3).disconnect_with_reset();
        let metrics = scrape_when_recorded(&scenario, 3);
        let most = started.elapsed();
        assert_eq!((probes(&metrics, 499), probes(&metrics, 200)), (3, 0));
        assert_is_time_until_disconnect(metrics.total_latency("/probe") / 3.0, most);
        let logged = logged(scenario, path);
        assert_eq!(logged.len(), 3);
        for (status, bytes, seconds) in logged {
            assert_eq!((&*status, &*bytes), ("499", "0"));
            assert_is_time_until_disconnect(seconds, most);
        }
    }
}

#[test]
fn clients_that_disconnect_with_a_fin_are_recorded_as_499_and_readers_get_their_response() {
    let scenario = Scenario::start(&["--fault-injection", "--access-log"]);
    // When the response is due, the service finds out what the FIN meant: some clients have
    // disconnected, others have only finished sending.
    let started = Instant::now();
    let leaving = clients_that_have_waited(&scenario, "/probe?delay=3s", 3);
    let mut reading = clients_that_have_waited(&scenario, "/probe?delay=3001ms", 2);
    leaving.disconnect_with_fin();
    reading.each(|client| client.finish_sending());
    let most = started.elapsed() + TOLERANCE;
    reading.each(|client| client.expect_responses_and_orderly_close(1));
    let metrics = scrape_when_recorded(&scenario, 5);
    assert_eq!((probes(&metrics, 499), probes(&metrics, 200)), (3, 2));
    let logged_499 = logged(scenario, "/probe?delay=3s");
    assert_eq!(logged_499.len(), 3);
    for (status, _, seconds) in logged_499 {
        assert_eq!(status, "499");
        assert_is_time_until_disconnect(seconds, most);
    }
}

#[test]
fn a_client_that_is_closed_to_make_room_after_its_fin_is_recorded_as_499() {
    let limit = ["--max-connections", "6"];
    let flags = [&limit[..], &["--fault-injection", "--access-log"]].concat();
    let scenario = Scenario::start(&flags);
    let gone = "/probe?delay=30s";
    let started = Instant::now();
    clients_that_have_waited(&scenario, gone, 5).disconnect_with_fin();
    let most = started.elapsed() + TOLERANCE;
    // Some time passes, so that the recorded time can be told from the whole.
    thread::sleep(TOLERANCE);
    // This client takes the last slot and keeps it.
    let mut staying = scenario.connect();
    staying.send_request("GET", "/probe?delay=3s");
    // This one needs a slot, because its request is not urgent.
    let asked = Instant::now();
    assert_eq!(scenario.get("/nope").status, 404);
    let took = asked.elapsed();
    println!("404 after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let closed = probes(&scenario.scrape(), 499);
    assert!(closed > 0, "no 499 recorded");
    assert_eq!(staying.read_response().status, 200);
    let logged = logged(scenario, gone);
    let (closed, rest): (Vec<_>, Vec<_>) =
        logged.into_iter().partition(|(status, ..)| status == "499");
    assert!(!closed.is_empty());
    assert!(!rest.iter().any(|(status, ..)| status == "200"), "{rest:?}");
    for (_, bytes, seconds) in closed {
        assert_eq!(bytes, "0");
        assert_is_time_until_disconnect(seconds, most);
    }
}

#[test]
fn requests_in_flight_are_those_received_and_not_yet_answered() {
    let scenario = Scenario::start(&["--fault-injection"]);
    let in_flight = || scenario.scrape().count("app_requests_in_flight");
    // A scrape may count itself.
    let none = in_flight();
    assert!(none <= 1, "{none}");
    let mut clients = clients_that_have_waited(&scenario, "/probe?delay=3s", 4);
    wait_until("all four are in flight", || in_flight() == none + 4);
    clients.remove(0).disconnect_with_reset();
    wait_until("the reset is noticed", || {
        scenario.scrape().count("app_connections_open") == 4
    });
    assert_eq!(in_flight(), none + 3);
    // The server finds out what a FIN meant when the response is due.
    clients.remove(0).disconnect_with_fin();
    clients[0].finish_sending();
    clients.expect_successful_probes();
    wait_until("no request is left", || in_flight() == none);
}
