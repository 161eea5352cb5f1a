//! Answers as a client reads them: strictly.

use tiny_probe::app::{ALLOW, Reply};
use tiny_probe::http::Method;

use crate::drive::DATE;

/// One answer, without what is the same in all of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub content_length: usize,
    pub body: String,
    pub closes: bool,
}

impl Answer {
    /// What the client is to read of a reply that is not the last.
    pub fn new(reply: &Reply) -> Self {
        let is_head = reply.method == Method::Head;
        Self {
            status: reply.status.code(),
            content_type: reply.content_type.to_owned(),
            content_length: reply.body.len(),
            body: if is_head { "" } else { &reply.body }.to_owned(),
            closes: false,
        }
    }
}

/// Reads the answer to a request of this method off the front of `bytes`, and how many interim 100s
/// are before it. `None` if more is to come. Panics on what is no well-formed answer.
pub fn read(bytes: &mut &str, method: &str) -> Option<(Answer, usize)> {
    let mut rest = *bytes;
    let mut interim = 0;
    let head = loop {
        let (head, after) = rest.split_once("\r\n\r\n")?;
        rest = after;
        if head != "HTTP/1.1 100 Continue" {
            break head;
        }
        interim += 1;
    };
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|status| status.split_once(' '))
        .filter(|(code, reason)| code.len() == 3 && !reason.is_empty())
        .and_then(|(code, _)| code.parse().ok())
        .filter(|code| (200..600).contains(code))
        .unwrap_or_else(|| panic!("no status line: {status_line:?}"));

    let mut fields: Vec<(&str, &str)> = lines
        .map(|line| line.split_once(": ").expect("a field has a name"))
        .collect();
    let mut take = |name| {
        let place = fields.iter().position(|field| field.0 == name)?;
        Some(fields.swap_remove(place).1)
    };
    let content_type = take("Content-Type").expect("every answer has a type");
    let content_length = take("Content-Length").expect("every answer has a length");
    let content_length = content_length.parse().expect("a length is a number");
    assert_eq!(take("Date"), Some(DATE));
    assert_eq!(take("Allow"), (status == 405).then_some(ALLOW));
    let connection = take("Connection");
    assert!(matches!(connection, None | Some("close" | "keep-alive")));
    assert!(fields.is_empty(), "fields too many: {fields:?}");

    let body = if method == "HEAD" { 0 } else { content_length };
    let (body, after) = rest.split_at_checked(body)?;
    *bytes = after;
    let answer = Answer {
        status,
        content_type: content_type.to_owned(),
        content_length,
        body: body.to_owned(),
        closes: connection == Some("close"),
    };
    Some((answer, interim))
}
