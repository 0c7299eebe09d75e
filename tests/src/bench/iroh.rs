//! iroh-blobs, through the comparison program beside this crate (`compare-iroh-blobs`), which is
//! built by itself so that its dependencies are not ours.

use super::process::{Meter, Used};
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Longest time that one of its processes takes to say something.
const PATIENCE: Duration = Duration::from_secs(120);

/// One transfer.
#[derive(Debug)]
pub struct Transfer {
    /// Until the first verified octets.
    pub first_byte_s: f64,
    /// Until all were there.
    pub whole_s: f64,
    /// What the provider used.
    pub provider: Used,
    /// What the getter used.
    pub getter: Used,
}

#[derive(Deserialize)]
struct Provided {
    id: String,
    address: String,
    hashes: Vec<String>,
}

#[derive(Deserialize)]
struct Got {
    bytes: u64,
    first_byte_s: f64,
    whole_s: f64,
}

/// Has one process give `file` to another, on loopback; `scratch` is a new directory.
///
/// With `into_store`, the getter keeps the blob; else it is verified and dropped.
///
/// # Errors
/// When the program is missing or fails.
pub async fn transfer(
    program: &Path,
    file: &Path,
    scratch: &Path,
    into_store: bool,
) -> anyhow::Result<Transfer> {
    std::fs::create_dir_all(scratch)?;
    let mut command = Command::new(program);
    command.arg("provide").arg("--store").arg(scratch.join("provider")).arg(file);
    let mut provider = Side::start(command)?;
    let provided: Provided = provider.hear().await?;
    let [hash] = provided.hashes.as_slice() else { bail!("one file has one hash") };
    let mut command = Command::new(program);
    command.args(["get", "--id", &provided.id, "--address", &provided.address, "--hash", hash]);
    if into_store {
        command.arg("--store").arg(scratch.join("getter"));
    }
    let mut getter = Side::start(command)?;
    let _: serde_json::Value = getter.hear().await?;
    let (at_provider, at_getter) = (provider.meter()?, getter.meter()?);
    getter.stdin.write_all(b"go\n").await?;
    let got: Got = getter.hear().await?;
    let transfer = Transfer {
        first_byte_s: got.first_byte_s,
        whole_s: got.whole_s,
        provider: at_provider.read()?,
        getter: at_getter.read()?,
    };
    let size = std::fs::metadata(file)?.len();
    ensure!(got.bytes == size, "iroh-blobs gave {} of {size} octets", got.bytes);
    getter.end().await?;
    provider.end().await?;
    Ok(transfer)
}

/// Where the comparison program is, unless it is said: where cargo puts it when it is built in
/// its own directory.
#[must_use]
pub fn usual_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("compare-iroh-blobs/target/release/compare-iroh-blobs")
}

/// One of its processes; killed when dropped.
struct Side {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Side {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("the comparison program can't be started")?;
        let stdin = child.stdin.take().context("its stdin is a pipe")?;
        let stdout = child.stdout.take().context("its stdout is a pipe")?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.context("the comparison program says nothing")??;
        Ok(serde_json::from_str(&line.context("the comparison program has ended")?)?)
    }

    fn meter(&self) -> anyhow::Result<Meter> {
        Meter::start(self.child.id().context("the comparison program has ended")?)
    }

    async fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin);
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.context("the comparison program doesn't end")??;
        ensure!(status.success(), "the comparison program has failed: {status}");
        Ok(())
    }
}
