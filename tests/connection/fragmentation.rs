//! Bytes that arrive in pieces get the same responses as bytes that arrive at once.

use fastrand::Rng;
use tiny_probe::app::App;
use tiny_probe::config::Config;

use crate::drive::drive;
use crate::request_heads::REQUEST_HEADS;

/// Sequences of requests on one connection: several that keep it open, followed by one of the heads or by
/// one that is too long.
fn conversations() -> Vec<String> {
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let with_body = "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n1\r\n\r\n\r\n";
    let valid = [
        &get("/probe"),
        "\r\n",
        with_body,
        "\n",
        "HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        &get("/nope"),
    ]
    .concat();
    let mut conversations: Vec<String> = REQUEST_HEADS
        .iter()
        .map(|(_, head, _)| format!("{valid}{head}{}", get("/healthz")))
        .collect();
    let long = "x".repeat(16_400);
    conversations.push(format!("{}{long}", get("/probe")));
    conversations.push(format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"));
    conversations.push(format!("GET / HTTP/1.1\r\n{}\r\n", "X: 1\r\n".repeat(101)));
    conversations
}

fn check(app: &mut App, bytes: &[u8], pieces: Vec<&[u8]>) {
    let lengths: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
    let whole = drive(app, [bytes]);
    let split = drive(app, pieces);
    assert_eq!(split, whole, "split into {lengths:?}");
    assert!(!whole.responses.is_empty());
}

#[test]
fn bytes_that_arrive_one_by_one_get_the_same_responses() {
    let mut app = App::new(&Config::default());
    for conversation in conversations() {
        let bytes = conversation.as_bytes();
        check(&mut app, bytes, bytes.chunks(1).collect());
    }
}

#[test]
fn bytes_that_arrive_in_two_pieces_get_the_same_responses() {
    let mut app = App::new(&Config::default());
    for conversation in conversations() {
        let bytes = conversation.as_bytes();
        for middle in 0..bytes.len().min(1000) {
            let (first, second) = bytes.split_at(middle);
            check(&mut app, bytes, vec![first, second]);
        }
    }
}

#[test]
fn bytes_that_arrive_in_random_pieces_get_the_same_responses() {
    let mut app = App::new(&Config::default());
    let mut random = Rng::with_seed(9112);
    let heads: Vec<&[u8]> = REQUEST_HEADS
        .iter()
        .map(|(_, head, _)| head.as_bytes())
        .collect();
    for _ in 0..3000 {
        let mut bytes = Vec::new();
        for _ in 0..random.usize(1..6) {
            bytes.extend_from_slice(heads[random.usize(..heads.len())]);
            if random.u8(..4) == 0 {
                let index = random.usize(..bytes.len());
                bytes[index] = random.u8(..);
            }
        }
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.usize(1..=rest.len().min(40)));
            pieces.push(piece);
            rest = after;
        }
        let whole = drive(&mut app, [&bytes[..]]);
        let split = drive(&mut app, pieces);
        assert_eq!(split, whole, "{}", bytes.escape_ascii());
    }
}
