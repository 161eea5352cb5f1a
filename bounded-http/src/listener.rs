//! The listening socket, and the options that connections inherit from it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{self, AddressFamily, SocketType, sockopt};

/// Connections that the kernel may complete before they are accepted; it has a bound of its own.
pub const BACKLOG: u16 = 4096;
/// What the kernel may hold of one connection in either direction, in bytes; it doubles both. A
/// thousand connections must fit in 16 MiB, whatever their clients do. A response of up to some 45 KB
/// is still one write: the kernel checks_in_wait at the limit before it takes more, not at what it takes.
pub const SEND_BUFFER_SIZE: usize = 4096;
/// See [`SEND_BUFFER_SIZE`].
pub const RECEIVE_BUFFER_SIZE: usize = 2304;

/// How long the kernel tries to deliver what a client does not read, in milliseconds. It is longer
/// than what the event loop waits for, so that the kernel alone closes no connection that is open.
#[cfg(target_os = "linux")]
const UNREAD_TIMEOUT_MILLIS: u32 = 15_000;

/// Listens on an address.
pub fn listen(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    set_up(TcpListener::bind(address)?)
}

/// Listens on a port of every address, IPv6 and IPv4; on IPv4 alone where there is no IPv6.
pub fn listen_on_every_address(port: u16) -> io::Result<TcpListener> {
    match bind_both(port) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => listen((Ipv4Addr::UNSPECIFIED, port)),
        bound => set_up(bound?.into()),
    }
}

/// Binds a socket that IPv4 clients reach, too, whatever the system's default is for that.
fn bind_both(port: u16) -> rustix::io::Result<OwnedFd> {
    let socket = net::socket(AddressFamily::INET6, SocketType::STREAM, None)?;
    // As the standard library does it. macOS cannot set the first of them at once.
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
    // Accepted connections inherit all of these. Without the first, the second write of an answer
    // waits for the client's delayed ACK to the first write, 40 ms.
    sockopt::set_tcp_nodelay(&listener, true)?;
    sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER_SIZE)?;
    sockopt::set_socket_recv_buffer_size(&listener, RECEIVE_BUFFER_SIZE)?;
    // Urgent data is received in line, as RFC 6093 recommends: a byte that the kernel took out of a
    // head would be missing there.
    sockopt::set_socket_oobinline(&listener, true)?;
    // A connection that is closed before the client has read everything is the kernel's, and so is
    // the memory of what is unread, for as long as this.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&listener, UNREAD_TIMEOUT_MILLIS)?;
    // The standard library's backlog is 128: of a thousand clients that connect at once, most would
    // wait a second for their second SYN.
    net::listen(&listener, BACKLOG.into())?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_holds_of_a_connection_is_bounded() {
        for listener in [
            listen("127.0.0.1:0").unwrap(),
            listen_on_every_address(0).unwrap(),
        ] {
            // Linux doubles what it is told, for its own bookkeeping (socket(7)).
            let factor = if cfg!(target_os = "linux") { 2 } else { 1 };
            let send_buffer = sockopt::socket_send_buffer_size(&listener).unwrap();
            let receive_buffer = sockopt::socket_recv_buffer_size(&listener).unwrap();
            assert_eq!(send_buffer, factor * 4096);
            assert_eq!(receive_buffer, factor * 2304);
            assert!(sockopt::tcp_nodelay(&listener).unwrap());
        }
    }
}
