//! The nar archive format, streaming and strict.
//!
//! A nar holds a file, a symlink or a directory tree, and of files only the contents and whether
//! they are executable. Its octets follow from the tree alone, which is why a hash of them can
//! stand for it. Sources: Nix's `libutil/archive.cc` and Guix's `guix/serialization.scm`.
//!
//! ```text
//! nar    = "nix-archive-1" node
//! node   = "(" "type" ( "regular" [ "executable" "" ] "contents" string
//!                     | "symlink" "target" string
//!                     | "directory" { "entry" "(" "name" string "node" node ")" } ) ")"
//! string = its length in 8 octets, little-endian; its octets; zeros up to a multiple of 8
//! ```
//!
//! [`Reader`] turns octets into [`Event`]s however they are cut, [`Writer`] turns events into
//! octets, [`Layout`] knows where in the nar of a tree everything lies. All refuse what is not the one canonical archive of some tree: entries out of order,
//! names that no directory can have, padding that is not zero, anything after the end. Names and
//! targets are octets; they need not be UTF-8.

mod layout;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use layout::{FileId, Layout, LayoutBuilder, Node, Part};
pub use read::Reader;
pub use write::Writer;

use crate::limits::{
    MAX_NAR_DEPTH, MAX_NAR_DIRECTORY_ENTRIES, MAX_NAR_ENTRIES, MAX_NAR_NAME_BYTES,
    MAX_NAR_TARGET_BYTES,
};

/// What the first string of every nar is.
pub const MAGIC: &[u8] = b"nix-archive-1";

/// A part of a tree, in the order in which a nar has them.
///
/// A tree is one of: `Directory`, for each entry an `Entry` and its tree, `DirectoryEnd`; or
/// `File`, `Contents` as often as it takes, `FileEnd`; or `Symlink`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A directory begins.
    Directory,
    /// An entry of the innermost directory, by its name; its tree follows.
    Entry(&'a [u8]),
    /// The innermost directory ends.
    DirectoryEnd,
    /// A regular file begins.
    File {
        /// Whether its owner may execute it.
        executable: bool,
        /// Octets of contents that follow.
        size: u64,
    },
    /// The next octets of the file; never empty when read.
    Contents(&'a [u8]),
    /// The file ends.
    FileEnd,
    /// A symlink and its target.
    Symlink(&'a [u8]),
}

/// Why octets are no nar, or events no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// Another string than the format has there.
    #[error("the nar has {found:?} at octet {offset}, where {expected} belongs")]
    Token {
        /// Where the string begins.
        offset: u64,
        /// What belongs there.
        expected: &'static str,
        /// What is there, escaped.
        found: String,
    },
    /// A string longer than it may be.
    #[error("the nar has {what} of {length} octets at octet {offset}, at most {limit} are read")]
    TooLong {
        /// Where the string begins.
        offset: u64,
        /// What the string is.
        what: &'static str,
        /// Its length in octets.
        length: u64,
        /// The most that it may be.
        limit: u64,
    },
    /// Padding that is not zero.
    #[error("the nar has padding other than zero at octet {offset}")]
    Padding {
        /// Where.
        offset: u64,
    },
    /// A name that no directory entry can have.
    #[error("the nar has a directory entry {name:?}: {problem}")]
    Name {
        /// The name, escaped.
        name: String,
        /// What is wrong with it.
        problem: NameProblem,
    },
    /// A target that no symlink can have: empty, too long, or with a NUL.
    #[error("the nar has a symlink to {target:?}, which no symlink can have")]
    Target {
        /// The target, escaped.
        target: String,
    },
    /// Directories nested too deep, or too many entries.
    #[error("the nar has {what}, more than {limit}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// More octets than the nar may have in all.
    #[error("the nar exceeds {limit} octets")]
    Size {
        /// How many there may be.
        limit: u64,
    },
    /// Octets after the end.
    #[error("something follows the end of the nar at octet {offset}")]
    Trailing {
        /// Where the nar ends.
        offset: u64,
    },
    /// The octets or events end before the tree does.
    #[error("the nar ends at octet {offset}, before its tree is complete")]
    Incomplete {
        /// Where the octets end.
        offset: u64,
    },
    /// An event that cannot come here: a mistake of who writes.
    #[error("no {event} can be written here: {expected} belongs here")]
    Sequence {
        /// What was to be written.
        event: &'static str,
        /// What may come.
        expected: &'static str,
    },
}

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// No octets.
    #[error("it is empty")]
    Empty,
    /// `.` or `..`.
    #[error("it means the directory itself or its parent")]
    Dots,
    /// A slash or a NUL.
    #[error("it has a slash or a NUL")]
    Octet,
    /// Longer than any file system holds.
    #[error("it is longer than {MAX_NAR_NAME_BYTES} octets")]
    Length,
    /// Not after the entry before it, in the order of octets; so also a name that comes twice.
    #[error("it does not come after the entry before it")]
    Order,
}

/// Whether `name` can be a directory entry's.
///
/// # Errors
/// Any [`NameProblem`] but [`NameProblem::Order`].
pub fn check_name(name: &[u8]) -> Result<(), NameProblem> {
    if name.is_empty() {
        Err(NameProblem::Empty)
    } else if name == b"." || name == b".." {
        Err(NameProblem::Dots)
    } else if name.len() > MAX_NAR_NAME_BYTES {
        Err(NameProblem::Length)
    } else if name.iter().any(|&octet| octet == b'/' || octet == 0) {
        Err(NameProblem::Octet)
    } else {
        Ok(())
    }
}

/// Whether `target` can be a symlink's.
fn check_target(target: &[u8]) -> Result<(), NarError> {
    if target.is_empty() || target.len() > MAX_NAR_TARGET_BYTES || target.contains(&0) {
        return Err(NarError::Target { target: escape(target) });
    }
    Ok(())
}

/// Octets for a message: printable, and no more than a line.
fn escape(octets: &[u8]) -> String {
    const SHOWN: usize = 64;
    octets[..octets.len().min(SHOWN)].escape_ascii().to_string()
}

/// Zeros that follow a string of `length` octets.
fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 8
}

/// The directories that are open, and how much they hold: what reader and writer check alike.
#[derive(Debug, Clone, Default)]
struct Open {
    directories: Vec<Directory>,
    entries: u32,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    last_name: Vec<u8>,
    entries: u32,
}

impl Open {
    fn depth(&self) -> usize {
        self.directories.len()
    }

    fn push(&mut self) -> Result<(), NarError> {
        if self.directories.len() >= MAX_NAR_DEPTH {
            let what = "nested directories";
            return Err(NarError::TooMany { what, limit: MAX_NAR_DEPTH as u64 });
        }
        self.directories.push(Directory::default());
        Ok(())
    }

    fn pop(&mut self) {
        self.directories.pop();
    }

    /// Checks the name of the next entry of the innermost directory, and remembers it.
    fn enter(&mut self, name: &[u8]) -> Result<(), NarError> {
        let refuse = |problem| NarError::Name { name: escape(name), problem };
        check_name(name).map_err(refuse)?;
        let Some(directory) = self.directories.last_mut() else {
            return Err(NarError::Sequence { event: "entry", expected: "a node" });
        };
        // No name is empty, so the first entry comes after the empty one.
        if name <= directory.last_name.as_slice() {
            return Err(refuse(NameProblem::Order));
        }
        directory.entries += 1;
        self.entries += 1;
        if directory.entries > MAX_NAR_DIRECTORY_ENTRIES {
            let limit = u64::from(MAX_NAR_DIRECTORY_ENTRIES);
            return Err(NarError::TooMany { what: "entries in one directory", limit });
        }
        if self.entries > MAX_NAR_ENTRIES {
            let limit = u64::from(MAX_NAR_ENTRIES);
            return Err(NarError::TooMany { what: "directory entries in all", limit });
        }
        directory.last_name.clear();
        directory.last_name.extend_from_slice(name);
        Ok(())
    }
}
