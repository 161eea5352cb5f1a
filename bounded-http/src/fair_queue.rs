//! Whose turn is next: start-time fair queueing of the time that clients take.
//!
//! In a queue that is first come, first served, a new client waits for one turn of each client
//! before it, so its wait grows with the number of busy clients. Here each client has a finish tag:
//! the virtual time at which its use so far would have ended if all clients had an equal share.
//! A client with a light use goes first; of all others, the one with the least finish tag does. A
//! client that was idle, or has just connected, has used nothing lately, so it is served before any
//! number of clients that never stop asking. These get one turn in five even if new clients never stop
//! connecting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// How far ahead of the virtual time a client may be and still go first: half a turn. A client that
/// takes whole turns is ahead by more.
const LIGHT_USE: u64 = 25_000;
/// The most that one turn is charged, in nanoseconds. A turn lasts longer when the kernel takes the
/// CPU away, or when one response takes long; the client must not wait for that as many times over
/// as there are busy clients.
const MAX_CHARGE: u64 = 200_000;

/// After how many turns of clients with a light use one of the others gets a turn. Without it, new
/// connections that keep coming would make every client that reuses its connection wait.
const MAX_LIGHT_TURNS: u32 = 4;

/// Clients that want a turn, by their keys.
#[derive(Default)]
pub struct FairQueue {
    /// Clients with a light use, first come, first served.
    light: VecDeque<usize>,
    /// All others, by finish tag.
    heavy: BinaryHeap<Reverse<(u64, usize)>>,
    /// The turns of clients with a light use since the last turn of another one.
    light_turns: u32,
    /// The greatest finish tag with which a turn has begun, in nanoseconds.
    virtual_time: u64,
}

impl FairQueue {
    /// Adds a client whose use so far ends at `finish_tag`.
    pub fn push(&mut self, key: usize, finish_tag: u64) {
        if finish_tag <= self.virtual_time + LIGHT_USE {
            self.light.push_back(key);
        } else {
            self.heavy.push(Reverse((finish_tag, key)));
        }
    }

    /// Removes the client whose turn is next.
    pub fn pop(&mut self) -> Option<usize> {
        let may_be_light = self.light_turns < MAX_LIGHT_TURNS || self.heavy.is_empty();
        if may_be_light && let Some(key) = self.light.pop_front() {
            self.light_turns = self.light_turns.saturating_add(1);
            return Some(key);
        }
        let Reverse((finish_tag, key)) = self.heavy.pop()?;
        self.virtual_time = self.virtual_time.max(finish_tag);
        self.light_turns = 0;
        Some(key)
    }

    /// The finish tag of a client after a turn that took so long. Time that it did not use earlier is
    /// not saved up.
    pub fn charge(&self, finish_tag: u64, used: Duration) -> u64 {
        let used = u64::try_from(used.as_nanos()).unwrap_or(MAX_CHARGE);
        finish_tag.max(self.virtual_time) + used.min(MAX_CHARGE)
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
        for _ in 0..10 {
            let mut round: Vec<usize> =
                (0..100).map(|_| take_turn(&mut queue, &mut tags)).collect();
            round.sort_unstable();
            assert!(round.into_iter().eq(0..100));
        }
    }

    #[test]
    fn a_new_client_goes_before_any_number_of_busy_ones() {
        let mut queue = FairQueue::default();
        let mut tags = [0; 1000];
        for key in 0..1000 {
            queue.push(key, 0);
        }
        for turns in [1500, 1700, 40_000] {
            for _ in 0..turns {
                take_turn(&mut queue, &mut tags);
            }
            queue.push(1000, 0);
            assert_eq!(queue.pop(), Some(1000));
        }
    }

    #[test]
    fn a_busy_client_gets_its_share_while_new_clients_never_stop_connecting() {
        let mut queue = FairQueue::default();
        let mut finish_tag = 0;
        let mut turns = 0;
        queue.push(0, finish_tag);
        for key in 1..=1000 {
            // A new client has a turn and leaves, and the next one is here already.
            queue.push(key, 0);
            if queue.pop() == Some(0) {
                turns += 1;
                finish_tag = queue.charge(finish_tag, TURN);
                queue.push(0, finish_tag);
            }
        }
        assert!((190..=201).contains(&turns), "{turns} of 1000");
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
        assert_eq!(queue.charge(0, Duration::from_secs(10)), MAX_CHARGE);
        assert_eq!(queue.charge(7, Duration::from_nanos(3)), 10);
    }
}
