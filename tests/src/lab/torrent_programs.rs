//! Crowds of BitTorrent clients that are programs by themselves: aria2 and Transmission, as their
//! authors have set them but for discovery, which is left to the tracker and to what peers tell
//! each other.
//!
//! Each peer's clock starts with its process, since such a program begins with its first octet.

use super::crowd::{Crowd, Outcome, Start};
use super::namespace::Namespace;
use super::needs::is_program;
use super::torrents::{PATIENCE, TRANSFER_PATIENCE, Torrent};
use anyhow::{Context, ensure};
use futures::future::try_join_all;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

/// How often it is looked whether somebody is ready: little against seconds.
const INTERVAL: Duration = Duration::from_millis(10);

/// What a client runs when it has everything.
const WHEN_DONE: &str = "#!/bin/sh\nexec touch \"$LAB_DONE\"\n";

/// What Transmission is told to leave out.
const TRANSMISSION: &str = r#"{
    "dht-enabled": false,
    "lpd-enabled": false,
    "port-forwarding-enabled": false
}"#;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// aria2.
    Aria2,
    /// Transmission's command line.
    Transmission,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Aria2 => "aria2c",
            Self::Transmission => "transmission-cli",
        }
    }

    /// Whether it can be started here.
    #[must_use]
    pub fn is_there(self) -> bool {
        is_program(self.name())
    }

    /// A client with the content, or the place for it, in `folder`, and a new directory for all
    /// else.
    fn command(self, host: &Namespace, torrent: &Path, folder: &Path, own: &Path) -> Command {
        let mut command = host.command(self.name());
        let script = own.join("when-done");
        match self {
            Self::Aria2 => {
                command.args(["--no-conf", "--enable-dht=false", "--bt-enable-lpd=false"]);
                command.args(["--check-integrity=true", "--seed-ratio=0", "--listen-port=6881"]);
                command.args(["--file-allocation=none", "--quiet"]);
                command.arg(format!("--dir={}", folder.display()));
                command.arg(format!("--on-bt-download-complete={}", script.display()));
            }
            Self::Transmission => {
                command.args(["--verify", "--port", "6881", "--no-portmap", "--config-dir"]);
                command.arg(own).arg("--download-dir").arg(folder);
                command.arg("--finish").arg(script);
            }
        }
        command.arg(torrent).env("LAB_DONE", own.join("done")).env("HOME", own);
        command
    }
}

/// Has a crowd fetch a file; `scratch` is a new directory.
///
/// # Errors
/// When somebody doesn't get it.
pub async fn fetch(
    program: Program,
    crowd: &Crowd,
    file: &Path,
    scratch: &Path,
) -> anyhow::Result<Outcome> {
    let torrent = Torrent::make(crowd, file, scratch)?;
    let commands = torrent.hosts.iter().zip(&torrent.folders).enumerate();
    let mut commands = commands.map(|(number, (host, folder))| {
        let own = scratch.join(format!("own-{number}"));
        prepare(&own)?;
        let command = program.command(host.namespace(), &torrent.torrent, folder, &own);
        anyhow::Ok((command, own))
    });
    let (seed, own) = commands.next().context("the seed is always there")??;
    let mut clients = vec![start(seed, &own)?];
    let commands = commands.collect::<anyhow::Result<Vec<_>>>()?;
    let announced = wait(async || Ok(torrent.tracker.known() == 1));
    timeout(PATIENCE, announced).await.context("the seed doesn't announce itself")??;

    let mut begin = Start::now(&torrent.hosts, &[])?;
    let mut waiting = Vec::new();
    for (command, own) in commands {
        clients.push(start(command, &own)?);
        waiting.push(done(own, begin.at()));
    }
    let pids: Option<Vec<u32>> = clients.iter().map(Child::id).collect();
    let pids = pids.context("a client has ended")?;
    // Those of the peers have used nothing before they were there.
    begin.count_from(&pids[..1])?;
    let took = timeout(TRANSFER_PATIENCE, try_join_all(waiting)).await;
    let took = took.with_context(|| format!("{} doesn't come to an end", program.name()))??;
    let outcome = begin.outcome(&torrent.hosts, &pids, took)?;
    for (number, folder) in torrent.folders.iter().enumerate().skip(1) {
        let name = file.file_name().context("a file has a name")?;
        let size = fs::metadata(folder.join(name))?.len();
        ensure!(size == fs::metadata(file)?.len(), "peer {number} has {size} octets");
    }
    for mut client in clients {
        client.kill().await?;
    }
    torrent.clear()?;
    Ok(outcome)
}

/// A client's own directory.
fn prepare(own: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(own)?;
    fs::write(own.join("settings.json"), TRANSMISSION)?;
    let script = own.join("when-done");
    fs::write(&script, WHEN_DONE)?;
    Ok(fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?)
}

fn start(command: Command, own: &Path) -> anyhow::Result<Child> {
    let log = File::create(own.join("log"))?;
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("{command:?} can't be started"))
}

async fn done(own: std::path::PathBuf, start: Instant) -> anyhow::Result<Duration> {
    wait(async || Ok(own.join("done").exists())).await?;
    Ok(start.elapsed())
}

async fn wait(mut condition: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    while !condition().await? {
        sleep(INTERVAL).await;
    }
    Ok(())
}
