//! The running node's control socket, `DATA/control.sock`: how subcommands that need the data
//! directory work while a node holds it.
//!
//! One JSON object a line in each direction. The socket lies in a directory that only the owner
//! can enter, so whoever can connect may ask.

pub mod view;

use crate::engine::mirror::{self, Report};
use crate::engine::{Engine, SharedEntry};
use crate::entry::Entry;
use crate::net::Net;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::warn;
use view::NodeView;

/// What a subcommand asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// Take in these mirrors.
    Import { sources: Vec<PathBuf> },
    /// Tell what others can learn of this node's holdings.
    Shared,
    /// Show what there is to see.
    View,
}

/// A line of the answer to [`Request::Shared`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SharedReport {
    /// Some of it.
    Items(Vec<SharedEntry>),
    /// That was all.
    Done,
    /// The rest can't be told.
    Failed(String),
}

/// How long a running node may take to show it: it does so from memory.
const VIEW_PATIENCE: Duration = Duration::from_secs(10);

/// Longest request: a few hundred paths.
const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// Where the socket of a data directory is.
#[must_use]
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// Begins to listen; the future serves until it is dropped.
///
/// # Errors
/// When the socket can't be made.
pub fn listen(
    data_dir: PathBuf,
    engine: Engine,
    net: Net,
    entry: Entry,
) -> anyhow::Result<impl Future<Output = ()>> {
    let path = socket(&data_dir);
    // The lock on the data directory is ours, so a socket found here is a dead node's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot make the control socket {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(async move {
        let _cleanup = RemoveOnDrop(path);
        while let Ok((stream, _)) = listener.accept().await {
            let (engine, net, entry) = (engine.clone(), net.clone(), entry.clone());
            tokio::spawn(async move {
                if let Err(error) = serve(stream, engine, &net, &entry).await {
                    warn!("control socket: {error:#}");
                }
            });
        }
    })
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn serve(stream: UnixStream, engine: Engine, net: &Net, entry: &Entry) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(reader.take(MAX_REQUEST_BYTES)).read_line(&mut line).await?;
    match serde_json::from_str(&line)? {
        Request::Import { sources } => serve_import(&mut writer, engine, sources).await,
        Request::Shared => serve_shared(&mut writer, engine).await,
        Request::View => write_line(&mut writer, &view::view(net, entry).await).await,
    }
}

async fn serve_shared(writer: &mut OwnedWriteHalf, engine: Engine) -> anyhow::Result<()> {
    let (say, mut said) = mpsc::channel(4);
    let work = tokio::task::spawn_blocking(move || {
        let listed =
            engine.list_shared(|page| say.blocking_send(SharedReport::Items(page)).is_ok());
        let last = match listed {
            Ok(()) => SharedReport::Done,
            Err(error) => SharedReport::Failed(error.to_string()),
        };
        let _ = say.blocking_send(last);
    });
    while let Some(report) = said.recv().await {
        write_line(writer, &report).await?;
    }
    Ok(work.await?)
}

async fn write_line(writer: &mut OwnedWriteHalf, report: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    Ok(writer.write_all(&line).await?)
}

async fn serve_import(
    writer: &mut OwnedWriteHalf,
    engine: Engine,
    sources: Vec<PathBuf>,
) -> anyhow::Result<()> {
    let (say, mut said) = mpsc::channel(64);
    let importer = engine.clone();
    let work = tokio::task::spawn_blocking(move || {
        let acl = importer.acl();
        let store = importer.store();
        mirror::import(&store, &acl, &sources, &|report| say.blocking_send(report).is_ok())
    });
    while let Some(report) = said.recv().await {
        if matches!(report, Report::Done(_)) {
            // Before the other side knows: whoever asks next gets what is there now.
            engine.forget_misses();
        }
        write_line(writer, &report).await?;
    }
    work.await?;
    engine.held_more().await;
    Ok(())
}

/// Has the node that holds `data_dir` import mirrors, and hears its reports; blocking.
///
/// # Errors
/// When the node can't be reached or goes away before the end.
pub fn import(
    data_dir: &Path,
    sources: Vec<PathBuf>,
    mut hear: impl FnMut(Report),
) -> anyhow::Result<()> {
    let path = socket(data_dir);
    let mut stream = std::os::unix::net::UnixStream::connect(&path)
        .with_context(|| format!("cannot reach the running node at {}", path.display()))?;
    let mut line = serde_json::to_vec(&Request::Import { sources })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        let report: Report = serde_json::from_str(&line?)?;
        let last = matches!(report, Report::Done(_));
        hear(report);
        if last {
            return Ok(());
        }
    }
    anyhow::bail!("the running node went away before the import was done")
}

/// Has the node that holds `data_dir` tell what others can learn of its holdings; blocking.
///
/// # Errors
/// When the node can't be reached, or can't tell all of it.
pub fn shared(data_dir: &Path, mut hear: impl FnMut(Vec<SharedEntry>)) -> anyhow::Result<()> {
    let path = socket(data_dir);
    let mut stream = std::os::unix::net::UnixStream::connect(&path)
        .with_context(|| format!("cannot reach the running node at {}", path.display()))?;
    let mut line = serde_json::to_vec(&Request::Shared)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            SharedReport::Items(items) => hear(items),
            SharedReport::Done => return Ok(()),
            SharedReport::Failed(error) => anyhow::bail!("the list is not complete: {error}"),
        }
    }
    anyhow::bail!("the running node went away before the list was complete")
}

/// What the node that holds `data_dir` shows; blocking.
///
/// # Errors
/// When none runs there, or it doesn't answer in time.
pub fn view_of(data_dir: &Path) -> anyhow::Result<NodeView> {
    let path = socket(data_dir);
    let mut stream = std::os::unix::net::UnixStream::connect(&path).with_context(|| {
        format!(
            "no node is running on {} (nobody listens at {})",
            data_dir.display(),
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(VIEW_PATIENCE))?;
    let mut line = serde_json::to_vec(&Request::View)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("the node doesn't answer")?;
    serde_json::from_str(&answer).context("the node's answer isn't understood: is it an older one?")
}
