//! `narswarm run`: a node, until it is told to stop.

use crate::config::{AclArgs, CommonArgs, Config, NodeArgs};
use crate::http::raise_descriptor_limit;
use crate::node::Node;
use clap::Args;
use sd_notify::NotifyState;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    acl: AclArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs a node until SIGINT or SIGTERM; SIGHUP has it read the files with the keys anew.
///
/// # Errors
/// What keeps the node from starting.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    super::log_to_stderr();
    let config = Config::load(&args.common, &args.acl, &args.node)?;
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        // Before anybody can know that the node runs, so that no signal takes it by surprise.
        let (hangup, stopped) = (signal(SignalKind::hangup())?, super::stop_signal()?);
        let node = Node::start(config).await?;
        let status = format!("substitute URL: http://{}", node.http());
        tell_manager(&[NotifyState::Ready, NotifyState::Status(&status)]);
        until_stopped(&node, hangup, stopped).await;
        info!("stopping");
        tell_manager(&[NotifyState::Stopping]);
        node.stop().await;
        Ok(ExitCode::SUCCESS)
    });
    // Reads that hang on a dead disk must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

/// Tells systemd, if it is what has started the node.
fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("the service manager can't be told how the node is doing: {error}");
    }
}

async fn until_stopped(node: &Node, mut hangup: Signal, stopped: impl Future<Output = ()>) {
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            _ = hangup.recv() => node.reload_acl(),
        }
    }
}
