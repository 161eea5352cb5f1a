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

use httpdate::fmt_http_date;
use tiny_http::{Header, Response, Server, StatusCode};

use crate::access_log::AccessLog;
use crate::app::{App, Reply, Request};
use crate::diagnostics::{self, announce_change};
use crate::line_writer;
use crate::probe;
use crate::shutdown::{GRACE, write_last_lines};
use crate::wall_clock;

/// Serves until `stop_signal` becomes readable and the requests received by then are answered.
///
/// # Errors
/// When accepting a connection fails: `tiny_http` stops accepting then, for good.
pub fn run(
    listener: TcpListener,
    stop_signal: UnixStream,
    mut app: App,
    access_log: &AccessLog,
) -> io::Result<()> {
    let own_sockets = open_sockets();
    let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
    let is_stopping = Arc::new(AtomicBool::new(false));
    stop_when_told(
        stop_signal,
        Arc::clone(&is_stopping),
        Arc::clone(&server),
        access_log.clone(),
    );
    while let Some(request) = next_request(&server, &is_stopping, access_log)? {
        if request.url().starts_with("/metrics") {
            let connections = open_sockets().saturating_sub(own_sockets);
            let connections = i64::try_from(connections).unwrap_or(i64::MAX);
            app.metrics().connections_open().set(connections);
        }
        serve(request, &mut app, access_log);
    }
    Ok(())
}

/// Waits for the next request, and tries again meanwhile to write what the logs could not take.
/// `None` when the service has been told to stop and every request is given out.
fn next_request(
    server: &Server,
    is_stopping: &AtomicBool,
    access_log: &AccessLog,
) -> io::Result<Option<tiny_http::Request>> {
    loop {
        if is_stopping.load(Ordering::Relaxed) {
            return server.try_recv();
        }
        let received = if access_log.flush() | diagnostics::flush() {
            server.recv_timeout(line_writer::PAUSE)
        } else {
            server.recv().map(Some)
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
fn serve(request: tiny_http::Request, app: &mut App, access_log: &AccessLog) {
    let peer = request.remote_addr().copied();
    let asked = Request {
        method: request.method().as_str(),
        target: request.url(),
        accept: only(&request, "Accept"),
        traceparent: only(&request, "traceparent"),
    };
    let entry = access_log.note(peer, asked.method, asked.target);

    app.metrics().requests_in_flight().inc();
    let started = Instant::now();
    let reply = app.answer(&asked, started);
    if let (true, Some(peer)) = (reply.is_change, peer) {
        announce_change(peer, &reply.body);
    }
    thread::sleep(reply.delay);
    probe::work(reply.work);
    let latency = started.elapsed();
    // The client may be gone; the next one is not.
    let _ = request.respond(response(&reply));
    app.metrics().requests_in_flight().dec();
    app.record(&reply, latency);

    if let Some(entry) = entry {
        access_log.push(&entry, &reply, latency, wall_clock::now());
    }
    app.put_back(reply);
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

/// The value of a field that is there once.
fn only<'a>(request: &'a tiny_http::Request, name: &'static str) -> Option<&'a [u8]> {
    let fields = request.headers().iter();
    let mut values = fields
        .filter(|header| header.field.equiv(name))
        .map(|header| header.value.as_bytes());
    values.next().xor(values.next())
}

fn response(reply: &Reply) -> Response<&[u8]> {
    let header = |name: &str, value: &str| {
        Header::from_bytes(name, value).expect("a name and a value of ours are ASCII")
    };
    let content_type = reply.has_body().then_some(reply.content_type);
    let vary = reply.varies_by_accept().then_some("Accept");
    // Left to itself, the crate reads the clock and panics if it cannot express what it says.
    let date = fmt_http_date(wall_clock::now());
    let headers = [
        ("Date", Some(&*date)),
        ("Content-Type", content_type),
        ("Allow", reply.allow),
        ("Vary", vary),
    ];
    let headers = headers
        .into_iter()
        .filter_map(|(name, value)| Some(header(name, value?)))
        .collect();
    let body = reply.body.as_bytes();
    Response::new(
        StatusCode(reply.status.code()),
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
