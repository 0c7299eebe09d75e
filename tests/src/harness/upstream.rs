//! A static substitute server: a directory over HTTP/1.1, as nginx would serve it, that counts
//! what it is asked and misbehaves on command.

use bytes::{Buf, BytesMut};
use std::io::{self, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// Octets of answers that are gathered into one write, and of a file that are read at once.
const WRITE_BYTES: usize = 256 * 1024;

/// How a kind of file is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Temper {
    /// As it should be.
    #[default]
    Well,
    /// 404 without a max-age.
    Missing,
    /// 500.
    Broken,
    /// Nothing ever.
    Silent,
    /// The head and this many octets of the body, then nothing.
    StallAfter(u64),
    /// The head and this many octets of the body, then FIN.
    CloseAfter(u64),
    /// The head and this many octets of the body, then RST.
    ResetAfter(u64),
    /// The body with one octet changed, at this offset.
    CorruptAt(u64),
    /// The body no faster than this many octets a second.
    Slow(u64),
}

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    connections: AtomicUsize,
    narinfos: AtomicUsize,
    nars: AtomicUsize,
    others: AtomicUsize,
    body_bytes: AtomicU64,
    /// Which narinfos, in the order asked for.
    hashes: Mutex<Vec<String>>,
}

impl Seen {
    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests for narinfos so far.
    #[must_use]
    pub fn narinfos(&self) -> usize {
        self.narinfos.load(Ordering::Relaxed)
    }

    /// The hashes of the items whose narinfos it was asked for so far, in order.
    #[must_use]
    pub fn narinfo_hashes(&self) -> Vec<String> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests below `/nar/` so far.
    #[must_use]
    pub fn nars(&self) -> usize {
        self.nars.load(Ordering::Relaxed)
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.narinfos() + self.nars() + self.others.load(Ordering::Relaxed)
    }

    /// Octets of bodies written so far.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Relaxed)
    }
}

struct Site {
    root: PathBuf,
    seen: Arc<Seen>,
    narinfos: Mutex<Temper>,
    nars: Mutex<Temper>,
}

/// A server that lasts until it is stopped or dropped.
pub struct StaticServer {
    address: SocketAddr,
    site: Arc<Site>,
    accepting: Option<AbortOnDropHandle<()>>,
}

impl StaticServer {
    /// Serves the files below `root` on a free loopback port.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(root: impl Into<PathBuf>) -> io::Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await?, root)
    }

    /// Serves the files below `root` wherever this listens.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start_on(listener: TcpListener, root: impl Into<PathBuf>) -> io::Result<Self> {
        let site = Site {
            root: root.into(),
            seen: Arc::default(),
            narinfos: Mutex::default(),
            nars: Mutex::default(),
        };
        let address = listener.local_addr()?;
        let mut server = Self { address, site: Arc::new(site), accepting: None };
        server.accept(listener);
        Ok(server)
    }

    /// Where it listens, or listened before it was stopped.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has seen.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.site.seen
    }

    /// How narinfos are answered from now on.
    pub fn answer_narinfos(&self, temper: Temper) {
        *self.site.narinfos.lock().unwrap_or_else(PoisonError::into_inner) = temper;
    }

    /// How files below `/nar/` are answered from now on.
    pub fn answer_nars(&self, temper: Temper) {
        *self.site.nars.lock().unwrap_or_else(PoisonError::into_inner) = temper;
    }

    /// Closes the port and all connections, as when the machine's service is stopped.
    pub async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // Ends with the error that says that it was aborted.
            let _ = accepting.await;
        }
    }

    /// Listens again at the same address.
    ///
    /// # Errors
    /// When somebody else has the port.
    pub async fn resume(&mut self) -> io::Result<()> {
        self.accept(TcpListener::bind(self.address).await?);
        Ok(())
    }

    fn accept(&mut self, listener: TcpListener) {
        let site = Arc::clone(&self.site);
        let accepting = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                site.seen.connections.fetch_add(1, Ordering::Relaxed);
                serving.spawn(Connection::new(stream, Arc::clone(&site)).serve());
                while serving.try_join_next().is_some() {}
            }
        });
        self.accepting = Some(AbortOnDropHandle::new(accepting));
    }
}

impl Site {
    /// Counts a request and says how it is to be answered.
    fn temper_for(&self, path: &str) -> Temper {
        let (counter, temper) = if let Some(name) = path.strip_suffix(".narinfo") {
            let mut hashes = self.seen.hashes.lock().unwrap_or_else(PoisonError::into_inner);
            hashes.push(name.trim_start_matches('/').to_owned());
            (&self.seen.narinfos, Some(&self.narinfos))
        } else if path.starts_with("/nar/") {
            (&self.seen.nars, Some(&self.nars))
        } else {
            (&self.seen.others, None)
        };
        counter.fetch_add(1, Ordering::Relaxed);
        temper.map_or(Temper::Well, |temper| *temper.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The file behind a path, never outside the root.
    fn file_for(&self, path: &str) -> Option<PathBuf> {
        let relative = Path::new(path.strip_prefix('/')?);
        let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        let file = self.root.join(relative);
        (is_plain && file.is_file()).then_some(file)
    }
}

struct Request {
    is_head: bool,
    path: String,
    /// The octet from which on the file is wanted, if it isn't all.
    from: Option<u64>,
}

struct Connection {
    stream: TcpStream,
    site: Arc<Site>,
    input: BytesMut,
    /// Answers that are written when no more requests are at hand, as nginx does.
    output: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream, site: Arc<Site>) -> Self {
        Self { stream, site, input: BytesMut::new(), output: Vec::new() }
    }

    /// Answers until the client goes away or a temper ends the connection.
    async fn serve(mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        loop {
            let Some(request) = self.take_request()? else {
                self.flush().await?;
                self.input.reserve(WRITE_BYTES);
                if self.stream.read_buf(&mut self.input).await? == 0 {
                    return Ok(());
                }
                continue;
            };
            self.answer(&request).await?;
        }
    }

    /// The next request, if it is all there.
    fn take_request(&mut self) -> io::Result<Option<Request>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&self.input).map_err(io::Error::other)? {
            httparse::Status::Partial => Ok(None),
            httparse::Status::Complete(length) => {
                let is_head = request.method == Some("HEAD");
                let path = request.path.unwrap_or("/").to_owned();
                let is_range =
                    |header: &&httparse::Header| header.name.eq_ignore_ascii_case("range");
                let range = request.headers.iter().find(is_range);
                let from = range.and_then(|range| {
                    let range = std::str::from_utf8(range.value).ok()?;
                    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
                });
                self.input.advance(length);
                Ok(Some(Request { is_head, path, from }))
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    fn say(&mut self, status: &str, length: u64) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
        self.output.extend_from_slice(head.as_bytes());
    }

    async fn answer(&mut self, request: &Request) -> io::Result<()> {
        let Request { is_head, path, from } = request;
        let temper = self.site.temper_for(path);
        match (temper, self.site.file_for(path)) {
            (Temper::Silent, _) => self.stall().await,
            (Temper::Broken, _) => {
                self.say("500 Internal Server Error", 0);
                Ok(())
            }
            (Temper::Missing, _) | (_, None) => {
                self.say("404 Not Found", 0);
                Ok(())
            }
            (temper, Some(file)) => {
                let mut file = std::fs::File::open(file)?;
                let length = file.metadata()?.len();
                let start = from.filter(|&from| from < length).unwrap_or(0);
                if start > 0 {
                    file.seek(SeekFrom::Start(start))?;
                    let range = format!("Content-Range: bytes {start}-{}/{length}", length - 1);
                    self.say(&format!("206 Partial Content\r\n{range}"), length - start);
                } else {
                    self.say("200 OK", length);
                }
                let file = tokio::fs::File::from_std(file);
                if *is_head { Ok(()) } else { self.send_file(file, length - start, temper).await }
            }
        }
    }

    /// Writes what is there to write, then holds the connection until the client gives up.
    async fn stall(&mut self) -> io::Result<()> {
        self.flush().await?;
        while self.stream.read_buf(&mut self.input).await? > 0 {
            self.input.clear();
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    async fn send_file(
        &mut self,
        mut file: tokio::fs::File,
        length: u64,
        temper: Temper,
    ) -> io::Result<()> {
        let end = match temper {
            Temper::StallAfter(at) | Temper::CloseAfter(at) | Temper::ResetAfter(at) => {
                at.min(length)
            }
            _ => length,
        };
        let mut sent = 0;
        while sent < end {
            let most = match temper {
                // Ten parts a second.
                Temper::Slow(rate) => (rate / 10).clamp(1, WRITE_BYTES as u64),
                _ => WRITE_BYTES as u64,
            };
            let from = self.output.len();
            let part = (&mut file).take(most.min(end - sent)).read_to_end(&mut self.output).await?;
            if part == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Temper::CorruptAt(at) = temper
                && (sent..sent + part as u64).contains(&at)
            {
                // Within the part that was just read, so it fits.
                self.output[from + (at - sent) as usize] ^= 1;
            }
            sent += part as u64;
            self.site.seen.body_bytes.fetch_add(part as u64, Ordering::Relaxed);
            if self.output.len() >= WRITE_BYTES || matches!(temper, Temper::Slow(_)) {
                self.flush().await?;
            }
            if matches!(temper, Temper::Slow(_)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        match temper {
            Temper::StallAfter(_) => self.stall().await,
            Temper::CloseAfter(_) => {
                self.flush().await?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Temper::ResetAfter(_) => {
                self.flush().await?;
                socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
                Err(io::ErrorKind::ConnectionReset.into())
            }
            _ => Ok(()),
        }
    }
}
