//! Nars on their way to HTTP clients: from the cache, from the system's store, or as they are
//! being fetched.

mod own_store;

use super::progress::{Cause, Progress};
use super::{Inner, resolve};
use crate::http::{
    ByteRange, NarAborted, NarForm, NarRefusal, NarReply, NarWant, SignedCompression,
};
use crate::store::HeldNar;
use crate::upstream::{RawNar, RawPart};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::{Compression, VerifiedNarinfo};
use narswarm_protocol::store_path::ItemName;
use sha2::{Digest, Sha256};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tracing::warn;

/// Pieces of one body that are read and decoded at once: both of two cores, and one being sent.
const READ_AHEAD: usize = 3;

/// Octets of one chunk of a compressed file: as large as a piece.
const CHUNK_BYTES: u64 = 256 * 1024;

/// How often a nar whose reply hasn't begun is fetched anew after it turned out wrong: each time
/// without those who lied before.
const MISMATCH_TRIES: usize = 4;

/// Opens the nar of `item`.
pub(super) async fn open(
    inner: &Arc<Inner>,
    item: &ItemName,
    form: NarForm,
    want: NarWant,
) -> Result<NarReply, NarRefusal> {
    let known = resolve::one(inner, item.hash()).await.ok_or(NarRefusal::NotFound)?;
    if known.narinfo.item() != item {
        return Err(NarRefusal::NotFound);
    }
    match form {
        NarForm::Plain => open_plain(inner, &known.narinfo, want).await,
        NarForm::Zstd => open_zstd(inner, &known.narinfo, want).await,
        NarForm::Signed(compression) => open_signed(inner, &known.narinfo, compression, want).await,
    }
}

async fn held(inner: &Arc<Inner>, narinfo: &VerifiedNarinfo) -> Option<Arc<HeldNar>> {
    let (inner, nar) = (inner.clone(), narinfo.nar_hash());
    let held = tokio::task::spawn_blocking(move || {
        let held = inner.held(&nar)?;
        inner.store.touch(&nar);
        Some(held)
    });
    held.await.ok().flatten()
}

async fn open_plain(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    want: NarWant,
) -> Result<NarReply, NarRefusal> {
    let length = narinfo.nar_size();
    let nar_hash = Some(narinfo.nar_hash());
    let NarWant::Body { range } = want else {
        return Ok(NarReply { length, range: None, nar_hash, body: stream::empty().boxed() });
    };
    let part = resolve_range(range, length)?;
    let (start, end) = part.clone().map_or((0, length), |part| (part.start, part.end));
    inner.note_asked(&narinfo.item().hash());
    let body = match held(inner, narinfo).await {
        Some(held) => pieces(inner, narinfo, held, start),
        None => match own_store::open(inner, narinfo).await {
            Some(tree) => own_store::body(inner, narinfo, tree, start),
            None => fetched(inner, narinfo, start).await?,
        },
    };
    let body = if end < length { take_bytes(body, end - start) } else { body };
    Ok(NarReply { length, range: part, nar_hash, body })
}

fn resolve_range(range: Option<ByteRange>, length: u64) -> Result<Option<Range<u64>>, NarRefusal> {
    match range {
        None => Ok(None),
        Some(range) => {
            let part = range.resolve(length);
            part.map(Some).ok_or(NarRefusal::RangeNotSatisfiable { length })
        }
    }
}

/// Joins or begins the fetch of a nar and waits for its first octets, so that a failure before
/// them is a complete answer. A nar that went wrong once is waited for as a whole.
async fn fetched(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    start: u64,
) -> Result<BoxStream<'static, Result<Bytes, NarAborted>>, NarRefusal> {
    let mut failure = Cause::NoSource;
    let (mut waited, mut ahead_failed) = (false, false);
    for _ in 0..MISMATCH_TRIES {
        let progress = inner.fetch_of(narinfo).await?;
        let whole = inner.distrusted.contains_key(&narinfo.nar_hash());
        let body = progress.read(start);
        match progress.ready(start, whole).await {
            Ok(()) => return Ok(body),
            Err(Cause::Mismatch) => {
                failure = Cause::Mismatch;
                settle(inner, narinfo, &progress).await;
            }
            // It had just failed, having been fetched ahead: what follows is done with upstream too.
            Err(Cause::NoSource | Cause::Local) if progress.began_ahead() && !ahead_failed => {
                ahead_failed = true;
                settle(inner, narinfo, &progress).await;
            }
            // Those who said they had it failed; another may just be coming.
            Err(Cause::NoSource) if progress.tried_peers() && !waited => {
                waited = true;
                settle(inner, narinfo, &progress).await;
                inner.another_peer().await;
            }
            Err(cause) => {
                failure = cause;
                break;
            }
        }
    }
    Err(match failure {
        Cause::NoSource => NarRefusal::NotFound,
        cause => NarRefusal::Failed(cause.into()),
    })
}

/// Waits until a failed fetch is off the books, so that the next one is a new one.
async fn settle(inner: &Arc<Inner>, narinfo: &VerifiedNarinfo, failed: &Arc<Progress>) {
    let nar = narinfo.nar_hash();
    let same = |current: &super::fetches::Fetching| Arc::ptr_eq(&current.progress, failed);
    while inner.fetches.lock().get(&nar).is_some_and(same) {
        tokio::task::yield_now().await;
    }
}

/// The uncompressed octets of a held nar from `start` on.
fn pieces(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    held: Arc<HeldNar>,
    start: u64,
) -> BoxStream<'static, Result<Bytes, NarAborted>> {
    let layout = held.list().layout();
    let first = layout.piece_at(start);
    let (inner, nar) = (inner.clone(), narinfo.nar_hash());
    stream::iter(first..layout.piece_count())
        .map(move |index| {
            let (held, inner) = (held.clone(), inner.clone());
            let skip = start.saturating_sub(layout.piece_range(index).start) as usize;
            blocking(move || match held.piece(index) {
                Ok(raw) => Ok(raw.slice(skip..)),
                Err(error) => {
                    warn!("{error}");
                    inner.store.quarantine(&nar, &error);
                    Err(io::Error::other(error))
                }
            })
        })
        .buffered(READ_AHEAD)
        .boxed()
}

async fn blocking(
    read: impl FnOnce() -> io::Result<Bytes> + Send + 'static,
) -> Result<Bytes, NarAborted> {
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read.map_err(NarAborted::Local),
        Err(panic) => Err(NarAborted::Local(io::Error::other(panic))),
    }
}

/// Ends a body after `wanted` octets.
fn take_bytes(
    body: BoxStream<'static, Result<Bytes, NarAborted>>,
    wanted: u64,
) -> BoxStream<'static, Result<Bytes, NarAborted>> {
    stream::try_unfold((body, wanted), |(mut body, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(chunk) = body.next().await else { return Ok(None) };
        let mut chunk = chunk?;
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - chunk.len() as u64;
        Ok(Some((chunk, (body, left))))
    })
    .boxed()
}

/// The zstd form: the file of the cache as it is. What isn't held yet is fetched first, since the
/// length of the compressed form is known only then.
async fn open_zstd(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    want: NarWant,
) -> Result<NarReply, NarRefusal> {
    let mut found = held(inner, narinfo).await;
    if found.is_none() {
        found = own_store::compressed(inner, narinfo).await;
    }
    let held = match found {
        Some(held) => held,
        None => {
            let progress = inner.fetch_of(narinfo).await?;
            progress.kept().await.map_err(|cause| match cause {
                Cause::NoSource => NarRefusal::NotFound,
                cause => NarRefusal::Failed(cause.into()),
            })?
        }
    };
    let length = held.zstd_len();
    let NarWant::Body { range } = want else {
        return Ok(NarReply { length, range: None, nar_hash: None, body: stream::empty().boxed() });
    };
    let part = resolve_range(range, length)?;
    let (start, end) = part.clone().map_or((0, length), |part| (part.start, part.end));
    let chunks = (end - start).div_ceil(CHUNK_BYTES);
    let body = stream::iter(0..chunks)
        .map(move |chunk| {
            let held = held.clone();
            let from = start + chunk * CHUNK_BYTES;
            let len = (end - from).min(CHUNK_BYTES) as usize;
            blocking(move || held.read_zstd(from, len))
        })
        .buffered(READ_AHEAD)
        .boxed();
    Ok(NarReply { length, range: part, nar_hash: None, body })
}

/// A URL that an old narinfo signs: passed through from an upstream that has it, decoded and
/// hashed on the way, the last octets withheld until the hash is right.
async fn open_signed(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    compression: SignedCompression,
    want: NarWant,
) -> Result<NarReply, NarRefusal> {
    let compression = match compression {
        SignedCompression::Gzip => Compression::Gzip,
        SignedCompression::Lzip => Compression::Lzip,
        SignedCompression::Xz => Compression::Xz,
        SignedCompression::Bzip2 => Compression::Bzip2,
    };
    let source = narinfo.sources().iter().find(|s| s.compression == compression);
    let (Some(source), Some(upstreams)) =
        (source.filter(|_| narinfo.signs_urls()), &inner.upstreams)
    else {
        return Err(NarRefusal::NotFound);
    };
    for upstream in 0..upstreams.len() {
        let Ok(raw) = upstreams.nar_raw(upstream, source, narinfo.nar_size()).await else {
            continue;
        };
        let Some(length) = raw.content_length() else { continue };
        let body = match want {
            NarWant::Head => stream::empty().boxed(),
            NarWant::Body { .. } => verified_raw(raw, narinfo),
        };
        return Ok(NarReply { length, range: None, nar_hash: None, body });
    }
    Err(NarRefusal::NotFound)
}

/// The compressed octets of `raw`, the last ones only once the decoded ones hash to the NarHash.
fn verified_raw(
    raw: RawNar,
    narinfo: &VerifiedNarinfo,
) -> BoxStream<'static, Result<Bytes, NarAborted>> {
    let expected = narinfo.nar_hash();
    let state = (raw, Sha256::new(), None::<Bytes>);
    stream::try_unfold(state, move |(mut raw, mut hasher, mut withheld)| async move {
        loop {
            match raw.next().await {
                Some(Ok(RawPart::Decoded(octets))) => hasher.update(&octets),
                Some(Ok(RawPart::Compressed(octets))) => {
                    if let Some(chunk) = withheld.replace(octets) {
                        return Ok(Some((chunk, (raw, hasher, withheld))));
                    }
                }
                Some(Err(error)) => return Err(NarAborted::Local(io::Error::other(error))),
                None => {
                    let Some(last) = withheld.take() else { return Ok(None) };
                    if NarHash(hasher.clone().finalize().into()) != expected {
                        return Err(NarAborted::Mismatch);
                    }
                    return Ok(Some((last, (raw, hasher, None))));
                }
            }
        }
    })
    .boxed()
}
