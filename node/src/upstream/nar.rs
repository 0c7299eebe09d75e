//! One nar on its way from a substitute server: download, decoding, and the bound of its size.
//!
//! A task pumps: it reads what has arrived, decodes it on the threads for blocking work, and
//! sends chunks through a short queue, so that a slow reader slows the server down and memory
//! stays bounded. It gives exactly NarSize octets or an error. Dropping the stream ends the task.

use super::decode::{Appetite, CHUNK_BYTES, Decoder};
use super::error::UpstreamError;
use crate::rate::DownloadLimit;
use bytes::Bytes;
use futures::{FutureExt, Stream};
use narswarm_protocol::narinfo::Compression;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// Chunks between the pump and the reader: half a mebibyte bridges the reader's pauses.
const QUEUED_CHUNKS: usize = 4;

/// Compressed octets that are decoded in one go: enough to be worth a thread's attention.
const GATHERED_BYTES: usize = 128 * 1024;

/// Decoded octets of one step, which is the most that one download holds besides its queue.
const STEP_BYTES: usize = 4 * CHUNK_BYTES;

/// How long to wait for the end of the stream once all octets of the nar are there. The end
/// brings a checksum and frees the connection for the next nar, but the NarHash decides anyway.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// All that it takes to fetch one nar.
pub(super) struct Download {
    pub(super) http: reqwest::Client,
    pub(super) url: Url,
    pub(super) compression: Compression,
    pub(super) nar_size: u64,
    /// Octet of the nar from which it is wanted; earlier ones may come nevertheless.
    pub(super) from: u64,
    pub(super) first_byte_timeout: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) download: DownloadLimit,
}

/// Octets of a nar as they were sent, and as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawPart {
    /// The next octets of the compressed stream. They come before what they decode to.
    Compressed(Bytes),
    /// The next octets of the nar.
    Decoded(Bytes),
}

/// A nar being downloaded: its compressed and its decoded octets, each in order.
///
/// After an error the stream ends. It ends without an error once exactly NarSize octets have
/// been decoded and the compressed stream is complete.
#[derive(Debug)]
pub struct RawNar {
    parts: mpsc::Receiver<Result<RawPart, UpstreamError>>,
    content_length: Option<u64>,
    start: u64,
    _pump: AbortOnDropHandle<()>,
}

impl RawNar {
    /// Octets of the compressed stream, where the server told.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// The next part, or `None` at the end.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn next(&mut self) -> Option<Result<RawPart, UpstreamError>> {
        self.parts.recv().await
    }
}

impl Stream for RawNar {
    type Item = Result<RawPart, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.parts.poll_recv(cx)
    }
}

/// A nar being downloaded: its decoded octets in order, in chunks of up to 128 KiB.
///
/// After an error the stream ends. It ends without an error after exactly NarSize octets.
#[derive(Debug)]
pub struct UpstreamNar {
    raw: RawNar,
}

impl UpstreamNar {
    pub(super) fn new(raw: RawNar) -> Self {
        Self { raw }
    }

    /// Which octet of the nar comes first: the one asked for, or 0.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.raw.start
    }

    /// The next octets, or `None` at the end.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn next(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for UpstreamNar {
    type Item = Result<Bytes, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.raw.parts.poll_recv(cx)) {
                Some(Ok(RawPart::Decoded(octets))) => return Poll::Ready(Some(Ok(octets))),
                Some(Ok(RawPart::Compressed(_))) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Where a narinfo's `URL` is: itself if absolute, else base + "/" + URL, as Guix joins them.
pub(super) fn locate(base: &str, url: &str) -> Result<Url, UpstreamError> {
    let (text, parsed) = match Url::parse(url) {
        Ok(absolute) => (url.to_owned(), Ok(absolute)),
        Err(_) => {
            let joined = format!("{base}/{url}");
            let parsed = Url::parse(&joined);
            (joined, parsed)
        }
    };
    let reason = match &parsed {
        Err(_) => "it is not a URL",
        Ok(url) if !matches!(url.scheme(), "http" | "https") => "only http and https are spoken",
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "it has a user name or password, which are not sent"
        }
        Ok(url) => return Ok(url.clone()),
    };
    Err(UpstreamError::Url { url: text, reason })
}

/// Asks for the nar and, once the headers are there, starts the pump. With `is_raw` the
/// compressed octets come out, too.
pub(super) async fn start(download: Download, is_raw: bool) -> Result<RawNar, UpstreamError> {
    let Download {
        http,
        url,
        compression,
        nar_size,
        from,
        first_byte_timeout,
        stall_timeout,
        download,
    } = download;
    let label: Arc<str> = url.as_str().into();
    let corrupt = |source: io::Error| UpstreamError::Corrupt {
        url: Arc::clone(&label),
        compression,
        source: Arc::new(source),
    };
    let decoder = Decoder::new(compression).map_err(corrupt)?;
    let mut request = http.get(url);
    if from > 0 && compression == Compression::None {
        request = request.header(reqwest::header::RANGE, format!("bytes={from}-"));
    }
    let response = match timeout(first_byte_timeout, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(transfer_error(&label, error, first_byte_timeout)),
        Err(_) => {
            let (after, during) = (first_byte_timeout, "a nar was asked for");
            return Err(UpstreamError::Silent { url: label, after, during });
        }
    };
    let mut start = 0;
    match response.status().as_u16() {
        200 => {}
        206 if is_rest(&response, from, nar_size) => start = from,
        status @ (404 | 410) => return Err(UpstreamError::NotHere { url: label, status }),
        status => return Err(UpstreamError::Status { url: label, status }),
    }
    let content_length = response.content_length();
    if compression == Compression::None {
        match content_length {
            Some(length) if length > nar_size - start => {
                return Err(UpstreamError::TooLong { url: label, nar_size });
            }
            Some(length) if length < nar_size - start => {
                let received = start + length;
                return Err(UpstreamError::TooShort { url: label, received, nar_size });
            }
            _ => {}
        }
    }
    // A live `guix publish` leaves the connection open after an uncompressed nar of no told
    // length: there is no end to wait for.
    let has_end = compression != Compression::None
        || content_length.is_some()
        || response.headers().contains_key(reqwest::header::TRANSFER_ENCODING);
    let (sender, parts) = mpsc::channel(QUEUED_CHUNKS);
    let pump = Pump {
        response,
        decoder: Some(decoder),
        url: label,
        compression,
        nar_size,
        received: start,
        stall_timeout,
        download,
        has_end,
        is_raw,
        sender,
    };
    let pump = AbortOnDropHandle::new(tokio::spawn(pump.run()));
    Ok(RawNar { parts, content_length, start, _pump: pump })
}

/// Whether a partial answer is what was asked for: everything from octet `from` on.
fn is_rest(response: &reqwest::Response, from: u64, nar_size: u64) -> bool {
    let range = response.headers().get(reqwest::header::CONTENT_RANGE);
    from > 0
        && range.is_some_and(|range| {
            let rest = format!("bytes {from}-{}/", nar_size.saturating_sub(1));
            let total = range.to_str().ok().and_then(|range| range.strip_prefix(rest.as_str()));
            total.is_some_and(|total| total == "*" || total.parse() == Ok(nar_size))
        })
}

/// What reqwest reports, in this module's terms.
fn transfer_error(url: &Arc<str>, error: reqwest::Error, after: Duration) -> UpstreamError {
    let url = Arc::clone(url);
    if error.is_timeout() {
        return UpstreamError::Silent { url, after, during: "connecting or transferring a nar" };
    }
    if error.is_connect() {
        return UpstreamError::Connect { url, source: Arc::new(io::Error::other(error)) };
    }
    UpstreamError::Transfer { url, source: Arc::new(error) }
}

struct Pump {
    response: reqwest::Response,
    /// Always there between steps.
    decoder: Option<Decoder>,
    url: Arc<str>,
    compression: Compression,
    nar_size: u64,
    received: u64,
    stall_timeout: Duration,
    download: DownloadLimit,
    has_end: bool,
    is_raw: bool,
    sender: mpsc::Sender<Result<RawPart, UpstreamError>>,
}

/// Why pumping stops.
enum Stop {
    /// All is delivered.
    Done,
    /// The reader went away.
    Unwanted,
    Failed(UpstreamError),
}

impl From<UpstreamError> for Stop {
    fn from(error: UpstreamError) -> Self {
        Self::Failed(error)
    }
}

impl Pump {
    async fn run(mut self) {
        let stop = loop {
            match self.turn().await {
                Ok(()) => {}
                Err(stop) => break stop,
            }
        };
        match stop {
            Stop::Done | Stop::Unwanted => {}
            // A reader that went away does not care.
            Stop::Failed(error) => drop(self.sender.send(Err(error)).await),
        }
    }

    /// Reads what is there and decodes it.
    async fn turn(&mut self) -> Result<(), Stop> {
        let gathered = self.gather().await?;
        if self.is_raw {
            for octets in gathered.iter().flatten() {
                self.send(RawPart::Compressed(octets.clone())).await?;
            }
        }
        let decoder = self.decoder.as_mut().ok_or(Stop::Unwanted)?;
        match gathered {
            Some(gathered) => gathered.into_iter().for_each(|octets| decoder.feed(octets)),
            None => decoder.end(),
        }
        loop {
            let (decoded, appetite) = self.step().await?;
            for octets in decoded {
                self.received += octets.len() as u64;
                if self.received > self.nar_size {
                    let (url, nar_size) = (Arc::clone(&self.url), self.nar_size);
                    return Err(UpstreamError::TooLong { url, nar_size }.into());
                }
                self.send(RawPart::Decoded(octets)).await?;
            }
            match appetite {
                Appetite::More => {}
                Appetite::Hungry => break,
                Appetite::Ended => return Err(self.end()),
            }
        }
        if self.received == self.nar_size && !self.has_end {
            return Err(Stop::Done);
        }
        Ok(())
    }

    /// The stream is complete: is the nar?
    fn end(&self) -> Stop {
        if self.received < self.nar_size { self.too_short().into() } else { Stop::Done }
    }

    /// Waits for octets and takes what has arrived with them; `None` at the end of the body.
    async fn gather(&mut self) -> Result<Option<Vec<Bytes>>, Stop> {
        let is_complete = self.received == self.nar_size;
        let patience = if is_complete && !self.is_raw { END_PATIENCE } else { self.stall_timeout };
        let first = tokio::select! {
            first = timeout(patience, self.response.chunk()) => first,
            () = self.sender.closed() => return Err(Stop::Unwanted),
        };
        let first = match first {
            Ok(Ok(Some(octets))) => octets,
            Ok(Ok(None)) => return Ok(None),
            // All octets of the nar are there: how the connection ends is of no interest.
            Ok(Err(_)) | Err(_) if is_complete && !self.is_raw => return Err(Stop::Done),
            Ok(Err(error)) => {
                return Err(transfer_error(&self.url, error, self.stall_timeout).into());
            }
            Err(_) => {
                let (url, during) = (Arc::clone(&self.url), "a nar was being transferred");
                return Err(UpstreamError::Silent { url, after: patience, during }.into());
            }
        };
        let mut total = first.len();
        let mut gathered = vec![first];
        while total < GATHERED_BYTES.min(self.download.portion()) {
            match self.response.chunk().now_or_never() {
                Some(Ok(Some(octets))) => {
                    total += octets.len();
                    gathered.push(octets);
                }
                // The end and errors come again with the next turn.
                _ => break,
            }
        }
        self.download.take(total).await;
        Ok(Some(gathered))
    }

    /// One step of decoding, away from the threads that serve sockets.
    async fn step(&mut self) -> Result<(Vec<Bytes>, Appetite), Stop> {
        let mut decoder = self.decoder.take().ok_or(Stop::Unwanted)?;
        // One octet above the rest of the nar is enough to see that there is more.
        let left = self.nar_size.saturating_sub(self.received).saturating_add(1);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(STEP_BYTES);
        let is_plain = self.compression == Compression::None;
        let work = move || {
            let mut decoded = Vec::new();
            let outcome = decoder.step(most, &mut decoded);
            (decoder, decoded, outcome)
        };
        let (decoder, decoded, outcome) = if is_plain {
            work()
        } else {
            // Fails only when the runtime shuts down or a decoder panics.
            let done = tokio::task::spawn_blocking(work).await;
            done.map_err(|error| self.corrupt(io::Error::other(error)))?
        };
        self.decoder = Some(decoder);
        match outcome {
            Ok(appetite) => Ok((decoded, appetite)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // All octets of the nar are there and only a checksum is missing: see END_PATIENCE.
                Err(if self.received == self.nar_size && !self.is_raw {
                    Stop::Done
                } else {
                    self.too_short().into()
                })
            }
            Err(error) => Err(self.corrupt(error).into()),
        }
    }

    fn corrupt(&self, source: io::Error) -> UpstreamError {
        let (url, compression) = (Arc::clone(&self.url), self.compression);
        UpstreamError::Corrupt { url, compression, source: Arc::new(source) }
    }

    fn too_short(&self) -> UpstreamError {
        let (url, received, nar_size) = (Arc::clone(&self.url), self.received, self.nar_size);
        UpstreamError::TooShort { url, received, nar_size }
    }

    async fn send(&self, part: RawPart) -> Result<(), Stop> {
        self.sender.send(Ok(part)).await.map_err(|_| Stop::Unwanted)
    }
}
