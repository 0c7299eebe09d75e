//! HTTP/1.1 responses out of a stream of octets, without I/O.
//!
//! Only what narinfo replies need: a status, how long it may be kept, and a small body whose
//! length is told by Content-Length, by chunks, or by the end of the connection. Bodies longer
//! than a narinfo, heads longer than anyone needs, and lengths that contradict each other are
//! refused, since on a pipelined connection a wrong length gives one item's answer to another.

use super::error::ResponseProblem;
use bytes::{Buf, Bytes, BytesMut};
use narswarm_protocol::limits::{MAX_NARINFO_BYTES, MAX_RESPONSE_HEAD_BYTES, MAX_RESPONSE_HEADERS};
use std::time::Duration;

/// Provisional responses (100, 103) that are skipped before one real one: servers send one or two.
const MAX_PROVISIONAL: usize = 8;

/// Longest chunk-size line, extensions included: sixteen digits and some room.
const MAX_CHUNK_LINE_BYTES: usize = 256;

/// One whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// `max-age` of Cache-Control.
    pub(super) max_age: Option<Duration>,
    /// A copy of its own: it keeps no read buffer alive.
    pub(super) body: Bytes,
    /// Whether further responses may follow on this connection.
    pub(super) keep_alive: bool,
}

/// Status and headers, as far as they matter.
#[derive(Debug)]
struct Head {
    status: u16,
    max_age: Option<Duration>,
    keep_alive: bool,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size,
    Data(usize),
    DataEnd,
    Trailer(usize),
}

/// Reads the responses of one connection in order.
#[derive(Debug, Default)]
pub(super) struct ResponseReader {
    head: Option<Head>,
    chunk: Option<Chunk>,
    body: Vec<u8>,
    provisional: usize,
}

impl ResponseReader {
    /// Takes the next whole response off the front of `input`, or `None` when it is not all
    /// there. `ended` says that nothing will follow `input`.
    ///
    /// # Errors
    /// After a [`ResponseProblem`] the connection is of no further use.
    pub(super) fn next(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Answer>, ResponseProblem> {
        if self.head.is_none() {
            self.head = self.read_head(input)?;
        }
        let Some(framing) = self.head.as_ref().map(|head| head.framing) else { return Ok(None) };
        let whole = match framing {
            Framing::Length(length) => {
                let whole = input.len() >= length;
                if whole {
                    self.body.extend_from_slice(&input[..length]);
                    input.advance(length);
                }
                whole
            }
            Framing::Chunked => self.read_chunks(input)?,
            Framing::UntilClose => {
                self.extend_body(input.len())?;
                self.body.extend_from_slice(input);
                input.clear();
                ended
            }
        };
        Ok(if whole { self.finish() } else { None })
    }

    fn finish(&mut self) -> Option<Answer> {
        let head = self.head.take()?;
        let body = Bytes::copy_from_slice(&self.body);
        self.body.clear();
        self.chunk = None;
        self.provisional = 0;
        let Head { status, max_age, keep_alive, framing } = head;
        let keep_alive = keep_alive && framing != Framing::UntilClose;
        Some(Answer { status, max_age, body, keep_alive })
    }

    /// Refuses to let the body grow by `more` above the limit.
    fn extend_body(&self, more: usize) -> Result<(), ResponseProblem> {
        if more > MAX_NARINFO_BYTES.saturating_sub(self.body.len()) {
            return Err(ResponseProblem::BodyTooLong { limit: MAX_NARINFO_BYTES });
        }
        Ok(())
    }

    fn read_head(&mut self, input: &mut BytesMut) -> Result<Option<Head>, ResponseProblem> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_RESPONSE_HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            // A head is parsed anew with each read; the bound on its length bounds that, too.
            let window = &input[..input.len().min(MAX_RESPONSE_HEAD_BYTES)];
            let head = match response.parse(window).map_err(ResponseProblem::Head)? {
                httparse::Status::Partial if window.len() == MAX_RESPONSE_HEAD_BYTES => {
                    return Err(ResponseProblem::HeadTooLong { limit: MAX_RESPONSE_HEAD_BYTES });
                }
                httparse::Status::Partial => return Ok(None),
                httparse::Status::Complete(length) => (length, interpret(&response)?),
            };
            let (length, head) = head;
            input.advance(length);
            if head.status >= 200 {
                return Ok(Some(head));
            }
            self.provisional += 1;
            if self.provisional > MAX_PROVISIONAL || head.status == 101 {
                return Err(ResponseProblem::Provisional);
            }
        }
    }

    /// Returns whether the body and its trailer are complete.
    fn read_chunks(&mut self, input: &mut BytesMut) -> Result<bool, ResponseProblem> {
        loop {
            match self.chunk.unwrap_or(Chunk::Size) {
                Chunk::Size => {
                    let line = &input[..input.len().min(MAX_CHUNK_LINE_BYTES)];
                    match httparse::parse_chunk_size(line) {
                        Err(_) => return Err(ResponseProblem::Chunk),
                        Ok(httparse::Status::Partial) if line.len() == MAX_CHUNK_LINE_BYTES => {
                            return Err(ResponseProblem::Chunk);
                        }
                        Ok(httparse::Status::Partial) => return Ok(false),
                        Ok(httparse::Status::Complete((line_length, 0))) => {
                            input.advance(line_length);
                            self.chunk = Some(Chunk::Trailer(0));
                        }
                        Ok(httparse::Status::Complete((line_length, size))) => {
                            let size = usize::try_from(size).unwrap_or(usize::MAX);
                            self.extend_body(size)?;
                            input.advance(line_length);
                            self.chunk = Some(Chunk::Data(size));
                        }
                    }
                }
                Chunk::Data(left) => {
                    let part = left.min(input.len());
                    self.body.extend_from_slice(&input[..part]);
                    input.advance(part);
                    if part < left {
                        self.chunk = Some(Chunk::Data(left - part));
                        return Ok(false);
                    }
                    self.chunk = Some(Chunk::DataEnd);
                }
                Chunk::DataEnd => {
                    if input.len() < 2 {
                        return Ok(false);
                    }
                    if &input[..2] != b"\r\n" {
                        return Err(ResponseProblem::Chunk);
                    }
                    input.advance(2);
                    self.chunk = Some(Chunk::Size);
                }
                Chunk::Trailer(read) => {
                    let Some(end) = input.iter().position(|&octet| octet == b'\n') else {
                        return if read + input.len() > MAX_RESPONSE_HEAD_BYTES {
                            Err(ResponseProblem::HeadTooLong { limit: MAX_RESPONSE_HEAD_BYTES })
                        } else {
                            Ok(false)
                        };
                    };
                    let read = read + end + 1;
                    if read > MAX_RESPONSE_HEAD_BYTES {
                        return Err(ResponseProblem::HeadTooLong {
                            limit: MAX_RESPONSE_HEAD_BYTES,
                        });
                    }
                    let blank =
                        input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]).is_empty();
                    input.advance(end + 1);
                    self.chunk = Some(Chunk::Trailer(read));
                    if blank {
                        return Ok(true);
                    }
                }
            }
        }
    }
}

/// Status and headers → what they mean here.
fn interpret(response: &httparse::Response<'_, '_>) -> Result<Head, ResponseProblem> {
    let status = response.code.ok_or(ResponseProblem::Head(httparse::Error::Status))?;
    let mut length = None;
    let mut chunked = false;
    let mut keep_alive = response.version == Some(1);
    let mut max_age = None;
    for header in response.headers.iter() {
        let name = header.name;
        if name.eq_ignore_ascii_case("content-length") {
            let told = parse_length(header.value).ok_or(ResponseProblem::Length)?;
            if length.is_some_and(|length| length != told) {
                return Err(ResponseProblem::Length);
            }
            length = Some(told);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(ResponseProblem::Length);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for token in header.value.split(|&octet| octet == b',') {
                let token = token.trim_ascii();
                keep_alive = (keep_alive || token.eq_ignore_ascii_case(b"keep-alive"))
                    && !token.eq_ignore_ascii_case(b"close");
            }
        } else if name.eq_ignore_ascii_case("cache-control") {
            max_age = max_age.or_else(|| parse_max_age(header.value));
        }
    }
    let framing = match (status, chunked, length) {
        (100..=199 | 204 | 304, _, _) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, false, Some(length)) if length > MAX_NARINFO_BYTES as u64 => {
            return Err(ResponseProblem::BodyTooLong { limit: MAX_NARINFO_BYTES });
        }
        // Fits: the arm above refuses what is longer than a narinfo.
        (_, false, Some(length)) => Framing::Length(length as usize),
        (_, false, None) => Framing::UntilClose,
    };
    Ok(Head { status, max_age, keep_alive, framing })
}

/// Digits only: a sign or a list is not trusted.
fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The `max-age` among Cache-Control's directives.
fn parse_max_age(value: &[u8]) -> Option<Duration> {
    std::str::from_utf8(value).ok()?.split(',').find_map(|directive| {
        let (name, seconds) = directive.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("max-age") {
            return None;
        }
        seconds.trim().trim_matches('"').parse().ok().map(Duration::from_secs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `octets` in steps of `step` and collects the answers.
    fn read_all(octets: &[u8], step: usize) -> Result<Vec<Answer>, ResponseProblem> {
        let mut reader = ResponseReader::default();
        let mut input = BytesMut::new();
        let mut answers = Vec::new();
        for part in octets.chunks(step) {
            input.extend_from_slice(part);
            while let Some(answer) = reader.next(&mut input, false)? {
                answers.push(answer);
                if input.is_empty() {
                    break;
                }
            }
        }
        answers.extend(reader.next(&mut input, true)?);
        Ok(answers)
    }

    const PIPELINED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nCache-Control: public, max-age=60\r\n\r\nabc\
        HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\ncache-control: max-age=120\r\n\r\n\
        HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nzz";

    #[test]
    fn reads_pipelined_responses_however_they_are_cut() {
        for step in 1..PIPELINED.len() {
            let answers = read_all(PIPELINED, step).expect("well-formed");
            let seen: Vec<_> = answers.iter().map(|a| (a.status, &a.body[..])).collect();
            assert_eq!(
                seen,
                [(200, &b"abc"[..]), (404, b""), (200, b"abcde"), (200, b"zz")],
                "in steps of {step}"
            );
            let ages: Vec<_> = answers.iter().map(|a| a.max_age.map(|age| age.as_secs())).collect();
            assert_eq!(ages, [Some(60), Some(120), None, None]);
            let kept: Vec<_> = answers.iter().map(|a| a.keep_alive).collect();
            assert_eq!(kept, [true, true, true, false]);
        }
    }

    #[test]
    fn a_body_may_end_with_the_connection() {
        let answers = read_all(b"HTTP/1.0 200 OK\r\n\r\nStorePath: x", 5).expect("well-formed");
        assert_eq!(&answers[0].body[..], b"StorePath: x");
        assert!(!answers[0].keep_alive);
    }

    #[test]
    fn refuses_what_cannot_be_trusted() {
        let problem = |octets: &[u8]| read_all(octets, 7).expect_err("refused");
        assert!(matches!(problem(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), ResponseProblem::Head(_)));
        for lengths in ["1\r\nContent-Length: 2", "-1", "+1", "1, 1", "", "99999999999999999999"] {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {lengths}\r\n\r\nab");
            assert_eq!(problem(head.as_bytes()), ResponseProblem::Length, "{lengths:?}");
        }
        let gzip = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(problem(gzip), ResponseProblem::Length);
        let limit = MAX_NARINFO_BYTES;
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", limit + 1);
        assert_eq!(problem(long.as_bytes()), ResponseProblem::BodyTooLong { limit });
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n";
        assert_eq!(problem(chunk), ResponseProblem::BodyTooLong { limit });
        let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'x'; limit + 1]].concat();
        assert_eq!(problem(&endless), ResponseProblem::BodyTooLong { limit });
        let head = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_RESPONSE_HEAD_BYTES));
        assert!(matches!(problem(head.as_bytes()), ResponseProblem::HeadTooLong { .. }));
        let provisional = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_PROVISIONAL + 1);
        assert_eq!(problem(provisional.as_bytes()), ResponseProblem::Provisional);
    }

    proptest! {
        #[test]
        fn hostile_octets_never_panic(
            head in "(HTTP/1\\.1 [0-9]{3} x\r\n(Content-Length: [0-9]{1,3}\r\n|Transfer-Encoding: chunked\r\n)?\r\n)?",
            tail in proptest::collection::vec(any::<u8>(), 0..600),
            step in 1usize..64,
        ) {
            let octets = [head.as_bytes(), &tail].concat();
            let _ = read_all(&octets, step);
        }
    }
}
