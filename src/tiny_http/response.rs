//! Writes a response of the plain request loop.

use std::io;

use bounded_http::Reply;
use httpdate::fmt_http_date;

use crate::wall_clock;

/// Sends a response, with `Connection: close` if it is the last one. It is written here because the crate's
/// own type has no `Connection` field, and would panic if the clock is before 1970 or after 9999. The crate
/// first discards the request's body.
pub fn respond(received: tiny_http::Request, reply: &Reply, is_last: bool) -> io::Result<()> {
    let is_head = *received.method() == tiny_http::Method::Head;
    let is_http_1_0 = *received.http_version() < (1, 1);
    let has_option = |option| connection_has(&received, option);
    let close = is_last
        || has_option("close")
        || has_option("upgrade")
        || (is_http_1_0 && !has_option("keep-alive"));
    let mut head = String::from("HTTP/1.1 ");
    head.push_str(reply.status().line());
    head.push_str("\r\n");
    let mut add = |name: &str, value: &str| {
        for part in [name, ": ", value, "\r\n"] {
            head.push_str(part);
        }
    };
    add("Date", &fmt_http_date(wall_clock::now()));
    if let Some(content_type) = reply.content_type() {
        add("Content-Type", content_type);
        add("Content-Length", &reply.body().len().to_string());
    }
    for (name, value) in reply.fields() {
        add(name, value);
    }
    if close || is_http_1_0 {
        add("Connection", if close { "close" } else { "keep-alive" });
    }
    head.push_str("\r\n");

    let mut writer = received.into_writer();
    writer.write_all(head.as_bytes())?;
    if !is_head {
        writer.write_all(reply.body())?;
    }
    writer.flush()
}

/// Returns whether `Connection` has an option, as the crate sees it: in the first such field.
pub fn connection_has(received: &tiny_http::Request, option: &str) -> bool {
    let mut headers = received.headers().iter();
    let connection = headers.find(|header| header.field.equiv("Connection"));
    let value = connection.map_or(&[][..], |header| header.value.as_bytes());
    let mut parts = value.windows(option.len());
    parts.any(|part| part.eq_ignore_ascii_case(option.as_bytes()))
}
