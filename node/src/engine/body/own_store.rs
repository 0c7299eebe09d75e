//! Nars from the system's store on their way to HTTP clients. When an item changes or is collected
//! on the way, the rest comes from elsewhere: every octet that was sent had the right hash.

use super::super::Inner;
use super::{READ_AHEAD, blocking, fetched, held, pieces};
use crate::http::NarAborted;
use crate::store::{HeldNar, NarWriter};
use crate::system_store::TreeNar;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use narswarm_protocol::narinfo::VerifiedNarinfo;
use std::io;
use std::sync::Arc;
use tracing::info;

type Octets = BoxStream<'static, Result<Bytes, NarAborted>>;

/// The nar in the system's store, if it is shared from there.
pub(super) async fn open(inner: &Arc<Inner>, narinfo: &VerifiedNarinfo) -> Option<Arc<TreeNar>> {
    let (store, nar) = (inner.own_store.get()?.clone(), narinfo.nar_hash());
    tokio::task::spawn_blocking(move || store.nar(&nar).map(Arc::new)).await.ok().flatten()
}

/// The nar of the system's store in the compressed form, whose length has to be known: so it is put
/// into the cache, the one copy that is made, for those who ask for it in this form.
pub(super) async fn compressed(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
) -> Option<Arc<HeldNar>> {
    let tree = open(inner, narinfo).await?;
    let (inner, nar) = (inner.clone(), narinfo.nar_hash());
    let copied = tokio::task::spawn_blocking(move || -> io::Result<Arc<HeldNar>> {
        let layout = tree.list().layout();
        let mut writer = NarWriter::new(&inner.store, nar, layout).map_err(io::Error::other)?;
        for index in 0..layout.piece_count() {
            let piece = tree.piece(index).map_err(io::Error::other)?;
            writer.write(&piece).map_err(io::Error::other)?;
        }
        writer.finish().map_err(io::Error::other)
    });
    match copied.await {
        Ok(Ok(held)) => Some(held),
        Ok(Err(error)) => {
            info!(item = %narinfo.item(), "it is fetched, since it can't be copied: {error}");
            None
        }
        Err(_) => None,
    }
}

/// Where the octets come from.
enum From {
    Tree(Octets),
    Elsewhere(Octets),
}

/// The octets of the nar from `start` on.
pub(super) fn body(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    tree: Arc<TreeNar>,
    start: u64,
) -> Octets {
    let (inner, narinfo) = (inner.clone(), narinfo.clone());
    let state = (From::Tree(tree_pieces(tree, start)), start);
    stream::try_unfold(state, move |(mut from, at)| {
        let (inner, narinfo) = (inner.clone(), narinfo.clone());
        async move {
            let mut next = match &mut from {
                From::Tree(octets) | From::Elsewhere(octets) => octets.next().await,
            };
            if let (From::Tree(_), Some(Err(error))) = (&from, &next) {
                info!(item = %narinfo.item(), "the rest comes from elsewhere: {error}");
                let mut rest = elsewhere(&inner, &narinfo, at).await?;
                next = rest.next().await;
                from = From::Elsewhere(rest);
            }
            let Some(chunk) = next.transpose()? else { return Ok(None) };
            let at = at + chunk.len() as u64;
            Ok(Some((chunk, (from, at))))
        }
    })
    .boxed()
}

fn tree_pieces(tree: Arc<TreeNar>, start: u64) -> Octets {
    let layout = tree.list().layout();
    stream::iter(layout.piece_at(start)..layout.piece_count())
        .map(move |index| {
            let tree = tree.clone();
            let skip = start.saturating_sub(layout.piece_range(index).start) as usize;
            blocking(move || {
                let piece = tree.piece(index).map_err(io::Error::other)?;
                Ok(piece.slice(skip..))
            })
        })
        .buffered(READ_AHEAD)
        .boxed()
}

async fn elsewhere(
    inner: &Arc<Inner>,
    narinfo: &VerifiedNarinfo,
    at: u64,
) -> Result<Octets, NarAborted> {
    match held(inner, narinfo).await {
        Some(held) => Ok(pieces(inner, narinfo, held, at)),
        None => fetched(inner, narinfo, at).await.map_err(|_| NarAborted::SourcesLost),
    }
}
