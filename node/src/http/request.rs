//! Heads of requests, parsed as they arrive.
//!
//! Only GET and HEAD without a body are served. Whatever else comes is refused with a reason and
//! the end of the connection, because nothing certain is known of the bytes that follow it.

use super::host::HostPolicy;
use super::range::ByteRange;
use super::route::Route;
use http::StatusCode;
use narswarm_protocol::limits::{
    MAX_HTTP_FIELDS, MAX_HTTP_HEAD_BYTES, MAX_HTTP_REQUEST_LINE_BYTES,
};

/// A request, or what is to be answered in its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What is asked for.
    pub target: Result<Route, Refusal>,
    /// HEAD: the same answer without its body.
    pub head_only: bool,
    /// HTTP/1.0, where keeping the connection has to be confirmed.
    pub version_1_0: bool,
    /// Whether the connection outlives the answer.
    pub keep_alive: bool,
    /// The fields that matter for nars alone, boxed because narinfo requests have none.
    pub conditions: Option<Box<Conditions>>,
}

/// What a request asks beyond its path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    /// `Range`, if it can be understood.
    pub range: Option<ByteRange>,
    /// `If-Range`: the range counts only for this version.
    pub if_range: Option<String>,
    /// `If-None-Match`: the versions that the client has.
    pub if_none_match: Option<String>,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("this is not an HTTP request")]
    Malformed,
    #[error("requests with a body are not served")]
    Body,
    #[error("a request needs exactly one Host field")]
    Host,
    #[error("this server is not known by that name; if it should be, add it to http.host_names")]
    Misdirected,
    #[error("only GET and HEAD are served")]
    Method,
    #[error("the head of the request did not arrive in time")]
    Timeout,
    #[error("the request line is longer than anything that is served here")]
    LineTooLong,
    #[error("the head of the request is too large")]
    HeadTooLarge,
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
}

impl Refusal {
    /// The status that tells it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Body | Self::Host => StatusCode::BAD_REQUEST,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::LineTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

impl Request {
    /// A request that is refused, and the connection with it.
    pub fn refused(refusal: Refusal) -> Self {
        Self {
            target: Err(refusal),
            head_only: false,
            version_1_0: false,
            keep_alive: false,
            conditions: None,
        }
    }

    /// Parses the head that `bytes` begin with: the request and its length, or `None` if more
    /// bytes are needed. A refused request whose `keep_alive` is off takes all that follows
    /// with it.
    pub fn parse(bytes: &[u8], hosts: &HostPolicy) -> Option<(Self, usize)> {
        let within = &bytes[..bytes.len().min(MAX_HTTP_HEAD_BYTES)];
        if request_line_too_long(within) {
            return Some((Self::refused(Refusal::LineTooLong), bytes.len()));
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_HTTP_FIELDS];
        let mut head = httparse::Request::new(&mut fields);
        let refusal = match head.parse(within) {
            Ok(httparse::Status::Complete(length)) => {
                return Some((Self::read(&head, hosts), length));
            }
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HTTP_HEAD_BYTES => return None,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                Refusal::HeadTooLarge
            }
            Err(httparse::Error::Version) => Refusal::Version,
            Err(_) => Refusal::Malformed,
        };
        Some((Self::refused(refusal), bytes.len()))
    }

    fn read(head: &httparse::Request<'_, '_>, hosts: &HostPolicy) -> Self {
        let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version)
        else {
            return Self::refused(Refusal::Malformed);
        };
        if method != "GET" && method != "HEAD" {
            return Self::refused(Refusal::Method);
        }
        let version_1_0 = version == 0;
        let fields = match Fields::read(head.headers, version_1_0) {
            Ok(fields) => fields,
            Err(refusal) => return Self::refused(refusal),
        };
        let target = match fields.host {
            _ if !target.starts_with('/') => Err(Refusal::Malformed),
            // Clients of HTTP/1.0 need not name a host; no browser, which is whom the check is
            // about, leaves it out.
            None if !version_1_0 => Err(Refusal::Host),
            Some(host) if !hosts.admits(host) => Err(Refusal::Misdirected),
            _ => Ok(Route::find(target)),
        };
        Self {
            target,
            head_only: method == "HEAD",
            version_1_0,
            keep_alive: fields.keep_alive && !fields.close,
            conditions: fields.conditions,
        }
    }
}

/// Looks only at the first line, so that a long one is refused before it has all arrived.
fn request_line_too_long(bytes: &[u8]) -> bool {
    let before = bytes.iter().take_while(|c| matches!(c, b'\r' | b'\n')).count();
    let line = &bytes[before..];
    line.len() > MAX_HTTP_REQUEST_LINE_BYTES
        && !line[..MAX_HTTP_REQUEST_LINE_BYTES].contains(&b'\n')
}

/// The header fields that matter.
struct Fields<'a> {
    host: Option<&'a [u8]>,
    keep_alive: bool,
    close: bool,
    conditions: Option<Box<Conditions>>,
}

impl<'a> Fields<'a> {
    fn read(fields: &[httparse::Header<'a>], version_1_0: bool) -> Result<Self, Refusal> {
        let mut read =
            Self { host: None, keep_alive: !version_1_0, close: false, conditions: None };
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("host") {
                if read.host.replace(field.value).is_some() {
                    return Err(Refusal::Host);
                }
            } else if is("connection") {
                read.connection(field.value);
            } else if is("transfer-encoding") || is("content-length") && field.value != b"0" {
                return Err(Refusal::Body);
            } else if is("range") {
                read.conditions().range = ByteRange::parse(field.value);
            } else if is("if-range") {
                read.conditions().if_range = Some(text(field.value));
            } else if is("if-none-match") {
                read.conditions().if_none_match = Some(text(field.value));
            }
        }
        Ok(read)
    }

    fn connection(&mut self, value: &[u8]) {
        for word in value.split(|&c| c == b',').map(<[u8]>::trim_ascii) {
            self.close |= word.eq_ignore_ascii_case(b"close");
            self.keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn conditions(&mut self) -> &mut Conditions {
        self.conditions.get_or_insert_default()
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn hosts() -> HostPolicy {
        HostPolicy::new(Ipv4Addr::LOCALHOST.into(), &[])
    }

    fn parse(text: &str) -> Request {
        Request::parse(text.as_bytes(), &hosts()).expect("a whole head").0
    }

    #[test]
    fn reads_what_guix_sends() {
        let text = "GET /zab5qqb146vi73jmxl23i3ygcy7lsrps.narinfo HTTP/1.1\r\n\
                    Host: localhost:8710\r\nUser-Agent: GNU Guile\r\n\r\nGET /";
        let (request, length) = Request::parse(text.as_bytes(), &hosts()).expect("whole");
        assert_eq!(length, text.len() - 5);
        assert!(matches!(request.target, Ok(Route::Narinfo(_))));
        assert!(request.keep_alive && !request.head_only && request.conditions.is_none());
        for cut in 0..length {
            assert_eq!(Request::parse(&text.as_bytes()[..cut], &hosts()), None, "{cut}");
        }
    }

    #[test]
    fn keeps_connections_as_the_version_says() {
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(parse("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(
            !parse("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: x, Close\r\n\r\n").keep_alive
        );
        assert!(
            !parse(
                "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 Connection: keep-alive\r\n\r\n"
            )
            .keep_alive
        );
    }

    #[test]
    fn refuses_with_a_reason() {
        let refusal = |text: &str| parse(text).target.expect_err("refused");
        let get = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(refusal("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n"), Refusal::Method);
        assert_eq!(refusal("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"), Refusal::Method);
        assert_eq!(
            refusal("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            Refusal::Malformed
        );
        assert_eq!(refusal(&get("Host: localhost\r\nContent-Length: 5\r\n")), Refusal::Body);
        assert_eq!(
            refusal(&get("Host: localhost\r\nTransfer-Encoding: chunked\r\n")),
            Refusal::Body
        );
        assert_eq!(refusal(&get("")), Refusal::Host);
        assert_eq!(refusal(&get("Host: localhost\r\nHost: localhost\r\n")), Refusal::Host);
        assert_eq!(refusal(&get("Host: evil.example\r\n")), Refusal::Misdirected);
        assert_eq!(refusal("GET / HTTP/3.0\r\n\r\n"), Refusal::Version);
        assert_eq!(refusal("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Refusal::Version);
        assert_eq!(refusal("GET /a\0b HTTP/1.1\r\n\r\n"), Refusal::Malformed);
        assert_eq!(refusal("\x16\x03\x01\x02\x00\x01"), Refusal::Malformed);
        assert_eq!(refusal(&get(&"X: y\r\n".repeat(65))), Refusal::HeadTooLarge);
        let long = "x".repeat(1 << 20);
        assert_eq!(refusal(&format!("GET /{long}")), Refusal::LineTooLong);
        assert_eq!(refusal(&get(&format!("X: {long}"))), Refusal::HeadTooLarge);
    }

    #[test]
    fn reads_conditions() {
        let request = parse(
            "HEAD / HTTP/1.1\r\nhost: 127.0.0.1\r\nRANGE: bytes=5-\r\nIf-Range: \"x\"\r\n\
             If-None-Match: W/\"y\"\r\nContent-Length: 0\r\n\r\n",
        );
        assert!(request.head_only);
        let conditions = request.conditions.expect("conditions");
        assert_eq!(conditions.range, Some(ByteRange::From(5)));
        assert_eq!(conditions.if_range.as_deref(), Some("\"x\""));
        assert_eq!(conditions.if_none_match.as_deref(), Some("W/\"y\""));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes, &hosts());
        }

        #[test]
        fn survives_odd_heads(text in "(GET|HEAD|[A-Z]{0,5}) ?/[ -~]{0,40} HTTP/1.[0-2]\r\n([a-zA-Z-]{0,12}: [ -ÿ]{0,20}\r\n){0,5}\r\n") {
            let _ = Request::parse(text.as_bytes(), &hosts());
        }
    }
}
