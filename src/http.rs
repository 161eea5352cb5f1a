//! The words of HTTP that this service knows: methods and status codes.

/// A request method as it stands in the `method` label: one of RFC 9110's and PATCH, or `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are RFC 9110's")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
    Trace,
    Connect,
    Other,
}

impl Method {
    /// How many there are: the bound on the `method` label.
    pub const COUNT: usize = Self::Other as usize + 1;

    /// The method of a request line. Methods are case-sensitive (RFC 9110, section 9.1).
    pub fn parse(token: &str) -> Self {
        match token {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "PATCH" => Self::Patch,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// The value of the `method` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Connect => "CONNECT",
            Self::Other => "other",
        }
    }
}

/// Every status code that this service answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are RFC 9110's and RFC 6585's")]
pub enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    ContentTooLarge,
    UriTooLong,
    RequestHeaderFieldsTooLarge,
    InternalServerError,
    NotImplemented,
    HttpVersionNotSupported,
}

impl Status {
    /// How many there are: the bound on the `http_status` label.
    pub const COUNT: usize = Self::HttpVersionNotSupported as usize + 1;

    /// The code and the reason phrase, as they stand in the status line.
    pub fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::UriTooLong => "414 URI Too Long",
            Self::RequestHeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Self::InternalServerError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::HttpVersionNotSupported => "505 HTTP Version Not Supported",
        }
    }

    /// The value of the `http_status` label: the three digits of the code.
    pub fn label(self) -> &'static str {
        &self.line()[..3]
    }

    /// The code as a number.
    pub fn code(self) -> u16 {
        self.label()
            .bytes()
            .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'))
    }
}
