//! The shim over real sockets, with clients that write and read raw bytes.
//!
//! The backend is a [`Twin`] in memory whose answers can be held back. Tests wait for conditions;
//! [`within`] only ends a test that would hang.

mod bodies;
mod bounds;
mod children;
mod pipelining;
mod requests;

use super::*;
use crate::metrics::Metrics;
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// The identity that every nar of the twin claims.
const NAR_HASH: NarHash = NarHash([7; 32]);

/// Fails a test that would hang.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("done within a minute")
}

/// The `n`th store hash.
fn hash(n: u32) -> StoreHash {
    let mut octets = [0; 20];
    octets[..4].copy_from_slice(&n.to_le_bytes());
    StoreHash(octets)
}

/// An item's name under the first store hash.
fn item(name: &str) -> String {
    format!("{}-{name}", hash(0))
}

/// Every third hash is a miss.
fn answer_for(hash: StoreHash) -> NarinfoAnswer {
    let n = u32::from_le_bytes([hash.0[0], hash.0[1], hash.0[2], hash.0[3]]);
    if n % 3 == 2 {
        return NarinfoAnswer::Miss { max_age: Duration::from_secs(10) };
    }
    let body = format!("StorePath: /gnu/store/{hash}-{n}\nURL: nar/{hash}-{n}\n");
    NarinfoAnswer::Hit { body: body.into(), max_age: Duration::from_secs(3600) }
}

/// A nar of the twin.
enum Script {
    /// All there, with ranges.
    Whole(Bytes),
    /// This length is announced, and chunks come as the test sends them.
    Fed(u64, mpsc::Receiver<Result<Bytes, NarAborted>>),
    /// Refused.
    Refused(NarRefusal),
    /// Never opened.
    Never,
}

/// A backend in memory.
#[derive(Default)]
struct Twin {
    /// Every batch, in order.
    batches: watch::Sender<Vec<Vec<StoreHash>>>,
    /// Answers that wait for the test.
    held: Mutex<HashMap<StoreHash, oneshot::Receiver<NarinfoAnswer>>>,
    /// Nars by name; each but whole ones is served once.
    nars: Mutex<HashMap<String, Script>>,
    /// Gives one answer less than it was asked for.
    forgets_the_last: bool,
}

impl Twin {
    fn hold(&self, n: u32) -> oneshot::Sender<NarinfoAnswer> {
        let (sender, receiver) = oneshot::channel();
        self.held.lock().insert(hash(n), receiver);
        sender
    }

    fn put(&self, name: &str, script: Script) {
        self.nars.lock().insert(name.to_owned(), script);
    }

    fn feed(&self, name: &str, length: u64) -> mpsc::Sender<Result<Bytes, NarAborted>> {
        let (sender, receiver) = mpsc::channel(4);
        self.put(name, Script::Fed(length, receiver));
        sender
    }
}

#[async_trait]
impl Backend for Twin {
    fn resolve(&self, hashes: &[StoreHash]) -> Vec<BoxFuture<'static, NarinfoAnswer>> {
        self.batches.send_modify(|batches| batches.push(hashes.to_vec()));
        let take = hashes.len() - usize::from(self.forgets_the_last);
        let mut held = self.held.lock();
        let answer = |&hash: &StoreHash| match held.remove(&hash) {
            Some(receiver) => receiver.map(|answer| answer.expect("an answer")).boxed(),
            None => futures::future::ready(answer_for(hash)).boxed(),
        };
        hashes[..take].iter().map(answer).collect()
    }

    async fn nar(
        &self,
        item: &ItemName,
        _: NarForm,
        want: NarWant,
    ) -> Result<NarReply, NarRefusal> {
        let script = {
            let mut nars = self.nars.lock();
            match nars.get(item.name()) {
                Some(Script::Whole(bytes)) => Some(Script::Whole(bytes.clone())),
                _ => nars.remove(item.name()),
            }
        };
        let nar_hash = Some(NAR_HASH);
        match script.ok_or(NarRefusal::NotFound)? {
            Script::Refused(refusal) => Err(refusal),
            Script::Never => futures::future::pending().await,
            Script::Fed(length, receiver) => {
                let body = stream::unfold(receiver, |mut r| async { Some((r.recv().await?, r)) });
                Ok(NarReply { length, range: None, nar_hash, body: body.boxed() })
            }
            Script::Whole(bytes) => {
                let length = bytes.len() as u64;
                let range = match want {
                    NarWant::Body { range: Some(range) } => Some(
                        range.resolve(length).ok_or(NarRefusal::RangeNotSatisfiable { length })?,
                    ),
                    _ => None,
                };
                let part = range.clone().unwrap_or(0..length);
                let part = bytes.slice(part.start as usize..part.end as usize);
                let body = stream::iter(chunks(part)).map(Ok).boxed();
                Ok(NarReply { length, range, nar_hash, body })
            }
        }
    }

    fn status(&self) -> StatusReport {
        StatusReport {
            role: "workstation".into(),
            fetches: vec![FetchStatus { item: item("a"), ..FetchStatus::default() }],
            ..StatusReport::default()
        }
    }
}

fn chunks(mut bytes: Bytes) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        chunks.push(bytes.split_to(bytes.len().min(256 * 1024)));
    }
    chunks
}

/// Bytes whose position can be told from their value.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// A running shim.
struct Shim {
    address: SocketAddr,
    twin: Arc<Twin>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Shim {
    async fn start() -> Self {
        Self::start_with(HttpConfig::default(), Twin::default()).await
    }

    async fn start_with(config: HttpConfig, twin: Twin) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let (twin, metrics) = (Arc::new(twin), Arc::new(Metrics::new()));
        let stop = CancellationToken::new();
        let serving = serve(listener, twin.clone(), metrics.clone(), config, stop.clone());
        let task = tokio::spawn(serving);
        Self { address, twin, metrics, stop, task }
    }

    async fn client(&self) -> Client {
        let stream = within(TcpStream::connect(self.address)).await.expect("a connection");
        Client { stream, buffer: Vec::new() }
    }

    /// Sends one request on a connection of its own and reads the answer.
    async fn ask(&self, request: &str) -> Answer {
        let mut client = self.client().await;
        client.send(request.as_bytes()).await;
        client.answer(request.starts_with("HEAD")).await
    }
}

/// A client that knows just enough of HTTP to find the end of an answer.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.expect("sent");
    }

    /// Reads more; how many bytes, or what the kernel says.
    async fn read(&mut self) -> std::io::Result<usize> {
        within(self.stream.read_buf(&mut self.buffer)).await
    }

    /// Reads the head of an answer.
    async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                let head = std::mem::replace(&mut self.buffer, rest);
                return String::from_utf8(head).expect("text");
            }
            assert_ne!(self.read().await.expect("a head"), 0, "ended before a head");
        }
    }

    async fn answer(&mut self, to_head: bool) -> Answer {
        let head = self.head().await;
        let status = head[9..12].parse().expect("status");
        let mut answer = Answer { status, head, body: Vec::new() };
        let length = answer.field("Content-Length").expect("Content-Length").parse();
        let length: usize = if to_head || status == 304 { 0 } else { length.expect("number") };
        while self.buffer.len() < length {
            assert_ne!(self.read().await.expect("a body"), 0, "ended before the last byte");
        }
        let rest = self.buffer.split_off(length);
        answer.body = std::mem::replace(&mut self.buffer, rest);
        answer
    }

    /// Reads to the end, whatever it is: all bytes that came, and the error if it was one.
    async fn until_end(mut self) -> (Vec<u8>, Option<std::io::ErrorKind>) {
        loop {
            match self.read().await {
                Ok(0) => return (self.buffer, None),
                Ok(_) => {}
                Err(error) => return (self.buffer, Some(error.kind())),
            }
        }
    }
}

/// A request as guix writes it.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:8710\r\nUser-Agent: GNU Guile\r\n\r\n")
}

fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n")
}

fn narinfo_request(n: u32) -> String {
    get(&format!("/{}.narinfo", hash(n)))
}
