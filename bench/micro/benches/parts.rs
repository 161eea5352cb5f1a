//! What each part of a request costs. `make microbench`

use std::time::{Duration, Instant};

use bounded_http::internals::connection::Connection;
use bounded_http::internals::request_head::{self, field_space};
use bounded_http::{Method, Request, Service};
use divan::{Bencher, black_box};
use micro::{Driven, request_of};
use tiny_probe::app::App;
use tiny_probe::config::{Config, ProbeSettings};
use tiny_probe::metrics::{Endpoint, Format, InForce, Metrics};

const CLIENTS: [&str; 3] = ["wrk", "Prometheus", "browser"];

fn main() {
    divan::Divan::from_args()
        .min_time(Duration::from_millis(300))
        .main();
}

#[divan::bench(args = CLIENTS, sample_size = 1000)]
fn parse_head(bencher: Bencher, client: &str) {
    let head = request_of(client).expect("a client of the table");
    bencher.bench(|| {
        let mut space = field_space();
        request_head::parse(black_box(head.as_bytes()), &mut space).is_ok_and(|head| head.is_some())
    });
}

#[divan::bench(sample_size = 1000)]
fn record(bencher: Bencher) {
    let metrics = Metrics::new(ENDPOINTS.len(), "1", "develop");
    bencher.bench_local(|| {
        metrics.record(
            black_box(Method::Get),
            black_box(ENDPOINTS[0]),
            black_box("200"),
            black_box(Duration::from_micros(3)),
            None,
        );
    });
}

#[divan::bench(sample_size = 1000)]
fn render_response(bencher: Bencher) {
    let now = Instant::now();
    let request = request_of("wrk").expect("a client of the table");
    let mut app = App::new(&Config::default());
    let reply = app.answer(&Request::new("GET", "/probe"));
    bencher
        .with_inputs(|| {
            let mut connection = Connection::new(now);
            connection.receive(request.as_bytes(), now);
            assert!(matches!(
                connection.next_request(&mut field_space()),
                Some(Ok(_))
            ));
            connection
        })
        .bench_local_refs(|connection| {
            connection.respond(
                black_box(&reply),
                "Sun, 06 Nov 1994 08:49:37 GMT",
                false,
                now,
            );
        });
}

/// The exposition with this many pairs of method and endpoint: a histogram and a counter each.
#[divan::bench(args = [1, 10, 45])]
fn exposition_text(bencher: Bencher, series: usize) {
    exposition(
        bencher,
        series,
        Format::Text,
        Metrics::discard_process_reading,
    );
}

/// The same in `OpenMetrics`.
#[divan::bench(args = [1, 10, 45])]
fn exposition_open_metrics(bencher: Bencher, series: usize) {
    exposition(
        bencher,
        series,
        Format::OpenMetrics,
        Metrics::discard_process_reading,
    );
}

/// The same for scrapes that arrive together. They share the values of `process_*`.
#[divan::bench(args = [1, 10, 45])]
fn exposition_shared_reading(bencher: Bencher, series: usize) {
    exposition(bencher, series, Format::Text, |_| {});
}

/// Writes expositions, with a call of `prepare` before each.
fn exposition(bencher: Bencher, series: usize, format: Format, prepare: fn(&Metrics)) {
    let metrics = Metrics::new(ENDPOINTS.len(), "1", "develop");
    let pairs = METHODS
        .iter()
        .flat_map(|method| ENDPOINTS.map(|endpoint| (*method, endpoint)));
    for (method, endpoint) in pairs.take(series) {
        metrics.record(method, endpoint, "200", Duration::from_micros(3), None);
    }
    let in_force = InForce {
        probe: &ProbeSettings::default(),
        is_active: &|_| false,
        extra_series: 0,
    };
    let exposition = metrics.exposition(format, &in_force);
    let count = exposition
        .matches("app_request_latency_seconds_count{")
        .count();
    assert_eq!(count, series);
    bencher.bench_local(|| {
        prepare(&metrics);
        metrics.reuse(metrics.exposition(format, &in_force).into_bytes());
    });
}

/// A whole request, except the system calls.
#[divan::bench(args = CLIENTS, sample_size = 100)]
fn exchange(bencher: Bencher, client: &str) {
    let mut driven = Driven::default();
    let request = request_of(client).expect("a client of the table");
    bencher.bench_local(|| driven.exchange(black_box(request)));
}

const METHODS: [Method; 10] = [
    Method::Get,
    Method::Head,
    Method::Post,
    Method::Put,
    Method::Delete,
    Method::Patch,
    Method::Options,
    Method::Trace,
    Method::Connect,
    Method::Other,
];
const ENDPOINTS: [Endpoint; 5] = [
    Endpoint::of_route(0, "/probe"),
    Endpoint::of_route(1, "/"),
    Endpoint::of_route(2, "/metrics"),
    Endpoint::of_route(3, "/healthz"),
    Endpoint::OTHER,
];
