//! Limits on what a client can send, open and announce.

use std::io::Write;
use std::thread::{self, JoinHandle};

use crate::assert_little_memory_was_taken;
use crate::request_heads::REQUEST_HEADS;
use crate::scenario::Scenario;
use crate::support::{Client, wait_until};
#[cfg(target_os = "linux")]
use crate::{
    scenario::Clients,
    support::{Exposition, Service},
};

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

/// Lets a client send on a thread, so that the test can read what it receives meanwhile.
fn send_on_thread(client: &Client, send: impl FnOnce(Client) + Send + 'static) -> JoinHandle<()> {
    let sender = Client::from(client.stream.try_clone().unwrap());
    thread::spawn(|| send(sender))
}

#[test]
fn every_malformed_head_gets_its_status_and_a_close_and_is_counted() {
    let scenario = Scenario::start(&[]);
    for (what, head, status) in REQUEST_HEADS {
        let mut client = scenario.connect();
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
        scenario.expect_others_served();
    }
    let metrics = scenario.scrape();
    for rejected in REJECTED {
        let expected = REQUEST_HEADS.iter().filter(|head| head.2 == rejected);
        let counted = metrics.requests("other", "other", rejected);
        assert_eq!(counted, expected.count() as u64, "{rejected}");
    }
}

#[test]
fn a_head_of_400_mb_is_rejected_without_being_read_completely() {
    let scenario = Scenario::start(&[]);
    for (beginning, status) in [
        ("GET /probe HTTP/1.1\r\nHost: a\r\nX: ", 431),
        ("GET /", 414),
    ] {
        let mut client = scenario.connect();
        client.send(beginning);
        let sender = send_on_thread(&client, |mut sender| {
            flood(&mut sender, &[b'x'; 16 * 1024], 25_600);
        });
        assert_eq!(client.read_response().status, status);
        scenario.expect_others_served();
        drop(client);
        sender.join().unwrap();
    }
    assert_little_memory_was_taken(&scenario);
}

#[test]
fn a_body_of_ten_petabytes_is_rejected_at_once() {
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n");
    assert_eq!(client.read_response().status, 413);
    scenario.expect_others_served();
    client.expect_close();
}

#[test]
fn a_client_that_is_still_sending_its_body_gets_the_response_and_no_reset() {
    let scenario = Scenario::start(&[]);
    for _ in 0..20 {
        let mut client = scenario.connect();
        client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n");
        // Send all of it, as clients do that read the response only afterward.
        client.send(vec![b'x'; 4_000_000]);
        assert_eq!(client.read_response().status, 413);
        client.expect_close();
    }
}

#[test]
fn a_body_that_is_announced_and_never_sent_delays_no_other_client() {
    let scenario = Scenario::start(&[]);
    let _silent = scenario.clients(50, |client| {
        client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
        assert_eq!(client.read_response().status, 405);
    });
    scenario.expect_others_served();
}

#[test]
fn a_body_within_the_limit_is_discarded_and_the_connection_stays_open() {
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
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
    let scenario = Scenario::start(&[]);
    let expecting =
        "POST /probe HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    // The client may still send its body.
    for body in ["", "abc"] {
        let mut client = scenario.connect();
        client.send(expecting);
        let response = client.read_response();
        assert_eq!(response.status, 405);
        assert_eq!(response.field("Connection"), Some("close"));
        client.send(body);
        client.expect_close();
    }
    let mut client = scenario.connect();
    client.send(format!("{expecting}abc"));
    let response = client.read_response();
    assert_eq!((response.status, response.field("Connection")), (405, None));
    assert_eq!(client.ask("GET", "/probe").status, 200);
}

#[test]
fn ten_thousand_pipelined_requests_get_their_responses_in_order() {
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    let sender = send_on_thread(&client, |mut sender| {
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
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    let sender = send_on_thread(&client, |mut sender| {
        for _ in 0..5_000 {
            sender.send_request("HEAD", "/metrics");
        }
    });
    scenario.expect_others_served();
    for _ in 0..5_000 {
        assert_eq!(client.read_response_to_head().status, 200);
    }
    sender.join().unwrap();
}

#[test]
fn at_the_limit_the_connection_idle_longest_is_closed_for_a_new_one() {
    let scenario = Scenario::start(&["--max-connections", "10"]);
    let mut clients = scenario.clients(10, |client| _ = client.ask("GET", "/probe"));
    // Now the second client has been idle longest.
    clients[0].ask("GET", "/probe");
    let mut new = scenario.connect();
    assert_eq!(new.ask("GET", "/probe").status, 200);
    clients[1].expect_close();
    for (number, client) in clients.iter_mut().enumerate() {
        if number != 1 {
            assert_eq!(client.ask("GET", "/probe").status, 200, "client {number}");
        }
    }
    assert_eq!(new.scrape().count("app_connections_open"), 10);
}

#[test]
fn a_client_that_was_just_accepted_is_served_before_it_is_closed_for_another() {
    let scenario = Scenario::start(&["--max-connections", "1"]);
    let mut idle = scenario.connect();
    assert_eq!(idle.ask("GET", "/probe").status, 200);
    // While the service is stopped, all three connect, so that one wake-up accepts as many as there is
    // room for.
    let mut clients = scenario
        .while_paused(|| scenario.clients(3, |client| client.send_request("GET", "/probe")));
    clients.expect_responses(200);
}

#[test]
fn when_every_connection_waits_a_new_client_is_served_after_the_next_response() {
    let slow = ["--slow-rate", "1", "--slow-latency", "500ms"];
    let scenario = Scenario::start(&[&slow[..], &["--max-connections", "5"]].concat());
    let mut waiting = scenario.clients(5, |client| client.send_delayed("/probe"));
    assert_eq!(scenario.get("/healthz").status, 200);
    waiting.expect_successful_probes();
}

#[cfg(target_os = "linux")]
#[test]
fn when_every_connection_waits_the_service_does_not_spin() {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let scenario = Scenario::start(&[&slow[..], &["--max-connections", "5"]].concat())
        .with_clients(5, |client| client.send_delayed("/probe"));
    let _next = scenario.connect();
    scenario.assert_asleep();
}

#[test]
fn a_descriptor_limit_below_max_connections_is_reported_at_start() {
    let message = "tiny-probe: the descriptor limit, 64, allows only 32 connections; raise it \
                (ulimit -n) or lower --max-connections\n";
    for (max_connections, expected) in [("32", ""), ("33", message)] {
        let flags = ["--max-connections", max_connections];
        let mut scenario = Scenario::start_after("ulimit -n 64", &flags);
        assert_eq!(scenario.get("/healthz").status, 200);
        scenario.signal("TERM");
        assert_eq!(scenario.wait(), Some(0));
        assert_eq!(scenario.stderr(), expected);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn more_clients_than_descriptors_are_all_served() {
    // The service raises the soft limit to the hard one. Both are lower than the number of clients.
    let scenario = Scenario::start_after("ulimit -Sn 64 && ulimit -Hn 128", &[]);
    let clients = scenario.clients(500, |client| {
        assert_eq!(client.ask("GET", "/probe").status, 200);
    });
    let metrics = scenario.scrape();
    let limit = metrics.count("process_max_fds");
    assert_eq!(limit, 128, "raised to the hard limit");
    let max = metrics.count("app_connections_max");
    let is_between = (64..128).contains(&max);
    assert!(is_between, "the limit allows {max} connections");
    let open = metrics.count("app_connections_open");
    assert!(open > 64, "not more than the soft limit: {open}");
    scenario.expect_others_served();
    drop(clients);
    wait_until("the connections are closed", || {
        scenario.scrape().count("app_connections_open") == 1
    });
}

/// The reserve takes no more than half of those that are left.
#[test]
fn ordinary_requests_are_served_with_hardly_any_descriptors() {
    let scenario = Scenario::start_after("ulimit -n 20", &[]);
    for _ in 0..50 {
        assert_eq!(scenario.get("/probe").status, 200);
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
fn run_out_of_descriptors(scenario: &Scenario) -> (Clients, impl Fn() + use<>) {
    let maximum = scenario.scrape().count("process_max_fds");
    let set_limit = descriptor_limit(scenario, maximum);
    let mut clients = scenario.clients(3, |client| client.send_delayed("/probe?delay=5s"));
    // The kernel gives no descriptor a number that is not below the limit, whichever are closed.
    set_limit(0);
    clients.append(&mut scenario.silent_clients(7));
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
    (clients, move || set_limit(maximum))
}

#[cfg(target_os = "linux")]
#[test]
fn accepting_pauses_while_there_are_no_descriptors() {
    let mut scenario = Scenario::start(&["--fault-injection"]);
    let (mut clients, restore_limit) = run_out_of_descriptors(&scenario);
    scenario.assert_asleep();
    restore_limit();
    assert_eq!(clients[9].read_response().status, 200);
    scenario.signal("TERM");
    assert_eq!(scenario.wait(), Some(0));
    let diagnostics = scenario.stderr();
    let expected = "tiny-probe: accepting a connection failed: Too many open files";
    assert!(diagnostics.starts_with(expected), "{diagnostics}");
    assert!(diagnostics.lines().count() < 10, "{diagnostics}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_the_pause_and_waiting_clients_are_served() {
    let mut scenario = Scenario::start(&["--fault-injection"]);
    let (mut clients, restore_limit) = run_out_of_descriptors(&scenario);
    scenario.while_paused(|| {
        restore_limit();
        scenario.signal("TERM");
    });
    assert_eq!(clients[9].read_response().status, 200);
    assert_eq!(scenario.wait(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn clients_that_the_kernel_accepted_before_a_signal_are_served() {
    let mut scenario = Scenario::start(&[]);
    let mut clients = scenario.while_paused(|| {
        let clients = scenario.clients(300, |client| client.send_request("GET", "/probe"));
        scenario.signal("TERM");
        clients
    });
    clients.expect_successful_probes();
    assert_eq!(scenario.wait(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_scrape_needs_no_free_descriptor() {
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    let metrics = client.scrape();
    let open = metrics.count("process_open_fds");
    descriptor_limit(&scenario, metrics.count("process_max_fds"))(open);
    let without = client.scrape();
    let names = |metrics: &Exposition| metrics.kind.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&without), names(&metrics));
    assert!(without.count("process_resident_memory_bytes") > 0);
    assert_eq!(without.count("process_open_fds"), open);
    assert_eq!(without.count("process_max_fds"), open);
}

#[test]
fn a_thousand_clients_that_disconnect_leave_no_descriptors_behind() {
    let scenario = Scenario::start(&[]);
    let descriptors = scenario.scrape().count("process_open_fds");
    for number in 0..1000 {
        let mut client = scenario.connect();
        match number % 4 {
            0 => {}
            1 => client.send("GET /pro"),
            2 => client.send_request("GET", "/metrics"),
            _ => {
                client.send_request("GET", "/probe");
                client.disconnect_with_reset();
            }
        }
    }
    wait_until("everything is closed", || {
        let metrics = scenario.scrape();
        metrics.count("app_connections_open") == 1
            && metrics.count("process_open_fds") == descriptors
    });
    scenario.expect_others_served();
}

#[cfg(target_os = "linux")]
#[test]
fn the_service_has_one_thread() {
    let scenario = Scenario::start(&["--latency", "10ms"]);
    let _clients = scenario.silent_clients(50);
    scenario.get("/probe");
    assert_eq!(scenario.status("Threads"), 1);
}
