//! Tests that read as a specification: a service is started, clients do something and stay connected, and
//! the test states what it expects. An expectation that is not met panics at its line in the test.

#![cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "used by tests that run only on Linux")
)]

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Response, Service, assert_others_are_served, wait_until};

/// A service and its clients. It can be used as the [`Service`] that it contains.
pub struct Scenario {
    service: Service,
    /// They stay connected until the scenario ends.
    clients: Vec<Clients>,
}

impl Scenario {
    /// Starts a service with the event loop.
    pub fn start(flags: &[&str]) -> Self {
        Self::from(Service::start("event-loop", flags))
    }

    /// Starts a service after a shell command such as `ulimit -n 64`.
    pub fn start_after(before: &str, flags: &[&str]) -> Self {
        Self::from(Service::start_after(before, "event-loop", flags))
    }

    /// Connects clients, one after the other, that do something and stay connected until the scenario ends.
    #[track_caller]
    pub fn with_clients(mut self, count: usize, act: impl FnMut(&mut Client)) -> Self {
        self.clients.push(self.clients(count, act));
        self
    }

    /// Connects clients, one after the other, that do something.
    #[track_caller]
    pub fn clients(&self, count: usize, act: impl FnMut(&mut Client)) -> Clients {
        Clients::connect(count, || self.service.connect(), act)
    }

    /// Connects clients with small receive buffers, one after the other, that do something.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn slow_readers(&self, count: usize, act: impl FnMut(&mut Client)) -> Clients {
        Clients::connect(count, || self.connect_with_small_window(), act)
    }

    /// Connects clients that send nothing yet.
    #[track_caller]
    pub fn silent_clients(&self, count: usize) -> Clients {
        self.clients(count, |_| {})
    }

    /// Changes the faults of a target. `change` is the rest of the path, such as `probe?fail-rate=1`.
    #[track_caller]
    pub fn change_faults(&self, change: &str) {
        let path = format!("/faults/{change}");
        let response = self.connect().ask("PUT", &path);
        assert_eq!(response.status, 200, "{path}: {response:?}");
    }

    /// Makes the process open extra descriptors until few are left. The service must have been started with
    /// `--fault-injection=all` and a limit of 300 descriptors.
    #[track_caller]
    pub fn take_descriptors(&self) {
        self.change_faults("process?open-files=1000000&for=1h");
        wait_until("the descriptors are taken", || {
            self.scrape().count("process_open_fds") > 220
        });
    }

    /// Lets each client repeat `act` on its own thread until `expect` returns or panics. A wait in `act` that
    /// uses [`thread::park_timeout`] then ends early. Panics if a thread has panicked.
    #[track_caller]
    pub fn meanwhile<C: Send, T>(
        &self,
        clients: impl IntoIterator<Item = C>,
        act: impl Fn(&mut C) + Sync,
        expect: impl FnOnce(&Self) -> T,
    ) -> T {
        let is_over = &AtomicBool::new(false);
        let act = &act;
        thread::scope(|scope| {
            let spawn = |mut client| {
                let repeat = move || {
                    while !is_over.load(Ordering::Relaxed) {
                        act(&mut client);
                    }
                };
                scope.spawn(repeat).thread().clone()
            };
            // Ends the threads after a panic, too. Otherwise the scope would wait for them forever.
            let mut end = End {
                is_over,
                threads: Vec::new(),
            };
            end.threads.extend(clients.into_iter().map(spawn));
            expect(self)
        })
    }

    /// Lets this number of clients send empty lines, which are not a request, until `expect` returns or panics.
    /// A client whose connection is closed connects again.
    #[track_caller]
    pub fn meanwhile_empty_lines<T>(&self, count: usize, expect: impl FnOnce(&Self) -> T) -> T {
        let send = |clients: &mut Vec<Client>| {
            clients.resize_with(count, || self.service.connect());
            clients.retain_mut(|client| client.stream.write_all(b"\r\n").is_ok());
            thread::park_timeout(Duration::from_millis(20));
        };
        self.meanwhile([Vec::new()], send, expect)
    }

    /// Expects that another client is served.
    #[track_caller]
    pub fn expect_others_served(&self) {
        assert_others_are_served(self);
    }

    /// Expects that a new connection gets its response within 300 ms plus the time that a service without
    /// other clients takes, because the machine may be busy. Time for which the service was ready to run and
    /// others had the CPUs does not count. The median of five requests counts, and none may take a second more
    /// than the slowest on the idle service.
    #[track_caller]
    pub fn expect_served_promptly(&self, method: &str, path: &str) {
        let idle = Service::start("event-loop", &[]);
        let mut times = response_times(self, method, path);
        let mut idle_times = response_times(&idle, "GET", "/healthz");
        times.sort();
        idle_times.sort();
        let is_prompt = times[2] < Duration::from_millis(300) + idle_times[2]
            && times[4] < Duration::from_secs(1) + idle_times[4];
        assert!(
            is_prompt,
            "{method} {path} took {times:?}, without other clients {idle_times:?}"
        );
    }
}

impl From<Service> for Scenario {
    fn from(service: Service) -> Self {
        Self {
            service,
            clients: Vec::new(),
        }
    }
}

impl Deref for Scenario {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl DerefMut for Scenario {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
    }
}

/// Ends the threads of [`Scenario::meanwhile`] when it is dropped.
struct End<'a> {
    is_over: &'a AtomicBool,
    threads: Vec<thread::Thread>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in &self.threads {
            thread.unpark();
        }
    }
}

/// Clients with one connection each. Dropping them disconnects them.
#[must_use = "dropping the clients disconnects them"]
pub struct Clients(Vec<Client>);

impl Clients {
    /// Lets each client connect and do something before the next one connects.
    #[track_caller]
    fn connect(
        count: usize,
        connect: impl Fn() -> Client,
        mut act: impl FnMut(&mut Client),
    ) -> Self {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = connect();
            act(&mut client);
            clients.push(client);
        }
        Self(clients)
    }

    /// Lets each client do something, one after the other.
    #[track_caller]
    pub fn each(&mut self, act: impl FnMut(&mut Client)) {
        self.iter_mut().for_each(act);
    }

    /// Sends a request on each connection.
    #[track_caller]
    pub fn send_request(&mut self, method: &str, path: &str) {
        for client in &mut self.0 {
            client.send_request(method, path);
        }
    }

    /// Disconnects each client with a reset, like clients that crash.
    pub fn disconnect_with_reset(self) {
        self.0.into_iter().for_each(Client::disconnect_with_reset);
    }

    /// Disconnects each client with a FIN, as `curl -m` does.
    #[track_caller]
    pub fn disconnect_with_fin(self) {
        self.0.into_iter().for_each(Client::disconnect_with_fin);
    }

    /// Expects that each client gets a response with this status.
    #[track_caller]
    pub fn expect_responses(&mut self, status: u16) {
        for (number, client) in self.iter_mut().enumerate() {
            let response = client.read_response();
            assert_eq!(response.status, status, "client {number}: {response:?}");
        }
    }

    /// Expects that each client gets the response of a successful probe.
    #[track_caller]
    pub fn expect_successful_probes(&mut self) {
        for (number, client) in self.iter_mut().enumerate() {
            let response = client.read_response();
            let is_success = response.status == 200 && response.body == "I'm ok!";
            assert!(is_success, "client {number}: {response:?}");
        }
    }
}

impl Deref for Clients {
    type Target = Vec<Client>;

    fn deref(&self) -> &Vec<Client> {
        &self.0
    }
}

impl DerefMut for Clients {
    fn deref_mut(&mut self) -> &mut Vec<Client> {
        &mut self.0
    }
}

impl Client {
    /// Expects a response with this status and `Connection: close`, and that the service then closes the
    /// connection with a FIN.
    #[track_caller]
    pub fn expect_last_response(&mut self, status: u16) -> Response {
        let response = self.read_response();
        assert_eq!(response.status, status, "{response:?}");
        assert_eq!(response.field("Connection"), Some("close"));
        self.expect_close();
        response
    }

    /// Expects that the service refuses a request because it is busy: a last response, with status 503 and
    /// `Retry-After: 1`.
    #[track_caller]
    pub fn expect_refusal(&mut self) {
        let response = self.expect_last_response(503);
        assert_eq!(response.field("Retry-After"), Some("1"));
    }
}

/// Returns how long each of five new connections waits for its response.
#[track_caller]
fn response_times(service: &Service, method: &str, path: &str) -> [Duration; 5] {
    let mut times = [Duration::ZERO; 5];
    for time in &mut times {
        let (started, delay) = (Instant::now(), run_delay(service));
        let response = service.connect().ask(method, path);
        assert_eq!(response.status, 200, "{method} {path}: {response:?}");
        let delay = run_delay(service).saturating_sub(delay);
        *time = started.elapsed().saturating_sub(delay);
    }
    times
}

/// Returns for how long the process has been ready to run while others had the CPUs: the second field of
/// /proc/PID/schedstat, in nanoseconds. It is 0 if the kernel does not count that.
fn run_delay(service: &Service) -> Duration {
    let statistics = std::fs::read_to_string(format!("/proc/{}/schedstat", service.pid()));
    let statistics = statistics.unwrap_or_default();
    let delay = statistics.split(' ').nth(1).map(str::parse);
    Duration::from_nanos(delay.and_then(Result::ok).unwrap_or_default())
}
