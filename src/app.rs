//! The routes: a request in, a reply out, and a record of it afterwards.
//!
//! [`ROUTES`] is the table of all routes. To add one, add a line there and a function.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use bounded_http::{Ended, Method, Outcome, Reply, Request, Service, Status};
use prometheus::IntGauge;

use crate::config::{Config, FailWith};
use crate::faults::{Faults, OwnFault};
use crate::log::access::{AccessLog, Entry};
use crate::log::{diagnostics, line_writer};
use crate::metrics::{Endpoint, Format, Metrics};
use crate::probe::{self, Probe};
use crate::trace_context::TraceContext;
use crate::wall_clock;

/// A route: its path, its methods as `Allow` names them, and the function that answers. HEAD is
/// answered like GET, and OPTIONS from this table.
struct Route {
    path: &'static str,
    methods: &'static str,
    answer: fn(&mut App, &Request<'_>) -> Reply,
}

/// All routes.
#[rustfmt::skip]
const ROUTES: [Route; 5] = [
    Route { path: "/",        methods: READ,   answer: App::landing_page },
    Route { path: "/probe",   methods: READ,   answer: App::probe },
    Route { path: METRICS,    methods: READ,   answer: App::metrics_page },
    Route { path: "/healthz", methods: READ,   answer: healthz },
    Route { path: FAULTS,     methods: CHANGE, answer: App::faults },
];

const READ: &str = "GET, HEAD, OPTIONS";
/// A page in somebody's browser can send neither PUT nor DELETE to another origin without a preflight,
/// and no response here grants one.
const CHANGE: &str = "GET, HEAD, PUT, DELETE, OPTIONS";

const METRICS: &str = "/metrics";
const FAULTS: &str = "/faults";
/// The routes that are served even when every connection is taken: those with which an operator
/// sees that this is so, and ends it.
const URGENT: [&str; 3] = ["/healthz", METRICS, FAULTS];

const HTML: &str = "text/html; charset=utf-8";
/// The body of a successful /probe.
const SUCCESS: &str = "I'm ok!";
/// The body of a failure at the configured rate, and of one that a request asks for itself.
const FAILURE: &str = "Failed, as configured with fail-rate.\n";
const OWN_FAILURE: &str = "Failed, as this request asked.\n";

/// The service without its sockets.
pub struct App {
    probe: Probe,
    faults: Faults,
    fault_injection: bool,
    metrics: Metrics,
    access_log: AccessLog,
    landing_page: String,
}

/// What is remembered of a request until its exchange has ended: everything that is recorded.
pub struct Exchange {
    method: Method,
    endpoint: Endpoint,
    trace: Option<TraceContext>,
    log_entry: Option<Entry>,
    _in_flight: InFlight,
}

/// Counts a request as received and not yet answered, for as long as it exists.
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
        let exchange = self.begin(request);
        self.reply(request).remember(exchange)
    }

    fn refuse(&mut self, request: &Request<'_>) -> Option<Exchange> {
        Some(self.begin(request))
    }

    /// Records a request, by which a later scrape shows it.
    fn ended(&mut self, ended: Ended<Exchange>) {
        let status = match ended.outcome {
            Outcome::Responded | Outcome::Rejected => ended.status.label(),
            Outcome::Disconnected => "499",
            Outcome::Dropped => "444",
        };
        let rejected = || Exchange {
            method: Method::Other,
            endpoint: Endpoint::OTHER,
            trace: None,
            log_entry: self.access_log.begin(ended.peer, "", ""),
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
        if endpoint.label() == METRICS
            && let Cow::Owned(page) = ended.body
        {
            self.metrics.reuse(page);
        }
    }

    fn is_urgent(&self, request: &Request<'_>) -> bool {
        let route = self.route(request.path());
        route.is_some_and(|(_, route)| URGENT.contains(&route.path))
    }

    fn connections_changed(&mut self, open: usize) {
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.metrics.connections_open().set(open);
    }

    fn before_wait(&mut self) -> Option<Duration> {
        self.flush_logs()
    }

    fn report(&mut self, message: &dyn Display) {
        diagnostics::report(message);
    }
}

impl App {
    /// A service that behaves as configured, with its metrics at zero.
    pub fn new(config: &Config) -> Self {
        let metrics = Metrics::new(ROUTES.len(), &config.app_version, &config.app_config);
        let app = Self {
            probe: Probe::new(config.random_seed),
            faults: Faults::new(config),
            fault_injection: config.fault_injection,
            metrics,
            access_log: AccessLog::new(config.access_log),
            landing_page: landing_page(&config.app_version, &config.app_config),
        };
        app.expose_probe(config);
        app
    }

    /// Exposes the series of every status with which /probe can be told to respond, at 0.
    fn expose_probe(&self, config: &Config) {
        let probe = self.endpoint("/probe");
        let configured = ["200", "500", config.probe.fail_with.recorded_as()];
        self.metrics.expose(Method::Get, probe, configured);
        if self.fault_injection {
            let statuses = self.faults.recorded_statuses();
            self.metrics.expose(Method::Get, probe, statuses);
        }
    }

    /// The metrics, for the gauges of connections.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The access log, for its last lines. Clones are of one log.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// Writes the lines of both logs. Returns after which time to try again if there was no room
    /// for all of them.
    pub fn flush_logs(&self) -> Option<Duration> {
        let is_full = self.access_log.flush() | diagnostics::flush();
        is_full.then_some(line_writer::PAUSE)
    }

    fn begin(&self, request: &Request<'_>) -> Exchange {
        let traceparent = request.field("traceparent");
        let (method, target) = (request.method_text(), request.target());
        Exchange {
            method: request.method(),
            endpoint: self.endpoint(request.path()),
            trace: traceparent.and_then(TraceContext::sampled),
            log_entry: self.access_log.begin(request.peer(), method, target),
            _in_flight: InFlight::new(self.metrics.requests_in_flight()),
        }
    }

    fn reply(&mut self, request: &Request<'_>) -> Reply {
        let method = request.method();
        let Some((_, route)) = self.route(request.path()) else {
            return match method {
                // Of the server as a whole (RFC 9110, section 9.3.7).
                Method::Options if request.target() == "*" => Reply::options(READ),
                // It names a host and no path (RFC 9112, section 3.2.3).
                Method::Connect => Reply::method_not_allowed(READ),
                _ => Reply::text(
                    Status::NotFound,
                    "Not found. Try /probe, /metrics or /healthz.\n",
                ),
            };
        };
        if method == Method::Options {
            Reply::options(route.methods)
        } else if route.methods.split(", ").any(|name| name == method.label()) {
            (route.answer)(self, request)
        } else {
            Reply::method_not_allowed(route.methods)
        }
    }

    /// The route of a path, and its index. Without fault injection, /faults is none.
    fn route(&self, path: &str) -> Option<(usize, &'static Route)> {
        let route = |(_, route): &(usize, &Route)| route.path == path;
        let found = ROUTES.iter().enumerate().find(route);
        found.filter(|(_, route)| self.fault_injection || route.path != FAULTS)
    }

    fn endpoint(&self, path: &str) -> Endpoint {
        self.route(path).map_or(Endpoint::OTHER, |(index, route)| {
            Endpoint::of_route(index, route.path)
        })
    }

    fn landing_page(&mut self, _: &Request<'_>) -> Reply {
        let page = self.landing_page.clone().into_bytes();
        Reply::new(Status::Ok, HTML, page)
    }

    fn metrics_page(&mut self, request: &Request<'_>) -> Reply {
        let format = Format::preferred(request.field("Accept"));
        let settings = self.faults.settings(request.received_at());
        let page = self.metrics.exposition(format, settings).into_bytes();
        Reply::new(Status::Ok, format.content_type(), page).field("Vary", "Accept")
    }

    fn probe(&mut self, request: &Request<'_>) -> Reply {
        if self.fault_injection {
            match self.faults.own(request.query()) {
                Ok(None) => {}
                Ok(Some(own)) => return own_response(own),
                Err(error) => return Reply::text(Status::BadRequest, error),
            }
        }
        let settings = self.faults.settings(request.received_at());
        let success = Reply::text(Status::Ok, SUCCESS);
        match self.probe.draw(settings) {
            probe::Outcome::Succeed(delay) => success.after(delay).work(settings.work),
            probe::Outcome::Fail(delay) => {
                failure(settings.fail_with, success, FAILURE).after(delay)
            }
        }
    }

    fn faults(&mut self, request: &Request<'_>) -> Reply {
        let now = request.received_at();
        let is_change = match request.method() {
            Method::Put => match self.faults.change(request.query(), now) {
                Ok(is_change) => is_change,
                Err(error) => return Reply::text(Status::BadRequest, error),
            },
            Method::Delete => self.faults.take_back(now),
            _ => false,
        };
        let page = self.faults.page(now);
        if let (true, Some(peer)) = (is_change, request.peer()) {
            diagnostics::announce_change(peer, &page);
        }
        Reply::text(Status::Ok, page)
    }
}

fn healthz(_: &mut App, _: &Request<'_>) -> Reply {
    Reply::text(Status::Ok, "ok")
}

/// The response that a request asks for itself.
fn own_response(own: OwnFault) -> Reply {
    let success = Reply::text(Status::Ok, SUCCESS);
    let reply = match own.fail_with {
        None => success,
        Some(fail_with) => failure(fail_with, success, OWN_FAILURE),
    };
    reply.after(own.delay)
}

/// A failure in place of the ordinary response, which may be needed for it.
fn failure(fail_with: FailWith, ordinary: Reply, text: &'static str) -> Reply {
    let status = match fail_with {
        FailWith::Status(status) => status,
        FailWith::Ending(ending) => return ordinary.ending(ending),
    };
    let reply = Reply::text(status, text);
    match status {
        Status::TooManyRequests | Status::ServiceUnavailable => reply.field("Retry-After", "1"),
        // It must be there (RFC 9110, section 15.5.2). Browsers ask for a password when it is Basic.
        Status::Unauthorized => reply.field("WWW-Authenticate", "Bearer"),
        _ => reply,
    }
}

/// The page at `/`: name, version and links, as Prometheus exporters have it.
fn landing_page(app_version: &str, app_config: &str) -> String {
    format!(
        include_str!("landing_page.html"),
        version = env!("CARGO_PKG_VERSION"),
        app_version = escape_html(app_version),
        app_config = escape_html(app_config),
    )
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::ProbeSettings;

    const TEXT: &str = "text/plain; charset=utf-8";

    /// A reply, and what is remembered with it, in a form that tests can compare.
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

    /// How an exchange ends if the response is sent.
    fn ended<M>(reply: Reply<M>, outcome: Outcome) -> Ended<M> {
        let status = reply.status();
        let (reply, memo) = reply.split();
        Ended {
            memo: Some(memo),
            outcome,
            status,
            body_length: reply.body().len(),
            duration: Duration::ZERO,
            peer: None,
            body: reply.into_body(),
        }
    }

    #[test]
    fn every_route_answers_get_and_head_alike() {
        for (target, endpoint, content_type, body) in [
            ("/probe", "/probe", TEXT, "I'm ok!"),
            ("/healthz", "/healthz", TEXT, "ok"),
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
        assert_eq!(ask(&mut app(), "GET", "/healthz").body, "ok");
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
    fn options_says_what_is_allowed_of_a_route_and_of_the_server() {
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
    fn connect_is_not_allowed_wherever_it_leads() {
        let reply = ask(&mut app(), "CONNECT", "a:443");
        assert_eq!(reply.status, Status::MethodNotAllowed);
        assert_eq!(reply.allow, Some("GET, HEAD, OPTIONS".to_owned()));
        assert_eq!(reply.endpoint, "other");
        assert_eq!(reply.method, Method::Connect);
    }

    #[test]
    fn another_path_is_not_found_whatever_the_method() {
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
    fn the_query_and_the_authority_do_not_matter() {
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
    fn only_probe_fails_is_delayed_and_works() {
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
    fn a_scrape_shows_the_requests_before_itself() {
        let mut app = app();
        for count in 0..3 {
            let page = app.answer(&Request::new("GET", "/metrics"));
            let text = String::from_utf8(page.body().to_vec()).unwrap();
            let line = format!(
                "app_request_count_total{{endpoint=\"/metrics\",http_status=\"200\",method=\"GET\"}} {count}\n"
            );
            assert_eq!(text.contains(&line), count > 0, "{text}");
            app.ended(ended(page, Outcome::Responded));
        }
    }

    #[test]
    fn the_next_page_is_written_into_the_memory_of_the_last() {
        let mut app = app();
        let last = app.answer(&Request::new("GET", "/metrics"));
        let memory = Vec::with_capacity(100_000);
        app.ended(Ended {
            body: memory.into(),
            ..ended(last, Outcome::Responded)
        });
        match app
            .answer(&Request::new("GET", "/metrics"))
            .split()
            .0
            .into_body()
        {
            Cow::Owned(page) => assert_eq!(page.capacity(), 100_000),
            Cow::Borrowed(page) => panic!("{page:?}"),
        }
    }

    #[test]
    fn the_landing_page_escapes_what_the_command_line_says() {
        let mut app = App::new(&Config {
            app_version: "<script>&\"".into(),
            ..Config::default()
        });
        let page = ask(&mut app, "GET", "/").body;
        assert!(page.contains("&lt;script&gt;&amp;&quot;"), "{page}");
        assert!(!page.contains("<script>"), "{page}");
    }

    fn app_with_faults() -> App {
        App::new(&Config {
            fault_injection: true,
            random_seed: Some(1),
            ..Config::default()
        })
    }

    #[test]
    fn faults_are_shown_changed_and_taken_back() {
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
    fn a_change_that_is_wrong_is_told_and_no_change() {
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
    fn without_fault_injection_there_are_none() {
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
    fn a_request_has_its_own_answer_and_no_draw() {
        let draws = |own: Option<&str>| -> Vec<Duration> {
            let mut app = app_with_faults();
            ask(&mut app, "PUT", "/faults?latency=1s&work=1s");
            let draw = |_| {
                if let Some(own) = own {
                    let reply = ask(&mut app, "GET", own);
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
    fn a_scrape_shows_what_is_configured_at_that_moment() {
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

    /// Every kind of request that can be recorded, and so every series.
    #[test]
    fn the_readme_says_how_many_series_there_can_be() {
        let mut app = app_with_faults();
        ask(&mut app, "PUT", "/faults?fail-rate=0.5");
        let methods = [
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW",
        ];
        let own = FailWith::STATUSES.map(|status| format!("/probe?status={}", status.label()));
        let known = [
            "/",
            "/metrics",
            "/healthz",
            "/nope",
            "*",
            "/faults?work=0s",
            "/faults?",
        ];
        let targets = own
            .iter()
            .map(|target| &**target)
            .chain(["/probe?status=", "/probe?fail-with=hang"])
            .chain(known);
        for target in targets {
            for method in methods {
                let request = Request::new(method, target);
                let reply = app.answer(&request);
                // Only such replies are delayed, so that a client can disconnect before.
                let is_allowed = reply.fields().all(|(name, _)| name != "Allow");
                let may_be_delayed = request.path() == "/probe" && is_allowed;
                let outcome = if reply.how().is_silent() {
                    Outcome::Dropped
                } else {
                    Outcome::Responded
                };
                app.ended(ended(reply, outcome));
                if may_be_delayed {
                    let reply = app.answer(&request);
                    app.ended(ended(reply, Outcome::Disconnected));
                }
                if !app.is_urgent(&request) {
                    let exchange = app.refuse(&request).unwrap();
                    let reply = Reply::text(Status::ServiceUnavailable, "").remember(exchange);
                    app.ended(ended(reply, Outcome::Responded));
                }
            }
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
            let reply = app.answer(&Request::new("GET", "/")).split().0;
            let rejected = Ended {
                memo: None,
                status: rejection,
                outcome: Outcome::Rejected,
                duration: Duration::ZERO,
                body_length: 0,
                peer: None,
                body: reply.into_body(),
            };
            app.ended(rejected);
        }
        let page = ask(&mut app, "GET", "/metrics").body;
        let count = |name| page.lines().filter(|line| line.starts_with(name)).count();
        let expected = format!(
            "{} series of the histogram and {} of the counter",
            count("app_request_latency_seconds_"),
            count("app_request_count_total{")
        );
        let readme = include_str!("../README.md").replace('\n', " ");
        assert!(readme.contains(&expected), "{expected}");
    }
}
