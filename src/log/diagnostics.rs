//! Diagnostics: messages about the service itself, on standard error. Each problem, and each change of the
//! faults by a client, is one line. The number of these lines per second is limited, whatever clients do.
//! Panics are always printed, because each one is a bug.

use std::fmt::Display;
use std::io::{self, Stderr};
use std::mem;
use std::net::SocketAddr;
use std::panic;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line_writer::LineWriter;
use crate::peer::canonical;

/// What each message begins with. The start line has the version instead.
macro_rules! prefix {
    () => {
        "tiny-probe: "
    };
}

const SECOND: Duration = Duration::from_secs(1);
/// Only one, because a problem usually repeats itself, and more lines would add no information.
const REPORTS_PER_SECOND: u32 = 1;
/// Changes differ from each other. Ten lines are about as many as a person can read in a second.
const CHANGES_PER_SECOND: u32 = 10;

static DIAGNOSTICS: LazyLock<Mutex<Diagnostics>> = LazyLock::new(|| {
    Mutex::new(Diagnostics {
        lines: LineWriter::new(io::stderr(), [concat!(prefix!(), "lines dropped: "), ""]),
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
    fn print_line(&mut self, line: impl Display) {
        self.lines.push(line);
        self.lines.flush();
    }

    fn print(&mut self, message: impl Display) {
        self.print_line(format_args!(concat!(prefix!(), "{}"), message));
    }
}

fn lock() -> MutexGuard<'static, Diagnostics> {
    DIAGNOSTICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line as soon as standard error has room for it, without the prefix of messages.
pub fn print_line(line: impl Display) {
    lock().print_line(line);
}

/// Prints a message as soon as standard error has room for it, however many were printed in this second.
pub fn print(message: impl Display) {
    lock().print(message);
}

/// Prints a problem in one line. If another problem was printed less than a second ago, this one is only
/// counted; the next line that is printed ends with the count.
pub fn report(message: impl Display) {
    let mut diagnostics = lock();
    if let Some(message) = diagnostics.reports.line(message, Instant::now()) {
        diagnostics.print(message);
    }
}

/// Prints in one line which client changed the faults, and the new settings. Of more than ten changes in a
/// second, the first nine are printed at once and the last one when the second is over. The others are
/// counted.
pub fn announce_change(peer: SocketAddr, faults: &str) {
    let peer = canonical(peer);
    let change = format!("{peer} changed the faults: {}", faults.trim_end());
    let mut diagnostics = lock();
    if let Some(message) = diagnostics.changes.line(change, Instant::now()) {
        diagnostics.print(message);
    }
}

/// Writes without blocking, as [`LineWriter::flush`] does. Returns whether to call it again soon, either
/// because standard error had no room for all lines, or because a change is held until its second is over.
pub fn flush() -> bool {
    let mut diagnostics = lock();
    if diagnostics.changes.held.is_some()
        && let Some(message) = diagnostics.changes.line_due(Instant::now())
    {
        diagnostics.print(message);
    }
    let has_lines_left = diagnostics.lines.flush();
    has_lines_left || diagnostics.changes.held.is_some()
}

/// Writes the remaining lines, or as many as the reader takes before the deadline.
pub fn flush_until(deadline: Instant) {
    let mut diagnostics = lock();
    if let Some(message) = diagnostics.changes.release() {
        diagnostics.print(message);
    }
    diagnostics.lines.flush_until(deadline);
}

/// Makes every panic print one line, whatever else was printed in the same second.
pub fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        lock().print(one_line(&format_args!("panic: {panic}")));
    }));
}

fn one_line(message: &impl Display) -> String {
    message.to_string().replace(char::is_control, " ")
}

/// Limits the lines about changes. One line of each second is reserved for its last change, which is printed
/// when the second is over. So the latest settings are always printed.
struct Changes {
    rate_limit: RateLimit,
    /// The latest change, if it has not been printed yet.
    held: Option<String>,
}

impl Changes {
    fn new() -> Self {
        Self {
            rate_limit: RateLimit::new(CHANGES_PER_SECOND - 1),
            held: None,
        }
    }

    /// Returns the line to print now for this change. If there is none, the change is held.
    fn line(&mut self, change: String, now: Instant) -> Option<String> {
        let line = self.rate_limit.line(&change, now);
        self.held = line.is_none().then_some(change);
        line
    }

    /// Returns the line of the held change, if there is one and its second is over.
    fn line_due(&mut self, now: Instant) -> Option<String> {
        let is_due = self.rate_limit.is_over(now);
        is_due.then(|| self.release()).flatten()
    }

    /// Returns the line of the held change, if there is one.
    fn release(&mut self) -> Option<String> {
        let change = self.held.take()?;
        // The held change was counted as omitted.
        self.rate_limit.omitted -= 1;
        Some(self.rate_limit.with_count(&change))
    }
}

/// Limits the number of lines per second. A second starts with its first line.
struct RateLimit {
    /// The maximum number of lines per second.
    limit: u32,
    /// The start of the current second; `None` before the first line.
    start: Option<Instant>,
    /// The number of lines printed in the current second.
    printed: u32,
    /// The number of lines omitted since the last one that was printed.
    omitted: u64,
}

impl RateLimit {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            start: None,
            printed: 0,
            omitted: 0,
        }
    }

    /// Returns the line to print for this message, or `None` if the limit is reached.
    fn line(&mut self, message: impl Display, now: Instant) -> Option<String> {
        if self.is_over(now) {
            self.start = Some(now);
            self.printed = 0;
        }
        if self.printed == self.limit {
            self.omitted += 1;
            return None;
        }
        self.printed += 1;
        Some(self.with_count(&message))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.start.is_none_or(|start| now >= start + SECOND)
    }

    /// Returns the message in one line, followed by the number of messages omitted before it.
    fn with_count(&mut self, message: &impl Display) -> String {
        let line = one_line(message);
        match mem::take(&mut self.omitted) {
            0 => line,
            omitted => format!("{line} (messages omitted before this one: {omitted})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    #[test]
    fn one_line_per_second_is_printed_and_the_others_are_counted() {
        let mut rate_limit = RateLimit::new(1);
        let start = Instant::now();
        let mut at =
            |millis, message| rate_limit.line(message, start + Duration::from_millis(millis));
        assert_eq!(at(0, "one").as_deref(), Some("one"));
        assert_eq!(at(1, "two"), None);
        assert_eq!(at(999, "three"), None);
        let line = at(1000, "four\n\u{1b}[31m");
        let expected = "four  [31m (messages omitted before this one: 2)";
        assert_eq!(line.as_deref(), Some(expected));
        assert_eq!(at(2000, "five").as_deref(), Some("five"));
    }

    #[test]
    fn as_many_lines_per_second_are_printed_as_the_limit_allows() {
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
        assert_eq!(next[0], "changed (messages omitted before this one: 1990)");
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
        let expected = "change 100 (messages omitted before this one: 90)";
        assert_eq!(line.as_deref(), Some(expected));
        assert_eq!(changes.line_due(at(5000)), None);
        assert_eq!(changes.release(), None);

        // A change in the next second replaces the held one, which is then counted as omitted.
        let lines = |changes: &mut Changes, millis| {
            let lines = (0..11).filter_map(|_| changes.line("again".into(), at(millis)));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(lines(&mut changes, 5000), ["again"; 9]);
        let next = lines(&mut changes, 6000);
        assert_eq!(next[0], "again (messages omitted before this one: 2)");
        let line = changes.release();
        let expected = "again (messages omitted before this one: 1)";
        assert_eq!(line.as_deref(), Some(expected));
    }

    /// Runs itself in a second process, because the panic hook and standard error belong to the whole
    /// process.
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
            // To the stream itself, because `cargo test` hides what a passing test prints.
            let _ = io::Write::write_all(
                &mut io::stderr(),
                b"skipped: every_panic_is_reported_in_one_line: the emulator starts no process\n",
            );
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
