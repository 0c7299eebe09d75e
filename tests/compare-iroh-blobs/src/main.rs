//! iroh-blobs as the other side of narswarm's transfer benchmark (`bench-transfer --iroh PROGRAM`).
//!
//! One process provides files, another gets one of them, over QUIC on loopback: no relay, no
//! discovery, no port mapping, nothing that leaves the machine. The connection is made before the
//! clock starts, so that what is measured is the transfer. It talks in lines of JSON on stdout and
//! is steered by stdin: a process ends when its stdin does.

use anyhow::{Context, ensure};
use bao_tree::io::BaoContentItem;
use clap::Parser;
use futures::StreamExt;
use iroh::endpoint::{Connection, RelayMode, presets};
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, EndpointId};
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::{AddPathOptions, ImportMode};
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::request::{GetBlobItem, get_blob};
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::mem::MemStore;
use iroh_blobs::{BlobFormat, BlobsProtocol, Hash, HashAndFormat};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Debug, Parser)]
#[command(version, about)]
enum Command {
    /// Holds files and hands them out until stdin ends.
    Provide {
        /// Where the store is made. The files themselves are served from where they lie.
        #[arg(long)]
        store: PathBuf,
        /// Keep the files in memory instead.
        #[arg(long)]
        memory: bool,
        files: Vec<PathBuf>,
    },
    /// Connects, says so, and gets one blob when a line comes on stdin.
    Get {
        #[arg(long)]
        id: EndpointId,
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        hash: Hash,
        /// Take the blob into a new store here; otherwise it is verified and dropped.
        #[arg(long)]
        store: Option<PathBuf>,
    },
}

/// What a transfer took.
struct Took {
    first_byte: Duration,
    whole: Duration,
    bytes: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Provide { store, memory, files } => provide(store, memory, files).await,
        Command::Get { id, address, hash, store } => get(id, address, hash, store).await,
    }
}

/// An endpoint that knows of nothing but its own loopback socket.
async fn endpoint() -> anyhow::Result<Endpoint> {
    let endpoint = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")?
        .bind()
        .await?;
    Ok(endpoint)
}

async fn provide(place: PathBuf, memory: bool, files: Vec<PathBuf>) -> anyhow::Result<()> {
    let store: Store =
        if memory { MemStore::new().into() } else { FsStore::load(place).await?.into() };
    let mut hashes = Vec::new();
    for path in files {
        let path = std::path::absolute(path)?;
        let mode = ImportMode::TryReference;
        let options = AddPathOptions { path, format: BlobFormat::Raw, mode };
        let tag = store.blobs().add_path_with_opts(options).with_tag().await?;
        hashes.push(tag.hash.to_string());
    }
    let endpoint = endpoint().await?;
    let address = endpoint.bound_sockets().first().copied().context("bound to nothing")?;
    let id = endpoint.id().to_string();
    let router = Router::builder(endpoint)
        .accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, None))
        .spawn();
    println!("{}", json!({"id": id, "address": address.to_string(), "hashes": hashes}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {}
    router.shutdown().await?;
    Ok(())
}

async fn get(
    id: EndpointId,
    address: SocketAddr,
    hash: Hash,
    place: Option<PathBuf>,
) -> anyhow::Result<()> {
    let store = match place {
        Some(place) => Some(FsStore::load(place).await?),
        None => None,
    };
    let endpoint = endpoint().await?;
    let provider = EndpointAddr::new(id).with_ip_addr(address);
    let connection = endpoint.connect(provider, iroh_blobs::ALPN).await?;
    println!("{}", json!({"connected": true}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    lines.next_line().await?.context("told to end before the transfer")?;
    let took = match &store {
        Some(store) => into_store(store, connection.clone(), hash).await?,
        None => verified_and_dropped(connection.clone(), hash).await?,
    };
    println!(
        "{}",
        json!({
            "bytes": took.bytes,
            "first_byte_s": took.first_byte.as_secs_f64(),
            "whole_s": took.whole.as_secs_f64(),
        })
    );
    while lines.next_line().await?.is_some() {}
    connection.close(0_u32.into(), b"done");
    endpoint.close().await;
    Ok(())
}

async fn verified_and_dropped(connection: Connection, hash: Hash) -> anyhow::Result<Took> {
    let start = Instant::now();
    let (mut first_byte, mut bytes) = (None, 0);
    let mut items = get_blob(connection, hash);
    while let Some(item) = items.next().await {
        match item {
            GetBlobItem::Item(item) => {
                if let BaoContentItem::Leaf(leaf) = item {
                    first_byte.get_or_insert_with(|| start.elapsed());
                    bytes += leaf.data.len() as u64;
                }
            }
            GetBlobItem::Done(_) => {
                let first_byte = first_byte.context("an empty blob")?;
                return Ok(Took { first_byte, whole: start.elapsed(), bytes });
            }
            GetBlobItem::Error(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the blob ended unannounced")
}

async fn into_store(store: &FsStore, connection: Connection, hash: Hash) -> anyhow::Result<Took> {
    let start = Instant::now();
    let (mut first_byte, mut bytes) = (None, 0);
    let mut items = store.remote().fetch(connection, HashAndFormat::raw(hash)).stream();
    while let Some(item) = items.next().await {
        match item {
            GetProgressItem::Progress(so_far) => {
                first_byte.get_or_insert_with(|| start.elapsed());
                bytes = so_far;
            }
            GetProgressItem::Done(_) => {
                let whole = start.elapsed();
                ensure!(store.blobs().has(hash).await?, "the store lacks what it has got");
                let first_byte = first_byte.context("an empty blob")?;
                return Ok(Took { first_byte, whole, bytes });
            }
            GetProgressItem::Error(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the blob ended unannounced")
}
