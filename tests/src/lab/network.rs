//! The switch and the hosts at it.

use super::delay_line::DelayLine;
use super::host::Host;
use super::line::{Line, shaping};
use super::namespace::Namespace;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Most hosts: what the last two octets of their addresses tell apart, with room.
const MAX_HOSTS: usize = 4000;

/// How connections find their rate: what Linux does where nobody has chosen otherwise, whatever
/// was chosen on this machine. It is said of the route, since a namespace's default can only be
/// what the machine allows to everybody.
const CONGESTION_CONTROL: &str = "cubic";

/// A network, for as long as this lasts.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    hosts: Vec<Host>,
    delays: Vec<DelayLine>,
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// A switch that nobody is at.
    ///
    /// # Panics
    /// Without the right to make one; see [`super::needs`].
    #[must_use]
    pub fn new() -> Self {
        let switch = Namespace::create();
        switch.set("ipv6/conf/all/disable_ipv6", "1");
        switch.run("ip", &["-batch", "-"], "link add switch type bridge\nlink set switch up\n");
        Self { switch, hosts: Vec::new(), delays: Vec::new() }
    }

    /// Adds a host with this line.
    ///
    /// # Panics
    /// When there are too many.
    pub fn add(&mut self, line: Line) -> Host {
        let number = self.hosts.len();
        assert!(number < MAX_HOSTS, "the lab has no address left");
        let namespace = Namespace::create();
        namespace.set("ipv6/conf/all/disable_ipv6", "1");
        let port = format!("port{number}");
        if line.one_way.is_zero() {
            self.connect(&namespace, &port);
        } else {
            self.delays.push(DelayLine::lay(&self.switch, &port, &namespace, line.one_way));
        }
        // 10.99.0.1 is the first.
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 99, 0, 1).to_bits() + number as u32);
        let up = format!(
            "link set lo up\naddress add {address}/16 broadcast + dev eth0\nlink set eth0 up\n\
             route replace 10.99.0.0/16 dev eth0 src {address} congctl {CONGESTION_CONTROL}\n"
        );
        namespace.run("ip", &["-batch", "-"], &up);
        let join = format!("link set {port} master switch up\n");
        self.switch.run("ip", &["-batch", "-"], &join);
        if let Some(rate) = line.up {
            namespace.run("tc", &["-batch", "-"], &shaping("eth0", rate));
        }
        if let Some(rate) = line.down {
            self.switch.run("tc", &["-batch", "-"], &shaping(&port, rate));
        }
        let host = Host { namespace, address, line };
        self.hosts.push(host.clone());
        host
    }

    /// Adds this many hosts with lines of the same kind.
    pub fn add_many(&mut self, count: usize, line: Line) -> Vec<Host> {
        (0..count).map(|_| self.add(line)).collect()
    }

    /// A pair of interfaces: one at the switch, one in the host.
    fn connect(&self, host: &Namespace, port: &str) {
        let mut pair = String::new();
        let holder = host.holder();
        // Writing to memory cannot fail.
        let _ = writeln!(pair, "link add {port} type veth peer name eth0 netns {holder}");
        self.switch.run("ip", &["-batch", "-"], &pair);
    }
}
