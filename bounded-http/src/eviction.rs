//! Which connections are closed when there are too many.
//!
//! At the connection limit, connections turn over: some responses close theirs, and connections that
//! are idle, or whose client has closed its sending side, are evicted, that is, closed to make room. No
//! other connection is: a request on it would be lost. Each connection that the limit allows is a slot,
//! so clients that read slowly can hold every slot.
//!
//! A few connections above the limit are the reserve. Urgent requests on it are answered at once. Any
//! other request waits for a slot, and gets a 503 if none becomes free.
//!
//! The same happens when something else uses the descriptors before the limit is reached, because the
//! reserve has descriptors of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::client::{Client, Evictable};
use crate::socket::Stream;

/// The number of connections above the limit.
pub const RESERVE_SIZE: usize = 16;
/// How long a connection must be idle before it can be evicted. Busy clients that reuse connections
/// send the next request earlier than that, so they keep theirs.
pub const MIN_IDLE_TIME: Duration = Duration::from_millis(100);
/// The same for a half-closed connection. Most clients close their end within a round trip.
pub const MIN_HALF_CLOSED_TIME: Duration = Duration::from_millis(20);
/// How many checks of the reserve, one every [`SEARCH_INTERVAL`], may find a request waiting for a slot
/// before it gets a 503. That takes longer than [`MIN_IDLE_TIME`], so a connection that has just become
/// idle can be evicted for it. Checks are counted instead of time, because on a busy machine the
/// process may not run for a while, and then no connection could make room.
pub const MAX_CHECKS_IN_WAIT: u32 = 20;
/// How long a connection may stay on the reserve. Without this, clients that do not read could fill it.
pub const MAX_TIME_ON_RESERVE: Duration = Duration::from_secs(2);
/// How many checks of the reserve spare a connection whose time on it is over, so that a request it
/// sent before is answered.
pub const MAX_CHECKS_OVERDUE: u32 = 10;
/// A turnover is a response that closes its connection to make room. One is granted per interval, because
/// the next connection costs CPU time. With 400 clients on 200 slots, a client waits for 200 intervals.
const TURNOVER_INTERVAL: Duration = Duration::from_micros(500);
/// The maximum number of turnovers granted at a time.
const MAX_TURNOVERS: usize = 64;
/// An eviction gives up after this many candidates that still read their last response. Each costs a
/// system call, and all clients may be slow readers.
pub const MAX_READERS_SKIPPED: usize = 16;
/// The minimum time between two searches for candidates, and between two checks of the reserve. A
/// search visits every client.
pub const SEARCH_INTERVAL: Duration = Duration::from_millis(10);

/// Clients whose connections can be evicted, with their keys. The first to pop should be evicted first.
pub type Candidates = BinaryHeap<Reverse<(Evictable, usize)>>;

/// Returns the clients whose connections can be evicted at `now`.
pub fn candidates<'a, S: Stream + 'a, M: 'a>(
    clients: impl Iterator<Item = (usize, &'a Client<S, M>)>,
    now: Instant,
) -> Candidates {
    clients
        .filter_map(|(key, client)| Some((client.evictable()?, key)))
        .filter(|(evictable, _)| match evictable {
            Evictable::HalfClosed(since) => *since + MIN_HALF_CLOSED_TIME <= now,
            Evictable::Idle(since) => *since + MIN_IDLE_TIME <= now,
        })
        .map(Reverse)
        .collect()
}

/// Chooses which connections are evicted, and how many responses close theirs.
pub struct Eviction {
    /// The candidates that the last search found and that have not been tried yet.
    candidates: Candidates,
    /// The earliest time of the next search.
    next_search: Instant,
    /// The time up to which turnovers have been granted.
    turnovers_until: Instant,
}

impl Eviction {
    /// Creates the state at the start: no candidates, and no turnovers granted.
    pub fn new(now: Instant) -> Self {
        Self {
            candidates: Candidates::new(),
            next_search: now,
            turnovers_until: now,
        }
    }

    /// Returns the next candidate that the last search found. The caller must check that it is still
    /// one.
    pub fn next_candidate(&mut self) -> Option<(Evictable, usize)> {
        self.candidates.pop().map(|Reverse(candidate)| candidate)
    }

    /// Searches for candidates, unless it did so less than [`SEARCH_INTERVAL`] ago.
    pub fn search<'a, S: Stream + 'a, M: 'a>(
        &mut self,
        clients: impl Iterator<Item = (usize, &'a Client<S, M>)>,
        now: Instant,
    ) {
        if now < self.next_search {
            return;
        }
        self.next_search = now + SEARCH_INTERVAL;
        self.candidates = candidates(clients, now);
    }

    /// Grants turnovers for the time since the last call. Returns how many there are, including those
    /// that are left from before.
    pub fn grant_turnovers(&mut self, left: usize, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(self.turnovers_until);
        let granted = elapsed.as_micros() / TURNOVER_INTERVAL.as_micros();
        let granted = u32::try_from(granted).unwrap_or(u32::MAX);
        // The rest of an interval counts the next time.
        self.turnovers_until += TURNOVER_INTERVAL * granted;
        left.saturating_add(granted as usize).min(MAX_TURNOVERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Driver;

    #[test]
    fn turnovers_are_granted_by_time_and_not_saved_up() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let mut eviction = Eviction::new(start);
        assert_eq!(eviction.grant_turnovers(0, at(499)), 0);
        assert_eq!(eviction.grant_turnovers(0, at(500)), 1);
        assert_eq!(eviction.grant_turnovers(1, at(2500)), 5);
        assert_eq!(eviction.grant_turnovers(0, at(2500)), 0);
        // The rest of an interval is not lost.
        assert_eq!(eviction.grant_turnovers(0, at(3400)), 1);
        assert_eq!(eviction.grant_turnovers(0, at(4300)), 2);
        assert_eq!(eviction.grant_turnovers(60, at(1_000_000)), MAX_TURNOVERS);
    }

    /// Returns the keys of the candidates in the order in which they are evicted.
    fn keys(mut next: impl FnMut() -> Option<(Evictable, usize)>) -> Vec<usize> {
        std::iter::from_fn(|| next().map(|(_, key)| key)).collect()
    }

    #[test]
    fn candidates_have_been_half_closed_for_20_milliseconds_or_idle_for_100() {
        let mut drivers = [(); 4].map(|()| Driver::new());
        // The first client connected later than the second. The last one waits for its reply.
        drivers[0].wait(Duration::from_millis(1));
        drivers[0] = Driver::new();
        let start = drivers[0].shared_now();
        drivers[2].ask("/delayed");
        drivers[2].half_close();
        drivers[3].ask("/delayed");
        let clients = || drivers.iter().map(|driver| &driver.client).enumerate();
        let half_closed = drivers[2].client.evictable();
        assert!(matches!(half_closed, Some(Evictable::HalfClosed(_))));
        let found = |micros| {
            let now = start + Duration::from_micros(micros);
            let mut found = candidates(clients(), now);
            keys(|| found.pop().map(|Reverse(candidate)| candidate))
        };
        assert_eq!(found(18_999), []);
        assert_eq!(found(19_000), [2]);
        assert_eq!(found(98_999), [2]);
        assert_eq!(found(99_000), [2, 1]);
        assert_eq!(found(99_999), [2, 1]);
        assert_eq!(found(100_000), [2, 1, 0]);
    }

    #[test]
    fn searches_are_at_least_10_milliseconds_apart() {
        let driver = Driver::new();
        let start = driver.shared_now() + MIN_IDLE_TIME;
        let mut eviction = Eviction::new(start);
        assert_eq!(keys(|| eviction.next_candidate()), []);
        for (millis, expected) in [(0, &[0][..]), (9, &[]), (10, &[0]), (15, &[]), (20, &[0])] {
            let now = start + Duration::from_millis(millis);
            eviction.search([(0, &driver.client)].into_iter(), now);
            let found = keys(|| eviction.next_candidate());
            assert_eq!(found, expected, "after {millis} ms");
        }
    }
}
