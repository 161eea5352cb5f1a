//! Work: one CPU for everybody, and nobody waits for more than one unit of it.

use std::time::{Duration, Instant};

use crate::support::{Client, Service, request, wait_until};

const SERVER: &str = "event-loop";
const PROBES: &str = r#"app_request_count_total{method="GET",endpoint="/probe",http_status="200"}"#;

/// Clients whose request is received, and waits for its work.
fn ask_for_work(service: &Service, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.send_request("GET", "/probe");
    }
    // Who comes after them is accepted, and has a turn, after them.
    service.scrape();
    clients
}

#[test]
fn a_scrape_and_a_health_check_wait_for_one_unit_of_work_at_most() {
    let service = Service::start(SERVER, &["--work", "100ms"]);
    let mut connected = service.connect();
    let mut clients: Vec<Client> = (0..64).map(|_| service.connect()).collect();
    let before = service.cpu_time();
    let started = Instant::now();
    for client in &mut clients {
        client.send_request("GET", "/probe");
    }
    // In turn on a connection of its own and on one that is there already.
    let mut waited = Vec::new();
    let mut counted = 0;
    while counted < 60 {
        for path in ["/metrics", "/healthz"] {
            let asked = Instant::now();
            assert_eq!(service.get(path).status, 200);
            let connecting = asked.elapsed();
            let asked = Instant::now();
            assert_eq!(connected.ask("GET", path).status, 200);
            waited.push((connecting, asked.elapsed()));
        }
        counted = service.scrape().count(PROBES);
    }
    for client in &mut clients {
        assert_eq!(client.answer().body, "I'm ok!");
    }
    // By the clock a unit is longer on a machine that is busy with other things, too.
    let unit = started.elapsed() / 64;
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (connecting, connected): (Vec<_>, Vec<_>) = waited.into_iter().unzip();
    for waited in [connecting, connected] {
        let waited = median(waited);
        println!("waited {waited:?}, a unit is {unit:?}");
        assert!(
            waited < unit * 3 / 2,
            "waited {waited:?}, a unit is {unit:?}"
        );
    }

    let used = service.cpu_time().saturating_sub(before).as_secs_f64();
    println!("used {used} s of CPU time for 64 times 100 ms");
    assert!(
        (5.76..=7.04).contains(&used),
        "{used} s, not 64 times 100 ms"
    );
    assert_eq!(service.scrape().count(PROBES), 64);
}

#[test]
fn answers_on_one_connection_stay_in_order_however_much_work_they_take() {
    let flags = ["--work", "2ms", "--latency", "2ms", "--fail-rate", "0.3"];
    let service = Service::start(SERVER, &flags);
    let mut client = service.connect();
    let requests = ["/probe", "/healthz", "/nope"].map(|path| request("GET", path));
    client.send(requests.concat().repeat(50));
    for _ in 0..50 {
        assert!(matches!(client.answer().status, 200 | 500));
        assert_eq!(client.answer().body, "ok\n");
        assert_eq!(client.answer().status, 404);
    }
}

#[test]
fn nothing_is_computed_for_clients_that_have_left() {
    let service = Service::start(SERVER, &["--work", "500ms"]);
    let clients = ask_for_work(&service, 20);
    for client in &clients {
        let linger = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&client.stream, linger).unwrap();
    }
    drop(clients);
    wait_until("every request is recorded", || {
        let page = service.scrape();
        let disconnected = page.sum("app_request_count_total", "http_status", "499");
        // Work that had begun is finished, and its response may have been sent.
        page.count(PROBES) + disconnected == 20
    });
    assert_eq!(service.get("/probe").status, 200);
    // What was done before they had left, and this one.
    let used = service.cpu_time();
    println!("used {used:?} of CPU time");
    assert!(
        used < Duration::from_secs(5),
        "{used:?}, not half of 20 times 500 ms"
    );
}

#[test]
fn work_that_waits_is_done_before_the_end() {
    // Far less than the grace, on a machine that is busy with other things, too.
    let mut service = Service::start(SERVER, &["--work", "5ms"]);
    let mut clients = ask_for_work(&service, 10);
    service.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.answer().body, "I'm ok!");
    }
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn work_that_waits_too_long_does_not_put_off_the_end() {
    let mut service = Service::start(SERVER, &["--work", "1s"]);
    // Work for more than the minute that `wait` allows.
    let _clients = ask_for_work(&service, 100);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn whoever_leaves_before_its_work_is_done_takes_nobody_along() {
    let service = Service::start(SERVER, &["--work", "100ms"]);
    let mut clients = ask_for_work(&service, 6);
    let leaving = clients.remove(5);
    let linger = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&leaving.stream, linger).unwrap();
    drop(leaving);
    for client in &mut clients {
        assert_eq!(client.answer().body, "I'm ok!");
    }
}
