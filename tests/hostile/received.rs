//! Received means that the kernel has it: a request that reached the kernel before a timeout, before
//! SIGTERM or before a close gets its response, and no response is lost to a reset.

use std::thread;
use std::time::{Duration, Instant};

use crate::clients::raise_descriptor_limit;
use crate::support::{Client, Service, request, wait_until};

const SERVER: &str = "event-loop";

/// Returns the number of requests to an endpoint that were recorded, with any status.
fn recorded(service: &Service, endpoint: &str) -> u64 {
    let series =
        format!(r#"app_request_latency_seconds_count{{method="GET",endpoint="{endpoint}"}}"#);
    service.scrape().count(&series)
}

#[test]
fn bytes_behind_a_last_request_do_not_cost_the_responses_before_them() {
    let service = Service::start(SERVER, &["--fault-injection"]);
    thread::scope(|scope| {
        for more in ["\r\n".to_owned(), request("GET", "/healthz")] {
            let service = &service;
            scope.spawn(move || {
                let mut client = service.connect_with_receive_buffer(4 * 1024);
                let last = "GET /probe?delay=1s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
                client.send(request("GET", "/metrics").repeat(2) + &request("GET", "/") + last);
                wait_until("both clients' requests are received", || {
                    recorded(service, "/") == 2
                });
                client.send(&more);
                // The client reads only after the server has sent the last response.
                wait_until("both delayed requests are recorded", || {
                    recorded(service, "/probe") == 2
                });
                client.expect_responses_and_orderly_close(4);
            });
        }
    });
}

#[test]
fn a_request_behind_a_delayed_one_gets_its_response_after_sigterm() {
    let mut service = Service::start(SERVER, &["--fault-injection"]);
    let mut client = service.connect();
    // The delay is shorter than the grace period, and longer than a busy machine takes to send a
    // signal.
    client.send_delayed("/probe?delay=3s");
    client.send_request("GET", "/healthz");
    service.signal("TERM");
    client.expect_responses_and_orderly_close(2);
    drop(client);
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn requests_that_arrive_while_the_process_is_suspended_get_their_responses_after_sigterm() {
    const REQUESTS: usize = 1500;
    let mut service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    assert_eq!(client.ask("GET", "/healthz").status, 200);
    service.pause();
    client.send(request("GET", "/healthz").repeat(REQUESTS));
    service.signal("TERM");
    service.resume();
    client.expect_responses_and_orderly_close(REQUESTS);
    drop(client);
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn bytes_that_arrive_in_time_while_the_process_is_suspended_are_in_time() {
    const SCRAPES: usize = 500;
    let service = Service::start(SERVER, &[]);
    // One client has sent half a head, one half a body, and one does not read its responses.
    let mut head = service.connect();
    head.send("GET /probe HTTP/1.1\r\nHo");
    let mut body = service.connect();
    body.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf");
    assert_eq!(body.read_response().status, 405);
    let mut slow = service.connect_with_receive_buffer(4 * 1024);
    slow.send(request("GET", "/metrics").repeat(SCRAPES));
    wait_until("the server has begun to respond", || {
        !slow.has_nothing_to_read()
    });

    service.pause();
    let paused = Instant::now();
    thread::sleep(Duration::from_secs(1));
    head.send("st: a\r\n\r\n");
    body.send("rest".to_owned() + &request("GET", "/probe"));
    slow.read_what_is_there();
    // This is longer than the ten seconds that the server waits for a head, a body or a reader.
    thread::sleep(Duration::from_secs(11).saturating_sub(paused.elapsed()));
    service.resume();

    for (what, client) in [("head", &mut head), ("body", &mut body)] {
        let response = client.response_or_ending();
        let status = response.map(|response| response.status);
        assert_eq!(status, Ok(200), "after the second half of a {what}");
        assert_eq!(client.ask("GET", "/healthz").status, 200);
    }
    for _ in 0..SCRAPES {
        assert_eq!(slow.read_response().status, 200);
    }
}

#[test]
#[ignore = "waits for the keep-alive timeout, 75 seconds"]
fn a_request_that_arrives_in_time_while_the_process_is_suspended_is_in_time() {
    let service = Service::start(SERVER, &[]);
    let mut client = service.connect();
    assert_eq!(client.ask("GET", "/healthz").status, 200);
    service.pause();
    client.send_request("GET", "/healthz");
    thread::sleep(Duration::from_secs(76));
    service.resume();
    let response = client.response_or_ending();
    assert_eq!(response.map(|response| response.status), Ok(200));
}

#[test]
fn a_client_that_has_sent_a_request_is_not_closed_to_make_room() {
    const IDLE: usize = 1500;
    const NEW: usize = 64;
    raise_descriptor_limit();
    let service = Service::start(SERVER, &["--max-connections", &IDLE.to_string()]);
    let mut idle: Vec<Client> = (1..IDLE).map(|_| service.connect()).collect();
    wait_until("all are accepted, and the scrape is the last", || {
        service.scrape().count("app_connections_open") == IDLE as u64
    });
    idle.push(service.connect());
    service.pause();
    let mut new: Vec<Client> = (0..NEW).map(|_| service.connect()).collect();
    for client in new.iter_mut().chain(&mut idle) {
        client.send_request("GET", "/healthz");
    }
    service.resume();
    let mut lost = 0;
    for (number, client) in new.iter_mut().chain(&mut idle).enumerate() {
        let response = client.response_or_ending().map(|response| response.status);
        if response != Ok(200) {
            // The new connections come first.
            println!("client {number}: {response:?}");
            lost += 1;
        }
    }
    assert_eq!(lost, 0, "of {} clients", IDLE + NEW);
}

#[test]
fn a_request_on_the_reserve_that_arrives_while_the_process_is_suspended_gets_its_response() {
    let flags = ["--max-connections", "1", "--fault-injection"];
    let service = Service::start(SERVER, &flags);
    let mut holder = service.connect();
    holder.send_delayed("/probe?delay=30s");
    let mut client = service.connect();
    client.send("GET /healthz HTTP/1.1\r\nHo");
    // The scrape's connection is accepted after both of these.
    assert!(service.scrape().count("app_connections_open") >= 3);
    service.pause();
    // This is longer than the two seconds for which a connection may stay on the reserve.
    thread::sleep(Duration::from_millis(2500));
    client.send("st: a\r\n\r\n");
    service.resume();
    let response = client.response_or_ending();
    assert_eq!(response.map(|response| response.status), Ok(200));
}

#[test]
fn a_head_with_urgent_data_is_read_at_once() {
    let service = Service::start(SERVER, &[]);
    let head = request("GET", "/healthz");
    let sent = Instant::now();
    // The urgent byte is each byte of the head in turn.
    let clients: Vec<Client> = (0..head.len())
        .map(|urgent| {
            let mut client = service.connect();
            let (before, rest) = head.as_bytes().split_at(urgent);
            client.send(before);
            client.send_urgent(rest[0]);
            client.send(&rest[1..]);
            client
        })
        .collect();
    for (urgent, mut client) in clients.into_iter().enumerate() {
        let response = client.read_response();
        assert_eq!(
            response.status, 200,
            "with byte {urgent} urgent: {response:?}"
        );
        assert_eq!(client.ask("GET", "/healthz").status, 200);
    }
    // A server that waited for more bytes would respond after 10 s, the timeout for a head.
    let took = sent.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
