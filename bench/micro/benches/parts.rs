//! What each part of a request costs. `make microbench`

use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use micro::{Driven, request_of};
use tiny_probe::app::{App, Request};
use tiny_probe::config::Config;
use tiny_probe::http::{Method, Status};
use tiny_probe::metrics::{Endpoint, Format, Metrics};
use tiny_probe::server::event_loop::connection::Connection;
use tiny_probe::server::event_loop::request_head;

const CLIENTS: [&str; 3] = ["wrk", "Prometheus", "browser"];

fn main() {
    divan::Divan::from_args()
        .min_time(Duration::from_millis(300))
        .main();
}

#[divan::bench(args = CLIENTS, sample_size = 1000)]
fn parse_head(bencher: Bencher, client: &str) {
    let head = request_of(client).expect("a client of the table");
    bencher
        .bench(|| request_head::parse(black_box(head.as_bytes())).is_ok_and(|head| head.is_some()));
}

#[divan::bench(sample_size = 1000)]
fn record(bencher: Bencher) {
    let metrics = Metrics::new("1", "develop");
    bencher.bench_local(|| {
        metrics.record(
            black_box(Method::Get),
            black_box(Endpoint::Probe),
            black_box(Status::Ok),
            black_box(Duration::from_micros(3)),
            None,
        );
    });
}

#[divan::bench(sample_size = 1000)]
fn render_answer(bencher: Bencher) {
    let now = Instant::now();
    let request = request_of("wrk").expect("a client of the table");
    let mut app = App::new(&Config::default());
    let reply = app.answer(&Request::new("GET", "/probe"), now);
    bencher
        .with_inputs(|| {
            let mut connection = Connection::new(now);
            connection.receive(request.as_bytes(), now);
            assert!(matches!(connection.next_request(), Some(Ok(_))));
            connection
        })
        .bench_local_refs(|connection| {
            connection.answer(
                black_box(&reply),
                "Sun, 06 Nov 1994 08:49:37 GMT",
                false,
                now,
            );
        });
}

/// So many methods and endpoints that were asked for: a histogram and a counter each.
#[divan::bench(args = [1, 10, 45])]
fn exposition_text(bencher: Bencher, series: usize) {
    exposition(bencher, series, Format::Text);
}

/// The same in the other format.
#[divan::bench(args = [1, 10, 45])]
fn exposition_open_metrics(bencher: Bencher, series: usize) {
    exposition(bencher, series, Format::OpenMetrics);
}

fn exposition(bencher: Bencher, series: usize, format: Format) {
    let metrics = Metrics::new("1", "develop");
    let pairs = METHODS
        .iter()
        .flat_map(|method| ENDPOINTS.map(|endpoint| (*method, endpoint)));
    for (method, endpoint) in pairs.take(series) {
        let latency = Duration::from_micros(3);
        metrics.record(method, endpoint, Status::Ok, latency, None);
    }
    let page = metrics.exposition(format, &Config::default());
    let count = page.matches("app_request_latency_seconds_count{").count();
    assert_eq!(count, series);
    bencher.bench_local(|| metrics.put_back(metrics.exposition(format, &Config::default())));
}

/// All of a request but the system calls.
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
    // There from the start.
    Endpoint::Probe,
    Endpoint::Root,
    Endpoint::Metrics,
    Endpoint::Healthz,
    Endpoint::Other,
];
