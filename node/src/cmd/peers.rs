//! `narswarm peers`: who is connected to the running node, and whom it knows.

use crate::config::{AclArgs, CommonArgs, Config, NodeArgs};
use crate::control::{self, view::PeersView};
use clap::Args;
use comfy_table::{Table, presets};
use std::process::ExitCode;

/// Known peers that are listed for a person; all of them are in the JSON.
const SHOWN_KNOWN: usize = 20;

/// Arguments of `peers`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Print all of it as JSON.
    #[arg(long)]
    json: bool,
}

/// Lists peers.
///
/// # Errors
/// When no node runs on the data directory.
pub fn run(args: PeersArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.common, &AclArgs::default(), &NodeArgs::default())?;
    let peers = control::view_of(&config.data_dir)?.peers;
    if args.json {
        println!("{}", serde_json::to_string(&peers)?);
    } else {
        println!("{}", describe(&peers));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(peers: &PeersView) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["peer", "where", "", "ms", "agent", "received", "sent"]);
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    for peer in &peers.connected {
        table.add_row([
            peer.peer_id.clone(),
            peer.addresses.join("\n"),
            format!("{}{}", peer.direction, if peer.lan { ", local" } else { "" }),
            peer.rtt_ms.map(|rtt| format!("{rtt:.1}")).unwrap_or_default(),
            peer.agent.clone(),
            mib(peer.received_bytes),
            mib(peer.sent_bytes),
        ]);
    }
    let (connected, known) = (peers.connected.len(), peers.known.len());
    let mut lines = vec![format!("{connected} connected"), table.to_string()];
    lines.push(format!("{known} known besides"));
    for peer in peers.known.iter().take(SHOWN_KNOWN) {
        lines.push(format!("  {}  {}", peer.peer_id, peer.addresses.join(" ")));
    }
    if known > SHOWN_KNOWN {
        lines.push(format!("  and {} more: --json lists them", known - SHOWN_KNOWN));
    }
    lines.join("\n")
}
