//! CPU time that is used on purpose.

use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Computes until this thread has used so much CPU time, by the kernel's account of it. On a busy
/// machine that takes longer, and it is what an autoscaler sees.
pub fn work(cpu_time: Duration) {
    if cpu_time.is_zero() {
        return;
    }
    let end = thread_cpu_time() + cpu_time;
    while thread_cpu_time() < end {
        // Some ten microseconds, so that the time is not spent on the clock, which is a system call.
        black_box((0..10_000_u64).fold(0, |sum, number| sum ^ black_box(number)));
    }
}

/// The CPU time that this thread has used.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // It begins at zero and goes up.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time_and_little_more_than_asked() {
        for millis in [0, 1, 50] {
            let asked = Duration::from_millis(millis);
            let before = thread_cpu_time();
            work(asked);
            let took = thread_cpu_time().saturating_sub(before);
            // It ends after a chunk. Five milliseconds allow for a slow machine.
            let most = asked + Duration::from_millis(5);
            assert!((asked..=most).contains(&took), "{took:?}, not {asked:?}");
        }
    }
}
