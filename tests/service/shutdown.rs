//! How the service ends: what was received is answered, what waits may wait five seconds.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tiny_probe::shutdown::GRACE;

use crate::support::{Client, Service, program, wait_until};

on_every_server!(
    a_signal_ends_it_with_exit_code_0,
    a_delayed_answer_is_still_given,
    an_answer_due_after_the_grace_is_not_waited_for,
    a_second_signal_ends_it_at_once,
    it_is_ready_until_it_is_told_to_stop,
    with_a_shutdown_delay_it_goes_on_serving_for_that_long,
    a_second_signal_ends_it_during_the_shutdown_delay,
    it_listens_after_the_start_delay,
    it_can_be_stopped_during_the_start_delay,
    it_ends_by_itself_after_the_configured_time,
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

fn it_is_ready_until_it_is_told_to_stop(server: &str) {
    let service = Service::start(server, &["--slow-rate", "1", "--slow-latency", "2s"]);
    let mut client = service.connect();
    let ready = client.ask("GET", "/readyz");
    assert_eq!((ready.status, &*ready.body), (200, "ready\n"));
    assert_eq!(client.ask("HEAD", "/readyz").status, 200);
    if server == "tiny-http" {
        // It answers what it has received, in order, and there is no telling when that was.
        return;
    }
    // A delayed response holds up the end, and the connection is served until it has been silent.
    let delayed = ask_delayed(&service, server);
    service.signal("TERM");
    client.send_request("GET", "/readyz");
    let not_ready = client.answer();
    assert_eq!((not_ready.status, &*not_ready.body), (503, "not ready\n"));
    drop(delayed);
}

fn with_a_shutdown_delay_it_goes_on_serving_for_that_long(server: &str) {
    let mut service = Service::start(server, &["--shutdown-delay", "2s"]);
    let mut client = service.connect();
    assert_eq!(client.ask("GET", "/readyz").status, 200);
    let told = Instant::now();
    service.signal("TERM");
    wait_until("it is not ready", || {
        client.ask("GET", "/readyz").status == 503
    });
    // New connections and those that are kept alive, and as if nothing had happened.
    for _ in 0..3 {
        assert_eq!(service.get("/probe").status, 200);
        let answer = client.ask("GET", "/probe");
        assert_eq!((answer.status, answer.field("Connection")), (200, None));
    }
    assert!(
        told.elapsed() < Duration::from_secs(2),
        "the machine is too slow"
    );
    drop(client);
    assert_eq!(service.wait(), Some(0));
    assert!(told.elapsed() >= Duration::from_secs(2));
    assert_eq!(service.stderr(), "");
}

fn a_second_signal_ends_it_during_the_shutdown_delay(server: &str) {
    let mut service = Service::start(server, &["--shutdown-delay", "1h"]);
    service.signal("TERM");
    wait_until("it is not ready", || service.get("/readyz").status == 503);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(143));
}

fn it_listens_after_the_start_delay(server: &str) {
    let started = Instant::now();
    let service = Service::start(server, &["--start-delay", "500ms"]);
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert_eq!(service.get("/readyz").status, 200);
}

fn it_can_be_stopped_during_the_start_delay(server: &str) {
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
    assert_eq!(
        line,
        "tiny-probe: not listening yet, for 3600s (--start-delay)\n"
    );
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*rest), (Some(0), ""));
}

fn it_ends_by_itself_after_the_configured_time(server: &str) {
    let flags = ["--exit-after", "300ms", "--exit-code", "42"];
    let started = Instant::now();
    // No client comes.
    let mut service = Service::start(server, &flags);
    assert_eq!(service.wait(), Some(42));
    assert!(started.elapsed() >= Duration::from_millis(300));
    let said = "tiny-probe: exiting with code 42, as exit-after asks\n";
    assert_eq!(service.stderr(), said);
}
