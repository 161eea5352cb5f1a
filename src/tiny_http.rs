//! The plain request loop, on `tiny_http`.
//!
//! One thread handles every request, so a /probe that waits or works delays all other requests.
//! `tiny_http` reads and parses requests on threads of its own, and does not limit what a client can
//! make it do. Use this loop to see how a service is instrumented, and only with clients you trust.
//! The module `rejection` keeps the crate's known vulnerabilities out of reach.

mod rejection;
mod response;

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{fs, process, thread};

use bounded_http::{Ended, Field, Method, Outcome, Request, Service, work};
use tiny_http::{Header, Server};

use self::rejection::{Checked, Rejections};
use self::response::respond;
use crate::app::{App, Exchange, METRICS};
use crate::log::access::AccessLog;
use crate::shutdown::{GRACE_PERIOD, when_readable, write_last_lines};

/// Serves until `stop_signal` becomes readable, then responds to the requests received by then.
///
/// # Errors
/// When accepting a connection fails: `tiny_http` does not accept connections after that.
pub fn run(listener: TcpListener, stop_signal: UnixStream, mut app: App) -> io::Result<()> {
    let own_sockets = open_sockets();
    let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
    let is_stopping = Arc::new(AtomicBool::new(false));
    stop_when_told(
        stop_signal,
        Arc::clone(&is_stopping),
        Arc::clone(&server),
        app.access_log().clone(),
    )?;
    let mut rejections = Rejections::default();
    while let Some(request) = next_request(&server, &is_stopping, &mut app)? {
        let ended = match rejections.check(request) {
            Checked::Clear(request) => {
                if request.url().starts_with(METRICS) {
                    app.connections_changed(open_sockets().saturating_sub(own_sockets));
                }
                serve(request, &mut app)
            }
            Checked::Rejected(ended) => ended,
            Checked::Dropped => continue,
        };
        app.ended(ended);
    }
    Ok(())
}

/// Waits for the next request. Returns `None` once the service is stopping and no received request is
/// left.
///
/// While it waits, it does at intervals what the app asks for, such as writing log lines.
fn next_request(
    server: &Server,
    is_stopping: &AtomicBool,
    app: &mut App,
) -> io::Result<Option<tiny_http::Request>> {
    loop {
        let interval = app.before_wait();
        if is_stopping.load(Ordering::Relaxed) {
            return server.try_recv();
        }
        let received = match interval {
            Some(interval) => server.recv_timeout(interval),
            None => server.recv().map(Some),
        };
        match received {
            // Either the timeout expired or `unblock` was called: `recv_timeout` returns the same.
            Ok(None) => {}
            // `recv` reports `unblock` as an error without an error number.
            Err(error) if error.raw_os_error().is_none() => return Ok(None),
            received => return received,
        }
    }
}

/// Reads the clock, has the app handle the request, and sends the response. Returns what to record.
fn serve(received: tiny_http::Request, app: &mut App) -> Ended<Exchange> {
    let fields: Vec<Field<'_>> = received.headers().iter().map(field).collect();

    let started = Instant::now();
    let request = Request::new(received.method().as_str(), received.url())
        .with_fields(&fields)
        .with_peer(received.remote_addr().copied())
        .with_received_at(started);
    let is_head = request.method() == Method::Head;
    let (reply, exchange) = app.answer(&request).split();
    thread::sleep(reply.delay());
    work(reply.work_time());
    let duration = started.elapsed();
    // Ignore write errors: the client may have disconnected.
    let _ = respond(received, &reply, false);
    Ended {
        body_length: if is_head { 0 } else { reply.body().len() },
        duration,
        ..Ended::of(reply.remember(exchange), Outcome::Responded)
    }
}

fn field(header: &Header) -> Field<'_> {
    Field {
        name: header.field.as_str().as_str(),
        value: header.value.as_bytes(),
    }
}

/// Waits until `stop_signal` is readable, on a thread of its own. Then it makes `recv` return the queued requests
/// and fail after the last one. If that takes longer than [`GRACE_PERIOD`], it ends the process.
fn stop_when_told(
    stop_signal: UnixStream,
    is_stopping: Arc<AtomicBool>,
    server: Arc<Server>,
    access_log: AccessLog,
) -> io::Result<()> {
    let stop = move || {
        is_stopping.store(true, Ordering::Relaxed);
        server.unblock();
        thread::sleep(GRACE_PERIOD);
        write_last_lines(&access_log);
        process::exit(0);
    };
    when_readable(stop_signal, Box::new(stop))
}

/// Counts the sockets of this process; 0 on systems without /proc.
///
/// `tiny_http` does not report how many connections are open. It has two descriptors for each, so
/// sockets are counted by inode.
fn open_sockets() -> usize {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let descriptors = descriptors.flatten();
    let files = descriptors.filter_map(|descriptor| fs::metadata(descriptor.path()).ok());
    let sockets = files.filter(|file| file.file_type().is_socket());
    let mut inodes = Vec::new();
    for inode in sockets.map(|socket| socket.ino()) {
        if !inodes.contains(&inode) {
            inodes.push(inode);
        }
    }
    inodes.len()
}
