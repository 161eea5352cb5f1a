//! Checks that with any `Accept` and `traceparent`, the exposition is well-formed, has the format that its
//! content type names, and contains no trace except the one that was sent.

use std::time::Duration;

use bounded_http::{Ended, Field, Outcome, Request, Service};
use tiny_probe::app::App;
use tiny_probe::config::Config;
use tiny_probe::metrics::Format;
use tiny_probe::trace_context::TraceContext;

/// The input consists of the values of the two fields, separated by a line break.
pub fn check(input: &[u8]) {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let accept = lines.next().unwrap_or_default();
    let traceparent = lines.next().unwrap_or_default();
    check_accept(accept);

    let mut app = App::new(&Config::default());
    let fields = [
        Field {
            name: "accept",
            value: accept,
        },
        Field {
            name: "traceparent",
            value: traceparent,
        },
    ];
    let request = Request::new("GET", "/metrics").with_fields(&fields);
    let reply = app.answer(&request);
    let format = Format::preferred(Some(accept));
    assert_eq!(reply.content_type(), Some(format.content_type()));
    app.ended(Ended {
        duration: Duration::from_micros(3),
        ..Ended::of(reply, Outcome::Responded)
    });

    let exposition = app.answer(&request).split().0.into_body();
    let exposition = str::from_utf8(&exposition).expect("the exposition is text");
    let is_open_metrics = format == Format::OpenMetrics;
    assert_eq!(exposition.ends_with("\n# EOF\n"), is_open_metrics);
    let mut exemplars = Vec::new();
    for line in exposition.lines().filter(|line| !line.starts_with("# ")) {
        let (sample, exemplar) = line.split_once(" # ").unwrap_or((line, ""));
        let value = sample.rsplit_once(' ').map(|(_, value)| value.parse());
        assert!(matches!(value, Some(Ok(0.0_f64..))), "{line}");
        exemplars.extend((!exemplar.is_empty()).then_some(exemplar));
    }
    let trace = TraceContext::sampled(traceparent);
    assert_eq!(
        exemplars.len(),
        usize::from(trace.is_some() && is_open_metrics)
    );
    if let Some(trace) = trace {
        let (trace_id, span_id) = (trace.trace_id, trace.span_id);
        let sent = format!("-{trace_id:032x}-{span_id:016x}-");
        assert_eq!(traceparent[2..53], *sent.as_bytes());
        let labels =
            format!("{{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} 0.000003 ");
        assert!(
            exemplars
                .iter()
                .all(|exemplar| exemplar.starts_with(&labels))
        );
    }
}

/// Checks that the preferred format does not depend on case, surrounding whitespace, empty elements, or
/// types that the service does not have.
fn check_accept(accept: &[u8]) {
    let preferred = Format::preferred(Some(accept));
    for same in [
        accept.to_ascii_uppercase(),
        accept.to_ascii_lowercase(),
        [b", ,\t", accept, b" ,,"].concat(),
        [b"image/png;q=0.3,", accept].concat(),
        [accept, b",image/*"].concat(),
    ] {
        assert_eq!(
            Format::preferred(Some(&same)),
            preferred,
            "{}",
            same.escape_ascii()
        );
    }
}
