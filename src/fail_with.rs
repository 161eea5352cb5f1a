//! The ways in which a request can fail on purpose: `fail-with`.

use bounded_http::{Ending, Status};

/// How a failure is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailWith {
    /// As a response with this status. With 200, only the body says that it is a failure.
    Status(Status),
    /// As the ordinary response, of which only a part or nothing is sent.
    Ending(Ending),
}

impl FailWith {
    /// The status that a failure without a response is recorded with. nginx logs the same.
    pub const DROPPED: &str = "444";
    /// The statuses that a failure can have.
    pub const STATUSES: [Status; 11] = [
        Status::Ok,
        Status::BadRequest,
        Status::Unauthorized,
        Status::Forbidden,
        Status::NotFound,
        Status::RequestTimeout,
        Status::TooManyRequests,
        Status::InternalServerError,
        Status::BadGateway,
        Status::ServiceUnavailable,
        Status::GatewayTimeout,
    ];
    const ENDINGS: [(&'static str, Ending); 5] = [
        ("reset", Ending::Reset),
        ("close", Ending::Close),
        ("cut", Ending::Cut),
        ("stall", Ending::Stall),
        ("hang", Ending::Hang),
    ];
    /// What [`parse`](Self::parse) accepts, to complete "expected …".
    pub const ACCEPTED: &'static str = "a status (200, 400, 401, 403, 404, 408, 429, 500, 502, 503 \
                                        or 504), reset, close, cut, stall or hang";
    /// What [`parse_status`](Self::parse_status) accepts, to complete "expected …".
    pub const ACCEPTED_STATUS: &'static str = "a status (200, 400, 401, 403, 404, 408, 429, 500, \
                                               502, 503 or 504)";
    /// The same, with the reason why an ending is not accepted.
    pub const ACCEPTED_BY_TINY_HTTP: &'static str = "a status (200, 400, 401, 403, 404, 408, 429, \
                                                     500, 502, 503 or 504), since --server \
                                                     tiny-http can send nothing else";

    /// Returns all ways to fail, statuses first.
    pub fn all() -> impl Iterator<Item = Self> {
        let statuses = Self::STATUSES.into_iter().map(Self::Status);
        let endings = Self::ENDINGS.iter();
        statuses.chain(endings.map(|(_, ending)| Self::Ending(*ending)))
    }

    /// Parses a status or the name of an ending.
    pub fn parse(name: &str) -> Option<Self> {
        let status = || Self::parse_status(name).map(Self::Status);
        let mut endings = Self::ENDINGS.iter();
        let ending = endings.find(|(ending, _)| *ending == name);
        ending
            .map(|(_, ending)| Self::Ending(*ending))
            .or_else(status)
    }

    /// Parses a status.
    pub fn parse_status(label: &str) -> Option<Status> {
        let mut statuses = Self::STATUSES.into_iter();
        statuses.find(|status| status.label() == label)
    }

    /// Returns the name that [`parse`](Self::parse) accepts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status(status) => status.label(),
            Self::Ending(ending) => {
                let mut endings = Self::ENDINGS.iter();
                let found = endings.find(|(_, known)| *known == ending);
                found.map_or("", |(name, _)| name)
            }
        }
    }

    /// Returns the status that the failure is recorded with.
    pub fn recorded_as(self) -> &'static str {
        match self {
            Self::Status(status) => status.label(),
            Self::Ending(ending) if ending.is_silent() => Self::DROPPED,
            Self::Ending(_) => Status::Ok.label(),
        }
    }

    /// Returns whether the failure is a complete response, which every server can send.
    pub fn is_status(self) -> bool {
        matches!(self, Self::Status(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_status_or_an_ending() {
        let endings = FailWith::ENDINGS.map(|(name, _)| name);
        let statuses = FailWith::STATUSES.map(Status::label);
        for name in endings.iter().chain(&statuses) {
            let fail_with = FailWith::parse(name).expect(name);
            assert_eq!(fail_with.name(), *name);
            assert!(FailWith::ACCEPTED.contains(name), "{name}");
            assert_eq!(fail_with.is_status(), statuses.contains(name));
            let recorded = match *name {
                "reset" | "close" | "hang" => "444",
                "cut" | "stall" => "200",
                status => status,
            };
            assert_eq!(fail_with.recorded_as(), recorded, "{name}");
        }
        let all: Vec<_> = FailWith::all().map(FailWith::name).collect();
        assert_eq!(all, [&statuses[..], &endings[..]].concat());
        for name in ["", "501", "999", "Reset", "0500", "500 ", "none"] {
            assert_eq!(FailWith::parse(name), None, "{name}");
        }
    }
}
