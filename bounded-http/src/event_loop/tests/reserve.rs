//! Tests of the reserve: which connections get a slot, and what happens to the others.

use super::*;
use crate::client::Evictable;

/// Returns an event loop with this number of slots and clients. Those above the limit are on the reserve.
fn full(slots: usize, count: usize) -> (EventLoop<Probe>, Vec<TcpStream>, UnixStream) {
    let (mut event_loop, address, stop) = timed(Probe::default());
    event_loop.max_clients = slots;
    // No client is reset, however much all hold together.
    event_loop.max_held_bytes = usize::MAX;
    event_loop.shared.scarce_from = usize::MAX;
    event_loop.shared.full_from = usize::MAX;
    let streams = accepted(&mut event_loop, address, count);
    assert_eq!(event_loop.reserve.len(), count.saturating_sub(slots));
    (event_loop, streams, stop)
}

/// Checks the reserve after 10 ms, when a check is due.
fn check(event_loop: &mut EventLoop<Probe>) {
    pass(event_loop, 10);
    event_loop.serve_reserve();
}

#[test]
fn a_slot_is_free_below_the_limit_while_descriptors_are_left() {
    // (clients, how many of them are on the reserve, missing spare descriptors)
    for (clients, reserved, missing, expected) in [
        (0, 0, 0, true),
        (1, 0, 0, true),
        (2, 0, 0, false),
        (3, 0, 0, false),
        (2, 1, 0, true),
        (3, 1, 0, false),
        (3, 2, 0, true),
        (1, 0, 1, false),
        (2, 1, 1, false),
        (3, 2, 1, true),
    ] {
        let (mut event_loop, _streams, _stop) = full(10, clients);
        event_loop.max_clients = 2;
        for key in 0..reserved {
            event_loop.reserve.push(Reserved::new(key, NOW.get()));
        }
        event_loop.max_spare = 1;
        event_loop.open_spare();
        event_loop.spare.truncate(1 - missing);
        let case = format!("{clients}, {reserved}, {missing}");
        assert_eq!(event_loop.has_free_slot(), expected, "{case}");
    }
}

#[test]
fn missing_spare_descriptors_are_opened() {
    let (mut event_loop, _streams, _stop) = full(2, 0);
    event_loop.max_spare = 3;
    for left in [0, 2, 3] {
        event_loop.spare.truncate(left);
        event_loop.serve_reserve();
        assert_eq!(event_loop.spare.len(), 3);
    }
}

#[test]
fn turnovers_are_granted_while_every_slot_is_taken_and_others_wait() {
    for (slots, clients, may_accept, grants) in [
        (2, 2, true, true),
        (2, 2, false, false),
        (2, 1, true, false),
        (2, 3, false, true),
    ] {
        let (mut event_loop, _streams, _stop) = full(slots, clients);
        event_loop.may_accept = may_accept;
        event_loop.shared.turnovers = 1;
        pass(&mut event_loop, 5);
        event_loop.serve_reserve();
        let turnovers = event_loop.shared.turnovers;
        assert_eq!(turnovers > 1, grants, "{clients}, {may_accept}");
        assert!(grants || turnovers == 0, "{clients}, {may_accept}");
    }
}

#[test]
fn connections_on_the_reserve_get_free_slots_in_their_order() {
    let (mut event_loop, streams, _stop) = full(1, 3);
    make_busy(&mut event_loop, 0, &streams[0]);
    event_loop.serve_reserve();
    assert_eq!(event_loop.reserve.len(), 2);
    event_loop.close(0);
    event_loop.serve_reserve();
    assert_eq!(admission(&event_loop, 1), Admission::Admitted);
    assert_eq!(admission(&event_loop, 2), Admission::Waiting);
    assert_eq!(event_loop.reserve.len(), 1);
    assert_eq!(event_loop.queue.pop().map(|(key, _)| key), Some(1));
    assert!(event_loop.queue.is_empty());
}

#[test]
fn an_idle_connection_is_evicted_only_for_a_request_that_waits() {
    let (mut event_loop, streams, _stop) = full(1, 2);
    pass(&mut event_loop, 100);
    event_loop.serve_reserve();
    assert_eq!(event_loop.clients.len(), 2, "no request waits");
    send(&mut event_loop, 1, &streams[1], PROBE);
    take_turns(&mut event_loop);
    assert_eq!(event_loop.shared.service.ended, 0);
    check(&mut event_loop);
    assert!(!event_loop.clients.contains(0));
    assert_eq!(admission(&event_loop, 1), Admission::Admitted);
    take_turns(&mut event_loop);
    assert_eq!(event_loop.shared.service.ended, 1);
}

#[test]
fn a_request_that_waits_for_more_than_20_checks_is_refused_and_then_all_others_at_once() {
    let (mut event_loop, streams, _stop) = full(1, 4);
    make_busy(&mut event_loop, 0, &streams[0]);
    send(&mut event_loop, 1, &streams[1], PROBE);
    take_turns(&mut event_loop);
    event_loop.next_reserve_check = NOW.get();
    for checks in 1..=20 {
        event_loop.serve_reserve();
        // Further calls before the next check is due do not count.
        pass(&mut event_loop, 9);
        event_loop.serve_reserve();
        pass(&mut event_loop, 1);
        assert_eq!(admission(&event_loop, 1), Admission::Waiting, "{checks}");
        assert!(!event_loop.is_refusing);
    }
    event_loop.serve_reserve();
    assert_eq!(admission(&event_loop, 1), Admission::Refused);
    assert!(event_loop.is_refusing);
    assert_eq!(event_loop.queue.pop().map(|(key, _)| key), Some(1));
    // Another request is refused at once, but not a connection without a request.
    send(&mut event_loop, 2, &streams[2], PROBE);
    take_turns(&mut event_loop);
    event_loop.serve_reserve();
    assert_eq!(admission(&event_loop, 2), Admission::Refused);
    assert_eq!(admission(&event_loop, 3), Admission::Waiting);
}

/// Lets 1999 ms pass, one less than a connection may stay on the reserve, and checks the reserve.
fn wait_1999_millis(event_loop: &mut EventLoop<Probe>) {
    pass(event_loop, 1999);
    event_loop.serve_reserve();
}

#[test]
fn a_silent_connection_stays_on_the_reserve_for_2_seconds() {
    let (mut event_loop, streams, _stop) = full(1, 2);
    make_busy(&mut event_loop, 0, &streams[0]);
    wait_1999_millis(&mut event_loop);
    assert!(event_loop.clients.contains(1));
    pass(&mut event_loop, 1);
    event_loop.serve_reserve();
    assert!(!event_loop.clients.contains(1) && event_loop.reserve.is_empty());
}

#[test]
fn a_connection_is_not_closed_before_its_requests_are_answered() {
    type Prepare = fn(&mut EventLoop<Probe>, &TcpStream);
    // A request that waits, one in the kernel, a delayed reply, and a turn that is due.
    let cases: [(Prepare, &str); 4] = [
        (
            |event_loop, stream| {
                send(event_loop, 1, stream, PROBE);
                take_turns(event_loop);
            },
            "503",
        ),
        (
            |event_loop, stream| deliver(event_loop, 1, stream, &request("/open")),
            "200",
        ),
        (
            |event_loop, stream| ask_with_slot(event_loop, 1, stream, "/delayed"),
            "503",
        ),
        (|event_loop, _| event_loop.queue_turn(1), ""),
    ];
    for (index, (prepare, status)) in cases.into_iter().enumerate() {
        let (mut event_loop, streams, _stop) = full(1, 2);
        make_busy(&mut event_loop, 0, &streams[0]);
        wait_1999_millis(&mut event_loop);
        prepare(&mut event_loop, &streams[1]);
        pass(&mut event_loop, 1);
        event_loop.serve_reserve();
        assert!(event_loop.clients.contains(1), "case {index}");
        take_turns(&mut event_loop);
        if !status.is_empty() {
            let mut received = vec![0; 16 * 1024];
            let count = (&streams[1]).read(&mut received).unwrap();
            let received = String::from_utf8_lossy(&received[..count]);
            let status = format!("HTTP/1.1 {status} ");
            assert!(received.starts_with(&status), "case {index}: {received}");
        }
        // Then it is closed, but not while it is queued.
        event_loop.queue_turn(1);
        event_loop.serve_reserve();
        assert!(event_loop.clients.contains(1), "case {index}");
        take_turns(&mut event_loop);
        event_loop.serve_reserve();
        assert!(!event_loop.clients.contains(1), "case {index}");
    }
}

#[test]
fn a_request_that_waits_for_memory_is_not_lost_when_the_time_on_the_reserve_ends() {
    let (mut event_loop, streams, _stop) = full(1, 2);
    make_busy(&mut event_loop, 1, &streams[1]);
    event_loop.shared.scarce_from = 0;
    send(&mut event_loop, 1, &streams[1], &request("/open"));
    take_turns(&mut event_loop);
    pass(&mut event_loop, 2000);
    event_loop.serve_reserve();
    assert!(event_loop.clients.contains(1));
}

#[test]
fn a_connection_that_cannot_be_answered_is_closed_after_10_more_checks() {
    let (mut event_loop, streams, _stop) = full(1, 2);
    make_busy(&mut event_loop, 0, &streams[0]);
    // The client does not read, and has sent another request.
    make_busy(&mut event_loop, 1, &streams[1]);
    wait_1999_millis(&mut event_loop);
    deliver(&mut event_loop, 1, &streams[1], PROBE);
    event_loop.next_reserve_check = NOW.get();
    for checks in 0..=10 {
        pass(&mut event_loop, if checks == 0 { 1 } else { 10 });
        event_loop.serve_reserve();
        assert!(event_loop.clients.contains(1), "after {checks} checks");
        // Only due checks count.
        event_loop.serve_reserve();
        take_turns(&mut event_loop);
    }
    check(&mut event_loop);
    assert!(!event_loop.clients.contains(1));
}

#[test]
fn only_admitted_connections_that_are_still_idle_are_evicted() {
    let (mut event_loop, streams, _stop) = full(2, 3);
    assert!(!event_loop.evict());
    pass(&mut event_loop, 100);
    // A search finds both. Then the first becomes busy, and the second has sent something.
    let now = event_loop.shared.now;
    let admitted = event_loop.clients.iter().filter(|(key, _)| *key < 2);
    event_loop.eviction.search(admitted, now);
    make_busy(&mut event_loop, 0, &streams[0]);
    deliver(&mut event_loop, 1, &streams[1], PROBE);
    assert!(!event_loop.evict());
    assert_eq!(event_loop.clients.len(), 3);
    assert_eq!(event_loop.queue.pop().map(|(key, _)| key), Some(1));
    let before = event_loop.shared.service.ended;
    event_loop.give_turn(1, TURN_TIME);
    assert_eq!(event_loop.shared.service.ended - before, 1);
    // The one on the reserve has been idle for long, but only the second has a slot.
    pass(&mut event_loop, 100);
    assert!(event_loop.evict());
    assert!(!event_loop.clients.contains(1) && event_loop.clients.contains(2));
}

#[test]
fn empty_lines_do_not_keep_a_connection() {
    let many = "\n".repeat(1300);
    for (bytes, is_evicted) in [
        ("\r\n\n", true),
        ("\r", true),
        ("\nG", false),
        (&many, true),
        (&(many.clone() + PROBE), false),
    ] {
        let (mut event_loop, streams, _stop) = full(1, 1);
        // A read takes 1 KiB.
        event_loop.shared.scarce_from = 0;
        pass(&mut event_loop, 100);
        deliver(&mut event_loop, 0, &streams[0], bytes);
        assert_eq!(event_loop.evict(), is_evicted, "{bytes:?}");
    }
}

#[test]
fn a_candidate_without_a_slot_is_skipped() {
    let (mut event_loop, _streams, _stop) = full(2, 2);
    pass(&mut event_loop, 100);
    let now = event_loop.shared.now;
    event_loop.eviction.search(event_loop.clients.iter(), now);
    event_loop.clients[0].set_admission(Admission::Waiting);
    assert!(event_loop.evict());
    assert!(event_loop.clients.contains(0) && !event_loop.clients.contains(1));
}

/// How many times a test looks for an ACK, once a millisecond. The client's kernel sends it after at most
/// 200 ms, unless the client must read first. Checks are counted instead of time, because on a busy machine
/// the test may not run for a while.
const ACK_CHECKS: u32 = 500;

#[test]
fn an_eviction_gives_up_after_16_clients_that_still_read_their_last_response() {
    for (readers, evicts) in [(15, true), (16, false)] {
        let (mut event_loop, streams, _stop) = full(20, readers + 1);
        // Pages fill the clients' receive buffers, and then a part of the send buffers.
        let mut unfilled: Vec<usize> = (0..readers).collect();
        while !unfilled.is_empty() {
            for key in &unfilled {
                send(&mut event_loop, *key, &streams[*key], MEDIUM);
                take_turns(&mut event_loop);
            }
            let is_reading = |key: &usize| event_loop.clients[*key].is_reading_last_response();
            for _ in 0..ACK_CHECKS {
                if unfilled.iter().any(is_reading) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            unfilled.retain(|key| !is_reading(key));
        }
        for key in 0..readers {
            assert!(matches!(
                event_loop.clients[key].evictable(),
                Some(Evictable::Idle(_))
            ));
        }
        // The last one has been idle for the shortest time.
        pass(&mut event_loop, 1);
        send(&mut event_loop, readers, &streams[readers], PROBE);
        take_turns(&mut event_loop);
        pass(&mut event_loop, 100);
        assert_eq!(event_loop.evict(), evicts);
        assert_eq!(event_loop.clients.contains(readers), !evicts);
        assert!((0..readers).all(|key| event_loop.clients.contains(key)));
    }
}

#[test]
fn a_connection_on_the_reserve_makes_room_after_100_milliseconds_without_a_request() {
    type Prepare = fn(&mut EventLoop<Probe>, &TcpStream);
    let cases: [Prepare; 3] = [
        // Silent since it was accepted.
        |_, _| {},
        // A part of a request.
        |event_loop, stream| deliver(event_loop, 1, stream, "GET /op"),
        // A response that the client does not read.
        |event_loop, stream| make_busy(event_loop, 1, stream),
    ];
    for (index, prepare) in cases.into_iter().enumerate() {
        let (mut event_loop, streams, _stop) = full(1, 2);
        prepare(&mut event_loop, &streams[1]);
        pass(&mut event_loop, 99);
        assert!(!event_loop.evict_from_reserve(), "case {index}");
        pass(&mut event_loop, 1);
        assert!(event_loop.evict_from_reserve(), "case {index}");
        assert!(!event_loop.clients.contains(1) && event_loop.clients.contains(0));
        assert!(!event_loop.evict_from_reserve());
    }
    // A client whose turn has not come yet may have read its response.
    let (mut event_loop, streams, _stop) = full(1, 2);
    make_busy(&mut event_loop, 1, &streams[1]);
    pass(&mut event_loop, 100);
    event_loop.queue_turn(1);
    assert!(!event_loop.evict_from_reserve());
    // A request that has just arrived is answered first.
    let (mut event_loop, streams, _stop) = full(1, 2);
    pass(&mut event_loop, 100);
    deliver(&mut event_loop, 1, &streams[1], PROBE);
    assert!(!event_loop.evict_from_reserve());
    assert!(event_loop.clients.contains(1) && !event_loop.queue.is_empty());
}

#[test]
fn a_half_closed_connection_on_the_reserve_makes_room_100_milliseconds_after_that() {
    let (mut event_loop, streams, _stop) = full(1, 2);
    ask_with_slot(&mut event_loop, 1, &streams[1], "/delayed");
    pass(&mut event_loop, 50);
    event_loop.handle_event(1, HALF_CLOSED);
    pass(&mut event_loop, 99);
    assert!(!event_loop.evict_from_reserve());
    pass(&mut event_loop, 1);
    assert!(event_loop.evict_from_reserve());
    assert!(!event_loop.clients.contains(1));
}
