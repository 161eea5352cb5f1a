//! The metrics: what they are called, how a request is recorded, and the page that shows them.
//!
//! The names, labels, buckets and HELP texts are those of a Flask application with
//! `prometheus_client`, so that a dashboard or an alert written for it works here unchanged. One
//! thing differs: no label takes a value from a client as it is, so the number of series is
//! bounded whatever clients send.
//!
//! The client library counts and observes. The page is written from its handles: with 45 methods
//! and endpoints that takes 22 µs, of which the library takes 10 to give out the buckets. Its
//! registry's `gather` takes 28 µs, and its encoder 131 µs more.

use std::array;
use std::cell::{Cell, OnceCell};
use std::time::{Duration, SystemTime};

use prometheus::core::Metric;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, proto};

use self::exposition::{Exemplar, Family, HistogramHeads, Page, family, head};
use self::process::Process;
use crate::config::Config;
use crate::http::{Method, Status};
use crate::trace_context::TraceContext;
use crate::wall_clock;

mod exposition;
mod format;
mod process;

pub use self::format::Format;

const REQUEST_LATENCY: Family =
    family!(histogram "app_request_latency_seconds" "Application Request Latency");
const REQUEST_COUNT: Family = family!(counter "app_request_count" "Application Request Count");
const VERSION: Family = family!(info "app_version" "Application Version");
const CONNECTIONS_MAX: Family =
    family!(gauge "app_connections_max" "Open client connections at most; 0 is without a bound.");
const CONNECTIONS_OPEN: Family = family!(gauge "app_connections_open" "Open client connections.");
const REQUESTS_IN_FLIGHT: Family = family!(gauge "app_requests_in_flight" "Requests received and not yet answered, this scrape included.");

/// A gauge, and which of the settings it shows.
type Configured = (Family, fn(&Config) -> f64);

/// What /probe is told to do.
const CONFIGURED: [Configured; 5] = [
    (
        family!(gauge "app_configured_fail_ratio" "Share of /probe that is to fail."),
        |settings| settings.fail_rate,
    ),
    (
        family!(gauge "app_configured_latency_seconds" "Mean latency that an ordinary /probe is to have."),
        |settings| settings.latency.as_secs_f64(),
    ),
    (
        family!(gauge "app_configured_slow_latency_seconds" "Mean latency that a slow /probe is to have."),
        |settings| settings.slow_latency.as_secs_f64(),
    ),
    (
        family!(gauge "app_configured_slow_ratio" "Share of the remaining /probe that is to be slow."),
        |settings| settings.slow_rate,
    ),
    (
        family!(gauge "app_configured_work_seconds" "CPU time that a successful /probe is to take."),
        |settings| settings.work.as_secs_f64(),
    ),
];

/// Upper bounds in seconds, the Python client's defaults, as numbers and as label values. The client
/// library adds `+Inf`.
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

/// The `endpoint` label: the path of a known route, or `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the route of its name")]
pub enum Endpoint {
    Root,
    Probe,
    Metrics,
    Healthz,
    Faults,
    Other,
}

impl Endpoint {
    const COUNT: usize = Self::Other as usize + 1;

    /// The value of the `endpoint` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Root => "/",
            Self::Probe => "/probe",
            Self::Metrics => "/metrics",
            Self::Healthz => "/healthz",
            Self::Faults => "/faults",
            Self::Other => "other",
        }
    }
}

/// All metrics of one service.
pub struct Metrics {
    series: [[OnceCell<Series>; Endpoint::COUNT]; Method::COUNT],
    connections_max: IntGauge,
    connections_open: IntGauge,
    requests_in_flight: IntGauge,
    process: Process,
    /// `app_version_info`, its value excepted.
    version: String,
    /// What the next page is written into.
    page: Cell<String>,
}

/// The series of one method and endpoint. They are there, and so on the page, from the first request
/// on.
struct Series {
    method: Method,
    endpoint: Endpoint,
    request_latency: Histogram,
    heads: HistogramHeads,
    /// The latest of each bucket. Nothing is held where no trace was.
    exemplars: OnceCell<Box<[Cell<Option<Exemplar>>; BUCKETS.len() + 1]>>,
    /// Each with what stands before its value.
    request_count: [OnceCell<(String, IntCounter)>; Status::COUNT],
}

impl Metrics {
    /// Every metric, at zero. `version` and `config` become the labels of `app_version_info`.
    pub fn new(version: &str, config: &str) -> Self {
        let metrics = Self {
            series: Default::default(),
            connections_max: gauge(&CONNECTIONS_MAX),
            connections_open: gauge(&CONNECTIONS_OPEN),
            requests_in_flight: gauge(&REQUESTS_IN_FLIGHT),
            process: Process::current(),
            version: head(VERSION.name, &[("config", config), ("version", version)]),
            page: Cell::default(),
        };
        // Exposed before the first request: of a series that is born as 1, `rate` misses the 1.
        let probe = metrics.series(Method::Get, Endpoint::Probe);
        probe.request_count(Status::Ok);
        probe.request_count(Status::InternalServerError);
        metrics
    }

    /// Records one request: its latency in the histogram, its status in the counter, its trace as the
    /// exemplar of its bucket.
    pub fn record(
        &self,
        method: Method,
        endpoint: Endpoint,
        status: Status,
        latency: Duration,
        trace: Option<TraceContext>,
    ) {
        let series = self.series(method, endpoint);
        let latency = latency.as_secs_f64();
        series.request_latency.observe(latency);
        series.request_count(status).inc();
        if let Some(trace) = trace {
            series.exemplify(latency, trace);
        }
    }

    /// The gauge of how many connections there may be, set by the server.
    pub fn connections_max(&self) -> &IntGauge {
        &self.connections_max
    }

    /// The gauge of open connections, kept by the server.
    pub fn connections_open(&self) -> &IntGauge {
        &self.connections_open
    }

    /// The gauge of requests that are received and not yet answered, kept by the server.
    pub fn requests_in_flight(&self) -> &IntGauge {
        &self.requests_in_flight
    }

    /// The page that Prometheus scrapes, while /probe is told to do as `settings` say.
    pub fn exposition(&self, format: Format, settings: &Config) -> String {
        let mut page = Page::new(format, self.page.take());
        for (family, value) in &CONFIGURED {
            page.single(family, value(settings));
        }
        page.single(&CONNECTIONS_MAX, self.connections_max.get());
        page.single(&CONNECTIONS_OPEN, self.connections_open.get());
        page.family(&REQUEST_COUNT);
        for series in self.all_series() {
            for (head, counter) in series.request_count.iter().filter_map(OnceCell::get) {
                page.sample(head, counter.get());
            }
        }
        page.family(&REQUEST_LATENCY);
        for series in self.all_series() {
            // One allocation: the library gives out the buckets no other way.
            let metric = series.request_latency.metric();
            let histogram = metric.get_histogram();
            let (sum, count) = (histogram.get_sample_sum(), histogram.get_sample_count());
            let counts = histogram.get_bucket().iter();
            let counts = counts.map(proto::Bucket::cumulative_count).chain([count]);
            let buckets = counts.enumerate();
            let buckets = buckets.map(|(index, count)| (count, series.exemplar(index)));
            page.histogram(&series.heads, buckets, sum, count);
        }
        page.single(&REQUESTS_IN_FLIGHT, self.requests_in_flight.get());
        page.family(&VERSION);
        page.sample(&self.version, 1_u64);
        self.process.write(&mut page);
        page.finish()
    }

    /// Puts back a page that nobody needs any more. The next is written into its memory: a static
    /// binary's allocator asks the kernel for that much, every time.
    pub fn put_back(&self, page: String) {
        self.page.set(page);
    }

    fn series(&self, method: Method, endpoint: Endpoint) -> &Series {
        self.series[method as usize][endpoint as usize]
            .get_or_init(|| Series::new(method, endpoint))
    }

    fn all_series(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().flatten().filter_map(OnceCell::get)
    }
}

impl Series {
    fn new(method: Method, endpoint: Endpoint) -> Self {
        let (numbers, labels): (Vec<f64>, Vec<&str>) = BUCKETS.into_iter().unzip();
        let options = HistogramOpts::new(REQUEST_LATENCY.name, REQUEST_LATENCY.help);
        let histogram = Histogram::with_opts(options.buckets(numbers));
        Self {
            method,
            endpoint,
            request_latency: histogram.expect("the buckets above are in order"),
            heads: HistogramHeads::new(
                REQUEST_LATENCY.name,
                &[("endpoint", endpoint.label()), ("method", method.label())],
                labels.into_iter().chain(["+Inf"]),
            ),
            exemplars: OnceCell::new(),
            request_count: array::from_fn(|_| OnceCell::new()),
        }
    }

    fn request_count(&self, status: Status) -> &IntCounter {
        let (_, counter) = self.request_count[status as usize].get_or_init(|| {
            let labels = [
                ("endpoint", self.endpoint.label()),
                ("http_status", status.label()),
                ("method", self.method.label()),
            ];
            let counter = IntCounter::new(REQUEST_COUNT.name, REQUEST_COUNT.help);
            (
                head(REQUEST_COUNT.name, &labels),
                counter.expect("the name above is valid"),
            )
        });
        counter
    }

    fn exemplify(&self, latency: f64, trace: TraceContext) {
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

/// A gauge of the client library. A name that it does not take is a mistake in the table above.
fn gauge(family: &Family) -> IntGauge {
    IntGauge::new(family.name, family.help).expect("the names above are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on the page but for `process_*` and the comments.
    fn page(metrics: &Metrics) -> String {
        let page = metrics.exposition(Format::Text, &Config::default());
        page.split_inclusive('\n')
            .filter(|line| line.starts_with("app_") && !line.starts_with("app_configured_"))
            .collect()
    }

    #[test]
    fn before_the_first_request_probe_is_at_zero_and_nothing_else_is_there() {
        let page = page(&Metrics::new("1", "develop"));
        let names = |prefix| page.lines().filter(move |line| line.starts_with(prefix));
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
        let others = page
            .lines()
            .filter(|line| !line.starts_with("app_request_"));
        assert_eq!(
            others.collect::<Vec<_>>(),
            [
                "app_connections_max 0",
                "app_connections_open 0",
                "app_requests_in_flight 0",
                "app_version_info{config=\"develop\",version=\"1\"} 1"
            ]
        );
    }

    #[test]
    fn a_request_is_counted_once_and_falls_into_every_bucket_above_its_latency() {
        let metrics = Metrics::new("1", "develop");
        let latency = Duration::from_millis(70);
        metrics.record(Method::Get, Endpoint::Healthz, Status::Ok, latency, None);
        let page = page(&metrics);
        let labels = "endpoint=\"/healthz\",method=\"GET\"";
        let bucket =
            |bound: &str| format!("app_request_latency_seconds_bucket{{{labels},le=\"{bound}\"}}");
        for bound in ["0.005", "0.01", "0.025", "0.05"] {
            assert!(page.contains(&format!("{} 0\n", bucket(bound))), "{page}");
        }
        for bound in [
            "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf",
        ] {
            assert!(page.contains(&format!("{} 1\n", bucket(bound))), "{page}");
        }
        for line in [
            "app_request_latency_seconds_sum{endpoint=\"/healthz\",method=\"GET\"} 0.07\n",
            "app_request_latency_seconds_count{endpoint=\"/healthz\",method=\"GET\"} 1\n",
            "app_request_count_total{endpoint=\"/healthz\",http_status=\"200\",method=\"GET\"} 1\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
        assert_eq!(page.matches("/healthz\",http_status").count(), 1);
    }

    #[test]
    fn a_trace_stands_at_the_bucket_that_its_latency_is_the_first_to_fall_into() {
        let trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = TraceContext::sampled(trace);
        for (millis, bound) in [(1, "0.005"), (5, "0.005"), (70, "0.075"), (11_000, "+Inf")] {
            let metrics = Metrics::new("1", "develop");
            let latency = Duration::from_millis(millis);
            metrics.record(Method::Get, Endpoint::Probe, Status::Ok, latency, trace);
            let page = metrics.exposition(Format::OpenMetrics, &Config::default());
            let lines = page.lines().filter(|line| line.contains("trace_id"));
            let lines: Vec<&str> = lines.collect();
            let le = format!(",le=\"{bound}\"}} 1 # {{");
            assert!(lines.len() == 1 && lines[0].contains(&le), "{lines:?}");
        }
    }

    #[test]
    fn a_latency_at_a_bound_falls_into_its_bucket_and_above_all_into_inf() {
        let metrics = Metrics::new("1", "develop");
        for latency in [5, 11_000] {
            let latency = Duration::from_millis(latency);
            metrics.record(Method::Get, Endpoint::Probe, Status::Ok, latency, None);
        }
        let page = page(&metrics);
        for (bound, count) in [("0.005", 1), ("10.0", 1), ("+Inf", 2)] {
            let bucket = format!("le=\"{bound}\"}} {count}\n");
            assert!(page.contains(&bucket), "{page}");
        }
    }

    #[test]
    fn every_bound_is_written_as_the_canonical_number() {
        for (bound, le) in BUCKETS {
            assert_eq!(le, format!("{bound:?}"));
        }
        assert!(BUCKETS.is_sorted_by(|(a, _), (b, _)| a < b));
    }

    #[test]
    fn label_values_from_the_command_line_are_escaped() {
        let page = page(&Metrics::new("1\"\n\\", "développement"));
        assert!(
            page.contains(r#"{config="développement",version="1\"\n\\"} 1"#),
            "{page}"
        );
    }

    #[test]
    fn every_label_value_is_distinct() {
        let statuses: std::collections::HashSet<_> = [
            Status::Ok,
            Status::NoContent,
            Status::BadRequest,
            Status::NotFound,
            Status::MethodNotAllowed,
            Status::RequestTimeout,
            Status::LengthRequired,
            Status::ContentTooLarge,
            Status::UriTooLong,
            Status::TooManyRequests,
            Status::RequestHeaderFieldsTooLarge,
            Status::ClientClosedRequest,
            Status::InternalServerError,
            Status::NotImplemented,
            Status::BadGateway,
            Status::ServiceUnavailable,
            Status::GatewayTimeout,
            Status::HttpVersionNotSupported,
        ]
        .map(Status::code)
        .into();
        assert_eq!(statuses.len(), Status::COUNT);
        assert!(statuses.iter().all(|code| (200..=505).contains(code)));
    }
}
