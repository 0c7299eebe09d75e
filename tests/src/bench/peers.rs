//! One nar from a seed to a workstation to an HTTP client: three processes on loopback.

use super::content::LargeItem;
use super::process::{Meter, Used};
use crate::harness::delay::DelayProxy;
use crate::harness::http_client::HttpClient;
use crate::harness::node::Stage;
use crate::harness::waiting::until;
use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// One transfer.
#[derive(Debug)]
pub struct Transfer {
    /// From the request to the body's first octets.
    pub first_byte: Duration,
    /// From the request to the body's last octet.
    pub whole: Duration,
    /// What the seed used until the workstation had kept the nar.
    pub seed: Used,
    /// What the workstation used until then.
    pub workstation: Used,
}

/// Starts the seed whose data stands under the name `seed`, and a new workstation of this name;
/// has the latter fetch the item for an HTTP client that drops it; and ends both.
///
/// The nodes are connected and the narinfo is known before the clock starts. `one_way` puts them
/// apart.
///
/// # Errors
/// When the client doesn't get the whole nar.
pub async fn transfer(
    stage: &Stage,
    key: &Path,
    name: &str,
    item: &LargeItem,
    one_way: Option<Duration>,
) -> anyhow::Result<Transfer> {
    let seed = stage.node("seed").acl(key).arg("--role").arg("seed").start().await;
    let mut address = seed.peer_address().to_owned();
    let line = match one_way {
        Some(one_way) => Some(apart(&mut address, one_way).await?),
        None => None,
    };
    let workstation = stage.node(name).acl(key).bootstrap(&address).start().await;
    workstation.has_peers(1).await;
    let mut client = HttpClient::connect(workstation.http()).await?;
    let narinfo = client.get(&item.narinfo_path()).await?;
    ensure!(narinfo.head.status == 200, "the workstation finds no narinfo of {}", item.item);
    let (at_seed, at_workstation) = (Meter::start(seed.pid())?, Meter::start(workstation.pid())?);
    let (first_byte, whole) = fetch(&mut client, &item.nar_path(), item.nar_bytes).await?;
    until("the nar to be kept", async || workstation.status().await.items.cached > 0).await;
    let transfer =
        Transfer { first_byte, whole, seed: at_seed.read()?, workstation: at_workstation.read()? };
    let from_peers = workstation.status().await.bytes.from_peers;
    ensure!(from_peers > 0, "nothing has come from the peer");
    let folder = workstation.data_dir().to_owned();
    workstation.terminate().await;
    seed.terminate().await;
    drop(line);
    std::fs::remove_dir_all(folder)?;
    Ok(transfer)
}

/// Reads a body and drops it; tells when it began and when it was complete.
///
/// # Errors
/// When it isn't complete.
pub async fn fetch(
    client: &mut HttpClient,
    path: &str,
    bytes: u64,
) -> anyhow::Result<(Duration, Duration)> {
    let (start, mut first_byte, mut received) = (Instant::now(), None, 0);
    let head = client.get_into(path, |octets| {
        first_byte.get_or_insert_with(|| start.elapsed());
        received += octets.len() as u64;
    });
    let head = head.await.with_context(|| format!("{path} was cut off"))?;
    let whole = start.elapsed();
    ensure!(head.status == 200 && received == bytes, "{path}: {} {received}", head.status);
    Ok((first_byte.context("an empty body")?, whole))
}

/// Puts a delaying line before the node at this address, and the line's address in its place.
async fn apart(address: &mut String, one_way: Duration) -> anyhow::Result<DelayProxy> {
    let mut parts: Vec<String> = address.split('/').map(str::to_owned).collect();
    let [_, _, ip, _, port, ..] = parts.as_slice() else {
        anyhow::bail!("{address} has no TCP port");
    };
    let node = SocketAddr::new(ip.parse()?, port.parse()?);
    let line = DelayProxy::start(node, one_way).await?;
    parts[4] = line.address().port().to_string();
    *address = parts.join("/");
    Ok(line)
}
