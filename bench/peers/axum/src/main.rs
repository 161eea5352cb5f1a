//! The same two metrics as in tiny-probe, with axum and one tokio thread. Usage: `peer-axum 127.0.0.1:8080`

use std::sync::LazyLock;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{
    HistogramVec, IntCounterVec, TextEncoder, register_histogram_vec, register_int_counter_vec,
};

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

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listen = std::env::args().nth(1).expect("an address to listen on");
    let app = Router::new()
        .route("/probe", get(async || "I'm ok!"))
        .route("/metrics", get(metrics))
        .fallback(async || axum::http::StatusCode::NOT_FOUND)
        .layer(middleware::from_fn(record));
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .expect("cannot listen");
    axum::serve(listener, app).await.expect("cannot serve");
}

async fn metrics() -> impl IntoResponse {
    let page = TextEncoder::new().encode_to_string(&prometheus::gather());
    let content_type = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    (content_type, page.expect("the page can be encoded"))
}

/// Records every request, in the same way as axum's example for Prometheus.
async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;

    let endpoint = path.as_ref().map_or("other", MatchedPath::as_str);
    LATENCY
        .with_label_values(&[method.as_str(), endpoint])
        .observe(started.elapsed().as_secs_f64());
    COUNT
        .with_label_values(&[method.as_str(), endpoint, response.status().as_str()])
        .inc();
    response
}
