//! The database is read while its daemon writes, when no daemon runs, and by who may not join its
//! log; and nothing is left beside it.

use super::super::SystemStoreError;
use super::super::database::{Database, Way};
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As Guix has it (`nix/libstore/schema.sql` in its sources).
const SCHEMA: &str = "
    create table ValidPaths (
        id integer primary key autoincrement not null, path text unique not null,
        hash text not null, registrationTime integer not null, deriver text, narSize integer
    );
";

pub fn daemon(path: &Path) -> Connection {
    let daemon = Connection::open(path).expect("a database");
    daemon.pragma_update(None, "journal_mode", "wal").expect("a log");
    daemon.execute_batch(SCHEMA).expect("tables");
    daemon
}

fn item(number: usize) -> String {
    let hash = narswarm_protocol::base32::encode(&[number as u8; 20]);
    format!("/gnu/store/{hash}-item-{number}")
}

fn insert(daemon: &Connection, number: usize) {
    daemon
        .execute(
            "insert into ValidPaths (path, hash, registrationTime) values (?1, 'sha256:00', 5)",
            [item(number)],
        )
        .expect("a row");
}

fn delete(daemon: &Connection, number: usize) {
    let deleted = daemon.execute("delete from ValidPaths where path = ?1", [item(number)]);
    assert_eq!(deleted.expect("a row"), 1);
}

fn reader(path: &Path, scratch: &Path) -> Database {
    Database::new(path.to_owned(), "/gnu/store".to_owned(), scratch.to_owned())
}

/// Names of what comes, and how many go.
fn news(database: &mut Database) -> (Vec<String>, usize) {
    let news = database.news().expect("read");
    (news.came.iter().map(|row| row.item.name().to_owned()).collect(), news.gone.len())
}

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn changes_are_told_once_however_the_database_can_be_read() {
    let (dir, scratch) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let path = dir.path().join("db.sqlite");
    let writer = daemon(&path);
    insert(&writer, 1);
    insert(&writer, 2);
    writer
        .execute("insert into ValidPaths values (7, '/other/x', 'sha256:00', 1, null, 1)", [])
        .expect("a row of another store");
    let mut database = reader(&path, scratch.path());
    assert_eq!(news(&mut database), (vec!["item-1".to_owned(), "item-2".to_owned()], 0));
    assert_eq!(database.way(), Some(Way::Live));
    let before = database.stamp();
    assert_eq!(news(&mut database), (vec![], 0));
    assert_eq!(database.stamp(), before, "reading changes nothing");
    // Gone and come again is another registration.
    delete(&writer, 1);
    insert(&writer, 3);
    insert(&writer, 1);
    assert_ne!(database.stamp(), before);
    assert_eq!(news(&mut database), (vec!["item-3".to_owned(), "item-1".to_owned()], 1));
    // The daemon ends: no log, nobody to share with.
    drop(writer);
    assert_eq!(files(dir.path()).len(), 1, "the log is gone");
    assert_eq!(news(&mut database), (vec![], 0));
    assert_eq!(database.way(), Some(Way::AtRest));
    assert_eq!(files(dir.path()).len(), 1, "nothing was left beside it");
    // And comes back.
    let writer = Connection::open(&path).expect("a database");
    insert(&writer, 4);
    assert_eq!(news(&mut database), (vec!["item-4".to_owned()], 0));
    assert_eq!(database.way(), Some(Way::Live));
}

#[test]
fn a_log_that_cannot_be_joined_is_read_from_a_copy() {
    let (dir, scratch) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let path = dir.path().join("db.sqlite");
    let writer = daemon(&path);
    insert(&writer, 1);
    // As it is where the index of the log can't be read: it isn't there.
    let other = tempfile::tempdir().expect("dir");
    let copy = other.path().join("db.sqlite");
    fs::copy(&path, &copy).expect("copied");
    fs::copy(dir.path().join("db.sqlite-wal"), other.path().join("db.sqlite-wal")).expect("copied");
    let mut database = reader(&copy, scratch.path());
    assert_eq!(news(&mut database), (vec!["item-1".to_owned()], 0));
    assert_eq!(files(other.path()).len(), 2, "nothing was left beside it");
    assert!(files(scratch.path()).is_empty(), "nor where it was copied to");
    drop(writer);
}

#[test]
fn many_writes_are_all_seen() {
    let (dir, scratch) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let path = dir.path().join("db.sqlite");
    let writer = daemon(&path);
    let mut database = reader(&path, scratch.path());
    let mut seen = 0;
    let writing = std::thread::spawn(move || {
        for number in 0..200 {
            insert(&writer, number);
        }
        writer
    });
    while !writing.is_finished() {
        seen += database.news().expect("read while it is written").came.len();
    }
    let writer = writing.join().expect("written");
    seen += database.news().expect("read").came.len();
    assert_eq!(seen, 200);
    writer.execute("delete from ValidPaths where id % 2 = 0", []).expect("collected");
    assert_eq!(database.news().expect("read").gone.len(), 100);
}

#[test]
fn what_is_no_database_is_said() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("db.sqlite");
    let mut database = reader(&path, dir.path());
    assert!(matches!(database.news(), Err(SystemStoreError::Database { .. })));
    fs::write(&path, vec![b'x'; 10_000]).expect("a file");
    let error = database.news().expect_err("no database");
    assert!(error.to_string().contains("db.sqlite"), "{error}");
}

/// The database that Nix itself makes.
#[test]
fn nix_keeps_what_is_read() {
    let dir = tempfile::tempdir().expect("dir");
    let dir = dir.path().canonicalize().expect("a path");
    let nix = |arguments: &[&str]| {
        Command::new("nix-store")
            .args(arguments)
            .env("NIX_STORE_DIR", dir.join("store"))
            .env("NIX_STATE_DIR", dir.join("var"))
            .env("NIX_LOG_DIR", dir.join("log"))
            .env("NIX_CONF_DIR", dir.join("etc"))
            .env("NIX_REMOTE", "")
            .output()
    };
    fs::write(dir.join("file"), b"content").expect("a file");
    let file = dir.join("file").display().to_string();
    let added = match nix(&["--add", &file]) {
        Ok(added) => added,
        Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
            panic!("nix-store does not run: {error}")
        }
        Err(error) => return eprintln!("SKIPPED: nix-store does not run: {error}"),
    };
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let store = dir.join("store").display().to_string();
    let path = dir.join("var/db/db.sqlite");
    let mut database = Database::new(path, store, dir.clone());
    let news = database.news().expect("read");
    let [row] = news.came.as_slice() else { panic!("one item, not {:?}", news.came) };
    assert_eq!(row.item.name(), "file");
    let layout = super::super::lay_out(&dir.join("store").join(row.item.as_str()));
    let layout = layout.expect("a tree");
    let tree = dir.join("store").join(row.item.as_str());
    let hashed = super::super::hash_tree(&tree, &layout, &mut || true).expect("hashed");
    assert_eq!(row.nar_hash, hashed.map(|hashed| hashed.nar_hash), "Nix has the same hash");
    let item = tree.display().to_string();
    let collected = nix(&["--delete", &item]).expect("it ran before");
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    assert_eq!(database.news().expect("read").gone.len(), 1);
}
