//! Turns are bounded in time. However many clients send requests without end, and at whatever pace they
//! read, a new client is served quickly, memory stays flat, and work is done for the clients that wait
//! for it.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bounded_http::raise_descriptor_limit;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt;

use crate::scenario::Scenario;
use crate::support::{Service, request, skip, wait_until};

/// A client that pipelines `GET /` without end, and reads a little at a time.
struct SlowReader {
    stream: std::net::TcpStream,
    burst: String,
    /// The number of bytes of the burst that were sent.
    sent: usize,
    received: usize,
}

impl SlowReader {
    fn connect(service: &Service) -> Self {
        let client = service.connect_with_receive_buffer(16 * 1024);
        client.stream.set_nonblocking(true).unwrap();
        Self {
            stream: client.stream,
            burst: request("GET", "/").repeat(100),
            sent: 0,
            received: 0,
        }
    }

    /// Sends as much as the server accepts.
    fn send(&mut self) {
        loop {
            match self.stream.write(&self.burst.as_bytes()[self.sent..]) {
                Ok(count) => self.sent = (self.sent + count) % self.burst.len(),
                Err(error) => return assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    /// Reads once.
    fn receive(&mut self, buffer: &mut [u8]) {
        match self.stream.read(buffer) {
            Ok(0) => panic!("the server has closed the connection"),
            Ok(count) => self.received += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

/// Starts a service and lets it respond until its memory no longer grows. Returns it with its peak
/// memory in KiB.
fn warmed_up() -> (Scenario, u64) {
    let scenario = Scenario::start(&[]);
    for _ in 0..100 {
        scenario.get("/");
        scenario.scrape();
    }
    let resident = scenario.status("VmRSS");
    (scenario, resident)
}

/// Asserts that the peak memory has hardly grown.
fn assert_memory_is_flat(service: &Service, before: u64) {
    let grown = service.status("VmHWM").saturating_sub(before);
    println!("grown by {grown} KiB");
    assert!(grown < 4 * 1024, "grown by {grown} KiB");
}

#[test]
fn memory_stays_flat_whatever_the_pace_of_clients_that_pipeline_without_end() {
    const DURATION: Duration = Duration::from_secs(8);
    let (scenario, before) = warmed_up();
    thread::scope(|scope| {
        // The KiB that are read at once, and the microseconds until the next read.
        for (kib, pause) in [(16, 800), (16, 8_000), (4, 2_000), (1, 0)] {
            let mut reader = SlowReader::connect(&scenario);
            scope.spawn(move || {
                let mut buffer = vec![0; kib * 1024];
                let started = Instant::now();
                while started.elapsed() < DURATION {
                    reader.send();
                    reader.receive(&mut buffer);
                    thread::sleep(Duration::from_micros(pause));
                }
                println!("{} bytes, {kib} KiB every {pause} µs", reader.received);
            });
        }
    });
    assert_memory_is_flat(&scenario, before);
}

#[test]
fn memory_stays_flat_when_a_client_is_always_a_little_slower_than_the_server() {
    /// A server that frees sent bytes only when nothing is unsent would grow by all that it sends.
    const BYTES: usize = 24 << 20;
    let (scenario, before) = warmed_up();
    let mut reader = SlowReader::connect(&scenario);
    let mut buffer = [0; 16 * 1024];
    let started = Instant::now();
    while reader.received < BYTES && started.elapsed() < Duration::from_secs(12) {
        reader.send();
        // The client reads only while the server waits for it, so there is always something unsent.
        if scenario.state() == 'S' {
            reader.receive(&mut buffer);
        }
    }
    println!("{} bytes", reader.received);
    assert_memory_is_flat(&scenario, before);
}

/// How clients send requests without end.
#[derive(Clone, Copy)]
enum Pipelining {
    /// As fast as the server reads.
    Endless,
    /// This number at once, and again when all of them have their responses.
    Batches(usize),
}

/// A client that sends requests without end, and discards the responses.
struct Flooder {
    stream: TcpStream,
    /// The bytes of a batch that are still to be sent.
    unsent: usize,
    /// The number of responses still to be received.
    awaited: usize,
    /// The number of bytes of the end of a head that were read last.
    matched: usize,
    has_received: bool,
}

impl Flooder {
    /// Sends and receives as much as possible without waiting.
    fn advance(&mut self, pipelining: Pipelining, batch: &[u8], buffer: &mut [u8]) {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => panic!("the server has closed the connection"),
                Ok(count) => self.count_responses(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        loop {
            if self.unsent == 0 {
                match pipelining {
                    Pipelining::Batches(count) if self.awaited == 0 => self.awaited = count,
                    Pipelining::Batches(_) => return,
                    Pipelining::Endless => {}
                }
                self.unsent = batch.len();
            }
            match self.stream.write(&batch[batch.len() - self.unsent..]) {
                Ok(count) => self.unsent -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Counts the heads that end in these bytes. No body contains an empty line that ends in CRLF.
    fn count_responses(&mut self, received: &[u8]) {
        const END: &[u8] = b"\r\n\r\n";
        for byte in received {
            self.matched = match byte {
                byte if *byte == END[self.matched] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.matched == END.len() {
                self.matched = 0;
                self.has_received = true;
                self.awaited = self.awaited.saturating_sub(1);
            }
        }
    }
}

/// All clients of a flood. One thread drives them.
struct Flood {
    poll: Poll,
    events: Events,
    flooders: Vec<Flooder>,
    pipelining: Pipelining,
    batch: String,
    buffer: Vec<u8>,
}

impl Flood {
    /// Connects this number of clients, and waits until they are accepted.
    fn connect(service: &Service, clients: usize, request: &str, pipelining: Pipelining) -> Self {
        let poll = Poll::new().unwrap();
        let connect = |key| {
            let stream = service.connect().stream;
            // Delays within this process must not count as the server's.
            sockopt::set_socket_send_buffer_size(&stream, 16 * 1024).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registry = poll.registry();
            registry
                .register(&mut stream, Token(key), interest)
                .unwrap();
            Flooder {
                stream,
                unsent: 0,
                awaited: 0,
                matched: 0,
                has_received: false,
            }
        };
        let flooders = (0..clients).map(connect).collect();
        wait_until("all clients are accepted", || {
            service.scrape().count("app_connections_open") == clients as u64 + 1
        });
        let batch = request.repeat(match pipelining {
            Pipelining::Endless => 100,
            Pipelining::Batches(count) => count,
        });
        Self {
            poll,
            events: Events::with_capacity(1024),
            flooders,
            pipelining,
            batch,
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Sends and receives for the clients whose sockets are ready. Returns how many of them have received
    /// their first response.
    fn advance(&mut self) -> usize {
        let timeout = Some(Duration::from_millis(50));
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => result.unwrap(),
        }
        let mut served = 0;
        for event in &self.events {
            let flooder = &mut self.flooders[event.token().0];
            let had_received = flooder.has_received;
            flooder.advance(self.pipelining, self.batch.as_bytes(), &mut self.buffer);
            served += usize::from(flooder.has_received && !had_received);
        }
        served
    }
}

/// How long new clients waited for a response, counted from connecting.
struct Waits {
    median: Duration,
    worst: Duration,
    /// The CPU time that the server used during each wait. It is busy all the time, so this is the wait
    /// on a machine that does nothing else.
    cpu_time: Duration,
}

impl Waits {
    /// Measures the waits while this number of clients send a request without end, after each of them has
    /// received a response.
    fn beside(scenario: &Scenario, clients: usize, request: &str, pipelining: Pipelining) -> Self {
        let flood = Flood::connect(scenario, clients, request, pipelining);
        let served = AtomicUsize::new(0);
        let advance = |flood: &mut Flood| _ = served.fetch_add(flood.advance(), Ordering::Relaxed);
        scenario.meanwhile([flood], advance, |scenario| {
            wait_until("each client has a response", || {
                served.load(Ordering::Relaxed) == clients
            });
            Self::measure(scenario)
        })
    }

    /// Connects repeatedly for a health check, for a few seconds.
    fn measure(service: &Service) -> Self {
        const TRIES: u32 = 40;
        let before = service.cpu_time();
        let started = Instant::now();
        let mut waits = Vec::new();
        let mut tries = 0;
        while tries < TRIES && started.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            assert_eq!(service.get("/healthz").status, 200);
            waits.push(asked.elapsed());
            tries += 1;
        }
        waits.sort();
        Self {
            median: waits[waits.len() / 2],
            worst: waits[waits.len() - 1],
            cpu_time: service.cpu_time().saturating_sub(before) / tries,
        }
    }

    /// Asserts that no client waited for a turn of each of a thousand others, which took more than a
    /// second when a turn was 32 requests. A few milliseconds of CPU time are expected, and more by the
    /// clock on a machine that is busy with other tests.
    #[track_caller]
    fn assert_short(&self, beside: &str) {
        let Self {
            median,
            worst,
            cpu_time,
        } = self;
        println!(
            "{beside}: {median:?} by the median, at worst {worst:?}, {cpu_time:?} of CPU time"
        );
        assert!(
            *cpu_time < Duration::from_millis(50),
            "{cpu_time:?} of CPU time, {beside}"
        );
        assert!(
            *median < Duration::from_millis(500),
            "{median:?} by the median, {beside}"
        );
    }
}

#[test]
fn the_wait_of_a_new_client_does_not_grow_with_the_number_of_busy_ones() {
    let most = raise_descriptor_limit();
    let scenario = Scenario::start(&[]);
    let mut cpu_times = Vec::new();
    for clients in [1, 100, 1000, 3000] {
        // The other tests need descriptors, too.
        if clients > most / 6 {
            skip(&format!(
                "the hard limit on descriptors, {most}, is too low for {clients} clients"
            ));
            continue;
        }
        let head = request("HEAD", "/metrics");
        let waits = Waits::beside(&scenario, clients, &head, Pipelining::Endless);
        waits.assert_short(&format!("beside {clients} clients"));
        cpu_times.push(waits.cpu_time);
    }
    // Compares 100 clients with the maximum. The tolerance is about the cost of one client.
    if let [_, hundred, .., many] = cpu_times[..] {
        let most = hundred * 3 + Duration::from_millis(5);
        assert!(many < most, "{cpu_times:?}");
    }
}

#[test]
fn a_new_client_does_not_wait_for_all_others_whatever_they_request() {
    const CLIENTS: usize = 1000;
    raise_descriptor_limit();
    let scenario = Scenario::start(&[]);
    for (method, path, pipelining) in [
        ("HEAD", "/metrics", Pipelining::Batches(32)),
        ("GET", "/metrics", Pipelining::Endless),
        ("GET", "/probe", Pipelining::Endless),
        ("GET", "/healthz", Pipelining::Endless),
    ] {
        let request = request(method, path);
        let waits = Waits::beside(&scenario, CLIENTS, &request, pipelining);
        waits.assert_short(&format!("beside {method} {path}"));
    }
}

#[test]
fn work_for_clients_that_have_disconnected_with_a_fin_comes_last() {
    let scenario = Scenario::start(&["--work", "500ms"]);
    let mut clients = scenario.silent_clients(10);
    clients.send_request("GET", "/probe");
    clients.disconnect_with_fin();
    let asked = Instant::now();
    assert_eq!(scenario.get("/probe").status, 200);
    let used = scenario.cpu_time();
    println!(
        "answered after {:?} and {used:?} of CPU time",
        asked.elapsed()
    );
    // One unit of work that had started, its own, and the same again for a slow machine.
    assert!(used < Duration::from_secs(2), "{used:?}");
}

#[test]
fn a_client_that_has_finished_sending_gets_its_response_after_the_others() {
    let scenario = Scenario::start(&["--work", "100ms"]);
    let mut first = scenario.silent_clients(1);
    let mut finished = scenario.connect();
    let mut others = scenario.silent_clients(5);
    // The server sees all of them at once. The client that has finished sending is the second of seven.
    scenario.while_paused(|| {
        first.send_request("GET", "/probe");
        finished.send_request("GET", "/probe");
        finished.finish_sending();
        others.send_request("GET", "/probe");
    });
    let mut last = others.pop().unwrap();
    for client in first.iter_mut().chain(&mut *others) {
        assert_eq!(client.read_response().body, "I'm ok!");
        assert!(finished.has_nothing_to_read(), "it comes after the others");
    }
    assert_eq!(last.read_response().body, "I'm ok!");
    finished.expect_responses_and_orderly_close(1);
}
