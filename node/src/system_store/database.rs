//! The database of the system's store, as Guix and Nix keep it, read while their daemons write.
//!
//! Nothing is ever written next to it, not even as root: SQLite is kept from making the files by
//! which readers and writers share its log. So there are three ways to read, tried in this order:
//!
//! 1. *live*: with locks, as any reader, while a daemon has the database open;
//! 2. *at rest*: without locks, when no daemon has: then the file alone is the whole truth, and
//!    what was read counts only if the file didn't change meanwhile;
//! 3. *a copy*: where there is a log that this user can't join.
//!
//! Changes are noticed by the files' sizes and times, which costs two system calls. New items have
//! higher numbers than all before; that some are gone shows in the count, and only then are the
//! numbers compared. What the database says of contents is a hint; see the module above.

use super::error::SystemStoreError;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::MAX_STORE_ITEMS;
use narswarm_protocol::store_path::{ItemName, StorePath};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{debug, info};

/// How long a daemon may hold the database before the reading is put off.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How often a reading without locks is tried anew when the file changed during it.
const TRIES: usize = 5;

/// What has a meaning in a `file:` URL.
const RESERVED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// A valid item, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number; a later registration has a higher one.
    pub id: i64,
    /// Its name.
    pub item: ItemName,
    /// The hash of its nar, as the daemon says.
    pub nar_hash: Option<NarHash>,
    /// When it was registered, in seconds since 1970.
    pub registered: i64,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct News {
    /// Items that are new.
    pub came: Vec<Row>,
    /// Numbers of those that are gone.
    pub gone: Vec<i64>,
}

/// By what it is seen that the database has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    database: Option<FileStamp>,
    log: Option<FileStamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

fn file_stamp(path: &Path) -> Option<FileStamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(FileStamp {
        inode: metadata.ino(),
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// How the database was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// With locks.
    Live,
    /// Without, since nobody has it open.
    AtRest,
    /// From a copy.
    Copy,
}

/// The database of one store.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    log: PathBuf,
    /// Of which store items are read, without a trailing slash.
    store_dir: String,
    /// Where a copy may be put.
    scratch: PathBuf,
    way: Option<Way>,
    /// Numbers of all rows that were seen and are not gone; the highest that was ever seen.
    known: HashSet<i64>,
    last: i64,
}

impl Database {
    /// The database at `path`; nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf, store_dir: String, scratch: PathBuf) -> Self {
        let mut log = path.clone().into_os_string();
        log.push("-wal");
        Self {
            path,
            log: log.into(),
            store_dir,
            scratch,
            way: None,
            known: HashSet::new(),
            last: 0,
        }
    }

    /// By what a change is seen.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { database: file_stamp(&self.path), log: file_stamp(&self.log) }
    }

    /// How it was last read.
    #[cfg(test)]
    pub fn way(&self) -> Option<Way> {
        self.way
    }

    /// What has changed since this was last called; at first, everything is new.
    ///
    /// # Errors
    /// [`SystemStoreError::Database`] and [`SystemStoreError::Busy`]; then nothing is lost, and
    /// the next call tells it.
    pub fn news(&mut self) -> Result<News, SystemStoreError> {
        let (store_dir, last) = (self.store_dir.clone(), self.last);
        let known = std::mem::take(&mut self.known);
        let found = self.read(|connection| read_news(connection, &store_dir, last, &known));
        self.known = known;
        let Found { news, seen } = found?;
        for id in &news.gone {
            self.known.remove(id);
        }
        self.last = seen.last().copied().unwrap_or(last);
        self.known.extend(seen);
        Ok(news)
    }

    /// Reads in whichever way works.
    ///
    /// # Errors
    /// As [`Database::news`].
    pub fn read<T>(
        &mut self,
        work: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SystemStoreError> {
        let failed = |source| SystemStoreError::Database { path: self.path.clone(), source };
        // Where there is no log yet, SQLite would make one for root.
        if file_stamp(&self.log).is_some() {
            // `readonly_shm`: nor shall its index be made here.
            let live = self.open("mode=ro&readonly_shm=1").and_then(|connection| work(&connection));
            match live {
                Ok(read) => {
                    self.note(Way::Live);
                    return Ok(read);
                }
                Err(error) if cannot_join(&error) => debug!("cannot join the log: {error}"),
                Err(error) => return Err(failed(error)),
            }
        }
        for attempt in 0..TRIES {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(50));
            }
            let before = self.stamp();
            let has_log = before.log.is_some_and(|log| log.size > 0);
            let read = if has_log {
                self.copy().and_then(|connection| work(&connection))
            } else {
                self.open("mode=ro&immutable=1").and_then(|connection| work(&connection))
            };
            if self.stamp() == before {
                self.note(if has_log { Way::Copy } else { Way::AtRest });
                return read.map_err(|source| SystemStoreError::Database {
                    path: self.path.clone(),
                    source,
                });
            }
            debug!("the store's database changed while it was read at rest");
        }
        Err(SystemStoreError::Busy { path: self.path.clone() })
    }

    fn open(&self, how: &str) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let path = self.path.to_string_lossy();
        let url = format!("file:{}?{how}", utf8_percent_encode(&path, RESERVED));
        let connection = Connection::open_with_flags(url, flags)?;
        connection.busy_timeout(LOCK_PATIENCE)?;
        Ok(connection)
    }

    /// A copy of database and log, which goes when the connection does.
    fn copy(&self) -> rusqlite::Result<Connection> {
        let failed =
            |error: std::io::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
        let dir = tempfile::tempdir_in(&self.scratch).map_err(failed)?;
        let copy = dir.path().join("db.sqlite");
        fs::copy(&self.path, &copy).map_err(failed)?;
        fs::copy(&self.log, dir.path().join("db.sqlite-wal")).map_err(failed)?;
        let connection = Connection::open(&copy)?;
        // Opens log and index now: after this the names are no longer needed.
        connection.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?;
        Ok(connection)
    }

    fn note(&mut self, way: Way) {
        if self.way != Some(way) {
            let path = self.path.display();
            match way {
                Way::Live => info!("reading the store's database {path}"),
                Way::AtRest => info!(
                    "reading the store's database {path} without locks, since no daemon has it \
                     open now"
                ),
                Way::Copy => info!(
                    "reading copies of the store's database {path}, since this user may not join \
                     its log"
                ),
            }
            self.way = Some(way);
        }
    }
}

/// Whether an error means that this reader can't take part in sharing the log.
fn cannot_join(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
}

/// What [`read_news`] finds.
struct Found {
    news: News,
    /// Numbers of all rows that are new, also of those that are no items of this store.
    seen: Vec<i64>,
}

fn read_news(
    connection: &Connection,
    store_dir: &str,
    last: i64,
    known: &HashSet<i64>,
) -> rusqlite::Result<Found> {
    // One view of everything below.
    let transaction = connection.unchecked_transaction()?;
    let mut found = Found { news: News::default(), seen: Vec::new() };
    let mut statement = transaction.prepare(
        "select id, path, hash, registrationTime from ValidPaths where id > ?1 order by id \
         limit ?2",
    )?;
    let room = MAX_STORE_ITEMS.saturating_sub(known.len()) as i64;
    let mut rows = statement.query((last, room))?;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        found.seen.push(id);
        // What isn't an item of this store isn't ours to share, and is no error either.
        let Ok(path) = StorePath::parse(row.get_ref(1)?.as_bytes().unwrap_or_default()) else {
            continue;
        };
        if path.directory() == store_dir {
            let nar_hash = NarHash::parse(row.get_ref(2)?.as_bytes().unwrap_or_default()).ok();
            let registered = row.get(3).unwrap_or(0);
            found.news.came.push(Row { id, item: path.item().clone(), nar_hash, registered });
        }
    }
    let count: i64 =
        transaction.query_row("select count(*) from ValidPaths where id <= ?1", [last], |row| {
            row.get(0)
        })?;
    if count != known.len() as i64 {
        let mut statement = transaction.prepare("select id from ValidPaths where id <= ?1")?;
        let valid = statement.query_map([last], |row| row.get(0))?;
        let valid = valid.collect::<rusqlite::Result<HashSet<i64>>>()?;
        found.news.gone = known.difference(&valid).copied().collect();
    }
    Ok(found)
}
