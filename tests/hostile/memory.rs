//! The limit on memory: with `--max-connections 1000`, 990 clients that do not read fit into 16 MiB,
//! including what the kernel holds.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bounded_http::raise_descriptor_limit;

use crate::scenario::{Clients, Scenario};
use crate::support::{Client, Service, TIMEOUT, request, wait_until};

const CLIENTS: usize = 990;
/// The kernel's memory for a connection besides its buffers: socket, inode, file and so on. Measured as
/// 3.7 KB with Linux 6.18.
const KERNEL_KIB_PER_CONNECTION: u64 = 4;

/// Only one test at a time, because several would slow each other down.
static TURN: Mutex<()> = Mutex::new(());

/// Clients with small receive buffers, and the bytes that each has not sent yet.
struct Crowd {
    clients: Vec<(TcpStream, usize)>,
    bytes: Vec<u8>,
}

impl Crowd {
    /// Connects clients that each send `bytes`, but read nothing.
    fn connect(service: &Service, has_small_window: bool, bytes: String) -> Self {
        raise_descriptor_limit();
        let clients = (0..CLIENTS).map(|_| {
            let stream = if has_small_window {
                service.connect_with_small_window().stream
            } else {
                service.connect().stream
            };
            stream.set_nonblocking(true).unwrap();
            (stream, 0)
        });
        Self {
            clients: clients.collect(),
            bytes: bytes.into_bytes(),
        }
    }

    /// Pipelines requests and reads the responses, so that some clients get large buffers.
    fn pipeline(&self) {
        let requests = request("GET", "/probe").repeat(60);
        for (stream, _) in &self.clients {
            stream.set_nonblocking(false).unwrap();
            let mut client = Client::from(stream.try_clone().unwrap());
            for _ in 0..3 {
                client.send(&requests);
                for _ in 0..60 {
                    assert_eq!(client.read_response().status, 200);
                }
            }
            stream.set_nonblocking(true).unwrap();
        }
    }

    /// Sends what the kernel accepts, and returns the number of bytes. The service may close
    /// connections of clients that do not read.
    fn send(&mut self) -> usize {
        let before = self.sent();
        for (stream, sent) in &mut self.clients {
            match stream.write(&self.bytes[*sent..]) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    let closed = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                    assert!(closed.contains(&error.kind()), "{error}");
                    *sent = self.bytes.len();
                }
            }
        }
        self.sent() - before
    }

    fn sent(&self) -> usize {
        self.clients.iter().map(|(_, sent)| sent).sum()
    }
}

/// Returns the number of bytes in the kernel's buffers of the service's connections.
fn queued_kib(service: &Service) -> u64 {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap();
    let own: HashSet<String> = descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
        .filter_map(|link| link.into_os_string().into_string().ok())
        .collect();
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let queued: u64 = sockets
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| own.contains(&format!("socket:[{}]", fields[9])))
        // A listener's queue is counted in connections.
        .filter(|fields| fields[3] != "0A")
        .flat_map(|fields| {
            let (sending, receiving) = fields[4].split_once(':').unwrap();
            [sending, receiving].map(|bytes| u64::from_str_radix(bytes, 16).unwrap())
        })
        .sum();
    queued / 1024
}

/// Makes the exposition as large as in a service that has received many kinds of requests.
fn fill_exposition(service: &Service) {
    let mut client = service.connect();
    for path in ["/probe", "/metrics", "/healthz", "/", "/faults", "/nope"] {
        for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
            client.ask(method, path);
        }
    }
    let length = client.ask("GET", "/metrics").body.len();
    assert!(length > 20_000, "the exposition has only {length} bytes");
}

/// Lets every client send `bytes` and read nothing, until the service accepts no more. Asserts that the
/// memory stays within 16 MiB and that /healthz is served meanwhile.
fn assert_memory_is_bounded(flags: &[&str], has_small_window: bool, bytes: String) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scenario = start(flags);
    let crowd = Crowd::connect(&scenario, has_small_window, bytes);
    assert_memory_stays_bounded(&scenario, crowd);
}

fn start(flags: &[&str]) -> Scenario {
    let scenario = Scenario::start(&[&["--max-connections", "1000"], flags].concat());
    fill_exposition(&scenario);
    scenario
}

fn assert_memory_stays_bounded(scenario: &Scenario, mut crowd: Crowd) {
    let started = Instant::now();
    let mut progress_at = started;
    let mut most = 0;
    // The service counts as full when it has read nothing for a second.
    while progress_at.elapsed() < Duration::from_secs(1) {
        if crowd.send() > 0 {
            progress_at = Instant::now();
        }
        let process = scenario.status("RssAnon");
        // The table is not read atomically. It can show a connection that is being closed twice, or
        // bytes that are gone, so the lowest of several readings is used.
        let queued = (0..3)
            .map(|_| queued_kib(scenario))
            .min()
            .unwrap_or_default();
        let total = process + queued + KERNEL_KIB_PER_CONNECTION * CLIENTS as u64;
        most = most.max(total);
        assert!(
            total < 16 * 1024,
            "{total} KiB after {:?}: {process} in the process, {queued} in the kernel's buffers, the \
             rest for {CLIENTS} connections",
            started.elapsed()
        );
        assert!(
            started.elapsed() < TIMEOUT,
            "the service never stops reading"
        );
        thread::sleep(Duration::from_millis(50));
    }
    scenario.expect_served_promptly("GET", "/healthz");
    scenario.expect_served_promptly("GET", "/metrics");
    let peak = scenario.status("VmHWM");
    println!(
        "at most {most} KiB in all; at the peak {peak} KiB resident, {} bytes sent",
        crowd.sent()
    );
    assert!(peak < 12 * 1024, "{peak} KiB resident");
}

/// Sends the first 4380 bytes of a request, which the service holds.
fn begin_request(client: &mut Client) {
    let cookie = "x".repeat(4347);
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}"));
}

/// Waits until the service has reset some of this number of clients.
fn wait_until_some_are_reset(service: &Service, count: usize) {
    wait_until("some are reset", || {
        service.scrape().count("app_connections_open") < count as u64
    });
}

#[test]
fn clients_that_pipeline_and_do_not_read_are_bounded_together() {
    assert_memory_is_bounded(&[], true, request("GET", "/metrics").repeat(10_000));
}

/// For a large window, the kernel accepts more at once, and appends small responses to its last
/// segment.
#[test]
fn clients_with_large_windows_that_do_not_read_are_bounded_together() {
    let requests = request("GET", "/metrics") + &request("GET", "/probe").repeat(20);
    assert_memory_is_bounded(&[], false, requests.repeat(1000));
}

/// The clients that read first have large buffers in the kernel.
#[test]
fn clients_that_pipeline_and_read_before_they_stop_reading_are_bounded_together() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scenario = start(&[]);
    let requests = request("GET", "/metrics").repeat(10_000);
    let crowd = Crowd::connect(&scenario, false, requests);
    crowd.pipeline();
    assert_memory_stays_bounded(&scenario, crowd);
}

#[test]
fn clients_that_do_not_read_two_expositions_are_bounded_together() {
    assert_memory_is_bounded(&[], true, request("GET", "/metrics").repeat(2));
}

#[test]
fn clients_that_pipeline_behind_a_delayed_response_are_bounded_together() {
    let delayed = request("GET", "/probe?delay=30s");
    let requests = delayed + &request("GET", "/metrics").repeat(10_000);
    assert_memory_is_bounded(&["--fault-injection"], true, requests);
}

/// Starts a service that delays the exposition, and has this number of clients wait for it.
fn scrape_with_latency(latency: &str, count: usize) -> (Scenario, Clients) {
    raise_descriptor_limit();
    let scenario = start(&["--fault-injection", "all"]);
    scenario.change_faults(&format!(
        "metrics?slow-rate=1&slow-latency={latency}&for=1h"
    ));
    let scrapers = scenario.clients(count, |client| client.send_request("GET", "/metrics"));
    (scenario, scrapers)
}

/// A delayed exposition is held in memory until it is sent. All of them together would take 20 MB.
#[test]
fn expositions_that_a_fault_delays_are_bounded_together() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (scenario, _scrapers) = scrape_with_latency("1h", CLIENTS);
    // Connections are accepted, and requests answered, in the order of their arrival.
    assert_eq!(scenario.get("/healthz").status, 200);
    let peak = scenario.status("VmHWM");
    assert!(peak < 12 * 1024, "{peak} KiB resident");
}

/// A client whose response is delayed waits for the service, and makes no progress of its own.
#[test]
fn clients_that_wait_for_a_delayed_exposition_are_not_reset_when_others_hold_too_much() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (scenario, mut scrapers) = scrape_with_latency("4s", 3);
    // By then, a client that does not read would be reset.
    thread::sleep(Duration::from_millis(600));
    let holding = scenario.clients(930, begin_request);
    scrapers.expect_responses(200);
    assert_eq!(scenario.connect().ask("DELETE", "/faults").status, 200);
    wait_until_some_are_reset(&scenario, holding.len());
}

/// The requests of the others are received, so these clients wait for the service.
#[test]
fn clients_whose_requests_wait_for_memory_are_served_while_others_that_make_progress_hold_it() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptor_limit();
    let scenario = Scenario::start(&["--max-connections", "1000"]);
    // Together they hold more than three quarters of the limit.
    let holding = scenario.clients(730, begin_request);
    // Connections are accepted, and bytes received, in the order of their arrival.
    assert_eq!(scenario.get("/healthz").status, 200);
    let mut waiting = scenario.silent_clients(10);
    let make_progress = |holding: &mut Clients| {
        // The service may reset them.
        holding.each(|client| _ = client.stream.write_all(b"x"));
        thread::sleep(Duration::from_millis(100));
    };
    scenario.meanwhile([holding], make_progress, |_| {
        waiting.send_request("GET", "/probe");
        waiting.expect_responses(200);
    });
}

/// Clients that have sent a part of a request and then stop use up the memory. A client that is sending
/// a longer head in pieces is not reset.
#[test]
fn a_client_that_makes_progress_is_not_reset_when_others_hold_too_much() {
    const ATTEMPTS: usize = 5;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..ATTEMPTS {
        let (longest_pause, is_served) = make_progress_while_others_hold_too_much();
        // On a busy machine the client itself may pause until it counts as stalled.
        if is_served || longest_pause < Duration::from_millis(400) {
            return assert!(is_served, "it is reset");
        }
    }
    panic!("the client paused for too long in each of {ATTEMPTS} attempts");
}

/// Returns the longest pause of a client that makes progress, and whether it gets its response.
fn make_progress_while_others_hold_too_much() -> (Duration, bool) {
    let scenario = Scenario::start(&["--max-connections", "1000"]);
    // 23 KB less than the limit for all connections together.
    let mut others = scenario.clients(930, begin_request);
    let active = scenario.connect();
    let mut pieces = vec!["GET /probe HTTP/1.1\r\nHost: a\r\n".to_owned()];
    pieces.resize(13, format!("Cookie: {}\r\n", "x".repeat(1000)));
    let mut longest_pause = Duration::ZERO;
    let mut sent_at = Instant::now();
    for piece in pieces {
        let is_sent = (&active.stream).write_all(piece.as_bytes()).is_ok();
        longest_pause = longest_pause.max(sent_at.elapsed());
        if !is_sent {
            return (longest_pause, false);
        }
        sent_at = Instant::now();
        others.append(&mut scenario.clients(2, begin_request));
        thread::sleep(Duration::from_millis(20));
    }
    let mut response = [0; 12];
    let is_served = (&active.stream).write_all(b"\r\n").is_ok()
        && (&active.stream).read_exact(&mut response).is_ok()
        && response == *b"HTTP/1.1 200";
    longest_pause = longest_pause.max(sent_at.elapsed());
    if is_served {
        wait_until_some_are_reset(&scenario, others.len());
    }
    (longest_pause, is_served)
}
