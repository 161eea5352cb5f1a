//! The address of a client as the logs show it.

use std::net::{IpAddr, SocketAddr};

/// Converts the address of an IPv4 client back to IPv4. On a socket that serves both protocols, the kernel
/// maps it into IPv6: `::ffff:192.0.2.1`.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), peer.port()),
        // Unchanged, so that a link-local address keeps its scope.
        IpAddr::V6(_) => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_shown_as_ipv4_and_others_as_they_are() {
        for (peer, expected) in [
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::192.0.2.1]:80", "[::c000:201]:80"),
            ("[fe80::1%3]:80", "[fe80::1%3]:80"),
        ] {
            let peer: SocketAddr = peer.parse().unwrap();
            assert_eq!(canonical(peer).to_string(), expected);
        }
    }
}
