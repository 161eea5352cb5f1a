//! The exposition: names, labels, buckets and values of all metrics, and the bounds on their number.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Exposition, Labels, Series, Service, skip, wait_until};

on_every_server!(
    the_exposition_has_the_same_series_as_the_seeds,
    the_version_labels_are_configurable,
    the_number_of_series_is_bounded_whatever_clients_send,
    open_connections_are_counted,
    process_metrics_agree_with_proc,
    cpu_time_has_fractions,
    waiting_takes_no_cpu_time,
    process_metrics_that_cannot_be_read_are_left_out,
    both_formats_have_the_same_samples,
    the_accept_field_selects_the_format,
    a_sampled_trace_becomes_an_exemplar,
    the_connection_limit_is_exposed,
);

/// Sends the requests that the seed's exposition is from: GET /probe twice, GET /nope, POST /probe, and a scrape.
fn the_exposition_has_the_same_series_as_the_seeds(server: &str) {
    let service = Service::start(server, &[]);
    for (method, path) in [
        ("GET", "/probe"),
        ("GET", "/probe"),
        ("GET", "/nope"),
        ("POST", "/probe"),
        ("GET", "/metrics"),
    ] {
        service.connect().ask(method, path);
    }
    let metrics = service.scrape();
    let seed = Exposition::parse(include_str!("seed-metrics.txt"));

    // The series are equal, including the text of the bucket bounds. Only one is additional: it is exposed
    // from the start, at 0.
    let mut series = series_of(&metrics);
    let zero = metrics
        .count(r#"app_request_count_total{endpoint="/probe",http_status="500",method="GET"}"#);
    assert_eq!(zero, 0);
    series.retain(|(_, labels)| {
        labels
            .get("http_status")
            .is_none_or(|status| status != "500")
    });
    assert_eq!(series, series_of(&seed));
    // The latencies may differ from the seed's, but not the numbers of requests.
    for ((name, labels), value) in &seed.samples {
        let counts = ["_count", "_total"].iter().any(|end| name.ends_with(end));
        if name.starts_with("app_") && counts || labels.get("le").is_some_and(|le| le == "+Inf") {
            let series = (name.clone(), our_labels(labels));
            assert_eq!(
                metrics.samples[&series].to_bits(),
                value.to_bits(),
                "{series:?}"
            );
        }
    }
    for name in [
        "app_request_latency_seconds",
        "app_request_count_total",
        "app_version_info",
    ] {
        assert_eq!(metrics.help[name], seed.help[name]);
        assert_eq!(metrics.kind[name], seed.kind[name]);
    }
    let of_process = |name: &&String| cfg!(target_os = "linux") && name.starts_with("process_");
    for name in seed.kind.keys().filter(of_process) {
        assert_eq!(metrics.kind[name], seed.kind[name]);
        assert_eq!(metrics.help[name], seed.help[name]);
        assert!(metrics.value(name) > 0.0, "{name}");
    }
    for name in metrics.kind.keys() {
        assert!(metrics.help.contains_key(name), "{name} has no HELP");
    }
}

/// Returns the `app_*` series that this service and the seed have in common. Left out are `_created`, which
/// only the Python client exposes, and the metrics that only this service has.
fn series_of(metrics: &Exposition) -> BTreeSet<Series> {
    let is_common = |name: &str| {
        name.starts_with("app_")
            && !name.ends_with("_created")
            && !name.starts_with("app_connections_")
            && !name.starts_with("app_configured_")
            && name != "app_requests_in_flight"
            && name != "app_fault_active"
    };
    metrics
        .samples
        .keys()
        .filter(|(name, _)| is_common(name))
        .map(|(name, labels)| (name.clone(), our_labels(labels)))
        .collect()
}

/// Converts the seed's labels. The seed uses any path as a label; here an unknown one is `other`.
fn our_labels(labels: &Labels) -> Labels {
    let mut labels = labels.clone();
    if let Some(endpoint) = labels.get_mut("endpoint")
        && endpoint == "/nope"
    {
        *endpoint = "other".into();
    }
    labels
}

fn the_version_labels_are_configurable(server: &str) {
    let metrics =
        Service::start(server, &["--app-version", "2.1", "--app-config", "prod"]).scrape();
    let info = metrics.count(r#"app_version_info{version="2.1",config="prod"}"#);
    assert_eq!(info, 1);
}

fn the_number_of_series_is_bounded_whatever_clients_send(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    let mut send_unusual = |number: usize| {
        for (method, path) in [
            ("GET".into(), format!("/path{number}")),
            (format!("METHOD{number}"), "/probe".into()),
            (format!("M{number}"), format!("/?q={number}")),
            ("POST".into(), format!("/probe?{number}")),
        ] {
            let response = client.ask(&method, &path);
            assert!([404, 405].contains(&response.status), "{method} {path}");
        }
    };
    send_unusual(0);
    let before = series_of(&service.scrape()).len();
    (1..1000).for_each(&mut send_unusual);
    let metrics = service.scrape();
    // The first exposition did not include the series of its own scrape yet.
    let scrape_series = series_of(&metrics)
        .iter()
        .filter(|(_, labels)| labels.get("endpoint").is_some_and(|e| e == "/metrics"))
        .count();
    assert_eq!(series_of(&metrics).len(), before + scrape_series);
    assert_eq!(
        metrics.sum("app_request_count_total", "endpoint", "other"),
        1000
    );
    assert_eq!(
        metrics.sum("app_request_count_total", "method", "other"),
        2000
    );
}

fn open_connections_are_counted(server: &str) {
    if cfg!(not(target_os = "linux")) && server == "tiny-http" {
        skip("tiny-http counts connections in /proc");
        return;
    }
    let service = Service::start(server, &[]);
    // One after the other, because tiny_http can lose one of many simultaneous connections.
    let connect = |_| {
        let mut client = service.connect();
        client.ask("GET", "/healthz");
        client
    };
    let clients: Vec<_> = (0..7).map(connect).collect();
    // The connection of the scrape is included.
    let expect_open = |expected| {
        let mut scraper = service.connect();
        wait_until("the connections are counted", || {
            let metrics = scraper.scrape();
            metrics.count("app_connections_open") == expected
        });
    };
    expect_open(8);
    drop(clients);
    expect_open(1);
}

/// Checks that the service does not spin while a connection is idle or, in the event loop, while a response
/// is delayed.
fn waiting_takes_no_cpu_time(server: &str) {
    let service = Service::start(server, &["--slow-rate", "1", "--slow-latency", "1h"]);
    let _idle = service.connect();
    let mut delayed = service.connect();
    if server == "event-loop" {
        delayed.send_delayed("/probe");
    }
    let mut client = service.connect();
    let mut cpu_time = || client.scrape().value("process_cpu_seconds_total");
    let before = cpu_time();
    if cfg!(target_os = "linux") {
        let wake_ups = || service.status("voluntary_ctxt_switches");
        let before = wake_ups();
        service.assert_asleep();
        assert!(wake_ups() - before < 10, "the process keeps waking up");
    } else {
        std::thread::sleep(Duration::from_secs(1));
    }
    let used = cpu_time() - before;
    assert!(used < 0.2, "{used} s of CPU time while waiting");
}

fn process_metrics_agree_with_proc(server: &str) {
    if cfg!(not(target_os = "linux")) {
        skip("this system has no /proc");
        return;
    }
    let before = now();
    let service = Service::start(server, &[]);
    let after = now();
    let mut client = service.connect();
    let proc = |file: &str| format!("/proc/{}/{file}", service.pid());
    let mut metrics = client.scrape();
    // The test reads /proc a moment after the exposition was written, while tiny_http may still start threads.
    // While tiny_http handles the scrape, it has one more descriptor for the connection.
    wait_until("the exposition agrees with /proc", || {
        metrics = client.scrape();
        let resident = metrics.count("process_resident_memory_bytes");
        let resident = resident.abs_diff(service.status("VmRSS") * 1024) * 10 < resident;
        let size = metrics.count("process_virtual_memory_bytes") == service.status("VmSize") * 1024;
        let threads = metrics.count("process_threads") == service.status("Threads");
        let descriptors = std::fs::read_dir(proc("fd")).unwrap().count() as u64;
        let descriptors = metrics.count("process_open_fds").abs_diff(descriptors) <= 1;
        resident && size && threads && descriptors
    });
    let limits = std::fs::read_to_string(proc("limits")).unwrap();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit = limit.unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(metrics.count("process_max_fds"), limit.parse().unwrap());
    // The kernel reports the start time in clock ticks of 10 ms.
    let started = metrics.value("process_start_time_seconds");
    assert!(
        (before - 0.02..after + 0.02).contains(&started),
        "{before} {started} {after}"
    );
    // The page at / notices a restart by it.
    let html = service.get("/").body;
    assert!(
        html.contains(&format!(" data-start=\"{started}\"")),
        "{html}"
    );
}

fn now() -> f64 {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

fn cpu_time_has_fractions(server: &str) {
    if cfg!(not(target_os = "linux")) {
        skip("this system has no /proc");
        return;
    }
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    let mut exposed = || client.scrape().value("process_cpu_seconds_total");
    let used = || service.cpu_time().as_secs_f64();
    let (first_exposed, first_used) = (exposed(), used());
    let mut other = service.connect();
    while used() < first_used + 0.5 {
        for _ in 0..100 {
            other.ask("HEAD", "/metrics");
        }
    }
    let (grown, expected) = (exposed() - first_exposed, used() - first_used);
    assert!(
        (grown - expected).abs() < 0.05,
        "{grown}, expected {expected}"
    );
}

fn process_metrics_that_cannot_be_read_are_left_out(server: &str) {
    let hide_proc = "mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
    let namespace = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let hidden = |command: &str| {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(namespace).args([hide_proc, command]);
        unshare
    };
    if !hidden("true")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        skip("the system does not allow hiding /proc from a process");
        return;
    }
    let service = Service::start_with(server, &[], hidden);
    service.connect().ask("GET", "/probe");
    let metrics = service.scrape();
    let process = metrics
        .kind
        .keys()
        .filter(|name| name.starts_with("process_"));
    let process: Vec<&String> = process.collect();
    assert_eq!(process, ["process_cpu_seconds_total", "process_max_fds"]);
    assert_eq!(
        metrics.sum("app_request_count_total", "endpoint", "/probe"),
        1
    );
}

fn both_formats_have_the_same_samples(server: &str) {
    let flags = ["--app-version", "1.\"2\"\\", "--app-config", "größer"];
    let service = Service::start(server, &flags);
    let mut client = service.connect();
    for (method, path) in [("GET", "/probe"), ("GET", "/nope"), ("POST", "/probe")] {
        client.ask(method, path);
    }
    // After the first scrape, the second and third exposition differ only in the series of scrapes.
    client.request_metrics("");
    let text = client.request_metrics("");
    let open_metrics = client.request_metrics("Accept: application/openmetrics-text\r\n");
    assert_eq!(text.status, 200);
    assert_eq!(
        text.field("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert_eq!(
        open_metrics.field("Content-Type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores")
    );
    for response in [&text, &open_metrics] {
        assert_eq!(response.field("Vary"), Some("Accept"));
    }
    assert!(open_metrics.body.ends_with("\n# EOF\n"));
    assert!(!text.body.contains("EOF"));

    let (text, open_metrics) = (
        Exposition::parse(&text.body),
        Exposition::parse(&open_metrics.body),
    );
    let app = |metrics: &Exposition| -> Vec<(Series, f64)> {
        let samples = metrics.samples.clone().into_iter();
        samples
            .filter(|((name, labels), _)| {
                let is_scrape = labels
                    .get("endpoint")
                    .is_some_and(|path| path == "/metrics");
                name.starts_with("app_") && !is_scrape
            })
            .collect()
    };
    assert_eq!(app(&text), app(&open_metrics));
    let names = |metrics: &Exposition| metrics.samples.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&text), names(&open_metrics));
    for (in_text, in_open_metrics, kind) in [
        ("app_request_count_total", "app_request_count", "counter"),
        (
            "process_cpu_seconds_total",
            "process_cpu_seconds",
            "counter",
        ),
        ("app_version_info", "app_version", "info"),
        ("app_connections_open", "app_connections_open", "gauge"),
    ] {
        assert_eq!(open_metrics.kind[in_open_metrics], kind);
        assert_eq!(open_metrics.help[in_open_metrics], text.help[in_text]);
    }
    assert_eq!(text.kind["app_version_info"], "gauge");
    assert_eq!(text.kind.len(), open_metrics.kind.len());
}

/// Checks that each loop passes the field on. A unit test has the full table of its values.
fn the_accept_field_selects_the_format(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for (fields, is_open_metrics) in [
        ("", false),
        ("Accept: */*\r\n", false),
        (
            "aCCEPT:application/openmetrics-text;q=0.5, text/plain;q=0.4\r\n",
            true,
        ),
        (
            "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n",
            true,
        ),
        ("Accept: application/openmetrics-text;q=2\r\n", false),
        // A repeated field is ignored.
        (
            "Accept: application/openmetrics-text\r\nAccept: application/openmetrics-text\r\n",
            false,
        ),
    ] {
        let response = client.request_metrics(fields);
        assert_eq!(response.status, 200);
        assert_eq!(
            response.body.ends_with("# EOF\n"),
            is_open_metrics,
            "{fields}"
        );
    }
}

fn a_sampled_trace_becomes_an_exemplar(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    let traced = |path: &str, traceparents: &[&str]| {
        let fields = traceparents
            .iter()
            .map(|value| format!("traceparent: {value}\r\n"));
        let fields: String = fields.collect();
        format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")
    };
    let id = |number: u32| format!("{number:032x}");
    let traceparent =
        |number: u32, flags: &str| format!("00-{}-00f067aa0ba902b7-{flags}", id(number));
    let before = now();
    for (path, values) in [
        ("/probe", &[traceparent(1, "01")][..]),
        ("/probe", &[traceparent(2, "01")]),
        // Not sampled, invalid, repeated.
        ("/probe", &[traceparent(3, "00")]),
        ("/probe", &[traceparent(0, "01")]),
        ("/probe", &[traceparent(4, "01"), traceparent(5, "01")]),
        ("/nope", &[traceparent(6, "01")]),
    ] {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        client.send(traced(path, &values));
        client.read_response();
    }
    // A request is recorded at the latest before the next request on its connection is handled, which may
    // be after its response was sent.
    let text = client
        .request_metrics("Accept: application/openmetrics-text\r\n")
        .body;
    let after = now();
    let exemplars: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(" # "))
        .collect();
    // The exemplar of the first request may be replaced by that of the second, if both fell into the same
    // bucket.
    let exemplar_of = |number| {
        exemplars
            .iter()
            .find(|(_, exemplar)| exemplar.contains(&id(number)))
    };
    for number in [3, 4, 5] {
        assert_eq!(exemplar_of(number), None);
    }
    for (number, endpoint) in [(2, "/probe"), (6, "other")] {
        let (sample, exemplar) = exemplar_of(number).expect("the latest is kept");
        let name = format!("app_request_latency_seconds_bucket{{endpoint=\"{endpoint}\",");
        assert!(sample.starts_with(&name), "{sample}");
        let (labels, numbers) = exemplar.split_once("} ").unwrap();
        let ids = format!("{{trace_id=\"{}\",span_id=\"00f067aa0ba902b7\"", id(number));
        assert_eq!(labels, ids);
        let (value, time) = numbers.split_once(' ').unwrap();
        let (value, time): (f64, f64) = (value.parse().unwrap(), time.parse().unwrap());
        let le = sample
            .split("le=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let le = if le == "+Inf" {
            f64::INFINITY
        } else {
            le.parse().unwrap()
        };
        assert!(value > 0.0 && value <= le, "{value} {le}");
        assert!(
            (before - 0.001..=after).contains(&time),
            "{before} {time} {after}"
        );
    }
    assert!(!service.get("/metrics").body.contains("trace_id"));
}

fn the_connection_limit_is_exposed(server: &str) {
    let metrics = Service::start(server, &["--max-connections", "321"]).scrape();
    let expected = if server == "event-loop" { 321 } else { 0 };
    assert_eq!(metrics.count("app_connections_max"), expected);
    assert_eq!(metrics.kind["app_connections_max"], "gauge");
}
