//! Clients that reuse connections as HTTP libraries do, and clients that read very slowly.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::support::{Client, Response, Service, TIMEOUT, request};

/// A connection that has been silent for less than this is not closed.
pub const SHORT_SILENCE: Duration = Duration::from_millis(100);

/// A client that reuses its connection unless the response says `Connection: close`.
pub struct ReusingClient {
    address: SocketAddr,
    /// `None` before the first request and after a response with `Connection: close`.
    connection: Option<Client>,
    /// When the client last sent something, or began to connect. The service cannot have seen a longer
    /// silence.
    active_at: Instant,
}

/// How a request ended.
pub enum Outcome {
    Response(Response),
    /// The service did not accept the connection.
    Refused,
    /// The connection ended before the first byte of the response.
    Lost(Loss),
}

#[derive(Debug)]
#[expect(dead_code, reason = "the fields are printed")]
pub struct Loss {
    pub error: String,
    pub was_reused: bool,
    /// How long the connection had been silent when the request was sent.
    pub silence: Duration,
    pub sent_at: Instant,
}

impl ReusingClient {
    pub fn new(service: &Service) -> Self {
        Self {
            address: service.address,
            connection: None,
            active_at: Instant::now(),
        }
    }

    /// Sends a GET request, over a new connection if there is none, and waits for the response. Waits
    /// for `pause` between connecting and sending.
    pub fn get(&mut self, path: &str, pause: Duration) -> Outcome {
        let was_reused = self.connection.is_some();
        let mut client = match self.connection.take() {
            Some(client) => client,
            None => match self.connect(pause) {
                Ok(client) => client,
                Err(outcome) => return outcome,
            },
        };
        let result = client.stream.write_all(request("GET", path).as_bytes());
        let sent_at = Instant::now();
        let silence = sent_at - self.active_at;
        self.active_at = sent_at;
        let result = result.and_then(|()| client.stream.peek(&mut [0]));
        if !matches!(result, Ok(1)) {
            return Outcome::Lost(Loss {
                error: format!("{result:?}"),
                was_reused,
                silence,
                sent_at,
            });
        }
        let response = client.read_response();
        if response.field("Connection") != Some("close") {
            self.connection = Some(client);
        }
        Outcome::Response(response)
    }

    fn connect(&mut self, pause: Duration) -> Result<Client, Outcome> {
        self.active_at = Instant::now();
        let stream = TcpStream::connect(self.address).map_err(|error| {
            if error.kind() == ErrorKind::ConnectionRefused {
                return Outcome::Refused;
            }
            Outcome::Lost(Loss {
                error: format!("cannot connect: {error}"),
                was_reused: false,
                silence: Duration::ZERO,
                sent_at: self.active_at,
            })
        })?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        std::thread::sleep(pause);
        Ok(Client::from(stream))
    }

    /// Makes the next request use a new connection.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }
}

/// Connects with a receive buffer of 4608 bytes, so that most responses stay unsent.
pub fn connect_with_small_window(service: &Service) -> TcpStream {
    let socket: OwnedFd = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 2304).unwrap();
    connect(&socket, &service.address).expect("the service accepts");
    socket.into()
}

/// Asserts that a new connection gets its response within 300 ms, longer only by what a service without
/// other clients takes at the same time: the machine may be busy. The time for which the service was ready to
/// run and others had the CPUs does not count. Of five requests, the median counts, and none may take a second.
pub fn assert_served_promptly(service: &Service, method: &str, path: &str) {
    let idle = Service::start("event-loop", &[]);
    let time = |service: &Service, method: &str, path: &str| {
        let (started, delay) = (Instant::now(), run_delay(service));
        let response = service.connect().ask(method, path);
        assert_eq!(response.status, 200, "{method} {path}: {response:?}");
        let delay = run_delay(service).saturating_sub(delay);
        started.elapsed().saturating_sub(delay)
    };
    let mut times: Vec<Duration> = (0..5).map(|_| time(service, method, path)).collect();
    let mut idle_times: Vec<Duration> = (0..5).map(|_| time(&idle, "GET", "/healthz")).collect();
    times.sort();
    idle_times.sort();
    let is_prompt = times[2] < Duration::from_millis(300) + idle_times[2]
        && times[4] < Duration::from_secs(1) + idle_times[4];
    assert!(
        is_prompt,
        "{method} {path} took {times:?}, without other clients {idle_times:?}"
    );
}

/// Returns for how long the process has been ready to run while others had the CPUs: the second field of
/// /proc/PID/schedstat, in nanoseconds. It is 0 if the kernel does not count that.
fn run_delay(service: &Service) -> Duration {
    let statistics = std::fs::read_to_string(format!("/proc/{}/schedstat", service.pid()));
    let statistics = statistics.unwrap_or_default();
    let delay = statistics.split(' ').nth(1).map(str::parse);
    Duration::from_nanos(delay.and_then(Result::ok).unwrap_or_default())
}
