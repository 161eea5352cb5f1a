//! Hostile use of fault injection: very frequent changes, and the longest delay on many connections.

use std::thread;
use std::time::Instant;

use crate::assert_little_memory_was_taken;
use crate::scenario::Scenario;

#[test]
fn a_flood_of_changes_delays_no_other_client_and_each_change_is_atomic() {
    const CLIENTS: usize = 4;
    const CHANGES: usize = 2_500;
    let mut scenario = Scenario::start(&["--fault-injection"]);
    let started = Instant::now();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut client = scenario.connect();
            scope.spawn(move || {
                // Each change sets two rates to the same value. No response may show only one of them.
                for change in 0..CHANGES {
                    let rate = format!("0.{number}{change:04}1");
                    let path = format!("/faults?fail-rate={rate}&slow-rate={rate}&for=1h");
                    let response = client.ask("PUT", &path);
                    let expected = format!(
                        "fail-rate={rate}\nfail-with=500\nfail-latency=0s\nslow-rate={rate}\n"
                    );
                    assert!(response.body.starts_with(&expected), "{response:?}");
                }
            });
        }
        scenario.expect_others_served();
    });
    let metrics = scenario.scrape();
    let rates =
        ["fail", "slow"].map(|which| metrics.value(&format!("app_configured_{which}_ratio")));
    assert_eq!(rates[0].to_bits(), rates[1].to_bits(), "{rates:?}");
    let changes = metrics.requests("PUT", "/faults", 200);
    assert_eq!(changes, (CLIENTS * CHANGES) as u64);
    assert_little_memory_was_taken(&scenario);

    scenario.signal("TERM");
    assert_eq!(scenario.wait(), Some(0));
    let diagnostics = scenario.stderr();
    assert!(
        diagnostics
            .lines()
            .all(|line| line.contains(" changed the faults: ")),
        "{diagnostics}"
    );
    // At most ten per second are printed.
    let (lines, seconds) = (diagnostics.lines().count(), started.elapsed().as_secs());
    assert!(lines as u64 <= 10 * (seconds + 1), "{lines} in {seconds} s");
}

#[test]
fn delayed_responses_on_all_other_connections_do_not_affect_a_connected_client() {
    const CONNECTIONS: usize = 500;
    let limit = (CONNECTIONS + 1).to_string();
    let scenario = Scenario::start(&["--fault-injection", "--max-connections", &limit]);
    let mut connected = scenario.connect();
    assert_eq!(connected.ask("GET", "/healthz").status, 200);
    let before = scenario.status("VmRSS");
    let mut delayed = scenario.clients(CONNECTIONS, |client| {
        client.send_delayed("/probe?delay=60s");
    });
    for path in ["/healthz", "/metrics", "/probe"] {
        assert_eq!(connected.ask("GET", path).status, 200, "{path}");
    }
    let grown = scenario.status("VmRSS").saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB for {CONNECTIONS} connections");
    // A client that disconnects makes room for another.
    delayed.truncate(CONNECTIONS - 1);
    scenario.expect_others_served();
}
