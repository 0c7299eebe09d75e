//! What the machine has to give: keys to believe, room on the disk, ports.

use super::Finding;
use crate::acl;
use crate::config::Config;
use crate::dialect::Dialect;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

/// Room below which the disk counts as full: the store stops keeping nars before.
const LITTLE_ROOM_BYTES: u64 = 1 << 30;

/// Whose signatures are believed.
pub fn keys(config: &Config) -> Finding {
    const CHECK: &str = "keys";
    let loaded = match acl::load(&config.acl, Dialect::of_store(&config.store)) {
        Ok(loaded) => loaded,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let found = format!("{error}{}", cause.unwrap_or_default());
            return Finding::problem(CHECK, found, "repair the file, or name another with --acl");
        }
    };
    let from = match &loaded.files[..] {
        [] => "built in, of Guix's build farms".to_owned(),
        files => files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    let (count, skipped) = (loaded.acl.len(), loaded.skipped.len());
    if loaded.acl.is_empty() {
        let advice = "no substitute can be believed: authorise the farms' keys (guix archive \
                      --authorize)";
        return Finding::problem(CHECK, format!("none is believed ({from})"), advice);
    }
    if skipped > 0 {
        let found = format!("{count} believed ({from}), {skipped} entries passed over");
        return Finding::note(CHECK, found);
    }
    Finding::ok(CHECK, format!("{count} believed ({from})"))
}

/// Room where the nars go.
pub fn disk(config: &Config) -> Finding {
    const CHECK: &str = "disk";
    let dir = config.data_dir.display();
    // A new node's directory isn't there yet.
    let there = config.data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let gib = free as f64 / f64::from(1 << 30);
            if free < LITTLE_ROOM_BYTES {
                let found = format!("{gib:.1} GiB are free for {dir}");
                let advice = "make room, lower cache_gib, or choose another --data-dir: nars are \
                              passed on, but not kept";
                return Finding::problem(CHECK, found, advice);
            }
            Finding::ok(CHECK, format!("{gib:.0} GiB are free for {dir}"))
        }
        Err(error) => {
            let found = format!("{dir} can't be looked at: {error}");
            Finding::problem(CHECK, found, "choose another with --data-dir")
        }
    }
}

/// Whether the ports that a node would take are free.
pub fn ports(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "ports";
    let mut findings = Vec::new();
    if let Err(error) = TcpListener::bind(config.http) {
        let found = format!("{} can't be listened on for guix: {error}", config.http);
        findings.push(Finding::problem(CHECK, found, "end what listens there, or say --http"));
    }
    for address in &config.listen {
        if let Some(Err(error)) = try_listen(address) {
            let found = format!("{address} can't be listened on for peers: {error}");
            findings.push(if config.listen_is_default {
                Finding::note(CHECK, found + "; a node would take a free port")
            } else {
                Finding::problem(CHECK, found, "end what listens there, or say --listen")
            });
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "those that a node would take are free"));
    }
    findings
}

fn try_listen(address: &Multiaddr) -> Option<std::io::Result<()>> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(listen_tcp(SocketAddr::new(ip, port))),
        Protocol::Udp(port) => Some(UdpSocket::bind((ip, port)).map(drop)),
        _ => None,
    }
}

/// IPv6 beside IPv4, as the node listens: both on one port.
fn listen_tcp(address: SocketAddr) -> std::io::Result<()> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}
