//! Faults on demand: what /faults changes for all requests, and ?status= and ?delay= for one.
//!
//! Time comes in as an argument. The settings in force are a function of it: nothing has to happen
//! when a change is over.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bounded_http::Status;

use self::query::parameters;
use crate::config::{self, Config, FLAGS, FailWith, Flag, ProbeSetting, ProbeSettings, Sets};

mod query;

/// How long a change may be asked for.
const CHANGE_DURATIONS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const ACCEPTED_CHANGE_DURATION: &str = "a duration from 1s to 24h with its unit, such as 2m";

/// The longest delay that a request may ask for itself: it holds its connection meanwhile.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
const FAIL_WITH: &str = "fail-with";
const ACCEPTED_DELAY: &str = "a duration of at most 60s with its unit, such as 250ms";

/// What /probe is told to do, and until when.
pub struct Faults {
    at_start: ProbeSettings,
    changed: ProbeSettings,
    /// When the change is taken back; `None` if nobody has said.
    until: Option<Instant>,
    /// Whether the server can send a failure in another way than HTTP has it.
    can_misbehave: bool,
}

impl Faults {
    /// The settings that the service starts with.
    pub fn new(config: &Config) -> Self {
        Self {
            at_start: config.probe.clone(),
            changed: config.probe.clone(),
            until: None,
            can_misbehave: config.server.can_misbehave(),
        }
    }

    /// What is in force at `now`: the settings, and when the change to them ends.
    fn in_force(&self, now: Instant) -> (&ProbeSettings, Option<Instant>) {
        (self.settings(now), self.until.filter(|until| *until > now))
    }

    /// The settings in force at `now`.
    pub fn settings(&self, now: Instant) -> &ProbeSettings {
        match self.until {
            Some(until) if until <= now => &self.at_start,
            _ => &self.changed,
        }
    }

    /// Changes what a query names and nothing else; if any of it is invalid, nothing changes. `for`
    /// is how long until everything is taken back; without it, that stays as it is. Returns whether
    /// the settings or their end differ from before.
    ///
    /// # Errors
    /// The line that tells the client what is accepted.
    pub fn change(&mut self, query: &str, now: Instant) -> Result<bool, String> {
        let (settings, mut until) = self.in_force(now);
        let mut changed = settings.clone();
        let mut named = Vec::new();
        for parameter in parameters(query) {
            let name = parameter.name.as_deref().unwrap_or_default();
            let setting = settings_of_probe().find(|(flag, _)| flag.name == name);
            let (name, accepted) = match setting {
                Some((flag, _)) if flag.name == FAIL_WITH => (FAIL_WITH, self.accepted_fail_with()),
                Some((flag, _)) => (flag.name, flag.accepted),
                None if name == "for" => ("for", ACCEPTED_CHANGE_DURATION),
                None => return Err(parameter.expected(&accepted_names())),
            };
            parameter.set(name, &mut named, accepted, &mut |value| match setting {
                Some((_, setting)) => {
                    (setting.set)(&mut changed, value)?;
                    self.can_send(changed.fail_with).then_some(())
                }
                None => {
                    config::duration(value, CHANGE_DURATIONS).map(|time| until = Some(now + time))
                }
            })?;
        }
        if named.is_empty() {
            return Err(format!("no change: expected {}\n", accepted_names()));
        }
        let is_change = self.in_force(now) != (&changed, until);
        self.changed = changed;
        self.until = until;
        Ok(is_change)
    }

    /// Reads what a request to /probe asks for itself: `status` or `fail-with`, and `delay`. `None` if
    /// the query names none of them. All other names are ignored.
    ///
    /// # Errors
    /// The line that tells the client what is accepted.
    pub fn own(&self, query: &str) -> Result<Option<OwnFault>, String> {
        let mut own = OwnFault {
            fail_with: None,
            delay: Duration::ZERO,
        };
        let mut named = Vec::new();
        for parameter in parameters(query) {
            let (name, accepted) = match parameter.name.as_deref() {
                Some("status") => ("status", FailWith::ACCEPTED_STATUS),
                Some(FAIL_WITH) => (FAIL_WITH, self.accepted_fail_with()),
                Some("delay") => ("delay", ACCEPTED_DELAY),
                _ => continue,
            };
            parameter.set(name, &mut named, accepted, &mut |value| {
                match name {
                    "delay" => own.delay = read_delay(value)?,
                    "status" => own.fail_with = failure_with(FailWith::parse_status(value)?),
                    _ => {
                        let fail_with = FailWith::parse(value);
                        own.fail_with = Some(fail_with.filter(|how| self.can_send(*how))?);
                    }
                }
                Some(())
            })?;
            if named.contains(&"status") && named.contains(&FAIL_WITH) {
                return Err(parameter.error("expected either status or fail-with"));
            }
        }
        Ok((!named.is_empty()).then_some(own))
    }

    fn can_send(&self, fail_with: FailWith) -> bool {
        self.can_misbehave || fail_with.is_status()
    }

    fn accepted_fail_with(&self) -> &'static str {
        if self.can_misbehave {
            FailWith::ACCEPTED
        } else {
            FailWith::ACCEPTED_BY_TINY_HTTP
        }
    }

    /// How requests to /probe may be told to fail: every status that can be recorded for them.
    pub fn recorded_statuses(&self) -> impl Iterator<Item = &'static str> {
        let statuses = FailWith::STATUSES.map(Status::label);
        let dropped = self.can_misbehave.then_some("444");
        statuses.into_iter().chain(dropped)
    }

    /// Goes back to the settings that the service started with: the change ends now. Returns whether
    /// there was one.
    pub fn take_back(&mut self, now: Instant) -> bool {
        let is_change = self.in_force(now) != (&self.at_start, None);
        self.until = Some(now);
        is_change
    }

    /// The settings in force at `now`, a line each, as a query has them; and, in whole seconds,
    /// after how long they are taken back.
    pub fn page(&self, now: Instant) -> String {
        let settings = self.settings(now);
        let mut page = String::new();
        for (flag, setting) in settings_of_probe() {
            // A String takes every write.
            let _ = writeln!(page, "{}={}", flag.name, (setting.write)(settings));
        }
        if let (_, Some(until)) = self.in_force(now) {
            let seconds = (until - now + Duration::from_nanos(999_999_999)).as_secs();
            let left = config::write_duration(Duration::from_secs(seconds));
            let _ = writeln!(page, "for={left}");
        }
        page
    }
}

/// The flags that can be changed.
fn settings_of_probe() -> impl Iterator<Item = (&'static Flag, ProbeSetting)> {
    FLAGS.iter().filter_map(|flag| match flag.sets {
        Sets::Probe(setting) => Some((flag, setting)),
        Sets::Service(_) => None,
    })
}

fn accepted_names() -> String {
    let mut names = String::new();
    for (flag, _) in settings_of_probe() {
        names += flag.name;
        names += ", ";
    }
    names + "or for"
}

/// What a request to /probe asks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnFault {
    /// How it fails; `None` if it succeeds.
    pub fail_with: Option<FailWith>,
    /// How long its response waits.
    pub delay: Duration,
}

/// The failure with a status, unless it is that of a success.
fn failure_with(status: Status) -> Option<FailWith> {
    (status != Status::Ok).then_some(FailWith::Status(status))
}

fn read_delay(value: &str) -> Option<Duration> {
    config::duration(value, Duration::ZERO..=LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use bounded_http::Ending;

    use super::*;

    const AT_START: &str = "fail-rate=0.01\nfail-with=500\nfail-latency=0s\nslow-rate=0\nlatency=0s\nslow-latency=9s\nwork=0s\n";

    fn faults() -> (Faults, Instant) {
        let mut config = Config::default();
        config.probe.fail_rate = 0.01;
        (Faults::new(&config), Instant::now())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_change_changes_what_it_names_and_nothing_else() {
        let (mut faults, now) = faults();
        assert_eq!(faults.page(now), AT_START);
        faults.change("latency=300ms&fail-rate=.25", now).unwrap();
        let expected = AT_START
            .replace("fail-rate=0.01", "fail-rate=0.25")
            .replace("\nlatency=0s", "\nlatency=300ms");
        assert_eq!(faults.page(now), expected);
        assert_eq!(faults.settings(now).latency, Duration::from_millis(300));

        faults.change("work=1s", now + seconds(1)).unwrap();
        let expected = expected.replace("work=0s", "work=1s");
        assert_eq!(faults.page(now + seconds(1_000_000)), expected);
        faults.take_back(now);
        assert_eq!(faults.page(now), AT_START);
    }

    #[test]
    fn a_change_is_taken_back_when_its_time_is_over() {
        let (mut faults, now) = faults();
        let changed = AT_START.replace("0.01", "0.2");
        faults.change("fail-rate=0.2&for=2m", now).unwrap();
        for (millis, page) in [
            (0, changed.clone() + "for=120s\n"),
            (1, changed.clone() + "for=120s\n"),
            (83_000, changed.clone() + "for=37s\n"),
            (119_001, changed.clone() + "for=1s\n"),
            (119_999, changed.clone() + "for=1s\n"),
            (120_000, AT_START.to_owned()),
            (500_000, AT_START.to_owned()),
        ] {
            assert_eq!(faults.page(now + Duration::from_millis(millis)), page);
        }
        let later = now + seconds(120);
        assert_eq!(faults.settings(later), &faults.at_start);
        assert_ne!(faults.settings(now + seconds(119)), &faults.at_start);
    }

    #[test]
    fn what_is_over_is_over_for_the_next_change_too() {
        let (mut faults, now) = faults();
        faults.change("fail-rate=0.2&for=2m", now).unwrap();
        let later = now + seconds(120);
        faults.change("slow-rate=0.5", later).unwrap();
        let expected = AT_START.replace("slow-rate=0", "slow-rate=0.5");
        assert_eq!(faults.page(later), expected);
        assert_eq!(faults.page(later + seconds(1_000_000)), expected);
    }

    #[test]
    fn a_later_change_keeps_the_time_or_names_another() {
        let (mut faults, now) = faults();
        faults.change("fail-rate=0.2&for=2m", now).unwrap();
        let later = now + seconds(60);
        faults.change("slow-rate=0.5", later).unwrap();
        assert!(
            faults
                .page(later)
                .ends_with("slow-rate=0.5\nlatency=0s\nslow-latency=9s\nwork=0s\nfor=60s\n")
        );
        faults.change("for=5s", later).unwrap();
        assert!(
            faults
                .page(later)
                .contains("fail-rate=0.2\nfail-with=500\nfail-latency=0s\nslow-rate=0.5\n")
        );
        assert_eq!(faults.page(later + seconds(5)), AT_START);
        faults.take_back(later);
        assert_eq!(faults.page(later), AT_START, "without a for");
    }

    #[test]
    fn another_end_is_a_change_and_repeating_a_change_is_none() {
        let (mut faults, now) = faults();
        let later = now + Duration::from_millis(1);
        assert_eq!(faults.change("fail-rate=0.01", now), Ok(false));
        assert!(!faults.take_back(now));
        assert_eq!(faults.change("fail-rate=0.2", now), Ok(true));
        assert_eq!(faults.change("fail-rate=0.2", later), Ok(false));
        assert_eq!(faults.change("for=2m", now), Ok(true));
        let page = faults.page(now);
        assert_eq!(faults.change("for=2m", later), Ok(true));
        assert_eq!(faults.page(later), page, "in whole seconds");
        assert!(faults.take_back(later));
        assert!(!faults.take_back(later));
    }

    #[test]
    fn what_is_shown_can_be_asked_for() {
        let now = Instant::now();
        let query = "fail-rate=0.125&fail-with=stall&fail-latency=2s&slow-rate=1&latency=1m30s5ms&slow-latency=59m59s999ms&work=1us&for=24h";
        let mut faults = Faults::new(&Config::default());
        faults.change(query, now).unwrap();
        let page = faults.page(now);
        let shown = page.trim_end().replace('\n', "&");
        let mut again = Faults::new(&Config::default());
        again.change(&shown, now).unwrap();
        assert_eq!(again.changed, faults.changed);
        assert_eq!(again.until, faults.until);
        assert_eq!(again.page(now), page);
        assert_eq!(again.until, Some(now + seconds(86_400)));
    }

    #[test]
    fn a_bad_query_is_told_and_changes_nothing() {
        let fraction = "expected a number from 0 to 1, such as 0.01";
        let latency = "expected a duration of at most 1h with its unit, such as 300ms or 9s";
        let work = "expected a duration of at most 1s with its unit, such as 20ms";
        let names = "expected fail-rate, fail-with, fail-latency, slow-rate, latency, slow-latency, work, or for";
        let how = &format!("expected {}", FailWith::ACCEPTED);
        let time = "expected a duration from 1s to 24h with its unit, such as 2m";
        let long = format!("fail-rate={}", "9".repeat(8000));
        for (query, shown, expected) in [
            ("fail_rate=1", "fail_rate=1", names),
            ("Fail-Rate=1", "Fail-Rate=1", names),
            ("listen=[::1]:1", "listen=[::1]:1", names),
            ("random-seed=1", "random-seed=1", names),
            ("=1", "=1", names),
            ("fail%2=1", "fail%2=1", names),
            ("fail-rate=1;latency=1s", "fail-rate=1;latency=1s", fraction),
            ("fail-rate", "fail-rate", fraction),
            ("fail-rate=", "fail-rate=", fraction),
            ("fail-rate==1", "fail-rate==1", fraction),
            ("fail-rate=1.01", "fail-rate=1.01", fraction),
            ("fail-rate=-0.1", "fail-rate=-0.1", fraction),
            ("fail-rate=NaN", "fail-rate=NaN", fraction),
            ("fail-rate=inf", "fail-rate=inf", fraction),
            ("fail-rate=-infinity", "fail-rate=-infinity", fraction),
            ("fail-rate=1e400", "fail-rate=1e400", fraction),
            ("fail-rate=0,5", "fail-rate=0,5", fraction),
            ("fail-rate=%30.%zz", "fail-rate=%30.%zz", fraction),
            ("fail-rate=0%", "fail-rate=0%", fraction),
            ("fail-rate=0%3", "fail-rate=0%3", fraction),
            ("fail-rate=0%+1", "fail-rate=0%+1", fraction),
            ("fail-rate=%C3%28", "fail-rate=%C3%28", fraction),
            ("fail-rate=1%0a", "fail-rate=1%0a", fraction),
            (
                "fail-rate=0.1&fail-rate=0.1",
                "fail-rate=0.1",
                "given more than once",
            ),
            (
                "fail-rate=0.1&fail%2drate=0.2",
                "fail%2drate=0.2",
                "given more than once",
            ),
            ("for=1s&for=2s", "for=2s", "given more than once"),
            ("latency=300", "latency=300", latency),
            ("latency=0", "latency=0", latency),
            ("slow-latency=%30", "slow-latency=%30", latency),
            ("work=0", "work=0", work),
            ("latency=-1s", "latency=-1s", latency),
            ("slow-latency=3601s", "slow-latency=3601s", latency),
            (
                "latency=99999999999999999999h",
                "latency=99999999999999999999h",
                latency,
            ),
            ("latency=1m+30s", "latency=1m+30s", latency),
            ("work=1001ms", "work=1001ms", work),
            ("fail-with=501", "fail-with=501", how),
            ("fail-with=RESET", "fail-with=RESET", how),
            ("fail-with", "fail-with", how),
            ("fail-latency=2", "fail-latency=2", latency),
            ("for=999ms", "for=999ms", time),
            ("for=86401s", "for=86401s", time),
            ("for=ever", "for=ever", time),
            (&long, &long[..200], fraction),
            (
                "fail-rate=\u{1b}[31m\u{7f}\u{9b}\u{202e}\"",
                "fail-rate=\\x1b[31m\\x7f\\xc2\\x9b\\xe2\\x80\\xae\\\"",
                fraction,
            ),
        ] {
            let (mut faults, now) = faults();
            faults.change("latency=1s&for=1h", now).unwrap();
            let before = faults.page(now);
            for query in [query, &format!("slow-rate=0.5&{query}")] {
                let error = faults.change(query, now).unwrap_err();
                assert_eq!(error, format!("{shown}: {expected}\n"));
                assert_eq!(faults.page(now), before, "{query}");
            }
        }
    }

    #[test]
    fn no_change_is_told_as_well() {
        let (mut faults, now) = faults();
        for query in ["", "&&"] {
            let error = faults.change(query, now).unwrap_err();
            assert!(
                error.starts_with("no change: expected fail-rate, "),
                "{error}"
            );
        }
    }

    #[test]
    fn an_escape_is_what_it_stands_for() {
        let (mut faults, now) = faults();
        let query = "%66ail%2Drate=%30%2e5&latency=1m%2030s&&slow-rate=%2B1&";
        faults.change(query, now).unwrap();
        assert!(faults.page(now).contains("\nslow-rate=1\nlatency=90s\n"));
        faults.change("fail-rate=-0", now).unwrap();
        assert!(faults.page(now).starts_with("fail-rate=0\n"));
    }

    #[test]
    fn a_request_asks_for_its_own_response() {
        let (faults, _) = faults();
        let own = |fail_with, millis| {
            let delay = Duration::from_millis(millis);
            Ok(Some(OwnFault { fail_with, delay }))
        };
        let failure = |status| Some(FailWith::Status(status));
        for (query, expected) in [
            ("", Ok(None)),
            ("x=1&Status=503&%zz=1&fail-rate=7", Ok(None)),
            ("status=503", own(failure(Status::ServiceUnavailable), 0)),
            ("delay=250ms", own(None, 250)),
            (
                "delay=60s&x=%zz&status=429",
                own(failure(Status::TooManyRequests), 60_000),
            ),
            ("%73tatus=%3504", own(failure(Status::GatewayTimeout), 0)),
            ("status=200&delay=0s", own(None, 0)),
            ("fail-with=200", own(failure(Status::Ok), 0)),
            (
                "fail-with=reset&delay=1s",
                own(Some(FailWith::Ending(Ending::Reset)), 1000),
            ),
        ] {
            assert_eq!(faults.own(query), expected, "{query}");
        }
        for status in FailWith::STATUSES {
            let query = format!("status={}", status.label());
            assert_eq!(faults.own(&query), own(failure_with(status), 0));
            let query = format!("fail-with={}", status.label());
            assert_eq!(faults.own(&query), own(failure(status), 0));
        }
    }

    #[test]
    fn a_request_that_cannot_be_understood_is_told() {
        let (faults, _) = faults();
        let status = &format!("expected {}", FailWith::ACCEPTED_STATUS);
        let how = &format!("expected {}", FailWith::ACCEPTED);
        let delay = &format!("expected {ACCEPTED_DELAY}");
        for (query, shown, problem) in [
            ("status=", "status=", status),
            ("status=405", "status=405", status),
            ("status=reset", "status=reset", status),
            ("status=0503", "status=0503", status),
            ("status=+503", "status=+503", status),
            ("status=50%zz", "status=50%zz", status),
            ("fail-with=", "fail-with=", how),
            ("delay=60001ms", "delay=60001ms", delay),
            ("delay=1", "delay=1", delay),
            ("delay=0", "delay=0", delay),
            ("status=503&delay", "delay", delay),
            (
                "delay=1s&status=500&delay=1s",
                "delay=1s",
                &"given more than once".to_owned(),
            ),
            (
                "fail-with=cut&status=500",
                "status=500",
                &"expected either status or fail-with".to_owned(),
            ),
            ("status=503\r\nX: 1", "status=503\\r\\nX:\\x201", status),
        ] {
            let error = faults.own(query).unwrap_err();
            assert_eq!(error, format!("{shown}: {problem}\n"));
        }
    }

    #[cfg(feature = "tiny-http")]
    #[test]
    fn tiny_http_cannot_be_told_to_send_anything_but_responses() {
        let config = Config {
            server: config::Server::TinyHttp,
            ..Config::default()
        };
        let (mut faults, now) = (Faults::new(&config), Instant::now());
        for how in ["reset", "close", "cut", "stall", "hang"] {
            let query = format!("fail-with={how}");
            let expected = format!("{query}: expected {}\n", FailWith::ACCEPTED_BY_TINY_HTTP);
            assert_eq!(faults.own(&query), Err(expected.clone()));
            assert_eq!(faults.change(&query, now), Err(expected));
        }
        assert_eq!(faults.change("fail-with=503", now), Ok(true));
    }
}
