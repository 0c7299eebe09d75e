//! Narinfos with known verdicts, through the command line and through the shim.

use narswarm_protocol::acl::Acl;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::signed_head;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program::{self, Finished};
use narswarm_tests::harness::samples;
use narswarm_tests::harness::upstream::StaticServer;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A row of `EXPECTED.tsv`.
struct Vector {
    file: PathBuf,
    acl: String,
    required: String,
}

fn hostile(folder: &Path) -> Vec<Vector> {
    let table = fs::read_to_string(folder.join("EXPECTED.tsv")).expect("the table of verdicts");
    let vectors: Vec<_> = table
        .lines()
        .skip(1)
        .map(|row| {
            let [file, acl, required, ..] = row.split('\t').collect::<Vec<_>>()[..] else {
                panic!("an odd row: {row}");
            };
            let file = folder.join("hostile").join(file);
            Vector { file, acl: acl.to_owned(), required: required.to_owned() }
        })
        .collect();
    assert!(vectors.len() > 50, "only {} vectors", vectors.len());
    vectors
}

fn narinfos(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of vectors");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "narinfo")).collect();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

async fn check(acls: &[PathBuf], files: &[PathBuf]) -> Finished {
    let mut command = program::command("check");
    for acl in acls {
        command.arg("--acl").arg(acl);
    }
    program::run(command.args(files)).await
}

/// The words after `FILE: `, for each file in its turn.
fn verdicts<'a>(finished: &'a Finished, files: &[PathBuf]) -> Vec<&'a str> {
    let lines: Vec<_> = finished.out.lines().collect();
    assert_eq!(lines.len(), files.len(), "{}{}", finished.out, finished.err);
    let verdict = |(line, file): (&&'a str, &PathBuf)| {
        let rest = line.strip_prefix(&format!("{}: ", file.display()));
        rest.unwrap_or_else(|| panic!("{line} is not about {}", file.display()))
    };
    lines.iter().zip(files).map(verdict).collect()
}

fn synthetic_keys(folder: &Path) -> Vec<PathBuf> {
    ["A", "B"].map(|name| folder.join(format!("acl/{name}.pub"))).into()
}

fn real_keys(folder: &Path) -> Vec<PathBuf> {
    ["berlin.guix.gnu.org", "bordeaux.guix.gnu.org", "genenetwork-balg02", "jin-tc-m920"]
        .map(|name| folder.join(format!("acl/{name}.pub")))
        .into()
}

#[tokio::test]
async fn check_gives_hostile_narinfos_the_required_verdict() {
    let Some(folder) = samples::vectors() else { return };
    let vectors = hostile(&folder);
    let ordinary: Vec<_> = vectors.iter().filter(|vector| vector.acl == "acl").collect();
    let files: Vec<_> = ordinary.iter().map(|vector| vector.file.clone()).collect();
    let finished = check(&synthetic_keys(&folder), &files).await;
    assert_eq!(finished.code, Some(1), "{}", finished.err);
    for (vector, verdict) in ordinary.iter().zip(verdicts(&finished, &files)) {
        let (file, required) = (vector.file.display(), vector.required.as_str());
        let (valid, refused) = (verdict.starts_with("valid "), verdict.starts_with("refused "));
        assert!(valid != refused, "{file}: {verdict}");
        match required {
            "accept" => assert!(valid, "{file}: {verdict}"),
            "refuse" => assert!(refused, "{file}: {verdict}"),
            "may" => {}
            other => panic!("{file} requires {other}?"),
        }
    }
    let accepted = ordinary.iter().filter(|vector| vector.required == "accept");
    let files: Vec<_> = accepted.map(|vector| vector.file.clone()).collect();
    check(&synthetic_keys(&folder), &files).await.well();
}

#[tokio::test]
async fn check_refuses_weird_keys_and_names_their_file() {
    let Some(folder) = samples::vectors() else { return };
    for vector in hostile(&folder).iter().filter(|vector| vector.acl == "acl-weird") {
        let name = vector.file.file_stem().and_then(|n| n.to_str()).expect("a name");
        let (_, key) = name.split_once("-acl-").expect("named after its key");
        let key = folder.join(format!("acl/weird/{key}.pub"));
        let finished = check(std::slice::from_ref(&key), std::slice::from_ref(&vector.file)).await;
        match vector.required.as_str() {
            "refuse-key" => {
                assert_ne!(finished.code, Some(0), "{name}");
                assert_eq!(finished.out, "", "{name}: no verdict without keys");
                let named = finished.err.contains(&key.display().to_string());
                assert!(named, "{name}: {}", finished.err);
            }
            "may" => assert!(matches!(finished.code, Some(0 | 1)), "{name}: {}", finished.err),
            other => panic!("{name} requires {other}?"),
        }
    }
}

#[tokio::test]
async fn check_believes_real_and_valid_narinfos() {
    let Some(folder) = samples::vectors() else { return };
    for (keys, files) in [
        (synthetic_keys(&folder), narinfos(&folder.join("valid"))),
        (real_keys(&folder), narinfos(&folder.join("real"))),
    ] {
        let finished = check(&keys, &files).await;
        for (file, verdict) in files.iter().zip(verdicts(&finished, &files)) {
            assert!(verdict.starts_with("valid "), "{}: {verdict}", file.display());
        }
        finished.well();
    }
}

/// The characters of the hash in the first `StorePath`, wherever that stands.
fn store_hash(narinfo: &[u8]) -> Option<String> {
    let key = b"StorePath: /gnu/store/";
    let start = narinfo.windows(key.len()).position(|octets| octets == key)? + key.len();
    let hash = narinfo.get(start..start + 32)?;
    hash.iter().all(u8::is_ascii_alphanumeric).then(|| String::from_utf8_lossy(hash).into_owned())
}

/// Serves `vectors` (of different items) from upstream, and asks a node for all of them.
async fn through_the_shim(keys: &[PathBuf], vectors: &BTreeMap<String, (PathBuf, String)>) {
    let stage = Stage::new();
    let root = stage.path("upstream");
    fs::create_dir(&root).expect("a new folder");
    for (hash, (file, _)) in vectors {
        fs::copy(file, root.join(format!("{hash}.narinfo"))).expect("a copy");
    }
    let server = StaticServer::start(&root).await.expect("a server");
    let mut node = stage.node("a").upstream(&server.url());
    for key in keys {
        node = node.acl(key);
    }
    let node = node.start().await;
    let guix = Guix::new(node.http(), Acl::default());
    for (hash, (file, required)) in vectors {
        let reply = guix.get(&format!("/{hash}.narinfo")).await.expect("an answer");
        let (file, original) = (file.display(), fs::read(file).expect("a vector"));
        match (required.as_str(), reply.head.status) {
            ("accept" | "may", 200) => {
                let (ours, theirs) = (signed_head(&original).trim_ascii_end(), &reply.body);
                assert!(theirs.starts_with(ours), "{file}: the signed part was touched");
            }
            ("refuse" | "may", 404) => {}
            (required, status) => panic!("{file}: {status}, but required is {required}"),
        }
    }
}

/// Vectors of the same item can't be served side by side: as many rounds as it takes.
async fn all_through_the_shim(keys: &[PathBuf], vectors: Vec<(PathBuf, String)>) {
    let mut rounds: Vec<BTreeMap<String, (PathBuf, String)>> = Vec::new();
    for (file, required) in vectors {
        let octets = fs::read(&file).expect("a vector");
        let hash =
            store_hash(&octets).unwrap_or_else(|| panic!("{} names no item", file.display()));
        match rounds.iter_mut().find(|round| !round.contains_key(&hash)) {
            Some(round) => drop(round.insert(hash, (file, required))),
            None => rounds.push(BTreeMap::from([(hash, (file, required))])),
        }
    }
    for round in &rounds {
        through_the_shim(keys, round).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_gives_hostile_narinfos_the_required_verdict() {
    let Some(folder) = samples::vectors() else { return };
    let ordinary = hostile(&folder).into_iter().filter(|vector| vector.acl == "acl");
    let vectors = ordinary.map(|vector| (vector.file, vector.required)).collect();
    all_through_the_shim(&synthetic_keys(&folder), vectors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_passes_real_and_valid_narinfos_on() {
    let Some(folder) = samples::vectors() else { return };
    for (keys, files) in [
        (synthetic_keys(&folder), narinfos(&folder.join("valid"))),
        (real_keys(&folder), narinfos(&folder.join("real"))),
    ] {
        let vectors = files.into_iter().map(|file| (file, "accept".to_owned())).collect();
        all_through_the_shim(&keys, vectors).await;
    }
}

/// A node must not start with a key under which anybody can sign.
#[tokio::test]
async fn a_node_with_a_weird_key_does_not_start() {
    let Some(folder) = samples::vectors() else { return };
    let stage = Stage::new();
    let key = folder.join("acl/weird/identity-y1.pub");
    let refused = stage.node("a").acl(folder.join("acl/A.pub")).acl(&key).run().await;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains(&key.display().to_string()), "{}", refused.err);
}
