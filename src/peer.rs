//! How the logs show the address of a client.

use std::net::{IpAddr, SocketAddr};

/// Shows the IPv4 client of a socket that serves both protocols as IPv4: the kernel maps its
/// address into IPv6, `::ffff:192.0.2.1`.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), peer.port()),
        // As it is, with the scope of a link-local address.
        IpAddr::V6(_) => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_shown_as_ipv4_and_others_as_they_are() {
        for (peer, shown) in [
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::192.0.2.1]:80", "[::c000:201]:80"),
            ("[fe80::1%3]:80", "[fe80::1%3]:80"),
        ] {
            let peer: SocketAddr = peer.parse().unwrap();
            assert_eq!(canonical(peer).to_string(), shown);
        }
    }
}
