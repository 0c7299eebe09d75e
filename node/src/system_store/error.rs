//! What can go wrong with the system's store. All of it is local: nobody else is to blame.

use narswarm_protocol::nar::NarError;
use std::io;
use std::path::PathBuf;

/// Why the system's store, its database or what is remembered of it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SystemStoreError {
    /// The database of the store can't be read.
    #[error("cannot read the store's database {}: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The database changed each time that it was read without locks.
    #[error("the store's database {} is busy; it is read again later", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// What was remembered can't be read or written.
    #[error("cannot use {}: {source}; it may be deleted, then items are hashed anew", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file system said no.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A tree that no nar can hold.
    #[error("{}: {source}", path.display())]
    Tree {
        /// The tree.
        path: PathBuf,
        /// Why not.
        source: NarError,
    },
    /// Neither file nor directory nor symlink.
    #[error("{} is neither a file, nor a directory, nor a symlink", path.display())]
    Kind {
        /// Which file.
        path: PathBuf,
    },
    /// An item is no longer what it was when it was hashed.
    #[error("{} has changed since it was hashed", path.display())]
    Changed {
        /// The item.
        path: PathBuf,
    },
    /// A pattern of the policy is malformed.
    #[error("the pattern {pattern:?} is not valid: {source}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        source: globset::Error,
    },
}

impl SystemStoreError {
    /// Whether this says nothing of the item: the machine is short of something for a moment.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        use rustix::io::Errno;
        let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR];
        let code = match self {
            Self::Memory { .. } | Self::Busy { .. } => return true,
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        code.is_some_and(|code| short.iter().any(|errno| errno.raw_os_error() == code))
    }
}
