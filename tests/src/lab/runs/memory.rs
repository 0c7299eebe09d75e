//! A nar larger than memory should hold, from many sources at once: what the fetcher and each
//! source take of memory meanwhile. The lines hold nothing back: speed is what fills buffers.

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::process::Meter;
use crate::bench::report::{Aim, Report};
use crate::bench::run::settle_disks;
use crate::harness::http_client::HttpClient;
use crate::harness::mirror::Mirror;
use crate::harness::node::{Node, Stage};
use crate::harness::waiting::until;
use crate::lab::line::Line;
use crate::lab::network::Network;
use anyhow::ensure;
use clap::Args;
use futures::future::join_all;
use narswarm_protocol::hash::NarHash;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is moved.
#[derive(Debug, Clone, Args)]
pub struct MemoryArgs {
    /// Sources.
    #[arg(long, default_value_t = 16)]
    pub sources: usize,
    /// Size of the nar, in mebibytes, of noise; four times as much is needed on disk.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub size: u64,
}

/// The most that either side may take above idle.
const MOST_MB: f64 = 60.0;

/// The data directory from which those of all sources are made.
const FIRST: &str = "source-0";

struct Bench {
    args: MemoryArgs,
    stage: Stage,
    key: PathBuf,
    item: LargeItem,
}

/// Measures it again and again.
///
/// # Errors
/// When the client doesn't get the nar.
pub async fn measure(rounds: u32, args: &MemoryArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm memory");
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let item = content::add(&mirror, "huge", &Kind::Incompressible, args.size << 20)?;
    let key = mirror.key_file();
    stage.import(FIRST, &key, &[mirror.root()]).await.well();
    // The sources have it now.
    fs::remove_file(&item.file)?;
    for number in 1..args.sources {
        let twin = stage.path(&format!("source-{number}"));
        copy_data(&stage.path(FIRST), &twin)?;
    }
    let bench = Bench { args: args.clone(), stage, key, item };
    for round in 0..rounds {
        settle_disks().await;
        bench.transfer(&format!("asker-{round}"), &mut report).await?;
    }
    for side in ["fetcher", "source that took the most"] {
        report.aim(&format!("{side}: memory above idle"), Aim::AtMost(MOST_MB));
    }
    report.note(format!(
        "{} MiB from {} sources over lines that hold nothing back; memory is the most that is \
         resident above what it was before",
        args.size, args.sources
    ));
    Ok(report)
}

impl Bench {
    async fn transfer(&self, name: &str, report: &mut Report) -> anyhow::Result<()> {
        let mut network = Network::new();
        let hosts = network.add_many(self.args.sources, Line::free());
        let home = network.add(Line::free());
        let starting = hosts.iter().enumerate().map(|(number, host)| {
            self.stage.node(&format!("source-{number}")).on(host).acl(&self.key).start()
        });
        let sources = join_all(starting).await;
        let mut asker = self.stage.node(name).on(&home).acl(&self.key);
        for source in &sources {
            asker = asker.bootstrap(source.peer_address());
        }
        let asker = asker.start().await;
        asker.has_peers(self.args.sources as u64).await;
        let mut client = asker.connect().await?;
        let narinfo = client.get(&self.item.narinfo_path()).await?;
        ensure!(narinfo.head.status == 200, "nobody has a narinfo of {}", self.item.item);
        let at_asker = Meter::start(asker.pid())?;
        let meters = sources.iter().map(|source| Meter::start(source.pid()));
        let at_sources = meters.collect::<anyhow::Result<Vec<_>>>()?;

        let start = Instant::now();
        let nar_hash = fetch(&mut client, &self.item).await?;
        let seconds = start.elapsed().as_secs_f64();
        let signed = format!("NarHash: sha256:{nar_hash}\n");
        let right = String::from_utf8_lossy(&narinfo.body).contains(&signed);
        ensure!(right, "the nar isn't the signed one");
        until("the nar to be kept", async || asker.status().await.items.cached > 0).await;
        let given = join_all(sources.iter().map(Node::status)).await;
        let givers = given.iter().filter(|status| status.bytes.to_peers > 0).count();

        let most = at_sources.iter().map(|meter| Ok(meter.read()?.above_idle_bytes));
        let most = most.collect::<anyhow::Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        let used = at_asker.read()?;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        report.sample("all", "s", seconds);
        report.sample("rate", "MB/s", megabytes(self.item.nar_bytes) / seconds);
        report.sample("sources that gave", "", givers as f64);
        report.sample("fetcher: memory above idle", "MB", megabytes(used.above_idle_bytes));
        report.sample("source that took the most: memory above idle", "MB", megabytes(most));
        report.sample("fetcher: processor time", "s", used.cpu_s);

        let folder = asker.data_dir().to_owned();
        asker.terminate().await;
        fs::remove_dir_all(folder)?;
        join_all(sources.into_iter().map(Node::terminate)).await;
        Ok(())
    }
}

/// Reads the nar and hashes it.
async fn fetch(client: &mut HttpClient, item: &LargeItem) -> anyhow::Result<NarHash> {
    let (path, mut hasher, mut came) = (item.nar_path(), Sha256::new(), 0);
    let head = client.get_into(&path, |octets| {
        hasher.update(octets);
        came += octets.len() as u64;
    });
    let head = head.await?;
    ensure!(head.status == 200 && came == item.nar_bytes, "{} {came} octets", head.status);
    Ok(NarHash(hasher.finalize().into()))
}

/// Copies the data directory of a node at rest, without its identity. The cache's files, which
/// are never changed, are shared.
fn copy_data(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (file, name) = (entry.path(), entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_data(&file, &to.join(name))?;
        } else if file.extension().is_some_and(|extension| extension == "zst") {
            fs::hard_link(&file, to.join(name))?;
        } else if entry.file_type()?.is_file() && name != "node.key" && name != "lock" {
            fs::copy(&file, to.join(name))?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}
