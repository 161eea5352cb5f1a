//! The access log: a line per request on standard output.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::app::Reply;

/// Prints a line per request, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct AccessLog {
    enabled: bool,
}

/// What the line of a request says of the request itself: peer, method and path.
#[derive(Debug)]
pub struct Entry(String);

impl AccessLog {
    /// An access log that prints if `enabled`.
    pub fn new(enabled: bool) -> Self {
        Self { enabled }
    }

    /// Notes a request before it is answered. `method` and `target` are as the client sent them,
    /// empty if they could not be read.
    pub fn note(self, peer: Option<SocketAddr>, method: &str, target: &str) -> Option<Entry> {
        self.enabled.then(|| Entry::new(peer, method, target))
    }
}

impl Entry {
    fn new(peer: Option<SocketAddr>, method: &str, target: &str) -> Self {
        Self(format!(
            "{} {} {}",
            peer.map_or("-".into(), |peer| peer.to_string()),
            printable(method),
            printable(target)
        ))
    }

    /// Prints the line, once the request is answered.
    pub fn print(&self, reply: &Reply, latency: Duration) {
        let line = self.line(SystemTime::now(), reply, latency);
        // Nobody reads the log any more, say: the service goes on.
        let _ = io::stdout().write_all(line.as_bytes());
    }

    /// Time, peer, method, path, status, bytes of the body, seconds.
    fn line(&self, time: SystemTime, reply: &Reply, latency: Duration) -> String {
        format!(
            "{} {} {} {} {:.6}\n",
            humantime::format_rfc3339_millis(time),
            self.0,
            reply.status.label(),
            if reply.is_to_head {
                0
            } else {
                reply.body.len()
            },
            latency.as_secs_f64(),
        )
    }
}

/// What a client sent, in visible ASCII: it can neither break the line, nor add a field to it, nor
/// reach the terminal that shows it. No client needs more than the first 200 bytes.
fn printable(sent: &str) -> String {
    if sent.is_empty() {
        return "-".into();
    }
    let sent = &sent.as_bytes()[..sent.len().min(200)];
    sent.escape_ascii().to_string().replace(' ', "\\x20")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Status;

    fn line_of(method: &str, target: &str) -> String {
        let entry = Entry::new(Some(([127, 0, 0, 1], 4242).into()), method, target);
        entry.line(
            SystemTime::UNIX_EPOCH,
            &Reply::error(Status::NotFound, "gone"),
            Duration::from_micros(1500),
        )
    }

    #[test]
    fn a_line_has_seven_fields() {
        assert_eq!(
            line_of("GET", "/nope?x=1"),
            "1970-01-01T00:00:00.000Z 127.0.0.1:4242 GET /nope?x=1 404 4 0.001500\n"
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
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(
                line.trim_end()
                    .bytes()
                    .all(|byte| (b' '..=b'~').contains(&byte))
            );
            assert!(line.len() < 1024);
        }
    }
}
