//! The same two metrics as in tiny-probe, with actix-web and one worker. Usage: `peer-actix 127.0.0.1:8080`

use std::sync::LazyLock;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, HttpResponse, HttpServer, Responder, get};
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

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let listen = std::env::args().nth(1).expect("an address to listen on");
    HttpServer::new(|| {
        App::new()
            .wrap(from_fn(record))
            .service(probe)
            .service(metrics)
    })
    .workers(1)
    .bind(listen)?
    .run()
    .await
}

#[get("/probe")]
async fn probe() -> impl Responder {
    "I'm ok!"
}

#[get("/metrics")]
async fn metrics() -> impl Responder {
    let page = TextEncoder::new().encode_to_string(&prometheus::gather());
    HttpResponse::Ok()
        .content_type(prometheus::TEXT_FORMAT)
        .body(page.expect("the page can be encoded"))
}

/// Records every request.
async fn record(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let response = next.call(request).await?;

    let method = response.request().method().as_str();
    let pattern = response.request().match_pattern();
    let endpoint = pattern.as_deref().unwrap_or("other");
    LATENCY
        .with_label_values(&[method, endpoint])
        .observe(started.elapsed().as_secs_f64());
    COUNT
        .with_label_values(&[method, endpoint, response.status().as_str()])
        .inc();
    Ok(response)
}
