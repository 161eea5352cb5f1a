//! Clients that reuse connections as HTTP libraries do.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{Client, Response, Service, request};

/// A connection that has been silent for less than this is not closed.
pub const SHORT_SILENCE: Duration = Duration::from_millis(100);

/// A client that reuses its connection unless the response says `Connection: close`.
pub struct ReusingClient {
    address: SocketAddr,
    /// `None` before the first request and after a response with `Connection: close`.
    connection: Option<Client>,
    /// When the client last sent something, or began to connect. The service cannot have seen a longer
    /// silence.
    active_at: Instant,
}

/// How a request ended.
pub enum Outcome {
    Response(Response),
    /// The service did not accept the connection.
    Refused,
    /// The connection ended before the first byte of the response.
    Lost(Loss),
}

#[derive(Debug)]
#[expect(dead_code, reason = "the fields are printed")]
pub struct Loss {
    pub error: String,
    pub was_reused: bool,
    /// How long the connection had been silent when the request was sent.
    pub silence: Duration,
    pub sent_at: Instant,
}

impl ReusingClient {
    pub fn new(service: &Service) -> Self {
        Self {
            address: service.address,
            connection: None,
            active_at: Instant::now(),
        }
    }

    /// Sends a GET request, over a new connection if there is none, and waits for the response. Waits
    /// for `pause` between connecting and sending.
    pub fn get(&mut self, path: &str, pause: Duration) -> Outcome {
        let was_reused = self.connection.is_some();
        let mut client = match self.connection.take() {
            Some(client) => client,
            None => match self.connect(pause) {
                Ok(client) => client,
                Err(outcome) => return outcome,
            },
        };
        let result = client.stream.write_all(request("GET", path).as_bytes());
        let sent_at = Instant::now();
        let silence = sent_at - self.active_at;
        self.active_at = sent_at;
        let result = result.and_then(|()| client.stream.peek(&mut [0]));
        if !matches!(result, Ok(1)) {
            return Outcome::Lost(Loss {
                error: format!("{result:?}"),
                was_reused,
                silence,
                sent_at,
            });
        }
        let response = client.read_response();
        if response.field("Connection") != Some("close") {
            self.connection = Some(client);
        }
        Outcome::Response(response)
    }

    fn connect(&mut self, pause: Duration) -> Result<Client, Outcome> {
        self.active_at = Instant::now();
        let stream = TcpStream::connect(self.address).map_err(|error| {
            if error.kind() == ErrorKind::ConnectionRefused {
                return Outcome::Refused;
            }
            Outcome::Lost(Loss {
                error: format!("cannot connect: {error}"),
                was_reused: false,
                silence: Duration::ZERO,
                sent_at: self.active_at,
            })
        })?;
        std::thread::sleep(pause);
        Ok(Client::from(stream))
    }

    /// Makes the next request use a new connection.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }
}
