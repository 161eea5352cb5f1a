//! Shutdown: every request received before the signal gets its response, and delayed responses may take up
//! to five seconds.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Client, Service, program, wait_until};

on_every_server!(
    a_signal_ends_the_service_with_exit_code_0,
    a_delayed_response_is_sent_after_the_signal,
    a_response_due_after_the_grace_period_does_not_delay_the_end,
    a_second_signal_ends_the_service_at_once,
    the_service_is_ready_until_the_signal,
    during_the_shutdown_delay_the_service_keeps_serving,
    the_shutdown_delay_ends_after_its_time,
    a_second_signal_ends_the_shutdown_delay,
    the_service_listens_after_the_start_delay,
    a_signal_ends_the_service_during_the_start_delay,
    the_process_exits_after_the_configured_time,
);

fn a_signal_ends_the_service_with_exit_code_0(server: &str) {
    for signal in ["TERM", "INT"] {
        let mut service = Service::start(server, &[]);
        let mut idle = service.connect();
        idle.ask("GET", "/probe");
        let signaled = Instant::now();
        service.signal(signal);
        assert_eq!(service.wait(), Some(0));
        assert!(
            signaled.elapsed() < Duration::from_secs(5),
            "the idle client delayed the end"
        );
        assert!(TcpStream::connect(service.address).is_err());
        assert_eq!(service.stderr(), "");
    }
}

/// Sends a GET /probe whose response is delayed, and returns when the service has received it.
fn send_delayed(service: &Service, server: &str) -> Client {
    let mut delayed = service.connect();
    if server == "tiny-http" {
        // When no other request gets a response, the only thread that handles requests is waiting for the
        // delayed one.
        delayed.send_request("GET", "/probe");
        let mut other = service.connect();
        let timeout = Some(Duration::from_millis(200));
        other.stream.set_read_timeout(timeout).unwrap();
        loop {
            other.send_request("GET", "/healthz");
            if other.stream.peek(&mut [0]).is_err() {
                break;
            }
            other.read_response();
        }
    } else {
        delayed.send_delayed("/probe");
    }
    delayed
}

fn a_delayed_response_is_sent_after_the_signal(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "2s"];
    let mut service = Service::start(server, &slow);
    let mut delayed = send_delayed(&service, server);
    service.signal("TERM");
    assert_eq!(delayed.read_response().body, "I'm ok!");
    assert_eq!(service.wait(), Some(0));
}

fn a_response_due_after_the_grace_period_does_not_delay_the_end(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let mut service = Service::start(server, &slow);
    let mut delayed = send_delayed(&service, server);
    let signaled = Instant::now();
    service.signal("TERM");
    if server == "event-loop" {
        assert_eq!(delayed.read_response().status, 503);
    }
    assert_eq!(service.wait(), Some(0));
    assert_grace(signaled.elapsed());
}

/// Asserts that the grace period took five seconds, or longer because the machine is busy.
fn assert_grace(took: Duration) {
    let expected = Duration::from_millis(4900)..Duration::from_secs(12);
    assert!(expected.contains(&took), "{took:?}");
}

fn a_second_signal_ends_the_service_at_once(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let mut service = Service::start(server, &slow);
    let _delayed = send_delayed(&service, server);
    service.signal("TERM");
    service.signal("INT");
    // 128 plus the signal's number, as a shell reports it. The kernel decides which of the two signals is
    // delivered second.
    assert!(matches!(service.wait(), Some(130 | 143)));
}

fn the_service_is_ready_until_the_signal(server: &str) {
    let service = Service::start(server, &["--slow-rate", "1", "--slow-latency", "1h"]);
    let mut client = service.connect();
    let ready = client.ask("GET", "/readyz");
    assert_eq!((ready.status, &*ready.body), (200, "ready\n"));
    assert_eq!(client.ask("HEAD", "/readyz").status, 200);
    if server == "tiny-http" {
        // It handles requests in order, and the test cannot tell when it received one.
        return;
    }
    // The response to the second request is sent after the first, at the end of the grace period.
    let mut client = send_delayed(&service, server);
    client.send_request("GET", "/readyz");
    service.signal("TERM");
    assert_eq!(client.read_response().status, 503);
    let not_ready = client.read_response();
    assert_eq!((not_ready.status, &*not_ready.body), (503, "not ready\n"));
}

fn during_the_shutdown_delay_the_service_keeps_serving(server: &str) {
    let service = Service::start(server, &["--shutdown-delay", "1h"]);
    let mut client = service.connect();
    assert_eq!(client.ask("GET", "/readyz").status, 200);
    service.signal("TERM");
    wait_until("the service is not ready", || {
        client.ask("GET", "/readyz").status == 503
    });
    // Both new and open connections are served, without `Connection: close`.
    for _ in 0..3 {
        assert_eq!(service.get("/probe").status, 200);
        let response = client.ask("GET", "/probe");
        let connection = response.field("Connection");
        assert_eq!((response.status, connection), (200, None));
    }
}

fn the_shutdown_delay_ends_after_its_time(server: &str) {
    let mut service = Service::start(server, &["--shutdown-delay", "1s"]);
    let signaled = Instant::now();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let expected = Duration::from_secs(1)..Duration::from_secs(10);
    assert!(expected.contains(&signaled.elapsed()));
    assert_eq!(service.stderr(), "");
}

fn a_second_signal_ends_the_shutdown_delay(server: &str) {
    let mut service = Service::start(server, &["--shutdown-delay", "1h"]);
    service.signal("TERM");
    wait_until("the service is not ready", || {
        service.get("/readyz").status == 503
    });
    service.signal("TERM");
    assert_eq!(service.wait(), Some(143));
}

fn the_service_listens_after_the_start_delay(server: &str) {
    let started = Instant::now();
    let service = Service::start(server, &["--start-delay", "500ms"]);
    let expected = Duration::from_millis(500)..Duration::from_secs(10);
    assert!(expected.contains(&started.elapsed()));
    assert_eq!(service.get("/readyz").status, 200);
}

fn a_signal_ends_the_service_during_the_start_delay(server: &str) {
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--server",
        server,
        "--start-delay",
        "1h",
    ];
    let mut child = program()
        .args(flags)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "tiny-probe: listening in 3600s (--start-delay)\n");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*rest), (Some(0), ""));
}

fn the_process_exits_after_the_configured_time(server: &str) {
    let flags = ["--exit-after", "300ms", "--exit-code", "42"];
    let started = Instant::now();
    // The process exits although no client connects.
    let mut service = Service::start(server, &flags);
    assert_eq!(service.wait(), Some(42));
    let expected = Duration::from_millis(300)..Duration::from_secs(10);
    assert!(expected.contains(&started.elapsed()));
    let line = "tiny-probe: exiting with code 42 (exit-after)\n";
    assert_eq!(service.stderr(), line);
}
