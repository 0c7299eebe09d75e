//! What is read, what is believed and what is relayed. Hostile narinfos are in
//! `tests/trust_vectors.rs`.

use super::guix::SIGNED_FIELDS;
use super::*;
use crate::signature::SigningKey;
use proptest::prelude::*;

fn key() -> SigningKey {
    SigningKey::from_seed([9; 32])
}

fn acl() -> Acl {
    Acl::from_iter([key().public_key().clone()])
}

fn item(name: &str) -> ItemName {
    ItemName::parse(format!("zab5qqb146vi73jmxl23i3ygcy7lsrps-{name}").as_bytes()).expect("name")
}

fn group(url: &str, compression: Compression, file_size: Option<u64>) -> NarSource {
    NarSource { url: url.to_owned(), compression, file_size }
}

fn draft() -> Draft {
    Draft {
        store_path: StorePath::parse(format!("/gnu/store/{}", item("hello-2.12.1")).as_bytes())
            .expect("path"),
        nar_hash: NarHash([7; 32]),
        nar_size: 12345,
        references: vec![item("glibc-2.39"), item("hello-2.12.1")],
        system: Some("x86_64-linux".to_owned()),
        deriver: Some(item("hello-2.12.1.drv")),
    }
}

/// Signs any text, with an unsigned tail below.
fn signed(text: &str, tail: &str) -> Vec<u8> {
    format!("{text}Signature: {}\n{tail}", key().sign_narinfo(text.as_bytes(), "h")).into_bytes()
}

fn verdict(bytes: &[u8]) -> Result<VerifiedNarinfo, Refusal> {
    UnverifiedNarinfo::parse(bytes).expect("well-formed").verify(&acl())
}

const TAIL: &str = "URL: nar/x\nCompression: none\nFileSize: 1\n";

#[test]
fn a_draft_becomes_a_verified_narinfo() {
    let groups = [
        group("nar/zstd/x", Compression::Zstd, Some(99)),
        group("https://example.org/nar/x", Compression::None, None),
        group("nar/lzip/x", Compression::Lzip, None),
    ];
    let bytes = draft().sign(&key(), "example.org", &groups).expect("narinfo");
    let narinfo = verdict(&bytes).expect("valid");
    assert_eq!(narinfo.item(), &item("hello-2.12.1"));
    assert_eq!(narinfo.store_path().directory(), "/gnu/store");
    assert_eq!(narinfo.nar_hash(), NarHash([7; 32]));
    assert_eq!(narinfo.nar_size(), 12345);
    assert_eq!(narinfo.references(), draft().references);
    assert_eq!(narinfo.signer(), &Signer::Guix(key().public_key().clone()));
    assert_eq!(narinfo.original(), bytes);
    assert_eq!(narinfo.signed_bytes(), draft().signed_bytes().expect("text").as_bytes());
    assert!(!narinfo.signs_urls());
    let mut expected = groups.to_vec();
    expected[1].file_size = Some(12345);
    assert_eq!(narinfo.sources(), expected);
}

#[test]
fn drafts_that_would_not_be_read_back_are_refused() {
    let with = |change: fn(&mut Draft), host| {
        let mut draft = draft();
        change(&mut draft);
        draft.sign(&key(), host, &[]).expect_err("refused")
    };
    assert_eq!(with(|d| d.system = Some("x\nURL: y".to_owned()), "h"), DraftError::System);
    assert_eq!(with(|_| {}, "h;"), DraftError::Host);
    let size = limits::MAX_NAR_BYTES + 1;
    assert_eq!(
        with(|d| d.nar_size = limits::MAX_NAR_BYTES + 1, "h"),
        DraftError::NarTooLarge { octets: size }
    );
    let large = with(|d| d.references = vec![item("x"); 10_000], "h");
    assert!(matches!(large, DraftError::TooLarge { .. }), "{large}");
}

#[test]
fn an_empty_list_of_references_is_a_list() {
    let narinfo = Draft { references: vec![], system: None, deriver: None, ..draft() }
        .sign(&key(), "h", &[group("x", Compression::None, None)])
        .expect("narinfo");
    assert!(verdict(&narinfo).expect("valid").references().is_empty());
}

#[test]
fn relaying_replaces_the_tail_and_nothing_else() {
    let bytes = draft()
        .sign(&key(), "h", &[group("http://evil.example/x", Compression::Gzip, Some(1))])
        .expect("narinfo");
    let narinfo = verdict(&bytes).expect("valid");
    let ours = [
        group("nar/x", Compression::None, Some(12345)),
        group("nar/x\nURL: http://evil.example", Compression::None, None),
        group("", Compression::None, None),
    ];
    let relayed = narinfo.relay(&ours);
    let text = std::str::from_utf8(&relayed).expect("text");
    assert!(!text.contains("evil"), "{text}");
    assert!(text.ends_with("\nURL: nar/x\nCompression: none\nFileSize: 12345\n"), "{text}");
    let again = verdict(&relayed).expect("still valid");
    assert_eq!(again.signed_bytes(), narinfo.signed_bytes());
    assert_eq!(again.sources(), &ours[..1]);
    assert_eq!(again.relay(&ours), relayed);
}

#[test]
fn signed_urls_stay_and_ours_come_after_them() {
    let text = draft().signed_bytes().expect("text");
    let ours = [group("nar/x", Compression::None, Some(12345))];
    for (signed_fields, theirs) in [
        ("URL: a\nCompression: gzip\nFileSize: 5\n", Some(group("a", Compression::Gzip, Some(5)))),
        ("URL: a\nCompression: gzip\n", Some(group("a", Compression::Gzip, None))),
        ("URL: a\n", None),
    ] {
        // Without a line end after the signature, as in narinfos of that time.
        let mut bytes = signed(&format!("{text}{signed_fields}"), "");
        bytes.pop();
        let narinfo = verdict(&bytes).expect("valid");
        assert!(narinfo.signs_urls());
        let relayed = verdict(&narinfo.relay(&ours)).expect("still valid");
        let expected: Vec<_> = theirs.into_iter().chain(ours.clone()).collect();
        assert_eq!(relayed.sources(), expected, "{signed_fields}");
        assert_eq!(relayed.signed_bytes(), narinfo.signed_bytes());
    }
}

#[test]
fn useless_sources_are_left_out_and_the_rest_is_bounded() {
    let text = draft().signed_bytes().expect("text");
    let tail = "URL: a\nURL: b c\nURL: d\nURL: e\nCompression: gzip\nCompression: none\n\
                Compression: brotli\nCompression: xz\nFileSize: x\nFileSize: 1\nFileSize: 2\n\
                FileSize: 3\n";
    let narinfo = verdict(&signed(&text, tail)).expect("valid");
    let expected = [group("a", Compression::Gzip, None), group("e", Compression::Xz, Some(3))];
    assert_eq!(narinfo.sources(), expected);
    let many = verdict(&signed(&text, &TAIL.repeat(1000))).expect("valid");
    assert_eq!(many.sources().len(), limits::MAX_NAR_SOURCES);
}

#[test]
fn the_first_of_repeated_fields_counts() {
    let text = draft().signed_bytes().expect("text");
    let tail = format!("NarSize: 1\nStorePath: /gnu/store/{}\n{TAIL}", item("evil"));
    let narinfo = verdict(&signed(&text, &tail)).expect("valid");
    assert_eq!(narinfo.nar_size(), 12345);
    assert_eq!(narinfo.item(), &item("hello-2.12.1"));
}

#[test]
fn every_required_field_must_be_signed() {
    let text = draft().signed_bytes().expect("text");
    for field in SIGNED_FIELDS {
        let line = text.lines().find(|line| line.starts_with(field)).expect("field");
        let line = format!("{line}\n");
        let bytes = signed(&text.replace(&line, ""), &format!("{line}{TAIL}"));
        assert_eq!(verdict(&bytes).expect_err("refused"), Refusal::UnsignedField { field });
        let bytes = signed(&text.replace(&line, ""), TAIL);
        let error = UnverifiedNarinfo::parse(&bytes).map(|_| ()).expect_err("refused");
        assert_eq!(error, NarinfoError::Missing { field });
    }
}

#[test]
fn what_guix_would_throw_over_or_not_see_is_refused() {
    let text = draft().signed_bytes().expect("text");
    assert_eq!(verdict(&signed(&text, "")).expect_err("no URL"), Refusal::NoUrl);
    assert_eq!(verdict(&signed(&text, "\nURL: x\n")).expect_err("after the end"), Refusal::NoUrl);
    let unsigned = format!("{text}{TAIL}");
    assert_eq!(verdict(unsigned.as_bytes()).expect_err("unsigned"), Refusal::Unsigned);
    let blank = format!("{text}{TAIL}\n");
    let below = String::from_utf8(signed(&blank, "")).expect("text");
    assert_eq!(verdict(below.as_bytes()).expect_err("after the end"), Refusal::Unsigned);
    let in_line = signed(&format!("{text}X-"), TAIL);
    assert_eq!(verdict(&in_line).expect_err("another field"), Refusal::Unsigned);
    let both = format!("{text}X-Signature: {}\n", key().sign_narinfo(text.as_bytes(), "h"));
    let both = signed(&both, TAIL);
    assert_eq!(verdict(&both).expect_err("other text"), Refusal::HashMismatch);
}

#[test]
fn a_signature_that_begins_inside_a_line_is_refused() {
    // The text up to `X-` is signed, and a `Signature` field repeats that signature below.
    let text = format!("{}X-", draft().signed_bytes().expect("text"));
    let signature = key().sign_narinfo(text.as_bytes(), "h");
    let bytes = format!("{text}Signature: y\nSignature: {signature}\n{TAIL}");
    assert_eq!(verdict(bytes.as_bytes()).expect_err("refused"), Refusal::SignatureInLine);
}

#[test]
fn malformed_fields_are_refused() {
    let text = format!("{}{TAIL}", draft().signed_bytes().expect("text"));
    let refusal = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let changed = text.replacen(from, to, 1);
        UnverifiedNarinfo::parse(changed.as_bytes()).map(|_| ()).expect_err("refused")
    };
    assert!(matches!(refusal("/gnu/store/", ""), NarinfoError::StorePath(_)));
    assert!(matches!(refusal("hello-2.12.1\nNarHash", "a b\nNarHash"), NarinfoError::StorePath(_)));
    assert!(matches!(refusal("sha256:", "sha512:"), NarinfoError::NarHash(_)));
    assert_eq!(refusal("12345", "12345 "), NarinfoError::NarSize);
    assert_eq!(refusal("12345", "-1"), NarinfoError::NarSize);
    assert_eq!(refusal("12345", ""), NarinfoError::NarSize);
    let huge = "9".repeat(30);
    assert_eq!(refusal("12345", &huge), NarinfoError::NarTooLarge { octets: u64::MAX });
    assert!(matches!(
        refusal("-glibc-2.39 ", "-glibc-2.39 ../x "),
        NarinfoError::Reference { number: 2, .. }
    ));
    let refusal = |bytes: &[u8]| UnverifiedNarinfo::parse(bytes).map(|_| ()).expect_err("refused");
    assert_eq!(refusal(b"A: \xff"), NarinfoError::Utf8 { position: 3 });
    let octets = limits::MAX_NARINFO_BYTES + 1;
    assert_eq!(refusal(&vec![b'a'; octets]), NarinfoError::TooLarge { octets });
}

proptest! {
    #[test]
    fn no_octets_make_it_panic(bytes: Vec<u8>) {
        if let Ok(narinfo) = UnverifiedNarinfo::parse(&bytes) {
            let _ = narinfo.verify(&acl());
        }
    }

    #[test]
    fn no_change_of_a_valid_narinfo_is_believed_to_say_something_else(
        position in 0..1200usize,
        removed in 0..40usize,
        inserted in "[ -~\n]{0,20}",
    ) {
        let groups = [group("x", Compression::None, None)];
        let bytes = draft().sign(&key(), "h", &groups).expect("narinfo");
        let original = verdict(&bytes).expect("valid");
        let start = position.min(bytes.len());
        let end = (start + removed).min(bytes.len());
        let mut changed = bytes.clone();
        changed.splice(start..end, inserted.into_bytes());
        let verified = UnverifiedNarinfo::parse(&changed).map(|narinfo| narinfo.verify(&acl()));
        if let Ok(Ok(verified)) = verified {
            prop_assert_eq!(verified.signed_bytes(), original.signed_bytes());
            prop_assert_eq!(verified.item(), original.item());
            prop_assert_eq!(verified.nar_hash(), original.nar_hash());
            prop_assert_eq!(verified.nar_size(), original.nar_size());
            prop_assert_eq!(verified.references(), original.references());
        }
    }
}
