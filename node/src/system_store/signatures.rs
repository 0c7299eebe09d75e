//! The signatures that Nix keeps of items in its own database, unlike Guix: with them a narinfo can
//! be written anew, so that nobody has to be asked. Nothing in it is believed until its signature is
//! verified.

use super::database::Database;
use bytes::Bytes;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::{Compression, Draft, NarSource};
use narswarm_protocol::store_path::{ItemName, StorePath};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row};
use std::path::PathBuf;
use tracing::debug;

/// A reader of its own for the signatures; there is none once the database turned out to have none.
#[derive(Debug)]
pub struct Signatures {
    database: Mutex<Option<Database>>,
    store_dir: String,
}

impl Signatures {
    /// Those in the database at `path`.
    #[must_use]
    pub fn new(path: PathBuf, store_dir: String, scratch: PathBuf) -> Self {
        let database = Mutex::new(Some(Database::new(path, store_dir.clone(), scratch)));
        Self { database, store_dir }
    }

    /// A narinfo of each of the items that somebody has signed, as Nix's database has it.
    #[must_use]
    pub fn narinfos(&self, items: &[ItemName]) -> Vec<Option<Bytes>> {
        let mut guard = self.database.lock();
        let Some(database) = guard.as_mut() else { return vec![None; items.len()] };
        let read = database.read(|connection| {
            if !has_signatures(connection)? {
                return Ok(None);
            }
            let narinfos = items.iter().map(|item| read_one(connection, &self.store_dir, item));
            narinfos.collect::<rusqlite::Result<Vec<_>>>().map(Some)
        });
        match read {
            Ok(Some(narinfos)) => narinfos,
            Ok(None) => {
                *guard = None;
                vec![None; items.len()]
            }
            Err(error) => {
                debug!("no signatures were read: {error}");
                vec![None; items.len()]
            }
        }
    }
}

fn has_signatures(connection: &Connection) -> rusqlite::Result<bool> {
    let query = "select count(*) from pragma_table_info('ValidPaths') where name in ('sigs', 'ca')";
    connection.query_row(query, [], |row| row.get(0)).map(|columns: i64| columns == 2)
}

/// What stands in a row, unparsed.
struct Text {
    id: i64,
    hash: String,
    nar_size: i64,
    deriver: Option<String>,
    sigs: String,
    content_address: Option<String>,
}

fn read_one(
    connection: &Connection,
    store_dir: &str,
    item: &ItemName,
) -> rusqlite::Result<Option<Bytes>> {
    let mut statement = connection.prepare_cached(
        "select id, hash, narSize, deriver, sigs, ca from ValidPaths where path = ?1 and sigs <> ''",
    )?;
    let path = format!("{store_dir}/{item}");
    let text = |row: &Row| {
        Ok(Text {
            id: row.get(0)?,
            hash: row.get(1)?,
            nar_size: row.get(2)?,
            deriver: row.get(3)?,
            sigs: row.get(4)?,
            content_address: row.get(5)?,
        })
    };
    let Some(text) = statement.query_row([&path], text).optional()? else { return Ok(None) };
    let mut statement = connection.prepare_cached(
        "select path from Refs join ValidPaths on id = reference where referrer = ?1",
    )?;
    let references = statement.query_map([text.id], |row| row.get::<_, String>(0))?;
    let references = references.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(narinfo(&path, &text, &references))
}

/// The narinfo, if all parts of it are what they should be.
fn narinfo(path: &str, text: &Text, references: &[String]) -> Option<Bytes> {
    let store_path = StorePath::parse(path.as_bytes()).ok()?;
    let item = |path: &String| Some(StorePath::parse(path.as_bytes()).ok()?.item().clone());
    let references = references.iter().map(item).collect::<Option<Vec<_>>>()?;
    let group = NarSource {
        url: format!("nar/{}", store_path.item().hash()),
        compression: Compression::None,
        file_size: None,
    };
    let draft = Draft {
        store_path,
        nar_hash: NarHash::parse_nix(text.hash.as_bytes()).ok()?,
        nar_size: u64::try_from(text.nar_size).ok()?,
        references,
        system: None,
        deriver: text.deriver.as_ref().and_then(item),
    };
    let sigs: Vec<&str> = text.sigs.split_ascii_whitespace().collect();
    let narinfo = draft.with_signatures(&sigs, text.content_address.as_deref(), &[group]);
    narinfo.ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::acl::{Acl, NixSigningKey};
    use narswarm_protocol::narinfo::UnverifiedNarinfo;

    const DIR: &str = "/nix/store";

    /// An item whose hash begins with 30 times this digit.
    fn item(digit: char, name: &str) -> ItemName {
        // The last digits make the first octet: so the two orders differ.
        let last = if digit == '1' { "zz" } else { "00" };
        let text = format!("{}{last}-{name}", digit.to_string().repeat(30));
        ItemName::parse(text.as_bytes()).expect("an item")
    }

    /// A database with these columns besides the ones that every store has.
    fn database(dir: &std::path::Path, columns: &str) -> (Connection, Signatures) {
        let path = dir.join("db.sqlite");
        let connection = Connection::open(&path).expect("a database");
        let tables = format!(
            "create table ValidPaths (id integer primary key, path text, hash text, \
             registrationTime integer, deriver text, narSize integer{columns});
             create table Refs (referrer integer, reference integer);"
        );
        connection.execute_batch(&tables).expect("tables");
        let signatures = Signatures::new(path, DIR.to_owned(), dir.to_owned());
        (connection, signatures)
    }

    #[test]
    fn what_nix_has_kept_is_enough_for_a_narinfo() {
        let dir = tempfile::tempdir().expect("a directory");
        let (connection, signatures) = database(dir.path(), ", sigs text, ca text");
        let key = NixSigningKey::from_seed("k-1", [1; 32]).expect("a name");
        let hash = format!("sha256:{}", "07".repeat(32));
        let base32 = NarHash([7; 32]).to_narinfo();
        // Each refers to the other and to itself, so that either order of rows is tried.
        let (top, dep) = (item('1', "top"), item('2', "dep"));
        assert!(top < dep && top.hash() > dep.hash());
        let sig = |of: &ItemName| {
            let text = format!("1;{DIR}/{of};{base32};9;{DIR}/{top},{DIR}/{dep}");
            format!("other-1:xx {}", key.sign(text.as_bytes()))
        };
        let add = |name: &ItemName, sigs: Option<&str>| {
            let query = "insert into ValidPaths (path, hash, narSize, deriver, sigs) \
                         values (?1, ?2, 9, ?3, ?4)";
            let values = (format!("{DIR}/{name}"), &hash, format!("{DIR}/{name}.drv"), sigs);
            connection.execute(query, values).expect("a row");
        };
        let unsigned = item('3', "unsigned");
        add(&top, Some(&sig(&top)));
        add(&dep, Some(&sig(&dep)));
        add(&unsigned, None);
        connection
            .execute_batch("insert into Refs values (1, 1), (1, 2), (2, 2), (2, 1), (3, 1)")
            .expect("rows");
        let items = [top, dep, unsigned, item('4', "unknown")];
        let mut narinfos = signatures.narinfos(&items);
        assert_eq!(narinfos.split_off(2), [None, None]);
        let acl = Acl::parse(key.public_key().to_string().as_bytes()).expect("a key");
        for (item, narinfo) in items.iter().zip(narinfos) {
            let narinfo = narinfo.expect("a narinfo");
            let narinfo = UnverifiedNarinfo::parse(&narinfo).expect("well-formed").verify(&acl);
            let narinfo = narinfo.expect("signed");
            assert_eq!((narinfo.item(), narinfo.references()), (item, &items[..2]));
            let relayed = String::from_utf8(narinfo.relay(&[])).expect("text");
            assert!(relayed.contains(&format!("Deriver: {item}.drv\n")), "{relayed}");
        }
    }

    #[test]
    fn guixs_database_has_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_connection, signatures) = database(dir.path(), "");
        assert_eq!(signatures.narinfos(&[item('1', "x")]), [None]);
        assert!(signatures.database.lock().is_none(), "it isn't looked into again");
    }
}
