//! The metrics: what they are called, how a request is recorded, and the exposition.
//!
//! The names, labels, buckets and HELP texts are those of a Flask application with
//! `prometheus_client`, so that a dashboard or an alert written for it works here unchanged. One
//! thing differs: no label takes a value from a client as it is, so the number of series is
//! bounded whatever clients send.

use std::cell::OnceCell;
use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder, core::Collector,
};

use crate::config::Config;
use crate::http::{Method, Status};

/// The exposition's media type. Prometheus 3 refuses a scrape without one that it knows.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds in seconds, the Python client's defaults; the client library adds `+Inf`.
const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// A gauge's name and HELP text, and which of the settings it shows.
type Configured = (&'static str, &'static str, fn(&Config) -> f64);

/// What /probe is told to do.
const CONFIGURED: [Configured; 5] = [
    (
        "app_configured_fail_ratio",
        "Share of /probe that is to fail.",
        |settings| settings.fail_rate,
    ),
    (
        "app_configured_slow_ratio",
        "Share of the remaining /probe that is to be slow.",
        |settings| settings.slow_rate,
    ),
    (
        "app_configured_latency_seconds",
        "Mean latency that an ordinary /probe is to have.",
        |settings| settings.latency.as_secs_f64(),
    ),
    (
        "app_configured_slow_latency_seconds",
        "Mean latency that a slow /probe is to have.",
        |settings| settings.slow_latency.as_secs_f64(),
    ),
    (
        "app_configured_work_seconds",
        "CPU time that a successful /probe is to take.",
        |settings| settings.work.as_secs_f64(),
    ),
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
    registry: Registry,
    request_latency: HistogramVec,
    request_count: IntCounterVec,
    connections_open: IntGauge,
    configured: [Gauge; CONFIGURED.len()],
    series: [[Series; Endpoint::COUNT]; Method::COUNT],
}

/// The handles of the series of one method and endpoint.
///
/// A look-up by label values hashes strings and takes a lock. It is made once, when a series is
/// first touched, because a series that is looked up is exposed, at 0, from then on.
#[derive(Default)]
struct Series {
    request_latency: OnceCell<Histogram>,
    request_count: [OnceCell<IntCounter>; Status::COUNT],
}

impl Metrics {
    /// Registers every metric. `version` and `config` become the labels of `app_version_info`.
    pub fn new(version: &str, config: &str) -> Self {
        let registry = Registry::new();
        let request_latency = register(
            &registry,
            HistogramVec::new(
                HistogramOpts::new("app_request_latency_seconds", "Application Request Latency")
                    .buckets(BUCKETS.to_vec()),
                &["method", "endpoint"],
            ),
        );
        let request_count = register(
            &registry,
            IntCounterVec::new(
                Opts::new("app_request_count_total", "Application Request Count"),
                &["method", "endpoint", "http_status"],
            ),
        );
        let version_info = register(
            &registry,
            Gauge::with_opts(
                Opts::new("app_version_info", "Application Version")
                    .const_label("version", version)
                    .const_label("config", config),
            ),
        );
        version_info.set(1.0);
        let connections_open = register(
            &registry,
            IntGauge::new("app_connections_open", "Open client connections."),
        );
        let configured =
            CONFIGURED.map(|(name, help, _)| register(&registry, Gauge::new(name, help)));
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("no other metric is called process_*");
        Self {
            registry,
            request_latency,
            request_count,
            connections_open,
            configured,
            series: Default::default(),
        }
    }

    /// Records one request: its latency in the histogram, its status in the counter.
    pub fn record(&self, method: Method, endpoint: Endpoint, status: Status, latency: Duration) {
        let series = &self.series[method as usize][endpoint as usize];
        series
            .request_latency
            .get_or_init(|| {
                self.request_latency
                    .with_label_values(&[method.label(), endpoint.label()])
            })
            .observe(latency.as_secs_f64());
        series.request_count[status as usize]
            .get_or_init(|| {
                self.request_count.with_label_values(&[
                    method.label(),
                    endpoint.label(),
                    status.label(),
                ])
            })
            .inc();
    }

    /// The gauge of open connections, kept by the server.
    pub fn connections_open(&self) -> &IntGauge {
        &self.connections_open
    }

    /// Shows what /probe is told to do at this moment.
    pub fn set_configured(&self, settings: &Config) {
        for (gauge, (_, _, value)) in self.configured.iter().zip(CONFIGURED) {
            gauge.set(value(settings));
        }
    }

    /// The page that Prometheus scrapes, in text format 0.0.4.
    pub fn exposition(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("the encoder fails on a family without series, and gather leaves those out")
    }
}

/// Registers a metric and gives back a handle of it.
fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("the names, labels and buckets above are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("the names above are distinct");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &Metrics) -> String {
        let page = metrics.exposition();
        page.split_inclusive('\n')
            .filter(|line| line.starts_with("app_") && !line.starts_with("app_configured_"))
            .collect()
    }

    #[test]
    fn nothing_is_exposed_of_requests_before_the_first() {
        assert_eq!(
            page(&Metrics::new("1", "develop")),
            "app_connections_open 0\napp_version_info{config=\"develop\",version=\"1\"} 1\n"
        );
    }

    #[test]
    fn a_request_is_counted_once_and_falls_into_every_bucket_above_its_latency() {
        let metrics = Metrics::new("1", "develop");
        let latency = Duration::from_millis(70);
        metrics.record(Method::Get, Endpoint::Probe, Status::Ok, latency);
        let page = page(&metrics);
        let bucket = |bound: &str| {
            let series = "app_request_latency_seconds_bucket{endpoint=\"/probe\",method=\"GET\"";
            format!("{series},le=\"{bound}\"}}")
        };
        for bound in ["0.005", "0.01", "0.025", "0.05"] {
            assert!(page.contains(&format!("{} 0\n", bucket(bound))), "{page}");
        }
        for bound in [
            "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5", "10", "+Inf",
        ] {
            assert!(page.contains(&format!("{} 1\n", bucket(bound))), "{page}");
        }
        assert!(page.contains(
            "app_request_latency_seconds_sum{endpoint=\"/probe\",method=\"GET\"} 0.07\n"
        ));
        assert!(page.contains(
            "app_request_count_total{endpoint=\"/probe\",http_status=\"200\",method=\"GET\"} 1\n"
        ));
        assert_eq!(page.matches("app_request_count_total").count(), 1);
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
