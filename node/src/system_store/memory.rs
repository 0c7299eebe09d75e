//! What is remembered of the store across restarts: which items were hashed and what came of it,
//! for which a narinfo was asked in vain, and which came through narswarm. All of it can be thrown
//! away; then items are hashed anew.

use super::error::SystemStoreError;
use narswarm_protocol::hash::{NarHash, PieceHash};
use narswarm_protocol::piece::{PieceLayout, PieceList};
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file within the data directory.
const FILE: &str = "system-store.sqlite";

/// Changed with the tables; a file of another version is made anew.
const VERSION: i64 = 1;

const TABLES: &str = "
    create table hashed (
        item blob primary key not null,
        stamp blob not null,
        nar_hash blob not null,
        nar_size integer not null,
        pieces blob not null
    ) without rowid;
    create table asked (
        item blob primary key not null, at integer not null, tries integer not null
    ) without rowid;
    create table fetched (item blob primary key not null) without rowid;
";

/// By what it is seen that an item is another than the one that was hashed: its registration, and
/// its topmost file. What changes without this is found out when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemStamp(Vec<u8>);

impl ItemStamp {
    /// The stamp of the item at `path`.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn of(path: &Path, id: i64, registered: i64) -> std::io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        let inode = metadata.ino().cast_signed();
        let mode = i64::from(metadata.mode());
        let numbers = [
            id,
            registered,
            inode,
            mode,
            metadata.size().cast_signed(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        ];
        Ok(Self(numbers.iter().flat_map(|number| number.to_le_bytes()).collect()))
    }
}

/// What came of hashing an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// SHA-256 of its nar.
    pub nar_hash: NarHash,
    /// The hashes of its pieces.
    pub list: PieceList,
}

/// The memory of one data directory.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Memory {
    /// Opens the memory in a data directory, or makes it.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn open(data_dir: &Path) -> Result<Self, SystemStoreError> {
        let path = data_dir.join(FILE);
        let failed = |source| SystemStoreError::Memory { path: path.clone(), source };
        let connection = match prepare(&path) {
            Err(error) if is_damaged(&error) => {
                tracing::warn!("{} is damaged ({error}) and made anew", path.display());
                for name in [FILE.to_owned(), format!("{FILE}-wal"), format!("{FILE}-shm")] {
                    let _ = std::fs::remove_file(data_dir.join(name));
                }
                prepare(&path).map_err(failed)?
            }
            prepared => prepared.map_err(failed)?,
        };
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SystemStoreError> {
        work(&self.connection.lock())
            .map_err(|source| SystemStoreError::Memory { path: self.path.clone(), source })
    }

    /// What came of hashing an item, if it has still this stamp.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn hashed(
        &self,
        item: &StoreHash,
        stamp: &ItemStamp,
    ) -> Result<Option<Hashed>, SystemStoreError> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached(
                "select nar_hash, nar_size, pieces from hashed where item = ?1 and stamp = ?2",
            )?;
            let row = statement.query_row((&item.0, &stamp.0), |row| {
                let nar_hash: [u8; 32] = row.get(0)?;
                let nar_size = row.get::<_, i64>(1)?.cast_unsigned();
                Ok(decode(nar_hash, nar_size, row.get_ref(2)?.as_blob()?))
            });
            row.optional().map(Option::flatten)
        })
    }

    /// Remembers what came of hashing an item.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn remember_hashed(
        &self,
        item: &StoreHash,
        stamp: &ItemStamp,
        hashed: &Hashed,
    ) -> Result<(), SystemStoreError> {
        let pieces: Vec<u8> = hashed.list.hashes().iter().flat_map(|hash| hash.0).collect();
        let nar_size = hashed.list.layout().nar_size().cast_signed();
        self.with(|connection| {
            let mut statement = connection
                .prepare_cached("insert or replace into hashed values (?1, ?2, ?3, ?4, ?5)")?;
            statement.execute((&item.0, &stamp.0, &hashed.nar_hash.0, nar_size, pieces)).map(drop)
        })
    }

    /// Forgets what came of hashing an item.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn forget_hashed(&self, item: &StoreHash) -> Result<(), SystemStoreError> {
        self.with(|connection| {
            connection.execute("delete from hashed where item = ?1", [&item.0]).map(drop)
        })
    }

    /// When a narinfo of an item was last asked for in vain, in seconds since 1970, and how often.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn asked(&self, item: &StoreHash) -> Result<Option<(i64, u32)>, SystemStoreError> {
        self.with(|connection| {
            let mut statement =
                connection.prepare_cached("select at, tries from asked where item = ?1")?;
            statement.query_row([&item.0], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })
    }

    /// Remembers for which items narinfos were asked in vain.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn remember_asked(&self, items: &[(StoreHash, i64, u32)]) -> Result<(), SystemStoreError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for (item, at, tries) in items {
                transaction
                    .prepare_cached("insert or replace into asked values (?1, ?2, ?3)")?
                    .execute((&item.0, at, tries))?;
            }
            transaction.commit()
        })
    }

    /// Whether an item came through narswarm.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn is_fetched(&self, item: &StoreHash) -> Result<bool, SystemStoreError> {
        self.with(|connection| {
            connection.prepare_cached("select 1 from fetched where item = ?1")?.exists([&item.0])
        })
    }

    /// Remembers that an item came through narswarm.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn remember_fetched(&self, item: &StoreHash) -> Result<(), SystemStoreError> {
        self.with(|connection| {
            connection.execute("insert or ignore into fetched values (?1)", [&item.0]).map(drop)
        })
    }

    /// Forgets all of an item that is gone, but that it came through narswarm: it may come back.
    ///
    /// # Errors
    /// [`SystemStoreError::Memory`].
    pub fn forget(&self, items: &[StoreHash]) -> Result<(), SystemStoreError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for item in items {
                for statement in
                    ["delete from hashed where item = ?1", "delete from asked where item = ?1"]
                {
                    transaction.prepare_cached(statement)?.execute([&item.0])?;
                }
            }
            transaction.commit()
        })
    }
}

fn decode(nar_hash: [u8; 32], nar_size: u64, pieces: &[u8]) -> Option<Hashed> {
    let (hashes, rest) = pieces.as_chunks();
    let hashes = hashes.iter().map(|hash| PieceHash(*hash)).collect();
    let list = PieceList::new(PieceLayout::new(nar_size)?, hashes).ok()?;
    rest.is_empty().then_some(Hashed { nar_hash: NarHash(nar_hash), list })
}

fn prepare(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    // Only this node opens it. What a loss of power takes is hashed again.
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    let version: i64 = connection.query_row("pragma user_version", [], |row| row.get(0))?;
    if version != VERSION {
        let transaction = connection.unchecked_transaction()?;
        for table in ["hashed", "asked", "fetched"] {
            transaction.execute(&format!("drop table if exists {table}"), [])?;
        }
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    }
    Ok(connection)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}
