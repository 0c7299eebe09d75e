//! `narswarm check`: a verdict for each narinfo file, the one that guix would give, and stricter
//! only where guix would throw or take a size on nobody's word; or, for narinfos of Nix's, Nix's.

use crate::acl;
use crate::dialect::Dialect;
use anyhow::Context as _;
use clap::Args;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::UnverifiedNarinfo;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `narswarm check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// File with the keys whose signatures are believed: Guix's ACL, one `(public-key …)`,
    /// or Nix's trusted keys [default: /etc/guix/acl, else the keys of Guix's build farms]. Repeatable.
    #[arg(long = "acl", env = "NARSWARM_ACL", value_delimiter = ':', value_name = "FILE")]
    pub acls: Vec<PathBuf>,
    /// Narinfo files.
    #[arg(required = true, value_name = "NARINFO")]
    pub narinfos: Vec<PathBuf>,
}

/// Writes `FILE: valid KEY` or `FILE: refused REASON` for each file; succeeds if all are valid.
///
/// # Errors
/// If the keys can't be read or used, before any verdict, or if `out` can't be written.
pub fn run(args: CheckArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let loaded = acl::load(&args.acls, Dialect::Guix)?;
    for skipped in &loaded.skipped {
        eprintln!("narswarm: {skipped}");
    }
    let mut code = ExitCode::SUCCESS;
    for path in &args.narinfos {
        let verdict = match judge(path, &loaded.acl) {
            Ok(key) => format!("valid {key}"),
            Err(reason) => {
                code = ExitCode::FAILURE;
                format!("refused {reason}")
            }
        };
        writeln!(out, "{}: {verdict}", path.display()).context("can't write the verdicts")?;
    }
    out.flush().context("can't write the verdicts")?;
    Ok(code)
}

/// The name of the key that signed the narinfo, or a word and a sentence on why it is refused.
fn judge(path: &Path, acl: &Acl) -> Result<String, String> {
    let bytes = acl::read_bounded(path, limits::MAX_NARINFO_BYTES)
        .map_err(|error| format!("unreadable: {error}"))?;
    let narinfo =
        UnverifiedNarinfo::parse(&bytes).map_err(|error| format!("malformed: {error}"))?;
    let narinfo =
        narinfo.verify(acl).map_err(|refusal| format!("{}: {refusal}", refusal.kind()))?;
    Ok(narinfo.signer().name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::hash::NarHash;
    use narswarm_protocol::narinfo::{Compression, Draft, NarSource};
    use narswarm_protocol::signature::SigningKey;
    use narswarm_protocol::store_path::StorePath;
    use std::fs;

    fn narinfo(key: &SigningKey) -> Vec<u8> {
        let path = b"/gnu/store/zab5qqb146vi73jmxl23i3ygcy7lsrps-hello-2.12.1";
        let group = NarSource {
            url: "nar/hello".to_owned(),
            compression: Compression::None,
            file_size: None,
        };
        let draft = Draft {
            store_path: StorePath::parse(path).expect("path"),
            nar_hash: NarHash([7; 32]),
            nar_size: 1,
            references: vec![],
            system: None,
            deriver: None,
        };
        draft.sign(key, "example.org", &[group]).expect("narinfo")
    }

    #[test]
    fn the_arguments_fit_together() {
        CheckArgs::augment_args(clap::Command::new("check")).debug_assert();
    }

    #[test]
    fn every_file_gets_its_line_and_one_bad_file_fails() {
        let folder = tempfile::tempdir().expect("folder");
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).expect("file");
            path
        };
        let (ours, theirs) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let acls = vec![file("key.pub", ours.public_key_sexp().as_bytes())];
        let good = file("good.narinfo", &narinfo(&ours));
        let unauthorised = file("unauthorised.narinfo", &narinfo(&theirs));
        let malformed = file("malformed.narinfo", b"hello\n");
        let missing = folder.path().join("missing.narinfo");

        let check = |narinfos: &[&PathBuf]| {
            let mut out = Vec::new();
            let narinfos = narinfos.iter().map(|&path| path.clone()).collect();
            let code = run(CheckArgs { acls: acls.clone(), narinfos }, &mut out).expect("verdicts");
            (code, String::from_utf8(out).expect("text"))
        };
        let (code, text) = check(&[&good]);
        assert_eq!(code, ExitCode::SUCCESS);
        let id = ours.public_key().id();
        assert_eq!(text, format!("{}: valid {id}\n", good.display()));

        let (code, text) = check(&[&unauthorised, &malformed, &missing, &good]);
        assert_eq!(code, ExitCode::FAILURE);
        let lines: Vec<&str> = text.lines().collect();
        let begins = |line: &str, path: &Path, verdict: &str| {
            let expected = format!("{}: {verdict}", path.display());
            assert!(line.starts_with(&expected), "{line} does not begin with {expected}");
        };
        assert_eq!(lines.len(), 4);
        begins(lines[0], &unauthorised, "refused unauthorized-key: ");
        begins(lines[1], &malformed, "refused malformed: ");
        begins(lines[2], &missing, "refused unreadable: ");
        begins(lines[3], &good, "valid ");
    }

    #[test]
    fn a_key_that_must_not_be_used_stops_it_and_names_the_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("identity.pub");
        let identity = format!("(public-key (ecc (curve Ed25519) (q #01{}#)))", "00".repeat(31));
        fs::write(&path, identity).expect("file");
        let mut out = Vec::new();
        let args = CheckArgs { acls: vec![path.clone()], narinfos: vec![path.clone()] };
        let error = run(args, &mut out).expect_err("the neutral element");
        let text = format!("{error:#}");
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains("neutral element"), "{text}");
        assert!(out.is_empty());
    }
}
