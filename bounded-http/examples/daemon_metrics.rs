//! An existing program with a worker thread gets `/metrics`, with the `prometheus` crate's registry and
//! encoder: `cargo run --example daemon_metrics 127.0.0.1:8080`

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use std::{env, thread};

use bounded_http::{Limits, Reply, Request, Server, Status};
use prometheus::{IntCounter, TEXT_FORMAT, TextEncoder, register_int_counter};
use signal_hook::{consts::SIGTERM, iterator::Signals};

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let address: SocketAddr = address.parse()?;
    let jobs = register_int_counter!("jobs_total", "Jobs that the worker has done.")?;
    thread::spawn(move || do_jobs(&jobs));

    // From here on, SIGTERM no longer ends the process at once.
    let mut signals = Signals::new([SIGTERM])?;
    let limits = Limits {
        connections: 100,
        ..Limits::default()
    };
    let server = Server::bind(address)?.limits(limits).spawn(answer)?;
    println!("Listening on http://{}", server.address());

    signals.forever().next();
    server.stop()?;
    Ok(())
}

fn answer(request: &Request<'_>) -> Reply {
    match request.path() {
        "/metrics" => match TextEncoder::new().encode_to_string(&prometheus::gather()) {
            Ok(text) => Reply::new(Status::Ok, TEXT_FORMAT, text.into_bytes()),
            Err(error) => Reply::text(Status::InternalServerError, format!("{error}\n")),
        },
        _ => Reply::text(Status::NotFound, "Not found. Try /metrics.\n"),
    }
}

/// The existing program.
fn do_jobs(jobs: &IntCounter) {
    loop {
        thread::sleep(Duration::from_millis(100));
        jobs.inc();
    }
}
