//! A raw HTTP/1.1 client that behaves as guix does (all requests of a burst in one write, answers
//! in order) and tells what guix would feel: a reset is not a close.

use crate::lab::namespace::Namespace;
use bytes::{Buf, Bytes, BytesMut};
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

/// Longest status line and headers.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Octets that are read at once.
const READ_BYTES: usize = 256 * 1024;

/// How a connection ended before its answers did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// RST: guix goes on to the next URL or server.
    Reset,
    /// FIN: guix raises an exception and the build fails.
    Closed,
}

/// Why a request got no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection ended too early.
    #[error("{cut:?} after {body_bytes} octets of body")]
    Cut {
        /// How.
        cut: Cut,
        /// Octets of the unfinished body that had come; 0 when the head was unfinished.
        body_bytes: u64,
    },
    /// Not HTTP/1.1.
    #[error("not HTTP: {0}")]
    Protocol(&'static str),
    /// Anything else that the socket says.
    #[error(transparent)]
    Io(io::Error),
}

/// Status and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Names in lower case, values as they came.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The Content-Length.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The `max-age` of Cache-Control, in seconds.
    #[must_use]
    pub fn max_age(&self) -> Option<u64> {
        self.header("cache-control")?
            .split(',')
            .find_map(|directive| directive.trim().strip_prefix("max-age=")?.parse().ok())
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status and headers.
    pub head: Head,
    /// The body without chunk framing.
    pub body: Bytes,
}

/// The answers to a burst.
#[derive(Debug)]
pub struct Burst {
    /// In the order of the requests.
    pub replies: Vec<Reply>,
    /// From the first octet written to the first answer complete.
    pub first: Duration,
    /// From the first octet written to the last answer complete.
    pub total: Duration,
}

/// One connection.
#[derive(Debug)]
pub struct HttpClient {
    stream: TcpStream,
    input: BytesMut,
    host: String,
}

impl HttpClient {
    /// Connects.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect(address).await?)
    }

    /// Connects from another network namespace.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn connect_in(namespace: &Namespace, address: SocketAddr) -> io::Result<Self> {
        Self::over(namespace.connect(address).await?)
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let host = stream.peer_addr()?.to_string();
        Ok(Self { stream, input: BytesMut::new(), host })
    }

    /// The socket, for what this client does not do.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Writes octets as they are.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.stream.write_all(octets).await
    }

    /// A request as guix spells it.
    #[must_use]
    pub fn spell(&self, method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: GNU Guile\r\n\r\n", self.host)
    }

    /// One GET and its answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&mut self, path: &str) -> Result<Reply, ClientError> {
        let mut body = Vec::new();
        let head = self.get_into(path, |octets| body.extend_from_slice(octets)).await?;
        Ok(Reply { head, body: body.into() })
    }

    /// One GET whose body goes to `sink` as it comes: for nars larger than memory should hold,
    /// and for timing first octets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_into(
        &mut self,
        path: &str,
        sink: impl FnMut(&[u8]),
    ) -> Result<Head, ClientError> {
        let request = self.spell("GET", path);
        self.send(request.as_bytes()).await.map_err(|error| ending(&error, 0))?;
        let mut reader = Reader { stream: &mut self.stream, input: &mut self.input };
        let head = reader.head().await?;
        reader.body(&head, sink).await?;
        Ok(head)
    }

    /// One HEAD; its answer has no body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn head(&mut self, path: &str) -> Result<Head, ClientError> {
        let request = self.spell("HEAD", path);
        self.send(request.as_bytes()).await.map_err(|error| ending(&error, 0))?;
        Reader { stream: &mut self.stream, input: &mut self.input }.head().await
    }

    /// Reads one answer to something sent with [`Self::send`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read_reply(&mut self) -> Result<Reply, ClientError> {
        Reader { stream: &mut self.stream, input: &mut self.input }.reply().await
    }

    /// Writes GETs for all `paths` in one write and reads their answers in order, reading while
    /// it writes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pipeline(&mut self, paths: &[String]) -> Result<Burst, ClientError> {
        let mut requests = String::new();
        for path in paths {
            // Writing to memory cannot fail.
            let _ = write!(requests, "{}", self.spell("GET", path));
        }
        let (mut reader, mut writer) = self.stream.split();
        let start = Instant::now();
        let write = async {
            let written = writer.write_all(requests.as_bytes()).await;
            written.map_err(|error| ending(&error, 0))
        };
        let read = async {
            let mut reader = Reader { stream: &mut reader, input: &mut self.input };
            let mut replies = Vec::with_capacity(paths.len());
            let mut first = Duration::ZERO;
            for number in 0..paths.len() {
                replies.push(reader.reply().await?);
                if number == 0 {
                    first = start.elapsed();
                }
            }
            Ok((replies, first))
        };
        let ((), (replies, first)) = tokio::try_join!(write, read)?;
        Ok(Burst { replies, first, total: start.elapsed() })
    }

    /// A [`Self::pipeline`] that is all that its connection is used for.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn burst(mut self, paths: &[String]) -> Result<Burst, ClientError> {
        self.pipeline(paths).await
    }
}

/// What a failed read or write means.
fn ending(error: &io::Error, body_bytes: u64) -> ClientError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ClientError::Cut { cut: Cut::Reset, body_bytes }
        }
        kind => ClientError::Io(kind.into()),
    }
}

/// Where answers come from.
trait Source: tokio::io::AsyncRead + Unpin {}
impl Source for TcpStream {}
impl Source for ReadHalf<'_> {}

struct Reader<'a, S> {
    stream: &'a mut S,
    input: &'a mut BytesMut,
}

impl<S: Source> Reader<'_, S> {
    /// Reads some more; `false` at the end.
    async fn more(&mut self, body_bytes: u64) -> Result<bool, ClientError> {
        self.input.reserve(READ_BYTES);
        match self.stream.read_buf(self.input).await {
            Ok(octets) => Ok(octets > 0),
            Err(error) => Err(ending(&error, body_bytes)),
        }
    }

    async fn more_or_cut(&mut self, body_bytes: u64) -> Result<(), ClientError> {
        if self.more(body_bytes).await? {
            return Ok(());
        }
        Err(ClientError::Cut { cut: Cut::Closed, body_bytes })
    }

    async fn reply(&mut self) -> Result<Reply, ClientError> {
        let head = self.head().await?;
        let mut body = Vec::new();
        self.body(&head, |octets| body.extend_from_slice(octets)).await?;
        Ok(Reply { head, body: body.into() })
    }

    async fn head(&mut self) -> Result<Head, ClientError> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            match response.parse(self.input) {
                Err(_) => return Err(ClientError::Protocol("the head does not parse")),
                Ok(httparse::Status::Complete(length)) => {
                    let headers = response.headers.iter().map(|header| {
                        let value = String::from_utf8_lossy(header.value).into_owned();
                        (header.name.to_ascii_lowercase(), value)
                    });
                    let headers = headers.collect();
                    let status = response.code.unwrap_or(0);
                    self.input.advance(length);
                    return Ok(Head { status, headers });
                }
                Ok(httparse::Status::Partial) if self.input.len() > MAX_HEAD_BYTES => {
                    return Err(ClientError::Protocol("the head has no end"));
                }
                Ok(httparse::Status::Partial) => self.more_or_cut(0).await?,
            }
        }
    }

    async fn body(&mut self, head: &Head, mut sink: impl FnMut(&[u8])) -> Result<(), ClientError> {
        let mut read = 0;
        if matches!(head.status, 100..=199 | 204 | 304) {
            return Ok(());
        }
        if head.is_chunked() {
            return self.chunks(sink).await;
        }
        if let Some(length) = head.content_length() {
            return self.exactly(length, &mut read, &mut sink).await;
        }
        loop {
            sink(self.input);
            read += self.input.len() as u64;
            self.input.clear();
            if !self.more(read).await? {
                return Ok(());
            }
        }
    }

    async fn exactly(
        &mut self,
        length: u64,
        read: &mut u64,
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<(), ClientError> {
        let mut left = length;
        loop {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
            sink(&self.input[..part]);
            self.input.advance(part);
            *read += part as u64;
            left -= part as u64;
            if left == 0 {
                return Ok(());
            }
            self.more_or_cut(*read).await?;
        }
    }

    async fn chunks(&mut self, mut sink: impl FnMut(&[u8])) -> Result<(), ClientError> {
        let mut read = 0;
        loop {
            let (line, size) = loop {
                match httparse::parse_chunk_size(self.input) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) => self.more_or_cut(read).await?,
                    Err(_) => return Err(ClientError::Protocol("a chunk has no size")),
                }
            };
            self.input.advance(line);
            self.exactly(size, &mut read, &mut sink).await?;
            while self.input.len() < 2 {
                self.more_or_cut(read).await?;
            }
            if &self.input[..2] != b"\r\n" {
                return Err(ClientError::Protocol("a chunk or its trailer does not end"));
            }
            self.input.advance(2);
            if size == 0 {
                return Ok(());
            }
        }
    }
}
