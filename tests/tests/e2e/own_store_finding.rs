//! How a node finds out what of its machine's store is public: at hand first, then with peers, then
//! with substitute servers, and of these no more than is polite.

use narswarm_protocol::signature::SigningKey;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::guix_store::GuixStore;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;
use std::fs;
use std::time::{Duration, Instant};

async fn shares(node: &Node, count: u64) {
    until("the store to be shared", async || node.status().await.items.store == count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn narinfos_are_looked_for_at_hand_then_with_peers_then_upstream() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 1);
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    // There, and not registered yet.
    let names = ["looked-up", "cached", "known-to-a-peer", "known-upstream", "private"];
    let items = names.map(|name| {
        fs::write(store.path(name), name).expect("a file");
        store.holding(name)
    });
    let [looked_up, cached, known_to_peer, known_upstream, private] = &items;
    // Upstream has them all, so that only the order tells whom it was asked of.
    for item in [looked_up, cached, known_to_peer, known_upstream] {
        store.publish(item, false);
    }
    store.cache_narinfo(cached);
    let a = store.shared_by(stage.node("a")).upstream(&upstream.url()).start().await;
    Guix::new(a.http(), store.acl()).gets_narinfos(std::slice::from_ref(looked_up)).await;
    let b = store.known_to(stage.node("b")).upstream(&upstream.url());
    let b = b.bootstrap(a.peer_address()).start().await;
    Guix::new(b.http(), store.acl()).gets_narinfos(std::slice::from_ref(known_to_peer)).await;
    b.has_peers(1).await;
    a.has_peers(1).await;
    let before = upstream.seen().narinfos();
    for item in &items {
        store.register(item);
    }
    shares(&a, 4).await;
    let asked = || upstream.seen().narinfo_hashes().split_off(before);
    until("upstream to be asked for the private one", async || asked().contains(&private.hash()))
        .await;
    let (mut asked, mut expected) = (asked(), vec![known_upstream.hash(), private.hash()]);
    asked.sort();
    expected.sort();
    assert_eq!(asked, expected, "each once, and nothing that was nearer");

    let metrics = async || String::from_utf8(a.get("/metrics").await.to_vec()).expect("text");
    let missed = "narswarm_store_lookups_total{place=\"Others\",outcome=\"NotFound\"} 1";
    until("the answer to be counted", async || metrics().await.contains(missed)).await;
    let metrics = metrics().await;
    let bytes: u64 = items[..4].iter().map(|item| item.nar_size()).sum();
    for line in [
        "narswarm_store_lookups_total{place=\"GuixCache\",outcome=\"Found\"} 1".to_owned(),
        "narswarm_store_lookups_total{place=\"Others\",outcome=\"Found\"} 2".to_owned(),
        "narswarm_store_items{state=\"Shared\"} 4".to_owned(),
        "narswarm_store_items{state=\"Unsigned\"} 1".to_owned(),
        "narswarm_store_waiting_bytes 0".to_owned(),
        format!("narswarm_store_shared_bytes {bytes}"),
        format!("narswarm_store_hashed_bytes_total {bytes}"),
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is missing from\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_asked_at_the_rate_that_is_set_and_only_once() {
    /// A hundred are asked for at once, and then none for two seconds.
    const PER_MINUTE: usize = 3000;
    const ITEMS: usize = 250;
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 2);
    store.configure(&format!("store_lookups_per_minute = {PER_MINUTE}"));
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    let a = store.shared_by(stage.node("a")).upstream(&upstream.url()).start().await;
    let began = Instant::now();
    store.daemon().execute_batch("begin").expect("a transaction");
    for number in 0..ITEMS {
        store.add(&format!("private-{number}"), |path| fs::write(path, "x").expect("a file"));
    }
    store.daemon().execute_batch("commit").expect("a transaction");
    until("all to be asked for", async || upstream.seen().narinfos() >= ITEMS).await;
    // The third hundred waits twice.
    let least = Duration::from_secs_f64(60.0 * 200.0 / PER_MINUTE as f64);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    let mut asked = upstream.seen().narinfo_hashes();
    asked.sort();
    asked.dedup();
    assert_eq!((asked.len(), upstream.seen().narinfos()), (ITEMS, ITEMS), "each once");
    drop(a);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_when_nobody_is_to_be() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 3);
    store.configure("store_lookups_per_minute = 0");
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    store.add("private", |path| fs::write(path, "secret").expect("a file"));
    let a = store.shared_by(stage.node("a")).upstream(&upstream.url()).start().await;
    // What comes later is dealt with later.
    let later = store.add("later", |path| fs::write(path, "public").expect("a file"));
    store.cache_narinfo(&later);
    let last = store.add("last", |path| fs::write(path, "last").expect("a file"));
    store.cache_narinfo(&last);
    shares(&a, 2).await;
    assert_eq!(upstream.seen().narinfos(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_new_key_has_signed_is_found_at_once() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 4);
    store.configure("store_lookups_per_minute = 0");
    let item = store.add("item", |path| fs::write(path, "public").expect("a file"));
    store.cache_narinfo(&item);
    let ours = fs::read(store.key_file()).expect("a key");
    fs::write(store.key_file(), SigningKey::from_seed([99; 32]).public_key_sexp()).expect("a file");
    let a = store.shared_by(stage.node("a")).start().await;
    let refused = "narswarm_store_lookups_total{place=\"GuixCache\",outcome=\"NotFound\"} 1";
    until("its narinfo to be refused", async || {
        String::from_utf8_lossy(&a.get("/metrics").await).contains(refused)
    })
    .await;
    fs::write(store.key_file(), ours).expect("a file");
    shares(&a, 1).await;
}
