//! Filters of seeds on disk: some ten megabytes each, of which a look reads half a kilobyte, so that
//! they take no memory; and after a restart only what has changed is to be fetched.
//!
//! ```text
//! "narswarm filter 1\n" | series u64 | generation u32 | bits u8 | part bits u8 | items u64
//!                       | hash 32 | signature 64 | the filter's octets
//! ```
//!
//! Numbers are little-endian. Nothing is believed of a file that its seed's key hasn't signed.

use super::data_dir::{DataDir, write_atomically};
use libp2p::PeerId;
use narswarm_protocol::announce::ItemKey;
use narswarm_protocol::filter::{Delta, Filter, FilterError, FilterHead, Parts, Shape, SignedHead};
use narswarm_protocol::limits::{MAX_FILTER_BYTES, MAX_SEEDS_IN_ALL};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const MAGIC: &[u8] = b"narswarm filter 1\n";

/// Octets before those of the filter.
const HEAD_BYTES: usize = MAGIC.len() + 8 + 4 + 2 + 8 + 32 + 64;

/// The folder of a data directory.
#[derive(Debug, Clone)]
pub struct FilterFiles(PathBuf);

/// A seed's filter on disk, whole and signed by it.
#[derive(Debug)]
pub struct FilterFile {
    file: File,
    head: FilterHead,
    parts: Parts,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterFileError {
    /// The seed's fault: what it has sent is not a filter that it has signed.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The disk's.
    #[error("a filter on disk: {0}")]
    Io(#[from] io::Error),
}

impl FilterFiles {
    /// Those of this data directory.
    #[must_use]
    pub fn of(data: &DataDir) -> Self {
        Self(data.path().join("filters"))
    }

    fn path(&self, peer: &PeerId) -> PathBuf {
        self.0.join(peer.to_string())
    }

    /// The filter of a seed with this key, if it is there and good.
    #[must_use]
    pub fn load(&self, peer: &PeerId, key: &[u8; 32]) -> Option<FilterFile> {
        match self.read(peer, key) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%peer, "a seed's filter is fetched anew: {error}");
                None
            }
        }
    }

    fn read(&self, peer: &PeerId, key: &[u8; 32]) -> Result<Option<FilterFile>, FilterFileError> {
        let file = match File::open(self.path(peer)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut octets = Vec::new();
        (&file).take((HEAD_BYTES + MAX_FILTER_BYTES) as u64).read_to_end(&mut octets)?;
        let unsigned = FilterFileError::Filter(FilterError::Unsigned);
        let (head, octets) = read_head(&octets).ok_or(unsigned)?;
        let head = head?.verify(key)?;
        head.check(octets)?;
        let parts = Parts::of(head.shape, octets)?;
        Ok(Some(FilterFile { file, head, parts }))
    }

    /// Keeps a whole filter, once it is known to be what its seed has signed.
    ///
    /// # Errors
    /// See [`FilterFileError`].
    pub fn keep(
        &self,
        peer: &PeerId,
        key: &[u8; 32],
        signed: &SignedHead,
        octets: Vec<u8>,
    ) -> Result<FilterFile, FilterFileError> {
        let head = signed.verify(key)?;
        head.check(&octets)?;
        self.keep_checked(peer, signed, &Filter::from_octets(head.shape, octets)?)
    }

    fn keep_checked(
        &self,
        peer: &PeerId,
        signed: &SignedHead,
        filter: &Filter,
    ) -> Result<FilterFile, FilterFileError> {
        let head = *signed.unverified();
        if filter.items() != head.items {
            return Err(FilterError::Unsigned.into());
        }
        fs::create_dir_all(&self.0)?;
        let mut out = MAGIC.to_vec();
        out.extend(head.series.to_le_bytes());
        out.extend(head.generation.to_le_bytes());
        out.extend([head.shape.bits(), head.shape.part_bits()]);
        out.extend(head.items.to_le_bytes());
        out.extend(head.hash);
        out.extend(signed.signature());
        out.extend(filter.octets().as_slice());
        write_atomically(&self.path(peer), &out, 0o600)?;
        let parts = Parts::of(head.shape, filter.octets())?;
        Ok(FilterFile { file: File::open(self.path(peer))?, head, parts })
    }

    /// Keeps the filter that changes make of an earlier one.
    ///
    /// # Errors
    /// See [`FilterFileError`].
    pub fn change(
        &self,
        peer: &PeerId,
        key: &[u8; 32],
        earlier: &FilterFile,
        signed: &SignedHead,
        changes: &[u8],
    ) -> Result<FilterFile, FilterFileError> {
        let mut octets = vec![0; earlier.parts.octets()];
        earlier.file.read_exact_at(&mut octets, HEAD_BYTES as u64)?;
        let filter = Filter::from_octets(earlier.head.shape, octets)?;
        let delta = Delta::from_octets(earlier.head.shape, changes)?;
        let (head, filter) = (signed.verify(key)?, filter.apply(&delta)?);
        head.check(filter.octets())?;
        self.keep_checked(peer, signed, &filter)
    }

    /// Removes the filter of a seed.
    pub fn forget(&self, peer: &PeerId) {
        // One that stays is of use to nobody, and does no harm.
        let _ = fs::remove_file(self.path(peer));
    }

    /// Removes filters of seeds that are no longer used, when there are many.
    pub fn prune(&self, used: &[PeerId]) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let used: Vec<_> = used.iter().map(|peer| self.path(peer)).collect();
        let others =
            entries.flatten().map(|entry| entry.path()).filter(|path| !used.contains(path));
        let mut others: Vec<_> = others
            .map(|path| (fs::metadata(&path).and_then(|m| m.modified()).ok(), path))
            .collect();
        others.sort();
        let kept = MAX_SEEDS_IN_ALL.saturating_sub(used.len());
        let superfluous = others.len().saturating_sub(kept);
        for (_, path) in &others[..superfluous] {
            let _ = fs::remove_file(path);
        }
    }
}

impl FilterFile {
    /// Which one it is.
    #[must_use]
    pub fn head(&self) -> &FilterHead {
        &self.head
    }

    /// To what share of things that the seed doesn't hold it says yes.
    #[must_use]
    pub fn density(&self) -> f64 {
        self.head.items as f64 / 2_f64.powi(self.head.shape.bits().into())
    }

    /// Whether it says yes to an item. Blocking.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn says_yes(&self, key: &ItemKey) -> io::Result<bool> {
        let range = self.parts.range(key);
        let mut part = vec![0; range.len()];
        self.file.read_exact_at(&mut part, (HEAD_BYTES + range.start) as u64)?;
        self.parts.says_yes(key, &part).map_err(io::Error::other)
    }
}

/// The head before a filter, and the filter.
fn read_head(octets: &[u8]) -> Option<(Result<SignedHead, FilterError>, &[u8])> {
    let rest = octets.strip_prefix(MAGIC)?;
    let (series, rest) = rest.split_first_chunk()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let ([bits, part_bits], rest) = rest.split_first_chunk()?;
    let (items, rest) = rest.split_first_chunk()?;
    let (hash, rest) = rest.split_first_chunk()?;
    let (signature, rest) = rest.split_first_chunk()?;
    let head = Shape::new(*bits, *part_bits).map(|shape| {
        let (series, generation) = (u64::from_le_bytes(*series), u32::from_le_bytes(*generation));
        let head = FilterHead {
            series,
            generation,
            shape,
            items: u64::from_le_bytes(*items),
            hash: *hash,
        };
        SignedHead::new(head, *signature)
    });
    Some((head, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::filter::publisher::{Content, Publisher};
    use narswarm_protocol::store_path::StoreHash;
    use narswarm_protocol::voucher::VoucherSigner;

    fn key(number: u32) -> ItemKey {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        ItemKey::of(&StoreHash(hash))
    }

    fn leading(numbers: std::ops::Range<u32>) -> Vec<u32> {
        numbers.map(|number| narswarm_protocol::filter::leading(&key(number))).collect()
    }

    #[test]
    fn a_filter_is_kept_and_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path().join("data")).expect("a data directory");
        let (files, peer) = (FilterFiles::of(&data), PeerId::random());
        let signer = VoucherSigner::new(&[7; 32]);
        let own = signer.key().0;
        assert!(files.load(&peer, &own).is_none());

        let mut publisher = Publisher::new(1, &mut leading(0..5000));
        let whole = publisher.filter().octets().as_ref().clone();
        let head = publisher.head(&signer);
        assert!(files.keep(&peer, &[9; 32], &head, whole.clone()).is_err(), "another's key");
        assert!(files.keep(&peer, &own, &head, whole[1..].to_vec()).is_err(), "not all of it");
        files.keep(&peer, &own, &head, whole).expect("it is signed");
        let held = files.load(&peer, &own).expect("it is there");
        assert!((0..5000).all(|number| held.says_yes(&key(number)).expect("the disk works")));
        let wrong = (10_000..20_000).filter(|n| held.says_yes(&key(*n)).expect("it works")).count();
        assert!(wrong as f64 <= 1.3 * held.density() * 10_000.0, "{wrong}");

        publisher.handle_held(&key(5001));
        assert!(publisher.publish());
        let have = Some((held.head().series, held.head().generation));
        let Content::Changes(changes) = publisher.content(have) else { panic!("changes are few") };
        let later = publisher.head(&signer);
        let changed = files.change(&peer, &own, &held, &later, &changes).expect("they fit");
        assert!(changed.says_yes(&key(5001)).expect("the disk works"));
        assert!(files.change(&peer, &own, &changed, &later, &changes).is_err(), "not twice");
        let reloaded = files.load(&peer, &own).expect("it is there");
        assert_eq!(reloaded.head(), changed.head());
        assert!(files.load(&peer, &[9; 32]).is_none(), "it is not another's");
        files.forget(&peer);
        assert!(files.load(&peer, &own).is_none());
    }

    #[test]
    fn damaged_files_are_none_and_old_ones_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path().join("data")).expect("a data directory");
        let files = FilterFiles::of(&data);
        let signer = VoucherSigner::new(&[7; 32]);
        let publisher = Publisher::new(1, &mut leading(0..50));
        let whole = publisher.filter().octets().as_ref().clone();
        let peers: Vec<_> = (0..12).map(|_| PeerId::random()).collect();
        let own = signer.key().0;
        for peer in &peers {
            files.keep(peer, &own, &publisher.head(&signer), whole.clone()).expect("signed");
        }
        let path = files.path(&peers[0]);
        let good = fs::read(&path).expect("it is there");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("our own file");
            assert!(files.load(&peers[0], &own).is_none(), "octet {at}");
            fs::write(&path, &good[..at]).expect("our own file");
            assert!(files.load(&peers[0], &own).is_none(), "cut at {at}");
        }
        files.prune(&peers[..3]);
        let left = fs::read_dir(&files.0).expect("a folder").count();
        assert_eq!(left, MAX_SEEDS_IN_ALL);
        assert!(peers[..3].iter().all(|peer| files.path(peer).exists()));
    }
}
