//! The target process, on the event loop: it freezes, exits, or holds memory, series and descriptors.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Service, TIMEOUT, wait_until};

fn service() -> Service {
    Service::start("event-loop", &["--fault-injection=all"])
}

fn put(client: &mut Client, query: &str) -> String {
    let response = client.ask("PUT", &format!("/faults/process?{query}"));
    assert_eq!(response.status, 200, "{response:?}");
    response.body
}

const MIB: u64 = 1024;

#[test]
fn memory_is_held_until_the_change_is_reverted() {
    let service = service();
    let mut client = service.connect();
    let before = service.status("VmRSS");
    let held = || service.status("VmRSS").saturating_sub(before);
    let is_active = || {
        service
            .scrape()
            .count(r#"app_fault_active{target="process"}"#)
    };
    let overview = put(&mut client, "memory=64MiB&for=1h");
    assert!(overview.contains("\nprocess: memory=64MiB "), "{overview}");
    wait_until("it is held", || held() >= 64 * MIB);
    assert_eq!(is_active(), 1);
    let resident = service.scrape().count("process_resident_memory_bytes");
    assert!(resident >= 64 * MIB * 1024);
    client.ask("DELETE", "/faults");
    wait_until("it is released", || held() < 16 * MIB);
    assert_eq!(is_active(), 0);
    service.assert_asleep();
}

/// The allocator must not keep the memory, whatever was held before.
#[test]
fn memory_is_released_every_time() {
    let service = service();
    let mut client = service.connect();
    let before = service.status("VmRSS");
    let held = || service.status("VmRSS").saturating_sub(before);
    for mib in [20, 29, 25, 31, 1, 30] {
        put(&mut client, &format!("memory={mib}MiB&series=400&for=1h"));
        wait_until("it is held", || held() >= mib * MIB);
        service.scrape();
        client.ask("DELETE", "/faults");
        wait_until("it is released", || held() < 8 * MIB);
    }
}

#[test]
fn memory_is_released_when_the_time_is_over() {
    let service = service();
    let before = service.status("VmHWM");
    let peak = || service.status("VmHWM") - before;
    // On a busy machine, the time may be over before all of it is held.
    let is_held = [3, 15, 45].into_iter().any(|seconds| {
        put(
            &mut service.connect(),
            &format!("memory=16MiB&for={seconds}s"),
        );
        let asked = Instant::now();
        wait_until("it is held", || {
            peak() >= 16 * MIB || asked.elapsed() > Duration::from_secs(seconds)
        });
        peak() >= 16 * MIB
    });
    assert!(is_held);
    // No event wakes the service up meanwhile.
    wait_until("it is released", || {
        service.status("VmRSS") < before + 8 * MIB
    });
    service.assert_asleep();
}

#[test]
fn extra_series_are_exposed_until_the_change_is_reverted() {
    let service = service();
    let mut client = service.connect();
    put(&mut client, "series=20000&for=1h");
    let metrics = service.scrape();
    let extra = metrics
        .samples
        .iter()
        .filter(|((name, _), _)| name == "app_extra");
    assert_eq!(extra.count(), 20_000);
    assert_eq!(metrics.count(r#"app_extra{id="0"}"#), 1);
    assert_eq!(metrics.count(r#"app_extra{id="19999"}"#), 1);
    assert_eq!(metrics.kind["app_extra"], "gauge");
    put(&mut client, "series=100000&for=1h");
    assert_eq!(service.scrape().count(r#"app_extra{id="99999"}"#), 1);
    client.ask("DELETE", "/faults/process");
    assert!(!service.get("/metrics").body.contains("app_extra"));
}

#[test]
fn extra_descriptors_are_open_until_the_change_is_reverted() {
    let service = Service::start_after("ulimit -n 300", "event-loop", &["--fault-injection=all"]);
    let mut client = service.connect();
    let mut open = || client.scrape().count("process_open_fds");
    let before = open();
    let mut changer = service.connect();
    put(&mut changer, "open-files=100&for=1h");
    wait_until("they are open", || open() >= before + 100);
    // If the limit is lower, 48 descriptors are left for connections. The setting is then what could be opened.
    put(&mut changer, "open-files=1000000&for=1h");
    wait_until("as many as can be are open", || {
        let settings = changer.ask("GET", "/faults/process").body;
        !settings.contains("open-files=1000000\n")
    });
    assert_eq!(open(), 300 - 48);
    assert_eq!(service.get("/healthz").status, 200);
    service.assert_asleep();
    changer.ask("DELETE", "/faults");
    wait_until("they are closed", || open() <= before + 2);
}

#[cfg(target_os = "linux")]
#[test]
fn thousands_of_descriptors_are_opened_without_a_further_request() {
    let service = Service::start_after("ulimit -n 2500", "event-loop", &["--fault-injection=all"]);
    put(&mut service.connect(), "open-files=2200&for=1h");
    let folder = format!("/proc/{}/fd", service.pid());
    wait_until("they are open", || {
        std::fs::read_dir(&folder).unwrap().count() >= 2200
    });
}

#[test]
fn idle_connections_without_a_free_descriptor_do_not_keep_others_out() {
    let service = Service::start_after("ulimit -n 300", "event-loop", &["--fault-injection=all"]);
    put(&mut service.connect(), "open-files=1000000&for=1h");
    wait_until("the descriptors are taken", || {
        service.scrape().count("process_open_fds") > 220
    });
    // These are more clients than free descriptors, and fewer than --max-connections.
    let idle: Vec<Client> = (0..150).map(|_| service.connect()).collect();
    assert_eq!(service.get("/healthz").status, 200);
    assert_eq!(service.connect().ask("DELETE", "/faults").status, 200);
    wait_until("the descriptors are free", || {
        service.scrape().count("process_open_fds") < 220
    });
    drop(idle);
}

#[test]
fn a_frozen_process_serves_no_client_until_the_time_is_over() {
    let mut service = service();
    let mut client = service.connect();
    let asked = Instant::now();
    let overview = put(&mut client, "freeze=3s");
    assert!(overview.ends_with("work=0s\n"), "{overview}");
    // The response to the change was sent before the freeze.
    assert!(asked.elapsed() < Duration::from_secs(3));
    service.signal("TERM");
    assert_eq!(service.get("/healthz").status, 200);
    assert!(asked.elapsed() >= Duration::from_secs(3), "it is frozen");
    assert_eq!(service.wait(), Some(0), "the signal is read afterward");
    let stderr = service.stderr();
    assert!(
        stderr.contains(" process: ") && stderr.contains(" freeze=3s"),
        "{stderr}"
    );
}

#[test]
fn the_process_exits_after_the_given_time_with_the_given_code() {
    for (query, code) in [
        ("exit-after=0s", 1),
        ("exit-after=200ms&exit-code=0", 0),
        ("exit-code=77&exit-after=200ms", 77),
    ] {
        let mut service = service();
        let asked = Instant::now();
        put(&mut service.connect(), query);
        assert_eq!(service.wait(), Some(code), "{query}");
        assert!(query.contains("0s") || asked.elapsed() >= Duration::from_millis(200));
        let expected = format!("tiny-probe: exiting with code {code} (exit-after)\n");
        assert!(service.stderr().ends_with(&expected));
        assert!(TcpStream::connect(service.address).is_err());
    }
}

#[test]
fn an_exit_can_be_reverted() {
    let mut service = service();
    let mut client = service.connect();
    let overview = put(&mut client, "exit-after=1m&exit-code=3");
    assert!(
        overview.contains(" exit-after=60s exit-code=3\n"),
        "{overview}"
    );
    let shown = client.ask("GET", "/faults/process").body;
    assert!(
        shown.ends_with("\nexit-after=60s\nexit-code=3\n"),
        "{shown}"
    );
    client.ask("DELETE", "/faults/process");
    assert!(!client.ask("GET", "/faults").body.contains("exit-after"));
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn an_invalid_change_is_one_line_and_changes_nothing() {
    let service = service();
    let mut client = service.connect();
    let names = "freeze, exit-after, exit-code, memory, series, open-files, or for";
    let size = "a size of at most 1GiB with its unit, such as 64MiB";
    for (query, problem) in [
        ("", format!("the query is empty: expected {names}")),
        ("fail-rate=1", format!("fail-rate=1: expected {names}")),
        (
            "memory=2GiB&for=1m",
            format!("memory=2GiB: expected {size}"),
        ),
        (
            "memory=64MB&for=1m",
            format!("memory=64MB: expected {size}"),
        ),
        ("memory=64&for=1m", format!("memory=64: expected {size}")),
        ("memory=-1B&for=1m", format!("memory=-1B: expected {size}")),
        (
            "series=100001&for=1m",
            "series=100001: expected a whole number of at most 100000".into(),
        ),
        (
            "open-files=1000001&for=1m",
            "open-files=1000001: expected a whole number of at most 1000000".into(),
        ),
        (
            "freeze=601s",
            "freeze=601s: expected a duration of at most 10m with its unit, such as 30s".into(),
        ),
        (
            "exit-after=25h",
            "exit-after=25h: expected never, or a duration of at most 24h with its unit, such as 20s".into(),
        ),
        (
            "exit-after=1s&exit-code=256",
            "exit-code=256: expected a whole number from 0 to 255".into(),
        ),
        (
            "exit-code=1",
            "exit-code: expected exit-after as well".into(),
        ),
        (
            "freeze=1s&memory=1MiB",
            "for is missing: expected for=TIME, a duration from 1s to 24h with its unit, such as \
             for=2m; only changes to probe, and the settings freeze and exit-after of process, need no for"
                .into(),
        ),
        (
            "freeze=1s&freeze=1s",
            "freeze=1s: given more than once".into(),
        ),
    ] {
        let response = client.ask("PUT", &format!("/faults/process?{query}"));
        assert_eq!((response.status, response.body), (400, problem + "\n"));
    }
    let shown = client.ask("GET", "/faults/process").body;
    assert_eq!(
        shown,
        "memory=0B\nseries=0\nopen-files=0\nfreeze=0s\nexit-after=never\nexit-code=1\n"
    );
}

/// Starts this test again in a process of its own, and kills that while it holds a service.
#[test]
fn a_service_ends_when_its_test_is_killed() {
    const NAME: &str = "process::a_service_ends_when_its_test_is_killed";
    if env::var_os("HOLD_A_SERVICE").is_some() {
        let service = service();
        println!("\nservice {}", service.pid());
        thread::sleep(TIMEOUT);
        return;
    }
    let mut test = Command::new(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("HOLD_A_SERVICE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("service ").map(str::to_owned));
    let pid = pid.expect("the number of the process");
    test.kill().unwrap();
    test.wait().unwrap();
    wait_until("the service has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
    });
}

#[cfg(feature = "tiny-http")]
#[test]
fn tiny_http_rejects_changes_to_the_process() {
    let service = Service::start("tiny-http", &["--fault-injection=all"]);
    let response = service.connect().ask("PUT", "/faults/process?freeze=1s");
    assert_eq!(response.status, 400);
    assert!(
        response
            .body
            .ends_with("start tiny-probe with --server event-loop\n"),
        "{response:?}"
    );
}
