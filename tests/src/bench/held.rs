//! Nars that a node holds, over HTTP, beside nginx with the same files.

use super::content::LargeItem;
use super::nginx::Nginx;
use super::peers::fetch;
use super::process::Meter;
use super::report::{Aim, Report};
use super::run::in_turn;
use crate::harness::http_client::HttpClient;
use crate::harness::node::Stage;
use anyhow::ensure;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;

/// One file that both can be asked for.
struct Subject {
    label: String,
    path: String,
    bytes: u64,
}

/// Adds the times of the node of the name `seed` and of nginx to the report. `mirror` holds the
/// nars of the `items`, each with what it is called in the report.
///
/// # Errors
/// When somebody doesn't give what it holds.
pub async fn measure(
    stage: &Stage,
    key: &Path,
    mirror: &Path,
    items: &[(String, LargeItem)],
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let node = stage.node("seed").acl(key).arg("--role").arg("seed").start().await;
    let nginx = Nginx::start(mirror, &stage.path("nginx")).await?;
    std::fs::create_dir_all(mirror.join("nar/zstd"))?;
    let mut subjects = Vec::new();
    for (label, item) in items {
        let plain = Subject {
            label: format!("{label}, held"),
            path: item.nar_path(),
            bytes: item.nar_bytes,
        };
        // nginx serves the very octets that the node makes of its pieces.
        let path = item.zstd_path();
        let bytes = save(node.http(), &path, &mirror.join(&path[1..])).await?;
        subjects.push(plain);
        subjects.push(Subject { label: format!("{label}, held, zstd"), path, bytes });
    }
    let sides = [("narswarm", node.http(), node.pid()), ("nginx", nginx.address(), nginx.pid())];
    let turns: Vec<_> = subjects.iter().flat_map(|s| sides.map(|side| (s, side))).collect();
    for round in 0..rounds {
        for (subject, (side, address, pid)) in in_turn(&turns, round) {
            let meter = Meter::start(*pid)?;
            let mut client = HttpClient::connect(*address).await?;
            let (_, whole) = fetch(&mut client, &subject.path, subject.bytes).await?;
            let used = meter.read()?;
            let what = format!("{}: {side}", subject.label);
            report.sample(&what, "ms", whole.as_secs_f64() * 1e3);
            report.sample(format!("{what}, processor"), "ms", used.cpu_s * 1e3);
        }
    }
    for Subject { label, .. } in &subjects {
        let (ours, reference) = (format!("{label}: narswarm"), format!("{label}: nginx"));
        report.compare(&ours, &reference, Some(Aim::AtMost(1.25)));
    }
    node.terminate().await;
    Ok(())
}

/// Downloads into a new file and tells its length.
async fn save(address: SocketAddr, path: &str, file: &Path) -> anyhow::Result<u64> {
    let mut out = BufWriter::new(File::create(file)?);
    let (mut written, mut outcome) = (0, Ok(()));
    let mut client = HttpClient::connect(address).await?;
    let head = client.get_into(path, |octets| {
        written += octets.len() as u64;
        if outcome.is_ok() {
            outcome = out.write_all(octets);
        }
    });
    let head = head.await?;
    ensure!(head.status == 200, "{path}: {}", head.status);
    outcome?;
    out.flush()?;
    Ok(written)
}
