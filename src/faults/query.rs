//! Queries: `name=value`, with `&` between. In both of them a percent-escape is decoded (RFC 3986,
//! section 2.1), and a plus is a plus. What is wrong with one is told in one line, in visible ASCII
//! whatever the client sent.

use crate::log::access::push_printable;

/// One `name=value` of a query.
struct Parameter<'a> {
    /// As the client wrote it.
    written: &'a str,
    /// Decoded; `None` if an escape is broken.
    name: Option<String>,
    value: Option<String>,
}

/// Reads a query. `accepted` says what a name is called and which values it takes, to complete
/// "expected …"; `set` takes a value, or returns `None` if it is not accepted. `names` are the names
/// that can be given, of which one must be; without it, others are ignored. Returns those that were
/// given.
///
/// # Errors
/// The line that tells the client what is accepted.
pub fn read(
    query: &str,
    names: Option<&str>,
    accepted: &dyn Fn(&str) -> Option<(&'static str, &'static str)>,
    set: &mut dyn FnMut(&'static str, &str) -> Option<()>,
) -> Result<Vec<&'static str>, String> {
    let mut given = Vec::new();
    for written in query.split('&').filter(|written| !written.is_empty()) {
        let (name, value) = written.split_once('=').unwrap_or((written, ""));
        let parameter = Parameter {
            written,
            name: decode(name),
            value: decode(value),
        };
        let Some((name, accepted)) = parameter.name.as_deref().and_then(accepted) else {
            match names {
                Some(names) => return Err(parameter.expected(names)),
                None => continue,
            }
        };
        if given.contains(&name) {
            return Err(parameter.error("given more than once"));
        }
        given.push(name);
        let value = parameter
            .value
            .as_deref()
            .and_then(|value| set(name, value));
        value.ok_or_else(|| parameter.expected(accepted))?;
    }
    match names {
        Some(names) if given.is_empty() => Err(format!("no change: expected {names}\n")),
        _ => Ok(given),
    }
}

impl Parameter<'_> {
    /// Returns the line that says what is accepted in its place.
    fn expected(&self, accepted: &str) -> String {
        self.error(&format!("expected {accepted}"))
    }

    /// Returns the line that says what is wrong with it.
    fn error(&self, problem: &str) -> String {
        let mut line = String::new();
        push_printable(&mut line, self.written);
        line + ": " + problem + "\n"
    }
}

/// Decodes percent-escapes. `None` if one is broken, or if what they say is no text.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (escape, rest) = part.split_at_checked(2)?;
        // What reads numbers takes a sign, too.
        if !escape.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        decoded.push(u8::from_str_radix(escape, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(decoded).ok()
}
