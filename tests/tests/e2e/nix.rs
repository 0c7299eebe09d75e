//! The real Nix: what it has built and signed reaches its real client through the swarm, and what it
//! hasn't signed doesn't.

use narswarm_protocol::acl::Acl;
use narswarm_protocol::base32;
use narswarm_protocol::narinfo::UnverifiedNarinfo;
use narswarm_protocol::store_path::StoreHash;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::nar_hash;
use narswarm_tests::harness::nix::{Nix, NixStore};
use narswarm_tests::harness::node::{Node, NodeSpec, Stage};
use narswarm_tests::harness::raw_asker::RawAsker;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Three items that refer to each other and one that refers to itself, with a directory, a link, an
/// executable and a megabyte that doesn't compress to nothing.
const CLOSURE: &str = r##"
let
  make = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" ("PATH=/bin:/usr/bin\n" + script) ];
  };
  library = make "library-1.0" ''
    mkdir -p $out/lib $out/empty
    i=0; while [ $i -lt 9000 ]; do echo "$i: $((i * i * 7919 % 1000003))"; i=$((i + 1)); done > $out/lib/table
    ln -s table $out/lib/link
  '';
  tool = make "tool-1.0+plus" ''
    mkdir -p $out/bin
    echo "#!/bin/sh" > $out/bin/tool
    echo "cat ${library}/lib/table # of $out" >> $out/bin/tool
    chmod +x $out/bin/tool
  '';
in make "top-1.0" "echo ${tool} > $out"
"##;

/// What must not get out.
const SECRET: &str = r#"
derivation {
  name = "secret-1.0";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "echo the password is swordfish > $out" ];
}
"#;

/// A store with a closure that is signed and a secret that isn't.
struct Built<'a> {
    store: NixStore<'a>,
    top: String,
    secret: String,
    key: PathBuf,
    keys: String,
}

impl<'a> Built<'a> {
    async fn build(nix: &'a Nix, stage: &Stage) -> Self {
        Self::build_in(nix, nix.store(stage.path("built"))).await
    }

    async fn build_in(nix: &'a Nix, store: NixStore<'a>) -> Self {
        let top = store.build(CLOSURE).await;
        let secret = store.build(SECRET).await;
        let (secret_key, key) = nix.make_key("e2e-1").await;
        store.sign(&secret_key, &top).await;
        let keys = fs::read_to_string(&key).expect("a key");
        Self { store, top, secret, key, keys }
    }
}

fn hash_of(path: &str) -> &str {
    &item_of(path)[..32]
}

fn item_of(path: &str) -> &str {
    path.rsplit_once('/').expect("a store path").1
}

fn node(stage: &Stage, name: &str, key: &Path) -> NodeSpec {
    stage.node(name).acl(key).arg("--store").arg("/nix/store").arg("--no-store")
}

/// A node of a system where the store has another name.
fn node_of(nix: &Nix, stage: &Stage, name: &str, key: &Path) -> NodeSpec {
    stage.node(name).acl(key).arg("--store").arg(nix.store_dir())
}

/// An empty store gets the closure from the node, by both of Nix's ways, and it is the same.
async fn substitutes(nix: &Nix, stage: &Stage, built: &Built<'_>, node: &Node) {
    let url = format!("http://{}", node.http());
    for (name, is_copied) in [("copied", true), ("realised", false)] {
        let client = nix.store(stage.path(name));
        let got = if is_copied {
            client.copy_from(&url, &built.keys, &built.top).await
        } else {
            client.realise(&url, &built.keys, &built.top).await
        };
        got.well();
        let closure = client.closure(&built.top).await;
        assert_eq!(closure, built.store.closure(&built.top).await, "{name}");
        assert_eq!(closure.len(), 3);
        for path in &closure {
            let (ours, theirs) = (client.dump(path).await, built.store.dump(path).await);
            assert!(ours == theirs, "{name}: {path} differs");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_substitutes_through_two_nodes_what_another_nix_has_signed() {
    let stage = Stage::new();
    let Some(nix) = Nix::find(stage.path("nix-home")) else { return };
    let built = Built::build(&nix, &stage).await;
    for compression in ["none", "xz", "bzip2", "gzip", "zstd"] {
        let stage = Stage::new();
        let cache = stage.path("cache");
        built.store.copy_to_cache(&cache, compression, &built.top).await;
        let server = StaticServer::start(&cache).await.expect("a server");
        let a = node(&stage, "a", &built.key).upstream(&server.url()).start().await;
        let about = String::from_utf8(a.get("/nix-cache-info").await.to_vec()).expect("text");
        assert_eq!(about, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
        substitutes(&nix, &stage, &built, &a).await;
        if compression != "bzip2" {
            continue;
        }
        // Another node has it from the first, and from nowhere else.
        let stage = Stage::new();
        let b = node(&stage, "b", &built.key).bootstrap(a.peer_address()).start().await;
        b.has_peers(1).await;
        substitutes(&nix, &stage, &built, &b).await;
        let status = b.status().await;
        assert!(status.bytes.from_peers > 0);
        assert_eq!(status.bytes.from_upstream, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_nix_has_written_can_be_imported() {
    let stage = Stage::new();
    let Some(nix) = Nix::find(stage.path("nix-home")) else { return };
    let built = Built::build(&nix, &stage).await;
    let cache = stage.path("cache");
    built.store.copy_to_cache(&cache, "xz", &built.top).await;
    // Somebody has put the secret there too, unsigned.
    built.store.copy_to_cache(&cache, "xz", &built.secret).await;
    let imported = stage.import("a", &built.key, &[&cache]).await;
    assert_eq!(imported.code, Some(1), "{}", imported.err);
    assert_eq!(imported.out, "3 narinfos and 3 nars are held, 1 left out\n", "{}", imported.err);
    assert!(imported.err.contains("not signed"), "{}", imported.err);
    let a = node(&stage, "a", &built.key).start().await;
    let b = node(&stage, "b", &built.key).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    substitutes(&nix, &stage, &built, &b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_gets_nothing_that_it_or_the_node_does_not_trust() {
    let stage = Stage::new();
    let Some(nix) = Nix::find(stage.path("nix-home")) else { return };
    let built = Built::build(&nix, &stage).await;
    let (_, other) = nix.make_key("other-1").await;
    let other_text = fs::read_to_string(&other).expect("a key");
    let cache = stage.path("cache");
    built.store.copy_to_cache(&cache, "zstd", &built.top).await;
    let server = StaticServer::start(&cache).await.expect("a server");
    // A client that trusts another key is given the true signature, and refuses it.
    let a = node(&stage, "a", &built.key).upstream(&server.url()).start().await;
    let client = nix.store(stage.path("client"));
    let url = format!("http://{}", a.http());
    let refused = client.copy_from(&url, &other_text, &built.top).await;
    assert_ne!(refused.code, Some(0), "{}", refused.err);
    assert!(refused.err.contains("signature"), "{}", refused.err);
    // A node that trusts another key gives nothing.
    let b = node(&stage, "b", &other).upstream(&server.url()).start().await;
    let nothing = client.copy_from(&format!("http://{}", b.http()), &built.keys, &built.top).await;
    assert_ne!(nothing.code, Some(0), "{}", nothing.err);
    assert!(!client.has(&built.top).await);
}

/// Spoils the narinfo of the closure's top in every way that Nix would, or wouldn't, notice.
fn spoilt(text: &str, foreign: &str) -> Vec<(&'static str, String)> {
    let sig = text.lines().find(|line| line.starts_with("Sig: ")).expect("a signature");
    let size = text.lines().find(|line| line.starts_with("NarSize: ")).expect("a size");
    let references = text.lines().find(|line| line.starts_with("References: ")).expect("a list");
    vec![
        ("another size", text.replace(size, &format!("{size}0"))),
        ("fewer references", text.replace(references, "References: ")),
        (
            "more references",
            text.replace(references, &format!("{references} {}", "a".repeat(32) + "-x")),
        ),
        ("another store", text.replace("/nix/store/", "/gnu/store/")),
        ("a signature cut off", text.replace(sig, &sig[..sig.len() - 8])),
        ("a signature under another name", text.replace("Sig: e2e-1:", "Sig: e2e-2:")),
        ("a namesake's signature", text.replace(sig, &format!("Sig: {foreign}"))),
        ("no signature", text.replace(&format!("{sig}\n"), "")),
        ("a thousand signatures", text.replace(sig, &format!("{sig}\n").repeat(1000))),
        ("an empty signature", text.replace(sig, "Sig:")),
        ("Guix's field", text.replace("Sig: ", "Signature: 1;e2e;")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoilt_narinfos_are_misses_and_check_says_why() {
    let stage = Stage::new();
    let Some(nix) = Nix::find(stage.path("nix-home")) else { return };
    let built = Built::build(&nix, &stage).await;
    let cache = stage.path("cache");
    built.store.copy_to_cache(&cache, "none", &built.top).await;
    let file = cache.join(format!("{}.narinfo", hash_of(&built.top)));
    let text = fs::read_to_string(&file).expect("a narinfo");
    // Another key with the trusted name signs the same.
    let namesake = Nix::find(stage.path("other-home")).expect("it is there");
    let (secret, _) = namesake.make_key("e2e-1").await;
    let secret = fs::read_to_string(&secret).expect("a key");
    let secret = narswarm_protocol::acl::NixSigningKey::parse(&secret).expect("a key");
    let acl = Acl::parse(built.keys.as_bytes()).expect("keys");
    let narinfo = UnverifiedNarinfo::parse(text.as_bytes()).expect("well-formed");
    let narinfo = narinfo.verify(&acl).expect("signed");
    let foreign = secret.sign(narinfo.signed_bytes());
    for (what, spoilt) in spoilt(&text, &foreign) {
        assert_ne!(spoilt, text, "{what}");
        fs::write(&file, &spoilt).expect("a file");
        let mut check = narswarm_tests::harness::program::command("check");
        check.arg("--acl").arg(&built.key).arg(&file);
        let verdict = narswarm_tests::harness::program::run(&mut check).await;
        assert_eq!(verdict.code, Some(1), "{what}: {}", verdict.out);
        let begin = format!("{}: refused ", file.display());
        assert!(verdict.out.starts_with(&begin), "{what}: {}", verdict.out);
        let stage = Stage::new();
        let server = StaticServer::start(&cache).await.expect("a server");
        let a = node(&stage, "a", &built.key).upstream(&server.url()).start().await;
        let guix = Guix::new(a.http(), Acl::default());
        let reply =
            guix.get(&format!("/{}.narinfo", hash_of(&built.top))).await.expect("an answer");
        assert_eq!(reply.head.status, 404, "{what}");
    }
    fs::write(&file, &text).expect("a file");
    let mut check = narswarm_tests::harness::program::command("check");
    let verdict =
        narswarm_tests::harness::program::run(check.arg("--acl").arg(&built.key).arg(&file)).await;
    assert_eq!(verdict.well(), format!("{}: valid e2e-1\n", file.display()));
}

/// What nobody is to get.
struct Secret<'a> {
    path: &'a str,
    nar: Vec<u8>,
}

impl<'a> Secret<'a> {
    async fn of(store: &NixStore<'_>, path: &'a str) -> Self {
        Self { path, nar: store.dump(path).await }
    }
}

/// What isn't signed by a trusted key is asked for in every way there is.
async fn keeps_its_secrets(node: &Node, secrets: &[Secret<'_>], file: &str) {
    let asker = RawAsker::of(node.peer_address());
    let nothing = asker.all_about_nothing().await;
    for Secret { path, nar } in secrets {
        let hash = StoreHash::parse(hash_of(path).as_bytes()).expect("a store path");
        assert_eq!(asker.query(&[hash]).await, nothing[0], "{path}");
        let fetched = asker.fetch(nar_hash(nar), nar.len() as u64).await;
        assert_eq!(fetched, nothing[1], "{path}");
    }
    let guix = Guix::new(node.http(), Acl::default());
    for Secret { path, .. } in secrets {
        for path in [
            format!("/{}.narinfo", hash_of(path)),
            format!("/nar/{}", item_of(path)),
            format!("/nar/zstd/{}", item_of(path)),
        ] {
            let reply = guix.get(&path).await.expect("an answer");
            assert_eq!(reply.head.status, 404, "{path}");
        }
    }
    assert_eq!(guix.get(file).await.expect("an answer").head.status, 404, "{file}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_shared_straight_from_it_and_its_secrets_are_not() {
    let stage = Stage::new();
    let Some(nix) = Nix::find(stage.path("nix-home")) else { return };
    let nix = nix.on_system(stage.path("system"));
    let built = Built::build_in(&nix, nix.own_store()).await;
    let file = stage.path("secret.txt");
    fs::write(&file, "the password is swordfish").expect("a file");
    let fixed = built.store.add_fixed(&file).await;
    let digest = Sha256::digest("the password is swordfish");
    let by_content = format!("/file/secret.txt/sha256/{}", base32::encode(&digest));
    let a = node_of(&nix, &stage, "a", &built.key).arg("--store-db").arg(built.store.database());
    let a = a.start().await;
    until("the store to be shared", async || a.status().await.items.store == 3).await;
    let b = node_of(&nix, &stage, "b", &built.key).arg("--no-store").bootstrap(a.peer_address());
    let b = b.start().await;
    b.has_peers(1).await;
    substitutes(&nix, &stage, &built, &b).await;
    let status = a.status().await;
    assert_eq!((status.items.store, status.items.cached), (3, 0), "no copy is made");
    let secrets =
        [Secret::of(&built.store, &built.secret).await, Secret::of(&built.store, &fixed).await];
    for node in [&a, &b] {
        keeps_its_secrets(node, &secrets, &by_content).await;
    }
    // Somebody whom A doesn't trust signs the secret, and C trusts him: it knows the narinfo, and
    // asks A for the nar by its hash.
    let (other_secret, other) = nix.make_key("other-1").await;
    let cache = stage.path("cache");
    built.store.sign(&other_secret, &built.secret).await;
    built.store.copy_to_cache(&cache, "none", &built.secret).await;
    fs::remove_dir_all(cache.join("nar")).expect("nars");
    let server = StaticServer::start(&cache).await.expect("a server");
    let c = node_of(&nix, &stage, "c", &built.key).acl(&other).arg("--no-store");
    let c = c.upstream(&server.url()).bootstrap(a.peer_address()).start().await;
    c.has_peers(1).await;
    let guix = Guix::new(c.http(), Acl::default());
    let given = a.status().await.bytes.to_peers;
    let narinfo = guix.get(&format!("/{}.narinfo", hash_of(&built.secret))).await;
    assert_eq!(narinfo.expect("an answer").head.status, 200, "C knows of it");
    let nar = guix.get(&format!("/nar/{}", item_of(&built.secret))).await;
    assert!(nar.is_err() || nar.is_ok_and(|reply| reply.head.status >= 400), "it came");
    assert_eq!(a.status().await.bytes.to_peers, given, "A has given something of it");
    keeps_its_secrets(&a, &secrets, &by_content).await;
}

/// Large enough to be collected on its way.
const LARGE: &str = r#"
derivation {
  name = "large-1.0";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "/usr/bin/head -c 40000000 /dev/urandom > $out" ];
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_that_is_collected_on_its_way_comes_from_elsewhere() {
    let stage = Stage::new();
    let Some(nix) = Nix::find(stage.path("nix-home")) else { return };
    let nix = nix.on_system(stage.path("system"));
    let store = nix.own_store();
    let large = store.build(LARGE).await;
    let (secret_key, key) = nix.make_key("e2e-1").await;
    store.sign(&secret_key, &large).await;
    let cache = stage.path("cache");
    store.copy_to_cache(&cache, "none", &large).await;
    let nar = store.dump(&large).await;
    let server = StaticServer::start(&cache).await.expect("a server");
    let a = node_of(&nix, &stage, "a", &key).arg("--store-db").arg(store.database());
    let a = a.arg("--upload-rate").arg("4MB/s").start().await;
    until("the store to be shared", async || a.status().await.items.store == 1).await;
    let b = node_of(&nix, &stage, "b", &key).arg("--no-store").upstream(&server.url());
    let b = b.arg("--upstream-mode").arg("swarm-first").bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let client = nix.store(stage.path("client"));
    let (url, keys) = (format!("http://{}", b.http()), fs::read_to_string(&key).expect("a key"));
    let realising = client.realise(&url, &keys, &large);
    let collecting = async {
        until("the first pieces", async || a.status().await.bytes.to_peers > 1 << 20).await;
        store.collect(&large).await;
        assert!(!store.file(&large).exists(), "it is collected");
    };
    let (realised, ()) = tokio::join!(realising, collecting);
    realised.well();
    assert!(client.dump(&large).await == nar, "it is another");
    until("it to be withdrawn", async || a.status().await.items.store == 0).await;
}
