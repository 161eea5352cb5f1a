//! Fault injection: what clients can change with it, and that they can change nothing without it.

use std::time::{Duration, Instant};

use crate::support::{Client, Response, Service, request, skip, wait_until};

on_every_server!(
    a_change_lasts_until_it_is_reverted,
    a_change_ends_after_its_time,
    a_change_in_a_pipeline_applies_to_the_requests_after_it,
    a_request_can_choose_its_own_response,
    a_failure_has_the_configured_status,
    a_failure_takes_the_configured_latency,
    an_invalid_query_gets_one_line_and_changes_nothing,
    responses_say_how_to_change_settings,
    pages_of_other_hosts_cannot_change_settings,
    a_change_prints_one_line_on_standard_error,
    a_thousand_changes_print_far_fewer_lines,
    the_last_of_many_changes_is_printed,
    without_fault_injection_nothing_can_be_changed,
    work_uses_cpu_time_for_successful_probes_only,
    the_delay_comes_before_the_work,
);

const FAULTS: &[&str] = &["--fault-injection", "--fail-rate", "0"];
const AT_START: &str = "fail-rate=0\nfail-with=500\nfail-latency=0s\nslow-rate=0\nlatency=0s\nslow-latency=9s\nwork=0s\n";

/// Removes the `Date` field.
fn undated(mut response: Response) -> Response {
    let lines = response
        .head
        .lines()
        .filter(|line| !line.starts_with("Date:"));
    response.head = lines.collect::<Vec<_>>().join("\n");
    response
}

fn a_change_lasts_until_it_is_reverted(server: &str) {
    let service = Service::start(server, FAULTS);
    let mut client = service.connect();
    let shown = client.ask("GET", "/faults");
    assert_eq!((shown.status, &*shown.body), (200, AT_START));
    assert_eq!(
        shown.field("Content-Type"),
        Some("text/plain; charset=utf-8")
    );

    let changed = client.ask("PUT", "/faults?fail-rate=1&slow-latency=1m30s");
    let expected = AT_START.replace("fail-rate=0", "fail-rate=1");
    let expected = expected.replace("9s", "90s");
    assert_eq!((changed.status, &changed.body), (200, &expected));
    assert_eq!(service.get("/faults").body, expected);
    let (get, head) = (client.ask("GET", "/faults"), client.ask("HEAD", "/faults"));
    assert_eq!(
        (head.status, &*undated(head).head),
        (200, &*undated(get).head)
    );
    assert_eq!(service.get("/probe").status, 500);
    for path in ["/healthz", "/metrics", "/"] {
        assert_eq!(service.get(path).status, 200, "{path}");
    }

    assert_eq!(client.ask("DELETE", "/faults").body, AT_START);
    assert_eq!(client.ask("GET", "/probe").body, "I'm ok!");
    let response = client.ask("POST", "/faults?fail-rate=1");
    assert_eq!(response.status, 405);
    assert_eq!(
        response.field("Allow"),
        Some("GET, HEAD, PUT, DELETE, OPTIONS")
    );
    // A body is not read.
    client.send("PUT /faults HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nfail-rate=1");
    assert_eq!(client.read_response().status, 400);
    assert_eq!(client.ask("GET", "/faults").body, AT_START);
}

fn a_change_ends_after_its_time(server: &str) {
    let service = Service::start(server, FAULTS);
    let sent = Instant::now();
    let changed = service
        .connect()
        .ask("PUT", "/faults?fail-rate=1&work=5ms&for=1s");
    assert!(changed.body.ends_with("work=5ms\nfor=1s\n"), "{changed:?}");
    // Scrapes show the settings. No request to /faults is needed to end the change.
    let configured = || {
        let metrics = service.scrape();
        ["app_configured_fail_ratio", "app_configured_work_seconds"]
            .map(|name| metrics.value(name).to_string())
    };
    wait_until("the change has ended", || configured() == ["0", "0"]);
    let expected = Duration::from_secs(1)..Duration::from_secs(10);
    assert!(expected.contains(&sent.elapsed()));
    assert_eq!(service.get("/faults").body, AT_START);
    assert_eq!(service.get("/probe").status, 200);
    service.connect().ask("PUT", "/faults?fail-rate=1&work=5ms");
    assert_eq!(configured(), ["1", "0.005"]);
}

fn a_change_in_a_pipeline_applies_to_the_requests_after_it(server: &str) {
    let service = Service::start(server, FAULTS);
    let mut client = service.connect();
    let exchanges = [
        ("GET", "/probe", 200),
        ("PUT", "/faults?fail-rate=1", 200),
        ("GET", "/probe", 500),
        ("PUT", "/faults?fail-rate=2", 400),
        ("GET", "/probe", 500),
        ("DELETE", "/faults", 200),
        ("GET", "/probe", 200),
    ];
    let requests = exchanges.map(|(method, path, _)| request(method, path));
    client.send(requests.concat().repeat(20));
    for _ in 0..20 {
        for (method, path, status) in exchanges {
            assert_eq!(client.read_response().status, status, "{method} {path}");
        }
    }
}

fn a_request_can_choose_its_own_response(server: &str) {
    let service = Service::start(server, &["--fault-injection", "--fail-rate", "1"]);
    let mut client = service.connect();
    for status in [200, 400, 401, 403, 404, 408, 429, 500, 502, 503, 504] {
        let series = r#"app_request_count_total{method="GET",endpoint="/probe",http_status="#;
        let series = format!("{series}\"{status}\"}}");
        let text = service.get("/metrics").body;
        assert!(
            text.contains(&format!(r#"http_status="{status}",method="GET"}} 0"#)),
            "{text}"
        );
        for method in ["GET", "HEAD"] {
            let response = client.ask(method, &format!("/probe?x=1&status={status}"));
            assert_eq!(response.status, status);
        }
        assert_eq!(service.scrape().count(&series), 1, "{series}");
    }
    let sent = Instant::now();
    let response = client.ask("GET", "/probe?delay=200ms");
    assert_eq!(response.body, "I'm ok!");
    assert!(sent.elapsed() >= Duration::from_millis(200));
    assert_eq!(client.ask("GET", "/probe").status, 500);
    let rejected = client.ask("GET", "/probe?delay=61s");
    assert_eq!(rejected.status, 400);
    assert_eq!(
        rejected.body,
        "delay=61s: expected a duration of at most 60s with its unit, such as 250ms\n"
    );
}

fn a_failure_has_the_configured_status(server: &str) {
    let service = Service::start(server, &["--fault-injection", "--fail-rate", "1"]);
    let mut client = service.connect();
    for status in [200, 400, 401, 403, 404, 408, 429, 500, 502, 503, 504] {
        client.ask("PUT", &format!("/faults?fail-with={status}"));
        let configured = client.ask("GET", "/probe");
        let own = client.ask("GET", &format!("/probe?fail-with={status}"));
        assert!(configured.body.contains("as configured"), "{configured:?}");
        assert!(own.body.contains("as this request asked"), "{own:?}");
        for response in [configured, own, client.ask("HEAD", "/probe")] {
            assert_eq!(response.status, status);
            let asks_to_retry = [429, 503].contains(&status);
            let retry_after = response.field("Retry-After");
            assert_eq!(retry_after, asks_to_retry.then_some("1"), "{status}");
            let challenge = response.field("WWW-Authenticate");
            assert_eq!(challenge, (status == 401).then_some("Bearer"), "{status}");
        }
    }
    let rejected = client.ask("GET", "/probe?status=503&fail-with=cut");
    assert_eq!(rejected.status, 400);

    // Without fault injection, only the configured statuses can occur.
    let service = Service::start(server, &["--fail-with", "503"]);
    let text = service.get("/metrics").body;
    let statuses: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("app_request_count_total{endpoint=\"/probe\""))
        .filter_map(|line| line.split('"').nth(3))
        .collect();
    assert_eq!(statuses, ["200", "500", "503"]);
}

fn a_failure_takes_the_configured_latency(server: &str) {
    let flags = ["--fail-rate", "1", "--fail-latency", "200ms"];
    let service = Service::start(server, &flags);
    let sent = Instant::now();
    let mut client = service.connect();
    for _ in 0..3 {
        assert_eq!(client.ask("GET", "/probe").status, 500);
    }
    let waited = sent.elapsed().as_secs_f64();
    let metrics = service.scrape();
    let configured = metrics.value("app_configured_fail_latency_seconds");
    assert!((configured - 0.2).abs() < f64::EPSILON, "{configured}");
    let sum = metrics.value(r#"app_request_latency_seconds_sum{endpoint="/probe",method="GET"}"#);
    // The sum of three gamma variates of shape 3 practically never falls below a tenth of its mean.
    assert!(
        sum > 0.06 && sum <= waited,
        "recorded {sum}, waited {waited}"
    );
}

#[cfg(feature = "tiny-http")]
#[test]
fn tiny_http_rejects_failures_that_it_cannot_send() {
    let service = Service::start("tiny-http", FAULTS);
    let mut client = service.connect();
    for how in ["reset", "close", "cut", "stall", "hang"] {
        for (method, path) in [("PUT", "/faults"), ("GET", "/probe")] {
            let response = client.ask(method, &format!("{path}?fail-with={how}"));
            assert_eq!(response.status, 400);
            let why = "since --server tiny-http can send nothing else\n";
            assert!(response.body.ends_with(why), "{response:?}");
        }
        let output = crate::support::run(&["--server", "tiny-http", "--fail-with", how], &[]);
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8(output.stderr).unwrap();
        let start = format!("tiny-probe: --fail-with {how}: expected a status (");
        assert!(message.starts_with(&start), "{message}");
    }
    assert_eq!(client.ask("GET", "/faults").body, AT_START);
}

fn an_invalid_query_gets_one_line_and_changes_nothing(server: &str) {
    let service = Service::start(server, FAULTS);
    let mut client = service.connect();
    let long = format!("latency={}s", "9".repeat(7000));
    for query in [
        "",
        "fail-rate",
        "fail-rate=",
        "fail-rate=NaN",
        "fail-rate=inf",
        "fail-rate=-1",
        "fail-rate=1e400",
        "fail-rate=0.5&fail-rate=0.5",
        "fail-rate=0.5&work=2s",
        "fail-rate=0.5&for=0s",
        "fail-rate=0.5&nope=1",
        "fail-rate=%",
        "fail-rate=%0d%0aX:%201",
        "fail-rate=%1b%5b31m&slow-rate=1",
        "%00",
        "fail-rate=<script>",
        &long,
    ] {
        let response = client.ask("PUT", &format!("/faults?{query}"));
        assert_eq!(response.status, 400, "{query}");
        let line = response.body.strip_suffix('\n').expect("a whole line");
        let says_why = line.contains(": expected ") || line.contains(": given ");
        assert!(says_why, "{line}");
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && line.len() < 400);
    }
    assert_eq!(client.ask("GET", "/faults").body, AT_START);
}

fn responses_say_how_to_change_settings(server: &str) {
    let service = Service::start(server, FAULTS);
    let mut client = service.connect();
    let response = client.ask("GET", "/faults?fail-rate=1");
    assert_eq!(response.status, 400);
    assert!(response.body.contains("expected PUT"), "{response:?}");
    let response = client.ask("POST", "/faults?fail-rate=1");
    assert_eq!(response.status, 405);
    for method in ["PUT /faults?", "DELETE /faults "] {
        assert!(response.body.contains(method), "{response:?}");
    }
    for target in ["/faults", "/faults?slow-rate=1"] {
        client.send(format!(
            "PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nfail-rate=1"
        ));
        let response = client.read_response();
        assert_eq!(response.status, 400);
        assert!(response.body.contains("in the query"), "{response:?}");
    }
    let chunked =
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nb\r\nfail-rate=1\r\n0\r\n\r\n";
    let mut other = service.connect();
    other.send(format!(
        "PUT /faults?slow-rate=1 HTTP/1.1\r\nHost: a\r\n{chunked}"
    ));
    assert_eq!(other.read_response().status, 411);
    // curl -X PUT -d '' sends this.
    client.send("PUT /faults?slow-rate=0 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(client.ask("GET", "/faults").body, AT_START);

    let service = Service::start(server, &[]);
    let ignored = service.get("/probe?status=503");
    assert_eq!((ignored.status, &*ignored.body), (200, "I'm ok!"));
    let field = ignored.field("X-Fault-Injection").expect("a field");
    assert!(field.contains("--fault-injection"), "{field}");
    assert_eq!(service.get("/probe").field("X-Fault-Injection"), None);
}

fn pages_of_other_hosts_cannot_change_settings(server: &str) {
    let flags = [FAULTS, &["--allowed-host", "probe.test"]].concat();
    let service = Service::start(server, &flags);
    let mut client = service.connect();
    for (host, origin, status) in [
        ("localhost:1", "http://localhost:1", 200),
        ("127.0.0.1:1", "http://127.0.0.1:1", 200),
        ("[::1]:1", "http://[::1]:1", 200),
        ("probe.test", "https://probe.test", 200),
        ("rebound.test", "http://rebound.test", 403),
        ("localhost:1", "http://other.test", 403),
        ("localhost:1", "null", 403),
    ] {
        for request in [
            "PUT /faults?fail-rate=0",
            "DELETE /faults",
            "PUT /faults/probe?for=1m",
        ] {
            let fields = format!("Host: {host}\r\nOrigin: {origin}\r\n");
            client.send(format!("{request} HTTP/1.1\r\n{fields}\r\n"));
            let response = client.read_response();
            assert_eq!(response.status, status, "{request} {origin}: {response:?}");
            assert_eq!(response.body.contains("--allowed-host"), status == 403);
            for field in [
                "Access-Control-Allow-Origin",
                "Access-Control-Allow-Methods",
            ] {
                assert_eq!(response.field(field), None);
            }
        }
    }
}

fn set_fail_rate(client: &mut Client, fail_rate: usize) {
    let path = format!("/faults?fail-rate=0.{fail_rate:04}1");
    assert_eq!(client.ask("PUT", &path).status, 200);
}

fn a_change_prints_one_line_on_standard_error(server: &str) {
    let mut service = Service::start(server, FAULTS);
    let mut client = service.connect();
    set_fail_rate(&mut client, 1);
    set_fail_rate(&mut client, 1);
    client.ask("PUT", "/faults?fail-rate=nonsense");
    client.ask("GET", "/probe?status=503");
    client.ask("PUT", "/faults?latency=300ms&for=3m");
    // This is a change, too: the end moves, if only by a fraction of a second.
    client.ask("PUT", "/faults/probe?for=3m");
    client.ask("DELETE", "/faults");
    client.ask("DELETE", "/faults");
    let peer = client.stream.local_addr().unwrap();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let changed = format!("tiny-probe: {peer} changed the faults: fail-rate=");
    let rest = "slow-latency=9s work=0s";
    assert_eq!(
        service.stderr(),
        format!(
            "{changed}0.00011 fail-with=500 fail-latency=0s slow-rate=0 latency=0s {rest}\n\
             {changed}0.00011 fail-with=500 fail-latency=0s slow-rate=0 latency=300ms {rest} for=180s\n\
             {changed}0.00011 fail-with=500 fail-latency=0s slow-rate=0 latency=300ms {rest} for=180s\n\
             {changed}0 fail-with=500 fail-latency=0s slow-rate=0 latency=0s {rest}\n"
        )
    );
}

/// The last change is printed when its second is over, although nothing else wakes the service up then.
fn the_last_of_many_changes_is_printed(server: &str) {
    let mut service = Service::start(server, FAULTS);
    let mut client = service.connect();
    let started = Instant::now();
    (0..100).for_each(|number| set_fail_rate(&mut client, number));
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    let last = "fail-rate=0.00991 ";
    let mut lines = 1;
    while !service.next_diagnostic().contains(last) {
        lines += 1;
    }
    assert!(lines <= 10 * seconds, "{lines} in {seconds} s");
    service.assert_asleep();
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    assert_eq!(service.stderr(), "", "the last change is printed once");
}

fn a_thousand_changes_print_far_fewer_lines(server: &str) {
    let mut service = Service::start(server, FAULTS);
    let mut client = service.connect();
    let started = Instant::now();
    (0..1000).for_each(|number| set_fail_rate(&mut client, number));
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!(
        service
            .get("/faults")
            .body
            .starts_with("fail-rate=0.09991\n")
    );
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let diagnostics = service.stderr();
    let last = diagnostics.lines().last().unwrap_or_default();
    assert!(last.contains(" fail-rate=0.09991 "), "{last}");
    let lines = diagnostics.lines().count();
    assert!(
        (10..=10 * seconds).contains(&lines),
        "{lines} in {seconds} s"
    );
}

fn without_fault_injection_nothing_can_be_changed(server: &str) {
    let service = Service::start(server, &[]);
    let mut client = service.connect();
    for method in ["GET", "PUT", "DELETE", "POST"] {
        for path in ["/faults", "/faults?fail-rate=1&for=1m", "/faults/metrics"] {
            let response = client.ask(method, path);
            assert_eq!((response.status, response.field("Allow")), (404, None));
            let says_how = "--fault-injection or FAULT_INJECTION=on to change";
            assert!(response.body.contains(says_how), "{response:?}");
        }
    }
    assert!(!service.get("/faultsx").body.contains("fault injection"));
    let plain = undated(client.ask("GET", "/probe"));
    for query in ["status=503", "delay=1h", "status=x&status=%zz"] {
        assert_eq!(
            undated(client.ask("GET", &format!("/probe?{query}"))).body,
            plain.body
        );
    }
    let text = service.get("/metrics").body;
    assert!(!text.contains("/faults\""), "{text}");
    assert!(
        text.contains("\napp_configured_slow_latency_seconds 9\n"),
        "{text}"
    );
}

fn work_uses_cpu_time_for_successful_probes_only(server: &str) {
    if cfg!(not(target_os = "linux")) {
        skip("the CPU time is read from /proc");
        return;
    }
    let service = Service::start(server, &["--fault-injection", "--work", "20ms"]);
    let mut client = service.connect();
    let before = service.cpu_time();
    for _ in 0..25 {
        assert_eq!(client.ask("GET", "/probe").body, "I'm ok!");
    }
    let used = service.cpu_time().saturating_sub(before).as_secs_f64();
    assert!(
        (0.45..=0.55).contains(&used),
        "{used} s, expected 25 times 20 ms"
    );

    client.ask("PUT", "/faults?work=1s&fail-rate=1");
    let before = service.cpu_time();
    for _ in 0..10 {
        assert_eq!(client.ask("GET", "/probe").status, 500);
        assert_eq!(client.ask("POST", "/probe").status, 405);
        assert_eq!(client.ask("GET", "/probe?status=200").status, 200);
        assert_eq!(client.ask("GET", "/probe?status=503").status, 503);
        assert_eq!(client.ask("GET", "/healthz").status, 200);
    }
    let used = service.cpu_time().saturating_sub(before);
    assert!(
        used < Duration::from_millis(500),
        "{used:?} for requests without work"
    );
}

fn the_delay_comes_before_the_work(server: &str) {
    if cfg!(not(target_os = "linux")) {
        skip("the CPU time is read from /proc");
        return;
    }
    let flags = [
        "--work",
        "300ms",
        "--slow-rate",
        "1",
        "--slow-latency",
        "2s",
    ];
    let service = Service::start(server, &flags);
    let mut client = service.connect();
    let sent = Instant::now();
    client.send_request("GET", "/probe");
    // A gamma distribution with shape 30 practically never falls below a third of its mean.
    while sent.elapsed() < Duration::from_millis(400) {
        assert!(
            service.cpu_time() < Duration::from_millis(200),
            "the work started before the delay was over"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.read_response().body, "I'm ok!");
    // The CPU time is the sum of two values that are rounded down to 10 ms.
    assert!(service.cpu_time() >= Duration::from_millis(280));
    assert!(sent.elapsed() > Duration::from_millis(300 + 2000 / 3));
}
