//! Flags, environment variables, exit codes and messages.

use std::env::consts::{ARCH, OS};
use std::net::{Ipv6Addr, TcpListener};
use std::time::{Duration, Instant};

use crate::support::{Client, Service, run, skip};

on_every_server!(
    the_start_line_has_version_server_and_url,
    the_healthcheck_requests_healthz_from_the_running_server,
    a_port_alone_means_every_address_and_ipv4_clients_are_logged_as_ipv4,
    the_unspecified_ipv6_address_is_served,
);

/// Asserts that there is one line on standard error and nothing on standard output, and returns the line.
fn message(output: &std::process::Output) -> String {
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    let message = message.strip_suffix('\n').expect("a whole line");
    assert!(!message.contains('\n'), "{message}");
    message.to_owned()
}

#[test]
fn an_invalid_value_prints_one_line_and_exits_with_2() {
    let share = "a number from 0 to 1, such as 0.01";
    let listen = "a port, such as :8080, or an IP address and a port, such as 127.0.0.1:8080 or \
                  [::1]:8080";
    let latency = "a duration of at most 1h with its unit, such as 300ms or 9s";
    for (flag, value, expected) in [
        ("--listen", "nonsense", listen),
        ("--listen", "127.0.0.1:99999", listen),
        ("--fail-rate", "2", share),
        ("--fail-rate", "-0.1", share),
        ("--fail-rate", "NaN", share),
        ("--slow-rate", "10%", share),
        ("--latency", "300", latency),
        ("--latency", "0", latency),
        ("--slow-latency", "0", latency),
        (
            "--work",
            "0",
            "a duration of at most 1s with its unit, such as 20ms",
        ),
        ("--latency", "2h", latency),
        ("--slow-latency", "-1s", latency),
        (
            "--random-seed",
            "-1",
            "a whole number from 0 to 18446744073709551615",
        ),
        ("--max-connections", "0", "a whole number from 1 to 1000000"),
        (
            "--max-connections",
            "1000001",
            "a whole number from 1 to 1000000",
        ),
        (
            "--max-connections",
            "1e3",
            "a whole number from 1 to 1000000",
        ),
        ("--access-log", "maybe", "off, on or json"),
        ("--fault-injection", "some", "off, on or all"),
        (
            "--exit-after",
            "20",
            "never, or a duration of at most 24h with its unit, such as 20s",
        ),
        ("--exit-code", "256", "a whole number from 0 to 255"),
        ("--start-delay", "2h", latency),
        ("--shutdown-delay", "5", latency),
        (
            "--allowed-host",
            "a:80",
            "none, or a host name without a port, such as probe.example.com",
        ),
    ] {
        let output = run(&[&format!("{flag}={value}")], &[]);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}");
        assert_eq!(
            message(&output),
            format!("tiny-probe: {flag} {value}: expected {expected}")
        );

        let variable = flag[2..].to_uppercase().replace('-', "_");
        let output = run(&[], &[(&variable, value)]);
        assert_eq!(output.status.code(), Some(2), "{variable} {value}");
        assert_eq!(
            message(&output),
            format!("tiny-probe: {variable}={value} ({flag}): expected {expected}")
        );
    }
}

#[test]
fn a_bad_value_after_a_switch_is_rejected_by_its_name() {
    for (flag, expected) in [
        ("--fault-injection", "off, on or all"),
        ("--access-log", "off, on or json"),
    ] {
        for value in ["ALL", "yaml", ""] {
            let output = run(&[flag, value, "--exit-code", "3"], &[]);
            assert_eq!(output.status.code(), Some(2), "{flag} {value}");
            let line = format!("tiny-probe: {flag} {value}: expected {expected}");
            assert_eq!(message(&output), line);
        }
    }
}

#[test]
fn the_message_for_an_unknown_server_names_the_known_ones() {
    let output = run(&["--server", "apache"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let message = message(&output);
    assert!(message.starts_with("tiny-probe: --server apache: expected "));
    assert!(message.contains("tiny-http"), "{message}");
}

#[cfg(not(feature = "tiny-http"))]
#[test]
fn the_message_for_a_server_that_is_not_built_in_says_how_to_get_it() {
    let expected = "expected event-loop, or a build with the Cargo feature tiny-http";
    for (arguments, environment, written) in [
        (
            &["--server", "tiny-http"][..],
            &[][..],
            "--server tiny-http",
        ),
        (
            &[],
            &[("SERVER", "tiny-http")],
            "SERVER=tiny-http (--server)",
        ),
    ] {
        let output = run(arguments, environment);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(
            message(&output),
            format!("tiny-probe: {written}: {expected}")
        );
    }
}

#[test]
fn an_invalid_argument_prints_one_line_and_exits_with_2() {
    for (arguments, expected) in [
        (&["--nope"][..], "'--nope'"),
        (&["-x"], "'-x'"),
        (&["serve"], "\"serve\""),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let message = message(&output);
        assert!(message.contains(expected), "{message}");
        assert!(message.ends_with("; see --help"), "{message}");
    }
}

#[test]
fn the_message_for_a_missing_value_says_what_is_accepted() {
    let output = run(&["--fail-rate", "0.5", "--latency"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let expected = "a duration of at most 1h with its unit, such as 300ms or 9s";
    let line = format!("tiny-probe: --latency: expected {expected}");
    assert_eq!(message(&output), line);
}

#[test]
fn the_message_for_a_value_with_line_breaks_is_one_line() {
    let output = run(&["--fail-rate", "1\n2\r\u{1b}[31m"], &[]);
    assert_eq!(
        message(&output),
        "tiny-probe: --fail-rate 1\u{fffd}2\u{fffd}\u{fffd}[31m: expected a number from 0 to 1, such as 0.01"
    );
}

#[test]
fn a_port_in_use_prints_one_line_and_exits_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&[], &[("LISTEN", &address)]);
    assert_eq!(output.status.code(), Some(1));
    let message = message(&output);
    assert!(
        message.starts_with(&format!("tiny-probe: cannot listen on {address}: Address ")),
        "{message}"
    );
    assert!(message.ends_with("; choose another address with --listen"));
}

#[test]
fn help_and_version_are_printed() {
    let help = run(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Usage: tiny-probe"));
    assert!(help.contains("[FAIL_RATE: 0]"));

    let version = run(&["--version"], &[]);
    assert_eq!(version.status.code(), Some(0));
    let version = String::from_utf8(version.stdout).unwrap();
    let libc = if cfg!(target_env = "musl") {
        "-musl"
    } else {
        ""
    };
    let expected = format!(
        "tiny-probe {} (commit {}, {ARCH}-{OS}{libc})\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("TINY_PROBE_COMMIT").unwrap_or("unknown"),
    );
    assert_eq!(version, expected);
}

fn the_start_line_has_version_server_and_url(server: &str) {
    let service = Service::start(server, &[]);
    let version = env!("CARGO_PKG_VERSION");
    let address = service.address;
    assert_ne!(address.port(), 0);
    assert_eq!(
        service.start_line,
        format!("tiny-probe {version} ({server}) on http://{address}\n")
    );
}

fn the_healthcheck_requests_healthz_from_the_running_server(server: &str) {
    let mut service = Service::start_on("0.0.0.0:0", server, &["--fail-rate", "1"]);
    let listen = format!("0.0.0.0:{}", service.address.port());
    let output = run(&["healthcheck"], &[("LISTEN", &listen)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    let counter = r#"app_request_count_total{method="GET",endpoint="/healthz",http_status="200"}"#;
    assert_eq!(service.scrape().count(counter), 1);

    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let output = run(&["healthcheck", "--listen", &listen], &[]);
    assert_eq!(output.status.code(), Some(1));
    let port = service.address.port();
    let message = message(&output);
    let begin = format!("tiny-probe: http://127.0.0.1:{port}/healthz: Connection refused");
    assert!(message.starts_with(&begin), "{message}");
    let end = "; is tiny-probe running, and does --listen or LISTEN name its address?";
    assert!(message.ends_with(end), "{message}");
}

#[test]
fn the_healthcheck_fails_on_any_response_other_than_200() {
    use std::io::{Read, Write};
    let long = format!("HTTP/1.1 200 {}\r\n", "x".repeat(1000));
    for (sent, shown) in [
        (
            "HTTP/1.1 503 \x1b[31mNo\r\n\r\n",
            "HTTP/1.1 503 \\u{1b}[31mNo",
        ),
        ("", ""),
        ("HTTP/1.1 2000 x\r\n", "HTTP/1.1 2000 x"),
        (&long[1..], &long[1..65]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sent = sent.to_owned();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            stream.write_all(sent.as_bytes()).unwrap();
            head[..read].to_vec()
        });
        let output = run(&["healthcheck", "--listen", &address], &[]);
        assert_eq!(output.status.code(), Some(1));
        let expected =
            format!("tiny-probe: http://{address}/healthz: expected status 200, found \"{shown}\"");
        assert_eq!(message(&output), expected);
        let request = String::from_utf8(server.join().unwrap()).unwrap();
        assert!(
            request.starts_with("GET /healthz HTTP/1.1\r\nHost: 127."),
            "{request}"
        );
    }
}

/// A server that is stuck accepts the connection, or the kernel does so for it.
#[test]
fn the_healthcheck_waits_two_seconds_for_a_response() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let started = Instant::now();
    let output = run(&["healthcheck", "--listen", &address], &[]);
    let took = started.elapsed();
    assert_eq!(output.status.code(), Some(1));
    let begin = format!("tiny-probe: http://{address}/healthz: ");
    assert!(message(&output).starts_with(&begin), "{output:?}");
    let expected = Duration::from_millis(1990)..Duration::from_secs(10);
    assert!(expected.contains(&took), "{took:?}");
}

fn a_port_alone_means_every_address_and_ipv4_clients_are_logged_as_ipv4(server: &str) {
    let flags = ["--access-log", "--fault-injection"];
    let mut service = Service::start_on(":0", server, &flags);
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    if !has_ipv6 {
        skip("this machine has no IPv6");
    }
    let port = service.address.port();
    let every = if has_ipv6 { "every" } else { "every IPv4" };
    let url = format!(" on http://localhost:{port} ({every} address)\n");
    assert!(service.start_line.ends_with(&url), "{}", service.start_line);

    let mut clients = vec![Client::connect(([127, 0, 0, 1], port).into())];
    if has_ipv6 {
        clients.push(Client::connect((Ipv6Addr::LOCALHOST, port).into()));
    }
    let (mut logged, mut announced) = (Vec::new(), Vec::new());
    for (number, client) in clients.iter_mut().enumerate() {
        let path = format!("/faults?fail-rate=0.{}", number + 1);
        assert_eq!(client.ask("PUT", &path).status, 200);
        let peer = client.stream.local_addr().unwrap();
        logged.push(format!(" {peer} PUT {path} 200 "));
        announced.push(format!("tiny-probe: {peer} changed the faults: "));
    }
    let output = run(&["healthcheck"], &[("LISTEN", &format!(":{port}"))]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    logged.push(" GET /healthz 200 ".to_owned());

    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    for (log, expected) in [(service.stdout(), logged), (service.stderr(), announced)] {
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{log}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(&expected), "{line}: {expected}");
        }
    }
}

fn the_unspecified_ipv6_address_is_served(server: &str) {
    if TcpListener::bind("[::1]:0").is_err() {
        skip("this machine has no IPv6");
        return;
    }
    let service = Service::start_on("[::]:0", server, &[]);
    let listen = format!("[::]:{}", service.address.port());
    let output = run(&["healthcheck", "--listen", &listen], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
