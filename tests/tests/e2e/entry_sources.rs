//! Every way into the network being the only one that works, and what the broken and the hostile
//! among them can do: nothing to the others.

use libp2p::PeerId;
use narswarm_protocol::limits::MAX_SEED_LIST_BYTES;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::seed_list::{SeedList, SeedListSigner};
use narswarm_tests::harness::dns_server::{Answer, DnsServer};
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::program;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;
use narswarm_tests::lab::line::Line;
use narswarm_tests::lab::needs;
use narswarm_tests::lab::network::Network;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Within which a node is in, however long other sources hang: the shortest of their deadlines is
/// 12 s.
const SOON: Duration = Duration::from_secs(8);

fn signer() -> SeedListSigner {
    SeedListSigner::new(&[3; 32])
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A signed list with a number.
fn list(sequence: u64, addresses: &[&str]) -> String {
    let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
    signer().sign(&SeedList::new(sequence, now() + 3600, addresses).expect("a list"))
}

/// Lines of a configuration that believe the tests' key and name these lists.
fn lists(sources: &[String]) -> String {
    format!("seed_lists = {sources:?}\nseed_list_keys = [\"{}\"]\n", signer().key())
}

fn file(path: &Path) -> String {
    path.display().to_string()
}

/// Waits until a node is connected; tells how long that took.
async fn gets_in(node: &Node) -> Duration {
    let started = Instant::now();
    node.has_peers(1).await;
    started.elapsed()
}

/// Peers of which nobody has the key, on ports of the loopback where nobody listens.
fn bogus(count: usize) -> Vec<String> {
    let address = |i| format!("/ip4/127.0.0.{}/tcp/1/p2p/{}", i % 250 + 2, PeerId::random());
    (0..count).map(address).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_suffices_whatever_other_names_do() {
    let (stage, dns) = (Stage::new(), DnsServer::start().await);
    let a = stage.node("a").start().await;
    dns.set("silent.test", Answer::Silence);
    dns.set("garbage.test", Answer::Garbage);
    let stranger = PeerId::random();
    let wrong = a.peer_address().rsplit_once('/').expect("a peer id").0;
    dns.name_nodes("liar.test", [format!("{wrong}/{stranger}"), "nonsense".to_owned()]);
    dns.name_nodes("circle.test", ["/dnsaddr/circle.test", "/dnsaddr/other.test"]);
    dns.name_nodes("other.test", ["/dnsaddr/circle.test"]);
    dns.name_nodes("bare.test", [wrong.rsplit_once("/p2p").expect("it names its peer").0]);
    dns.name_nodes("good.test", ["/dnsaddr/further.test"]);
    dns.name_nodes("further.test", [a.peer_address()]);
    let names: Vec<_> = ["silent", "garbage", "missing", "liar", "circle", "bare", "good"]
        .iter()
        .map(|name| format!("{name}.test"))
        .collect();
    let lines = format!("dnsaddr = {names:?}\nresolver = \"{}\"\n", dns.address());
    let b = stage.node("b").configured(&lines).start().await;
    let took = gets_in(&b).await;
    assert!(took < SOON, "{took:?}: the silent one was waited for");

    // Without the good one nobody is found.
    let lines = format!("dnsaddr = {:?}\nresolver = \"{}\"\n", &names[1..6], dns.address());
    let c = stage.node("c").configured(&lines).start().await;
    until("what is wrong to be told", async || {
        let log = c.log();
        names[1..6].iter().filter(|name| *name != "liar.test").all(|name| log.contains(&**name))
    })
    .await;
    assert_eq!(c.status().await.peers.connected, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_signed_list_suffices_from_a_file_or_a_url() {
    let stage = Stage::new();
    let a = stage.node("a").start().await;
    fs::create_dir(stage.path("web")).expect("a folder");
    fs::write(stage.path("web/list.toml"), list(1, &[a.peer_address()])).expect("a list");
    let by_file = lists(&[file(&stage.path("web/list.toml"))]);
    let b = stage.node("b").configured(&by_file).start().await;
    gets_in(&b).await;

    let mut server = StaticServer::start(stage.path("web")).await.expect("a port");
    let by_url = lists(&[format!("{}/list.toml", server.url())]);
    let c = stage.node("c").configured(&by_url).start().await;
    gets_in(&c).await;

    // The server goes; another node that has only the list which was kept is in all the same.
    server.stop().await;
    let kept = stage.path("c/seed-lists");
    fs::create_dir_all(stage.path("d/seed-lists")).expect("a folder");
    for entry in fs::read_dir(kept).expect("a list is kept") {
        let entry = entry.expect("a file");
        let to = stage.path("d/seed-lists").join(entry.file_name());
        fs::copy(entry.path(), to).expect("a copy");
    }
    let d = stage.node("d").configured(&by_url).start().await;
    gets_in(&d).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_lists_are_refused_and_delay_nobody() {
    let stage = Stage::new();
    let a = stage.node("a").start().await;
    let good = list(5, &[a.peer_address()]);
    let web = stage.path("web");
    fs::create_dir(&web).expect("a folder");
    let put = |name: &str, octets: &[u8]| fs::write(web.join(name), octets).expect("a file");
    let stranger = SeedListSigner::new(&[4; 32]);
    let honest = |expires| SeedList::new(5, expires, vec![a.peer_address().to_owned()]);
    put("changed", good.replace("/ip4/127", "/ip4/128").as_bytes());
    put("foreign", stranger.sign(&honest(now() + 9).expect("a list")).as_bytes());
    put("expired", signer().sign(&honest(now() - 90_000).expect("a list")).as_bytes());
    put("oversized", &[good.as_bytes(), &vec![b'#'; MAX_SEED_LIST_BYTES]].concat());
    put("truncated", &good.as_bytes()[..60]);
    put("binary", b"\xff\xfe\x00\x80");
    let many: String = (0..10_000).map(|i| format!("\"/ip4/192.0.2.1/tcp/{i}\",\n")).collect();
    let body =
        format!("version = 1\nsequence = 9\nexpires = {}\naddresses = [\n{many}]\n", now() + 9);
    put("many", sign_body(&body).as_bytes());
    put("replayed", list(2, &[a.peer_address()]).as_bytes());
    let floods = bogus(1000);
    let floods: Vec<_> = floods.iter().map(String::as_str).collect();
    put("bogus", list(1, &floods).as_bytes());
    let unroutable: Vec<_> = (0..200)
        .map(|i| format!("/ip4/10.255.{}.{}/tcp/9/p2p/{}", i / 250, i % 250, PeerId::random()))
        .collect();
    let unroutable: Vec<_> = unroutable.iter().map(String::as_str).collect();
    put("unroutable", list(1, &unroutable).as_bytes());
    let server = StaticServer::start(&web).await.expect("a port");

    // What was shown before was number 7.
    let replayed = format!("{}/replayed", server.url());
    let kept = narswarm_node::entry::list::ListCache::new(
        stage.path("b/seed-lists"),
        vec![signer().key()],
    );
    let later = list(7, &bogus(1).iter().map(String::as_str).collect::<Vec<_>>());
    let source = replayed.parse().expect("a URL");
    kept.take(&source, later.as_bytes(), now()).expect("a good list");

    let hostile = [
        ("changed", "changed after it was signed"),
        ("foreign", "not among the keys"),
        ("expired", "expired 1 days ago"),
        ("oversized", "longer than"),
        ("truncated", "cut off"),
        ("binary", "not UTF-8"),
        ("many", "10000 addresses"),
        ("replayed", "an old list is shown again"),
        ("missing", "404"),
    ];
    let mut sources: Vec<_> =
        hostile.iter().map(|(name, _)| format!("{}/{name}", server.url())).collect();
    sources.extend(["bogus", "unroutable"].map(|name| format!("{}/{name}", server.url())));
    fs::write(stage.path("good.toml"), &good).expect("a list");
    sources.push(file(&stage.path("good.toml")));
    let b = stage.node("b").configured(&lists(&sources)).start().await;
    let took = gets_in(&b).await;
    assert!(took < SOON, "{took:?}: one of the hostile was waited for");

    let mut report = serde_json::Value::Null;
    until("all lists to be judged", async || {
        let mut command = program::command("doctor");
        command.arg("--data-dir").arg(b.data_dir()).args(["--json", "--no-upstream", "--no-mdns"]);
        let doctor = program::run(&mut command).await;
        assert_eq!(doctor.code, Some(1), "{}", doctor.out);
        report = serde_json::from_str(&doctor.out).expect("JSON");
        let text = report.to_string();
        hostile
            .iter()
            .all(|(name, reason)| text.contains(&format!("/{name}: ")) && text.contains(reason))
    })
    .await;
    let found = report["findings"].as_array().expect("findings").iter();
    let entry: Vec<_> = found.filter(|finding| finding["check"] == "entry").collect();
    let problems = entry.iter().filter(|finding| finding["verdict"] == "problem");
    assert!(problems.clone().count() >= hostile.len(), "{report}");
    assert!(problems.clone().all(|finding| finding["advice"].is_string()), "{report}");
    let good = entry.iter().find(|finding| finding.to_string().contains("good.toml"));
    assert_eq!(good.expect("the good list")["verdict"], "ok", "{report}");
}

/// Signs any body, as the owner of a key may.
fn sign_body(body: &str) -> String {
    // A list of one address, of which the body is exchanged before it is signed again: the owner
    // of a key can sign what `make` would refuse.
    use libp2p::identity::ed25519;
    let mut secret = [3; 32];
    let key = ed25519::Keypair::from(ed25519::SecretKey::try_from_bytes(&mut secret).expect("key"));
    let statement = [b"narswarm 2026-11 seed list\0".as_slice(), body.as_bytes()].concat();
    let signature = narswarm_protocol::base32::encode(&key.sign(&statement));
    format!("{body}signature = \"{} {signature}\"\n", signer().key())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_earlier_days_suffice_when_all_entry_nodes_are_gone() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 8);
    mirror.add("hello-2.12.1", 300_000, &[Compression::Zstd]);
    let key = mirror.key_file();
    stage.import("a", &key, &[mirror.root()]).await.well();
    let entry = stage.entry_node("entry").start().await;
    let address = entry.peer_address().to_owned();
    let a = stage.node("a").acl(&key).bootstrap(&address).start().await;
    let b = stage.node("b").acl(&key).bootstrap(&address).start().await;
    let a_id = a.status().await.peer_id;
    until("B to meet A", async || peers_of(&b).await.contains(&a_id)).await;
    entry.kill().await;

    // Those who are there go on.
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    // Who comes back finds the others without any entry node, though it still looks for it.
    let (ended, _) = b.terminate().await;
    assert!(ended.success());
    fs::remove_dir_all(stage.path("b/nars")).expect("the cache goes, the peers stay");
    let b = stage.node("b").acl(&key).bootstrap(&address).start().await;
    let took = gets_in(&b).await;
    assert!(took < SOON, "{took:?}");
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    assert!(peers_of(&b).await.contains(&a_id));
    // Even one that is told of no entry node at all.
    let (ended, _) = b.terminate().await;
    assert!(ended.success());
    let b = stage.node("b").acl(&key).start().await;
    gets_in(&b).await;
}

/// The ids of a node's connected peers.
async fn peers_of(node: &Node) -> Vec<String> {
    let mut command = program::command("peers");
    command.arg("--data-dir").arg(node.data_dir()).arg("--json");
    let said = program::run(&mut command).await.well();
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let connected = said["connected"].as_array().expect("a list").iter();
    connected.map(|peer| peer["peer_id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_network_suffices() {
    if !needs::are_met() {
        return;
    }
    let stage = Stage::new();
    let mut network = Network::new();
    let hosts = network.add_many(2, Line::of(100.0, 100.0));
    let a = stage.node("a").on(&hosts[0]).mdns().start().await;
    let b = stage.node("b").on(&hosts[1]).mdns().start().await;
    b.has_peers(1).await;
    a.has_peers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_without_a_key_and_impossible_names_are_refused_at_once() {
    let stage = Stage::new();
    let refused = stage.node("a").configured("seed_lists = [\"list.toml\"]\n").run().await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("seed_list_keys"), "{}", refused.err);
    let refused = stage.node("a").configured("dnsaddr = [\"not a name\"]\n").run().await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("not a name"), "{}", refused.err);
}
