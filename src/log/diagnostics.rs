//! Diagnostics: messages about the service itself, on standard error. Each problem and each change
//! made by a client is one line, and their number per second is limited, whatever clients do. Panics
//! are bugs: their lines are always printed.

use std::fmt::Display;
use std::io::{self, Stderr};
use std::mem;
use std::net::SocketAddr;
use std::panic;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line_writer::LineWriter;
use crate::peer::canonical;

const SECOND: Duration = Duration::from_secs(1);
/// Problems tend to repeat themselves, so that more lines would say no more.
const REPORTS_PER_SECOND: u32 = 1;
/// Each change is worth a line, up to as many as somebody can read.
const CHANGES_PER_SECOND: u32 = 10;

static DIAGNOSTICS: LazyLock<Mutex<Diagnostics>> = LazyLock::new(|| {
    Mutex::new(Diagnostics {
        lines: LineWriter::new(io::stderr(), ["tiny-probe: lines left out: ", ""]),
        reports: RateLimit::new(REPORTS_PER_SECOND),
        changes: Changes::new(),
    })
});

struct Diagnostics {
    lines: LineWriter<Stderr>,
    reports: RateLimit,
    changes: Changes,
}

impl Diagnostics {
    fn print(&mut self, line: impl Display) {
        self.lines.push(line);
        self.lines.flush();
    }

    fn print_message(&mut self, message: &str) {
        self.print(format_args!("tiny-probe: {message}"));
    }
}

fn lock() -> MutexGuard<'static, Diagnostics> {
    DIAGNOSTICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line, as soon as whoever reads has room for it.
pub fn print(line: impl Display) {
    lock().print(line);
}

/// Prints a problem in one line. If another was printed within the second, it is only counted, and
/// the next line has the number.
pub fn report(message: impl Display) {
    let mut diagnostics = lock();
    if let Some(message) = diagnostics.reports.line(message, Instant::now()) {
        diagnostics.print_message(&message);
    }
}

/// Prints in one line which client has changed the faults, and to what. Of more than ten changes in
/// a second, the last is printed when the second is over, and the others are counted.
pub fn announce_change(peer: SocketAddr, faults: &str) {
    let peer = canonical(peer);
    let change = format!("{peer} changed the faults: {}", faults.trim_end());
    let mut diagnostics = lock();
    if let Some(message) = diagnostics.changes.line(change, Instant::now()) {
        diagnostics.print_message(&message);
    }
}

/// Writes as much as there is room for, as [`LineWriter::flush`] does. Returns whether to call it
/// again soon: the reader is slow, or a change waits for the end of its second.
pub fn flush() -> bool {
    let mut diagnostics = lock();
    if diagnostics.changes.held.is_some()
        && let Some(message) = diagnostics.changes.line_due(Instant::now())
    {
        diagnostics.print_message(&message);
    }
    diagnostics.lines.flush() | diagnostics.changes.held.is_some()
}

/// Writes the last lines, as far as the reader takes them until then.
pub fn flush_until(deadline: Instant) {
    let mut diagnostics = lock();
    if let Some(message) = diagnostics.changes.release() {
        diagnostics.print_message(&message);
    }
    diagnostics.lines.flush_until(deadline);
}

/// Prints every panic in one line. No other message suppresses it.
pub fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        lock().print_message(&one_line(&format_args!("panic: {panic}")));
    }));
}

fn one_line(message: &impl Display) -> String {
    message.to_string().replace(char::is_control, " ")
}

/// The changes of a second: all but one of its lines are printed at once, and the last of the other
/// changes when it is over. So the latest state is always printed, within the limit.
struct Changes {
    rate_limit: RateLimit,
    /// The latest change, if it was not printed.
    held: Option<String>,
}

impl Changes {
    fn new() -> Self {
        Self {
            rate_limit: RateLimit::new(CHANGES_PER_SECOND - 1),
            held: None,
        }
    }

    fn line(&mut self, change: String, now: Instant) -> Option<String> {
        let line = self.rate_limit.line(&change, now);
        self.held = line.is_none().then_some(change);
        line
    }

    /// The line of the latest change, if it was held and its second is over.
    fn line_due(&mut self, now: Instant) -> Option<String> {
        let is_due = self.rate_limit.is_over(now);
        is_due.then(|| self.release()).flatten()
    }

    /// The line of the latest change, if it was held.
    fn release(&mut self) -> Option<String> {
        let change = self.held.take()?;
        // It was counted itself.
        self.rate_limit.left_out -= 1;
        Some(self.rate_limit.with_count(&change))
    }
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
        if self.is_over(now) {
            self.second = Some(now);
            self.printed = 0;
        }
        if self.printed == self.lines {
            self.left_out += 1;
            return None;
        }
        self.printed += 1;
        Some(self.with_count(&message))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.second.is_none_or(|start| now >= start + SECOND)
    }

    /// The message in one line, with the number of those that were left out before it.
    fn with_count(&mut self, message: &impl Display) -> String {
        let line = one_line(message);
        match mem::take(&mut self.left_out) {
            0 => line,
            left_out => format!("{line} ({left_out} more were left out)"),
        }
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

    #[test]
    fn the_last_of_many_changes_is_printed_when_the_second_is_over() {
        let mut changes = Changes::new();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for number in 1..=100 {
            let line = changes.line(format!("change {number}"), at(number));
            assert_eq!(line, (number < 10).then(|| format!("change {number}")));
            assert_eq!(changes.line_due(at(number)), None);
        }
        assert_eq!(changes.line_due(at(1000)), None);
        let line = changes.line_due(at(1001));
        assert_eq!(line.as_deref(), Some("change 100 (90 more were left out)"));
        assert_eq!(changes.line_due(at(5000)), None);
        assert_eq!(changes.release(), None);

        // A change in the next second supersedes the one that is held, which is counted.
        let lines = |changes: &mut Changes, millis| {
            let lines = (0..11).filter_map(|_| changes.line("again".into(), at(millis)));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(lines(&mut changes, 5000), ["again"; 9]);
        let next = lines(&mut changes, 6000);
        assert_eq!(next[0], "again (2 more were left out)");
        let line = changes.release();
        assert_eq!(line.as_deref(), Some("again (1 more were left out)"));
    }

    /// In a process of its own: it is the hook of the whole process, and standard error.
    #[test]
    fn every_panic_is_reported_in_one_line() {
        const NAME: &str = "log::diagnostics::tests::every_panic_is_reported_in_one_line";
        if env::var_os("PANIC").is_some() {
            report_panics();
            report("something else");
            let _ = panic::catch_unwind(|| panic!("on\npurpose"));
            panic!("again");
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
        let mut lines = stderr.lines();
        assert_eq!(lines.next(), Some("tiny-probe: something else"));
        for message in [": on purpose", ": again"] {
            let line = lines.next().unwrap_or_default();
            let begin = "tiny-probe: panic: panicked at src";
            assert!(line.starts_with(begin), "{stderr}");
            assert!(line.ends_with(message), "{stderr}");
        }
    }
}
