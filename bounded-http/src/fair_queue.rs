//! Whose turn is next: start-time fair queueing of the time that clients take.
//!
//! In a queue that is first come, first served, a new client waits for one turn of each client
//! before it, so its wait grows with the number of busy clients. Here each client has a finish tag:
//! the virtual time at which its use so far would have ended if all clients had an equal share.
//! A client with a light use goes first; of all others, the one with the least finish tag does. A
//! client that was idle, or has just connected, has used nothing lately, so it is served before any
//! number of clients that never stop asking. These get every other turn even if new clients never stop
//! connecting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// How far ahead of the virtual time a client may be and still go first: half a turn. A client that
/// takes whole turns is ahead by more.
const LIGHT_USE_NANOS: u64 = 25_000;
/// The most that one turn is charged, in nanoseconds. A turn lasts longer when the kernel takes the
/// CPU away, or when one response takes long; the client must not wait for that as many times over
/// as there are busy clients.
const MAX_CHARGE_NANOS: u64 = 200_000;

/// Clients that want a turn, by their keys.
#[derive(Default)]
pub struct FairQueue {
    /// Clients with a light use, first come, first served.
    light: VecDeque<usize>,
    /// All others, by finish tag.
    heavy: BinaryHeap<Reverse<(u64, usize)>>,
    /// The last turn was that of a client with a light use.
    was_light: bool,
    /// The greatest finish tag with which a turn has begun, in nanoseconds.
    virtual_time: u64,
}

impl FairQueue {
    /// Adds a client whose use so far ends at `finish_tag`.
    pub fn push(&mut self, key: usize, finish_tag: u64) {
        if finish_tag <= self.virtual_time + LIGHT_USE_NANOS {
            self.light.push_back(key);
        } else {
            self.heavy.push(Reverse((finish_tag, key)));
        }
    }

    /// Removes the client whose turn is next.
    pub fn pop(&mut self) -> Option<usize> {
        // A new client is a light one, and becomes a heavy one with its first turn. While new ones never
        // stop connecting, heavy ones must therefore get as many turns, or they would wait forever.
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

    /// The finish tag of a client after a turn that took so long. Time that it did not use earlier is
    /// not saved up.
    pub fn charge(&self, finish_tag: u64, used: Duration) -> u64 {
        let used = u64::try_from(used.as_nanos()).unwrap_or(MAX_CHARGE_NANOS);
        finish_tag.max(self.virtual_time) + used.min(MAX_CHARGE_NANOS)
    }

    pub fn is_empty(&self) -> bool {
        self.light.is_empty() && self.heavy.is_empty()
    }

    /// Whether a client with a light use waits.
    pub fn has_light(&self) -> bool {
        !self.light.is_empty()
    }

    /// Returns memory that a number of clients which is no longer here has needed.
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

    /// Takes a turn of the next client, which then wants another one.
    fn take_turn(queue: &mut FairQueue, tags: &mut [u64]) -> usize {
        let key = queue.pop().unwrap();
        tags[key] = queue.charge(tags[key], TURN);
        queue.push(key, tags[key]);
        key
    }

    #[test]
    fn busy_clients_take_turns() {
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
    fn a_new_client_goes_before_any_number_of_busy_ones() {
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

    /// Each of them has a turn with its request, and one in which it is closed.
    #[test]
    fn a_busy_client_gets_turns_while_new_ones_never_stop_connecting() {
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
    fn a_client_that_leaves_the_queue_after_each_turn_gets_no_more_than_its_share() {
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
    fn a_turn_that_took_long_is_not_held_against_its_client_for_ever() {
        let queue = FairQueue::default();
        assert_eq!(queue.charge(0, Duration::from_secs(10)), MAX_CHARGE_NANOS);
        assert_eq!(queue.charge(7, Duration::from_nanos(3)), 10);
    }
}
