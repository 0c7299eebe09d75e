//! Data directories that are in use, read-only, or full.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{NodeSpec, Stage};
use narswarm_tests::harness::program::Finished;
use narswarm_tests::harness::samples::not_tested;
use narswarm_tests::harness::upstream::StaticServer;
use rustix::process::geteuid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room on the small disk: for the node's own files and a few small nars.
const DISK: &str = "size=24m";

/// More than that disk takes.
const LARGE: usize = 60 << 20;

/// Memory that passing a nar on takes when nothing can be kept.
const GAIN_BYTES: u64 = 60 << 20;

/// A file system of its own, unmounted at the end.
struct Disk {
    place: PathBuf,
}

impl Disk {
    fn mount(place: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir(&place).expect("a new folder");
        let is_root = geteuid().is_root();
        if is_root && mount(&["-t", "tmpfs", "-o", options, "none"], &place) {
            return Some(Self { place });
        }
        not_tested("file systems can't be mounted here");
        None
    }

    fn make_read_only(&self) {
        assert!(mount(&["-o", "remount,ro"], &self.place), "can't be made read-only");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a node that is being killed may still have files open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}

fn mount(arguments: &[&str], place: &Path) -> bool {
    let status = Command::new("mount").args(arguments).arg(place).status();
    status.is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_is_refused_and_the_first_goes_on() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    mirror.add("hello-2.12.1", 1000, &[Compression::Zstd]);
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let node = stage.node("a").acl(mirror.key_file()).start().await;
    let refused = stage.node("a").acl(mirror.key_file()).run().await;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    let complaint = refused.err.lines().last().unwrap_or_default();
    assert!(complaint.starts_with("narswarm: "), "{}", refused.err);
    assert!(complaint.contains(&stage.path("a").display().to_string()), "{complaint}");
    assert!(complaint.contains(&format!("process {}", node.pid())), "{complaint}");
    assert!(node.data_dir().join("run.json").is_file(), "the first one's is still there");
    Guix::new(node.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    let (ended, _) = node.terminate().await;
    assert!(ended.success());
    // Its place is free again.
    stage.node("a").acl(mirror.key_file()).start().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_data_directory_is_named() {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 2);
    if geteuid().is_root() {
        let Some(disk) = Disk::mount(stage.path("disk"), DISK) else { return };
        let (data, log) = (stage.path("disk/a"), stage.path("a.log"));
        let spec = || NodeSpec::new(data.clone(), log.clone());
        let node = spec().acl(mirror.key_file()).start().await;
        node.terminate().await;
        disk.make_read_only();
        is_named(spec().acl(mirror.key_file()).run().await, &data);
        let empty = stage.path("disk/b");
        let spec = NodeSpec::new(empty.clone(), log);
        is_named(spec.acl(mirror.key_file()).run().await, &empty);
    } else {
        fs::create_dir(stage.path("a")).expect("a new folder");
        let read_only = fs::Permissions::from_mode(0o555);
        fs::set_permissions(stage.path("a"), read_only).expect("our own folder");
        is_named(stage.node("a").acl(mirror.key_file()).run().await, &stage.path("a"));
    }
}

fn is_named(refused: Finished, place: &Path) {
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    let complaint = refused.err.lines().last().unwrap_or_default();
    assert!(complaint.starts_with("narswarm: "), "{}", refused.err);
    assert!(complaint.contains(&place.display().to_string()), "{complaint}");
    let reason = complaint.contains("Read-only") || complaint.contains("ermission");
    assert!(reason, "{complaint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_guix_gets_its_nars_and_nothing_held_is_lost() {
    let stage = Stage::new();
    let Some(_disk) = Disk::mount(stage.path("disk"), DISK) else { return };
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    for number in 0..20 {
        mirror.add(&format!("small-{number}"), 100_000, &[Compression::Zstd]);
    }
    let held = mirror.holdings().to_vec();
    let data = "disk/a";
    let log = stage.path("a.log");
    let spec = || NodeSpec::new(stage.path(data), log.clone());
    stage.import(data, &mirror.key_file(), &[mirror.root()]).await.well();

    let mut rest = Mirror::create(stage.path("rest"), 4);
    let large = rest.add("large", LARGE, &[Compression::Zstd]);
    for number in 0..40 {
        rest.add(&format!("medium-{number}"), 1 << 20, &[Compression::Gzip]);
    }
    let server = StaticServer::start(rest.root()).await.expect("a server");
    let node = spec().acl(mirror.key_file()).acl(rest.key_file()).upstream(&server.url());
    let node = node.start().await;
    let mut acl = mirror.acl();
    acl.merge(rest.acl());
    let guix = Guix::new(node.http(), acl.clone());
    guix.gets_all(&held).await;
    let before = node.forget_peak();
    guix.gets_all(&[large]).await;
    // What lies on the disk may be mapped or cached, but not by the process.
    let gain = node.peak_resident_bytes().saturating_sub(before);
    assert!(gain < GAIN_BYTES, "{} MiB more", gain >> 20);
    guix.gets_all(rest.holdings()).await;
    guix.gets_all(&held).await;
    let said = node.log();
    let complaint = said.lines().any(|line| line.contains("WARN") && line.contains("kept"));
    assert!(complaint, "nothing was said of the full disk");
    let complaints = said.lines().filter(|line| line.contains("WARN")).count();
    assert!(complaints < 500, "{complaints} complaints");

    node.kill().await;
    let node = spec().acl(mirror.key_file()).start().await;
    Guix::new(node.http(), acl).gets_all(&held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_does_not_fit_says_so_and_keeps_what_it_said_it_holds() {
    let stage = Stage::new();
    let Some(_disk) = Disk::mount(stage.path("disk"), DISK) else { return };
    let mut mirror = Mirror::create(stage.path("mirror"), 5);
    for number in 0..40 {
        mirror.add(&format!("medium-{number}"), 2 << 20, &[Compression::Zstd]);
    }
    let finished = stage.import("disk/a", &mirror.key_file(), &[mirror.root()]).await;
    assert_eq!(finished.code, Some(1), "{}{}", finished.out, finished.err);
    let left_out = |item: &str| {
        let begins = format!("left out: {item}: ");
        finished.err.lines().any(|line| line.starts_with(&begins))
    };
    let kept = mirror.holdings().iter().filter(|holding| !left_out(holding.item()));
    let kept: Vec<_> = kept.cloned().collect();
    assert!(kept.len() < mirror.holdings().len(), "all fits?");
    let log = stage.path("a.log");
    let spec = NodeSpec::new(stage.path("disk/a"), log);
    let node = spec.acl(mirror.key_file()).start().await;
    Guix::new(node.http(), mirror.acl()).gets_all(&kept).await;
}
