//! Rejected uploads: the client sees the response, however long it keeps sending.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::scenario::Scenario;
use crate::support::wait_until;

const UPLOAD_HEAD: &str = "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n";

/// Most clients read the response only when they have sent everything.
#[test]
fn an_upload_of_10_mb_that_takes_five_seconds_sees_its_413() {
    const PIECES: u32 = 50;
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    let started = Instant::now();
    client.send(UPLOAD_HEAD);
    let piece = vec![b'x'; 10_000_000 / PIECES as usize];
    for number in 1..=PIECES {
        if let Err(error) = client.stream.write_all(&piece) {
            let after = started.elapsed();
            panic!("piece {number} of {PIECES}, after {after:?}: {error}");
        }
        let due = started + number * Duration::from_millis(100);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    client.expect_last_response(413);
}

#[test]
fn at_the_connection_limit_a_lingering_connection_makes_room_first() {
    let scenario = Scenario::start(&["--max-connections", "3"]);
    // Both connections are older than the upload.
    let mut idle = scenario.clients(2, |client| {
        assert_eq!(client.ask("GET", "/probe").status, 200);
    });
    let mut uploading = scenario.connect();
    uploading.send(UPLOAD_HEAD);
    assert_eq!(uploading.read_response().status, 413);
    let upload = thread::spawn(move || {
        let started = Instant::now();
        let mut bytes = 0;
        while bytes < 9_000_000 && uploading.stream.write_all(&[b'x'; 1000]).is_ok() {
            bytes += 1000;
            let took = started.elapsed();
            assert!(took < Duration::from_secs(20), "it made no room");
            thread::sleep(Duration::from_millis(10));
        }
    });
    // After this time, the other two are idle and can be evicted as well.
    thread::sleep(Duration::from_millis(300));
    assert!(!upload.is_finished(), "closed with room for all");
    let mut other = scenario.connect();
    let response = other.ask("GET", "/probe");
    assert_eq!(response.status, 200, "{response:?}");
    wait_until("the upload is closed", || upload.is_finished());
    upload.join().unwrap();
    for client in idle.iter_mut().chain([&mut other]) {
        assert_eq!(client.ask("GET", "/probe").status, 200);
    }
}
