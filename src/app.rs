//! The routes: answers requests, and records each exchange when it has ended.
//!
//! `ROUTES` is the table of all routes. To add one, add a line there and a function.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bounded_http::{Ended, Method, Outcome, Reply, Request, Service, Status};
use prometheus::IntGauge;

use crate::config::{Config, FaultInjection};
use crate::fail_with::FailWith;
use crate::faults::{Faults, RequestFault, origin};
use crate::log::access::{AccessLog, Entry};
use crate::log::{diagnostics, line_writer};
use crate::metrics::{Endpoint, InForce, Metrics, Preference};
use crate::page::{self, Page};
use crate::probe::{Draw, Probe};
use crate::target::{RouteTarget, Target};
use crate::trace_context::TraceContext;
use crate::wall_clock;

/// A route: its path, which is also its `endpoint` label, its methods, its target under /faults, and the
/// function that answers its requests. HEAD is answered like GET, and OPTIONS from this table.
struct Route {
    path: &'static str,
    methods: Methods,
    target: Option<RouteTarget>,
    answer: fn(&mut App, &Request<'_>) -> Reply,
}

/// The methods of a route.
struct Methods {
    /// Those that the route's function answers.
    answered: &'static [Method],
    /// The same and OPTIONS, as the value of `Allow`.
    allow: &'static str,
}

/// All routes.
#[rustfmt::skip]
static ROUTES: &[Route] = &[
    Route { path: "/",     methods: READ,   target: None,                       answer: App::page },
    Route { path: PROBE,   methods: READ,   target: Some(RouteTarget::Probe),   answer: probe },
    Route { path: METRICS, methods: READ,   target: Some(RouteTarget::Metrics), answer: App::exposition },
    Route { path: HEALTHZ, methods: READ,   target: Some(RouteTarget::Healthz), answer: healthz },
    Route { path: READYZ,  methods: READ,   target: Some(RouteTarget::Readyz),  answer: App::readyz },
    // And the paths below it, one for each target.
    Route { path: FAULTS,  methods: CHANGE, target: None,                       answer: App::faults },
];

const READ: Methods = Methods {
    answered: &[Method::Get, Method::Head],
    allow: "GET, HEAD, OPTIONS",
};
/// A web page can send PUT or DELETE to another origin only after a preflight, and no response here
/// grants one.
const CHANGE: Methods = Methods {
    answered: &[Method::Get, Method::Head, Method::Put, Method::Delete],
    allow: "GET, HEAD, PUT, DELETE, OPTIONS",
};

const PROBE: &str = "/probe";
pub(crate) const METRICS: &str = "/metrics";
const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const FAULTS: &str = "/faults";
/// The routes that are served even when every connection is taken. With them, an operator can see this,
/// and end a fault that causes it.
const URGENT: [&str; 4] = [HEALTHZ, READYZ, METRICS, FAULTS];

/// The body of a 405 on /faults.
const HOW_TO_CHANGE: &str = "Method not allowed. Allowed here: GET, HEAD, PUT, DELETE, OPTIONS. \
                             PUT /faults?fail-rate=0.2&for=2m changes settings; DELETE /faults \
                             reverts every change.\n";
/// The body of a 400 for GET on /faults with a query.
const GET_CHANGES_NOTHING: &str = "GET changes nothing: expected PUT, as in curl -X PUT \
                                   'http://HOST/faults?fail-rate=0.2&for=2m', or no query\n";
/// The body of a 400 for PUT on /faults with a body.
const BODY_IS_NOT_READ: &str = "The body is not read: expected the settings in the query, as in PUT \
                                /faults?fail-rate=0.2&for=2m\n";
/// The value of `X-Fault-Injection` for a request that asks for a fault while fault injection is off.
const QUERY_IS_IGNORED: &str = "off, so the query is ignored; start with --fault-injection";

/// The `http_status` of a request whose client disconnected first, as nginx logs it.
const DISCONNECTED: &str = "499";
const HTML: &str = "text/html; charset=utf-8";
/// The body of a successful /probe.
const SUCCESS: &str = "I'm ok!";
/// The body of a failure at the configured rate.
const FAILURE: &str = "Failed, as configured with fail-rate.\n";
/// The body of a failure that the request asks for itself.
const REQUESTED_FAILURE: &str = "Failed, as this request asked.\n";

/// The service without its sockets.
pub struct App {
    probe: Probe,
    faults: Faults,
    allowed_host: Option<String>,
    /// The service has been told to stop. Set by a signal handler.
    is_stopping: Arc<AtomicBool>,
    metrics: Metrics,
    /// The last `Accept` field of a scrape, and the format that it prefers.
    preference: Preference,
    access_log: AccessLog,
    page: Page,
}

/// What is remembered about a request until its exchange has ended, to record it then.
pub struct Exchange {
    method: Method,
    endpoint: Endpoint,
    trace: Option<TraceContext>,
    log_entry: Option<Entry>,
    _in_flight: InFlight,
}

/// Counts a request as received and not yet responded to, for as long as this value exists.
struct InFlight(IntGauge);

impl InFlight {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Service for App {
    type Memo = Exchange;

    fn answer(&mut self, request: &Request<'_>) -> Reply<Exchange> {
        let route = self.route(request.path());
        let exchange = self.begin(request, route);
        self.reply(request, route).remember(exchange)
    }

    fn refuse(&mut self, request: &Request<'_>) -> Option<Exchange> {
        let route = self.route(request.path());
        Some(self.begin(request, route))
    }

    /// Records the exchange. Later scrapes include it.
    fn ended(&mut self, ended: Ended<Exchange>) {
        let status = match ended.outcome {
            Outcome::Responded | Outcome::Rejected | Outcome::Panicked => ended.status.label(),
            Outcome::Disconnected => DISCONNECTED,
            Outcome::Dropped => FailWith::DROPPED,
        };
        let rejected = || Exchange {
            method: Method::Other,
            endpoint: Endpoint::OTHER,
            trace: None,
            log_entry: self.access_log.begin(ended.peer, "", "", None),
            _in_flight: InFlight::new(self.metrics.requests_in_flight()),
        };
        let exchange = ended.memo.unwrap_or_else(rejected);
        let Exchange {
            method,
            endpoint,
            trace,
            log_entry,
            ..
        } = exchange;
        self.metrics
            .record(method, endpoint, status, ended.duration, trace);
        if let Some(entry) = log_entry {
            let (length, time) = (ended.body_length, wall_clock::now());
            self.access_log
                .push(&entry, status, length, ended.duration, time);
        }
        // Other responses on the path, such as a 405, are smaller.
        if endpoint.label() == METRICS
            && ended.status == Status::Ok
            && let Cow::Owned(exposition) = ended.body
        {
            self.metrics.reuse(exposition);
        }
    }

    fn is_urgent(&self, request: &Request<'_>) -> bool {
        let route = self.route(request.path());
        route.is_some_and(|index| URGENT.contains(&ROUTES[index].path))
    }

    fn connections_changed(&mut self, open: usize) {
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.metrics.connections_open().set(open);
    }

    fn before_wait(&mut self) -> Option<Duration> {
        let logs = self.flush_logs();
        // The logs are flushed first, because the process may exit or freeze here.
        let process = self.faults.act();
        // Scrapes that are answered after the wait get current values.
        self.metrics.discard_process_reading();
        logs.into_iter().chain(process).min()
    }

    fn report(&mut self, message: &dyn Display) {
        diagnostics::report(message);
    }
}

impl App {
    /// Creates the service with its metrics at zero.
    pub fn new(config: &Config) -> Self {
        let faults = Faults::new(config);
        let metrics = Metrics::new(ROUTES.len(), &config.app_version, &config.app_config);
        let page = Page::new(config, &faults, &metrics);
        let app = Self {
            probe: Probe::new(config.random_seed),
            faults,
            allowed_host: config.allowed_host.clone(),
            is_stopping: Arc::default(),
            metrics,
            preference: Preference::default(),
            access_log: AccessLog::new(config.access_log),
            page,
        };
        app.expose_probe(config);
        app
    }

    /// Makes /readyz respond with 503 once this is true.
    #[must_use]
    pub fn stopping_when(self, is_stopping: Arc<AtomicBool>) -> Self {
        Self {
            is_stopping,
            ..self
        }
    }

    /// Exposes at 0 the series of every status that /probe can be told to respond with.
    fn expose_probe(&self, config: &Config) {
        let probe = endpoint(self.route(PROBE));
        let configured = ["200", "500", config.probe.fail_with.recorded_as()];
        for status in configured {
            self.metrics.expose(Method::Get, probe, status);
        }
        if self.faults.scope() != FaultInjection::Off {
            for status in self.faults.recorded_statuses() {
                self.metrics.expose(Method::Get, probe, status);
            }
        }
    }

    /// Returns the metrics, so that `main` can set the connection limit.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the access log, so that `main` can write its last lines. Clones refer to the same log.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// Writes the lines of both logs. If some are left, returns the time after which to try again.
    pub fn flush_logs(&self) -> Option<Duration> {
        let has_lines_left = self.access_log.flush() | diagnostics::flush();
        has_lines_left.then_some(line_writer::RETRY_INTERVAL)
    }

    /// Starts the record of a request.
    fn begin(&self, request: &Request<'_>, route: Option<usize>) -> Exchange {
        let traceparent = request.field("traceparent");
        let trace = traceparent.and_then(TraceContext::sampled);
        let (method, target) = (request.method_text(), request.target());
        let peer = request.peer();
        Exchange {
            method: request.method(),
            endpoint: endpoint(route),
            trace,
            log_entry: self.access_log.begin(peer, method, target, trace),
            _in_flight: InFlight::new(self.metrics.requests_in_flight()),
        }
    }

    fn reply(&mut self, request: &Request<'_>, route: Option<usize>) -> Reply {
        let method = request.method();
        let Some(route) = route.map(|index| &ROUTES[index]) else {
            return match method {
                // `OPTIONS *` asks about the server as a whole (RFC 9110, section 9.3.7).
                Method::Options if request.target() == "*" => Reply::options(READ.allow),
                // The target of CONNECT is a host and a port, not a path (RFC 9112, section 3.2.3).
                Method::Connect => Reply::method_not_allowed(READ.allow),
                _ => self.not_found(request.path()),
            };
        };
        if method == Method::Options {
            return Reply::options(route.methods.allow);
        }
        if !route.methods.answered.contains(&method) {
            let reply = Reply::method_not_allowed(route.methods.allow);
            return match route.path {
                FAULTS => Reply::text(reply.status(), HOW_TO_CHANGE).field("Allow", CHANGE.allow),
                _ => reply,
            };
        }
        match route.target {
            Some(RouteTarget::Probe)
                if self.faults.scope() == FaultInjection::Off
                    && Faults::asks_for_fault(request.query()) =>
            {
                self.reply_with_faults(route, RouteTarget::Probe, request)
                    .field("X-Fault-Injection", QUERY_IS_IGNORED)
            }
            Some(target) => self.reply_with_faults(route, target, request),
            None => (route.answer)(self, request),
        }
    }

    /// Answers a request to a route that can be told to fail or to be slow.
    fn reply_with_faults(
        &mut self,
        route: &Route,
        target: RouteTarget,
        request: &Request<'_>,
    ) -> Reply {
        if target == RouteTarget::Probe && self.faults.scope() != FaultInjection::Off {
            match self.faults.request_fault(request.query()) {
                Ok(None) => {}
                Ok(Some(fault)) => return requested_response(fault),
                Err(error) => return Reply::text(Status::BadRequest, error),
            }
        }
        let settings = self.faults.settings(target, request.received_at());
        let (fail_with, work) = (settings.fail_with, settings.work);
        match (self.probe.draw(settings), fail_with) {
            (Draw::Succeed(delay), _) => (route.answer)(self, request).after(delay).work(work),
            (Draw::Fail(delay), FailWith::Status(status)) => failure(status, FAILURE).after(delay),
            (Draw::Fail(delay), FailWith::Ending(ending)) => {
                (route.answer)(self, request).end_with(ending).after(delay)
            }
        }
    }

    /// Returns the index of a path's route. Paths below /faults are routes only if clients may change
    /// their target.
    fn route(&self, path: &str) -> Option<usize> {
        let route_path = match path.strip_prefix(FAULTS) {
            Some(_) => self.target(path).map(|_| FAULTS)?,
            None => path,
        };
        ROUTES.iter().position(|route| route.path == route_path)
    }

    /// Returns the target that /faults/TARGET names, if clients may change it. `/faults` names probe.
    fn target(&self, path: &str) -> Option<Target> {
        let target = match path.strip_prefix(FAULTS)? {
            "" => Target::Route(RouteTarget::Probe),
            name => Target::parse(name.strip_prefix('/')?)?,
        };
        self.faults.allows(target).then_some(target)
    }

    fn not_found(&self, path: &str) -> Reply {
        let below = path.strip_prefix(FAULTS);
        let is_below_faults = below.is_some_and(|name| name.is_empty() || name.starts_with('/'));
        let text = match self.faults.scope() {
            _ if !is_below_faults => "Not found. Try /, /probe, /metrics, /healthz or /readyz.\n",
            FaultInjection::Off => {
                "Not found: fault injection is off. Start tiny-probe with --fault-injection or \
                 FAULT_INJECTION=on to change /probe, or with all as the value to change every target.\n"
            }
            FaultInjection::On => {
                "Not found: expected /faults or /faults/probe. For other targets, start tiny-probe with \
                 --fault-injection=all or FAULT_INJECTION=all.\n"
            }
            FaultInjection::All => {
                "Not found: expected /faults, /faults/probe, /faults/metrics, /faults/healthz, \
                 /faults/readyz or /faults/process.\n"
            }
        };
        Reply::text(Status::NotFound, text)
    }

    fn page(&mut self, request: &Request<'_>) -> Reply {
        let settings = self.faults.overview(request.received_at());
        let html = self.page.html(&settings).into_bytes();
        let reply = Reply::new(Status::Ok, HTML, html);
        let fields = page::FIELDS.iter();
        fields.fold(reply, |reply, (name, value)| reply.field(name, value))
    }

    fn exposition(&mut self, request: &Request<'_>) -> Reply {
        let format = self.preference.of(request.field("Accept"));
        let now = request.received_at();
        let in_force = InForce {
            probe: self.faults.settings(RouteTarget::Probe, now),
            is_active: &|target| self.faults.is_active(target, now),
            extra_series: self.faults.extra_series(now),
        };
        let exposition = self.metrics.exposition(format, &in_force).into_bytes();
        Reply::new(Status::Ok, format.content_type(), exposition).field("Vary", "Accept")
    }

    fn readyz(&mut self, _: &Request<'_>) -> Reply {
        if self.is_stopping.load(Ordering::Relaxed) {
            Reply::text(Status::ServiceUnavailable, "not ready\n")
        } else {
            Reply::text(Status::Ok, "ready\n")
        }
    }

    fn faults(&mut self, request: &Request<'_>) -> Reply {
        let Some(target) = self.target(request.path()) else {
            return self.not_found(request.path());
        };
        let now = request.received_at();
        // /faults alone is probe for PUT, and every target for GET and DELETE.
        let named = (request.path() != FAULTS).then_some(target);
        if let Err((status, text)) = self.check_change(request) {
            return Reply::text(status, text);
        }
        let is_change = match request.method() {
            Method::Put => match self.faults.change(target, request.query(), now) {
                Ok(is_change) => is_change,
                Err(error) => return Reply::text(Status::BadRequest, error),
            },
            Method::Delete => self.faults.revert(named, now),
            _ => {
                let settings = match named {
                    Some(target) => self.faults.settings_text(target, now),
                    None => self.faults.overview(now),
                };
                return Reply::text(Status::Ok, settings);
            }
        };
        if is_change {
            self.expose_failure(target, now);
            if let Some(peer) = request.peer() {
                self.announce_change(peer, named, now);
            }
        }
        Reply::text(Status::Ok, self.faults.overview(now))
    }

    /// Checks a request to /faults, apart from the settings in its query.
    fn check_change(&self, request: &Request<'_>) -> Result<(), (Status, String)> {
        let is_put = request.method() == Method::Put;
        if is_put || request.method() == Method::Delete {
            let allowed_host = self.allowed_host.as_deref();
            let checked = origin::check(request, allowed_host);
            checked.map_err(|line| (Status::Forbidden, line))?;
        } else if !request.query().is_empty() {
            return Err((Status::BadRequest, GET_CHANGES_NOTHING.to_owned()));
        }
        // Both request loops reject a body without Content-Length.
        let length = request.field("Content-Length").unwrap_or_default();
        if is_put && length.iter().any(|digit| *digit != b'0') {
            return Err((Status::BadRequest, BODY_IS_NOT_READ.to_owned()));
        }
        Ok(())
    }

    /// Exposes at 0 the series of the failures that the target can now have.
    fn expose_failure(&self, target: Target, now: Instant) {
        if let Target::Route(route) = target {
            let fail_with = self.faults.settings(route, now).fail_with;
            let index = ROUTES.iter().position(|row| row.target == Some(route));
            self.metrics
                .expose(Method::Get, endpoint(index), fail_with.recorded_as());
        }
    }

    /// Prints a change. `named` is the target that the path names, if it names one.
    fn announce_change(&self, peer: SocketAddr, named: Option<Target>, now: Instant) {
        match named {
            Some(target) if target != Target::Route(RouteTarget::Probe) => {
                let settings = self.faults.settings_text(target, now);
                let settings = format!("{}: {settings}", target.name());
                diagnostics::announce_change(peer, &settings);
            }
            _ => diagnostics::announce_change(peer, &self.faults.overview(now)),
        }
    }
}

fn endpoint(route: Option<usize>) -> Endpoint {
    route.map_or(Endpoint::OTHER, |index| {
        Endpoint::of_route(index, ROUTES[index].path)
    })
}

fn probe(_: &mut App, _: &Request<'_>) -> Reply {
    Reply::text(Status::Ok, SUCCESS)
}

fn healthz(_: &mut App, _: &Request<'_>) -> Reply {
    Reply::text(Status::Ok, "ok\n")
}

/// Creates the response that a request asks for itself.
fn requested_response(fault: RequestFault) -> Reply {
    let success = Reply::text(Status::Ok, SUCCESS);
    let reply = match fault.fail_with {
        None => success,
        Some(FailWith::Status(status)) => failure(status, REQUESTED_FAILURE),
        Some(FailWith::Ending(ending)) => success.end_with(ending),
    };
    reply.after(fault.delay)
}

/// Creates the response of a failure with a status.
fn failure(status: Status, text: &'static str) -> Reply {
    let reply = Reply::text(status, text);
    match status {
        Status::TooManyRequests | Status::ServiceUnavailable => reply.field("Retry-After", "1"),
        // A 401 must have this field (RFC 9110, section 15.5.2). With Basic, browsers ask for a
        // password.
        Status::Unauthorized => reply.field("WWW-Authenticate", "Bearer"),
        _ => reply,
    }
}

#[cfg(test)]
mod tests {
    use bounded_http::{Ending, Field};

    use super::*;
    use crate::config::ProbeSettings;

    const TEXT: &str = "text/plain; charset=utf-8";

    /// What the app responds, and what it remembers, in a form that tests can compare.
    struct Asked {
        status: Status,
        method: Method,
        endpoint: &'static str,
        content_type: &'static str,
        allow: Option<String>,
        body: String,
        delay: Duration,
        work: Duration,
    }

    fn app() -> App {
        App::new(&Config::default())
    }

    fn ask(app: &mut App, method: &str, target: &str) -> Asked {
        ask_at(app, method, target, Instant::now())
    }

    fn ask_at(app: &mut App, method: &str, target: &str, now: Instant) -> Asked {
        let request = Request::new(method, target).with_received_at(now);
        let (reply, exchange) = app.answer(&request).split();
        let allow = reply.fields().find(|(name, _)| *name == "Allow");
        Asked {
            status: reply.status(),
            method: exchange.method,
            endpoint: exchange.endpoint.label(),
            content_type: reply.content_type().unwrap_or_default(),
            allow: allow.map(|(_, methods)| methods.to_owned()),
            body: String::from_utf8(reply.body().to_vec()).unwrap(),
            delay: reply.delay(),
            work: reply.work_time(),
        }
    }

    #[test]
    fn every_route_responds_to_head_like_to_get() {
        for (target, endpoint, content_type, body) in [
            ("/probe", "/probe", TEXT, "I'm ok!"),
            ("/healthz", "/healthz", TEXT, "ok\n"),
            ("/readyz", "/readyz", TEXT, "ready\n"),
            ("/", "/", HTML, "<!doctype html>"),
            (
                "/metrics",
                "/metrics",
                "text/plain; version=0.0.4; charset=utf-8",
                "# HELP app_configured_fail_latency",
            ),
        ] {
            for (name, method) in [("GET", Method::Get), ("HEAD", Method::Head)] {
                let reply = ask(&mut app(), name, target);
                assert_eq!(reply.status, Status::Ok, "{name} {target}");
                assert_eq!((reply.method, reply.endpoint), (method, endpoint));
                assert_eq!(reply.content_type, content_type);
                assert!(reply.body.starts_with(body), "{}", reply.body);
                assert_eq!(reply.delay, Duration::ZERO);
            }
        }
        assert_eq!(ask(&mut app(), "GET", "/probe").body, "I'm ok!");
        assert_eq!(ask(&mut app(), "GET", "/healthz").body, "ok\n");
    }

    #[test]
    fn another_method_is_not_allowed_on_a_known_route() {
        for method in [
            "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "BREW",
        ] {
            for target in ["/", "/probe", "/metrics", "/healthz"] {
                let reply = ask(&mut app(), method, target);
                assert_eq!(reply.status, Status::MethodNotAllowed, "{method} {target}");
                assert_eq!(reply.allow, Some("GET, HEAD, OPTIONS".to_owned()));
                assert_eq!(reply.endpoint, target);
            }
        }
        assert_eq!(ask(&mut app(), "get", "/probe").method, Method::Other);
    }

    #[test]
    fn options_lists_the_methods_of_a_route_and_of_the_server() {
        for (target, endpoint) in [
            ("/", "/"),
            ("/probe?x", "/probe"),
            ("/metrics", "/metrics"),
            ("/healthz", "/healthz"),
            ("http://a", "/"),
            ("*", "other"),
        ] {
            let reply = ask(&mut app(), "OPTIONS", target);
            assert_eq!(reply.status, Status::NoContent, "{target}");
            assert_eq!(
                reply.allow,
                Some("GET, HEAD, OPTIONS".to_owned()),
                "{target}"
            );
            assert_eq!((reply.endpoint, &*reply.body), (endpoint, ""));
        }
        assert_eq!(ask(&mut app(), "OPTIONS", "/nope").status, Status::NotFound);
    }

    #[test]
    fn connect_is_not_allowed_for_any_host() {
        let reply = ask(&mut app(), "CONNECT", "a:443");
        assert_eq!(reply.status, Status::MethodNotAllowed);
        assert_eq!(reply.allow, Some("GET, HEAD, OPTIONS".to_owned()));
        assert_eq!(reply.endpoint, "other");
        assert_eq!(reply.method, Method::Connect);
    }

    #[test]
    fn an_unknown_path_is_not_found_for_any_method() {
        for target in [
            "/nope",
            "/probe/",
            "//probe",
            "/PROBE",
            "/metrics/x",
            "probe",
            "",
            "*",
            "localhost:8080",
            "/x://y/probe",
            "://a/probe",
            "http:///probe",
            "ftp://a/probe",
            "probe?u=http://a/",
        ] {
            for method in ["GET", "HEAD", "POST", "BREW"] {
                let reply = ask(&mut app(), method, target);
                assert_eq!(reply.status, Status::NotFound, "{method} {target}");
                assert_eq!(reply.endpoint, "other");
                assert_eq!(reply.method, Method::parse(method));
            }
        }
    }

    #[test]
    fn the_query_and_the_authority_do_not_change_the_route() {
        for target in [
            "/probe?",
            "/probe?x=1&y=/metrics",
            "/probe?u=http://example.com/",
            "http://example.com/probe",
            "HTTP://example.com:80/probe?x",
        ] {
            assert_eq!(ask(&mut app(), "GET", target).endpoint, "/probe");
        }
        for target in ["/?x", "http://example.com", "http://example.com?x"] {
            assert_eq!(ask(&mut app(), "GET", target).endpoint, "/");
        }
    }

    #[test]
    fn only_probe_fails_is_delayed_and_takes_work() {
        let work = Duration::from_millis(20);
        let mut app = App::new(&Config {
            probe: ProbeSettings {
                fail_rate: 0.5,
                latency: Duration::from_secs(1),
                work,
                ..ProbeSettings::default()
            },
            random_seed: Some(1),
            ..Config::default()
        });
        let (mut failed, mut delayed) = (0, 0);
        for _ in 0..100 {
            for target in ["/", "/healthz", "/metrics", "/nope"] {
                let reply = ask(&mut app, "GET", target);
                assert_ne!(reply.status, Status::InternalServerError);
                assert_eq!((reply.delay, reply.work), Default::default());
            }
            let reply = ask(&mut app, "POST", "/probe");
            assert_eq!((reply.delay, reply.work), Default::default());
            let reply = ask(&mut app, "GET", "/probe");
            if reply.status == Status::InternalServerError {
                assert_eq!((reply.delay, reply.work), Default::default());
                failed += 1;
            } else {
                assert_eq!(reply.work, work);
                delayed += u32::from(!reply.delay.is_zero());
            }
        }
        assert!(failed > 0 && delayed > 0);
        assert_eq!(failed + delayed, 100);
    }

    #[test]
    fn a_scrape_includes_the_requests_completed_before_it() {
        let mut app = app();
        for count in 0..3 {
            let reply = app.answer(&Request::new("GET", "/metrics"));
            let text = String::from_utf8(reply.body().to_vec()).unwrap();
            let line = format!(
                "app_request_count_total{{endpoint=\"/metrics\",http_status=\"200\",method=\"GET\"}} {count}\n"
            );
            assert_eq!(text.contains(&line), count > 0, "{text}");
            app.ended(Ended::of(reply, Outcome::Responded));
        }
    }

    #[test]
    fn an_exposition_reuses_the_memory_of_the_last_one() {
        let mut app = app();
        let last = app.answer(&Request::new("GET", "/metrics"));
        let memory = Vec::with_capacity(100_000);
        app.ended(Ended {
            body: memory.into(),
            ..Ended::of(last, Outcome::Responded)
        });
        // Another response on the path does not replace it.
        let not_allowed = app.answer(&Request::new("POST", "/metrics"));
        app.ended(Ended::of(not_allowed, Outcome::Responded));
        match app
            .answer(&Request::new("GET", "/metrics"))
            .split()
            .0
            .into_body()
        {
            Cow::Owned(body) => assert_eq!(body.capacity(), 100_000),
            Cow::Borrowed(body) => panic!("{body:?}"),
        }
    }

    #[test]
    fn the_web_page_escapes_values_from_the_command_line() {
        let mut app = App::new(&Config {
            app_version: "<script>&\"".into(),
            ..Config::default()
        });
        let page = ask(&mut app, "GET", "/").body;
        assert!(page.contains("&lt;script&gt;&amp;&quot;"), "{page}");
        assert_eq!(page.matches("<script>").count(), 1, "{page}");
    }

    #[test]
    fn the_web_page_shows_the_settings_in_force() {
        let mut app = app_with_faults();
        assert!(ask(&mut app, "GET", "/").body.contains("\nslow-rate=0\n"));
        ask(&mut app, "PUT", "/faults?slow-rate=0.5");
        let page = ask(&mut app, "GET", "/").body;
        assert!(page.contains("\nslow-rate=0.5\n"), "{page}");
        assert!(page.contains("data-targets=\"probe\""), "{page}");
    }

    fn app_with_faults() -> App {
        App::new(&Config {
            fault_injection: FaultInjection::On,
            random_seed: Some(1),
            ..Config::default()
        })
    }

    #[test]
    fn settings_can_be_read_changed_and_reverted() {
        let mut app = app_with_faults();
        let at_start = ask(&mut app, "GET", "/faults").body;
        assert!(at_start.starts_with("fail-rate=0\nfail-with=500\n"));
        let reply = ask(&mut app, "PUT", "/faults?fail-rate=1&for=86400s");
        assert_eq!((reply.status, reply.content_type), (Status::Ok, TEXT));
        assert_eq!(reply.endpoint, "/faults");
        assert!(reply.body.starts_with("fail-rate=1\n"), "{}", reply.body);
        assert!(reply.body.ends_with("\nfor=86400s\n"));
        for target in ["/probe", "http://a/probe?fail-rate=0"] {
            let reply = ask(&mut app, "GET", target);
            assert_eq!(reply.status, Status::InternalServerError);
        }
        for target in ["/", "/healthz", "/metrics", "/faults"] {
            assert_eq!(ask(&mut app, "GET", target).status, Status::Ok, "{target}");
        }

        let reply = ask(&mut app, "DELETE", "/faults");
        assert_eq!(reply.body, at_start);
        assert_eq!(ask(&mut app, "GET", "/probe").status, Status::Ok);
    }

    #[test]
    fn an_invalid_change_gets_a_400_and_changes_nothing() {
        let mut app = app_with_faults();
        let before = ask(&mut app, "GET", "/faults").body;
        let reply = ask(&mut app, "PUT", "/faults?latency=1s&fail-rate=2");
        assert_eq!(reply.status, Status::BadRequest);
        assert_eq!(
            reply.body,
            "fail-rate=2: expected a number from 0 to 1, such as 0.01\n"
        );
        for method in ["POST", "PATCH", "put", "OPTIONS"] {
            let reply = ask(&mut app, method, "/faults?fail-rate=1");
            let is_options = method == "OPTIONS";
            assert_eq!(reply.status == Status::NoContent, is_options, "{method}");
            assert_eq!(
                reply.allow,
                Some("GET, HEAD, PUT, DELETE, OPTIONS".to_owned())
            );
        }
        assert_eq!(ask(&mut app, "GET", "/faults").body, before);
    }

    #[test]
    fn without_fault_injection_faults_is_not_found_and_queries_are_ignored() {
        let mut app = app();
        for method in ["GET", "PUT", "DELETE", "POST"] {
            let reply = ask(&mut app, method, "/faults?fail-rate=1");
            assert_eq!(reply.status, Status::NotFound);
            assert_eq!((reply.endpoint, reply.allow), ("other", None));
        }
        for target in ["/probe?status=503&delay=1s", "/probe?status=x&status=%zz"] {
            let reply = ask(&mut app, "GET", target);
            assert_eq!((reply.status, reply.delay), (Status::Ok, Duration::ZERO));
        }
    }

    #[test]
    fn a_request_for_its_own_response_draws_no_random_numbers() {
        let draws = |own_target: Option<&str>| -> Vec<Duration> {
            let mut app = app_with_faults();
            ask(&mut app, "PUT", "/faults?latency=1s&work=1s");
            let draw = |_| {
                if let Some(own_target) = own_target {
                    let reply = ask(&mut app, "GET", own_target);
                    assert_eq!(reply.status, Status::ServiceUnavailable);
                    assert_eq!(reply.delay, Duration::from_millis(250));
                    assert_eq!(reply.work, Duration::ZERO);
                }
                ask(&mut app, "GET", "/probe").delay
            };
            (0..10).map(draw).collect()
        };
        assert_eq!(draws(None), draws(Some("/probe?status=503&delay=250ms")));

        let mut app = app_with_faults();
        ask(&mut app, "PUT", "/faults?fail-rate=1");
        let reply = ask(&mut app, "HEAD", "/probe?delay=1s");
        assert_eq!((reply.status, &*reply.body), (Status::Ok, SUCCESS));
        let reply = ask(&mut app, "GET", "/probe?status=418");
        assert_eq!(reply.status, Status::BadRequest);
        assert!(
            reply
                .body
                .starts_with("status=418: expected a status (200, 400, ")
        );
        let reply = ask(&mut app, "POST", "/probe?status=200");
        assert_eq!(reply.status, Status::MethodNotAllowed);
    }

    #[test]
    fn a_scrape_shows_the_settings_in_force() {
        let mut app = app_with_faults();
        let now = Instant::now();
        let mut ask = |method, target, seconds| {
            let now = now + Duration::from_secs(seconds);
            let reply = ask_at(&mut app, method, target, now);
            let lines = reply.body.lines();
            let lines = lines.filter_map(|line| line.strip_prefix("app_configured_"));
            lines.collect::<Vec<_>>().join(", ")
        };
        let at_start = "fail_latency_seconds 0, fail_ratio 0, latency_seconds 0, slow_latency_seconds 9, slow_ratio 0, work_seconds 0";
        assert_eq!(ask("GET", "/metrics", 0), at_start);
        let change = "/faults?fail-rate=.2&fail-latency=7s&slow-rate=.1&latency=3s&slow-latency=4s&work=5ms&for=1m";
        ask("PUT", change, 0);
        assert_eq!(
            ask("GET", "/metrics", 59),
            "fail_latency_seconds 7, fail_ratio 0.2, latency_seconds 3, slow_latency_seconds 4, slow_ratio 0.1, work_seconds 0.005"
        );
        assert_eq!(ask("GET", "/metrics", 60), at_start);
    }

    #[test]
    fn wrong_ways_to_change_settings_get_a_hint() {
        let mut app = app_with_all_faults();
        let before = ask(&mut app, "GET", "/faults").body;
        for (method, target, status, text) in [
            (
                "GET",
                "/faults?fail-rate=1",
                Status::BadRequest,
                GET_CHANGES_NOTHING,
            ),
            (
                "HEAD",
                "/faults/metrics?fail-rate=1",
                Status::BadRequest,
                GET_CHANGES_NOTHING,
            ),
            (
                "POST",
                "/faults?fail-rate=1",
                Status::MethodNotAllowed,
                HOW_TO_CHANGE,
            ),
        ] {
            let reply = ask(&mut app, method, target);
            assert_eq!((reply.status, &*reply.body), (status, text));
        }
        let length = |value: &'static str| Field {
            name: "Content-Length",
            value: value.as_bytes(),
        };
        for (value, is_rejected) in [("11", true), ("010", true), ("0", false), ("", false)] {
            let fields = [length(value)];
            let request = Request::new("PUT", "/faults?work=0s").with_fields(&fields);
            let reply = app.answer(&request);
            assert_eq!(
                reply.body() == BODY_IS_NOT_READ.as_bytes(),
                is_rejected,
                "{value}"
            );
            let request = Request::new("DELETE", "/faults").with_fields(&fields);
            assert_eq!(app.answer(&request).status(), Status::Ok);
        }
        assert_eq!(ask(&mut app, "GET", "/faults?").body, before);
        assert!(HOW_TO_CHANGE.contains(CHANGE.allow));
    }

    #[test]
    fn a_page_of_another_host_cannot_change_settings() {
        let mut app = App::new(&Config {
            fault_injection: FaultInjection::On,
            allowed_host: Some("probe.test".into()),
            ..Config::default()
        });
        let field = |name, value: &'static str| Field {
            name,
            value: value.as_bytes(),
        };
        for (host, origin, status) in [
            ("probe.test", "http://probe.test", Status::Ok),
            ("localhost", "http://localhost", Status::Ok),
            ("evil.test", "http://evil.test", Status::Forbidden),
            ("localhost", "http://evil.test", Status::Forbidden),
        ] {
            let fields = [field("Host", host), field("Origin", origin)];
            for (method, target) in [("PUT", "/faults?fail-rate=1"), ("DELETE", "/faults")] {
                let request = Request::new(method, target).with_fields(&fields);
                assert_eq!(app.answer(&request).status(), status, "{method} {origin}");
                // Reading is always allowed.
                let request = Request::new("GET", "/faults").with_fields(&fields);
                assert_eq!(app.answer(&request).status(), Status::Ok);
            }
        }
    }

    #[test]
    fn without_fault_injection_a_field_says_that_the_query_is_ignored() {
        let field = |app: &mut App, target| {
            let reply = app.answer(&Request::new("GET", target));
            let mut fields = reply.fields();
            let field = fields.find(|(name, _)| *name == "X-Fault-Injection");
            field.is_some()
        };
        for (target, is_expected) in [
            ("/probe?status=503", true),
            ("/probe?x&fail-with=reset", true),
            ("/probe?delay", true),
            ("/probe?x=status", false),
            ("/probe", false),
            ("/healthz?status=503", false),
        ] {
            assert_eq!(field(&mut app(), target), is_expected, "{target}");
            assert!(!field(&mut app_with_faults(), target), "{target}");
        }
    }

    #[test]
    fn the_service_is_ready_until_it_is_told_to_stop() {
        let is_stopping = Arc::new(AtomicBool::new(false));
        let mut app = app().stopping_when(Arc::clone(&is_stopping));
        assert_eq!(ask(&mut app, "GET", "/readyz").status, Status::Ok);
        is_stopping.store(true, Ordering::Relaxed);
        let reply = ask(&mut app, "GET", "/readyz");
        assert_eq!(reply.status, Status::ServiceUnavailable);
        assert_eq!(reply.body, "not ready\n");
        assert_eq!(ask(&mut app, "GET", "/healthz").status, Status::Ok);
    }

    #[test]
    fn a_failure_that_is_an_ending_has_the_ordinary_status_and_body() {
        let mut app = app_with_all_faults();
        for (target, body) in [("probe", "I'm ok!"), ("readyz", "ready\n")] {
            let change = format!("/faults/{target}?fail-rate=1&fail-with=cut&for=1m");
            assert_eq!(ask(&mut app, "PUT", &change).status, Status::Ok);
            let reply = app.answer(&Request::new("GET", &format!("/{target}")));
            assert_eq!((reply.status(), reply.ending()), (Status::Ok, Ending::Cut));
            assert_eq!(reply.body(), body.as_bytes());
        }
        assert_eq!(ask(&mut app, "GET", "/healthz").status, Status::Ok);
    }

    /// They are grouped by target, and are the commands of docs/alerts.md apart from `for`.
    #[test]
    fn the_web_page_offers_the_kinds_of_alert_that_are_one_change() {
        let (_, kinds) = include_str!("page/script.js")
            .split_once("const KINDS = `")
            .unwrap();
        let (kinds, _) = kinds.split_once('`').unwrap();
        let mut app = app_with_all_faults();
        let mut path = String::new();
        let mut offered = Vec::new();
        for line in kinds.lines() {
            let Some((_, query)) = line.split_once(": ") else {
                path = format!("/faults/{line}?").replace("/probe", "");
                continue;
            };
            // The page adds its `for`, unless the kind takes it away.
            let (query, end) = match query.strip_suffix("&for=") {
                Some(query) => (query, ""),
                None => (query, "&for=3m"),
            };
            let change = format!("{path}{query}");
            let reply = ask(&mut app, "PUT", &format!("{change}{end}"));
            assert_eq!(reply.status, Status::Ok, "{line}: {}", reply.body);
            offered.push(change);
        }
        let documented = include_str!("../docs/alerts.md");
        let (_, catalogue) = documented.split_once("\n## The catalogue\n").unwrap();
        let mut documented: Vec<_> = catalogue
            .split("curl -X PUT 'localhost:808")
            .skip(1)
            .map(|rest| {
                // After the port's last digit.
                let command = rest[1..].split('\'').next().unwrap();
                command.split("&for=").next().unwrap()
            })
            .collect();
        documented.sort_unstable();
        documented.dedup();
        offered.sort_unstable();
        assert_eq!(offered, documented);
    }

    fn app_with_all_faults() -> App {
        App::new(&Config {
            fault_injection: FaultInjection::All,
            random_seed: Some(1),
            ..Config::default()
        })
    }

    fn ask_and_record(app: &mut App, method: &str, target: &str) {
        record(app, &Request::new(method, target));
    }

    fn record(app: &mut App, request: &Request<'_>) {
        let reply = app.answer(request);
        let is_allowed = reply.fields().all(|(name, _)| name != "Allow");
        let route = app.route(request.path());
        let may_be_delayed =
            is_allowed && route.is_some_and(|index| ROUTES[index].target.is_some());
        let outcome = if reply.ending().is_silent() {
            Outcome::Dropped
        } else {
            Outcome::Responded
        };
        app.ended(Ended::of(reply, outcome));
        // A client can disconnect before its delayed response.
        if may_be_delayed {
            let reply = app.answer(request);
            app.ended(Ended::of(reply, Outcome::Disconnected));
        }
        if !app.is_urgent(request) {
            let exchange = app.refuse(request).unwrap();
            let reply = Reply::text(Status::ServiceUnavailable, "").remember(exchange);
            app.ended(Ended::of(reply, Outcome::Responded));
        }
    }

    /// Records every kind of request, so that every series exists.
    #[test]
    fn the_documentation_says_how_many_series_there_can_be() {
        let mut app = app_with_all_faults();
        let methods = [
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW",
        ];
        let statuses = FailWith::STATUSES.map(Status::label);
        for how in statuses.into_iter().chain(["hang"]) {
            for route in ["probe", "metrics", "healthz", "readyz"] {
                let change = format!("/faults/{route}?fail-rate=1&fail-with={how}&for=1h");
                ask(&mut app, "PUT", &change);
                for method in methods {
                    ask_and_record(&mut app, method, &format!("/{route}"));
                }
            }
        }
        ask(&mut app, "DELETE", "/faults");
        app.is_stopping.store(true, Ordering::Relaxed);
        for target in [
            "/",
            "/probe?status=",
            "/probe",
            "/metrics",
            "/healthz",
            "/readyz",
            "/nope",
            "*",
            "/faults?work=0s",
            "/faults?",
        ] {
            for method in methods {
                ask_and_record(&mut app, method, target);
            }
        }
        let origin = [Field {
            name: "Origin",
            value: b"null",
        }];
        for method in methods {
            let request = Request::new(method, "/faults").with_fields(&origin);
            record(&mut app, &request);
        }
        for rejection in [
            Status::BadRequest,
            Status::RequestTimeout,
            Status::LengthRequired,
            Status::ContentTooLarge,
            Status::UriTooLong,
            Status::RequestHeaderFieldsTooLarge,
            Status::NotImplemented,
            Status::HttpVersionNotSupported,
        ] {
            let reply = app.answer(&Request::new("GET", "/"));
            let rejected = Ended {
                memo: None,
                status: rejection,
                body_length: 0,
                ..Ended::of(reply, Outcome::Rejected)
            };
            app.ended(rejected);
        }
        let exposition = ask(&mut app, "GET", "/metrics").body;
        let count = |name| {
            exposition
                .lines()
                .filter(|line| line.starts_with(name))
                .count()
        };
        let expected = format!(
            "{} series of the histogram and {} of the counter",
            count("app_request_latency_seconds_"),
            count("app_request_count_total{")
        );
        let document = include_str!("../docs/metrics.md").replace('\n', " ");
        assert!(document.contains(&expected), "{expected}");
    }
}
