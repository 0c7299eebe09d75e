//! Seeds and their filters: what one has is asked of it, and who only pretends is found out.

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narswarm_node::net::{FilterAnswer, FilterContent, Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::announce::{ItemKey, SavedAnnounced, mirror_key};
use narswarm_protocol::filter::leading;
use narswarm_protocol::filter::publisher::Publisher;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::voucher::VoucherSigner;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::waiting::until;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where a node keeps the filter of a seed.
fn filter_of(node: &Node, seed: &str) -> PathBuf {
    node.data_dir().join("filters").join(seed.rsplit('/').next().expect("a peer id"))
}

/// Series and generation of a filter on disk, when it is there.
fn filter_number(file: &Path) -> Option<(u64, u32)> {
    let octets = std::fs::read(file).ok()?;
    let (series, rest) = octets.strip_prefix(b"narswarm filter 1\n")?.split_first_chunk()?;
    let (generation, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*series), u32::from_le_bytes(*generation)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workstation_has_the_filter_of_a_seed_and_follows_it_across_restarts() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 9);
    for number in 0..30 {
        mirror.add(&format!("item-{number}"), 3000 + number, &[Compression::Zstd]);
    }
    let key = mirror.key_file();
    stage.import("seed", &key, &[mirror.root()]).await.well();
    let seed_spec = || stage.node("seed").acl(&key).arg("--role").arg("seed");
    let seed = seed_spec().start().await;
    let address = seed.peer_address().to_owned();
    let own = stage.path("seed/own-filters");
    until("the seed to have a filter", async || own.exists()).await;
    let b = stage.node("b").acl(&key).bootstrap(&address).start().await;
    let file = filter_of(&b, &address);
    let mut first = None;
    until("the filter to be there", async || {
        first = filter_number(&file);
        first.is_some()
    })
    .await;
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    assert!(b.status().await.bytes.from_peers > 30 * 1000, "it came from the seed");
    // What the seed doesn't have isn't there either.
    let other = Mirror::create(stage.path("other"), 10).add_narinfo("elsewhere");
    assert_eq!(Guix::new(b.http(), mirror.acl()).narinfo_status(&other).await, 404);

    let (ended, _) = b.terminate().await;
    assert!(ended.success());
    let (ended, _) = seed.terminate().await;
    assert!(ended.success());
    let new = mirror.add("item-new", 5000, &[Compression::Zstd]);
    stage.import("seed", &key, &[mirror.root()]).await.well();
    let before = std::fs::read(&own).expect("it is there");
    let seed = seed_spec().start().await;
    until("the seed to have another filter", async || {
        std::fs::read(&own).expect("it is there") != before
    })
    .await;
    let b = stage.node("b").acl(&key).bootstrap(seed.peer_address()).start().await;
    let (series, generation) = first.expect("it was there");
    until("what has changed to be there", async || {
        filter_number(&file) == Some((series, generation + 1))
    })
    .await;
    Guix::new(b.http(), mirror.acl()).gets_all(std::slice::from_ref(&new)).await;
}

/// Says by its filter that it has everything, and has nothing.
struct Pretender {
    publisher: Publisher,
    signer: VoucherSigner,
    asked: Arc<AtomicUsize>,
}

impl Responder for Pretender {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        self.asked.fetch_add(hashes.len(), Ordering::Relaxed);
        vec![None; hashes.len()]
    }

    fn filter(&self, _: Option<(u64, u32)>) -> Option<FilterAnswer> {
        let octets: Vec<u8> = self.publisher.filter().octets().as_ref().clone();
        let content = FilterContent::Whole(Bytes::from(octets));
        Some(FilterAnswer { head: self.publisher.head(&self.signer), content })
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_whose_filter_lies_is_forgotten_and_its_lies_cost_nothing() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 9);
    for number in 0..150 {
        mirror.add(&format!("item-{number}"), 300, &[Compression::Zstd]);
    }
    let key = mirror.key_file();
    stage.import("honest", &key, &[mirror.root()]).await.well();
    let honest = stage.node("honest").acl(&key).arg("--role").arg("seed").start().await;

    let keypair = Keypair::generate_ed25519();
    let secret = keypair.clone().try_into_ed25519().expect("it is one").secret();
    let signer = VoucherSigner::new(secret.as_ref().try_into().expect("32 octets"));
    let items = mirror.holdings().iter().map(|holding| holding.narinfo.item().hash());
    let mut keys: Vec<u32> = items.map(|item| leading(&ItemKey::of(&item))).collect();
    let publisher = Publisher::new(1, &mut keys);
    let asked = Arc::<AtomicUsize>::default();
    let mut config = NetConfig::new(keypair);
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    config.bootstrap = vec![honest.peer_address().parse().expect("an address")];
    let pretender = Pretender { publisher, signer, asked: asked.clone() };
    let (net, _) = Net::start(config, Arc::new(pretender)).await.expect("a free port");
    let farms: Vec<_> = mirror.acl().keys().map(|key| mirror_key(key.octets())).collect();
    net.routing().provide(&farms).await.expect("room");
    until("it to be known as a seed", async || {
        let told = SavedAnnounced::from_octets(&net.announced()).expect("well written");
        told.items.len() == farms.len()
    })
    .await;

    let b = stage.node("b").acl(&key).bootstrap(honest.peer_address());
    let b = b.bootstrap(&net.listen_addresses()[0].to_string()).start().await;
    for seed in [honest.peer_address(), &net.peer_id().to_string()] {
        let file = filter_of(&b, seed);
        until("both filters to be there", async || file.exists()).await;
    }
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    until("the pretender to be found out", async || {
        b.log().contains("its filter says yes where it has nothing")
    })
    .await;
    assert!(asked.load(Ordering::Relaxed) >= 64, "it was asked");
}
