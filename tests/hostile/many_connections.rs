//! Many simultaneous clients.

use std::thread;

use crate::assert_others_are_served;
use crate::clients::raise_descriptor_limit;
use crate::support::{Client, Service, skip, wait_until};

const SERVER: &str = "event-loop";

#[test]
fn ten_thousand_idle_connections_use_little_memory_and_release_it() {
    let count = 10_000.min(raise_descriptor_limit() - 100);
    if count < 10_000 {
        skip(&format!(
            "the hard limit on descriptors allows only {count} connections"
        ));
    }
    // Enough for these clients and for those that check the service meanwhile.
    let service = Service::start(SERVER, &["--max-connections", "10100"]);
    assert_others_are_served(&service);
    let before = service.status("VmRSS");
    let clients: Vec<Client> = (0..count)
        .map(|number| {
            let mut client = service.connect();
            // Some send a request before they become idle.
            if number % 10 == 0 {
                assert_eq!(client.ask("GET", "/probe").status, 200);
            }
            client
        })
        .collect();
    let open = || service.scrape().count("app_connections_open");
    wait_until("all are open", || open() == count as u64 + 1);
    assert_others_are_served(&service);
    let during = service.status("VmRSS");
    assert!(during < 16 * 1024, "{during} KiB");

    drop(clients);
    wait_until("all are closed", || open() == 1);
    assert_others_are_served(&service);
    // The connections of those that checked may not be closed yet.
    let kept = || service.status("VmRSS").saturating_sub(before);
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
    let service = Service::start(SERVER, &[]);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let connect = |_| service.connect();
                let mut clients: Vec<Client> = (0..CLIENTS).map(connect).collect();
                for _ in 0..REQUESTS {
                    for client in &mut clients {
                        client.send_request("GET", "/probe");
                    }
                    for client in &mut clients {
                        let response = client.read_response();
                        assert_eq!((response.status, &*response.body), (200, "I'm ok!"));
                    }
                }
            });
        }
    });
    let metrics = service.scrape();
    for counted in [
        r#"app_request_count_total{method="GET",endpoint="/probe",http_status="200"}"#,
        r#"app_request_latency_seconds_count{method="GET",endpoint="/probe"}"#,
        r#"app_request_latency_seconds_bucket{method="GET",endpoint="/probe",le="+Inf"}"#,
    ] {
        assert_eq!(metrics.count(counted), 100_000, "{counted}");
    }
}
