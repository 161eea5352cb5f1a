//! The request loops. Each takes a listener, serves until it is told to stop, and returns.

use std::io;
use std::net::{SocketAddr, TcpListener};

pub mod connection;
pub mod event_loop;
pub mod request_head;
mod tcp_table;
pub mod tiny_http;

/// Connections that the kernel may complete before they are accepted; it has a bound of its own.
const BACKLOG: i32 = 4096;

/// Listens on an address, for either request loop.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The standard library's backlog is 128: of a thousand clients at once most would wait a
    // second for their second SYN.
    rustix::net::listen(&listener, BACKLOG)?;
    // Accepted connections inherit it. Without it the second write of an answer waits for the
    // client's delayed ACK to the first, 40 ms.
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    Ok(listener)
}
