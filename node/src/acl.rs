//! Whose signatures are believed: the files that say so, and what holds when there are none.
//!
//! Files that are named are all used, and nothing else is. When none is named, it is Guix's own
//! list, and on a machine without Guix the keys of Guix's build farms. A file that is there but
//! can't be read, or that holds a key which must not be used, is an error and never a reason to
//! fall back: believing other keys than the administrator chose is worse than not starting.

use narswarm_protocol::acl::{Acl, AclError, SkippedEntry};
use narswarm_protocol::limits;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where Guix keeps its list (`guix/pki.scm`, `%acl-file`).
pub const SYSTEM_ACL: &str = "/etc/guix/acl";

/// Why it isn't known whose signatures are believed. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum AclFileError {
    /// The file can't be read.
    #[error("can't read the keys in {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file holds no list of keys, or a key that must not be used.
    #[error("can't use the keys in {}", path.display())]
    Keys {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: AclError,
    },
}

/// The keys that are believed, and where they come from.
#[derive(Debug, Clone)]
pub struct LoadedAcl {
    /// The keys.
    pub acl: Acl,
    /// The files they were read from; none if they are the built-in keys of Guix's build farms.
    pub files: Vec<PathBuf>,
    /// Entries that were passed over, for the log.
    pub skipped: Vec<SkippedKey>,
}

/// An entry of a file that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedKey {
    /// Which file.
    pub path: PathBuf,
    /// Which entry of it, and why.
    pub entry: SkippedEntry,
}

impl std::fmt::Display for SkippedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, entry) = (self.path.display(), &self.entry);
        write!(f, "{path}: entry {} is not used: {}", entry.number, entry.reason)
    }
}

/// Reads the keys of all `files`; if none is named, those of [`SYSTEM_ACL`]; if that doesn't exist
/// either, takes [`Acl::guix_build_farms`].
///
/// # Errors
/// See [`AclFileError`].
pub fn load(files: &[PathBuf]) -> Result<LoadedAcl, AclFileError> {
    load_or_system(files, Path::new(SYSTEM_ACL))
}

fn load_or_system(files: &[PathBuf], system: &Path) -> Result<LoadedAcl, AclFileError> {
    if !files.is_empty() {
        return load_files(files);
    }
    match load_files(&[system.to_owned()]) {
        Err(AclFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(LoadedAcl { acl: Acl::guix_build_farms(), files: vec![], skipped: vec![] })
        }
        loaded => loaded,
    }
}

fn load_files(files: &[PathBuf]) -> Result<LoadedAcl, AclFileError> {
    let mut loaded = LoadedAcl { acl: Acl::default(), files: files.to_vec(), skipped: vec![] };
    for path in files {
        let bytes = read_bounded(path, limits::MAX_SEXP_BYTES)
            .map_err(|source| AclFileError::Read { path: path.clone(), source })?;
        let acl = Acl::parse(&bytes)
            .map_err(|source| AclFileError::Keys { path: path.clone(), source })?;
        let skipped = acl.skipped().iter().cloned();
        loaded.skipped.extend(skipped.map(|entry| SkippedKey { path: path.clone(), entry }));
        loaded.acl.merge(acl);
    }
    Ok(loaded)
}

/// Reads a file, stopping one octet beyond `limit`, so that whoever parses it sees that it is too
/// large.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::signature::SigningKey;
    use std::error::Error as _;
    use std::fs;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed([seed; 32])
    }

    fn list(keys: &[&str]) -> String {
        let entries: String =
            keys.iter().map(|key| format!("(entry {key} (tag (guix import)))")).collect();
        format!("(acl {entries})")
    }

    #[test]
    fn named_files_are_all_used_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("file");
            path
        };
        let single = file("single.pub", &key(1).public_key_sexp());
        let rsa = "(public-key (rsa (n #00DB#) (e #010001#)))";
        let several = file("acl", &list(&[rsa, &key(2).public_key_sexp()]));
        let system = file("system", &list(&[&key(3).public_key_sexp()]));

        let loaded =
            load_or_system(&[single.clone(), several.clone()], &system).expect("both files");
        let expected = [key(1), key(2)].map(|key| key.public_key().clone());
        assert!(expected.iter().all(|key| loaded.acl.contains(key)));
        assert_eq!(loaded.acl.len(), 2);
        assert_eq!(loaded.files, [single, several.clone()]);
        let skipped: Vec<String> = loaded.skipped.iter().map(ToString::to_string).collect();
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].starts_with(&format!("{}: entry 1 ", several.display())), "{skipped:?}");

        let loaded = load_or_system(&[], &system).expect("the system's list");
        assert!(loaded.acl.contains(key(3).public_key()));
        assert_eq!((loaded.acl.len(), loaded.files), (1, vec![system]));
    }

    #[test]
    fn without_any_file_the_build_farms_are_believed() {
        let folder = tempfile::tempdir().expect("folder");
        let loaded = load_or_system(&[], &folder.path().join("acl")).expect("built-in keys");
        assert_eq!(loaded.acl, Acl::guix_build_farms());
        assert!(loaded.files.is_empty());
    }

    #[test]
    fn a_bad_file_is_named_and_never_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("acl");
        fs::write(&path, list(&["(public-key (ecc (curve Ed25519) (q #00#)))"])).expect("file");
        for error in
            [load_or_system(&[], &path), load_or_system(std::slice::from_ref(&path), &path)]
        {
            let error = error.map(|_| ()).expect_err("a key of one octet");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            assert!(error.source().is_some_and(|e| e.to_string().contains("instead of 32")));
        }
        let empty = load_or_system(&[], folder.path()).map(|_| ()).expect_err("a folder");
        assert!(matches!(empty, AclFileError::Read { .. }), "{empty}");
        let missing = folder.path().join("missing");
        let error = load_or_system(&[missing], &path).map(|_| ()).expect_err("named but missing");
        assert!(matches!(error, AclFileError::Read { .. }), "{error}");
        fs::write(&path, "(acl)").expect("file");
        let nobody = load_or_system(&[], &path).expect("an empty list is a list");
        assert!(nobody.acl.is_empty(), "whoever believes nobody gets nobody");
    }
}
