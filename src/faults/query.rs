//! Queries: `name=value`, with `&` between. In both of them a percent-escape is decoded (RFC 3986,
//! section 2.1), and a plus is a plus. What is wrong with one is told in one line, in visible ASCII
//! whatever the client sent.

use crate::log::access::push_printable;

/// One `name=value` of a query.
pub struct Parameter<'a> {
    /// As the client wrote it.
    written: &'a str,
    /// Decoded; `None` if an escape is broken.
    pub name: Option<String>,
    pub value: Option<String>,
}

/// The parameters of a query, in their order.
pub fn parameters(query: &str) -> impl Iterator<Item = Parameter<'_>> {
    let written = query.split('&').filter(|written| !written.is_empty());
    written.map(|written| {
        let (name, value) = written.split_once('=').unwrap_or((written, ""));
        Parameter {
            written,
            name: decode(name),
            value: decode(value),
        }
    })
}

impl Parameter<'_> {
    /// Sets what it names, if the value is one that is accepted and the name has not been there.
    pub fn set(
        &self,
        name: &'static str,
        named: &mut Vec<&'static str>,
        accepted: &str,
        set: &mut dyn FnMut(&str) -> Option<()>,
    ) -> Result<(), String> {
        if named.contains(&name) {
            return Err(self.error("given more than once"));
        }
        named.push(name);
        let value = self.value.as_deref().and_then(set);
        value.ok_or_else(|| self.expected(accepted))
    }

    /// The line that says what is accepted in its place.
    pub fn expected(&self, accepted: &str) -> String {
        self.error(&format!("expected {accepted}"))
    }

    /// The line that says what is wrong with it.
    pub fn error(&self, problem: &str) -> String {
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
