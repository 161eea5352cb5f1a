//! The access log: a line per request on standard output.

use std::fmt::{self, Display, Write};
use std::io::{self, Stdout};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::line_writer::LineWriter;
use crate::config::AccessLogFormat;
use crate::peer::canonical;
use crate::printable::{MAX_INPUT_BYTES, push_printable};
use crate::trace_context::TraceContext;

/// The access log, which may be off. Clones refer to the same log.
#[derive(Clone)]
pub struct AccessLog {
    is_json: bool,
    lines: Option<Arc<Mutex<LineWriter<Stdout>>>>,
}

/// The first part of a request's line, known when the request was received: peer, method and path, and as
/// JSON also the trace.
#[derive(Debug)]
pub struct Entry {
    /// Peer, method and path, formatted for the line.
    text: String,
    trace: Option<TraceContext>,
    is_json: bool,
}

impl AccessLog {
    /// Creates the log. It writes nothing if the format is `Off`.
    pub fn new(format: AccessLogFormat) -> Self {
        // Lines of requests start with a digit, or in JSON with their time, so the notice can be told apart
        // from them.
        let notice = match format {
            AccessLogFormat::Off => None,
            AccessLogFormat::Text => Some(["# lines dropped: ", ""]),
            AccessLogFormat::Json => Some(["{\"lines_dropped\":", "}"]),
        };
        let lines = |notice| Arc::new(Mutex::new(LineWriter::new(io::stdout(), notice)));
        Self {
            is_json: format == AccessLogFormat::Json,
            lines: notice.map(lines),
        }
    }

    /// Returns the first part of a request's line, or `None` if the log is off. `method` and `target` are
    /// what the client sent, or empty if they could not be parsed.
    pub fn begin(
        &self,
        peer: Option<SocketAddr>,
        method: &str,
        target: &str,
        trace: Option<TraceContext>,
    ) -> Option<Entry> {
        self.lines.as_ref()?;
        Some(if self.is_json {
            Entry::json(peer, method, target, trace)
        } else {
            Entry::text(peer, method, target)
        })
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
        let lines = self.lines.as_ref()?;
        Some(lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Entry {
    fn text(peer: Option<SocketAddr>, method: &str, target: &str) -> Self {
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
        Self {
            text,
            trace: None,
            is_json: false,
        }
    }

    fn json(
        peer: Option<SocketAddr>,
        method: &str,
        target: &str,
        trace: Option<TraceContext>,
    ) -> Self {
        let mut text = String::with_capacity(96);
        if let Some(peer) = peer {
            let _ = write!(text, "\"peer\":\"{}\",", canonical(peer));
        }
        text.push_str("\"method\":\"");
        push_json(&mut text, method);
        text.push_str("\",\"path\":\"");
        push_json(&mut text, target);
        text.push('"');
        Self {
            text,
            trace,
            is_json: true,
        }
    }
}

/// Appends input from a client as the content of a JSON string, in visible ASCII. Input beyond
/// `MAX_INPUT_BYTES` is cut off.
fn push_json(text: &mut String, input: &str) {
    for (index, character) in input.char_indices() {
        if index >= MAX_INPUT_BYTES {
            break;
        }
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            ' '..='~' => text.push(character),
            // JSON writes a character above U+FFFF as two UTF-16 units (RFC 8259, section 7).
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
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
        let time = humantime::format_rfc3339_millis(self.time);
        let Entry { text, trace, .. } = self.entry;
        let (status, bytes) = (self.status, self.body_length);
        let seconds = self.latency.as_secs_f64();
        if !self.entry.is_json {
            return write!(f, "{time} {text} {status} {bytes} {seconds:.6}");
        }
        write!(
            f,
            "{{\"time\":\"{time}\",{text},\"status\":{status},\"bytes\":{bytes},\
             \"seconds\":{seconds:.6}"
        )?;
        if let Some(TraceContext { trace_id, span_id }) = trace {
            write!(
                f,
                ",\"trace_id\":\"{trace_id:032x}\",\"span_id\":\"{span_id:016x}\""
            )?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(method: &str, target: &str) -> String {
        let peer = Some(([127, 0, 0, 1], 4242).into());
        line(&Entry::text(peer, method, target))
    }

    fn json_of(method: &str, target: &str) -> String {
        let peer = Some(([127, 0, 0, 1], 4242).into());
        line(&Entry::json(peer, method, target, None))
    }

    fn line(entry: &Entry) -> String {
        let line = Line {
            time: SystemTime::UNIX_EPOCH,
            entry,
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

    #[test]
    fn json_has_the_same_fields_with_names_and_the_trace() {
        let start = "{\"time\":\"1970-01-01T00:00:00.000Z\",";
        let end = "\"status\":404,\"bytes\":4,\"seconds\":0.001500";
        assert_eq!(
            json_of("GET", "/nope?x=1"),
            format!(
                "{start}\"peer\":\"127.0.0.1:4242\",\"method\":\"GET\",\"path\":\"/nope?x=1\",{end}}}"
            )
        );
        let trace = b"00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
        let entry = Entry::json(None, "", "", TraceContext::sampled(trace));
        let trace =
            "\"trace_id\":\"0af7651916cd43dd8448eb211c80319c\",\"span_id\":\"00f067aa0ba902b7\"";
        assert_eq!(
            line(&entry),
            format!("{start}\"method\":\"\",\"path\":\"\",{end},{trace}}}")
        );
    }

    #[test]
    fn nothing_a_client_sends_breaks_the_json() {
        for (sent, written) in [
            ("/\"},{\"a\":\"", "/\\\"},{\\\"a\\\":\\\""),
            ("/\\", "/\\\\"),
            ("/a\r\n\u{1b}", "/a\\u000d\\u000a\\u001b"),
            ("/\u{e9}\u{202e}\u{7f}", "/\\u00e9\\u202e\\u007f"),
            ("/\u{1f600}", "/\\ud83d\\ude00"),
        ] {
            let line = json_of("GET", sent);
            assert!(line.contains(&format!("\"path\":\"{written}\",")), "{line}");
        }
        let line = json_of("GET", &"\u{1f600}".repeat(100_000));
        assert!(line.len() < 1024 && line.ends_with('}'), "{line}");
    }
}
