//! The routes: a [`Request`] in, a [`Reply`] out.
//!
//! This module knows no socket and no HTTP library. To add a route, add an [`Endpoint`] and an
//! arm in `endpoint` and in [`App::answer`].

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::http::{self, Method, Status};
use crate::metrics::{Endpoint, Format, Metrics};
use crate::probe::{Outcome, Probe};
use crate::trace_context::TraceContext;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// What every known route allows.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// The service without its sockets.
pub struct App {
    probe: Probe,
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
    /// The trace that the request belongs to, if it is sampled.
    pub trace: Option<TraceContext>,
}

impl App {
    /// A service that behaves as configured, with its metrics at zero.
    pub fn new(config: &Config) -> Self {
        Self {
            probe: Probe::new(config),
            metrics: Metrics::new(&config.app_version, &config.app_config),
            landing_page: landing_page(&config.app_version, &config.app_config),
        }
    }

    /// Answers a request. `_now` is the `Instant` that was taken before.
    pub fn answer(&mut self, request: &Request<'_>, _now: Instant) -> Reply {
        let method = Method::parse(request.method);
        let endpoint = endpoint(path(request.target));
        let reply = match endpoint {
            // Of the server as a whole (RFC 9110, section 9.3.7).
            Endpoint::Other if method == Method::Options && request.target == "*" => {
                Reply::options()
            }
            // It names a host and no path (RFC 9112, section 3.2.3).
            Endpoint::Other if method == Method::Connect => Reply::method_not_allowed(),
            Endpoint::Other => Reply::error(
                Status::NotFound,
                "Not found. Try /probe, /metrics or /healthz.\n",
            ),
            _ if method == Method::Options => Reply::options(),
            _ if !matches!(method, Method::Get | Method::Head) => Reply::method_not_allowed(),
            Endpoint::Root => Reply::ok(HTML, self.landing_page.clone()),
            Endpoint::Probe => self.probe(),
            Endpoint::Metrics => {
                let format = Format::preferred(request.accept);
                Reply::ok(format.content_type(), self.metrics.exposition(format))
            }
            Endpoint::Healthz => Reply::ok(TEXT, "ok"),
        };
        Reply {
            method,
            endpoint,
            is_to_head: method == Method::Head,
            trace: request.traceparent.and_then(TraceContext::sampled),
            ..reply
        }
    }

    fn probe(&mut self) -> Reply {
        match self.probe.draw() {
            Outcome::Succeed(delay) => Reply {
                delay,
                ..Reply::ok(TEXT, "I'm ok!")
            },
            Outcome::Fail => Reply::error(
                Status::InternalServerError,
                "Failed, as often as the fail rate says.\n",
            ),
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
            trace: None,
        }
    }

    /// Whether another `Accept` would have got another body, which is for `Vary` to say.
    pub fn varies_by_accept(&self) -> bool {
        self.endpoint == Endpoint::Metrics && self.status == Status::Ok
    }

    /// The answer to what could not be parsed: `other` for method and endpoint. The body tells the
    /// client what was wrong.
    pub fn error(status: Status, body: &'static str) -> Self {
        Self {
            status,
            ..Self::ok(TEXT, body)
        }
    }

    /// Whether a body, or what a HEAD is told of it, belongs to the answer: a 204 ends with its head
    /// (RFC 9110, sections 8.6 and 15.3.5).
    pub fn has_body(&self) -> bool {
        self.status != Status::NoContent
    }

    /// The answer to OPTIONS. No field of it grants a browser's preflight anything.
    fn options() -> Self {
        Self {
            allow: Some(ALLOW),
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

/// The path of a request target in origin-form or absolute-form (RFC 9112, section 3.2), without
/// its query.
fn path(target: &str) -> &str {
    if target.starts_with('/') {
        return without_query(target);
    }
    match http::after_authority(target).map(without_query) {
        Some("") => "/",
        Some(path) => path,
        None => target,
    }
}

fn without_query(target: &str) -> &str {
    let query = target.bytes().position(|byte| byte == b'?');
    &target[..query.unwrap_or(target.len())]
}

fn endpoint(path: &str) -> Endpoint {
    match path {
        "/" => Endpoint::Root,
        "/probe" => Endpoint::Probe,
        "/metrics" => Endpoint::Metrics,
        "/healthz" => Endpoint::Healthz,
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
                "# HELP app_connections_max",
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
    fn only_probe_fails_and_is_delayed() {
        let mut app = App::new(&Config {
            fail_rate: 0.5,
            latency: Duration::from_secs(1),
            random_seed: Some(1),
            ..Config::default()
        });
        let (mut failed, mut delayed) = (0, 0);
        for _ in 0..100 {
            for target in ["/", "/healthz", "/metrics", "/nope"] {
                let reply = ask(&mut app, "GET", target);
                assert_ne!(reply.status, Status::InternalServerError);
                assert_eq!(reply.delay, Duration::ZERO);
            }
            assert_eq!(ask(&mut app, "POST", "/probe").delay, Duration::ZERO);
            let reply = ask(&mut app, "GET", "/probe");
            match reply.status {
                Status::InternalServerError => failed += 1,
                _ => delayed += u32::from(!reply.delay.is_zero()),
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
    fn the_landing_page_escapes_what_the_command_line_says() {
        let mut app = App::new(&Config {
            app_version: "<script>&\"".into(),
            ..Config::default()
        });
        let page = ask(&mut app, "GET", "/").body;
        assert!(page.contains("&lt;script&gt;&amp;&quot;"), "{page}");
        assert!(!page.contains("<script>"), "{page}");
    }
}
