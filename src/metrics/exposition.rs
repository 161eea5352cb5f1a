//! The page: families and their samples, as text format 0.0.4 or `OpenMetrics` 1.0.0.
//!
//! The client library's encoder knows the first only, writes `le="1"` for `le="1.0"`, and first has
//! the registry copy every name and label of every series. This one writes each sample from where
//! it is kept, and allocates nothing but the page.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::Format;
use crate::trace_context::TraceContext;

/// What a metric is called, what it is, and what it says of itself.
pub struct Family {
    /// The name without the suffix that its samples have, as `OpenMetrics` has it.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// The HELP text.
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever goes up. Its samples are called `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets.
    Histogram,
    /// A 1 whose labels say something. Its samples are called `_info`; in the text format, which
    /// has no such type, it is a gauge.
    Info,
}

/// Label names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A bucket of a histogram.
pub struct Bucket<'a> {
    /// The upper bound, as it stands in the label: the text that `OpenMetrics` calls canonical.
    pub le: &'a str,
    /// How many observations were at most that.
    pub cumulative_count: u64,
    /// One of those that are in no bucket below. The text format has no place for it.
    pub exemplar: Option<Exemplar>,
}

/// An observation by which a trace can be found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// Where it was made.
    pub trace: TraceContext,
    /// What was observed.
    pub value: f64,
    /// When, since the epoch.
    pub time: Duration,
}

/// A page that is being written.
pub struct Page {
    format: Format,
    text: String,
}

impl Page {
    /// An empty page, with room for so many bytes.
    pub fn new(format: Format, capacity: usize) -> Self {
        Self {
            format,
            text: String::with_capacity(capacity),
        }
    }

    /// Starts a family. All its samples have to follow before the next one starts.
    pub fn family<'a>(&'a mut self, family: &'a Family) -> Samples<'a> {
        let suffix = family.kind.suffix();
        let (suffix, kind, escapes_quotes) = match self.format {
            Format::Text => (suffix, family.kind.in_text(), false),
            Format::OpenMetrics => ("", family.kind.in_open_metrics(), true),
        };
        for part in ["# HELP ", family.name, suffix, " "] {
            self.text.push_str(part);
        }
        escape(&mut self.text, family.help, escapes_quotes);
        for part in ["\n# TYPE ", family.name, suffix, " ", kind, "\n"] {
            self.text.push_str(part);
        }
        Samples { family, page: self }
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl Kind {
    /// What the names of the samples end with.
    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }

    fn in_text(self) -> &'static str {
        match self {
            Self::Info => Self::Gauge.in_open_metrics(),
            other => other.in_open_metrics(),
        }
    }

    fn in_open_metrics(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// Where the samples of a family are written.
pub struct Samples<'a> {
    family: &'a Family,
    page: &'a mut Page,
}

impl Samples<'_> {
    /// Writes a sample of a counter, a gauge or an info. A float is written as the shortest
    /// decimal that reads back as the same float, as `Display` does.
    pub fn sample(&mut self, labels: Labels, value: impl Display) {
        self.series(self.family.kind.suffix(), labels);
        self.value(value);
    }

    /// Writes the samples of one histogram. The buckets are in order, the last is that of `+Inf`.
    pub fn histogram<'a>(
        &mut self,
        labels: Labels,
        buckets: impl IntoIterator<Item = Bucket<'a>>,
        sum: f64,
        count: u64,
    ) {
        let start = self.page.text.len();
        self.name("_bucket");
        self.page.text.push('{');
        self.labels(labels);
        self.page
            .text
            .push_str(if labels.is_empty() { "le=\"" } else { ",le=\"" });
        // Written once, and copied: it is most of the page.
        let prefix = start..self.page.text.len();
        let mut itoa = itoa::Buffer::new();
        for (index, bucket) in buckets.into_iter().enumerate() {
            let text = &mut self.page.text;
            if index > 0 {
                text.extend_from_within(prefix.clone());
            }
            text.push_str(bucket.le);
            text.push_str("\"} ");
            text.push_str(itoa.format(bucket.cumulative_count));
            if let Some(exemplar) = bucket.exemplar
                && self.page.format == Format::OpenMetrics
            {
                exemplar.write(text);
            }
            text.push('\n');
        }
        self.series("_sum", labels);
        self.value(sum);
        self.series("_count", labels);
        self.value(count);
    }

    fn series(&mut self, suffix: &str, labels: Labels) {
        self.name(suffix);
        if !labels.is_empty() {
            self.page.text.push('{');
            self.labels(labels);
            self.page.text.push('}');
        }
        self.page.text.push(' ');
    }

    fn name(&mut self, suffix: &str) {
        self.page.text.push_str(self.family.name);
        self.page.text.push_str(suffix);
    }

    fn labels(&mut self, labels: Labels) {
        for (index, (name, value)) in labels.iter().enumerate() {
            if index > 0 {
                self.page.text.push(',');
            }
            self.page.text.push_str(name);
            self.page.text.push_str("=\"");
            escape(&mut self.page.text, value, true);
            self.page.text.push('"');
        }
    }

    fn value(&mut self, value: impl Display) {
        // A String takes every write.
        let _ = writeln!(self.page.text, "{value}");
    }
}

impl Exemplar {
    fn write(&self, to: &mut String) {
        let Self { trace, value, time } = self;
        let TraceContext { trace_id, span_id } = trace;
        let (seconds, milliseconds) = (time.as_secs(), time.subsec_millis());
        // A String takes every write.
        let _ = write!(
            to,
            " # {{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} {value} {seconds}.{milliseconds:03}"
        );
    }
}

/// Writes a text so that it stays on its line and, if need be, within its quotes. Both formats do it
/// so for label values, `OpenMetrics` for HELP as well; the text format leaves quotes in HELP alone.
fn escape(to: &mut String, text: &str, with_quotes: bool) {
    let mut rest = text;
    let is_special = |byte: u8| byte == b'\\' || byte == b'\n' || (byte == b'"' && with_quotes);
    while let Some(place) = rest.bytes().position(is_special) {
        to.push_str(&rest[..place]);
        to.push('\\');
        to.push_str(match &rest[place..=place] {
            "\n" => "n",
            other => other,
        });
        rest = &rest[place + 1..];
    }
    to.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: Family = Family {
        name: "c",
        kind: Kind::Counter,
        help: "A \"count\"\nof \\.",
    };

    fn in_both(write: impl Fn(&mut Page)) -> [String; 2] {
        [Format::Text, Format::OpenMetrics].map(|format| {
            let mut page = Page::new(format, 0);
            write(&mut page);
            page.finish()
        })
    }

    #[test]
    fn help_and_label_values_are_escaped_as_each_format_says() {
        let [text, open_metrics] = in_both(|page| {
            let mut samples = page.family(&COUNTER);
            samples.sample(&[("a", "\"\\\n"), ("b", "é\r{,}")], 1);
            samples.sample(&[], 2);
        });
        let samples = "c_total{a=\"\\\"\\\\\\n\",b=\"é\r{,}\"} 1\nc_total 2\n";
        assert_eq!(
            text,
            "# HELP c_total A \"count\"\\nof \\\\.\n# TYPE c_total counter\n".to_owned() + samples
        );
        assert_eq!(
            open_metrics,
            "# HELP c A \\\"count\\\"\\nof \\\\.\n# TYPE c counter\n".to_owned()
                + samples
                + "# EOF\n"
        );
    }

    #[test]
    fn a_float_reads_back_as_the_same_float() {
        for value in [
            0.0,
            1.0,
            0.1 + 0.2,
            1e-9,
            1_795_334_674.13,
            1e16,
            f64::MAX,
            5e-324,
        ] {
            let [text, _] = in_both(|page| page.family(&COUNTER).sample(&[], value));
            let written = text.rsplit(' ').next().unwrap().trim_end();
            assert_eq!(written.parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
        let [text, _] = in_both(|page| page.family(&COUNTER).sample(&[], 0.3));
        assert!(text.ends_with("\nc_total 0.3\n"), "{text}");
    }

    #[test]
    fn a_histogram_has_its_buckets_then_sum_and_count() {
        const HISTOGRAM: Family = Family {
            name: "h",
            kind: Kind::Histogram,
            help: "H",
        };
        let exemplar = Exemplar {
            trace: TraceContext {
                trace_id: 0xab,
                span_id: 0xc,
            },
            value: 0.75,
            time: Duration::new(1_795_334_674, 7_999_999),
        };
        let [text, open_metrics] = in_both(|page| {
            let mut samples = page.family(&HISTOGRAM);
            for labels in [&[][..], &[("a", "b")]] {
                let buckets = [
                    ("0.5", 1, None),
                    ("1.0", 2, Some(exemplar)),
                    ("+Inf", 3, None),
                ];
                let buckets = buckets.map(|(le, cumulative_count, exemplar)| Bucket {
                    le,
                    cumulative_count,
                    exemplar,
                });
                samples.histogram(labels, buckets, 2.5, 3);
            }
        });
        let samples = r#"h_bucket{le="0.5"} 1
h_bucket{le="1.0"} 2
h_bucket{le="+Inf"} 3
h_sum 2.5
h_count 3
h_bucket{a="b",le="0.5"} 1
h_bucket{a="b",le="1.0"} 2
h_bucket{a="b",le="+Inf"} 3
h_sum{a="b"} 2.5
h_count{a="b"} 3
"#;
        assert_eq!(text, format!("# HELP h H\n# TYPE h histogram\n{samples}"));
        let ids = "{trace_id=\"000000000000000000000000000000ab\",span_id=\"000000000000000c\"}";
        let exemplar = format!("\"1.0\"}} 2 # {ids} 0.75 1795334674.007\n");
        let traced = text.replace("\"1.0\"} 2\n", &exemplar);
        assert_eq!(open_metrics, traced + "# EOF\n");
    }
}
