//! The same two metrics as in tiny-probe, with axum and one tokio thread. Usage: `peer-axum 127.0.0.1:8080`

use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

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
    (
        [(header::CONTENT_TYPE, series::TEXT_FORMAT)],
        series::exposition(),
    )
}

/// Records every request. Cloning the method and the path allocates nothing.
async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let uri = request.uri().clone();
    let response = next.run(request).await;
    series::record(
        method.as_str(),
        uri.path(),
        response.status().as_u16(),
        started,
    );
    response
}
