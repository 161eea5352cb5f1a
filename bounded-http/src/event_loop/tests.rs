//! Tests of the event loop, which they drive step by step.

use std::fmt::Display;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use mio::event::Event;
use rustix::io::ioctl_fionread;
use rustix::net::sockopt;

use super::*;
use crate::client::tests::{HALF_CLOSED, NOW, READABLE, request};
use crate::fair_queue::TURN_TIME;
use crate::http::Status;
use crate::reply::Reply;
use crate::request::Request;
use crate::service::Ended;
use crate::socket::Stream;
use crate::socket::tests::wait_until;

mod reserve;
mod stop;

/// Answers some paths, of which only those in /open are urgent, panics at any other, and counts exchanges
/// that ended.
#[derive(Default)]
struct Probe {
    work: Duration,
    /// How far the test's clock advances while the service answers.
    pause: Duration,
    /// When the service wants to be called again.
    again: Option<Duration>,
    ended: usize,
    open: usize,
    /// The messages of the event loop, each of which advances the test's clock by a millisecond.
    reports: Vec<String>,
}

impl Service for Probe {
    type Memo = ();

    fn answer(&mut self, request: &Request<'_>) -> Reply {
        NOW.set(NOW.get() + self.pause);
        match request.path() {
            "/probe" => Reply::text(Status::Ok, "I'm ok!").work(self.work),
            "/long" => Reply::text(Status::Ok, "x".repeat(1 << 20)),
            "/medium" | "/open/medium" => Reply::text(Status::Ok, "x".repeat(12 * 1024)),
            "/delayed" => Reply::text(Status::Ok, "I'm ok!").after(Duration::from_secs(1)),
            "/never" => Reply::text(Status::Ok, "I'm ok!").after(Duration::MAX),
            "/open" => Reply::text(Status::Ok, format!("{} open", self.open)),
            path => panic!("{path}"),
        }
    }

    fn is_urgent(&self, request: &Request<'_>) -> bool {
        request.path().starts_with("/open")
    }

    fn ended(&mut self, _: Ended<()>) {
        self.ended += 1;
    }

    fn connections_changed(&mut self, open: usize) {
        self.open = open;
    }

    fn before_wait(&mut self) -> Option<Duration> {
        self.again
    }

    fn report(&mut self, message: &dyn Display) {
        self.reports.push(message.to_string());
        NOW.set(NOW.get() + Duration::from_millis(1));
    }
}

fn limits(connections: usize) -> Limits {
    Limits {
        connections,
        ..Limits::default()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).unwrap();
    stream
}

fn ask(mut stream: &TcpStream, path: &str) -> String {
    stream.write_all(request(path).as_bytes()).unwrap();
    let mut response = vec![0; 16 * 1024];
    let count = stream.read(&mut response).unwrap();
    String::from_utf8_lossy(&response[..count]).into_owned()
}

#[test]
fn a_panic_closes_its_connection_and_affects_no_other() {
    let (mut event_loop, address, mut stop) = driven(Probe::default());
    let event_loop = thread::spawn(move || event_loop.run());
    let other = connect(address);
    assert!(ask(&other, "/probe").ends_with("I'm ok!"));
    for _ in 0..3 {
        assert_eq!(
            ask(&connect(address), "/panic"),
            "",
            "closed without a response"
        );
        assert!(ask(&other, "/probe").ends_with("I'm ok!"));
    }
    let response = ask(&other, "/open");
    assert!(response.ends_with("1 open"), "{response}");

    stop.write_all(&[0]).unwrap();
    event_loop.join().unwrap().unwrap();
    assert_eq!(
        (&other).read(&mut [0]).unwrap(),
        0,
        "idle connections are closed"
    );
}

#[test]
fn the_service_is_called_before_the_first_wait_and_when_it_asks_to_be() {
    struct Ticks(usize, UnixStream);
    impl Service for Ticks {
        type Memo = ();

        fn answer(&mut self, _: &Request<'_>) -> Reply {
            Reply::text(Status::Ok, "")
        }

        fn before_wait(&mut self) -> Option<Duration> {
            self.0 += 1;
            if self.0 == 3 {
                self.1.write_all(&[0]).unwrap();
            }
            Some(Duration::from_millis(1))
        }
    }
    // The service stops the server, and no client connects.
    let listener = crate::listener::listen("127.0.0.1:0").unwrap();
    let (stop_signal, stop) = UnixStream::pair().unwrap();
    let ticks = Ticks(0, stop);
    let mut event_loop =
        EventLoop::new(listener, [Some(stop_signal), None], ticks, &limits(10)).unwrap();
    event_loop.run().unwrap();
    assert!(event_loop.shared.service.0 >= 3);
}

/// Returns an event loop that the test drives step by step or runs, its address, and the other end of
/// its stop signal.
fn driven(service: Probe) -> (EventLoop<Probe>, SocketAddr, UnixStream) {
    limited(service, &limits(10))
}

/// Like [`driven`], with these limits.
fn limited<V: Service>(service: V, limits: &Limits) -> (EventLoop<V>, SocketAddr, UnixStream) {
    let listener = crate::listener::listen("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop_signal, stop) = UnixStream::pair().unwrap();
    let event_loop = EventLoop::new(listener, [Some(stop_signal), None], service, limits);
    (event_loop.unwrap(), address, stop)
}

/// Like [`driven`], with a clock that stands still until [`pass`] advances it.
fn timed(service: Probe) -> (EventLoop<Probe>, SocketAddr, UnixStream) {
    let (mut event_loop, address, stop) = driven(service);
    NOW.set(Instant::now());
    event_loop.shared.clock = || NOW.get();
    event_loop.shared.now = NOW.get();
    (event_loop, address, stop)
}

/// Advances the clock by this number of milliseconds.
fn pass(event_loop: &mut EventLoop<Probe>, millis: u64) {
    NOW.set(NOW.get() + Duration::from_millis(millis));
    event_loop.shared.now = NOW.get();
}

/// Gives turns until no client is queued.
fn take_turns(event_loop: &mut EventLoop<Probe>) {
    while take_turn(event_loop) {}
}

/// Makes a client busy: it asks for responses of 12 KiB and does not read them, until a part of one is unsent.
fn make_busy(event_loop: &mut EventLoop<Probe>, key: usize, stream: &TcpStream) {
    while event_loop.clients[key].stalled_since().is_none() {
        assert!(event_loop.shared.service.ended < 10_000);
        ask_with_slot(event_loop, key, stream, "/open/medium");
    }
}

/// Sends a request from a client, which has a slot for the turns that follow.
fn ask_with_slot(event_loop: &mut EventLoop<Probe>, key: usize, stream: &TcpStream, path: &str) {
    let admission = event_loop.clients[key].admission();
    event_loop.clients[key].set_admission(Admission::Admitted);
    send(event_loop, key, stream, &request(path));
    take_turns(event_loop);
    event_loop.clients[key].set_admission(admission);
}

/// Takes the slot of a client, which is then on the reserve.
fn move_to_reserve(event_loop: &mut EventLoop<Probe>, key: usize) {
    event_loop.clients[key].set_admission(Admission::Waiting);
    event_loop.reserve.push(Reserved::new(key, NOW.get()));
}

/// Connects this number of clients, which wait until they are accepted.
fn waiting(event_loop: &mut EventLoop<Probe>, address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect_one = |_| {
        let stream = connect(address);
        wait_for(event_loop, LISTENER, Event::is_readable);
        stream
    };
    (0..count).map(connect_one).collect()
}

fn admission(event_loop: &EventLoop<Probe>, key: usize) -> Admission {
    event_loop.clients[key].admission()
}

/// Connects this number of clients, whose keys count from 0. Returns their sockets.
fn accepted(
    event_loop: &mut EventLoop<Probe>,
    address: SocketAddr,
    count: usize,
) -> Vec<TcpStream> {
    let expected = event_loop.clients.len() + count;
    let streams = (0..count).map(|_| connect(address)).collect();
    while event_loop.clients.len() < expected {
        wait_for(event_loop, LISTENER, Event::is_readable);
        event_loop.may_accept = true;
        event_loop.accept(count, usize::MAX);
    }
    streams
}

/// Waits until a poll reports this about a socket. Bytes may take a while to arrive. Discards all other events.
fn wait_for(event_loop: &mut EventLoop<Probe>, token: Token, condition: fn(&Event) -> bool) {
    let mut events = Events::with_capacity(16);
    let is_it = |event: &Event| event.token() == token && condition(event);
    while !events.iter().any(is_it) {
        let timeout = Some(Duration::from_secs(60));
        event_loop.poll.poll(&mut events, timeout).unwrap();
        assert!(!events.is_empty(), "waited in vain");
    }
}

const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends bytes from a client. Up to 1365 bytes arrive in one piece. The event loop is not told.
fn deliver(event_loop: &mut EventLoop<Probe>, key: usize, mut stream: &TcpStream, bytes: &str) {
    stream.write_all(bytes.as_bytes()).unwrap();
    wait_for(event_loop, Token(key), Event::is_readable);
}

/// Sends bytes from a client, and queues it for a turn.
fn send(event_loop: &mut EventLoop<Probe>, key: usize, stream: &TcpStream, bytes: &str) {
    deliver(event_loop, key, stream, bytes);
    event_loop.handle_event(key, READABLE);
}

/// Gives one turn to the next client in the queue. Returns whether there was one.
fn take_turn(event_loop: &mut EventLoop<Probe>) -> bool {
    let Some((key, turn_time)) = event_loop.queue.pop() else {
        return false;
    };
    if event_loop.give_turn(key, turn_time) == Next::AnotherTurn {
        event_loop.queue_turn(key);
    }
    true
}

#[test]
fn a_client_that_fills_a_read_is_read_from_again() {
    let (mut event_loop, address, _stop) = driven(Probe::default());
    let streams = accepted(&mut event_loop, address, 1);
    event_loop.shared.read_buffer = vec![0; PROBE.len()].into_boxed_slice();
    send(&mut event_loop, 0, &streams[0], &PROBE.repeat(2));
    for _ in 0..3 {
        assert!(
            take_turn(&mut event_loop),
            "after a full read, there may be more"
        );
    }
    assert!(!take_turn(&mut event_loop));
    assert_eq!(event_loop.clients.len(), 1);
}

#[test]
fn a_client_gets_no_second_turn_after_a_short_read() {
    let (mut event_loop, address, _stop) = driven(Probe::default());
    let streams = accepted(&mut event_loop, address, 1);
    send(&mut event_loop, 0, &streams[0], PROBE);
    assert!(take_turn(&mut event_loop));
    assert!(!take_turn(&mut event_loop));
}

/// A read or a write may find the reset before its event is handled.
#[test]
fn a_connection_is_closed_when_a_read_or_a_write_finds_that_it_was_reset() {
    for sent in ["", PROBE] {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        let stream = accepted(&mut event_loop, address, 1).remove(0);
        (&stream).write_all(sent.as_bytes()).unwrap();
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        drop(stream);
        wait_for(&mut event_loop, Token(0), Event::is_error);
        event_loop.handle_event(0, READABLE);
        assert!(take_turn(&mut event_loop));
        assert!(event_loop.clients.is_empty());
    }
}

#[test]
fn a_turn_starts_no_request_after_50_microseconds_or_10_while_other_new_clients_wait() {
    let (new, busy) = (0, 1_000_000);
    for (finish_tag, others, micros, expected) in [
        (new, 0, 49, 40),
        (new, 0, 50, 1),
        (new, 1, 9, 40),
        (new, 1, 10, 1),
        (busy, 0, 49, 40),
        (busy, 0, 50, 1),
    ] {
        let (mut event_loop, address, _stop) = timed(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        event_loop.clients[0].finish_tag = finish_tag;
        send(&mut event_loop, 0, &streams[0], &PROBE.repeat(40));
        (0..others).for_each(|_| event_loop.queue.push(usize::MAX, new));
        let (key, turn_time) = event_loop.queue.pop().unwrap();
        // This much time of the turn is over.
        event_loop.shared.now = NOW.get();
        event_loop.shared.now -= Duration::from_micros(micros);
        event_loop.give_turn(key, turn_time);
        let answered = event_loop.shared.service.ended;
        let case = format!("{finish_tag}, {others} others, after {micros} µs");
        assert_eq!(answered, expected, "{case}");
    }
}

#[test]
fn all_buffers_together_may_hold_4_kib_per_connection_and_at_least_1_mib() {
    for (connections, bytes, to_receive, to_send) in [
        (10, 1_048_576, 22, 3),
        (256, 1_048_576, 22, 3),
        (257, 1_052_672, 22, 3),
        (1000, 4_096_000, 86, 13),
    ] {
        let (mut event_loop, _, _stop) = limited(Probe::default(), &limits(connections));
        assert_eq!(event_loop.max_held_bytes, bytes);
        // One connection in 12 can have a large receive buffer, and one in 72 a large send buffer.
        let large = &event_loop.shared.large_buffers;
        assert_eq!((large.to_receive, large.to_send), (to_receive, to_send));
        // Memory is scarce from half of that on, and full from three quarters on.
        for (held, is_scarce, is_full) in [
            (bytes / 2 - 1, false, false),
            (bytes / 2, true, false),
            (bytes / 4 * 3 - 1, true, false),
            (bytes / 4 * 3, true, true),
        ] {
            event_loop.shared.held_bytes = held;
            assert_eq!(event_loop.shared.is_memory_scarce(), is_scarce, "{held}");
            assert_eq!(event_loop.shared.is_memory_full(), is_full, "{held}");
        }
    }
}

#[test]
fn turns_end_after_a_millisecond() {
    let (mut event_loop, address, _stop) = timed(Probe {
        pause: Duration::from_micros(250),
        ..Probe::default()
    });
    let streams = accepted(&mut event_loop, address, 9);
    for (key, stream) in streams.iter().enumerate() {
        send(&mut event_loop, key, stream, PROBE);
    }
    for served in [4, 8, 9, 9] {
        event_loop.run_turns();
        assert_eq!(event_loop.shared.service.ended, served);
        assert_eq!(event_loop.shared.now, NOW.get());
    }
    assert!(event_loop.queue.is_empty());
    // A client that pipelines gets as many turns as fit.
    send(&mut event_loop, 0, &streams[0], &PROBE.repeat(6));
    for served in [9 + 4, 9 + 6] {
        event_loop.run_turns();
        assert_eq!(event_loop.shared.service.ended, served);
    }
}

const MEDIUM: &str = "GET /medium HTTP/1.1\r\nHost: a\r\n\r\n";

/// Most of what counts as held may have been read long ago. If the kernel were not asked before memory is
/// full, a thousand clients that pipeline would get one response in each turn.
#[test]
fn while_memory_is_scarce_the_kernel_is_asked_what_it_still_holds() {
    let (mut event_loop, address, _stop) = driven(Probe::default());
    let streams = accepted(&mut event_loop, address, 1);
    send(&mut event_loop, 0, &streams[0], MEDIUM);
    take_turns(&mut event_loop);
    assert!(event_loop.shared.held_bytes > 12 * 1024);
    event_loop.limit_held_bytes();
    assert!(event_loop.shared.held_bytes > 12 * 1024);
    event_loop.shared.scarce_from = 12 * 1024;
    wait_until("an ACK", || {
        event_loop.shared.now = Instant::now();
        event_loop.limit_held_bytes();
        event_loop.shared.held_bytes == 0
    });
}

/// Otherwise many clients that do not read would hold more of the kernel's memory than the limit leaves.
#[test]
fn at_most_8_kib_of_a_client_are_in_the_kernel_without_counting_as_held() {
    const BURST: usize = 20;
    // The kernel is asked now and then. What it holds then depends on how much the client read before.
    for bursts_read in 0..9 {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        event_loop.shared.large_buffers = LargeBuffers::new(0);
        let streams = accepted(&mut event_loop, address, 1);
        // The kernel then does not enlarge this buffer.
        sockopt::set_socket_recv_buffer_size(&streams[0], 64 * 1024).unwrap();
        send(&mut event_loop, 0, &streams[0], PROBE);
        take_turns(&mut event_loop);
        let response = (&streams[0]).read(&mut [0; 1024]).unwrap();
        let mut read = response;
        let mut in_kernel = 0;
        let mut bursts = 0;
        while in_kernel < 12 * 1024 {
            send(&mut event_loop, 0, &streams[0], &PROBE.repeat(BURST));
            take_turns(&mut event_loop);
            bursts += 1;
            if bursts <= bursts_read {
                let mut responses = vec![0; BURST * response];
                (&streams[0]).read_exact(&mut responses).unwrap();
                read += responses.len();
            }
            let unread = event_loop.shared.service.ended * response - read;
            let held = event_loop.shared.held_bytes;
            // On a busy machine, some of it may be on its way.
            let what = format!("{unread} bytes, of which {held} are held");
            wait_until(&what, || {
                let readable = ioctl_fionread(&streams[0]).unwrap();
                in_kernel = unread - usize::try_from(readable).unwrap();
                in_kernel <= held + 8192
            });
        }
    }
}

/// Linux doubles the size that it is told (socket(7)).
const FACTOR: usize = if cfg!(target_os = "linux") { 2 } else { 1 };

/// Returns the sizes of the kernel's receive buffer and send buffer for a client.
fn buffer_sizes(event_loop: &EventLoop<Probe>, key: usize) -> (usize, usize) {
    let stream = event_loop.clients[key].stream();
    let received = sockopt::socket_recv_buffer_size(stream).unwrap();
    let sent = sockopt::socket_send_buffer_size(stream).unwrap();
    (received / FACTOR, sent / FACTOR)
}

#[test]
fn connections_keep_their_first_receive_buffer_while_few_are_open() {
    for (limit, expected) in [(10, 64), (1600, 100)] {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        event_loop.max_clients = limit;
        let _streams = accepted(&mut event_loop, address, expected + 2);
        let keeps_first = |key: &usize| buffer_sizes(&event_loop, *key).0 == 4096;
        let kept = (0..expected + 2).filter(keeps_first).count();
        assert_eq!(kept, expected, "of {limit}");
        assert_eq!(buffer_sizes(&event_loop, expected).0, 2304);
    }
}

#[test]
fn clients_that_pipeline_get_larger_receive_buffers_up_to_a_number() {
    let (mut event_loop, address, _stop) = driven(Probe::default());
    event_loop.shared.large_buffers = LargeBuffers::new(2 * 2 * (8192 - 2304));
    let streams = accepted(&mut event_loop, address, 4);
    for round in 0..3 {
        for (key, stream) in streams.iter().enumerate() {
            // The last client sends one request at a time.
            let count = if key == 3 { 1 } else { 40 };
            send(&mut event_loop, key, stream, &PROBE.repeat(count));
            take_turns(&mut event_loop);
            let mut responses = vec![0; 64 * 1024];
            assert_ne!((&*stream).read(&mut responses).unwrap(), 0);
        }
        let expected = if round == 0 {
            [4096; 4]
        } else {
            [8192, 8192, 4096, 4096]
        };
        let sizes = [0, 1, 2, 3].map(|key| buffer_sizes(&event_loop, key));
        assert_eq!(sizes, expected.map(|size| (size, 4096)));
    }
    // A closed connection makes room for another.
    event_loop.close(0);
    for _ in 0..2 {
        send(&mut event_loop, 2, &streams[2], &PROBE.repeat(40));
        take_turns(&mut event_loop);
    }
    assert_eq!(buffer_sizes(&event_loop, 2).0, 8192);
}

/// A client on the same machine delays its ACK of a single segment of 64 KiB, and the kernel sends no
/// other until then.
#[test]
fn clients_with_long_responses_get_larger_send_buffers_up_to_a_number() {
    // While memory is scarce, no buffer becomes larger.
    for (scarce_from, large) in [(usize::MAX, 40 * 1024), (0, 4096)] {
        let (mut event_loop, address, _stop) = driven(Probe::default());
        event_loop.shared.scarce_from = scarce_from;
        event_loop.shared.large_buffers = LargeBuffers::new(2 * (40 * 1024 - 4096));
        let streams = accepted(&mut event_loop, address, 3);
        for (key, path) in ["/probe", "/long", "/long"].into_iter().enumerate() {
            send(&mut event_loop, key, &streams[key], &request(path));
            take_turns(&mut event_loop);
        }
        let sizes = [0, 1, 2].map(|key| buffer_sizes(&event_loop, key).1);
        assert_eq!(sizes, [4096, large, 4096]);
        // A closed connection makes room for another.
        event_loop.close(1);
        event_loop.handle_event(2, READABLE);
        take_turns(&mut event_loop);
        assert_eq!(buffer_sizes(&event_loop, 2).1, large);
    }
}

#[test]
fn work_waits_for_new_clients_but_not_forever() {
    let (mut event_loop, _, _stop) = driven(Probe::default());
    event_loop.shared.work_queue.push_back(0);
    for _ in 0..64 {
        event_loop.has_accepted = true;
        event_loop.work();
        assert!(!event_loop.shared.work_queue.is_empty());
        assert_eq!(event_loop.timeout(), Some(Duration::ZERO));
    }
    event_loop.work();
    assert!(event_loop.shared.work_queue.is_empty());
}

#[test]
fn work_for_disconnected_clients_is_dropped_and_for_half_closed_clients_comes_last() {
    let work = Duration::from_millis(1);
    let (mut event_loop, address, _stop) = driven(Probe {
        work,
        ..Probe::default()
    });
    let streams = accepted(&mut event_loop, address, 4);
    for (key, stream) in streams.iter().enumerate() {
        send(&mut event_loop, key, stream, PROBE);
    }
    take_turns(&mut event_loop);
    event_loop.shared.now = Instant::now();
    event_loop.queue_due();
    take_turns(&mut event_loop);
    assert_eq!(event_loop.shared.work_queue, [0, 1, 2, 3]);
    event_loop.close_lost(1);
    assert_eq!(event_loop.shared.work_queue, [0, 2, 3]);
    event_loop.handle_event(0, HALF_CLOSED);
    for left in [&[0, 3][..], &[0], &[]] {
        while event_loop.queue.pop().is_some() {}
        event_loop.has_accepted = false;
        event_loop.work();
        assert_eq!(event_loop.shared.work_queue, left);
    }
}

/// Returns how long the event loop would wait, in milliseconds.
fn timeout_millis(event_loop: &EventLoop<Probe>) -> Option<u128> {
    event_loop.timeout().map(|timeout| timeout.as_millis())
}

#[test]
fn the_event_loop_waits_until_something_is_due() {
    type Cause = fn(&mut EventLoop<Probe>, Instant);
    let causes: [(Cause, u128); 12] = [
        (|event_loop, _| event_loop.may_accept = true, 0),
        (|event_loop, _| event_loop.queue.push(0, 0), 0),
        (|event_loop, _| event_loop.shared.work_queue.push_back(0), 0),
        (|event_loop, at| event_loop.shared.timers.push(at, 0), 7),
        (|event_loop, at| event_loop.next_sweep = Some(at), 7),
        (
            |event_loop, at| {
                event_loop.may_accept = true;
                event_loop.accept_paused_until = Some(at);
            },
            7,
        ),
        (
            |event_loop, at| event_loop.accept_paused_until = Some(at),
            7,
        ),
        (
            |event_loop, at| event_loop.reserve.push(Reserved::new(0, at)),
            10,
        ),
        (
            |event_loop, at| {
                event_loop.shared.waiting_for_memory.push(0);
                event_loop.next_memory_check = at;
            },
            7,
        ),
        (|event_loop, at| event_loop.next_service_call = Some(at), 7),
        // Nobody is connected, so the listener is closed at once.
        (|event_loop, _| event_loop.stop(), 0),
        (
            |event_loop, at| {
                event_loop.next_sweep = Some(at + Duration::from_millis(1));
                event_loop.next_service_call = Some(at);
            },
            7,
        ),
    ];
    for (index, (cause, expected)) in causes.into_iter().enumerate() {
        let (mut event_loop, _, _stop) = timed(Probe::default());
        assert_eq!(timeout_millis(&event_loop), None);
        cause(&mut event_loop, NOW.get() + Duration::from_millis(7));
        assert_eq!(timeout_millis(&event_loop), Some(expected), "cause {index}");
    }
}

#[test]
fn the_service_is_called_again_within_the_time_that_it_asks_for() {
    let (mut event_loop, _, _stop) = timed(Probe {
        again: Some(Duration::from_millis(3)),
        ..Probe::default()
    });
    event_loop.finish_wake_up();
    assert_eq!(timeout_millis(&event_loop), Some(3));
    pass(&mut event_loop, 2);
    assert_eq!(timeout_millis(&event_loop), Some(1));
    pass(&mut event_loop, 2);
    assert_eq!(timeout_millis(&event_loop), Some(0));
}

#[test]
fn no_time_that_a_service_chooses_is_too_long() {
    let (mut event_loop, address, _stop) = timed(Probe {
        again: Some(Duration::MAX),
        ..Probe::default()
    });
    event_loop.finish_wake_up();
    let year = 365 * 24 * 60 * 60 * 1000;
    assert_eq!(timeout_millis(&event_loop), Some(year));
    let streams = accepted(&mut event_loop, address, 1);
    send(&mut event_loop, 0, &streams[0], &request("/never"));
    take_turns(&mut event_loop);
    let due = event_loop.clients[0].reply_due();
    assert_eq!(due, Some(NOW.get() + crate::limits::MAX_WAIT));

    let limits = Limits {
        grace: Duration::MAX,
        ..limits(10)
    };
    let (mut event_loop, _, _stop) = limited(Probe::default(), &limits);
    event_loop.stop();
}

#[test]
fn sweeps_queue_the_clients_whose_deadline_has_passed() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let start = NOW.get();
    let next_sweep = |event_loop: &EventLoop<Probe>| {
        let next = event_loop.next_sweep?;
        Some(next.duration_since(start).as_millis())
    };
    let mut streams = accepted(&mut event_loop, address, 1);
    pass(&mut event_loop, 5000);
    streams.extend(accepted(&mut event_loop, address, 1));
    assert_eq!(next_sweep(&event_loop), Some(75_000));
    pass(&mut event_loop, 69_999);
    event_loop.sweep();
    assert!(event_loop.queue.is_empty());
    pass(&mut event_loop, 1);
    event_loop.sweep();
    assert_eq!(next_sweep(&event_loop), Some(80_000));
    assert_eq!(event_loop.queue.pop().map(|(key, _)| key), Some(0));
    assert!(event_loop.queue.is_empty());
    event_loop.give_turn(0, TURN_TIME);
    assert_eq!(event_loop.clients.len(), 1);
    // The next sweep is at least 100 ms away, even if a deadline is earlier.
    let soon = NOW.get() + Duration::from_millis(1);
    event_loop.plan_sweep(Some(soon));
    assert_eq!(next_sweep(&event_loop), Some(75_100));
    event_loop.plan_sweep(None);
    assert_eq!(next_sweep(&event_loop), Some(75_100));
    pass(&mut event_loop, 100);
    event_loop.sweep();
    assert_eq!(next_sweep(&event_loop), Some(80_000));
    // On a busy machine, a sweep is late.
    pass(&mut event_loop, 4901);
    event_loop.sweep();
    assert_eq!(next_sweep(&event_loop), None);
    take_turns(&mut event_loop);
    assert!(event_loop.clients.is_empty());
}

/// One of these events may say that a client has read, and so has made progress in time.
#[test]
fn deadlines_are_not_checked_while_more_events_may_be_pending() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let streams = accepted(&mut event_loop, address, 2);
    for (key, stream) in streams.iter().enumerate() {
        make_busy(&mut event_loop, key, stream);
    }
    for (key, mut stream) in streams.iter().enumerate() {
        // The client reads until the kernel has room again, and its event is pending.
        stream.set_nonblocking(true).unwrap();
        let mut received = vec![0; 64 * 1024];
        wait_until("room", || {
            let _ = stream.read(&mut received);
            event_loop.clients[key].stream().has_delivered()
        });
    }
    pass(&mut event_loop, 10_000);
    let poll = |event_loop: &mut EventLoop<Probe>, capacity| {
        let mut events = Events::with_capacity(capacity);
        let timeout = Some(Duration::ZERO);
        event_loop.poll.poll(&mut events, timeout).unwrap();
        event_loop.wake_up(&events);
        events.iter().count()
    };
    assert_eq!(poll(&mut event_loop, 1), 1);
    assert_eq!(event_loop.clients.len(), 2);
    assert_ne!(poll(&mut event_loop, 3), 0);
    assert_eq!(event_loop.clients.len(), 2, "both have made progress");
    // Now they are idle for too long.
    pass(&mut event_loop, 75_000);
    poll(&mut event_loop, 3);
    assert!(event_loop.clients.is_empty());
}

#[test]
fn a_sweep_waits_for_at_most_a_second_while_more_events_may_be_pending() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let mut streams = accepted(&mut event_loop, address, 2);
    pass(&mut event_loop, 75_000);
    for (millis, is_closed) in [(999, false), (1, true)] {
        pass(&mut event_loop, millis);
        // One event fills the poll.
        deliver(&mut event_loop, 1, &streams[1], "x");
        let mut events = Events::with_capacity(1);
        streams[1].write_all(b"x").unwrap();
        while events.is_empty() {
            let timeout = Some(Duration::from_secs(60));
            event_loop.poll.poll(&mut events, timeout).unwrap();
        }
        event_loop.wake_up(&events);
        assert_eq!(!event_loop.clients.contains(0), is_closed, "{millis}");
    }
}

#[test]
fn accepting_pauses_at_the_limit_and_resumes() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let _streams = waiting(&mut event_loop, address, 2);
    event_loop.may_accept = true;
    event_loop.accept_paused_until = Some(NOW.get() + Duration::from_millis(50));
    pass(&mut event_loop, 49);
    event_loop.accept(10, 10);
    assert_eq!(
        (event_loop.clients.len(), event_loop.has_accepted),
        (0, false)
    );
    pass(&mut event_loop, 1);
    event_loop.accept(1, 10);
    assert_eq!(
        (event_loop.clients.len(), event_loop.has_accepted),
        (1, true)
    );
    assert_eq!(event_loop.accept_paused_until, None);
    // At the limit, accepting pauses until the next search. Only the reserve can make room.
    event_loop.accept(10, 1);
    assert_eq!(event_loop.clients.len(), 1);
    let paused = NOW.get() + Duration::from_millis(10);
    assert_eq!(event_loop.accept_paused_until, Some(paused));
    move_to_reserve(&mut event_loop, 0);
    pass(&mut event_loop, 100);
    event_loop.accept(1, 1);
    assert_eq!(
        (event_loop.clients.len(), event_loop.has_accepted),
        (1, true)
    );
    assert!(event_loop.reserve.is_empty(), "it was closed for the next");
    // When nothing is left to accept, there is no error.
    event_loop.accept(10, 10);
    assert_eq!(
        (event_loop.may_accept, event_loop.has_accepted),
        (false, false)
    );
    assert_eq!(event_loop.accept_paused_until, None);
    assert!(event_loop.shared.service.reports.is_empty());
}

#[test]
fn running_out_of_descriptors_frees_one_and_is_reported_if_slots_are_free_or_none_can_be_freed() {
    let out = [Errno::MFILE, Errno::NFILE].map(io::Error::from);
    let other = io::Error::from(Errno::PERM);
    let reports =
        |event_loop: &mut EventLoop<Probe>| mem::take(&mut event_loop.shared.service.reports).len();
    // A spare descriptor, while slots are free.
    for error in &out {
        let (mut event_loop, _, _stop) = timed(Probe::default());
        event_loop.max_spare = 2;
        event_loop.open_spare();
        assert!(event_loop.free_descriptor(error));
        assert_eq!(event_loop.spare.len(), 1);
        assert_eq!(reports(&mut event_loop), 1);
        // No slot is free now: the missing spare descriptor is for the reserve.
        assert!(event_loop.free_descriptor(error));
        assert_eq!((event_loop.spare.len(), reports(&mut event_loop)), (0, 0));
        assert!(!event_loop.free_descriptor(error));
        assert_eq!(reports(&mut event_loop), 1);
    }
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let _streams = accepted(&mut event_loop, address, 3);
    event_loop.max_clients = 2;
    move_to_reserve(&mut event_loop, 2);
    event_loop.max_spare = 1;
    event_loop.open_spare();
    pass(&mut event_loop, 100);
    assert!(!event_loop.free_descriptor(&other));
    assert_eq!(reports(&mut event_loop), 1);
    assert_eq!((event_loop.spare.len(), event_loop.clients.len()), (1, 3));
    // A spare descriptor is closed first, then a connection on the reserve, then an idle one.
    assert!(event_loop.free_descriptor(&out[0]));
    assert_eq!((event_loop.spare.len(), event_loop.clients.len()), (0, 3));
    assert!(event_loop.free_descriptor(&out[0]));
    assert_eq!((event_loop.reserve.len(), event_loop.clients.len()), (0, 2));
    assert!(event_loop.free_descriptor(&out[0]));
    assert_eq!(event_loop.clients.len(), 1);
    assert_eq!(reports(&mut event_loop), 0);
}

#[test]
fn a_new_connection_does_not_overtake_those_on_the_reserve() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    event_loop.max_clients = 3;
    let _first = accepted(&mut event_loop, address, 2);
    assert_eq!(admission(&event_loop, 1), Admission::Admitted);
    move_to_reserve(&mut event_loop, 1);
    let _second = accepted(&mut event_loop, address, 1);
    assert!(event_loop.has_free_slot());
    assert_eq!(admission(&event_loop, 2), Admission::Waiting);
    assert_eq!(event_loop.reserve.len(), 2);
}

#[test]
fn closing_a_connection_removes_it_from_the_reserve_or_frees_its_slot() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let _streams = accepted(&mut event_loop, address, 4);
    for key in [2, 3] {
        move_to_reserve(&mut event_loop, key);
    }
    event_loop.is_refusing = true;
    event_loop.close(2);
    let keys: Vec<_> = event_loop
        .reserve
        .iter()
        .map(|reserved| reserved.key)
        .collect();
    assert_eq!((keys, event_loop.is_refusing), (vec![3], true));
    event_loop.close(0);
    assert_eq!(
        (event_loop.reserve.len(), event_loop.is_refusing),
        (1, false)
    );
    assert_eq!(event_loop.shared.service.open, 2);
}

#[test]
fn memory_is_kept_in_proportion_to_the_number_of_clients() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    event_loop.clients.reserve(1000);
    event_loop.shared.work_queue.reserve(1000);
    let streams = accepted(&mut event_loop, address, 2);
    send(&mut event_loop, 1, &streams[1], &request("/delayed"));
    take_turns(&mut event_loop);
    let due = event_loop.shared.timers.next_due();
    assert!(due.is_some());
    // Timers of connections that are closed, and of another client with the same key.
    for key in 1..200 {
        event_loop.shared.timers.push(NOW.get(), key);
    }
    event_loop.close(0);
    assert_eq!(event_loop.shared.timers.count(), 1);
    assert_eq!(event_loop.shared.timers.next_due(), due);
    assert!(event_loop.clients.capacity() < 100);
    assert!(event_loop.shared.work_queue.capacity() < 100);
}

/// Returns an event loop whose three clients hold 100 bytes each, a part of a request.
fn holding() -> (EventLoop<Probe>, Vec<TcpStream>, UnixStream) {
    let (mut event_loop, address, stop) = timed(Probe::default());
    let streams = accepted(&mut event_loop, address, 3);
    for (key, stream) in streams.iter().enumerate() {
        send(&mut event_loop, key, stream, &"x".repeat(100));
        take_turns(&mut event_loop);
        pass(&mut event_loop, 1);
    }
    assert_eq!(event_loop.shared.held_bytes, 300);
    (event_loop, streams, stop)
}

#[test]
fn while_memory_is_full_stalled_clients_are_reset_until_at_most_scarce_from_is_held() {
    for (full_from, scarce_from, millis, reset) in [
        (301, 200, 500, 0),
        (300, 200, 496, 0),
        (300, 300, 500, 0),
        // Only the first has made no progress for half a second.
        (300, 100, 497, 1),
        (300, 200, 500, 1),
        (300, 199, 500, 2),
        (300, 0, 500, 3),
    ] {
        let (mut event_loop, _streams, _stop) = holding();
        event_loop.shared.full_from = full_from;
        event_loop.shared.scarce_from = scarce_from;
        pass(&mut event_loop, millis);
        event_loop.limit_held_bytes();
        let case = format!("{full_from}, {scarce_from}, {millis}");
        assert_eq!(event_loop.clients.len(), 3 - reset, "{case}");
        let reports = &event_loop.shared.service.reports;
        assert_eq!(reports.len(), usize::from(reset > 0), "{case}");
        if reset > 0 {
            let expected = format!("reset {reset} connections of clients that do not read");
            assert!(reports[0].starts_with(&expected), "{}", reports[0]);
            assert!(
                !event_loop.clients.contains(0),
                "the first has held it the longest"
            );
        }
    }
}

#[test]
fn above_the_limit_clients_are_reset_even_if_they_make_progress() {
    for (max_held_bytes, reset) in [(301, 0), (300, 0), (299, 1), (199, 2)] {
        let (mut event_loop, _streams, _stop) = holding();
        event_loop.max_held_bytes = max_held_bytes;
        event_loop.shared.full_from = 150;
        event_loop.shared.scarce_from = 100;
        let now = NOW.get();
        event_loop.limit_held_bytes();
        assert_eq!(event_loop.clients.len(), 3 - reset, "{max_held_bytes}");
        // At most a tenth of the time is spent on such checks.
        let took = NOW.get() - now;
        let next_check = now + (10 * took).max(Duration::from_millis(1));
        assert_eq!(event_loop.next_memory_check, next_check);
    }
}

#[test]
fn memory_is_checked_once_a_millisecond_while_it_is_scarce_and_at_once_above_the_limit() {
    let millis = Duration::from_millis;
    for (max_held_bytes, scarce_from, next_check, is_checked) in [
        (300, 300, 1, false),
        (300, 300, 0, true),
        (300, 301, 0, false),
        (299, 300, 1, true),
    ] {
        let (mut event_loop, _streams, _stop) = holding();
        event_loop.max_held_bytes = max_held_bytes;
        event_loop.shared.scarce_from = scarce_from;
        let planned = NOW.get() + millis(next_check);
        event_loop.next_memory_check = planned;
        event_loop.limit_held_bytes();
        let expected = if is_checked {
            NOW.get() + millis(1)
        } else {
            planned
        };
        assert_eq!(event_loop.next_memory_check, expected);
    }
}

#[test]
fn clients_that_wait_for_memory_get_a_turn_when_there_is_some_or_when_they_are_stalled() {
    for (millis, frees, is_answered) in [
        (499, false, false),
        // A client that has waited for half a second gets a turn and is not reset.
        (500, false, true),
        (0, true, true),
    ] {
        let (mut event_loop, address, _stop) = timed(Probe::default());
        let streams = accepted(&mut event_loop, address, 1);
        event_loop.max_held_bytes = 1000;
        event_loop.shared.scarce_from = 0;
        event_loop.shared.full_from = 0;
        send(&mut event_loop, 0, &streams[0], PROBE);
        take_turns(&mut event_loop);
        assert_eq!(event_loop.shared.waiting_for_memory, [0]);
        pass(&mut event_loop, millis);
        event_loop.next_memory_check = NOW.get();
        if frees {
            event_loop.shared.scarce_from = 1000;
            event_loop.shared.full_from = 1000;
        }
        event_loop.limit_held_bytes();
        take_turns(&mut event_loop);
        assert_eq!(
            event_loop.shared.service.ended,
            usize::from(is_answered),
            "{millis}"
        );
        let waiting = event_loop.shared.waiting_for_memory.len();
        assert_eq!(waiting, usize::from(!frees), "{millis}");
    }
}

#[test]
fn a_closed_client_no_longer_waits_for_memory() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    let streams = accepted(&mut event_loop, address, 2);
    event_loop.shared.full_from = 0;
    for (key, stream) in streams.iter().enumerate() {
        send(&mut event_loop, key, stream, PROBE);
        take_turns(&mut event_loop);
    }
    assert_eq!(event_loop.shared.waiting_for_memory, [0, 1]);
    event_loop.close(0);
    assert_eq!(event_loop.shared.waiting_for_memory, [1]);
}

#[test]
fn half_of_the_spare_descriptors_stay_open_for_the_reserve() {
    let (mut event_loop, _, mut stop) = driven(Probe::default());
    stop.write_all(&[0]).unwrap();
    event_loop.run().unwrap();
    assert_eq!((event_loop.max_spare, event_loop.spare.len()), (16, 16));
}
