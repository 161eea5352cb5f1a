//! The table "What it exposes": the metrics by name, label, bucket and value, and their bounds.

use std::collections::BTreeSet;

use crate::support::{Labels, Page, Series, Service, wait_until};

on_every_server!(
    the_page_is_the_seeds,
    the_version_labels_are_configured,
    labels_stay_bounded_whatever_clients_send,
    open_connections_are_counted,
    the_process_is_measured,
);

/// After the same requests as the seed's page: GET /probe twice, GET /nope, POST /probe, a scrape.
fn the_page_is_the_seeds(server: &str) {
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
    let page = service.scrape();
    let seed = Page::parse(include_str!("seed-metrics.txt"));

    assert_eq!(series_of(&page), series_of(&seed));
    // How fast a request was may differ from the seed, how many there were may not.
    for ((name, labels), value) in &seed.samples {
        let counts = ["_count", "_total"].iter().any(|end| name.ends_with(end));
        if name.starts_with("app_") && counts || labels.get("le").is_some_and(|le| le == "inf") {
            let series = (name.clone(), our_labels(labels));
            assert_eq!(
                page.samples[&series].to_bits(),
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
        assert_eq!(page.help[name], seed.help[name]);
        assert_eq!(page.kind[name], seed.kind[name]);
    }
    let of_process = |name: &&String| cfg!(target_os = "linux") && name.starts_with("process_");
    for name in seed.kind.keys().filter(of_process) {
        assert_eq!(page.kind[name], seed.kind[name]);
        assert!(
            page.value(name) > 0.0 || name == "process_cpu_seconds_total",
            "{name}"
        );
    }
    for name in page.kind.keys() {
        assert!(page.help.contains_key(name), "{name} has no HELP");
    }
}

/// The app_* series of a page. The `_created` series are the Python client's own, and
/// `app_connections_open` and `app_configured_*` are ours.
fn series_of(page: &Page) -> BTreeSet<Series> {
    let ours = |name: &str| {
        name.starts_with("app_")
            && !name.ends_with("_created")
            && name != "app_connections_open"
            && !name.starts_with("app_configured_")
    };
    page.samples
        .keys()
        .filter(|(name, _)| ours(name))
        .map(|(name, labels)| (name.clone(), our_labels(labels)))
        .collect()
}

/// The seed labels with the raw path; here an unknown one is `other`.
fn our_labels(labels: &Labels) -> Labels {
    let mut labels = labels.clone();
    if let Some(endpoint) = labels.get_mut("endpoint")
        && endpoint == "/nope"
    {
        *endpoint = "other".into();
    }
    labels
}

fn the_version_labels_are_configured(server: &str) {
    let page = Service::start(server, &["--app-version", "2.1", "--app-config", "prod"]).scrape();
    let info = page.count(r#"app_version_info{version="2.1",config="prod"}"#);
    assert_eq!(info, 1);
}

fn labels_stay_bounded_whatever_clients_send(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    let mut invent = |number: usize| {
        for (method, path) in [
            ("GET".into(), format!("/path{number}")),
            (format!("METHOD{number}"), "/probe".into()),
            (format!("M{number}"), format!("/?q={number}")),
            ("POST".into(), format!("/probe?{number}")),
        ] {
            let answer = client.ask(&method, &path);
            assert!([404, 405].contains(&answer.status), "{method} {path}");
        }
    };
    invent(0);
    let before = series_of(&service.scrape()).len();
    (1..1000).for_each(&mut invent);
    let page = service.scrape();
    // The scrape before is the one request that the first page could not show.
    let scrape_series = series_of(&page)
        .iter()
        .filter(|(_, labels)| labels.get("endpoint").is_some_and(|e| e == "/metrics"))
        .count();
    assert_eq!(series_of(&page).len(), before + scrape_series);
    assert_eq!(
        page.sum("app_request_count_total", "endpoint", "other"),
        1000
    );
    assert_eq!(page.sum("app_request_count_total", "method", "other"), 2000);
}

fn open_connections_are_counted(server: &str) {
    if cfg!(not(target_os = "linux")) && server == "tiny-http" {
        println!("skipped: that loop counts them in /proc");
        return;
    }
    let service = Service::start(server, &[]);
    // One after the other: tiny_http's pool of threads can lose one of many at once.
    let connect = |_| {
        let mut client = service.connect();
        client.ask("GET", "/healthz");
        client
    };
    let clients: Vec<_> = (0..7).map(connect).collect();
    // The scrape's own connection is open as well.
    let open = |expected| {
        let mut scraper = service.connect();
        wait_until("the connections are counted", || {
            let page = Page::parse(&scraper.ask("GET", "/metrics").body);
            page.count("app_connections_open") == expected
        });
    };
    open(8);
    drop(clients);
    open(1);
}

fn the_process_is_measured(server: &str) {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: the process is measured in /proc");
        return;
    }
    let service = Service::start(server, &[]);
    let page = service.scrape();
    // To the nearest tenth: the page is read a moment before /proc is.
    let resident = service.status("VmRSS") * 1024;
    let exposed = page.count("process_resident_memory_bytes");
    assert!(
        exposed.abs_diff(resident) < resident / 10,
        "{exposed} {resident}"
    );
    assert!(page.value("process_open_fds") >= 4.0);
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_secs_f64() - page.value("process_start_time_seconds");
    assert!((-2.0..120.0).contains(&age), "{age}");
}
