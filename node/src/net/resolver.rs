//! Which servers names are asked of.

use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
use hickory_resolver::system_conf::read_system_conf;
use libp2p::dns::{ResolverConfig, ResolverOpts};
use std::net::SocketAddr;
use std::time::Duration;

/// How long one server is waited for; each is asked twice.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);

/// Why names can't be resolved.
#[derive(Debug, thiserror::Error)]
#[error("no usable resolver configuration ({reason}); name a server by the setting `resolver`")]
pub struct ResolverError {
    reason: String,
}

/// The configuration for this server, or that of the system.
///
/// # Errors
/// [`ResolverError`] when the system has none that can be understood.
pub fn config(server: Option<SocketAddr>) -> Result<(ResolverConfig, ResolverOpts), ResolverError> {
    let (config, mut options) = match server {
        None => read_system_conf().map_err(|error| ResolverError { reason: error.to_string() })?,
        Some(server) => {
            let on_port = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let mut named = NameServerConfig::udp(server.ip());
            named.connections =
                vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
            (ResolverConfig::from_name_servers(vec![named]), ResolverOpts::default())
        }
    };
    options.timeout = options.timeout.min(SERVER_TIMEOUT);
    options.attempts = options.attempts.min(2);
    Ok((config, options))
}
