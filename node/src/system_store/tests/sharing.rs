//! From the database to the shelf: what is signed and hashed so is shared, nothing else, and only
//! as long as it stays what it was.

use super::super::{
    Answer, Outside, Policy, Signed, SystemStore, SystemStoreConfig, hash_tree, lay_out,
};
use super::databases::daemon;
use bytes::Bytes;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use parking_lot::Mutex;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A node that knows what a test tells it.
#[derive(Default)]
struct Node {
    kept: Mutex<HashMap<StoreHash, Signed>>,
    elsewhere: Mutex<HashMap<StoreHash, Signed>>,
    asked: Mutex<Vec<StoreHash>>,
    told: Mutex<HashSet<StoreHash>>,
}

impl Outside for Node {
    fn kept(&self, items: &[ItemName]) -> Vec<Option<Signed>> {
        let kept = self.kept.lock();
        items.iter().map(|item| kept.get(&item.hash()).copied()).collect()
    }

    fn judge(&self, offers: &[(ItemName, Bytes)]) -> Vec<Option<Signed>> {
        vec![None; offers.len()]
    }

    fn ask(&self, items: &[ItemName]) -> Vec<Answer> {
        let elsewhere = self.elsewhere.lock();
        self.asked.lock().extend(items.iter().map(ItemName::hash));
        let answer = |item: &ItemName| elsewhere.get(&item.hash()).copied();
        items.iter().map(|item| answer(item).map_or(Answer::Nobody, Answer::Signed)).collect()
    }

    fn came(&self, items: Vec<StoreHash>) {
        self.told.lock().extend(items);
    }

    fn gone(&self, items: Vec<StoreHash>) {
        self.told.lock().retain(|item| !items.contains(item));
    }
}

struct Stage {
    dir: tempfile::TempDir,
    daemon: Connection,
    node: Arc<Node>,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["store", "data"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let daemon = daemon(&dir.path().join("db.sqlite"));
        Self { dir, daemon, node: Arc::default() }
    }

    fn config(&self) -> SystemStoreConfig {
        SystemStoreConfig {
            store: self.dir.path().join("store"),
            database: self.dir.path().join("db.sqlite"),
            guix_cache: self.dir.path().join("none"),
            data_dir: self.dir.path().join("data"),
            policy: Policy::new(&[], &["*-hidden".to_owned()]).expect("patterns"),
            fetched_only: false,
            lookups_per_minute: 60_000,
        }
    }

    fn start(&self) -> SystemStore {
        SystemStore::start(self.config(), self.node.clone(), Arc::default()).expect("started")
    }

    fn path(&self, item: &ItemName) -> PathBuf {
        self.dir.path().join("store").join(item.as_str())
    }

    /// An item of one file in a directory, valid; what is true of it.
    fn add(&self, number: u8, name: &str, content: &[u8]) -> (ItemName, Signed) {
        let hash = narswarm_protocol::base32::encode(&[number; 20]);
        let item = ItemName::parse(format!("{hash}-{name}").as_bytes()).expect("a name");
        fs::create_dir(self.path(&item)).expect("a directory");
        fs::write(self.path(&item).join("file"), content).expect("a file");
        self.register(&item);
        (item.clone(), self.signed(&item))
    }

    fn register(&self, item: &ItemName) {
        // The daemon may not know the hash; ours decides.
        self.daemon
            .execute(
                "insert into ValidPaths (path, hash, registrationTime) values (?1, '', 5)",
                [self.path(item).display().to_string()],
            )
            .expect("a row");
    }

    fn signed(&self, item: &ItemName) -> Signed {
        let layout = lay_out(&self.path(item)).expect("a tree");
        let hashed = hash_tree(&self.path(item), &layout, &mut || true).expect("hashed");
        let hashed = hashed.expect("not stopped");
        Signed { nar_hash: hashed.nar_hash, nar_size: layout.nar_size() }
    }

    fn keep(&self, item: &ItemName, signed: Signed) {
        self.node.kept.lock().insert(item.hash(), signed);
    }

    fn invalidate(&self, item: &ItemName) {
        let path = self.path(item).display().to_string();
        self.daemon.execute("delete from ValidPaths where path = ?1", [path]).expect("deleted");
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(store: &SystemStore, nar: &NarHash) -> Option<Vec<u8>> {
    let nar = store.nar(nar)?;
    let pieces = nar.list().layout().piece_count();
    let pieces = (0..pieces).map(|index| nar.piece(index).map(|bytes| bytes.to_vec()));
    Some(pieces.collect::<Result<Vec<_>, _>>().ok()?.concat())
}

#[test]
fn only_what_is_signed_so_is_shared() {
    let stage = Stage::new();
    let (public, signed) = stage.add(1, "public", b"public");
    let (other, other_signed) = stage.add(2, "other", b"built here");
    let (secret, secret_signed) = stage.add(3, "secret", b"secret");
    let (hidden, hidden_signed) = stage.add(4, "hidden", b"hidden");
    stage.keep(&public, signed);
    stage.keep(&other, Signed { nar_hash: NarHash([9; 32]), ..other_signed });
    stage.keep(&hidden, hidden_signed);
    let store = stage.start();
    until("the store to be looked through", || {
        let survey = store.survey();
        survey.shared == 1 && survey.different == 1 && survey.unsigned == 1
    });
    until("the swarm to be told", || stage.node.told.lock().contains(&public.hash()));
    let nar = read(&store, &signed.nar_hash).expect("shared");
    assert_eq!(NarHash(Sha256::digest(&nar).into()), signed.nar_hash);
    for nar in [other_signed.nar_hash, secret_signed.nar_hash, hidden_signed.nar_hash] {
        assert!(store.nar(&nar).is_none() && store.shared_nar(&nar).is_none());
    }
    assert_eq!(store.all_shared().len(), 1);
    assert!(store.is_hidden(&hidden.hash()) && !store.is_hidden(&secret.hash()));
    until("others to be asked", || stage.node.asked.lock().contains(&secret.hash()));
    assert!(!stage.node.asked.lock().contains(&hidden.hash()), "nobody hears of what is hidden");
    // Somebody signs it after all.
    stage.keep(&secret, secret_signed);
    store.note_signed(&[secret.hash()]);
    until("it to be shared", || store.shared(&secret.hash()).is_some());
    store.stop();
}

#[test]
fn what_was_hashed_is_not_hashed_again_unless_it_is_another() {
    let stage = Stage::new();
    let (item, signed) = stage.add(1, "item", &[7; 300_000]);
    stage.keep(&item, signed);
    let store = stage.start();
    until("it to be shared", || store.survey().shared == 1);
    assert_eq!(store.survey().hashed_bytes, signed.nar_size);
    store.stop();
    let again = stage.start();
    until("it to be shared", || again.survey().shared == 1);
    assert_eq!(again.survey().hashed_bytes, 0, "remembered");
    again.stop();
    let recalled =
        SystemStore::recall(stage.config(), stage.node.clone(), Arc::default()).expect("recalled");
    assert!(recalled.shared(&item.hash()).is_some());
    // Another registration: whether the tree is the same isn't known.
    stage.invalidate(&item);
    stage.register(&item);
    let third = stage.start();
    until("it to be shared", || third.survey().shared == 1);
    assert_eq!(third.survey().hashed_bytes, signed.nar_size);
    third.stop();
}

#[test]
fn what_is_collected_is_withdrawn_and_reads_fail_cleanly() {
    let stage = Stage::new();
    let (item, signed) = stage.add(1, "item", &[7; 1_000_000]);
    stage.keep(&item, signed);
    let store = stage.start();
    until("it to be told", || stage.node.told.lock().len() == 1);
    let open = store.nar(&signed.nar_hash).expect("shared");
    open.piece(0).expect("a piece");
    // The tree goes before its row, as when a disk fails; then the row.
    fs::remove_dir_all(stage.path(&item)).expect("removed");
    let fresh = store.nar(&signed.nar_hash);
    assert!(fresh.is_none(), "what isn't there can't be opened");
    assert!(store.shared_nar(&signed.nar_hash).is_none());
    assert!(stage.node.told.lock().is_empty(), "and is withdrawn at once");
    for index in 0..open.list().layout().piece_count() {
        // A file that is open still may be read on, and then it is right.
        if let Ok(piece) = open.piece(index) {
            assert!(open.list().matches(index, &piece));
        }
    }
    stage.invalidate(&item);
    until("the row to be gone", || store.survey().items == 0);
    store.stop();
}

#[test]
fn what_changes_in_place_never_leaves_wrong() {
    let stage = Stage::new();
    let (item, signed) = stage.add(1, "item", &[7; 1_000_000]);
    stage.keep(&item, signed);
    let store = stage.start();
    until("it to be shared", || store.survey().shared == 1);
    let open = store.nar(&signed.nar_hash).expect("shared");
    let first = open.piece(0).expect("a piece");
    overwrite(&stage.path(&item).join("file"), 900_000);
    let pieces = open.list().layout().piece_count();
    assert!((0..pieces).any(|index| open.piece(index).is_err()), "the changed piece is an error");
    assert_eq!(open.piece(0).expect("unchanged"), first);
    assert!(store.shared_nar(&signed.nar_hash).is_none(), "shared no more");
    until("it to be hashed anew and found different", || store.survey().different == 1);
    assert!(store.nar(&signed.nar_hash).is_none());
    store.stop();
}

/// Changes one octet, and nothing that a stamp could see.
fn overwrite(path: &Path, offset: u64) {
    let file = fs::File::options().write(true).open(path).expect("a file");
    rustix::io::pwrite(&file, b"!", offset).expect("written");
}

#[test]
fn with_fetched_only_the_rest_is_hidden() {
    let stage = Stage::new();
    let (item, signed) = stage.add(1, "item", b"fetched later");
    stage.keep(&item, signed);
    let config = SystemStoreConfig { fetched_only: true, ..stage.config() };
    let store = SystemStore::start(config, stage.node.clone(), Arc::default()).expect("started");
    assert!(store.is_hidden(&item.hash()));
    assert_eq!(store.survey().hidden, 1);
    store.note_fetched(&item.hash());
    until("it to be shared", || store.shared(&item.hash()).is_some());
    assert!(!store.is_hidden(&item.hash()));
    store.stop();
}

#[test]
fn who_was_asked_in_vain_is_not_asked_again_soon() {
    let stage = Stage::new();
    let (item, _) = stage.add(1, "built-here", b"private");
    let store = stage.start();
    let is_remembered = || store.inner.memory.asked(&item.hash()).expect("memory").is_some();
    until("others to be asked in vain", is_remembered);
    store.stop();
    stage.node.asked.lock().clear();
    let again = stage.start();
    let (late, signed) = stage.add(2, "late", b"public");
    stage.node.elsewhere.lock().insert(late.hash(), signed);
    until("the later one to be found elsewhere", || again.shared(&late.hash()).is_some());
    assert_eq!(*stage.node.asked.lock(), [late.hash()], "only the new one");
    again.stop();
}

/// The nice values of this process's threads that are called `store-hash`.
fn niceness_of_hashing() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("threads");
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let hashing = stats.filter(|stat| stat.contains("(store-hash)"));
    // Field 19, of which the first two stand before the last parenthesis (proc(5)).
    let nice = |stat: String| stat.rsplit(") ").next()?.split(' ').nth(16).map(str::to_owned);
    hashing.filter_map(nice).collect()
}

#[test]
fn hashing_gives_way_to_everything_else() {
    let stage = Stage::new();
    let store = stage.start();
    until("the thread to be the last in the queue", || {
        let nice = niceness_of_hashing();
        !nice.is_empty() && nice.iter().all(|nice| nice == "19")
    });
    store.stop();
}
