//! The listening socket, and the options that connections inherit from it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{self, AddressFamily, SocketType, sockopt};

/// The number of connections that the kernel may complete before they are accepted. The kernel's own
/// limit can be lower.
pub const BACKLOG: u16 = 4096;
/// The size of the kernel's send buffer for a connection. The kernel doubles both buffer sizes. A
/// thousand connections must fit in 16 MiB, whatever their clients do. A response of up to about 45 KB
/// is still sent with one write, because the kernel accepts a whole write if there is any space.
pub const SEND_BUFFER_SIZE: usize = 4096;
/// The size of the kernel's receive buffer when a client connects. Linux clients send segments of at most half
/// of the window that they get then, here 1365 bytes. A browser's request fits into one. A second segment
/// would take a third more CPU time for each request.
pub const FIRST_RECEIVE_BUFFER_SIZE: usize = 4096;
/// The size of the kernel's receive buffer, unless few connections are open: see [`SEND_BUFFER_SIZE`].
pub const RECEIVE_BUFFER_SIZE: usize = 2304;
/// The size of the kernel's receive buffer for some of the clients that pipeline. The small buffer holds so few
/// requests that most of the CPU time goes to system calls.
pub const LARGE_RECEIVE_BUFFER_SIZE: usize = 8192;
/// The size of the kernel's send buffer for some of the clients with long responses. The buffer holds a
/// second segment of 64 KiB while the first is sent. Otherwise a client on the same machine delays its ACK of
/// the only segment, and receives 64 KiB every 40 ms.
pub const LARGE_SEND_BUFFER_SIZE: usize = 40 * 1024;

/// How long the kernel tries to deliver bytes to a client that does not read. It is longer than the event loop's
/// write timeout, so the event loop, not the kernel, ends a connection whose responses it cannot write.
#[cfg(target_os = "linux")]
const UNREAD_TIMEOUT_MILLIS: u32 = 15_000;

/// Listens on an address.
pub fn listen(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    set_up(TcpListener::bind(address)?)
}

/// Listens on a port of every address, IPv6 and IPv4, or only IPv4 if the system has no IPv6.
pub fn listen_on_every_address(port: u16) -> io::Result<TcpListener> {
    match bind_both(port) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => listen((Ipv4Addr::UNSPECIFIED, port)),
        bound => set_up(bound?.into()),
    }
}

/// Binds a socket that serves both protocols, whatever the system's default is.
fn bind_both(port: u16) -> rustix::io::Result<OwnedFd> {
    let socket = net::socket(AddressFamily::INET6, SocketType::STREAM, None)?;
    // The same options as in the standard library. macOS cannot set CLOEXEC when it creates the socket.
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    net::bind(
        &socket,
        &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0),
    )?;
    Ok(socket)
}

/// Sets the options of a listening socket.
pub fn set_up(listener: TcpListener) -> io::Result<TcpListener> {
    // Accepted connections inherit all of these. Without TCP_NODELAY, the second write of a response
    // waits 40 ms for the client's delayed ACK of the first one.
    sockopt::set_tcp_nodelay(&listener, true)?;
    sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER_SIZE)?;
    sockopt::set_socket_recv_buffer_size(&listener, FIRST_RECEIVE_BUFFER_SIZE)?;
    // Urgent data is received in line, as RFC 6093 recommends. Otherwise the kernel would remove a byte
    // from the head.
    sockopt::set_socket_oobinline(&listener, true)?;
    // After a connection is closed, the kernel holds what the client has not read for as long as this.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&listener, UNREAD_TIMEOUT_MILLIS)?;
    // With the standard library's backlog of 128, most of a thousand clients that connect at once would
    // wait a second and then retry.
    net::listen(&listener, BACKLOG.into())?;
    Ok(listener)
}

/// Reduces the kernel's receive buffer for a connection to [`RECEIVE_BUFFER_SIZE`]. The window does not become
/// smaller at once, so the client goes on sending segments of the same size.
pub fn reduce_receive_buffer(connection: impl AsFd) {
    // If this fails, the client has disconnected, so that nothing more arrives.
    let _ = sockopt::set_socket_recv_buffer_size(connection, RECEIVE_BUFFER_SIZE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_buffers_of_a_connection_are_bounded() {
        for listener in [
            listen("127.0.0.1:0").unwrap(),
            listen_on_every_address(0).unwrap(),
        ] {
            // Linux doubles what it is told, for its own bookkeeping (socket(7)).
            let factor = if cfg!(target_os = "linux") { 2 } else { 1 };
            let send_buffer = sockopt::socket_send_buffer_size(&listener).unwrap();
            let receive_buffer = sockopt::socket_recv_buffer_size(&listener).unwrap();
            assert_eq!(send_buffer, factor * 4096);
            assert_eq!(receive_buffer, factor * 4096);
            assert!(sockopt::tcp_nodelay(&listener).unwrap());
            #[cfg(target_os = "linux")]
            assert_eq!(sockopt::tcp_user_timeout(&listener).unwrap(), 15_000);
        }
    }
}
