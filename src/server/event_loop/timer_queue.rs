//! When delayed replies are due, and whose they are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Timers by the time they are due. One whose client has left stays until it is due or
/// [`retain`](Self::retain) removes it; whoever has the client's key by then gets a turn too many,
/// which does no harm.
#[derive(Default)]
pub struct TimerQueue(BinaryHeap<Reverse<(Instant, usize)>>);

impl TimerQueue {
    /// Has the client with this key come up when `due` has passed.
    pub fn push(&mut self, due: Instant, key: usize) {
        self.0.push(Reverse((due, key)));
    }

    /// When the first timer is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((due, _))| *due)
    }

    /// Takes out the first timer that is due at `now`, and gives its client's key.
    pub fn pop_due(&mut self, now: Instant) -> Option<usize> {
        self.next_due().filter(|due| *due <= now)?;
        self.0.pop().map(|Reverse((_, key))| key)
    }

    /// How many timers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Removes the timers that are not needed any more, and the room that they took.
    pub fn retain(&mut self, is_needed: impl Fn(Instant, usize) -> bool) {
        self.0.retain(|Reverse((due, key))| is_needed(*due, *key));
        self.0.shrink_to_fit();
    }
}
