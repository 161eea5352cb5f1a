//! The response to every route and method: status, fields and body.

use crate::support::{Client, Service};

on_every_server!(
    every_route_responds_to_get,
    head_is_like_get_without_the_body,
    other_methods_get_405_with_allow,
    options_gets_204_with_allow,
    other_paths_get_404,
    the_landing_page_links_to_the_other_routes,
    requests_fail_at_the_configured_rate,
    the_same_seed_repeats_the_same_failures,
    a_delayed_response_is_recorded_with_its_delay,
    a_connection_serves_ten_requests,
    http_1_0_and_connection_close_close_the_connection,
    a_half_closed_client_gets_its_response,
    the_access_log_has_a_line_per_request,
    the_access_log_in_json_has_the_same_fields_and_the_trace,
);

const TEXT: &str = "text/plain; charset=utf-8";

fn every_route_responds_to_get(server: &str) {
    let service = Service::start(server, &[]);
    for (path, content_type, body) in [
        ("/probe", TEXT, "I'm ok!"),
        ("/probe?x=/nope", TEXT, "I'm ok!"),
        ("/healthz", TEXT, "ok\n"),
    ] {
        let response = service.get(path);
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.field("Content-Type"), Some(content_type));
        assert_eq!(response.body, body);
        let date = response.field("Date").expect("Date");
        assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
    }
    let metrics = service.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert_eq!(
        metrics.field("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(metrics.body.starts_with("# HELP "));
    assert!(metrics.body.ends_with('\n'));
}

fn head_is_like_get_without_the_body(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for path in ["/probe", "/metrics", "/healthz", "/", "/nope"] {
        let head = client.ask("HEAD", path);
        let get = client.ask("GET", path);
        assert_eq!(head.status, get.status);
        assert_eq!(head.field("Content-Type"), get.field("Content-Type"));
        if path != "/metrics" {
            let length = Some(get.body.len().to_string());
            assert_eq!(head.field("Content-Length"), length.as_deref(), "{path}");
        }
    }
}

fn other_methods_get_405_with_allow(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for path in ["/probe", "/metrics", "/healthz", "/"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "get"] {
            let response = client.ask(method, path);
            assert_eq!(response.status, 405, "{method} {path}");
            assert_eq!(response.field("Allow"), Some("GET, HEAD, OPTIONS"));
        }
    }
    assert_eq!(client.ask("GET", "/probe").field("Allow"), None);
    let response = client.ask("CONNECT", "test:443");
    assert_eq!(response.status, 405);
    assert_eq!(response.field("Allow"), Some("GET, HEAD, OPTIONS"));
}

/// `HAProxy` sends OPTIONS with `option httpchk`, and the seed's framework responds to it.
fn options_gets_204_with_allow(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for target in ["/probe", "/metrics", "/healthz", "/", "*"] {
        let response = client.ask("OPTIONS", target);
        assert_eq!(response.status, 204, "{target}");
        assert_eq!(response.field("Allow"), Some("GET, HEAD, OPTIONS"));
        // RFC 9110, section 8.6, forbids a length.
        for field in [
            "Content-Type",
            "Content-Length",
            "Access-Control-Allow-Origin",
        ] {
            assert_eq!(response.field(field), None, "{target}");
        }
    }
    assert_eq!(client.ask("OPTIONS", "/nope").status, 404);
}

fn other_paths_get_404(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for path in ["/nope", "/probe/", "/probes", "//", "/metrics/x"] {
        for method in ["GET", "POST"] {
            assert_eq!(client.ask(method, path).status, 404, "{method} {path}");
        }
    }
}

fn the_landing_page_links_to_the_other_routes(server: &str) {
    let service = Service::start(server, &["--app-version", "<7>"]);
    let page = service.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(page.field("Content-Type"), Some("text/html; charset=utf-8"));
    for part in [
        "<title>tiny-probe</title>",
        env!("CARGO_PKG_VERSION"),
        "&lt;7&gt;",
        "href=/metrics>",
        "href=/probe>",
        "href=/healthz>",
        "href=/readyz>",
        "fail-rate=0\n",
    ] {
        assert!(page.body.contains(part), "{part}");
    }
    assert_eq!(page.field("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(page.field("Referrer-Policy"), Some("no-referrer"));
    let policy = page.field("Content-Security-Policy").expect("a policy");
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "script-src 'sha256-",
    ] {
        assert!(policy.contains(directive), "{policy}");
    }
    let others = service.get("/probe");
    assert_eq!(others.field("Content-Security-Policy"), None);
}

fn statuses(client: &mut Client, requests: usize) -> Vec<u16> {
    let ask = |_| client.ask("GET", "/probe").status;
    (0..requests).map(ask).collect()
}

fn requests_fail_at_the_configured_rate(server: &str) {
    let flags = ["--fail-rate", "0.25", "--random-seed", "7"];
    let service = Service::start(server, &flags);
    let statuses = statuses(&mut service.connect(), 1000);
    let failed = statuses.iter().filter(|status| **status == 500).count();
    // The seed determines the exact number. The range is five standard errors, 68, on each side.
    assert!((182..=318).contains(&failed), "{failed} of 1000");
    assert!(statuses.iter().all(|status| [200, 500].contains(status)));
    let metrics = service.scrape();
    let counted = metrics
        .count(r#"app_request_count_total{method="GET",endpoint="/probe",http_status="500"}"#);
    assert_eq!(counted, failed as u64);
    assert_eq!(service.get("/healthz").status, 200);
}

fn the_same_seed_repeats_the_same_failures(server: &str) {
    let with_seed = |seed| {
        let service = Service::start(server, &["--fail-rate", "0.5", "--random-seed", seed]);
        statuses(&mut service.connect(), 64)
    };
    assert_eq!(with_seed("1"), with_seed("1"));
    assert_ne!(with_seed("1"), with_seed("2"));
}

fn a_delayed_response_is_recorded_with_its_delay(server: &str) {
    let flags = ["--slow-rate", "1", "--slow-latency", "200ms"];
    let service = Service::start(server, &[&flags[..], &["--random-seed", "1"]].concat());
    let started = std::time::Instant::now();
    let response = service.get("/probe");
    let waited = started.elapsed().as_secs_f64();
    assert_eq!((response.status, &*response.body), (200, "I'm ok!"));
    let metrics = service.scrape();
    let series = r#"{method="GET",endpoint="/probe"}"#;
    let recorded = metrics.value(&format!("app_request_latency_seconds_sum{series}"));
    // A gamma distribution with shape 30 practically never falls below a third of its mean.
    assert!(recorded > 0.2 / 3.0, "{recorded}");
    assert!(recorded <= waited, "recorded {recorded}, waited {waited}");
}

fn a_connection_serves_ten_requests(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for _ in 0..5 {
        assert_eq!(client.ask("GET", "/probe").body, "I'm ok!");
        assert_eq!(client.ask("GET", "/nope").status, 404);
    }
}

fn http_1_0_and_connection_close_close_the_connection(server: &str) {
    let service = Service::start(server, &[]);
    let mut requests = vec![
        "GET /probe HTTP/1.0\r\n\r\n",
        "GET /probe HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    ];
    if server == "tiny-http" {
        // The crate reads no further request from such a connection.
        requests.push("GET /probe HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\n\r\n");
    }
    for request in requests {
        let mut client = service.connect();
        client.send(request);
        let response = client.read_response();
        assert_eq!(response.body, "I'm ok!");
        assert_eq!(response.field("Connection"), Some("close"), "{request}");
        client.expect_close();
    }
}

fn a_half_closed_client_gets_its_response(server: &str) {
    let service = Service::start(server, &["--latency", "50ms"]);
    let mut client = service.connect();
    client.send_request("GET", "/probe");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read_response().body, "I'm ok!");
    client.expect_close();
}

fn the_access_log_has_a_line_per_request(server: &str) {
    let mut service = Service::start(server, &["--access-log"]);
    let mut client = service.connect();
    client.ask("GET", "/probe?x=1");
    client.ask("HEAD", "/healthz");
    client.ask("BREW", "/\"quoted\"");
    let peer = client.stream.local_addr().unwrap().to_string();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let log = service.stdout();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    let expected = [
        ["GET", "/probe?x=1", "200", "7"],
        ["HEAD", "/healthz", "200", "0"],
        ["BREW", "/\\\"quoted\\\"", "404", "57"],
    ];
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line.len(), 7, "{log}");
        assert!(line[0].ends_with('Z') && line[0].starts_with("20"), "{log}");
        assert_eq!(line[1], peer);
        assert_eq!(line[2..6], expected);
        assert!(line[6].parse::<f64>().unwrap() < 60.0);
    }
}

fn the_access_log_in_json_has_the_same_fields_and_the_trace(server: &str) {
    let mut service = Service::start(server, &["--access-log", "json"]);
    let mut client = service.connect();
    client.ask("GET", "/probe?x=1");
    client.ask("BREW", "/\"quoted\"");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
    client.send(format!(
        "GET /healthz HTTP/1.1\r\nHost: a\r\ntraceparent: {trace}\r\n\r\n"
    ));
    client.read_response();
    let peer = client.stream.local_addr().unwrap();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let log = service.stdout();
    let ids = r#","trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"00f067aa0ba902b7""#;
    let expected = [
        (r#""GET","path":"/probe?x=1","status":200,"bytes":7"#, ""),
        (r#""BREW","path":"/\"quoted\"","status":404,"bytes":57"#, ""),
        (r#""GET","path":"/healthz","status":200,"bytes":3"#, ids),
    ];
    assert_eq!(log.lines().count(), expected.len(), "{log}");
    for (line, (fields, trace)) in log.lines().zip(expected) {
        let rest = line.strip_prefix(r#"{"time":"20"#).expect(line);
        let (_, rest) = rest.split_once("Z\",").expect(line);
        let (before, seconds) = rest.split_once(r#","seconds":"#).expect(line);
        assert_eq!(before, format!(r#""peer":"{peer}","method":{fields}"#));
        let seconds = seconds.strip_suffix(&format!("{trace}}}")).expect(line);
        assert!(seconds.parse::<f64>().unwrap() < 60.0, "{line}");
    }
}
