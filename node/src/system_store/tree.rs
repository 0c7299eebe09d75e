//! The nar of a tree on disk, by seeking: where everything lies, and any octets of it.
//!
//! Nothing is copied and no symlink followed. That the octets are those that were hashed, whoever
//! reads them finds out by their hashes: a file that was replaced or changed in place gives other
//! octets, one that was cut off or is gone gives an error.

use super::error::SystemStoreError;
use narswarm_protocol::nar::{FileId, Layout, LayoutBuilder, Node, Part};
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Metadata, OpenOptions};
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The permission that makes a file executable in a nar (`archive.cc`: `S_IXUSR`).
const OWNER_MAY_EXECUTE: u32 = 0o100;

/// Looks at every entry of the tree at `path`, and opens no file.
///
/// # Errors
/// What can't be read, and trees that no nar can hold.
pub fn lay_out(path: &Path) -> Result<Layout, SystemStoreError> {
    let mut walk = Walk { builder: LayoutBuilder::new() };
    let metadata = fs::symlink_metadata(path).map_err(|source| io_error(path, source))?;
    walk.node(path, &metadata)?;
    walk.builder.finish().map_err(|source| SystemStoreError::Tree { path: path.into(), source })
}

fn io_error(path: &Path, source: io::Error) -> SystemStoreError {
    SystemStoreError::Io { path: path.to_owned(), source }
}

struct Walk {
    builder: LayoutBuilder,
}

impl Walk {
    fn node(&mut self, path: &Path, metadata: &Metadata) -> Result<(), SystemStoreError> {
        let refused = |source| SystemStoreError::Tree { path: path.to_owned(), source };
        if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(|source| io_error(path, source))?;
            return self
                .builder
                .node(Node::Symlink(target.as_os_str().as_bytes()))
                .map_err(refused);
        }
        if metadata.is_file() {
            let executable = metadata.mode() & OWNER_MAY_EXECUTE != 0;
            let size = metadata.len();
            return self.builder.node(Node::File { executable, size }).map_err(refused);
        }
        if !metadata.is_dir() {
            return Err(SystemStoreError::Kind { path: path.to_owned() });
        }
        // Refuses what is nested too deep, which bounds the recursion.
        self.builder.node(Node::Directory).map_err(refused)?;
        let mut entries = fs::read_dir(path)
            .and_then(|entries| {
                let named = |entry: DirEntry| (entry.file_name().into_vec(), entry);
                entries.map(|entry| entry.map(named)).collect::<io::Result<Vec<_>>>()
            })
            .map_err(|source| io_error(path, source))?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut child = path.to_owned();
        for (name, entry) in entries {
            child.push(OsStr::from_bytes(&name));
            self.builder.entry(&name).map_err(refused)?;
            let metadata = entry.metadata().map_err(|source| io_error(&child, source))?;
            self.node(&child, &metadata)?;
            child.pop();
        }
        self.builder.leave().map_err(refused)
    }
}

/// Up to this many octets of a file are put off while the disk is asked for them: of larger parts a
/// piece has so few that waiting for each costs little beside reading it.
const SMALL: usize = 64 * 1024;

/// Most small files that the disk is asked for at once: as many as a disk's queue takes. Each is open
/// meanwhile.
const MAX_AWAITED: usize = 32;

/// Reads octets of a tree's nar. Keeps the file open that it read last, since the next octets are
/// mostly in it too.
#[derive(Debug)]
pub struct TreeReader {
    root: PathBuf,
    last: Option<(FileId, Arc<File>)>,
    /// Most files that the disk is asked for at once.
    at_once: usize,
    /// Files that aren't in memory, and that the disk has been asked for.
    awaited: VecDeque<Awaited>,
}

/// Octets of a file that are still missing in those that are read.
#[derive(Debug)]
struct Awaited {
    file: Arc<File>,
    /// Where in the file they are.
    from: u64,
    /// Where they belong.
    place: Range<usize>,
}

impl TreeReader {
    /// A reader of the tree at `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, last: None, at_once: MAX_AWAITED, awaited: VecDeque::new() }
    }

    /// One for work that nobody waits for: it asks the disk for one thing at a time.
    #[must_use]
    pub fn gentle(root: PathBuf) -> Self {
        Self { at_once: 0, ..Self::new(root) }
    }

    /// The octets of the nar in `range`, which lies within it.
    ///
    /// # Errors
    /// What the file system says; `UnexpectedEof` when a file is shorter than it was.
    pub fn read(&mut self, layout: &Layout, range: Range<u64>) -> io::Result<Vec<u8>> {
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut octets = Vec::with_capacity(len);
        self.awaited.clear();
        layout.parts(range, &mut |part| match part {
            Part::Octets(known) => {
                octets.extend_from_slice(known);
                Ok(())
            }
            Part::Contents { file, range } => self.contents(layout, file, range, &mut octets),
        })?;
        while let Some(awaited) = self.awaited.pop_front() {
            awaited.read(&mut octets)?;
        }
        if octets.len() == len { Ok(octets) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn contents(
        &mut self,
        layout: &Layout,
        id: FileId,
        range: Range<u64>,
        octets: &mut Vec<u8>,
    ) -> io::Result<()> {
        let file = match self.last.take() {
            Some((last, file)) if last == id => file,
            _ => Arc::new(self.open(layout, id)?),
        };
        let wanted = (range.end - range.start) as usize;
        if wanted <= SMALL {
            self.small(&file, range, octets)?;
        } else {
            large(&file, range.start, wanted, octets)?;
        }
        self.last = Some((id, file));
        Ok(())
    }

    /// Takes what is in memory. For the rest the disk is asked, and it comes while the next files are
    /// looked at.
    fn small(
        &mut self,
        file: &Arc<File>,
        range: Range<u64>,
        octets: &mut Vec<u8>,
    ) -> io::Result<()> {
        let begin = octets.len();
        octets.resize(begin + (range.end - range.start) as usize, 0);
        let mut into = [IoSliceMut::new(&mut octets[begin..])];
        let got = match rustix::io::preadv2(file, &mut into, range.start, ReadWriteFlags::NOWAIT) {
            Ok(got) => got,
            // Not in memory, or a file system that doesn't say.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let (from, place) = (range.start + got as u64, begin + got..octets.len());
        let Some(missing) = NonZeroU64::new(place.len() as u64) else { return Ok(()) };
        let awaited = Awaited { file: file.clone(), from, place };
        if self.at_once == 0 {
            return awaited.read(octets);
        }
        // If it isn't heeded, reading takes longer.
        let _ = rustix::fs::fadvise(file, from, Some(missing), Advice::WillNeed);
        if self.awaited.len() >= self.at_once
            && let Some(first) = self.awaited.pop_front()
        {
            first.read(octets)?;
        }
        self.awaited.push_back(awaited);
        Ok(())
    }

    fn open(&self, layout: &Layout, id: FileId) -> io::Result<File> {
        let mut path = self.root.clone().into_os_string().into_vec();
        let root_len = path.len();
        path.push(b'/');
        layout.write_path(id, &mut path);
        if path.len() == root_len + 1 {
            path.pop();
        }
        // Should it have been replaced: neither follow a symlink nor wait for a pipe.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(flags).open(OsStr::from_bytes(&path))
    }
}

/// Reads into the room that is left for the rest of what is read: mostly one system call, which may
/// read on past what is wanted.
fn large(file: &File, from: u64, wanted: usize, octets: &mut Vec<u8>) -> io::Result<()> {
    let begin = octets.len();
    while octets.len() - begin < wanted {
        let at = from + (octets.len() - begin) as u64;
        match rustix::io::pread(file, spare_capacity(octets), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    octets.truncate(begin + wanted);
    Ok(())
}

impl Awaited {
    /// Waits for the disk.
    fn read(self, octets: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(&mut octets[self.place], self.from)
    }
}
