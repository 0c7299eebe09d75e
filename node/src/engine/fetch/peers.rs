//! The peers of a fetch: who is met, called, asked and dropped.

use super::{Driver, Moved, Session};
use crate::engine::Holder;
use crate::engine::sources::{self, Order, PeerTask};
use narswarm_protocol::fetch::{Fault, SourceId};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

impl Driver {
    /// A peer is new, or has come back after its session ended.
    pub(super) fn meet(&mut self, holder: &Holder) {
        let known = self.peers.get(&holder.peer);
        let in_use = known.is_some_and(|id| self.machine.knows(*id));
        if in_use || self.engine.is_banned(&holder.peer) {
            return;
        }
        let id = SourceId(self.next_source);
        self.next_source += 1;
        self.peers.insert(holder.peer, id);
        let hint = self.engine.hint(holder, self.progress.layout());
        self.machine.handle_peer(id, hint, self.now());
    }

    /// A conversation has broken off.
    pub(super) fn broken(&mut self, id: SourceId) {
        let again = SourceId(self.next_source);
        let peer = self.sessions.get(&id).map(|session| session.peer);
        if self.machine.handle_broken(id, again, self.now()) {
            self.next_source += 1;
            peer.map(|peer| self.peers.insert(peer, again));
        }
    }

    pub(super) fn open(&mut self, source: SourceId) {
        let Some((&peer, _)) = self.peers.iter().find(|(_, id)| **id == source) else { return };
        let Some(net) = self.engine.net.get().cloned() else { return };
        self.progress.set_tried_peers();
        let (orders, taken) = mpsc::channel(sources::ORDERS);
        let moved = Moved::default();
        let task = PeerTask {
            net,
            peer,
            id: source,
            nar_hash: self.narinfo.nar_hash(),
            layout: self.progress.layout(),
            moved: moved.total.clone(),
            room: self.room.clone(),
        };
        let task = tokio::spawn(task.run(taken, self.events.clone()));
        let task = AbortOnDropHandle::new(task);
        let session = Session { peer, orders, moved, _task: task };
        self.sessions.insert(source, session);
    }

    pub(super) fn order(&mut self, source: SourceId, order: Order) {
        let Some(session) = self.sessions.get(&source) else { return };
        if session.orders.try_send(order).is_err() {
            debug!(peer = %session.peer, "a session takes no more orders");
            let now = self.now();
            self.machine.handle_source_lost(source, None, now);
        }
    }

    pub(super) fn drop_source(&mut self, source: SourceId, fault: Option<Fault>) {
        let session = self.sessions.remove(&source);
        let Some(fault) = fault else { return };
        let peer = session
            .map(|s| s.peer)
            .or_else(|| self.peers.iter().find(|(_, id)| **id == source).map(|(&peer, _)| peer));
        if let Some(peer) = peer {
            warn!(%peer, item = %self.narinfo.item(), ?fault, "a peer misbehaved; it is avoided for a while");
            self.engine.ban(peer);
        }
    }
}
