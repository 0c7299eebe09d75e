//! The substitute client against real sockets and servers of every temper.

mod narinfos;
mod nars;
mod server;

use super::{UpstreamConfig, Upstreams};
use narswarm_protocol::store_path::StoreHash;
use std::time::Duration;
use url::Url;

/// As in production, but with deadlines that a test can await.
fn impatient() -> UpstreamConfig {
    UpstreamConfig {
        connect_timeout: Duration::from_secs(2),
        silence: Duration::from_millis(300),
        answer_timeout: Duration::from_millis(900),
        first_byte_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(300),
        ..UpstreamConfig::default()
    }
}

fn upstreams(urls: &[&Url]) -> Upstreams {
    with_config(urls, impatient())
}

fn with_config(urls: &[&Url], config: UpstreamConfig) -> Upstreams {
    Upstreams::new(urls.iter().map(|&url| url.clone()).collect(), config).expect("usable URLs")
}

/// The `n`th of many store hashes.
fn hash(n: usize) -> StoreHash {
    let mut octets = [7; 20];
    octets[..8].copy_from_slice(&(n as u64).to_be_bytes());
    StoreHash(octets)
}

/// Where nothing listens.
fn dead_url() -> Url {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = gone.local_addr().expect("an address").port();
    Url::parse(&format!("http://127.0.0.1:{port}")).expect("a URL")
}
