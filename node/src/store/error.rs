//! What can go wrong between this node and its disk.
//!
//! A full and a read-only disk are told apart from other failures, since the node goes on without
//! keeping what it fetches.

use super::frame::FrameError;
use narswarm_protocol::hash::{NarHash, Root};
use std::io;
use std::path::{Path, PathBuf};

/// Why the store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system has no room left, or the user's quota on it is used up.
    #[error("no room on the disk for {}: {source}; free some space", path.display())]
    Full {
        /// The file being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cache may not grow and nothing in it may go.
    #[error(
        "no room in the cache for {wanted_bytes} more bytes: all that could go has gone; raise \
         its size, unpin items or free disk space"
    )]
    OverQuota {
        /// How many octets were asked for.
        wanted_bytes: u64,
    },
    /// The file system is mounted read-only.
    #[error("{} is on a read-only file system", path.display())]
    ReadOnly {
        /// The file being written.
        path: PathBuf,
    },
    /// Another failure of the file system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A failure of input or output whose file is not known here.
    #[error(transparent)]
    Other(#[from] io::Error),
    /// The index fails; it is made anew at the next start at the latest.
    #[error("the index of the store fails: {source}")]
    Index {
        /// What sled said.
        source: sled::Error,
    },
    /// The index could not be opened again after a failure.
    #[error("the index of the store is out of order; restart the node to rebuild it")]
    NoIndex,
    /// The node is stopping.
    #[error("the store is closed")]
    Closed,
    /// The content has another hash than the one it was announced with.
    #[error("the content of nar {expected} hashes to {found}")]
    Mismatch {
        /// The signed hash.
        expected: NarHash,
        /// The hash of what came.
        found: NarHash,
    },
    /// The content has another size than the one it was announced with.
    #[error("nar {nar} should have {expected_bytes} bytes, but {found_bytes} came")]
    Size {
        /// Which nar.
        nar: NarHash,
        /// NarSize.
        expected_bytes: u64,
        /// How many came; when too many, how many were known when it was noticed.
        found_bytes: u64,
    },
    /// A nar was to be finished before all its pieces were there.
    #[error("nar {nar} lacks piece {piece}")]
    Incomplete {
        /// Which nar.
        nar: NarHash,
        /// The first piece that is missing.
        piece: u32,
    },
    /// A piece list or root doesn't belong to the nar.
    #[error("the piece list given for nar {nar} has root {found}, not {given}")]
    Root {
        /// Which nar.
        nar: NarHash,
        /// The root that was given.
        given: Root,
        /// The root that the piece list has.
        found: Root,
    },
    /// A piece index past the end of the nar.
    #[error("nar {nar} has no piece {piece}")]
    NoSuchPiece {
        /// Which nar.
        nar: NarHash,
        /// The index.
        piece: u32,
    },
    /// A frame that can't be a piece of the nar.
    #[error("piece {piece} of nar {nar}: {source}")]
    Frame {
        /// Which nar.
        nar: NarHash,
        /// Which piece.
        piece: u32,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A narinfo longer than any that is read.
    #[error("a narinfo of {found_bytes} bytes is too long to be kept")]
    NarinfoTooLong {
        /// Its length.
        found_bytes: usize,
    },
}

impl StoreError {
    /// Whether there is no room, on the disk or in the cache.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::OverQuota { .. })
    }

    /// Sorts a failure of `action` on `path` into its kind.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            _ if is_full(&source) => Self::Full { path, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            _ => Self::Io { action, path, source },
        }
    }
}

impl From<sled::Error> for StoreError {
    /// A failure of the disk under sled is told as what it is.
    fn from(source: sled::Error) -> Self {
        match source {
            sled::Error::Io(error) if is_full(&error) => {
                Self::Full { path: "index".into(), source: error }
            }
            source => Self::Index { source },
        }
    }
}

/// Whether the system says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    // sled hands on what the system said as text only.
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
        || error.to_string().contains("StorageFull")
}

/// Names the file in errors of `std::io`.
pub(super) trait AtPath<T> {
    /// Says that `action` on `path` failed.
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::io(action, path, source))
    }
}
