//! Faults on demand: what /faults changes for all requests, and ?status= and ?delay= for one.
//!
//! Time comes in as an argument. The settings in force are a function of it: nothing has to happen
//! when a change is over.
//!
//! A query is `name=value`, with `&` between. In both of them a percent-escape is decoded (RFC 3986,
//! section 2.1), and a plus is a plus. What cannot be read, or could be read in two ways, is told in
//! one line, in visible ASCII whatever the client sent.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::log::access::push_printable;
use bounded_http::Status;

use crate::config::{self, Config, FLAGS, Flag, ProbeSetting, ProbeSettings, Sets};

/// How long a change may be asked for.
const CHANGE_DURATIONS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const ACCEPTED_CHANGE_DURATION: &str = "a duration from 1s to 24h with its unit, such as 2m";

/// The longest delay that a request may ask for itself: it holds its connection meanwhile.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
const ACCEPTED_DELAY: &str = "a duration of at most 60s with its unit, such as 250ms";

/// The statuses that a request may ask for itself. Each is a series more.
const STATUSES: [Status; 6] = [
    Status::Ok,
    Status::TooManyRequests,
    Status::InternalServerError,
    Status::BadGateway,
    Status::ServiceUnavailable,
    Status::GatewayTimeout,
];
const ACCEPTED_STATUS: &str = "200, 429, 500, 502, 503 or 504";

/// What /probe is told to do, and until when.
pub struct Faults {
    at_start: ProbeSettings,
    changed: ProbeSettings,
    /// When the change is taken back; `None` if nobody has said.
    until: Option<Instant>,
}

impl Faults {
    /// The settings that the service starts with.
    pub fn new(config: &Config) -> Self {
        Self {
            at_start: config.probe.clone(),
            changed: config.probe.clone(),
            until: None,
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
                Some((flag, _)) => (flag.name, flag.accepted),
                None if name == "for" => ("for", ACCEPTED_CHANGE_DURATION),
                None => return Err(parameter.error(&accepted_names())),
            };
            parameter.set(name, &mut named, accepted, &mut |value| match setting {
                Some((_, setting)) => (setting.set)(&mut changed, value),
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
    /// The status of its answer.
    pub status: Status,
    /// How long that is to wait.
    pub delay: Duration,
}

impl OwnFault {
    /// Reads `status` and `delay`; `None` if the query names neither. All other names are ignored.
    ///
    /// # Errors
    /// The line that tells the client what is accepted.
    pub fn parse(query: &str) -> Result<Option<Self>, String> {
        let mut own = Self {
            status: Status::Ok,
            delay: Duration::ZERO,
        };
        let mut named = Vec::new();
        for parameter in parameters(query) {
            match parameter.name.as_deref() {
                Some("status") => {
                    parameter.set("status", &mut named, ACCEPTED_STATUS, &mut |value| {
                        read_status(value).map(|status| own.status = status)
                    })?;
                }
                Some("delay") => {
                    parameter.set("delay", &mut named, ACCEPTED_DELAY, &mut |value| {
                        read_delay(value).map(|delay| own.delay = delay)
                    })?;
                }
                _ => {}
            }
        }
        Ok((!named.is_empty()).then_some(own))
    }
}

fn read_status(value: &str) -> Option<Status> {
    STATUSES.into_iter().find(|status| status.label() == value)
}

fn read_delay(value: &str) -> Option<Duration> {
    config::duration(value, Duration::ZERO..=LONGEST_DELAY)
}

/// One `name=value` of a query.
struct Parameter<'a> {
    written: &'a str,
    /// Decoded; `None` if an escape is broken.
    name: Option<String>,
    value: Option<String>,
}

fn parameters(query: &str) -> impl Iterator<Item = Parameter<'_>> {
    let written = query.split('&').filter(|written| !written.is_empty());
    written.map(|written| {
        let (name, value) = written.split_once('=').unwrap_or((written, ""));
        Parameter {
            written,
            name: decode(name),
            value: decode(value),
        }
    })
}

impl Parameter<'_> {
    /// Sets what it names, if the value is one that is accepted and the name has not been there.
    fn set(
        &self,
        name: &'static str,
        named: &mut Vec<&'static str>,
        accepted: &str,
        set: &mut dyn FnMut(&str) -> Option<()>,
    ) -> Result<(), String> {
        if named.contains(&name) {
            return Err(self.error("it once only"));
        }
        named.push(name);
        let value = self.value.as_deref().and_then(set);
        value.ok_or_else(|| self.error(accepted))
    }

    fn error(&self, accepted: &str) -> String {
        let mut line = String::new();
        push_printable(&mut line, self.written);
        line + ": expected " + accepted + "\n"
    }
}

/// Decodes percent-escapes. `None` if one is broken, or if what they say is no text.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (escape, rest) = part.split_at_checked(2)?;
        // What reads numbers takes a sign, too.
        if !escape.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        decoded.push(u8::from_str_radix(escape, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_START: &str = "fail-rate=0.01\nslow-rate=0\nlatency=0s\nslow-latency=9s\nwork=0s\n";

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
            .replace("latency=0s", "latency=300ms");
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
                .starts_with("fail-rate=0.2\nslow-rate=0.5\n")
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
        let query = "fail-rate=0.125&slow-rate=1&latency=1m30s5ms&slow-latency=59m59s999ms&work=1us&for=24h";
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
        let share = "expected a share from 0 to 1, such as 0.01";
        let latency = "expected a duration of at most 1h with its unit, such as 300ms or 9s";
        let work = "expected a duration of at most 1s with its unit, such as 20ms";
        let names = "expected fail-rate, slow-rate, latency, slow-latency, work, or for";
        let time = "expected a duration from 1s to 24h with its unit, such as 2m";
        let long = format!("fail-rate={}", "9".repeat(8000));
        for (query, shown, expected) in [
            ("fail_rate=1", "fail_rate=1", names),
            ("Fail-Rate=1", "Fail-Rate=1", names),
            ("listen=[::1]:1", "listen=[::1]:1", names),
            ("random-seed=1", "random-seed=1", names),
            ("=1", "=1", names),
            ("fail%2=1", "fail%2=1", names),
            ("fail-rate=1;latency=1s", "fail-rate=1;latency=1s", share),
            ("fail-rate", "fail-rate", share),
            ("fail-rate=", "fail-rate=", share),
            ("fail-rate==1", "fail-rate==1", share),
            ("fail-rate=1.01", "fail-rate=1.01", share),
            ("fail-rate=-0.1", "fail-rate=-0.1", share),
            ("fail-rate=NaN", "fail-rate=NaN", share),
            ("fail-rate=inf", "fail-rate=inf", share),
            ("fail-rate=-infinity", "fail-rate=-infinity", share),
            ("fail-rate=1e400", "fail-rate=1e400", share),
            ("fail-rate=0,5", "fail-rate=0,5", share),
            ("fail-rate=%30.%zz", "fail-rate=%30.%zz", share),
            ("fail-rate=0%", "fail-rate=0%", share),
            ("fail-rate=0%3", "fail-rate=0%3", share),
            ("fail-rate=0%+1", "fail-rate=0%+1", share),
            ("fail-rate=%C3%28", "fail-rate=%C3%28", share),
            ("fail-rate=1%0a", "fail-rate=1%0a", share),
            (
                "fail-rate=0.1&fail-rate=0.1",
                "fail-rate=0.1",
                "expected it once only",
            ),
            (
                "fail-rate=0.1&fail%2drate=0.2",
                "fail%2drate=0.2",
                "expected it once only",
            ),
            ("for=1s&for=2s", "for=2s", "expected it once only"),
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
            ("for=999ms", "for=999ms", time),
            ("for=86401s", "for=86401s", time),
            ("for=ever", "for=ever", time),
            (&long, &long[..200], share),
            (
                "fail-rate=\u{1b}[31m\u{7f}\u{9b}\u{202e}\"",
                "fail-rate=\\x1b[31m\\x7f\\xc2\\x9b\\xe2\\x80\\xae\\\"",
                share,
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
        assert!(
            faults
                .page(now)
                .starts_with("fail-rate=0.5\nslow-rate=1\nlatency=90s\n")
        );
        faults.change("fail-rate=-0", now).unwrap();
        assert!(faults.page(now).starts_with("fail-rate=0\n"));
    }

    #[test]
    fn a_request_asks_for_its_own_answer() {
        let own = |status, millis| {
            let delay = Duration::from_millis(millis);
            Ok(Some(OwnFault { status, delay }))
        };
        for (query, expected) in [
            ("", Ok(None)),
            ("x=1&Status=503&%zz=1&fail-rate=7", Ok(None)),
            ("status=503", own(Status::ServiceUnavailable, 0)),
            ("delay=250ms", own(Status::Ok, 250)),
            (
                "delay=60s&x=%zz&status=429",
                own(Status::TooManyRequests, 60_000),
            ),
            ("%73tatus=%3504", own(Status::GatewayTimeout, 0)),
            ("status=200&delay=0s", own(Status::Ok, 0)),
        ] {
            assert_eq!(OwnFault::parse(query), expected, "{query}");
        }
        for status in STATUSES {
            let query = format!("status={}", status.label());
            assert_eq!(OwnFault::parse(&query), own(status, 0));
            assert!(ACCEPTED_STATUS.contains(status.label()));
        }
    }

    #[test]
    fn a_request_that_cannot_be_understood_is_told() {
        for (query, shown, accepted) in [
            ("status=", "status=", ACCEPTED_STATUS),
            ("status=404", "status=404", ACCEPTED_STATUS),
            ("status=0503", "status=0503", ACCEPTED_STATUS),
            ("status=+503", "status=+503", ACCEPTED_STATUS),
            ("status=50%zz", "status=50%zz", ACCEPTED_STATUS),
            ("delay=60001ms", "delay=60001ms", ACCEPTED_DELAY),
            ("delay=1", "delay=1", ACCEPTED_DELAY),
            ("delay=0", "delay=0", ACCEPTED_DELAY),
            ("status=503&delay", "delay", ACCEPTED_DELAY),
            ("delay=1s&status=500&delay=1s", "delay=1s", "it once only"),
            (
                "status=503\r\nX: 1",
                "status=503\\r\\nX:\\x201",
                ACCEPTED_STATUS,
            ),
        ] {
            let error = OwnFault::parse(query).unwrap_err();
            assert_eq!(error, format!("{shown}: expected {accepted}\n"));
        }
    }
}
