//! The subcommands, as a user meets them.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program;
use narswarm_tests::harness::throttle::Throttle;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// All paths of fields in a JSON value; of a list, those of its first element.
fn fields(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                fields(value, &format!("{at}.{name}"), found);
            }
        }
        Value::Array(list) if list.first().is_some_and(Value::is_object) => {
            fields(&list[0], &format!("{at}[]"), found);
        }
        _ => drop(found.insert(at.to_owned())),
    }
}

/// The contract, field by field.
const STATUS: [&str; 25] = [
    ".bytes.from_peers",
    ".bytes.from_upstream",
    ".bytes.to_http",
    ".bytes.to_peers",
    ".external",
    ".fetches[].done_bytes",
    ".fetches[].item",
    ".fetches[].sources",
    ".fetches[].total_bytes",
    ".http",
    ".items.cached",
    ".items.cached_bytes",
    ".items.narinfos",
    ".items.store",
    ".listen",
    ".nat",
    ".peer_id",
    ".peers.connected",
    ".peers.known",
    ".requests.nar",
    ".requests.narinfo_hit",
    ".requests.narinfo_miss",
    ".role",
    ".uptime_s",
    ".version",
];

async fn status(data_dir: &Path, arguments: &[&str]) -> program::Finished {
    let mut command = program::command("status");
    program::run(command.arg("--data-dir").arg(data_dir).args(arguments)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_has_exactly_the_fields_of_the_contract() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    let slow = mirror.add("slow", 16 << 20, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let throttle = Throttle::start(server.address(), 1 << 20).await.expect("a port");
    let node = stage.node("a").acl(mirror.key_file()).upstream(&throttle.url()).start().await;
    let reading = tokio::spawn({
        let guix = Guix::new(node.http(), mirror.acl());
        async move { guix.nar(&slow).await }
    });
    until("a fetch", async || !node.status().await.fetches.is_empty()).await;

    let told = status(node.data_dir(), &["--json"]).await.well();
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let served: Value = serde_json::from_slice(&node.get("/api/status").await).expect("JSON");
    for report in [&told, &served] {
        let mut found = BTreeSet::new();
        fields(report, "", &mut found);
        assert_eq!(Vec::from_iter(found), STATUS);
    }
    let run: Value = {
        let text = fs::read_to_string(node.data_dir().join("run.json")).expect("a running node's");
        serde_json::from_str(&text).expect("JSON")
    };
    let mut found = BTreeSet::new();
    fields(&run, "", &mut found);
    assert_eq!(Vec::from_iter(found), [".http", ".listen", ".peer_id", ".pid"]);
    for field in ["http", "listen", "peer_id"] {
        assert_eq!(told[field], run[field], "{field}");
    }
    assert_eq!(told["role"], "workstation");
    assert_eq!(told["http"], node.http().to_string());
    let text = status(node.data_dir(), &[]).await.well();
    assert!(text.contains(told["peer_id"].as_str().expect("text")), "{text}");
    reading.abort();
}

#[tokio::test]
async fn status_of_no_node_is_an_error_that_names_the_directory() {
    let stage = Stage::new();
    let place = stage.path("nobody");
    let finished = status(&place, &["--json"]).await;
    assert_eq!((finished.code, finished.out.as_str()), (Some(1), ""));
    assert!(finished.err.contains(&place.display().to_string()), "{}", finished.err);
    assert!(!place.exists(), "asking makes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_through_a_running_node_is_served_and_shared_at_once() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 2);
    for number in 0..20 {
        mirror.add(&format!("item-{number}"), number * 50_000, &[Compression::Lzip]);
    }
    let node = stage.node("a").acl(mirror.key_file()).start().await;
    let peer = stage.node("b").acl(mirror.key_file()).bootstrap(node.peer_address()).start().await;
    peer.has_peers(1).await;
    let (own, others) =
        (Guix::new(node.http(), mirror.acl()), Guix::new(peer.http(), mirror.acl()));
    // Known not to be there a moment before.
    assert_eq!(own.narinfo_status(&mirror.holdings()[0]).await, 404);
    let mut import = program::command("import");
    import.arg("--data-dir").arg(node.data_dir()).arg(mirror.root());
    let said = program::run(&mut import).await.well();
    assert_eq!(said, "20 narinfos and 20 nars are held, 0 left out\n");
    own.gets_all(mirror.holdings()).await;
    others.gets_all(mirror.holdings()).await;
    // And again: nothing is done twice, nothing is wrong.
    let again = program::run(&mut import).await.well();
    assert_eq!(again, said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_goes_on_past_what_is_bad_and_lists_it() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    let mut foreign = Mirror::create(stage.path("foreign"), 4);
    let good: Vec<_> =
        (0..5).map(|n| mirror.add(&format!("good-{n}"), 1000, &[Compression::Gzip])).collect();
    let missing = mirror.add_narinfo("missing-nar");
    let corrupt = mirror.add("corrupt-nar", 300_000, &[Compression::Zstd]);
    let nar = mirror.root().join(&corrupt.narinfo.sources()[0].url);
    let mut octets = fs::read(&nar).expect("the nar");
    let middle = octets.len() / 2;
    octets[middle] ^= 1;
    fs::write(&nar, octets).expect("a file");
    let other = mirror.add("other-nar", 300_000, &[Compression::Gzip]);
    fs::copy(
        mirror.root().join(&good[0].narinfo.sources()[0].url),
        mirror.root().join(&other.narinfo.sources()[0].url),
    )
    .expect("a copy");
    let unsigned = foreign.add("foreign-key", 1000, &[Compression::Gzip]);
    let narinfo = |mirror: &Mirror, holding: &narswarm_tests::harness::holding::Holding| {
        mirror.root().join(&holding.narinfo_path()[1..])
    };
    let foreign_narinfo = mirror.root().join(&unsigned.narinfo_path()[1..]);
    fs::copy(narinfo(&foreign, &unsigned), &foreign_narinfo).expect("a copy");
    let misnamed = mirror.root().join("00000000000000000000000000000000.narinfo");
    fs::copy(narinfo(&mirror, &good[1]), &misnamed).expect("a copy");
    let nonsense = mirror.root().join("11111111111111111111111111111111.narinfo");
    fs::write(&nonsense, "hello\n").expect("a file");

    let finished = stage.import("a", &mirror.key_file(), &[mirror.root()]).await;
    assert_eq!(finished.code, Some(1), "{}", finished.err);
    assert_eq!(finished.out, "8 narinfos and 5 nars are held, 6 left out\n", "{}", finished.err);
    for what in [missing.item(), corrupt.item(), other.item()] {
        let line = format!("left out: {what}: ");
        let line = finished.err.lines().find(|l| l.starts_with(&line));
        let line = line.unwrap_or_else(|| panic!("{what} isn't listed: {}", finished.err));
        assert!(line.ends_with(" (its narinfo is held)"), "{line}");
    }
    for file in [foreign_narinfo, misnamed, nonsense] {
        let line = format!("left out: {}: ", file.display());
        assert!(finished.err.lines().any(|l| l.starts_with(&line)), "{line}{}", finished.err);
    }
    let node = stage.node("a").acl(mirror.key_file()).start().await;
    Guix::new(node.http(), mirror.acl()).gets_all(&good).await;

    let nowhere = stage.import("b", &mirror.key_file(), &[&stage.path("nowhere")]).await;
    assert_eq!(nowhere.code, Some(1));
    assert!(nowhere.err.contains("nowhere"), "{}", nowhere.err);
}

/// URLs in a narinfo must not lead an import out of its mirror.
#[tokio::test]
async fn import_does_not_follow_urls_out_of_the_mirror() {
    use narswarm_protocol::narinfo::{Draft, NarSource};
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 5);
    let holding = mirror.add("outside", 1000, &[Compression::None]);
    fs::rename(mirror.root().join(&holding.nar_path()[1..]), stage.path("nar")).expect("moved");
    let draft = Draft {
        store_path: holding.narinfo.store_path().clone(),
        nar_hash: holding.narinfo.nar_hash(),
        nar_size: holding.nar_size(),
        references: Vec::new(),
        system: None,
        deriver: None,
    };
    for url in ["../nar", "%2e%2e/nar", &stage.path("nar").display().to_string(), "nar/../../nar"] {
        let source =
            NarSource { url: url.to_owned(), compression: Compression::None, file_size: None };
        let file = mirror.root().join(&holding.narinfo_path()[1..]);
        fs::write(file, mirror.sign(&draft, &[source])).expect("a file");
        let finished = stage.import("a", &mirror.key_file(), &[mirror.root()]).await;
        assert_eq!(finished.out, "1 narinfos and 0 nars are held, 1 left out\n", "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demo_works_and_leaves_nothing_behind() {
    let stage = Stage::new();
    let (home, temporary) = (stage.path("home"), stage.path("tmp"));
    for folder in [&home, &temporary] {
        fs::create_dir(folder).expect("a new folder");
    }
    let mut demo = program::command("demo");
    demo.args(["--size", "8"]).env("HOME", &home).env("TMPDIR", &temporary);
    demo.env_remove("XDG_DATA_HOME").current_dir(&home);
    let said = program::run(&mut demo).await.well();
    assert!(said.contains("verified"), "{said}");
    for folder in [&home, &temporary] {
        let left: Vec<_> = fs::read_dir(folder).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
