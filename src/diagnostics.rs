//! Diagnostics: what goes wrong while serving, on standard error. One line each, and at most one a
//! second, whatever clients do.

use std::fmt::Display;
use std::io::{self, Write};
use std::panic;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pause after a line.
const PAUSE: Duration = Duration::from_secs(1);

static RATE_LIMIT: Mutex<RateLimit> = Mutex::new(RateLimit {
    last: None,
    left_out: 0,
});

/// Prints one line, unless another was printed less than a second ago: then it is counted, and the
/// number stands in the next line.
pub fn report(message: impl Display) {
    let mut rate_limit = RATE_LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(line) = rate_limit.line(message, Instant::now()) {
        // With standard error closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "tiny-probe: {line}");
    }
}

/// Has every panic reported in one line, too.
pub fn report_panics() {
    panic::set_hook(Box::new(|panic| report(format_args!("panic: {panic}"))));
}

/// At most one line a second.
struct RateLimit {
    last: Option<Instant>,
    left_out: u64,
}

impl RateLimit {
    fn line(&mut self, message: impl Display, now: Instant) -> Option<String> {
        if self.last.is_some_and(|last| now < last + PAUSE) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        let line = message.to_string().replace(char::is_control, " ");
        Some(match std::mem::take(&mut self.left_out) {
            0 => line,
            left_out => format!("{line} ({left_out} more were left out)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_second_and_the_others_are_counted() {
        let mut rate_limit = RateLimit {
            last: None,
            left_out: 0,
        };
        let start = Instant::now();
        let mut at =
            |millis, message| rate_limit.line(message, start + Duration::from_millis(millis));
        assert_eq!(at(0, "one").as_deref(), Some("one"));
        assert_eq!(at(1, "two"), None);
        assert_eq!(at(999, "three"), None);
        let line = at(1000, "four\n\u{1b}[31m");
        assert_eq!(line.as_deref(), Some("four  [31m (2 more were left out)"));
        assert_eq!(at(2000, "five").as_deref(), Some("five"));
    }
}
