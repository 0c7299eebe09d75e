//! Nars by seeking are the nars that Nix's own program writes.

use super::super::tree::{TreeReader, lay_out};
use super::super::{SystemStoreError, hash_tree};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::piece::PieceLayout;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// Compares the layout's nar, piece by piece and in the pieces' reverse order too, with what
/// `nix-store --dump` writes.
fn is_as_nix_dumps(tree: &Path) {
    let layout = lay_out(tree).expect("a layout");
    let pieces = PieceLayout::new(layout.nar_size()).expect("a size");
    let state = tempfile::tempdir().expect("a directory");
    let child = Command::new("nix-store")
        .arg("--dump")
        .arg(tree)
        .env("NIX_STATE_DIR", state.path().join("state"))
        .env("NIX_STORE_DIR", state.path().join("store"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
            panic!("nix-store does not run: {error}")
        }
        Err(error) => return eprintln!("SKIPPED: nix-store does not run: {error}"),
    };
    let mut dumped = child.stdout.take().expect("a pipe");
    let mut reader = TreeReader::new(tree.to_owned());
    let mut whole = Sha256::new();
    for index in 0..pieces.piece_count() {
        let ours = reader.read(&layout, pieces.piece_range(index)).expect("a piece");
        let mut theirs = vec![0; ours.len()];
        dumped.read_exact(&mut theirs).expect("as many octets");
        assert!(ours == theirs, "piece {index} of {}", tree.display());
        whole.update(&theirs);
    }
    assert_eq!(dumped.read(&mut [0; 1]).expect("the end"), 0, "{} goes on", tree.display());
    assert!(child.wait().expect("it ends").success());
    let hashed = hash_tree(tree, &layout, &mut || true).expect("hashed").expect("not stopped");
    assert_eq!(hashed.nar_hash, NarHash(whole.finalize().into()));
    // Another reader, from the end.
    let mut reader = TreeReader::new(tree.to_owned());
    for index in (0..pieces.piece_count()).rev().take(64) {
        let octets = reader.read(&layout, pieces.piece_range(index)).expect("a piece");
        assert!(hashed.list.matches(index, &octets), "piece {index} of {}", tree.display());
    }
}

#[test]
fn twenty_thousand_files() {
    let scratch = tempfile::tempdir().expect("a directory");
    let tree = scratch.path().join("tree");
    for folder in 0..200 {
        let folder_path = tree.join(format!("folder-{folder:03}"));
        fs::create_dir_all(&folder_path).expect("a folder");
        for file in 0..100_usize {
            let content = vec![file as u8; (folder * 7 + file * 13) % 2000];
            fs::write(folder_path.join(format!("file {file}")), content).expect("a file");
        }
    }
    is_as_nix_dumps(&tree);
    let layout = lay_out(&tree).expect("a layout");
    assert!(layout.memory_bytes() < 2 << 20, "{} octets", layout.memory_bytes());
}

#[test]
fn what_is_not_in_memory_comes_from_the_disk() {
    let scratch = tempfile::tempdir().expect("a directory");
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    // More in one piece than the disk is asked for at once, around the size up to which it is.
    let sizes = (0..200).map(|number| number * 11 % 3000).chain([65_535, 65_536, 65_537, 300_000]);
    for (number, size) in sizes.enumerate() {
        let content: Vec<u8> = (0..size).map(|at| (at * 7 + number) as u8).collect();
        fs::write(tree.join(format!("{number:03}")), content).expect("a file");
    }
    let layout = lay_out(&tree).expect("a layout");
    let list = hash_tree(&tree, &layout, &mut || true).expect("hashed").expect("not stopped").list;
    let folder = File::open(&tree).expect("a directory");
    rustix::fs::syncfs(&folder).expect("what is written can be forgotten");
    let mut reader = TreeReader::new(tree.clone());
    for _ in 0..2 {
        for entry in fs::read_dir(&tree).expect("a directory") {
            let file = File::open(entry.expect("an entry").path()).expect("a file");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
        }
        for index in (0..list.layout().piece_count()).rev() {
            let octets = reader.read(&layout, list.layout().piece_range(index)).expect("a piece");
            assert!(list.matches(index, &octets), "piece {index}");
        }
    }
    // Cut off, whether in memory or not.
    File::options().write(true).open(tree.join("150")).expect("a file").set_len(3).expect("cut");
    let error = reader.read(&layout, 0..layout.nar_size()).expect_err("cut off");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn two_gibibytes_mostly_of_holes() {
    let scratch = tempfile::tempdir().expect("a directory");
    let tree = scratch.path().join("sparse");
    fs::create_dir(&tree).expect("a directory");
    let file = File::create(tree.join("huge")).expect("a file");
    file.set_len((2 << 30) + 5).expect("a sparse file");
    rustix::io::pwrite(&file, b"in the middle", (1 << 30) + 3).expect("written");
    fs::write(tree.join("z"), b"after it").expect("a file");
    is_as_nix_dumps(&tree);
}

#[test]
fn names_modes_links_and_depths_of_all_kinds() {
    let scratch = tempfile::tempdir().expect("a directory");
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    let names: [&[u8]; 10] =
        [b"...", b"A", b"a", b"a b", b"new\nline", b"\xff\xfe", b"-", b"a.b", b"a!", &[b'n'; 255]];
    for (number, name) in names.into_iter().enumerate() {
        let path = tree.join(OsStr::from_bytes(name));
        fs::write(&path, vec![b'x'; number]).expect("a file");
        let mode = [0o644, 0o755, 0o611, 0o700, 0o444, 0o555][number % 6];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    for empty in ["empty", "full/empty", "full/with/in"] {
        fs::create_dir_all(tree.join(empty)).expect("a directory");
    }
    fs::hard_link(tree.join("A"), tree.join("full/linked")).expect("a hard link");
    symlink("../nowhere", tree.join("full/dangling")).expect("a symlink");
    symlink("empty", tree.join("to-a-directory")).expect("a symlink");
    let deep: std::path::PathBuf = (0..400).map(|_| "d").collect();
    fs::create_dir_all(tree.join(&deep)).expect("deep directories");
    fs::write(tree.join(deep).join("at the bottom"), b"deep").expect("a file");
    is_as_nix_dumps(&tree);
    for single in ["A", "to-a-directory", "empty"] {
        is_as_nix_dumps(&tree.join(single));
    }
}

#[test]
fn what_is_no_tree_or_shorter_than_it_was_is_an_error() {
    let scratch = tempfile::tempdir().expect("a directory");
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    fs::write(tree.join("file"), vec![1; 100_000]).expect("a file");
    let layout = lay_out(&tree).expect("a layout");
    let mut reader = TreeReader::new(tree.clone());
    let whole = 0..layout.nar_size();
    reader.read(&layout, whole.clone()).expect("whole");
    File::options().write(true).open(tree.join("file")).expect("a file").set_len(50).expect("cut");
    let error = reader.read(&layout, whole.clone()).expect_err("cut off");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    // Replaced by what must neither be followed nor waited for.
    fs::remove_file(tree.join("file")).expect("removed");
    symlink("/dev/zero", tree.join("file")).expect("a symlink");
    assert!(TreeReader::new(tree.clone()).read(&layout, whole).is_err());
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).expect("a socket");
    assert!(matches!(lay_out(&tree), Err(SystemStoreError::Kind { .. })));
}
