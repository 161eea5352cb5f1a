//! A service of your own: `cargo run --example hello 127.0.0.1:8080`

use std::os::unix::net::UnixStream;
use std::{env, io};

use bounded_http::{Method, Reply, Request, Server, Service, Status};
use signal_hook::{consts::SIGTERM, low_level::pipe};

struct Hello {
    visitors: u64,
}

impl Service for Hello {
    type Memo = ();

    fn answer(&mut self, request: &Request<'_>) -> Reply {
        match (request.method(), request.path()) {
            (Method::Get | Method::Head, "/") => {
                self.visitors += 1;
                Reply::text(Status::Ok, format!("Hello, visitor {}.\n", self.visitors))
            }
            (_, "/") => Reply::method_not_allowed("GET, HEAD"),
            _ => Reply::text(Status::NotFound, "Not found. Try /.\n"),
        }
    }
}

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let server = Server::bind(address)?;
    println!("Listening on http://{}", server.address());

    // SIGTERM stops the server, once it has answered every request that it has received.
    let (stop_signal, stop) = UnixStream::pair()?;
    pipe::register(SIGTERM, stop)?;
    server
        .stop_when_readable(stop_signal)
        .run(Hello { visitors: 0 })
}
