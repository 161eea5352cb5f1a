//! What the crate promises to a service: how it is started and stopped, and how exchanges are reported.

mod client;

use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use bounded_http::{
    Ended, Ending, Handle, Limits, Outcome, Reply, Request, Server, Service, Status,
};
use rustix::net::sockopt::set_socket_linger;

use client::{Client, TIMEOUT, get, wait_until};

const DELAY: Duration = Duration::from_millis(300);
const BODY: &str = "0123456789";

/// What is reported about an exchange: its path, its outcome, its status, and the length of its body.
type Report = (Option<String>, Outcome, u16, usize);

/// A service that responds as the path asks, and passes on what the server reports.
struct Recorder {
    ended: Sender<Report>,
    durations: Sender<Duration>,
    open: Sender<usize>,
}

impl Service for Recorder {
    type Memo = String;

    fn answer(&mut self, request: &Request<'_>) -> Reply<String> {
        let reply = Reply::text(Status::Ok, BODY);
        let reply = match request.path() {
            "/delayed" => reply.after(DELAY),
            "/never" => reply.after(Duration::from_secs(3600)),
            "/work" => reply.work(Duration::from_millis(20)),
            "/reset" => reply.end_with(Ending::Reset),
            "/close" => reply.end_with(Ending::Close),
            "/cut" => reply.end_with(Ending::Cut),
            "/stall" => reply.end_with(Ending::Stall),
            "/hang" => reply.end_with(Ending::Hang),
            "/panic" => panic!("as the path asks"),
            _ => reply,
        };
        reply.remember(request.path().to_owned())
    }

    fn ended(&mut self, ended: Ended<String>) {
        let (status, length) = (ended.status.code(), ended.body_length);
        let report = (ended.memo, ended.outcome, status, length);
        let is_panic = report.0.as_deref() == Some("/panic-later");
        // Ignore send errors: a test that does not use the reports has dropped the receivers.
        let _ = self.durations.send(ended.duration);
        let _ = self.ended.send(report);
        assert!(!is_panic, "as the path asks");
    }

    fn is_urgent(&self, request: &Request<'_>) -> bool {
        request.path() == "/urgent"
    }

    fn refuse(&mut self, request: &Request<'_>) -> Option<String> {
        Some(format!("refused {}", request.path()))
    }

    fn connections_changed(&mut self, open: usize) {
        let _ = self.open.send(open);
    }
}

/// A running recorder, and the reports that it passes on.
struct Running {
    handle: Handle,
    ended: Receiver<Report>,
    durations: Receiver<Duration>,
    open: Receiver<usize>,
}

impl Running {
    fn start(limits: Limits) -> Self {
        let (ended_sender, ended) = channel();
        let (durations_sender, durations) = channel();
        let (open_sender, open) = channel();
        let recorder = Recorder {
            ended: ended_sender,
            durations: durations_sender,
            open: open_sender,
        };
        let server = Server::bind("127.0.0.1:0").unwrap().limits(limits);
        Self {
            handle: server.spawn(recorder).unwrap(),
            ended,
            durations,
            open,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.handle.address())
    }

    /// Waits until an exchange is reported.
    fn next_report(&self) -> Report {
        let report = self.ended.recv_timeout(TIMEOUT);
        report.expect("an exchange is reported")
    }

    /// Stops the server. Returns the reports that no test has received.
    fn stop(self) -> Vec<Report> {
        self.handle.stop().unwrap();
        assert_eq!(self.open.iter().last().unwrap_or(0), 0, "connections");
        self.ended.iter().collect()
    }
}

fn report(path: &str, outcome: Outcome, status: u16, length: usize) -> Report {
    let memo = (!path.is_empty()).then(|| path.to_owned());
    (memo, outcome, status, length)
}

/// Sends one request, calls `act` with its client, and asserts that the exchange is reported once.
fn assert_reported_once(request: &str, act: impl FnOnce(&mut Client), expected: &Report) {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(request);
    act(&mut client);
    assert_eq!(&running.next_report(), expected, "{request}");
    drop(client);
    assert_eq!(running.stop(), [], "{request}");
}

fn expect_body(client: &mut Client) {
    assert_eq!(client.response().body, BODY);
}

#[test]
fn a_response_is_reported_once() {
    let responded = |path, length| report(path, Outcome::Responded, 200, length);
    assert_reported_once(&get("/"), expect_body, &responded("/", 10));
    assert_reported_once(&get("/delayed"), expect_body, &responded("/delayed", 10));
    assert_reported_once(&get("/work"), expect_body, &responded("/work", 10));
    let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    let expect_head = |client: &mut Client| assert_eq!(client.head().status, 200);
    assert_reported_once(head, expect_head, &responded("/", 0));
}

#[test]
fn a_rejected_request_is_reported_once() {
    let expect_400 = |client: &mut Client| {
        let response = client.read_to_the_end().unwrap();
        assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    };
    let length = "Expected exactly one Host field.\n".len();
    let rejected = report("", Outcome::Rejected, 400, length);
    assert_reported_once("GET / HTTP/1.1\r\n\r\n", expect_400, &rejected);
}

#[test]
fn a_client_that_disconnects_first_is_reported_once() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    // Both requests arrive in one read.
    client.send(&(get("/") + &get("/never")));
    assert_eq!(client.response().body, BODY);
    assert_eq!(
        running.next_report(),
        report("/", Outcome::Responded, 200, 10)
    );
    set_socket_linger(&client.stream, Some(Duration::ZERO)).unwrap();
    drop(client);
    let disconnected = report("/never", Outcome::Disconnected, 200, 0);
    assert_eq!(running.next_report(), disconnected);
    assert_eq!(running.stop(), []);
}

#[test]
fn a_response_that_is_dropped_on_purpose_is_reported_once() {
    let dropped = |path| report(path, Outcome::Dropped, 200, 0);
    let expect_reset = |client: &mut Client| {
        let result = client.read_to_the_end();
        assert_eq!(result, Err(ErrorKind::ConnectionReset));
    };
    assert_reported_once(&get("/reset"), expect_reset, &dropped("/reset"));
    let expect_close =
        |client: &mut Client| assert_eq!(client.read_to_the_end(), Ok(String::new()));
    assert_reported_once(&get("/close"), expect_close, &dropped("/close"));

    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(&get("/hang"));
    // When this request gets its response, the earlier one has had its turn.
    running.connect().get("/");
    assert_eq!(
        running.next_report(),
        report("/", Outcome::Responded, 200, 10)
    );
    assert!(client.is_silent(), "open, and not a byte");
    drop(client);
    assert_eq!(running.next_report(), dropped("/hang"));
    assert_eq!(running.stop(), []);
}

#[test]
fn a_response_that_is_incomplete_on_purpose_is_reported_once() {
    let expect_half = |client: &mut Client| {
        let response = client.read_to_the_end().unwrap();
        assert!(response.contains("Content-Length: 10\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\n01234"), "{response}");
    };
    let cut = report("/cut", Outcome::Responded, 200, 5);
    assert_reported_once(&get("/cut"), expect_half, &cut);

    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(&get("/stall"));
    assert!(client.head().head.contains("Content-Length: 10\r\n"));
    drop(client);
    let stalled = report("/stall", Outcome::Responded, 200, 5);
    assert_eq!(running.next_report(), stalled);
    assert_eq!(running.stop(), []);
}

#[test]
fn a_panic_in_the_service_is_reported_once_and_affects_no_other_client() {
    let running = Running::start(Limits::default());
    let mut other = running.connect();
    for _ in 0..2 {
        let mut client = running.connect();
        client.send(&(get("/panic") + &get("/")));
        assert_eq!(client.read_to_the_end(), Ok(String::new()));
        assert_eq!(running.next_report(), report("", Outcome::Panicked, 500, 0));

        // This one panics in `ended`.
        let mut client = running.connect();
        client.send(&get("/panic-later"));
        let responded = report("/panic-later", Outcome::Responded, 200, 10);
        assert_eq!(running.next_report(), responded);
        let end = client.read_to_the_end();
        assert_ne!(end, Err(ErrorKind::WouldBlock), "still open");

        assert_eq!(other.get("/").body, BODY);
        assert_eq!(
            running.next_report(),
            report("/", Outcome::Responded, 200, 10)
        );
    }
    drop(other);
    assert_eq!(running.stop(), []);
}

#[test]
fn a_delayed_response_delays_only_later_requests_on_its_connection() {
    let running = Running::start(Limits::default());
    let mut delayed = running.connect();
    let mut other = running.connect();
    let started = Instant::now();
    delayed.send(&(get("/delayed") + &get("/next")));
    assert_eq!(other.get("/other").body, BODY);
    while started.elapsed() < DELAY / 2 {
        assert_eq!(other.get("/other").body, BODY);
    }
    assert_eq!(delayed.response().body, BODY);
    assert!(started.elapsed() >= DELAY);
    assert_eq!(delayed.response().body, BODY);
    let durations: Vec<Duration> = running.durations.try_iter().collect();
    assert_eq!(durations.iter().filter(|time| **time >= DELAY).count(), 1);

    let paths = running.stop().into_iter().filter_map(|report| report.0);
    let order: Vec<String> = paths.filter(|path| path != "/other").collect();
    assert_eq!(order, ["/delayed", "/next"]);
}

#[test]
fn urgent_requests_are_served_at_the_connection_limit_and_others_refused() {
    let running = Running::start(Limits {
        connections: 2,
        grace: Duration::from_millis(100),
    });
    let mut holders: Vec<Client> = (0..2).map(|_| running.connect()).collect();
    for holder in &mut holders {
        holder.send(&(get("/") + &get("/never")));
        assert_eq!(holder.response().body, BODY);
        assert_eq!(
            running.next_report(),
            report("/", Outcome::Responded, 200, 10)
        );
    }
    assert_eq!(running.connect().get("/urgent").body, BODY);
    let urgent = report("/urgent", Outcome::Responded, 200, 10);
    assert_eq!(running.next_report(), urgent);

    let response = running.connect().get("/");
    assert_eq!(response.status, 503);
    assert!(
        response.head.contains("\r\nRetry-After: 1\r\n"),
        "{response:?}"
    );
    let refused = report("refused /", Outcome::Responded, 503, response.body.len());
    assert_eq!(running.next_report(), refused);

    // A server that stops waits for delayed responses during the grace period.
    let reports = running.stop();
    assert_eq!(reports.len(), 2);
    for (holder, report) in holders.iter_mut().zip(reports) {
        let response = holder.response();
        assert_eq!(response.status, 503);
        let length = response.body.len();
        let memo = Some("/never".to_owned());
        assert_eq!(report, (memo, Outcome::Responded, 503, length));
    }
}

#[test]
fn a_server_that_stops_answers_the_requests_it_has_received() {
    let server = Server::bind("127.0.0.1:0").unwrap();
    let handle = server.spawn(|_: &Request<'_>| Reply::text(Status::Ok, BODY).after(DELAY));
    let handle = handle.unwrap();
    let address = handle.address();
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send(&get("/"));
    }
    handle.stop().unwrap();
    for client in &mut clients {
        let response = client.response();
        assert_eq!(response.body, BODY);
        assert!(response.head.contains("\r\nConnection: close\r\n"));
        assert_eq!(client.read_to_the_end(), Ok(String::new()));
    }
    let refused = std::net::TcpStream::connect(address).map_err(|error| error.kind());
    assert_eq!(refused.unwrap_err(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_server_stops_when_its_handle_is_dropped() {
    let server = Server::bind("127.0.0.1:0").unwrap();
    let handle = server.spawn(|_: &Request<'_>| Reply::text(Status::Ok, BODY));
    let address = handle.unwrap().address();
    wait_until("connections are refused", || {
        std::net::TcpStream::connect(address).is_err()
    });
}

#[test]
fn a_stop_signal_ends_run() {
    for is_written in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::from_listener(listener).unwrap();
        let address = server.address();
        let (stop_signal, mut stop) = UnixStream::pair().unwrap();
        let mut count = 0;
        let server = thread::spawn(move || {
            let service = |_: &Request<'_>| {
                count += 1;
                Reply::text(Status::Ok, format!("{count}"))
            };
            server.stop_when_readable(stop_signal).run(service)
        });
        assert_eq!(Client::connect(address).get("/").body, "1");
        assert_eq!(Client::connect(address).get("/").body, "2");
        if is_written {
            stop.write_all(b"x").unwrap();
        }
        drop(stop);
        assert!(server.join().unwrap().is_ok());
    }
}

#[test]
fn a_server_on_every_address_accepts_ipv4_clients() {
    let server = Server::bind_every_address(0).unwrap();
    let address = ([127, 0, 0, 1], server.address().port()).into();
    let handle = server.spawn(|request: &Request<'_>| {
        Reply::text(Status::Ok, format!("{}", request.peer().unwrap().ip()))
    });
    let body = Client::connect(address).get("/").body;
    assert!(body.ends_with("127.0.0.1"), "{body}");
    handle.unwrap().stop().unwrap();
}

#[test]
fn the_limit_on_connections_is_never_0_and_never_above_what_descriptors_allow() {
    let limit = |connections| {
        let server = Server::bind("127.0.0.1:0").unwrap();
        let grace = Duration::ZERO;
        server
            .limits(Limits { connections, grace })
            .connection_limit()
    };
    assert_eq!(limit(0), 1);
    assert_eq!(limit(5), 5);
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors = descriptors.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
    assert!(limit(usize::MAX) < descriptors);
}
