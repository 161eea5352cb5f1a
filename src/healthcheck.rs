//! `tiny-probe healthcheck`: asks the running server's /healthz. A scratch image has no curl.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::config::Listen;

/// How long the server may take to accept, and to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// What is read of an answer, in bytes: enough for every status line of ours.
const LONGEST_STATUS_LINE: u64 = 64;

/// Asks the server that listens there. The error says what came instead of a 200.
pub fn check(listen: Listen) -> Result<(), String> {
    let address = reachable(listen);
    let status_line = ask(address).map_err(|error| format!("http://{address}/healthz: {error}"))?;
    if status_line.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        let status_line = status_line.escape_debug();
        Err(format!(
            "http://{address}/healthz: answered \"{status_line}\""
        ))
    }
}

/// The address at which a server on this machine is reached. One that listens on every address is
/// reached at localhost, by IPv4 if it serves both protocols: it may have found no IPv6.
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

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status_line = Vec::new();
    let mut answer = BufReader::new(stream).take(LONGEST_STATUS_LINE);
    answer.read_until(b'\n', &mut status_line)?;
    Ok(String::from_utf8_lossy(status_line.trim_ascii_end()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_means_localhost() {
        for (listen, asked) in [
            (":8080", "127.0.0.1:8080"),
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.2:80", "127.0.0.2:80"),
            ("[::2]:80", "[::2]:80"),
        ] {
            assert_eq!(
                reachable(listen.parse().unwrap()),
                asked.parse().unwrap(),
                "{listen}"
            );
        }
    }
}
