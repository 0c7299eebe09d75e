//! Whose signatures are believed: the files that say so, and what holds when there are none.
//!
//! Files that are named are all used, and nothing else is. When none is named, it is the system's own
//! list, Guix's or Nix's, and on a machine without it the keys that Guix or Nix comes with. A file
//! that is there but can't be read, or that holds a key which must not be used, is an error and never
//! a reason to fall back: believing other keys than the administrator chose is worse than not
//! starting. What a `nix.conf` includes belongs to it (`include.rs`). While a node runs, the files
//! are watched (`watch.rs`).

mod include;
mod watch;

pub use include::IncludeLimit;
use include::Reading;
pub use watch::{Reload, watch};

use crate::dialect::Dialect;
use narswarm_protocol::acl::{Acl, AclError, SkippedEntry};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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
    /// The file includes more than is read.
    #[error("can't use the keys in {}", path.display())]
    Include {
        /// Which file.
        path: PathBuf,
        /// What there is too much of.
        #[source]
        limit: IncludeLimit,
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

/// The files that say whose signatures are believed.
#[derive(Debug, Clone)]
pub struct AclFiles {
    named: Vec<PathBuf>,
    system: PathBuf,
    dialect: Dialect,
}

impl AclFiles {
    /// Those that are named; if none is, the system's.
    #[must_use]
    pub fn new(named: Vec<PathBuf>, dialect: Dialect) -> Self {
        Self { named, system: dialect.keys_file().to_owned(), dialect }
    }

    /// Those that count.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        if self.named.is_empty() { std::slice::from_ref(&self.system) } else { &self.named }
    }

    /// Reads the keys of all files. When none is named and the system has none, takes those that
    /// Guix or Nix comes with.
    ///
    /// # Errors
    /// See [`AclFileError`].
    pub fn load(&self) -> Result<LoadedAcl, AclFileError> {
        self.understand(self.read())
    }

    /// What each of the files says.
    fn read(&self) -> Vec<Reading> {
        self.paths().iter().map(|path| include::read(path)).collect()
    }

    fn understand(&self, readings: Vec<Reading>) -> Result<LoadedAcl, AclFileError> {
        let mut loaded = LoadedAcl { acl: Acl::default(), files: vec![], skipped: vec![] };
        for (path, reading) in self.paths().iter().zip(readings) {
            let mut bytes = match reading.text {
                // The file itself, not one that it includes.
                Err(AclFileError::Read { path: missing, source })
                    if self.named.is_empty()
                        && missing == *path
                        && source.kind() == io::ErrorKind::NotFound =>
                {
                    loaded.acl.merge(self.dialect.built_in_keys());
                    continue;
                }
                text => text?,
            };
            if self.named.is_empty() {
                bytes.splice(..0, self.dialect.implied_keys().into_bytes());
            }
            let acl = Acl::parse(&bytes)
                .map_err(|source| AclFileError::Keys { path: path.clone(), source })?;
            let skipped = acl.skipped().iter().cloned();
            loaded.skipped.extend(skipped.map(|entry| SkippedKey { path: path.clone(), entry }));
            loaded.acl.merge(acl);
            loaded.files.push(path.clone());
        }
        Ok(loaded)
    }
}

/// Reads the keys of `files`, or the system's; see [`AclFiles::load`].
///
/// # Errors
/// See [`AclFileError`].
pub fn load(files: &[PathBuf], dialect: Dialect) -> Result<LoadedAcl, AclFileError> {
    AclFiles::new(files.to_vec(), dialect).load()
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
    use narswarm_protocol::acl::NixSigningKey;
    use narswarm_protocol::signature::SigningKey;
    use std::error::Error as _;
    use std::fs;

    fn load_or_system(named: &[PathBuf], system: &Path) -> Result<LoadedAcl, AclFileError> {
        let (named, system) = (named.to_vec(), system.to_owned());
        AclFiles { named, system, dialect: Dialect::Guix }.load()
    }

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
    fn nixs_configuration_adds_to_its_own_key_or_replaces_it() {
        let folder = tempfile::tempdir().expect("folder");
        let conf = folder.path().join("nix.conf");
        let key = NixSigningKey::from_seed("ours-1", [1; 32]).expect("a name").public_key();
        let loaded = |text: Option<String>| {
            let _ = fs::remove_file(&conf);
            if let Some(text) = text {
                fs::write(&conf, text).expect("file");
            }
            let files = AclFiles { named: vec![], system: conf.clone(), dialect: Dialect::Nix };
            let acl = files.load().expect("keys").acl;
            acl.nix_keys().map(|key| key.name().to_owned()).collect::<Vec<_>>()
        };
        let built_in = "cache.nixos.org-1";
        assert_eq!(loaded(None), [built_in]);
        assert_eq!(loaded(Some("sandbox = true\n".to_owned())), [built_in]);
        let extra = format!("extra-trusted-public-keys = {key}\n");
        assert_eq!(loaded(Some(extra)), [built_in, "ours-1"]);
        assert_eq!(loaded(Some(format!("trusted-public-keys = {key}\n"))), ["ours-1"]);
        fs::write(folder.path().join("more.conf"), format!("extra-trusted-public-keys = {key}\n"))
            .expect("file");
        assert_eq!(loaded(Some("include more.conf\n".to_owned())), [built_in, "ours-1"]);
        assert_eq!(loaded(Some("!include gone.conf\n".to_owned())), [built_in]);
        fs::write(&conf, "include gone.conf\n").expect("file");
        let files = AclFiles { named: vec![], system: conf.clone(), dialect: Dialect::Nix };
        let error = files.load().map(|_| ()).expect_err("never a reason to fall back");
        assert!(error.to_string().contains("gone.conf"), "{error}");
        // Named, the file counts as it stands.
        fs::write(&conf, format!("extra-trusted-public-keys = {key}\n")).expect("file");
        let named = load(std::slice::from_ref(&conf), Dialect::Nix).expect("keys");
        assert_eq!(named.acl.len(), 1);
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
