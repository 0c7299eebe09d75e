//! Trying addresses without a node: for those who check a list, or find out why nobody is found.

use crate::net::{Guard, NETWORK, NetError, build_transport, peer_of, swarm_config};
use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, identify};
use narswarm_protocol::limits::MAX_ENTRY_DIALS_PER_SOURCE;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a peer that was reached may take to say who it is.
const IDLE: Duration = Duration::from_secs(5);

/// What came of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A node of this network is there, and is who it should be.
    Reached {
        /// What it says it runs.
        agent: String,
    },
    /// Nobody is there, or somebody else.
    Failed {
        /// What the attempt came to.
        reason: String,
    },
    /// There was no time left to try it.
    NotTried,
}

#[allow(missing_docs)]
mod behaviour {
    use super::{NetworkBehaviour, identify};

    /// Says who it is and hears who others are, no more.
    #[derive(NetworkBehaviour)]
    pub struct Visitor {
        pub identify: identify::Behaviour,
    }
}
use behaviour::{Visitor, VisitorEvent};

/// Tries addresses, a few at a time, for as long as `patience`, under an identity made for it.
///
/// # Errors
/// When there is no network to be had at all.
pub async fn try_addresses(
    addresses: &[Multiaddr],
    resolver: Option<SocketAddr>,
    patience: Duration,
) -> Result<Vec<(Multiaddr, Outcome)>, NetError> {
    let key = Keypair::generate_ed25519();
    // Who tries addresses has been told of them, near ones too.
    let guard = Guard::default();
    let transport = build_transport(&key, None, &guard, None, resolver)?;
    let config = identify::Config::new(NETWORK.to_owned(), key.public()).with_cache_size(0);
    let visitor = Visitor { identify: identify::Behaviour::new(config) };
    let peer = key.public().to_peer_id();
    let mut swarm = Swarm::new(transport, visitor, peer, swarm_config(IDLE));

    let mut waiting: VecDeque<usize> = (0..addresses.len()).collect();
    let mut under_way: BTreeMap<ConnectionId, usize> = BTreeMap::new();
    let mut outcomes: Vec<Option<Outcome>> = vec![None; addresses.len()];
    let deadline = tokio::time::Instant::now() + patience;
    while outcomes.iter().any(Option::is_none) {
        while under_way.len() < MAX_ENTRY_DIALS_PER_SOURCE {
            let Some(next) = waiting.pop_front() else { break };
            let dial = dial(&addresses[next]);
            let id = dial.connection_id();
            match swarm.dial(dial) {
                Ok(()) => drop(under_way.insert(id, next)),
                Err(error) => {
                    outcomes[next] = Some(Outcome::Failed { reason: error.to_string() });
                }
            }
        }
        let event = tokio::time::timeout_at(deadline, swarm.select_next_some()).await;
        let Ok(event) = event else { break };
        let (id, outcome) = match event {
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                let reason = crate::net::dial_reason(&error);
                (connection_id, Outcome::Failed { reason })
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                let reason = "the connection was closed before it said who it is".to_owned();
                (connection_id, Outcome::Failed { reason })
            }
            SwarmEvent::Behaviour(VisitorEvent::Identify(identify::Event::Received {
                connection_id,
                info,
                ..
            })) => (connection_id, judge(&info)),
            _ => continue,
        };
        if let Some(index) = under_way.remove(&id) {
            swarm.close_connection(id);
            outcomes[index] = Some(outcome);
        }
    }
    // Those under way have had their time, the others none.
    for index in under_way.into_values() {
        let reason = "no answer in time".to_owned();
        outcomes[index].get_or_insert(Outcome::Failed { reason });
    }
    let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::NotTried));
    Ok(addresses.iter().cloned().zip(outcomes).collect())
}

fn dial(address: &Multiaddr) -> DialOpts {
    match peer_of(address) {
        Some(peer) => DialOpts::peer_id(peer)
            .addresses(vec![address.clone()])
            .condition(libp2p::swarm::dial_opts::PeerCondition::Always)
            .build(),
        None => DialOpts::unknown_peer_id().address(address.clone()).build(),
    }
}

fn judge(info: &identify::Info) -> Outcome {
    if info.protocol_version == NETWORK {
        let agent = info.agent_version.chars().filter(|c| !c.is_control()).take(64).collect();
        Outcome::Reached { agent }
    } else {
        Outcome::Failed { reason: "it belongs to another network".to_owned() }
    }
}
