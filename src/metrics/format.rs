//! The formats of the page, and which of them a scraper is given: the one that its `Accept` prefers.

use bounded_http::is_token_byte;

/// A format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The value of `Content-Type`. Prometheus 3 refuses a scrape without one that it knows.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            // The names here have nothing that the escaping of names would change.
            Self::OpenMetrics => {
                "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
            }
        }
    }

    /// The format that an `Accept` field prefers (RFC 9110, section 12.5.1). The text format if both
    /// are as welcome, if neither is, or if the field is not there or cannot be read.
    pub fn preferred(accept: Option<&[u8]>) -> Self {
        match accept.and_then(qualities) {
            Some([text, open_metrics]) if open_metrics > text => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// What a media range is held against: type, subtype and version.
    fn media_type(self) -> [&'static [u8]; 3] {
        match self {
            Self::Text => [b"text", b"plain", b"0.0.4"],
            Self::OpenMetrics => [b"application", b"openmetrics-text", b"1.0.0"],
        }
    }
}

/// How welcome the text format is, and `OpenMetrics`, in thousandths; `None` if a field is malformed.
fn qualities(accept: &[u8]) -> Option<[u16; 2]> {
    let mut input = Input(accept);
    let mut best = [(0, 0); 2];
    while input.skip_to_element() {
        let range = input.media_range()?;
        for (best, format) in best.iter_mut().zip([Format::Text, Format::OpenMetrics]) {
            // The most specific range decides, whatever the others say.
            if let Some(specificity) = range.specificity(format) {
                *best = (*best).max((specificity, range.quality));
            }
        }
    }
    Some(best.map(|(_, quality)| quality))
}

/// An element of `Accept`.
struct MediaRange<'a> {
    kind: &'a [u8],
    subtype: &'a [u8],
    version: Option<&'a [u8]>,
    charset: Option<&'a [u8]>,
    quality: u16,
}

impl MediaRange<'_> {
    /// How closely it describes a format, 1 at least; `None` if it does not. Other parameters say
    /// nothing of it: Prometheus 3 adds `escaping=allow-utf-8`, which is an offer.
    fn specificity(&self, format: Format) -> Option<u8> {
        let [kind, subtype, version] = format.media_type();
        let is_same = |asked: &[u8], own: &[u8]| asked.eq_ignore_ascii_case(own);
        let by_name = match (self.kind, self.subtype) {
            (b"*", b"*") => 1,
            (asked, b"*") if is_same(asked, kind) => 2,
            (asked, b) if is_same(asked, kind) && is_same(b, subtype) => 3,
            _ => return None,
        };
        let mut parameters = 0;
        for (asked, own) in [(self.version, version), (self.charset, b"utf-8")] {
            if let Some(asked) = asked {
                if !is_same(asked, own) {
                    return None;
                }
                parameters += 1;
            }
        }
        Some(by_name + parameters)
    }
}

/// What is still to be read of a field value.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Skips to the next element of the list, past empty ones (RFC 9110, section 5.6.1.2). `false` at
    /// the end.
    fn skip_to_element(&mut self) -> bool {
        while self.skip_whitespace().take(b',') {}
        !self.0.is_empty()
    }

    /// A media range with its parameters, and nothing behind it but a comma.
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
        let mut is_weighed = false;
        while self.skip_whitespace().take(b';') {
            if matches!(self.skip_whitespace().0, [] | [b';' | b',', ..]) {
                continue;
            }
            let name = self.token()?;
            let value = self.take(b'=').then(|| self.token_or_quoted())??;
            if is_weighed {
                // What follows the weight is no parameter of the media type.
                continue;
            }
            if name.eq_ignore_ascii_case(b"q") {
                range.quality = read_quality(value)?;
                is_weighed = true;
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

    /// A token, or what is between quotes. A quoted pair stays as it is: no value that is looked for
    /// needs one.
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

/// A weight from 0 to 1 with three decimals at most (RFC 9110, section 12.4.2), in thousandths.
fn read_quality(text: &[u8]) -> Option<u16> {
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

    /// Who sends it, the field, what it gets.
    const ACCEPTS: &[(&str, &str, Format)] = &[
        // Scrapers.
        (
            "Prometheus 2.5 to 2.48, 2.42 among them",
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        ),
        (
            "Prometheus 2.49 to 2.54, 2.53 among them",
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
            "Prometheus 3 with names as before",
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
            "Firefox, of an image",
            "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
            Text,
        ),
        // The most specific range decides.
        ("one type", "application/openmetrics-text", OpenMetrics),
        ("any type of one kind", "application/*", OpenMetrics),
        ("any text", "text/*", Text),
        ("a tie", "text/plain, application/openmetrics-text", Text),
        (
            "a tie by three decimals",
            "application/openmetrics-text;q=0.5,text/plain;q=0.500",
            Text,
        ),
        (
            "a thousandth",
            "application/openmetrics-text;q=0.501,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "all the same, one refused",
            "*/*, text/plain;q=0",
            OpenMetrics,
        ),
        (
            "all the same, the other refused",
            "application/openmetrics-text;q=0,*/*",
            Text,
        ),
        ("all but text", "text/*;q=0.1,*/*;q=0.2", OpenMetrics),
        (
            "a kind before a type",
            "application/*;q=0.9, application/openmetrics-text;q=0.1, text/plain;q=0.5",
            Text,
        ),
        (
            "a type before its version",
            "application/openmetrics-text;q=0.1,application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "of two the same the better",
            "application/openmetrics-text;q=0.1,application/openmetrics-text;q=0.9,text/plain;q=0.5",
            OpenMetrics,
        ),
        // Versions.
        (
            "another version only",
            "application/openmetrics-text;version=0.0.1",
            Text,
        ),
        (
            "a later version first",
            "application/openmetrics-text;version=2.0.0,application/openmetrics-text;version=1.0.0;q=0.5",
            OpenMetrics,
        ),
        (
            "a later version, and any",
            "application/openmetrics-text;version=2.0.0,*/*;q=0.5",
            Text,
        ),
        (
            "another charset",
            "application/openmetrics-text;charset=utf-16",
            Text,
        ),
        (
            "the charset",
            "application/openmetrics-text; charset=UTF-8",
            OpenMetrics,
        ),
        // Nothing that is here: never a 406.
        (
            "protobuf only",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            Text,
        ),
        ("JSON only", "application/json", Text),
        ("nothing is welcome", "*/*;q=0", Text),
        ("an empty list", "", Text),
        ("a list of nothing", " , ,\t,", Text),
        // Odd, and well-formed.
        (
            "in any case",
            "APPLICATION/OpenMetrics-Text;Version=1.0.0;Q=0.5",
            OpenMetrics,
        ),
        (
            "in quotes",
            "application/openmetrics-text;version=\"1.0.0\"",
            OpenMetrics,
        ),
        (
            "a comma in quotes",
            "application/openmetrics-text;x=\"a,b;q=0\\\"\";q=1.000,text/plain;q=0.9",
            OpenMetrics,
        ),
        (
            "white space",
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
            "more after the weight",
            "application/openmetrics-text;q=0.5;version=9,text/plain;q=0.4",
            OpenMetrics,
        ),
        (
            "a version more closely, before",
            "application/openmetrics-text;version=1.0.0;q=0.9,application/openmetrics-text;q=0.1,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "a version more closely, behind",
            "application/openmetrics-text;q=0.1,application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5",
            OpenMetrics,
        ),
        (
            "a version less wanted, before",
            "application/openmetrics-text;version=1.0.0;q=0.1,application/openmetrics-text;q=0.9,text/plain;q=0.5",
            Text,
        ),
        (
            "a version less wanted, behind",
            "application/openmetrics-text;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1,text/plain;q=0.5",
            Text,
        ),
        // Broken, and so as none.
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
            "a space for a comma",
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
        ("no weight", "application/openmetrics-text;q=", Text),
        (
            "quotes without an end",
            "application/openmetrics-text;version=\"1.0.0",
            Text,
        ),
        (
            "bytes beyond ASCII",
            "application/openmetrics-text;x=\u{e9}",
            Text,
        ),
    ];

    #[test]
    fn accept_gets_what_it_prefers() {
        assert_eq!(Format::preferred(None), Text);
        for (who, accept, expected) in ACCEPTS {
            let format = Format::preferred(Some(accept.as_bytes()));
            assert_eq!(format, *expected, "{who}: {accept}");
        }
    }

    #[test]
    fn every_broken_accept_is_broken_for_its_end() {
        // Each begins with what would be preferred.
        for (who, accept, format) in ACCEPTS {
            let is_broken = qualities(accept.as_bytes()).is_none();
            assert!(!is_broken || *format == Text, "{who}");
            assert!(
                !is_broken || accept.starts_with("application/openmetrics-text"),
                "{who}"
            );
        }
        let broken = ACCEPTS
            .iter()
            .filter(|(_, accept, _)| qualities(accept.as_bytes()).is_none());
        assert_eq!(broken.count(), 15);
    }
}
