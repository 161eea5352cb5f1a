//! The metrics of the Rust servers: the same two as in tiny-probe, with the same client library.

use std::sync::LazyLock;
use std::time::Instant;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, TextEncoder, register_histogram_vec,
    register_int_counter_vec,
};

pub use prometheus::TEXT_FORMAT;

static LATENCY: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        "app_request_latency_seconds",
        "Application Request Latency",
        &["method", "endpoint"],
        vec![
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
        ]
    )
    .expect("the metric is valid")
});
static COUNT: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "app_request_count_total",
        "Application Request Count",
        &["method", "endpoint", "http_status"]
    )
    .expect("the metric is valid")
});
static PROBE: LazyLock<Series> = LazyLock::new(|| Series::new("/probe"));
static METRICS: LazyLock<Series> = LazyLock::new(|| Series::new("/metrics"));

/// The series of a successful GET, which nearly all requests have. They are looked up only once, as in
/// tiny-probe.
struct Series {
    latency: Histogram,
    count: IntCounter,
}

impl Series {
    fn new(endpoint: &str) -> Self {
        Self {
            latency: LATENCY.with_label_values(&["GET", endpoint]),
            count: COUNT.with_label_values(&["GET", endpoint, "200"]),
        }
    }
}

/// Records a request.
pub fn record(method: &str, path: &str, status: u16, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let series = match (method, path, status) {
        ("GET", "/probe", 200) => &PROBE,
        ("GET", "/metrics", 200) => &METRICS,
        _ => {
            let endpoint = if let "/probe" | "/metrics" = path {
                path
            } else {
                "other"
            };
            LATENCY
                .with_label_values(&[method, endpoint])
                .observe(seconds);
            let status = status.to_string();
            return COUNT.with_label_values(&[method, endpoint, &status]).inc();
        }
    };
    series.latency.observe(seconds);
    series.count.inc();
}

/// Returns the exposition.
pub fn exposition() -> String {
    TextEncoder::new()
        .encode_to_string(&prometheus::gather())
        .expect("the exposition can be encoded")
}
