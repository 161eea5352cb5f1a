//! A connection without its socket, for the microbenchmarks and for counting instructions: everything that
//! the event loop does for a request, except the system calls.

use std::time::Instant;

use bounded_http::internals::connection::{Buffers, Connection};
use bounded_http::internals::request_head::field_space;
use bounded_http::{Ended, Outcome, Request, Service};
use tiny_probe::app::App;
use tiny_probe::config::Config;

/// The request that a client sends.
pub struct Sample {
    /// The client.
    pub from: &'static str,
    /// Its bytes.
    pub bytes: &'static str,
}

/// The requests of wrk, Prometheus and a browser.
pub const REQUESTS: [Sample; 3] = [
    Sample {
        from: "wrk",
        bytes: "GET /probe HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    },
    Sample {
        from: "Prometheus",
        bytes: "GET /metrics HTTP/1.1\r\nHost: localhost:8080\r\n\
            User-Agent: Prometheus/2.42.0\r\n\
            Accept: application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,\
            text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\
            Accept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n",
    },
    Sample {
        from: "browser",
        bytes: "GET /probe HTTP/1.1\r\nHost: localhost:8080\r\n\
            User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
            Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
            Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
            DNT: 1\r\nConnection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\n\
            Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\n\
            Sec-Fetch-User: ?1\r\nPriority: u=0, i\r\n\r\n",
    },
];

/// The request of the client with this name.
pub fn request_of(client: &str) -> Option<&'static str> {
    let mut requests = REQUESTS.iter();
    let request = requests.find(|request| request.from == client)?;
    Some(request.bytes)
}

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// A client's connection, and the service at its other end.
pub struct Driven {
    app: App,
    connection: Connection,
    spare: Buffers,
}

impl Default for Driven {
    fn default() -> Self {
        Self {
            app: App::new(&Config::default()),
            connection: Connection::new(Instant::now()),
            spare: Buffers::default(),
        }
    }
}

impl Driven {
    /// Takes one request from its bytes to the bytes of its response. Returns the number of these.
    ///
    /// # Panics
    /// If the bytes are not one well-formed request.
    pub fn exchange(&mut self, request: &str) -> usize {
        let now = Instant::now();
        self.connection.borrow_buffers(&mut self.spare);
        self.connection.receive(request.as_bytes(), now);
        let mut space = field_space();
        let head = self.connection.next_request(&mut space);
        let head = head.expect("it is complete").expect("it is well-formed");
        let started = Instant::now();
        let request = Request::new(head.method, head.target)
            .with_fields(head.fields)
            .with_received_at(started);
        let reply = self.app.answer(&request);
        let ended = Instant::now();
        let body_length = self.connection.respond(&reply, DATE, false, ended);
        self.app.ended(Ended {
            body_length,
            duration: ended.saturating_duration_since(started),
            ..Ended::of(reply, Outcome::Responded)
        });
        let count = self.connection.unsent().len();
        self.connection.mark_sent(count, ended);
        self.connection.return_buffers(&mut self.spare);
        self.app.before_wait();
        count
    }
}
