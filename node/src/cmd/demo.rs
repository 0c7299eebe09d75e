//! `narswarm demo`: shows the main job on this machine alone.
//!
//! A seed and a workstation, two whole nodes over real sockets on loopback; content made up on
//! the spot and signed with a key generated for it; fetched through the workstation's substitute
//! URL as guix would, and compared. Nothing is left behind.

use crate::config::{Config, ModeName, Role, Share};
use crate::dialect::Dialect;
use crate::engine::mirror;
use crate::nar_tree;
use crate::node::Node;
use crate::rate::Rate;
use crate::store::{DataDir, Store, StoreConfig};
use anyhow::{Context, bail, ensure};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::{Compression, Draft, NarSource, UnverifiedNarinfo};
use narswarm_protocol::signature::SigningKey;
use narswarm_protocol::store_path::StorePath;
use rand::{Rng, RngExt};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Size of the package to fetch.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    size: u32,
}

/// The package that travels.
struct Package {
    item: String,
    nar_hash: NarHash,
    nar_size: u64,
}

/// How the fetch went.
struct Outcome {
    first_byte: Duration,
    whole: Duration,
    verified: bool,
}

/// Runs the demonstration.
///
/// # Errors
/// Whatever keeps it from working: on a healthy machine, nothing does.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let place = tempfile::Builder::new().prefix("narswarm-demo-").tempdir()?;
    let outcome = runtime.block_on(demonstrate(place.path(), args.size));
    place.close().context("cannot remove the demonstration's files")?;
    outcome
}

async fn demonstrate(place: &Path, size_mib: u32) -> anyhow::Result<ExitCode> {
    println!("building and signing a package of {size_mib} MiB with a key made for it …");
    let (mirror, key) = (place.join("mirror"), place.join("signing-key.pub"));
    let package = {
        let (mirror, key, tree) = (mirror.clone(), key.clone(), place.join("tree"));
        tokio::task::spawn_blocking(move || make_package(&mirror, &key, &tree, size_mib)).await??
    };
    println!("importing it into a seed …");
    let seed_dir = place.join("seed");
    {
        let (dir, key, mirror) = (seed_dir.clone(), key.clone(), mirror.clone());
        tokio::task::spawn_blocking(move || import(&dir, &key, mirror)).await??;
    }
    let seed = Node::start(config(&seed_dir, Role::Seed, &key, Vec::new())).await?;
    let bootstrap = seed.listen_addresses();
    println!("seed:        {}", bootstrap.first().context("the seed listens nowhere")?);
    let dir = place.join("workstation");
    let node = Node::start(config(&dir, Role::Workstation, &key, bootstrap)).await?;
    println!("workstation: guix would say --substitute-urls=http://{}", node.http());
    let outcome = fetch(node.http(), &package, &key).await?;
    let report = node.status();
    node.stop().await;
    seed.stop().await;

    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let rate = package.nar_size as f64 / 1e6 / outcome.whole.as_secs_f64();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", ""]);
    table.add_row(["package", &package.item]);
    table.add_row(["nar", &mib(package.nar_size)]);
    table.add_row(["from peers (compressed)", &mib(report.bytes.from_peers)]);
    table.add_row(["from upstream", &mib(report.bytes.from_upstream)]);
    table.add_row(["first byte", &format!("{:.0} ms", outcome.first_byte.as_secs_f64() * 1e3)]);
    table.add_row(["rate", &format!("{rate:.0} MB/s")]);
    table.add_row(["signature and hash", if outcome.verified { "verified" } else { "WRONG" }]);
    println!("{table}");
    ensure!(report.bytes.from_peers > 0, "nothing came from the peer");
    Ok(if outcome.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn config(dir: &Path, role: Role, key: &Path, bootstrap: Vec<libp2p::Multiaddr>) -> Config {
    let local = |text: &str| text.parse().expect("a well-formed address");
    Config {
        data_dir: dir.to_owned(),
        role,
        http: SocketAddr::from(([127, 0, 0, 1], 0)),
        http_names: Vec::new(),
        listen: vec![local("/ip4/127.0.0.1/tcp/0")],
        bootstrap,
        default_bootstrap: false,
        dnsaddr: Vec::new(),
        seed_lists: Vec::new(),
        seed_list_keys: Vec::new(),
        resolver: None,
        mdns: false,
        external: Vec::new(),
        upnp: false,
        traverse_nat: false,
        relay: false,
        upstreams: Vec::new(),
        upstream_mode: ModeName::SwarmOnly,
        acl: vec![key.to_owned()],
        voucher_keys: Vec::new(),
        store: "/gnu/store".into(),
        share_store: false,
        store_db: "/var/guix/db/db.sqlite".into(),
        guix_cache: "/var/guix/substitute/cache".into(),
        store_lookups_per_minute: 0,
        share: Share::Public,
        share_include: Vec::new(),
        share_exclude: Vec::new(),
        priority: 30,
        cache_gib: 8,
        upload_rate: Rate::default(),
        upload_rate_per_peer: Rate::default(),
        download_rate: Rate::default(),
        listen_is_default: false,
        store_db_is_default: true,
    }
}

/// Makes a tree, its nar and its signed narinfo, as a static mirror; blocking.
fn make_package(
    mirror: &Path,
    public_key: &Path,
    tree: &Path,
    size_mib: u32,
) -> anyhow::Result<Package> {
    let mut random = rand::rng();
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(mirror.join("nar"))?;
    // Half noise, half zeros: about as compressible as real packages.
    for megabyte in 0..size_mib {
        let mut content = vec![0; 1 << 20];
        random.fill_bytes(&mut content[..1 << 19]);
        fs::write(tree.join(format!("bin/part-{megabyte:04}")), content)?;
    }
    let key = SigningKey::from_seed(random.random());
    fs::write(public_key, key.public_key_sexp())?;
    let hash = narswarm_protocol::base32::encode(&random.random::<[u8; 20]>());
    let path = StorePath::parse(format!("/gnu/store/{hash}-narswarm-demo-1.0").as_bytes())?;
    let item = path.item().to_string();
    let file = mirror.join("nar").join(&item);
    nar_tree::dump(tree, &mut fs::File::create(&file)?)?;
    let (nar_hash, nar_size) = hash_file(&file)?;
    let draft = Draft {
        store_path: path,
        nar_hash,
        nar_size,
        references: Vec::new(),
        system: None,
        deriver: None,
    };
    let group = NarSource {
        url: format!("nar/{item}"),
        compression: Compression::None,
        file_size: Some(nar_size),
    };
    let narinfo = draft.sign(&key, "demo.example", &[group])?;
    fs::write(mirror.join(format!("{hash}.narinfo")), narinfo)?;
    Ok(Package { item, nar_hash, nar_size })
}

fn hash_file(file: &Path) -> std::io::Result<(NarHash, u64)> {
    let (mut reader, mut hasher, mut size) = (fs::File::open(file)?, Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((NarHash(hasher.finalize().into()), size)),
            count => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

fn import(data_dir: &Path, key: &Path, mirror: PathBuf) -> anyhow::Result<()> {
    let acl = crate::acl::load(&[key.to_owned()], Dialect::Guix)?.acl;
    let data = DataDir::open(data_dir)?;
    let store = Store::open(&data, &StoreConfig::default())?;
    let trouble = parking_lot::Mutex::new(None);
    mirror::import(&store, &acl, &[mirror], &|report| {
        if let mirror::Report::LeftOut { what, why, .. } = report {
            *trouble.lock() = Some(format!("{what}: {why}"));
        }
        true
    });
    store.close();
    trouble.into_inner().map_or(Ok(()), |trouble| bail!("the import failed: {trouble}"))
}

/// Fetches narinfo and nar as guix would, believing nothing.
async fn fetch(http: SocketAddr, package: &Package, key: &Path) -> anyhow::Result<Outcome> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let hash = &package.item[..32];
    let answer = client.get(format!("http://{http}/{hash}.narinfo")).send().await?;
    let narinfo = answer.error_for_status().context("the workstation found no narinfo")?;
    let narinfo = UnverifiedNarinfo::parse(&narinfo.bytes().await?)?;
    let narinfo = narinfo.verify(&crate::acl::load(&[key.to_owned()], Dialect::Guix)?.acl)?;
    let url = &narinfo.sources().first().context("a narinfo without a URL")?.url;

    let started = Instant::now();
    let answer = client.get(format!("http://{http}/{url}")).send().await?.error_for_status()?;
    let bar = ProgressBar::new(package.nar_size);
    let style = "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}";
    bar.set_style(ProgressStyle::with_template(style)?);
    let (mut hasher, mut first_byte) = (Sha256::new(), None);
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("the transfer was cut off")?;
        first_byte.get_or_insert_with(|| started.elapsed());
        hasher.update(&chunk);
        bar.inc(chunk.len() as u64);
    }
    let whole = started.elapsed();
    bar.finish_and_clear();
    let found = NarHash(hasher.finalize().into());
    let verified = found == package.nar_hash && found == narinfo.nar_hash();
    Ok(Outcome { first_byte: first_byte.context("an empty nar")?, whole, verified })
}
