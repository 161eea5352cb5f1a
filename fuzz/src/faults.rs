//! Checks that any query either changes the settings to valid ones, or changes nothing and gets one
//! line that says what is wrong. The settings that /faults shows must be accepted as a query.

use std::time::{Duration, Instant};

use tiny_probe::config::{Config, FaultInjection, ProbeSettings};
use tiny_probe::faults::Faults;
use tiny_probe::target::{RouteTarget, Target};

const PROBE: Target = Target::Route(RouteTarget::Probe);
const METRICS: Target = Target::Route(RouteTarget::Metrics);

/// The input consists of queries, one per line. A second passes between them.
pub fn check(input: &[u8]) {
    let mut faults = new();
    let mut now = Instant::now();
    for query in String::from_utf8_lossy(input).split('\n') {
        for target in [PROBE, METRICS, Target::Process] {
            let before = faults.overview(now);
            match faults.change(target, query, now) {
                Ok(_) if target == Target::Process => {}
                Ok(_) => check_change(&faults, target, now),
                Err(message) => {
                    check_message(&message);
                    assert_eq!(faults.overview(now), before);
                }
            }
        }
        match faults.request_fault(query) {
            Ok(None) => {}
            Ok(Some(fault)) => assert!(fault.delay <= Duration::from_secs(60)),
            Err(message) => check_message(&message),
        }
        now += Duration::from_secs(1);
    }
    faults.revert(None, now);
    assert_eq!(faults.overview(now), new().overview(now));
}

fn new() -> Faults {
    Faults::new(&Config {
        fault_injection: FaultInjection::All,
        ..Config::default()
    })
}

fn check_change(faults: &Faults, target: Target, now: Instant) {
    let route = match target {
        METRICS => RouteTarget::Metrics,
        _ => RouteTarget::Probe,
    };
    let settings = faults.settings(route, now);
    assert!((0.0..=1.0).contains(&settings.fail_rate));
    assert!((0.0..=1.0).contains(&settings.slow_rate));
    assert!(settings.fail_latency <= Duration::from_secs(3600));
    assert!(settings.latency <= Duration::from_secs(3600));
    assert!(settings.slow_latency <= Duration::from_secs(3600));
    assert!(settings.work <= Duration::from_secs(1));

    let text = faults.settings_text(target, now);
    let query = text.trim_end().replace('\n', "&");
    let mut same = new();
    let change = same.change(target, &query, now);
    change.expect("the settings that are shown are accepted");
    assert_eq!(same.settings(route, now), settings);
    assert_eq!(same.settings_text(target, now), text);
    assert!(target == PROBE || text.contains("for="));
    if text.contains("for=") {
        let after = now + Duration::from_secs(24 * 3600);
        assert_eq!(faults.settings(route, after), &ProbeSettings::default());
    }
}

fn check_message(message: &str) {
    let line = message.strip_suffix('\n').expect("a whole line");
    let says_why = line.contains(": expected ") || line.ends_with(": given more than once");
    assert!(says_why, "{line}");
    assert!(
        line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{line:?}"
    );
    assert!(line.len() < 1024);
}
