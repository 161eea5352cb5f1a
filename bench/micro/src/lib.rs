//! A connection without its socket, for the microbenchmarks and for counting instructions: what the
//! event loop does for a request, but for the system calls.

use std::time::Instant;

use tiny_probe::app::App;
use tiny_probe::config::Config;
use tiny_probe::server::event_loop::connection::Connection;

/// A request as it is known to whoever sends it.
pub struct Request {
    /// Who sends it.
    pub from: &'static str,
    /// Its bytes.
    pub bytes: &'static str,
}

/// What wrk, Prometheus and a browser send.
pub const REQUESTS: [Request; 3] = [
    Request {
        from: "wrk",
        bytes: "GET /probe HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    },
    Request {
        from: "Prometheus",
        bytes: "GET /metrics HTTP/1.1\r\nHost: localhost:8080\r\n\
            User-Agent: Prometheus/2.42.0\r\n\
            Accept: application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,\
            text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\
            Accept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n",
    },
    Request {
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

/// What a client of that name sends.
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
}

impl Default for Driven {
    fn default() -> Self {
        Self {
            app: App::new(&Config::default()),
            connection: Connection::new(Instant::now()),
        }
    }
}

impl Driven {
    /// One request from its bytes to the bytes of its answer. Gives how many those are.
    ///
    /// # Panics
    /// If the bytes are not one request that the service takes.
    pub fn exchange(&mut self, request: &str) -> usize {
        let now = Instant::now();
        self.connection.receive(request.as_bytes(), now);
        let request = self.connection.next_request();
        let request = request.expect("a whole request").expect("a good request");
        let started = Instant::now();
        let reply = self.app.answer(&request, started);
        self.app.record(&reply, started.elapsed());
        self.connection.answer(&reply, DATE, false, now);
        self.app.put_back(reply);
        let count = self.connection.unsent().len();
        self.connection.sent(count, now);
        count
    }
}
