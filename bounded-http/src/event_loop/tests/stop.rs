//! Tests of the shutdown.

use super::*;

#[test]
fn the_steps_of_a_shutdown_are_due_at_fixed_times() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    event_loop.grace = Duration::from_millis(900);
    let streams = accepted(&mut event_loop, address, 1);
    send(&mut event_loop, 0, &streams[0], &request("/delayed"));
    take_turns(&mut event_loop);
    let start = NOW.get();
    let due_millis = |event_loop: &EventLoop<Probe>| {
        let stop = event_loop.stop.as_ref().expect("it was told to stop");
        let due = event_loop.next_stop_step(stop);
        due.duration_since(start).as_millis()
    };
    // Nothing happens before the signal.
    event_loop.advance_stop();
    assert!(!event_loop.has_ended() && event_loop.listener.is_some());
    event_loop.stop();
    assert!(event_loop.shared.is_stopping && !event_loop.queue.is_empty());
    assert_eq!(due_millis(&event_loop), 200);
    // A second signal changes nothing.
    pass(&mut event_loop, 199);
    event_loop.stop();
    event_loop.advance_stop();
    assert!(event_loop.listener.is_some());
    assert_eq!(due_millis(&event_loop), 200);
    pass(&mut event_loop, 1);
    event_loop.advance_stop();
    assert!(event_loop.listener.is_none() && !event_loop.has_ended());
    assert_eq!(due_millis(&event_loop), 900);
    pass(&mut event_loop, 699);
    event_loop.advance_stop();
    assert!(!event_loop.shared.is_grace_over);
    take_turns(&mut event_loop);
    event_loop.shared.work_queue.push_back(0);
    pass(&mut event_loop, 1);
    event_loop.advance_stop();
    assert!(event_loop.shared.is_grace_over && event_loop.shared.work_queue.is_empty());
    assert!(!event_loop.queue.is_empty(), "for its 503");
    let closes_from = start + Duration::from_millis(1150);
    assert_eq!(event_loop.shared.closes_from, Some(closes_from));
    assert_eq!(due_millis(&event_loop), 1400);
    // This happens once.
    pass(&mut event_loop, 499);
    event_loop.advance_stop();
    assert_eq!(event_loop.shared.closes_from, Some(closes_from));
    assert_eq!(due_millis(&event_loop), 1400);
    assert!(!event_loop.has_ended());
    pass(&mut event_loop, 1);
    assert!(event_loop.has_ended());
}

#[test]
fn the_grace_period_may_end_before_the_listener_is_closed() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    event_loop.grace = Duration::from_millis(50);
    let _streams = accepted(&mut event_loop, address, 1);
    event_loop.stop();
    for (millis, next) in [(0, 50), (50, 150), (150, 350)] {
        pass(&mut event_loop, millis);
        event_loop.advance_stop();
        let stop = event_loop.stop.as_ref().expect("it was told to stop");
        let next_step = event_loop.next_stop_step(stop) - NOW.get();
        assert_eq!(next_step, Duration::from_millis(next));
    }
}

#[test]
fn a_server_without_clients_ends_at_once() {
    let (mut event_loop, _, _stop) = timed(Probe::default());
    event_loop.stop();
    assert!(!event_loop.has_ended());
    event_loop.advance_stop();
    assert!(event_loop.listener.is_none() && event_loop.has_ended());
}

#[test]
fn connections_in_the_backlog_are_accepted_before_the_listener_is_closed() {
    let (mut event_loop, address, _stop) = timed(Probe::default());
    event_loop.max_clients = 1;
    let first = accepted(&mut event_loop, address, 1);
    let _others = waiting(&mut event_loop, address, 2);
    event_loop.stop();
    event_loop.accept_paused_until = Some(NOW.get() + Duration::from_secs(9));
    pass(&mut event_loop, 200);
    event_loop.advance_stop();
    assert_eq!(event_loop.clients.len(), 3);
    assert!(!event_loop.may_accept && !event_loop.has_ended());
    drop(first);
    for key in 0..3 {
        event_loop.close(key);
    }
    assert!(event_loop.has_ended());
}
