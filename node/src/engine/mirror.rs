//! Taking in static mirrors: directories as `guix publish --cache` or rsync leave them, with
//! `HASH.narinfo` files at the top and nars where their URLs say.
//!
//! Everything is verified on the way: the narinfo's signature against the ACL, the nar against
//! its NarHash. What is missing or bad is reported and left out; the rest goes on.

use crate::store::{NarWriter, Store, StoreError};
use crate::upstream::{self, ranked_sources};
use bytes::Bytes;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::{NarSource, UnverifiedNarinfo, VerifiedNarinfo};
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::store_path::StoreHash;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What an import says while it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// So many narinfos were found.
    Found(usize),
    /// One more has been dealt with: its nar is held now.
    Held {
        /// `HASH-NAME`.
        item: String,
        /// Octets of the nar; none when it was held before.
        bytes: u64,
    },
    /// Something was left out.
    LeftOut {
        /// The file or item.
        what: String,
        /// Why.
        why: String,
        /// Whether the narinfo at least was taken in.
        narinfo: bool,
    },
    /// All done.
    Done(Summary),
}

/// The sum of an import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Narinfos taken in or held before.
    pub narinfos: usize,
    /// Nars taken in or held before.
    pub nars: usize,
    /// Items or files left out, in whole or in part.
    pub left_out: usize,
}

/// Hears reports; says whether to go on.
pub type Hear<'a> = dyn Fn(Report) -> bool + Sync + 'a;

/// Narinfos that are made durable together.
const BATCH: usize = 500;

/// Imports all `sources`; blocking, on as many threads as there are cores.
pub fn import(store: &Store, acl: &Acl, sources: &[PathBuf], hear: &Hear) {
    let mut summary = Summary::default();
    let mut work = Vec::new();
    let mut go_on = true;
    for source in sources {
        match narinfo_files(source) {
            Ok(files) => work.extend(files.into_iter().map(|file| (source.as_path(), file))),
            Err(error) => {
                summary.left_out += 1;
                let what = source.display().to_string();
                go_on &= hear(Report::LeftOut { what, why: error.to_string(), narinfo: false });
            }
        }
    }
    go_on &= hear(Report::Found(work.len()));
    for batch in work.chunks(BATCH) {
        if !go_on {
            return;
        }
        go_on = import_batch(store, acl, batch, hear, &mut summary);
    }
    hear(Report::Done(summary));
}

/// The narinfo files at the top of a mirror, in order.
fn narinfo_files(source: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(source)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "narinfo") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(io::Error::other("no narinfos at the top of this directory"));
    }
    files.sort();
    Ok(files)
}

fn import_batch(
    store: &Store,
    acl: &Acl,
    batch: &[(&Path, PathBuf)],
    hear: &Hear,
    summary: &mut Summary,
) -> bool {
    let mut good = Vec::new();
    let go_on = AtomicBool::new(true);
    let left_out = |what: String, why: String, narinfo: bool| {
        if !hear(Report::LeftOut { what, why, narinfo }) {
            go_on.store(false, Ordering::Relaxed);
        }
    };
    for (mirror, file) in batch {
        match read_narinfo(file, acl) {
            Ok(narinfo) => good.push((*mirror, narinfo)),
            Err(why) => {
                summary.left_out += 1;
                left_out(file.display().to_string(), why, false);
            }
        }
    }
    let records: Vec<_> = good.iter().map(|(_, narinfo)| record(narinfo)).collect();
    if let Err(error) = store.put_narinfos(&records) {
        summary.left_out += good.len();
        left_out("the narinfos of this batch".to_owned(), error.to_string(), false);
        return go_on.into_inner();
    }
    summary.narinfos += good.len();
    let (next, nars, missing) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((mirror, narinfo)) = good.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !go_on.load(Ordering::Relaxed) {
                        return;
                    }
                    let item = narinfo.item().to_string();
                    match import_nar(store, mirror, narinfo) {
                        Ok(bytes) => {
                            nars.fetch_add(1, Ordering::Relaxed);
                            if !hear(Report::Held { item, bytes }) {
                                go_on.store(false, Ordering::Relaxed);
                            }
                        }
                        Err(why) => {
                            missing.fetch_add(1, Ordering::Relaxed);
                            left_out(item, why, true);
                        }
                    }
                }
            });
        }
    });
    summary.nars += nars.into_inner();
    summary.left_out += missing.into_inner();
    go_on.into_inner()
}

fn record(narinfo: &VerifiedNarinfo) -> (StoreHash, narswarm_protocol::hash::NarHash, Bytes) {
    let bytes = Bytes::copy_from_slice(narinfo.original());
    (narinfo.item().hash(), narinfo.nar_hash(), bytes)
}

fn read_narinfo(file: &Path, acl: &Acl) -> Result<VerifiedNarinfo, String> {
    let mut bytes = Vec::new();
    let limit = limits::MAX_NARINFO_BYTES as u64 + 1;
    File::open(file)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    let narinfo = UnverifiedNarinfo::parse(&bytes).map_err(|error| error.to_string())?;
    let narinfo = narinfo.verify(acl).map_err(|refusal| refusal.to_string())?;
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if stem != narinfo.item().hash().to_string() {
        return Err(format!("it is the narinfo of another item, {}", narinfo.item()));
    }
    Ok(narinfo)
}

/// Takes in the nar of one narinfo and pins it: what an operator imports stays, whatever the quota
/// makes room for. Returns its size, 0 when it was held before.
fn import_nar(store: &Store, mirror: &Path, narinfo: &VerifiedNarinfo) -> Result<u64, String> {
    let bytes = find_nar(store, mirror, narinfo)?;
    match store.set_pinned(&narinfo.nar_hash(), true) {
        Ok(true) => Ok(bytes),
        Ok(false) => Err("there was no room to keep its nar".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn find_nar(store: &Store, mirror: &Path, narinfo: &VerifiedNarinfo) -> Result<u64, String> {
    let nar_hash = narinfo.nar_hash();
    if store.nar(&nar_hash).map_err(|error| error.to_string())?.is_some() {
        return Ok(0);
    }
    let mut why = "none of its nar files is in the mirror".to_owned();
    for source in ranked_sources(narinfo.sources()) {
        let Some(file) = nar_file(mirror, source) else { continue };
        match copy_nar(store, &file, source, narinfo) {
            Ok(()) => return Ok(narinfo.nar_size()),
            Err(error) => why = format!("{}: {error}", file.display()),
        }
    }
    Err(why)
}

/// Where a relative URL leads within the mirror; nowhere when it leads out of it, or the file
/// isn't there.
fn nar_file(mirror: &Path, source: &NarSource) -> Option<PathBuf> {
    let url = percent_encoding::percent_decode_str(&source.url).decode_utf8().ok()?;
    let relative = Path::new(url.as_ref());
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let file = mirror.join(relative);
    (inside && file.is_file()).then_some(file)
}

fn copy_nar(
    store: &Store,
    file: &Path,
    source: &NarSource,
    narinfo: &VerifiedNarinfo,
) -> Result<(), StoreError> {
    let layout = PieceLayout::new(narinfo.nar_size())
        .ok_or_else(|| StoreError::from(io::Error::other("the nar is too large")))?;
    let mut writer = NarWriter::new(store, narinfo.nar_hash(), layout)?;
    upstream::decode(source.compression, File::open(file)?, |octets| {
        writer.write(octets).map_err(io::Error::other)
    })?;
    writer.finish()?;
    Ok(())
}
