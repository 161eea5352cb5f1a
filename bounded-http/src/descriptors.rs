//! The limit on descriptors, and how many connections it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::eviction::RESERVE_SIZE;

/// Descriptors that are not for ordinary connections: the reserve's, the standard streams, the
/// listener, the poll, the stop signal, and what a service opens now and then.
const RESERVED_DESCRIPTORS: usize = 16 + RESERVE_SIZE;
/// The maximum on macOS if the hard limit is infinite.
const OPEN_MAX: u64 = 10_240;

/// Returns how many connections the process's limit on descriptors allows, apart from the reserve.
pub fn connections_within_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let descriptors = limit.map_or(usize::MAX, |limit| limit as usize);
    descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(1)
}

/// Raises the soft limit on descriptors, which is often 1024, to the hard limit. Returns the new limit.
///
/// The server itself changes nothing about the process. Programs that serve more than a thousand
/// connections call this before they bind.
pub fn raise_descriptor_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raise_to = |current| setrlimit(Resource::Nofile, Rlimit { current, maximum });
    // If this fails, the soft limit stays. On macOS, the hard limit is infinite and the soft limit is
    // 256, but no more than OPEN_MAX is allowed (setrlimit(2)).
    if raise_to(maximum).is_err() && current.is_some_and(|limit| limit < OPEN_MAX) {
        let _ = raise_to(Some(OPEN_MAX));
    }
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| limit as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_32_of_the_descriptors_that_the_hard_limit_allows_are_for_connections() {
        // A limit that is one lower harms no other test. Where it is infinite, there is nothing to raise.
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        if let Some(maximum) = maximum.filter(|_| cfg!(target_os = "linux")) {
            let current = Some(maximum - 1);
            let maximum = Some(maximum);
            setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
        }
        let raised = raise_descriptor_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let current = current.map_or(usize::MAX, |limit| limit as usize);
        assert_eq!(raised, current);
        if cfg!(target_os = "linux") {
            let maximum = maximum.map_or(usize::MAX, |limit| limit as usize);
            assert_eq!(raised, maximum);
        }
        assert_eq!(connections_within_descriptor_limit(), raised - 32);
    }
}
