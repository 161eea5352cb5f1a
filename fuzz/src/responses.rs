//! A strict parser for responses.

use tiny_probe::metrics::Format;
use tiny_probe::page::FIELDS;

use crate::drive::DATE;

/// A response, without the parts that all responses have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub allow: Option<String>,
    pub content_type: Option<String>,
    pub content_length: Option<usize>,
    pub body: String,
    pub closes: bool,
}

/// Returns whether this is the content type of the exposition, in either format.
pub fn is_exposition(content_type: Option<&str>) -> bool {
    let formats = [Format::Text, Format::OpenMetrics];
    content_type.is_some_and(|found| formats.map(Format::content_type).contains(&found))
}

/// Parses the response to a request of this method and removes it from the front of `bytes`. Returns
/// `None` if it is incomplete. Panics if it is malformed.
pub fn read(bytes: &mut &str, method: &str) -> Option<Response> {
    let (head, rest) = bytes.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|status| status.split_once(' '))
        .filter(|(code, reason)| code.len() == 3 && !reason.is_empty())
        .and_then(|(code, _)| code.parse().ok())
        .filter(|code| (200..600).contains(code) && *code != 499)
        .unwrap_or_else(|| panic!("no status line: {status_line:?}"));

    let mut fields: Vec<(&str, &str)> = lines
        .map(|line| line.split_once(": ").expect("a field has a name"))
        .collect();
    let mut take = |name| {
        let index = fields.iter().position(|field| field.0 == name)?;
        Some(fields.swap_remove(index).1)
    };
    let content_type = take("Content-Type");
    let content_length = take("Content-Length");
    let content_length = content_length.map(|length| length.parse().expect("it is a number"));
    let has_body = status != 204;
    assert_eq!(content_type.is_some(), has_body);
    assert_eq!(content_length.is_some(), has_body);
    assert_eq!(take("Date"), Some(DATE));
    let allow = take("Allow");
    assert_eq!(allow.is_some(), matches!(status, 204 | 405));
    assert_eq!(
        take("Vary"),
        is_exposition(content_type).then_some("Accept")
    );
    if content_type.is_some_and(|found| found.starts_with("text/html")) {
        for (name, value) in FIELDS {
            assert_eq!(take(name), Some(*value));
        }
    }
    let retry_after = take("Retry-After");
    assert!(retry_after.is_none_or(|seconds| seconds == "1" && status == 503));
    let connection = take("Connection");
    assert!(matches!(connection, None | Some("close" | "keep-alive")));
    assert!(fields.is_empty(), "unexpected fields: {fields:?}");

    let length = content_length.filter(|_| method != "HEAD").unwrap_or(0);
    let (body, after) = rest.split_at_checked(length)?;
    *bytes = after;
    Some(Response {
        status,
        allow: allow.map(str::to_owned),
        content_type: content_type.map(str::to_owned),
        content_length,
        body: body.to_owned(),
        closes: connection == Some("close"),
    })
}
