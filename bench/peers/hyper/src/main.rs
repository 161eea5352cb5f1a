//! The same two metrics as in tiny-probe, with hyper and one tokio thread. Usage: `peer-hyper 127.0.0.1:8080`

use std::convert::Infallible;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

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
        (&Method::GET, "/probe") => *response.body_mut() = "I'm ok!".into(),
        (&Method::GET | &Method::HEAD, "/metrics") => {
            *response.body_mut() = series::exposition();
            content_type = series::TEXT_FORMAT;
        }
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    let status = response.status().as_u16();
    series::record(
        request.method().as_str(),
        request.uri().path(),
        status,
        started,
    );
    Ok(response)
}
