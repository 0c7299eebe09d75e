//! Decompression in steps, without I/O and in bounded memory.
//!
//! Compressed octets are fed as they arrive; a step gives at most as much as it is asked for,
//! however far a few octets would expand, and says whether it wants more input. The decoders of
//! the compression libraries read from a feed that answers "would block" when it is empty, which
//! they all pass on without losing their place.

use bytes::Bytes;
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use narswarm_protocol::limits::{MAX_LZMA_DECODER_BYTES, MAX_ZSTD_WINDOW_LOG};
use narswarm_protocol::narinfo::Compression;
use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

/// Octets of one decoded chunk: half a small piece, and few enough per step to stay in cache.
pub(super) const CHUNK_BYTES: usize = 128 * 1024;

/// What a decoder is ready for after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appetite {
    /// It can give more without more input.
    More,
    /// It needs input.
    Hungry,
    /// The stream is complete.
    Ended,
}

/// Compressed octets that wait to be decoded.
#[derive(Debug, Default)]
struct Feed {
    chunks: VecDeque<Bytes>,
    has_ended: bool,
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
        match self.chunks.front() {
            Some(chunk) => Ok(chunk),
            None if self.has_ended => Ok(&[]),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn consume(&mut self, octets: usize) {
        if let Some(chunk) = self.chunks.front_mut() {
            bytes::Buf::advance(chunk, octets);
        }
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let octets = available.len().min(buffer.len());
        buffer[..octets].copy_from_slice(&available[..octets]);
        self.consume(octets);
        Ok(octets)
    }
}

enum Inner {
    Plain(Feed),
    Gzip(MultiGzDecoder<Feed>),
    /// A stream for each 900 kB when many have compressed at once.
    Bzip2(MultiBzDecoder<Feed>),
    /// lzip and xz.
    Lzma(XzDecoder<Feed>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Feed>>),
}

/// One stream being decoded.
pub(super) struct Decoder {
    inner: Inner,
    /// An error that came after octets that are still worth giving.
    pending: Option<io::Error>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        use liblzma::stream::{CONCATENATED, Stream};
        let feed = Feed::default();
        let inner = match compression {
            Compression::None => Inner::Plain(feed),
            Compression::Gzip => Inner::Gzip(MultiGzDecoder::new(feed)),
            Compression::Lzip => {
                let stream = Stream::new_lzip_decoder(MAX_LZMA_DECODER_BYTES, CONCATENATED)?;
                Inner::Lzma(XzDecoder::new_stream(feed, stream))
            }
            Compression::Xz => {
                let stream = Stream::new_stream_decoder(MAX_LZMA_DECODER_BYTES, CONCATENATED)?;
                Inner::Lzma(XzDecoder::new_stream(feed, stream))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(feed)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Inner::Zstd(Box::new(decoder))
            }
            Compression::Bzip2 => Inner::Bzip2(MultiBzDecoder::new(feed)),
        };
        Ok(Self { inner, pending: None })
    }

    fn feed_mut(&mut self) -> &mut Feed {
        match &mut self.inner {
            Inner::Plain(feed) => feed,
            Inner::Gzip(decoder) => decoder.get_mut(),
            Inner::Bzip2(decoder) => decoder.get_mut(),
            Inner::Lzma(decoder) => decoder.get_mut(),
            Inner::Zstd(decoder) => decoder.get_mut(),
        }
    }

    /// Adds compressed octets.
    pub(super) fn feed(&mut self, octets: Bytes) {
        self.feed_mut().chunks.push_back(octets);
    }

    /// Says that no more will be fed.
    pub(super) fn end(&mut self) {
        self.feed_mut().has_ended = true;
    }

    /// Appends at most `most` decoded octets to `decoded`, in chunks.
    ///
    /// # Errors
    /// The stream is corrupt, ends early, or wants more memory than it may have.
    pub(super) fn step(&mut self, most: usize, decoded: &mut Vec<Bytes>) -> io::Result<Appetite> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut left = most;
        while left > 0 {
            let mut chunk = vec![0; CHUNK_BYTES.min(left)];
            let (filled, appetite) = self.fill(&mut chunk)?;
            left -= filled;
            if filled > 0 {
                chunk.truncate(filled);
                if filled < CHUNK_BYTES / 2 {
                    chunk.shrink_to_fit();
                }
                decoded.push(chunk.into());
            }
            if appetite != Appetite::More || self.pending.is_some() {
                return Ok(appetite);
            }
        }
        Ok(Appetite::More)
    }

    /// Fills `chunk` as far as the input goes.
    fn fill(&mut self, chunk: &mut [u8]) -> io::Result<(usize, Appetite)> {
        let mut filled = 0;
        while filled < chunk.len() {
            let room = &mut chunk[filled..];
            let read = match &mut self.inner {
                Inner::Plain(feed) => feed.read(room),
                Inner::Gzip(decoder) => decoder.read(room),
                Inner::Bzip2(decoder) => decoder.read(room),
                Inner::Lzma(decoder) => decoder.read(room),
                Inner::Zstd(decoder) => decoder.read(room),
            };
            match read {
                Ok(0) => return Ok((filled, Appetite::Ended)),
                Ok(octets) => filled += octets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((filled, Appetite::Hungry));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if filled > 0 => {
                    self.pending = Some(error);
                    return Ok((filled, Appetite::More));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((filled, Appetite::More))
    }
}
/// Decodes a whole compressed stream at hand, as from a file; blocking. `take` gets the decoded
/// octets in order and may end it by an error.
///
/// # Errors
/// What reading, decoding and `take` give.
pub fn decode(
    compression: Compression,
    mut compressed: impl Read,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut decoder = Decoder::new(compression)?;
    let mut decoded = Vec::new();
    loop {
        let appetite = decoder.step(CHUNK_BYTES, &mut decoded)?;
        for chunk in decoded.drain(..) {
            take(&chunk)?;
        }
        match appetite {
            Appetite::Ended => return Ok(()),
            Appetite::More => {}
            Appetite::Hungry => {
                let mut chunk = vec![0; CHUNK_BYTES];
                match compressed.read(&mut chunk)? {
                    0 => decoder.end(),
                    octets => {
                        chunk.truncate(octets);
                        decoder.feed(chunk.into());
                    }
                }
            }
        }
    }
}
