//! Which client gets the next turn: start-time fair queueing of the time that clients use.
//!
//! If clients were served first come, first served, a new client would wait for one turn of each client
//! before it, so its wait would grow with the number of busy clients. Here each client has a finish
//! tag: the virtual time at which its use so far would have ended if all clients had an equal share. A
//! client whose tag is at most half a turn ahead of the virtual time is a light user; all others are
//! heavy users.
//!
//! Light users go first. A client that was idle or has just connected has used nothing lately, so it is
//! served before any number of clients that never stop sending requests. Among heavy users, the one
//! with the lowest finish tag is next. They get every other turn even if new clients never stop
//! connecting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// How far ahead of the virtual time the finish tag of a light user can be: half a turn. A client that
/// uses whole turns is further ahead.
const LIGHT_USE_NANOS: u64 = 25_000;
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
    /// The last turn was that of a light user.
    was_light: bool,
    /// The highest finish tag with which a turn has begun, in nanoseconds.
    virtual_time: u64,
}

impl FairQueue {
    /// Adds a client.
    pub fn push(&mut self, key: usize, finish_tag: u64) {
        if finish_tag <= self.virtual_time + LIGHT_USE_NANOS {
            self.light.push_back(key);
        } else {
            self.heavy.push(Reverse((finish_tag, key)));
        }
    }

    /// Removes the client whose turn is next.
    pub fn pop(&mut self) -> Option<usize> {
        // A new client is a light user until its first turn. If light users always went first, heavy
        // users would wait forever while new clients never stop connecting.
        if (!self.was_light || self.heavy.is_empty())
            && let Some(key) = self.light.pop_front()
        {
            self.was_light = true;
            return Some(key);
        }
        self.was_light = false;
        let Reverse((finish_tag, key)) = self.heavy.pop()?;
        self.virtual_time = self.virtual_time.max(finish_tag);
        Some(key)
    }

    /// Returns a client's finish tag after a turn that took the time `used`. A client does not save up
    /// time that it has not used.
    pub fn charge(&self, finish_tag: u64, used: Duration) -> u64 {
        let used = u64::try_from(used.as_nanos()).unwrap_or(MAX_CHARGE_NANOS);
        finish_tag.max(self.virtual_time) + used.min(MAX_CHARGE_NANOS)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(50);

    /// Gives a turn to the next client, and queues it again.
    fn take_turn(queue: &mut FairQueue, tags: &mut [u64]) -> usize {
        let key = queue.pop().unwrap();
        tags[key] = queue.charge(tags[key], TURN);
        queue.push(key, tags[key]);
        key
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
            turns[take_turn(&mut queue, &mut tags)] += 1;
        }
        assert!(
            turns.iter().all(|turns| (9..=11).contains(turns)),
            "{turns:?}"
        );
    }

    #[test]
    fn a_new_client_gets_its_turn_before_any_number_of_busy_clients() {
        let mut queue = FairQueue::default();
        let mut tags = [0; 1000];
        for key in 0..1000 {
            queue.push(key, 0);
        }
        for turns in [2500, 2700, 40_000] {
            for _ in 0..turns {
                take_turn(&mut queue, &mut tags);
            }
            queue.push(1000, 0);
            assert_eq!(queue.pop(), Some(1000));
        }
    }

    /// Each new client has one turn for its request, and one in which its connection is closed.
    #[test]
    fn a_busy_client_gets_turns_while_new_clients_never_stop_connecting() {
        let mut queue = FairQueue::default();
        let mut tags = vec![0; 10_000];
        let mut turns = 0;
        queue.push(0, 0);
        for new_client in 1..tags.len() {
            queue.push(new_client, 0);
            for _ in 0..2 {
                let Some(key) = queue.pop() else { break };
                let is_first = tags[key] == 0;
                tags[key] = queue.charge(tags[key], TURN);
                turns += u32::from(key == 0);
                if is_first || key == 0 {
                    queue.push(key, tags[key]);
                }
            }
        }
        assert!(turns > 100, "{turns}");
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
            let key = queue.pop().unwrap();
            tags[key] = queue.charge(tags[key], TURN);
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
}
