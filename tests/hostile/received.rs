//! Received means that the kernel has it: a request that reached the kernel before a timeout, before
//! SIGTERM or before a close gets its response, and no response is lost to a reset.

use std::thread;
use std::time::{Duration, Instant};

use bounded_http::raise_descriptor_limit;

use crate::scenario::Scenario;
use crate::support::{Client, request, wait_until};

#[test]
fn bytes_behind_a_last_request_do_not_cost_the_responses_before_them() {
    let scenario = Scenario::start(&["--fault-injection"]);
    let recorded = |endpoint| scenario.scrape().recorded(endpoint);
    let last = "GET /probe?delay=1s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let requests = request("GET", "/metrics").repeat(2) + &request("GET", "/") + last;
    let mut clients = [(); 2].map(|()| scenario.connect_with_receive_buffer(4 * 1024));
    for client in &mut clients {
        client.send(&requests);
    }
    wait_until("both clients' requests are received", || recorded("/") == 2);
    clients[0].send("\r\n");
    clients[1].send_request("GET", "/healthz");
    // The clients read only after the server has sent the last response.
    wait_until("both delayed requests are recorded", || {
        recorded("/probe") == 2
    });
    for client in &mut clients {
        client.expect_responses_and_orderly_close(4);
    }
}

#[test]
fn a_request_behind_a_delayed_one_gets_its_response_after_sigterm() {
    let mut scenario = Scenario::start(&["--fault-injection"]);
    let mut client = scenario.connect();
    // The delay is shorter than the grace period, and longer than a busy machine takes to send a
    // signal.
    client.send_delayed("/probe?delay=3s");
    client.send_request("GET", "/healthz");
    scenario.signal("TERM");
    client.expect_responses_and_orderly_close(2);
    drop(client);
    assert_eq!(scenario.wait(), Some(0));
}

#[test]
fn requests_that_arrive_while_the_process_is_suspended_get_their_responses_after_sigterm() {
    const REQUESTS: usize = 1500;
    let mut scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    assert_eq!(client.ask("GET", "/healthz").status, 200);
    scenario.while_paused(|| {
        client.send(request("GET", "/healthz").repeat(REQUESTS));
        scenario.signal("TERM");
    });
    client.expect_responses_and_orderly_close(REQUESTS);
    drop(client);
    assert_eq!(scenario.wait(), Some(0));
}

#[test]
fn bytes_that_arrive_in_time_while_the_process_is_suspended_are_in_time() {
    const SCRAPES: usize = 500;
    let scenario = Scenario::start(&[]);
    // One client has sent half a head, one half a body, and one does not read its responses.
    let mut head = scenario.connect();
    head.send("GET /probe HTTP/1.1\r\nHo");
    let mut body = scenario.connect();
    body.send("POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf");
    assert_eq!(body.read_response().status, 405);
    let mut slow = scenario.connect_with_receive_buffer(4 * 1024);
    slow.send(request("GET", "/metrics").repeat(SCRAPES));
    wait_until("the server has begun to respond", || {
        !slow.has_nothing_to_read()
    });

    scenario.while_paused(|| {
        let paused = Instant::now();
        thread::sleep(Duration::from_secs(1));
        head.send("st: a\r\n\r\n");
        body.send("rest".to_owned() + &request("GET", "/probe"));
        slow.read_what_is_there();
        // This is longer than the ten seconds that the server waits for a head, a body or a reader.
        thread::sleep(Duration::from_secs(11).saturating_sub(paused.elapsed()));
    });

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
    let scenario = Scenario::start(&[]);
    let mut client = scenario.connect();
    assert_eq!(client.ask("GET", "/healthz").status, 200);
    scenario.while_paused(|| {
        client.send_request("GET", "/healthz");
        thread::sleep(Duration::from_secs(76));
    });
    let response = client.response_or_ending();
    assert_eq!(response.map(|response| response.status), Ok(200));
}

#[test]
fn a_client_that_has_sent_a_request_is_not_closed_to_make_room() {
    const IDLE: usize = 1500;
    const NEW: usize = 64;
    raise_descriptor_limit();
    let scenario = Scenario::start(&["--max-connections", &IDLE.to_string()]);
    let mut idle = scenario.silent_clients(IDLE - 1);
    wait_until("all are accepted, and the scrape is the last", || {
        scenario.scrape().count("app_connections_open") == IDLE as u64
    });
    idle.push(scenario.connect());
    let mut new = scenario.while_paused(|| {
        let new = scenario.clients(NEW, |client| client.send_request("GET", "/healthz"));
        idle.send_request("GET", "/healthz");
        new
    });
    let mut lost = 0;
    for (number, client) in new.iter_mut().chain(&mut *idle).enumerate() {
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
    let scenario = Scenario::start(&["--max-connections", "1", "--fault-injection"])
        .with_clients(1, |holder| holder.send_delayed("/probe?delay=30s"));
    let mut client = scenario.connect();
    client.send("GET /healthz HTTP/1.1\r\nHo");
    // The scrape's connection is accepted after both of these.
    assert!(scenario.scrape().count("app_connections_open") >= 3);
    scenario.while_paused(|| {
        // This is longer than the two seconds for which a connection may stay on the reserve.
        thread::sleep(Duration::from_millis(2500));
        client.send("st: a\r\n\r\n");
    });
    let response = client.response_or_ending();
    assert_eq!(response.map(|response| response.status), Ok(200));
}

#[test]
fn a_head_with_urgent_data_is_read_at_once() {
    let scenario = Scenario::start(&[]);
    let head = request("GET", "/healthz");
    let sent = Instant::now();
    // The urgent byte is each byte of the head in turn.
    let clients: Vec<Client> = (0..head.len())
        .map(|urgent| {
            let mut client = scenario.connect();
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
