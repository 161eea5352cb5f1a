//! The plain request loop, on `tiny_http`.
//!
//! One thread handles every request, so a /probe that is delayed or works holds up all others, as it
//! would in any such loop. `tiny_http` reads and parses on threads of its own, and puts no bounds on
//! what a client can take: this loop is for reading, and for clients that one trusts.

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{fs, process, thread};

use bounded_http::{Ended, Field, Method, Outcome, Reply, Request, Service, work};
use httpdate::fmt_http_date;
use tiny_http::{Header, Response, Server, StatusCode};

use crate::app::App;
use crate::log::access::AccessLog;
use crate::shutdown::{GRACE, write_last_lines};
use crate::wall_clock;

/// Serves until `stop_signal` becomes readable and the requests received by then are answered.
///
/// # Errors
/// When accepting a connection fails: `tiny_http` stops accepting then, for good.
pub fn run(listener: TcpListener, stop_signal: UnixStream, mut app: App) -> io::Result<()> {
    let own_sockets = open_sockets();
    let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
    let is_stopping = Arc::new(AtomicBool::new(false));
    stop_when_told(
        stop_signal,
        Arc::clone(&is_stopping),
        Arc::clone(&server),
        app.access_log().clone(),
    );
    while let Some(request) = next_request(&server, &is_stopping, &mut app)? {
        if request.url().starts_with("/metrics") {
            let connections = open_sockets().saturating_sub(own_sockets);
            let connections = i64::try_from(connections).unwrap_or(i64::MAX);
            app.metrics().connections_open().set(connections);
        }
        serve(request, &mut app);
    }
    Ok(())
}

/// Waits for the next request, and meanwhile lets the app do what it does in between, such as writing
/// log lines.
/// `None` when the service has been told to stop and every request is given out.
fn next_request(
    server: &Server,
    is_stopping: &AtomicBool,
    app: &mut App,
) -> io::Result<Option<tiny_http::Request>> {
    loop {
        if is_stopping.load(Ordering::Relaxed) {
            return server.try_recv();
        }
        let received = match app.before_wait() {
            Some(pause) => server.recv_timeout(pause),
            None => server.recv().map(Some),
        };
        match received {
            // Nothing came in time; or `unblock` was called, which looks the same there.
            Ok(None) => {}
            // An error of the system has a number. The other one is `unblock`'s.
            Err(error) if error.raw_os_error().is_none() => return Ok(None),
            received => return received,
        }
    }
}

/// Answers a request: an `Instant` before it, a record after it.
fn serve(request: tiny_http::Request, app: &mut App) {
    let peer = request.remote_addr().copied();
    let fields: Vec<Field<'_>> = request.headers().iter().map(field).collect();

    let started = Instant::now();
    let asked = Request::new(request.method().as_str(), request.url())
        .with_fields(&fields)
        .with_peer(peer)
        .with_received_at(started);
    let is_head = asked.method() == Method::Head;
    let (reply, exchange) = app.answer(&asked).split();
    thread::sleep(reply.delay());
    work(reply.work_time());
    let duration = started.elapsed();
    // An error means that the client has disconnected, which concerns no other.
    let _ = request.respond(response(&reply));
    app.ended(Ended {
        memo: Some(exchange),
        outcome: Outcome::Responded,
        status: reply.status(),
        body_length: if is_head { 0 } else { reply.body().len() },
        duration,
        peer,
        body: reply.into_body(),
    });
}

fn field(header: &Header) -> Field<'_> {
    Field {
        name: header.field.as_str().as_str(),
        value: header.value.as_bytes(),
    }
}

/// On the first signal, has `recv` give out what is queued and then fail; ends the process itself
/// if that takes longer than the grace.
fn stop_when_told(
    mut stop_signal: UnixStream,
    is_stopping: Arc<AtomicBool>,
    server: Arc<Server>,
    access_log: AccessLog,
) {
    thread::spawn(move || {
        if stop_signal.read(&mut [0]).is_ok() {
            is_stopping.store(true, Ordering::Relaxed);
            server.unblock();
            thread::sleep(GRACE);
            write_last_lines(&access_log);
            process::exit(0);
        }
    });
}

fn response(reply: &Reply) -> Response<&[u8]> {
    let header = |(name, value): (&str, &str)| {
        Header::from_bytes(name, value).expect("a name and a value of ours are ASCII")
    };
    // Without one of ours, the crate reads the clock, and panics if it is before 1970 or after 9999.
    let date = fmt_http_date(wall_clock::now());
    let content_type = reply.content_type().map(|value| ("Content-Type", value));
    let headers = [("Date", &*date)].into_iter().chain(content_type);
    let headers = headers.chain(reply.fields()).map(header).collect();
    let body = reply.body();
    Response::new(
        StatusCode(reply.status().code()),
        headers,
        body,
        Some(body.len()),
        None,
    )
    // Every length is known, so nothing needs to be chunked.
    .with_chunked_threshold(usize::MAX)
}

/// Counts the sockets of this process, each once however many descriptors it has: `tiny_http` makes
/// two for a connection, and does not tell how many connections are open. 0 where there is no /proc.
fn open_sockets() -> usize {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let sockets: HashSet<_> = descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect();
    sockets.len()
}
