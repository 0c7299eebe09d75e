//! What an interrupted fetch leaves in `partial/`: a file of frames and its log.
//!
//! The log says where each piece's frame is in the file, so that a later fetch can go on from
//! there:
//!
//! ```text
//! magic 8 | NarHash 32 | NarSize u64 | crc32 u32
//! index u32 | length u32 | offset u64 | crc32 of the frame u32 | crc32 of this record u32
//! …
//! ```
//! with little-endian numbers. A record of length 0 says that the piece is no longer wanted. The
//! log is never synced: after a loss of power, checksums tell what is there.

use super::cache::remove_file;
use super::error::{AtPath, StoreError};
use super::room::{Leftover, Room};
use narswarm_protocol::base32;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::piece::PieceLayout;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::info;

const MAGIC: [u8; 8] = *b"nswpart1";

/// Octets before the records.
pub(super) const HEADER_BYTES: usize = 52;

/// Octets of a record.
pub(super) const RECORD_BYTES: usize = 24;

/// How files of frames are named: `NARHASH-NUMBER.part`.
pub(super) const SUFFIX: &str = ".part";

/// Leftovers are kept for a week: whoever wanted them has come back by then or won't.
const LEFTOVER_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where the log of a file in `partial/` lies.
pub(super) fn log_path(path: &Path) -> PathBuf {
    path.with_extension("log")
}

/// What the log of a nar begins with.
pub(super) fn encode_header(nar: &NarHash, layout: PieceLayout) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(nar.0);
    header.extend(layout.nar_size().to_le_bytes());
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

/// Where the frame of a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameRecord {
    pub len: u32,
    pub offset: u64,
    /// CRC-32 of the frame.
    pub crc: u32,
}

/// A record of the log.
pub(super) fn encode_record(index: u32, record: &FrameRecord) -> Vec<u8> {
    let mut octets = Vec::with_capacity(RECORD_BYTES);
    octets.extend(index.to_le_bytes());
    octets.extend(record.len.to_le_bytes());
    octets.extend(record.offset.to_le_bytes());
    octets.extend(record.crc.to_le_bytes());
    octets.extend(crc32fast::hash(&octets).to_le_bytes());
    octets
}

/// The latest record of each piece, and how many whole records there are. What the log can't mean
/// is left out.
pub(super) fn read_records(
    octets: &[u8],
    layout: PieceLayout,
) -> (BTreeMap<u32, FrameRecord>, usize) {
    let mut records = BTreeMap::new();
    let mut whole = 0;
    for octets in octets.as_chunks::<RECORD_BYTES>().0 {
        whole += 1;
        let (body, crc) = octets.split_at(RECORD_BYTES - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            continue;
        }
        let u32_at =
            |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let (index, len) = (u32_at(0), u32_at(4));
        let offset = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        let piece_len = layout.piece_len(index);
        if len == 0 {
            records.remove(&index);
        } else if piece_len > 0 && len as usize <= super::max_frame_len(piece_len) {
            records.insert(index, FrameRecord { len, offset, crc: u32_at(16) });
        }
    }
    (records, whole)
}

/// Finds what fetches have left when the node ended, removes what is of no use, and returns a
/// number above those in the names of files.
pub(super) fn find_leftovers(dir: &Path, room: &Room) -> Result<u64, StoreError> {
    fs::create_dir_all(dir).at("create", dir)?;
    let mut next = 0;
    let mut leftovers = room.leftovers.lock();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            if !path.with_extension(&SUFFIX[1..]).exists() {
                remove_file(&path)?;
            }
            continue;
        }
        let Some((nar, number, bytes)) = examine(&path) else {
            remove_file(&path)?;
            remove_file(&log_path(&path))?;
            continue;
        };
        next = next.max(number + 1);
        room.add_partial(bytes);
        if let Some(other) = leftovers.insert(nar, Leftover { path, bytes }) {
            room.remove_partial(other.bytes);
            remove_file(&other.path)?;
            remove_file(&log_path(&other.path))?;
        }
    }
    if !leftovers.is_empty() {
        info!("{} interrupted fetches can be gone on with", leftovers.len());
    }
    Ok(next)
}

/// Nar, number and length of a leftover, if it is one that can be of use.
fn examine(path: &Path) -> Option<(NarHash, u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    let (digits, number) = name.split_once('-')?;
    let nar = NarHash(base32::decode(digits.as_bytes()).ok()?);
    let number = number.parse().ok()?;
    let found = fs::metadata(path).ok()?;
    let age = SystemTime::now().duration_since(found.modified().ok()?).unwrap_or_default();
    let useful = found.len() > 0 && age < LEFTOVER_LIFE && log_path(path).is_file();
    useful.then_some((nar, number, found.len()))
}
