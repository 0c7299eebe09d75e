//! One host of the lab.

use super::line::Line;
use super::namespace::Namespace;
use std::net::Ipv4Addr;

/// What a host's interface has carried, with the headers of Ethernet, IP and TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Octets received.
    pub received: u64,
    /// Octets sent.
    pub sent: u64,
}

impl Carried {
    /// What was carried since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { received: self.received - before.received, sent: self.sent - before.sent }
    }
}

/// A host: a namespace with an interface, `eth0`, at the switch.
#[derive(Debug, Clone)]
pub struct Host {
    pub(super) namespace: Namespace,
    pub(super) address: Ipv4Addr,
    pub(super) line: Line,
}

impl Host {
    /// Where others reach it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its line.
    #[must_use]
    pub fn line(&self) -> Line {
        self.line
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What its interface has carried so far.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn carried(&self) -> Carried {
        // Of the thread: that of the process is of where its first thread is.
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
        let text = self.namespace.enter(read).expect("Linux tells");
        carried(&text, "eth0").expect("every host has this interface")
    }

    /// Takes it off the network without a word to anybody: what it sends and what is sent to it
    /// vanishes, as when a cable is pulled behind a router.
    pub fn cut_off(&self) {
        let rules = "add table inet lab\n\
                     add chain inet lab in { type filter hook input priority 0; }\n\
                     add chain inet lab out { type filter hook output priority 0; }\n\
                     add rule inet lab in iifname \"eth0\" drop\n\
                     add rule inet lab out oifname \"eth0\" drop\n";
        self.namespace.run("nft", &["-f", "-"], rules);
    }
}

/// Reads the table of `/proc/net/dev`.
fn carried(table: &str, interface: &str) -> Option<Carried> {
    let line = table.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == interface).then_some(numbers)
    })?;
    let mut numbers = line.split_ascii_whitespace();
    Some(Carried { received: numbers.next()?.parse().ok()?, sent: numbers.nth(7)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets\n\
                     lo:  10  1 0 0 0 0 0 0  10 1 0 0 0 0 0 0\n\
                     eth0: 5123  7 0 0 0 0 0 0  42 3 0 0 0 0 0 0\n";
        assert_eq!(carried(table, "eth0"), Some(Carried { received: 5123, sent: 42 }));
        assert_eq!(carried(table, "eth1"), None);
    }
}
