//! The switch and the hosts at it.

use super::delay_line::DelayLine;
use super::host::Host;
use super::line::{Line, shaping};
use super::namespace::Namespace;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Most hosts: what the last two octets of their addresses tell apart, with room.
const MAX_HOSTS: usize = 4000;

/// Which addresses hosts have.
#[derive(Debug, Clone, Copy)]
struct Plan {
    first: Ipv4Addr,
    step: u32,
    /// All of them.
    range: (Ipv4Addr, u8),
    most: usize,
}

/// One private network.
const PRIVATE: Plan = Plan {
    first: Ipv4Addr::new(10, 99, 0, 1),
    step: 1,
    range: (Ipv4Addr::new(10, 99, 0, 0), 16),
    most: MAX_HOSTS,
};

/// Addresses that nobody on the Internet has and programs take for public ones (RFC 2544), each in a
/// network of its own.
const INTERNET: Plan = Plan {
    first: Ipv4Addr::new(198, 18, 0, 1),
    step: 256,
    range: (Ipv4Addr::new(198, 18, 0, 0), 15),
    most: 512,
};

/// How connections find their rate: what Linux does where nobody has chosen otherwise, whatever
/// was chosen on this machine. It is said of the route, since a namespace's default can only be
/// what the machine allows to everybody.
const CONGESTION_CONTROL: &str = "cubic";

/// A network, for as long as this lasts.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    plan: Plan,
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
        Self::with(PRIVATE)
    }

    /// The same, where hosts have public addresses.
    #[must_use]
    pub fn internet() -> Self {
        Self::with(INTERNET)
    }

    fn with(plan: Plan) -> Self {
        let switch = Namespace::create();
        switch.set("ipv6/conf/all/disable_ipv6", "1");
        switch.run("ip", &["-batch", "-"], "link add switch type bridge\nlink set switch up\n");
        Self { switch, plan, hosts: Vec::new(), delays: Vec::new() }
    }

    /// Adds a host with this line.
    ///
    /// # Panics
    /// When there are too many.
    pub fn add(&mut self, line: Line) -> Host {
        let number = self.hosts.len();
        let Plan { first, step, range: (range, bits), most } = self.plan;
        assert!(number < most, "the lab has no address left");
        let namespace = Namespace::create();
        namespace.set("ipv6/conf/all/disable_ipv6", "1");
        let port = format!("port{number}");
        if line.one_way.is_zero() {
            self.connect(&namespace, &port);
        } else {
            self.delays.push(DelayLine::lay(&self.switch, &port, &namespace, line.one_way));
        }
        let address = Ipv4Addr::from_bits(first.to_bits() + number as u32 * step);
        let up = format!(
            "link set lo up\naddress add {address}/{bits} broadcast + dev eth0\nlink set eth0 up\n\
             route replace {range}/{bits} dev eth0 src {address} congctl {CONGESTION_CONTROL}\n"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::line::Mbps;
    use crate::lab::needs;
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    const BYTES: usize = 500_000;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn lines_take_as_long_as_they_should_and_can_be_cut() {
        if !needs::are_met() {
            return;
        }
        let mut network = Network::new();
        let near = network.add(Line::free());
        let round_trip = Duration::from_millis(40);
        let far = network.add(Line { up: Some(Mbps(20.0)), ..Line::free().far(round_trip) });
        let address = SocketAddr::from((far.address(), 1234));
        let listener = far.namespace().listen(address).expect("a free port");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(&vec![7; BYTES]).await.expect("the other side reads");
            }
        });
        let start = Instant::now();
        let mut stream = near.namespace().connect(address).await.expect("a connection");
        assert!(start.elapsed() >= round_trip, "{:?}", start.elapsed());
        let mut octets = Vec::new();
        stream.read_to_end(&mut octets).await.expect("a connection");
        assert_eq!(octets, vec![7; BYTES]);
        // 0.2 s at this rate, but for what passes at once.
        assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
        assert!(far.carried().sent > BYTES as u64 && near.carried().received > BYTES as u64);
        far.cut_off();
        let again = timeout(Duration::from_millis(300), near.namespace().connect(address));
        assert!(again.await.is_err(), "a line that is cut carries nothing");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn programs_in_a_host_see_only_its_network() {
        if !needs::are_met() {
            return;
        }
        let mut network = Network::new();
        let host = network.add(Line::of(20.0, 100.0));
        let output = host.namespace().command("cat").arg("/proc/net/dev").output();
        let table = String::from_utf8(output.expect("cat").stdout).expect("text");
        let mut interfaces: Vec<_> =
            table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
        interfaces.sort_unstable();
        assert_eq!(interfaces, ["eth0", "lo"]);
        let address = host.address();
        let runtime = host.namespace().runtime();
        let bound = runtime.run(async move { tokio::net::TcpListener::bind((address, 0)).await });
        assert_eq!(bound.await.expect("its address").local_addr().expect("bound").ip(), address);
    }
}
