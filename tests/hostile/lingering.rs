//! Rejected uploads: the client sees the response, however long it keeps sending.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Service, wait_until};

const SERVER: &str = "event-loop";
const UPLOAD_HEAD: &str = "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n";

/// Most clients read the response only when they have sent everything.
#[test]
fn an_upload_of_10_mb_that_takes_five_seconds_sees_its_413() {
    const PIECES: u32 = 50;
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    let started = Instant::now();
    client.send(UPLOAD_HEAD);
    let piece = vec![b'x'; 10_000_000 / PIECES as usize];
    for number in 1..=PIECES {
        if let Err(error) = client.stream.write_all(&piece) {
            panic!(
                "piece {number} of {PIECES}, after {:?}: {error}",
                started.elapsed()
            );
        }
        let due = started + number * Duration::from_millis(100);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let response = client.read_response();
    assert_eq!(response.status, 413);
    assert_eq!(response.field("Connection"), Some("close"));
    client.expect_close();
}

#[test]
fn at_the_connection_limit_a_lingering_connection_makes_room_first() {
    let service = Service::start(SERVER, &["--max-connections", "3"]);
    let is_over = AtomicBool::new(false);
    // Both connections are older than the upload.
    let mut idle = [service.connect(), service.connect()];
    for client in &mut idle {
        assert_eq!(client.ask("GET", "/probe").status, 200);
    }
    let mut uploading = service.connect();
    uploading.send(UPLOAD_HEAD);
    assert_eq!(uploading.read_response().status, 413);
    thread::scope(|scope| {
        let upload = scope.spawn(|| {
            let started = Instant::now();
            let mut bytes = 0;
            while bytes < 9_000_000 && uploading.stream.write_all(&[b'x'; 1000]).is_ok() {
                bytes += 1000;
                assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "it made no room"
                );
                thread::sleep(Duration::from_millis(10));
            }
            is_over.store(true, Ordering::Relaxed);
        });
        // After this time, the other two are idle and can be evicted as well.
        thread::sleep(Duration::from_millis(300));
        assert!(!is_over.load(Ordering::Relaxed), "closed with room for all");
        let mut other = service.connect();
        let response = other.ask("GET", "/probe");
        assert_eq!(response.status, 200, "{response:?}");
        wait_until("the upload is closed", || is_over.load(Ordering::Relaxed));
        upload.join().unwrap();
        for client in &mut idle {
            assert_eq!(client.ask("GET", "/probe").status, 200);
        }
        assert_eq!(other.ask("GET", "/probe").status, 200);
    });
}
