//! The formats of the exposition, and the choice between them by the `Accept` field of a scrape.

use bounded_http::is_token_byte;

/// A format of the exposition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The Prometheus text format 0.0.4.
    #[default]
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Returns the value of `Content-Type`. Prometheus 3 rejects an exposition whose content type it does not
    /// know.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            // No name contains a character that would have to be escaped, whatever the scheme.
            Self::OpenMetrics => {
                "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
            }
        }
    }

    /// Returns the format that an `Accept` field prefers (RFC 9110, section 12.5.1). This is the text
    /// format if both are equally acceptable, if neither is, or if the field is missing or malformed.
    pub fn preferred(accept: Option<&[u8]>) -> Self {
        match accept.and_then(qualities) {
            Some([text, open_metrics]) if open_metrics > text => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Returns the type, subtype and version that a media range is compared with.
    fn media_type(self) -> [&'static [u8]; 3] {
        match self {
            Self::Text => [b"text", b"plain", b"0.0.4"],
            Self::OpenMetrics => [b"application", b"openmetrics-text", b"1.0.0"],
        }
    }
}

/// The last `Accept` field and the format that it prefers. Prometheus sends the same field with each scrape,
/// and comparing it takes far fewer instructions than parsing it.
#[derive(Default)]
pub struct Preference {
    accept: Vec<u8>,
    format: Format,
}

impl Preference {
    /// Returns the same as [`Format::preferred`].
    pub fn of(&mut self, accept: Option<&[u8]>) -> Format {
        // A missing field and an empty one prefer the same format.
        let accept = accept.unwrap_or_default();
        if self.accept != accept {
            self.format = Format::preferred(Some(accept));
            self.accept = accept.to_vec();
        }
        self.format
    }
}

/// Returns the quality values of the text format and of `OpenMetrics`, in thousandths, or `None` if the
/// field is malformed.
fn qualities(accept: &[u8]) -> Option<[u16; 2]> {
    let mut input = Input(accept);
    let mut best = [(0, 0); 2];
    while input.skip_to_element() {
        let range = input.media_range()?;
        for (best, format) in best.iter_mut().zip([Format::Text, Format::OpenMetrics]) {
            // Only the most specific range counts.
            if let Some(specificity) = range.specificity(format) {
                *best = (*best).max((specificity, range.quality));
            }
        }
    }
    Some(best.map(|(_, quality)| quality))
}

/// An element of `Accept`, with the parameters that matter here.
struct MediaRange<'a> {
    kind: &'a [u8],
    subtype: &'a [u8],
    version: Option<&'a [u8]>,
    charset: Option<&'a [u8]>,
    quality: u16,
}

impl MediaRange<'_> {
    /// Returns how specifically the range matches a format, at least 1, or `None` if it does not match.
    /// Unknown parameters are ignored: Prometheus 3 adds `escaping=allow-utf-8`, which says what it
    /// supports and not what it requires.
    fn specificity(&self, format: Format) -> Option<u8> {
        let [kind, subtype, version] = format.media_type();
        let is_same = |accepted: &[u8], own: &[u8]| accepted.eq_ignore_ascii_case(own);
        let by_name = match (self.kind, self.subtype) {
            (b"*", b"*") => 1,
            (_, b"*") if is_same(self.kind, kind) => 2,
            _ if is_same(self.kind, kind) && is_same(self.subtype, subtype) => 3,
            _ => return None,
        };
        let mut parameters = 0;
        for (accepted, own) in [(self.version, version), (self.charset, b"utf-8")] {
            if let Some(accepted) = accepted {
                if !is_same(accepted, own) {
                    return None;
                }
                parameters += 1;
            }
        }
        Some(by_name + parameters)
    }
}

/// The part of a field value that is not parsed yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Skips whitespace and empty elements (RFC 9110, section 5.6.1.2). Returns whether another element
    /// follows.
    fn skip_to_element(&mut self) -> bool {
        while self.skip_whitespace().take(b',') {}
        !self.0.is_empty()
    }

    /// Parses a media range with its parameters, up to the next comma or the end.
    fn media_range(&mut self) -> Option<MediaRange<'a>> {
        let kind = self.token()?;
        let subtype = self.take(b'/').then(|| self.token())??;
        let mut range = MediaRange {
            kind,
            subtype,
            version: None,
            charset: None,
            quality: 1000,
        };
        let mut has_weight = false;
        while self.skip_whitespace().take(b';') {
            if matches!(self.skip_whitespace().0, [] | [b';' | b',', ..]) {
                continue;
            }
            let name = self.token()?;
            let value = self.take(b'=').then(|| self.token_or_quoted())??;
            if has_weight {
                // Parameters after the weight do not belong to the media type.
                continue;
            }
            if name.eq_ignore_ascii_case(b"q") {
                range.quality = parse_quality(value)?;
                has_weight = true;
            } else if name.eq_ignore_ascii_case(b"version") {
                range.version = Some(value);
            } else if name.eq_ignore_ascii_case(b"charset") {
                range.charset = Some(value);
            }
        }
        matches!(self.0, [] | [b',', ..]).then_some(range)
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|byte| !is_token_byte(*byte));
        let (token, rest) = self.0.split_at(length.unwrap_or(self.0.len()));
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// Parses a token, or a quoted string without its quotes. Quoted pairs are not unescaped, because no
    /// value compared here contains one.
    fn token_or_quoted(&mut self) -> Option<&'a [u8]> {
        if !self.take(b'"') {
            return self.token();
        }
        let mut is_escaped = false;
        let length = self.0.iter().position(|byte| {
            let is_end = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            is_end
        })?;
        let (quoted, rest) = self.0.split_at(length);
        self.0 = &rest[1..];
        Some(quoted)
    }

    fn skip_whitespace(&mut self) -> &mut Self {
        while self.take(b' ') || self.take(b'\t') {}
        self
    }

    fn take(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_prefix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

/// Parses a weight from 0 to 1 with at most three decimals (RFC 9110, section 12.4.2), in thousandths.
fn parse_quality(text: &[u8]) -> Option<u16> {
    let (whole, decimals) = match text {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut quality = u16::from(whole - b'0');
    for index in 0..3 {
        let digit = decimals.get(index).unwrap_or(&b'0');
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        quality = quality * 10 + digit;
    }
    (quality <= 1000).then_some(quality)
}

#[cfg(test)]
mod tests {
    use super::Format::{OpenMetrics, Text};
    use super::*;

    /// The client or the case, the field, the expected format.
    const ACCEPTS: &[(&str, &str, Format)] = &[
        // Scrapers.
        (
            "Prometheus 2.5 to 2.48, including 2.42",
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        ),
        (
            "Prometheus 2.49 to 2.54, including 2.53",
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OpenMetrics,
        ),
        (
            "Prometheus 2.53 with native histograms",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,application/openmetrics-text;version=0.0.1;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            OpenMetrics,
        ),
        (
            "Prometheus 3",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OpenMetrics,
        ),
        (
            "Prometheus 3 with legacy names",
            "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=underscores;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OpenMetrics,
        ),
        (
            "Prometheus 3 with scrape_protocols: [PrometheusText1.0.0]",
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.2,*/*;q=0.1",
            Text,
        ),
        (
            "Prometheus before 2.5",
            "text/plain;version=0.0.4;q=1,*/*;q=0.1",
            Text,
        ),
        (
            "VictoriaMetrics",
            "text/plain;version=0.0.4;q=1,*/*;q=0.1",
            Text,
        ),
        ("curl, wget", "*/*", Text),
        // Browsers.
        (
            "Firefox, Chrome",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
            Text,
        ),
        (
            "Firefox, for an image",
            "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
            Text,
        ),
        // The most specific range decides.
        ("one type", "application/openmetrics-text", OpenMetrics),
        ("any subtype of application", "application/*", OpenMetrics),
        ("any subtype of text", "text/*", Text),
        ("a tie", "text/plain, application/openmetrics-text", Text),
        (
            "a tie written with three decimals",
            "application/openmetrics-text;q=0.5,text/plain;q=0.500",
            Text,
        ),
        (
            "a difference of a thousandth",
            "application/openmetrics-text;q=0.501,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "anything except text/plain",
            "*/*, text/plain;q=0",
            OpenMetrics,
        ),
        (
            "anything except OpenMetrics",
            "application/openmetrics-text;q=0,*/*",
            Text,
        ),
        (
            "anything rather than text",
            "text/*;q=0.1,*/*;q=0.2",
            OpenMetrics,
        ),
        (
            "a wildcard range before a specific one",
            "application/*;q=0.9, application/openmetrics-text;q=0.1, text/plain;q=0.5",
            Text,
        ),
        (
            "a type before the same type with a version",
            "application/openmetrics-text;q=0.1,application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "the same range twice: the better quality counts",
            "application/openmetrics-text;q=0.1,application/openmetrics-text;q=0.9,text/plain;q=0.5",
            OpenMetrics,
        ),
        // Versions.
        (
            "only another version",
            "application/openmetrics-text;version=0.0.1",
            Text,
        ),
        (
            "a later version and, less preferred, this one",
            "application/openmetrics-text;version=2.0.0,application/openmetrics-text;version=1.0.0;q=0.5",
            OpenMetrics,
        ),
        (
            "a later version or anything",
            "application/openmetrics-text;version=2.0.0,*/*;q=0.5",
            Text,
        ),
        (
            "another charset",
            "application/openmetrics-text;charset=utf-16",
            Text,
        ),
        (
            "the same charset",
            "application/openmetrics-text; charset=UTF-8",
            OpenMetrics,
        ),
        // None of the two formats is accepted: the text format, never a 406.
        (
            "only protobuf",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            Text,
        ),
        ("only JSON", "application/json", Text),
        ("nothing", "*/*;q=0", Text),
        ("an empty list", "", Text),
        ("a list of empty elements", " , ,\t,", Text),
        // Unusual but well-formed.
        (
            "mixed case",
            "APPLICATION/OpenMetrics-Text;Version=1.0.0;Q=0.5",
            OpenMetrics,
        ),
        (
            "a quoted value",
            "application/openmetrics-text;version=\"1.0.0\"",
            OpenMetrics,
        ),
        (
            "a quoted comma",
            "application/openmetrics-text;x=\"a,b;q=0\\\"\";q=1.000,text/plain;q=0.9",
            OpenMetrics,
        ),
        (
            "whitespace",
            " application/openmetrics-text \t; version=1.0.0 ; q=0.9 , text/plain;q=0.8 ",
            OpenMetrics,
        ),
        (
            "empty elements",
            ",,application/openmetrics-text,,",
            OpenMetrics,
        ),
        (
            "empty parameters",
            "application/openmetrics-text;;q=0.5;",
            OpenMetrics,
        ),
        (
            "a parameter after the weight",
            "application/openmetrics-text;q=0.5;version=9,text/plain;q=0.4",
            OpenMetrics,
        ),
        (
            "a better quality for the version, listed first",
            "application/openmetrics-text;version=1.0.0;q=0.9,application/openmetrics-text;q=0.1,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "a better quality for the version, listed last",
            "application/openmetrics-text;q=0.1,application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "a worse quality for the version, listed first",
            "application/openmetrics-text;version=1.0.0;q=0.1,application/openmetrics-text;q=0.9,text/plain;q=0.5",
            Text,
        ),
        (
            "a worse quality for the version, listed last",
            "application/openmetrics-text;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1,text/plain;q=0.5",
            Text,
        ),
        // Malformed: treated like a missing field.
        (
            "Java before 19",
            "application/openmetrics-text, text/html, image/gif, *; q=.2, */*; q=.2",
            Text,
        ),
        ("no subtype", "application/openmetrics-text,text", Text),
        (
            "an empty subtype",
            "application/openmetrics-text,text/",
            Text,
        ),
        ("no type", "application/openmetrics-text,/plain", Text),
        (
            "a space instead of a comma",
            "application/openmetrics-text text/plain",
            Text,
        ),
        (
            "a parameter without a value",
            "application/openmetrics-text;version",
            Text,
        ),
        (
            "a space before the value",
            "application/openmetrics-text;q= 1",
            Text,
        ),
        (
            "four decimals",
            "application/openmetrics-text;q=0.9999",
            Text,
        ),
        (
            "a weight above 1",
            "application/openmetrics-text;q=1.001",
            Text,
        ),
        ("a weight of 2", "application/openmetrics-text;q=2", Text),
        (
            "a negative weight",
            "application/openmetrics-text;q=-1",
            Text,
        ),
        (
            "a weight of letters",
            "application/openmetrics-text;q=high",
            Text,
        ),
        ("an empty weight", "application/openmetrics-text;q=", Text),
        (
            "a missing closing quote",
            "application/openmetrics-text;version=\"1.0.0",
            Text,
        ),
        (
            "non-ASCII bytes",
            "application/openmetrics-text;x=\u{e9}",
            Text,
        ),
    ];

    #[test]
    fn the_accept_field_selects_the_format() {
        assert_eq!(Format::preferred(None), Text);
        // The preference remembers the previous field. Each result must be that of its own field.
        let mut preference = Preference::default();
        for (case, accept, expected) in ACCEPTS {
            let accept = Some(accept.as_bytes());
            for format in [
                Format::preferred(accept),
                preference.of(accept),
                preference.of(accept),
            ] {
                assert_eq!(format, *expected, "{case}: {accept:?}");
            }
            assert_eq!(preference.of(None), Text, "{case}");
        }
    }

    #[test]
    fn a_malformed_accept_field_is_ignored_as_a_whole() {
        // Each malformed field starts with OpenMetrics, which would be preferred if only the malformed
        // rest were ignored.
        for (case, accept, format) in ACCEPTS {
            let is_malformed = qualities(accept.as_bytes()).is_none();
            assert!(!is_malformed || *format == Text, "{case}");
            assert!(
                !is_malformed || accept.starts_with("application/openmetrics-text"),
                "{case}"
            );
        }
        let malformed = ACCEPTS
            .iter()
            .filter(|(_, accept, _)| qualities(accept.as_bytes()).is_none());
        assert_eq!(malformed.count(), 15);
    }
}
