//! The access log: a line per request on standard output.

use std::ascii;
use std::fmt::{self, Display, Write};
use std::io::{self, Stdout};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::line_writer::LineWriter;
use crate::peer::canonical;

/// The access log, which may be off. Clones refer to the same log.
#[derive(Clone)]
pub struct AccessLog(Option<Arc<Mutex<LineWriter<Stdout>>>>);

/// The first part of a request's line, known when the request was received: peer, method and path.
#[derive(Debug)]
pub struct Entry(String);

impl AccessLog {
    /// Creates the log. It writes nothing unless `enabled`.
    pub fn new(enabled: bool) -> Self {
        // Lines of requests start with a digit, so the notice can be told apart from them.
        let lines = || LineWriter::new(io::stdout(), "# lines dropped");
        Self(enabled.then(|| Arc::new(Mutex::new(lines()))))
    }

    /// Returns the first part of a request's line, or `None` if the log is off. `method` and `target` are
    /// what the client sent, or empty if they could not be parsed.
    pub fn begin(&self, peer: Option<SocketAddr>, method: &str, target: &str) -> Option<Entry> {
        self.0.is_some().then(|| Entry::new(peer, method, target))
    }

    /// Adds the line of a request; the next flush writes it. `status` is the status that the metrics
    /// record, and `body_length` the number of body bytes that were sent.
    pub fn push(
        &self,
        entry: &Entry,
        status: &'static str,
        body_length: usize,
        latency: Duration,
        time: SystemTime,
    ) {
        if let Some(mut lines) = self.lines() {
            lines.push(Line {
                time,
                entry,
                status,
                body_length,
                latency,
            });
        }
    }

    /// Writes without blocking, and returns whether to try again soon. See [`LineWriter::flush`].
    pub fn flush(&self) -> bool {
        self.lines().is_some_and(|mut lines| lines.flush())
    }

    /// Writes the remaining lines, or as many as the reader takes before the deadline.
    pub fn flush_until(&self, deadline: Instant) {
        if let Some(mut lines) = self.lines() {
            lines.flush_until(deadline);
        }
    }

    fn lines(&self) -> Option<MutexGuard<'_, LineWriter<Stdout>>> {
        let lines = self.0.as_ref()?;
        Some(lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Entry {
    fn new(peer: Option<SocketAddr>, method: &str, target: &str) -> Self {
        let mut text = String::with_capacity(64);
        // Writing to a String cannot fail, here and below.
        let _ = match peer {
            Some(peer) => write!(text, "{}", canonical(peer)),
            None => text.write_char('-'),
        };
        for input in [method, target] {
            text.push(' ');
            push_printable(&mut text, input);
        }
        Self(text)
    }
}

/// Appends input from a client as visible ASCII, or `-` if it is empty. Other bytes and spaces are escaped,
/// so that a client cannot break the line, add a field to it, or send control characters to a terminal.
/// Input beyond 200 bytes is cut off.
pub fn push_printable(text: &mut String, input: &str) {
    if input.is_empty() {
        text.push('-');
    }
    for byte in input.bytes().take(200) {
        match byte {
            b' ' => text.push_str("\\x20"),
            _ => text.extend(ascii::escape_default(byte).map(char::from)),
        }
    }
}

/// A line with the fields time, peer, method, path, status, bytes of the body, and seconds.
struct Line<'a> {
    time: SystemTime,
    entry: &'a Entry,
    status: &'static str,
    body_length: usize,
    latency: Duration,
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} {} {:.6}",
            humantime::format_rfc3339_millis(self.time),
            self.entry.0,
            self.status,
            self.body_length,
            self.latency.as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(method: &str, target: &str) -> String {
        let entry = Entry::new(Some(([127, 0, 0, 1], 4242).into()), method, target);
        let line = Line {
            time: SystemTime::UNIX_EPOCH,
            entry: &entry,
            status: "404",
            body_length: 4,
            latency: Duration::from_micros(1500),
        };
        line.to_string()
    }

    #[test]
    fn a_line_has_seven_fields() {
        assert_eq!(
            line_of("GET", "/nope?x=1"),
            "1970-01-01T00:00:00.000Z 127.0.0.1:4242 GET /nope?x=1 404 4 0.001500"
        );
    }

    #[test]
    fn client_input_cannot_break_the_line_or_control_the_terminal() {
        let lines = [
            line_of("GET", "/a\r\n1970-01-01 forged"),
            line_of("G\u{1b}[31mT", "/\u{1b}]0;title\u{7}"),
            line_of("GET", "/\u{85}\u{202e}\u{9b}é"),
            line_of("", ""),
            line_of("GET", &"/\u{e9}".repeat(100_000)),
        ];
        for line in lines {
            assert_eq!(line.split(' ').count(), 7, "{line}");
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            assert!(line.len() < 1024);
        }
    }
}
