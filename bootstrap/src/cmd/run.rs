//! `narswarm-bootstrap run`: an entry node, until it is told to stop.

use crate::config::{Config, RunArgs};
use crate::node::Node;
use narswarm_node::cmd::{log_to_stderr, stop_signal};
use narswarm_node::http::raise_descriptor_limit;
use std::process::ExitCode;
use tracing::info;

/// Runs an entry node until SIGINT or SIGTERM.
///
/// # Errors
/// What keeps it from starting.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr();
    let config = Config::load(args)?;
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before anybody can know that the node runs, so that no signal takes it by surprise.
        let stopped = stop_signal()?;
        let node = Node::start(config).await?;
        stopped.await;
        info!("stopping");
        node.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}
