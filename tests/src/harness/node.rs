//! Nodes as real processes on free ports of the loopback, ended with the test that started them.

use super::entry_node::EntrySpec;
use super::holding::Holding;
use super::http_client::HttpClient;
use super::program::{self, Finished};
use super::waiting::{PATIENCE, soon, until};
use crate::lab::host::Host;
use crate::lab::namespace::Namespace;
use narswarm_node::http::StatusReport;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Most of a log that is shown when a test fails: the last few hundred lines.
const SHOWN_LOG_BYTES: usize = 24 * 1024;

/// A directory for the mirrors and nodes of one test, removed at its end.
pub struct Stage {
    folder: TempDir,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("narswarm-e2e-").tempdir();
        Self { folder: folder.expect("a temporary directory") }
    }

    /// A path below it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets every user of the machine in.
    ///
    /// # Panics
    /// When that isn't allowed.
    pub fn opens_to_all(&self) {
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(self.folder.path(), all).expect("our own directory");
    }

    /// A node that keeps its data under this name: the same name is the same node again.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeSpec {
        NodeSpec::new(self.path(name), self.path(&format!("{name}.log")))
    }

    /// An entry node that keeps its data under this name.
    #[must_use]
    pub fn entry_node(&self, name: &str) -> EntrySpec {
        EntrySpec::new(self.path(name), self.path(&format!("{name}.log")))
    }

    /// Imports mirrors into the data directory of this name.
    pub async fn import(&self, name: &str, key: &Path, sources: &[&Path]) -> Finished {
        let mut command = program::command("import");
        command.arg("--data-dir").arg(self.path(name)).arg("--acl").arg(key).args(sources);
        program::run(&mut command).await
    }
}

/// How a node is to be started.
pub struct NodeSpec {
    data_dir: PathBuf,
    log: PathBuf,
    command: Command,
    has_upstream: bool,
    mdns: bool,
    listen: Ipv4Addr,
    port: Option<u16>,
    namespace: Option<Namespace>,
}

impl NodeSpec {
    /// A node with this data directory, which finds nobody by itself and has no upstream.
    #[must_use]
    pub fn new(data_dir: PathBuf, log: PathBuf) -> Self {
        let mut command = program::command("run");
        command.arg("--data-dir").arg(&data_dir);
        command.args(["--http", "127.0.0.1:0", "--no-default-bootstrap"]);
        let listen = Ipv4Addr::LOCALHOST;
        let (has_upstream, mdns) = (false, false);
        Self { data_dir, log, command, has_upstream, mdns, listen, port: None, namespace: None }
    }

    /// Any argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs as another user.
    #[must_use]
    pub fn as_user(mut self, id: u32) -> Self {
        self.command.uid(id).gid(id);
        self
    }

    /// Runs in a host of the lab, where peers reach it; its shim stays on the host's loopback.
    #[must_use]
    pub fn on(mut self, host: &Host) -> Self {
        self.listen = host.address();
        self.namespace = Some(host.namespace().clone());
        self
    }

    /// Listens on this port, by TCP and by QUIC, instead of a free one by TCP.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Believes the key in this file.
    #[must_use]
    pub fn acl(self, file: impl AsRef<OsStr>) -> Self {
        self.arg("--acl").arg(file)
    }

    /// Enters the swarm by this address.
    #[must_use]
    pub fn bootstrap(self, address: &str) -> Self {
        self.arg("--bootstrap").arg(address)
    }

    /// Looks for peers on the local network.
    #[must_use]
    pub fn mdns(mut self) -> Self {
        self.mdns = true;
        self
    }

    /// With these lines in its configuration.
    ///
    /// # Panics
    /// When the file can't be written.
    #[must_use]
    pub fn configured(self, lines: &str) -> Self {
        let file = self.data_dir.with_extension("toml");
        fs::write(&file, lines).expect("a configuration file");
        self.arg("--config").arg(file)
    }

    /// Falls back on this substitute server.
    #[must_use]
    pub fn upstream(mut self, url: &str) -> Self {
        self.has_upstream = true;
        self.arg("--upstream").arg(url)
    }

    /// The command line, complete.
    fn into_command(mut self) -> Command {
        if !self.has_upstream {
            self.command.arg("--no-upstream");
        }
        if !self.mdns {
            self.command.arg("--no-mdns");
        }
        let (ip, port) = (self.listen, self.port.unwrap_or(0));
        self.command.arg("--listen").arg(format!("/ip4/{ip}/tcp/{port}"));
        if self.port.is_some() {
            self.command.arg("--listen").arg(format!("/ip4/{ip}/udp/{port}/quic-v1"));
        }
        match &self.namespace {
            Some(namespace) => namespace.inside(&self.command),
            None => self.command,
        }
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it doesn't.
    pub async fn start(self) -> Node {
        let (data_dir, log) = (self.data_dir.clone(), self.log.clone());
        let namespace = self.namespace.clone();
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = self.into_command();
        let child = command.stdout(Stdio::null()).stderr(file).spawn();
        let mut node = Node {
            child: child.expect("the program can be started"),
            data_dir,
            log,
            namespace,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            peer_address: String::new(),
        };
        let run_json = node.data_dir.join("run.json");
        let mut info = serde_json::Value::Null;
        until("the node to start", async || {
            if let Ok(Some(status)) = node.child.try_wait() {
                panic!("the node has ended at its start: {status}");
            }
            // A node that was killed has left its own behind.
            info = serde_json::from_slice(&fs::read(&run_json).unwrap_or_default())
                .unwrap_or_default();
            info["pid"] == node.pid()
        })
        .await;
        node.http = info["http"].as_str().expect("an address").parse().expect("an address");
        let listen = info["listen"].as_array().expect("addresses");
        let listen = || listen.iter().filter_map(serde_json::Value::as_str);
        let address = listen().find(|at| at.contains("/tcp/")).or_else(|| listen().next());
        node.peer_address = address.expect("an address").to_owned();
        node
    }

    /// Runs it to its end, as one that can't start.
    pub async fn run(self) -> Finished {
        program::run(&mut self.into_command()).await
    }
}

/// A running node; killed when dropped. Of a test that fails, the end of its log is shown.
pub struct Node {
    child: Child,
    data_dir: PathBuf,
    log: PathBuf,
    namespace: Option<Namespace>,
    http: SocketAddr,
    peer_address: String,
}

impl Node {
    /// Where guix connects to.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// A connection to it as guix on the same host would make.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn connect(&self) -> io::Result<HttpClient> {
        match &self.namespace {
            Some(namespace) => HttpClient::connect_in(namespace, self.http).await,
            None => HttpClient::connect(self.http).await,
        }
    }

    /// Where peers connect to, with the peer id.
    #[must_use]
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Everything that nodes of this name have logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The process.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the node runs")
    }

    /// What it says of itself.
    pub async fn status(&self) -> StatusReport {
        serde_json::from_slice(&self.get("/api/status").await).expect("a status report")
    }

    /// The body of a page that must be there.
    pub async fn get(&self, path: &str) -> bytes::Bytes {
        let reply = soon(path, async {
            let mut client = self.connect().await.expect("the node listens");
            client.get(path).await.expect("the node answers")
        });
        let reply = reply.await;
        assert_eq!(reply.head.status, 200, "{path}");
        reply.body
    }

    /// Waits until it is connected with this many peers at least.
    pub async fn has_peers(&self, count: u64) {
        let enough = async || self.status().await.peers.connected >= count;
        until("peers to connect", enough).await;
    }

    /// Waits until it has the whole nar on disk.
    pub async fn keeps(&self, holdings: &[Holding]) {
        let count = holdings.iter().filter(|holding| holding.nar.is_some()).count() as u64;
        let enough = async || self.status().await.items.cached >= count;
        until("nars to be kept", enough).await;
    }

    /// Octets of memory that it holds now.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most it has held since [`Node::forget_peak`].
    #[must_use]
    pub fn peak_resident_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Begins a new measurement of the most memory held; returns what is held now.
    pub fn forget_peak(&self) -> u64 {
        // See proc(5): 5 resets the peak.
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("our own process");
        self.resident_bytes()
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux tells");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("our own process");
    }

    /// Kills it, as a crash would.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("our own process");
    }

    /// Asks it to end; tells how it did and how long that took.
    pub async fn terminate(mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::TERM);
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("it ends when told to").expect("our own process");
        (status, start.elapsed())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.start_kill();
        if std::thread::panicking() {
            let log = self.log();
            let mut start = log.len().saturating_sub(SHOWN_LOG_BYTES);
            while !log.is_char_boundary(start) {
                start += 1;
            }
            eprintln!("--- the end of {} ---\n{}", self.log.display(), &log[start..]);
        }
    }
}
