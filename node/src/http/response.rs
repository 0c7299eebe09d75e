//! Heads of answers, written straight into the buffer of the connection.

use http::StatusCode;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use super::request::Request;

/// Writes one head, field by field. Nothing is valid before [`Head::end`].
pub(super) struct Head<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Head<'a> {
    /// The status line and the fields that every answer has.
    pub fn new(out: &'a mut Vec<u8>, status: StatusCode, length: u64, date: &mut DateText) -> Self {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("Status").as_bytes());
        out.extend_from_slice(b"\r\nContent-Length: ");
        write_number(out, length);
        out.extend_from_slice(b"\r\nDate: ");
        out.extend_from_slice(date.now());
        out.extend_from_slice(b"\r\n");
        Self { out }
    }

    /// A field. `value` comes from this program, never from a client.
    pub fn field(self, name: &str, value: &str) -> Self {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value.as_bytes());
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// How long the answer may be kept, in whole seconds.
    pub fn max_age(self, age: Duration) -> Self {
        self.out.extend_from_slice(b"Cache-Control: max-age=");
        write_number(self.out, age.as_secs());
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// The last field, about the connection, and the end of the head.
    pub fn end(self, request: &Request) {
        self.out.extend_from_slice(match (request.keep_alive, request.version_1_0) {
            (true, false) => b"\r\n".as_slice(),
            (true, true) => b"Connection: keep-alive\r\n\r\n",
            (false, _) => b"Connection: close\r\n\r\n",
        });
    }
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The text of the `Date` field, formatted once a second.
#[derive(Debug, Default)]
pub(super) struct DateText {
    second: u64,
    text: String,
}

impl DateText {
    fn now(&mut self) -> &[u8] {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if self.text.is_empty() || second != self.second {
            self.second = second;
            self.text.clear();
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{}", httpdate::HttpDate::from(now));
        }
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::Refusal;

    #[test]
    fn writes_a_head() {
        let mut out = Vec::new();
        Head::new(&mut out, StatusCode::NOT_FOUND, 0, &mut DateText::default())
            .max_age(Duration::from_millis(10_900))
            .field("X", "y")
            .end(&Request::refused(Refusal::Malformed));
        let text = String::from_utf8(out).expect("text");
        let (before, date) = text.split_once("Date: ").expect("date");
        assert_eq!(before, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n");
        let (date, after) = date.split_once("\r\n").expect("line");
        assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
        assert_eq!(after, "Cache-Control: max-age=10\r\nX: y\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn writes_numbers() {
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }
}
