//! Which client gets the next turn: start-time fair queueing of the time that clients use.
//!
//! If clients were served first come, first served, a new client would wait for one turn of each client
//! before it, so its wait would grow with the number of busy clients. Here each client has a finish
//! tag: the virtual time at which its use so far would have ended if all clients had an equal share. A
//! client whose tag is less than [`LIGHT_USE_NANOS`] ahead of the virtual time is a light user; all others are
//! heavy users.
//!
//! Light users go first. A client that was idle or has just connected has used nothing lately, so it is
//! served before any number of clients that never stop sending requests. Among light users, the one that
//! came first is next. Their turns are short while others of them wait: if a thousand clients connect at once,
//! the last of them waits for a turn of each. Among heavy users, the one with the lowest finish tag is next.
//! They get about a quarter of the time even if new clients never stop connecting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// How long a turn lasts: after that, no further request is answered. The first one always is.
/// `make microbench` times a turn.
pub const TURN_TIME: Duration = Duration::from_micros(50);
/// How long a turn of a light user lasts while other light users wait.
const SHORT_TURN_TIME: Duration = Duration::from_nanos(LIGHT_USE_NANOS);
/// A client whose finish tag is less than this ahead of the virtual time is a light user. It is as much as a
/// short turn, so that a client that has used a whole turn is a heavy user.
const LIGHT_USE_NANOS: u64 = 10_000;
/// How much time light users get for each unit of time that a heavy user gets.
const LIGHT_SHARE: u64 = 3;
/// The maximum that a turn is charged. A turn takes longer when the kernel preempts the process, or
/// when one response takes long. If all of that were charged, the client would have to wait until every
/// busy client had used as much.
const MAX_CHARGE_NANOS: u64 = 200_000;

/// The keys of the clients that are queued for a turn.
#[derive(Default)]
pub struct FairQueue {
    /// Light users, first come, first served.
    light: VecDeque<usize>,
    /// Heavy users, by finish tag.
    heavy: BinaryHeap<Reverse<(u64, usize)>>,
    /// The last turn was that of a light user. Set by `pop`.
    was_light: bool,
    /// The nanoseconds that light users may use before a heavy user is next. Set after the turn of a heavy
    /// user, and reduced after that of a light one.
    light_nanos_left: u64,
    /// The highest finish tag with which a turn has begun, in nanoseconds.
    virtual_time: u64,
}

impl FairQueue {
    /// Adds a client.
    pub fn push(&mut self, key: usize, finish_tag: u64) {
        if finish_tag < self.virtual_time + LIGHT_USE_NANOS {
            self.light.push_back(key);
        } else {
            self.heavy.push(Reverse((finish_tag, key)));
        }
    }

    /// Removes the client whose turn is next. Returns its key, and how long the turn lasts. A call of
    /// [`end_turn`](Self::end_turn) must follow. Otherwise the turn would not count in the shares of the time.
    pub fn pop(&mut self) -> Option<(usize, Duration)> {
        // A new client is a light user until its first turn. If light users always went first, heavy
        // users would wait forever while new clients never stop connecting.
        if (self.light_nanos_left > 0 || self.heavy.is_empty())
            && let Some(key) = self.light.pop_front()
        {
            self.was_light = true;
            // If no other light user waits for the end of the turn, it is long enough for some requests that
            // the client has pipelined. In the next turn, it may be a heavy user, which waits longer.
            let turn_time = if self.light.is_empty() {
                TURN_TIME
            } else {
                SHORT_TURN_TIME
            };
            return Some((key, turn_time));
        }
        self.was_light = false;
        let Reverse((finish_tag, key)) = self.heavy.pop()?;
        self.virtual_time = self.virtual_time.max(finish_tag);
        Some((key, TURN_TIME))
    }

    /// Records how long the turn took for which [`pop`](Self::pop) chose the client.
    pub fn end_turn(&mut self, used: Duration) {
        let used = bounded_nanos(used);
        self.light_nanos_left = if self.was_light {
            self.light_nanos_left.saturating_sub(used)
        } else {
            LIGHT_SHARE * used
        };
    }

    /// Returns a client's finish tag after a turn that took the time `used`. A client does not save up
    /// time that it has not used.
    pub fn charge(&self, finish_tag: u64, used: Duration) -> u64 {
        finish_tag.max(self.virtual_time) + bounded_nanos(used)
    }

    /// Returns whether no client is queued.
    pub fn is_empty(&self) -> bool {
        self.light.is_empty() && self.heavy.is_empty()
    }

    /// Returns whether a light user is queued.
    pub fn has_light(&self) -> bool {
        !self.light.is_empty()
    }

    /// Frees memory that a larger number of clients needed.
    pub fn shrink(&mut self, clients: usize) {
        if self.light.capacity() > 4 * clients + 64 {
            self.light.shrink_to(2 * clients);
        }
        if self.heavy.capacity() > 4 * clients + 64 {
            self.heavy.shrink_to(2 * clients);
        }
    }
}

/// Returns the nanoseconds that are charged for a turn.
fn bounded_nanos(used: Duration) -> u64 {
    let used = u64::try_from(used.as_nanos()).unwrap_or(MAX_CHARGE_NANOS);
    used.min(MAX_CHARGE_NANOS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a turn to the next client, which uses all of it. Returns its key, and how long the turn took.
    fn pop(queue: &mut FairQueue, tags: &mut [u64]) -> (usize, Duration) {
        let (key, turn_time) = queue.pop().unwrap();
        queue.end_turn(turn_time);
        tags[key] = queue.charge(tags[key], turn_time);
        (key, turn_time)
    }

    /// Gives a turn to the next client, and queues it again.
    fn take_turn(queue: &mut FairQueue, tags: &mut [u64]) -> (usize, Duration) {
        let (key, turn_time) = pop(queue, tags);
        queue.push(key, tags[key]);
        (key, turn_time)
    }

    #[test]
    fn busy_clients_get_equal_numbers_of_turns() {
        let mut queue = FairQueue::default();
        let mut tags = [0; 100];
        for key in 0..100 {
            queue.push(key, 0);
        }
        for _ in 0..1000 {
            take_turn(&mut queue, &mut tags);
        }
        let mut turns = [0; 100];
        for _ in 0..1000 {
            turns[take_turn(&mut queue, &mut tags).0] += 1;
        }
        assert!(
            turns.iter().all(|turns| (9..=11).contains(turns)),
            "{turns:?}"
        );
    }

    #[test]
    fn a_new_client_gets_its_turn_before_any_number_of_busy_clients() {
        for turns in [2500, 2700, 40_000] {
            let mut queue = FairQueue::default();
            let mut tags = [0; 1001];
            for key in 0..1000 {
                queue.push(key, 0);
            }
            for _ in 0..turns {
                take_turn(&mut queue, &mut tags);
            }
            queue.push(1000, 0);
            // At most one turn of a busy client is before it.
            let turns = [(); 2].map(|()| take_turn(&mut queue, &mut tags).0);
            assert!(turns.contains(&1000), "{turns:?}");
        }
    }

    /// A turn of each is unavoidable: nothing distinguishes the last client from the others. If those turns
    /// were as long as those of busy clients, it would wait five times as long.
    #[test]
    fn a_client_that_connects_together_with_a_thousand_others_waits_for_a_short_turn_of_each() {
        let mut queue = FairQueue::default();
        let mut tags = [0; 1001];
        for key in 0..=1000 {
            queue.push(key, 0);
        }
        let (mut waited, mut key) = (Duration::ZERO, 0);
        while key != 1000 {
            let (next, turn_time) = take_turn(&mut queue, &mut tags);
            (waited, key) = (waited + turn_time, next);
        }
        let short_turns = Duration::from_millis(10);
        // Clients that have had their first turn get a quarter of the time.
        let expected = short_turns..short_turns * 4 / 3 + Duration::from_millis(1);
        assert!(expected.contains(&waited), "{waited:?}");
    }

    /// The connection of each new client is closed in its first turn, so that its time is charged to nobody.
    #[test]
    fn a_busy_client_gets_a_quarter_of_the_time_while_new_clients_never_stop_connecting() {
        let mut queue = FairQueue::default();
        let mut tags = [0; 2];
        let mut used = [Duration::ZERO; 2];
        queue.push(0, 1_000_000);
        for _ in 0..10_000 {
            // With a second one in the queue, the turns of new clients are short.
            queue.push(1, 0);
            queue.push(1, 0);
            let (key, turn_time) = pop(&mut queue, &mut tags);
            used[key] += turn_time;
            if key == 0 {
                queue.push(0, tags[0].max(1_000_000));
            }
        }
        let share = used[0].div_duration_f64(used[0] + used[1]);
        assert!((0.24..0.26).contains(&share), "{share}");
    }

    #[test]
    fn a_client_that_pauses_after_each_turn_gets_no_more_than_its_share() {
        let mut queue = FairQueue::default();
        let mut tags = [0; 101];
        for key in 0..100 {
            queue.push(key, 0);
        }
        let (mut turns, mut is_away) = (0, true);
        for turn in 0..10_100 {
            if is_away && turn % 5 == 0 {
                queue.push(100, tags[100]);
                is_away = false;
            }
            let (key, _) = pop(&mut queue, &mut tags);
            if key == 100 {
                turns += 1;
                is_away = true;
            } else {
                queue.push(key, tags[key]);
            }
        }
        assert!(turns <= 102, "{turns}");
    }

    #[test]
    fn a_long_turn_is_charged_only_up_to_a_maximum() {
        let queue = FairQueue::default();
        assert_eq!(queue.charge(0, Duration::from_secs(10)), MAX_CHARGE_NANOS);
        assert_eq!(queue.charge(7, Duration::from_nanos(3)), 10);
    }

    #[test]
    fn a_client_counts_as_queued_until_its_turn() {
        let mut queue = FairQueue::default();
        assert!(queue.is_empty() && !queue.has_light());
        queue.push(0, 0);
        assert!(!queue.is_empty() && queue.has_light());
        assert!(queue.pop().is_some());
        assert!(queue.is_empty() && !queue.has_light());
        queue.push(0, LIGHT_USE_NANOS);
        assert!(!queue.is_empty() && !queue.has_light());
    }

    #[test]
    fn memory_is_freed_when_it_exceeds_four_times_the_number_of_clients_by_more_than_64() {
        for (capacity, expected) in [(4 * 100 + 64, 4 * 100 + 64), (4 * 100 + 65, 2 * 100)] {
            let mut queue = FairQueue {
                light: VecDeque::with_capacity(capacity),
                heavy: BinaryHeap::with_capacity(capacity),
                ..FairQueue::default()
            };
            queue.shrink(100);
            let capacities = (queue.light.capacity(), queue.heavy.capacity());
            assert_eq!(capacities, (expected, expected));
        }
    }
}
