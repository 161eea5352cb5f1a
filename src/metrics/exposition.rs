//! The page: families and their samples, as text format 0.0.4 or `OpenMetrics` 1.0.0.
//!
//! The client library's encoder knows the first only, writes `le="1"` for `le="1.0"`, and first has
//! the registry copy every name and label of every series. Here what stands before a value is made
//! once for each sample, and a page is copies of that: one long copy for a sample, and no allocation.

use std::fmt::Write;
use std::time::Duration;

use prometheus::proto::{Bucket, Metric, MetricFamily, MetricType};

use super::Format;
use crate::trace_context::TraceContext;

/// What the samples of one metric are called and what is said of them. Made by [`family!`].
pub struct Family {
    /// What the names of the samples are, or for a histogram begin with.
    pub name: &'static str,
    /// What stands before the value where there are no labels.
    pub head: &'static str,
    /// The HELP text.
    pub help: &'static str,
    /// The lines before the samples, in each format.
    pub text: &'static str,
    /// See `text`.
    pub open_metrics: &'static str,
}

/// A [`Family`] of a type, a name and a HELP text. The name is that of `OpenMetrics`, where the samples
/// of a counter or an info have a suffix that their family has not; in the text format both have it,
/// and an info is a gauge.
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
            head: concat!($sample, " "),
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

/// Compiles for a HELP text that both formats write as it is: the text format escapes `\` and line
/// breaks in it, `OpenMetrics` quotes as well.
pub const fn assert_plain(help: &str) {
    let mut index = 0;
    while index < help.len() {
        assert!(!matches!(help.as_bytes()[index], b'\\' | b'\n' | b'"'));
        index += 1;
    }
}

/// What stands before the values of one histogram.
pub struct HistogramHeads {
    buckets: Vec<String>,
    sum: String,
    count: String,
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
    /// An empty page, in the memory of another.
    pub fn new(format: Format, mut memory: String) -> Self {
        memory.clear();
        Self {
            format,
            text: memory,
        }
    }

    /// Starts a family. All its samples have to follow before the next one starts.
    pub fn family(&mut self, family: &Family) {
        self.text.push_str(match self.format {
            Format::Text => family.text,
            Format::OpenMetrics => family.open_metrics,
        });
    }

    /// Writes a sample of a counter, a gauge or an info. [`head`] makes what stands before it.
    pub fn sample(&mut self, head: &str, value: impl Value) {
        self.text.push_str(head);
        value.write(&mut self.text);
        self.text.push('\n');
    }

    /// Writes a family with one sample and no labels.
    pub fn single(&mut self, family: &Family, value: impl Value) {
        self.family(family);
        self.sample(family.head, value);
    }

    /// Writes a family with so many samples, which differ in a label with a number and are 1.
    pub fn numbered(&mut self, family: &Family, label: &str, count: u32) {
        self.family(family);
        let head = [family.name, "{", label, "=\""].concat();
        let mut number = itoa::Buffer::new();
        for index in 0..count {
            for part in [&head, number.format(index), "\"} 1\n"] {
                self.text.push_str(part);
            }
        }
    }

    /// Writes the samples of one histogram. Each bucket has a cumulative count and one of its
    /// observations, for which the text format has no place.
    pub fn histogram(
        &mut self,
        heads: &HistogramHeads,
        buckets: impl Iterator<Item = (u64, Option<Exemplar>)>,
        sum: f64,
        count: u64,
    ) {
        for (head, (cumulative_count, exemplar)) in heads.buckets.iter().zip(buckets) {
            self.text.push_str(head);
            cumulative_count.write(&mut self.text);
            if let Some(exemplar) = exemplar
                && self.format == Format::OpenMetrics
            {
                exemplar.write(&mut self.text);
            }
            self.text.push('\n');
        }
        self.sample(&heads.sum, sum);
        self.sample(&heads.count, count);
    }

    /// Writes metrics of the client library: counters, gauges and histograms.
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
            // A String takes every write.
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
                self.sample(&head(name, &labels), metric.get_counter().get_value());
            }
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let bounds = histogram.get_bucket().iter().map(Bucket::upper_bound);
                // With a fraction, as `le="1.0"`.
                let bounds = bounds.map(|bound| format!("{bound:?}"));
                let bounds: Vec<String> = bounds.chain(["+Inf".to_owned()]).collect();
                let heads = HistogramHeads::new(name, &labels, bounds.iter().map(String::as_str));
                let count = histogram.get_sample_count();
                let counts = histogram.get_bucket().iter().map(Bucket::cumulative_count);
                let buckets = counts.chain([count]).map(|count| (count, None));
                self.histogram(&heads, buckets, histogram.get_sample_sum(), count);
            }
            _ => self.sample(&head(name, &labels), metric.get_gauge().get_value()),
        }
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl HistogramHeads {
    /// Those of the histogram with this name, these labels, and these values of `le`.
    pub fn new<'a>(name: &str, labels: Labels, bounds: impl Iterator<Item = &'a str>) -> Self {
        let bucket = |le| head(&format!("{name}_bucket"), &[labels, &[("le", le)]].concat());
        Self {
            buckets: bounds.map(bucket).collect(),
            sum: head(&format!("{name}_sum"), labels),
            count: head(&format!("{name}_count"), labels),
        }
    }
}

/// Label names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// What stands before the value of a sample. In label values both formats escape the same (text
/// format: `label_value`; `OpenMetrics`: `escaped-string`).
pub fn head(name: &str, labels: Labels) -> String {
    let mut head = name.to_owned();
    for (index, (name, value)) in labels.iter().enumerate() {
        head.push(if index == 0 { '{' } else { ',' });
        head.push_str(name);
        head.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => head.push_str("\\\\"),
                '"' => head.push_str("\\\""),
                '\n' => head.push_str("\\n"),
                other => head.push(other),
            }
        }
        head.push('"');
    }
    head.push_str(if labels.is_empty() { " " } else { "} " });
    head
}

/// A number as it stands on the page.
pub trait Value {
    /// Writes it.
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
    /// The shortest decimal that reads back as the same float, which is what `Display` gives.
    fn write(self, to: &mut String) {
        // A String takes every write.
        let _ = write!(to, "{self}");
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

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU64, NonZeroU128};

    use super::*;

    const COUNTER: Family = family!(counter "c" "A count.");

    fn in_both(write: impl Fn(&mut Page)) -> [String; 2] {
        [Format::Text, Format::OpenMetrics].map(|format| {
            let mut page = Page::new(format, String::new());
            write(&mut page);
            page.finish()
        })
    }

    #[test]
    fn each_format_names_a_family_in_its_way() {
        const GAUGE: Family = family!(gauge "g" "A gauge.");
        const INFO: Family = family!(info "i" "An info.");
        let [text, open_metrics] = in_both(|page| {
            page.single(&COUNTER, 1_u64);
            page.single(&GAUGE, -1_i64);
            page.family(&INFO);
            page.sample(&head(INFO.name, &[("a", "b")]), 1_u64);
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
        assert_eq!(head("x", &[]), "x ");
        assert_eq!(
            head("x", &[("a", "\"\\\n\\n"), ("b", "é\r{,}")]),
            "x{a=\"\\\"\\\\\\n\\\\n\",b=\"é\r{,}\"} "
        );
    }

    #[test]
    fn a_help_text_that_would_need_escaping_is_refused() {
        assert_plain("Seconds (s), 100 %: 'é'");
        for help in ["a\nb", "a\\b", "a \"b\""] {
            assert!(std::panic::catch_unwind(|| assert_plain(help)).is_err());
        }
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
            let [text, _] = in_both(|page| page.single(&COUNTER, value));
            let written = text.rsplit(' ').next().unwrap().trim_end();
            assert_eq!(written.parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
        let [text, _] = in_both(|page| page.single(&COUNTER, 0.3));
        assert!(text.ends_with("\nc_total 0.3\n"), "{text}");
    }

    #[test]
    fn a_histogram_has_its_buckets_then_sum_and_count() {
        const HISTOGRAM: Family = family!(histogram "h" "H");
        let exemplar = Exemplar {
            trace: TraceContext {
                trace_id: NonZeroU128::new(0xab).unwrap(),
                span_id: NonZeroU64::new(0xc).unwrap(),
            },
            value: 0.75,
            time: Duration::new(1_795_334_674, 7_999_999),
        };
        let [text, open_metrics] = in_both(|page| {
            page.family(&HISTOGRAM);
            for labels in [&[][..], &[("a", "b")]] {
                let bounds = ["0.5", "1.0", "+Inf"].into_iter();
                let heads = HistogramHeads::new(HISTOGRAM.name, labels, bounds);
                let buckets = [(1, None), (2, Some(exemplar)), (3, None)];
                page.histogram(&heads, buckets.into_iter(), 2.5, 3);
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
