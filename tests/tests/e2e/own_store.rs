//! A machine's own store, shared without a copy: what is public comes out of it, octet for octet,
//! and nothing else does, whatever happens to it meanwhile.

use bytes::Bytes;
use libp2p::PeerId;
use narswarm_node::config::{Role, Share};
use narswarm_node::engine::{Engine, EngineConfig, NarPlace, SharedEntry};
use narswarm_node::metrics::Metrics;
use narswarm_node::store::{DataDir, FilterFiles, KeptFile, Store, StoreConfig};
use narswarm_node::system_store::{Policy, SystemStoreConfig};
use narswarm_protocol::fetch::UpstreamMode;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::voucher::VoucherSigner;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::guix_store::GuixStore;
use narswarm_tests::harness::holding::{Holding, nar_hash};
use narswarm_tests::harness::http_client::HttpClient;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::program;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::{soon, until};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncReadExt;

/// A package of some files, one of `large` octets.
fn package(path: &Path, large: usize) {
    fs::create_dir_all(path.join("share/empty")).expect("a directory");
    fs::create_dir(path.join("bin")).expect("a directory");
    fs::write(path.join("bin/run"), b"#!/bin/sh\n").expect("a file");
    fs::set_permissions(path.join("bin/run"), fs::Permissions::from_mode(0o555)).expect("a mode");
    symlink("run", path.join("bin/alias")).expect("a symlink");
    // Each octet another, so that a piece in the wrong place is noticed.
    let content: Vec<u8> = (0..large as u64 / 8).flat_map(u64::to_le_bytes).collect();
    fs::write(path.join("share/large"), content).expect("a file");
    fs::hard_link(path.join("share/large"), path.join("share/linked")).expect("a hard link");
}

async fn shares(node: &Node, count: u64) {
    until("the store to be shared", async || node.status().await.items.store == count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_public_in_a_store_is_shared_and_nothing_else() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 1);
    let large = store.add("large-1.0", |path| package(path, 3 << 20));
    let file = store.add("file.txt", |path| fs::write(path, b"text").expect("a file"));
    let link = store.add("link", |path| symlink("/nowhere", path).expect("a symlink"));
    let secret = store.add("secret", |path| fs::write(path, b"secret").expect("a file"));
    // Signed under its name, but with other content than what is here.
    let other = store.add("other", |path| fs::write(path, b"signed").expect("a file"));
    fs::write(store.path("other"), b"built!").expect("a file");
    for holding in [&large, &file, &link, &other] {
        store.cache_narinfo(holding);
    }
    let a = store.shared_by(stage.node("a")).start().await;
    shares(&a, 3).await;
    // By its own shim, and by a peer.
    Guix::new(a.http(), store.acl()).gets_all(&[large.clone(), file.clone(), link.clone()]).await;
    let b = store.known_to(stage.node("b")).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let guix = Guix::new(b.http(), store.acl());
    guix.gets_all(&[large.clone(), file.clone(), link.clone()]).await;
    assert_eq!(guix.narinfo_status(&secret).await, 404);
    assert_eq!(guix.nar(&secret).await.expect("an answer").head.status, 404);
    // That narinfo is public and A has seen it, but not the nar.
    assert_eq!(guix.narinfo_status(&other).await, 200);
    assert_ne!(guix.nar(&other).await.expect("an answer").head.status, 200);
    let report = a.status().await;
    assert_eq!((report.items.store, report.items.cached), (3, 0), "no copy");
    let sent = report.bytes.to_peers;
    assert!(0 < sent && sent < large.nar_size(), "{sent}: it is compressed on its way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_and_goes_is_noticed_within_seconds() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 2);
    let first = store.add("first", |path| package(path, 1000));
    store.cache_narinfo(&first);
    let a = store.shared_by(stage.node("a")).start().await;
    let b = store.known_to(stage.node("b")).bootstrap(a.peer_address()).start().await;
    shares(&a, 1).await;
    let second = store.add("second", |path| package(path, 2000));
    store.cache_narinfo(&second);
    store.add("unknown", |path| fs::write(path, b"unknown").expect("a file"));
    shares(&a, 2).await;
    Guix::new(b.http(), store.acl()).gets_all(&[first.clone(), second.clone()]).await;
    store.collect(&first);
    shares(&a, 1).await;
    // It holds what it has fetched, and would be found.
    b.terminate().await;
    let c = store.known_to(stage.node("c")).bootstrap(a.peer_address()).start().await;
    c.has_peers(1).await;
    let guix = Guix::new(c.http(), store.acl());
    guix.gets_nar(&second).await;
    assert_ne!(guix.nar(&first).await.expect("an answer").head.status, 200);
}

/// Larger than what sockets and a node together read ahead.
const LARGE: usize = 48 << 20;

/// Octets after which something happens.
const MIDDLE_BYTES: usize = 1 << 20;

/// Reads a nar by HTTP, and lets something happen in its middle.
async fn reads_through(http: SocketAddr, holding: &Holding, happens: impl FnOnce()) {
    let mut client = HttpClient::connect(http).await.expect("the node listens");
    let request = client.spell("GET", &holding.nar_path());
    client.send(request.as_bytes()).await.expect("sent");
    let mut octets = Vec::new();
    let mut happens = Some(happens);
    let whole = loop {
        let read = soon("the nar", client.stream().read_buf(&mut octets)).await.expect("octets");
        assert!(read > 0, "an orderly end after {} octets", octets.len());
        if octets.len() >= MIDDLE_BYTES
            && let Some(happens) = happens.take()
        {
            happens();
        }
        let Some(head) = octets.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        let body = head + 4;
        assert!(octets.starts_with(b"HTTP/1.1 200"), "{}", octets[..head].escape_ascii());
        if (octets.len() - body) as u64 >= holding.nar_size() {
            break octets.split_off(body);
        }
    };
    assert_eq!(nar_hash(&whole), holding.narinfo.nar_hash());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_is_collected_on_its_way_to_guix_comes_from_elsewhere() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 3);
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    let collected = store.add("collected", |path| package(path, LARGE));
    // Another nar, so that none is in the cache when it is asked for.
    let changed = store.add("changed", |path| package(path, LARGE + 8));
    for holding in [&collected, &changed] {
        store.cache_narinfo(holding);
        store.publish(holding, true);
    }
    let a = store.shared_by(stage.node("a")).upstream(&upstream.url()).start().await;
    shares(&a, 2).await;
    reads_through(a.http(), &collected, || store.collect(&collected)).await;
    shares(&a, 1).await;
    // A file that is written to in place, which no store allows, but disks fail.
    let file = store.path("changed").join("share/large");
    reads_through(a.http(), &changed, || {
        let content = fs::read(&file).expect("a file");
        fs::write(&file, content.iter().map(|octet| octet ^ 1).collect::<Vec<_>>())
            .expect("a file");
    })
    .await;
    shares(&a, 0).await;
    assert!(upstream.seen().nars() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_is_collected_on_its_way_to_a_peer_comes_from_elsewhere() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 4);
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    let holding = store.add("collected", |path| package(path, 16 << 20));
    store.cache_narinfo(&holding);
    store.publish(&holding, true);
    let a = store.shared_by(stage.node("a")).arg("--upload-rate").arg("8MB/s").start().await;
    shares(&a, 1).await;
    let b = store.known_to(stage.node("b")).bootstrap(a.peer_address()).upstream(&upstream.url());
    let b = b.arg("--upstream-mode").arg("swarm-first").start().await;
    b.has_peers(1).await;
    reads_through(b.http(), &holding, || store.collect(&holding)).await;
    assert!(b.status().await.bytes.from_peers > 0, "it began at the peer");
    shares(&a, 0).await;
}

/// What `narswarm shared` says.
async fn listed(node_args: &[&std::ffi::OsStr]) -> Vec<SharedEntry> {
    let mut command = program::command("shared");
    let out = program::run(command.arg("--json").args(node_args)).await.well();
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_what_is_shared_is_the_same_at_rest_and_true() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 5);
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    let public = store.add("public", |path| package(path, 1000));
    let excluded = store.add("excluded-1", |path| package(path, 2000));
    store.add("private", |path| package(path, 3000));
    for holding in [&public, &excluded] {
        store.cache_narinfo(holding);
    }
    // Only looked up, and only fetched.
    let known = store.add("known", |path| fs::write(path, b"1").expect("a file"));
    let fetched = store.add("fetched", |path| fs::write(path, b"2").expect("a file"));
    for holding in [&known, &fetched] {
        store.collect(holding);
        store.publish(holding, true);
    }
    store.exclude(&["excluded-*"]);
    let a = store.shared_by(stage.node("a")).upstream(&upstream.url()).start().await;
    shares(&a, 1).await;
    let guix = Guix::new(a.http(), store.acl());
    guix.gets_narinfos(&[known.clone(), fetched.clone(), excluded.clone()][..2]).await;
    guix.gets_nar(&fetched).await;
    a.keeps(std::slice::from_ref(&fetched)).await;
    let mut expected = vec![
        (public.item().to_owned(), NarPlace::Store),
        (known.item().to_owned(), NarPlace::None),
        (fetched.item().to_owned(), NarPlace::Cache),
    ];
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    let config = stage.path("guix/config.toml");
    let (data, acl, dir, db) = (stage.path("a"), store.key_file(), store.dir(), store.database());
    let args = [
        "--config".as_ref(),
        config.as_os_str(),
        "--data-dir".as_ref(),
        data.as_os_str(),
        "--store".as_ref(),
        dir.as_os_str(),
        "--store-db".as_ref(),
        db.as_os_str(),
    ];
    let said = |list: Vec<SharedEntry>| {
        let mut said: Vec<_> = list.into_iter().map(|entry| (entry.item, entry.nar)).collect();
        said.sort_by(|a, b| a.0.cmp(&b.0));
        said
    };
    assert_eq!(said(listed(&args).await), expected);
    // A peer that asks for everything hears just that.
    let b = store.known_to(stage.node("b")).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let asking = Guix::new(b.http(), store.acl());
    asking.gets_narinfos(&[public.clone(), known.clone(), fetched.clone()]).await;
    assert_eq!(asking.narinfo_status(&excluded).await, 404);
    a.terminate().await;
    let with_key = [&args[..], &["--acl".as_ref(), acl.as_os_str()]].concat();
    assert_eq!(said(listed(&with_key).await), expected, "at rest");
    let nothing = [&with_key[..], &["--share".as_ref(), "nothing".as_ref()]].concat();
    assert!(listed(&nothing).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_only_read_shares_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        return narswarm_tests::harness::samples::not_tested("only root can become another user");
    }
    let stage = Stage::new();
    let mut store = GuixStore::create(stage.path("guix"), 6);
    let first = store.add("first", |path| package(path, 100_000));
    store.cache_narinfo(&first);
    const NOBODY: u32 = 65_534;
    fs::create_dir(stage.path("a")).expect("a directory");
    std::os::unix::fs::chown(stage.path("a"), Some(NOBODY), Some(NOBODY)).expect("root may");
    stage.opens_to_all();
    // With a daemon, without one, and with one again.
    let a = store.shared_by(stage.node("a")).as_user(NOBODY).start().await;
    shares(&a, 1).await;
    let second = store.add("second", |path| package(path, 1000));
    store.cache_narinfo(&second);
    shares(&a, 2).await;
    store.stop_daemon();
    until("the database to be read at rest", async || a.log().contains("without locks")).await;
    store.start_daemon();
    store.collect(&first);
    shares(&a, 1).await;
    Guix::new(a.http(), store.acl()).gets_all(&[second]).await;
    let left: Vec<_> = fs::read_dir(stage.path("guix/db"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").metadata().expect("a file"))
        .filter(|file| std::os::unix::fs::MetadataExt::uid(file) == NOBODY)
        .collect();
    assert!(left.is_empty(), "nothing was written beside the database");
}

/// What is private, excluded or nowhere is answered for with the same octets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_about_what_is_not_public_are_the_same_to_the_bit() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 7);
    let public = store.add("public", |path| package(path, 1000));
    let private = store.add("private", |path| package(path, 2000));
    let excluded = store.add("excluded-1", |path| package(path, 3000));
    for holding in [&public, &excluded] {
        store.cache_narinfo(holding);
    }
    let data = DataDir::open(stage.path("a")).expect("a data directory");
    let kept = Arc::new(Store::open(&data, &StoreConfig::default()).expect("a store"));
    let policy = Policy::new(&[], &["excluded-*".to_owned()]).expect("patterns");
    let config = EngineConfig {
        role: Role::Workstation,
        share: Share::Public,
        policy: policy.clone(),
        upstream_mode: UpstreamMode::SwarmOnly,
        store_dir: store.dir().display().to_string(),
        expects_peers: false,
        voucher_signer: VoucherSigner::new(&[1; 32]),
        voucher_keys: Vec::new(),
        filters: FilterFiles::of(&data),
        own_filters: KeptFile::own_filters(&data),
    };
    // What is excluded has been looked up by guix, and so is at hand.
    let narinfo = Bytes::copy_from_slice(excluded.narinfo.original());
    let entry = (excluded.narinfo.item().hash(), excluded.narinfo.nar_hash(), narinfo);
    kept.put_narinfos(&[entry]).expect("kept");
    let engine = Engine::new(config, kept, None, store.acl(), Arc::new(Metrics::new()));
    let own_store = SystemStoreConfig {
        store: store.dir(),
        database: store.database(),
        guix_cache: stage.path("guix/cache"),
        data_dir: data.path().to_owned(),
        policy,
        fetched_only: false,
        lookups_per_minute: 0,
    };
    engine.share_store(own_store, tokio::runtime::Handle::current()).expect("shared");
    let shared = || engine.own_store().expect("a store").survey().shared == 1;
    until("the store to be shared", async || shared()).await;
    let (responder, peer) = (engine.responder(), PeerId::random());
    let ask = |hash: StoreHash, nar: NarHash| {
        let answers = responder.query(&[hash]).into_iter().map(|held| held.is_some()).collect();
        (answers, responder.open(peer, &nar).is_some())
    };
    let of = |holding: &Holding| ask(holding.narinfo.item().hash(), holding.narinfo.nar_hash());
    assert_eq!(of(&public), (vec![true], true));
    let nobody_has: (Vec<bool>, bool) = ask(StoreHash([9; 20]), NarHash([9; 32]));
    assert_eq!(nobody_has, (vec![false], false));
    // `None` is encoded without a word of what it is about.
    assert_eq!(of(&private), nobody_has);
    assert_eq!(of(&excluded), nobody_has);
    // And it takes as long: all that was asked for here is looked for in the same places. Once a
    // signature were verified for one of them, it would take several times as long.
    let kinds = [StoreHash([9; 20]), private.narinfo.item().hash(), excluded.narinfo.item().hash()];
    let mut times = kinds.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (kind, times) in kinds.iter().zip(&mut times) {
            let start = Instant::now();
            assert_eq!(responder.query(std::slice::from_ref(kind)), [None]);
            times.push(start.elapsed());
        }
    }
    let medians = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 2]
    });
    let (least, most) = (medians.iter().min(), medians.iter().max());
    assert!(most < least.map(|least| *least * 3).as_ref(), "{medians:?}");
    engine.own_store().expect("a store").stop();
}

/// Questions of each kind that are compared: the median of so many is not that of a busy moment.
const ROUNDS: usize = 501;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nars_of_the_store_come_in_parts_and_compressed() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 8);
    let holding = store.add("large-1.0", |path| package(path, 3 << 20));
    store.cache_narinfo(&holding);
    let a = store.shared_by(stage.node("a")).start().await;
    shares(&a, 1).await;
    let nar = holding.nar();
    let len = nar.len();
    let part = async |path: &str, range: &str| {
        let mut client = HttpClient::connect(a.http()).await.expect("the node listens");
        let host = a.http();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={range}\r\n\r\n");
        client.send(request.as_bytes()).await.expect("sent");
        soon("a part", client.read_reply()).await.expect("an answer")
    };
    let path = holding.nar_path();
    let edge = 256 * 1024;
    for (range, octets) in [
        ("0-0".to_owned(), 0..1),
        (format!("{}-{}", edge - 3, edge + 2), edge - 3..edge + 3),
        (format!("{edge}-"), edge..len),
        (format!("{}-{}", len - 5, len * 2), len - 5..len),
        ("-9".to_owned(), len - 9..len),
    ] {
        let reply = part(&path, &range).await;
        assert_eq!(reply.head.status, 206, "{range}");
        let said = format!("bytes {}-{}/{len}", octets.start, octets.end - 1);
        assert_eq!(reply.head.header("content-range"), Some(said.as_str()));
        assert!(reply.body == nar[octets], "{range} differs");
    }
    let beyond = part(&path, &format!("{len}-")).await;
    assert_eq!(beyond.head.status, 416);
    assert_eq!(beyond.head.header("content-range"), Some(format!("bytes */{len}").as_str()));
    assert_eq!(a.status().await.items.cached, 0, "no copy is made");

    let guix = Guix::new(a.http(), store.acl());
    let zstd_path = format!("/nar/zstd/{}", holding.item());
    let whole = guix.get(&zstd_path).await.expect("an answer");
    assert_eq!(whole.head.status, 200);
    assert_eq!(whole.head.content_length(), Some(whole.body.len() as u64));
    assert!(zstd::decode_all(&whole.body[..]).expect("zstd") == *nar, "it is another");
    // Its length had to be known, so this one form is kept.
    assert_eq!(a.status().await.items.cached, 1);
    let middle = part(&zstd_path, "100-4095").await;
    assert!(middle.head.status == 206 && middle.body == whole.body[100..4096], "a part of it");
    store.collect(&holding);
    shares(&a, 0).await;
    assert!(guix.get(&zstd_path).await.expect("an answer").body == whole.body);
}
