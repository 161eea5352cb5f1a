//! The limits that a program sets.

use std::time::Duration;

/// The longest that the server waits for a delayed response, for the end of the grace period, or until it calls the
/// service again. A longer time might not fit into an `Instant`.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The limits that depend on where the server runs. All others are constants. The crate's front page
/// lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of open connections, apart from the reserve of sixteen for urgent requests.
    /// The server keeps a descriptor open for each of those. The limit on descriptors may lower the
    /// maximum: see [`Server::connection_limit`](crate::Server::connection_limit). The maximum also
    /// determines how much memory all connections may hold together. Default: 1000.
    pub connections: usize,
    /// How long the server waits for delayed responses, and for those that take CPU time, once it has
    /// been told to stop, a year at most. After that it replaces them with a 503. Default: 5 seconds.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1000,
            grace: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults_are_the_real_ones() {
        let Limits { connections, grace } = Limits::default();
        assert_eq!((connections, grace), (1000, Duration::from_secs(5)));
    }
}
