//! The store as a whole, on real disks.

mod crash;
mod damage;
mod full;
mod narinfos;
mod nars;
mod quota;

use super::*;
use narswarm_protocol::piece::PieceLayout;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Octets of the smallest piece.
pub const PIECE: usize = 256 * 1024;

/// Opens a store for tests, with no claim on the free space of the machine's disk.
pub fn open(path: &Path) -> (DataDir, Store) {
    open_with(path, StoreConfig { headroom_bytes: 0, ..StoreConfig::default() })
}

pub fn open_with(path: &Path, config: StoreConfig) -> (DataDir, Store) {
    let data = DataDir::open(path).expect("data directory");
    let store = Store::open(&data, &config).expect("store");
    (data, store)
}

/// Octets that compress by half and differ by `seed`.
pub fn octets(seed: u64, len: usize) -> Vec<u8> {
    let mut octets = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut octets);
    for octet in &mut octets {
        *octet &= 15;
    }
    octets
}

pub fn hash_of(nar: &[u8]) -> NarHash {
    NarHash(Sha256::digest(nar).into())
}

pub fn layout_of(nar: &[u8]) -> PieceLayout {
    PieceLayout::new(nar.len() as u64).expect("layout")
}

pub fn import(store: &Store, nar: &[u8]) -> Result<Arc<HeldNar>, StoreError> {
    let mut writer = NarWriter::new(store, hash_of(nar), layout_of(nar))?;
    writer.write(nar)?;
    writer.finish()
}

pub fn read_all(held: &HeldNar) -> Vec<u8> {
    let pieces = 0..held.list().layout().piece_count();
    pieces.flat_map(|index| held.piece(index).expect("piece")).collect()
}

pub fn item(number: u64) -> StoreHash {
    let mut octets = [0; 20];
    octets.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..20]);
    StoreHash(octets)
}

pub fn narinfo(number: u64) -> Bytes {
    format!("StorePath: {number}\n{}", "x".repeat(number as usize % 2000)).into()
}

pub fn put(store: &Store, number: u64) -> Result<(), StoreError> {
    store.put_narinfos(&[(item(number), NarHash([number as u8; 32]), narinfo(number))])
}

pub fn assert_narinfo(store: &Store, number: u64) {
    assert_eq!(store.narinfo(&item(number)).expect("read"), Some(narinfo(number)), "{number}");
}

/// The only file below `dir` whose name ends in `suffix`.
pub fn only_file(dir: &Path, suffix: &str) -> PathBuf {
    let mut found = files(dir);
    found.retain(|path| path.to_string_lossy().ends_with(suffix));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// All files below `dir`.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn everything_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Store>();
    shared::<DataDir>();
    shared::<HeldNar>();
    shared::<PartialNar>();
    shared::<NarWriter>();
    shared::<StoreError>();
}
