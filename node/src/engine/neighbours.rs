//! Nodes that know hardly anybody find each other.
//!
//! Those that others can reach are in the tables of Kademlia, and are come upon. Those behind NATs are
//! in no table: in a small network of such nodes and an entry node each would know the entry node
//! alone, and ask nobody at once. So whoever knows few announces itself under a key that is the same
//! for all, as if it were an item, and looks who else has. In a larger network nobody needs to, though
//! idle connections close there too.

use crate::net::Net;
use libp2p::PeerId;
use narswarm_protocol::announce::lonely_key;
use narswarm_protocol::limits;
use narswarm_protocol::store_path::StoreHash;
use std::collections::BTreeSet;
use std::time::Duration;
use tracing::debug;

/// Looks for others as long as few are known; `is_found` if others may find this node so.
pub async fn find_others(net: &Net, is_found: bool) {
    // An item that nobody has: what is wanted is the connection.
    let nothing = StoreHash(rand::random());
    let (mut pause, mut announced) = (limits::LONELY_PAUSE, false);
    loop {
        tokio::time::sleep(pause).await;
        let is_lonely =
            known(net).len() < limits::LONELY_PEERS && net.network_size() < limits::LONELY_NETWORK;
        if is_found && is_lonely != announced {
            let key = [lonely_key()];
            if is_lonely {
                // When there is no room, so much is announced that others will come.
                announced = net.routing().provide(&key).await.is_ok();
            } else {
                net.routing().withdraw(&key).await;
                announced = false;
            }
        }
        if is_lonely {
            look(net, &nothing).await;
        }
        pause = next_pause(pause, is_lonely);
    }
}

/// Peers that answer queries.
fn known(net: &Net) -> BTreeSet<PeerId> {
    net.connected().iter().filter(|peer| peer.ours).map(|peer| peer.peer).collect()
}

fn next_pause(pause: Duration, is_lonely: bool) -> Duration {
    if is_lonely { (pause * 2).min(limits::LONELY_PAUSE_AT_MOST) } else { limits::LONELY_PAUSE }
}

async fn look(net: &Net, nothing: &StoreHash) {
    let mut asked = known(net);
    let before = asked.len();
    let mut found = net.routing().find_for_upkeep(&[lonely_key()]).await;
    while let Some(provider) = found.recv().await {
        if asked.len() - before >= limits::MAX_LONELY_ASKED || !asked.insert(provider.peer) {
            continue;
        }
        match net.query(provider.peer, std::slice::from_ref(nothing)).await {
            Ok(_) => net.keep(provider.peer),
            Err(error) => {
                debug!("another node that knows few: {error}");
                net.routing().note_gone(provider.peer);
            }
        }
    }
}
