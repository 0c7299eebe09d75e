//! Real and hostile samples that lie beside the repository: a substitute server written by real
//! Guix, and narinfos with the verdict that each must get.
//!
//! They are in the folder `shared` beside the repository's checkout, or where
//! `NARSWARM_SHARED_VECTORS` names the folder of vectors. Elsewhere the tests that need them say
//! loudly that they didn't run, and under continuous integration (`CI` is set) they fail.

use std::path::{Path, PathBuf};

/// The folder with `EXPECTED.tsv`.
#[must_use]
pub fn vectors() -> Option<PathBuf> {
    found(folder(), "EXPECTED.tsv")
}

/// The folder that real Guix has written.
#[must_use]
pub fn substitute_server() -> Option<PathBuf> {
    found(folder().join("../substitute-server"), "signing-key.pub")
}

fn folder() -> PathBuf {
    std::env::var_os("NARSWARM_SHARED_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"),
        PathBuf::from,
    )
}

fn found(place: PathBuf, witness: &str) -> Option<PathBuf> {
    if place.join(witness).is_file() {
        return Some(place);
    }
    not_tested(&format!("{} is not there; set NARSWARM_SHARED_VECTORS", place.display()));
    None
}

/// Says that something wasn't tested, and why.
///
/// # Panics
/// Under continuous integration, where everything must be tested.
pub fn not_tested(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "not tested, but must be: {why}");
    eprintln!("NOT TESTED: {why}");
}
