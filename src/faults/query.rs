//! Parses queries: parameters `name=value`, separated by `&`. Percent-escapes are decoded (RFC 3986,
//! section 2.1), and a plus is not a space. An error is one line, in visible ASCII whatever the client
//! sent.

use crate::printable::push_printable;

/// A parameter of a query.
struct Parameter<'a> {
    /// The parameter as the client sent it.
    raw: &'a str,
    /// The decoded name. `None` if an escape is invalid.
    name: Option<String>,
    /// The decoded value. `None` if an escape is invalid.
    value: Option<String>,
}

/// Parses a query, and returns the names of its settings.
///
/// `accepted` returns the canonical name of a setting and its accepted values, to complete "expected …",
/// or `None` for an unknown name. `set` sets a value, or returns `None` if it is not accepted. `names`
/// lists the known names, to complete "expected …" if a name is unknown or if there is none. Without
/// `names`, unknown names are ignored.
///
/// # Errors
/// A line that tells the client what is accepted.
pub fn parse(
    query: &str,
    names: Option<&str>,
    accepted: &dyn Fn(&str) -> Option<(&'static str, &'static str)>,
    set: &mut dyn FnMut(&'static str, &str) -> Option<()>,
) -> Result<Vec<&'static str>, String> {
    let mut given = Vec::new();
    for raw in query.split('&').filter(|raw| !raw.is_empty()) {
        let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
        let parameter = Parameter {
            raw,
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
        let is_set = parameter
            .value
            .as_deref()
            .and_then(|value| set(name, value));
        is_set.ok_or_else(|| parameter.expected(accepted))?;
    }
    match names {
        Some(names) if given.is_empty() => Err(format!("the query is empty: expected {names}\n")),
        _ => Ok(given),
    }
}

impl Parameter<'_> {
    /// Returns the line that says what is accepted instead.
    fn expected(&self, accepted: &str) -> String {
        self.error(&format!("expected {accepted}"))
    }

    /// Returns the line that says what is wrong.
    fn error(&self, problem: &str) -> String {
        let mut line = String::new();
        push_printable(&mut line, self.raw);
        line + ": " + problem + "\n"
    }
}

/// Decodes percent-escapes. Returns `None` if one is invalid, or if the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (escape, rest) = part.split_at_checked(2)?;
        // `from_str_radix` would also accept a sign.
        if !escape.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        decoded.push(u8::from_str_radix(escape, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(decoded).ok()
}
