//! However bytes are cut into pieces, the answers are well-formed, one to each request, and the
//! same as in one piece.

use tiny_probe::app::App;
use tiny_probe::config::Config;

use super::answers::{Answer, is_page, read};
use crate::drive::{Outcome, drive};

/// How many bytes of the input say how the rest is cut: the lengths of the pieces, in turn, and 0
/// is all that is left.
const CUTS: usize = 8;

pub fn check(input: &[u8]) {
    let Some((lengths, bytes)) = input.split_at_checked(CUTS) else {
        return;
    };
    let mut app = App::new(&Config::default());
    let whole = drive(&mut app, [bytes]);
    let cut = drive(&mut app, pieces(lengths, bytes));
    let (whole_answers, cut_answers) = (answers(&whole), answers(&cut));
    if cut.requests.len() < whole.requests.len() {
        // Who expects a 100 is told to close if its body is not here with the head.
        assert!(cut_answers.last().is_some_and(|last| last.closes) && expects_continue(bytes));
        assert_eq!(cut.requests, whole.requests[..cut.requests.len()]);
    } else {
        assert_eq!(cut.requests, whole.requests);
        if !expects_continue(bytes) {
            assert_eq!(cut.is_open, whole.is_open);
            assert_eq!(cut_answers, whole_answers);
        }
    }
}

/// Whether a client may expect a 100 somewhere in its bytes.
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

/// The answers, without the figures of the process, which change from one page to the next.
fn answers(outcome: &Outcome) -> Vec<Answer> {
    let mut rest = &*outcome.answers;
    let mut answers = Vec::new();
    for (method, target, status) in &outcome.requests {
        let mut answer = read(&mut rest, method).expect("every request is answered");
        assert_eq!(answer.status, *status, "{method} {target}");
        if is_page(answer.content_type.as_deref()) {
            answer.content_length = None;
            let lines = answer.body.lines();
            answer.body = lines
                .filter(|line| !line.starts_with("process_"))
                .collect::<Vec<_>>()
                .join("\n");
        }
        answers.push(answer);
    }
    assert!(rest.is_empty(), "no request asked for this: {rest:?}");
    let closing = answers.iter().position(|answer| answer.closes);
    let expected = (!outcome.is_open).then(|| answers.len() - 1);
    assert_eq!(
        closing, expected,
        "the last answer says that it is the last"
    );
    answers
}
