//! When delayed replies are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// The clients that have a delayed reply, by the time it is due. The timer of a closed connection stays
/// until it is due, or until [`retain`](Self::retain) removes it. If another client has the same key by
/// then, it gets an unnecessary turn, which does no harm.
#[derive(Default)]
pub struct TimerQueue(BinaryHeap<Reverse<(Instant, usize)>>);

impl TimerQueue {
    /// Adds a timer for the client with this key.
    pub fn push(&mut self, due: Instant, key: usize) {
        self.0.push(Reverse((due, key)));
    }

    /// Returns when the first timer is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((due, _))| *due)
    }

    /// Removes the first timer that is due at `now`, and returns its client's key.
    pub fn pop_due(&mut self, now: Instant) -> Option<usize> {
        self.next_due().filter(|due| *due <= now)?;
        self.0.pop().map(|Reverse((_, key))| key)
    }

    /// Returns the number of timers.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Removes timers that are no longer needed, and frees their memory.
    pub fn retain(&mut self, is_needed: impl Fn(Instant, usize) -> bool) {
        self.0.retain(|Reverse((due, key))| is_needed(*due, *key));
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_are_returned_in_order_and_not_before_they_are_due() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = TimerQueue::default();
        assert_eq!((timers.next_due(), timers.pop_due(at(9))), (None, None));
        timers.push(at(2), 7);
        timers.push(at(1), 8);
        timers.push(at(3), 9);
        assert_eq!(timers.count(), 3);
        assert_eq!(timers.next_due(), Some(at(1)));
        assert_eq!(timers.pop_due(start), None);
        assert_eq!(timers.pop_due(at(2)), Some(8));
        assert_eq!(timers.pop_due(at(2)), Some(7));
        assert_eq!(timers.pop_due(at(2)), None);
        assert_eq!(timers.count(), 1);
    }

    #[test]
    fn timers_that_are_not_needed_take_no_memory() {
        let start = Instant::now();
        let mut timers = TimerQueue::default();
        for key in 0..1000 {
            timers.push(start, key);
        }
        timers.retain(|due, key| due == start && key == 500);
        assert_eq!(timers.count(), 1);
        assert!(timers.0.capacity() < 100);
        assert_eq!(timers.pop_due(start), Some(500));
    }
}
