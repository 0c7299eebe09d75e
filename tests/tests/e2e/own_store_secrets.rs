//! What of a machine's store isn't for others is answered for with the very octets with which what
//! nobody has is: to peers, in either protocol, and to HTTP clients.

use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::signature::SigningKey;
use narswarm_protocol::store_path::StoreHash;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::guix_store::GuixStore;
use narswarm_tests::harness::holding::Holding;
use narswarm_tests::harness::http_client::HttpClient;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::raw_asker::RawAsker;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::{soon, until};
use std::fs;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;

/// A node's whole answer as it travels, without the one header that tells the time.
async fn answer(http: SocketAddr, method: &str, path: &str) -> String {
    let mut client = HttpClient::connect(http).await.expect("the node listens");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    client.send(request.as_bytes()).await.expect("sent");
    let mut octets = Vec::new();
    soon("an answer", client.stream().read_to_end(&mut octets)).await.expect("octets");
    let text = String::from_utf8(octets).expect("text");
    let is_date = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
    let kept: Vec<_> = text.split("\r\n").filter(|line| !is_date(line)).collect();
    assert_eq!(kept.len() + 1, text.split("\r\n").count(), "one date in {text:?}");
    kept.join("\r\n")
}

/// Everything that an HTTP client can ask about an item.
async fn all_answers(http: SocketAddr, item: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for path in
        [format!("/{}.narinfo", &item[..32]), format!("/nar/{item}"), format!("/nar/zstd/{item}")]
    {
        for method in ["GET", "HEAD"] {
            let answer = answer(http, method, &path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{method} {path}: {answer}");
            answers.push(answer);
        }
    }
    answers
}

fn hash(holding: &Holding) -> StoreHash {
    holding.narinfo.item().hash()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_tells_what_is_private_from_what_is_not_there() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 9);
    let upstream = StaticServer::start(store.mirror()).await.expect("a server");
    let add = |name: &str| store.add(name, |path| fs::write(path, name).expect("a file"));
    let (public, private) = (add("public"), add("private"));
    store.cache_narinfo(&public);
    // Public elsewhere, and not to be known of here: in the store, and only looked up.
    let (excluded, looked_up) = (add("excluded-1"), add("excluded-2"));
    store.collect(&looked_up);
    for holding in [&excluded, &looked_up] {
        store.publish(holding, false);
    }
    store.exclude(&["excluded-*"]);
    // What is signed under this name is public, what was built under it is not.
    let signed = add("other");
    store.cache_narinfo(&signed);
    fs::write(store.path("other"), "built here").expect("a file");
    let built = store.holding("other");
    let a = store.shared_by(stage.node("a")).upstream(&upstream.url()).start().await;
    until("the store to be shared", async || a.status().await.items.store == 1).await;
    Guix::new(a.http(), store.acl()).gets_narinfos(&[excluded.clone(), looked_up.clone()]).await;
    until("the narinfos to be kept", async || a.status().await.items.narinfos == 4).await;

    let asker = RawAsker::of(a.peer_address());
    let nothing = asker.all_about_nothing().await;
    assert!(nothing.iter().all(|answer| !answer.is_empty()));
    let known = asker.all_about(&public).await;
    let head = public.signed_head();
    assert!(known[0].windows(head.len()).any(|octets| octets == head), "the public one is known");
    assert!(known[1].len() > nothing[1].len(), "and given");
    // Asked for once more, the answer may come from another place.
    for _ in 0..2 {
        for secret in [&private, &excluded, &looked_up] {
            assert_eq!(asker.all_about(secret).await, nothing, "{}", secret.item());
        }
        for other in [&built, &signed] {
            let (nar, size) = (other.narinfo.nar_hash(), other.nar_size());
            assert_eq!(asker.fetch(nar, size).await, nothing[1], "not even by its nar");
        }
    }
    let absent = StoreHash([9; 20]);
    let mixed = [hash(&private), hash(&excluded), hash(&looked_up), hash(&public)];
    assert_eq!(asker.query(&mixed).await, asker.query(&[absent, absent, absent, mixed[3]]).await);

    // And over HTTP, by somebody's node that asks this one; what its owner built, by its own too.
    let b = store.known_to(stage.node("b")).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let absent = format!("{absent}-nothing");
    let nothing = all_answers(b.http(), &absent).await;
    for secret in [&private, &excluded, &looked_up] {
        assert_eq!(all_answers(b.http(), secret.item()).await, nothing, "{}", secret.item());
    }
    let nothing = all_answers(a.http(), &absent).await;
    assert_eq!(all_answers(a.http(), private.item()).await, nothing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_its_key_an_item_goes_and_comes_back() {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 10);
    let public = store.add("public", |path| fs::write(path, "public").expect("a file"));
    store.cache_narinfo(&public);
    let a = store.shared_by(stage.node("a")).start().await;
    until("the store to be shared", async || a.status().await.items.store == 1).await;
    let asker = RawAsker::of(a.peer_address());
    let (nothing, known) = (asker.all_about_nothing().await, asker.all_about(&public).await);
    assert!(known[0] != nothing[0] && known[1] != nothing[1]);
    let ours = fs::read(store.key_file()).expect("a key");
    fs::write(store.key_file(), SigningKey::from_seed([99; 32]).public_key_sexp()).expect("a file");
    until("it to be unknown", async || asker.all_about(&public).await == nothing).await;
    let guix = Guix::new(a.http(), store.acl());
    assert_eq!(guix.narinfo_status(&public).await, 404);
    fs::write(store.key_file(), ours).expect("a file");
    until("it to be known again", async || asker.all_about(&public).await[0] == known[0]).await;
    assert_ne!(asker.all_about(&public).await[1], nothing[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_excluded_is_not_announced_either() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 11);
    mirror.add("public", 1000, &[Compression::Zstd]);
    let excluded = mirror.add("excluded-1", 1000, &[Compression::Zstd]);
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let a = stage.node("a").acl(mirror.key_file()).configured("share_exclude = [\"excluded-*\"]\n");
    let a = a.start().await;
    until("what is held to be announced", async || a.log().contains("1 items to announce")).await;
    let asker = RawAsker::of(a.peer_address());
    assert_eq!(asker.all_about(&excluded).await, asker.all_about_nothing().await);
    assert_eq!(a.status().await.items.cached, 2, "it is held");
}
