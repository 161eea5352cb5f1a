//! Faults on demand: /faults changes the settings for all requests, and the query of a /probe request
//! asks for a fault for this request only.
//!
//! The settings in force are a function of the time, which is passed as an argument. So nothing has to
//! happen when a change to a route ends. When a change to the process ends, `act` releases what it holds.

use std::fmt::Write;
use std::time::{Duration, Instant};

use bounded_http::Status;

use self::change::{ACCEPTED_CHANGE_DURATION, Change, FOR, MISSING_END, parse_end};
use self::process::Process;
use crate::config::{Config, FLAGS, FaultInjection, Flag, ProbeSetting, ProbeSettings, Sets};
use crate::duration;
use crate::fail_with::FailWith;
use crate::target::{RouteTarget, Target};

mod change;
pub mod origin;
mod process;
mod query;

/// The maximum delay that a request can ask for itself. It occupies its connection for that time.
const MAX_DELAY: Duration = Duration::from_secs(60);
const ACCEPTED_DELAY: &str = "a duration of at most 60s with its unit, such as 250ms";

const FAIL_WITH: &str = "fail-with";
const STATUS: &str = "status";
const DELAY: &str = "delay";

/// The settings of all targets.
pub struct Faults {
    /// Which targets clients may change.
    scope: FaultInjection,
    /// The server can break off responses, and not only send statuses.
    can_break_off: bool,
    /// Indexed by [`RouteTarget`].
    routes: [Change<ProbeSettings>; RouteTarget::ALL.len()],
    process: Process,
}

impl Faults {
    /// Creates the settings that the service starts with.
    pub fn new(config: &Config) -> Self {
        let at_start = |target| match target {
            RouteTarget::Probe => config.probe.clone(),
            _ => ProbeSettings::default(),
        };
        Self {
            scope: config.fault_injection,
            can_break_off: config.server.supports_all_faults(),
            routes: RouteTarget::ALL.map(|target| Change::new(at_start(target))),
            process: Process::new(config),
        }
    }

    /// Returns the settings of a route that are in force at `now`.
    pub fn settings(&self, target: RouteTarget, now: Instant) -> &ProbeSettings {
        self.routes[target as usize].settings(now)
    }

    /// Returns which targets clients may change.
    pub fn scope(&self) -> FaultInjection {
        self.scope
    }

    /// Returns whether clients may change what a target does.
    pub fn allows(&self, target: Target) -> bool {
        match self.scope {
            FaultInjection::Off => false,
            FaultInjection::On => target == Target::Route(RouteTarget::Probe),
            FaultInjection::All => true,
        }
    }

    /// Returns whether a change to a target is in force at `now`.
    pub fn is_active(&self, target: Target, now: Instant) -> bool {
        match target {
            Target::Route(target) => self.routes[target as usize].is_active(now),
            Target::Process => self.process.is_active(now),
        }
    }

    /// Changes the settings that a query names. If any of them is invalid, nothing changes. `for` is
    /// the time until everything is reverted. Without it, the end of probe's change stays as it is.
    /// Other targets require it, except for freeze and exit-after. Returns whether the settings or their end
    /// differ from before.
    ///
    /// # Errors
    /// A line that tells the client what is accepted.
    pub fn change(&mut self, target: Target, query: &str, now: Instant) -> Result<bool, String> {
        match target {
            Target::Route(target) => self.change_route(target, query, now),
            Target::Process => self.process.change(query, now),
        }
    }

    fn change_route(
        &mut self,
        target: RouteTarget,
        query: &str,
        now: Instant,
    ) -> Result<bool, String> {
        let change = &self.routes[target as usize];
        let mut until = change.end(now);
        let mut changed = change.settings(now).clone();
        let setting = |name: &str| probe_settings().find(|(flag, _)| flag.name == name);
        let accepted = |name: &str| match setting(name) {
            Some((flag, _)) if flag.name == FAIL_WITH => {
                Some((FAIL_WITH, self.accepted_fail_with()))
            }
            Some((flag, _)) => Some((flag.name, flag.accepted)),
            None => (name == FOR).then_some((FOR, ACCEPTED_CHANGE_DURATION)),
        };
        let set = &mut |name: &'static str, value: &str| match setting(name) {
            Some((_, setting)) => {
                (setting.set)(&mut changed, value)?;
                // With tiny-http, a failure must have a status.
                self.can_send(changed.fail_with).then_some(())
            }
            None => parse_end(value, now).map(|end| until = Some(end)),
        };
        let named = query::parse(query, Some(&accepted_names()), &accepted, set)?;
        if target != RouteTarget::Probe && !named.contains(&FOR) {
            return Err(MISSING_END.to_owned());
        }
        Ok(self.routes[target as usize].put(changed, until, now))
    }

    /// Parses the fault that a request to /probe asks for itself with `status` or `fail-with`, and
    /// `delay`. Returns `None` if the query names none of them. All other names are ignored.
    ///
    /// # Errors
    /// A line that tells the client what is accepted.
    pub fn request_fault(&self, query: &str) -> Result<Option<RequestFault>, String> {
        let mut fault = RequestFault {
            fail_with: None,
            delay: Duration::ZERO,
        };
        let accepted = |name: &str| match name {
            STATUS => Some((STATUS, FailWith::ACCEPTED_STATUS)),
            FAIL_WITH => Some((FAIL_WITH, self.accepted_fail_with())),
            DELAY => Some((DELAY, ACCEPTED_DELAY)),
            _ => None,
        };
        let set = &mut |name: &'static str, value: &str| {
            match name {
                DELAY => fault.delay = parse_delay(value)?,
                STATUS => fault.fail_with = failure_with(FailWith::parse_status(value)?),
                _ => {
                    let fail_with = FailWith::parse(value);
                    fault.fail_with = Some(fail_with.filter(|how| self.can_send(*how))?);
                }
            }
            Some(())
        };
        let named = query::parse(query, None, &accepted, set)?;
        if named.contains(&STATUS) && named.contains(&FAIL_WITH) {
            return Err("status and fail-with: expected only one of them\n".to_owned());
        }
        Ok((!named.is_empty()).then_some(fault))
    }

    /// Returns whether a query names anything that [`request_fault`](Self::request_fault) parses.
    pub fn asks_for_fault(query: &str) -> bool {
        let names = [STATUS, DELAY, FAIL_WITH];
        // Most requests have no query.
        !query.is_empty()
            && query.split('&').any(|parameter| {
                let (name, _) = parameter.split_once('=').unwrap_or((parameter, ""));
                names.contains(&name)
            })
    }

    fn can_send(&self, fail_with: FailWith) -> bool {
        self.can_break_off || fail_with.is_status()
    }

    fn accepted_fail_with(&self) -> &'static str {
        if self.can_break_off {
            FailWith::ACCEPTED
        } else {
            FailWith::ACCEPTED_BY_TINY_HTTP
        }
    }

    /// Returns the names of all failures that the server can send.
    pub fn failures(&self) -> impl Iterator<Item = &'static str> {
        let failures = FailWith::all().filter(|how| self.can_send(*how));
        failures.map(FailWith::name)
    }

    /// Returns every status that a request can ask for, as it is recorded.
    pub fn recorded_statuses(&self) -> impl Iterator<Item = &'static str> {
        let statuses = FailWith::STATUSES.map(Status::label);
        let dropped = self.can_break_off.then_some(FailWith::DROPPED);
        statuses.into_iter().chain(dropped)
    }

    /// Reverts a target, or every target, to the settings it started with. Returns whether there was a
    /// change to revert.
    pub fn revert(&mut self, target: Option<Target>, now: Instant) -> bool {
        let mut is_change = false;
        for route in RouteTarget::ALL {
            if target.is_none_or(|target| target == Target::Route(route)) {
                is_change |= self.routes[route as usize].revert(now);
            }
        }
        if target.is_none_or(|target| target == Target::Process) {
            is_change |= self.process.revert(now);
        }
        is_change
    }

    /// Carries out the faults of the process. Returns the time after which to call it again.
    pub fn act(&mut self) -> Option<Duration> {
        self.process.act()
    }

    /// Returns how many extra series are exposed at `now`.
    pub fn extra_series(&self, now: Instant) -> u32 {
        self.process.extra_series(now)
    }

    /// Returns the settings of probe that are in force at `now`, one per line, followed by a line for
    /// each other target that has a change in force.
    pub fn overview(&self, now: Instant) -> String {
        let mut overview = self.settings_text(Target::Route(RouteTarget::Probe), now);
        for target in Target::all().skip(1) {
            if self.is_active(target, now) {
                let settings = self.settings_text(target, now);
                let settings = settings.trim_end().replace('\n', " ");
                let _ = writeln!(overview, "{}: {settings}", target.name());
            }
        }
        overview
    }

    /// Returns the settings of a target that are in force at `now`, one per line, in the syntax of a
    /// query.
    pub fn settings_text(&self, target: Target, now: Instant) -> String {
        let mut text = String::new();
        match target {
            Target::Route(target) => {
                let change = &self.routes[target as usize];
                let settings = change.settings(now);
                for (flag, setting) in probe_settings() {
                    let _ = writeln!(text, "{}={}", flag.name, (setting.write)(settings));
                }
                change.write_end(&mut text, now);
            }
            Target::Process => self.process.write(&mut text, now),
        }
        text
    }
}

/// Returns the settings of a route, each with its flag.
fn probe_settings() -> impl Iterator<Item = (&'static Flag, ProbeSetting)> {
    FLAGS.iter().filter_map(|flag| match flag.sets {
        Sets::Probe(setting) => Some((flag, setting)),
        Sets::Service(_) => None,
    })
}

fn accepted_names() -> String {
    let mut names = String::new();
    for (flag, _) in probe_settings() {
        names += flag.name;
        names += ", ";
    }
    names + "or for"
}

/// The fault that a request to /probe asks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFault {
    /// How the request fails. `None` if it succeeds.
    pub fail_with: Option<FailWith>,
    /// How long the response is delayed.
    pub delay: Duration,
}

/// Returns the failure with a status, or `None` for 200.
fn failure_with(status: Status) -> Option<FailWith> {
    (status != Status::Ok).then_some(FailWith::Status(status))
}

fn parse_delay(value: &str) -> Option<Duration> {
    duration::parse(value, Duration::ZERO..=MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use bounded_http::Ending;

    use super::*;

    const PROBE: Target = Target::Route(RouteTarget::Probe);
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
    fn a_change_affects_only_the_settings_it_names() {
        let (mut faults, now) = faults();
        assert_eq!(faults.overview(now), AT_START);
        faults
            .change(PROBE, "latency=300ms&fail-rate=.25", now)
            .unwrap();
        let expected = AT_START
            .replace("fail-rate=0.01", "fail-rate=0.25")
            .replace("\nlatency=0s", "\nlatency=300ms");
        assert_eq!(faults.overview(now), expected);
        assert_eq!(
            faults.settings(RouteTarget::Probe, now).latency,
            Duration::from_millis(300)
        );

        faults.change(PROBE, "work=1s", now + seconds(1)).unwrap();
        let expected = expected.replace("work=0s", "work=1s");
        assert_eq!(faults.overview(now + seconds(1_000_000)), expected);
        assert!(faults.revert(None, now), "a change without an end");
        assert_eq!(faults.overview(now), AT_START);
    }

    #[test]
    fn a_change_is_reverted_when_its_time_is_over() {
        let (mut faults, now) = faults();
        let changed = AT_START.replace("0.01", "0.2");
        faults.change(PROBE, "fail-rate=0.2&for=2m", now).unwrap();
        for (millis, expected) in [
            (0, changed.clone() + "for=120s\n"),
            (1, changed.clone() + "for=120s\n"),
            (83_000, changed.clone() + "for=37s\n"),
            (119_001, changed.clone() + "for=1s\n"),
            (119_999, changed.clone() + "for=1s\n"),
            (120_000, AT_START.to_owned()),
            (500_000, AT_START.to_owned()),
        ] {
            assert_eq!(
                faults.overview(now + Duration::from_millis(millis)),
                expected
            );
        }
        let later = now + seconds(120);
        assert_eq!(
            faults.settings(RouteTarget::Probe, later),
            &faults.routes[0].at_start
        );
        assert_ne!(
            faults.settings(RouteTarget::Probe, now + seconds(119)),
            &faults.routes[0].at_start
        );
    }

    #[test]
    fn a_later_change_does_not_bring_back_one_that_has_ended() {
        let (mut faults, now) = faults();
        faults.change(PROBE, "fail-rate=0.2&for=2m", now).unwrap();
        let later = now + seconds(120);
        faults.change(PROBE, "slow-rate=0.5", later).unwrap();
        let expected = AT_START.replace("slow-rate=0", "slow-rate=0.5");
        assert_eq!(faults.overview(later), expected);
        assert_eq!(faults.overview(later + seconds(1_000_000)), expected);
    }

    #[test]
    fn a_later_change_keeps_the_end_unless_it_sets_another() {
        let (mut faults, now) = faults();
        faults.change(PROBE, "fail-rate=0.2&for=2m", now).unwrap();
        let later = now + seconds(60);
        faults.change(PROBE, "slow-rate=0.5", later).unwrap();
        assert!(
            faults
                .overview(later)
                .ends_with("slow-rate=0.5\nlatency=0s\nslow-latency=9s\nwork=0s\nfor=60s\n")
        );
        faults.change(PROBE, "for=5s", later).unwrap();
        assert!(
            faults
                .overview(later)
                .contains("fail-rate=0.2\nfail-with=500\nfail-latency=0s\nslow-rate=0.5\n")
        );
        assert_eq!(faults.overview(later + seconds(5)), AT_START);
        faults.revert(None, later);
        assert_eq!(faults.overview(later), AT_START, "without a for");
    }

    #[test]
    fn another_end_counts_as_a_change_and_a_repetition_does_not() {
        let (mut faults, now) = faults();
        let later = now + Duration::from_millis(1);
        assert_eq!(faults.change(PROBE, "fail-rate=0.01", now), Ok(false));
        assert!(!faults.revert(None, now));
        assert_eq!(faults.change(PROBE, "fail-rate=0.2", now), Ok(true));
        assert_eq!(faults.change(PROBE, "fail-rate=0.2", later), Ok(false));
        assert_eq!(faults.change(PROBE, "for=2m", now), Ok(true));
        let overview = faults.overview(now);
        assert_eq!(faults.change(PROBE, "for=2m", later), Ok(true));
        assert_eq!(faults.overview(later), overview, "in whole seconds");
        assert!(faults.revert(None, later));
        assert!(!faults.revert(None, later));
    }

    #[test]
    fn an_overview_is_accepted_as_a_query() {
        let now = Instant::now();
        let query = "fail-rate=0.125&fail-with=stall&fail-latency=2s&slow-rate=1&latency=1m30s5ms&slow-latency=59m59s999ms&work=1us&for=24h";
        let mut faults = Faults::new(&Config::default());
        faults.change(PROBE, query, now).unwrap();
        let overview = faults.overview(now);
        let shown = overview.trim_end().replace('\n', "&");
        let mut again = Faults::new(&Config::default());
        again.change(PROBE, &shown, now).unwrap();
        assert_eq!(again.routes[0].changed, faults.routes[0].changed);
        assert_eq!(again.routes[0].until, faults.routes[0].until);
        assert_eq!(again.overview(now), overview);
        assert_eq!(again.routes[0].until, Some(now + seconds(86_400)));
    }

    #[test]
    fn an_invalid_query_is_an_error_and_changes_nothing() {
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
            faults.change(PROBE, "latency=1s&for=1h", now).unwrap();
            let before = faults.overview(now);
            for query in [query, &format!("slow-rate=0.5&{query}")] {
                let error = faults.change(PROBE, query, now).unwrap_err();
                assert_eq!(error, format!("{shown}: {expected}\n"));
                assert_eq!(faults.overview(now), before, "{query}");
            }
        }
    }

    #[test]
    fn a_query_without_settings_is_an_error() {
        let (mut faults, now) = faults();
        for query in ["", "&&"] {
            let error = faults.change(PROBE, query, now).unwrap_err();
            assert!(
                error.starts_with("the query is empty: expected fail-rate, "),
                "{error}"
            );
        }
    }

    #[test]
    fn percent_escapes_are_decoded() {
        let (mut faults, now) = faults();
        let query = "%66ail%2Drate=%30%2e5&latency=1m%2030s&&slow-rate=%2B1&";
        faults.change(PROBE, query, now).unwrap();
        assert!(
            faults
                .overview(now)
                .contains("\nslow-rate=1\nlatency=90s\n")
        );
        faults.change(PROBE, "fail-rate=-0", now).unwrap();
        assert!(faults.overview(now).starts_with("fail-rate=0\n"));
    }

    #[test]
    fn each_target_has_its_own_settings() {
        let (mut faults, now) = faults();
        for target in [
            RouteTarget::Metrics,
            RouteTarget::Healthz,
            RouteTarget::Readyz,
        ] {
            let query = "fail-rate=1&latency=2s&for=1m";
            assert!(!faults.is_active(Target::Route(target), now));
            assert_eq!(faults.change(Target::Route(target), query, now), Ok(true));
            assert!(faults.is_active(Target::Route(target), now));
            assert_eq!(faults.settings(target, now).latency, seconds(2));
            let others = Target::all().filter(|other| *other != Target::Route(target));
            for other in others {
                assert!(!faults.is_active(other, now), "{}", other.name());
            }
            let text = faults.settings_text(Target::Route(target), now);
            assert!(text.starts_with("fail-rate=1\n") && text.ends_with("\nfor=60s\n"));
            let line = format!(
                "{}: fail-rate=1 fail-with=500 fail-latency=0s slow-rate=0 latency=2s \
                 slow-latency=9s work=0s for=60s\n",
                Target::Route(target).name()
            );
            assert_eq!(faults.overview(now), AT_START.to_owned() + &line);
            let later = now + seconds(60);
            assert!(!faults.is_active(Target::Route(target), later));
            assert_eq!(faults.overview(later), AT_START);
            assert!(!faults.revert(Some(PROBE), now));
            assert!(faults.revert(Some(Target::Route(target)), now));
        }
    }

    #[test]
    fn a_change_to_a_target_other_than_probe_must_have_an_end() {
        let (mut faults, now) = faults();
        let metrics = Target::Route(RouteTarget::Metrics);
        let rejected = Err(MISSING_END.to_owned());
        assert_eq!(faults.change(metrics, "fail-rate=1", now), rejected);
        assert!(!faults.is_active(metrics, now));
        assert_eq!(faults.change(metrics, "fail-rate=1&for=1m", now), Ok(true));
        assert_eq!(faults.change(metrics, "fail-rate=0.5", now), rejected);
        assert_eq!(faults.change(metrics, "for=2m", now), Ok(true));
        assert!(faults.is_active(metrics, now + seconds(119)));
        assert!(!faults.is_active(metrics, now + seconds(120)));
    }

    #[test]
    fn fault_injection_decides_which_targets_clients_may_change() {
        for (fault_injection, allowed) in [
            (FaultInjection::Off, 0),
            (FaultInjection::On, 1),
            (FaultInjection::All, Target::COUNT),
        ] {
            let faults = Faults::new(&Config {
                fault_injection,
                ..Config::default()
            });
            let targets = Target::all().filter(|target| faults.allows(*target));
            assert_eq!(targets.count(), allowed);
            assert_eq!(faults.allows(PROBE), allowed > 0);
        }
    }

    #[test]
    fn a_request_can_ask_for_its_own_response() {
        let (faults, _) = faults();
        let own = |fail_with, millis| {
            let delay = Duration::from_millis(millis);
            Ok(Some(RequestFault { fail_with, delay }))
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
            assert_eq!(faults.request_fault(query), expected, "{query}");
        }
        for status in FailWith::STATUSES {
            let query = format!("status={}", status.label());
            assert_eq!(faults.request_fault(&query), own(failure_with(status), 0));
            let query = format!("fail-with={}", status.label());
            assert_eq!(faults.request_fault(&query), own(failure(status), 0));
        }
    }

    #[test]
    fn an_invalid_request_for_a_fault_is_an_error() {
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
                "status and fail-with",
                &"expected only one of them".to_owned(),
            ),
            ("status=503\r\nX: 1", "status=503\\r\\nX:\\x201", status),
        ] {
            let error = faults.request_fault(query).unwrap_err();
            assert_eq!(error, format!("{shown}: {problem}\n"));
        }
    }

    #[cfg(feature = "tiny-http")]
    #[test]
    fn with_tiny_http_only_statuses_are_accepted() {
        let config = Config {
            server: crate::config::Server::TinyHttp,
            ..Config::default()
        };
        let (mut faults, now) = (Faults::new(&config), Instant::now());
        for how in ["reset", "close", "cut", "stall", "hang"] {
            let query = format!("fail-with={how}");
            let expected = format!("{query}: expected {}\n", FailWith::ACCEPTED_BY_TINY_HTTP);
            assert_eq!(faults.request_fault(&query), Err(expected.clone()));
            assert_eq!(faults.change(PROBE, &query, now), Err(expected));
        }
        assert_eq!(faults.change(PROBE, "fail-with=503", now), Ok(true));
    }
}
