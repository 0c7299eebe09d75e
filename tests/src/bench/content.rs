//! Large nars for transfer benchmarks, made on the spot and never held in memory.

use crate::harness::mirror::Mirror;
use anyhow::Context;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::nar::{Event, Writer};
use narswarm_protocol::narinfo::{Compression, Draft, NarSource};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Octets that are made at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Length of the runs of noise and of zeros in typical content: short enough that a decoder has
/// as many sequences to follow as in programs and libraries.
const RUN_BYTES: usize = 64;

/// What a nar holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// Noise: no compressor gains anything.
    Incompressible,
    /// Noise and zeros in short runs: compresses two to one, like many packages.
    Typical,
    /// The octets of a file, over and over.
    Real(PathBuf),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Incompressible => "incompressible",
            Self::Typical => "typical",
            Self::Real(_) => "real",
        })
    }
}

/// One item of a mirror, whose nar lies there uncompressed.
#[derive(Debug, Clone)]
pub struct LargeItem {
    /// `HASH-NAME`.
    pub item: String,
    /// Octets of its nar.
    pub nar_bytes: u64,
    /// The nar's file.
    pub file: PathBuf,
}

impl LargeItem {
    /// `/HASH.narinfo`
    #[must_use]
    pub fn narinfo_path(&self) -> String {
        format!("/{}.narinfo", &self.item[..32])
    }

    /// `/nar/ITEM`
    #[must_use]
    pub fn nar_path(&self) -> String {
        format!("/nar/{}", self.item)
    }

    /// `/nar/zstd/ITEM`
    #[must_use]
    pub fn zstd_path(&self) -> String {
        format!("/nar/zstd/{}", self.item)
    }
}

/// Adds an item of one file with `size` octets of content to a mirror; blocking.
///
/// # Errors
/// What the file system says.
pub fn add(mirror: &Mirror, name: &str, kind: &Kind, size: u64) -> anyhow::Result<LargeItem> {
    let store_path = mirror.store_path(name);
    let item = store_path.item().to_string();
    let url = format!("nar/{item}");
    let file = mirror.root().join(&url);
    let (nar_hash, nar_size) =
        write_nar(&file, kind, size).with_context(|| format!("cannot write {}", file.display()))?;
    let draft = Draft {
        store_path,
        nar_hash,
        nar_size,
        references: Vec::new(),
        system: Some("x86_64-linux".to_owned()),
        deriver: None,
    };
    let source = NarSource { url, compression: Compression::None, file_size: Some(nar_size) };
    let narinfo = mirror.sign(&draft, &[source]);
    fs::write(mirror.root().join(format!("{}.narinfo", &item[..32])), narinfo)?;
    Ok(LargeItem { item, nar_bytes: nar_size, file })
}

/// So many octets of a kind, in memory.
///
/// # Errors
/// When a file of which it is to be made can't be read.
pub fn octets(kind: &Kind, size: u64) -> anyhow::Result<Vec<u8>> {
    let mut octets = vec![0; usize::try_from(size)?];
    let mut source = Source::new(kind)?;
    octets.chunks_mut(CHUNK_BYTES).for_each(|chunk| source.fill(chunk));
    Ok(octets)
}

fn write_nar(path: &Path, kind: &Kind, size: u64) -> anyhow::Result<(NarHash, u64)> {
    let mut file = BufWriter::with_capacity(CHUNK_BYTES, File::create(path)?);
    let (mut hasher, mut written, mut trouble) = (Sha256::new(), 0, None);
    let mut sink = |octets: &[u8]| {
        hasher.update(octets);
        written += octets.len() as u64;
        if let Err(error) = file.write_all(octets) {
            trouble.get_or_insert(error);
        }
    };
    let mut nar = Writer::new();
    let mut source = Source::new(kind)?;
    nar.write(Event::File { executable: false, size }, &mut sink)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = size;
    while left > 0 {
        let part = left.min(CHUNK_BYTES as u64);
        source.fill(&mut chunk);
        // At most the chunk's length.
        nar.write(Event::Contents(&chunk[..part as usize]), &mut sink)?;
        left -= part;
    }
    nar.write(Event::FileEnd, &mut sink)?;
    nar.finish()?;
    if let Some(error) = trouble {
        return Err(error.into());
    }
    file.flush()?;
    Ok((NarHash(hasher.finalize().into()), written))
}

/// Where content comes from. The same every time, so that figures can be repeated.
enum Source {
    Noise { random: Box<StdRng>, run: usize },
    File { octets: Vec<u8>, at: usize },
}

impl Source {
    fn new(kind: &Kind) -> anyhow::Result<Self> {
        let random = Box::new(StdRng::seed_from_u64(7));
        Ok(match kind {
            Kind::Incompressible => Self::Noise { random, run: CHUNK_BYTES },
            Kind::Typical => Self::Noise { random, run: RUN_BYTES },
            Kind::Real(path) => {
                let mut octets = Vec::new();
                let file = File::open(path);
                let mut file = file.with_context(|| format!("cannot read {}", path.display()))?;
                file.read_to_end(&mut octets)?;
                anyhow::ensure!(!octets.is_empty(), "{} is empty", path.display());
                Self::File { octets, at: 0 }
            }
        })
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        match self {
            Self::Noise { random, run } => {
                chunk.fill(0);
                for noise in chunk.chunks_mut(*run).step_by(2) {
                    random.fill_bytes(noise);
                }
            }
            Self::File { octets, at } => {
                let mut filled = 0;
                while filled < chunk.len() {
                    let part = (chunk.len() - filled).min(octets.len() - *at);
                    chunk[filled..filled + part].copy_from_slice(&octets[*at..*at + part]);
                    filled += part;
                    *at = (*at + part) % octets.len();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_as_compressible_as_it_says() {
        let compressed = |kind: &Kind| {
            let mut chunk = vec![0; CHUNK_BYTES];
            Source::new(kind).expect("a source").fill(&mut chunk);
            zstd::bulk::compress(&chunk, 3).expect("memory").len() as f64 / CHUNK_BYTES as f64
        };
        assert!(compressed(&Kind::Incompressible) > 0.99);
        assert!((0.48..0.56).contains(&compressed(&Kind::Typical)));
    }

    #[test]
    fn files_are_repeated() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("file");
        fs::write(&file, b"abc").expect("a file");
        let mut chunk = [0; 7];
        Source::new(&Kind::Real(file)).expect("a source").fill(&mut chunk);
        assert_eq!(&chunk, b"abcabca");
    }
}
