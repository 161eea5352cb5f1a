//! The plain request loop, on `tiny_http`.
//!
//! One thread handles every request, so a late /probe holds up all others, as it would in any such
//! loop. `tiny_http` reads and parses on threads of its own, and puts no bounds on what a client
//! can take: this loop is for reading, and for clients that one trusts.

use std::io::{self, Read};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;
use std::{process, thread};

use tiny_http::{Header, Response, Server, StatusCode};

use crate::access_log::AccessLog;
use crate::app::{ALLOW, App, Reply};
use crate::http::Status;
use crate::server::sockets;
use crate::shutdown::GRACE;

/// Serves until `told_to_stop` becomes readable and the requests received by then are answered.
///
/// # Errors
/// When accepting a connection fails: `tiny_http` stops accepting then, for good.
pub fn run(
    listener: TcpListener,
    told_to_stop: UnixStream,
    mut app: App,
    access_log: AccessLog,
) -> io::Result<()> {
    let other_sockets = sockets::open();
    let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
    stop_when_told(told_to_stop, Arc::clone(&server));
    loop {
        let request = match server.recv() {
            Ok(request) => request,
            // An error of the system has a number. The other one is `unblock`'s.
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(_) => return Ok(()),
        };
        if request.url().starts_with("/metrics") {
            let connections = sockets::open().saturating_sub(other_sockets);
            let connections = i64::try_from(connections).unwrap_or(i64::MAX);
            app.metrics().connections_open().set(connections);
        }

        let peer = request.remote_addr().copied();
        let entry = access_log.note(peer, request.method().as_str(), request.url());

        let started = Instant::now();
        let reply = app.answer(request.method().as_str(), request.url());
        thread::sleep(reply.delay);
        let latency = started.elapsed();
        // The client may be gone; the next one is not.
        let _ = request.respond(response(&reply));
        app.record(&reply, latency);

        if let Some(entry) = entry {
            entry.print(&reply, latency);
        }
    }
}

/// On the first signal, has `recv` give out what is queued and then fail; ends the process itself
/// if that takes longer than the grace.
fn stop_when_told(mut told_to_stop: UnixStream, server: Arc<Server>) {
    thread::spawn(move || {
        if told_to_stop.read(&mut [0]).is_ok() {
            server.unblock();
            thread::sleep(GRACE);
            process::exit(0);
        }
    });
}

fn response(reply: &Reply) -> Response<&[u8]> {
    let header = |name: &str, value: &str| {
        Header::from_bytes(name, value).expect("a name and a value of ours are ASCII")
    };
    let mut headers = vec![header("Content-Type", reply.content_type)];
    if reply.status == Status::MethodNotAllowed {
        headers.push(header("Allow", ALLOW));
    }
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
