//! Many narinfos, as guix asks for them before an upgrade: a thousand in one write, then the next
//! thousand on the same connection.

use crate::harness::http_client::HttpClient;
use crate::harness::mirror::Mirror;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::{Compression, Draft, NarSource};
use narswarm_protocol::store_path::{ItemName, StorePath};
use sha2::{Digest, Sha256};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Requests that guix writes at once (`guix/http-client.scm`, `http-multiple-get`).
const BATCH: usize = 1000;

/// References of the items in turn: from leaves to packages with many inputs, 9 on average.
const REFERENCES: [usize; 8] = [0, 2, 4, 6, 8, 12, 16, 24];

/// Adds narinfos without their nars to a mirror and returns the paths under which they are asked
/// for. They are as long as real ones.
///
/// # Errors
/// What the file system says.
pub fn add(mirror: &Mirror, count: usize) -> anyhow::Result<Vec<String>> {
    let paths: Vec<StorePath> =
        (0..count).map(|number| mirror.store_path(&format!("package-{number:05}-1.2.3"))).collect();
    let mut requests = Vec::with_capacity(count);
    for (number, path) in paths.iter().enumerate() {
        let references: Vec<ItemName> = (0..REFERENCES[number % REFERENCES.len()])
            .map(|other| paths[(number + 37 * other) % count].item().clone())
            .collect();
        let item = path.item().to_string();
        let draft = Draft {
            store_path: path.clone(),
            nar_hash: NarHash(Sha256::digest(&item).into()),
            nar_size: 1_000_000,
            references,
            system: Some("x86_64-linux".to_owned()),
            deriver: None,
        };
        let source = |compression, folder| NarSource {
            url: format!("nar/{folder}/{item}"),
            compression,
            file_size: Some(400_000),
        };
        let sources = [source(Compression::Lzip, "lzip"), source(Compression::Zstd, "zstd")];
        let file = format!("{}.narinfo", &item[..32]);
        fs::write(mirror.root().join(&file), mirror.sign(&draft, &sources))?;
        requests.push(format!("/{file}"));
    }
    Ok(requests)
}

/// Asks for all of them on one new connection, as guix does, and says how long that took, the
/// connection included. Every answer must be a narinfo.
///
/// # Errors
/// What the connection says, and answers that are none.
pub async fn ask(address: SocketAddr, paths: &[String]) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut client = HttpClient::connect(address).await?;
    let mut missing = 0;
    for batch in paths.chunks(BATCH) {
        let burst = client.pipeline(batch).await?;
        missing += burst.replies.iter().filter(|reply| reply.head.status != 200).count();
    }
    let took = start.elapsed();
    anyhow::ensure!(missing == 0, "{missing} of {} narinfos were not given", paths.len());
    Ok(took)
}
