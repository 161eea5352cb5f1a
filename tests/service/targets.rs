//! The targets of /faults other than probe: each route fails as configured, and the change ends by
//! itself.

use std::time::{Duration, Instant};

use crate::support::{Exposition, Service, wait_until};

on_every_server!(
    each_target_fails_as_configured_and_no_other_does,
    a_change_to_another_target_must_end_and_ends_by_itself,
    delete_reverts_one_target_or_all,
    requests_to_faults_never_fail,
    without_all_only_probe_can_be_changed,
    a_target_can_be_slow_and_work,
);

const ALL: &[&str] = &["--fault-injection", "all"];
const TARGETS: [&str; 4] = ["probe", "metrics", "healthz", "readyz"];

fn active(service: &Service, target: &str) -> u64 {
    // Scrapes /metrics, unless that is the target that fails.
    let text = service.get("/metrics").body;
    Exposition::parse(&text).count(&format!("app_fault_active{{target=\"{target}\"}}"))
}

fn each_target_fails_as_configured_and_no_other_does(server: &str) {
    let mut service = Service::start(server, ALL);
    let mut client = service.connect();
    for target in TARGETS {
        let change = format!("/faults/{target}?fail-rate=1&fail-with=503&for=1h");
        let changed = client.ask("PUT", &change);
        assert_eq!(changed.status, 200, "{changed:?}");
        assert_eq!(changed.body, client.ask("GET", "/faults").body);
        let line = format!("{target}: fail-rate=1 fail-with=503 fail-latency=0s ");
        assert_eq!(changed.body.contains(&line), target != "probe");
        let own = client.ask("GET", &format!("/faults/{target}")).body;
        assert!(own.starts_with("fail-rate=1\nfail-with=503\n"), "{own}");
        for other in TARGETS {
            for method in ["GET", "HEAD"] {
                let response = client.ask(method, &format!("/{other}"));
                let expected = if other == target { 503 } else { 200 };
                assert_eq!(response.status, expected, "{method} {other}");
                let retry_after = (other == target).then_some("1");
                assert_eq!(response.field("Retry-After"), retry_after);
            }
        }
        if target != "metrics" {
            for other in TARGETS {
                assert_eq!(active(&service, other), u64::from(other == target));
            }
            assert_eq!(active(&service, "process"), 0);
        }
        client.ask("DELETE", &format!("/faults/{target}"));
    }
    assert!(TARGETS.iter().all(|target| active(&service, target) == 0));
    // The series of a status is exposed before the first response with it.
    client.ask("PUT", "/faults/healthz?fail-with=429&for=1m");
    let series = r#"{endpoint="/healthz",http_status="429",method="GET"} 0"#;
    let text = client.ask("GET", "/metrics").body;
    assert!(text.contains(series), "{text}");

    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let said = service.stderr();
    let metrics = " changed the faults: metrics: fail-rate=1 fail-with=503 ";
    assert!(said.contains(metrics), "{said}");
}

fn a_change_to_another_target_must_end_and_ends_by_itself(server: &str) {
    let service = Service::start(server, ALL);
    let mut client = service.connect();
    for target in ["metrics", "healthz", "readyz"] {
        let rejected = client.ask("PUT", &format!("/faults/{target}?fail-rate=1"));
        assert_eq!(rejected.status, 400);
        assert!(rejected.body.contains("such as for=2m"), "{rejected:?}");
    }
    assert_eq!(client.ask("PUT", "/faults/probe?fail-rate=1").status, 200);
    let asked = Instant::now();
    client.ask("PUT", "/faults/readyz?fail-rate=1&for=1s");
    assert_eq!(client.ask("GET", "/readyz").status, 500);
    wait_until("it ends by itself", || {
        client.ask("GET", "/readyz").status == 200
    });
    let expected = Duration::from_secs(1)..Duration::from_secs(10);
    assert!(expected.contains(&asked.elapsed()));
    assert_eq!(client.ask("GET", "/probe").status, 500, "it lasts");
}

fn delete_reverts_one_target_or_all(server: &str) {
    let service = Service::start(server, ALL);
    let mut client = service.connect();
    let at_start = client.ask("GET", "/faults").body;
    for target in TARGETS {
        client.ask("PUT", &format!("/faults/{target}?fail-rate=1&for=1m"));
    }
    client.ask("DELETE", "/faults/healthz");
    assert_eq!(client.ask("GET", "/healthz").status, 200);
    assert_eq!(client.ask("GET", "/readyz").status, 500);
    assert_eq!(client.ask("GET", "/probe").status, 500);
    client.ask("DELETE", "/faults/probe");
    assert_eq!(client.ask("GET", "/probe").status, 200);
    assert_eq!(client.ask("GET", "/readyz").status, 500);
    assert_eq!(client.ask("DELETE", "/faults").body, at_start);
    for target in TARGETS {
        assert_eq!(client.ask("GET", &format!("/{target}")).status, 200);
    }
}

fn requests_to_faults_never_fail(server: &str) {
    let service = Service::start(server, ALL);
    let mut client = service.connect();
    for target in TARGETS {
        client.ask("PUT", &format!("/faults/{target}?fail-rate=1&for=1h"));
    }
    assert_eq!(client.ask("GET", "/faults").status, 200);
    assert_eq!(client.ask("OPTIONS", "/faults/metrics").status, 204);
    assert_eq!(client.ask("GET", "/nope").status, 404);
    assert_eq!(client.ask("POST", "/healthz").status, 405);
    for target in ["nope", "", "faults", "probe/", "probe/x", "Probe"] {
        let response = client.ask("PUT", &format!("/faults/{target}?fail-rate=0&for=1h"));
        assert_eq!(response.status, 404, "{target}");
        assert!(response.body.contains("/faults/readyz"), "{response:?}");
    }
    assert_eq!(client.ask("GET", "/probe").status, 500);
    assert_eq!(client.ask("DELETE", "/faults").status, 200);
    // All of these paths have the same endpoint label.
    let metrics = service.scrape();
    assert!(metrics.sum("app_request_count_total", "endpoint", "/faults") >= 7);
}

fn without_all_only_probe_can_be_changed(server: &str) {
    let service = Service::start(server, &["--fault-injection"]);
    let mut client = service.connect();
    for target in ["metrics", "healthz", "readyz", "process"] {
        for method in ["GET", "PUT", "DELETE"] {
            let response = client.ask(method, &format!("/faults/{target}?fail-rate=1&for=1m"));
            assert_eq!(response.status, 404, "{method} {target}");
            assert!(
                response.body.contains("--fault-injection=all"),
                "{response:?}"
            );
        }
    }
    let changed = client.ask("PUT", "/faults/probe?fail-rate=1&for=1m");
    assert_eq!(changed.status, 200);
    assert_eq!(client.ask("GET", "/probe").status, 500);
    assert_eq!(client.ask("GET", "/readyz").status, 200);
}

fn a_target_can_be_slow_and_work(server: &str) {
    let service = Service::start(server, ALL);
    let mut client = service.connect();
    let change = "slow-rate=1&slow-latency=200ms&work=20ms&for=1m";
    client.ask("PUT", &format!("/faults/metrics?{change}"));
    let asked = Instant::now();
    let response = client.ask("GET", "/metrics");
    assert!(response.body.contains("app_version_info"), "{response:?}");
    // A gamma distribution with shape 30 practically never falls below a third of its mean.
    assert!(asked.elapsed() > Duration::from_millis(200 / 3 + 20));
    let configured = Exposition::parse(&response.body).value("app_configured_work_seconds");
    assert_eq!(configured.to_bits(), 0, "these are probe's");
    let mut other = service.connect();
    assert_eq!(other.ask("GET", "/healthz").status, 200);
}
