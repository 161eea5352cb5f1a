//! The same two metrics as in tiny-probe, with hyper and one tokio thread. Usage: `peer-hyper 127.0.0.1:8080`
//!
//! A service that uses hyper directly is usually meant to be fast, so the known series are looked up only once.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, TextEncoder, register_histogram_vec,
    register_int_counter_vec,
};
use tokio::net::TcpListener;

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
static PROBE: LazyLock<Series> = LazyLock::new(|| Series::new("GET", "/probe", "200"));
static METRICS: LazyLock<Series> = LazyLock::new(|| Series::new("GET", "/metrics", "200"));

struct Series {
    latency: Histogram,
    count: IntCounter,
}

impl Series {
    fn new(method: &str, endpoint: &str, status: &str) -> Self {
        Self {
            latency: LATENCY.with_label_values(&[method, endpoint]),
            count: COUNT.with_label_values(&[method, endpoint, status]),
        }
    }

    fn record(&self, started: Instant) {
        self.latency.observe(started.elapsed().as_secs_f64());
        self.count.inc();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listen = std::env::args().nth(1).expect("an address to listen on");
    let listener = TcpListener::bind(listen).await.expect("cannot listen");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(async {
            // Ignore errors: they concern only this connection, for example a client that disconnected.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let started = Instant::now();
    let mut response = Response::new(String::new());
    let mut content_type = "text/plain; charset=utf-8";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/probe") => {
            *response.body_mut() = "I'm ok!".into();
            PROBE.record(started);
        }
        (&Method::GET, "/metrics") => {
            let page = TextEncoder::new().encode_to_string(&prometheus::gather());
            *response.body_mut() = page.expect("the page can be encoded");
            content_type = prometheus::TEXT_FORMAT;
            METRICS.record(started);
        }
        (method, _) => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            Series::new(method.as_str(), "other", "404").record(started);
        }
    }
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
