//! Request heads and the status that each must get: malformed heads, ambiguous ones that two parsers could
//! read differently, and unusual but valid ones.

/// A description, the bytes, and the expected status.
pub type Head = (&'static str, &'static str, u16);

pub const REQUEST_HEADS: &[Head] = &[
    // Valid, even if unusual.
    ("plain", "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ("no Host in HTTP/1.0", "GET /probe HTTP/1.0\r\n\r\n", 200),
    (
        "empty lines before",
        "\r\n\r\nGET /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    ("bare LF", "GET /probe HTTP/1.1\nHost: a\n\n", 200),
    ("empty Host", "GET /probe HTTP/1.1\r\nHost:\r\n\r\n", 200),
    (
        "IPv6 Host",
        "GET /probe HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
        200,
    ),
    (
        "field names in any case",
        "GET /probe HTTP/1.1\r\nhOST: a\r\ncONTENT-lENGTH: 0\r\n\r\n",
        200,
    ),
    (
        "absolute-form",
        "GET http://a/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    (
        "no space after the colon",
        "GET /probe HTTP/1.1\r\nHost:a\r\n\r\n",
        200,
    ),
    (
        "non-ASCII bytes in a value",
        "GET /probe HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n",
        200,
    ),
    (
        "a body within the limit",
        "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        200,
    ),
    (
        "Content-Length with leading zeros",
        "GET /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nabc",
        200,
    ),
    (
        "lower-case method",
        "get /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        405,
    ),
    (
        "unknown method",
        "BREW /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        405,
    ),
    (
        "asterisk-form",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        204,
    ),
    (
        "authority-form",
        "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        405,
    ),
    (
        "absolute-form of https, with a port and a query",
        "GET https://a:443/probe?x HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    (
        "absolute-form in capitals",
        "GET HTTP://a/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    (
        "a scheme in the query",
        "GET /probe?u=http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    (
        "Host with an empty port",
        "GET /probe HTTP/1.1\r\nHost: a:\r\n\r\n",
        200,
    ),
    (
        "Host with a percent-encoded byte",
        "GET /probe HTTP/1.1\r\nHost: a%2Db\r\n\r\n",
        200,
    ),
    (
        "OPTIONS on a route",
        "OPTIONS /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        204,
    ),
    (
        "OPTIONS on a route in absolute-form",
        "OPTIONS http://a/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        204,
    ),
    (
        "OPTIONS in HTTP/1.0, as sent by HAProxy",
        "OPTIONS / HTTP/1.0\r\n\r\n",
        204,
    ),
    (
        "OPTIONS on an unknown path",
        "OPTIONS /nope HTTP/1.1\r\nHost: a\r\n\r\n",
        404,
    ),
    (
        "unescaped characters that browsers send in a query",
        "GET /probe?{|}[^`] HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    (
        "an unknown expectation",
        "GET /probe HTTP/1.1\r\nHost: a\r\nExpect: 200-maybe\r\n\r\n",
        200,
    ),
    // The end of the body.
    (
        "Transfer-Encoding and Content-Length",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        400,
    ),
    (
        "Content-Length and Transfer-Encoding",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    (
        "Transfer-Encoding in HTTP/1.0",
        "POST /probe HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    (
        "chunked",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        411,
    ),
    (
        "an unknown coding",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        501,
    ),
    (
        "identity",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        501,
    ),
    (
        "two codings",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        501,
    ),
    (
        "chunked in capitals",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n",
        411,
    ),
    (
        "chunked in a list with an empty element",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n",
        411,
    ),
    (
        "chunked twice",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        400,
    ),
    (
        "chunked twice, in two fields",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    (
        "an empty Transfer-Encoding",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        400,
    ),
    (
        "a coding and then chunked",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        501,
    ),
    (
        "chunked and then a coding",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        501,
    ),
    (
        "a coding after a control character",
        "POST /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n",
        400,
    ),
    (
        "Content-Length twice",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        400,
    ),
    (
        "the same Content-Length twice",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        400,
    ),
    (
        "Content-Length as a list",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
        400,
    ),
    (
        "Content-Length with a plus",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
        400,
    ),
    (
        "Content-Length with a minus",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
        400,
    ),
    (
        "Content-Length in hexadecimal",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n",
        400,
    ),
    (
        "Content-Length with a space in the middle",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 1 0\r\n\r\n",
        400,
    ),
    (
        "empty Content-Length",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        400,
    ),
    (
        "Content-Length above the limit",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n",
        413,
    ),
    (
        "Content-Length of ten petabytes",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n",
        413,
    ),
    (
        "Content-Length that does not fit into 64 bits",
        "POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        413,
    ),
    // The ends of the head, its lines and its fields.
    (
        "obs-fold",
        "GET /probe HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
        400,
    ),
    (
        "obs-fold of the first field",
        "GET /probe HTTP/1.1\r\n Host: a\r\n\r\n",
        400,
    ),
    (
        "space before the colon",
        "GET /probe HTTP/1.1\r\nHost : a\r\n\r\n",
        400,
    ),
    (
        "tab before the colon",
        "GET /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n",
        400,
    ),
    (
        "no colon",
        "GET /probe HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        400,
    ),
    (
        "no field name",
        "GET /probe HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
        400,
    ),
    (
        "bare CR in a value",
        "GET /probe HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
        400,
    ),
    (
        "bare CR in the request line",
        "GET /probe\r HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "bare CR before the request line",
        "\rGET /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    ("CR CR LF", "GET /probe HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    (
        "NUL in a value",
        "GET /probe HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        400,
    ),
    (
        "NUL in a name",
        "GET /probe HTTP/1.1\r\nHost: a\r\nX\0: 1\r\n\r\n",
        400,
    ),
    (
        "NUL in the target",
        "GET /probe\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "DEL in the target",
        "GET /probe\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    // The request line.
    ("HTTP/0.9", "GET /probe\r\n\r\n", 400),
    ("no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("two spaces", "GET  /probe HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (
        "a space at the end",
        "GET /probe HTTP/1.1 \r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a space at the beginning",
        " GET /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a space in the target",
        "GET /pro be HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a tab instead of a space",
        "GET\t/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a method that is not a token",
        "G(T /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a target that has none of the four forms",
        "GET probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "absolute-form without a host",
        "GET http:///probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "absolute-form with a port and no host",
        "GET http://:80/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "absolute-form without a scheme",
        "GET ://a/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "absolute-form of another scheme",
        "GET ftp://a/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "absolute-form with a user",
        "GET http://u@a/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "absolute-form with a malformed host",
        "GET http://a:b/probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a target that has none of the four forms, with a scheme in the query",
        "GET probe?u=http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "asterisk-form for GET",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "asterisk-form followed by a character",
        "OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "authority-form for GET",
        "GET a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "authority-form without a port",
        "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "CONNECT to a path",
        "CONNECT /probe HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a fragment",
        "GET /probe#x HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "a fragment in the query",
        "GET /probe?x#y HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "non-ASCII bytes in the target",
        "GET /prob\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "non-ASCII bytes in the query",
        "GET /probe?\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    ("HEAD without a Host", "HEAD /probe HTTP/1.1\r\n\r\n", 400),
    (
        "HEAD with a coding",
        "HEAD /probe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        501,
    ),
    (
        "HEAD of another version",
        "HEAD /probe HTTP/2.0\r\nHost: a\r\n\r\n",
        505,
    ),
    ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\n", 400),
    // The version.
    ("HTTP/1.2", "GET /probe HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    ("HTTP/2.0", "GET /probe HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (
        "HTTP/2 with prior knowledge",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        505,
    ),
    (
        "HTTP/0.9 as an explicit version",
        "GET /probe HTTP/0.9\r\nHost: a\r\n\r\n",
        505,
    ),
    ("HTTP/2", "GET /probe HTTP/2\r\nHost: a\r\n\r\n", 400),
    ("HTTP/1.10", "GET /probe HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    ("HTTP/11", "GET /probe HTTP/11\r\nHost: a\r\n\r\n", 400),
    ("HTTP/1.", "GET /probe HTTP/1.\r\nHost: a\r\n\r\n", 400),
    ("HTTP/-1.1", "GET /probe HTTP/-1.1\r\nHost: a\r\n\r\n", 400),
    (
        "HTTP/99999999999.1",
        "GET /probe HTTP/99999999999.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "lower-case version",
        "GET /probe http/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "another protocol",
        "GET /probe ICY/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    // The host.
    ("no Host in HTTP/1.1", "GET /probe HTTP/1.1\r\n\r\n", 400),
    (
        "no Host with absolute-form",
        "GET http://a/probe HTTP/1.1\r\n\r\n",
        400,
    ),
    (
        "Host twice",
        "GET /probe HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        400,
    ),
    (
        "the same Host twice",
        "GET /probe HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "Host twice in HTTP/1.0",
        "GET /probe HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        400,
    ),
    (
        "Host with two ports",
        "GET /probe HTTP/1.1\r\nHost: a:b:c\r\n\r\n",
        400,
    ),
    (
        "Host with a port that is not a number",
        "GET /probe HTTP/1.1\r\nHost: a:b\r\n\r\n",
        400,
    ),
    (
        "Host with an open bracket",
        "GET /probe HTTP/1.1\r\nHost: [::1\r\n\r\n",
        400,
    ),
    (
        "Host with an IPv6 address and no brackets",
        "GET /probe HTTP/1.1\r\nHost: ::1\r\n\r\n",
        400,
    ),
    (
        "Host with brackets around a name",
        "GET /probe HTTP/1.1\r\nHost: [a]\r\n\r\n",
        400,
    ),
    (
        "Host with an incomplete percent-encoding",
        "GET /probe HTTP/1.1\r\nHost: a%2\r\n\r\n",
        400,
    ),
    (
        "Host with a comma and a space",
        "GET /probe HTTP/1.1\r\nHost: a, b\r\n\r\n",
        400,
    ),
    (
        "Host with a path",
        "GET /probe HTTP/1.1\r\nHost: a/b\r\n\r\n",
        400,
    ),
    (
        "Host with a user",
        "GET /probe HTTP/1.1\r\nHost: a@b\r\n\r\n",
        400,
    ),
    (
        "Host with a space",
        "GET /probe HTTP/1.1\r\nHost: a b\r\n\r\n",
        400,
    ),
];
