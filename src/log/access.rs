//! The access log: a line per request on standard output.

use std::ascii;
use std::fmt::{self, Display, Write};
use std::io::{self, Stdout};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::line_writer::LineWriter;
use crate::peer::canonical;

/// Writes a line per request, or nothing. Clones are of one log.
#[derive(Clone)]
pub struct AccessLog(Option<Arc<Mutex<LineWriter<Stdout>>>>);

/// What the line of a request says of the request itself: peer, method and path.
#[derive(Debug)]
pub struct Entry(String);

impl AccessLog {
    /// An access log that writes if `enabled`.
    pub fn new(enabled: bool) -> Self {
        // The line of a request begins with a digit.
        let lines = || LineWriter::new(io::stdout(), "# lines left out");
        Self(enabled.then(|| Arc::new(Mutex::new(lines()))))
    }

    /// The beginning of a request's line, if lines are written. `method` and `target` are as the
    /// client sent them, empty if they could not be parsed.
    pub fn begin(&self, peer: Option<SocketAddr>, method: &str, target: &str) -> Option<Entry> {
        self.0.is_some().then(|| Entry::new(peer, method, target))
    }

    /// Adds the line of a request, to be written by the next flush. `status` is what it is recorded
    /// as, and `body_length` the bytes of body that were sent.
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

    /// Writes as much as there is room for, as [`LineWriter::flush`] does.
    pub fn flush(&self) -> bool {
        self.lines().is_some_and(|mut lines| lines.flush())
    }

    /// Flushes as far as the reader takes it until then.
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
        // A String takes every write, here and below.
        let _ = match peer {
            Some(peer) => write!(text, "{}", canonical(peer)),
            None => text.write_char('-'),
        };
        for sent in [method, target] {
            text.push(' ');
            push_printable(&mut text, sent);
        }
        Self(text)
    }
}

/// Appends what a client sent, in visible ASCII: it can neither break the line, nor add a field to
/// it, nor reach the terminal that shows it. No client needs more than the first 200 bytes.
pub fn push_printable(text: &mut String, sent: &str) {
    if sent.is_empty() {
        text.push('-');
    }
    for byte in sent.bytes().take(200) {
        match byte {
            b' ' => text.push_str("\\x20"),
            _ => text.extend(ascii::escape_default(byte).map(char::from)),
        }
    }
}

/// Time, peer, method, path, status, bytes of the body, seconds.
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
    fn nothing_a_client_sends_breaks_the_line_or_reaches_the_terminal() {
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
