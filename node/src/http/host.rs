//! The check of the `Host` header, against DNS rebinding: a web page may resolve its own name to
//! 127.0.0.1 and then read from this server what is meant for the machine alone. Such a request
//! still carries the page's name, which is refused here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The names by which this server may be called.
#[derive(Debug, Clone)]
pub(super) struct HostPolicy {
    /// Listening on loopback alone: addresses of other networks are no names of this server.
    loopback_only: bool,
    /// In lower case, without port and without a final dot.
    names: Vec<String>,
}

impl HostPolicy {
    /// The policy for a server that listens on `address`. On loopback: `localhost`, loopback
    /// addresses and `names`. Elsewhere also any other address literal (a name is what rebinding
    /// needs) and the machine's own name, bare and below `.local`.
    pub fn new(address: IpAddr, names: &[String]) -> Self {
        let loopback_only = address.is_loopback();
        let mut names: Vec<String> = names.iter().map(|n| normal(n)).collect();
        names.push("localhost".to_owned());
        if let (false, Some(own)) = (loopback_only, machine_name()) {
            names.push(format!("{own}.local"));
            names.push(own);
        }
        Self { loopback_only, names }
    }

    /// Whether a request that names `host` (with or without a port) is meant for this server.
    pub fn admits(&self, host: &[u8]) -> bool {
        let Some(name) = std::str::from_utf8(host).ok().and_then(without_port) else {
            return false;
        };
        match address(name) {
            Some(address) => !self.loopback_only || address.to_canonical().is_loopback(),
            None => self.names.contains(&normal(name)),
        }
    }
}

fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn without_port(host: &str) -> Option<&str> {
    // In `[::1]` the colons belong to the address.
    let port_at = host.rfind(']').unwrap_or(0);
    let Some(colon) = host[port_at..].find(':') else { return Some(host) };
    let (name, port) = host.split_at(port_at + colon);
    port[1..].bytes().all(|c| c.is_ascii_digit()).then_some(name)
}

/// The kernel's name of this machine; without one, only configured names are admitted.
fn machine_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = normal(name.trim());
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_loopback_only_loopback_names() {
        let policy = HostPolicy::new(Ipv4Addr::LOCALHOST.into(), &["Box.Example".to_owned()]);
        for good in [
            "localhost",
            "LocalHost:8710",
            "localhost.:1",
            "127.0.0.1",
            "127.8.9.1:65535",
            "[::1]",
            "[::1]:8710",
            "[::ffff:127.0.0.1]:1",
            "box.example",
            "BOX.example:80",
        ] {
            assert!(policy.admits(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "192.168.1.5",
            "[fe80::1]:80",
            "[::1",
            "::1",
            "localhost:80:80",
            "localhost:8x",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "2130706433",
            "évil",
        ] {
            assert!(!policy.admits(bad.as_bytes()), "{bad}");
        }
        assert!(!policy.admits(b"\xff\xfe"));
    }

    #[test]
    fn elsewhere_also_addresses_and_the_machines_name() {
        let policy = HostPolicy::new(Ipv4Addr::UNSPECIFIED.into(), &[]);
        for good in ["192.168.1.5:8710", "[fe80::1]:80", "localhost", "127.0.0.1"] {
            assert!(policy.admits(good.as_bytes()), "{good}");
        }
        if let Some(own) = machine_name() {
            assert!(policy.admits(format!("{own}.local:8710").as_bytes()));
        }
        assert!(!policy.admits(b"evil.example"));
    }
}
