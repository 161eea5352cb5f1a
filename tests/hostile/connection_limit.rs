//! At the connection limit: health checks and scrapes are served whatever holds the connections, and
//! ordinary clients lose nothing.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::crowd::{
    Loss, Outcome, ReusingClient, SHORT_SILENCE, assert_served_promptly, connect_with_small_window,
};
use crate::support::{Client, Service, TIMEOUT, request, run, wait_until};

const SERVER: &str = "event-loop";

/// Occupies every connection with a request whose response is delayed by 20 seconds.
fn fill_with_delayed_requests(service: &Service, count: usize) -> Vec<Client> {
    (0..count)
        .map(|_| {
            let mut client = service.connect();
            client.send_delayed("/probe?delay=20s");
            client
        })
        .collect()
}

fn assert_operators_are_served(service: &Service) {
    assert_served_promptly(service, "GET", "/healthz");
    assert_served_promptly(service, "GET", "/metrics");
    assert_served_promptly(service, "DELETE", "/faults");
    let listen = service.address.to_string();
    let healthcheck = run(&["healthcheck"], &[("LISTEN", &listen)]);
    assert!(healthcheck.status.success(), "{healthcheck:?}");
}

#[test]
fn operators_are_served_while_delayed_requests_hold_every_connection() {
    let flags = ["--max-connections", "20", "--fault-injection"];
    let service = Service::start(SERVER, &flags);
    let mut delayed = fill_with_delayed_requests(&service, 20);
    assert_operators_are_served(&service);

    // No connection can be evicted, so other requests get a 503.
    for _ in 0..20 {
        let mut client = service.connect();
        let started = Instant::now();
        let response = client.ask("GET", "/probe");
        assert_eq!(response.status, 503, "{response:?}");
        assert_eq!(response.field("Retry-After"), Some("1"));
        assert_eq!(response.field("Connection"), Some("close"));
        client.expect_close();
        assert!(started.elapsed() < Duration::from_secs(2), "not at once");
    }
    // Clients that send nothing cannot hold the reserve.
    let _silent: Vec<Client> = (0..16).map(|_| service.connect()).collect();
    assert_operators_are_served(&service);

    for client in &mut delayed {
        client.stream.set_nonblocking(true).unwrap();
        let waits = client.stream.peek(&mut [0]).is_err_and(|error| {
            // The connection is neither closed nor reset.
            error.kind() == std::io::ErrorKind::WouldBlock
        });
        assert!(waits, "a client with a delayed response was displaced");
    }
}

#[test]
fn clients_that_disconnect_before_their_delayed_response_make_room() {
    let flags = ["--max-connections", "20", "--fault-injection"];
    let service = Service::start(SERVER, &flags);
    let delayed = fill_with_delayed_requests(&service, 20);
    for client in &delayed {
        client.stream.shutdown(Shutdown::Write).unwrap();
    }
    assert_operators_are_served(&service);
    // Other clients are served, too, on connections that stay open.
    let mut others = Vec::new();
    for _ in 0..20 {
        let mut other = service.connect();
        let started = Instant::now();
        let response = other.ask("GET", "/probe");
        assert_eq!(response.body, "I'm ok!", "{response:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "not at once");
        others.push(other);
    }
    assert_operators_are_served(&service);
}

#[test]
fn health_checks_are_served_while_slow_readers_hold_every_connection() {
    const CLIENTS: usize = 20;
    let service = Service::start(SERVER, &["--max-connections", "20"]);
    // 12 MB of responses, far more than the buffers between the service and the client hold.
    let requests = request("GET", "/metrics").repeat(1000);
    let mut readers: Vec<_> = (0..CLIENTS)
        .map(|_| connect_with_small_window(&service))
        .collect();
    for reader in &mut readers {
        reader.write_all(requests.as_bytes()).unwrap();
        // The service is responding to its requests.
        reader.read_exact(&mut [0; 2048]).unwrap();
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                thread::park_timeout(Duration::from_secs(4));
                for reader in &mut readers {
                    // The service may have closed the connection because the client is slow.
                    let _ = reader.read(&mut [0; 2048]);
                }
            }
        });
        let checks = scope.spawn(|| {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(5) {
                assert_served_promptly(&service, "GET", "/healthz");
            }
        });
        let result = checks.join();
        is_over.store(true, Ordering::Relaxed);
        reading.thread().unpark();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What ordinary clients send at the connection limit.
struct Load {
    connections: usize,
    clients: usize,
    reuses_connections: bool,
    pause_after_connecting: Duration,
}

const LOAD_TIME: Duration = Duration::from_secs(3);

/// What one client, or all of them, received.
#[derive(Debug, Default)]
struct Tally {
    responses: u64,
    slowest: Duration,
    losses: Vec<Loss>,
}

/// Sends requests for a while, one after the other.
fn send_requests(service: &Service, load: &Load) -> Tally {
    let started = Instant::now();
    let mut tally = Tally::default();
    let mut client = ReusingClient::new(service);
    while started.elapsed() < LOAD_TIME {
        let asked = Instant::now();
        match client.get("/probe", load.pause_after_connecting) {
            Outcome::Response(response) => {
                assert_eq!(response.status, 200, "{response:?}");
                tally.responses += 1;
                tally.slowest = tally.slowest.max(asked.elapsed());
            }
            // On a busy machine, this client may not have run for a while.
            Outcome::Lost(loss) if loss.silence >= SHORT_SILENCE => {}
            Outcome::Lost(loss) => tally.losses.push(loss),
            Outcome::Refused => panic!("refused, while the service is running"),
        }
        if !load.reuses_connections {
            client.disconnect();
        }
    }
    tally
}

/// Asserts that ordinary clients get a response to every request, and that health checks are served
/// meanwhile.
fn assert_nothing_is_lost(load: &Load) {
    let limit = load.connections.to_string();
    let service = Service::start(SERVER, &["--max-connections", &limit]);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients)
            .map(|_| scope.spawn(|| send_requests(&service, load)))
            .collect();
        let checks = scope.spawn(|| {
            let started = Instant::now();
            while started.elapsed() < LOAD_TIME * 4 / 5 {
                assert_served_promptly(&service, "GET", "/healthz");
            }
        });
        let tallies: Vec<Tally> = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        let responses: u64 = tallies.iter().map(|tally| tally.responses).sum();
        let slowest = tallies.iter().map(|tally| tally.slowest).max().unwrap();
        let losses: Vec<&Loss> = tallies.iter().flat_map(|tally| &tally.losses).collect();
        println!(
            "{responses} responses, the slowest after {slowest:?}, {} requests lost",
            losses.len()
        );
        assert!(
            losses.is_empty(),
            "{} requests lost, {responses} answered; the first: {:?}",
            losses.len(),
            losses[0]
        );
        assert!(
            slowest < Duration::from_secs(2),
            "a client waited for {slowest:?}"
        );
        for tally in tallies {
            assert!(tally.responses > 0, "a client got no response");
        }
        checks.join().unwrap();
    });
}

#[test]
fn clients_that_pause_after_connecting_lose_nothing_at_the_connection_limit() {
    assert_nothing_is_lost(&Load {
        connections: 4,
        clients: 6,
        reuses_connections: false,
        pause_after_connecting: Duration::from_millis(10),
    });
}

#[test]
fn six_clients_that_reuse_connections_lose_nothing_on_four_connections() {
    assert_nothing_is_lost(&Load {
        connections: 4,
        clients: 6,
        reuses_connections: true,
        pause_after_connecting: Duration::ZERO,
    });
}

#[test]
fn twice_as_many_clients_as_connections_lose_nothing() {
    assert_nothing_is_lost(&Load {
        connections: 20,
        clients: 40,
        reuses_connections: true,
        pause_after_connecting: Duration::ZERO,
    });
}

#[test]
fn uploads_are_not_cut_off_at_the_connection_limit() {
    let service = Service::start(SERVER, &["--max-connections", "4"]);
    let is_over = AtomicBool::new(false);
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && started.elapsed() < TIMEOUT {
                    service.get("/probe");
                }
            });
        }
        // All connections are in use.
        wait_until("the limit is reached", || {
            service.scrape().count("app_connections_open") > 4
        });
        let mut client = service.connect();
        let head = "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n";
        let mut result = client.stream.write_all(head.as_bytes());
        // This takes longer than the idle time after which a connection can be evicted.
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(30));
            result = result.and_then(|()| client.stream.write_all(&[b'x'; 300]));
        }
        is_over.store(true, Ordering::Relaxed);
        result.expect("the whole body is sent");
        assert_eq!(client.read_response().status, 405);
    });
}

#[test]
fn a_connection_makes_room_once_it_has_been_idle_for_100_milliseconds() {
    let service = Service::start(SERVER, &["--max-connections", "1"]);
    let mut shortest = Duration::MAX;
    // On a busy machine, some attempts take longer.
    for _ in 0..50 {
        let mut idle = service.connect();
        // The connection is idle some time after this.
        let started = Instant::now();
        assert_eq!(idle.ask("GET", "/probe").status, 200);
        assert_eq!(service.get("/probe").status, 200);
        shortest = shortest.min(started.elapsed());
        if shortest < Duration::from_millis(150) {
            break;
        }
    }
    let expected = Duration::from_millis(100)..Duration::from_millis(150);
    assert!(expected.contains(&shortest), "{shortest:?}");
}

/// The descriptors are used up before the connection limit is reached.
#[test]
fn busy_clients_without_a_free_descriptor_do_not_keep_operators_out() {
    const CLIENTS: usize = 100;
    let service = Service::start_after("ulimit -n 300", SERVER, &["--fault-injection=all"]);
    let change = "/faults/process?open-files=1000000&for=1h";
    assert_eq!(service.connect().ask("PUT", change).status, 200);
    wait_until("the descriptors are taken", || {
        service.scrape().count("process_open_fds") > 220
    });
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = ReusingClient::new(&service);
                while !is_over.load(Ordering::Relaxed) {
                    client.get("/probe", Duration::ZERO);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let checks = scope.spawn(|| {
            wait_until("few descriptors are left", || {
                service.scrape().count("process_open_fds") > 290
            });
            assert_served_promptly(&service, "GET", "/healthz");
            assert_served_promptly(&service, "DELETE", "/faults");
        });
        let result = checks.join();
        is_over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}
