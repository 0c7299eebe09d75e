//! The part of the swarm's task that sees to it that this node can be reached.
//!
//! It feeds [`Reachability`] and does what follows: confirms addresses, asks for places at relays,
//! keeps QUIC connections by which a NAT shows itself, answers lookups only while reachable, helps
//! others then, and drops relayed connections beside direct ones.

use super::guard::Guard;
use super::probe::Tested;
use super::relays::Relays;
use super::settling::Settling;
use super::{Reachability, is_direct, is_quic, without_peer};
use crate::net::book::{Reach, reach};
use crate::net::config::NetConfig;
use crate::net::events::NetEvent;
use crate::net::swarm::Task;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, dcutr, identify, kad, relay};
use narswarm_protocol::limits::{
    ADDRESS_PATIENCE, CONFIRMATION_PATIENCE, OBSERVERS_WANTED, PUNCH_PATIENCE, RELAYED_GRACE,
};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long before a peer is dialled again by QUIC only to be seen.
const OBSERVER_PAUSE: Duration = Duration::from_secs(60);

/// When a relayed connection that this node has made is made anew, so that both sides try again to
/// connect straight: the first time, one of them may not have known its own address yet.
const PUNCH_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_secs(4), Duration::from_secs(30), Duration::from_secs(300)];

/// How long the three attempts of DCUtR over one connection may take.
const PUNCH_TIME: Duration = Duration::from_secs(35);

/// Peers whose attempts are remembered.
const MAX_PUNCHED: usize = 1024;

/// A connection, as far as it matters here.
struct Connection {
    peer: PeerId,
    remote: Multiaddr,
    since: Instant,
    direct: bool,
    /// Not on this machine or its network.
    far: bool,
    /// Made by this node from a port that it listens on: what the remote sees then is where others
    /// can come in, if anybody can.
    shows: bool,
    /// Made by this node.
    dialled: bool,
}

/// Attempts to replace a relayed connection by a direct one, made by this node.
#[derive(Default)]
struct Attempts {
    count: usize,
    last: Option<Instant>,
}

/// See the module.
pub struct Reaching {
    state: Reachability,
    guard: Guard,
    relays: Relays,
    connections: HashMap<ConnectionId, Connection>,
    /// Connected peers that offer to relay.
    hops: HashSet<PeerId>,
    /// Peers that were dialled by QUIC to be seen by them, and when.
    observers: HashMap<PeerId, Instant>,
    /// Peers that were only reached through relays.
    punched: HashMap<PeerId, Attempts>,
    /// Since when somebody far away is connected.
    far_since: Option<Instant>,
    /// When to tell others that this node's addresses have changed.
    settling: Settling,
    has_external: bool,
    traverse: bool,
    help: bool,
    server: bool,
    mode: Option<kad::Mode>,
}

impl Reaching {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(config: &NetConfig, guard: Guard) -> Self {
        Self {
            state: Reachability::default(),
            guard,
            relays: Relays::default(),
            connections: HashMap::new(),
            hops: HashSet::new(),
            observers: HashMap::new(),
            punched: HashMap::new(),
            far_since: None,
            settling: Settling::new(Instant::now()),
            has_external: false,
            traverse: config.reach.traverse,
            help: config.reach.help,
            server: config.server,
            mode: None,
        }
    }

    /// Lets a near address be dialled, as whoever named it is near himself or the user.
    pub fn allow(&self, address: &Multiaddr) {
        self.guard.allow(address);
    }

    /// Whether to answer lookups. Among neighbours alone everybody does; who cannot be reached from
    /// afar would only be waited for there.
    fn wanted_mode(&self) -> kad::Mode {
        let reachable = self.state.is_reachable()
            || self.far_since.is_none()
            || (!self.traverse && self.state.has_far_interface());
        if self.server && reachable { kad::Mode::Server } else { kad::Mode::Client }
    }

    /// Whether others can be told where this node is. Announcing before would send them nowhere.
    fn has_address(&self, now: Instant) -> bool {
        let Some(since) = self.far_since else { return true };
        self.settling.is_still() && (self.has_external || now >= since + ADDRESS_PATIENCE)
    }

    /// Whether this node needs somebody through whom it is reached.
    fn needs_help(&self, now: Instant) -> bool {
        let Some(since) = self.far_since else { return false };
        let patient = self.state.has_far_interface() && now < since + CONFIRMATION_PATIENCE;
        self.traverse && !self.state.is_reachable() && !patient
    }

    fn direct(&self, peer: PeerId) -> impl Iterator<Item = &Connection> {
        self.connections.values().filter(move |c| c.peer == peer && c.direct)
    }

    /// Relayed connections that a direct one has replaced, and those that were made only to try
    /// again and haven't led to one: what is under way goes over the oldest.
    fn superfluous(&self, now: Instant) -> Vec<ConnectionId> {
        let replaced = |c: &Connection| {
            let mut others = self.connections.values().filter(|other| other.peer == c.peer);
            !c.direct
                && others.any(|other| {
                    (other.direct && now >= other.since + RELAYED_GRACE)
                        || (other.since < c.since && now >= c.since + PUNCH_TIME)
                })
        };
        self.connections.iter().filter(|(_, c)| replaced(c)).map(|(id, _)| *id).collect()
    }

    /// Peers that this node has reached only through relays, with whom it is time to try again to
    /// connect straight.
    fn due_punches(&mut self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let direct: HashSet<_> =
            self.connections.values().filter(|c| c.direct).map(|c| c.peer).collect();
        let newest = |c: &Connection| {
            let mut others = self.connections.values().filter(|other| other.peer == c.peer);
            others.all(|other| other.since <= c.since)
        };
        let relayed = self.connections.values().filter(|c| !c.direct && c.dialled && newest(c));
        let relayed: Vec<_> = relayed
            .filter(|c| !direct.contains(&c.peer))
            .map(|c| (c.peer, c.remote.clone(), c.since))
            .collect();
        let mut due = Vec::new();
        for (peer, remote, since) in relayed {
            if self.punched.len() >= MAX_PUNCHED && !self.punched.contains_key(&peer) {
                continue;
            }
            let attempts = self.punched.entry(peer).or_default();
            let last = attempts.last.map_or(since, |last| last.max(since));
            if PUNCH_AGAIN_AFTER.get(attempts.count).is_some_and(|pause| now >= last + *pause) {
                *attempts = Attempts { count: attempts.count + 1, last: Some(now) };
                due.push((peer, remote));
            }
        }
        due
    }
}

impl Task {
    /// A connection was made.
    pub(in crate::net) fn reach_connected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
        now: Instant,
    ) {
        let remote = endpoint.get_remote_address().clone();
        let direct = !endpoint.is_relayed();
        let far = direct && reach(&remote) == Some(Reach::Everywhere);
        let shows = matches!(endpoint, ConnectedPoint::Dialer { port_use: PortUse::Reuse, .. });
        let unsolicited = direct && !self.reaching.guard.has_contacted(&remote);
        let dialled = endpoint.is_dialer();
        let connection =
            Connection { peer, remote: remote.clone(), since: now, direct, far, shows, dialled };
        self.reaching.connections.insert(id, connection);
        if direct {
            self.reaching.punched.remove(&peer);
            self.control.punch_over(peer);
        } else if self.reaching.direct(peer).next().is_none() {
            self.control.punching(peer, now + PUNCH_PATIENCE);
        }
        if let ConnectedPoint::Listener { local_addr, .. } = endpoint
            && unsolicited
        {
            let local = self.listened_on(local_addr);
            let confirmed = self.reaching.state.knocked(&local, &remote);
            self.confirm(confirmed);
        }
        self.count_far(now);
    }

    /// A connection has ended.
    pub(in crate::net) fn reach_closed(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        self.reaching.connections.remove(&id);
        if self.reaching.direct(peer).next().is_none() {
            self.reaching.hops.remove(&peer);
            self.reaching.observers.remove(&peer);
        }
        if !self.reaching.connections.values().any(|other| other.peer == peer) {
            self.reaching.punched.remove(&peer);
        }
        self.count_far(now);
    }

    fn count_far(&mut self, now: Instant) {
        let far = self.reaching.connections.values().any(|connection| connection.far);
        self.reaching.guard.set_strangers(far);
        self.reaching.far_since = far.then(|| self.reaching.far_since.unwrap_or(now));
        self.follow_reachability();
    }

    /// The address by which somebody has come in: QUIC tells only that it was any interface's, which
    /// is one address if this node has only one that strangers can know.
    fn listened_on(&self, local: &Multiaddr) -> Multiaddr {
        let any = |part: Protocol<'_>| match part {
            Protocol::Ip4(ip) => ip.is_unspecified(),
            Protocol::Ip6(ip) => ip.is_unspecified(),
            _ => false,
        };
        if !local.iter().next().is_some_and(any) {
            return local.clone();
        }
        let view = self.view.lock();
        let same = |address: &&Multiaddr| {
            reach(address) == Some(Reach::Everywhere)
                && super::kind(address) == super::kind(local)
                && address.iter().skip(1).eq(local.iter().skip(1))
        };
        let mut own = view.listen.iter().filter(same);
        own.next().filter(|_| own.next().is_none()).unwrap_or(local).clone()
    }

    /// A peer has told what it offers and what it sees.
    pub(in crate::net) fn reach_identified(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        info: &identify::Info,
    ) {
        let reaching = &mut self.reaching;
        let Some(connection) = reaching.connections.get(&id) else { return };
        if connection.direct && info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
            reaching.hops.insert(peer);
        } else if connection.direct {
            reaching.hops.remove(&peer);
        }
        let near = reach(&connection.remote).filter(|reach| *reach < Reach::Everywhere);
        if let Some(near) = near {
            // Who is near may tell of what is near.
            for address in info.listen_addrs.iter().filter(|a| reach(a).is_some_and(|r| r >= near))
            {
                reaching.guard.allow(address);
            }
        }
        if connection.shows && connection.far {
            let (remote, seen) = (connection.remote.clone(), info.observed_addr.clone());
            reaching.state.observed(&remote, seen.clone());
            if let Some(probe) = self.swarm.behaviour_mut().probe.as_mut() {
                probe.suggest(seen);
            }
            self.follow_reachability();
        }
    }

    /// The addresses listened on have changed.
    pub(in crate::net) fn reach_listens(&mut self, gone: Option<&Multiaddr>) {
        let listen = self.view.lock().listen.clone();
        if let Some(probe) = self.swarm.behaviour_mut().probe.as_mut() {
            let far = |address: &&Multiaddr| reach(address) == Some(Reach::Everywhere);
            listen.iter().filter(far).for_each(|address| probe.suggest(address.clone()));
        }
        if self.reaching.state.set_interfaces(&listen)
            && let Some(gone) = gone
        {
            for address in self.reaching.state.left_behind(gone) {
                self.swarm.remove_external_address(&address);
                self.reach_external(&address, false);
            }
        }
        self.follow_reachability();
    }

    /// A listener has ended; says whether it was a place at a relay.
    pub(in crate::net) fn reach_listener_closed(&mut self, id: ListenerId, now: Instant) -> bool {
        self.reaching.relays.ended(id, now)
    }

    /// An address has become external, or is so no more.
    pub(in crate::net) fn reach_external(&mut self, address: &Multiaddr, is: bool) {
        let mut view = self.view.lock();
        view.external.retain(|other| other != address);
        if is {
            view.external.push(address.clone());
        }
        self.reaching.has_external = !view.external.is_empty();
        drop(view);
        self.reaching.settling.moved(Instant::now());
        if is {
            self.reaching.state.confirmed(address);
        } else {
            self.reaching.state.expired(address);
        }
        self.follow_reachability();
    }

    /// A server has tried an address.
    pub(in crate::net) fn reach_tested(&mut self, tested: Tested) {
        tracing::debug!(address = %tested.address, reached = tested.reached, "tried from outside");
        if tested.reached {
            let confirmed = self.reaching.state.tested(tested.address);
            self.confirm(confirmed);
        } else {
            self.reaching.state.not_reached(&tested.address);
            self.follow_reachability();
        }
    }

    /// A relay has given a place.
    pub(in crate::net) fn reach_relayed(&mut self, event: &relay::client::Event) {
        if let relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal, .. } = event {
            self.reaching.relays.granted(relay_peer_id);
            if !renewal {
                tracing::info!(relay = %relay_peer_id, "others can call this node through a relay");
            }
        }
    }

    /// A hole was punched, or couldn't be.
    pub(in crate::net) fn reach_punched(&mut self, event: &dcutr::Event) {
        let peer = event.remote_peer_id;
        match &event.result {
            Ok(_) => tracing::debug!(%peer, "connected straight through the NATs"),
            Err(error) => tracing::debug!(%peer, %error, "no way straight through the NATs"),
        }
        self.control.punch_over(peer);
    }

    /// Takes addresses for external; the swarm tells only of those that others take for it.
    pub(in crate::net) fn confirm(&mut self, addresses: Vec<Multiaddr>) {
        for address in addresses {
            if !self.swarm.external_addresses().any(|known| *known == address) {
                tracing::info!(%address, "others can reach this node");
                self.swarm.add_external_address(address.clone());
                self.reach_external(&address, true);
            }
        }
    }

    /// Does at once what follows from what is known.
    pub(in crate::net) fn follow_reachability(&mut self) {
        self.machine.hold_announcements(!self.reaching.has_address(Instant::now()));
        let reachable = self.reaching.state.is_reachable();
        let nat = self.reaching.state.nat();
        let before = std::mem::replace(&mut self.view.lock().nat, nat);
        if before != nat {
            tracing::info!(nat = nat.as_str(), "how others can reach this node");
        }
        let mode = self.reaching.wanted_mode();
        let behaviour = self.swarm.behaviour_mut();
        if self.reaching.mode != Some(mode) {
            self.reaching.mode = Some(mode);
            behaviour.kad.set_mode(Some(mode));
        }
        if let Some(server) = behaviour.relay_server.as_mut() {
            let status = if reachable && self.reaching.help {
                relay::Status::Enable
            } else {
                relay::Status::Disable
            };
            server.set_status(Some(status));
        }
    }

    /// Does what is due.
    pub(in crate::net) fn reach_tick(&mut self, now: Instant) {
        if let Some(settled) = self.reaching.settling.poll(now) {
            if settled.moved {
                let external = self.view.lock().external.clone();
                self.tell(NetEvent::ExternalAddresses(external));
            }
            self.machine.settled(settled.all);
        }
        self.machine.hold_announcements(!self.reaching.has_address(now));
        for id in self.reaching.superfluous(now) {
            self.swarm.close_connection(id);
        }
        for (peer, through) in self.reaching.due_punches(now) {
            tracing::debug!(%peer, "trying again to connect straight");
            let dial = DialOpts::peer_id(peer).addresses(vec![through]);
            self.dial(dial.condition(PeerCondition::Always).build());
        }
        for listener in self.reaching.relays.unanswered(now) {
            tracing::debug!("a relay doesn't answer");
            self.swarm.remove_listener(listener);
        }
        if self.reaching.needs_help(now) {
            self.ask_relays(now);
            self.be_seen(now);
        } else if self.reaching.state.is_reachable() {
            for listener in self.reaching.relays.give_up() {
                self.swarm.remove_listener(listener);
            }
        }
    }

    fn ask_relays(&mut self, now: Instant) {
        let hops: Vec<_> = self.reaching.hops.iter().copied().collect();
        let (entries, others): (Vec<_>, Vec<_>) =
            hops.into_iter().partition(|peer| self.dialing.is_bootstrap(peer));
        for relay in self.reaching.relays.to_ask(now, entries.into_iter().chain(others)) {
            let far = |c: &&Connection| c.far && c.shows;
            let Some(connection) = self.reaching.direct(relay).find(far) else { continue };
            let address = without_peer(&connection.remote)
                .with(Protocol::P2p(relay))
                .with(Protocol::P2pCircuit);
            match self.swarm.listen_on(address) {
                Ok(listener) => {
                    tracing::debug!(%relay, "asking for a place");
                    self.reaching.relays.asked(relay, listener, now);
                }
                Err(error) => {
                    tracing::debug!(%relay, %error, "cannot ask a relay");
                    self.reaching.relays.failed(relay, now);
                }
            }
        }
        let kept: Vec<_> = self.reaching.relays.peers().collect();
        kept.into_iter().for_each(|peer| self.control.keep(peer, true));
    }

    /// Connects by QUIC with some that are connected by TCP, so that both ways through the NAT are
    /// known and kept open.
    fn be_seen(&mut self, now: Instant) {
        let listens = self.view.lock().listen.iter().any(is_quic);
        let seeing = |reaching: &Reaching, peer| {
            reaching.direct(peer).any(|c| c.shows && c.far && is_quic(&c.remote))
        };
        let far: HashSet<_> = self
            .reaching
            .connections
            .values()
            .filter(|c| c.far && c.direct)
            .map(|c| c.peer)
            .collect();
        let (seen, unseen): (Vec<_>, Vec<_>) =
            far.into_iter().partition(|peer| seeing(&self.reaching, *peer));
        for peer in seen.iter().take(OBSERVERS_WANTED) {
            self.control.keep(*peer, true);
        }
        let missing = OBSERVERS_WANTED.saturating_sub(seen.len());
        let relays: Vec<_> = self.reaching.relays.peers().collect();
        let wanted = unseen
            .iter()
            .filter(|peer| relays.contains(peer))
            .chain(unseen.iter().filter(|peer| !relays.contains(peer)).take(missing));
        for peer in wanted.copied().collect::<Vec<_>>() {
            let tried = self.reaching.observers.get(&peer);
            if !listens || tried.is_some_and(|at| now < *at + OBSERVER_PAUSE) {
                continue;
            }
            let mut addresses = self.book.addresses(&peer);
            addresses.retain(|address| is_quic(address) && is_direct(address));
            // Until it has told, they aren't known.
            if !addresses.is_empty() {
                self.reaching.observers.insert(peer, now);
                let dial = DialOpts::peer_id(peer).addresses(addresses);
                self.dial(dial.condition(PeerCondition::Always).build());
            }
        }
    }
}
