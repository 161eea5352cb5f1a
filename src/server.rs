//! The request loops. Each takes a listener, serves until it is told to stop, and returns.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::net::sockopt;

pub mod event_loop;
#[cfg(feature = "tiny-http")]
pub mod tiny_http;

/// Connections that the kernel may complete before they are accepted; it has a bound of its own.
const BACKLOG: u16 = 4096;
/// What the kernel may hold of one connection in either direction, in bytes; it doubles both. Left
/// alone it grows to megabytes for a client that does not read, and counts as the container's memory.
const SEND_BUFFER: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 32 * 1024;

/// Listens on an address, for either request loop.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // Accepted connections inherit these three. Without the first, the second write of an answer
    // waits for the client's delayed ACK to the first write, 40 ms.
    sockopt::set_tcp_nodelay(&listener, true)?;
    sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER)?;
    sockopt::set_socket_recv_buffer_size(&listener, RECEIVE_BUFFER)?;
    // The standard library's backlog is 128: of a thousand clients at once most would wait a
    // second for their second SYN.
    rustix::net::listen(&listener, BACKLOG.into())?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_holds_of_a_connection_is_bounded() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        // Linux doubles what it is told, for its own bookkeeping (socket(7)).
        let factor = if cfg!(target_os = "linux") { 2 } else { 1 };
        let send_buffer = sockopt::socket_send_buffer_size(&listener).unwrap();
        let receive_buffer = sockopt::socket_recv_buffer_size(&listener).unwrap();
        assert_eq!(send_buffer, factor * 65_536);
        assert_eq!(receive_buffer, factor * 32_768);
        assert!(sockopt::tcp_nodelay(&listener).unwrap());
    }
}
