//! What this node keeps for others in the DHT, from one run to the next.
//!
//! One file, written now and then and when the node stops. It is a convenience: if it is lost, others
//! announce again within a day and a half.

use super::data_dir::{DataDir, write_atomically};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// Largest file that is read: four times what the largest list takes.
const MAX_KEPT_BYTES: u64 = 64 << 20;

/// The file.
#[derive(Debug, Clone)]
pub struct KeptFile(PathBuf);

impl KeptFile {
    /// The file of this data directory.
    #[must_use]
    pub fn of(data: &DataDir) -> Self {
        Self(data.path().join("providers"))
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
        let file = KeptFile::of(&data);
        assert!(file.read().is_empty());
        file.write(b"one").expect("written");
        file.write(b"two").expect("replaced");
        assert_eq!(KeptFile::of(&data).read(), b"two");
    }
}
