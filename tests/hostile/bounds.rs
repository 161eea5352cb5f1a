//! Limits on what a client can send, open and announce.

use std::io::Write;

use crate::request_heads::REQUEST_HEADS;
use crate::support::{Client, Exposition, Service, wait_until};
use crate::{assert_little_memory_was_taken, assert_others_are_served};

const SERVER: &str = "event-loop";

/// The statuses of rejected requests.
const REJECTED: [u16; 5] = [400, 411, 413, 501, 505];

/// Sends a chunk many times, until everything is sent or the service refuses more.
fn flood(client: &mut Client, chunk: &[u8], times: usize) {
    for _ in 0..times {
        if client.stream.write_all(chunk).is_err() {
            return;
        }
    }
}

#[test]
fn every_malformed_head_gets_its_status_and_a_close_and_is_counted() {
    let service = Service::start(SERVER, &[]);
    for (what, head, status) in REQUEST_HEADS {
        let mut client = service.connect();
        client.send(head);
        let response = if head.starts_with("HEAD ") {
            client.read_response_to_head()
        } else {
            client.read_response()
        };
        assert_eq!(response.status, *status, "{what}");
        if REJECTED.contains(status) {
            client.expect_close();
        }
        assert_others_are_served(&service);
    }
    let metrics = service.scrape();
    for rejected in REJECTED {
        let expected = REQUEST_HEADS.iter().filter(|head| head.2 == rejected);
        let series = format!(
            r#"app_request_count_total{{method="other",endpoint="other",http_status="{rejected}"}}"#
        );
        assert_eq!(
            metrics.count(&series),
            expected.count() as u64,
            "{rejected}"
        );
    }
}

#[test]
fn a_head_of_400_mb_is_rejected_without_being_read_completely() {
    let service = Service::start(SERVER, &[]);
    for (beginning, status) in [
        ("GET /probe HTTP/1.1\r\nHost: a\r\nX: ", 431),
        ("GET /", 414),
    ] {
        let mut client = service.connect();
        client.send(beginning);
        let sender = client.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let mut sender = Client::from(sender);
            flood(&mut sender, &[b'x'; 16 * 1024], 25_600);
        });
        assert_eq!(client.read_response().status, status);
        assert_others_are_served(&service);
        drop(client);
        sender.join().unwrap();
    }
    assert_little_memory_was_taken(&service);
}

#[test]
fn a_body_of_ten_petabytes_is_rejected_at_once() {
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n");
    assert_eq!(client.read_response().status, 413);
    assert_others_are_served(&service);
    client.expect_close();
}

#[test]
fn a_client_that_is_still_sending_its_body_gets_the_response_and_no_reset() {
    let service = Service::start(SERVER, &[]);
    for _ in 0..20 {
        let mut client = service.connect();
        client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n");
        // Send all of it, as clients do that read the response only afterward.
        client.send(vec![b'x'; 4_000_000]);
        assert_eq!(client.read_response().status, 413);
        client.expect_close();
    }
}

#[test]
fn a_body_that_is_announced_and_never_sent_delays_no_other_client() {
    let service = Service::start(SERVER, &[]);
    let silent: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = service.connect();
            client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
            assert_eq!(client.read_response().status, 405);
            client
        })
        .collect();
    assert_others_are_served(&service);
    drop(silent);
}

#[test]
fn a_body_within_the_limit_is_discarded_and_the_connection_stays_open() {
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    for length in [0, 1, 1024, 65536] {
        client.send(format!(
            "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        ));
        assert_eq!(client.read_response().status, 405);
        client.send(vec![b'x'; length]);
        assert_eq!(client.ask("GET", "/probe").body, "I'm ok!");
    }
}

#[test]
fn a_client_that_expects_a_100_gets_the_final_response_at_once_and_a_close() {
    let service = Service::start(SERVER, &[]);
    let expecting =
        "POST /probe HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    // The client may still send its body.
    for body in ["", "abc"] {
        let mut client = service.connect();
        client.send(expecting);
        let response = client.read_response();
        assert_eq!(response.status, 405);
        assert_eq!(response.field("Connection"), Some("close"));
        client.send(body);
        client.expect_close();
    }
    let mut client = service.connect();
    client.send(format!("{expecting}abc"));
    let response = client.read_response();
    assert_eq!((response.status, response.field("Connection")), (405, None));
    assert_eq!(client.ask("GET", "/probe").status, 200);
}

#[test]
fn ten_thousand_pipelined_requests_get_their_responses_in_order() {
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    let sender = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let mut sender = Client::from(sender);
        for _ in 0..5_000 {
            sender.send_request("GET", "/probe");
            sender.send_request("GET", "/nope");
        }
    });
    for _ in 0..5_000 {
        assert_eq!(client.read_response().status, 200);
        assert_eq!(client.read_response().status, 404);
    }
    sender.join().unwrap();
}

#[test]
fn a_client_that_pipelines_the_most_expensive_request_delays_no_other_client() {
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    let mut sender = Client::from(client.stream.try_clone().unwrap());
    let sender = std::thread::spawn(move || {
        for _ in 0..5_000 {
            sender.send_request("HEAD", "/metrics");
        }
    });
    assert_others_are_served(&service);
    for _ in 0..5_000 {
        assert_eq!(client.read_response_to_head().status, 200);
    }
    sender.join().unwrap();
}

#[test]
fn at_the_limit_the_connection_idle_longest_is_closed_for_a_new_one() {
    let service = Service::start(SERVER, &["--max-connections", "10"]);
    let mut clients: Vec<Client> = (0..10)
        .map(|_| {
            let mut client = service.connect();
            client.ask("GET", "/probe");
            client
        })
        .collect();
    // Now the second client has been idle longest.
    clients[0].ask("GET", "/probe");
    let mut new = service.connect();
    assert_eq!(new.ask("GET", "/probe").status, 200);
    clients[1].expect_close();
    for (number, client) in clients.iter_mut().enumerate() {
        if number != 1 {
            assert_eq!(client.ask("GET", "/probe").status, 200, "client {number}");
        }
    }
    let metrics = Exposition::parse(&new.ask("GET", "/metrics").body);
    assert_eq!(metrics.count("app_connections_open"), 10);
}

#[test]
fn a_client_that_was_just_accepted_is_served_before_it_is_closed_for_another() {
    let service = Service::start(SERVER, &["--max-connections", "1"]);
    let mut idle = service.connect();
    assert_eq!(idle.ask("GET", "/probe").status, 200);
    // While the service is stopped, all three connect, so that one wake-up accepts as many as there is
    // room for.
    service.signal("STOP");
    let mut clients: Vec<Client> = (0..3).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.send_request("GET", "/probe");
    }
    service.signal("CONT");
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn when_every_connection_waits_a_new_client_is_served_after_the_next_response() {
    let slow = ["--slow-rate", "1", "--slow-latency", "500ms"];
    let service = Service::start(SERVER, &[&slow[..], &["--max-connections", "5"]].concat());
    let mut waiting: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = service.connect();
            client.send_delayed("/probe");
            client
        })
        .collect();
    assert_eq!(service.get("/healthz").status, 200);
    for client in &mut waiting {
        assert_eq!(client.read_response().body, "I'm ok!");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn when_every_connection_waits_the_service_does_not_spin() {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let service = Service::start(SERVER, &[&slow[..], &["--max-connections", "5"]].concat());
    let mut waiting: Vec<Client> = (0..5).map(|_| service.connect()).collect();
    for client in &mut waiting {
        client.send_delayed("/probe");
    }
    let _next = service.connect();
    service.waits();
}

#[test]
fn a_descriptor_limit_below_max_connections_is_reported_at_start() {
    let message = "tiny-probe: the descriptor limit, 64, allows only 32 connections; raise it \
                (ulimit -n) or lower --max-connections\n";
    for (max_connections, expected) in [("32", ""), ("33", message)] {
        let flags = ["--max-connections", max_connections];
        let mut service = Service::start_after("ulimit -n 64", SERVER, &flags);
        assert_eq!(service.get("/healthz").status, 200);
        service.signal("TERM");
        assert_eq!(service.wait(), Some(0));
        assert_eq!(service.stderr(), expected);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn more_clients_than_descriptors_are_all_served() {
    // The service raises the soft limit to the hard one. Both are lower than the number of clients.
    let service = Service::start_after("ulimit -Sn 64 && ulimit -Hn 128", SERVER, &[]);
    let mut clients = Vec::new();
    for _ in 0..500 {
        let mut client = service.connect();
        assert_eq!(client.ask("GET", "/probe").status, 200);
        clients.push(client);
    }
    let metrics = service.scrape();
    assert_eq!(
        metrics.count("process_max_fds"),
        128,
        "raised to the hard limit"
    );
    let max = metrics.count("app_connections_max");
    assert!(
        (64..128).contains(&max),
        "the limit allows {max} connections"
    );
    assert!(
        metrics.count("app_connections_open") > 64,
        "more than the soft limit"
    );
    assert_others_are_served(&service);
    drop(clients);
    wait_until("the connections are closed", || {
        service.scrape().count("app_connections_open") == 1
    });
}

/// The reserve takes no more than half of those that are left.
#[test]
fn ordinary_requests_are_served_with_hardly_any_descriptors() {
    let service = Service::start_after("ulimit -n 20", SERVER, &[]);
    for _ in 0..50 {
        assert_eq!(service.get("/probe").status, 200);
    }
}

/// Returns a function that sets the service's descriptor limit, up to a maximum.
#[cfg(target_os = "linux")]
fn descriptor_limit(service: &Service, maximum: u64) -> impl Fn(u64) + use<> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let pid = Pid::from_raw(service.pid().cast_signed());
    move |count| {
        let limit = Rlimit {
            current: Some(count),
            maximum: Some(maximum),
        };
        prlimit(pid, Resource::Nofile, limit).unwrap();
    }
}

/// Connects ten clients, and leaves the service no descriptor for the last seven, not even for the reserve.
/// The first three wait for delayed responses. The last one has sent a request. The service needs fault
/// injection. Returns the clients and a function that restores the limit.
#[cfg(target_os = "linux")]
fn run_out_of_descriptors(service: &Service) -> (Vec<Client>, impl Fn() + use<>) {
    let metrics = service.scrape();
    let set_limit = descriptor_limit(service, metrics.count("process_max_fds"));
    let mut clients: Vec<Client> = (0..3).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.send_delayed("/probe?delay=5s");
    }
    // The kernel gives no descriptor a number that is not below the limit, whichever are closed.
    set_limit(0);
    clients.extend((3..10).map(|_| service.connect()));
    let waiting = &mut clients[9];
    let timeout = Some(std::time::Duration::from_millis(200));
    waiting.stream.set_read_timeout(timeout).unwrap();
    waiting.send_request("GET", "/probe");
    assert!(
        waiting.stream.peek(&mut [0]).is_err(),
        "a response although there is no descriptor"
    );
    waiting
        .stream
        .set_read_timeout(Some(crate::support::TIMEOUT))
        .unwrap();
    (clients, move || set_limit(metrics.count("process_max_fds")))
}

#[cfg(target_os = "linux")]
#[test]
fn accepting_pauses_while_there_are_no_descriptors() {
    let mut service = Service::start(SERVER, &["--fault-injection"]);
    let (mut clients, restore_limit) = run_out_of_descriptors(&service);
    service.waits();
    restore_limit();
    assert_eq!(clients[9].read_response().status, 200);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let diagnostics = service.stderr();
    let expected = "tiny-probe: accepting a connection failed: Too many open files";
    assert!(diagnostics.starts_with(expected), "{diagnostics}");
    assert!(diagnostics.lines().count() < 10, "{diagnostics}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_the_pause_and_waiting_clients_are_served() {
    let mut service = Service::start(SERVER, &["--fault-injection"]);
    let (mut clients, restore_limit) = run_out_of_descriptors(&service);
    service.signal("STOP");
    restore_limit();
    service.signal("TERM");
    service.signal("CONT");
    assert_eq!(clients[9].read_response().status, 200);
    assert_eq!(service.wait(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn clients_that_the_kernel_accepted_before_a_signal_are_served() {
    let mut service = Service::start(SERVER, &[]);
    service.signal("STOP");
    let mut clients: Vec<Client> = (0..300)
        .map(|_| {
            let mut client = service.connect();
            client.send_request("GET", "/probe");
            client
        })
        .collect();
    service.signal("TERM");
    service.signal("CONT");
    for client in &mut clients {
        assert_eq!(client.read_response().body, "I'm ok!");
    }
    assert_eq!(service.wait(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_scrape_needs_no_free_descriptor() {
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    let metrics = Exposition::parse(&client.ask("GET", "/metrics").body);
    let set_limit = descriptor_limit(&service, metrics.count("process_max_fds"));
    set_limit(metrics.count("process_open_fds"));
    let without = Exposition::parse(&client.ask("GET", "/metrics").body);
    let names = |metrics: &Exposition| metrics.kind.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&without), names(&metrics));
    assert!(without.count("process_resident_memory_bytes") > 0);
    assert_eq!(
        without.count("process_open_fds"),
        metrics.count("process_open_fds")
    );
    assert_eq!(
        without.count("process_max_fds"),
        metrics.count("process_open_fds")
    );
}

#[test]
fn a_thousand_clients_that_disconnect_leave_no_descriptors_behind() {
    let service = Service::start(SERVER, &[]);
    let descriptors = service.scrape().count("process_open_fds");
    for number in 0..1000 {
        let mut client = service.connect();
        match number % 4 {
            0 => {}
            1 => client.send("GET /pro"),
            2 => client.send_request("GET", "/metrics"),
            _ => {
                // With this option, closing sends a reset.
                let linger = Some(std::time::Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(&client.stream, linger).unwrap();
                client.send_request("GET", "/probe");
            }
        }
    }
    wait_until("everything is closed", || {
        let metrics = service.scrape();
        metrics.count("app_connections_open") == 1
            && metrics.count("process_open_fds") == descriptors
    });
    assert_others_are_served(&service);
}

#[cfg(target_os = "linux")]
#[test]
fn the_service_has_one_thread() {
    let service = Service::start(SERVER, &["--latency", "10ms"]);
    let clients: Vec<_> = (0..50).map(|_| service.connect().stream).collect();
    service.get("/probe");
    assert_eq!(service.status("Threads"), 1);
    drop(clients);
}
