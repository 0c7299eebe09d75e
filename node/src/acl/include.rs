//! The `include` lines of a `nix.conf`: what they name stands in their place (`nix.conf(5)`;
//! `libutil/config.cc`, `applyConfig`). Relative names are relative to the file that names them;
//! `!include` passes over a file that isn't there. Nix follows them without a bound; here there are
//! some, and a file beyond them is an error, as keys would be missing.

use super::{AclFileError, read_bounded};
use narswarm_protocol::acl::NixInclude;
use narswarm_protocol::limits;
use std::io;
use std::path::{Path, PathBuf};

/// Why includes are followed no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IncludeLimit {
    /// A file includes one that includes one, and so on; or itself.
    #[error("includes are nested more than {} deep", limits::MAX_NIX_INCLUDE_DEPTH)]
    Depth,
    /// Too many files.
    #[error("there are more than {} includes", limits::MAX_NIX_INCLUDES)]
    Files,
    /// Too much text.
    #[error("with its includes it has more than {} octets", limits::MAX_SEXP_BYTES)]
    Octets,
}

/// A file with keys, read.
#[derive(Debug)]
pub(super) struct Reading {
    /// What it says, includes in their places.
    pub text: Result<Vec<u8>, AclFileError>,
    /// The files that it includes, those that aren't there among them.
    pub included: Vec<PathBuf>,
}

/// Reads a file, and what it includes if it is a `nix.conf`.
pub(super) fn read(path: &Path) -> Reading {
    let mut reader = Reader { root: path, text: Vec::new(), included: Vec::new() };
    let read = reader.root();
    let Reader { text, included, .. } = reader;
    Reading { text: read.map(|()| text), included }
}

struct Reader<'a> {
    root: &'a Path,
    text: Vec<u8>,
    included: Vec<PathBuf>,
}

impl Reader<'_> {
    fn root(&mut self) -> Result<(), AclFileError> {
        let bytes = read_file(self.root)?;
        let is_sexp = bytes.trim_ascii_start().starts_with(b"(");
        // What is too large, whoever parses it finds out.
        if is_sexp || bytes.len() > limits::MAX_SEXP_BYTES {
            self.text = bytes;
            return Ok(());
        }
        self.follow(self.root, &bytes, 0)
    }

    /// Takes over the lines of a file, and what they include.
    fn follow(&mut self, path: &Path, bytes: &[u8], depth: usize) -> Result<(), AclFileError> {
        for line in bytes.split_inclusive(|&octet| octet == b'\n') {
            let include = std::str::from_utf8(line).ok().and_then(NixInclude::of_line);
            match include {
                Some(include) => self.include(path, include, depth + 1)?,
                None if self.text.len() + line.len() > limits::MAX_SEXP_BYTES => {
                    return Err(self.limit(IncludeLimit::Octets));
                }
                None => self.text.extend_from_slice(line),
            }
        }
        Ok(())
    }

    fn include(
        &mut self,
        from: &Path,
        include: NixInclude,
        depth: usize,
    ) -> Result<(), AclFileError> {
        if depth > limits::MAX_NIX_INCLUDE_DEPTH {
            return Err(self.limit(IncludeLimit::Depth));
        }
        if self.included.len() >= limits::MAX_NIX_INCLUDES {
            return Err(self.limit(IncludeLimit::Files));
        }
        let path = from.parent().unwrap_or(Path::new("/")).join(include.path);
        self.included.push(path.clone());
        let bytes = match read_file(&path) {
            Err(AclFileError::Read { source, .. })
                if include.may_be_missing && source.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(());
            }
            read => read?,
        };
        // So that no text begins with that of another file, which may be of another kind, and none
        // goes on in its last line.
        self.text.extend_from_slice(b"#\n");
        self.follow(&path, &bytes, depth)?;
        self.text.push(b'\n');
        Ok(())
    }

    fn limit(&self, limit: IncludeLimit) -> AclFileError {
        AclFileError::Include { path: self.root.to_owned(), limit }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, AclFileError> {
    let read = read_bounded(path, limits::MAX_SEXP_BYTES);
    read.map_err(|source| AclFileError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            for (name, text) in files {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().expect("below the folder")).expect("folder");
                fs::write(path, text).expect("file");
            }
            Self(folder)
        }

        /// The lines that count.
        fn lines(&self) -> Result<Vec<String>, AclFileError> {
            let text = read(&self.0.path().join("nix.conf")).text?;
            let text = String::from_utf8(text).expect("text");
            let lines = text.lines().filter(|line| !matches!(*line, "" | "#"));
            Ok(lines.map(str::to_owned).collect())
        }

        fn limit(&self) -> IncludeLimit {
            match self.lines() {
                Err(AclFileError::Include { limit, .. }) => limit,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_included_stands_in_its_place() {
        let folder = Folder::with(&[
            ("nix.conf", "a = 1\ninclude sub/more.conf # why\n!include missing\nd = 4"),
            ("sub/more.conf", "b = 2\n!include other.conf"),
            ("sub/other.conf", "c = 3"),
        ]);
        assert_eq!(folder.lines().expect("text"), ["a = 1", "b = 2", "c = 3", "d = 4"]);
        let included = read(&folder.0.path().join("nix.conf")).included;
        let expected = ["sub/more.conf", "sub/other.conf", "missing"];
        assert_eq!(included, expected.map(|name| folder.0.path().join(name)));
    }

    #[test]
    fn what_must_be_there_and_is_not_is_an_error_that_names_it() {
        let folder = Folder::with(&[("nix.conf", "include gone.conf\n")]);
        let error = folder.lines().expect_err("it isn't there");
        assert!(error.to_string().contains("gone.conf"), "{error}");
        // Nor may what is there but can't be read be passed over.
        let folder = Folder::with(&[("nix.conf", "!include sub\n"), ("sub/file", "")]);
        assert!(folder.lines().is_err());
    }

    #[test]
    fn nesting_number_and_size_are_bounded() {
        let itself = Folder::with(&[("nix.conf", "include nix.conf\n")]);
        assert_eq!(itself.limit(), IncludeLimit::Depth);
        let line = "include empty\n";
        let most = line.repeat(limits::MAX_NIX_INCLUDES);
        let many = Folder::with(&[("nix.conf", &most), ("empty", "")]);
        assert_eq!(many.lines().expect("just so many"), Vec::<String>::new());
        let many = Folder::with(&[("nix.conf", &(most + line)), ("empty", "")]);
        assert_eq!(many.limit(), IncludeLimit::Files);
        let half = format!("# {}\n", "x".repeat(limits::MAX_SEXP_BYTES / 2));
        let large = Folder::with(&[("nix.conf", &"include half\n".repeat(2)), ("half", &half)]);
        assert_eq!(large.limit(), IncludeLimit::Octets);
    }

    #[test]
    fn a_list_of_guixs_includes_nothing() {
        let folder = Folder::with(&[("nix.conf", " (acl\ninclude other\n)"), ("other", "x")]);
        assert_eq!(folder.lines().expect("text"), [" (acl", "include other", ")"]);
        // And what is included can't turn the whole into one.
        let folder = Folder::with(&[("nix.conf", "include acl\n"), ("acl", "(acl)")]);
        let text = read(&folder.0.path().join("nix.conf")).text.expect("text");
        assert!(narswarm_protocol::acl::Acl::parse(&text).is_err());
    }
}
