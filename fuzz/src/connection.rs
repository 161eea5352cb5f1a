//! Checks that any bytes get well-formed responses, one for each request, and the same responses
//! whether they arrive at once or in pieces.

use tiny_probe::app::App;
use tiny_probe::config::Config;

use super::responses::{Response, is_exposition, read};
use crate::drive::{Outcome, drive};

/// The number of input bytes that define how the rest is split. Each is the length of a piece, used in
/// turn; 0 means all of the rest.
const LENGTHS: usize = 8;

pub fn check(input: &[u8]) {
    let Some((lengths, bytes)) = input.split_at_checked(LENGTHS) else {
        return;
    };
    let mut app = App::new(&Config::default());
    let whole = drive(&mut app, [bytes]);
    let split = drive(&mut app, pieces(lengths, bytes));
    let (whole_responses, split_responses) = (responses(&whole), responses(&split));
    if split.requests.len() < whole.requests.len() {
        // A request with `Expect: 100-continue` closes the connection if its body arrives after its
        // head.
        assert!(split_responses.last().is_some_and(|last| last.closes) && expects_continue(bytes));
        assert_eq!(split.requests, whole.requests[..split.requests.len()]);
    } else {
        assert_eq!(split.requests, whole.requests);
        if !expects_continue(bytes) {
            assert_eq!(split.is_open, whole.is_open);
            assert_eq!(split_responses, whole_responses);
        }
    }
}

/// Returns whether a request in the bytes may have `Expect: 100-continue`.
fn expects_continue(bytes: &[u8]) -> bool {
    bytes
        .to_ascii_lowercase()
        .windows(12)
        .any(|word| word == b"100-continue")
}

fn pieces<'a>(lengths: &[u8], mut rest: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let length = match usize::from(*length) {
            0 => rest.len(),
            length => length.min(rest.len()),
        };
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Parses the responses. Leaves out the `process_*` metrics, which may differ.
fn responses(outcome: &Outcome) -> Vec<Response> {
    let mut rest = &*outcome.responses;
    let mut responses = Vec::new();
    for (method, target, status) in &outcome.requests {
        let mut response = read(&mut rest, method).expect("every request has a response");
        assert_eq!(response.status, *status, "{method} {target}");
        if is_exposition(response.content_type.as_deref()) {
            response.content_length = None;
            let lines = response.body.lines();
            response.body = lines
                .filter(|line| !line.starts_with("process_"))
                .collect::<Vec<_>>()
                .join("\n");
        }
        responses.push(response);
    }
    assert!(rest.is_empty(), "a response without a request: {rest:?}");
    let closing = responses.iter().position(|response| response.closes);
    let expected = (!outcome.is_open).then(|| responses.len() - 1);
    assert_eq!(
        closing, expected,
        "only the last response announces the close"
    );
    responses
}
