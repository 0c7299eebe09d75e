//! A store as Guix keeps one: trees, a database with Guix's schema that a daemon has open, and
//! guix's own cache of narinfos. Below a temporary directory, so the store has another name.

use super::holding::{Holding, nar_hash};
use super::node::NodeSpec;
use bytes::Bytes;
use narswarm_node::nar_tree;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::base32;
use narswarm_protocol::narinfo::{Compression, Draft, NarSource, UnverifiedNarinfo};
use narswarm_protocol::signature::SigningKey;
use narswarm_protocol::store_path::StorePath;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// The tables of Guix's store (`nix/libstore/schema.sql` in Guix's sources).
const SCHEMA: &str = "
    create table if not exists ValidPaths (
        id               integer primary key autoincrement not null,
        path             text unique not null,
        hash             text not null,
        registrationTime integer not null,
        deriver          text,
        narSize          integer
    );
    create table if not exists Refs (
        referrer  integer not null,
        reference integer not null,
        primary key (referrer, reference),
        foreign key (referrer) references ValidPaths(id) on delete cascade,
        foreign key (reference) references ValidPaths(id) on delete restrict
    );
    create index if not exists IndexReferrer on Refs(referrer);
    create index if not exists IndexReference on Refs(reference);
";

/// See the module.
pub struct GuixStore {
    root: PathBuf,
    key: SigningKey,
    daemon: Option<Connection>,
}

impl GuixStore {
    /// An empty store below a new directory; the key of its substitutes follows from `seed`.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn create(root: impl Into<PathBuf>, seed: u8) -> Self {
        let root = root.into();
        for dir in ["store", "db", "cache/server", "mirror"] {
            fs::create_dir_all(root.join(dir)).expect("a new directory");
        }
        let key = SigningKey::from_seed([seed; 32]);
        fs::write(root.join("key.pub"), key.public_key_sexp()).expect("a file");
        let cache = root.join("cache");
        let config = format!("guix_cache = {:?}\n", cache.display().to_string());
        fs::write(root.join("config.toml"), config).expect("a file");
        let mut store = Self { root, key, daemon: None };
        store.start_daemon();
        store
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Its database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("db/db.sqlite")
    }

    /// The public key that its substitutes are signed with.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.root.join("key.pub")
    }

    /// The list that believes this key.
    #[must_use]
    pub fn acl(&self) -> Acl {
        Acl::parse(self.key.public_key_sexp().as_bytes()).expect("a sound key")
    }

    /// A folder that a substitute server can serve; see [`GuixStore::publish`].
    #[must_use]
    pub fn mirror(&self) -> PathBuf {
        self.root.join("mirror")
    }

    /// Has its nodes keep items of these names from others.
    ///
    /// # Panics
    /// When the configuration can't be written.
    pub fn exclude(&self, patterns: &[&str]) {
        self.configure(&format!("share_exclude = {patterns:?}"));
    }

    /// Adds a line to the configuration of its nodes.
    ///
    /// # Panics
    /// When the configuration can't be written.
    pub fn configure(&self, line: &str) {
        let file = self.root.join("config.toml");
        let config = fs::read_to_string(&file).expect("a file");
        fs::write(file, format!("{config}{line}\n")).expect("a file");
    }

    /// A node of a machine with this store.
    #[must_use]
    pub fn shared_by(&self, node: NodeSpec) -> NodeSpec {
        let node = node.arg("--config").arg(self.root.join("config.toml"));
        let node = node.arg("--store-db").arg(self.database());
        self.known_to(node)
    }

    /// A node of a machine with an empty store of this name.
    #[must_use]
    pub fn known_to(&self, node: NodeSpec) -> NodeSpec {
        node.acl(self.key_file()).arg("--store").arg(self.dir())
    }

    /// The daemon opens the database, with a log that readers can share.
    ///
    /// # Panics
    /// When it can't.
    pub fn start_daemon(&mut self) {
        let daemon = Connection::open(self.database()).expect("a database");
        daemon.pragma_update(None, "journal_mode", "wal").expect("a log");
        daemon.execute_batch(SCHEMA).expect("tables");
        self.daemon = Some(daemon);
    }

    /// The daemon ends, and with it the log.
    pub fn stop_daemon(&mut self) {
        self.daemon = None;
    }

    /// The daemon's connection.
    ///
    /// # Panics
    /// When it doesn't run.
    #[must_use]
    pub fn daemon(&self) -> &Connection {
        self.daemon.as_ref().expect("the daemon runs")
    }

    /// Where an item of this name is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        let digest = Sha256::digest(name);
        self.dir().join(format!("{}-{name}", base32::encode(&digest[..20])))
    }

    /// Adds an item, of which `make` makes the tree at a path, as valid. Nobody knows a narinfo of
    /// it yet.
    ///
    /// # Panics
    /// When that doesn't work.
    pub fn add(&self, name: &str, make: impl FnOnce(&Path)) -> Holding {
        let path = self.path(name);
        make(&path);
        let holding = self.holding(name);
        self.register(&holding);
        holding
    }

    /// What an item is, by the tree that is there now.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn holding(&self, name: &str) -> Holding {
        let path = self.path(name);
        let mut nar = Vec::new();
        nar_tree::dump(&path, &mut nar).expect("a tree");
        let store_path = StorePath::parse(path.to_str().expect("text").as_bytes());
        let draft = Draft {
            store_path: store_path.expect("a sound name"),
            nar_hash: nar_hash(&nar),
            nar_size: nar.len() as u64,
            references: Vec::new(),
            system: Some("x86_64-linux".to_owned()),
            deriver: None,
        };
        let url = format!("nar/{}", draft.store_path.item());
        let source = NarSource { url, compression: Compression::None, file_size: None };
        let text = draft.sign(&self.key, "store.example", &[source]).expect("a sound draft");
        let narinfo = UnverifiedNarinfo::parse(&text).expect("our own narinfo");
        let narinfo = narinfo.verify(&self.acl()).expect("our own signature");
        Holding { narinfo, nar: Some(Bytes::from(nar)) }
    }

    /// Registers an item as valid.
    ///
    /// # Panics
    /// When the database doesn't take it.
    pub fn register(&self, holding: &Holding) {
        let hash: String =
            holding.narinfo.nar_hash().0.iter().map(|octet| format!("{octet:02x}")).collect();
        self.daemon()
            .execute(
                "insert into ValidPaths (path, hash, registrationTime, narSize) \
                 values (?1, ?2, 1700000000, ?3)",
                (
                    holding.narinfo.store_path().to_string(),
                    format!("sha256:{hash}"),
                    holding.nar_size().cast_signed(),
                ),
            )
            .expect("a new row");
    }

    /// Puts an item's narinfo into guix's own cache, as guix does when it has fetched it.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn cache_narinfo(&self, holding: &Holding) {
        let text = String::from_utf8_lossy(holding.narinfo.original()).into_owned();
        let value = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let entry = format!(
            "(narinfo (version 2) (cache-uri \"https://store.example\") (date 1) (ttl 2) \
             (value \"{value}\"))"
        );
        let file = self.root.join("cache/server").join(holding.hash());
        fs::write(file, entry).expect("a file");
    }

    /// Puts an item's narinfo, and its nar if `nar`, where a substitute server has them.
    ///
    /// # Panics
    /// When they can't be written.
    pub fn publish(&self, holding: &Holding, nar: bool) {
        let mirror = self.mirror();
        fs::write(mirror.join(&holding.narinfo_path()[1..]), holding.narinfo.original())
            .expect("a file");
        if nar {
            fs::create_dir_all(mirror.join("nar")).expect("a folder");
            fs::write(mirror.join(&holding.nar_path()[1..]), holding.nar()).expect("a file");
        }
    }

    /// Collects an item as garbage: invalid first, then gone, as the daemon does it.
    ///
    /// # Panics
    /// When it isn't there.
    pub fn collect(&self, holding: &Holding) {
        self.invalidate(holding);
        let path = self.dir().join(holding.item());
        let is_dir = fs::symlink_metadata(&path).expect("it is there").is_dir();
        if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.expect("it goes");
    }

    /// An item becomes invalid and stays where it is.
    ///
    /// # Panics
    /// When it wasn't valid.
    pub fn invalidate(&self, holding: &Holding) {
        let path = holding.narinfo.store_path().to_string();
        let deleted = self.daemon().execute("delete from ValidPaths where path = ?1", [path]);
        assert_eq!(deleted.expect("the database takes it"), 1);
    }
}
