//! Entry nodes as real processes on free ports of the loopback, ended with the test that started
//! them.

use super::http_client::HttpClient;
use super::program;
use super::waiting::{PATIENCE, soon, until};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use tokio::process::{Child, Command};

/// How an entry node is to be started.
pub struct EntrySpec {
    data_dir: PathBuf,
    log: PathBuf,
    listen: String,
    command: Command,
}

impl EntrySpec {
    /// An entry node with this data directory on free ports of the loopback.
    #[must_use]
    pub fn new(data_dir: PathBuf, log: PathBuf) -> Self {
        let mut command = program::bootstrap_command("run");
        command.arg("--data-dir").arg(&data_dir).args(["--http", "127.0.0.1:0"]);
        Self { data_dir, log, listen: "/ip4/127.0.0.1/tcp/0".to_owned(), command }
    }

    /// Any argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Listens there, as one that was moved back to where it is known.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = address.to_owned();
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

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it doesn't.
    pub async fn start(mut self) -> EntryNode {
        let file = File::options().create(true).append(true).open(&self.log).expect("a log file");
        self.command.arg("--listen").arg(&self.listen);
        let child = self.command.stdout(Stdio::null()).stderr(file).spawn();
        let mut node = EntryNode {
            child: child.expect("the program can be started"),
            data_dir: self.data_dir,
            log: self.log,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            peer_address: String::new(),
        };
        let run_json = node.data_dir.join("run.json");
        let mut info = serde_json::Value::Null;
        until("the entry node to start", async || {
            if let Ok(Some(status)) = node.child.try_wait() {
                panic!("the entry node has ended at its start: {status}");
            }
            let text = fs::read(&run_json).unwrap_or_default();
            info = serde_json::from_slice(&text).unwrap_or_default();
            info["pid"] == node.pid()
        })
        .await;
        node.http = info["http"].as_str().expect("an address").parse().expect("an address");
        node.peer_address = info["listen"][0].as_str().expect("an address").to_owned();
        node
    }
}

/// A running entry node; killed when dropped. Of a test that fails, its log is shown.
pub struct EntryNode {
    child: Child,
    data_dir: PathBuf,
    log: PathBuf,
    http: SocketAddr,
    peer_address: String,
}

impl EntryNode {
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

    /// The process.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the entry node runs")
    }

    /// The body of a page that must be there.
    pub async fn get(&self, path: &str) -> bytes::Bytes {
        let reply = soon(path, async {
            let mut client = HttpClient::connect(self.http).await.expect("it listens");
            client.get(path).await.expect("it answers")
        });
        let reply = reply.await;
        assert_eq!(reply.head.status, 200, "{path}");
        reply.body
    }

    /// A metric's value.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await;
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in\n{text}"))
    }

    /// Asks it to end.
    pub async fn terminate(mut self) -> ExitStatus {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), Signal::TERM).expect("our own process");
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it ends when told to").expect("our own process")
    }

    /// Kills it, as a crash would.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("our own process");
    }
}

impl Drop for EntryNode {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.start_kill();
        if std::thread::panicking() {
            let log = fs::read(&self.log).unwrap_or_default();
            eprintln!("--- {} ---\n{}", self.log.display(), String::from_utf8_lossy(&log));
        }
    }
}
