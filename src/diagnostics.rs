//! Diagnostics: what there is to say of the service itself, on standard error. What goes wrong while
//! serving, and what clients change, is one line each, and only so many a second, whatever clients do.

use std::fmt::Display;
use std::io::{self, Stderr};
use std::net::SocketAddr;
use std::panic;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::line_writer::LineWriter;

const SECOND: Duration = Duration::from_secs(1);

static DIAGNOSTICS: LazyLock<Mutex<Diagnostics>> = LazyLock::new(|| {
    Mutex::new(Diagnostics {
        lines: LineWriter::new(io::stderr(), "tiny-probe: lines left out"),
        // What goes wrong tends to go wrong again and again. Each change is worth a line, as long as
        // somebody can read them.
        reports: RateLimit::new(1),
        changes: RateLimit::new(10),
    })
});

struct Diagnostics {
    lines: LineWriter<Stderr>,
    reports: RateLimit,
    changes: RateLimit,
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

/// Prints what goes wrong in one line, unless another was printed within the second: then it is
/// counted, and the number stands in the next line.
pub fn report(message: impl Display) {
    let mut diagnostics = lock();
    if let Some(line) = diagnostics.reports.line(message, Instant::now()) {
        diagnostics.print(format_args!("tiny-probe: {line}"));
    }
}

/// Prints in one line who has changed the faults, and to what; the same with ten lines a second.
pub fn announce_change(peer: SocketAddr, faults: &str) {
    let change = format_args!("{peer} changed the faults: {}", faults.trim_end());
    let mut diagnostics = lock();
    if let Some(line) = diagnostics.changes.line(change, Instant::now()) {
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

/// At most so many lines in a second, which begins with the first of them.
struct RateLimit {
    lines: u32,
    second: Option<Instant>,
    printed: u32,
    left_out: u64,
}

impl RateLimit {
    fn new(lines: u32) -> Self {
        Self {
            lines,
            second: None,
            printed: 0,
            left_out: 0,
        }
    }

    fn line(&mut self, message: impl Display, now: Instant) -> Option<String> {
        if self.second.is_none_or(|start| now >= start + SECOND) {
            self.second = Some(now);
            self.printed = 0;
        }
        if self.printed == self.lines {
            self.left_out += 1;
            return None;
        }
        self.printed += 1;
        let line = message.to_string().replace(char::is_control, " ");
        Some(match std::mem::take(&mut self.left_out) {
            0 => line,
            left_out => format!("{line} ({left_out} more were left out)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_line_a_second_and_the_others_are_counted() {
        let mut rate_limit = RateLimit::new(1);
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

    #[test]
    fn ten_lines_a_second_if_so_many_are_allowed() {
        let mut rate_limit = RateLimit::new(10);
        let start = Instant::now();
        let mut lines = |millis| {
            let now = start + Duration::from_millis(millis);
            let lines = (0..1000).filter_map(|_| rate_limit.line("changed", now));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(lines(0), ["changed"; 10]);
        assert!(lines(999).is_empty());
        let next = lines(1000);
        assert_eq!(next.len(), 10);
        assert_eq!(next[0], "changed (1990 more were left out)");
    }

    /// In a process of its own: it is the hook of the whole process, and standard error.
    #[test]
    fn a_panic_is_reported_in_one_line() {
        const NAME: &str = "diagnostics::tests::a_panic_is_reported_in_one_line";
        if env::var_os("PANIC").is_some() {
            report_panics();
            panic!("on\npurpose");
        }
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env("PANIC", "1")
            .output();
        let Ok(output) = output else {
            println!("skipped: an emulator that runs this process starts no other");
            return;
        };
        let stderr = String::from_utf8(output.stderr).unwrap();
        let line = stderr.lines().next().unwrap_or_default();
        assert!(
            line.starts_with("tiny-probe: panic: panicked at src"),
            "{stderr}"
        );
        assert!(line.ends_with(": on purpose"), "{stderr}");
    }
}
