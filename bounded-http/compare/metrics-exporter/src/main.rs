//! An existing program with a worker gets /metrics with `metrics-exporter-prometheus`.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use std::{env, thread};

use metrics::{counter, describe_counter};
use metrics_exporter_prometheus::PrometheusBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let builder = PrometheusBuilder::new().with_http_listener(address.parse::<SocketAddr>()?);
    builder.install()?;
    describe_counter!("jobs_total", "Jobs that the worker has done.");
    loop {
        thread::sleep(Duration::from_millis(100));
        counter!("jobs_total").increment(1);
    }
}
