//! Writes the exposition: families and their samples, as text format 0.0.4 or `OpenMetrics` 1.0.0.
//!
//! The client library's encoder supports only the text format and writes `le="1"` instead of
//! `le="1.0"`. Before it encodes, the registry copies every name and label of every series. Here the
//! name and labels of a sample are formatted once, when its series is created. An exposition copies them,
//! each with one `push_str` and without an allocation.

use std::fmt::Write;
use std::time::Duration;

use prometheus::proto::{Bucket, Metric, MetricFamily, MetricType};

use super::format::Format;
use crate::trace_context::TraceContext;

/// The name of a metric and the comment lines that describe it. Created with [`family!`].
pub struct Family {
    /// The name of the samples. The samples of a histogram add a suffix to it.
    pub name: &'static str,
    /// The name followed by a space, as it precedes the value of a sample without labels.
    pub unlabeled_name: &'static str,
    /// The HELP text.
    pub help: &'static str,
    /// The HELP and TYPE lines in the text format.
    pub text: &'static str,
    /// The HELP and TYPE lines in `OpenMetrics`.
    pub open_metrics: &'static str,
}

/// Creates a [`Family`] from a type, a name and a HELP text.
///
/// The name is without the suffix `_total` of a counter or `_info` of an info. In `OpenMetrics` only
/// the samples have the suffix. In the text format the HELP and TYPE lines have it too, and the type
/// of an info is gauge.
macro_rules! family {
    (counter $name:literal $help:literal) => {
        family!(concat!($name, "_total"), "counter", $name, "counter", $help)
    };
    (gauge $name:literal $help:literal) => {
        family!($name, "gauge", $name, "gauge", $help)
    };
    (histogram $name:literal $help:literal) => {
        family!($name, "histogram", $name, "histogram", $help)
    };
    (info $name:literal $help:literal) => {
        family!(concat!($name, "_info"), "gauge", $name, "info", $help)
    };
    ($sample:expr, $kind:literal, $family:literal, $family_kind:literal, $help:literal) => {{
        const { $crate::metrics::exposition::assert_plain($help) }
        $crate::metrics::exposition::Family {
            name: $sample,
            unlabeled_name: concat!($sample, " "),
            help: $help,
            text: concat!(
                "# HELP ",
                $sample,
                " ",
                $help,
                "\n# TYPE ",
                $sample,
                " ",
                $kind,
                "\n"
            ),
            open_metrics: concat!(
                "# HELP ",
                $family,
                " ",
                $help,
                "\n# TYPE ",
                $family,
                " ",
                $family_kind,
                "\n"
            ),
        }
    }};
}
pub(super) use family;

/// Fails to compile if a HELP text contains a character that would have to be escaped. The text format
/// escapes `\` and line breaks, and `OpenMetrics` also escapes quotes.
pub const fn assert_plain(help: &str) {
    let mut index = 0;
    while index < help.len() {
        assert!(!matches!(help.as_bytes()[index], b'\\' | b'\n' | b'"'));
        index += 1;
    }
}

/// The names and labels of the samples of one histogram, each as [`labeled_name`] returns it.
pub struct HistogramNames {
    buckets: Vec<String>,
    sum: String,
    count: String,
}

/// An observed value together with the trace that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// The trace of the request.
    pub trace: TraceContext,
    /// The observed value.
    pub value: f64,
    /// When the value was observed, since the epoch.
    pub time: Duration,
}

/// An exposition that is being written.
pub struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    /// Creates an empty exposition that uses the memory of an earlier one.
    pub fn new(format: Format, mut memory: String) -> Self {
        memory.clear();
        Self {
            format,
            text: memory,
        }
    }

    /// Returns the format of the exposition.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns what has been written so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Appends text that an earlier exposition contained.
    pub fn append(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Starts a family. All its samples must follow before the next family starts.
    pub fn family(&mut self, family: &Family) {
        self.text.push_str(match self.format {
            Format::Text => family.text,
            Format::OpenMetrics => family.open_metrics,
        });
    }

    /// Writes a sample of a counter, a gauge or an info, with a name from [`labeled_name`].
    pub fn sample(&mut self, labeled_name: &str, value: impl Value) {
        self.text.push_str(labeled_name);
        value.write(&mut self.text);
        self.text.push('\n');
    }

    /// Writes a family with one sample and no labels.
    pub fn single(&mut self, family: &Family, value: impl Value) {
        self.family(family);
        self.sample(family.unlabeled_name, value);
    }

    /// Writes a family with this number of samples. Each has the value 1 and its number as its label.
    pub fn numbered(&mut self, family: &Family, label: &str, count: u32) {
        self.family(family);
        let name = [family.name, "{", label, "=\""].concat();
        let mut number = itoa::Buffer::new();
        for index in 0..count {
            for part in [&name, number.format(index), "\"} 1\n"] {
                self.text.push_str(part);
            }
        }
    }

    /// Writes the samples of one histogram. Each bucket has a cumulative count and possibly an
    /// exemplar, which the text format omits because it has no syntax for it.
    pub fn histogram(
        &mut self,
        names: &HistogramNames,
        buckets: impl Iterator<Item = (u64, Option<Exemplar>)>,
        sum: f64,
        count: u64,
    ) {
        for (name, (cumulative_count, exemplar)) in names.buckets.iter().zip(buckets) {
            self.text.push_str(name);
            cumulative_count.write(&mut self.text);
            if let Some(exemplar) = exemplar
                && self.format == Format::OpenMetrics
            {
                exemplar.write(&mut self.text);
            }
            self.text.push('\n');
        }
        self.sample(&names.sum, sum);
        self.sample(&names.count, count);
    }

    /// Writes families collected by the client library: counters, gauges and histograms.
    pub fn collected(&mut self, families: &[MetricFamily]) {
        for family in families {
            let name = family.name();
            // In OpenMetrics the samples of a counter have a suffix that their family does not have.
            let family_name = match self.format {
                Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
                Format::Text => name,
            };
            let kind = match family.get_field_type() {
                MetricType::COUNTER => "counter",
                MetricType::HISTOGRAM => "histogram",
                _ => "gauge",
            };
            let help = family.help().replace('\\', "\\\\").replace('\n', "\\n");
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, "# HELP {family_name} {help}");
            let _ = writeln!(self.text, "# TYPE {family_name} {kind}");
            for metric in family.get_metric() {
                self.collected_metric(name, family.get_field_type(), metric);
            }
        }
    }

    fn collected_metric(&mut self, name: &str, kind: MetricType, metric: &Metric) {
        let labels = metric.get_label().iter();
        let labels: Vec<_> = labels.map(|pair| (pair.name(), pair.value())).collect();
        match kind {
            MetricType::COUNTER => {
                let value = metric.get_counter().get_value();
                self.sample(&labeled_name(name, &labels), value);
            }
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let bounds = histogram.get_bucket().iter().map(Bucket::upper_bound);
                // `Debug` writes whole numbers with a fraction, as in `le="1.0"`.
                let bounds = bounds.map(|bound| format!("{bound:?}"));
                let bounds: Vec<String> = bounds.chain(["+Inf".to_owned()]).collect();
                let bounds: Vec<&str> = bounds.iter().map(String::as_str).collect();
                let names = HistogramNames::new(name, &labels, &bounds);
                let count = histogram.get_sample_count();
                let counts = histogram.get_bucket().iter().map(Bucket::cumulative_count);
                let buckets = counts.chain([count]).map(|count| (count, None));
                self.histogram(&names, buckets, histogram.get_sample_sum(), count);
            }
            _ => self.sample(&labeled_name(name, &labels), metric.get_gauge().get_value()),
        }
    }

    /// Ends the exposition and returns its text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl HistogramNames {
    /// Formats the names of a histogram with these labels and these values of `le`.
    pub fn new(name: &str, labels: Labels, bounds: &[&str]) -> Self {
        let bucket = |le: &&str| {
            let labels = [labels, &[("le", *le)]].concat();
            labeled_name(&format!("{name}_bucket"), &labels)
        };
        Self {
            buckets: bounds.iter().map(bucket).collect(),
            sum: labeled_name(&format!("{name}_sum"), labels),
            count: labeled_name(&format!("{name}_count"), labels),
        }
    }
}

/// Label names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Formats a name with its labels and the space before the value. Both formats escape label values the
/// same way (`label_value` in the text format, `escaped-string` in `OpenMetrics`).
pub fn labeled_name(name: &str, labels: Labels) -> String {
    let mut text = name.to_owned();
    for (index, (name, value)) in labels.iter().enumerate() {
        text.push(if index == 0 { '{' } else { ',' });
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        for part in [name, "=\"", &value, "\""] {
            text.push_str(part);
        }
    }
    text.push_str(if labels.is_empty() { " " } else { "} " });
    text
}

/// A number that can be the value of a sample.
pub trait Value {
    /// Appends the number to `to`.
    fn write(self, to: &mut String);
}

impl Value for u64 {
    fn write(self, to: &mut String) {
        to.push_str(itoa::Buffer::new().format(self));
    }
}

impl Value for i64 {
    fn write(self, to: &mut String) {
        to.push_str(itoa::Buffer::new().format(self));
    }
}

impl Value for f64 {
    /// Appends the shortest decimal that parses to the same float, which `Display` writes. Most values are
    /// whole numbers, which itoa formats with a fraction of the instructions. Below 2^53 it writes the same digits.
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "comparing the bits detects a number that the casts change"
    )]
    fn write(self, to: &mut String) {
        let whole = self as u64;
        // Comparing the bits excludes -0 and NaN.
        if whole < 1 << f64::MANTISSA_DIGITS && (whole as f64).to_bits() == self.to_bits() {
            return whole.write(to);
        }
        // Writing to a String cannot fail.
        let _ = write!(to, "{self}");
    }
}

impl Exemplar {
    fn write(&self, to: &mut String) {
        let Self { trace, value, time } = self;
        let TraceContext { trace_id, span_id } = trace;
        let (seconds, milliseconds) = (time.as_secs(), time.subsec_millis());
        // Writing to a String cannot fail.
        let _ = write!(
            to,
            " # {{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} {value} {seconds}.{milliseconds:03}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU64, NonZeroU128};

    use super::*;

    const COUNTER: Family = family!(counter "c" "A count.");

    #[test]
    fn a_float_is_written_as_display_writes_it() {
        let whole = [0.0, 1.0, 9.0, 86_400.0, 4_503_599_627_370_496.0];
        let large = [2_f64.powi(53), 2_f64.powi(63), 2_f64.powi(64), 1e300];
        let other = [0.1, 0.25, 1.5, 1_795_833_600.25, f64::MIN_POSITIVE];
        for value in whole.into_iter().chain(large).chain(other) {
            for value in [value, value.next_up(), value.next_down(), -value] {
                let mut text = String::new();
                value.write(&mut text);
                assert_eq!(text, value.to_string());
            }
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut text = String::new();
            value.write(&mut text);
            assert_eq!(text, value.to_string());
        }
    }

    /// Returns the exposition in the text format and in `OpenMetrics`.
    fn in_both(write: impl Fn(&mut Exposition)) -> [String; 2] {
        [Format::Text, Format::OpenMetrics].map(|format| {
            let mut exposition = Exposition::new(format, String::new());
            write(&mut exposition);
            exposition.finish()
        })
    }

    #[test]
    fn family_names_and_types_differ_between_the_formats() {
        const GAUGE: Family = family!(gauge "g" "A gauge.");
        const INFO: Family = family!(info "i" "An info.");
        let [text, open_metrics] = in_both(|exposition| {
            exposition.single(&COUNTER, 1_u64);
            exposition.single(&GAUGE, -1_i64);
            exposition.family(&INFO);
            exposition.sample(&labeled_name(INFO.name, &[("a", "b")]), 1_u64);
        });
        assert_eq!(
            text,
            "# HELP c_total A count.\n# TYPE c_total counter\nc_total 1\n\
             # HELP g A gauge.\n# TYPE g gauge\ng -1\n\
             # HELP i_info An info.\n# TYPE i_info gauge\ni_info{a=\"b\"} 1\n"
        );
        assert_eq!(
            open_metrics,
            "# HELP c A count.\n# TYPE c counter\nc_total 1\n\
             # HELP g A gauge.\n# TYPE g gauge\ng -1\n\
             # HELP i An info.\n# TYPE i info\ni_info{a=\"b\"} 1\n# EOF\n"
        );
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(labeled_name("x", &[]), "x ");
        assert_eq!(
            labeled_name("x", &[("a", "\"\\\n\\n"), ("b", "é\r{,}")]),
            "x{a=\"\\\"\\\\\\n\\\\n\",b=\"é\r{,}\"} "
        );
    }

    #[test]
    fn help_texts_that_need_escaping_are_rejected() {
        assert_plain("Seconds (s), 100 %: 'é'");
        for help in ["a\nb", "a\\b", "a \"b\""] {
            assert!(std::panic::catch_unwind(|| assert_plain(help)).is_err());
        }
    }

    #[test]
    fn floats_parse_to_the_same_float() {
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
            let [text, _] = in_both(|exposition| exposition.single(&COUNTER, value));
            let number = text.rsplit(' ').next().unwrap().trim_end();
            assert_eq!(number.parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
        let [text, _] = in_both(|exposition| exposition.single(&COUNTER, 0.3));
        assert!(text.ends_with("\nc_total 0.3\n"), "{text}");
    }

    #[test]
    fn a_histogram_is_written_as_buckets_then_sum_then_count() {
        const HISTOGRAM: Family = family!(histogram "h" "H");
        let exemplar = Exemplar {
            trace: TraceContext {
                trace_id: NonZeroU128::new(0xab).unwrap(),
                span_id: NonZeroU64::new(0xc).unwrap(),
            },
            value: 0.75,
            time: Duration::new(1_795_334_674, 7_999_999),
        };
        let [text, open_metrics] = in_both(|exposition| {
            exposition.family(&HISTOGRAM);
            for labels in [&[][..], &[("a", "b")]] {
                let names = HistogramNames::new(HISTOGRAM.name, labels, &["0.5", "1.0", "+Inf"]);
                let buckets = [(1, None), (2, Some(exemplar)), (3, None)];
                exposition.histogram(&names, buckets.into_iter(), 2.5, 3);
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
        let with_exemplars = text.replace("\"1.0\"} 2\n", &exemplar);
        assert_eq!(open_metrics, with_exemplars + "# EOF\n");
    }
}
