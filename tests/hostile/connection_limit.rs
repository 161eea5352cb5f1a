//! At the connection limit: health checks and scrapes are served whatever holds the connections, and
//! ordinary clients lose nothing.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use crate::reusing_client::{Loss, Outcome, ReusingClient, SHORT_SILENCE};
use crate::scenario::{Clients, Scenario};
use crate::support::{Service, request, run, wait_until};

/// Starts a service whose 20 connections are occupied by requests whose responses are delayed by 20 seconds.
fn full_service() -> (Scenario, Clients) {
    let scenario = Scenario::start(&["--max-connections", "20", "--fault-injection"]);
    let delayed = scenario.clients(20, |client| client.send_delayed("/probe?delay=20s"));
    (scenario, delayed)
}

fn expect_operators_served(scenario: &Scenario) {
    scenario.expect_served_promptly("GET", "/healthz");
    scenario.expect_served_promptly("GET", "/metrics");
    scenario.expect_served_promptly("DELETE", "/faults");
    let listen = scenario.address.to_string();
    let healthcheck = run(&["healthcheck"], &[("LISTEN", &listen)]);
    assert!(healthcheck.status.success(), "{healthcheck:?}");
}

#[test]
fn operators_are_served_while_delayed_requests_hold_every_connection() {
    let (scenario, mut delayed) = full_service();
    expect_operators_served(&scenario);

    // No connection can be evicted, so other requests get a 503.
    for _ in 0..20 {
        let mut client = scenario.connect();
        let started = Instant::now();
        client.send_request("GET", "/probe");
        client.expect_refusal();
        assert!(started.elapsed() < Duration::from_secs(2), "not at once");
    }
    // Clients that send nothing cannot hold the reserve.
    let _silent = scenario.silent_clients(16);
    expect_operators_served(&scenario);

    // Their connections are neither closed nor reset.
    delayed.each(|client| assert!(client.has_nothing_to_read(), "a client was displaced"));
}

#[test]
fn clients_that_disconnect_before_their_delayed_response_make_room() {
    let (scenario, mut delayed) = full_service();
    delayed.each(|client| client.finish_sending());
    expect_operators_served(&scenario);
    // Other clients are served, too, on connections that stay open.
    let _others = scenario.clients(20, |other| {
        let started = Instant::now();
        let response = other.ask("GET", "/probe");
        assert_eq!(response.body, "I'm ok!", "{response:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "not at once");
    });
    expect_operators_served(&scenario);
}

#[test]
fn health_checks_are_served_while_slow_readers_hold_every_connection() {
    let scenario = Scenario::start(&["--max-connections", "20"]);
    // 12 MB of responses, far more than the buffers between the service and the client hold.
    let requests = request("GET", "/metrics").repeat(1000);
    let readers = scenario.slow_readers(20, |reader| {
        reader.send(&requests);
        // The service is responding to its requests.
        reader.stream.read_exact(&mut [0; 2048]).unwrap();
    });
    let read_slowly = |readers: &mut Clients| {
        thread::park_timeout(Duration::from_secs(4));
        // The service may have closed the connection because the client is slow.
        readers.each(|reader| _ = reader.stream.read(&mut [0; 2048]));
    };
    scenario.meanwhile([readers], read_slowly, |scenario| {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            scenario.expect_served_promptly("GET", "/healthz");
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
    let scenario = Scenario::start(&["--max-connections", &limit]);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients)
            .map(|_| scope.spawn(|| send_requests(&scenario, load)))
            .collect();
        let started = Instant::now();
        while started.elapsed() < LOAD_TIME * 4 / 5 {
            scenario.expect_served_promptly("GET", "/healthz");
        }
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
    let scenario = Scenario::start(&["--max-connections", "4"]);
    let ask = |(): &mut ()| _ = scenario.get("/probe");
    scenario.meanwhile([(); 8], ask, |scenario| {
        // All connections are in use.
        wait_until("the limit is reached", || {
            scenario.scrape().count("app_connections_open") > 4
        });
        let mut client = scenario.connect();
        client.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n");
        // This takes longer than the idle time after which a connection can be evicted.
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(30));
            client.send([b'x'; 300]);
        }
        assert_eq!(client.read_response().status, 405);
    });
}

#[test]
fn clients_that_send_only_empty_lines_do_not_hold_the_connections() {
    let scenario = Scenario::start(&["--max-connections", "4"]);
    scenario.meanwhile_empty_lines(4, |scenario| {
        for _ in 0..5 {
            wait_until("they hold every connection", || {
                scenario.scrape().count("app_connections_open") > 4
            });
            assert_eq!(scenario.connect().ask("GET", "/probe").status, 200);
        }
    });
}

#[test]
fn a_connection_makes_room_once_it_has_been_idle_for_100_milliseconds() {
    let scenario = Scenario::start(&["--max-connections", "1"]);
    let mut shortest = Duration::MAX;
    // On a busy machine, some attempts take longer.
    for _ in 0..50 {
        let mut idle = scenario.connect();
        // The connection is idle some time after this.
        let started = Instant::now();
        assert_eq!(idle.ask("GET", "/probe").status, 200);
        assert_eq!(scenario.get("/probe").status, 200);
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
    let scenario = Scenario::start_after("ulimit -n 300", &["--fault-injection=all"]);
    scenario.take_descriptors();
    let clients = [(); 100].map(|()| ReusingClient::new(&scenario));
    let ask = |client: &mut ReusingClient| {
        client.get("/probe", Duration::ZERO);
        thread::sleep(Duration::from_millis(5));
    };
    scenario.meanwhile(clients, ask, |scenario| {
        wait_until("few descriptors are left", || {
            scenario.scrape().count("process_open_fds") > 290
        });
        scenario.expect_served_promptly("GET", "/healthz");
        scenario.expect_served_promptly("DELETE", "/faults");
    });
}
