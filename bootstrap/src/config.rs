//! Configuration: flags > environment (`NARSWARM_*`) > file (TOML) > defaults, as of the node.
//!
//! Every setting is optional in the file, and unknown ones are refused.

use anyhow::ensure;
use clap::Args;
use libp2p::Multiaddr;
use narswarm_node::config::DEFAULT_LISTEN;
use narswarm_node::config::layers::{self, list, parsed};
use narswarm_protocol::limits::MAX_PROVIDER_RECORDS;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The system-wide configuration file, read when there is one and `--config` isn't given.
const SYSTEM_CONFIG: &str = "/etc/narswarm/bootstrap.toml";

/// Where the directory of root's entry node is; other users have theirs.
const SYSTEM_DATA_DIR: &str = "/var/lib/narswarm-bootstrap";

/// Where health and metrics are shown: loopback, beside the port of an ordinary node's shim.
const DEFAULT_HTTP: &str = "127.0.0.1:8712";

/// Most connections: at 30 to 60 KiB each within 256 MiB.
const DEFAULT_MAX_CONNECTIONS: u32 = 4096;

/// How long a connection that nobody uses is kept: a newcomer's first lookups take seconds.
const DEFAULT_IDLE: Duration = Duration::from_secs(120);

/// Most places for those whom nobody reaches: each is a connection that stays.
const DEFAULT_RELAY_RESERVATIONS: usize = 512;

/// Most connections that are relayed at a time.
const DEFAULT_RELAY_CIRCUITS: usize = 64;

/// Most that is relayed over one connection: a few small nars; what is larger is to find a direct
/// way, or another peer.
const DEFAULT_RELAY_CIRCUIT_MIB: u64 = 16;

/// Where the configuration and the data are.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file (TOML) [default: /etc/narswarm/bootstrap.toml, if there is one].
    #[arg(long, env = "NARSWARM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the key is kept [default: /var/lib/narswarm-bootstrap for root, else in the user's
    /// data directory].
    #[arg(long, env = "NARSWARM_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Where the configuration and the data are.
    #[command(flatten)]
    pub common: ConfigArgs,
    /// Where peers connect to [default: port 8711, TCP and QUIC]. Repeatable.
    #[arg(long, env = "NARSWARM_LISTEN", value_delimiter = ',', value_name = "MULTIADDR")]
    pub listen: Vec<Multiaddr>,
    /// Where /healthz and /metrics are [default: 127.0.0.1:8712].
    #[arg(long, env = "NARSWARM_HTTP", value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// Address at which others reach this node, if its own interfaces don't have it. Repeatable.
    #[arg(long, env = "NARSWARM_EXTERNAL", value_delimiter = ',', value_name = "MULTIADDR")]
    pub external: Vec<Multiaddr>,
    /// Another entry node, with its /p2p/ part. Repeatable.
    #[arg(long, env = "NARSWARM_BOOTSTRAP", value_delimiter = ',', value_name = "MULTIADDR")]
    pub bootstrap: Vec<Multiaddr>,
}

/// The file, in which everything is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    data_dir: Option<PathBuf>,
    listen: Option<Vec<Multiaddr>>,
    http: Option<SocketAddr>,
    external: Option<Vec<Multiaddr>>,
    bootstrap: Option<Vec<Multiaddr>>,
    max_connections: Option<u32>,
    #[serde(with = "humantime_serde")]
    idle: Option<Duration>,
    autonat: Option<bool>,
    relay_reservations: Option<usize>,
    relay_circuits: Option<usize>,
    relay_circuit_mib: Option<u64>,
    records: Option<usize>,
}

/// The configuration in effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Where the key is kept.
    pub data_dir: PathBuf,
    /// Where peers connect to.
    pub listen: Vec<Multiaddr>,
    /// Where health and metrics are shown.
    pub http: SocketAddr,
    /// Addresses at which others reach this node; when empty, all that are listened on.
    pub external: Vec<Multiaddr>,
    /// Other entry nodes.
    pub bootstrap: Vec<Multiaddr>,
    /// Most connections; those made longest ago make room.
    pub max_connections: u32,
    /// How long a connection that nobody uses is kept.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Whether the addresses of others are tried for them.
    pub autonat: bool,
    /// Most peers that are reached through this node; 0 relays nothing.
    pub relay_reservations: usize,
    /// Most connections that are relayed at a time.
    pub relay_circuits: usize,
    /// Most that one of them may carry, in MiB.
    pub relay_circuit_mib: u64,
    /// Most announcements of others that are kept; 0 keeps none.
    pub records: usize,
}

impl Config {
    /// Merges flags (and the environment, through them), the file and the defaults.
    ///
    /// # Errors
    /// An unreadable or malformed file, by its name; a setting that makes no sense.
    pub fn load(args: &RunArgs) -> anyhow::Result<Self> {
        let file: FileConfig = layers::read(SYSTEM_CONFIG, args.common.config.as_deref())?;
        let config = Self {
            data_dir: match args.common.data_dir.clone().or(file.data_dir) {
                Some(dir) => dir,
                None => default_data_dir()?,
            },
            listen: list(&args.listen, file.listen, || parsed(&DEFAULT_LISTEN)),
            http: args.http.or(file.http).unwrap_or_else(|| {
                DEFAULT_HTTP.parse().expect("the default address is well-formed")
            }),
            external: list(&args.external, file.external, Vec::new),
            bootstrap: list(&args.bootstrap, file.bootstrap, Vec::new),
            max_connections: file.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
            idle: file.idle.unwrap_or(DEFAULT_IDLE),
            autonat: file.autonat.unwrap_or(true),
            relay_reservations: file.relay_reservations.unwrap_or(DEFAULT_RELAY_RESERVATIONS),
            relay_circuits: file.relay_circuits.unwrap_or(DEFAULT_RELAY_CIRCUITS),
            relay_circuit_mib: file.relay_circuit_mib.unwrap_or(DEFAULT_RELAY_CIRCUIT_MIB),
            records: file.records.unwrap_or(MAX_PROVIDER_RECORDS),
        };
        ensure!(
            config.max_connections >= 16,
            "max_connections is {}: with fewer than 16 nobody finds in",
            config.max_connections
        );
        Ok(config)
    }
}

fn default_data_dir() -> anyhow::Result<PathBuf> {
    // The node's own rule, with a name beside its own.
    let node = narswarm_node::config::default_data_dir()?;
    let beside = node.parent().map(|parent| parent.join("narswarm-bootstrap"));
    Ok(beside.unwrap_or_else(|| SYSTEM_DATA_DIR.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, mut args: RunArgs) -> anyhow::Result<Config> {
        let mut named = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut named, file.as_bytes())?;
        args.common =
            ConfigArgs { config: Some(named.path().into()), data_dir: Some("/nowhere".into()) };
        Config::load(&args)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "http = \"127.0.0.1:1\"\nidle = \"5s\"\nmax_connections = 100";
        let http = Some("127.0.0.1:2".parse().expect("an address"));
        let config = load(file, RunArgs { http, ..RunArgs::default() }).expect("a configuration");
        assert_eq!(config.http.port(), 2);
        assert_eq!((config.idle, config.max_connections), (Duration::from_secs(5), 100));
        assert_eq!(config.listen, parsed(&DEFAULT_LISTEN));
    }

    #[test]
    fn what_is_misspelt_or_senseless_is_refused_by_name() {
        for (file, name) in
            [("max_conections = 1", "max_conections"), ("max_connections = 2", "16")]
        {
            let error = load(file, RunArgs::default()).expect_err(file);
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }

    #[test]
    fn the_sample_file_says_what_the_defaults_are() {
        let sample = include_str!("../../packaging/bootstrap.toml");
        let all: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix("#: "))
            .map(|line| format!("{line}\n"))
            .collect();
        let fields = toml::Table::try_from(load("", RunArgs::default()).expect("defaults"));
        for name in fields.expect("a table").keys().filter(|name| *name != "data_dir") {
            assert!(all.contains(&format!("{name} = ")), "the sample doesn't show {name}");
        }
        let none = RunArgs::default();
        assert_eq!(
            load(&all, none.clone()).expect("the sample is valid"),
            load("", none).expect("the empty file is valid")
        );
    }
}
