//! The routes: a [`Request`] in, a [`Reply`] out.
//!
//! This module knows no socket and no HTTP library. To add a route, add an [`Endpoint`] and an
//! arm in `endpoint` and in [`App::answer`].

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::faults::{Faults, OwnFault};
use crate::http::{self, Method, Status};
use crate::metrics::{Endpoint, Format, Metrics};
use crate::probe::{Outcome, Probe};
use crate::trace_context::TraceContext;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// What a /probe says that succeeds.
const SUCCESS: &str = "I'm ok!";

/// The body of the 503 when every connection is taken.
const TOO_BUSY: &str = "Every connection is taken. Try again later.\n";
/// The body of the 503 for delayed responses that the end of the service does not wait for.
const STOPPING: &str = "The service is stopping. Try again elsewhere, or later.\n";

/// What a route allows that only shows something.
const ALLOW: &str = "GET, HEAD, OPTIONS";
/// What /faults allows. A page in somebody's browser can send neither PUT nor DELETE to another
/// origin without a preflight, and no answer here grants one.
const ALLOW_CHANGES: &str = "GET, HEAD, PUT, DELETE, OPTIONS";

/// The service without its sockets.
pub struct App {
    probe: Probe,
    faults: Faults,
    fault_injection: bool,
    metrics: Metrics,
    landing_page: String,
}

/// What the service looks at in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method, as the client sent it.
    pub method: &'a str,
    /// The request target, in any of its forms (RFC 9112, section 3.2).
    pub target: &'a str,
    /// The value of `Accept`, if it is there once. Several are one list (RFC 9110, section 5.3), but
    /// nobody who scrapes sends several, and to put them together would take an allocation.
    pub accept: Option<&'a [u8]>,
    /// The value of `traceparent`, if it is there once. Several are as good as none (Trace Context,
    /// section 3.2).
    pub traceparent: Option<&'a [u8]>,
}

/// What to answer to one request, and when.
#[derive(Debug)]
pub struct Reply {
    /// The `method` label.
    pub method: Method,
    /// The `endpoint` label.
    pub endpoint: Endpoint,
    /// The status code, and the `http_status` label.
    pub status: Status,
    /// The value of `Allow`, in a 405 and in the answer to OPTIONS.
    pub allow: Option<&'static str>,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Cow<'static, str>,
    /// Whether it is a HEAD that is answered: the body is announced and not sent.
    pub is_to_head: bool,
    /// How long the answer is to wait.
    pub delay: Duration,
    /// How much CPU time it takes after that, to be spent by [`probe::work`](crate::probe::work).
    pub work: Duration,
    /// Whether the client should try again soon: the response has a `Retry-After` of a second.
    pub is_retryable: bool,
    /// Whether the request changed the fault settings, or when the change to them ends; the body
    /// lists the new ones. Each change is announced on standard error.
    pub is_change: bool,
    /// The trace that the request belongs to, if it is sampled.
    pub trace: Option<TraceContext>,
}

impl App {
    /// A service that behaves as configured, with its metrics at zero.
    pub fn new(config: &Config) -> Self {
        Self {
            probe: Probe::new(config.random_seed),
            faults: Faults::new(config),
            fault_injection: config.fault_injection,
            metrics: Metrics::new(&config.app_version, &config.app_config),
            landing_page: landing_page(&config.app_version, &config.app_config),
        }
    }

    /// Answers a request. `now` is the `Instant` that was taken before.
    pub fn answer(&mut self, request: &Request<'_>, now: Instant) -> Reply {
        let method = Method::parse(request.method);
        let (path, query) = path_and_query(request.target);
        let endpoint = self.endpoint(path);
        let mut reply = match endpoint {
            // Of the server as a whole (RFC 9110, section 9.3.7).
            Endpoint::Other if method == Method::Options && request.target == "*" => {
                Reply::options(ALLOW)
            }
            // It names a host and no path (RFC 9112, section 3.2.3).
            Endpoint::Other if method == Method::Connect => Reply::method_not_allowed(),
            Endpoint::Other => Reply::error(
                Status::NotFound,
                "Not found. Try /probe, /metrics or /healthz.\n",
            ),
            Endpoint::Faults => self.faults(method, query, now),
            _ if method == Method::Options => Reply::options(ALLOW),
            _ if !matches!(method, Method::Get | Method::Head) => Reply::method_not_allowed(),
            Endpoint::Root => Reply::ok(HTML, self.landing_page.clone()),
            Endpoint::Probe => self.probe(query, now),
            Endpoint::Metrics => {
                let format = Format::preferred(request.accept);
                let page = self.metrics.exposition(format, self.faults.settings(now));
                Reply::ok(format.content_type(), page)
            }
            Endpoint::Healthz => Reply::ok(TEXT, "ok"),
        };
        (reply.method, reply.endpoint) = (method, endpoint);
        reply.is_to_head = method == Method::Head;
        reply.trace = request.traceparent.and_then(TraceContext::sampled);
        reply
    }

    /// The endpoint of a path. Without fault injection, /faults is not one.
    fn endpoint(&self, path: &str) -> Endpoint {
        match endpoint(path) {
            Endpoint::Faults if !self.fault_injection => Endpoint::Other,
            endpoint => endpoint,
        }
    }

    fn probe(&mut self, query: &str, now: Instant) -> Reply {
        if self.fault_injection {
            match OwnFault::parse(query) {
                Ok(None) => {}
                Ok(Some(own)) => return own_fault(own),
                Err(error) => return Reply::error(Status::BadRequest, error),
            }
        }
        let settings = self.faults.settings(now);
        match self.probe.draw(settings) {
            Outcome::Succeed(delay) => Reply {
                delay,
                work: settings.work,
                ..Reply::ok(TEXT, SUCCESS)
            },
            Outcome::Fail => Reply::error(
                Status::InternalServerError,
                "Failed, as often as the fail rate says.\n",
            ),
        }
    }

    fn faults(&mut self, method: Method, query: &str, now: Instant) -> Reply {
        let is_change = match method {
            Method::Get | Method::Head => false,
            Method::Put => match self.faults.change(query, now) {
                Ok(is_change) => is_change,
                Err(error) => return Reply::error(Status::BadRequest, error),
            },
            Method::Delete => self.faults.take_back(now),
            Method::Options => return Reply::options(ALLOW_CHANGES),
            _ => {
                return Reply {
                    allow: Some(ALLOW_CHANGES),
                    ..Reply::method_not_allowed()
                };
            }
        };
        Reply {
            is_change,
            ..Reply::ok(TEXT, self.faults.page(now))
        }
    }

    /// Whether a request must be answered even when every connection is taken: those with which an
    /// operator sees that this is so, and ends it.
    pub fn is_urgent(&self, request: &Request<'_>) -> bool {
        let (path, _) = path_and_query(request.target);
        matches!(
            self.endpoint(path),
            Endpoint::Healthz | Endpoint::Metrics | Endpoint::Faults
        )
    }

    /// Refuses a request for which there is no room.
    pub fn refuse(&self, request: &Request<'_>) -> Reply {
        let method = Method::parse(request.method);
        let (path, _) = path_and_query(request.target);
        Reply {
            method,
            endpoint: self.endpoint(path),
            is_to_head: method == Method::Head,
            trace: request.traceparent.and_then(TraceContext::sampled),
            ..Reply::error(Status::ServiceUnavailable, TOO_BUSY).with_retry()
        }
    }

    /// Records an answered request, by which a later scrape shows it. `latency` runs from before
    /// [`answer`](Self::answer) until the answer is due.
    pub fn record(&self, reply: &Reply, latency: Duration) {
        self.metrics.record(
            reply.method,
            reply.endpoint,
            reply.status,
            latency,
            reply.trace,
        );
    }

    /// Puts back a reply that was written, for the next page to be written into its memory.
    pub fn put_back(&self, reply: Reply) {
        if let (Endpoint::Metrics, Cow::Owned(page)) = (reply.endpoint, reply.body) {
            self.metrics.put_back(page);
        }
    }

    /// The metrics, for the server to keep the gauges of connections.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

impl<'a> Request<'a> {
    /// A request with no header field that matters.
    pub fn new(method: &'a str, target: &'a str) -> Self {
        Self {
            method,
            target,
            accept: None,
            traceparent: None,
        }
    }
}

impl Reply {
    fn ok(content_type: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        Self {
            method: Method::Other,
            endpoint: Endpoint::Other,
            status: Status::Ok,
            allow: None,
            content_type,
            body: body.into(),
            is_to_head: false,
            delay: Duration::ZERO,
            work: Duration::ZERO,
            is_retryable: false,
            is_change: false,
            trace: None,
        }
    }

    /// Whether another `Accept` would have got another body, which is for `Vary` to say.
    pub fn varies_by_accept(&self) -> bool {
        self.endpoint == Endpoint::Metrics && self.status == Status::Ok
    }

    /// The answer to what could not be parsed: `other` for method and endpoint. The body tells the
    /// client what was wrong.
    pub fn error(status: Status, body: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            ..Self::ok(TEXT, body)
        }
    }

    /// The same request's response when it can be delayed no longer.
    #[must_use]
    pub fn unavailable(self) -> Self {
        Self {
            method: self.method,
            endpoint: self.endpoint,
            is_to_head: self.is_to_head,
            trace: self.trace,
            ..Self::error(Status::ServiceUnavailable, STOPPING).with_retry()
        }
    }

    fn with_retry(self) -> Self {
        Self {
            is_retryable: true,
            ..self
        }
    }

    /// Whether a body, or what a HEAD is told of it, belongs to the answer: a 204 ends with its head
    /// (RFC 9110, sections 8.6 and 15.3.5).
    pub fn has_body(&self) -> bool {
        self.status != Status::NoContent
    }

    /// The answer to OPTIONS. No field of it grants a browser's preflight anything.
    fn options(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::error(Status::NoContent, "")
        }
    }

    fn method_not_allowed() -> Self {
        Self {
            allow: Some(ALLOW),
            ..Self::error(
                Status::MethodNotAllowed,
                "Method not allowed. Try GET or HEAD.\n",
            )
        }
    }
}

/// The answer that a request asks for itself.
fn own_fault(own: OwnFault) -> Reply {
    let reply = match own.status {
        Status::Ok => Reply::ok(TEXT, SUCCESS),
        status => Reply::error(status, "As the request asks.\n"),
    };
    Reply {
        delay: own.delay,
        ..reply
    }
}

/// Path and query of a request target in origin-form or absolute-form (RFC 9112, section 3.2).
fn path_and_query(target: &str) -> (&str, &str) {
    if target.starts_with('/') {
        return split_query(target);
    }
    match http::after_authority(target).map(split_query) {
        Some(("", query)) => ("/", query),
        Some(path_and_query) => path_and_query,
        None => (target, ""),
    }
}

fn split_query(target: &str) -> (&str, &str) {
    match target.bytes().position(|byte| byte == b'?') {
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None => (target, ""),
    }
}

fn endpoint(path: &str) -> Endpoint {
    match path {
        "/" => Endpoint::Root,
        "/probe" => Endpoint::Probe,
        "/metrics" => Endpoint::Metrics,
        "/healthz" => Endpoint::Healthz,
        "/faults" => Endpoint::Faults,
        _ => Endpoint::Other,
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
    use super::*;

    fn app() -> App {
        App::new(&Config::default())
    }

    fn ask(app: &mut App, method: &str, target: &str) -> Reply {
        app.answer(&Request::new(method, target), Instant::now())
    }

    #[test]
    fn every_route_answers_get_and_head_alike() {
        for (target, endpoint, content_type, body) in [
            ("/probe", Endpoint::Probe, TEXT, "I'm ok!"),
            ("/healthz", Endpoint::Healthz, TEXT, "ok"),
            ("/", Endpoint::Root, HTML, "<!doctype html>"),
            (
                "/metrics",
                Endpoint::Metrics,
                "text/plain; version=0.0.4; charset=utf-8",
                "# HELP app_configured_fail_ratio",
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
                assert_eq!(reply.allow, Some("GET, HEAD, OPTIONS"));
                assert_eq!(reply.endpoint.label(), target);
            }
        }
        assert_eq!(ask(&mut app(), "get", "/probe").method, Method::Other);
    }

    #[test]
    fn options_says_what_is_allowed_of_a_route_and_of_the_server() {
        for (target, endpoint) in [
            ("/", Endpoint::Root),
            ("/probe?x", Endpoint::Probe),
            ("/metrics", Endpoint::Metrics),
            ("/healthz", Endpoint::Healthz),
            ("http://a", Endpoint::Root),
            ("*", Endpoint::Other),
        ] {
            let reply = ask(&mut app(), "OPTIONS", target);
            assert_eq!(reply.status, Status::NoContent, "{target}");
            assert_eq!(reply.allow, Some("GET, HEAD, OPTIONS"), "{target}");
            assert_eq!((reply.endpoint, &*reply.body), (endpoint, ""));
        }
        assert_eq!(ask(&mut app(), "OPTIONS", "/nope").status, Status::NotFound);
    }

    #[test]
    fn connect_is_not_allowed_wherever_it_leads() {
        let reply = ask(&mut app(), "CONNECT", "a:443");
        assert_eq!(reply.status, Status::MethodNotAllowed);
        assert_eq!(reply.allow, Some("GET, HEAD, OPTIONS"));
        assert_eq!(reply.endpoint, Endpoint::Other);
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
                assert_eq!(reply.endpoint, Endpoint::Other);
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
            assert_eq!(ask(&mut app(), "GET", target).endpoint, Endpoint::Probe);
        }
        for target in ["/?x", "http://example.com", "http://example.com?x"] {
            assert_eq!(ask(&mut app(), "GET", target).endpoint, Endpoint::Root);
        }
    }

    #[test]
    fn only_probe_fails_is_delayed_and_works() {
        let work = Duration::from_millis(20);
        let mut app = App::new(&Config {
            fail_rate: 0.5,
            latency: Duration::from_secs(1),
            work,
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
            let page = ask(&mut app, "GET", "/metrics");
            let line = format!(
                "app_request_count_total{{endpoint=\"/metrics\",http_status=\"200\",method=\"GET\"}} {count}\n"
            );
            assert_eq!(page.body.contains(&line), count > 0, "{}", page.body);
            app.record(&page, Duration::ZERO);
        }
    }

    #[test]
    fn the_next_page_is_written_into_the_memory_of_the_last() {
        let mut app = app();
        let mut last = ask(&mut app, "GET", "/metrics");
        last.body = String::with_capacity(100_000).into();
        app.put_back(last);
        match ask(&mut app, "GET", "/metrics").body {
            Cow::Owned(page) => assert_eq!(page.capacity(), 100_000),
            Cow::Borrowed(page) => panic!("{page}"),
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
        assert!(at_start.starts_with("fail-rate=0\nslow-rate=0\n"));
        let reply = ask(&mut app, "PUT", "/faults?fail-rate=1&for=86400s");
        assert_eq!((reply.status, reply.content_type), (Status::Ok, TEXT));
        assert_eq!(reply.endpoint, Endpoint::Faults);
        assert!(reply.body.starts_with("fail-rate=1\n"), "{}", reply.body);
        assert!(reply.body.ends_with("\nfor=86400s\n") && reply.is_change);
        for target in ["/probe", "http://a/probe?fail-rate=0"] {
            let reply = ask(&mut app, "GET", target);
            assert_eq!(reply.status, Status::InternalServerError);
        }
        for target in ["/", "/healthz", "/metrics", "/faults"] {
            assert_eq!(ask(&mut app, "GET", target).status, Status::Ok, "{target}");
        }

        let reply = ask(&mut app, "DELETE", "/faults");
        assert_eq!(reply.body, at_start);
        assert!(reply.is_change);
        assert_eq!(ask(&mut app, "GET", "/probe").status, Status::Ok);
        assert!(!ask(&mut app, "DELETE", "/faults").is_change);
    }

    #[test]
    fn a_change_that_is_wrong_is_told_and_no_change() {
        let mut app = app_with_faults();
        let before = ask(&mut app, "GET", "/faults").body;
        let reply = ask(&mut app, "PUT", "/faults?latency=1s&fail-rate=2");
        assert_eq!(reply.status, Status::BadRequest);
        assert_eq!(
            reply.body,
            "fail-rate=2: expected a share from 0 to 1, such as 0.01\n"
        );
        assert!(!reply.is_change);
        for method in ["POST", "PATCH", "put", "OPTIONS"] {
            let reply = ask(&mut app, method, "/faults?fail-rate=1");
            let is_options = method == "OPTIONS";
            assert_eq!(reply.status == Status::NoContent, is_options, "{method}");
            assert_eq!(reply.allow, Some("GET, HEAD, PUT, DELETE, OPTIONS"));
        }
        assert_eq!(ask(&mut app, "GET", "/faults").body, before);
    }

    #[test]
    fn without_fault_injection_there_are_none() {
        let mut app = app();
        for method in ["GET", "PUT", "DELETE", "POST"] {
            let reply = ask(&mut app, method, "/faults?fail-rate=1");
            assert_eq!(reply.status, Status::NotFound);
            assert_eq!((reply.endpoint, reply.allow), (Endpoint::Other, None));
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
        assert!(reply.body.starts_with("status=418: expected 200, 429, "));
        let reply = ask(&mut app, "POST", "/probe?status=200");
        assert_eq!(reply.status, Status::MethodNotAllowed);
    }

    #[test]
    fn a_scrape_shows_what_is_configured_at_that_moment() {
        let mut app = app_with_faults();
        let now = Instant::now();
        let mut ask = |method, target, seconds| {
            let now = now + Duration::from_secs(seconds);
            let reply = app.answer(&Request::new(method, target), now);
            let lines = reply.body.lines();
            let lines = lines.filter_map(|line| line.strip_prefix("app_configured_"));
            lines.collect::<Vec<_>>().join(", ")
        };
        let at_start =
            "fail_ratio 0, latency_seconds 0, slow_latency_seconds 9, slow_ratio 0, work_seconds 0";
        assert_eq!(ask("GET", "/metrics", 0), at_start);
        let change = "/faults?fail-rate=.2&slow-rate=.1&latency=3s&slow-latency=4s&work=5ms&for=1m";
        ask("PUT", change, 0);
        assert_eq!(
            ask("GET", "/metrics", 59),
            "fail_ratio 0.2, latency_seconds 3, slow_latency_seconds 4, slow_ratio 0.1, work_seconds 0.005"
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
        let own = [200, 429, 500, 502, 503, 504, 0].map(|status| format!("/probe?status={status}"));
        let known = [
            "/",
            "/metrics",
            "/healthz",
            "/nope",
            "*",
            "/faults?work=0s",
            "/faults?",
        ];
        let targets = own.iter().map(|target| &**target).chain(known);
        for target in targets {
            for method in methods {
                let mut reply = ask(&mut app, method, target);
                app.record(&reply, Duration::ZERO);
                let request = Request::new(method, target);
                if !app.is_urgent(&request) {
                    app.record(&app.refuse(&request), Duration::ZERO);
                }
                // Only such replies are delayed, so that a client can disconnect before.
                if reply.endpoint == Endpoint::Probe && reply.allow.is_none() {
                    reply.status = Status::ClientClosedRequest;
                    app.record(&reply, Duration::ZERO);
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
            app.record(&Reply::error(rejection, ""), Duration::ZERO);
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
