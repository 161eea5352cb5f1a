//! Shutdown: every request received before the signal gets its response, and delayed responses may take up
//! to five seconds.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use tiny_probe::shutdown::GRACE;

use crate::support::{Client, Service};

on_every_server!(
    a_signal_ends_the_service_with_exit_code_0,
    a_delayed_response_is_sent_after_the_signal,
    a_response_due_after_the_grace_period_does_not_delay_the_end,
    a_second_signal_ends_the_service_at_once,
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
            signaled.elapsed() < GRACE,
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
            other.answer();
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
    assert_eq!(delayed.answer().body, "I'm ok!");
    assert_eq!(service.wait(), Some(0));
}

fn a_response_due_after_the_grace_period_does_not_delay_the_end(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let mut service = Service::start(server, &slow);
    let _delayed = send_delayed(&service, server);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
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
