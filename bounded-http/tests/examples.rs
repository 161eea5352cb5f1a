//! Hostile clients of `examples/daemon_metrics.rs`, and an orderly shutdown of both examples. The
//! process has 300 descriptors. Its memory and its CPU time are read from /proc.

#![cfg(target_os = "linux")]

mod client;

use std::env;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use client::{Client, get, wait_until};

/// How long a scrape may take while hostile clients are connected, as the README says. Behind 400 silent
/// clients it takes 1.9 seconds: the 284 in the backlog are accepted sixteen at a time, and closed after
/// 100 ms.
const PROMPTLY: Duration = Duration::from_secs(3);

/// A running example. Dropping it kills the process.
struct Example {
    child: Child,
    address: SocketAddr,
}

impl Example {
    fn start(name: &str) -> Self {
        // `cargo test` builds the examples beside the folder of the tests.
        let tests = env::current_exe().unwrap();
        let folder = tests.parent().and_then(|folder| folder.parent());
        let program = folder.unwrap().join("examples").join(name);
        assert!(
            program.exists(),
            "{} is not there: build it with `cargo build -p bounded-http --examples`",
            program.display()
        );
        // The kernel kills it when the thread of the test ends, also if the test is killed.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "sh", "-c"])
            .arg("ulimit -n 300; exec \"$0\" 127.0.0.1:0")
            .arg(program)
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv starts");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("Listening on http://");
        let address = address.unwrap_or_else(|| panic!("no address: {line:?}"));
        Self {
            child,
            address: address.parse().unwrap(),
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Returns a number from /proc/PID/status.
    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the process is running");
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Returns the CPU time that the process has used.
    fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // utime and stime of proc_pid_stat(5), in hundredths of a second.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Asserts that new clients are served for a second, with little CPU time and little memory.
    fn assert_scrapes_are_served(&self) {
        let started = Instant::now();
        let cpu_time = self.cpu_time();
        while started.elapsed() < Duration::from_secs(1) {
            let asked = Instant::now();
            let response = self.connect().get("/metrics");
            assert_eq!(response.status, 200);
            assert!(response.body.contains("jobs_total"), "{response:?}");
            let took = asked.elapsed();
            assert!(took < PROMPTLY, "a scrape took {took:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let used = self.cpu_time().saturating_sub(cpu_time);
        assert!(used < started.elapsed() / 2, "{used:?} of CPU time");
        let peak = self.status("VmHWM");
        assert!(peak < 16 * 1024, "{peak} KiB resident");
    }

    /// Asserts that SIGTERM ends the process in an orderly way.
    fn assert_stops(mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let mut status = None;
        wait_until("the example ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        let signal = status.signal();
        assert!(status.success(), "{status}, signal {signal:?}");
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_examples_serve_and_stop() {
    let hello = Example::start("hello");
    assert_eq!(hello.connect().get("/").body, "Hello, visitor 1.\n");
    assert_eq!(hello.connect().get("/").body, "Hello, visitor 2.\n");
    assert_eq!(hello.connect().get("/nope").status, 404);
    hello.assert_stops();

    let daemon = Example::start("daemon_metrics");
    daemon.assert_scrapes_are_served();
    daemon.assert_stops();
}

#[test]
fn a_body_that_is_announced_and_not_sent_delays_no_other_client() {
    let daemon = Example::start("daemon_metrics");
    let mut client = daemon.connect();
    client.send("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n");
    daemon.assert_scrapes_are_served();
    daemon.assert_stops();
}

#[test]
fn a_body_of_ten_petabytes_is_rejected() {
    let daemon = Example::start("daemon_metrics");
    let mut client = daemon.connect();
    client.send("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n");
    assert_eq!(client.response().status, 413);
    daemon.assert_scrapes_are_served();
}

#[test]
fn silent_clients_beyond_the_descriptor_limit_do_not_keep_others_out() {
    let daemon = Example::start("daemon_metrics");
    let silent: Vec<Client> = (0..400).map(|_| daemon.connect()).collect();
    daemon.assert_scrapes_are_served();
    drop(silent);
    daemon.assert_scrapes_are_served();
    daemon.assert_stops();
}

#[test]
fn a_client_that_pipelines_and_reads_nothing_takes_little_memory() {
    let daemon = Example::start("daemon_metrics");
    let mut client = daemon.connect();
    client.stream.set_nonblocking(true).unwrap();
    let requests = get("/metrics").repeat(1000);
    let mut sent = 0;
    // The server stops reading when enough responses are unsent, and the kernel's buffers fill up.
    let mut progress_at = Instant::now();
    wait_until("the server stops reading", || {
        match client
            .stream
            .write(&requests.as_bytes()[sent % requests.len()..])
        {
            Ok(count) => {
                sent += count;
                progress_at = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        progress_at.elapsed() > Duration::from_millis(500)
    });
    daemon.assert_scrapes_are_served();
    daemon.assert_stops();
}

#[test]
fn the_readme_shows_the_examples() {
    let readme = include_str!("../README.md");
    for example in [
        include_str!("../examples/hello.rs"),
        include_str!("../examples/daemon_metrics.rs"),
    ] {
        let (_, code) = example
            .split_once("\n\n")
            .expect("a comment, and then code");
        let shown = format!("```rust,no_run\n{code}```\n");
        assert!(readme.contains(&shown), "it does not show this:\n{shown}");
    }
}
