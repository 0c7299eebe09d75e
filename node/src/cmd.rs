//! One file for each subcommand: its arguments and `run`.

pub mod check;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod import;
pub mod peers;
pub mod run;
pub mod shared;
pub mod status;

/// Logs to standard error, as `RUST_LOG` says, else what a user wants to know.
pub fn log_to_stderr() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,libp2p=warn,sled=warn"));
    // A second call, by a test in the same process, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

/// Waits for SIGTERM or SIGINT, those included that come from now on before it is waited.
///
/// # Errors
/// When the system doesn't tell of them.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
