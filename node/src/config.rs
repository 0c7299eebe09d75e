//! Configuration: flags > environment (`NARSWARM_*`) > file (TOML) > defaults.
//!
//! Every setting is optional in the file, and unknown ones are refused, so that a misspelt name
//! doesn't silently mean its default.

pub mod layers;

use crate::dialect::Dialect;
use crate::entry::dns::parse_name;
use crate::entry::list::ListSource;
use crate::rate::Rate;
use crate::voucher_peer::VoucherPeer;
use anyhow::{Context, anyhow, ensure};
use clap::{Args, ValueEnum};
use layers::{list, parsed};
use libp2p::Multiaddr;
use narswarm_protocol::fetch::UpstreamMode;
use narswarm_protocol::limits::MAX_ENTRY_SOURCES;
use narswarm_protocol::seed_list::SeedListKey;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use url::Url;

/// Where the shim listens: loopback, on a port that no registered service uses.
const DEFAULT_HTTP: &str = "127.0.0.1:8710";
/// Where peers connect to, TCP and QUIC, both address families.
pub const DEFAULT_LISTEN: [&str; 4] = [
    "/ip4/0.0.0.0/tcp/8711",
    "/ip6/::/tcp/8711",
    "/ip4/0.0.0.0/udp/8711/quic-v1",
    "/ip6/::/udp/8711/quic-v1",
];
/// The system-wide configuration file, read when there is one and `--config` isn't given.
const SYSTEM_CONFIG: &str = "/etc/narswarm/config.toml";
/// Default quota of the nar cache: a few system generations, little on today's disks.
const DEFAULT_CACHE_GIB: u64 = 20;
/// Before the 40 of `cache.nixos.org`, since the node asks that itself where the swarm has nothing.
const DEFAULT_PRIORITY: u32 = 30;

/// The store of Guix.
const DEFAULT_STORE: &str = "/gnu/store";
/// Where guix keeps narinfos that it has fetched (`guix/substitutes.scm`,
/// `%narinfo-cache-directory`).
const DEFAULT_GUIX_CACHE: &str = "/var/guix/substitute/cache";
/// A store of 3,000 items is looked up within ten minutes; guix asks a thousand at once.
const DEFAULT_STORE_LOOKUPS_PER_MINUTE: u32 = 300;

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Fetches, and shares what it has fetched.
    #[default]
    Workstation,
    /// An institution's mirror: shares what was imported, evicts nothing.
    Seed,
    /// Fetches for localhost and shares nothing.
    Proxy,
}

impl Role {
    /// The name used on the command line and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workstation => "workstation",
            Self::Seed => "seed",
            Self::Proxy => "proxy",
        }
    }
}

/// How swarm and upstream share the work, as spelt in flags and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ModeName {
    /// Upstream joins when the swarm has nobody, or is late.
    #[default]
    SwarmFirst,
    /// Both begin at once.
    Race,
    /// Upstream is never asked.
    SwarmOnly,
    /// Peers are never asked.
    UpstreamOnly,
}

impl From<ModeName> for UpstreamMode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::SwarmFirst => Self::SwarmFirst,
            ModeName::Race => Self::Race,
            ModeName::SwarmOnly => Self::SwarmOnly,
            ModeName::UpstreamOnly => Self::UpstreamOnly,
        }
    }
}

/// What of what this node has others may know and get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// All that is public: the cache, and the items of the store that an authorised key has signed.
    #[default]
    Public,
    /// Only what came through narswarm: the cache, and those items of the store.
    Fetched,
    /// Nothing: this node only consumes.
    Nothing,
}

/// What every subcommand takes.
#[derive(Debug, Clone, Default, Args)]
pub struct CommonArgs {
    /// Configuration file (TOML) [default: /etc/narswarm/config.toml, if there is one].
    #[arg(long, env = "NARSWARM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the node keeps its key, index and nars [default: /var/lib/narswarm for root, else
    /// the user's data directory].
    #[arg(long, env = "NARSWARM_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Whose signatures are believed.
#[derive(Debug, Clone, Default, Args)]
pub struct AclArgs {
    /// File with the keys whose signatures are believed: Guix's ACL, one `(public-key …)`, Nix's
    /// keys as NAME:BASE64, or a nix.conf [default: /etc/guix/acl, else the keys of Guix's build
    /// farms; for Nix's store /etc/nix/nix.conf]. Repeatable.
    #[arg(long, env = "NARSWARM_ACL", value_delimiter = ':', value_name = "FILE")]
    pub acl: Vec<PathBuf>,
}

/// Settings of a running node that can be given as flags.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// What the node is for [default: workstation].
    #[arg(long, env = "NARSWARM_ROLE")]
    pub role: Option<Role>,
    /// Where guix connects to; port 0 takes a free one [default: 127.0.0.1:8710].
    #[arg(long, env = "NARSWARM_HTTP", value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// Where peers connect to [default: port 8711, TCP and QUIC]. Repeatable.
    #[arg(long, env = "NARSWARM_LISTEN", value_delimiter = ',', value_name = "MULTIADDR")]
    pub listen: Vec<Multiaddr>,
    /// A node to enter the swarm by, with its /p2p/ part. Repeatable.
    #[arg(long, env = "NARSWARM_BOOTSTRAP", value_delimiter = ',', value_name = "MULTIADDR")]
    pub bootstrap: Vec<Multiaddr>,
    /// Don't use the built-in entry nodes.
    #[arg(long)]
    pub no_default_bootstrap: bool,
    /// Name whose TXT records (_dnsaddr.NAME) list entry nodes. Repeatable.
    #[arg(long, env = "NARSWARM_DNSADDR", value_delimiter = ',', value_name = "NAME", value_parser = parse_name)]
    pub dnsaddr: Vec<String>,
    /// Signed list of entry nodes, at a URL or in a file. Repeatable.
    #[arg(long, env = "NARSWARM_SEED_LIST", value_delimiter = ',', value_name = "URL|FILE")]
    pub seed_list: Vec<ListSource>,
    /// Key whose signature on such a list is believed. Repeatable.
    #[arg(long, env = "NARSWARM_SEED_LIST_KEY", value_delimiter = ',', value_name = "KEY")]
    pub seed_list_key: Vec<SeedListKey>,
    /// Don't look for peers on the local network.
    #[arg(long)]
    pub no_mdns: bool,
    /// Address at which others reach this node, such as that of a forwarded port. Repeatable.
    #[arg(long, env = "NARSWARM_EXTERNAL", value_delimiter = ',', value_name = "MULTIADDR")]
    pub external: Vec<Multiaddr>,
    /// Don't ask the router for a port.
    #[arg(long)]
    pub no_upnp: bool,
    /// Substitute server to fall back on [default: Guix's build farms, for Nix's store
    /// cache.nixos.org]. Repeatable, in order.
    #[arg(long, env = "NARSWARM_UPSTREAM", value_delimiter = ',', value_name = "URL")]
    pub upstream: Vec<Url>,
    /// Use no substitute server at all.
    #[arg(long, conflicts_with = "upstream")]
    pub no_upstream: bool,
    /// How swarm and upstream share the work [default: swarm-first].
    #[arg(long, env = "NARSWARM_UPSTREAM_MODE")]
    pub upstream_mode: Option<ModeName>,
    /// Most that is given to peers, such as 500kB/s or 20Mbit/s [default: unlimited].
    #[arg(long, env = "NARSWARM_UPLOAD_RATE", value_name = "RATE")]
    pub upload_rate: Option<Rate>,
    /// Most that is given to each peer [default: unlimited].
    #[arg(long, env = "NARSWARM_UPLOAD_RATE_PER_PEER", value_name = "RATE")]
    pub upload_rate_per_peer: Option<Rate>,
    /// Most that is downloaded, from peers and substitute servers together [default: unlimited].
    #[arg(long, env = "NARSWARM_DOWNLOAD_RATE", value_name = "RATE")]
    pub download_rate: Option<Rate>,
    /// Peer whose word for the pieces of a nar is believed, as that of your institution's seed
    /// [default: none]. Repeatable.
    #[arg(long, env = "NARSWARM_VOUCHER_KEY", value_delimiter = ',', value_name = "PEER_ID")]
    pub voucher_key: Vec<VoucherPeer>,
    /// The store that substitutes are for [default: /gnu/store].
    #[arg(long, env = "NARSWARM_STORE", value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The store's database [default: that of Guix or Nix, by the store, if there is one].
    #[arg(long, env = "NARSWARM_STORE_DB", value_name = "FILE")]
    pub store_db: Option<PathBuf>,
    /// Don't read the store: share only what is in the cache.
    #[arg(long, conflicts_with = "store_db")]
    pub no_store: bool,
    /// What others may get [default: public].
    #[arg(long, env = "NARSWARM_SHARE")]
    pub share: Option<Share>,
}

/// The file, in which everything is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    data_dir: Option<PathBuf>,
    role: Option<Role>,
    http: Option<SocketAddr>,
    http_names: Option<Vec<String>>,
    listen: Option<Vec<Multiaddr>>,
    bootstrap: Option<Vec<Multiaddr>>,
    default_bootstrap: Option<bool>,
    dnsaddr: Option<Vec<String>>,
    seed_lists: Option<Vec<ListSource>>,
    seed_list_keys: Option<Vec<SeedListKey>>,
    resolver: Option<SocketAddr>,
    mdns: Option<bool>,
    external: Option<Vec<Multiaddr>>,
    upnp: Option<bool>,
    traverse_nat: Option<bool>,
    relay: Option<bool>,
    upstreams: Option<Vec<Url>>,
    upstream_mode: Option<ModeName>,
    acl: Option<Vec<PathBuf>>,
    voucher_keys: Option<Vec<VoucherPeer>>,
    store: Option<PathBuf>,
    share_store: Option<bool>,
    store_db: Option<PathBuf>,
    guix_cache: Option<PathBuf>,
    store_lookups_per_minute: Option<u32>,
    share: Option<Share>,
    share_include: Option<Vec<String>>,
    share_exclude: Option<Vec<String>>,
    priority: Option<u32>,
    cache_gib: Option<u64>,
    upload_rate: Option<Rate>,
    upload_rate_per_peer: Option<Rate>,
    download_rate: Option<Rate>,
}

/// The configuration in effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Where the node keeps its key, index and nars.
    pub data_dir: PathBuf,
    /// What the node is for.
    pub role: Role,
    /// Where guix connects to.
    pub http: SocketAddr,
    /// Names, besides this machine's addresses, under which clients may ask the shim; all others
    /// are refused, against DNS rebinding.
    pub http_names: Vec<String>,
    /// Where peers connect to.
    pub listen: Vec<Multiaddr>,
    /// Nodes to enter the swarm by.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether the built-in entry nodes are used as well.
    pub default_bootstrap: bool,
    /// Names whose TXT records list entry nodes.
    pub dnsaddr: Vec<String>,
    /// Signed lists of entry nodes, at URLs or in files.
    pub seed_lists: Vec<ListSource>,
    /// Keys whose signatures on such lists are believed.
    pub seed_list_keys: Vec<SeedListKey>,
    /// The DNS server that is asked for names of peers; those of the system when there is none.
    pub resolver: Option<SocketAddr>,
    /// Whether peers are looked for on the local network.
    pub mdns: bool,
    /// Addresses at which others reach this node, such as that of a forwarded port.
    pub external: Vec<Multiaddr>,
    /// Whether the router is asked for a port.
    pub upnp: bool,
    /// Whether to find out if others can reach this node, and to be reached through relays and holes
    /// in NATs if they can't.
    pub traverse_nat: bool,
    /// Whether to help those whom nobody reaches, within bounds, once others can reach this node.
    pub relay: bool,
    /// Substitute servers to fall back on, in order; none when empty.
    pub upstreams: Vec<Url>,
    /// How swarm and upstream share the work.
    pub upstream_mode: ModeName,
    /// Files with the keys whose signatures are believed; when empty, `/etc/guix/acl`, or the keys
    /// of Guix's build farms; for Nix's store, `/etc/nix/nix.conf`.
    pub acl: Vec<PathBuf>,
    /// Peers whose word for the pieces of a nar is believed; that of others counts only when it is
    /// confirmed. Whatever they say, guix gets what is signed.
    pub voucher_keys: Vec<VoucherPeer>,
    /// The store that substitutes are for. If it is Nix's, so are the defaults of `upstreams` and
    /// `acl`.
    pub store: PathBuf,
    /// Whether public items of the store are shared.
    pub share_store: bool,
    /// The store's database; where it is by default depends on the store.
    pub store_db: PathBuf,
    /// guix's own cache of narinfos, which is looked into before anybody is asked.
    pub guix_cache: PathBuf,
    /// For how many items of the store a minute peers and substitute servers are asked whether they
    /// have a narinfo of it; none are asked when 0.
    pub store_lookups_per_minute: u32,
    /// What others may know and get.
    pub share: Share,
    /// Patterns of names; only items that match one are shared from the store. All, when empty.
    pub share_include: Vec<String>,
    /// Patterns of names; items that match one are never given to others.
    pub share_exclude: Vec<String>,
    /// When Nix asks this server, among all that it knows: the lowest first.
    pub priority: u32,
    /// Most that the nar cache takes, in GiB; a seed's has no bound.
    pub cache_gib: u64,
    /// Most that is given to all peers together.
    pub upload_rate: Rate,
    /// Most that is given to each peer.
    pub upload_rate_per_peer: Rate,
    /// Most that is downloaded, from peers and substitute servers together.
    pub download_rate: Rate,
    /// Whether the peer addresses were chosen by the user: only the default ones may give way to
    /// free ports.
    #[serde(skip)]
    pub listen_is_default: bool,
    /// Whether the database was named by the user: only then must it be there.
    #[serde(skip)]
    pub store_db_is_default: bool,
}

impl Config {
    /// Merges flags (and the environment, through them), the file and the defaults.
    ///
    /// # Errors
    /// An unreadable or malformed file, by its name.
    pub fn load(common: &CommonArgs, acl: &AclArgs, node: &NodeArgs) -> anyhow::Result<Self> {
        let file: FileConfig = layers::read(SYSTEM_CONFIG, common.config.as_deref())?;
        let listen_is_default = node.listen.is_empty() && file.listen.is_none();
        let store = node.store.clone().or(file.store).unwrap_or_else(|| DEFAULT_STORE.into());
        let upstreams = if node.no_upstream {
            Vec::new()
        } else {
            let default = Dialect::of_store(&store).upstreams();
            list(&node.upstream, file.upstreams, || parsed(default))
        };
        let store_db = node.store_db.clone().or(file.store_db);
        let store_db_is_default = store_db.is_none();
        let dnsaddr = list(&node.dnsaddr, file.dnsaddr, Vec::new);
        let dnsaddr: Result<Vec<_>, _> = dnsaddr.iter().map(|name| parse_name(name)).collect();
        let dnsaddr = dnsaddr.map_err(|error| anyhow!("dnsaddr: {error}"))?;
        let seed_lists = list(&node.seed_list, file.seed_lists, Vec::new);
        let seed_list_keys = list(&node.seed_list_key, file.seed_list_keys, Vec::new);
        ensure!(
            seed_lists.is_empty() || !seed_list_keys.is_empty(),
            "seed lists are named, but no key to believe: say seed_list_keys as well"
        );
        ensure!(
            dnsaddr.len() + seed_lists.len() <= MAX_ENTRY_SOURCES,
            "more than {MAX_ENTRY_SOURCES} names and lists of entry nodes: any one suffices"
        );
        Ok(Self {
            data_dir: match common.data_dir.clone().or(file.data_dir) {
                Some(dir) => dir,
                None => default_data_dir()?,
            },
            role: node.role.or(file.role).unwrap_or_default(),
            http: node.http.or(file.http).unwrap_or_else(|| {
                DEFAULT_HTTP.parse().expect("the default address is well-formed")
            }),
            http_names: file.http_names.unwrap_or_default(),
            listen: list(&node.listen, file.listen, || parsed(&DEFAULT_LISTEN)),
            bootstrap: list(&node.bootstrap, file.bootstrap, Vec::new),
            default_bootstrap: !node.no_default_bootstrap && file.default_bootstrap.unwrap_or(true),
            dnsaddr,
            seed_lists,
            seed_list_keys,
            resolver: file.resolver,
            mdns: !node.no_mdns && file.mdns.unwrap_or(true),
            external: list(&node.external, file.external, Vec::new),
            upnp: !node.no_upnp && file.upnp.unwrap_or(true),
            traverse_nat: file.traverse_nat.unwrap_or(true),
            relay: file.relay.unwrap_or(true),
            upstreams,
            upstream_mode: node.upstream_mode.or(file.upstream_mode).unwrap_or_default(),
            acl: list(&acl.acl, file.acl, Vec::new),
            voucher_keys: list(&node.voucher_key, file.voucher_keys, Vec::new),
            share_store: !node.no_store && file.share_store.unwrap_or(true),
            store_db: store_db
                .unwrap_or_else(|| Dialect::of_store(&store).store_database().to_owned()),
            store,
            guix_cache: file.guix_cache.unwrap_or_else(|| DEFAULT_GUIX_CACHE.into()),
            store_lookups_per_minute: file
                .store_lookups_per_minute
                .unwrap_or(DEFAULT_STORE_LOOKUPS_PER_MINUTE),
            share: node.share.or(file.share).unwrap_or_default(),
            share_include: file.share_include.unwrap_or_default(),
            share_exclude: file.share_exclude.unwrap_or_default(),
            priority: file.priority.unwrap_or(DEFAULT_PRIORITY),
            cache_gib: file.cache_gib.unwrap_or(DEFAULT_CACHE_GIB),
            upload_rate: node.upload_rate.or(file.upload_rate).unwrap_or_default(),
            upload_rate_per_peer: node
                .upload_rate_per_peer
                .or(file.upload_rate_per_peer)
                .unwrap_or_default(),
            download_rate: node.download_rate.or(file.download_rate).unwrap_or_default(),
            listen_is_default,
            store_db_is_default,
        })
    }
}

/// Where the data is when nothing is said.
///
/// # Errors
/// When the user has no home directory.
pub fn default_data_dir() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/narswarm".into());
    }
    let user = directories::BaseDirs::new()
        .context("this user has no home directory: say --data-dir DIR")?;
    Ok(user.data_local_dir().join("narswarm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, node: &NodeArgs) -> anyhow::Result<Config> {
        let mut named = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut named, file.as_bytes())?;
        let common = CommonArgs {
            config: Some(named.path().into()),
            data_dir: Some("/nowhere/data".into()),
        };
        Config::load(&common, &AclArgs::default(), node)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "role = \"seed\"\nhttp = \"127.0.0.1:1\"\nupstreams = [\"http://file.example\"]";
        let flags =
            NodeArgs { http: Some("127.0.0.1:2".parse().expect("address")), ..Default::default() };
        let config = load(file, &flags).expect("config");
        assert_eq!(config.role, Role::Seed);
        assert_eq!(config.http.port(), 2);
        assert_eq!(config.upstreams.len(), 1);
        assert_eq!(config.upstream_mode, ModeName::SwarmFirst);
        let none = load(file, &NodeArgs { no_upstream: true, ..Default::default() });
        assert!(none.expect("config").upstreams.is_empty());
    }

    #[test]
    fn rates_are_taken_from_flags_and_the_file_with_their_units() {
        let file = "upload_rate = \"20Mbit/s\"\ndownload_rate = \"1MB/s\"";
        let download_rate = Some("500kB/s".parse().expect("a rate"));
        let flags = NodeArgs { download_rate, ..Default::default() };
        let config = load(file, &flags).expect("config");
        assert_eq!(config.upload_rate.bytes_per_second(), Some(2_500_000));
        assert_eq!(config.upload_rate_per_peer.bytes_per_second(), None);
        assert_eq!(config.download_rate.bytes_per_second(), Some(500_000));
        let error = load("upload_rate = \"fast\"", &NodeArgs::default()).expect_err("no rate");
        assert!(format!("{error:#}").contains("500kB/s"), "says how it is written: {error:#}");
    }

    #[test]
    fn misspelt_settings_are_refused_by_name() {
        let error = load("htpp = \"127.0.0.1:1\"", &NodeArgs::default()).expect_err("misspelt");
        assert!(format!("{error:#}").contains("htpp"), "{error:#}");
    }

    #[test]
    fn the_sample_file_says_what_the_defaults_are() {
        let sample = include_str!("../../packaging/config.toml");
        let all: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix("#: "))
            .map(|line| format!("{line}\n"))
            .collect();
        let none = NodeArgs::default();
        let with_sample = load(&all, &none).expect("the sample is valid");
        let without = load("", &none).expect("the empty file is valid");
        let with_sample =
            Config { listen_is_default: true, store_db_is_default: true, ..with_sample };
        assert_eq!(with_sample, without);
    }
}
