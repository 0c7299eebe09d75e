//! Real, generated and hostile narinfos, with what must be said of each.
//!
//! The vectors beside this file are made by `vectors/make.scm`. A larger collection, with real
//! narinfos of several build farms and keys that must not load, is read from the folder that
//! `NARSWARM_SHARED_VECTORS` names, or from `shared/vectors` beside the repository's checkout.

#![allow(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the crate is pure; what holds it against the world outside is not"
)]

use narswarm_protocol::acl::{Acl, PublicKey, Signer, key_name};
use narswarm_protocol::narinfo::{Compression, NarSource, UnverifiedNarinfo, VerifiedNarinfo};
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn acl(files: &[PathBuf]) -> Acl {
    let mut acl = Acl::default();
    for file in files {
        match Acl::parse(&read(file)) {
            Ok(keys) => acl.merge(keys),
            Err(error) => panic!("{}: {error}", file.display()),
        }
    }
    acl
}

fn guix_key(narinfo: &VerifiedNarinfo) -> &PublicKey {
    match narinfo.signer() {
        Signer::Guix(key) => key,
        Signer::Nix(key) => panic!("{key} is no key of Guix's"),
    }
}

/// The verdict in the words of `EXPECTED.tsv`, and the narinfo if it is believed.
fn judge(bytes: &[u8], acl: &Acl) -> (&'static str, Option<VerifiedNarinfo>) {
    match UnverifiedNarinfo::parse(bytes).map(|narinfo| narinfo.verify(acl)) {
        Err(_) => ("malformed", None),
        Ok(Err(refusal)) => (refusal.kind(), None),
        Ok(Ok(narinfo)) => ("valid-signature", Some(narinfo)),
    }
}

/// Guix's verdict and ours may have different names where Guix throws, or calls unsigned what isn't
/// well-formed, or reads an atom where only a list can be a signature; elsewhere they are the same.
fn same_verdict(guix: &str, ours: &str) -> bool {
    guix == ours
        || matches!(
            (guix, ours),
            ("unsigned", "malformed")
                | ("corrupt-signature", "unsigned")
                | ("error", "malformed" | "unsupported-signature" | "no-url" | "unsigned")
        )
}

/// What is believed stays believed when it is relayed, and says the same.
fn relays(narinfo: &VerifiedNarinfo, acl: &Acl) {
    let ours = NarSource {
        url: "nar/ours".to_owned(),
        compression: Compression::None,
        file_size: Some(narinfo.nar_size()),
    };
    let relayed = narinfo.relay(std::slice::from_ref(&ours));
    let (verdict, again) = judge(&relayed, acl);
    let again = again.unwrap_or_else(|| panic!("relayed {}: {verdict}", narinfo.item()));
    assert_eq!(again.signed_bytes(), narinfo.signed_bytes());
    assert_eq!(again.sources().last(), Some(&ours));
    assert_eq!(again.references(), narinfo.references());
}

fn believed(path: &Path, acl: &Acl) -> VerifiedNarinfo {
    let (verdict, narinfo) = judge(&read(path), acl);
    let narinfo = narinfo.unwrap_or_else(|| panic!("{}: {verdict}", path.display()));
    relays(&narinfo, acl);
    narinfo
}

fn narinfos(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("entry of a folder").path())
        .filter(|path| path.extension().is_some_and(|e| e == "narinfo"))
        .collect();
    assert!(!paths.is_empty(), "{} holds no narinfo", folder.display());
    paths.sort();
    paths
}

/// The lines of a table below its heading, cut at tabs.
fn table(path: &Path) -> Vec<Vec<String>> {
    let text = String::from_utf8(read(path)).expect("the table is text");
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn our_own_vectors_get_the_verdicts_of_libgcrypt() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let acl = acl(&[folder.join("A.pub"), folder.join("B.pub")]);
    let expected = table(&folder.join("EXPECTED.tsv"));
    assert!(expected.len() > 50, "only {} vectors", expected.len());
    for row in &expected {
        let [file, required, guix] = &row[..] else { panic!("odd row {row:?}") };
        let (ours, narinfo) = judge(&read(&folder.join(file)), &acl);
        match required.as_str() {
            "accept" => assert_eq!(ours, "valid-signature", "{file}"),
            "refuse" => assert!(narinfo.is_none(), "{file} must be refused"),
            "may" => {}
            other => panic!("{file} requires {other}?"),
        }
        let stricter = guix == "valid-signature" && narinfo.is_none() && required != "accept";
        assert!(stricter || same_verdict(guix, ours), "{file}: {ours}, but guix says {guix}");
        if let Some(narinfo) = narinfo {
            relays(&narinfo, &acl);
        }
    }
}

fn shared_vectors() -> Option<PathBuf> {
    let folder = std::env::var_os("NARSWARM_SHARED_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"),
        PathBuf::from,
    );
    if folder.join("EXPECTED.tsv").is_file() {
        return Some(folder);
    }
    eprintln!("NOT TESTED: {} has no EXPECTED.tsv; set NARSWARM_SHARED_VECTORS", folder.display());
    None
}

#[test]
fn shared_hostile_narinfos_get_the_required_verdict() {
    let Some(folder) = shared_vectors() else { return };
    let normal = acl(&[folder.join("acl/A.pub"), folder.join("acl/B.pub")]);
    let expected = table(&folder.join("EXPECTED.tsv"));
    assert!(!expected.is_empty());
    for row in &expected {
        let [file, which, required, guix, ..] = &row[..] else { panic!("odd row {row:?}") };
        let bytes = read(&folder.join("hostile").join(file));
        if which == "acl-weird" {
            let (_, name) = file.split_once("-acl-").expect("file named after its key");
            let key = name.replace(".narinfo", ".pub");
            match (Acl::parse(&read(&folder.join("acl/weird").join(key))), required.as_str()) {
                (Err(_), "refuse-key" | "may") | (Ok(_), "may") => {}
                (loaded, _) => panic!("{file}: {required}, but {loaded:?}"),
            }
            continue;
        }
        let (ours, narinfo) = judge(&bytes, &normal);
        match required.as_str() {
            "accept" => assert_eq!(ours, "valid-signature", "{file}"),
            "refuse" => {
                assert!(narinfo.is_none(), "{file} must be refused");
                assert!(same_verdict(guix, ours), "{file}: {ours}, but guix says {guix}");
            }
            "may" => {}
            other => panic!("{file} requires {other}?"),
        }
    }
}

#[test]
fn shared_valid_and_real_narinfos_are_believed() {
    let Some(folder) = shared_vectors() else { return };
    let keys = ["A", "B"].map(|name| folder.join(format!("acl/{name}.pub")));
    let synthetic = acl(&keys);
    for path in narinfos(&folder.join("valid")) {
        believed(&path, &synthetic);
    }
    let keys =
        ["berlin.guix.gnu.org", "bordeaux.guix.gnu.org", "genenetwork-balg02", "jin-tc-m920"]
            .map(|name| folder.join(format!("acl/{name}.pub")));
    let real = acl(&keys);
    assert_eq!(real.len(), 4);
    for path in narinfos(&folder.join("real")) {
        let narinfo = believed(&path, &real);
        assert_eq!(
            key_name(guix_key(&narinfo)).is_some(),
            Acl::guix_build_farms().contains(guix_key(&narinfo))
        );
    }
    let farms = acl(
        &["berlin", "bordeaux"].map(|name| folder.join(format!("acl/{name}.guix.gnu.org.pub")))
    );
    assert_eq!(farms, Acl::guix_build_farms());
}

#[test]
fn narinfos_of_nixs_cache_are_believed() {
    let Some(folder) = shared_vectors() else { return };
    let nixos = Acl::nixos_cache();
    for path in narinfos(&folder.join("nix")) {
        let narinfo = believed(&path, &nixos);
        assert_eq!(narinfo.signer().name(), "cache.nixos.org-1");
        assert_eq!(narinfo.sources().len(), 1, "{}", path.display());
        let text = String::from_utf8(read(&path)).expect("text");
        let relayed = String::from_utf8(narinfo.relay(&[])).expect("text");
        for kept in ["StorePath", "NarHash", "NarSize", "References", "Deriver", "Sig", "CA"] {
            let line = |text: &str| {
                text.lines().find(|line| line.starts_with(&format!("{kept}:"))).map(str::to_owned)
            };
            assert_eq!(line(&relayed), line(&text), "{}", path.display());
        }
        assert!(
            UnverifiedNarinfo::parse(text.as_bytes())
                .expect("well-formed")
                .verify(&Acl::guix_build_farms())
                .is_err()
        );
    }
}

#[test]
fn narinfos_of_a_server_written_by_guix_are_believed() {
    let Some(folder) = shared_vectors() else { return };
    let server = folder.join("../substitute-server");
    let key = acl(&[server.join("signing-key.pub")]);
    for path in narinfos(&server) {
        assert!(!believed(&path, &key).sources().is_empty(), "{}", path.display());
    }
}

#[test]
fn shared_keys_that_cannot_be_used_do_not_load() {
    let Some(folder) = shared_vectors() else { return };
    let weird = folder.join("acl/weird");
    for entry in fs::read_dir(&weird).expect("folder of keys") {
        let path = entry.expect("entry of a folder").path();
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        // A point with a part of small order still has a secret, and Guix takes it.
        assert_eq!(Acl::parse(&read(&path)).is_ok(), name.starts_with("mixed-order"), "{name}");
    }
    let rsa = read(&folder.join("acl/hydra.gnu.org-RSA-removed-2019.pub"));
    assert!(Acl::parse(&rsa).is_err(), "the only key of a file");
    let list = [&b"(acl (entry "[..], rsa.trim_ascii(), b"(tag (guix import))))"].concat();
    let acl = Acl::parse(&list).expect("one key of several");
    assert!(acl.is_empty());
    assert_eq!(acl.skipped().len(), 1);
}
