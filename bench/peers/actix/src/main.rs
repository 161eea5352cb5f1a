//! The same two metrics as in tiny-probe, with actix-web and one worker. Usage: `peer-actix 127.0.0.1:8080`

use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, HttpResponse, HttpServer, Responder, get};

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
    HttpResponse::Ok()
        .content_type(series::TEXT_FORMAT)
        .body(series::exposition())
}

/// Records every request.
async fn record(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let response = next.call(request).await?;
    let request = response.request();
    series::record(
        request.method().as_str(),
        request.path(),
        response.status().as_u16(),
        started,
    );
    Ok(response)
}
