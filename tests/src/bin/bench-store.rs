//! What it takes to share the system's store: reading nars by seeking in trees, hashing a store in
//! the background, and whether the answer about a private item tells more than that about none.

use anyhow::{Context, ensure};
use clap::Parser;
use narswarm_node::config::{Role, Share};
use narswarm_node::engine::{Engine, EngineConfig};
use narswarm_node::metrics::Metrics;
use narswarm_node::store::{DataDir, FilterFiles, KeptFile, Store, StoreConfig};
use narswarm_node::system_store::{Policy, SystemStoreConfig, TreeReader, hash_tree, lay_out};
use narswarm_protocol::fetch::UpstreamMode;
use narswarm_protocol::nar::Layout;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::voucher::VoucherSigner;
use narswarm_tests::bench::process::{cpu_seconds, resident_bytes};
use narswarm_tests::bench::report::{Aim, Report};
use narswarm_tests::bench::run::{CommonArgs, run};
use narswarm_tests::bench::trees;
use narswarm_tests::harness::guix_store::GuixStore;
use narswarm_tests::harness::holding::Holding;
use narswarm_tests::harness::node::Stage;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Random pieces read in each round.
const RANDOM_READS: usize = 200;

/// Questions of each kind in each round.
const QUESTIONS: usize = 2000;

/// Reads from trees, indexing, and what answers tell by their time.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Items of the store that is indexed.
    #[arg(long, default_value_t = 5000)]
    items: usize,
    /// Mean size of their one file, in KiB.
    #[arg(long, default_value_t = 128)]
    item_kib: usize,
    /// Where the trees are made; they take about 2 GiB.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(scratch) = &args.scratch {
        let scratch = scratch.canonicalize().context("--scratch must be there")?;
        ensure!(scratch.is_dir(), "--scratch must be a directory");
    }
    run(&args.common, measure(&args))
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-store");
    let scratch = match &args.scratch {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let trees =
        [("64 files of 16 MiB", 4, 16, 16 << 20), ("20,000 files of 4 KiB", 200, 100, 4096)];
    for (what, folders, files, size) in trees {
        let root = scratch.path().join(format!("tree-{size}"));
        trees::make(&root, folders, files, size)?;
        read_trees(args, what, &root, &mut report)?;
        fs::remove_dir_all(&root)?;
    }
    indexing(args, &mut report).await?;
    report.note("cold: after the kernel was told to forget the files; warm: from its memory");
    Ok(report)
}

fn read_trees(args: &Args, what: &str, root: &Path, report: &mut Report) -> anyhow::Result<()> {
    let files = trees::files(root)?;
    let layout = lay_out(root)?;
    let list = hash_tree(root, &layout, &mut || true)?.context("nobody stops it")?.list;
    let pieces = list.layout();
    for round in 0..args.common.rounds {
        for cold in [false, true] {
            let how = if cold { "cold" } else { "warm" };
            let rate = |took: Duration| layout.nar_size() as f64 / 1e6 / took.as_secs_f64();
            let prepare = || if cold { trees::forget(&files) } else { Ok(()) };
            let plain = |report: &mut Report| -> anyhow::Result<()> {
                prepare()?;
                let start = Instant::now();
                black_box(trees::read_plainly(&files)?);
                let rate = rate(start.elapsed());
                report.sample(format!("{what}, {how}, files read plainly"), "MB/s", rate);
                Ok(())
            };
            let seeking = |report: &mut Report| -> anyhow::Result<()> {
                prepare()?;
                let start = Instant::now();
                read_all(root, &layout, pieces, |_, octets| drop(black_box(octets)))?;
                let rate = rate(start.elapsed());
                report.sample(format!("{what}, {how}, nar by seeking"), "MB/s", rate);
                Ok(())
            };
            if round % 2 == 0 {
                plain(report)?;
                seeking(report)?;
            } else {
                seeking(report)?;
                plain(report)?;
            }
        }
        let start = Instant::now();
        let mut wrong = 0;
        read_all(root, &layout, pieces, |index, octets| {
            wrong += usize::from(!list.matches(index, &octets));
        })?;
        ensure!(wrong == 0, "{wrong} pieces differ");
        let rate = layout.nar_size() as f64 / 1e6 / start.elapsed().as_secs_f64();
        report.sample(format!("{what}, warm, nar by seeking, each piece checked"), "MB/s", rate);
        let start = Instant::now();
        black_box(lay_out(root)?);
        let took = start.elapsed().as_secs_f64() * 1e3;
        report.sample(format!("{what}, warm, laying out"), "ms", took);
        random_reads(what, root, &layout, pieces, u64::from(round), &files, report)?;
    }
    for how in ["warm", "cold"] {
        let plain = format!("{what}, {how}, files read plainly");
        let seeking = format!("{what}, {how}, nar by seeking");
        report.compare(&seeking, &plain, Some(Aim::AtLeast(0.8)));
        for (slowest, aim) in [("median", 5.0), ("99th percentile", 5.0)] {
            report.aim(&format!("{what}, {how}, a random piece, {slowest}"), Aim::AtMost(aim));
        }
    }
    Ok(())
}

fn read_all(
    root: &Path,
    layout: &Layout,
    pieces: PieceLayout,
    mut take: impl FnMut(u32, Vec<u8>),
) -> anyhow::Result<()> {
    let mut reader = TreeReader::new(root.to_owned());
    for index in 0..pieces.piece_count() {
        take(index, reader.read(layout, pieces.piece_range(index))?);
    }
    Ok(())
}

fn random_reads(
    what: &str,
    root: &Path,
    layout: &Layout,
    pieces: PieceLayout,
    seed: u64,
    files: &[PathBuf],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    for how in ["warm", "cold"] {
        if how == "cold" {
            trees::forget(files)?;
        }
        // Each another, so that none is in memory since it was read before.
        let mut indices: Vec<u32> = (0..pieces.piece_count()).collect();
        indices.shuffle(&mut random);
        indices.truncate(RANDOM_READS);
        let mut times = Vec::with_capacity(indices.len());
        for index in indices {
            let start = Instant::now();
            let mut reader = TreeReader::new(root.to_owned());
            black_box(reader.read(layout, pieces.piece_range(index))?);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        sample_times(report, &format!("{what}, {how}, a random piece"), "ms", times);
    }
    Ok(())
}

/// Adds the median and the 99th percentile of some times.
fn sample_times(report: &mut Report, what: &str, unit: &'static str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    report.sample(format!("{what}, median"), unit, times[times.len() / 2]);
    report.sample(format!("{what}, 99th percentile"), unit, times[times.len() * 99 / 100]);
}

/// A store of many items, half of them public, and a node that shares it.
async fn indexing(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let stage = Stage::new();
    let store = GuixStore::create(stage.path("guix"), 1);
    let mut random = StdRng::seed_from_u64(1);
    let mut public = Vec::new();
    let mut bytes = 0;
    store.daemon().execute_batch("begin")?;
    for number in 0..args.items {
        // As real stores: mostly small, some large.
        let size = (args.item_kib as f64 * 512.0 * -random.random_range(0.001_f64..1.0).ln() * 2.0)
            as usize;
        let mut content = vec![0; size];
        random.fill_bytes(&mut content);
        let holding = store.add(&format!("item-{number:05}"), |path| {
            fs::write(path, &content).expect("a file");
        });
        store.cache_narinfo(&holding);
        bytes += holding.nar_size();
        // Its nar is no longer needed.
        public.push(Holding { nar: None, ..holding });
    }
    let private = store.add("private-1.0", |path| fs::write(path, b"secret").expect("a file"));
    let excluded = store.add("excluded-1.0", |path| fs::write(path, b"public").expect("a file"));
    store.cache_narinfo(&excluded);
    store.daemon().execute_batch("commit")?;
    for round in 0..args.common.rounds {
        let name = format!("node-{round}");
        for what in ["indexing", "restart"] {
            let start = Instant::now();
            let node = store.shared_by(stage.node(&name)).start().await;
            while node.status().await.items.store < args.items as u64 {
                ensure!(start.elapsed() < Duration::from_secs(600), "the store isn't shared");
                sleep(Duration::from_millis(50)).await;
            }
            let (took, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds(node.pid())?);
            let title = format!("{what} of {} items, {:.0} MB", args.items, bytes as f64 / 1e6);
            report.sample(&title, "s", took);
            report.sample(format!("{title}, processor"), "% of a core", 100.0 * cpu / took);
            report.sample(
                format!("{title}, memory"),
                "MB",
                resident_bytes(node.pid())? as f64 / 1e6,
            );
            if what == "indexing" {
                report.sample(format!("{title}, items"), "a second", args.items as f64 / took);
                report.sample(format!("{title}, rate"), "MB/s", bytes as f64 / 1e6 / took);
            }
            node.terminate().await;
        }
    }
    let questions = Questions { public, private, excluded };
    answers(args, &stage, &store, &questions, report)
}

/// What a peer asks about.
struct Questions {
    public: Vec<Holding>,
    private: Holding,
    excluded: Holding,
}

/// How long it takes to answer for what is public, private, excluded, or nowhere.
fn answers(
    args: &Args,
    stage: &Stage,
    guix: &GuixStore,
    questions: &Questions,
    report: &mut Report,
) -> anyhow::Result<()> {
    let data = DataDir::open(stage.path("node-0"))?;
    let store = Arc::new(Store::open(&data, &StoreConfig::default())?);
    let policy = Policy::new(&[], &["excluded-*".to_owned()])?;
    let config = EngineConfig {
        role: Role::Workstation,
        share: Share::Public,
        policy: policy.clone(),
        upstream_mode: UpstreamMode::SwarmOnly,
        store_dir: guix.dir().display().to_string(),
        expects_peers: false,
        voucher_signer: VoucherSigner::new(&[1; 32]),
        voucher_keys: Vec::new(),
        filters: FilterFiles::of(&data),
        own_filters: KeptFile::own_filters(&data),
    };
    let engine = Engine::new(config, store, None, guix.acl(), Arc::new(Metrics::new()));
    engine.recall_store(SystemStoreConfig {
        store: guix.dir(),
        database: guix.database(),
        guix_cache: "/nonexistent".into(),
        data_dir: data.path().to_owned(),
        policy,
        fetched_only: false,
        lookups_per_minute: 0,
    })?;
    let responder = engine.responder();
    let mut random = StdRng::seed_from_u64(5);
    for _ in 0..args.common.rounds {
        let mut times: [Vec<f64>; 4] = Default::default();
        // The same each time, as the others are.
        let absent = StoreHash(random.random());
        for number in 0..QUESTIONS * 4 {
            let kind = number % 4;
            let hash = match kind {
                0 => absent,
                1 => questions.private.narinfo.item().hash(),
                2 => questions.excluded.narinfo.item().hash(),
                _ => questions.public[number % questions.public.len()].narinfo.item().hash(),
            };
            let start = Instant::now();
            let answer = responder.query(&[hash]);
            times[kind].push(start.elapsed().as_secs_f64() * 1e6);
            ensure!(answer[0].is_some() == (kind == 3), "a wrong answer");
        }
        let kinds = ["that nobody has", "that is private", "that is excluded", "that is public"];
        for (kind, times) in kinds.into_iter().zip(times) {
            sample_times(report, &format!("answer about an item {kind}"), "µs", times);
        }
    }
    let nobody = "answer about an item that nobody has, median";
    for kind in ["private", "excluded"] {
        report.compare(&format!("answer about an item that is {kind}, median"), nobody, None);
    }
    Ok(())
}
