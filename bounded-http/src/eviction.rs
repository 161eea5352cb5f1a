//! Eviction for new connections: how many there may be, and which one goes when there are too many.
//!
//! At the limit, connections turn over: some responses close theirs, and connections that have been
//! idle for a moment are closed. No client that has sent a request is closed to make room, since
//! the request would be lost. Slow clients can therefore hold every place. A few connections above
//! the limit are the reserve, on which urgent requests are answered, and all others once there is
//! a place, or with a 503.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::client::{Client, Evictable};
use crate::socket::Stream;

/// Connections above the limit.
pub const RESERVE_SIZE: usize = 16;
/// How long a connection must be idle before it is closed to make room. A busy client that reuses
/// connections asks again within less, so that it is not closed between two requests.
pub const MIN_IDLE_TIME: Duration = Duration::from_millis(100);
/// The same for a connection that is half-closed: most clients close their side within a round trip.
pub const MIN_HALF_CLOSED_TIME: Duration = Duration::from_millis(20);
/// At how many checks_in_wait, one every [`SEARCH_INTERVAL`], a request on the reserve waits for a place before
/// it gets a 503. That is longer than it takes until a connection that has just become idle can be
/// closed. Looks are counted, not time, since nobody has had a chance to make room while a busy machine
/// did not run this process.
pub const MAX_CHECKS_IN_WAIT: u32 = 20;
/// How long a connection on the reserve may take in all. It would otherwise be held by clients that
/// do not read.
pub const MAX_TIME_ON_RESERVE: Duration = Duration::from_secs(2);
/// At how many checks_in_wait a connection whose time on the reserve is over is spared, so that the request that
/// it sent before is answered.
pub const MAX_CHECKS_OVERDUE: u32 = 10;
/// How often one response may close its connection to make room. Each costs some 40 µs of CPU time
/// for the next connection, so this is a twelfth of it at the most; 400 clients on 200 places wait
/// for 100 ms.
const TURNOVER_INTERVAL: Duration = Duration::from_micros(500);
/// The most responses that close their connections within one wake-up.
const MAX_TURNOVERS: usize = 64;
/// How many idle clients may be found to be reading before no more are looked at for now. Each look asks
/// the kernel, and all clients may be slow readers.
pub const MAX_READERS_SKIPPED: usize = 16;
/// How often the connections are searched for some that can go. A search checks_in_wait at every client.
pub const SEARCH_INTERVAL: Duration = Duration::from_millis(10);

/// The clients whose connections can go at `now`, in the order in which they do.
pub fn candidates<'a, S: Stream + 'a, M: 'a>(
    clients: impl Iterator<Item = (usize, &'a Client<S, M>)>,
    now: Instant,
) -> Vec<(Evictable, usize)> {
    let mut candidates: Vec<(Evictable, usize)> = clients
        .filter_map(|(key, client)| Some((client.evictable()?, key)))
        .filter(|(evictable, _)| match evictable {
            Evictable::HalfClosed(since) => *since + MIN_HALF_CLOSED_TIME <= now,
            Evictable::Idle(since) => *since + MIN_IDLE_TIME <= now,
        })
        .collect();
    candidates.sort_unstable();
    candidates
}

/// Chooses the connections that go.
pub struct Eviction {
    /// Connections that can go, in the order in which they do, as of the last search.
    candidates: VecDeque<(Evictable, usize)>,
    /// When the next search may be.
    next_search: Instant,
    /// Up to when turnovers have been granted.
    turnovers_until: Instant,
}

impl Eviction {
    pub fn new(now: Instant) -> Self {
        Self {
            candidates: VecDeque::new(),
            next_search: now,
            turnovers_until: now,
        }
    }

    /// The next connection that can go, as of the last search; the caller finds out whether it still
    /// can.
    pub fn next_candidate(&mut self) -> Option<(Evictable, usize)> {
        self.candidates.pop_front()
    }

    /// Searches for connections that can go, unless that has just been done. The cost is spread over
    /// all connections that a search finds, so that it does not grow with their number.
    pub fn search<'a, S: Stream + 'a, M: 'a>(
        &mut self,
        clients: impl Iterator<Item = (usize, &'a Client<S, M>)>,
        now: Instant,
    ) {
        if now < self.next_search {
            return;
        }
        self.next_search = now + SEARCH_INTERVAL;
        self.candidates = candidates(clients, now).into();
    }

    /// Grants turnovers for the time since the last call, on top of those that are left.
    pub fn grant_turnovers(&mut self, left: usize, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(self.turnovers_until);
        let granted = elapsed.as_micros() / TURNOVER_INTERVAL.as_micros();
        if granted == 0 {
            return left;
        }
        self.turnovers_until = now;
        let granted = usize::try_from(granted).unwrap_or(MAX_TURNOVERS);
        left.saturating_add(granted).min(MAX_TURNOVERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turnovers_are_granted_by_time_and_not_saved_up() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let mut eviction = Eviction::new(start);
        assert_eq!(eviction.grant_turnovers(0, at(499)), 0);
        assert_eq!(eviction.grant_turnovers(0, at(500)), 1);
        assert_eq!(eviction.grant_turnovers(1, at(2500)), 5);
        assert_eq!(eviction.grant_turnovers(0, at(2500)), 0);
        assert_eq!(eviction.grant_turnovers(60, at(1_000_000)), MAX_TURNOVERS);
    }
}
