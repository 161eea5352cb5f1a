//! The table "The event loop's bounds": what a hostile client gets, what it costs, and that others
//! are served meanwhile. A real process, real sockets, and crowds of them.

mod bounds;
mod delayed_replies;
mod many_connections;
#[path = "../support/request_heads.rs"]
mod request_heads;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;

use std::time::{Duration, Instant};

use support::Service;

/// Asserts that somebody else is served meanwhile, within 100 ms by the median of many requests: a
/// loaded machine may delay a few of them, a held-up loop all.
fn others_are_served(service: &Service) {
    let mut other = service.connect();
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(other.ask("GET", "/healthz").status, 200);
            started.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(100), "{times:?}");
}

/// The most memory that the process ever had resident, in MiB.
fn peak_resident(service: &Service) -> u64 {
    service.status("VmHWM") / 1024
}
