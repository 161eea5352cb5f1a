//! `tiny-probe healthcheck`: requests /healthz from the running server. It exists because a scratch image
//! has no curl.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::config::Listen;

/// The timeout for connecting, for sending, and for each read.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of bytes that are read of a response. Every status line of this server is shorter.
const MAX_STATUS_LINE_BYTES: u64 = 64;

/// Checks that the server responds to /healthz with status 200. The error is a message for the user.
pub fn check(listen: Listen) -> Result<(), String> {
    let address = reachable(listen);
    let status_line = request_status(address).map_err(|error| {
        format!(
            "http://{address}/healthz: {error}; is tiny-probe running, and does --listen or LISTEN name its \
             address?"
        )
    })?;
    if status_line.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        let status_line = status_line.escape_debug();
        Err(format!(
            "http://{address}/healthz: expected status 200, found \"{status_line}\""
        ))
    }
}

/// Returns an address at which the server can be reached from this machine. For an unspecified address, it
/// is the loopback address of the same protocol. For `:PORT`, it is 127.0.0.1, because a server on a machine
/// without IPv6 serves only IPv4.
fn reachable(listen: Listen) -> SocketAddr {
    let address = match listen {
        Listen::EveryAddress(port) => (Ipv4Addr::UNSPECIFIED, port).into(),
        Listen::Address(address) => address,
    };
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn request_status(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status_line = Vec::new();
    let mut response = BufReader::new(stream).take(MAX_STATUS_LINE_BYTES);
    response.read_until(b'\n', &mut status_line)?;
    Ok(String::from_utf8_lossy(status_line.trim_ascii_end()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_every_address_is_checked_at_localhost() {
        for (listen, expected) in [
            (":8080", "127.0.0.1:8080"),
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.2:80", "127.0.0.2:80"),
            ("[::2]:80", "[::2]:80"),
        ] {
            assert_eq!(
                reachable(listen.parse().unwrap()),
                expected.parse().unwrap(),
                "{listen}"
            );
        }
    }
}
