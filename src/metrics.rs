//! The metrics: their names, how a request is recorded, and the exposition.
//!
//! The names, labels, buckets and HELP texts of the request metrics are those of a Flask application
//! that uses `prometheus_client`, so dashboards and alerts written for it work unchanged. The one
//! difference: no label value is copied from a request, so the number of series is bounded whatever
//! clients send.
//!
//! The client library counts, and this module reads the values from it and writes the exposition, because
//! the library's own registry and encoder take several times as long. `make microbench` times an exposition.
//! `make bench` compares a scrape with those of servers that use that registry and encoder.

use std::array;
use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::time::{Duration, SystemTime};

use bounded_http::Method;
use prometheus::core::{Collector, Metric};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, proto};

use self::exposition::{Exemplar, Exposition, Family, HistogramNames, family, labeled_name};
use self::process::Process;
use crate::config::ProbeSettings;
use crate::target::Target;
use crate::trace_context::TraceContext;
use crate::wall_clock;

mod exposition;
mod format;
mod process;

pub use self::format::{Format, Preference};

const REQUEST_LATENCY: Family =
    family!(histogram "app_request_latency_seconds" "Application Request Latency");
const REQUEST_COUNT: Family = family!(counter "app_request_count" "Application Request Count");
const VERSION: Family = family!(info "app_version" "Application Version");
const CONNECTIONS_MAX: Family = family!(gauge "app_connections_max"
    "Maximum number of open client connections; 0 means unlimited.");
const CONNECTIONS_OPEN: Family =
    family!(gauge "app_connections_open" "Number of open client connections.");
const EXTRA: Family =
    family!(gauge "app_extra" "Extra series, a fault that is set through /faults/process.");
const FAULT_ACTIVE: Family = family!(gauge "app_fault_active"
    "Whether a change made through /faults is in force, by target.");
const REQUESTS_IN_FLIGHT: Family = family!(gauge "app_requests_in_flight"
    "Number of requests received and not yet responded to, including this scrape.");

/// A gauge and the setting that it exposes.
type Configured = (Family, fn(&ProbeSettings) -> f64);

/// The current settings of /probe.
const CONFIGURED: [Configured; 6] = [
    (
        family!(gauge "app_configured_fail_latency_seconds" "Configured mean latency of /probe requests that fail."),
        |settings| settings.fail_latency.as_secs_f64(),
    ),
    (
        family!(gauge "app_configured_fail_ratio" "Configured fraction of /probe requests that fail."),
        |settings| settings.fail_rate,
    ),
    (
        family!(gauge "app_configured_latency_seconds" "Configured mean latency of an ordinary /probe request."),
        |settings| settings.latency.as_secs_f64(),
    ),
    (
        family!(gauge "app_configured_slow_latency_seconds" "Configured mean latency of a slow /probe request."),
        |settings| settings.slow_latency.as_secs_f64(),
    ),
    (
        family!(gauge "app_configured_slow_ratio" "Configured fraction of the remaining /probe requests that are slow."),
        |settings| settings.slow_rate,
    ),
    (
        family!(gauge "app_configured_work_seconds" "Configured CPU time of a successful /probe request."),
        |settings| settings.work.as_secs_f64(),
    ),
];

/// The upper bounds in seconds, as numbers and as label values. They are the Python client's defaults.
/// The client library adds `+Inf`.
const BUCKETS: [(f64, &str); 14] = [
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.075, "0.075"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (0.75, "0.75"),
    (1.0, "1.0"),
    (2.5, "2.5"),
    (5.0, "5.0"),
    (7.5, "7.5"),
    (10.0, "10.0"),
];

/// The `endpoint` label: the path of a known route, or `other`. Its number is the index of its series,
/// so recording a request needs no lookup by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    number: usize,
    label: &'static str,
}

impl Endpoint {
    /// The endpoint of requests whose path is not a route.
    pub const OTHER: Self = Self {
        number: 0,
        label: "other",
    };

    /// Returns the endpoint of the route with this index and path.
    pub const fn of_route(index: usize, path: &'static str) -> Self {
        Self {
            number: index + 1,
            label: path,
        }
    }

    /// Returns the value of the `endpoint` label.
    pub fn label(self) -> &'static str {
        self.label
    }
}

/// The settings in force when an exposition is written.
pub struct InForce<'a> {
    /// The settings of /probe.
    pub probe: &'a ProbeSettings,
    /// Returns whether a change to a target is in force.
    pub is_active: &'a dyn Fn(Target) -> bool,
    /// The number of series of `app_extra`. The exposition omits a family without series.
    pub extra_series: u32,
}

/// All metrics of one service.
pub struct Metrics {
    /// Indexed by method and by the number of the endpoint.
    series: [Box<[OnceCell<Series>]>; Method::COUNT],
    /// The metrics added with [`counter`](Self::counter) and [`register`](Self::register).
    registered: RefCell<Vec<Box<dyn Collector>>>,
    connections_max: IntGauge,
    connections_open: IntGauge,
    requests_in_flight: IntGauge,
    /// The samples of `app_fault_active` without their values, one for each target.
    fault_active: [(Target, String); Target::COUNT],
    process: Process,
    /// The name and labels of `app_version_info`.
    version_name: String,
    /// The buffer for the next exposition, returned by [`reuse`](Self::reuse) and taken by
    /// [`exposition`](Self::exposition).
    buffer: Cell<String>,
}

/// The series of one method and endpoint. They are created, and therefore exposed, with the first
/// request.
struct Series {
    method: Method,
    endpoint: Endpoint,
    request_latency: Histogram,
    histogram_names: HistogramNames,
    /// The samples of the histogram in the last exposition.
    cached_samples: RefCell<Option<CachedSamples>>,
    /// The latest exemplar of each bucket. Allocated with the first sampled trace, because most series
    /// never have one.
    exemplars: OnceCell<Box<[Cell<Option<Exemplar>>; BUCKETS.len() + 1]>>,
    /// A counter for each status recorded so far, sorted by status. There are only a few.
    request_count: RefCell<Vec<RequestCount>>,
}

/// The samples of a histogram in an exposition.
struct CachedSamples {
    format: Format,
    /// The number of requests.
    count: u64,
    samples: Box<str>,
}

/// The counter of one status.
struct RequestCount {
    status: &'static str,
    labeled_name: String,
    counter: IntCounter,
}

impl Metrics {
    /// Creates all metrics at zero, for this number of routes. `version` and `config` become the
    /// labels of `app_version_info`.
    pub fn new(routes: usize, version: &str, config: &str) -> Self {
        let mut targets = Target::all().map(|target| {
            let labels = [("target", target.name())];
            (target, labeled_name(FAULT_ACTIVE.name, &labels))
        });
        Self {
            series: array::from_fn(|_| (0..=routes).map(|_| OnceCell::new()).collect()),
            registered: RefCell::default(),
            connections_max: gauge(&CONNECTIONS_MAX),
            connections_open: gauge(&CONNECTIONS_OPEN),
            requests_in_flight: gauge(&REQUESTS_IN_FLIGHT),
            fault_active: array::from_fn(|_| targets.next().expect("there are this many targets")),
            process: Process::current(),
            version_name: labeled_name(VERSION.name, &[("config", config), ("version", version)]),
            buffer: Cell::default(),
        }
    }

    /// Exposes the series of a status from the start, at 0. If a series first appears with the value 1,
    /// `rate()` never sees it rise from 0 and misses that request.
    pub fn expose(&self, method: Method, endpoint: Endpoint, status: &'static str) {
        self.series(method, endpoint).request_counter(status);
    }

    /// Adds a counter with labels to the exposition and returns it. `name` must end with `_total`.
    ///
    /// ```
    /// let metrics = tiny_probe::metrics::Metrics::new(0, "1", "develop");
    /// let quotes = metrics.counter("app_quotes_total", "Quotes served.", &["author"]);
    /// quotes.with_label_values(&["unknown"]).inc();
    /// ```
    ///
    /// # Panics
    /// If a name is not valid, or if a label is repeated.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let counter = IntCounterVec::new(Opts::new(name, help), labels);
        let counter = counter.expect("the names are valid and differ");
        self.register(counter.clone());
        counter
    }

    /// Adds a metric to the exposition: a counter, gauge or histogram of the client library, or a
    /// vector of them with labels. Register a clone and keep the original to update it; both refer to
    /// the same metric.
    pub fn register(&self, collector: impl Collector + 'static) {
        self.registered.borrow_mut().push(Box::new(collector));
    }

    /// Records one request: its latency in the histogram, its status in the counter, and its trace, if
    /// sampled, as the exemplar of its bucket. `status` is the three digits of the status code.
    pub fn record(
        &self,
        method: Method,
        endpoint: Endpoint,
        status: &'static str,
        latency: Duration,
        trace: Option<TraceContext>,
    ) {
        let series = self.series(method, endpoint);
        let latency = latency.as_secs_f64();
        series.request_latency.observe(latency);
        series.request_counter(status).inc();
        if let Some(trace) = trace {
            series.set_exemplar(latency, trace);
        }
    }

    /// Sets the effective limit on connections; 0 means unlimited.
    pub fn set_connections_max(&self, limit: usize) {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connections_max.set(limit);
    }

    /// Returns the gauge of open connections.
    pub fn connections_open(&self) -> &IntGauge {
        &self.connections_open
    }

    /// Returns the gauge of requests received and not yet responded to.
    pub fn requests_in_flight(&self) -> &IntGauge {
        &self.requests_in_flight
    }

    /// Returns when this process started, in seconds since the epoch, where the kernel says it.
    pub fn process_start_time(&self) -> Option<f64> {
        self.process.start_time()
    }

    /// Makes the next exposition read the values of `process_*` again. All expositions between two calls show
    /// the same values.
    pub fn discard_process_reading(&self) {
        self.process.discard_reading();
    }

    /// Returns the text that Prometheus scrapes.
    pub fn exposition(&self, format: Format, in_force: &InForce<'_>) -> String {
        let mut exposition = Exposition::new(format, self.buffer.take());
        for (family, value) in &CONFIGURED {
            exposition.single(family, value(in_force.probe));
        }
        exposition.single(&CONNECTIONS_MAX, self.connections_max.get());
        exposition.single(&CONNECTIONS_OPEN, self.connections_open.get());
        if in_force.extra_series > 0 {
            exposition.numbered(&EXTRA, "id", in_force.extra_series);
        }
        exposition.family(&FAULT_ACTIVE);
        for (target, name) in &self.fault_active {
            exposition.sample(name, u64::from((in_force.is_active)(*target)));
        }
        exposition.family(&REQUEST_COUNT);
        for series in self.all_series() {
            for count in &*series.request_count.borrow() {
                exposition.sample(&count.labeled_name, count.counter.get());
            }
        }
        exposition.family(&REQUEST_LATENCY);
        for series in self.all_series() {
            series.write_latency(&mut exposition);
        }
        exposition.single(&REQUESTS_IN_FLIGHT, self.requests_in_flight.get());
        exposition.family(&VERSION);
        exposition.sample(&self.version_name, 1_u64);
        for collector in &*self.registered.borrow() {
            exposition.collected(&collector.collect());
        }
        self.process.write(&mut exposition);
        exposition.finish()
    }

    /// Takes back the memory of an exposition that has been sent, for use by the next one. Without this, the
    /// allocator of the static binary requests the memory from the kernel for every scrape.
    pub fn reuse(&self, mut memory: Vec<u8>) {
        memory.clear();
        // Cannot fail: an empty buffer is valid UTF-8.
        self.buffer
            .set(String::from_utf8(memory).unwrap_or_default());
    }

    fn series(&self, method: Method, endpoint: Endpoint) -> &Series {
        self.series[method as usize][endpoint.number].get_or_init(|| Series::new(method, endpoint))
    }

    fn all_series(&self) -> impl Iterator<Item = &Series> {
        let series = self.series.iter().flatten();
        series.filter_map(OnceCell::get)
    }
}

impl Series {
    fn new(method: Method, endpoint: Endpoint) -> Self {
        let (numbers, mut labels): (Vec<f64>, Vec<&str>) = BUCKETS.into_iter().unzip();
        labels.push("+Inf");
        let options = HistogramOpts::new(REQUEST_LATENCY.name, REQUEST_LATENCY.help);
        let histogram = Histogram::with_opts(options.buckets(numbers));
        Self {
            method,
            endpoint,
            request_latency: histogram.expect("the buckets above are in order"),
            histogram_names: HistogramNames::new(
                REQUEST_LATENCY.name,
                &[("endpoint", endpoint.label()), ("method", method.label())],
                &labels,
            ),
            cached_samples: RefCell::default(),
            exemplars: OnceCell::new(),
            request_count: RefCell::default(),
        }
    }

    /// Returns the counter of this status, which is created if it does not exist yet.
    fn request_counter(&self, status: &'static str) -> RefMut<'_, IntCounter> {
        let mut counts = self.request_count.borrow_mut();
        let found = counts.binary_search_by_key(&status, |count| count.status);
        let index = found.unwrap_or_else(|index| {
            let labels = [
                ("endpoint", self.endpoint.label()),
                ("http_status", status),
                ("method", self.method.label()),
            ];
            let counter = IntCounter::new(REQUEST_COUNT.name, REQUEST_COUNT.help);
            let count = RequestCount {
                status,
                labeled_name: labeled_name(REQUEST_COUNT.name, &labels),
                counter: counter.expect("the name above is valid"),
            };
            counts.insert(index, count);
            index
        });
        RefMut::map(counts, |counts| &mut counts[index].counter)
    }

    /// Writes the samples of the histogram. If no request has been recorded since they were last written in
    /// this format, copies them: buckets, sum and exemplars change only when a request is recorded.
    fn write_latency(&self, exposition: &mut Exposition) {
        let (format, count) = (exposition.format(), self.request_latency.get_sample_count());
        let mut cached = self.cached_samples.borrow_mut();
        if let Some(cached) = &*cached
            && (cached.format, cached.count) == (format, count)
        {
            return exposition.append(&cached.samples);
        }
        let start = exposition.text().len();
        // This allocates, but the library has no other way to read the buckets.
        let metric = self.request_latency.metric();
        let histogram = metric.get_histogram();
        let counts = histogram.get_bucket().iter();
        let counts = counts.map(proto::Bucket::cumulative_count).chain([count]);
        let buckets = counts.enumerate();
        let buckets = buckets.map(|(index, count)| (count, self.exemplar(index)));
        exposition.histogram(
            &self.histogram_names,
            buckets,
            histogram.get_sample_sum(),
            count,
        );
        *cached = Some(CachedSamples {
            format,
            count,
            samples: exposition.text()[start..].into(),
        });
    }

    fn set_exemplar(&self, latency: f64, trace: TraceContext) {
        let bucket = BUCKETS.iter().position(|(bound, _)| latency <= *bound);
        let exemplars = self.exemplars.get_or_init(Default::default);
        exemplars[bucket.unwrap_or(BUCKETS.len())].set(Some(Exemplar {
            trace,
            value: latency,
            time: wall_clock::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        }));
    }

    fn exemplar(&self, bucket: usize) -> Option<Exemplar> {
        self.exemplars.get()?[bucket].get()
    }
}

/// Creates a gauge of the client library. It fails only for an invalid name in the constants above.
fn gauge(family: &Family) -> IntGauge {
    IntGauge::new(family.name, family.help).expect("the names above are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Endpoint = Endpoint::of_route(0, "/probe");
    const HEALTHZ: Endpoint = Endpoint::of_route(1, "/healthz");

    fn metrics() -> Metrics {
        let metrics = Metrics::new(2, "1", "develop");
        for status in ["200", "500"] {
            metrics.expose(Method::Get, PROBE, status);
        }
        metrics
    }

    fn exposition(metrics: &Metrics, format: Format) -> String {
        let in_force = InForce {
            probe: &ProbeSettings::default(),
            is_active: &|target| target == Target::Process,
            extra_series: 0,
        };
        metrics.exposition(format, &in_force)
    }

    /// Returns the samples of the exposition except `process_*` and `app_configured_*`.
    fn samples(metrics: &Metrics) -> String {
        let exposition = exposition(metrics, Format::Text);
        exposition
            .split_inclusive('\n')
            .filter(|line| line.starts_with("app_") && !line.starts_with("app_configured_"))
            .collect()
    }

    #[test]
    fn before_the_first_request_only_the_series_of_probe_exist_and_are_0() {
        let samples = samples(&metrics());
        let names = |prefix| samples.lines().filter(move |line| line.starts_with(prefix));
        assert_eq!(
            names("app_request_count").collect::<Vec<_>>(),
            [
                "app_request_count_total{endpoint=\"/probe\",http_status=\"200\",method=\"GET\"} 0",
                "app_request_count_total{endpoint=\"/probe\",http_status=\"500\",method=\"GET\"} 0",
            ]
        );
        assert_eq!(names("app_request_latency").count(), BUCKETS.len() + 3);
        let probe = "endpoint=\"/probe\",method=\"GET\"";
        for line in names("app_request_latency") {
            assert!(line.contains(probe) && line.ends_with(" 0"), "{line}");
        }
        let others = samples
            .lines()
            .filter(|line| !line.starts_with("app_request_"));
        assert_eq!(
            others.collect::<Vec<_>>(),
            [
                "app_connections_max 0",
                "app_connections_open 0",
                "app_fault_active{target=\"probe\"} 0",
                "app_fault_active{target=\"metrics\"} 0",
                "app_fault_active{target=\"healthz\"} 0",
                "app_fault_active{target=\"readyz\"} 0",
                "app_fault_active{target=\"process\"} 1",
                "app_requests_in_flight 0",
                "app_version_info{config=\"develop\",version=\"1\"} 1"
            ]
        );
    }

    #[test]
    fn a_request_is_counted_once_and_in_every_bucket_at_or_above_its_latency() {
        let metrics = metrics();
        let latency = Duration::from_millis(70);
        metrics.record(Method::Get, HEALTHZ, "200", latency, None);
        let samples = samples(&metrics);
        let labels = "endpoint=\"/healthz\",method=\"GET\"";
        let bucket =
            |bound: &str| format!("app_request_latency_seconds_bucket{{{labels},le=\"{bound}\"}}");
        for bound in ["0.005", "0.01", "0.025", "0.05"] {
            assert!(
                samples.contains(&format!("{} 0\n", bucket(bound))),
                "{samples}"
            );
        }
        for bound in [
            "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf",
        ] {
            assert!(
                samples.contains(&format!("{} 1\n", bucket(bound))),
                "{samples}"
            );
        }
        for line in [
            "app_request_latency_seconds_sum{endpoint=\"/healthz\",method=\"GET\"} 0.07\n",
            "app_request_latency_seconds_count{endpoint=\"/healthz\",method=\"GET\"} 1\n",
            "app_request_count_total{endpoint=\"/healthz\",http_status=\"200\",method=\"GET\"} 1\n",
        ] {
            assert!(samples.contains(line), "{samples}");
        }
        assert_eq!(samples.matches("/healthz\",http_status").count(), 1);
    }

    #[test]
    fn an_exemplar_is_attached_to_the_lowest_bucket_that_includes_its_latency() {
        let trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = TraceContext::sampled(trace);
        for (millis, bound) in [(1, "0.005"), (5, "0.005"), (70, "0.075"), (11_000, "+Inf")] {
            let metrics = metrics();
            let latency = Duration::from_millis(millis);
            metrics.record(Method::Get, PROBE, "200", latency, trace);
            let exposition = exposition(&metrics, Format::OpenMetrics);
            let lines = exposition.lines().filter(|line| line.contains("trace_id"));
            let lines: Vec<&str> = lines.collect();
            let le = format!(",le=\"{bound}\"}} 1 # {{");
            assert!(lines.len() == 1 && lines[0].contains(&le), "{lines:?}");
        }
    }

    /// Parts of an exposition are copied from the previous one as long as nothing in them has changed.
    #[test]
    fn an_exposition_that_follows_others_is_the_same_as_a_first_one() {
        let latencies = [1, 300, 1, 20_000].map(Duration::from_millis);
        let kept = metrics();
        for recorded in 0..=latencies.len() {
            if let Some(index) = recorded.checked_sub(1) {
                kept.record(Method::Get, HEALTHZ, "200", latencies[index], None);
            }
            for fail_rate in [0.0, 0.25] {
                let probe = ProbeSettings {
                    fail_rate,
                    ..ProbeSettings::default()
                };
                for format in [Format::Text, Format::OpenMetrics, Format::OpenMetrics] {
                    let first = metrics();
                    for latency in &latencies[..recorded] {
                        first.record(Method::Get, HEALTHZ, "200", *latency, None);
                    }
                    let [first, exposition] = [&first, &kept].map(|metrics| {
                        let in_force = InForce {
                            probe: &probe,
                            is_active: &|_| false,
                            extra_series: 0,
                        };
                        let exposition = metrics.exposition(format, &in_force);
                        let lines = exposition.lines().filter(|line| !line.contains("process_"));
                        lines.map(str::to_owned).collect::<Vec<_>>()
                    });
                    assert_eq!(exposition, first);
                }
            }
        }
    }

    #[test]
    fn a_latency_equal_to_a_bound_is_in_its_bucket_and_one_above_all_bounds_is_in_inf() {
        let metrics = metrics();
        for latency in [5, 11_000] {
            let latency = Duration::from_millis(latency);
            metrics.record(Method::Get, PROBE, "200", latency, None);
        }
        let samples = samples(&metrics);
        for (bound, count) in [("0.005", 1), ("10.0", 1), ("+Inf", 2)] {
            let bucket = format!("le=\"{bound}\"}} {count}\n");
            assert!(samples.contains(&bucket), "{samples}");
        }
    }

    #[test]
    fn bounds_are_sorted_and_their_labels_are_the_canonical_numbers() {
        for (bound, le) in BUCKETS {
            assert_eq!(le, format!("{bound:?}"));
        }
        assert!(BUCKETS.is_sorted_by(|(a, _), (b, _)| a < b));
    }

    #[test]
    fn label_values_from_the_command_line_are_escaped() {
        let samples = samples(&Metrics::new(2, "1\"\n\\", "développement"));
        assert!(
            samples.contains(r#"{config="développement",version="1\"\n\\"} 1"#),
            "{samples}"
        );
    }

    #[test]
    fn registered_metrics_are_exposed_in_both_formats() {
        use prometheus::{GaugeVec, HistogramVec};

        let metrics = metrics();
        let orders = metrics.counter("orders_total", "Orders, by \\ and\nkind.", &["kind"]);
        let size = GaugeVec::new(Opts::new("size_bytes", "Size."), &["of"]).unwrap();
        metrics.register(size.clone());
        let options = HistogramOpts::new("wait_seconds", "Wait.").buckets(vec![0.5, 1.0]);
        let wait = HistogramVec::new(options, &["for"]).unwrap();
        metrics.register(wait.clone());
        orders.with_label_values(&["book"]).inc_by(2);
        size.with_label_values(&["\"x\""]).set(1.5);
        wait.with_label_values(&["it"]).observe(0.75);

        let text = exposition(&metrics, Format::Text);
        let rest = "# HELP size_bytes Size.\n# TYPE size_bytes gauge\n\
            size_bytes{of=\"\\\"x\\\"\"} 1.5\n\
            # HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\n\
            wait_seconds_bucket{for=\"it\",le=\"0.5\"} 0\n\
            wait_seconds_bucket{for=\"it\",le=\"1.0\"} 1\n\
            wait_seconds_bucket{for=\"it\",le=\"+Inf\"} 1\n\
            wait_seconds_sum{for=\"it\"} 0.75\nwait_seconds_count{for=\"it\"} 1\n";
        let counter = "# HELP orders_total Orders, by \\\\ and\\nkind.\n\
            # TYPE orders_total counter\norders_total{kind=\"book\"} 2\n";
        assert!(text.contains(&(counter.to_owned() + rest)), "{text}");
        let text = exposition(&metrics, Format::OpenMetrics);
        let counter = counter
            .replace("HELP orders_total", "HELP orders")
            .replace("TYPE orders_total", "TYPE orders");
        assert!(text.contains(&(counter + rest)), "{text}");
    }
}
