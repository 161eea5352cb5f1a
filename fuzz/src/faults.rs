//! Whatever a query says, it changes the settings to others within their bounds, which can be asked
//! for as they are shown; or it changes nothing, and one line says what is wrong.

use std::time::{Duration, Instant};

use tiny_probe::config::{Config, ProbeSettings};
use tiny_probe::faults::Faults;

/// The input is queries, a line each; a second passes between them.
pub fn check(input: &[u8]) {
    let mut faults = Faults::new(&Config::default());
    let mut now = Instant::now();
    for query in String::from_utf8_lossy(input).split('\n') {
        let before = faults.page(now);
        match faults.change(query, now) {
            Ok(_) => check_change(&faults, now),
            Err(message) => {
                check_message(&message);
                assert_eq!(faults.page(now), before);
            }
        }
        match faults.own(query) {
            Ok(None) => {}
            Ok(Some(own)) => assert!(own.delay <= Duration::from_secs(60)),
            Err(message) => check_message(&message),
        }
        now += Duration::from_secs(1);
    }
    faults.take_back(now);
    assert_eq!(faults.settings(now), &ProbeSettings::default());
}

fn check_change(faults: &Faults, now: Instant) {
    let settings = faults.settings(now);
    assert!((0.0..=1.0).contains(&settings.fail_rate));
    assert!((0.0..=1.0).contains(&settings.slow_rate));
    assert!(settings.fail_latency <= Duration::from_secs(3600));
    assert!(settings.latency <= Duration::from_secs(3600));
    assert!(settings.slow_latency <= Duration::from_secs(3600));
    assert!(settings.work <= Duration::from_secs(1));

    let page = faults.page(now);
    let query = page.trim_end().replace('\n', "&");
    let mut same = Faults::new(&Config::default());
    same.change(&query, now).expect("what is shown is accepted");
    assert_eq!(same.settings(now), settings);
    assert_eq!(same.page(now), page);
    if page.contains("for=") {
        let after = now + Duration::from_secs(24 * 3600);
        assert_eq!(faults.settings(after), &ProbeSettings::default());
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
