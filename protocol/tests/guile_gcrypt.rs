//! Signatures made here are judged by libgcrypt, and the other way round, by way of
//! `vectors/oracle.scm`. Needs guile and guile-gcrypt; without them the tests pass with a warning,
//! except under CI.

#![allow(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the crate is pure; what holds it against the world outside is not"
)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use narswarm_protocol::acl::{Acl, PublicKey};
use narswarm_protocol::sexp;
use narswarm_protocol::signature::{Signature, SigningKey};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Enough that an encoding which one in eight signatures has cannot stay untested.
const SIGNATURES: usize = 200;

/// One line of work for the oracle.
struct Case {
    key: String,
    digest: String,
    field: String,
    what: String,
}

/// Runs the oracle and returns the lines it prints; nothing if it isn't there.
fn oracle(arguments: &[&str], input: String) -> Option<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let start = |program: &str| {
        Command::new(program)
            .args(["--no-auto-compile", "-s", "oracle.scm"])
            .args(arguments)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()
    };
    let Some(mut child) = start("guile").or_else(|| start("guile-3.0")) else {
        return missing("there is no guile");
    };
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("guile can be waited for");
    let _ = writer.join().expect("the writer does not panic");
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("no code for module (gcrypt") {
        return missing("guile has no guile-gcrypt");
    }
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8(output.stdout).expect("the oracle prints text");
    Some(text.lines().map(str::to_owned).collect())
}

fn missing(what: &str) -> Option<Vec<String>> {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what}, and CI must not go without");
    eprintln!("NOT TESTED: {what}");
    None
}

fn octets(hex: &str) -> Vec<u8> {
    let digit = |d: char| d.to_digit(16).and_then(|d| u8::try_from(d).ok()).expect("digit");
    let digits: Vec<u8> = hex.chars().map(digit).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn our_verdict(case: &Case) -> String {
    let key = PublicKey::from_octets(&octets(&case.key)).expect("a good key");
    let acl = Acl::from_iter([key]);
    let digest: [u8; 32] = octets(&case.digest).try_into().expect("32 octets");
    match Signature::parse(&case.field) {
        Err(_) => "unsigned".to_owned(),
        Ok(signature) => match signature.verify(&digest, &acl) {
            Ok(_) => "valid-signature".to_owned(),
            Err(error) => format!("refused: {error}"),
        },
    }
}

/// Both must agree on what is valid; spellings that only libgcrypt takes are named in `may`.
fn compare(cases: &[Case]) -> Option<usize> {
    let lines: String =
        cases.iter().map(|c| format!("{} {} {}\n", c.key, c.digest, c.field)).collect();
    let verdicts = oracle(&["judge"], lines)?;
    assert_eq!(verdicts.len(), cases.len());
    for (case, verdict) in cases.iter().zip(&verdicts) {
        let ours = our_verdict(case);
        assert_eq!(
            ours == "valid-signature",
            verdict == "valid-signature",
            "{}: {ours}, but libgcrypt says {verdict}: {} {} {}",
            case.what,
            case.key,
            case.digest,
            case.field
        );
    }
    Some(verdicts.iter().filter(|verdict| *verdict == "valid-signature").count())
}

/// The signature as it is, and changed in several ways that depend on `n`.
fn with_mutations(n: usize, key: &str, digest: &str, field: &str) -> Vec<Case> {
    let (head, base64) = field.rsplit_once(';').expect("a field");
    let text = String::from_utf8(STANDARD.decode(base64).expect("base64")).expect("text");
    let mut cases = Vec::new();
    let mut case = |what: &str, digest: String, text: &str| {
        let field = format!("{head};{}", STANDARD.encode(text));
        cases.push(Case { key: key.to_owned(), digest, field, what: format!("{what} {n}") });
    };
    case("unchanged", digest.to_owned(), &text);

    let mut other = octets(digest);
    other[n % 32] ^= 1 << (n % 8);
    case("other digest", other.iter().map(|o| format!("{o:02x}")).collect(), &text);

    // A whole value changed where it is spelt in hexadecimal, at any of its digits.
    for name in ["(r #", "(s #", "(q #"] {
        let Some(start) = text.find(name).map(|at| at + name.len()) else { continue };
        let mut changed = text.clone().into_bytes();
        let at = start + n % 60;
        changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
        case(name, digest.to_owned(), &String::from_utf8(changed).expect("text"));
        let padded = text.replacen(name, &format!("{name}0000"), 1);
        case("zeros before", digest.to_owned(), &padded);
    }
    case(
        "r and s exchanged",
        digest.to_owned(),
        &text.replace("(r ", "(x ").replace("(s ", "(r ").replace("(x ", "(s "),
    );

    // Any character of the text, changed into its neighbour.
    let characters: Vec<char> = text.chars().collect();
    let at = n * 7919 % characters.len();
    let neighbour = |(index, &c): (usize, &char)| match u8::try_from(u32::from(c)) {
        Ok(octet) if index == at => char::from(octet ^ 1),
        _ => c,
    };
    let changed: String = characters.iter().enumerate().map(neighbour).collect();
    case("one character", digest.to_owned(), &changed);
    cases
}

#[test]
fn libgcrypt_agrees_on_signatures_made_here() {
    let mut cases = Vec::new();
    for n in 0..SIGNATURES {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(n as u64 / 8).to_le_bytes());
        let key = SigningKey::from_seed(seed);
        let text = format!("text number {n}");
        let field = key.sign_narinfo(text.as_bytes(), "example.org");
        let digest: String =
            Sha256::digest(text.as_bytes()).iter().map(|octet| format!("{octet:02x}")).collect();
        cases.extend(with_mutations(n, &key.public_key().id().to_lowercase(), &digest, &field));
    }
    let Some(valid) = compare(&cases) else { return };
    assert!(valid >= SIGNATURES, "only {valid} of {} were valid", cases.len());
    assert!(valid < cases.len() / 2, "{valid} of {} were valid", cases.len());
}

#[test]
fn signatures_of_libgcrypt_are_believed_and_printed_alike() {
    let Some(lines) = oracle(&["sign", &SIGNATURES.to_string()], String::new()) else { return };
    let (key, signatures) = lines.split_first().expect("a key");
    assert_eq!(signatures.len(), SIGNATURES);
    let mut cases = Vec::new();
    for (n, line) in signatures.iter().enumerate() {
        let (digest, field) = line.split_once(' ').expect("digest and field");
        let signature = field.rsplit_once(';').expect("a field").1;
        let text = String::from_utf8(STANDARD.decode(signature).expect("base64")).expect("text");
        let octets = sexp::latin1_octets(&text).expect("octets");
        let expression = sexp::Sexp::parse(&octets).expect("expression");
        assert_eq!(expression.to_advanced(), octets, "printed unlike libgcrypt: {text}");
        cases.extend(with_mutations(n, key, digest, field));
    }
    let Some(valid) = compare(&cases) else { return };
    assert!(valid >= SIGNATURES, "only {valid} of {} were valid", cases.len());
}
