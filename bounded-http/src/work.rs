//! CPU time that is used on purpose.

use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Computes until this thread has used this much CPU time, as the kernel counts it. On a busy machine
/// this takes longer. An autoscaler sees the same CPU time.
pub fn work(cpu_time: Duration) {
    if cpu_time.is_zero() {
        return;
    }
    let end = thread_cpu_time().saturating_add(cpu_time);
    while thread_cpu_time() < end {
        // About 10 µs, so that most of the time is not spent on reading the clock, a system call.
        black_box((0..10_000_u64).fold(0, |sum, number| sum ^ black_box(number)));
    }
}

/// Returns the CPU time that this thread has used.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The time is never negative.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_the_given_cpu_time_and_little_more() {
        for millis in [0, 1, 50] {
            let asked = Duration::from_millis(millis);
            let before = thread_cpu_time();
            work(asked);
            let took = thread_cpu_time().saturating_sub(before);
            // The work may exceed the time by one chunk. Five milliseconds allow for a slow machine.
            let most = asked + Duration::from_millis(5);
            assert!((asked..=most).contains(&took), "{took:?}, not {asked:?}");
        }
    }
}
