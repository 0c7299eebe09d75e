//! A server that does what a test tells it, octet by octet, and counts what it sees.

use bytes::{Buf, BytesMut};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// What a server has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) connections: AtomicUsize,
    pub(super) requests: AtomicUsize,
    /// Reads that had octets: a measure of how requests were batched.
    pub(super) reads: AtomicUsize,
}

impl Seen {
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

/// A server that lasts as long as this.
pub(super) struct TestServer {
    pub(super) url: Url,
    pub(super) seen: Arc<Seen>,
    _accepting: AbortOnDropHandle<()>,
}

impl TestServer {
    /// Runs `script` for each connection, with its number from zero.
    pub(super) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(usize, Wire) -> R + Send + Sync + 'static,
        R: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::start_on(listener, script)
    }

    pub(super) fn start_on<F, R>(listener: TcpListener, script: F) -> Self
    where
        F: Fn(usize, Wire) -> R + Send + Sync + 'static,
        R: Future<Output = Option<()>> + Send + 'static,
    {
        let port = listener.local_addr().expect("an address").port();
        let url = Url::parse(&format!("http://127.0.0.1:{port}")).expect("a URL");
        let seen = Arc::new(Seen::default());
        let counters = Arc::clone(&seen);
        let accepting = tokio::spawn(async move {
            let mut scripts = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = counters.connections.fetch_add(1, Ordering::Relaxed);
                let wire = Wire { stream, input: BytesMut::new(), seen: Arc::clone(&counters) };
                scripts.spawn(script(number, wire));
            }
        });
        Self { url, seen, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Answers each GET with what `answer` makes of its path.
    pub(super) async fn answering<F>(answer: F) -> Self
    where
        F: Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    {
        let answer = Arc::new(answer);
        Self::start(move |_, mut wire| {
            let answer = Arc::clone(&answer);
            async move {
                loop {
                    let path = wire.path().await?;
                    wire.send(&answer(&path)).await?;
                }
            }
        })
        .await
    }
}

/// One connection from the server's side. `None` says that the client is gone.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    input: BytesMut,
    seen: Arc<Seen>,
}

impl Wire {
    /// The path of the next GET.
    pub(super) async fn path(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.input.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.input.split_to(end);
                self.input.advance(4);
                self.seen.requests.fetch_add(1, Ordering::Relaxed);
                let line = std::str::from_utf8(&head).ok()?.lines().next()?.to_owned();
                return line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1").map(str::to_owned);
            }
            self.input.reserve(64 * 1024);
            if self.stream.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
            self.seen.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) async fn send(&mut self, octets: &[u8]) -> Option<()> {
        self.stream.write_all(octets).await.ok()
    }

    /// Keeps the connection open until the client closes it.
    pub(super) async fn idle(&mut self) -> Option<()> {
        while self.stream.read_buf(&mut self.input).await.ok()? > 0 {}
        None
    }
}

/// A 200 with a body.
pub(super) fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Another status without a body.
pub(super) fn status(code: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n{headers}\r\n").into_bytes()
}
