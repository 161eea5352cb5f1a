//! Diagnostics: what there is to say of the service itself, on standard error. What goes wrong while
//! serving is one line each, and at most one a second, whatever clients do.

use std::fmt::Display;
use std::io::{self, Stderr};
use std::panic;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::line_writer::LineWriter;

/// The pause after a line.
const PAUSE: Duration = Duration::from_secs(1);

static DIAGNOSTICS: LazyLock<Mutex<Diagnostics>> = LazyLock::new(|| {
    Mutex::new(Diagnostics {
        lines: LineWriter::new(io::stderr(), "tiny-probe: lines left out"),
        rate_limit: RateLimit {
            last: None,
            left_out: 0,
        },
    })
});

struct Diagnostics {
    lines: LineWriter<Stderr>,
    rate_limit: RateLimit,
}

impl Diagnostics {
    fn print(&mut self, line: impl Display) {
        self.lines.push(line);
        self.lines.flush();
    }
}

fn lock() -> MutexGuard<'static, Diagnostics> {
    DIAGNOSTICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line, as soon as whoever reads has room for it.
pub fn print(line: impl Display) {
    lock().print(line);
}

/// Prints what goes wrong in one line, unless another was printed less than a second ago: then it is
/// counted, and the number stands in the next line.
pub fn report(message: impl Display) {
    let mut diagnostics = lock();
    if let Some(line) = diagnostics.rate_limit.line(message, Instant::now()) {
        diagnostics.print(format_args!("tiny-probe: {line}"));
    }
}

/// Writes as much as there is room for, as [`LineWriter::flush`] does.
pub fn flush() -> bool {
    lock().lines.flush()
}

/// Flushes as far as the reader takes it until then.
pub fn flush_until(deadline: Instant) {
    lock().lines.flush_until(deadline);
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
