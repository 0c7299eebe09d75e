//! Which narinfos of Nix's are believed, and what becomes of them on the way.

use crate::acl::{Acl, NixSigningKey};
use crate::hash::NarHash;
use crate::limits;
use crate::narinfo::{
    Compression, Draft, NarSource, NarinfoError, Refusal, UnverifiedNarinfo, VerifiedNarinfo,
};
use crate::store_path::{ItemName, StorePath};

/// Built, signed and copied to a binary cache by Nix 2.8.
const BUILT: &str = include_str!("../../../tests/vectors/nix/built.narinfo");
/// From `cache.nixos.org`, as it gave them in 2022 and 2026. The references are in the order of
/// their text, which is none of their hashes' octets.
const SERVED: [&str; 2] = [
    include_str!("../../../tests/vectors/nix/curl.narinfo"),
    include_str!("../../../tests/vectors/nix/ripgrep.narinfo"),
];
const TEST_KEY: &str = "test-1:i1BDs12NbXXGoTQwV30Z9WCYN7LgjgaufCqsgTUa9kI=";

fn key(name: &str, seed: u8) -> NixSigningKey {
    NixSigningKey::from_seed(name, [seed; 32]).expect("a name")
}

fn acl(text: &str) -> Acl {
    Acl::parse(text.as_bytes()).expect("keys")
}

fn group(url: &str, compression: Compression, file_size: Option<u64>) -> NarSource {
    NarSource { url: url.to_owned(), compression, file_size }
}

fn item(name: &str) -> ItemName {
    ItemName::parse(format!("zab5qqb146vi73jmxl23i3ygcy7lsrps-{name}").as_bytes()).expect("name")
}

fn draft() -> Draft {
    let path = format!("/nix/store/{}", item("hello-2.12.1"));
    Draft {
        store_path: StorePath::parse(path.as_bytes()).expect("path"),
        nar_hash: NarHash([7; 32]),
        nar_size: 12345,
        references: vec![item("hello-2.12.1"), item("glibc-2.39"), item("glibc-2.39")],
        system: None,
        deriver: Some(item("hello-2.12.1.drv")),
    }
}

fn signed(keys: &[&NixSigningKey]) -> String {
    let groups = [group("nar/x.nar.xz", Compression::Xz, Some(99))];
    let bytes = draft().sign_for_nix(keys, &groups).expect("a narinfo");
    String::from_utf8(bytes).expect("text")
}

fn verdict(text: &str, acl: &Acl) -> Result<VerifiedNarinfo, Refusal> {
    UnverifiedNarinfo::parse(text.as_bytes()).expect("well-formed").verify(acl)
}

fn trusting(key: &NixSigningKey) -> Acl {
    acl(&key.public_key().to_string())
}

#[test]
fn what_nix_has_built_and_signed_is_believed() {
    let narinfo = verdict(BUILT, &acl(TEST_KEY)).expect("valid");
    assert_eq!(narinfo.signer().name(), "test-1");
    assert_eq!(narinfo.item().name(), "top-1.0");
    assert_eq!(narinfo.references().len(), 2);
    assert_eq!(narinfo.nar_size(), 216);
    assert_eq!(narinfo.sources()[0].compression, Compression::Bzip2);
    assert_eq!(narinfo.sources()[0].file_size, Some(175));
    assert!(!narinfo.signs_urls());
    let fingerprint = std::str::from_utf8(narinfo.signed_bytes()).expect("text");
    assert!(
        fingerprint.starts_with("1;/nix/store/n3zag6adzf6pxd55bnndhfvlbjwpsdh1-top-1.0;sha256:")
    );
    assert!(fingerprint.ends_with(
        ";216;/nix/store/n3zag6adzf6pxd55bnndhfvlbjwpsdh1-top-1.0,\
         /nix/store/y9v4w1kf41c10q7fdxlbz10s0adiximd-dep-1.0"
    ));
}

#[test]
fn what_the_cache_of_nixos_has_signed_is_believed() {
    for text in SERVED {
        let narinfo = verdict(text, &Acl::nixos_cache()).expect("valid");
        assert_eq!(UnverifiedNarinfo::item_of(text.as_bytes()).as_ref(), Some(narinfo.item()));
        let references: Vec<&str> = narinfo.references().iter().map(ItemName::as_str).collect();
        assert!(references.is_sorted() && references.len() > 2, "{references:?}");
        let hashes = narinfo.references().iter().map(ItemName::hash);
        assert!(!hashes.is_sorted(), "a text that proves something");
        assert!(
            verdict(
                &String::from_utf8(narinfo.relay(&[group("nar/x", Compression::None, None)]))
                    .expect("text"),
                &Acl::nixos_cache()
            )
            .is_ok()
        );
    }
}

#[test]
fn every_changed_signed_field_is_noticed() {
    let acl = acl(TEST_KEY);
    for (from, to) in [
        ("NarSize: 216", "NarSize: 217"),
        ("NarHash: sha256:0m38", "NarHash: sha256:0n38"),
        ("References: n3zag6adzf6pxd55bnndhfvlbjwpsdh1-top-1.0 ", "References: "),
        ("top-1.0 y9v4", "top-1.0 z9v4"),
        ("StorePath: /nix/store/n3z", "StorePath: /nix/store/n4z"),
        ("StorePath: /nix/store/", "StorePath: /gnu/store/"),
        ("-top-1.0\nURL", "-top-1.1\nURL"),
        ("test-1:qTHN", "test-1:qTHO"),
    ] {
        assert!(BUILT.contains(from), "{from}");
        let refusal = verdict(&BUILT.replacen(from, to, 1), &acl).expect_err(from);
        assert_eq!(refusal, Refusal::InvalidSignature, "{from}");
    }
    // The order of a set says nothing, to Nix either, and is lost on the way.
    let (a, b) =
        ("n3zag6adzf6pxd55bnndhfvlbjwpsdh1-top-1.0", "y9v4w1kf41c10q7fdxlbz10s0adiximd-dep-1.0");
    let reordered = BUILT.replace(&format!("{a} {b}"), &format!("{b} {a} {a}"));
    assert_ne!(reordered, BUILT);
    let reordered = verdict(&reordered, &acl).expect("valid");
    let original = verdict(BUILT, &acl).expect("valid");
    assert_eq!(reordered.signed_bytes(), original.signed_bytes());
    assert_eq!(reordered.relay(&[]), original.relay(&[]));
}

#[test]
fn only_a_trusted_key_counts_and_a_name_proves_nothing() {
    let (ours, namesake, other) = (key("a-1", 1), key("a-1", 2), key("b-1", 3));
    let acl = trusting(&ours);
    assert_eq!(verdict(&signed(&[&ours]), &acl).expect("valid").signer().name(), "a-1");
    assert_eq!(
        verdict(&signed(&[&namesake]), &acl).expect_err("forged"),
        Refusal::InvalidSignature
    );
    let refusal = verdict(&signed(&[&other]), &acl).expect_err("unknown");
    assert_eq!(refusal, Refusal::UntrustedNames { names: "b-1".to_owned() });
    assert_eq!(refusal.kind(), "unauthorized-key");
    // One good signature among bad ones is enough, as it is to Nix.
    assert!(verdict(&signed(&[&other, &namesake, &ours]), &acl).is_ok());
    // The right signature under another name is nobody's.
    let renamed = signed(&[&ours]).replace("Sig: a-1:", "Sig: b-1:");
    assert_eq!(verdict(&renamed, &acl).expect_err("renamed").kind(), "unauthorized-key");
    // Guix's keys are no use here, nor Nix's for Guix's narinfos.
    let farms = Acl::guix_build_farms();
    assert_eq!(verdict(&signed(&[&ours]), &farms).expect_err("Guix").kind(), "unauthorized-key");
}

#[test]
fn malformed_signatures_are_nobodys() {
    let ours = key("a-1", 1);
    let (acl, text) = (trusting(&ours), signed(&[&ours]));
    let value = text.split_once("Sig: ").expect("a signature").1.trim_end();
    for bad in ["", "a-1", "a-1:", ":AAAA", "a-1:!!!", &value[..value.len() - 4], &value[..50]] {
        let refusal = verdict(&text.replace(value, bad), &acl).expect_err(bad);
        assert!(matches!(refusal, Refusal::MalformedSig(_)), "{bad}: {refusal}");
        assert_eq!(refusal.kind(), "unsigned");
        // It doesn't spoil another one, and isn't passed on.
        let beside = format!("{text}Sig: {bad}\n");
        let believed = verdict(&beside, &acl).expect("one is good");
        assert_eq!(believed.relay(&[]), verdict(&text, &acl).expect("valid").relay(&[]));
    }
    let zero = format!("a-1:{}==", "A".repeat(86));
    assert_eq!(
        verdict(&text.replace(value, &zero), &acl).expect_err("zero"),
        Refusal::InvalidSignature
    );
    let unsigned = text.replace(&format!("Sig: {value}\n"), "");
    assert_eq!(verdict(&unsigned, &acl).expect_err("unsigned"), Refusal::Unsigned);
}

#[test]
fn signatures_are_bounded() {
    let (ours, other) = (key("a-1", 1), key("b-1", 2));
    let text = signed(&[&ours]);
    let foreign = signed(&[&other]);
    let foreign = foreign.lines().find(|line| line.starts_with("Sig: ")).expect("a signature");
    let with = |count: usize| format!("{text}{}", format!("{foreign}\n").repeat(count));
    let most = with(limits::MAX_NIX_SIGNATURES - 1);
    assert!(verdict(&most, &trusting(&ours)).is_ok());
    let count = limits::MAX_NIX_SIGNATURES + 1;
    let refusal = UnverifiedNarinfo::parse(with(limits::MAX_NIX_SIGNATURES).as_bytes());
    assert_eq!(refusal.map(|_| ()).expect_err("many"), NarinfoError::TooManySignatures { count });
}

#[test]
fn what_is_relayed_is_what_was_signed_and_ours() {
    let (ours, other) = (key("a-1", 1), key("b-1", 2));
    let acl = trusting(&ours);
    let text = signed(&[&other, &ours]).replace("URL: nar/x", "URL: http://evil.example/x")
        + "Evil: yes\nStorePath: /nix/store/another\n";
    let narinfo = verdict(&text, &acl).expect("valid");
    let own = group("nar/ours", Compression::None, Some(12345));
    let relayed = narinfo.relay(&[group("a b", Compression::None, None), own.clone()]);
    let relayed = String::from_utf8(relayed).expect("text");
    assert!(!relayed.to_lowercase().contains("evil"), "{relayed}");
    assert!(relayed.contains("\nURL: nar/ours\nCompression: none\n"), "{relayed}");
    assert!(relayed.contains("\nDeriver: "), "{relayed}");
    assert_eq!(relayed.matches("\nSig: ").count(), 2, "others may trust the other key");
    assert_eq!(relayed.matches("StorePath: ").count(), 1);
    for keys in [&acl, &trusting(&other)] {
        let again = verdict(&relayed, keys).expect("still valid");
        assert_eq!(again.signed_bytes(), narinfo.signed_bytes());
        assert_eq!(again.sources(), std::slice::from_ref(&own));
        assert_eq!(String::from_utf8(again.relay(std::slice::from_ref(&own))), Ok(relayed.clone()));
    }
}

#[test]
fn all_spellings_of_a_hash_have_one_fingerprint() {
    let ours = key("a-1", 1);
    let (acl, text) = (trusting(&ours), signed(&[&ours]));
    let base32 = NarHash([7; 32]).to_narinfo();
    let base64 = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    for spelt in [
        format!("sha256:{}", "07".repeat(32)),
        format!("sha256:{base64}"),
        format!("sha256-{base64}"),
    ] {
        let changed = text.replace(&base32, &spelt);
        assert_ne!(changed, text);
        let narinfo = verdict(&changed, &acl).expect("the same hash");
        assert!(String::from_utf8_lossy(&narinfo.relay(&[])).contains(&base32));
    }
}

#[test]
fn a_content_address_is_kept_only_if_the_path_confirms_it() {
    let ours = key("a-1", 1);
    // What `nix-store --add` calls a file with the text "hello".
    let path = "/nix/store/z3n6ml62lc6l9glpaz6fq7fvi2rks9vq-a.txt";
    let draft = Draft {
        store_path: StorePath::parse(path.as_bytes()).expect("path"),
        references: vec![],
        deriver: None,
        ..draft()
    };
    let text =
        draft.sign_for_nix(&[&ours], &[group("x", Compression::None, None)]).expect("narinfo");
    let text = String::from_utf8(text).expect("text");
    let relayed = |line: &str| {
        let narinfo = verdict(&format!("{text}{line}\n"), &trusting(&ours)).expect("valid");
        String::from_utf8(narinfo.relay(&[])).expect("text")
    };
    let line = "CA: fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw";
    assert!(relayed(line).ends_with(&format!("\n{line}\n")));
    for lie in [&line.replace("04z", "05z"), &line.replace("r:sha256", "sha256"), "CA: text:x"] {
        assert!(!relayed(lie).contains("CA:"), "{lie}");
    }
}

#[test]
fn compression_is_bzip2_where_none_is_said() {
    let ours = key("a-1", 1);
    let text = signed(&[&ours]).replace("Compression: xz\n", "");
    let narinfo = verdict(&text, &trusting(&ours)).expect("valid");
    assert_eq!(narinfo.sources()[0].compression, Compression::Bzip2);
    let narinfo = signed(&[&ours]).replace("Compression: xz", "Compression: br");
    assert!(verdict(&narinfo, &trusting(&ours)).expect("valid").sources().is_empty());
    let none = signed(&[&ours]).replace("URL: nar/x.nar.xz\n", "");
    assert_eq!(verdict(&none, &trusting(&ours)).expect_err("no URL"), Refusal::NoUrl);
}

proptest::proptest! {
    #[test]
    fn no_change_is_believed_to_say_something_else(
        position in 0..900usize,
        removed in 0..40usize,
        inserted in "[ -~\n]{0,20}",
    ) {
        let acl = acl(TEST_KEY);
        let original = verdict(BUILT, &acl).expect("valid");
        let mut changed = BUILT.as_bytes().to_vec();
        let start = position.min(changed.len());
        let end = (start + removed).min(changed.len());
        changed.splice(start..end, inserted.into_bytes());
        let verified = UnverifiedNarinfo::parse(&changed).map(|narinfo| narinfo.verify(&acl));
        if let Ok(Ok(verified)) = verified {
            proptest::prop_assert_eq!(verified.signed_bytes(), original.signed_bytes());
            proptest::prop_assert_eq!(verified.item(), original.item());
            proptest::prop_assert_eq!(verified.nar_hash(), original.nar_hash());
            proptest::prop_assert_eq!(verified.nar_size(), original.nar_size());
            proptest::prop_assert_eq!(verified.references(), original.references());
        }
    }
}
