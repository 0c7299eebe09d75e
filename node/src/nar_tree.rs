//! Trees on disk to nars and back, for imports, tests and demonstrations. Blocking.
//!
//! Nothing is followed and nothing is replaced: [`dump`] takes symlinks for what they are, and
//! [`restore`] makes each file, directory and symlink anew or fails. What no nar can hold
//! (sockets, devices) is an error, and so is a file that changes while it is read.

use narswarm_protocol::limits::MAX_NAR_DEPTH;
use narswarm_protocol::nar::{Event, NarError, Reader, Writer};
use rustix::fs::OFlags;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Octets that are read at once: enough that system calls do not matter.
const BUFFER_BYTES: usize = 128 * 1024;

/// The permission that makes a file executable in a nar (`archive.cc`: `S_IXUSR`).
const OWNER_MAY_EXECUTE: u32 = 0o100;

/// Why a tree could not be written as a nar, or a nar as a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file system said no.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Neither file nor directory nor symlink.
    #[error("{path} is neither a file, nor a directory, nor a symlink", path = path.display())]
    Kind {
        /// Which file.
        path: PathBuf,
    },
    /// A file that became longer or shorter while it was read.
    #[error("{path} changed while it was read", path = path.display())]
    Changed {
        /// Which file.
        path: PathBuf,
    },
    /// Not a nar, or a tree that no nar can hold.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// The nar could not be read or written.
    #[error("the nar could not be read or written: {0}")]
    Stream(#[source] io::Error),
}

/// Writes the nar of the tree at `path` to `output`; returns its size in octets.
///
/// # Errors
/// See [`TreeError`]. What was written by then is not a nar.
pub fn dump(path: &Path, output: &mut impl Write) -> Result<u64, TreeError> {
    let mut dump = Dump { writer: Writer::new(), output, buffer: vec![0; BUFFER_BYTES] };
    dump.node(path, 0)?;
    dump.writer.finish()?;
    Ok(dump.writer.offset())
}

struct Dump<'a, W> {
    writer: Writer,
    output: &'a mut W,
    buffer: Vec<u8>,
}

impl<W: Write> Dump<'_, W> {
    fn write(&mut self, event: Event<'_>) -> Result<(), TreeError> {
        let mut outcome = Ok(());
        self.writer.write(event, &mut |octets| {
            if outcome.is_ok() {
                outcome = self.output.write_all(octets);
            }
        })?;
        outcome.map_err(TreeError::Stream)
    }

    /// Writes one tree. The depth is checked here so that the recursion is bounded even before
    /// the writer refuses.
    fn node(&mut self, path: &Path, depth: usize) -> Result<(), TreeError> {
        let failed = |source| TreeError::File { path: path.to_owned(), source };
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            return self.write(Event::Symlink(target.as_os_str().as_bytes()));
        }
        if metadata.is_file() {
            return self.file(path);
        }
        if !metadata.is_dir() {
            return Err(TreeError::Kind { path: path.to_owned() });
        }
        self.write(Event::Directory)?;
        for name in sorted_names(path).map_err(failed)? {
            self.write(Event::Entry(&name))?;
            debug_assert!(depth < MAX_NAR_DEPTH, "the writer refuses deeper directories");
            self.node(&path.join(OsStr::from_bytes(&name)), depth + 1)?;
        }
        self.write(Event::DirectoryEnd)
    }

    fn file(&mut self, path: &Path) -> Result<(), TreeError> {
        let failed = |source| TreeError::File { path: path.to_owned(), source };
        let changed = || TreeError::Changed { path: path.to_owned() };
        // Should the file have been replaced since it was looked at: neither follow nor block.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut file =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(changed());
        }
        let executable = metadata.permissions().mode() & OWNER_MAY_EXECUTE != 0;
        let size = metadata.len();
        self.write(Event::File { executable, size })?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut left = size;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(octets) => {
                    left = left.checked_sub(octets as u64).ok_or_else(changed)?;
                    self.write(Event::Contents(&buffer[..octets]))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.buffer = buffer;
        if left > 0 {
            return Err(changed());
        }
        self.write(Event::FileEnd)
    }
}

/// The names in a directory, in the order of their octets, whatever the locale.
fn sorted_names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut names = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.file_name().into_vec()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Makes the tree of the nar in `input` at `path`, where nothing may be yet. Reads to the end of
/// `input`, which must be the end of the nar, at most `nar_size` octets.
///
/// # Errors
/// See [`TreeError`]. What was made by then is left for the caller to remove.
pub fn restore(mut input: impl Read, path: &Path, nar_size: u64) -> Result<(), TreeError> {
    let mut reader = Reader::with_limit(nar_size);
    let mut restore = Restore { path: path.to_owned(), names: 0, file: None };
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(octets) => reader.push(&buffer[..octets], |event| restore.take(event))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TreeError::Stream(error)),
        }
    }
    Ok(reader.finish()?)
}

/// Where the next node belongs. An entry's name is pushed before its node and popped after it, so
/// within a directory `path` is the directory itself.
struct Restore {
    path: PathBuf,
    /// Names that were pushed and not yet popped.
    names: usize,
    file: Option<File>,
}

impl Restore {
    fn take(&mut self, event: Event<'_>) -> Result<(), TreeError> {
        let path = &self.path;
        let failed = |source| TreeError::File { path: path.clone(), source };
        match event {
            Event::Directory => fs::create_dir(path).map_err(failed)?,
            Event::Entry(name) => {
                // The reader has refused slashes and dots, so this is a child of the directory.
                self.path.push(OsString::from_vec(name.to_vec()));
                self.names += 1;
            }
            Event::File { executable, .. } => {
                let mode = if executable { 0o777 } else { 0o666 };
                let mut options = OpenOptions::new();
                // Neither follows a symlink nor opens what is there.
                let file = options.write(true).create_new(true).mode(mode).open(path);
                self.file = Some(file.map_err(failed)?);
            }
            Event::Contents(octets) => {
                if let Some(file) = &mut self.file {
                    file.write_all(octets).map_err(failed)?;
                }
            }
            Event::Symlink(target) => {
                symlink(OsStr::from_bytes(target), path).map_err(failed)?;
                self.leave();
            }
            Event::FileEnd => {
                self.file = None;
                self.leave();
            }
            Event::DirectoryEnd => self.leave(),
        }
        Ok(())
    }

    /// A node is complete: back to the directory that it is in.
    fn leave(&mut self) {
        if self.names > 0 {
            self.names -= 1;
            self.path.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A tree with all that a nar can hold, under names of all kinds.
    fn make_tree(root: &Path) {
        fs::create_dir(root).expect("a directory");
        let file = |name: &[u8], contents: &[u8], mode: u32| {
            let path = root.join(OsStr::from_bytes(name));
            fs::write(&path, contents).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        };
        file(b"empty", b"", 0o644);
        file(b"script", b"#!/bin/sh\n", 0o755);
        file(b"odd permissions", b"x", 0o611);
        file(b"owner only", b"y", 0o700);
        file(b"large", &vec![7; 300_001], 0o600);
        file(b"not \xff\xfe utf-8", b"z", 0o644);
        file("naïve ☃".as_bytes(), b"12345678", 0o644);
        file(b"new\nline", b"\n", 0o644);
        file(b"...", b"dots", 0o644);
        file(b"A", b"upper case sorts first", 0o644);
        file(&[b'n'; 255], b"long", 0o644);
        fs::create_dir_all(root.join("deep/er/and/deeper")).expect("directories");
        fs::write(root.join("deep/er/x"), b"x").expect("a file");
        symlink("../nowhere", root.join("dangling")).expect("a symlink");
        symlink(OsStr::from_bytes(b"/\xff"), root.join("deep/odd")).expect("a symlink");
    }

    fn dump_to_vec(path: &Path) -> Vec<u8> {
        let mut nar = Vec::new();
        let size = dump(path, &mut nar).expect("a nar");
        assert_eq!(size, nar.len() as u64);
        nar
    }

    /// A directory, a file and a symlink, each the root of a nar.
    fn roots(scratch: &Path) -> [PathBuf; 4] {
        let tree = scratch.join("tree");
        make_tree(&tree);
        [tree.clone(), tree.join("script"), tree.join("dangling"), tree.join("empty")]
    }

    #[test]
    fn what_is_dumped_is_restored() {
        let scratch = tempfile::tempdir().expect("a directory");
        for (number, root) in roots(scratch.path()).into_iter().enumerate() {
            let nar = dump_to_vec(&root);
            let copy = scratch.path().join(format!("copy{number}"));
            restore(nar.as_slice(), &copy, nar.len() as u64).expect("a tree");
            assert!(dump_to_vec(&copy) == nar, "{}", root.display());
            let error = restore(nar.as_slice(), &copy, nar.len() as u64).expect_err("exists");
            assert!(matches!(error, TreeError::File { .. }), "{error}");
        }
    }

    #[test]
    fn nix_writes_the_same_nars() {
        let scratch = tempfile::tempdir().expect("a directory");
        for root in roots(scratch.path()) {
            let state = scratch.path().join("state");
            let dumped = Command::new("nix-store")
                .arg("--dump")
                .arg(&root)
                .env("NIX_STATE_DIR", &state)
                .env("NIX_STORE_DIR", scratch.path().join("store"))
                .output();
            let dumped = match dumped {
                Ok(dumped) => dumped,
                Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
                    panic!("nix-store does not run: {error}")
                }
                Err(error) => {
                    eprintln!("SKIPPED: nix-store does not run: {error}");
                    return;
                }
            };
            assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
            assert!(dumped.stdout == dump_to_vec(&root), "{}", root.display());
        }
    }

    #[test]
    fn restoring_follows_no_symlink_and_leaves_its_tree() {
        let scratch = tempfile::tempdir().expect("a directory");
        let target = scratch.path().join("target");
        let link = scratch.path().join("link");
        symlink(&target, &link).expect("a symlink");
        let file =
            [Event::File { executable: false, size: 1 }, Event::Contents(b"x"), Event::FileEnd];
        let nar = |events: &[Event<'_>]| {
            let (mut writer, mut nar) = (Writer::new(), Vec::new());
            for event in events {
                writer.write(*event, &mut |octets| nar.extend_from_slice(octets)).expect("a tree");
            }
            nar
        };
        for nar in [nar(&file), nar(&[Event::Directory, Event::DirectoryEnd])] {
            assert!(restore(nar.as_slice(), &link, 1000).is_err());
        }
        assert!(!target.exists());
        // A symlink and then a file by its name: the reader refuses the second.
        let mut twice = nar(&[Event::Directory, Event::Entry(b"a"), Event::Symlink(b"/tmp")]);
        let whole = nar(&[
            Event::Directory,
            Event::Entry(b"a"),
            Event::Directory,
            Event::DirectoryEnd,
            Event::DirectoryEnd,
        ]);
        let start = nar(&[Event::Directory]).len();
        twice.extend_from_slice(&whole[start..]);
        let error = restore(twice.as_slice(), &scratch.path().join("twice"), 10_000).expect_err("");
        assert!(matches!(error, TreeError::Nar(NarError::Name { .. })), "{error}");
    }

    #[test]
    fn sizes_and_ends_are_checked() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().join("tree");
        make_tree(&root);
        let nar = dump_to_vec(&root);
        let size = nar.len() as u64;
        let into = |name| scratch.path().join(name);
        let error = restore(nar.as_slice(), &into("a"), size - 1).expect_err("too long");
        assert!(matches!(error, TreeError::Nar(NarError::Size { .. })), "{error}");
        let error = restore(&nar[..nar.len() - 9], &into("b"), size).expect_err("too short");
        assert!(matches!(error, TreeError::Nar(NarError::Incomplete { .. })), "{error}");
    }

    #[test]
    fn what_no_nar_holds_is_refused() {
        let scratch = tempfile::tempdir().expect("a directory");
        let socket = scratch.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let error = dump(scratch.path(), &mut io::sink()).expect_err("a socket");
        assert!(matches!(error, TreeError::Kind { path } if path == socket));
        let error = dump(&scratch.path().join("none"), &mut io::sink()).expect_err("nothing");
        assert!(matches!(error, TreeError::File { .. }));
    }
}
