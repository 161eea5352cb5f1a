//! The logs: a reader that keeps up gets every line. If a reader is stuck, lines are dropped and requests
//! are unaffected.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write, pipe};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::support::{
    Client, OTHERS_REQUESTS, Service, TIMEOUT, assert_others_are_served, request, wait_until,
};

on_every_server!(
    lines_for_a_stuck_reader_of_standard_output_are_dropped_and_counted,
    a_stuck_reader_of_standard_error_does_not_affect_requests,
    lines_for_a_stuck_reader_of_both_are_dropped_and_counted,
    a_stuck_reader_delays_the_end_by_one_second,
    a_reader_that_continues_after_the_signal_gets_the_last_lines,
    a_reader_that_keeps_up_gets_every_line,
    a_file_gets_every_line,
    a_full_disk_or_closed_stream_does_not_affect_requests,
);

const ACCESS_LOG: &[&str] = &["--access-log"];
/// Far more long lines than the pipe and the service can hold together.
const TOO_MANY: usize = 3000;

/// Equal requests that are sent together and whose responses have the same length.
struct Batch {
    request: String,
    response_length: usize,
}

impl Batch {
    fn new(target: &str, client: &mut Client) -> Self {
        let response = client.ask("GET", target);
        Self {
            request: request("GET", target),
            response_length: response.head.len() + "\r\n\r\n".len() + response.body.len(),
        }
    }

    fn send(&self, client: &mut Client, count: usize) {
        client.send(self.request.repeat(count));
    }

    fn receive(&self, client: &mut Client, count: usize) {
        let mut responses = vec![0; self.response_length * count];
        client.stream.read_exact(&mut responses).unwrap();
        assert!(responses.starts_with(b"HTTP/1.1 "));
    }
}

/// Sends requests that produce `TOO_MANY` long lines in the access log.
fn log_too_many_lines(service: &Service) {
    let mut client = service.connect();
    let batch = Batch::new(&format!("/{}", "x".repeat(190)), &mut client);
    for _ in 1..TOO_MANY / 100 {
        batch.send(&mut client, 100);
        batch.receive(&mut client, 100);
    }
    batch.send(&mut client, 99);
    batch.receive(&mut client, 99);
}

/// Waits for bytes and reads those that are available. An empty result means the end of the stream.
fn read_some(reader: &mut (impl Read + AsFd)) -> String {
    let mut ready = [PollFd::new(&*reader, PollFlags::IN)];
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    let count = poll(&mut ready, Some(&timeout));
    assert_eq!(count, Ok(1), "timed out: nothing to read");
    let mut some = vec![0; 64 * 1024];
    let count = reader.read(&mut some).unwrap();
    some.truncate(count);
    String::from_utf8(some).expect("the logs are ASCII, so any part of them is valid UTF-8")
}

/// Reads to the end of the stream.
fn read_rest(reader: &mut (impl Read + AsFd)) -> String {
    let mut text = String::new();
    loop {
        match read_some(reader) {
            some if some.is_empty() => return text,
            some => text += &some,
        }
    }
}

/// Asserts that every line is whole. Returns how many lines there are and how many are reported as dropped.
fn count(log: &str) -> (usize, usize) {
    assert!(log.is_empty() || log.ends_with('\n'), "{log}");
    let (mut lines, mut dropped) = (0, 0);
    for line in log.lines() {
        if let Some(number) = line.strip_prefix("# lines dropped: ") {
            dropped += number.parse::<usize>().unwrap();
            continue;
        }
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!(fields.len(), 7, "{line}");
        assert!(fields[0].starts_with("20") && fields[0].ends_with('Z'));
        assert_eq!(fields[6].len(), "0.000000".len(), "{line}");
        lines += 1;
    }
    (lines, dropped)
}

/// Reads the log until it reports dropped lines, stops the service, and returns the whole log.
fn read_and_stop(service: &mut Service, log: &mut (impl Read + AsFd)) -> String {
    let mut text = String::new();
    while !text.contains("# lines dropped: ") {
        text += &read_some(log);
    }
    service.get("/healthz");
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    text + &read_rest(log)
}

/// Fills a pipe, as if its reader were stuck. Returns the number of bytes written.
fn fill(pipe: &mut PipeWriter) -> usize {
    let mut filled = 0;
    while poll(
        &mut [PollFd::new(&*pipe, PollFlags::OUT)],
        Some(&Timespec::default()),
    ) == Ok(1)
    {
        filled += pipe.write(&[b'~'; 4096]).unwrap();
    }
    filled
}

/// Reads the bytes that [`fill`] has written.
fn drain(pipe: &mut PipeReader, filled: usize) {
    let mut filling = vec![0; filled];
    pipe.read_exact(&mut filling).unwrap();
    assert!(filling.iter().all(|byte| *byte == b'~'));
}

/// Removes the diagnostics from a log, and asserts that they are the expected ones.
fn without_diagnostics(log: &str, server: &str) -> String {
    let (diagnostics, rest): (Vec<&str>, Vec<&str>) = log
        .split_inclusive('\n')
        .partition(|line| line.starts_with("tiny-probe"));
    let start_line = format!(" ({server}) on http://127.0.0.1:");
    assert!(diagnostics[0].contains(&start_line), "{diagnostics:?}");
    if server == "event-loop" {
        let expected = "tiny-probe: the descriptor limit, 64, allows only 32 connections";
        assert!(diagnostics[1].starts_with(expected), "{diagnostics:?}");
    }
    let expected = if server == "event-loop" { 2 } else { 1 };
    assert_eq!(diagnostics.len(), expected, "{diagnostics:?}");
    rest.concat()
}

fn lines_for_a_stuck_reader_of_standard_output_are_dropped_and_counted(server: &str) {
    let mut service = Service::start(server, ACCESS_LOG);
    let mut log = service.take_stdout();
    log_too_many_lines(&service);
    assert_others_are_served(&service);
    service.assert_asleep();
    let (lines, dropped) = count(&read_and_stop(&mut service, &mut log));
    assert!(dropped > 0);
    // The last request is the health check of `read_and_stop`.
    assert_eq!(lines + dropped, TOO_MANY + OTHERS_REQUESTS + 1);
    assert_eq!(service.stderr(), "");
}

fn a_stuck_reader_of_standard_error_does_not_affect_requests(server: &str) {
    let (mut diagnostics, mut stderr) = pipe().unwrap();
    let filled = fill(&mut stderr);
    let stdout = File::options().write(true).open("/dev/null").unwrap();
    let mut service = Service::start_into(server, &[], stdout, &stderr);
    drop(stderr);
    assert_others_are_served(&service);
    drain(&mut diagnostics, filled);
    // The service writes its diagnostics as soon as there is room. No request is needed to trigger that.
    let waiting = read_some(&mut diagnostics);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let diagnostics = waiting + &read_rest(&mut diagnostics);
    assert_eq!(without_diagnostics(&diagnostics, server), "");
}

fn lines_for_a_stuck_reader_of_both_are_dropped_and_counted(server: &str) {
    let (mut log, mut stream) = pipe().unwrap();
    let filled = fill(&mut stream);
    let mut service = Service::start_into(server, ACCESS_LOG, &stream, &stream);
    drop(stream);
    log_too_many_lines(&service);
    assert_others_are_served(&service);
    drain(&mut log, filled);
    let log = read_and_stop(&mut service, &mut log);
    let (lines, dropped) = count(&without_diagnostics(&log, server));
    assert!(dropped > 0);
    // The last request is the health check of `read_and_stop`.
    assert_eq!(lines + dropped, TOO_MANY + OTHERS_REQUESTS + 1);
}

fn a_stuck_reader_delays_the_end_by_one_second(server: &str) {
    let (mut log, mut stream) = pipe().unwrap();
    let filled = fill(&mut stream);
    let mut service = Service::start_into(server, ACCESS_LOG, &stream, &stream);
    drop(stream);
    let signaled = Instant::now();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    // A busy machine can add to the second, but hardly three.
    let took = signaled.elapsed();
    let expected = Duration::from_millis(950)..Duration::from_millis(3900);
    assert!(expected.contains(&took), "{took:?}");
    drain(&mut log, filled);
    assert_eq!(read_rest(&mut log), "");
}

fn a_reader_that_continues_after_the_signal_gets_the_last_lines(server: &str) {
    let (mut log, mut stream) = pipe().unwrap();
    let filled = fill(&mut stream);
    let mut service = Service::start_into(server, ACCESS_LOG, &stream, &stream);
    drop(stream);
    assert_others_are_served(&service);
    service.signal("TERM");
    if server == "event-loop" {
        // From then on, only the last lines are still written.
        wait_until("the service accepts no more connections", || {
            TcpStream::connect(service.address).is_err()
        });
    }
    drain(&mut log, filled);
    let log = read_rest(&mut log);
    assert_eq!(service.wait(), Some(0));
    let lines = count(&without_diagnostics(&log, server));
    assert_eq!(lines, (OTHERS_REQUESTS, 0));
}

fn a_reader_that_keeps_up_gets_every_line(server: &str) {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 250;
    let total = if server == "event-loop" {
        100_000
    } else {
        10_000
    };
    let mut service = Service::start(server, ACCESS_LOG);
    let mut log = service.take_stdout();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| service.connect()).collect();
    let batch = Batch::new("/probe", &mut clients[0]);
    let mut text = String::new();
    let mut lines = 0;
    for _ in 0..total / (CLIENTS * REQUESTS) {
        for client in &mut clients {
            batch.send(client, REQUESTS);
        }
        for client in &mut clients {
            batch.receive(client, REQUESTS);
        }
        // Read every line before the next requests are sent.
        while lines < CLIENTS * REQUESTS {
            let some = read_some(&mut log);
            lines += some.matches('\n').count();
            text += &some;
        }
        lines -= CLIENTS * REQUESTS;
    }
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    text += &read_rest(&mut log);
    assert_eq!(count(&text), (total + 1, 0));
}

fn a_file_gets_every_line(server: &str) {
    let mut file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    let mut service = Service::start_into(server, ACCESS_LOG, &file, &file);
    log_too_many_lines(&service);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let mut log = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut log).unwrap();
    assert_eq!(count(&without_diagnostics(&log, server)), (TOO_MANY, 0));
}

fn a_full_disk_or_closed_stream_does_not_affect_requests(server: &str) {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let broken = pipe().unwrap().1;
    let closed = Service::start_with(server, ACCESS_LOG, |program| {
        let mut through = Command::new("sh");
        through.args(["-c", "exec \"$0\" \"$@\" >&-", program]);
        through
    });
    for mut service in [
        Service::start_into(server, ACCESS_LOG, &full, &full),
        Service::start_into(server, ACCESS_LOG, &broken, &broken),
        closed,
    ] {
        log_too_many_lines(&service);
        assert_others_are_served(&service);
        service.signal("TERM");
        assert_eq!(service.wait(), Some(0));
    }
}
