//! The data directory: one process at a time, one identity.
//!
//! Holds the lock (`lock`), the node's key (`node.key`) and the note for other commands about the
//! running node (`run.json`). What else lies in it is the store's.

use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::warn;

const LOCK: &str = "lock";
const KEY: &str = "node.key";
const RUN: &str = "run.json";

/// Longest `node.key` or `run.json` that is read: both have well under a kilobyte.
const MAX_SMALL_FILE_BYTES: u64 = 64 * 1024;

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "data directory {} is in use by {}; stop it or choose another with --data-dir",
        path.display(), holder(*pid)
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, if it has told.
        pid: Option<u32>,
    },
    /// It can't be written to.
    #[error(
        "data directory {} can't be written to ({source}); choose another with --data-dir",
        path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file is not one of ours.
    #[error("{} is not a node's key; move it away to get a new identity", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// `run.json` can't be understood.
    #[error("cannot understand {}: {source}", path.display())]
    RunJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
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
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// What a running node tells other commands, in `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The node's peer id.
    pub peer_id: String,
    /// Address and port of the HTTP shim.
    pub http: String,
    /// Full multiaddresses that peers connect to.
    pub listen: Vec<String>,
    /// The process.
    pub pid: u32,
}

impl RunInfo {
    /// What the node on data directory `dir` tells; `None` when none runs.
    ///
    /// # Errors
    /// [`DataDirError::Io`] and [`DataDirError::RunJson`].
    pub fn read(dir: &Path) -> Result<Option<Self>, DataDirError> {
        let path = dir.join(RUN);
        match read_small(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| DataDirError::RunJson { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirError::Io { action: "read", path, source }),
        }
    }
}

/// A data directory that this process holds. Let go by dropping it, after what uses it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    keypair: Keypair,
    wrote_run_json: AtomicBool,
    /// Released by the system when this is closed, however the process ends.
    lock: File,
}

impl DataDir {
    /// Opens or makes the directory, locks it, and loads the node's key or makes one.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataDirError> {
        let path = path.as_ref();
        create_dir(path)?;
        let lock = take_lock(path)?;
        // Left by a node that was killed; nobody else can have written it, since we hold the lock.
        remove_if_there(&path.join(RUN))?;
        let keypair = load_or_make_key(&path.join(KEY))?;
        let wrote_run_json = AtomicBool::new(false);
        Ok(Self { path: path.to_owned(), keypair, wrote_run_json, lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's identity.
    #[must_use]
    pub fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// Tells other commands about the running node, until this is dropped.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn write_run_json(&self, info: &RunInfo) -> Result<(), DataDirError> {
        let path = self.path.join(RUN);
        let mut text = serde_json::to_vec_pretty(info).expect("strings and numbers serialise");
        text.push(b'\n');
        write_atomically(&path, &text, 0o644).map_err(|source| DataDirError::Io {
            action: "write",
            path,
            source,
        })?;
        self.wrote_run_json.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.wrote_run_json.load(Ordering::Relaxed)
            && let Err(error) = remove_if_there(&self.path.join(RUN))
        {
            warn!("{error}");
        }
        // Closing alone would leave the lock with a child process that is just being started.
        if let Err(error) = self.lock.unlock() {
            warn!("cannot unlock {}: {error}", self.path.display());
        }
    }
}

fn create_dir(path: &Path) -> Result<(), DataDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
        let path = path.to_owned();
        if is_unwritable(&source) {
            return DataDirError::NotWritable { path, source };
        }
        DataDirError::Io { action: "create", path, source }
    })
}

fn is_unwritable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn take_lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK);
    let io_error = |action| {
        let path = path.clone();
        move |source| DataDirError::Io { action, path, source }
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path);
    let mut lock = match opened {
        Ok(lock) => lock,
        Err(source) if is_unwritable(&source) => {
            return Err(DataDirError::NotWritable { path: dir.to_owned(), source });
        }
        Err(source) => return Err(io_error("open")(source)),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = read_small(&path).ok();
            let pid = pid.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok());
            return Err(DataDirError::InUse { path: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock")(source)),
    }
    lock.set_len(0).map_err(io_error("write"))?;
    writeln!(lock, "{}", std::process::id()).map_err(io_error("write"))?;
    Ok(lock)
}

fn load_or_make_key(path: &Path) -> Result<Keypair, DataDirError> {
    match read_small(path) {
        Ok(octets) => {
            keep_private(path);
            Keypair::from_protobuf_encoding(&octets)
                .map_err(|_| DataDirError::Key { path: path.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keypair = Keypair::generate_ed25519();
            let octets = keypair.to_protobuf_encoding().expect("ed25519 keys have an encoding");
            write_atomically(path, &octets, 0o600).map_err(|source| DataDirError::Io {
                action: "write",
                path: path.to_owned(),
                source,
            })?;
            Ok(keypair)
        }
        Err(source) => Err(DataDirError::Io { action: "read", path: path.to_owned(), source }),
    }
}

/// A key that others could read is a key all the same; it is only made private again.
fn keep_private(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    if open {
        warn!("{} was readable by others; making it private", path.display());
        if let Err(error) = fs::set_permissions(path, Permissions::from_mode(0o600)) {
            warn!("cannot make {} private: {error}", path.display());
        }
    }
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    File::open(path)?.take(MAX_SMALL_FILE_BYTES).read_to_end(&mut octets)?;
    Ok(octets)
}

fn remove_if_there(path: &Path) -> Result<(), DataDirError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| DataDirError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file so that it is there whole or not at all, whenever the machine stops.
pub(super) fn write_atomically(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // Made anew, since an old one may have other permissions.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .and_then(|mut file| {
            file.write_all(octets)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, path))
        .and_then(|()| path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all()));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_a_private_directory_and_keeps_its_identity() {
        let parent = tempfile::tempdir().expect("tempdir");
        let path = parent.path().join("a/b");
        let peer = DataDir::open(&path).expect("first").keypair().public();
        let mode = |p: &Path| fs::metadata(p).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(KEY)), 0o600);
        fs::set_permissions(path.join(KEY), Permissions::from_mode(0o644)).expect("chmod");
        let again = DataDir::open(&path).expect("second");
        assert_eq!(again.keypair().public(), peer);
        assert_eq!(mode(&path.join(KEY)), 0o600);
    }

    #[test]
    fn a_second_opener_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = DataDir::open(dir.path()).expect("first");
        let refusal = DataDir::open(dir.path()).expect_err("second").to_string();
        let expected = format!(
            "data directory {} is in use by process {}",
            dir.path().display(),
            std::process::id()
        );
        assert!(refusal.starts_with(&expected), "{refusal}");
        drop(first);
        DataDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn run_json_lives_as_long_as_the_node() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join(RUN), "left by a killed node").expect("write");
        let data = DataDir::open(dir.path()).expect("open");
        assert_eq!(RunInfo::read(dir.path()).expect("none"), None);
        let info = RunInfo {
            peer_id: "12D3Koo".to_owned(),
            http: "127.0.0.1:8710".to_owned(),
            listen: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
            pid: 7,
        };
        data.write_run_json(&info).expect("write");
        assert_eq!(RunInfo::read(dir.path()).expect("read"), Some(info));
        drop(data);
        assert_eq!(RunInfo::read(dir.path()).expect("gone"), None);
    }

    #[test]
    fn refuses_a_strange_key_and_leaves_it_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join(KEY), "a diary").expect("write");
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Key { .. })));
        assert_eq!(fs::read(dir.path().join(KEY)).expect("read"), b"a diary");
    }
}
