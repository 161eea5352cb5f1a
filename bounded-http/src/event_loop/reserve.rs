//! Which connections get a slot, and what happens to those on the reserve: see the module `eviction`.

use std::time::Instant;

use mio::Poll;

use super::EventLoop;
use crate::client::{Admission, Evictable};
use crate::eviction::{
    MAX_CHECKS_IN_WAIT, MAX_CHECKS_OVERDUE, MAX_READERS_SKIPPED, MAX_TIME_ON_RESERVE,
    MIN_IDLE_TIME, SEARCH_INTERVAL,
};
use crate::service::Service;

/// A connection on the reserve.
pub(super) struct Reserved {
    pub key: usize,
    accepted_at: Instant,
    /// The number of checks that found one of its requests waiting for a slot.
    checks_in_wait: u32,
    /// The number of checks since its time on the reserve ended. `None` before that.
    checks_overdue: Option<u32>,
}

impl Reserved {
    /// Creates the state of a connection that was accepted at `now`.
    pub fn new(key: usize, now: Instant) -> Self {
        Self {
            key,
            accepted_at: now,
            checks_in_wait: 0,
            checks_overdue: None,
        }
    }
}

impl<V: Service> EventLoop<V> {
    /// Returns whether fewer connections than the limit allows are open, not counting the reserve, and
    /// descriptors are left for one more. A spare descriptor is missing because a connection on the reserve
    /// uses it. If every connection on the reserve uses one, no descriptor is left for a slot.
    pub(super) fn has_free_slot(&self) -> bool {
        self.clients.len() - self.reserve.len() < self.max_clients
            && self.max_spare - self.spare.len() < self.reserve.len().max(1)
    }

    /// Opens the spare descriptors that are missing, as far as the system allows.
    pub(super) fn open_spare(&mut self) {
        while self.spare.len() < self.max_spare
            && let Ok(unused) = Poll::new()
        {
            self.spare.push(unused);
        }
    }

    /// Serves each connection on the reserve. While connections wait and every slot is taken, grants turnovers.
    pub(super) fn serve_reserve(&mut self) {
        self.open_spare();
        let now = self.shared.now;
        let is_check_due = self.next_reserve_check <= now;
        if is_check_due {
            self.next_reserve_check = now + SEARCH_INTERVAL;
        }
        let mut index = 0;
        while index < self.reserve.len() {
            // When a connection leaves the reserve, the next one has its index.
            if self.serve_reserved(index, is_check_due) {
                index += 1;
            }
        }
        let is_full = !self.has_free_slot();
        self.shared.turnovers = if is_full && (self.may_accept || !self.reserve.is_empty()) {
            let left = self.shared.turnovers;
            self.eviction.grant_turnovers(left, now)
        } else {
            0
        };
    }

    /// Gives a connection on the reserve a slot if one is free, or if its request waits and another
    /// connection can be evicted. Refuses a request that has waited too long, and closes a connection
    /// that has stayed too long. Returns whether it is still on the reserve.
    fn serve_reserved(&mut self, index: usize, is_check_due: bool) -> bool {
        let Reserved {
            key, accepted_at, ..
        } = self.reserve[index];
        let waits = self.clients[key].waits_for_admission(&self.shared);
        if self.has_free_slot() || (waits && self.evict()) {
            self.reserve.remove(index);
            self.clients[key].set_admission(Admission::Admitted);
            self.queue_turn(key);
            return false;
        }
        let is_over = accepted_at + MAX_TIME_ON_RESERVE <= self.shared.now;
        if is_over && self.ends_on_reserve(index, is_check_due) {
            self.close(key);
            return false;
        }
        if waits {
            let checks_in_wait = &mut self.reserve[index].checks_in_wait;
            *checks_in_wait += u32::from(is_check_due);
            if self.is_refusing || *checks_in_wait > MAX_CHECKS_IN_WAIT || is_over {
                self.is_refusing = true;
                self.clients[key].set_admission(Admission::Refused);
                self.queue_turn(key);
            }
        }
        true
    }

    /// Returns whether a connection whose time on the reserve is over can be closed. Requests received
    /// by then are answered first, unless that takes more than [`MAX_CHECKS_OVERDUE`] checks. A delayed
    /// reply becomes a 503.
    fn ends_on_reserve(&mut self, index: usize, is_check_due: bool) -> bool {
        let Reserved {
            key,
            checks_overdue,
            ..
        } = self.reserve[index];
        let client = &mut self.clients[key];
        if let Some(checks) = checks_overdue {
            self.reserve[index].checks_overdue = Some(checks + u32::from(is_check_due));
            return checks >= MAX_CHECKS_OVERDUE
                || (client.evictable().is_some() && !client.is_queued);
        }
        let is_delayed = client.refuse_delayed(self.shared.now);
        let has_unread = !is_delayed && client.read_ahead(&mut self.shared);
        // A request waits for a slot or, if it is urgent and memory is full, for memory.
        let has_request = client.has_next_request();
        let has_nothing_to_answer = !(has_unread || has_request || is_delayed || client.is_queued);
        self.reserve[index].checks_overdue = Some(0);
        self.queue_turn(key);
        has_nothing_to_answer
    }

    /// Closes the best candidate for eviction, if there is one. Returns whether there was.
    pub(super) fn evict(&mut self) -> bool {
        let mut readers_skipped = 0;
        // First the candidates that the last search left, then those of a new search.
        for _ in 0..2 {
            while let Some((evictable, key)) = self.eviction.next_candidate() {
                let Some(client) = self.clients.get_mut(key) else {
                    continue;
                };
                if client.evictable() != Some(evictable)
                    || client.admission() != Admission::Admitted
                {
                    continue;
                }
                if client.read_ahead(&mut self.shared) {
                    self.queue_turn(key);
                    continue;
                }
                if client.is_reading_last_response() {
                    readers_skipped += 1;
                    if readers_skipped == MAX_READERS_SKIPPED {
                        return false;
                    }
                    continue;
                }
                self.close(key);
                return true;
            }
            let admitted = (self.clients.iter())
                .filter(|(_, client)| client.admission() == Admission::Admitted);
            self.eviction.search(admitted, self.shared.now);
        }
        false
    }

    /// Closes a connection on the reserve, and returns whether there was one to close. It has been accepted at
    /// least [`MIN_IDLE_TIME`] ago and has no request to answer, or for that time, it has been half-closed or
    /// lingering, its responses have made no progress, or it has stayed open without one on purpose. A part of a
    /// request does not keep a connection on the reserve.
    pub(super) fn evict_from_reserve(&mut self) -> bool {
        let now = self.shared.now;
        for index in 0..self.reserve.len() {
            let Reserved {
                key, accepted_at, ..
            } = self.reserve[index];
            let client = &mut self.clients[key];
            let since = match client.evictable() {
                Some(Evictable::Idle(_)) => Some(accepted_at),
                Some(Evictable::HalfClosed(since)) => Some(since),
                // It may have read its responses, which the next turn finds.
                None if client.is_queued => None,
                None => client.stalled_since(),
            };
            if since.is_none_or(|since| now < since + MIN_IDLE_TIME) {
                continue;
            }
            if client.read_ahead(&mut self.shared) && client.has_next_request() {
                self.queue_turn(key);
                continue;
            }
            self.close(key);
            return true;
        }
        false
    }
}
