//! Static mirrors with made-up content, signed with a key of their own.

use super::compression;
use super::holding::{Holding, nar_hash};
use bytes::Bytes;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::base32;
use narswarm_protocol::nar::{Event, Writer};
use narswarm_protocol::narinfo::{Compression, Draft, NarSource, UnverifiedNarinfo};
use narswarm_protocol::signature::SigningKey;
use narswarm_protocol::store_path::StorePath;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// The host in its signatures.
const HOST: &str = "mirror.example";

/// A directory that a web server could serve to guix.
pub struct Mirror {
    root: PathBuf,
    key: SigningKey,
    seed: u8,
    holdings: Vec<Holding>,
}

impl Mirror {
    /// An empty mirror in a new directory, whose key and content follow from `seed`.
    #[must_use]
    pub fn create(root: impl Into<PathBuf>, seed: u8) -> Self {
        Self::create_signing(root, seed, seed)
    }

    /// The same with the content of one seed and the key of another.
    #[must_use]
    pub fn create_signing(root: impl Into<PathBuf>, seed: u8, key_seed: u8) -> Self {
        let root = root.into();
        let key = SigningKey::from_seed([key_seed; 32]);
        fs::create_dir_all(root.join("nar")).expect("a new directory");
        fs::write(root.join("signing-key.pub"), key.public_key_sexp()).expect("a file");
        let about = "StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 100\n";
        fs::write(root.join("nix-cache-info"), about).expect("a file");
        Self { root, key, seed, holdings: Vec::new() }
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of its public key, as `--acl` takes it.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.root.join("signing-key.pub")
    }

    /// The list that believes its key and no other.
    #[must_use]
    pub fn acl(&self) -> Acl {
        Acl::parse(self.key.public_key_sexp().as_bytes()).expect("a sound key")
    }

    /// All that was added.
    #[must_use]
    pub fn holdings(&self) -> &[Holding] {
        &self.holdings
    }

    /// Adds an item of one executable file of `size` octets, half noise and half zeros, about as
    /// compressible as real packages, in each of `compressions`.
    pub fn add(&mut self, name: &str, size: usize, compressions: &[Compression]) -> Holding {
        let nar = Bytes::from(nar_of(&self.content(name, size), true));
        let holding = Holding { nar: Some(nar), ..self.draft(name, size, compressions) };
        self.add_nar_of(holding)
    }

    fn add_nar_of(&mut self, holding: Holding) -> Holding {
        for source in holding.narinfo.sources() {
            let file = self.root.join(&source.url);
            fs::create_dir_all(file.parent().expect("a path below the root")).expect("a folder");
            fs::write(file, compression::compress(source.compression, holding.nar()))
                .expect("a file");
        }
        self.add_narinfo_of(holding)
    }

    /// Adds an item at this path, which is a file of this content.
    pub fn add_at(
        &mut self,
        path: StorePath,
        content: &[u8],
        compressions: &[Compression],
    ) -> Holding {
        let nar = Bytes::from(nar_of(content, false));
        let holding = self.draft_at(path, &nar, compressions);
        self.add_nar_of(Holding { nar: Some(nar), ..holding })
    }

    /// Adds the narinfo of an item whose nar is missing.
    pub fn add_narinfo(&mut self, name: &str) -> Holding {
        let holding = self.draft(name, 100, &[Compression::Zstd]);
        self.add_narinfo_of(holding)
    }

    fn add_narinfo_of(&mut self, holding: Holding) -> Holding {
        let file = self.root.join(&holding.narinfo_path()[1..]);
        fs::write(file, holding.narinfo.original()).expect("a file");
        self.holdings.push(holding.clone());
        holding
    }

    /// An item's narinfo, whose nar isn't in the mirror.
    #[must_use]
    pub fn draft(&self, name: &str, size: usize, compressions: &[Compression]) -> Holding {
        let nar = nar_of(&self.content(name, size), true);
        self.draft_at(self.store_path(name), &nar, compressions)
    }

    fn draft_at(&self, path: StorePath, nar: &[u8], compressions: &[Compression]) -> Holding {
        let item = path.item().to_string();
        let draft = Draft {
            store_path: path,
            nar_hash: nar_hash(nar),
            nar_size: nar.len() as u64,
            references: Vec::new(),
            system: Some("x86_64-linux".to_owned()),
            deriver: None,
        };
        let groups: Vec<_> = compressions.iter().map(|&c| source(c, &item)).collect();
        let text = self.sign(&draft, &groups);
        let narinfo = UnverifiedNarinfo::parse(&text).expect("our own narinfo");
        let narinfo = narinfo.verify(&self.acl()).expect("our own signature");
        Holding { narinfo, nar: None }
    }

    /// A narinfo signed with this mirror's key.
    #[must_use]
    pub fn sign(&self, draft: &Draft, groups: &[NarSource]) -> Vec<u8> {
        draft.sign(&self.key, HOST, groups).expect("a sound draft")
    }

    /// The key, for signing odd texts.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Where an item of this name would be in the store.
    #[must_use]
    pub fn store_path(&self, name: &str) -> StorePath {
        let digest = Sha256::new().chain_update([self.seed]).chain_update(name).finalize();
        let hash = base32::encode(&digest[..20]);
        StorePath::parse(format!("/gnu/store/{hash}-{name}").as_bytes()).expect("a sound name")
    }

    /// What is in an item of this name and size.
    #[must_use]
    pub fn content(&self, name: &str, size: usize) -> Vec<u8> {
        let digest = Sha256::new().chain_update(name).chain_update([self.seed]).finalize();
        let mut random = StdRng::from_seed(digest.into());
        let mut content = vec![0; size];
        for noise in content.chunks_mut(4096).step_by(2) {
            random.fill_bytes(noise);
        }
        content
    }
}

/// Where a mirror keeps a nar, as `guix publish` has it.
fn source(compression: Compression, item: &str) -> NarSource {
    let url = match compression {
        Compression::None => format!("nar/{item}"),
        other => format!("nar/{other}/{item}"),
    };
    NarSource { url, compression, file_size: None }
}

/// The nar of one file.
fn nar_of(content: &[u8], executable: bool) -> Vec<u8> {
    let mut nar = Vec::with_capacity(content.len() + 256);
    let mut writer = Writer::new();
    let begin = Event::File { executable, size: content.len() as u64 };
    for event in [begin, Event::Contents(content), Event::FileEnd] {
        let mut sink = |octets: &[u8]| nar.extend_from_slice(octets);
        writer.write(event, &mut sink).expect("a file is a tree");
    }
    writer.finish().expect("a whole tree");
    nar
}
