//! An existing program with a worker gets /metrics with `prometheus_exporter`.

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use prometheus_exporter::prometheus::register_int_counter;

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let jobs = register_int_counter!("jobs_total", "Jobs that the worker has done.")?;
    prometheus_exporter::start(address.parse()?)?;
    loop {
        thread::sleep(Duration::from_millis(100));
        jobs.inc();
    }
}
