//! Many simultaneous clients.

use std::thread;

use bounded_http::raise_descriptor_limit;

use crate::scenario::Scenario;
use crate::support::{skip, wait_until};

#[test]
fn ten_thousand_idle_connections_use_little_memory_and_release_it() {
    let count = 10_000.min(raise_descriptor_limit() - 100);
    if count < 10_000 {
        skip(&format!(
            "the hard limit on descriptors allows only {count} connections"
        ));
    }
    // Enough for these clients and for those that check the service meanwhile.
    let scenario = Scenario::start(&["--max-connections", "10100"]);
    scenario.expect_others_served();
    let before = scenario.status("VmRSS");
    let mut number = 0;
    let clients = scenario.clients(count, |client| {
        // Some send a request before they become idle.
        if number % 10 == 0 {
            assert_eq!(client.ask("GET", "/probe").status, 200);
        }
        number += 1;
    });
    let open = || scenario.scrape().count("app_connections_open");
    wait_until("all are open", || open() == count as u64 + 1);
    scenario.expect_others_served();
    let during = scenario.status("VmRSS");
    assert!(during < 16 * 1024, "{during} KiB");

    drop(clients);
    wait_until("all are closed", || open() == 1);
    scenario.expect_others_served();
    // The connections of those that checked may not be closed yet.
    let kept = || scenario.status("VmRSS").saturating_sub(before);
    wait_until("half of the memory is released", || {
        kept() < (during - before) / 2
    });
    println!(
        "resident: {before} KiB before, {during} during, {} after",
        before + kept()
    );
}

#[test]
fn a_thousand_simultaneous_clients_get_every_response_and_all_are_counted() {
    const THREADS: usize = 10;
    const CLIENTS: usize = 100;
    const REQUESTS: usize = 100;
    raise_descriptor_limit();
    let scenario = Scenario::start(&[]);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut clients = scenario.silent_clients(CLIENTS);
                for _ in 0..REQUESTS {
                    clients.send_request("GET", "/probe");
                    clients.expect_successful_probes();
                }
            });
        }
    });
    let metrics = scenario.scrape();
    for counted in [
        r#"app_request_count_total{method="GET",endpoint="/probe",http_status="200"}"#,
        r#"app_request_latency_seconds_count{method="GET",endpoint="/probe"}"#,
        r#"app_request_latency_seconds_bucket{method="GET",endpoint="/probe",le="+Inf"}"#,
    ] {
        assert_eq!(metrics.count(counted), 100_000, "{counted}");
    }
}
