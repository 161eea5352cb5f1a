//! How the service ends: what was received is answered, what waits may wait five seconds.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use tiny_probe::shutdown::GRACE;

use crate::support::{Client, Service};

on_every_server!(
    a_signal_ends_it_with_exit_code_0,
    a_delayed_answer_is_still_given,
    an_answer_due_after_the_grace_is_not_waited_for,
    a_second_signal_ends_it_at_once,
);

fn a_signal_ends_it_with_exit_code_0(server: &str) {
    for signal in ["TERM", "INT"] {
        let mut service = Service::start(server, &[]);
        let mut idle = service.connect();
        idle.ask("GET", "/probe");
        let told = Instant::now();
        service.signal(signal);
        assert_eq!(service.wait(), Some(0));
        assert!(told.elapsed() < GRACE, "nobody is waited for");
        assert!(TcpStream::connect(service.address).is_err());
        assert_eq!(service.stderr(), "");
    }
}

/// Sends a GET /probe whose answer is delayed, and returns when the service has received it.
fn ask_delayed(service: &Service, server: &str) -> Client {
    let mut delayed = service.connect();
    if server == "tiny-http" {
        // The one thread that answers waits with the delayed answer when nothing else is answered.
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

fn a_delayed_answer_is_still_given(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "2s"];
    let mut service = Service::start(server, &slow);
    let mut delayed = ask_delayed(&service, server);
    service.signal("TERM");
    assert_eq!(delayed.answer().body, "I'm ok!");
    assert_eq!(service.wait(), Some(0));
}

fn an_answer_due_after_the_grace_is_not_waited_for(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let mut service = Service::start(server, &slow);
    let _delayed = ask_delayed(&service, server);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
}

fn a_second_signal_ends_it_at_once(server: &str) {
    let slow = ["--slow-rate", "1", "--slow-latency", "1h"];
    let mut service = Service::start(server, &slow);
    let _delayed = ask_delayed(&service, server);
    service.signal("TERM");
    service.signal("INT");
    // 128 + the signal, as a shell says it; which of the two comes second is the kernel's choice.
    assert!(matches!(service.wait(), Some(130 | 143)));
}
