//! A crowd of BitTorrent clients in the same lab, by the same lines: what narswarm is measured
//! against. They find each other through a tracker.

use super::crowd::{Crowd, Outcome, Start};
use super::host::Host;
use super::line::Line;
use super::network::Network;
use super::tracker::Tracker;
use anyhow::{Context, ensure};
use futures::future::{join_all, try_join_all};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

/// Size of pieces: what nars are cut into.
const PIECE_BYTES: u32 = 256 * 1024;

/// Longest that a client takes to start or to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Longest that a crowd takes: many times what any should.
pub(super) const TRANSFER_PATIENCE: Duration = Duration::from_secs(900);

/// The driver of libtorrent.
const DRIVER: &str = include_str!("libtorrent_client.py");

/// How libtorrent is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As its authors have set it: uTP beside TCP.
    Usual,
    /// On TCP alone.
    Tcp,
    /// On TCP alone, with a seed that gives each piece once before it gives any twice (BEP 16).
    SuperSeeding,
}

impl Manner {
    fn of(self, is_seed: bool) -> [&'static str; 2] {
        let role = match self {
            _ if !is_seed => "peer",
            Self::SuperSeeding => "super-seed",
            Self::Usual | Self::Tcp => "seed",
        };
        [role, if self == Self::Usual { "both" } else { "tcp" }]
    }
}

/// A Python with libtorrent, or why there is none.
///
/// # Errors
/// That there is none.
pub fn python() -> anyhow::Result<PathBuf> {
    // The distribution's first: another Python doesn't find its modules.
    for python in ["/usr/bin/python3", "python3"] {
        let found = Command::new(python).args(["-c", "import libtorrent"]).output();
        if found.is_ok_and(|output| output.status.success()) {
            return Ok(python.into());
        }
    }
    anyhow::bail!("there is no Python with libtorrent; Debian's package is python3-libtorrent")
}

/// A crowd's hosts, a tracker beside them, and a torrent of one file.
pub(super) struct Torrent {
    pub(super) hosts: Vec<Host>,
    pub(super) tracker: Tracker,
    /// The torrent's file.
    pub(super) torrent: PathBuf,
    /// Where each host has or puts the content, the seed first.
    pub(super) folders: Vec<PathBuf>,
    scratch: PathBuf,
    _network: Network,
}

impl Torrent {
    /// Makes all that; `scratch` is a new directory.
    pub(super) fn make(crowd: &Crowd, file: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let mut network = Network::new();
        let hosts = crowd.settle(&mut network);
        let third = network.add(Line::free());
        let tracker = Tracker::start(third.namespace(), third.address())?;
        let mut folders = vec![file.parent().context("a file in a folder")?.to_owned()];
        folders.extend((1..hosts.len()).map(|number| scratch.join(number.to_string())));
        for folder in &folders {
            std::fs::create_dir_all(folder)?;
        }
        let torrent = scratch.join("torrent");
        std::fs::write(scratch.join("libtorrent_client.py"), DRIVER)?;
        let made = Self {
            hosts,
            tracker,
            torrent,
            folders,
            scratch: scratch.to_owned(),
            _network: network,
        };
        let mut make = Command::new(python()?);
        make.arg(made.driver()).arg("make").args([file, &made.torrent]);
        let said = make.arg(PIECE_BYTES.to_string()).arg(made.tracker.url()).output()?;
        ensure!(said.status.success(), "no torrent: {}", String::from_utf8_lossy(&said.stderr));
        Ok(made)
    }

    fn driver(&self) -> PathBuf {
        self.scratch.join("libtorrent_client.py")
    }

    /// Removes what was fetched.
    pub(super) fn clear(self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.scratch)
    }
}

/// Has a crowd of libtorrent's fetch a file; `scratch` is a new directory.
///
/// # Errors
/// When somebody doesn't get it.
pub async fn libtorrent(
    crowd: &Crowd,
    manner: Manner,
    file: &Path,
    scratch: &Path,
) -> anyhow::Result<Outcome> {
    let (python, torrent) = (python()?, Torrent::make(crowd, file, scratch)?);
    let mut clients = Vec::new();
    for (number, (host, folder)) in torrent.hosts.iter().zip(&torrent.folders).enumerate() {
        let mut command = host.namespace().command(&python);
        command.arg(torrent.driver()).arg("run").args([&torrent.torrent, folder]);
        command.arg(host.address().to_string()).args(manner.of(number == 0));
        clients.push(Client::start(command)?);
    }
    try_join_all(clients.iter_mut().map(|client| client.expect("ready"))).await?;
    let outcome = race(&torrent.hosts, &mut clients).await?;
    try_join_all(clients.into_iter().map(Client::end)).await?;
    torrent.clear()?;
    Ok(outcome)
}

/// From the first word to the last octet. The seed is let go first, so that it is known.
async fn race(hosts: &[Host], clients: &mut [Client]) -> anyhow::Result<Outcome> {
    let pids: Vec<u32> = clients.iter().map(|client| client.pid).collect();
    clients[0].tell("go").await?;
    // It says so of itself, too, when it has looked at its file.
    clients[0].expect("done").await?;
    let start = Start::now(hosts, &pids)?;
    let fetching = clients[1..].iter_mut().map(|client| client.fetch(start.at()));
    let took = timeout(TRANSFER_PATIENCE, try_join_all(fetching)).await;
    let took = took.context("libtorrent doesn't come to an end")??;
    let mut outcome = start.outcome(hosts, &pids, took)?;
    let reports = join_all(clients.iter_mut().map(Client::report)).await;
    let reports = reports.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    outcome.seed_gave = Some(reports[0].sent);
    outcome.peers_got = Some(reports[1..].iter().map(|report| report.received).sum());
    Ok(outcome)
}

/// What a client tells of itself.
#[derive(Debug, Deserialize)]
struct Told {
    received: u64,
    sent: u64,
}

/// One client; killed when dropped.
struct Client {
    child: Child,
    pid: u32,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(command: Command) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("Python can't be started")?;
        let stdin = child.stdin.take().context("its stdin is a pipe")?;
        let stdout = child.stdout.take().context("its stdout is a pipe")?;
        let pid = child.id().context("it has just been started")?;
        Ok(Self { child, pid, stdin, lines: BufReader::new(stdout).lines() })
    }

    async fn tell(&mut self, word: &str) -> anyhow::Result<()> {
        self.stdin.write_all(format!("{word}\n").as_bytes()).await.context("a client has ended")
    }

    async fn hear(&mut self) -> anyhow::Result<String> {
        match self.lines.next_line().await? {
            Some(line) => Ok(line),
            None => anyhow::bail!("a client has ended: {}", self.child.wait().await?),
        }
    }

    /// Its input ends, and then it does.
    async fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin);
        let ended = timeout(PATIENCE, self.child.wait()).await.context("a client doesn't end")?;
        ensure!(ended?.success(), "a client has failed");
        Ok(())
    }

    async fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let heard = timeout(PATIENCE, self.hear()).await.context("a client says nothing")??;
        ensure!(heard == word, "a client says {heard:?} and not {word:?}");
        Ok(())
    }

    async fn fetch(&mut self, start: Instant) -> anyhow::Result<Duration> {
        self.tell("go").await?;
        let heard = self.hear().await?;
        ensure!(heard == "done", "a client says {heard:?}");
        Ok(start.elapsed())
    }

    async fn report(&mut self) -> anyhow::Result<Told> {
        self.tell("report").await?;
        let line = timeout(PATIENCE, self.hear()).await.context("a client says nothing")??;
        Ok(serde_json::from_str(&line)?)
    }
}
