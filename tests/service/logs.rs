//! The logs: no line is lost on a reader that keeps up, and one that does not costs lines, not
//! service.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write, pipe};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use tiny_probe::shutdown::GRACE;

use crate::support::{Client, Service, TIMEOUT, others_are_served, request, wait_until};

on_every_server!(
    a_stuck_reader_of_standard_output_costs_lines_and_they_are_counted,
    a_stuck_reader_of_standard_error_costs_nothing,
    a_stuck_reader_of_both_costs_lines_and_they_are_counted,
    told_to_stop_it_waits_for_no_stuck_reader,
    who_reads_on_after_the_signal_gets_the_last_lines,
    a_reader_that_keeps_up_misses_none,
    a_file_has_every_line,
    a_full_disk_and_closed_streams_do_no_harm,
);

const ACCESS_LOG: &[&str] = &["--access-log"];
/// What a pipe and the service hold between them is far less than this many long lines.
const TOO_MANY: usize = 3000;

/// Requests in one go, whose answers are all alike.
struct Batch {
    request: String,
    answer_length: usize,
}

impl Batch {
    fn new(target: &str, client: &mut Client) -> Self {
        let answer = client.ask("GET", target);
        Self {
            request: request("GET", target),
            answer_length: answer.head.len() + "\r\n\r\n".len() + answer.body.len(),
        }
    }

    fn send(&self, client: &mut Client, count: usize) {
        client.send(self.request.repeat(count));
    }

    fn receive(&self, client: &mut Client, count: usize) {
        let mut answers = vec![0; self.answer_length * count];
        client.stream.read_exact(&mut answers).unwrap();
        assert!(answers.starts_with(b"HTTP/1.1 "));
    }
}

/// Has so many long lines logged, while nobody reads them.
fn ask_for_too_many(service: &Service) {
    let mut client = service.connect();
    let batch = Batch::new(&format!("/{}", "x".repeat(190)), &mut client);
    for _ in 1..TOO_MANY / 100 {
        batch.send(&mut client, 100);
        batch.receive(&mut client, 100);
    }
    batch.send(&mut client, 99);
    batch.receive(&mut client, 99);
}

/// Reads what is here, or comes in time. An empty answer is the end.
fn read_some(reader: &mut (impl Read + AsFd)) -> String {
    let mut ready = [PollFd::new(&*reader, PollFlags::IN)];
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    assert_eq!(poll(&mut ready, Some(&timeout)), Ok(1), "nothing comes");
    let mut some = vec![0; 64 * 1024];
    let count = reader.read(&mut some).unwrap();
    some.truncate(count);
    String::from_utf8(some).expect("ASCII, of which a part is ASCII, too")
}

/// Reads to the end.
fn read_rest(reader: &mut (impl Read + AsFd)) -> String {
    let mut text = String::new();
    loop {
        match read_some(reader) {
            some if some.is_empty() => return text,
            some => text += &some,
        }
    }
}

/// How many lines there are, and how many are said to be left out. Each line is whole.
fn count(log: &str) -> (usize, usize) {
    assert!(log.is_empty() || log.ends_with('\n'), "{log}");
    let (mut lines, mut left_out) = (0, 0);
    for line in log.lines() {
        if let Some(number) = line.strip_prefix("# lines left out: ") {
            left_out += number.parse::<usize>().unwrap();
            continue;
        }
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!(fields.len(), 7, "{line}");
        assert!(fields[0].starts_with("20") && fields[0].ends_with('Z'));
        assert_eq!(fields[6].len(), "0.000000".len(), "{line}");
        lines += 1;
    }
    (lines, left_out)
}

/// Reads the log until it says how much was left out, ends the service, and gives the whole log.
fn wake_up(service: &mut Service, log: &mut (impl Read + AsFd)) -> String {
    let mut text = String::new();
    while !text.contains("# lines left out: ") {
        text += &read_some(log);
    }
    service.get("/healthz");
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    text + &read_rest(log)
}

/// Fills a pipe, as if its reader was stuck. Gives how much that takes.
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

/// Reads what a pipe was filled with.
fn empty(pipe: &mut PipeReader, filled: usize) {
    let mut filling = vec![0; filled];
    pipe.read_exact(&mut filling).unwrap();
    assert!(filling.iter().all(|byte| *byte == b'~'));
}

/// Takes the diagnostics out of a log, and asserts that they are what is to be expected.
fn without_diagnostics(log: &str, server: &str) -> String {
    let (diagnostics, rest): (Vec<&str>, Vec<&str>) = log
        .split_inclusive('\n')
        .partition(|line| line.starts_with("tiny-probe"));
    let start_line = format!(" ({server}) on http://127.0.0.1:");
    assert!(diagnostics[0].contains(&start_line), "{diagnostics:?}");
    if server == "event-loop" {
        let expected = "tiny-probe: the descriptor limit, 64, leaves room for 32 connections";
        assert!(diagnostics[1].starts_with(expected), "{diagnostics:?}");
    }
    let expected = if server == "event-loop" { 2 } else { 1 };
    assert_eq!(diagnostics.len(), expected, "{diagnostics:?}");
    rest.concat()
}

fn a_stuck_reader_of_standard_output_costs_lines_and_they_are_counted(server: &str) {
    let mut service = Service::start(server, ACCESS_LOG);
    let mut log = service.take_stdout();
    ask_for_too_many(&service);
    others_are_served(&service);
    service.waits();
    let (lines, left_out) = count(&wake_up(&mut service, &mut log));
    assert!(left_out > 0);
    assert_eq!(lines + left_out, TOO_MANY + 21 + 1);
    assert_eq!(service.stderr(), "");
}

fn a_stuck_reader_of_standard_error_costs_nothing(server: &str) {
    let (mut diagnostics, mut stderr) = pipe().unwrap();
    let filled = fill(&mut stderr);
    let stdout = File::options().write(true).open("/dev/null").unwrap();
    let mut service = Service::start_into(server, &[], stdout, &stderr);
    drop(stderr);
    others_are_served(&service);
    empty(&mut diagnostics, filled);
    // They come without anything else happening.
    let waiting = read_some(&mut diagnostics);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let diagnostics = waiting + &read_rest(&mut diagnostics);
    assert_eq!(without_diagnostics(&diagnostics, server), "");
}

fn a_stuck_reader_of_both_costs_lines_and_they_are_counted(server: &str) {
    let (mut log, mut stream) = pipe().unwrap();
    let filled = fill(&mut stream);
    let mut service = Service::start_into(server, ACCESS_LOG, &stream, &stream);
    drop(stream);
    ask_for_too_many(&service);
    others_are_served(&service);
    empty(&mut log, filled);
    let log = wake_up(&mut service, &mut log);
    let (lines, left_out) = count(&without_diagnostics(&log, server));
    assert!(left_out > 0);
    assert_eq!(lines + left_out, TOO_MANY + 21 + 1);
}

fn told_to_stop_it_waits_for_no_stuck_reader(server: &str) {
    let (mut log, mut stream) = pipe().unwrap();
    let filled = fill(&mut stream);
    let mut service = Service::start_into(server, ACCESS_LOG, &stream, &stream);
    drop(stream);
    let told = Instant::now();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    assert!(told.elapsed() < GRACE, "the reader has a second, no more");
    empty(&mut log, filled);
    assert_eq!(read_rest(&mut log), "");
}

fn who_reads_on_after_the_signal_gets_the_last_lines(server: &str) {
    let (mut log, mut stream) = pipe().unwrap();
    let filled = fill(&mut stream);
    let mut service = Service::start_into(server, ACCESS_LOG, &stream, &stream);
    drop(stream);
    others_are_served(&service);
    service.signal("TERM");
    if server == "event-loop" {
        // Then it has tried for the last time to write while it serves.
        wait_until("it accepts no more connections", || {
            TcpStream::connect(service.address).is_err()
        });
    }
    empty(&mut log, filled);
    let log = read_rest(&mut log);
    assert_eq!(service.wait(), Some(0));
    assert_eq!(count(&without_diagnostics(&log, server)), (21, 0));
}

fn a_reader_that_keeps_up_misses_none(server: &str) {
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
        // Nobody keeps up better: it has read every line before the next request is sent.
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

fn a_file_has_every_line(server: &str) {
    let mut file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    let mut service = Service::start_into(server, ACCESS_LOG, &file, &file);
    ask_for_too_many(&service);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let mut log = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut log).unwrap();
    assert_eq!(count(&without_diagnostics(&log, server)), (TOO_MANY, 0));
}

fn a_full_disk_and_closed_streams_do_no_harm(server: &str) {
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
        ask_for_too_many(&service);
        others_are_served(&service);
        service.signal("TERM");
        assert_eq!(service.wait(), Some(0));
    }
}
