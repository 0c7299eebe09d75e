//! What this node keeps for others in the DHT, what it has announced itself, and the filters of what
//! it holds if it is a seed, from one run to the next.
//!
//! A file each, written now and then and when the node stops. They are a convenience: if the first is
//! lost, others announce again within a day and a half; without the second this node announces
//! everything anew; without the third others fetch its whole filter again.

use super::data_dir::{DataDir, write_atomically};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// Largest file that is read: four times what the largest of both takes.
const MAX_KEPT_BYTES: u64 = 64 << 20;

/// One of the files.
#[derive(Debug, Clone)]
pub struct KeptFile(PathBuf);

impl KeptFile {
    /// What is kept for others.
    #[must_use]
    pub fn providers(data: &DataDir) -> Self {
        Self(data.path().join("providers"))
    }

    /// What was announced.
    #[must_use]
    pub fn announced(data: &DataDir) -> Self {
        Self(data.path().join("announced"))
    }

    /// A seed's own filters.
    #[must_use]
    pub fn own_filters(data: &DataDir) -> Self {
        Self(data.path().join("own-filters"))
    }

    /// What it holds; nothing when it isn't there or can't be read.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        let read =
            File::open(&self.0).and_then(|file| file.take(MAX_KEPT_BYTES).read_to_end(&mut octets));
        match read {
            Ok(_) => octets,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("cannot read {}: {error}", self.0.display());
                }
                Vec::new()
            }
        }
    }

    /// Replaces it.
    ///
    /// # Errors
    /// Those of the file system; the old file stays then.
    pub fn write(&self, octets: &[u8]) -> io::Result<()> {
        write_atomically(&self.0, octets, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path().join("data")).expect("a data directory");
        let file = KeptFile::providers(&data);
        assert!(file.read().is_empty());
        file.write(b"one").expect("written");
        file.write(b"two").expect("replaced");
        assert_eq!(KeptFile::providers(&data).read(), b"two");
        assert!(KeptFile::announced(&data).read().is_empty());
    }
}
